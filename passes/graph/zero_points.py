"""Integer products read their 8-bit operands directly.

An affine-quantised product is (x - zx) times w. Written as x times w minus zx times the sum of w,
the left operand stays 8 bits wide, and the second term is a constant per output channel (Jacob et
al. 2018, section 2.3). Exact in wrapping i32 arithmetic.

Machines multiply unsigned left with signed right bytes (vpdpbusd). A signed left operand is the
unsigned x + 128 with a zero point 128 higher. Weights are bytes again once their zero points are
subtracted, where they fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Const
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.ops.shapes import same
from .base import Pass, register
from .rewrite import Rule, producer, rewrite, rule

HALF = 128
"""What the lowest signed byte lacks to zero."""


def _source(value: Value | None) -> tuple[Value, int] | None:
    """(x, c) when the value is cast(x to i32) + c, or x itself, for an 8-bit x and a known c."""
    if value is None:
        return None
    if value.dtype in (dt.u8, dt.i8):
        return value, 0
    if value.node is None:
        return None
    node, offset = value.node, 0
    if node.op == "add":
        number = node.inputs[1]
        if number is None or number.content is None or number.content.size != 1:
            return None
        element = number.content.reshape(-1)[0]
        if not isinstance(element, Const) or number.rank > value.rank:
            return None
        offset = element.value
        inner = node.inputs[0]
        if inner is None or inner.node is None:
            return None
        node = inner.node
    if node.op != "cast" or node.inputs[0] is None or node.attrs["to"] is not dt.i32 \
            or node.attrs["mode"] != "value":
        return None
    x = node.inputs[0]
    return (x, offset) if x.dtype in (dt.u8, dt.i8) else None


def _is_integer_product(node: Node) -> bool:
    w = node.inputs[1]
    return w is not None and w.constant is not None and node.output.dtype is dt.i32


@rule("conv", "matmul")
def narrow_weights(node: Node, graph: Graph) -> Value | None:
    """product(x, w) with weights of a wider type, all of which are signed bytes."""
    x, w = node.inputs
    if not _is_integer_product(node) or x is None or w is None or w.constant is None \
            or w.dtype is dt.i8 or not w.dtype.is_integer or w.constant.size == 0 \
            or w.constant.min() < dt.i8.min or w.constant.max() > dt.i8.max:
        return None
    return graph.add(node.op, [x, graph.constant(w.constant.astype(np.int8))], dict(node.attrs),
                     origin=node.origin)


@rule("conv", "matmul")
def narrow_operand(node: Node, graph: Graph) -> Value | None:
    """product(cast(x) + c, w) to product(x, w) + c * sum(w)."""
    found, w = _source(node.inputs[0]), node.inputs[1]
    if found is None or w is None or w.constant is None or w.dtype is not dt.i8 \
            or not _is_integer_product(node) or found[0] is node.inputs[0]:
        return None
    x, offset = found
    return less_constant(node, graph, x, w.constant, offset) \
        if x.dtype.min <= -offset <= x.dtype.max else None


@rule("matmul")
def narrow_operand_less_zero(node: Node, graph: Graph) -> Value | None:
    """product(cast(x) - z, w) to product(x, w) - z * sum(w) for a zero point z that only a run
    knows, one or one for each row."""
    less, w = node.inputs[0].node if node.inputs[0] is not None else None, node.inputs[1]
    if less is None or less.op != "sub" or w is None or w.constant is None \
            or w.dtype is not dt.i8 or w.rank != 2 or not _is_integer_product(node):
        return None
    found, zero = _source(less.inputs[0]), less.inputs[1]
    if found is None or zero is None or found[1] or found[0].shape != less.output.shape \
            or zero.dtype is not dt.i32 or (zero.rank and not same(zero.shape[-1], 1)):
        return None
    product = graph.add(node.op, [found[0], w], dict(node.attrs), origin=node.origin)
    sums = w.constant.astype(np.int64).sum(axis=0).astype(np.int32)
    correction = graph.add("mul", [zero, graph.constant(sums)], origin=node.origin)
    return graph.add("sub", [product, correction], origin=node.origin)


def _as_i16(graph: Graph, value: Value, origin: str) -> Value | None:
    """An 8-bit tensor, less a zero point of its type or not, in i16; None for anything else."""
    node = value.node
    if value.dtype in (dt.u8, dt.i8):
        return graph.add("cast", [value], {"to": dt.i16}, origin=origin)
    found = _source(value)
    if found is not None:
        x, offset = found
        wide = graph.add("cast", [x], {"to": dt.i16}, origin=origin)
        if not offset:
            return wide
        return graph.add("add", [wide, graph.constant(np.int16(offset))], origin=origin) \
            if x.dtype.min <= -offset <= x.dtype.max else None
    if node is None or node.op != "sub" or node.inputs[0] is None:
        return None
    x, zero = _source(node.inputs[0]), producer(node, 1, "cast")
    if x is None or x[1] or zero is None or zero.inputs[0] is None \
            or zero.inputs[0].dtype is not x[0].dtype or zero.attrs["mode"] != "value":
        return None
    parts = [graph.add("cast", [v], {"to": dt.i16}, origin=origin) for v in (x[0], zero.inputs[0])]
    return graph.add("sub", parts, origin=origin)


@rule("matmul")
def product_of_i16(node: Node, graph: Graph) -> Value | None:
    """product(x - zx, y - zy) of two 8-bit tensors that only a run knows to a product of i16, in
    which the differences are exact. Unsigned x and signed y without zero points stay bytes."""
    x, y = node.inputs
    if x is None or y is None or node.output.dtype is not dt.i32 or x.constant is not None \
            or y.constant is not None or (x.dtype, y.dtype) == (dt.u8, dt.i8) \
            or dt.i16 in (x.dtype, y.dtype):
        return None
    left, right = _as_i16(graph, x, node.origin), _as_i16(graph, y, node.origin)
    if left is None or right is None:
        return None
    return graph.add("matmul", [left, right], dict(node.attrs), origin=node.origin)


@rule("conv", "matmul")
def unsigned_operand(node: Node, graph: Graph) -> Value | None:
    """product(x, w) of a signed x to product(x + 128, w) - 128 * sum(w). Depthwise convolutions,
    which widen their operands, are left as they are."""
    x, w = node.inputs
    if x is None or w is None or w.constant is None or x.dtype is not dt.i8 \
            or w.dtype is not dt.i8 or not _is_integer_product(node) \
            or (node.op == "conv" and w.shape[1] == 1 and node.attrs["groups"] > 1):
        return None
    wide = graph.add("cast", [x], {"to": dt.i32}, origin=node.origin)
    moved = graph.add("add", [wide, graph.constant(np.int32(HALF))], origin=node.origin)
    moved = graph.add("cast", [moved], {"to": dt.u8}, origin=node.origin)
    return less_constant(node, graph, moved, w.constant, -HALF)


def less_constant(node: Node, graph: Graph, x: Value, w: np.ndarray, offset: int) -> Value:
    """What product(x + offset, w) is, as product(x, w) + offset * sum(w), with the attributes of
    `node`; where a convolution pads x + offset by some value, it pads x by that less the offset."""
    weights = w.astype(np.int64)
    attrs = dict(node.attrs)
    if node.op == "conv":
        attrs["fill"] = -offset + attrs["fill"]
        total = weights.sum(axis=tuple(range(1, weights.ndim)))
        correction = (total * offset).reshape(1, -1, *(1,) * (weights.ndim - 2))
    else:
        correction = weights.sum(axis=-2, keepdims=True) * offset
        if weights.ndim == 2:
            correction = correction.reshape(-1)
    product = graph.add(node.op, [x, graph.constant(w)], attrs, origin=node.origin)
    if not correction.any():
        return product
    return graph.add("add", [product, graph.constant(correction.astype(np.int32))],
                     origin=node.origin)


@rule("add")
def merge_biases(node: Node, graph: Graph) -> Value | None:
    """(x + constant) + constant of integers to x + constant, for constants of any shape."""
    inner, outer = node.inputs
    if inner is None or outer is None or outer.constant is None or inner.node is None \
            or inner.node.op != "add" or not node.output.dtype.is_integer:
        return None
    x, first = inner.node.inputs
    if x is None or first is None or first.constant is None or x.shape != node.output.shape:
        return None
    return graph.add("add", [x, graph.constant(first.constant + outer.constant)],
                     origin=node.origin)


RULES: tuple[Rule, ...] = (narrow_weights, narrow_operand, narrow_operand_less_zero,
                           product_of_i16, merge_biases)


@register
@dataclass(frozen=True)
class ZeroPoints(Pass):
    """Moves zero points out of integer products, into their biases. `unsigned` makes signed left
    operands unsigned ones."""

    name = "zero_points"
    unsigned: bool = False

    def run(self, graph: Graph) -> bool:
        return rewrite(graph, (*RULES, unsigned_operand) if self.unsigned else RULES) > 0
