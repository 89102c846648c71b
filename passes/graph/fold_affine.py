"""Scales and offsets with constant values go into the constant weights beside them.

New weights are computed in f64 and rounded once. Batch normalisation after a convolution is a
scale and an offset by the time it gets here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.ops.shapes import same
from .base import Pass, register
from .rewrite import Replacement, Rule, only_user, rewrite, rule

_BLOCK = 1 << 22  # elements of weights scaled at once
_SHARED = 1 << 20  # bytes of weights that may be duplicated when something else uses them too
_CONTRACTIONS = ("conv", "conv_transpose", "matmul")


@register
@dataclass(frozen=True)
class FoldAffine(Pass):
    """Folds multiplications and additions with constants into convolutions and matrix products.

    `offsets`: whether offsets before a product move behind it too (they change where sums cancel).
    """

    name = "fold_affine"
    offsets: bool = True

    def run(self, graph: Graph) -> bool:
        rules = RULES if self.offsets else [r for r in RULES if r is not offset_before]
        return rewrite(graph, rules) > 0


def _weights(node: Node | None) -> tuple[Value, int] | None:
    """The constant weights of a contraction and which operand they are."""
    if node is None or node.op not in _CONTRACTIONS:
        return None
    for i in (1, 0):
        value = node.inputs[i]
        if value is None or value.constant is None or i == 0 and node.op != "matmul":
            continue
        if not value.dtype.is_float or node.output.dtype is not value.dtype:
            return None
        if len(value.users) > 1 and value.constant.nbytes > _SHARED:
            return None
        return value, i
    return None


def _constant(value: Value | None) -> np.ndarray | None:
    array = value.constant if value is not None else None
    return array if array is not None and value is not None and value.dtype.is_float else None


def _contraction(node: Node, i: int) -> Node | None:
    """The contraction behind input `i`, which only `node` uses and whose shape it keeps."""
    value = node.inputs[i]
    made = value.node if value is not None else None
    if made is None or value is None or made.op not in _CONTRACTIONS \
            or value.shape != node.output.shape or only_user(value) is not node:
        return None
    return made


def _along(array: np.ndarray, rank: int, axis: int) -> np.ndarray | None:
    """A constant that varies along one axis of a tensor of this rank, as a vector (or number) in
    f64; None when it varies elsewhere."""
    wide = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if any(n != 1 for a, n in enumerate(wide.shape) if a != axis):
        return None
    return wide.astype(np.float64).reshape(-1)


def _feature_axis(node: Node, side: int) -> int:
    """The axis of the output along which the weights' features run."""
    return 1 if node.op != "matmul" else node.output.rank - (1 if side == 1 else 2)


