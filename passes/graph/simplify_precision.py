"""Rules that move data in its narrowest type: quantise before movement, dequantise after it. Exact.
"""

from __future__ import annotations

from ...ir.graph.core import Graph, Node, Value
from .fuse import is_scalar_constant
from .rewrite import Replacement, only_user, producer, rule, scalar
from .simplify_movement import behind_anchor

_MOST_OPERANDS = 16


def _alone(node: Node) -> bool:
    """An elementwise node whose other operands are single numbers."""
    return node.attrs.get("mode", "value") == "value" and node.inputs[0] is not None and \
        node.inputs[0].shape == node.output.shape and all(
            v is not None and is_scalar_constant(v) for v in node.inputs[1:])


def _changed(graph: Graph, node: Node, x: Value | None) -> Value:
    """The elementwise node applied to another value."""
    return graph.add(node.op, [x, *node.inputs[1:]], dict(node.attrs), origin=node.origin)


@rule("quantize", "cast")
def narrow_before_movement(node: Node, graph: Graph) -> Replacement:
    """quantize(transpose(x)) to transpose(quantize(x)); also for casts to smaller types, and for
    reshape and concat."""
    moved = producer(node, 0, "reshape", "transpose", "concat")
    if moved is None or not _alone(node) or only_user(moved.output) is not node \
            or len(moved.inputs) > _MOST_OPERANDS \
            or node.output.dtype.itemsize >= moved.output.dtype.itemsize:
        return None
    return graph.add(moved.op, [_changed(graph, node, x) for x in moved.inputs],
                     dict(moved.attrs), origin=moved.origin)


@rule("reshape", "slice")
def widen_after_movement(node: Node, graph: Graph) -> Replacement:
    """slice(dequantize(x)) to dequantize(slice(x)); also for casts from one byte. (Transposes only
    ever move down.)"""
    wide = producer(node, 0, "dequantize", "cast")
    x = wide.inputs[0] if wide is not None else None
    if wide is None or x is None or not _alone(wide) or only_user(wide.output) is not node:
        return None
    if x.dtype.itemsize > 1 or wide.output.dtype.itemsize == 1:
        return None
    if node.op == "reshape" and behind_anchor(x):  # elementwise_before_reshape takes it back
        return None
    moved = graph.add(node.op, [x], dict(node.attrs), origin=node.origin)
    return _changed(graph, wide, moved)


@rule("quantize")
def quantised_again(node: Node, graph: Graph) -> Replacement:
    """quantize(dequantize(x)) with the same scale and zero is x: rounding takes back the error of
    dividing by the scale again."""
    inner = producer(node, 0, "dequantize")
    x = inner.inputs[0] if inner is not None else None
    if inner is None or x is None or x.dtype is not node.attrs["to"] or x.dtype.bits > 16:
        return None
    scale, zero = scalar(node.inputs[1]), scalar(node.inputs[2])
    before = scalar(inner.inputs[2]) if len(inner.inputs) > 2 and inner.inputs[1] else 0
    if scale is None or zero is None or before is None \
            or scale != scalar(inner.inputs[-1]) or zero != before:
        return None
    return x if x.shape == node.output.shape else None


RULES = [quantised_again, narrow_before_movement, widen_after_movement]
