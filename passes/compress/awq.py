"""AWQ (Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and
Acceleration"): weights of inputs that are large are made larger before rounding, and the inputs
smaller; then each group's range is narrowed as far as that lowers the error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir.encoding.base import Affine, in_groups
from ...ir.encoding.integer import Integers
from .statistics import Statistics, squared_error

STEPS = 20
"""Exponents between 0 and 1 that are tried."""

NARROWED = tuple(1 - 0.05 * k for k in range(1, 11))
"""Shares of a group's range that are tried."""


def smoothing(layers: Sequence[np.ndarray], encoding: Affine,
              statistics: Statistics) -> np.ndarray | None:
    """The factors f32 [K] that weights [N, K] of all layers with one left operand are multiplied by
    before rounding, and the operand divided by; None where none lowers the error.

    Factors are powers of the mean magnitudes, and the power is what a grid search finds.
    """
    mean = statistics.magnitude / max(statistics.rows, 1)
    if not (mean > 0).any():
        return None
    mean = np.maximum(mean, mean[mean > 0].min())
    best, chosen = _error(layers, encoding, statistics, None), None
    for step in range(1, STEPS + 1):
        factors = mean ** (step / STEPS)
        factors = (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)
        error = _error(layers, encoding, statistics, factors)
        if error < best:
            best, chosen = error, factors
    return chosen


def _error(layers: Sequence[np.ndarray], encoding: Affine, statistics: Statistics,
           factors: np.ndarray | None) -> float:
    total = 0.0
    for weights in layers:
        k = weights.shape[1]
        wide = weights if factors is None else weights * factors
        now = encoding.unpack(encoding.pack(wide), k)
        now = now if factors is None else now / factors
        total += squared_error(weights.astype(np.float64) - now, statistics.gram)
    return total


def awq(weights: np.ndarray, encoding: Affine, gram: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays of `encoding` that hold weights f32 [N, K], smoothed before."""
    scale, zero = narrowed(weights, encoding, gram)
    return encoding.store(encoding.fields(weights, scale, zero), scale, zero) \
        if isinstance(encoding, Integers) else encoding.pack(weights)


def narrowed(weights: np.ndarray, encoding: Affine,
             gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero) [N, groups] for weights f32 [N, K], each group's range narrowed to the share
    that has the least error of its own; `gram` [K, K] is that of the operand they are multiplied
    with. Encodings that are no integers keep their own."""
    scale, zero = encoding.parameters(weights)
    if not isinstance(encoding, Integers):
        return scale, zero
    best = _group_errors(weights, encoding, scale, zero, gram)
    widest, split = scale, in_groups(weights, *encoding.grouping(weights.shape[1]))
    for share in NARROWED:
        if encoding.zeros:
            other = encoding.covering(split.min(-1, initial=0) * np.float32(share),
                                      split.max(-1, initial=0) * np.float32(share))
        else:
            other = encoding.stored(widest * np.float32(share)), zero
        errors = _group_errors(weights, encoding, *other, gram)
        better = errors < best
        best = np.where(better, errors, best)
        scale, zero = np.where(better, other[0], scale), np.where(better, other[1], zero)
    return scale, zero


def _group_errors(weights: np.ndarray, encoding: Integers, scale: np.ndarray, zero: np.ndarray,
                  gram: np.ndarray) -> np.ndarray:
    """The squared error [N, groups] that each group makes by itself."""
    k = weights.shape[1]
    _, group = encoding.grouping(k)
    difference = weights - encoding.values(encoding.fields(weights, scale, zero), scale, zero)
    result = np.empty(scale.shape)
    for g in range(scale.shape[1]):
        part = slice(g * group, min((g + 1) * group, k))
        of_group = difference[:, part].astype(np.float64)
        result[:, g] = ((of_group @ gram[part, part]) * of_group).sum(-1)
    return result
