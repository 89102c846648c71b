"""Compiled elementary functions of f32 against double precision, over every exponent.

The bounds are those that passes/kernel/elementary.py states, in units in the last place of the
exact result; they hold with and without a fused multiply-add.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from cpu.native_graphs import VARIANTS, Cases

from smelt.ir import dtype as dt

BOUNDS = {"exp": 1.25, "log": 1.5, "tanh": 2.0, "erf": 2.0, "expm1": 3.0, "log1p": 2.0}
EXACT = {
    "exp": np.exp, "log": np.log, "tanh": np.tanh, "expm1": np.expm1, "log1p": np.log1p,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
}
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, 2.0], np.float32)


def every_exponent(rng: np.random.Generator, per_exponent: int) -> np.ndarray:
    """Values of both signs with every exponent, denormals too: ends of each binade and some of
    what lies between."""
    mantissas = rng.integers(0, 1 << 23, (255, per_exponent), np.uint32)
    mantissas[:, :4] = [0, 1, (1 << 23) - 1, 1 << 22]
    bits = (np.arange(255, dtype=np.uint32)[:, None] << 23) | mantissas
    positive = bits.reshape(-1).view(np.float32)
    return np.concatenate([positive, -positive, SPECIAL])


def ulps(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units in the last place of f32 at the exact value; 0 where both are NaN or the
    same infinity, infinite where only one is."""
    limit = float(np.finfo(np.float32).max)
    overflows = np.abs(exact) > limit + 2.0**103  # what rounds to infinity
    expected = np.where(overflows, np.copysign(np.inf, exact), exact)
    exponent = np.frexp(np.where(np.isfinite(expected), expected, 1.0))[1]
    unit = np.ldexp(1.0, np.maximum(exponent - 24, -149))
    with np.errstate(invalid="ignore"):
        distance = np.abs(found.astype(np.float64) - expected) / unit
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


@pytest.mark.parametrize("target", VARIANTS)
def test_errors_stay_within_what_is_documented(target: str):
    cases = Cases(seed=20)
    values = every_exponent(cases.rng, 64)
    x = cases.input(array=values)
    for name in EXACT:
        cases.output(cases.graph.add(name, [x]))
    results = cases.compiled(target)[1](1)
    with np.errstate(all="ignore"):
        worst = {name: ulps(found, EXACT[name](values.astype(np.float64)))
                 for name, found in zip(EXACT, results, strict=True)}
    shown = {name: (float(e.max()), float(values[e.argmax()])) for name, e in worst.items()}
    print(shown)
    assert all(shown[name][0] <= BOUNDS[name] for name in EXACT), shown


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 33])
def test_vectors_and_their_tails_give_the_same_bits(target: str, size: int):
    """A value's result does not depend on where in an array it stands."""
    cases = Cases(seed=size)
    values = (cases.rng.standard_normal(64) * 8).astype(np.float32)
    whole, part = cases.input(array=values), cases.input(array=values[64 - size:])
    for name in EXACT:
        cases.output(cases.graph.add(name, [whole]))
        cases.output(cases.graph.add(name, [part]))
    results = cases.compiled(target)[1](1)
    for of_whole, of_part in zip(results[::2], results[1::2], strict=True):
        np.testing.assert_array_equal(of_part, of_whole[64 - size:])


def test_negative_zero_keeps_its_sign():
    cases = Cases(seed=0)
    x = cases.input(array=np.full(20, -0.0, np.float32))
    for name in ("tanh", "erf", "expm1", "log1p"):
        cases.output(cases.graph.add(name, [x]))
    for found in cases.compiled("cpu")[1](1):
        assert np.signbit(found).all() and not found.any()


@pytest.mark.parametrize("dtype", [dt.f16, dt.bf16], ids=str)
def test_narrow_floats_round_the_f32_result_once(dtype: dt.DType):
    """All 65,536 values: the exact result rounded to the narrow type, or its neighbour where the
    f32 result lies on the other side of a tie."""
    cases = Cases(seed=1)
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype.numpy)
    x = cases.input(array=values, dtype=dtype)
    for name in EXACT:
        cases.output(cases.graph.add(name, [x]))
    results = cases.compiled("cpu")[1](1)
    with np.errstate(all="ignore"):
        for name, found in zip(EXACT, results, strict=True):
            exact = EXACT[name](values.astype(np.float64))
            near = [(exact * (1 + e)).astype(np.float32).astype(dtype.numpy).astype(np.float64)
                    for e in (-2.0**-22, 0.0, 2.0**-22)]
            mine = found.astype(np.float64)
            good = np.isnan(mine) & np.isnan(exact)
            for candidate in near:
                good |= mine == candidate
            assert good.all(), (name, values[~good][:4], mine[~good][:4], exact[~good][:4])
