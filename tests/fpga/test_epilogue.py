"""Requantisation in integers against f32: equal for every sum, whatever form is found."""

from __future__ import annotations

import numpy as np
import pytest

from smelt.passes.dataflow.epilogue import Line, Scaled, Thresholds, scaled, solve


def requantise(factor: np.ndarray, bias: np.ndarray, zero: int, low: int, high: int):
    """What ONNX's QLinearConv does to a sum, in f32: round half to even, saturate."""
    factor = factor.astype(np.float32)

    def function(sums: np.ndarray) -> np.ndarray:
        real = (sums + bias[:, None]).astype(np.float32) * factor[:, None]
        return np.clip(np.rint(real) + np.float32(zero), low, high).astype(np.int64)

    return function


FACTORS = {
    "any": lambda r: r.uniform(1e-4, 3e-2, 8), "steep": lambda r: r.uniform(0.4, 3.0, 8),
    "tiny": lambda r: r.uniform(1e-7, 3e-6, 8), "halves": lambda r: np.full(8, 0.5),
    "powers of two": lambda r: 2.0 ** -r.integers(2, 9, 8),
    "two decimals apart": lambda r: np.array([1e-5, 1e-2] * 4),
}


@pytest.mark.parametrize("reach", [3, 40_000, 30_000_000], ids=["few", "usual", "beyond f32"])
@pytest.mark.parametrize("limits", [(-128, 127), (0, 255), (-8, 7), (0, 1)], ids=str)
@pytest.mark.parametrize("factors", FACTORS)
def test_requantisation_is_exact(factors, limits, reach, rng):
    factor, zero = FACTORS[factors](rng), int(rng.integers(limits[0], limits[1] + 1))
    bias = rng.integers(-500, 500, 8)
    function = requantise(factor, bias, zero, *limits)
    low, high = np.full(8, -reach), np.full(8, reach + 1)
    guess = scaled(factor.astype(np.float32), bias, zero, *limits, reach + 501)
    found = solve(function, low, high, guess)
    assert found is not None
    some = rng.integers(-reach, reach + 2, (8, 50_000)) if reach > 50_000 else np.tile(
        np.arange(-reach, reach + 2), (8, 1))
    np.testing.assert_array_equal(found(some), function(some))
    # Rounding decides close to zero, where random sums of a wide range hardly come.
    near = np.clip(np.arange(-3000, 3000) - bias[:, None], -reach, reach + 1)
    np.testing.assert_array_equal(found(near), function(near))


def test_sixteen_bits(rng):
    factor, bias = rng.uniform(1e-4, 1e-2, 3), rng.integers(-500, 500, 3)
    function = requantise(factor, bias, 0, -32768, 32767)
    reach = 20_000_000
    found = solve(function, np.full(3, -reach), np.full(3, reach),
                  scaled(factor.astype(np.float32), bias, 0, -32768, 32767, reach + 500))
    assert isinstance(found, Scaled)
    some = rng.integers(-reach, reach, (3, 200_000))
    np.testing.assert_array_equal(found(some), function(some))


def test_forms_are_the_cheapest_that_fit():
    low, high = np.full(2, -1000), np.full(2, 1000)
    line = solve(lambda s: np.clip((s * 3 + 7) >> 2, -10, 10), low, high)
    assert isinstance(line, Line)
    uneven = np.array([-900, -899, 5, 600])
    table = solve(lambda s: (s[..., None] >= uneven).sum(-1), low, high)
    assert isinstance(table, Thresholds)
    np.testing.assert_array_equal(table.steps, [uneven, uneven])
    assert solve(lambda s: -s, low, high) is None
    constant = solve(lambda s: np.zeros_like(s) + 4, low, high)
    assert constant is not None and np.all(constant(np.array([[-1000, 0, 9]] * 2)) == 4)


def test_shifted_and_permuted(rng):
    bias = rng.integers(-50, 50, 4)
    for form in (Line(rng.integers(1, 9, 4), rng.integers(-9, 9, 4), 3, -20, 20),
                 scaled(rng.uniform(1e-2, 1e-1, 4).astype(np.float32), bias, 1, -20, 20, 9000),
                 Thresholds(np.sort(rng.integers(-99, 99, (4, 5)), 1), -2)):
        assert form is not None
        sums, by = rng.integers(-500, 500, (4, 100)), rng.integers(-99, 99, 4)
        np.testing.assert_array_equal(form.shifted(by)(sums), form(sums + by[:, None]))
        order = rng.permutation(4)
        np.testing.assert_array_equal(form.permuted(order)(sums[order]), form(sums)[order])
