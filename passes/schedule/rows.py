"""Row operators: softmax and the normalisations, one kernel each.

A row is read from memory once; maximum, sums and the final pass find it in the first-level cache
or in registers. Elementwise operators before and after are computed on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod

from ...ir import dtype as dt
from ...ir.expr import (
    Const,
    Expr,
    Var,
    broadcast,
    cast,
    const,
    op,
    select,
    substitute,
    var,
    walk,
    wrap,
)
from ...ir.graph.core import Node, TensorType
from ...ir.graph.ops.row import accumulator
from ...ir.graph.ops.shapes import flat_index
from ...ir.kernel.nodes import Buffer, Load, load
from ..kernel.elementary import exp_up_to_one
from ..lower.generic import Group
from ..lower.inline import Inliner
from ..lower.loops import (
    PARALLEL_WORK,
    LoopWriter,
    collapse,
    each,
    linear_in,
    merged,
    placeholder,
    value_nodes,
    vectorisable,
)
from ..lower.lowering import Lowering, Rule
from ..lower.visits import Across, Along, blocks_across, vectors_across
from .gemm import Operands, finish, operands
from .recurrent import recurrent_rule
from .row_walk import IN_REGISTERS, RowSpace, Walk

# Templates ----------------------------------------------------------------------------------------


def _softmax(w: Walk, root: Node, vectors: bool) -> None:
    masked = root.attrs["masked"]

    def exponential(part) -> Expr:
        return w.keep(part, exp_up_to_one(w.b.let("d", read(part) - top.of(part))))

    first, read = _first_visit(w)
    top = w.reduce("max", first)
    if masked:
        top = w.map(lambda t: select(op("eq", t, -inf), _like(t, 0), t), top)
    total = w.reduce("sum", exponential)
    if masked:
        total = w.map(lambda t: select(op("eq", t, 0), _like(t, 1), t), total)
    scale = w.map(lambda t: op("div", _like(t, 1), t), total)
    w.write(lambda part: w.kept(part) * scale.of(part), vectors)


def _log_softmax(w: Walk, root: Node, vectors: bool) -> None:
    first, read = _first_visit(w)
    top = w.reduce("max", first)
    total = w.reduce("sum", lambda part: exp_up_to_one(w.b.let("d", read(part) - top.of(part))))
    shift = w.map(lambda t: op("log", t), total)
    w.write(lambda part: read(part) - top.of(part) - shift.of(part), vectors)


def _layer_norm(w: Walk, root: Node, vectors: bool) -> None:
    count = _count(w)
    first, read = _first_visit(w)
    mean = w.map(lambda t: op("div", t, _like(t, count)), w.reduce("sum", first))

    def square(part) -> Expr:
        d = w.b.let("d", read(part) - mean.of(part))
        return d * d

    scale = w.map(lambda t: _deviation(t, count, root), w.reduce("sum", square))
    w.write(lambda part: (read(part) - mean.of(part)) * scale.of(part), vectors)


def _rms_norm(w: Walk, root: Node, vectors: bool) -> None:
    count = _count(w)
    first, read = _first_visit(w)

    def square(part) -> Expr:
        value = w.b.let("d", first(part))
        return value * value

    scale = w.map(lambda t: _deviation(t, count, root), w.reduce("sum", square))
    w.write(lambda part: read(part) * scale.of(part), vectors)


def _deviation(total: Expr, count: Expr, root: Node) -> Expr:
    variance = op("div", total, _like(total, count))
    return op("rsqrt", variance + _like(total, root.attrs["epsilon"]))


def _first_visit(w: Walk) -> tuple[Callable, Callable]:
    """How the operand is read at first and afterwards: it is kept unless memory has it as it is."""
    x = w.space.x
    if isinstance(x, Load) and not w.visits.resident:
        return w.x, w.x
    return lambda part: w.keep(part, w.x(part)), w.kept


def _count(w: Walk) -> Expr:
    total: Expr = const(1)
    for v in w.space.row:
        total = total * wrap(v.extent)
    return cast(total, w.dtype)


def _like(e: Expr, value) -> Expr:
    """A number in the type and lanes of `e`."""
    return broadcast(wrap(value, e.dtype), e.lanes)


TEMPLATES: dict[str, Callable[[Walk, Node, bool], None]] = {
    "softmax": _softmax, "log_softmax": _log_softmax, "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}

WORK = {"softmax": 8, "log_softmax": 8, "layer_norm": 4, "rms_norm": 3}
"""Work per element, in copies of it."""

# The rule -----------------------------------------------------------------------------------------


class OtherIndex(Exception):
    """The elementwise operators do not read the row operator's result at their own index."""


