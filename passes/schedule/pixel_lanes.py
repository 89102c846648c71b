"""Channels-last convolutions of one input channel with few results a pixel, f32.

Where the results of a pixel fill at most half of a vector, its lanes hold several pixels side by
side. A step multiplies the inputs of P pixels, consecutive elements of a line, with the weights of
F features: lane f * P + p is pixel p's result f, so that the inputs come by one broadcasting load
of P elements, and weights are packed P times each. Results are put in their order in memory,
P * F consecutive elements, by one shuffle before the epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Expr, broadcast, cast, const, op, substitute, var, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import flat_index, same
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import repeat, shuffle
from ...ir.kernel.nodes import Buffer, Load, load
from ..lower.generic import Group
from ..lower.loops import LoopWriter, has_reduce, linear_in, value_nodes, vectorisable
from ..lower.lowering import Lowering
from .gemm import (
    TASK_FLOPS,
    UNROLLED_EPILOGUE,
    RowBlock,
    add_operand,
    finish,
    needed,
    operands,
    outer_value,
    row_blocks,
)
from .microkernel import Epilogue, accumulators
from .tiles import Registers, Tile, choose, split_rows, step_cycles
from .window import Window, bordered_image, windows_of

UNROLLED_TAPS = 8
"""Taps of a line whose weights stay in registers together."""


@dataclass(frozen=True)
class Unit:
    """`pixels` x `features` results that share a vector of `lanes`."""

    pixels: int
    features: int
    lanes: int

    @property
    def filled(self) -> int:
        return self.pixels * self.features

    @property
    def count(self) -> int | None:
        """Lanes of a store or load of a unit's results; None for all."""
        return None if self.filled == self.lanes else self.filled

    def in_order(self, lane_of_feature: int, lane_of_pixel: int) -> list[int]:
        """For each lane of the results in memory, [pixel, feature], the lane it comes from. What
        is behind them repeats the last."""
        lanes = [p * lane_of_pixel + f * lane_of_feature
                 for p in range(self.pixels) for f in range(self.features)]
        return lanes + lanes[-1:] * (self.lanes - self.filled)

    def pack(self, weights: np.ndarray) -> np.ndarray:
        """[features, 1, window...] to [taps, lanes]."""
        rows = weights.reshape(self.features, -1).T
        packed = np.zeros((len(rows), self.lanes), np.float32)
        packed[:, :self.filled] = np.repeat(rows, self.pixels, axis=1)
        return packed


def unit_of(features: int, lanes: int) -> Unit | None:
    """The unit for so many features, whose pixels are a power of two; None where a vector
    holds one pixel only."""
    fitting = lanes // max(features, 1)
    return Unit(1 << (fitting.bit_length() - 1), features, lanes) if fitting > 1 else None


