"""Compiled reductions against numpy: awkward sizes, every type, empty ranges, NaN, threads.

Sums of n floats differ from numpy's pairwise ones by at most n units of rounding of the sum of
magnitudes; the tolerance is a small part of that bound. Everything else is exact.
"""

from __future__ import annotations

import numpy as np
import pytest
from cpu.native_graphs import VARIANTS, Cases

from smelt.ir import dtype as dt

SHAPES = [(1,), (17,), (33,), (5, 7), (16, 16), (3, 31), (17, 1), (2, 15, 33), (33, 2, 17),
          (1, 16, 5), (4, 3, 2, 19)]
NUMPY = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}


def axes_of(rank: int) -> list[tuple[int, ...]]:
    """Every axis alone, the first and last together, all."""
    found = [(a,) for a in range(rank)]
    if rank > 1:
        found += [(0, rank - 1), tuple(range(rank))]
    return list(dict.fromkeys(found))


def add_all(cases: Cases, array: np.ndarray, d: dt.DType, kinds=tuple(NUMPY)) -> list[tuple]:
    x = cases.input(array=array, dtype=d)
    jobs = []
    for axes in axes_of(array.ndim):
        for kind in kinds:
            cases.output(cases.graph.add(f"reduce_{kind}", [x], {"axes": axes}))
            jobs.append((kind, axes, array))
    return jobs


def check(jobs: list[tuple], found: list[np.ndarray]) -> None:
    for (kind, axes, array), mine in zip(jobs, found, strict=True):
        note = f"{kind} of {array.dtype}{array.shape} over {axes}"
        if array.dtype.kind == "f" and kind in ("sum", "prod"):
            wide = array.astype(np.float64)
            expected = NUMPY[kind](wide, axis=axes)
            scale = np.sum(np.abs(wide), axis=axes) if kind == "sum" else np.abs(expected)
            count = array.size / max(np.size(expected), 1)
            unit = 2.0**-24 if array.dtype == np.float32 else np.finfo(array.dtype).eps
            tiny = np.finfo(array.dtype).smallest_subnormal
            bound = (4 + count / 4) * unit * scale + tiny
            assert (np.abs(mine - expected) <= bound).all(), note
        else:
            options = {"dtype": array.dtype} if kind in ("sum", "prod") else {}
            expected = NUMPY[kind](array, axis=axes, **options)
            np.testing.assert_array_equal(mine, expected, err_msg=note)


@pytest.mark.parametrize("target", VARIANTS)
def test_floats(target: str):
    cases = Cases(seed=1)
    jobs = []
    for shape in SHAPES:
        jobs += add_all(cases, (cases.rng.random(shape) + 0.5).astype(np.float32), dt.f32)
    check(jobs, cases.compiled(target)[1](1))


@pytest.mark.parametrize("d", [dt.i8, dt.u8, dt.i32, dt.u32, dt.i64, dt.f64, dt.f16], ids=str)
def test_types(d: dt.DType):
    """Integers wrap, f16 accumulates in f32."""
    cases = Cases(seed=2)
    jobs = []
    for shape in [(33,), (3, 31), (5, 4, 17)]:
        if d.is_float:
            array = (cases.rng.random(shape) + 0.5).astype(d.numpy)
        else:
            array = cases.rng.integers(d.min, d.max, shape, d.numpy, True)
        jobs += add_all(cases, array, d)
    check(jobs, cases.compiled("cpu")[1](1))


def test_booleans():
    cases = Cases(seed=3)
    wanted = []
    for shape in [(5,), (16, 33), (33, 16), (3, 1, 40)]:
        array = cases.rng.random(shape) < 0.7
        x = cases.input(array=array, dtype=dt.bool_)
        for axes in axes_of(len(shape)):
            for name, function in [("any", np.any), ("all", np.all), ("max", np.any),
                                   ("min", np.all)]:
                cases.output(cases.graph.add(f"reduce_{name}", [x], {"axes": axes}))
                wanted.append((name, axes, function(array, axis=axes)))
    for (name, axes, expected), found in zip(wanted, cases.compiled("cpu")[1](1), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=f"{name} over {axes}")
        assert set(found.reshape(-1).view(np.uint8).tolist()) <= {0, 1}


def test_empty_ranges_give_the_identity():
    cases = Cases(seed=4)
    wanted = []
    for d in (dt.f32, dt.i32, dt.u8):
        x = cases.input(array=np.zeros((3, 0, 2), d.numpy), dtype=d)
        limits = (-np.inf, np.inf) if d.is_float else (d.min, d.max)
        for kind, value in zip(NUMPY, (0, 1, *limits), strict=True):
            cases.output(cases.graph.add(f"reduce_{kind}", [x], {"axes": (1,)}))
            wanted.append(np.full((3, 2), value, d.numpy))
            cases.output(cases.graph.add(f"reduce_{kind}", [x], {"axes": (0,)}))
            wanted.append(np.zeros((0, 2), d.numpy))
    for expected, found in zip(wanted, cases.compiled("cpu")[1](1), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", VARIANTS)
def test_nan_and_infinity_propagate(target: str):
    cases = Cases(seed=5)
    jobs = []
    for where in (0, 5, 20, 36):
        array = cases.rng.standard_normal((37, 19)).astype(np.float32)
        array[where, where % 19] = np.nan
        array[(where + 7) % 37, 3] = np.inf
        array[(where + 9) % 37, 4] = -np.inf
        jobs += add_all(cases, array, dt.f32, kinds=("max", "min"))
    check(jobs, cases.compiled(target)[1](1))


def test_threads_give_the_same_bits():
    """Large enough to be split; each output element is computed by one thread."""
    cases = Cases(seed=6)
    x = cases.input(array=cases.rng.standard_normal((257, 1031)).astype(np.float32))
    for axes in axes_of(2):
        for name in ("sum", "prod", "max", "mean"):
            cases.output(cases.graph.add(f"reduce_{name}", [x], {"axes": axes}))
    cases.output(cases.graph.add("tanh", [x]))
    cases.output(cases.graph.add("add", [x, cases.graph.add("exp", [x])]))
    run = cases.compiled("cpu")[1]
    for alone, two, five in zip(run(1), run(2), run(5), strict=True):
        np.testing.assert_array_equal(alone, two)
        np.testing.assert_array_equal(alone, five)


def test_means_of_narrow_floats_do_not_overflow():
    """A sum of 65,504s is no f16; their mean is."""
    cases = Cases(seed=7)
    x = cases.input(array=np.full((4, 40), 60000, np.float16), dtype=dt.f16)
    cases.output(cases.graph.add("reduce_mean", [x], {"axes": (1,)}))
    (found,) = cases.compiled("cpu")[1](1)
    np.testing.assert_array_equal(found, np.full(4, 60000, np.float16))