@dataclass(eq=False)
class RowPlan:
    """The space of a row kernel and the variables of its rows."""

    space: RowSpace
    rows: list[Var]
    inner: Var | None  # innermost variable behind a row that is not innermost itself
    vector_x: bool = True
    vector_outputs: bool = True


def row_anchor(group: Group) -> Node | None:
    """The group's row operator, when a template covers the group."""
    anchors = [n for n in group.nodes if n.op in TEMPLATES]
    if len(anchors) != 1:
        return None
    shape = anchors[0].output.shape
    if any(v.shape != shape for v in group.outputs) or any(
            isinstance(d, int) and d == 0 for d in shape):
        return None
    return anchors[0]


def row_rule(low: Lowering, node: Node) -> bool:
    """Softmax and normalisations with elementwise prologue and epilogue."""
    group = Group(node)
    root = row_anchor(group)
    if root is None:
        return False
    ops = operands(low, group, root.op, set(group.inputs))
    try:
        plan = plan_rows(group, root, ops)
    except OtherIndex:
        return False
    _write(low, ops, root, plan)
    total = wrap(root.output.type.numel)
    finish(low, node, ops, total * WORK[root.op])
    return True


def plan_rows(group: Group, root: Node, ops: Operands) -> RowPlan:
    """The space of a group's row operator. Raises OtherIndex."""
    out, wide = root.output, accumulator(root.output.dtype)
    index = tuple(const(0) if d == 1 and isinstance(d, int) else placeholder(wrap(d))
                  for d in out.shape)
    axis = root.attrs["axis"]
    softmax = root.op.endswith("softmax")
    in_row = range(axis, axis + 1) if softmax else range(axis, out.rank)
    result = var("row.result", wide)
    inliner = Inliner(ops.buffers)
    inliner.known.update(ops.known)
    source = root.inputs[0]
    assert source is not None

    def own(at: tuple[Expr, ...]) -> Expr:
        if any(a is not b for a, b in zip(at, index, strict=True)):
            raise OtherIndex
        value: Expr = result
        for i, sign in ((1, "mul"), (2, "add")):
            operand = root.inputs[i] if i < len(root.inputs) else None
            if operand is not None:
                value = op(sign, value, cast(inliner.at(operand, index[axis:]), wide))
        return cast(value, out.dtype)

    inliner.hooks[out] = own
    x = cast(inliner.at(source, index), wide)
    outputs = [(y, inliner.at(v, index)) for v, y in zip(group.outputs, ops.outs, strict=True)]
    position = flat_index(index, out.shape)
    row = [i for k, i in enumerate(index) if k in in_row and isinstance(i, Var)]
    rows = [i for k, i in enumerate(index) if k not in in_row and isinstance(i, Var)]
    values = [x, *(e for _, e in outputs)]
    if not any(v in (*row, *rows) for e in values for v in value_nodes(e)):
        accesses = [position, *(e.index[-1] for e in walk(*values) if isinstance(e, Load))]
        row, mapping = merged(collapse(row, accesses))
        rows, more = merged(collapse(rows, accesses))
        mapping.update(more)
        x, position = substitute(x, mapping), substitute(position, mapping)
        outputs = [(y, substitute(e, mapping)) for y, e in outputs]
    inner = max((k for k, i in enumerate(index) if isinstance(i, Var)), default=-1)
    behind = inner >= 0 and inner not in in_row
    if not row:  # rows of one element
        row = [placeholder(1)]
    space = RowSpace(x, result, outputs, position, row, row[-1])
    return RowPlan(space, rows, rows[-1] if behind else None)


