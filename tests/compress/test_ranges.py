"""Ranges of activations against the definitions of what they minimise."""

from __future__ import annotations

import numpy as np
import pytest

from smelt.passes.compress.ranges import RANGES, SHRUNK, Distribution, joined, parameters


def distribution(*runs: np.ndarray) -> Distribution:
    found = Distribution()
    for x in runs:
        found.bound(x)
    for x in runs:
        found.count(x)
    return found


def error(x: np.ndarray, low: float, high: float) -> float:
    """Mean squared error of quantising x with 256 levels from low to high."""
    step = (high - low) / 255
    back = np.clip(np.rint((x - low) / step), 0, 255) * step + low
    return float(np.square(back - x).mean())


def test_histograms_hold_all_elements_of_all_runs(rng):
    runs = [rng.standard_normal((3, 50)), rng.standard_normal(70) * 3, np.zeros(11)]
    d = distribution(*runs)
    every = np.concatenate([x.reshape(-1) for x in runs])
    assert d.low == every.min() and d.high == every.max()
    assert d.zeros == 11 and d.counts.sum() == 220 and d.with_zeros().sum() == 231
    wanted, _ = np.histogram(every[every != 0], 2048, (every.min(), every.max()))
    np.testing.assert_array_equal(d.counts, wanted)


@pytest.mark.parametrize("relu", [False, True])
def test_the_least_squares_are_least(relu, rng):
    """No pair of shrunk ends errs less on the elements themselves, but for the histogram's bins."""
    x = rng.standard_t(5, 20_000)
    x = np.maximum(x, 0) if relu else x
    low, high = RANGES["mse"](distribution(x))
    chosen = error(x, low, high)
    best = min(error(x, x.min() * a, x.max() * b) for a in (SHRUNK if not relu else [0.0])
               for b in SHRUNK)
    assert best <= chosen <= best * 1.05


def test_percentiles_leave_single_outliers_out(rng):
    x = np.append(rng.uniform(-1, 2, 99_999), 500.0)
    low, high = RANGES["percentile"](distribution(x))
    assert -1.3 < low < -0.95 and 1.95 < high < 2.3
    assert RANGES["minmax"](distribution(x)) == (x.min(), 500.0)


def test_entropy_cuts_a_thin_tail_and_keeps_a_thick_one(rng):
    thin = np.append(rng.standard_normal(50_000), [40.0, -40.0])
    low, high = RANGES["entropy"](distribution(thin))
    assert high <= 12 and low >= -12
    even = rng.uniform(-1, 1, 50_000)
    low, high = RANGES["entropy"](distribution(even))
    assert high > 0.95 and low < -0.95


def test_exact_zeros_do_not_count(rng):
    x = rng.standard_t(3, 5_000)
    sparse = np.append(x, np.zeros(500_000))
    assert RANGES["nonzero"](distribution(sparse)) == RANGES["mse"](distribution(x))


@pytest.mark.parametrize("name", RANGES)
def test_empty_and_constant_tensors_have_a_range(name):
    for x in (np.zeros(0), np.zeros(7), np.full(9, 3.5), np.full(9, -2.0)):
        low, high = RANGES[name](distribution(x))
        assert low <= 0 <= high
        scale, zero = parameters(low, high)
        if x.size and x.any():
            back = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
            np.testing.assert_allclose(back, x, rtol=0.21)


def test_zero_is_a_level():
    """Borders of convolutions are padded with it."""
    for low, high in ((-1.0, 3.0), (0.0, 6.0), (2.0, 4.0), (-3.0, -1.0), (0.0, 0.0), (0, 1e-44)):
        scale, zero = parameters(low, high)
        assert scale > 0 and 0 <= zero <= 255
        if high - low > 1e-3:
            assert (0 - zero) * scale <= min(low, 0) + scale / 2 + 1e-6
            assert (255 - zero) * scale >= max(high, 0) - scale / 2 - 1e-6
    assert joined([(-1.0, 2.0), (-3.0, 0.5)]) == (-3.0, 2.0)
