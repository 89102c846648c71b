"""What the templates of contractions decide: plans, and the texts of problems they answer.

Plans are kept in records of what was measured, so their fields are numbers and booleans, and mean
the same for every model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from ...ir.expr import text, wrap
from ...ir.graph.core import Node
from ..lower.generic import Group
from .tiles import Registers, Tile, choose, distinct_tiles

SHARED_WEIGHTS = 512 * 1024
"""Bytes of packed weights up to which all panels of a pixel row run in one task: they stay in a
level-2 cache."""

NEAR_WEIGHTS = 16 * 1024
"""Bytes of depthwise weights up to which a tile of pixels takes all channels in turn: they stay in
a level-1 cache, and lines are read from end to end."""

DEPTHWISE_PIXELS = (6, 4, 8, 12)
"""Pixels of a depthwise tile, the usual number first."""

TILES = 5
"""Register tiles, at most, that are candidates for a problem."""


@dataclass(frozen=True)
class Product:
    """A matrix product by register tiles of rows x vectors. A task takes `chunk` tiles of rows, or,
    where the reduction is cut into `blocks` (0: it is not), as `deep_gemm` divides the work."""

    rows: int
    vectors: int
    chunk: int
    blocks: int = 0


@dataclass(frozen=True)
class Direct:
    """A convolution by register tiles of pixels x vectors of channels. `shared` weights are all
    used by the task of a line; else a task takes one panel of them."""

    pixels: int
    vectors: int
    shared: bool


@dataclass(frozen=True)
class DeepDirect:
    """A convolution whose weights are taken block by block through all lines (`deep_conv`), by
    register tiles of `lines` x `pixels` x vectors of channels; `blocks` of the channels of a tap.
    """

    lines: int
    pixels: int
    vectors: int
    blocks: int


@dataclass(frozen=True)
class Winograd:
    """A convolution by F(outputs x outputs, 3 x 3), `block` tiles at a time, whose products take
    register tiles of rows x vectors."""

    outputs: int
    block: int
    rows: int
    vectors: int


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution, `pixels` of a line at a time: all channels of these pixels in turn
    (`near`), or the whole line for one vector of channels after the other."""

    pixels: int
    near: bool


def direct_plans(width: int | None, features: int, steps: int, itemsize: int,
                 registers: Registers, groups: int = 1) -> Iterator[Direct]:
    """The cost model's plan, the other sharing of weights, and other register tiles, for lines of
    `width` results and a reduction of `steps` elements of packed weights, `itemsize` bytes each, in
    every one of so many groups."""
    for number, tile in enumerate(tiles_for(width, features, registers)):
        panels = groups * ceil(features / (tile.vectors * registers.lanes))
        size = panels * tile.vectors * registers.lanes * steps * itemsize
        plan = Direct(tile.rows, tile.vectors, size <= SHARED_WEIGHTS)
        yield plan
        if number == 0 and panels > 1:
            yield replace(plan, shared=not plan.shared)


def depthwise_plans(weights: int, registers: Registers) -> Iterator[Depthwise]:
    """The usual plan and others, for packed weights of so many bytes."""
    near = weights <= NEAR_WEIGHTS
    for pixels in DEPTHWISE_PIXELS:
        if pixels + 2 <= registers.count:  # beside the accumulators a weight and a pixel
            yield from (Depthwise(pixels, near), Depthwise(pixels, not near))


def convolution_text(group: Group, root: Node) -> str:
    """The problem of a convolution, whatever its algorithm."""
    x, w = root.inputs
    assert x is not None and w is not None
    a = root.attrs
    how = "".join(f" {name}={sizes(a[name])}" for name in (
        "strides", "dilations", "low", "high"))
    return (f"{x.dtype.name}[{sizes(x.shape)}] {w.dtype.name}[{sizes(w.shape)}]{how} "
            f"fill={a['fill']} {others(group, root)}")


def tiles_for(rows: int | None, columns: int, registers: Registers,
              steps: int | None = None) -> list[Tile]:
    """The register tiles worth trying for rows x columns results, the cost model's choice first."""
    return list(dict.fromkeys([choose(rows, columns, registers, steps),
                               *distinct_tiles(rows, columns, registers, steps)]))[:TILES]


def sizes(shape: Sequence) -> str:
    """A shape as in 128x768."""
    return "x".join(text(wrap(d)) for d in shape)


def others(group: Group, root: Node) -> str:
    """What else a contraction's group does: its other operators, its results, and how many more
    tensors of the output's size it reads."""
    read = sum(v.shape == root.output.shape for v in dict.fromkeys(group.inputs)
               if v not in root.inputs)
    names = ",".join(n.op for n in group.nodes if n is not root and n.op != "constant")
    return f"with {names or 'nothing'} out={len(group.outputs)} in={read}"
