"""Constant weights kept in 16 bits: rounded here, widened again by the kernel that reads them.

Only what is stored changes. Products and convolutions multiply f32 by the rounded weights, which
f32 holds exactly, so a kernel errs as one of f32 does whose weights are those. Rows that are
gathered from a table are widened behind the gather.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import ModelError
from ...ir import dtype as dt
from ...ir.dtype import ALL, DType
from ...ir.graph.core import Graph, Node, Value
from .base import Pass, register
from .rewrite import own_graphs

WEIGHTS = {"matmul": 1, "conv": 1, "conv_last": 1, "conv_transpose": 1, "conv_transpose_last": 1,
           "gather": 0}
"""Operators that read weights, and which of their operands that is."""

LEAST_TABLE = 2**18
"""Elements from which on a table that rows are gathered from is taken for an embedding. Small ones
may be sines of positions or corners of boxes, which are no weights."""


@register
@dataclass(frozen=True)
class StoreWeights(Pass):
    """Keeps the constant f32 weights of products, convolutions and gathers as `dtype`, bf16 or f16,
    to nearest even.

    Convolutions of one input channel a group, whose weights are few, and small tables are left as
    they are. Raises ModelError for a finite number that rounding would make infinite.
    """

    name = "store_weights"
    dtype: str = "bf16"

    def run(self, graph: Graph) -> bool:
        kind = ALL[self.dtype]
        rounded: dict[tuple[Graph, Value], Value] = {}
        modified = False
        for home in own_graphs(graph):
            for node in home.ordered():
                place = WEIGHTS.get(node.op)
                weights = None if place is None else node.inputs[place]
                if weights is None or weights.constant is None or weights.dtype is not dt.f32:
                    continue
                why = _refusal(node, weights.constant)
                name = f"{node.op} ({node.origin})" if node.origin else node.op
                self.notes.append(f"{name}: weights {f'stay f32: {why}' if why else f'as {kind}'}")
                if why:
                    continue
                if (home, weights) not in rounded:
                    rounded[home, weights] = home.constant(
                        _rounded(weights.constant, kind, name))
                _replace(home, node, rounded[home, weights])
                modified = True
        return modified


def _refusal(node: Node, weights: np.ndarray) -> str:
    """Why weights stay f32; "" when they do not."""
    if node.op == "gather":
        if node.attrs["axis"] != 0 or weights.ndim < 2 or weights.size < LEAST_TABLE:
            return "it is no large table of rows"
    elif node.output.dtype is not dt.f32 or any(
            v is None or v.dtype is not dt.f32 for v in node.inputs):
        return "its other types are not f32"
    elif node.op != "matmul" and _channels(node, weights) == 1:
        return "it has one input channel a group"
    return ""


def _channels(node: Node, weights: np.ndarray) -> int:
    """Input channels of a group of a convolution."""
    if node.op.startswith("conv_transpose"):
        return weights.shape[0] // node.attrs["groups"]
    return weights.shape[1]


def _rounded(weights: np.ndarray, kind: DType, layer: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = weights.astype(kind.numpy)
    lost = np.isinf(rounded) & np.isfinite(weights)
    if lost.any():
        raise ModelError(f"{layer}: the weight {weights[lost][0]:g} is too large to be kept as "
                         f"{kind}: compile with another precision")
    return rounded


def _replace(graph: Graph, node: Node, weights: Value) -> None:
    place = WEIGHTS[node.op]
    inputs = [weights if i == place else v for i, v in enumerate(node.inputs)]
    origin, name = node.origin, node.output.name
    if node.op == "gather":
        rows = graph.add("gather", inputs, dict(node.attrs), origin=origin)
        result = graph.add("cast", [rows], {"to": dt.f32}, origin=origin, name=name)
    else:
        result = graph.add(node.op, inputs, {**node.attrs, "dtype": dt.f32}, origin=origin,
                           name=name)
    graph.replace(node.output, result)
    graph.erase(node)
