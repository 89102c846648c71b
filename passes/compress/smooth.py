"""SmoothQuant (Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization
for Large Language Models"): channels with large activations are divided by what their weights are
multiplied by, so that both can be rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.graph.core import Graph, Value
from .static import Layer, replace_input

STRENGTH = 0.5
"""How much of the difficulty goes from activations to weights (alpha), as in the paper."""


def smooth(graph: Graph, layers: Sequence[Layer], largest: Mapping[Value, np.ndarray]) -> None:
    """Smooths the left operands of matrix products, for which `largest` holds the largest magnitude
    [K] of each channel. Products with one left operand share their factors."""
    by_left: dict[Value, list[Layer]] = {}
    for layer in layers:
        if not layer.is_conv:
            by_left.setdefault(layer.left, []).append(layer)
    for left, readers in by_left.items():
        if left not in largest:  # without an element in any sample
            continue
        factors = _factors(largest[left], [layer.weights for layer in readers])
        node = left.node
        origin = node.origin if node is not None else ""
        less = graph.add("mul", [left, graph.constant((1 / factors).astype(np.float32))],
                         origin=origin)
        for layer in readers:
            weights = layer.weights * factors[:, None]
            replace_input(layer.node, 0, less)
            replace_input(layer.node, 1, graph.constant(weights.astype(np.float32)))


def _factors(largest: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """What channels [K] are divided by; 1 for those of which nothing is known."""
    of_weights = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    known = (largest > 0) & (of_weights > 0)
    factors = np.where(known, largest, 1) ** STRENGTH / np.where(known, of_weights, 1) ** (
        1 - STRENGTH)
    factors = np.where(known, factors, 1)
    return (factors / np.sqrt(factors.max() * factors.min())).astype(np.float64)
