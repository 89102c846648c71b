"""Scaled dot-product attention of f32 as one kernel.

A group holds the operator, elementwise operators behind it, and movement in front of it (a split
into heads is a transpose): operands are read through their strides wherever the group's index
arithmetic allows, and else computed into memory first. Where a node lets its operands be rounded,
and there are tile registers, keys and values are packed for them by kernels ahead.
"""

from __future__ import annotations

from ...ir import dtype as dt
from ...ir.algebra import at_least
from ...ir.expr import Expr, op, var, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import flat_index, same
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ...ir.program import Storage
from ..lower.generic import Group, write_value
from ..lower.inline import Inliner
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering
from .attention_operands import Reading, by_row
from .attention_panels import Panels, Problem
from .attention_rows import Rows, few_rows
from .attention_tiles import TilePanels, pack, takes_tiles
from .gemm import Operands, add_operand, finish, needed, operands
from .microkernel import Epilogue


def attention_rule(low: Lowering, node: Node) -> bool:
    """f32 attention with an elementwise epilogue."""
    group = Group(node)
    root = group.find("attention")
    if root is None or low.machine.lanes == 1:
        return False
    q, k, v = (x for x in root.inputs[:3] if x is not None)
    out = root.output
    bias = root.inputs[3] if len(root.inputs) > 3 else None
    if any(x is not None and x.dtype is not dt.f32 for x in (q, bias)) \
            or not isinstance(q.shape[3], int) or not isinstance(v.shape[3], int) \
            or any(same(d, 0) for x in (q, k, v) for d in x.shape) \
            or any(x.shape != out.shape for x in group.outputs):
        return False
    if not same(q.shape[1], k.shape[1]) and not (
            isinstance(q.shape[1], int) and isinstance(k.shape[1], int)):
        return False
    tiles = takes_tiles(low.machine, root)
    reading = Reading(low, group, root, packed=tiles)
    read = reading.operands()
    ops = operands(low, group, "attention", reading.kept(read) | needed(group, root))
    for value in reading.stored:
        if value in read:
            add_operand(low, group, ops, value)
    packed = pack(low, reading, ops) if tiles else ()
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    direct = root.attrs["perm"][3] == 3 and epilogue.vectorisable()
    raw = Buffer("raw", dt.f32, (out.type.numel,))
    inliner = Inliner(ops.buffers)
    inliner.known.update(ops.known)
    found = reading.elements(inliner, packed)
    natural = _natural(root)

    def put(batch: Expr, head: Expr, row: Expr, column: Expr, lanes: int, value: Expr,
            count: Expr | None) -> None:
        if not direct:
            at = flat_index((batch, head, row, column), natural)
            ops.b.store(raw, (at,), value, count)
            return
        place = (batch, head, row, column)
        index = tuple(place[a] for a in root.attrs["perm"])
        last = var("column", extent=wrap(v.shape[3]))
        epilogue.store(index, last, column, lanes, value, count)

    problem = Problem(
        ops.b, writer, low.machine.lanes, low.machine.vector_registers, q.shape[0], q.shape[1],
        q.shape[1] if same(q.shape[1], k.shape[1]) else k.shape[1], q.shape[2], k.shape[2],
        q.shape[3], v.shape[3], found.q, found.k, found.v, found.bias, found.mask,
        root.attrs, put, by_row)
    if tiles:
        TilePanels(problem).write()
    else:
        _write(problem)
    flops = wrap(q.type.numel // wrap(q.shape[3])) * wrap(k.shape[2]) * (
        2 * (q.shape[3] + v.shape[3]))
    if direct:
        finish(low, node, ops, flops)
    else:
        _finish_apart(low, group, node, root, ops, raw, natural, flops)
    return True


def _write(p: Problem) -> None:
    few = few_rows(p.lanes)
    if isinstance(p.rows, int) and p.rows <= few:
        Rows(p, p.rows).write()
    elif at_least(wrap(p.rows), few + 1):
        Panels(p).write()
    else:
        with p.b.when(op("le", wrap(p.rows), few)):
            Rows(p, few).write()
        with p.b.otherwise():
            Panels(p).write()


def _natural(root: Node) -> tuple:
    """The shape of the result before it is transposed."""
    perm = root.attrs["perm"]
    return tuple(root.output.shape[perm.index(a)] for a in range(4))


def _finish_apart(low: Lowering, group: Group, node: Node, root: Node, ops: Operands, raw: Buffer,
                  natural: tuple, flops: Expr) -> None:
    """Launches the kernel with its result in memory of its own, and loops for what follows."""
    type = TensorType(dt.f32, natural)
    target = low.temporary(type, "attention")
    inputs = [x for x in ops.b.params if x is not raw]
    ops.b.params = [*inputs, raw]
    moved: Expr = wrap(0)
    for buffer in ops.b.params:
        moved = moved + wrap(buffer.shape[0]) * buffer.dtype.itemsize
    low.launch(ops.b.kernel(1, flops, moved), [*ops.args, target])
    b = Builder(low.kernel_name("attention_result"), group.node.origin)
    buffers: dict[Value, Buffer] = {}
    args: list[Storage] = []
    read = needed(group, root)
    for inner, outer in zip(group.inputs, group.outer, strict=True):
        if inner in read and inner not in buffers:
            buffers[inner] = b.param("x", inner.dtype, (inner.type.numel,))
            args.append(low.storage(outer))
    source = b.param("raw", dt.f32, (type.numel,))
    perm = root.attrs["perm"]
    inliner = Inliner(buffers)
    inliner.hooks[root.output] = lambda index: load(source, (flat_index(
        [index[perm.index(a)] for a in range(4)], natural),))
    outs = [b.param("y", x.dtype, (x.type.numel,)) for x in group.outputs]
    for value, out in zip(group.outputs, outs, strict=True):
        write_value(b, low, inliner, value, out)
    moved = wrap(0)
    for buffer in b.params:
        moved = moved + wrap(buffer.shape[0]) * buffer.dtype.itemsize
    low.launch(b.kernel(len(outs), 0, moved),
               [*args, target, *(low.storage(x) for x in node.outputs)])
