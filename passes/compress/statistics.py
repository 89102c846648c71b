"""What calibration tells of a product's left operand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Statistics:
    """Of rows [rows, K]: how many, their Gram matrix X'X [K, K], and sums and maxima of |x|
    [K], in f64.

    The Gram matrix is all that the error of a product depends on: for weights W [N, K] that become
    V, the squared error summed over the rows is the trace of (W - V) X'X (W - V)'.
    """

    width: int
    rows: int = 0
    gram: np.ndarray = field(init=False)
    magnitude: np.ndarray = field(init=False)
    largest: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.gram = np.zeros((self.width, self.width))
        self.magnitude = np.zeros(self.width)
        self.largest = np.zeros(self.width)

    def update(self, x: np.ndarray) -> None:
        """Counts the rows of f32 [..., K]."""
        rows = x.reshape(-1, self.width)
        self.rows += len(rows)
        self.gram += rows.T @ rows
        self.magnitude += np.abs(rows).sum(0, dtype=np.float64)
        self.largest = np.maximum(self.largest, np.abs(rows).max(0, initial=0))


def squared_error(difference: np.ndarray, gram: np.ndarray) -> float:
    """The squared error of a product's results, over all rows, for a difference of weights
    [N, K]."""
    return float(((difference @ gram) * difference).sum())


def relative_error(weights: np.ndarray, now: np.ndarray, gram: np.ndarray | None = None) -> float:
    """The norm of the error over that of the exact result; of the weights themselves without
    calibration."""
    difference = weights.astype(np.float64) - now
    if gram is None:
        before, after = np.square(weights, dtype=np.float64).sum(), np.square(difference).sum()
    else:
        before = squared_error(weights.astype(np.float64), gram)
        after = squared_error(difference, gram)
    return float(np.sqrt(max(after, 0) / before)) if before > 0 else 0.0
