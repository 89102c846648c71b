"""Products in tile registers (AMX): bf16 rows times packed weights, sums in f32.

Two by two tiles of sums take one step of 32 products from two tiles of rows and two of weights, so
that a tile that is loaded serves two multiplications (Intel 2023, "64 and IA-32 Architectures
Optimization Reference Manual", 20.5). Weights are packed to [panels, steps, tiles, 16 pairs, 16
columns, 2]. Rows are gathered first, as bf16, into lines of whole steps; what a product's rows are,
lines of a matrix or the windows of a convolution, is the business of a `RowSource`. Sums leave
through a block on the stack, from which the epilogue takes them row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Const, Expr, broadcast, cast, const, op, ramp, var, wrap
from ...ir.graph.core import TensorType, Value
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import (
    TILE_COLUMNS,
    TILE_FACTORS,
    TILE_PAIRS,
    TILE_ROWS,
    TILE_SUMS,
    tile_dot,
)
from ...ir.kernel.nodes import Buffer, load
from ...ir.program import Storage
from ..lower.generic import Group
from ..lower.lowering import Lowering
from .microkernel import Epilogue
from .product_plans import TASK_FLOPS

STEP = 2 * TILE_PAIRS
"""Products of one step of the reduction."""

BLOCK = 2
"""Tiles of rows, and of columns, that are multiplied with each other."""

BLOCK_ROWS, PANEL = BLOCK * TILE_ROWS, BLOCK * TILE_COLUMNS

ROWS_BYTES = 512 * 1024
"""Bytes of gathered rows that a task multiplies with all panels: they stay in a level-2 cache."""

SHARED_BYTES = 1 << 20
"""Bytes up to which all rows are gathered first, and tasks take panels."""

LEAST_TASKS = 16
"""Tasks that a product is divided into where it has the rows."""


class RowSource(Protocol):
    """The rows of a product's left operand, `total` of them."""

    total: Any

    def gather(self, b: Builder, row: Expr, target: Buffer, at: Expr) -> None:
        """Writes a row as bf16 to target[at...], and zeros up to a whole number of steps."""
        ...


def pack(matrix: np.ndarray) -> np.ndarray:
    """[K, N] weights of bf16 as panels: those of `PANEL` columns, then a last one of as many tiles
    as its columns need; flat."""
    k, n = matrix.shape
    steps, tiles = ceil(k / STEP), ceil(n / TILE_COLUMNS)
    padded = np.zeros((steps * STEP, tiles * TILE_COLUMNS), matrix.dtype)
    padded[:k, :n] = matrix
    split = padded.reshape(steps, TILE_PAIRS, 2, tiles, TILE_COLUMNS).transpose(3, 0, 1, 4, 2)
    whole = tiles // BLOCK * BLOCK
    paired = split[:whole].reshape(-1, BLOCK, steps, TILE_FACTORS).swapaxes(1, 2)
    return np.concatenate([paired.reshape(-1), split[whole:].reshape(-1)])


def pitch_of(reduction: int) -> int:
    """Elements from one gathered row to the next: an odd number of cache lines, so that the 16
    rows of a tile spread over the sets of a cache."""
    return (ceil(reduction / STEP) | 1) * STEP


def convert(b: Builder, x: Buffer, source: Expr, target: Buffer, at: Expr, length: int,
            whole: int) -> None:
    """target[at...] = x[source...] as bf16, then zeros up to `whole` elements; x is bf16 or f32."""
    lanes = STEP if x.dtype is dt.bf16 else STEP // 2

    def move(k: Expr, count: int | None, stored: int | None) -> None:
        value = cast(load(x, (source + k,), lanes, count), dt.bf16)
        b.store(target, (at + k,), value, stored)

    steps, rest = divmod(length, lanes)
    if steps:
        with b.loop("v", steps) as v:
            move(v * lanes, None, None)
    start = steps * lanes
    if rest:
        room = whole - start
        move(const(start), rest, None if room >= lanes else room)
        start += min(lanes, room)
    zeros(b, target, at, start, whole)


