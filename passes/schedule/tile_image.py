"""Convolutions in tile registers without im2col: tiles are read from a zero-padded bf16 image.

With channels last, the pixels that one tap of the window meets for consecutive results of a line
are consecutive too. So a tile of 16 results is 16 pixels of the padded image, and as lines follow
each other without a gap a tile may go on in the next line: results are counted over the padded
width, and those that fall between two lines are left out when sums are stored (Anderson et al.
2017, "Low-memory GEMM-based convolution algorithms for deep neural networks").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

from ...ir.expr import Const, Expr, both, const, op, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer
from .tile_rows import (
    BLOCK_ROWS,
    LEAST_TASKS,
    STEP,
    Band,
    Rows,
    convert,
    made_first,
    task_elements,
    zeros,
)
from .window import Window

WIDEST = 1.5
"""Results over the padded width, for one that is stored, up to which this is quicker than copying
every window."""

HALO = 4
"""Lines of a task for each line that its neighbour needs as well."""


@dataclass
class ImageRows:
    """The windows with stride 1 of images x [batch, height, width, channels], in bf16 or f32, whose
    results are `lines` x `columns`."""

    x: Buffer
    window: Window
    batch: Any
    height: int
    width: int
    channels: int
    lines: int
    columns: int

    @staticmethod
    def takes(window: Window, sizes: Sequence[Any], channels: int) -> bool:
        """Whether steps of the reduction are whole in every tap, or in every line of taps, and not
        too many results fall between lines. `sizes` are those of an image and of its results."""
        if window.rank != 2 or set(window.strides) != {1} \
                or not all(isinstance(d, int) for d in (*sizes, *window.low)):
            return False
        run = channels * (window.size[1] if window.dilations[1] == 1 else 1)
        columns = window.pixels[1]
        line = columns + (window.size[1] - 1) * window.dilations[1]
        return run % STEP == 0 and line <= WIDEST * columns and min(window.low) >= 0

    @property
    def over(self) -> tuple[int, int]:
        """Lines and pixels that a window reaches beyond its first."""
        w = self.window
        return (w.size[0] - 1) * w.dilations[0], (w.size[1] - 1) * w.dilations[1]

    @property
    def line(self) -> int:
        """Pixels of a padded line, and results that are counted for it."""
        return self.columns + self.over[1]

    @property
    def pitch(self) -> int:
        return self.channels

    @property
    def runs(self) -> Sequence[tuple[int, int]]:
        c, w = self.channels, self.window
        below = w.size[0], w.dilations[0] * self.line * c
        if w.dilations[1] == 1:
            return below, (w.size[1] * c // STEP, STEP)
        return below, (w.size[1], w.dilations[1] * c), (c // STEP, STEP)

    def results(self, lines: int) -> int:
        """Results of some lines, with those between them."""
        return lines * self.line - self.over[1]

    def elements(self, lines: int) -> int:
        """Elements that the windows of some lines of results reach, in whole blocks of them."""
        rows = ceil(self.results(lines) / BLOCK_ROWS) * BLOCK_ROWS
        return (rows + self.over[0] * self.line + self.over[1]) * self.channels

    def shared(self) -> int | None:
        if not isinstance(self.batch, int):
            return None
        size = (self.batch - 1) * self._image + self.elements(self.lines)
        return size if made_first(size, self.batch * self.results(self.lines)) else None

    @property
    def _image(self) -> int:
        return (self.lines + self.over[0]) * self.line * self.channels

    def make(self, b: Builder, rows: Rows) -> None:
        lines, size = self.lines + self.over[0], self.line * self.channels
        with b.loop("i", self.batch * lines, "parallel", grain=max(1, 64 * 1024 // size)) as i:
            self._line(b, i // lines, i % lines, rows, i * size)

    @contextmanager
    def bands(self, b: Builder) -> Iterator[Band]:
        with b.loop("n", self.batch) as n:
            yield self._band(n * self._image, n, const(0), wrap(self.lines))

    def tasks(self) -> tuple[Any, int, int]:
        blocks, lines = self._blocks()
        return wrap(self.batch) * blocks, self.elements(lines), self.results(lines)

    def _blocks(self) -> tuple[int, int]:
        """Blocks of lines of an image, and the lines of each but the last."""
        held = task_elements() // (self.line * self.channels) - self.over[0]
        lines = (self.batch if isinstance(self.batch, int) else 1) * self.lines
        shared = max(ceil(lines / LEAST_TASKS), HALO * self.over[0])
        blocks = ceil(self.lines / max(1, min(held, shared, self.lines)))
        return blocks, ceil(self.lines / blocks)

    def make_some(self, b: Builder, task: Expr, rows: Rows) -> Band:
        blocks, lines = self._blocks()
        n, first = b.let("n", task // blocks), b.let("first", task % blocks * lines)
        here = wrap(lines) if self.lines % lines == 0 else b.let(
            "here", op("min", wrap(self.lines) - first, lines))
        with b.loop("i", here + self.over[0]) as i:
            self._line(b, n, first + i, rows, i * (self.line * self.channels))
        return self._band(const(0), n, first, here)

    def _band(self, start: Expr, n: Expr, first: Expr, here: Expr) -> Band:
        count = here * self.line - self.over[1]

        def place(row: Expr) -> tuple[Expr, Expr | None]:
            column = row % self.line
            number = (n * self.lines + first + row // self.line) * self.columns + column
            return number, op("lt", column, self.columns) if self.over[1] else None

        rest = int(count.value) % BLOCK_ROWS if isinstance(count, Const) else BLOCK_ROWS - 1
        return Band(start, count, rest, place)

    def _line(self, b: Builder, n: Expr, line: Expr, target: Rows, at: Expr) -> None:
        """Writes a line of the padded image `n`."""
        c, (low, left) = self.channels, self.window.low
        y, at = b.let("y", line - low), b.let("to", at)
        length, right = self.width * c, (self.line - left - self.width) * c

        def inside() -> None:
            zeros(b, target, at, 0, left * c)
            convert(b, self.x, b.let("from", (n * self.height + y) * length), target,
                    at + left * c, length, length)
            zeros(b, target, at + (left * c + length), 0, right)

        if not self.window.guarded[0]:
            inside()
            return
        with b.when(both(op("ge", y, 0), op("lt", y, self.height))):
            inside()
        with b.otherwise():
            zeros(b, target, at, 0, self.line * c)
