"""Rows of f32 as 8-bit integers with a scale for each group, in two passes over a group that stays
in the level-1 cache."""

from __future__ import annotations

from collections.abc import Callable

from ...ir import dtype as dt
from ...ir.encoding.rounded import LARGEST, Rounded
from ...ir.expr import Expr, broadcast, cast, const, op, select, wrap
from ...ir.graph.core import Node
from ...ir.graph.ops.encoded import encoding_of
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import horizontal
from ...ir.kernel.nodes import load
from ..lower.lowering import Lowering

UNROLLED = 8
"""Vectors of a group up to which it is unrolled."""

GRAIN = 16384
"""Elements that are worth a fork-join."""


def encode_rule(low: Lowering, node: Node) -> bool:
    """`encode` to the encoding `rounded`."""
    if node.op != "encode":
        return False
    source, encoding = node.inputs[0], encoding_of(node.attrs)
    if source is None or not isinstance(encoding, Rounded):
        return False
    k, lanes = source.shape[-1], low.machine.lanes
    assert isinstance(k, int)
    groups, group = encoding.grouping(k)
    b = Builder(low.kernel_name("encode"), node.origin)
    x = b.param("x", dt.f32, (source.type.numel,))
    fields, scales, sums = (b.param("y", v.dtype, (v.type.numel,)) for v in node.outputs)

    def wide(value: Expr) -> Expr:
        return broadcast(value, lanes)

    def vectors(size: int, visit: Callable[[Expr, int, int], None]) -> None:
        """visit(offset in the group, elements that are there, places of the group) for each vector
        of a group that has `size` elements."""
        whole = size // lanes
        if whole > UNROLLED:
            with b.loop("v", whole) as v:
                visit(v * lanes, lanes, lanes)
        else:
            for v in range(whole):
                visit(const(v * lanes), lanes, lanes)
        for v in range(whole * lanes, group, lanes):
            visit(const(v), max(0, min(lanes, size - v)), min(lanes, group - v))

    def one(row: Expr, g: Expr, size: int) -> None:
        first = b.let("x", row * k + g * group)
        target = b.let("y", (row * groups + g) * group)

        def element(at: Expr, count: int) -> Expr:
            return load(x, (first + at,), lanes, count if count < lanes else None)

        largest = b.alloc("m", dt.f32, (), "register", lanes)
        total = b.alloc("s", dt.f32, (), "register", lanes)
        b.store(largest, (), wide(const(0.0, dt.f32)))
        b.store(total, (), wide(const(0.0, dt.f32)))

        def widest(at: Expr, count: int, room: int) -> None:
            if count:
                b.store(largest, (), op("max", largest[()], op("abs", element(at, count))))

        vectors(size, widest)
        most = b.let("m", horizontal("max", largest[()]))
        zero = op("eq", most, const(0.0, dt.f32))
        safe = select(zero, const(1.0, dt.f32), most)
        factor = b.let("f", select(zero, const(0.0, dt.f32), const(float(LARGEST), dt.f32) / safe))
        scale = b.let("q", most / const(float(LARGEST), dt.f32))

        def write(at: Expr, count: int, room: int) -> None:
            whole: Expr = wide(const(0.0, dt.f32))
            if count:
                whole = b.let("r", op("round", element(at, count) * wide(factor)))
                # Of NaN and infinities the scale tells; no conversion may see them.
                whole = b.let("r", select(op("eq", whole, whole), whole, wide(const(0.0, dt.f32))))
                b.store(total, (), total[()] + whole)
            b.store(fields, (target + at,), cast(whole, dt.i8, "exact"),
                    room if room < lanes else None)

        vectors(size, write)
        b.store(scales, (row * groups + g,), scale)
        b.store(sums, (row * groups + g,), horizontal("sum", total[()]) * scale)

    rows = wrap(source.type.numel) // k
    ragged = groups * group > k
    with b.loop("r", rows, "parallel", max(1, GRAIN // (groups * group))) as row:
        whole = groups - ragged
        if whole:
            with b.loop("g", whole) as g:
                one(row, g, group)
        if ragged:
            one(row, const(whole), k - whole * group)
    moved = wrap(0)
    for buffer in b.params:
        moved = moved + wrap(buffer.shape[0]) * buffer.dtype.itemsize
    low.launch(b.kernel(3, wrap(source.type.numel) * 5, moved),
               [low.storage(source), *(low.storage(v) for v in node.outputs)])
    return True
