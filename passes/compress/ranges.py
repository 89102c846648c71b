"""The range of a tensor's elements that 8 bits are spread over.

Elements beyond the range become its ends; the narrower it is, the finer the steps inside. What is
best depends on how elements are distributed, of which a histogram tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

BINS = 2048
"""Bins of a histogram, as in TensorRT's calibration (Migacz 2017)."""

LEVELS = 256
"""Values of 8 bits."""

TAIL = 0.5e-4
"""Share of the elements that percentiles leave out at either end."""

SHRUNK = np.linspace(1.0, 0.2, 41)
"""Parts of the whole range that are tried."""


@dataclass
class Distribution:
    """How the elements of a tensor are distributed over several runs. The first time all runs are
    shown to `bound`, the second time to `count`."""

    low: float = 0.0
    high: float = 0.0
    zeros: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS))

    def bound(self, x: np.ndarray) -> None:
        """Widens the range, which always holds 0, to that of x."""
        if x.size:
            self.low = min(self.low, float(x.min()))
            self.high = max(self.high, float(x.max()))

    def count(self, x: np.ndarray) -> None:
        """Adds the elements to the histogram; exact zeros by themselves."""
        if self.high > self.low:
            x = x.reshape(-1)
            nonzero = x[x != 0]
            self.zeros += x.size - nonzero.size
            self.counts += np.histogram(nonzero.astype(np.float64), BINS,
                                        (self.low, self.high))[0]

    def with_zeros(self) -> np.ndarray:
        """The histogram of all elements."""
        counts = self.counts.copy()
        if self.zeros:
            width = (self.high - self.low) / BINS
            counts[min(BINS - 1, int(-self.low / width))] += self.zeros
        return counts

    @property
    def centres(self) -> np.ndarray:
        """The middles of the bins."""
        width = (self.high - self.low) / BINS
        return self.low + (np.arange(BINS) + 0.5) * width


def joined(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """The range that holds several."""
    return min(low for low, _ in parts), max(high for _, high in parts)


def parameters(low: float, high: float) -> tuple[np.float32, int]:
    """(scale, zero point) of unsigned bytes for a range that is widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / (LEVELS - 1))
    if not scale >= np.finfo(np.float32).tiny:
        return np.float32(1), 0
    return scale, int(np.clip(np.rint(-low / scale), 0, LEVELS - 1))


def whole(d: Distribution) -> tuple[float, float]:
    """From the least to the largest element."""
    return d.low, d.high


def percentile(d: Distribution) -> tuple[float, float]:
    """All but `TAIL` of the elements at either end."""
    share = np.cumsum(d.with_zeros())
    if not share[-1]:
        return whole(d)
    edges = np.linspace(d.low, d.high, BINS + 1)
    first, last = np.searchsorted(share, np.array([TAIL, 1 - TAIL]) * share[-1])
    return min(float(edges[first]), 0.0), max(float(edges[min(last, BINS - 1) + 1]), 0.0)


def least_squares(d: Distribution) -> tuple[float, float]:
    """The part of the range with the least mean squared error."""
    return _least_squares(d, d.with_zeros())


def nonzero(d: Distribution) -> tuple[float, float]:
    """The same without exact zeros, which every range holds, and which outnumber all else where
    activations are sparse (Zhou et al. 2024, "LiDAR-PTQ: Post-Training Quantization for Point Cloud
    3D Object Detection", section 3.2)."""
    return _least_squares(d, d.counts)


def _least_squares(d: Distribution, counts: np.ndarray) -> tuple[float, float]:
    used = counts > 0
    counts, x = counts[used], d.centres[used]
    best, found = np.inf, whole(d)
    for low in (d.low * SHRUNK if d.low < 0 else [0.0]):
        for high in (d.high * SHRUNK if d.high > 0 else [0.0]):
            step = (high - low) / (LEVELS - 1)
            if step <= 0:
                continue
            level = np.clip(np.rint((x - low) / step), 0, LEVELS - 1)
            error = float(counts @ np.square(low + level * step - x))
            if error < best:
                best, found = error, (float(low), float(high))
    return found


def entropy(d: Distribution) -> tuple[float, float]:
    """The part of the range that loses the least information: the least Kullback-Leibler divergence
    between the distribution, clipped, and that of its levels (Migacz 2017, "8-bit Inference with
    TensorRT")."""
    counts, x = d.with_zeros(), d.centres
    best, found = np.inf, whole(d)
    for part in SHRUNK:
        low, high = d.low * part, d.high * part
        inside = (x >= low) & (x <= high)
        reference = counts[inside].copy()
        if reference.size < LEVELS:
            break
        reference[0] += counts[x < low].sum()
        reference[-1] += counts[x > high].sum()
        level = np.arange(reference.size) * LEVELS // reference.size
        used = counts[inside] > 0
        mass = np.bincount(level, counts[inside], LEVELS)
        share = np.bincount(level, used, LEVELS)
        spread = np.where(used, mass[level] / np.maximum(share[level], 1), 0)
        divergence = _divergence(reference, spread)
        if divergence < best:
            best, found = divergence, (float(low), float(high))
    return found


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Sum of p log(p / q) of two histograms; what q lacks counts as a millionth of it."""
    if not p.sum() or not q.sum():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-6 / p.size))).sum())


RANGES: dict[str, Callable[[Distribution], tuple[float, float]]] = {
    "minmax": whole, "percentile": percentile, "mse": least_squares, "entropy": entropy,
    "nonzero": nonzero,
}
"""Ways to choose a range."""
