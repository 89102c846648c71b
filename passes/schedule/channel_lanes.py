"""Convolutions and products of few features, f32: lanes go over the input channels.

Where a vector of features would be mostly empty, a step multiplies a vector of consecutive elements
of a pixel's channels with those of each feature. The sums of a tile, one vector for every pixel and
feature, are added up lane by lane at its end: vectors are combined in pairs, halves of one with
halves of the other, until each lane holds one result, in the order of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Expr, op, simplify_dim, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import same
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import shuffle
from ...ir.kernel.nodes import Buffer, load
from ..lower.generic import Group
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering
from .conv_weights import Weights
from .direct import DirectLoops, Packed, Place, TileAt, spread_place
from .dot import Dot, ahead_of
from .gemm import add_operand, finish, needed, operands, places, product, walks_as_one
from .groups import Groups, pack_groups
from .microkernel import Epilogue
from .pixel_lanes import Unit, UnitEpilogue
from .plans import Direct
from .tiles import Tile
from .window import Window, bordered_image, is_copied, line_window, windows_of
from .winograd import suitable_weights

QUAD = 4
"""Lanes of 128 bits, within which shuffles of two vectors are single instructions everywhere."""

BROADCAST_CYCLES = 0.55
"""Cycles of a pixel and a channel where lanes go over features: most of it loads the pixel."""

TRANSFORM_CYCLES = 2.6
"""Cycles of a pixel and a channel by Winograd's algorithm: most of it transforms the pixel."""

SUM_CYCLES = 2.5
"""Cycles that the lanes of one result take to be added up."""


@dataclass(frozen=True)
class LaneDot(Dot):
    """The inner step: `group` lanes of consecutive elements of the reduction."""

    def left(self, x: Buffer, at: Expr, count: Any = None) -> Expr:
        return load(x, (at,), self.group, count)

    def combine(self, accumulator: Expr, row: Expr, column: Expr) -> Expr:
        return op("fma", row, column, accumulator)

    def pack(self, matrix: np.ndarray, width: int) -> np.ndarray:
        """[..., runs, K, N] to [..., 1, runs, steps, N * lanes] with zeros behind K."""
        *lead, runs, k, n = matrix.shape
        steps = ceil(k / self.group)
        padded = np.zeros((*lead, 1, runs, steps * self.group, n), np.float32)
        padded[..., 0, :, :k, :] = matrix
        split = padded.reshape(*lead, 1, runs, steps, self.group, n)
        return np.ascontiguousarray(split.swapaxes(-1, -2)).reshape(*lead, 1, runs, steps, width)


def sum_lanes(b: Builder, vectors: Sequence[Expr], lanes: int) -> Expr:
    """A vector whose first lanes are the sums of each vector's lanes, of `lanes` vectors or
    fewer."""
    held = [(v, [k] * lanes) for k, v in enumerate(vectors)]
    block = lanes
    while block > 1:
        pairs = [held[k:k + 2] for k in range(0, len(held), 2)]
        held = [_halved(b, pair[0], pair[-1], block, lanes) for pair in pairs]
        block //= 2
    ((total, owners),) = held
    picks = [owners.index(k) for k in range(len(vectors))]
    picks += picks[-1:] * (lanes - len(picks))
    return total if picks == list(range(lanes)) else b.let("result", shuffle(total, total, picks))


