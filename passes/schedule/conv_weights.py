"""Weights of convolutions, and a kernel that packs those which only a run knows.

The packed form is that of `groups.pack_groups` with one element in a step: [blocks, panels, taps,
channels, lanes of a panel], for every window. Lanes beyond a block's features hold zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...ir.expr import Expr, const, wrap
from ...ir.graph.core import TensorType, Value
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ...ir.program import Storage
from ..lower.generic import Group
from ..lower.loops import Machine, write_elements
from ..lower.lowering import Lowering
from .gemm import outer_value
from .groups import Groups
from .window import Window


@dataclass(frozen=True)
class Weights:
    """`value` of a group with known sizes, and the elements when they are constant."""

    value: Value
    shape: tuple[int, ...]
    array: np.ndarray | None

    @staticmethod
    def of(group: Group, value: Value) -> Weights | None:
        """The group's value; None where only a run knows its sizes."""
        shape = tuple(d for d in value.shape if isinstance(d, int))
        array = outer_value(group, value).constant if value in group.inputs else None
        return Weights(value, shape, array) if len(shape) == value.rank else None


@dataclass(frozen=True)
class WeightPlaces:
    """Where weights are in [count * features, channels, window...] or, `transposed`, in
    [count * channels, features, window...]."""

    groups: Groups
    size: tuple[int, ...]
    transposed: bool = False

    def at(self, row: Expr, channel: Expr, taps: Sequence[Expr]) -> Expr:
        """The position of result `row` of all groups' for a channel of its group and a tap."""
        g = self.groups
        group, feature = (const(0), row) if g.count == 1 else (row // g.features, row % g.features)
        position = (group * g.channels + channel) * g.features + feature if self.transposed \
            else row * g.channels + channel
        for tap, extent in zip(taps, self.size, strict=True):
            position = position * extent + tap
        return position


def pack_at_run(low: Lowering, source: Storage, places: WeightPlaces, windows: Sequence[Window],
                width: int) -> tuple[Storage, list[int]]:
    """Launches a kernel that packs f32 weights for panels of `width` lanes; returns where they are
    and where in it those of each window begin."""
    groups, dtype = places.groups, source.type.dtype
    per_block = groups.together * groups.features
    panels = -(-per_block // width)
    bases, total = [], 0
    for window in windows:
        bases.append(total)
        total += groups.blocks * panels * prod(window.size) * groups.channels * width
    target = low.temporary(TensorType(dtype, (total,)), "packed")
    b = Builder(low.kernel_name("pack"))
    x = b.param("x", dtype, (source.type.numel,))
    y = b.param("y", dtype, (total,))
    full = groups.blocks - (1 if groups.rest else 0)
    for window, base in zip(windows, bases, strict=True):
        size = panels * prod(window.size) * groups.channels * width
        for first, count, rows in ((0, full, per_block),
                                   (full, groups.blocks - full, groups.rest * groups.features)):
            if count and size:
                _pack_blocks(b, low.machine, x, y, places, window, width, first, count, rows,
                             base + first * size)
    low.launch(b.kernel(1, 0, wrap(total) * (2 * dtype.itemsize)), [source, target])
    return target, bases


def _pack_blocks(b: Builder, machine: Machine, x: Buffer, y: Buffer, places: WeightPlaces,
                 window: Window, width: int, first: int, count: int, rows: int,
                 base: int) -> None:
    """Packs `count` blocks of `rows` results each, from block `first` on, to y[base...]."""
    groups = places.groups
    per_block = groups.together * groups.features
    panel = prod(window.size) * groups.channels * width
    strides = [-(-per_block // width) * panel, panel]
    for axis in range(window.rank):
        strides.append(prod(window.size[axis + 1:]) * groups.channels * width)
    strides += [width, 1]
    whole, rest = divmod(rows, width)
    # Tap k of an axis is weight start + k * step: phases of a stride take every so many.
    steps = [(taps[0], taps[1] - taps[0] if len(taps) > 1 else 1) for taps in window.taps]

    def element(index: tuple[Expr, ...], first_panel: int) -> Expr:
        block, part, *taps, channel, lane = index
        row = (block + first) * per_block + (part + first_panel) * width + lane
        return load(x, (places.at(row, channel, [start + k * step for k, (start, step) in zip(
            taps, steps, strict=True)]),))

    def write(panels: int, lanes: int, at: int, value: Any) -> None:
        if panels and lanes:
            write_elements(b, machine, y, (count, panels, *window.size, groups.channels, lanes),
                           value, offset=base + at, strides=strides)

    write(whole, width, 0, lambda index: element(index, 0))
    if rest:
        write(1, rest, whole * panel, lambda index: element(index, whole))
        write(1, width - rest, whole * panel + rest, lambda _: const(0.0, y.dtype))
    # Panels that a last block does not reach.
    done = whole + (1 if rest else 0)
    write(-(-per_block // width) - done, width, done * panel, lambda _: const(0.0, y.dtype))
