"""The loops of direct convolutions: register tiles of pixels x output channels.

Tiles at the left and right border leave out the taps that are outside, each with code of its own;
lines above and below are skipped. A line of the grid computes its results of all windows: one for
a convolution, one for each phase of the stride for a transposed one, whose results are written with
gaps between them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

from ...ir import dtype as dt
from ...ir.expr import Const, Expr, both, const, op, wrap
from ...ir.graph.ops.shapes import same
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer
from .dot import F32, WIDENED_ROWS, Dot, widened_first
from .gemm import RowBlock, store_tile
from .groups import Groups, accumulate_shuffled
from .microkernel import Epilogue, accumulators
from .plans import Direct
from .product_plans import LEAST_TASKS, TASK_FLOPS
from .tiles import Tile
from .window import Window, bordered_blocks

UNKNOWN = 64
"""What a size that only a run knows is taken for."""

Place = Callable[[Window, Expr, list[Expr], Expr], tuple[Expr, ...]]
"""(window, image, lines, pixel) to the index of a result, but for its channel."""


def spread_place(window: Window, n: Expr, outer: list[Expr], pixel: Expr) -> tuple[Expr, ...]:
    """The place of a window's result in [N, spatial..., F]."""
    return (n, *(q * s + r for q, s, r in zip([*outer, pixel], window.spread, window.first,
                                              strict=True)))


@dataclass
class Packed:
    """The weights of all windows behind each other in `buffer`, those of window k from `bases`[k]
    on, asked for `ahead` elements early."""

    buffer: Buffer
    bases: list[int]
    ahead: int


