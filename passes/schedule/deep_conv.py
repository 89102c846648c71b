"""Direct convolutions of small images with large weights: block by block of the reduction.

A task computes all lines of an image for one panel of channels. It takes a block of the weights at
a time, some channels of one tap, through all lines: the block stays in the level-1 cache for all of
them, and the next one is asked for meanwhile, at the pace at which it will be needed. So weights
arrive while others are multiplied, where line after line would wait for all of them in its first
lines and for none in the others. Partial sums wait in memory of the task and are taken up again as
they are, so results are those of an unbroken sum (as in `deep_gemm`; Goto & van de Geijn 2008,
"Anatomy of High-Performance Matrix Multiplication").

A register tile covers several short lines: two of 7 pixels are 14 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from ...ir import dtype as dt
from ...ir.expr import Expr, broadcast, const, op, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from .deep_gemm import blocks_of
from .dot import F32, LINE_BYTES, Fetch
from .gemm import RowBlock, store_tile
from .microkernel import Epilogue, accumulators
from .plans import SHARED_WEIGHTS, DeepDirect
from .tiles import Registers, Tile, candidates, choose, cycles
from .window import Window, bordered_blocks

PARTIAL_BYTES = 32 * 1024
"""Partial sums of a task: they share the level-1 cache with a block of the weights. (128 to 128
channels, 28 x 28 results, 100 KB of them: 1.27 ms, and 1.14 ms line by line.)"""

LINE = LINE_BYTES // 4
"""Elements of a cache line, which a step of the reduction may ask for."""


def deep_plans(window: Window, extents: Sequence[Any], channels: int, features: int,
               registers: Registers) -> Iterator[DeepDirect]:
    """The plans for an image of known `extents`, by modelled cycles, the best for each number of
    vectors: none where the weights are near anyway, the partial sums are not, a block of weights
    meets too few tiles to ask for the next one meanwhile, or it would take more cycles than line by
    line."""
    known = window.rank == 2 and all(isinstance(d, int) for d in (
        *extents, *window.pixels, *window.low))
    if not known or registers.lanes == 1 \
            or 4 * channels * prod(window.size) * features <= SHARED_WEIGHTS:
        return
    found: dict[int, tuple[float, DeepDirect]] = {}
    height, width = window.pixels
    steps = channels * prod(window.size)
    by_line = height * cycles(choose(width, features, registers, steps), width, features, registers,
                              steps)
    for tile in candidates(registers):
        lines = max(1, min(tile.rows // width, height))
        columns = tile.vectors * registers.lanes
        plan = DeepDirect(lines, min(tile.rows, width), tile.vectors,
                          blocks_of(channels, columns))
        if fewest_tiles(window, extents[0], plan) * LINE < columns \
                or 4 * height * width * columns > PARTIAL_BYTES:
            continue
        cost = sum(count * cycles(tile, pixels, features, registers, steps) for pixels, count in (
            (lines * width, height // lines), (width, height % lines)))
        best = found.get(tile.vectors)
        if cost <= by_line and (best is None or cost < best[0]):
            found[tile.vectors] = cost, plan
    yield from (plan for _, plan in sorted(found.values(), key=lambda f: f[0]))


def fewest_tiles(window: Window, height: int, plan: DeepDirect) -> int:
    """Register tiles that a block of the weights meets, at least, if any: of the line of taps that
    is inside for the fewest lines."""
    across = ceil(window.pixels[1] / plan.pixels)
    counts = [len(_lines_inside(window, height, ky)) for ky in range(window.size[0])]
    return min(((n // plan.lines + n % plan.lines) * across for n in counts if n), default=1)


def _lines_inside(window: Window, height: int, ky: int) -> range:
    """The lines of results for which line `ky` of the taps is inside an image of `height`."""
    stride, above = window.strides[0], window.low[0] - ky * window.dilations[0]
    first = min(max(0, ceil(above / stride)), window.pixels[0])
    return range(first, max(first, min(window.pixels[0], ceil((height + above) / stride))))


@dataclass
class DeepLoops:
    """What the loops of one convolution share: f32, one group, a known image [height, width] of
    `channels` under a two-dimensional window. `packed` holds [panel, tap, channel, column]."""

    b: Builder
    epilogue: Epilogue
    plan: DeepDirect
    lanes: int
    image: Buffer
    packed: Buffer
    window: Window
    batch: Expr
    extents: Sequence[Any]
    channels: int
    features: int

    def __post_init__(self) -> None:
        self.tile = Tile(self.plan.lines * self.plan.pixels, self.plan.vectors)
        self.columns = self.plan.vectors * self.lanes
        self.panels = ceil(self.features / self.columns)
        self.lines, self.pixels = self.window.pixels
        self.taps = self.window.size[0] * self.window.size[1]
        self.depth = ceil(self.channels / self.plan.blocks)
        self.tiles = bordered_blocks(self.window, wrap(self.extents[1]), self.plan.pixels)

    def write(self) -> None:
        """All results: a task takes a panel of an image."""
        b = self.b
        with b.loop("t", self.batch * self.panels, "parallel") as t:
            n, panel = b.let("n", t % self.batch), b.let("p", t // self.batch)
            elements = self.lines * self.pixels * self.columns
            partial = b.alloc("partial", dt.f32, (elements,))
            with b.loop("i", elements // self.lanes) as i:
                b.store(partial, (i * self.lanes,), broadcast(const(0.0, dt.f32), self.lanes))
            base = b.let("wb", panel * (self.taps * self.channels * self.columns))
            with b.loop("ky", self.window.size[0]) as ky:
                self._tap_line(partial, n, ky, base)
            self._results(partial, n, panel)

    def _tap_line(self, partial: Buffer, n: Expr, ky: Expr, base: Expr) -> None:
        """Adds the products of one line of taps to the lines for which it is inside."""
        b, window = self.b, self.window
        first, end = self._inside(ky)
        for kx in range(window.size[1]):
            tap = b.let("tap", base + (ky * window.size[1] + kx) * (self.channels * self.columns))

            def block(start: Expr, depth: int, tap: Expr = tap, kx: int = kx) -> None:
                weight = b.let("wk", tap + start * self.columns)
                self._block(partial, n, ky, kx, start, depth, weight, first, end)

            whole, rest = divmod(self.channels, self.depth)
            with b.loop("c", whole) as c:
                block(b.let("from", c * self.depth), self.depth)
            if rest:
                block(const(whole * self.depth), rest)

    def _inside(self, ky: Expr) -> tuple[Expr, Expr]:
        """(first, end) of the lines for which line `ky` of the taps is inside the image."""
        w, stride = self.window, self.window.strides[0]
        if not w.guarded[0]:
            return const(0), const(self.lines)
        above = w.low[0] - ky * w.dilations[0]
        first = op("min", op("max", above + (stride - 1), 0) // stride, self.lines)
        first = self.b.let("first", first)
        behind = op("max", self.extents[0] + above + (stride - 1), 0) // stride
        return first, self.b.let("end", op("max", op("min", behind, self.lines), first))

    def _block(self, partial: Buffer, n: Expr, ky: Expr, kx: int, start: Expr, depth: int,
               weight: Expr, first: Expr, end: Expr) -> None:
        """One block of the reduction through all lines from `first` to `end`: `depth` channels of
        a tap, whose weights begin at `weight`."""
        b, window, together = self.b, self.window, self.plan.lines
        pace = ceil(self.columns / fewest_tiles(window, self.extents[0], self.plan))

        def one(lines: int, line: Expr, number: Expr, block: RowBlock, pixel: Expr,
                inside: list[int] | None) -> None:
            rows = [q * block.height + r for q in range(lines)
                    for r in (range(block.height) if inside is None else inside)]
            if not rows:
                return
            tile = Tile(lines * block.height, self.tile.vectors)
            acc = b.alloc("acc", dt.f32, (tile.rows, tile.vectors), "register", self.lanes)
            at = b.let("at", (line * self.pixels + pixel) * self.columns)
            places = [(r, v, at + self._row(r, block.height) * self.columns + v * self.lanes)
                      for r in rows for v in range(tile.vectors)]
            for r, v, place in places:
                b.store(acc, (r, v), load(partial, (place,), self.lanes))
            y = line * window.strides[0] + ky * window.dilations[0] - window.low[0]
            x = pixel * window.strides[1] + (kx * window.dilations[1] - window.low[1])
            origin = b.let("ao", ((n * self.extents[0] + y) * self.extents[1] + x)
                           * self.channels + start)
            ask = weight + depth * self.columns + number * (depth * pace)
            F32.accumulate(b, acc, tile, self.lanes, depth, self._left(origin, block.height),
                           self.packed, weight, rows,
                           fetch=Fetch(self.packed, b.let("ask", ask), pace))
            for r, v, place in places:
                b.store(partial, (place,), acc[r, v])

        self._walk(first, end, together, lambda lines, line, number, block, pixel, rows: one(
            lines, line, number, block, pixel, None if rows is None else rows[kx]))

    def _row(self, r: int, height: int) -> int:
        """The place of row r of a tile after that of its first row, in results."""
        return r // height * self.pixels + r % height

    def _left(self, origin: Expr, height: int) -> Callable[[int], tuple[Buffer, Expr]]:
        """Where the rows of a tile begin in the image."""
        down = self.window.strides[0] * self.extents[1]
        return lambda r: (self.image, origin + (
            r // height * down + r % height * self.window.strides[1]) * self.channels)

    def _walk(self, first: Expr, end: Expr, together: int, put: Callable[..., None]) -> None:
        """Calls put(lines, first line, number, block, first pixel, rows inside by tap) for tiles
        that cover the lines: as many lines `together` as there are, then single ones."""
        b = self.b

        def tiles(lines: int, line: Expr, number: Expr) -> None:
            before = 0
            for block, rows in self.tiles:
                with b.loop("q", block.count) as q:
                    put(lines, line, number * self._across + before + q, block,
                        b.let("pixel", block.start + q * block.height), rows)
                before += block.count

        count = b.let("lines", (end - first) // together)
        with b.loop("g", count) as g:
            tiles(together, b.let("line", first + g * together), g)
        if together == 1:
            return
        with b.loop("l", end - first - count * together) as k:
            tiles(1, b.let("line", first + count * together + k), count + k)

    @property
    def _across(self) -> int:
        """Tiles of a line."""
        return sum(block.count for block, _ in self.tiles)

    def _results(self, partial: Buffer, n: Expr, panel: Expr) -> None:
        """Stores the sums, through the epilogue."""
        b = self.b

        def one(lines: int, line: Expr, _: Expr, block: RowBlock, pixel: Expr, __: object) -> None:
            tile = Tile(lines * block.height, self.tile.vectors)
            acc = accumulators(b, tile, self.lanes)
            at = b.let("at", (line * self.pixels + pixel) * self.columns)
            for r in range(tile.rows):
                for v in range(tile.vectors):
                    place = at + self._row(r, block.height) * self.columns + v * self.lanes
                    b.store(acc, (r, v), load(partial, (place,), self.lanes))
            store_tile(b, self.epilogue, tile, self.lanes, acc, panel, wrap(self.features),
                       self.columns, lambda r, column: (
                           n, line + r // block.height, pixel + r % block.height, column))

        self._walk(const(0), const(self.lines), self.plan.lines, one)