def line_blocks(unit: Unit, pixels: int, limit: int) -> list[RowBlock]:
    """Tiles of units, each `pixels` of a unit further, that cover a line; starts are pixels. The
    last unit lies further left where it would go beyond the end, and computes some again."""
    blocks = [RowBlock(block.start * unit.pixels, block.height, block.count)
              for block in row_blocks(pixels // unit.pixels, limit)]
    if pixels % unit.pixels:
        blocks.append(RowBlock(const(pixels - unit.pixels), 1, 1))
    return blocks


def tile_limit(registers: Registers, taps: int) -> int:
    """Units of a tile: accumulators share the registers with a line's weights and one input."""
    weights = taps if taps <= UNROLLED_TAPS else 1
    return max(1, min(16, registers.count - weights - 1))


def is_quicker(unit: Unit, pixels: int, taps: int, registers: Registers) -> bool:
    """Whether a line takes fewer modelled cycles than with one pixel in a vector."""
    blocks = line_blocks(unit, pixels, tile_limit(registers, taps))
    here = sum(int(b.count) * step_cycles(Tile(b.height, 1), registers) for b in blocks)
    tile = choose(pixels, unit.features, registers)
    direct = sum(count * step_cycles(Tile(height, tile.vectors), registers)
                 for height, count in split_rows(pixels, tile.rows))
    return here < direct


def pixel_lanes_rule(low: Lowering, node: Node) -> bool:
    """f32 conv_last of one input channel, stride 1 along lines of a known length, constant weights
    of few features, with elementwise epilogue."""
    group = Group(node)
    root = group.find("conv_last")
    if root is None or low.machine.lanes == 1:
        return False
    x, w = root.inputs
    assert x is not None and w is not None
    out = root.output
    if w not in group.inputs or any(same(d, 0) for d in (*out.shape, *x.shape)) \
            or any(v.shape != out.shape for v in group.outputs) \
            or not x.dtype is w.dtype is out.dtype is dt.f32:
        return False
    weights, pixels = outer_value(group, w).constant, out.shape[-2]
    if weights is None or weights.shape[1] != 1 or root.attrs["groups"] != 1 \
            or root.attrs["strides"][-1] != 1 or not isinstance(pixels, int):
        return False
    registers = Registers(low.machine.lanes, low.machine.vector_registers)
    unit = unit_of(weights.shape[0], registers.lanes)
    windows = windows_of(root, weights.shape[2:])
    if unit is None or pixels < unit.pixels or windows is None \
            or not is_quicker(unit, pixels, weights.shape[-1], registers):
        return False
    return _write(low, node, group, root, x, weights, windows[0], unit, registers)


def _write(low: Lowering, node: Node, group: Group, root: Node, x: Value, weights: np.ndarray,
           window: Window, unit: Unit, registers: Registers) -> bool:
    copied, out = any(window.guarded), root.output
    ops = operands(low, group, "conv", needed(group, root, *([] if copied else [x])))
    writer = LoopWriter(ops.b, low.machine)
    epilogue = UnitEpilogue(
        Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer), unit)
    if not epilogue.vectorisable():
        return False
    if copied:
        image, spatial, (window,) = bordered_image(low, group, ops, root, x, [window])
    else:
        add_operand(low, group, ops, x)
        image, spatial = ops.buffers[x], [wrap(d) for d in x.shape[1:-1]]
    array = unit.pack(weights)
    packed = ops.b.param("packed", dt.f32, (array.size,))
    ops.args.append(low.constant(array, TensorType(dt.f32, array.shape)))
    _Lines(ops.b, epilogue, unit, registers, image, packed, spatial, window, out).write()
    finish(low, node, ops, wrap(out.type.numel) * (2 * len(array)))
    return True


class UnitEpilogue:
    """The operators behind the convolution on the results of a unit, in the order of memory."""

    def __init__(self, epilogue: Epilogue, unit: Unit):
        self.epilogue, self.unit = epilogue, unit
        self.pixel = var("pixel", extent=wrap(unit.pixels))
        self.channel = var("channel", extent=wrap(unit.features))

    def vectorisable(self) -> bool:
        """Whether lanes can carry all of it."""
        shape = self.epilogue.root.shape
        lead = [var(f"e{k}", extent=wrap(d)) for k, d in enumerate(shape[:-1])]
        index = (*lead[:-1], lead[-1] + self.pixel, self.channel)
        probe = load(Buffer("probe", dt.f32, (1 << 30,)),
                     (self.pixel * self.unit.features + self.channel,))
        for value in self.epilogue.outputs:
            e = self.epilogue.inliner.at(value, index)
            e = substitute(e, {self.epilogue.element: probe})
            if has_reduce(e) or not all(vectorisable(e, v, strided=True)
                                        for v in (self.pixel, self.channel)):
                return False
            if any(isinstance(n, Load) and self._layout(n) is None for n in value_nodes(e)):
                return False
        return True

    def store(self, index: tuple[Expr, ...], result: Expr) -> None:
        """Stores the results of the unit whose first pixel is at `index`."""
        unit, b = self.unit, self.epilogue.writer.b
        *lead, first = index
        element = self.epilogue.element
        for value, target in zip(self.epilogue.outputs, self.epilogue.targets, strict=True):
            e = self.epilogue.inliner.at(value, (*lead, first + self.pixel, self.channel))
            bound: dict[Expr, Expr] = {element: result}
            for n in value_nodes(e):
                if isinstance(n, Load):
                    bound[n] = self._lanes_of(n)
            done = self.epilogue.writer.value(e, lanes=unit.lanes, bound=bound)
            position = flat_index((*index, const(0)), value.shape)
            b.store(target, (position,), broadcast(cast(done, target.dtype), unit.lanes),
                    unit.count)

    def _layout(self, x: Load) -> tuple[int, int] | None:
        """How far apart in memory the operand's elements are for pixels and channels, where its
        lanes can be loaded."""
        by_channel = linear_in(x.index[-1], self.channel)
        by_pixel = linear_in(x.index[-1], self.pixel)
        if by_channel is None or by_pixel is None or any(
                linear_in(i, v) != (const(0), i) for i in x.index[:-1]
                for v in (self.channel, self.pixel)):
            return None
        for apart in ((0, 0), (0, 1), (1, 0), (self.unit.features, 1)):
            if (by_pixel[0], by_channel[0]) == (const(apart[0]), const(apart[1])):
                plain = apart in ((0, 0), (self.unit.features, 1))
                return apart if plain or x.dtype is dt.f32 else None
        return None

    def _lanes_of(self, x: Load) -> Expr:
        """An operand's elements for all lanes; one element where it is the same for all."""
        unit, apart = self.unit, self._layout(x)
        at = tuple(substitute(i, {self.pixel: const(0), self.channel: const(0)}) for i in x.index)
        if apart == (0, 0):
            return load(x.buffer, at)
        if apart == (0, 1):
            row = load(x.buffer, at, unit.lanes, wrap(unit.features))
            return shuffle(row, row, unit.in_order(1, 0))
        if apart == (1, 0):
            row = load(x.buffer, at, unit.lanes, wrap(unit.pixels))
            return shuffle(row, row, unit.in_order(0, 1))
        return load(x.buffer, at, unit.lanes, None if unit.count is None else wrap(unit.count))


@dataclass
class _Lines:
    """What the loops of one convolution share; all of its windows are inside of `image`."""

    b: Builder
    epilogue: UnitEpilogue
    unit: Unit
    registers: Registers
    image: Buffer
    packed: Buffer
    spatial: list[Expr]
    window: Window
    out: Value

    def write(self) -> None:
        """All results: a task takes a line."""
        b, window = self.b, self.window
        outer = [wrap(d) for d in self.out.shape[1:-2]]
        lines = wrap(self.out.shape[0])
        for extent in outer:
            lines = lines * extent
        pixels = self.out.shape[-2]
        assert isinstance(pixels, int)
        work = 2 * pixels * self.unit.features * int(np.prod(window.size))
        blocks = line_blocks(self.unit, pixels, tile_limit(self.registers, window.size[-1]))
        with b.loop("t", lines, "parallel", grain=max(1, TASK_FLOPS // work)) as t:
            index: list[Expr] = []
            rest: Expr = t
            for extent in reversed(outer):
                index.append(b.let("o", rest % extent))
                rest = rest // extent
            index.append(b.let("n", rest))
            index.reverse()
            for block in blocks:
                with b.loop("q", block.count) as q:
                    first = block.start + q * (block.height * self.unit.pixels)
                    self._tile(index, b.let("first", first), block.height)

    def _tile(self, line: list[Expr], first: Expr, height: int) -> None:
        b, window, unit = self.b, self.window, self.unit
        acc = accumulators(b, Tile(height, 1), unit.lanes)

        def taps(index: list[Expr], remaining: tuple[int, ...]) -> None:
            if remaining:
                with b.loop("k", remaining[0]) as k:
                    taps([*index, k], remaining[1:])
                return
            place, number = line[0], const(0)
            for axis, k in enumerate(index):
                y = line[axis + 1] * window.strides[axis] + k * window.dilations[axis] \
                    - wrap(window.low[axis])
                place = place * self.spatial[axis] + y
                number = number * window.size[axis] + k
            start = place * self.spatial[-1] + first - wrap(window.low[-1])
            self._line(acc, height, b.let("at", start),
                       b.let("wk", number * (window.size[-1] * unit.lanes)))

        taps([], window.size[:-1])
        order = unit.in_order(unit.pixels, 1)
        if self.epilogue.epilogue.length() * height <= UNROLLED_EPILOGUE:
            for r in range(height):
                self.epilogue.store((*line, first + r * unit.pixels),
                                    b.let("result", shuffle(acc[r, 0], acc[r, 0], order)))
            return
        spill = b.alloc("tile", dt.f32, (height * unit.lanes,))
        for r in range(height):
            b.store(spill, (r * unit.lanes,), acc[r, 0])
        with b.loop("r", height) as r:
            row = b.let("row", load(spill, (r * unit.lanes,), unit.lanes))
            self.epilogue.store((*line, first + r * unit.pixels),
                                b.let("result", shuffle(row, row, order)))

    def _line(self, acc: Buffer, height: int, start: Expr, weight: Expr) -> None:
        """acc += the taps of one line of the window. With few taps, inputs are loaded once for all
        taps that they meet."""
        b, window, unit = self.b, self.window, self.unit
        taps, apart = window.size[-1], window.dilations[-1]

        def column(k: Any) -> Expr:
            return b.let("w", load(self.packed, (weight + k * unit.lanes,), unit.lanes))

        def inputs(offset: Any) -> Expr:
            elements = load(self.image, (start + offset,), unit.pixels)
            return b.let("x", repeat(elements, unit.lanes))

        def step(r: int, x: Expr, w: Expr) -> None:
            b.store(acc, (r, 0), op("fma", x, w, acc[r, 0]))

        if taps > UNROLLED_TAPS:
            with b.loop("k", taps) as k:
                w = column(k)
                for r in range(height):
                    step(r, inputs(k * apart + r * unit.pixels), w)
            return
        columns = [column(k) for k in range(taps)]
        meeting: dict[int, list[tuple[int, int]]] = {}
        for r in range(height):
            for k in range(taps):
                meeting.setdefault(r * unit.pixels + k * apart, []).append((r, k))
        for offset in sorted(meeting):
            x = inputs(offset)
            for r, k in meeting[offset]:
                step(r, x, columns[k])
