"""Matrix products with long reductions: depth by depth, so that operands stay near.

A task multiplies a chunk of rows with a group of column panels. One block of the reduction after
the other, it runs all row tiles over all panels: the block of a panel stays in the level-1 cache
for all row tiles, the block of the rows in the level-2 cache for all panels (Goto & van de Geijn
2008, "Anatomy of High-Performance Matrix Multiplication"). Partial sums wait in memory of the
task and are taken up again as they are, so results are those of an unbroken sum.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

from ...ir import dtype as dt
from ...ir.expr import Expr, const, op, select, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from .dot import F32, Dot, Fetch
from .microkernel import accumulators
from .tiles import Tile, split_rows

PANEL_BYTES = 40 * 1024
"""Bytes of a block of a panel: most of a level-1 cache."""

MANY_ROWS, LONG_REDUCTION = 512, 1024
"""With more rows than that, what a panel costs is spread over many tiles, and a reduction up to
this length gains nothing (768 x 768 x 768: 188 GFLOP/s without blocks, 179 with)."""

ROWS_BYTES = 512 * 1024
"""Bytes of a chunk of rows within a block: half of a small level-2 cache."""

TASKS = 8
"""Tasks that a product is divided into at least, where it has as many panels."""


def is_deep(rows: Any, inner: Any, columns: Any, tile: Tile, lanes: int) -> bool:
    """Whether a product gains from blocks: known sizes, several row tiles, a long reduction."""
    known = isinstance(rows, int) and isinstance(inner, int) and isinstance(columns, int)
    return known and rows >= 3 * tile.rows and inner * 4 * tile.vectors * lanes > PANEL_BYTES \
        and (rows <= MANY_ROWS or inner > LONG_REDUCTION)


def blocks_of(inner: int, width: int) -> int:
    """Blocks of a reduction such that a panel's stay in the level-1 cache."""
    return ceil(inner * 4 * width / PANEL_BYTES)


def write_deep(b: Builder, store: Callable[..., None], dot: Dot, tile: Tile, lanes: int,
               blocks: int, x: Buffer, packed: Buffer, rows: int, inner: int,
               columns: int) -> None:
    """Writes the loops. `store(tile, accumulators, panel, first row)` runs the epilogue. Weights
    that are kept in 16 bits are widened by the first row tile of a block, for all others."""
    width = tile.vectors * lanes
    depth = ceil(inner / blocks)
    panels = ceil(columns / width)
    (height, count), *rest = split_rows(rows, tile.rows)
    most = max(1, ROWS_BYTES // (height * depth * 4))
    chunks = ceil(count / most)
    each = ceil(count / chunks)
    group = max(1, panels * chunks // TASKS)
    groups = ceil(panels / group)
    last = rest[0][0] if rest else 0
    kept = each * height + last
    with b.loop("t", groups * chunks, "parallel") as t:
        first_panel, chunk = b.let("g", t % groups * group), b.let("c", t // groups)
        partial = b.alloc("partial", dt.f32, (group * kept * width,)) if blocks > 1 else None
        here = b.let("panels", op("min", panels - first_panel, group))
        tiles = b.let("tiles", op("min", count - chunk * each, each))
        with b.loop("k", blocks) as block, b.loop("p", here) as p:
            start = b.let("from", block * depth)
            run = depth if inner % depth == 0 else b.let("run", op("min", inner - start, depth))
            panel = b.let("panel", first_panel + p)
            weight = b.let("wb", (panel * inner + start) * width)
            following = b.let("next", select(
                op("lt", p + 1, here), weight + inner * width, select(
                    op("lt", block + 1, blocks), (first_panel * inner + start + depth) * width,
                    (first_panel + here) * (inner * width))))
            # All tiles of a task ask, so that weights arrive evenly.
            pace = ceil(width / (each + (last > 0 and chunks == 1)))
            near = b.alloc("near", dt.f32, (depth * width,)) if dot.widens else None

            def ask(tile: Any) -> Fetch:
                return Fetch(packed, b.let("ask", following + tile * (depth * pace)), pace)

            def one(rows_of: int, row: Expr, at: Expr, fetch: Fetch | None,
                    widening: bool = False) -> None:
                shape = Tile(rows_of, tile.vectors)
                acc = accumulators(b, shape, lanes)
                places = [(r, v, p * (kept * width) + (at + r) * width + v * lanes)
                          for r in range(shape.rows) for v in range(shape.vectors)]
                if partial is not None:
                    with b.when(op("gt", block, 0)):
                        for r, v, place in places:
                            b.store(acc, (r, v), load(partial, (place,), lanes))
                origin = b.let("ao", row * inner + start)

                def left(r: int) -> tuple[Buffer, Expr]:
                    return x, origin + r * inner

                if near is None or widening:
                    dot.accumulate(b, acc, shape, lanes, run, left, packed, weight, fetch=fetch,
                                   keep=near)
                else:
                    F32.accumulate(b, acc, shape, lanes, run, left, near, const(0), fetch=fetch)
                if partial is None:
                    store(shape, acc, panel, row)
                    return
                with b.when(op("eq", block, blocks - 1)):
                    store(shape, acc, panel, row)
                with b.otherwise():
                    for r, v, place in places:
                        b.store(partial, (place,), acc[r, v])

            def nth(r: Expr, widening: bool) -> None:
                row = b.let("row", (chunk * each + r) * height)
                one(height, row, b.let("at", r * height), ask(r), widening)

            if near is not None:
                nth(const(0), True)
            with b.loop("r", tiles if near is None else tiles - 1) as r:
                nth(r if near is None else r + 1, False)
            if last:
                with b.when(op("eq", chunk, chunks - 1)):
                    one(last, wrap(count * height), const(each * height),
                        ask(each) if chunks == 1 else None)