def _halved(b: Builder, left: tuple[Expr, list[int]], right: tuple[Expr, list[int]], block: int,
            lanes: int) -> tuple[Expr, list[int]]:
    """The sums of the halves of each block of two vectors, and whose results each lane holds."""
    part = lanes if block > QUAD else min(QUAD, lanes)
    first: list[int] = []
    owners: list[int] = []
    for start in range(0, lanes, part):
        for offset, (_, owner) in ((0, left), (lanes, right)):
            for at in range(start, start + part, block):
                first += range(offset + at, offset + at + block // 2)
                owners += owner[at:at + block // 2]
    second = [lane + block // 2 for lane in first]
    x, y = left[0], right[0]
    return b.let("sum", shuffle(x, y, first) + shuffle(x, y, second)), owners


def is_quicker(windows: Sequence[Window], channels: int, features: int, lanes: int,
               merged: bool, winograd: bool) -> bool:
    """Whether a pixel takes fewer modelled cycles than with lanes over features, directly or by
    the `winograd` algorithm."""
    taps = sum(prod(w.size) for w in windows)
    steps = sum(prod(w.size[:-1]) * ceil(w.size[-1] * channels / lanes) for w in windows) \
        if merged else taps * ceil(channels / lanes)
    pixels = max(1, lanes // features)
    other = taps * BROADCAST_CYCLES
    if winograd:
        other = min(other, TRANSFORM_CYCLES)
    return steps * max(features, 1 + features / pixels) / 2 + SUM_CYCLES * features \
        < channels * other


@dataclass
class _LaneLoops(DirectLoops):
    """Direct convolution whose accumulators hold the lanes of one result each."""

    def _tile_flops(self) -> int:
        return max(1, super()._tile_flops() // self.lanes)

    def _store(self, at: TileAt, tile: Tile, acc: Buffer, first: Expr) -> None:
        b, features = self.b, tile.vectors
        sums = sum_lanes(b, [acc[r, f] for r in range(tile.rows) for f in range(features)],
                         self.lanes)
        UnitEpilogue(self.epilogue, Unit(tile.rows, features, self.lanes)).store(
            self.place(at.window, at.n, at.outer, first), sums)


def channel_lanes_rule(low: Lowering, node: Node) -> bool:
    """f32 conv_last of one group and products, with constant weights of few features and many
    channels, and elementwise epilogue."""
    group = Group(node)
    root = group.find("conv_last") or group.find("matmul")
    lanes = low.machine.lanes
    if root is None or lanes == 1 or any(v.shape != root.output.shape for v in group.outputs):
        return False
    x, w = root.inputs
    assert x is not None and w is not None
    out = root.output
    if not x.dtype is w.dtype is out.dtype is dt.f32 \
            or any(same(d, 0) for d in (*out.shape, *x.shape)):
        return False
    weights = Weights.of(group, w)
    if weights is None or weights.array is None:
        return False
    if root.op == "matmul":
        if len(weights.shape) != 2 or x.rank != out.rank:
            return False
        matrix, windows = weights.array.T[..., None], None
    else:
        matrix, windows = weights.array, windows_of(root, weights.shape[2:])
        if windows is None or root.attrs["groups"] != 1:
            return False
    if matrix.shape[0] > lanes // 2:
        return False
    return _write(low, node, group, root, x, matrix, windows)


def _write(low: Lowering, node: Node, group: Group, root: Node, x: Value, weights: np.ndarray,
           windows: list[Window] | None) -> bool:
    """Writes the loops for weights [features, channels, window...]; no windows for a product."""
    lanes, out = low.machine.lanes, root.output
    features, channels = weights.shape[:2]
    extents, batch, place = x.shape[1:-1], out.shape[0], spread_place
    if windows is None:
        before, behind = places(out)
        if behind or not walks_as_one(group, root):
            return False
        pixels = simplify_dim(product(out.shape[:-1]))
        extents, batch, windows = (pixels,), 1, [line_window(pixels)]
        place = _on_line(before)
    dot = LaneDot(lanes, dt.f32, dt.f32)
    copied = is_copied(root, windows, extents)
    merged = all(w.dilations[-1] == 1 and (
        channels % lanes == 0 or copied or not w.guarded[-1]) for w in windows)
    if not is_quicker(windows, channels, features, lanes, merged,
                      suitable_weights(low, group, root) is not None):
        return False
    ops = operands(low, group, root.op.removesuffix("_last"),
                   needed(group, root, *([] if copied else [x])))
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs,
                        LoopWriter(ops.b, low.machine))
    tile = Tile(lanes // features, features)
    if not UnitEpilogue(epilogue, Unit(tile.rows, features, lanes)).vectorisable():
        return False
    if copied:
        image, spatial, windows = bordered_image(low, group, ops, root, x, windows)
    else:
        add_operand(low, group, ops, x)
        image, spatial = ops.buffers[x], [wrap(d) for d in extents]
    groups = Groups(1, channels, features, 1, False)
    array = pack_groups(dot, groups, weights[None], features * lanes, merged)
    packed = ops.b.param("packed", dt.f32, (array.size,))
    ops.args.append(low.constant(array, TensorType(dt.f32, array.shape)))
    _LaneLoops(ops.b, epilogue, dot, groups, Direct(tile.rows, tile.vectors, True), lanes, image,
               Packed(packed, [0], ahead_of(array)), spatial, [batch, *windows[0].pixels[:-1]],
               windows, merged, place).write()
    finish(low, node, ops, product(out.shape) * (2 * channels * prod(windows[0].size)))
    return True


def _on_line(before: tuple[Expr, ...]) -> Place:
    """The places of a product's rows, walked as one."""
    return lambda window, n, outer, pixel: (*before, pixel)
