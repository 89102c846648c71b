"""Depthwise convolutions of lines and images: vectors of channels, tiles of pixels of a line.

Windows are cut at the borders pixel by pixel, because they are short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import Expr, cast, const, op, var, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ...ir.program import Storage
from ..lower.generic import Group, materialise
from ..lower.loops import LoopWriter, write_elements
from ..lower.lowering import Lowering
from .conv_weights import Weights
from .gemm import add_operand, finish, needed, operands
from .microkernel import Epilogue, accumulators
from .plans import Depthwise, convolution_text, depthwise_plans
from .product_plans import TASK_FLOPS
from .tiles import Registers, Tile
from .window import Window, bordered, borders, pad_copy, within

BYTES = (dt.u8, dt.i8)


def is_depthwise(root: Node, x: Value, weights: Weights) -> bool:
    """Whether a conv_last is a depthwise one of this kind: f32, or 8-bit into i32 with sums that
    stay exact in f32 (below 2**24)."""
    plane = prod(weights.shape[2:])
    floats = x.dtype is dt.f32 and root.output.dtype is dt.f32
    exact = x.dtype in BYTES and weights.value.dtype in BYTES and root.output.dtype is dt.i32 \
        and plane * 2**15 < 2**24
    return root.attrs["groups"] == weights.shape[0] == x.shape[-1] and weights.shape[1] == 1 \
        and len(weights.shape) <= 4 and (floats or exact)


def write_depthwise(low: Lowering, node: Node, group: Group, root: Node, x: Value,
                    weights: Weights, window: Window) -> bool:
    """Launches the kernel; False when the epilogue has no vector form."""
    lanes = low.machine.lanes
    out = root.output
    channels = weights.shape[0]
    spatial = [wrap(d) for d in x.shape[1:-1]]
    # Borders are skipped, so that only zeros may be there.
    copied = any(window.guarded) and root.attrs["fill"] != 0
    ops = operands(low, group, "depthwise", needed(group, root, *([] if copied else [x])))
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    if lanes > 1 and not epilogue.vectorisable():
        return False
    b = ops.b
    if copied:
        before, after = borders([window], x.shape[1:-1], root.attrs["high"])
        source = pad_copy(low, materialise(low, group, x), before, after, root.attrs["fill"])
        image = b.param("image", x.dtype, (source.type.numel,))
        ops.args.append(source)
        spatial = bordered(x.shape[1:-1], before, after)
        window = within(window, before)
    else:
        add_operand(low, group, ops, x)
        image = ops.buffers[x]
    blocks = -(-channels // lanes)
    kind = weights_type(weights.value, lanes)
    if weights.array is None:
        storage = _pack_at_run(low, materialise(low, group, weights.value), weights.shape, kind)
    else:
        array = pack_depthwise(weights.array, lanes, kind)
        storage = low.constant(array, TensorType(kind, array.shape))
    taps = prod(window.size)
    size = taps * blocks * lanes
    packed = b.param("packed", kind, (size,))
    ops.args.append(storage)
    lift = len(window.size) == 1
    if lift:  # a 1-D window is one row
        window = Window(((0,), *window.taps), (1, *window.strides), (1, *window.dilations),
                        (0, *window.low), (False, *window.guarded), (0, *window.first),
                        (1, *window.spread), (1, *window.pixels))
    n = wrap(x.shape[0])
    height = wrap(1) if lift else spatial[0]
    wide = spatial[-1]
    out_h = wrap(1) if lift else wrap(out.shape[1])
    plan = low.choose("depthwise convolution", convolution_text(group, root), depthwise_plans(
        size * kind.itemsize, Registers(lanes, low.machine.vector_registers)))
    loops = DepthwiseLoops(b, epilogue, window, plan, lanes, image, packed, channels, blocks,
                           height, wide, lift)
    rows = n * out_h
    columns = out.shape[-2]
    per_row = (columns if isinstance(columns, int) else 64) * channels * 2 * taps
    with b.loop("t", rows, "parallel", grain=max(1, TASK_FLOPS // max(1, per_row))) as t:
        loops.row(b.let("n", t // out_h), b.let("oy", t % out_h), columns)
    finish(low, node, ops, wrap(out.type.numel) * (2 * taps))
    return True


def weights_type(weights: Value, lanes: int) -> DType:
    """The type of packed depthwise weights."""
    # Vectors hold 8-bit factors as f32, whose sums are exact; scalars need not.
    return weights.dtype if lanes == 1 else dt.f32


def pack_depthwise(weights: np.ndarray, lanes: int, kind: DType) -> np.ndarray:
    """[taps, C rounded up to whole vectors] of weights [C, 1, window]."""
    channels = weights.shape[0]
    array = np.zeros((int(np.prod(weights.shape[2:])), -(-channels // lanes) * lanes), kind.numpy)
    array[:, :channels] = weights.reshape(channels, -1).T
    return array


def _pack_at_run(low: Lowering, source: Storage, shape: tuple[int, ...], kind: DType) -> Storage:
    """Launches a kernel that packs weights which only a run knows as `pack_depthwise` does."""
    lanes, (channels, *rest) = low.machine.lanes, shape
    taps, wide = prod(rest), -(-channels // lanes) * lanes
    target = low.temporary(TensorType(kind, (taps, wide)), "packed")
    b = Builder(low.kernel_name("pack"))
    x = b.param("x", source.type.dtype, (source.type.numel,))
    y = b.param("y", kind, (taps * wide,))
    write_elements(b, low.machine, y, (taps, channels), lambda index: cast(
        load(x, (index[1] * taps + index[0],)), kind), strides=(wide, 1))
    if wide > channels:
        write_elements(b, low.machine, y, (taps, wide - channels), lambda _: const(0, kind),
                       offset=channels, strides=(wide, 1))
    low.launch(b.kernel(1, 0, wrap(taps * wide) * (2 * kind.itemsize)), [source, target])
    return target


@dataclass
class DepthwiseLoops:
    """What a depthwise kernel's loops share. `source` and `target` are the (image, line) that the
    buffers read and written start with: not the first ones where they hold a band of lines."""

    b: Builder
    epilogue: Epilogue
    window: Window
    plan: Depthwise
    lanes: int
    image: Buffer
    packed: Buffer
    channels: int
    blocks: int
    height: Expr
    wide: Expr
    lift: bool
    source: tuple[Expr, Expr] = (const(0), const(0))
    target: tuple[Expr, Expr] = (const(0), const(0))

    def row(self, n: Expr, oy: Expr, columns: Any) -> None:
        """One row of output pixels: border pixels one by one, the rest in tiles."""
        b, w = self.b, self.window
        stride, span = w.strides[1], (w.size[1] - 1) * w.dilations[1]
        total = wrap(columns)
        left = op("min", (wrap(w.low[1]) + (stride - 1)) // stride, total)
        # The last pixel whose window ends inside.
        inside = (self.wide + wrap(w.low[1]) - span - 1) // stride + 1
        right = op("max", op("min", inside, total), left)
        left, right = b.let("left", left), b.let("right", right)
        top = b.let("top", oy * w.strides[0] - wrap(w.low[0]))
        if self.plan.near:
            self._pixels(total, left, right, lambda *where: self._channels(
                lambda v, count: self._tile(n, oy, top, v, count, *where)))
        else:
            self._channels(lambda v, count: self._pixels(
                total, left, right, lambda *where: self._tile(n, oy, top, v, count, *where)))

    def _channels(self, write: Callable[[Expr, Expr | None], None]) -> None:
        """write(vector, number of channels in it if they do not fill it) for all channels."""
        full, rest = divmod(self.channels, self.lanes)
        if full:
            with self.b.loop("v", full) as v:
                write(v, None)
        if rest:
            write(wrap(full), wrap(rest))

    def _pixels(self, total: Expr, left: Expr, right: Expr,
                write: Callable[[Expr, int, bool], None]) -> None:
        """write(first pixel, how many, whether at a border) for a line."""
        b, tile = self.b, self.plan.pixels
        with b.loop("x", left) as ox:
            write(ox, 1, True)
        middle = right - left
        with b.loop("x", middle // tile) as q:
            write(b.let("ox", left + q * tile), tile, False)
        with b.loop("x", middle % tile) as q:
            write(b.let("ox", left + middle // tile * tile + q), 1, False)
        with b.loop("x", total - right) as q:
            write(b.let("ox", right + q), 1, True)

    def _tile(self, n, oy, top, v, count, ox: Expr, rows: int, cut: bool) -> None:
        b, w, lanes = self.b, self.window, self.lanes
        whole = self.packed.dtype is not dt.f32
        wide = dt.i32 if whole else dt.f32
        acc = accumulators(b, Tile(rows, 1), lanes, wide)
        start = b.let("sx", ox * w.strides[1] - wrap(w.low[1]))
        with b.loop("k", w.size[0]) as ky:
            y = b.let("y", top + ky * w.dilations[0])
            with b.when(op("and", op("ge", y, 0), op("lt", y, self.height))):
                line = (n - self.source[0]) * self.height + y - self.source[1]
                base = b.let("base", (line * self.wide + start) * self.channels + v * lanes)

                def tap(kx: Expr, ky=ky, base=base) -> None:
                    weight = b.let("w", cast(load(
                        self.packed, ((ky * w.size[1] + kx) * (self.blocks * lanes) + v * lanes,),
                        lanes), wide))
                    for r in range(rows):
                        at = base + (r * w.strides[1] + kx * w.dilations[1]) * self.channels
                        value = cast(load(self.image, (at,), lanes, count), wide)
                        total = acc[r, 0] + value * weight if whole else op(
                            "fma", value, weight, acc[r, 0])
                        b.store(acc, (r, 0), total)

                if not cut:
                    for kx in range(w.size[1]):
                        tap(const(kx))
                else:
                    with b.loop("k", w.size[1]) as kx:
                        at = start + kx * w.dilations[1]
                        with b.when(op("and", op("ge", at, 0), op("lt", at, self.wide))):
                            tap(kx)
        column = var("column", extent=wrap(self.channels))
        for r in range(rows):
            image, line = n - self.target[0], oy - self.target[1]
            index = (image, ox + r, column) if self.lift else (image, line, ox + r, column)
            result = acc[r, 0] if whole else cast(acc[r, 0], self.epilogue.root.dtype, "exact")
            self.epilogue.store(index, column, v * lanes, lanes, result, count)
