"""Outliers of activations stay floats (Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix
Multiplication for Transformers at Scale", section 3.2): the few channels of a product's left
operand with large elements, which would make the steps of all others wide, are multiplied with
weights of f32, the rest as bytes. Which they are is known beforehand, from data."""

from __future__ import annotations

import numpy as np

from ...ir.graph.core import Graph, Value
from .statistics import Statistics

THRESHOLD = 6.0
"""Magnitude from which on an element is an outlier, as in the paper."""

SHARE = 16
"""One channel in so many may be kept in floats; the largest are."""


def outliers(statistics: Statistics) -> np.ndarray:
    """The channels with outliers, in order."""
    largest = statistics.largest
    chosen = np.argsort(-largest, kind="stable")[:len(largest) // SHARE]
    return np.sort(chosen[largest[chosen] >= THRESHOLD])


def without(graph: Graph, left: Value, channels: np.ndarray, origin: str) -> Value:
    """A left operand [..., K] with zeros in these channels."""
    kept = np.ones(left.type.shape[-1], np.float32)  # type: ignore[arg-type]
    kept[channels] = 0
    return graph.add("mul", [left, graph.constant(kept)], origin=origin)


def product_of(graph: Graph, left: Value, weights: np.ndarray, channels: np.ndarray,
               origin: str) -> Value:
    """What these channels of the left operand add to its product with weights f32 [N, K]."""
    taken = graph.add("gather", [left, graph.constant(channels.astype(np.int64))],
                      {"axis": left.rank - 1}, origin=origin)
    right = graph.constant(np.ascontiguousarray(weights[:, channels].T))
    return graph.add("matmul", [taken, right], origin=origin)
