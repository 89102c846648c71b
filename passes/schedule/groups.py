"""How the groups of a convolution fill vectors, and the inner step where several share one.

Groups of many results take vectors of their own. Of narrow groups as many as fit share a vector:
with f32, a vector of input channels is spread over the lanes by shuffles, channel c of its group
to every lane of the group, so that each product is one that the convolution has. Integers, whose
products with zeros are exact, take the groups of a vector as one with zeros between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.expr import Expr, op, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import shuffle
from ...ir.kernel.nodes import Buffer, load
from .dot import Dot
from .tiles import Tile


@dataclass(frozen=True)
class Groups:
    """`count` groups of `channels` inputs and `features` results each, of which `together` make one
    block of vectors; `shuffled` when their inputs are spread by shuffles."""

    count: int
    channels: int
    features: int
    together: int
    shuffled: bool

    @property
    def blocks(self) -> int:
        return -(-self.count // self.together)

    @property
    def rest(self) -> int:
        """Groups of the last block when it is not full, else 0."""
        return self.count % self.together

    def steps(self, dot: Dot) -> int:
        """Steps of one tap."""
        if self.shuffled:
            return self.channels
        return -(-self.together * self.channels // dot.group)

    def picks(self, channel: int, lanes: int) -> list[int]:
        """The element of two vectors of a block's inputs that each lane multiplies."""
        used = [lane // self.features * self.channels + channel
                for lane in range(self.together * self.features)]
        return used + [used[-1]] * (lanes - len(used))


def share_vectors(dot: Dot, lanes: int, count: int, channels: int, features: int) -> Groups:
    """How these groups fill vectors of `lanes`."""
    fitting = max(1, min(lanes // features, count))
    if dot.floats:
        # A shuffle takes its lanes out of two vectors.
        fitting = max(1, min(fitting, 2 * lanes // channels))
        return Groups(count, channels, features, fitting, fitting > 1)
    whole = next(n for n in range(fitting, 0, -1) if count % n == 0)
    return Groups(count, channels, features, whole, False)


def pack_groups(dot: Dot, groups: Groups, weights: np.ndarray, width: int, merged: bool,
                ) -> np.ndarray:
    """[count, features, channels, window...] to [blocks, panels, taps, steps, width]; `merged`
    joins the taps of a line to one run."""
    n, count, (f, c, *size) = groups.together, groups.count, weights.shape[1:]
    padded = np.zeros((groups.blocks * n, *weights.shape[1:]), weights.dtype)
    padded[:count] = weights
    split = padded.reshape(groups.blocks, n, f, c, -1)
    if groups.shuffled:
        lanes = np.zeros((groups.blocks, split.shape[-1], c, width), weights.dtype)
        lanes[..., :n * f] = split.transpose(0, 4, 3, 1, 2).reshape(*lanes.shape[:3], n * f)
        return lanes[:, None]
    dense = np.zeros((groups.blocks, split.shape[-1], n, c, n, f), weights.dtype)
    for k in range(n):
        dense[:, :, k, :, k] = split[:, k].transpose(0, 3, 2, 1)
    runs = int(np.prod(size[:-1])) if merged else split.shape[-1]
    if not dense.size:
        return np.zeros((groups.blocks, -(-n * f // width), 0, 0, width), dot.packed.numpy)
    return dot.pack(dense.reshape(groups.blocks, runs, -1, n * f), width)


def accumulate_shuffled(b: Builder, acc: Buffer, dot: Dot, groups: Groups, tile: Tile, lanes: int,
                        left: Callable[[int], tuple[Buffer, Expr]], packed: Buffer, weight: Expr,
                        held: int, rows: Sequence[int] | None = None) -> None:
    """acc += one tap of a block with `held` groups: `left(r)` is row r's buffer and the position of
    the block's first channel, `weight` the position of the tap in `packed`."""
    whole = held * groups.channels
    for channel in range(groups.channels):
        picks = groups.picks(channel, lanes)
        column = b.let("w", dot.column(packed, weight + channel * lanes, lanes))
        for r in range(tile.rows) if rows is None else rows:
            buffer, at = left(r)
            parts = [load(buffer, (at + start,), lanes,
                          None if start + lanes <= whole else wrap(max(whole - start, 0)))
                     for start in (0, lanes) if start < groups.together * groups.channels]
            row = parts[0] if picks == list(range(lanes)) else shuffle(parts[0], parts[-1], picks)
            b.store(acc, (r, 0), op("fma", row, column, acc[r, 0]))
