"""Coordinate descent on the rounding (QuantEase, Behdin et al. 2023, "QuantEase: Optimization-based
Quantization for Language Models"), in turns with the scales that fit the rounded weights best."""

from __future__ import annotations

import numpy as np

from ...ir.encoding.base import Affine
from .gptq import gptq
from .statistics import Statistics

SWEEPS = 4
"""Rounds over all columns; later ones change next to nothing."""

DAMPING = 0.001
"""Share of the mean diagonal that is added to the Gram matrix."""


def descent(weights: np.ndarray, encoding: Affine,
            statistics: Statistics) -> tuple[np.ndarray, ...]:
    """The arrays of `encoding` that hold weights f32 [N, K], from where GPTQ ends: each column in
    turn takes the fields that are best with all others as they are."""
    k = weights.shape[1]
    stored, scale, zero = encoding.split(gptq(weights, encoding, statistics), k)
    fields = stored.astype(np.float64)
    gram = statistics.gram.copy()
    gram[np.arange(k), np.arange(k)] += max(DAMPING * float(np.mean(np.diagonal(gram))), 1e-12)
    wanted = weights.astype(np.float64)
    z = encoding.spread(zero, k).astype(np.float64)
    for _ in range(SWEEPS):
        scale = fitting_scales(wanted, fields - z, encoding, gram, scale)
        s = encoding.spread(scale, k).astype(np.float64)
        # The gradient of the squared error, halved, by the weights that are.
        slope = (wanted - (fields - z) * s) @ gram
        for i in range(k):
            target = (fields[:, i] - z[:, i]) * s[:, i] + slope[:, i] / gram[i, i]
            best = encoding.nearest(target.astype(np.float32), s[:, i].astype(np.float32),
                                    z[:, i].astype(np.float32))
            slope -= np.outer((best - fields[:, i]) * s[:, i], gram[i])
            fields[:, i] = best
    return encoding.store(fields.astype(np.uint8), scale, zero)


def fitting_scales(wanted: np.ndarray, steps: np.ndarray, encoding: Affine, gram: np.ndarray,
                   before: np.ndarray) -> np.ndarray:
    """The scales f32 [N, groups] with the least error for fields less zero points [N, K]: a linear
    least-squares problem for each row, whose unknowns are its scales."""
    n, k = wanted.shape
    groups, group = encoding.grouping(k)
    moments = np.empty((n, groups, groups))
    sides = np.empty((n, groups))
    for g in range(groups):
        part = slice(g * group, min((g + 1) * group, k))
        seen = steps[:, part] @ gram[part]  # [N, K]
        sides[:, g] = (seen * wanted).sum(-1)
        weighted = seen * steps
        for other in range(groups):
            inside = slice(other * group, min((other + 1) * group, k))
            moments[:, g, other] = weighted[:, inside].sum(-1)
    # Groups whose fields all are zero points have no scale to find: it stays.
    empty = np.diagonal(moments, axis1=1, axis2=2) == 0
    moments[:, np.arange(groups), np.arange(groups)] += np.where(
        empty, 1, 1e-9 * np.trace(moments, axis1=1, axis2=2)[:, None])
    fitted = np.linalg.solve(moments, sides[..., None])[..., 0].astype(np.float32)
    return encoding.stored(np.where(empty | ~np.isfinite(fitted), before, fitted))
