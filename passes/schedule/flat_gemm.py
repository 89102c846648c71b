"""Products of a few rows with a matrix that only a run knows, read where it is.

Packing the matrix would take as long as the product. Instead a task takes a range of columns and
walks the matrix in blocks of rows: along the columns it reads the rows of a block as so many
streams, multiplies each vector with all rows of the left operand, and adds to sums that stay in
the level-1 cache. So the matrix is read once, in runs of whole pages where it is wide, and each sum
adds its products in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir import dtype as dt
from ...ir.expr import Const, Expr, broadcast, const, op, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from .tiles import Registers

MOST_ROWS = 32
"""Rows of the left operand up to which a product is flat."""

BLOCK = 8
"""Rows of the matrix that are read together: streams that a processor follows at once."""

FEW_ROWS = 2
"""Rows up to which the factors of a block stay in registers."""

SUM_BYTES = 32 * 1024
"""Bytes of the sums of a task: half of a small level-1 cache."""

NEAR_BYTES = 1024 * 1024
"""Bytes of a matrix that a level-2 cache holds."""

NEAR_COLUMNS, FAR_COLUMNS = 256, 1024
"""Columns of a task, so that threads share a product: from beyond the level-2 cache whole pages
come faster (2048 x 2048 with one row: 0.73 ms by 256 columns, 0.63 ms by 1024)."""

TASKS = 8
"""Tasks that the columns of a product are divided into where they are wide enough."""


def chunk_of(rows: int, inner: Any, columns: Any, lanes: int) -> int:
    """Columns of a task, a multiple of `lanes`."""
    most = max(lanes, SUM_BYTES // (4 * rows) // lanes * lanes)
    known = isinstance(inner, int) and isinstance(columns, int)
    if not known:
        return min(most, NEAR_COLUMNS)
    least = FAR_COLUMNS if 4 * inner * columns > NEAR_BYTES else NEAR_COLUMNS
    return min(most, -(-min(columns, max(least, -(-columns // TASKS))) // lanes) * lanes)


def write_flat(b: Builder, x: Buffer, a_base: Expr, y: Buffer, b_base: Expr, rows: int, inner: Any,
               columns: Any, first: Expr, chunk: int, registers: Registers,
               store: Callable[[Expr, Expr, Expr, Expr | None], None]) -> None:
    """One task: columns `first` to `first` + `chunk` of x[a_base...] (rows x inner) times
    y[b_base...] (inner x columns). `store(row, column, result, count)` runs the epilogue of a
    vector, of whose lanes `count` are results when given."""
    lanes = registers.lanes
    sums = b.alloc("sums", dt.f32, (rows * chunk,))
    here = b.let("here", op("min", wrap(columns) - first, chunk))
    zero = broadcast(const(0.0, dt.f32), lanes)
    with b.loop("v", rows * chunk // lanes) as v:
        b.store(sums, (v * lanes,), zero)
    # A factor that several vectors share is loaded once for all of them.
    wide = 2 if rows > FEW_ROWS and registers.count > 2 * BLOCK + 3 and chunk > lanes else 1

    def runs(write: Callable[[Expr, int, Expr | None], None], vectors: int) -> None:
        """write(column, vectors, lanes of the only one) for the columns of the task."""
        done: Expr = const(0)
        for n in dict.fromkeys((vectors, 1)):
            count = b.let("n", (here - done) // (n * lanes))
            with b.loop("v", count) as v:
                write(b.let("at", done + v * (n * lanes)), n, None)
            done = b.let("done", done + count * (n * lanes))
        if wrap(columns) % lanes is not const(0):
            left = b.let("left", here - done)
            with b.when(op("gt", left, 0)):
                write(done, 1, left)

    def add(start: Expr, height: int) -> None:
        """sums += the products with rows start ... start + height of the matrix."""
        def factor(r: Any, k: int) -> Expr:
            return broadcast(load(x, (a_base + r * wrap(inner) + start + k,)), lanes)

        held = [[b.let("a", factor(r, k)) for k in range(height)]
                for r in range(rows if rows <= FEW_ROWS else 0)]
        place = b.let("from", b_base + start * wrap(columns) + first)

        def one(at: Expr, vectors: int, count: Expr | None) -> None:
            lines = [[b.let("y", load(y, (place + k * wrap(columns) + at + v * lanes,), lanes,
                                      count)) for v in range(vectors)] for k in range(height)]

            def row(r: Any, factors: list[Expr] | None) -> None:
                places = [b.let("s", r * chunk + at + v * lanes) for v in range(vectors)]
                totals = [load(sums, (place,), lanes) for place in places]
                for k in range(height):
                    f = factors[k] if factors else b.let("a", factor(r, k))
                    totals = [op("fma", f, line, t) for line, t in
                              zip(lines[k], totals, strict=True)]
                for place, total in zip(places, totals, strict=True):
                    b.store(sums, (place,), total)

            for r, factors in enumerate(held):
                row(r, factors)
            if not held:
                with b.loop("r", rows) as r:
                    row(r, None)

        runs(one, wide)

    blocks = wrap(inner) // BLOCK
    if blocks is not const(0):
        with b.loop("k", blocks) as k:
            add(b.let("start", k * BLOCK), BLOCK)
    rest = wrap(inner) - blocks * BLOCK
    if isinstance(rest, Const):
        if rest.value:
            add(blocks * BLOCK, rest.value)
    else:
        with b.loop("k", rest) as k:
            add(b.let("start", blocks * BLOCK + k), 1)
    with b.loop("r", rows) as r:
        runs(lambda at, vectors, count: store(
            r, first + at, load(sums, (r * chunk + at,), lanes), count), 1)
