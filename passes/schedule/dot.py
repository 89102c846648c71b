"""The arithmetic of a contraction's inner step: f32 multiply-add, also with weights kept in 16
bits, two bf16, two i16 or four u8 x i8 products at once, or one integer product where there are no
vectors.

Vectors without an instruction for 8-bit factors multiply them as pairs of i16, which is exact. (The
four-way product that AVX2 has, vpmaddubsw, saturates sums of two.) Left operands are then copied
to i16 ahead of the product.

A step takes `group` consecutive elements of the reduction. Right operands are packed so that one
step of one panel is `width` consecutive elements of `packed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import Expr, broadcast, cast, const, op, wrap
from ...ir.graph.core import Value
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import dot2, dot2_i16, dot4, pack4
from ...ir.kernel.nodes import Buffer, load
from ..lower.loops import Machine
from .tiles import Tile


@dataclass(frozen=True)
class Fetch:
    """Weights to ask for meanwhile: from position `start` of `packed` on, `pace` elements for every
    step. (Asking for one line again costs less than a loop that does not.)"""

    packed: Buffer
    start: Expr
    pace: int


@dataclass(frozen=True)
class Dot:
    """One kind of inner step. `packed` is the element type of packed weights: i32 where it holds
    the factors of a group, 16 bits where floats are kept so and widened when they are read. Both
    operands have to be `widened` to a type first when given."""

    group: int
    accumulator: DType
    packed: DType
    widened: DType | None = None

    @property
    def floats(self) -> bool:
        """Whether a step is a multiply-add of f32."""
        return self.group == 1 and self.accumulator is dt.f32

    @property
    def widens(self) -> bool:
        """Whether weights are widened when they are read."""
        return self.floats and self.packed is not dt.f32

    def column(self, packed: Buffer, at: Expr, lanes: int) -> Expr:
        """The weights of a step from `at` on."""
        weights = load(packed, (at,), lanes)
        return cast(weights, dt.f32) if self.floats else weights

    def steps(self, run: Any) -> Expr:
        """Steps that a run of `run` elements takes."""
        return (wrap(run) + (self.group - 1)) // self.group

    def left(self, x: Buffer, at: Expr, count: Any = None) -> Expr:
        """The left operand's elements from `at` on (`count` of them when fewer than a group)."""
        if self.group == 1:
            return load(x, (at,))
        return pack4(load(x, (at,), self.group, count))

    def combine(self, accumulator: Expr, row: Expr, column: Expr) -> Expr:
        if self.floats:
            return op("fma", row, column, accumulator)
        if self.group == 1:
            return accumulator + cast(row, self.accumulator) * cast(column, self.accumulator)
        if self.group == 2 and self.accumulator is dt.i32:
            return dot2_i16(accumulator, row, column)
        return (dot2 if self.group == 2 else dot4)(accumulator, row, column)

    def widen(self, b: Builder, packed: Buffer, start: Expr, target: Buffer, base: Any, steps: Any,
              width: int, lanes: int, ahead: int = 0) -> None:
        """`steps` steps of packed weights from `start` on, as f32 into `target` from `base` on."""
        with b.loop("k", steps) as k:
            for v in range(0, width if ahead else 0, LINE_BYTES // packed.dtype.itemsize):
                b.prefetch(packed, start + k * width + (v + ahead))
            for v in range(0, width, lanes):
                b.store(target, (base + k * width + v,),
                        self.column(packed, start + k * width + v, lanes))

    def pack(self, matrix: np.ndarray, width: int) -> np.ndarray:
        """[..., runs, K, N] to [..., panels, runs, steps, width] of `packed` elements, zero where
        there is nothing."""
        if self.widened is not None:
            matrix = matrix.astype(self.widened.numpy)
        *lead, runs, k, n = matrix.shape
        panels, steps = -(-n // width), -(-k // self.group)
        padded = np.zeros((*lead, runs, steps * self.group, panels * width), matrix.dtype)
        padded[..., :k, :n] = matrix
        split = padded.reshape(*lead, runs, steps, self.group, panels, width)
        # panels before runs, the group innermost.
        axis = len(lead)
        order = (*range(axis), axis + 3, axis, axis + 1, axis + 4, axis + 2)
        packed = np.ascontiguousarray(split.transpose(order))
        if self.group == 1:
            return packed[..., 0]
        return packed.view(np.int32)[..., 0]

    def accumulate(self, b: Builder, acc: Buffer, tile: Tile, lanes: int, run: Any,
                   left: Callable[[int], tuple[Buffer, Expr]], packed: Buffer,
                   weight: Expr, rows: Sequence[int] | None = None, ahead: int = 0,
                   fetch: Fetch | None = None, keep: Buffer | None = None) -> None:
        """acc += a run: `left(r)` is row r's buffer and first position; `weight` the position of
        the run's first step in `packed`. Only `rows` take part when given. Weights are asked for
        `ahead` elements before they are used; `fetch` asks for others. `keep` takes the widened
        weights of the run."""
        rows = range(tile.rows) if rows is None else rows
        width = tile.vectors * lanes
        whole = wrap(run) // self.group
        line = max(lanes, LINE_BYTES // packed.dtype.itemsize)

        def step(k: Expr, count: Any) -> None:
            for v in range(0, width if ahead else 0, line):
                b.prefetch(packed, weight + k * width + v + ahead)
            columns = [b.let("w", self.column(packed, weight + k * width + v * lanes, lanes))
                       for v in range(tile.vectors)]
            if keep is not None:
                for v in range(tile.vectors):
                    b.store(keep, (k * width + v * lanes,), columns[v])
            for r in rows:
                buffer, at = left(r)
                row = b.let("a", broadcast(self.left(buffer, at + k * self.group, count), lanes))
                for v in range(tile.vectors):
                    b.store(acc, (r, v), self.combine(acc[r, v], row, columns[v]))

        if whole is not const(0):
            with b.loop("k", whole) as k:
                if fetch is not None:
                    b.prefetch(fetch.packed, fetch.start + k * fetch.pace)
                step(k, None)
        rest = wrap(run) - whole * self.group
        if rest is not const(0):
            with b.when(op("gt", rest, 0)):
                step(whole, rest)


LINE_BYTES = 64
"""Bytes of a cache line."""

STREAMED_BYTES = 512 * 1024
"""Packed weights, as f32, from which on they come from beyond a level-2 cache."""

AHEAD_BYTES = 8192
"""How far ahead streamed weights are asked for: two pages, which the processor's own prefetching
does not cross."""


def widened_first(dot: Dot, lanes: int, steps: Any, width: int, tiles: Any) -> bool:
    """Whether a task with so many tiles of rows keeps the weights that it widened, `steps` of
    `width`. Without vectors memory counts more than time."""
    if not dot.widens or lanes == 1:
        return False
    if isinstance(tiles, int):
        return tiles >= WIDENED_TILES
    return isinstance(steps, int) and steps * width * 4 <= WIDENED_BYTES


def ahead_of(packed: np.ndarray) -> int:
    """Elements ahead of their use at which to ask for packed weights; 0 where they are near."""
    return AHEAD_BYTES // packed.itemsize if 4 * packed.size >= STREAMED_BYTES else 0


F32 = Dot(1, dt.f32, dt.f32)
STORED = {kind: Dot(1, dt.f32, kind) for kind in (dt.bf16, dt.f16)}
"""Steps of f32 by the type that weights are kept in."""

WIDENED_ROWS = 128
"""Rows of a task for which weights kept in 16 bits are widened once, so that it takes about a
hundredth of the time of their products."""

WIDENED_TILES = 3
"""Tiles of rows from which on a task keeps weights that it widened: of fewer, each tile widens what
it reads."""

WIDENED_BYTES = 256 * 1024
"""Bytes of f32 up to which weights are widened first where only a run knows the rows, of which
there may be one: those that a level-2 cache holds with other things."""
BF16 = Dot(2, dt.f32, dt.i32)
U8I8 = Dot(4, dt.i32, dt.i32)
WIDE_I8 = Dot(2, dt.i32, dt.i32, dt.i16)
I16 = Dot(2, dt.i32, dt.i32)


def choose_dot(machine: Machine, left: Value, right: Value, out: Value) -> Dot | None:
    """The inner step for these operands on this machine; None when it has none."""
    if left.dtype is right.dtype is out.dtype is dt.f32:
        return F32
    if left.dtype is out.dtype is dt.f32 and right.dtype in STORED:
        return STORED[right.dtype]
    if machine.dot2 and left.dtype is right.dtype is dt.bf16 and out.dtype is dt.f32:
        return BF16
    if left.dtype is right.dtype is dt.i16 and out.dtype is dt.i32:
        return Dot(1, dt.i32, dt.i16) if machine.lanes == 1 else I16
    bytes_ = (dt.u8, dt.i8)
    if left.dtype not in bytes_ or right.dtype not in bytes_ or out.dtype is not dt.i32:
        return None
    if machine.lanes == 1:
        return Dot(1, dt.i32, right.dtype)
    return U8I8 if machine.dot4 and left.dtype is dt.u8 and right.dtype is dt.i8 else WIDE_I8
