"""Graphs' outputs with the magnitudes that their roundings are relative to."""

from __future__ import annotations

import numpy as np
from cpu.native_graphs import Cases

from smelt.ir.graph.core import Value


def layer_norm(c: Cases, x: Value, *parameters: Value, axis: int) -> None:
    """Adds a layer norm over the axes from `axis` on as an output; operands are inputs.

    With the unit of rounding u, a mean of n numbers in at least four partial sums errs by up to
    (n / 4 + 3) u mean|x| (Higham 2002, section 4.2), which the deviations x - mean inherit; the
    deviations' own squares are summed so again, and a root halves the error of that. So results err
    by up to (n / 4 + 10) u of the terms' magnitudes |scale| (|x - mean| + mean|x|) / deviation +
    |bias|: under 6e-6 for n up to 300. Where the deviations of a short row are small, or a term
    cancels the bias, that is much more than as many units of the result.
    """
    c.output(c.graph.add("layer_norm", [x, *parameters], {"axis": axis}),
             norm_magnitude(*(c.array_of(v) for v in (x, *parameters)), axis=axis))


def norm_magnitude(x: np.ndarray, scale: np.ndarray | float = 1.0,
                   bias: np.ndarray | float = 0.0, *, axis: int) -> np.ndarray:
    """The magnitudes of the terms of a layer norm, in f64."""
    axes = tuple(range(axis, x.ndim))
    x = x.astype(np.float64)
    apart = np.abs(x - x.mean(axes, keepdims=True)) + np.abs(x).mean(axes, keepdims=True)
    return np.abs(scale) * apart / np.sqrt(x.var(axes, keepdims=True) + 1e-5) + np.abs(bias)
