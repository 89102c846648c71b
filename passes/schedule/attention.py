"""Scaled dot-product attention of f32 as one kernel.

A group holds the operator, elementwise operators behind it, and movement in front of it (a split
into heads is a transpose): operands are read through their strides wherever the group's index
arithmetic allows, and else computed into memory first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir import dtype as dt
from ...ir.algebra import at_least
from ...ir.expr import Const, Expr, Var, const, op, var, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import broadcast_index, flat_index, same
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, Load, load
from ...ir.program import Storage
from ..lower.generic import Group, write_value
from ..lower.inline import Inliner
from ..lower.loops import LoopWriter, depends, linear_in, placeholder, vectorisable
from ..lower.lowering import Lowering
from .attention_panels import Element, Panels, Problem, Strided
from .attention_rows import Rows, few_rows
from .gemm import Operands, add_operand, finish, needed, operands
from .microkernel import Epilogue

SETS_BYTES = 4096
"""Keys this many bytes apart fall into one set of the first-level cache and few of the second."""

MANY_ROWS = 256
"""Rows of queries from which on a copy of such keys is worth it (measured: 20 to 35 % of the time
from 512 rows on, even at 128)."""


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
    reading = _Reading(low, group, root)
    ops = operands(low, group, "attention", reading.kept() | needed(group, root))
    for value in reading.stored:
        add_operand(low, group, ops, value)
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    direct = root.attrs["perm"][3] == 3 and epilogue.vectorisable()
    raw = Buffer("raw", dt.f32, (out.type.numel,))
    inliner = Inliner(ops.buffers)
    inliner.known.update(ops.known)
    read = reading.elements(inliner)
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
        q.shape[3], v.shape[3], read.q, read.k, read.v, read.bias, read.mask,
        root.attrs, put, _by_row)
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


# Operands -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Elements:
    q: Element
    k: Strided
    v: Strided
    bias: Element | None
    mask: Element | None


class _Reading:
    """How the operands of an attention node are read: in place, or from memory into which a kernel
    of its own computes them (`stored`)."""

    def __init__(self, low: Lowering, group: Group, root: Node):
        self.group, self.root = group, root
        self.stored: list[Value] = []
        probe = Inliner({x: Buffer(f"probe{k}", x.dtype, (x.type.numel,))
                         for k, x in enumerate(group.inputs)})
        for i, value in enumerate(root.inputs):
            if value is None or value in self.stored:
                continue
            found = element(probe, root, i)
            if i == 0:
                fits = _along(found, 3)
            elif i < 3:
                fits = self._in_place(found, i, low.machine.lanes)
            else:
                fits = _along(found, 3)
            if not fits and value not in group.inputs:
                self.stored.append(value)

    def _in_place(self, x: Element, i: int, lanes: int) -> bool:
        """Whether keys or values can be read through their strides, and should."""
        found, q = _strided(x), self.root.inputs[0]
        assert q is not None
        rows = q.shape[2]
        if found is None:
            return False
        if isinstance(found.step, Const) and found.step.value * 4 % SETS_BYTES == 0 \
                and isinstance(rows, int) and rows >= MANY_ROWS:
            return False
        if at_least(wrap(rows), few_rows(lanes) + 1) or found.inner is const(1):
            return True
        return i == 1 and found.step is const(1)

    def kept(self) -> set[Value]:
        """The inputs of the group that the kernel reads for its operands."""
        found: set[Value] = set()
        stack = [v for v in self.root.inputs if v is not None and v not in self.stored]
        while stack:
            value = stack.pop()
            if value in self.group.inputs:
                found.add(value)
            elif value.node is not None and value not in self.stored:
                stack += [v for v in value.node.inputs if v is not None]
        return found

    def elements(self, inliner: Inliner) -> _Elements:
        found = [element(inliner, self.root, i) if i < len(self.root.inputs)
                 and self.root.inputs[i] is not None else None for i in range(5)]
        q, k, v, bias, mask = found
        assert q is not None and k is not None and v is not None
        strided = [_strided(x) for x in (k, v)]
        assert strided[0] is not None and strided[1] is not None
        return _Elements(q, strided[0], strided[1], bias, mask)


def element(inliner: Inliner, root: Node, i: int) -> Element:
    """Operand i at an index of variables: of its own for q, k and v, of the scores for others."""
    value, q, k = root.inputs[i], root.inputs[0], root.inputs[1]
    assert value is not None and q is not None and k is not None
    shape = value.shape if i < 3 else (*q.shape[:3], k.shape[2])
    index = _variables(shape)
    at: Sequence[Expr] = index if i < 3 else broadcast_index(index, value.shape, shape)
    return Element(inliner.at(value, at), index)


def _variables(shape) -> tuple[Expr, ...]:
    return tuple(const(0) if same(d, 1) else placeholder(wrap(d)) for d in shape)


def _along(x: Element, axis: int) -> bool:
    """Whether lanes can stand for an axis, or the element does not depend on it."""
    variable = x.index[axis]
    if not isinstance(variable, Var) or not depends(x.value, variable):
        return True
    return vectorisable(x.value, variable)


def _by_row(x: Element) -> bool:
    return _along(x, 2)


def _strided(x: Element) -> Strided | None:
    e = x.value
    if not isinstance(e, Load):
        return None
    base, slopes = e.index[-1], []
    for variable in x.index[2:]:
        if not isinstance(variable, Var):
            slopes.append(const(1))
            continue
        split = linear_in(base, variable)
        if split is None or any(depends(split[0], v) for v in x.index if isinstance(v, Var)):
            return None
        slopes.append(split[0])
        base = split[1]
    return Strided(e.buffer, base, slopes[0], slopes[1], x.index[0], x.index[1])