def zeros(b: Builder, target: Buffer, at: Expr, start: int, end: int) -> None:
    """target[at + start : at + end] = 0, nothing when that is empty."""
    zero = const(0, dt.bf16)
    for k in range(start, end, STEP):
        count = end - k
        b.store(target, (at + k,), broadcast(zero, STEP),
                None if count >= STEP else const(count))


@dataclass
class TileProduct:
    """The loops of one product: rows of `source` times `reduction` x `columns` weights. `index`
    gives the output's index of a row and a column."""

    b: Builder
    epilogue: Epilogue
    source: RowSource
    reduction: int
    columns: int
    index: Callable[[Expr, Expr], tuple[Expr, ...]]
    packed: Buffer

    @property
    def steps(self) -> int:
        return ceil(self.reduction / STEP)

    @property
    def pitch(self) -> int:
        return pitch_of(self.reduction)

    def write(self, low: Lowering, args: list[Storage]) -> None:
        """Chooses between chunks of rows with all panels and panels with all rows; `args` gains
        the memory for the rows of the latter."""
        total = self.source.total
        if isinstance(total, int) and total * self.pitch * 2 <= SHARED_BYTES \
                and total < LEAST_TASKS * BLOCK_ROWS:
            size = ceil(total / BLOCK_ROWS) * BLOCK_ROWS * self.pitch
            rows = self.b.param("rows", dt.bf16, (size,))
            args.append(low.temporary(TensorType(dt.bf16, (size,)), "rows"))
            self._by_panels(rows, total)
        else:
            self._by_rows(total)

    def _by_panels(self, rows: Buffer, total: int) -> None:
        b = self.b
        grain = max(1, 64 * 1024 // (2 * self.pitch))
        with b.loop("i", total, "parallel", grain=grain) as i:
            self.source.gather(b, i, rows, i * self.pitch)
        panels = ceil(self.columns / PANEL)
        work = 2 * max(total, TILE_ROWS) * self.reduction * PANEL
        with b.loop("t", panels, "parallel", grain=max(1, TASK_FLOPS // work)) as t:
            self._panel(t, lambda panel, width: self._rows(panel, width, rows, const(0),
                                                           wrap(total), total))

    def _by_rows(self, total: Any) -> None:
        b = self.b
        chunk = max(1, ROWS_BYTES // (2 * self.pitch * BLOCK_ROWS))
        if isinstance(total, int):
            chunk = min(chunk, max(1, ceil(total / (LEAST_TASKS * BLOCK_ROWS))))
        chunk *= BLOCK_ROWS
        work = 2 * chunk * self.reduction * self.columns
        with b.loop("t", (wrap(total) + (chunk - 1)) // chunk, "parallel",
                    grain=max(1, TASK_FLOPS // work)) as t:
            rows = b.alloc("rows", dt.bf16, (chunk * self.pitch,))
            first = b.let("first", t * chunk)
            here = b.let("here", op("min", wrap(total) - first, chunk))
            with b.loop("i", here) as i:
                self.source.gather(b, b.let("row", first + i), rows, i * self.pitch)
            with b.loop("p", ceil(self.columns / PANEL)) as p:
                self._panel(p, lambda panel, width: self._rows(panel, width, rows, first, here,
                                                               total))

    def _panel(self, panel: Expr, body: Callable[[Expr, int], None]) -> None:
        """body(panel, tiles of columns) for a panel; the last one may be narrower."""
        whole, rest = divmod(ceil(self.columns / TILE_COLUMNS), BLOCK)
        if not rest and self.columns % PANEL == 0:
            body(panel, BLOCK)
            return
        last = whole if rest else whole - 1
        if last:
            with self.b.when(op("lt", panel, last)):
                body(panel, BLOCK)
            with self.b.otherwise():
                body(const(last), rest or BLOCK)
        else:
            body(const(0), rest or BLOCK)

    def _rows(self, panel: Expr, width: int, rows: Buffer, first: Expr, here: Expr,
              total: Any) -> None:
        """All `here` rows from `first` on times one panel."""
        b = self.b
        whole = here // BLOCK_ROWS
        if whole is not const(0):
            with b.loop("q", whole) as q:
                self._block(panel, width, BLOCK, rows, q * BLOCK_ROWS, first, BLOCK_ROWS)
        if not isinstance(total, int) or total % BLOCK_ROWS:
            rest = here - whole * BLOCK_ROWS
            known = total % BLOCK_ROWS if isinstance(total, int) else BLOCK_ROWS
            height = ceil(known / TILE_ROWS)
            if isinstance(rest, Const):
                self._block(panel, width, height, rows, whole * BLOCK_ROWS, first, rest)
                return
            with b.when(op("gt", rest, 0)):
                self._block(panel, width, height, rows, whole * BLOCK_ROWS, first, rest)

    def _block(self, panel: Expr, width: int, height: int, rows: Buffer, row: Expr, first: Expr,
               valid: Any) -> None:
        """height x width tiles of sums, of which `valid` rows count; `row` counts from `first`."""
        b = self.b
        sums = b.alloc("sum", dt.f32, (height, width), "register", TILE_SUMS)
        for r in range(height):
            for v in range(width):
                b.store(sums, (r, v), broadcast(const(0, dt.f32), TILE_SUMS))
        start = b.let("from", row * self.pitch)
        weight = b.let("weight", panel * (self.steps * BLOCK * TILE_FACTORS))
        with b.loop("k", self.steps) as k:
            left = [b.let("a", load(rows, (_tile_at(
                start + r * TILE_ROWS * self.pitch + k * STEP, self.pitch),)))
                for r in range(height)]
            right = [b.let("w", load(self.packed, (
                weight + (k * width + v) * TILE_FACTORS,), TILE_FACTORS)) for v in range(width)]
            for r in range(height):
                for v in range(width):
                    b.store(sums, (r, v), tile_dot(sums[r, v], left[r], right[v]))
        spilled = b.alloc("spilled", dt.f32, (height * width * TILE_SUMS,))
        for r in range(height):
            for v in range(width):
                b.store(spilled, ((r * width + v) * TILE_SUMS,), sums[r, v])
        base = b.let("base", first + row)
        for r in range(height):
            count = op("min", op("max", wrap(valid) - r * TILE_ROWS, 0), TILE_ROWS)
            with b.loop("i", count) as i:
                self._store_row(panel, width, spilled, r * width * TILE_SUMS + i * TILE_COLUMNS,
                                b.let("row", base + r * TILE_ROWS + i))

    def _store_row(self, panel: Expr, width: int, spilled: Buffer, at: Expr, row: Expr) -> None:
        column = var("column", extent=wrap(self.columns))
        index = self.index(row, column)
        for v in range(width):
            start = panel * PANEL + v * TILE_COLUMNS
            count = None
            if isinstance(panel, Const):
                left = self.columns - int(panel.value) * PANEL - v * TILE_COLUMNS
                count = None if left >= TILE_COLUMNS else const(left)
            value = load(spilled, (at + v * TILE_SUMS,), TILE_COLUMNS)
            self.epilogue.store(index, column, start, TILE_COLUMNS, value, count)


def _tile_at(start: Expr, pitch: int) -> Expr:
    """The indices of a tile of bf16 whose rows lie `pitch` elements apart."""
    return ramp(ramp(start, STEP), TILE_FACTORS, pitch)


def row_operand(group: Group, operand: Value) -> Value:
    """What a product's rows are gathered from: the operand, or the f32 input of the group that it
    is the rounding of."""
    node = operand.node
    if operand not in group.inputs and node is not None and node.op == "cast":
        source = node.inputs[0]
        if source in group.inputs and source is not None and source.dtype is dt.f32:
            return source
    return operand
