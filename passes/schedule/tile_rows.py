"""The left operands of products in tile registers: rows gathered as bf16, and where tiles are read.

A tile is 16 rows of 32 elements in even steps of memory. Rows of a matrix and the windows of a
convolution are copied into lines of whole steps (im2col for the latter).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Protocol

from ...ir import dtype as dt
from ...ir.expr import Expr, both, broadcast, cast, const, op, wrap
from ...ir.graph.core import Value
from ...ir.graph.ops.shapes import unflatten
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import TILE_COLUMNS, TILE_PAIRS, TILE_ROWS
from ...ir.kernel.nodes import Buffer, load
from ..lower.generic import Group
from .gemm import product
from .window import Window

STEP = 2 * TILE_PAIRS
"""Products of one step of the reduction."""

BLOCK = 2
"""Tiles of rows, and of columns, that are multiplied with each other."""

BLOCK_ROWS, PANEL = BLOCK * TILE_ROWS, BLOCK * TILE_COLUMNS

ROWS_BYTES = 512 * 1024
"""Bytes of rows that a task multiplies with all panels: they stay in a level-2 cache."""

SHARED_BYTES = 1 << 20
"""Bytes up to which all rows are made first, and tasks take panels."""

LEAST_TASKS = 16
"""Tasks that a product is divided into where it has the rows."""


MOST_STORES = 8
"""Stores of zeros in a row that are written out."""


@dataclass(frozen=True)
class Band:
    """`count` rows in memory from `start` on, at most `rest` of them after whole blocks. `place`
    gives the number in the output of one of them, and a condition for it to be there (None: it
    always is)."""

    start: Expr
    count: Expr
    rest: int
    place: Callable[[Expr], tuple[Expr, Expr | None]]


class RowSource(Protocol):
    """The rows of a product's left operand as bf16: `pitch` elements from one to the next, and the
    steps of the reduction as a nest of loops, outermost first, each with a number of iterations and
    the elements from one to the next."""

    @property
    def pitch(self) -> int: ...

    @property
    def runs(self) -> Sequence[tuple[int, int]]: ...

    def shared(self) -> int | None:
        """Elements that hold all rows, where these are to be made first; else None."""
        ...

    def make(self, b: Builder, rows: Rows) -> None:
        """Writes all rows, in parallel."""
        ...

    def bands(self, b: Builder) -> Any:
        """A context of loops over the bands of all rows; gives the Band."""
        ...

    def tasks(self) -> tuple[Any, int, int]:
        """Tasks with some of the rows each: how many, and the elements and rows of one."""
        ...

    def make_some(self, b: Builder, task: Expr, rows: Rows) -> Band:
        """Writes the rows of a task."""
        ...


def made_first(elements: Any, rows: Any) -> bool:
    """Whether all rows are to be made first, rather than those of each task."""
    return isinstance(rows, int) and elements * 2 <= SHARED_BYTES \
        and rows < LEAST_TASKS * BLOCK_ROWS


def task_elements() -> int:
    """Elements of bf16 that a task keeps in a level-2 cache."""
    return ROWS_BYTES // 2


def pitch_of(reduction: int) -> int:
    """Elements from one gathered row to the next: an odd number of cache lines, so that the 16
    rows of a tile spread over the sets of a cache."""
    return (ceil(reduction / STEP) | 1) * STEP


@dataclass(frozen=True)
class Rows:
    """Memory for rows: bf16 in `buffer`, and what is left of f32 after rounding, in bf16 too,
    `rest` elements further on (0: that is not kept)."""

    buffer: Buffer
    rest: int = 0

    def store(self, b: Builder, at: Expr, value: Expr, count: Any) -> None:
        """Stores vectors of bf16 or f32."""
        rounded = cast(value, dt.bf16)
        b.store(self.buffer, (at,), rounded, count)
        if self.rest:
            b.store(self.buffer, (at + self.rest,),
                    cast(value - cast(rounded, dt.f32), dt.bf16), count)


def convert(b: Builder, x: Buffer, source: Expr, target: Rows, at: Expr, length: int,
            whole: int) -> None:
    """target[at...] = x[source...] as bf16, then zeros up to `whole` elements; x is bf16 or f32."""
    lanes = STEP if x.dtype is dt.bf16 else STEP // 2

    def move(k: Expr, count: int | None, stored: int | None) -> None:
        value = load(x, (source + k,), lanes, count)
        target.store(b, at + k, b.let("x", value) if target.rest else value, stored)

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


def zeros(b: Builder, target: Rows, at: Expr, start: int, end: int) -> None:
    """target[at + start : at + end] = 0, nothing when that is empty."""
    if end - start > MOST_STORES * STEP:
        steps = (end - start) // STEP
        with b.loop("v", steps) as v:
            zeros(b, target, at + v * STEP, start, start + STEP)
        start += steps * STEP
    for k in range(start, end, STEP):
        count = end - k
        target.store(b, at + k, broadcast(const(0, dt.bf16 if not target.rest else dt.f32), STEP),
                     None if count >= STEP else const(count))


class GatheredRows:
    """Rows that are copied one by one, each into a line of whole steps."""

    reduction: int
    total: Any

    def gather(self, b: Builder, row: Expr, target: Rows, at: Expr) -> None:
        """Writes a row as bf16 to target[at...], and zeros up to a whole number of steps."""
        raise NotImplementedError

    @property
    def pitch(self) -> int:
        return pitch_of(self.reduction)

    @property
    def runs(self) -> Sequence[tuple[int, int]]:
        return ((ceil(self.reduction / STEP), STEP),)

    def shared(self) -> int | None:
        if not made_first(self.total * self.pitch, self.total):
            return None
        return ceil(self.total / BLOCK_ROWS) * BLOCK_ROWS * self.pitch

    def make(self, b: Builder, rows: Rows) -> None:
        grain = max(1, 64 * 1024 // (2 * self.pitch))
        with b.loop("i", self.total, "parallel", grain=grain) as i:
            self.gather(b, i, rows, i * self.pitch)

    @contextmanager
    def bands(self, b: Builder) -> Iterator[Band]:
        yield Band(const(0), wrap(self.total), self._rest, lambda row: (row, None))

    @property
    def _rest(self) -> int:
        return self.total % BLOCK_ROWS if isinstance(self.total, int) else BLOCK_ROWS - 1

    def tasks(self) -> tuple[Any, int, int]:
        chunk = max(1, task_elements() // (self.pitch * BLOCK_ROWS))
        if isinstance(self.total, int):
            chunk = min(chunk, max(1, ceil(self.total / (LEAST_TASKS * BLOCK_ROWS))))
        chunk *= BLOCK_ROWS
        return (wrap(self.total) + (chunk - 1)) // chunk, chunk * self.pitch, chunk

    def make_some(self, b: Builder, task: Expr, rows: Rows) -> Band:
        _, _, chunk = self.tasks()
        first = b.let("first", task * chunk)
        here = b.let("here", op("min", wrap(self.total) - first, chunk))
        with b.loop("i", here) as i:
            self.gather(b, b.let("row", first + i), rows, i * self.pitch)
        return Band(const(0), here, self._rest, lambda row: (first + row, None))


@dataclass
class MatrixRows(GatheredRows):
    """The rows of a [total, reduction] matrix."""

    x: Buffer
    reduction: int
    total: Any

    def gather(self, b: Builder, row: Expr, target: Rows, at: Expr) -> None:
        whole = -(-self.reduction // STEP) * STEP
        convert(b, self.x, b.let("from", row * self.reduction), target, b.let("to", at),
                self.reduction, whole)


@dataclass
class WindowRows(GatheredRows):
    """The windows of a channels-last convolution of [N, H, W, C], one for each output pixel, with
    zeros where they reach over the border (im2col)."""

    x: Buffer
    window: Window
    extents: tuple[Any, ...]
    channels: int
    shape: tuple[Any, ...]

    @property
    def total(self) -> Any:
        return product(self.shape)

    @property
    def reduction(self) -> int:
        return prod(self.window.size) * self.channels

    def gather(self, b: Builder, row: Expr, target: Rows, at: Expr) -> None:
        w = self.window
        n, *pixel = unflatten(row, self.shape)
        firsts = [b.let("first", p * s - wrap(low))
                  for p, s, low in zip(pixel, w.strides, w.low, strict=True)]
        n, at = b.let("n", n), b.let("to", at)
        self._lines(b, n, firsts, [], const(0), target, at)
        zeros(b, target, at, self.reduction, -(-self.reduction // STEP) * STEP)

    def _lines(self, b: Builder, image: Expr, firsts: list[Expr], taps: list[Expr], number: Expr,
               target: Rows, at: Expr) -> None:
        """The window's lines, by loops over its outer axes; `image` and `number` are the flat
        position so far, in the input and among the taps."""
        w, axis = self.window, len(taps)
        if axis < len(w.size) - 1:
            with b.loop("k", w.size[axis]) as k:
                self._lines(b, image, firsts, [*taps, k], number * w.size[axis] + k, target, at)
            return
        line, size = w.size[-1] * self.channels, wrap(self.extents[-1])
        inside = self._inside(firsts, taps)
        position = image
        for i, k in enumerate(taps):
            position = position * wrap(self.extents[i]) + firsts[i] + k * w.dilations[i]
        start = b.let("from", (position * size + firsts[-1]) * self.channels)
        goal = b.let("goal", at + number * line)

        def taps_apart() -> None:
            with b.loop("k", w.size[-1]) as k:
                column = firsts[-1] + k * w.dilations[-1]
                reached = both(op("ge", column, 0), op("lt", column, size)) \
                    if self._reaches_over(-1) else None
                self._guarded(b, reached, self.channels, target, goal + k * self.channels,
                              lambda: convert(b, self.x,
                                              start + k * (w.dilations[-1] * self.channels), target,
                                              goal + k * self.channels, self.channels,
                                              self.channels))

        def whole_line() -> None:
            if w.dilations[-1] != 1 and w.size[-1] > 1:
                taps_apart()
            elif not self._reaches_over(-1):
                convert(b, self.x, start, target, goal, line, line)
            else:
                with b.when(both(op("ge", firsts[-1], 0),
                                 op("le", firsts[-1] + w.size[-1], size))):
                    convert(b, self.x, start, target, goal, line, line)
                with b.otherwise():
                    taps_apart()

        self._guarded(b, inside, line, target, goal, whole_line)

    def _guarded(self, b: Builder, inside: Expr | None, length: int, target: Rows, goal: Expr,
                 copy: Callable[[], None]) -> None:
        """copy() where a part of the window is inside the input, else zeros."""
        if inside is None:
            copy()
            return
        with b.when(inside):
            copy()
        with b.otherwise():
            zeros(b, target, goal, 0, length)

    def _reaches_over(self, axis: int) -> bool:
        return self.window.guarded[axis]

    def _inside(self, firsts: list[Expr], taps: list[Expr]) -> Expr | None:
        conditions = []
        for axis, k in enumerate(taps):
            if self._reaches_over(axis):
                at = firsts[axis] + k * self.window.dilations[axis]
                conditions += [op("ge", at, 0), op("lt", at, wrap(self.extents[axis]))]
        return both(*conditions) if conditions else None


def row_operand(group: Group, operand: Value) -> Value:
    """What a product's rows are gathered from: the operand, or the f32 input of the group that it
    is the rounding of."""
    node = operand.node
    if operand not in group.inputs and node is not None and node.op == "cast":
        source = node.inputs[0]
        if source in group.inputs and source is not None and source.dtype is dt.f32:
            return source
    return operand