@dataclass
class DirectLoops:
    """What the loops of one convolution share. `spatial` are the extents of the image, `lines` the
    batch and the outer axes of the grid; `merged` joins the taps of a line, which then follow each
    other without gaps in image and weights."""

    b: Builder
    epilogue: Epilogue
    dot: Dot
    groups: Groups
    plan: Direct
    lanes: int
    image: Buffer
    packed: Packed
    spatial: list[Expr]
    lines: list[Any]
    windows: list[Window]
    merged: bool
    place: Place = spread_place

    def __post_init__(self) -> None:
        self.tile = Tile(self.plan.pixels, self.plan.vectors)
        self.width = self.tile.vectors * self.lanes
        self.per_block = self.groups.together * self.groups.features
        self.panels = -(-self.per_block // self.width)
        self.channels = self.groups.count * self.groups.channels
        self.run = self.groups.together * self.groups.channels
        self.tiles = [bordered_blocks(w, self.spatial[-1], self.tile.rows) for w in self.windows]
        self.depths = [self._depth(w) for w in self.windows]
        tiles = sum(_known(block.count) for tiles in self.tiles for block, _ in tiles)
        for extent in self.lines:
            tiles *= _known(extent)
        self.widened = widened_first(self.dot, self.lanes, sum(self.depths), 1, tiles)

    def _depth(self, window: Window) -> int:
        """Elements of a panel's weights of a window."""
        line = self.dot.steps(self.run * window.size[-1]) if self.merged \
            else wrap(self.groups.steps(self.dot) * window.size[-1])
        assert isinstance(line, Const)
        return line.value * self.width * prod(window.size[:-1])

    def write(self) -> None:
        """All results: a task takes a line, or a part of one where there are few, and one panel of
        channels, or all of them where the plan is to share their weights."""
        b = self.b
        lines: Expr = wrap(1)
        for extent in self.lines:
            lines = lines * wrap(extent)
        panels = self.groups.blocks * self.panels
        shared = self.plan.shared
        band = self._band(lines)
        chunk, parts = (1 << 30, wrap(1)) if band > 1 else self._parts(
            lines, panels if shared else 1)
        tiles = sum(_known(block.count) for tiles in self.tiles for block, _ in tiles)
        work = band * min(chunk, tiles) * self._tile_flops() * (panels if shared else 1)
        bands = (lines + (band - 1)) // band
        with b.loop("t", bands * parts * (1 if shared else panels), "parallel",
                    grain=max(1, TASK_FLOPS // max(1, work))) as t:
            part = None if parts is const(1) else b.let("part", t % parts)
            line = b.let("line", t // parts % bands * band)
            count = op("min", lines - line, band) if band > 1 else None
            if not shared:
                self._lines(line, count, b.let("p", t // parts // bands), part, chunk)
                return
            with b.loop("p", panels) as panel:
                self._lines(line, count, panel, part, chunk)

    def _band(self, lines: Expr) -> int:
        """Lines of a task: one, or as many as weights are to be widened for."""
        pixels = _known(self.windows[0].pixels[-1])
        if not self.widened or pixels >= WIDENED_ROWS:
            return 1
        most = -(-WIDENED_ROWS // pixels)
        if not isinstance(lines, Const):
            return most
        return -(-lines.value // -(-lines.value // most))

    def _lines(self, first: Expr, count: Expr | None, panel: Expr, part: Expr | None,
               chunk: int) -> None:
        """One panel of `count` lines, or of one."""
        b, packed = self.b, self.packed
        weights = _Weights(self.dot, packed.buffer, packed.ahead, [
            base + panel * depth for base, depth in zip(packed.bases, self.depths, strict=True)])
        if self.widened:
            weights = self._widen(weights)
        if count is None:
            self._panel(first, panel, part, chunk, weights)
            return
        with b.loop("y", count) as y:
            self._panel(b.let("line", first + y), panel, part, chunk, weights)

    def _widen(self, kept: _Weights) -> _Weights:
        """A panel's weights as f32 in memory of the task."""
        b = self.b
        near = b.alloc("near", dt.f32, (sum(self.depths),))
        starts: list[Expr] = []
        for start, depth in zip(kept.starts, self.depths, strict=True):
            base = sum(self.depths[:len(starts)])
            self.dot.widen(b, kept.buffer, b.let("kept", start), near, base, depth // self.width,
                           self.width, self.lanes, kept.ahead)
            starts.append(const(base))
        return _Weights(F32, near, 0, starts)

    def _tile_flops(self) -> int:
        """Operations of a tile of pixels, one panel."""
        taps = max(prod(w.size) for w in self.windows)
        steps = self.groups.channels if self.groups.shuffled else self.run
        return max(1, 2 * self.tile.rows * self.width * taps * steps)

    def _parts(self, lines: Expr, panels: int) -> tuple[int, Expr]:
        """(tiles of a part, parts of a line): where there are few lines, their longest blocks are
        divided."""
        counts = [wrap(tiles[_longest(tiles)][0].count) for tiles in self.tiles]
        known = lines.value if isinstance(lines, Const) else LEAST_TASKS
        if known >= LEAST_TASKS:
            return 1 << 30, wrap(1)
        most = counts[0]
        for count in counts[1:]:
            most = op("max", most, count)
        chunk = -(-TASK_FLOPS // (self._tile_flops() * panels))
        if self.widened:
            chunk = max(chunk, -(-WIDENED_ROWS // self.tile.rows))
        if isinstance(most, Const):
            chunk = max(chunk, -(-most.value * known // LEAST_TASKS))
        parts = op("max", (most + (chunk - 1)) // chunk, 1)
        return chunk if parts is not const(1) else 1 << 30, parts

    def _panel(self, line: Expr, panel: Expr, part: Expr | None, chunk: int,
               weights: _Weights) -> None:
        """One panel of a line: its results of all windows."""
        b, groups = self.b, self.groups
        index, rest = [], line
        for extent in reversed(self.lines[1:]):
            index.append(b.let("o", rest % wrap(extent)))
            rest = rest // wrap(extent)
        n, outer = b.let("n", rest), index[::-1]
        block, inner = panel // self.panels, panel % self.panels
        block, inner = b.let("g", block), b.let("pg", inner)

        def held(count: int) -> None:
            for k, window in enumerate(self.windows):
                inside: Expr = const(True, dt.bool_)
                for q, extent, pixels in zip(outer, self.lines[1:], window.pixels):
                    if not same(extent, pixels):
                        inside = both(inside, op("lt", q, wrap(pixels)))
                with _if(b, inside):
                    place = TileAt(k, window, n, outer, block, inner, weights, count)
                    self._line(place, part, chunk)

        if not groups.rest:
            held(groups.together)
            return
        with b.when(op("lt", block, groups.blocks - 1)):
            held(groups.together)
        with b.otherwise():
            held(groups.rest)

    def _line(self, at: TileAt, part: Expr | None, chunk: int) -> None:
        b, tiles = self.b, self.tiles[at.number]
        longest = _longest(tiles)
        for k, (block, rows) in enumerate(tiles):
            begin: Expr = const(0)
            count: Any = block.count
            if part is not None and k == longest:
                begin = part * chunk
                count = op("min", wrap(count) - begin, chunk)
            first_part = const(True, dt.bool_) if part is None or k == longest \
                else op("eq", part, 0)
            with _if(b, first_part), b.loop("q", count) as q:
                first = b.let("first", block.start + (begin + q) * block.height)
                self._tile(at, Tile(block.height, self.tile.vectors), first, rows)

    def _tile(self, at: TileAt, tile: Tile, first: Expr, rows_of: list[list[int]] | None) -> None:
        """One tile. `rows_of`, at a border, lists for each tap of the line the rows whose pixel is
        inside."""
        b, window, dot, width = self.b, at.window, at.weights.dot, self.width
        packed, ahead = at.weights.buffer, at.weights.ahead
        acc = accumulators(b, tile, self.lanes, dot.accumulator)
        step = window.strides[-1]
        per_tap = self.groups.steps(dot) * width
        per_line = wrap(dot.steps(self.run * window.size[-1]) * width) if self.merged \
            else wrap(per_tap * window.size[-1])
        base_w = b.let("wb", at.weights.starts[at.number])
        base_x = b.let("xb", at.block * self.run)

        def left(start: Expr) -> Callable[[int], tuple[Buffer, Expr]]:
            return lambda r: (self.image, start + r * step * self.channels)

        def taps(index: list[Expr], remaining: list[int]) -> None:
            if remaining:
                with b.loop("k", remaining[0]) as k:
                    taps([*index, k], remaining[1:])
                return
            place = at.n
            number: Expr = const(0)
            inside: Expr = const(True, dt.bool_)
            for axis, k in enumerate(index):
                y = at.outer[axis] * window.strides[axis] + k * window.dilations[axis] \
                    - wrap(window.low[axis])
                if window.guarded[axis]:
                    inside = both(inside, op("ge", y, 0), op("lt", y, self.spatial[axis]))
                place = place * self.spatial[axis] + y
                number = number * window.size[axis] + k
            line = b.let("at", (place * self.spatial[-1] + first * step
                                - wrap(window.low[-1])) * self.channels + base_x)
            with _if(b, inside):
                line_taps(line, base_w + number * per_line)

        def line_taps(line: Expr, weight: Expr) -> None:
            if rows_of is not None:
                for k, rows in enumerate(rows_of):
                    if rows:
                        one_tap(line, weight, const(k), rows)
            elif self.merged:
                dot.accumulate(b, acc, tile, self.lanes, self.run * window.size[-1], left(line),
                               packed, b.let("wk", weight), ahead=ahead)
            else:
                with b.loop("k", window.size[-1]) as k:
                    one_tap(line, weight, k, None)

        def one_tap(line: Expr, weight: Expr, k: Expr, rows: list[int] | None) -> None:
            weight = b.let("wk", weight + k * per_tap)
            tap = b.let("tap", line + k * (window.dilations[-1] * self.channels))
            if self.groups.shuffled:
                accumulate_shuffled(b, acc, dot, self.groups, tile, self.lanes, left(tap),
                                    packed, weight, at.held, rows)
                return
            dot.accumulate(b, acc, tile, self.lanes, self.run, left(tap), packed, weight, rows,
                           ahead)

        if all(window.size):
            taps([], list(window.size[:-1]))
        self._store(at, tile, acc, first)

    def _store(self, at: TileAt, tile: Tile, acc: Buffer, first: Expr) -> None:
        """The results of a tile whose first pixel is `first`."""
        start = None if self.groups.blocks == 1 else at.block * self.per_block
        store_tile(self.b, self.epilogue, tile, self.lanes, acc, at.inner,
                   wrap(at.held * self.groups.features), self.width,
                   lambda r, column: (*self.place(at.window, at.n, at.outer, first + r), column),
                   start)


@dataclass(frozen=True)
class TileAt:
    """Where a task is: window `number`, image n, the outer axes of the grid, and panel `inner` of a
    block with `held` groups, with its weights."""

    number: int
    window: Window
    n: Expr
    outer: list[Expr]
    block: Expr
    inner: Expr
    weights: _Weights
    held: int


@dataclass(frozen=True)
class _Weights:
    """The weights of a panel: their step, where they are, how far ahead to ask for them, and where
    those of each window start."""

    dot: Dot
    buffer: Buffer
    ahead: int
    starts: list[Expr]


def _known(count: Any) -> int:
    return count if isinstance(count, int) else UNKNOWN


def _longest(tiles: list[tuple[RowBlock, list[list[int]] | None]]) -> int:
    """Which of the blocks of a line has the most tiles; the first where only a run knows."""
    counts = [_known(block.count) if isinstance(block.count, int) else -k
              for k, (block, _) in enumerate(tiles)]
    return max(range(len(counts)), key=counts.__getitem__)


def _if(b: Builder, condition: Expr) -> AbstractContextManager[None]:
    """`b.when`, unless the condition is known to hold."""
    return nullcontext() if condition is const(True, dt.bool_) else b.when(condition)
