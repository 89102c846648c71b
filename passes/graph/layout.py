"""Layout assignment: spatial operators work on channels-last tensors.

Channels-last keeps a pixel's channels contiguous, so one register tile of pixels x channels reads
its input by broadcasts and its packed weights by vectors, channel concatenation and splitting are
strided views, and no channel count needs padding (blocked layouts do). Transposes put in here
meet and cancel in `sink_transposes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.ops.channels_last import SPATIAL, SUFFIX
from ...ir.graph.ops.shapes import same
from .base import Pass, register
from .rewrite import own_graphs, producer


def last_permutation(rank: int) -> tuple[int, ...]:
    """From [N, C, spatial...] to [N, spatial..., C]."""
    return (0, *range(2, rank), 1)


def first_permutation(rank: int) -> tuple[int, ...]:
    """From [N, spatial..., C] to [N, C, spatial...]."""
    return (0, rank - 1, *range(1, rank - 1))


@register
@dataclass(frozen=True)
class ChannelsLast(Pass):
    """Rewrites convolutions and pooling to their channels-last forms between transposes.

    A channel shuffle (a reshape that splits the channels, a transpose of the parts, a reshape back)
    becomes the same on the last axis. A 1x1 convolution becomes a matrix product.
    """

    name = "channels_last"

    def run(self, graph: Graph) -> bool:
        modified = False
        for home in own_graphs(graph):
            for node in home.ordered():
                result = None
                if node.op in SPATIAL:
                    result = _convert(home, node)
                elif node.op == "reshape":
                    result = _channel_shuffle(home, node)
                if result is not None:
                    home.replace(node.output, result)
                    home.erase(node)
                    modified = True
        return modified


def _convert(graph: Graph, node: Node) -> Value | None:
    x = node.inputs[0]
    assert x is not None
    if x.dtype.name not in ("f32", "i8", "u8", "i32") and (x.dtype.name, node.op) != (
            "bf16", "conv"):
        return None
    rank = x.rank
    last = graph.add("transpose", [x], {"perm": last_permutation(rank)}, origin=node.origin)
    if node.op == "conv" and _is_pointwise(node):
        w = node.inputs[1]
        assert w is not None and w.constant is not None
        matrix = np.ascontiguousarray(w.constant.reshape(w.constant.shape[:2]).T)
        y = graph.add("matmul", [last, graph.constant(matrix)], {"dtype": node.attrs["dtype"]},
                      origin=node.origin, name=node.output.name)
    else:
        y = graph.add(node.op + SUFFIX, [last, *node.inputs[1:]], dict(node.attrs),
                      origin=node.origin, name=node.output.name)
    return graph.add("transpose", [y], {"perm": first_permutation(rank)}, origin=node.origin)


def _is_pointwise(node: Node) -> bool:
    a, w = node.attrs, node.inputs[1]
    return (w is not None and w.constant is not None and a["groups"] == 1
            and all(same(d, 1) for d in w.shape[2:]) and all(s == 1 for s in a["strides"])
            and all(same(p, 0) for p in (*a["low"], *a["high"])))


def _channel_shuffle(graph: Graph, node: Node) -> Value | None:
    """[N, C, spatial...] through [N, groups, C / groups, spatial...], parts swapped."""
    swap = producer(node, 0, "transpose")
    split = None if swap is None else producer(swap, 0, "reshape")
    x = None if split is None else split.inputs[0]
    if swap is None or x is None or x.rank < 4:
        return None
    rank, out, middle = x.rank, node.output, swap.inputs[0]
    assert middle is not None
    if out.shape != x.shape or middle.rank != rank + 1 \
            or tuple(swap.attrs["perm"]) != (0, 2, 1, *range(3, rank + 1)) \
            or not same(middle.shape[0], x.shape[0]) \
            or not all(same(a, b) for a, b in zip(middle.shape[3:], x.shape[2:], strict=True)):
        return None
    groups, parts = middle.shape[1:3]
    lead = (x.shape[0], *x.shape[2:])
    y = graph.add("transpose", [x], {"perm": last_permutation(rank)}, origin=node.origin)
    y = graph.add("reshape", [y], {"shape": (*lead, groups, parts)}, origin=node.origin)
    y = graph.add("transpose", [y], {"perm": (*range(rank - 1), rank, rank - 1)},
                  origin=node.origin)
    y = graph.add("reshape", [y], {"shape": (*lead, x.shape[1])}, origin=node.origin,
                  name=node.output.name)
    return graph.add("transpose", [y], {"perm": first_permutation(rank)}, origin=node.origin)
