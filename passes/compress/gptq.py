"""GPTQ (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers"): columns are rounded one after another, and what is not yet rounded makes up for the
error as well as it can."""

from __future__ import annotations

import numpy as np

from ...ir.encoding.base import Affine
from .awq import narrowed
from .statistics import Statistics

DAMPING = 0.01
"""Share of the mean diagonal that is added to the Gram matrix, as in the paper."""

BLOCK = 128
"""Columns whose corrections are applied to the columns behind them at once."""


def gptq(weights: np.ndarray, encoding: Affine, statistics: Statistics) -> tuple[np.ndarray, ...]:
    """The arrays of `encoding` that hold weights f32 [N, K].

    Columns go by falling activations (the paper's "act-order"), with scales chosen beforehand from
    the weights as they were, so that groups stay those of consecutive elements. Ranges of groups
    are narrowed as far as that lowers their error.
    """
    k = weights.shape[1]
    scale, zero = narrowed(weights, encoding, statistics.gram)
    hessian = statistics.gram.copy()
    diagonal = np.diagonal(hessian)
    order = np.argsort(-diagonal, kind="stable")
    rest = weights.astype(np.float64)[:, order]
    silent = diagonal[order] == 0  # elements that were always 0 tell nothing of their weights
    hessian = hessian[np.ix_(order, order)]
    hessian[silent, silent] = 1
    hessian[np.arange(k), np.arange(k)] += DAMPING * float(np.mean(np.diagonal(hessian)))
    # The upper factor of the inverse: row i is how the columns behind make up for column i.
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    s = encoding.spread(scale, k)[:, order].astype(np.float64)
    z = encoding.spread(zero, k)[:, order].astype(np.float64)
    fields = np.empty(weights.shape, np.uint8)
    for first in range(0, k, BLOCK):
        last = min(first + BLOCK, k)
        errors = np.empty((weights.shape[0], last - first))
        for i in range(first, last):
            column = rest[:, i]
            field = encoding.nearest(column.astype(np.float32), s[:, i].astype(np.float32),
                                     z[:, i].astype(np.float32))
            fields[:, order[i]] = field
            error = (column - (field - z[:, i]) * s[:, i]) / inverse[i, i]
            rest[:, i:last] -= np.outer(error, inverse[i, i:last])
            errors[:, i - first] = error
        rest[:, last:] -= errors @ inverse[first:last, last:]
    return encoding.store(fields, scale, zero)