def _write(low: Lowering, ops: Operands, root: Node, plan: RowPlan) -> None:
    space, wide = plan.space, plan.space.result.dtype
    lanes = low.machine.lanes if wide is dt.f32 else 1
    across = _across(plan, lanes)
    if across is not None:
        space.variable = across
        _write_across(low, ops, root, plan, lanes)
        return
    if plan.inner is not None:
        lanes = 1
    vector_x = lanes == 1 or vectorisable(space.x, space.variable)
    vector_outputs = lanes == 1 or _vector_outputs(space)
    extent = space.variable.extent
    resident = (lanes > 1 and len(space.row) == 1 and isinstance(extent, int)
                and extent <= IN_REGISTERS * lanes)
    spill = None
    if not (resident and vector_x and vector_outputs):
        spill = spill_buffer(low, ops, root, wide)
    writer = LoopWriter(ops.b, low.machine)
    with each(ops.b, plan.rows, _parallel(low, plan, root)) as mapping:
        visits = Along(ops.b, lanes, space.row, resident)
        walk_ = Walk(ops.b, writer, space.at(mapping), visits, wide, spill)
        if not vector_x:
            walk_.stage()
        TEMPLATES[root.op](walk_, root, vector_outputs)


def _across(plan: RowPlan, lanes: int) -> Var | None:
    """The variable across rows that lanes can stand for, if that is better than along the row."""
    if lanes == 1:
        return None
    space = plan.space
    if plan.inner is not None:
        fits = vectorisable(space.x, plan.inner) and _vector_outputs(
            RowSpace(space.x, space.result, space.outputs, space.position, space.row, plan.inner))
        return plan.inner if fits else None
    length = prod(v.extent if isinstance(v.extent, int) else lanes for v in space.row)
    if length > lanes // 2 or not plan.rows:
        return None
    last = plan.rows[-1]
    if isinstance(last.extent, int) and last.extent < lanes:
        return None
    fits = vectorisable(space.x, last, strided=True) and _vector_outputs(
        RowSpace(space.x, space.result, space.outputs, space.position, space.row, last), True)
    return last if fits else None


def _vector_outputs(space: RowSpace, strided: bool = False) -> bool:
    probe = load(Buffer("probe", space.result.dtype, (1 << 30,)), (space.variable,))
    return all(vectorisable(substitute(e, {space.result: probe}), space.variable, strided)
               for _, e in space.outputs)


def _write_across(low: Lowering, ops: Operands, root: Node, plan: RowPlan, lanes: int) -> None:
    b, space = ops.b, plan.space
    across = space.variable
    others = [v for v in plan.rows if v is not across]
    length = prod(v.extent if isinstance(v.extent, int) else 1 << 30 for v in space.row)
    resident = length <= IN_REGISTERS
    split = linear_in(space.position, across)
    unit = split is not None and split[0] is const(1)
    extent = wrap(across.extent)
    vectors = vectors_across(across.extent, lanes, unit)
    if resident:
        vectors = max(1, min(vectors, 2 * IN_REGISTERS // length))
    spill = None if resident else spill_buffer(low, ops, root, dt.f32)
    writer = LoopWriter(b, low.machine)
    block = placeholder((extent + (vectors * lanes - 1)) // (vectors * lanes))
    with each(b, [*others, block], _parallel(low, plan, root)) as mapping:
        given = space.at(mapping)

        def write(width: int, bases: list[Expr], counts: list[Expr | None]) -> None:
            visits = Across(b, width, space.row, resident, bases, counts)
            TEMPLATES[root.op](Walk(b, writer, given, visits, dt.f32, spill), root, True)

        base = b.let("base", mapping[block] * (vectors * lanes))
        blocks_across(b, extent, base, vectors, lanes, unit, write)


def spill_buffer(low: Lowering, ops: Operands, root: Node, wide: dt.DType) -> Buffer:
    """A buffer of the output's shape in the type of the statistics: an output, if one fits."""
    for y in ops.outs:
        if y.dtype is wide:
            return y
    type = TensorType(wide, root.output.shape)
    ops.args.append(low.temporary(type, "scratch"))
    return ops.b.param("scratch", wide, (type.numel,))


def _parallel(low: Lowering, plan: RowPlan, root: Node) -> bool:
    work: Expr = const(WORK[root.op])
    for v in (*plan.rows, *plan.space.row):
        work = work * wrap(v.extent)
    return low.machine.flat or not (isinstance(work, Const) and work.value < PARALLEL_WORK)


ROW_RULES: tuple[Rule, ...] = (row_rule, recurrent_rule)
