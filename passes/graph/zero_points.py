"""Integer products read their 8-bit operands directly.

An affine-quantised product is (x - zx) times w. Written as x times w minus zx times the sum of w,
the left operand stays 8 bits wide, and the second term is a constant per output channel (Jacob et
al. 2018, section 2.3). Exact in wrapping i32 arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Const
from ...ir.graph.core import Graph, Node, Value
from .base import Pass, register
from .rewrite import Rule, rewrite, rule


def _source(value: Value | None) -> tuple[Value, int] | None:
    """(x, c) when the value is cast(x to i32) + c for an 8-bit x and a known number c."""
    if value is None or value.node is None:
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


@rule("conv", "matmul")
def narrow_operand(node: Node, graph: Graph) -> Value | None:
    """product(cast(x) + c, w) to product(x, w) + c * sum(w)."""
    found, w = _source(node.inputs[0]), node.inputs[1]
    if found is None or w is None or w.constant is None or w.dtype is not dt.i8 \
            or node.output.dtype is not dt.i32:
        return None
    x, offset = found
    if not x.dtype.min <= -offset <= x.dtype.max:
        return None
    weights = w.constant.astype(np.int64)
    attrs = dict(node.attrs)
    if node.op == "conv":
        attrs["fill"] = -offset + attrs["fill"]
        total = weights.sum(axis=tuple(range(1, weights.ndim)))
        correction = (total * offset).reshape(1, -1, *(1,) * (weights.ndim - 2))
    else:
        correction = weights.sum(axis=-2, keepdims=True) * offset
        if weights.ndim == 2:
            correction = correction.reshape(-1)
    product = graph.add(node.op, [x, w], attrs, origin=node.origin)
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


RULES: tuple[Rule, ...] = (narrow_operand, merge_biases)


@register
@dataclass(frozen=True)
class ZeroPoints(Pass):
    """Moves zero points out of integer products, into their biases."""

    name = "zero_points"

    def run(self, graph: Graph) -> bool:
        return rewrite(graph, RULES) > 0
