"""Right operands of products that only a run knows, packed by a kernel of their own.

The layout is that of `Dot.pack`: [batch, panels, steps, panel width], where an element of a step is
one number, or the word of as many consecutive ones as a step takes together.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir import dtype as dt
from ...ir.expr import Expr, broadcast, cast, const, op, wrap
from ...ir.graph.core import TensorType, Value
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ...ir.program import Storage
from ..lower.loops import PARALLEL_WORK
from ..lower.lowering import Lowering
from .dot import Dot

PACKED_ROWS = 8
"""Rows that are packed together: whole steps of every kind."""

Load = Callable[[int], Expr]
"""The elements of a row, counted from the first of a step, for the columns at hand."""


def pack_at_run(low: Lowering, source: Value, dot: Dot, width: int) -> Storage:
    """Launches a kernel that packs a [..., K, N] operand for this inner step in panels of `width`
    columns; returns the packed storage."""
    *lead, k, n = source.shape
    count: Expr = wrap(1)
    for d in lead:
        count = count * wrap(d)
    rows, lanes = wrap(k), low.machine.lanes
    steps = dot.steps(rows)
    panels, whole = (wrap(n) + (width - 1)) // width, wrap(n) // width
    kind = source.dtype if dot.group == 1 else dot.packed
    type = TensorType(kind, (count, panels, steps, width))
    target = low.temporary(type, "packed")
    b = Builder(low.kernel_name("pack"))
    x = b.param("x", source.dtype, (source.type.numel,))
    y = b.param("y", kind, (type.numel,))
    rest = wrap(n) - whole * width
    together = PACKED_ROWS // dot.group
    blocks = (steps + (together - 1)) // together
    work = PACKED_ROWS * (n if isinstance(n, int) else 256)
    # Blocks of rows outermost: both sides are walked in runs of several lines of one page.
    with b.loop("t", count * blocks, "parallel", grain=max(1, PARALLEL_WORK // work)) as t:
        m, first = b.let("m", t // blocks), b.let("first", t % blocks * together)

        def panel(p: Expr, rest: Expr | None) -> None:
            with b.loop("k", op("min", steps - first, together)) as s:
                step = b.let("step", first + s)
                source_at = b.let("from", (m * rows + step * dot.group) * wrap(n) + p * width)
                at = b.let("to", ((m * panels + p) * steps + step) * width)
                for v in range(0, width, lanes):
                    left = None if rest is None else op("max", op("min", rest - v, lanes), 0)

                    def row(j: int, v=v, left=left) -> Expr:
                        return _columns(x, source_at + wrap(n) * j + v, lanes, left)

                    if dot.group == 1:
                        b.store(y, (at + v,), row(0))
                    else:
                        _store_words(b, y, at + v, dot, lanes, rows - step * dot.group, row)

        with b.loop("p", whole) as p:
            panel(p, None)
        if rest is not const(0):
            with b.when(op("gt", rest, 0)):  # The last panel: its columns, then zeros.
                panel(whole, rest)
    low.launch(b.kernel(1, 0, type.numel * (2 * kind.itemsize)), [low.storage(source), target])
    return target


def _columns(x: Buffer, at: Expr, lanes: int, left: Expr | None) -> Expr:
    """`lanes` elements, zeros from the first `left` on."""
    value = load(x, (at,), lanes, left if lanes > 1 else None)
    if left is not None and lanes == 1:
        value = op("select", op("gt", left, 0), value, const(0, x.dtype))
    return value


def _store_words(b: Builder, y: Buffer, at: Expr, dot: Dot, lanes: int, left: Expr,
                 row: Load) -> None:
    """Stores words of the elements of `dot.group` rows, of which `left` are there."""
    bits = 32 // dot.group

    def field(j: int) -> Expr:
        kept = broadcast(const((1 << bits) - 1, dt.i32), lanes)
        part = op("and", cast(row(j), dt.i32), kept)
        return op("shl", part, broadcast(const(j * bits, dt.i32), lanes)) if j else part

    with b.when(op("ge", left, dot.group)):
        word = field(0)
        for j in range(1, dot.group):
            word = op("or", word, field(j))
        b.store(y, (at,), word)
    if left % dot.group is const(0):
        return
    with b.otherwise():
        words = b.alloc("words", dt.i32, (1,), "register", lanes)
        b.store(words, (0,), field(0))
        for j in range(1, dot.group - 1):
            with b.when(op("gt", left, j)):
                b.store(words, (0,), op("or", words[0], field(j)))
        b.store(y, (at,), words[0])
