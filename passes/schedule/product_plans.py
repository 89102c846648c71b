"""The plans for a matrix product: register tile, rows of a task, blocks of the reduction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from .deep_gemm import blocks_of, is_deep
from .dot import WIDENED_ROWS, Dot
from .plans import Product, tiles_for
from .tiles import Registers, Tile, split_rows

RESIDENT_ROWS = 512 * 1024
"""Bytes of the left operand that a task reads once per panel: half of a small level-2 cache."""

LEAST_TASKS = 32
"""Tasks that a product should have where its work allows, so that many threads share it."""

FEWEST_TASKS = 8
"""Tasks that other plans than the model's must leave: they are measured on one thread."""

TASK_FLOPS = 200_000
"""Work of one parallel task: large against a fork-join of a few microseconds."""

SHORTEST_BLOCK = 64
"""Steps of a block of the reduction for which partial sums may be worth their stores."""


@dataclass
class Shape:
    """rows x inner times inner x columns."""

    rows: Any
    inner: Any
    columns: Any


def product_plans(shape: Shape, height: Any, dot: Dot, may_block: bool, registers: Registers,
                  itemsize: int) -> Iterator[Product]:
    """The cost model's plan, the same tile with other cuts, then the model's cuts for other tiles.
    `height` counts the rows of all batches where they are walked as one."""
    columns = shape.columns if isinstance(shape.columns, int) else 4 * registers.lanes
    rows = height if isinstance(height, int) else None
    # What loads and stores cost was measured for vectors of f32; small code matters without them.
    steps = shape.inner if dot.floats and registers.lanes > 1 and isinstance(shape.inner, int) \
        else None
    for number, tile in enumerate(tiles_for(rows, columns, registers, steps)):
        width = tile.vectors * registers.lanes
        chunk = chunk_of(shape, tile, width, itemsize, dot)
        deep = may_block and is_deep(shape.rows, shape.inner, shape.columns, tile, registers.lanes)
        plan = _plan(tile, chunk, blocks_of(shape.inner, width) if deep else 0)
        yield plan
        if number == 0:
            yield from _other_cuts(plan, tile, chunk, shape, width, may_block)


def _plan(tile: Tile, chunk: int, blocks: int = 0) -> Product:
    return Product(tile.rows, tile.vectors, 0 if blocks else chunk, blocks)


def _other_cuts(plan: Product, tile: Tile, chunk: int, shape: Shape, width: int,
                may_block: bool) -> Iterator[Product]:
    """The tile with other blocks of the reduction, or twice and half the rows of a task."""
    rows, inner, columns = shape.rows, shape.inner, shape.columns
    if not (isinstance(rows, int) and isinstance(inner, int) and isinstance(columns, int)):
        return
    found = []
    if may_block and rows >= 2 * tile.rows:
        usual = blocks_of(inner, width)
        found = [_plan(tile, chunk, n) for n in (0, usual, 2 * usual, usual // 2)
                 if n * SHORTEST_BLOCK <= inner]
    count = _row_tiles(rows, tile.rows)
    if not plan.blocks and count:
        for n in (even_chunk(count, 2 * chunk), even_chunk(count, max(1, chunk // 2))):
            if n < chunk or ceil(columns / width) * ceil(count / n) >= FEWEST_TASKS:
                found.append(_plan(tile, n))
    yield from (p for p in dict.fromkeys(found) if p != plan)


def _row_tiles(rows: int, limit: int) -> int:
    """Row tiles of the largest height."""
    return next((count for _, count in split_rows(rows, limit)), 0)


def chunk_of(shape: Shape, tile: Tile, width: int, itemsize: int, dot: Dot) -> int:
    """Row tiles per task: enough work for a fork-join, few enough that their rows stay in the
    level-2 cache and that there are tasks for many threads; with weights to widen, enough for that
    to cost little."""
    inner = shape.inner if isinstance(shape.inner, int) else 256
    tiles = _row_tiles(shape.rows, tile.rows) if isinstance(shape.rows, int) else 0
    least = max(1, round(TASK_FLOPS / max(1, 2 * tile.rows * width * inner)))
    resident = RESIDENT_ROWS // max(1, tile.rows * inner * itemsize)
    if isinstance(shape.rows, int) and isinstance(shape.columns, int):
        resident = min(resident, ceil(tiles * ceil(shape.columns / width) / LEAST_TASKS))
    if dot.widens:
        least = max(least, ceil(WIDENED_ROWS / tile.rows))
    chunk = max(least, resident)
    return even_chunk(tiles, chunk) if tiles else chunk


def even_chunk(tiles: int, chunk: int) -> int:
    """Tiles of a task when as many tasks as `chunk` needs are about equal."""
    return ceil(tiles / ceil(tiles / chunk))
