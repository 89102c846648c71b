"""Long reductions to few results on a GPU: a block of threads for each result.

With a thread for each result, which is what the generic lowering gives, most of the machine would
be idle.
"""

from __future__ import annotations

from math import prod

from ...ir.expr import Expr, Var, cast, const, equal, substitute, wrap
from ...ir.graph.core import Node
from ...ir.graph.definition import lookup
from ...ir.graph.ops.shapes import flat_index, same, unflatten
from ...ir.kernel.nodes import Buffer
from ..lower.generic import Group
from ..lower.inline import Inliner
from ..lower.loops import LoopWriter, placeholder
from ..lower.lowering import Lowering, Rule
from ..lower.reduced import reductions
from ..lower.visits import Part
from .gemm import finish, operands
from .gpu import GpuLimits, blocks
from .gpu_rows import Shared

LONG = 128
"""Terms of a reduction that are worth a block."""

FEW = 2048
"""Results above which a thread for each keeps a GPU busy."""

REDUCING = ("reduction", "contraction")


def gpu_reduction_rules(limits: GpuLimits) -> tuple[Rule, ...]:
    """The rule for groups with one output that reduce."""

    def reduction(low: Lowering, node: Node) -> bool:
        group = Group(node)
        (out, *others) = group.outputs
        inner = [v for n in group.nodes if n.op != "constant" for v in n.outputs]
        if others or any(v.node is None or lookup(v.node.op).body_of(v.index) is None
                         for v in inner) or any(n.op == "concat" for n in group.nodes):
            return False
        if not any(lookup(n.op).kind in REDUCING for n in group.nodes):
            return False
        if prod(d if isinstance(d, int) else FEW + 1 for d in out.shape) > FEW or any(
                same(d, 0) for d in out.shape):
            return False
        ops = operands(low, group, "reduce", set(group.inputs))
        inliner = Inliner(ops.buffers)
        inliner.known.update(ops.known)
        index = tuple(const(0) if same(d, 1) else placeholder(wrap(d)) for d in out.shape)
        live = [i for i in index if isinstance(i, Var)]
        value = inliner.at(out, index)
        found = reductions(value, live)
        length = max((prod(v.extent if isinstance(v.extent, int) else LONG for v in r.variables)
                      for r in found or ()), default=0)
        if not found or length < LONG:
            return False
        threads = min(limits.threads, 1 << (length.bit_length() - 1))
        b = ops.b
        extents = [wrap(v.extent) for v in live]
        count = const(1)
        for e in extents:
            count = count * e
        with blocks(b, count, limits) as block:
            partial: dict[object, Buffer] = {
                d: b.alloc("partial", d, (threads,), "shared")
                for d in dict.fromkeys(r.accumulator for r in found)}
            with b.loop("thread", threads, "block.x") as t:
                at: dict[Expr, Expr] = {v: b.let("i", x) for v, x in zip(
                    live, unflatten(block, extents), strict=True)}
                writer = LoopWriter(b, low.machine)
                bound: dict[Expr, Expr] = {}
                for r in found:
                    body = substitute(r.body, at)

                    def term(part: Part, body: Expr = body) -> Expr:
                        held = {substitute(k, part.mapping): v for k, v in bound.items()}
                        return writer.value(substitute(body, part.mapping), bound=held)

                    visits = Shared(b, 1, r.variables, False, t, threads, partial[r.accumulator])
                    total = visits.reduce(r.source.op, r.accumulator, term)
                    bound[substitute(r.source, at)] = cast(total.values[0], r.source.dtype)
                with b.when(equal(t, 0)):
                    result = writer.value(substitute(value, at), bound=bound)
                    where = substitute(flat_index(index, out.shape), at)
                    b.store(ops.outs[0], where, cast(result, out.dtype))
        finish(low, node, ops, wrap(out.type.numel) * length)
        return True

    return (reduction,)