def _scaled(weights: np.ndarray, scale: np.ndarray, divide: bool = False) -> np.ndarray:
    """weights * scale (or / scale) in f64, block by block, rounded to the weights' type."""
    scale = np.broadcast_to(scale, weights.shape)
    result = np.empty(weights.shape, weights.dtype)
    rows = max(1, _BLOCK * weights.shape[0] // max(weights.size, 1)) if weights.ndim else 1
    function = np.divide if divide else np.multiply
    for start in range(0, weights.shape[0], rows):
        part = slice(start, start + rows)
        result[part] = function(weights[part].astype(np.float64), scale[part])
    return result


def _finite(before: np.ndarray, after: np.ndarray) -> bool:
    return bool(np.isfinite(after).all() or not np.isfinite(before).all())


def _with_weights(graph: Graph, node: Node, side: int, array: np.ndarray,
                  other: Value | None = None) -> Value:
    inputs = list(node.inputs)
    inputs[side] = graph.constant(array)
    if other is not None:
        inputs[1 - side] = other
    return graph.add(node.op, inputs, dict(node.attrs), origin=node.origin)


@rule("mul", "div")
def scale_after(node: Node, graph: Graph) -> Replacement:
    """product(x, W) * s to product(x, W * s), s along the features."""
    made = _contraction(node, 0)
    found, scale = _weights(made), _constant(node.inputs[1])
    if made is None or found is None or scale is None:
        return None
    weights, side = found
    array = weights.constant
    vector = _along(scale, node.output.rank, _feature_axis(made, side))
    if vector is None or array is None:
        return None
    if vector.size > 1:
        if made.op == "conv":
            vector = vector.reshape(-1, *(1,) * (array.ndim - 1))
        elif made.op == "conv_transpose":
            groups = made.attrs["groups"]
            per_group = vector.reshape(groups, 1, -1)
            channels = array.shape[0] // groups
            vector = np.broadcast_to(per_group, (groups, channels, per_group.shape[2])).reshape(
                array.shape[0], -1, *(1,) * (array.ndim - 2))
        elif side == 0:
            vector = vector.reshape(-1, 1)
    scaled = _scaled(array, vector, node.op == "div")
    return _with_weights(graph, made, side, scaled) if _finite(array, scaled) else None


@rule("conv", "matmul")
def scale_before(node: Node, graph: Graph) -> Replacement:
    """product(x * s, W) to product(x, W * s), s along the summed axis."""
    found = _weights(node)
    if found is None:
        return None
    weights, side = found
    value = node.inputs[1 - side]
    inner = value.node if value is not None else None
    array = weights.constant
    if inner is None or value is None or inner.op not in ("mul", "div") \
            or only_user(value) is not node or array is None:
        return None
    x, scale = inner.inputs[0], _constant(inner.inputs[1])
    if x is None or scale is None or x.shape != value.shape:
        return None
    axis = 1 if node.op == "conv" else value.rank - (1 if side == 1 else 2)
    vector = _along(scale, value.rank, axis)
    if vector is None:
        return None
    if vector.size > 1:
        if node.op == "conv":
            groups, features = node.attrs["groups"], array.shape[0]
            per_group = vector.reshape(groups, 1, -1)
            vector = np.broadcast_to(
                per_group, (groups, features // groups, per_group.shape[2])).reshape(
                features, -1, *(1,) * (array.ndim - 2))
        elif side == 1:
            vector = vector.reshape(-1, 1)
    scaled = _scaled(array, vector, inner.op == "div")
    return _with_weights(graph, node, side, scaled, x) if _finite(array, scaled) else None


@rule("conv", "matmul")
def offset_before(node: Node, graph: Graph) -> Replacement:
    """product(x + b, W) to product(x, W) + b W, for b along the summed axis (of a matrix with W on
    the right, or of a convolution without padding)."""
    found = _weights(node)
    if found is None or found[1] != 1:
        return None
    array, value = found[0].constant, node.inputs[0]
    inner = value.node if value is not None else None
    if array is None or inner is None or value is None or inner.op != "add" \
            or only_user(value) is not node:
        return None
    x, offset = inner.inputs[0], _constant(inner.inputs[1])
    if x is None or offset is None or x.shape != value.shape or array.nbytes > 64 * _SHARED:
        return None
    vector = _along(offset, value.rank, 1 if node.op == "conv" else value.rank - 1)
    if vector is None:
        return None
    if node.op == "matmul":
        wide = np.broadcast_to(vector, array.shape[-2:-1])
        moved = wide @ array.astype(np.float64)
        if moved.ndim > 1:
            moved = moved.reshape(*moved.shape[:-1], 1, moved.shape[-1])
    else:
        if not all(same(p, 0) for p in (*node.attrs["low"], *node.attrs["high"])):
            return None
        groups, features = node.attrs["groups"], array.shape[0]
        wide = np.broadcast_to(vector, (groups * array.shape[1],)).reshape(groups, 1, -1)
        per_feature = np.broadcast_to(wide, (groups, features // groups, array.shape[1]))
        sums = array.astype(np.float64).reshape(features, array.shape[1], -1).sum(2)
        moved = (sums * per_feature.reshape(features, -1)).sum(1)
        moved = moved.reshape(1, -1, *(1,) * (array.ndim - 2))
    rounded = moved.astype(array.dtype)
    if not np.isfinite(rounded).all():
        return None
    product = graph.add(node.op, [x, node.inputs[1]], dict(node.attrs), origin=node.origin)
    return graph.add("add", [product, graph.constant(rounded)], origin=node.origin)


def _after_product(node: Node, i: int) -> tuple[Node, np.ndarray] | None:
    """`product(...) + b` behind input `i`, which only `node` uses: (the add, b)."""
    value = node.inputs[i]
    inner = value.node if value is not None else None
    if inner is None or value is None or inner.op != "add" or only_user(value) is not node \
            or value.shape != node.output.shape:
        return None
    offset = _constant(inner.inputs[1])
    if offset is None or _weights(_contraction(inner, 0)) is None:
        return None
    return inner, offset


@rule("mul", "div")
def scale_of_offset(node: Node, graph: Graph) -> Replacement:
    """(product + b) * s to product * s + b * s."""
    inner, scale = _after_product(node, 0), _constant(node.inputs[1])
    if inner is None or scale is None:
        return None
    add, offset = inner
    made = _contraction(add, 0)
    found = _weights(made)
    if made is None or found is None or _along(
            scale, node.output.rank, _feature_axis(made, found[1])) is None:
        return None
    function = np.divide if node.op == "div" else np.multiply
    merged = function(offset.astype(np.float64), scale.astype(np.float64)).astype(offset.dtype)
    if not _finite(offset, merged):
        return None
    scaled = graph.add(node.op, [add.inputs[0], node.inputs[1]], origin=node.origin)
    return graph.add("add", [scaled, graph.constant(merged)], origin=add.origin)


@rule("add")
def offset_of_offset(node: Node, graph: Graph) -> Replacement:
    """(product + b) + c to product + (b + c)."""
    inner, offset = _after_product(node, 0), _constant(node.inputs[1])
    if inner is None or offset is None:
        return None
    add, first = inner
    merged = first.astype(np.float64) + offset.astype(np.float64)
    if merged.size > max(first.size, offset.size):
        return None
    return graph.add("add", [add.inputs[0], graph.constant(merged.astype(first.dtype))],
                     origin=add.origin)


RULES: list[Rule] = [scale_after, scale_before, offset_before, scale_of_offset, offset_of_offset]
