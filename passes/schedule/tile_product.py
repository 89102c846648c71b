"""Products in tile registers (AMX): bf16 rows times packed weights, sums in f32.

Two by two tiles of sums take one step of 32 products from two tiles of rows and two of weights, so
that a tile that is loaded serves two multiplications (Intel 2023, "64 and IA-32 Architectures
Optimization Reference Manual", 20.5). Weights are packed to [panels, steps, tiles, 16 pairs, 16
columns, 2]. Where rows are in memory is the business of a `RowSource`. Sums leave through a block
on the stack, from which the epilogue takes them row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Const, Expr, broadcast, const, op, ramp, var, wrap
from ...ir.graph.core import TensorType
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
from ..lower.lowering import Lowering
from .microkernel import Epilogue
from .product_plans import TASK_FLOPS
from .tile_rows import BLOCK, BLOCK_ROWS, PANEL, STEP, Band, Rows, RowSource


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


@dataclass
class TileProduct:
    """The loops of one product: rows of `source` times weights of `columns` columns. `index` gives
    the output's index of a row and a column. With `rest`, operands are f32, each as the sum of its
    rounding to bf16 and that of what is left: three products, without that of what is left on both
    sides (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 artificial intelligence datatype
    for higher-precision computations"). `rest` is where in `packed` the weights' second part is."""

    b: Builder
    epilogue: Epilogue
    source: RowSource
    columns: int
    index: Callable[[Expr, Expr], tuple[Expr, ...]]
    packed: Buffer
    rest: int = 0

    @property
    def steps(self) -> int:
        return prod(count for count, _ in self.source.runs)

    def write(self, low: Lowering, args: list[Storage]) -> None:
        """Chooses between chunks of rows with all panels and panels with all rows; `args` gains
        the memory for the rows of the latter."""
        b, size, panels = self.b, self.source.shared(), ceil(self.columns / PANEL)
        if size is not None:
            held = size * (2 if self.rest else 1)
            rows = Rows(b.param("rows", dt.bf16, (held,)), size if self.rest else 0)
            args.append(low.temporary(TensorType(dt.bf16, (held,)), "rows"))
            self.source.make(b, rows)
            work = 2 * max(size // self.source.pitch, TILE_ROWS) * self.steps * STEP * PANEL
            with b.loop("t", panels, "parallel", grain=max(1, TASK_FLOPS // work)) as t, \
                    self.source.bands(b) as band:
                self._panel(t, lambda panel, width: self._rows(panel, width, rows, band))
            return
        tasks, size, height = self.source.tasks()
        work = 2 * height * self.steps * STEP * self.columns
        with b.loop("t", tasks, "parallel", grain=max(1, TASK_FLOPS // work)) as t:
            buffer = b.alloc("rows", dt.bf16, (size * (2 if self.rest else 1),))
            rows = Rows(buffer, size if self.rest else 0)
            band = self.source.make_some(b, t, rows)
            with b.loop("p", panels) as p:
                self._panel(p, lambda panel, width: self._rows(panel, width, rows, band))

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

    def _rows(self, panel: Expr, width: int, rows: Rows, band: Band) -> None:
        """All rows of a band times one panel."""
        b = self.b
        whole = band.count // BLOCK_ROWS
        if whole is not const(0):
            with b.loop("q", whole) as q:
                self._block(panel, width, BLOCK, rows, band, q * BLOCK_ROWS, BLOCK_ROWS)
        if not band.rest:
            return
        rest, height = band.count - whole * BLOCK_ROWS, ceil(band.rest / TILE_ROWS)
        if isinstance(rest, Const):
            self._block(panel, width, height, rows, band, whole * BLOCK_ROWS, rest)
            return
        with b.when(op("gt", rest, 0)):
            self._block(panel, width, height, rows, band, whole * BLOCK_ROWS, rest)

    def _block(self, panel: Expr, width: int, height: int, rows: Rows, band: Band, row: Expr,
               valid: Any) -> None:
        """height x width tiles of sums, of which `valid` rows count; `row` is the first."""
        b, pitch = self.b, self.source.pitch
        sums = b.alloc("sum", dt.f32, (height, width), "register", TILE_SUMS)
        for r in range(height):
            for v in range(width):
                b.store(sums, (r, v), broadcast(const(0, dt.f32), TILE_SUMS))

        def step(at: Expr, weight: Expr) -> None:
            left = [b.let("a", load(rows.buffer, (_tile_at(at + r * TILE_ROWS * pitch, pitch),)))
                    for r in range(height)]
            right = [b.let("w", load(self.packed, (weight + v * TILE_FACTORS,), TILE_FACTORS))
                     for v in range(width)]
            for r in range(height):
                for v in range(width):
                    b.store(sums, (r, v), tile_dot(sums[r, v], left[r], right[v]))

        def nest(runs: Sequence[tuple[int, int]], at: Expr, weight: Expr) -> None:
            (count, stride), *inner = runs
            if count == 1 and inner:
                nest(inner, at, weight)
                return
            steps = prod(c for c, _ in inner) * width * TILE_FACTORS
            with b.loop("k", count) as k:
                at, weight = at + k * stride, weight + k * steps
                if inner:
                    nest(inner, b.let("from", at), b.let("weight", weight))
                else:
                    step(at, weight)

        start, weight = band.start + row * pitch, panel * (self.steps * BLOCK * TILE_FACTORS)
        # The smallest products first.
        parts = ((rows.rest, 0), (0, self.rest), (0, 0)) if self.rest else ((0, 0),)
        for left_part, right_part in parts:
            nest(self.source.runs, b.let("from", start + left_part),
                 b.let("weight", weight + right_part))
        spilled = b.alloc("spilled", dt.f32, (height * width * TILE_SUMS,))
        for r in range(height):
            for v in range(width):
                b.store(spilled, ((r * width + v) * TILE_SUMS,), sums[r, v])
        for r in range(height):
            count = op("min", op("max", wrap(valid) - r * TILE_ROWS, 0), TILE_ROWS)
            with b.loop("i", count) as i:
                place, there = band.place(b.let("row", row + r * TILE_ROWS + i))
                with b.when(there) if there is not None else nullcontext():
                    self._store_row(panel, width, spilled, r * width * TILE_SUMS + i * TILE_COLUMNS,
                                    b.let("place", place))

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
