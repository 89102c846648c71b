"""Transposed convolutions as ordinary ones.

With stride 1 a transposed convolution is an ordinary one with its weights reversed. With stride s
it computes s interleaved results along an axis, each an ordinary convolution with every s-th weight
(Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?"). Where their
channels are so few that they fill a vector together only, one convolution gives them all as
channels, which are then interleaved; its windows are as large as all phases need, with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

import numpy as np

from ...ir.expr import simplify_dim, wrap
from ...ir.graph.core import Dim, Graph, Node, Value
from ...ir.graph.ops.shapes import same
from .base import Pass, register
from .rewrite import Rule, rewrite, rule

LANES = 16
"""Channels of a vector, for the comparison of the two forms."""

MOST_PHASES = 16
"""Phases of the strides up to which each has code of its own."""


@register
@dataclass(frozen=True)
class PlainConvolutions(Pass):
    """Turns transposed convolutions into ordinary ones where that is the better form."""

    name = "plain_convolutions"

    def run(self, graph: Graph) -> bool:
        return rewrite(graph, RULES) > 0


@rule("conv_transpose")
def gather(node: Node, graph: Graph) -> Value | None:
    """conv_transpose with constant weights to conv, and the phases of the stride interleaved."""
    x, w, a = node.inputs[0], node.inputs[1], node.attrs
    if x is None or w is None or w.constant is None \
            or not all(isinstance(p, int) for p in a["low"]) or a["dtype"] not in (None, x.dtype):
        return None
    strides, window = a["strides"], w.constant.shape[2:]
    axes = [_axis(*p) for p in zip(strides, window, a["low"], a["sizes"], x.shape[2:],
                                   a["dilations"], strict=True)]
    if any(axis is None for axis in axes):
        return None
    found = [axis for axis in axes if axis is not None]
    phases, groups = prod(strides), a["groups"]
    if 1 < phases <= MOST_PHASES and (groups > 1 or not _fewer_vectors(w.constant, phases, found)):
        return None
    weights = _phase_weights(w.constant, a["groups"], strides, found)
    y = graph.add("conv", [x, graph.constant(weights)], {
        "low": tuple(axis.low for axis in found), "high": tuple(axis.high for axis in found),
        "dilations": a["dilations"], "groups": a["groups"]}, origin=node.origin)
    if prod(strides) > 1:
        y = _interleave(graph, y, node, strides)
    if not all(same(p, q) for p, q in zip(y.shape, node.output.shape, strict=True)):
        y = graph.add("slice", [y], {"starts": (0,) * y.rank, "steps": (1,) * y.rank,
                                     "sizes": node.output.shape}, origin=node.origin)
    return y


def _fewer_vectors(w: np.ndarray, phases: int, axes: Sequence[_Axis]) -> bool:
    """Whether windows of all phases together take fewer vector products than those of each."""
    features = w.shape[1]
    together = ceil(features * phases / LANES) * prod(axis.taps for axis in axes)
    return together < ceil(features / LANES) * prod(w.shape[2:])


@dataclass(frozen=True)
class _Axis:
    """One axis of a transposed convolution as an ordinary one: the number of taps, which weight k
    a phase's tap is, as (phase, tap, k), and the padding."""

    taps: int
    weights: tuple[tuple[int, int, int], ...]
    low: int
    high: int


def _axis(stride: int, window: int, low: int, size: Dim, extent: Dim,
          dilation: int) -> _Axis | None:
    if same(extent, 0):
        return None
    before, high = (window - 1) * dilation - low, simplify_dim(wrap(size) - wrap(extent) + low)
    if stride == 1 and before >= 0 and isinstance(high, int) and high >= 0:
        return _Axis(window, tuple((0, window - 1 - k, k) for k in range(window)), before, high)
    if dilation != 1:
        return None
    # Output stride * q + r takes weight k = rest + stride * j from input q + shift - j, where
    # r + low = stride * shift + rest.
    found = []
    for r in range(stride):
        shift, rest = divmod(r + low, stride)
        found += [(r, shift - j, k) for j, k in enumerate(range(rest, window, stride))]
    first = min([0, *(offset for _, offset, _ in found)])
    last = max([0, *(offset for _, offset, _ in found)])
    rows = (wrap(size) + (stride - 1)) // stride
    high = simplify_dim(rows - wrap(extent) + last)
    if not isinstance(high, int):
        return None
    return _Axis(last - first + 1, tuple((r, offset - first, k) for r, offset, k in found),
                 -first, max(high, 0))


def _phase_weights(w: np.ndarray, groups: int, strides: Sequence[int],
                   axes: list[_Axis]) -> np.ndarray:
    """[C, F / groups, window] of a transposed convolution as [F * phases, C / groups, taps]."""
    channels, features = w.shape[0] // groups, w.shape[1]
    taps = tuple(axis.taps for axis in axes)
    split = w.reshape(groups, channels, features, *w.shape[2:])
    result = np.zeros((groups, features, *strides, channels, *taps), w.dtype)
    for entries in product(*(axis.weights for axis in axes)):
        phase, tap, k = zip(*entries, strict=True)
        result[(slice(None), slice(None), *phase, slice(None), *tap)] = \
            split[(slice(None), slice(None), slice(None), *k)].transpose(0, 2, 1)
    return result.reshape(groups * features * prod(strides), channels, *taps)


def _interleave(graph: Graph, y: Value, node: Node, strides: Sequence[int]) -> Value:
    """[N, F * phases, rows...] to [N, F, rows * strides...]."""
    n, rows = len(strides), y.shape[2:]
    y = graph.add("reshape", [y], {"shape": (y.shape[0], node.output.shape[1], *strides, *rows)},
                  origin=node.origin)
    perm = [0, 1]
    for axis in range(n):
        perm += [2 + n + axis, 2 + axis]
    y = graph.add("transpose", [y], {"perm": tuple(perm)}, origin=node.origin)
    merged = [simplify_dim(wrap(d) * s) for d, s in zip(rows, strides, strict=True)]
    return graph.add("reshape", [y], {"shape": (*node.output.shape[:2], *merged)},
                     origin=node.origin)


RULES: tuple[Rule, ...] = (gather,)
