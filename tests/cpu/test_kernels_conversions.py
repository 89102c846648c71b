"""Compiled conversions between element types against ml_dtypes and numpy, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cpu.native_graphs import Cases

from smelt.ir import dtype as dt
from smelt.ir.graph.core import Value

NARROW = [dt.f16, dt.bf16, dt.f8e4m3fn, dt.f8e4m3fnuz, dt.f8e5m2, dt.f8e5m2fnuz, dt.f8e8m0,
          dt.f4e2m1]
INTEGERS = [dt.i8, dt.i16, dt.i32, dt.i64, dt.u8, dt.u16, dt.u32, dt.u64]
SUB_BYTE = [dt.i2, dt.i4, dt.u2, dt.u4]


def converted(jobs: Sequence[tuple[np.ndarray, dt.DType, dt.DType]],
              mode: str = "value") -> list[np.ndarray]:
    """The arrays of (array, its type, target type), all converted by one compiled model."""
    cases = Cases(seed=0)
    inputs: dict[int, Value] = {}
    for array, source, to in jobs:
        if id(array) not in inputs:
            inputs[id(array)] = cases.input(array=array, dtype=source)
        cases.output(cases.graph.add("cast", [inputs[id(array)]], {"to": to, "mode": mode}))
    return cases.compiled("cpu")[1](1)


def assert_same(found: np.ndarray, expected: np.ndarray, source: np.ndarray) -> None:
    """Equal values, NaN where NaN is expected, and the same signs of zeros."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    good = ((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))
    assert good.all(), [(source[i], found[i], expected[i]) for i in np.flatnonzero(~good)[:5]]


def values_around(narrow: dt.DType, rng: np.random.Generator) -> np.ndarray:
    """f32 values that a narrow float must round: every one of its values, the ties between
    neighbours, both sides of the ties, and values all over f32."""
    exact = codes_of(narrow).astype(np.float64)
    exact = np.unique(exact[np.isfinite(exact)])
    ties = (exact[1:] + exact[:-1]) / 2
    beyond = exact[-1] + (exact[-1] - exact[-2]) * np.array([0.25, 0.5, 0.75, 1.0, 2.0])
    near = np.concatenate([exact, ties, beyond, -beyond, exact / 2, exact / 3]).astype(np.float32)
    anywhere = rng.integers(0, 1 << 32, 20000, np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan], np.float32)
    return np.concatenate([near, np.nextafter(near, np.float32(np.inf)),
                           np.nextafter(near, np.float32(-np.inf)), anywhere, special])


def codes_of(narrow: dt.DType) -> np.ndarray:
    return np.arange(1 << narrow.bits).astype(f"u{narrow.itemsize}").view(narrow.numpy)


def test_every_code_of_a_narrow_float_decodes():
    jobs = [(codes_of(d), d) for d in NARROW]
    jobs = [(codes, d, to) for codes, d in jobs for to in (dt.f32, dt.f64)]
    for (codes, _, _), found in zip(jobs, converted(jobs), strict=True):
        assert_same(found, codes.astype(np.float64), codes)


def test_encoding_rounds_as_ml_dtypes():
    print("seed 7")
    rng = np.random.default_rng(7)
    jobs = [(values_around(d, rng), dt.f32, d) for d in NARROW]
    for (values, _, to), found in zip(jobs, converted(jobs), strict=True):
        with np.errstate(all="ignore"):
            expected = values.astype(to.numpy)
        if to is dt.f8e8m0:
            # ml_dtypes takes every denormal f32 above 2**-127 to 2**-126, which is not nearest.
            normal = ~(np.abs(values) < 2.0**-126)
            values, found, expected = values[normal], found[normal], expected[normal]
        assert_same(found, expected, values)


def test_saturating_clamps_what_is_finite():
    print("seed 8")
    rng = np.random.default_rng(8)
    jobs = [(values_around(d, rng).astype(source.numpy), source, d)
            for d in NARROW if d is not dt.f8e8m0 for source in (dt.f32, dt.f16, dt.bf16)]
    for (given, _, narrow), found in zip(jobs, converted(jobs, "saturate"), strict=True):
        wide = given.astype(np.float64)
        with np.errstate(all="ignore"):
            clamped = np.where(np.isfinite(wide), np.clip(wide, narrow.min, narrow.max), wide)
            assert_same(found, clamped.astype(np.float32).astype(narrow.numpy), given)


def test_wide_types_round_once():
    """A detour through f32 would round values near ties twice."""
    print("seed 9")
    ties = 1 + (2 * np.arange(200) + 1) * 2.0**-11
    close = np.concatenate([ties, ties + 2.0**-40, ties - 2.0**-40])
    whole = 4096 + (2 * np.arange(600) + 1) * 2
    whole = np.concatenate([whole, whole + 1, whole - 1,
                            np.random.default_rng(9).integers(-70000, 70000, 500)])
    jobs = [(close, dt.f64, dt.f16), (whole, dt.i64, dt.f16),
            (whole.astype(np.int32), dt.i32, dt.f16)]
    for (values, _, _), found in zip(jobs, converted(jobs), strict=True):
        with np.errstate(over="ignore"):
            assert_same(found, values.astype(np.float64).astype(np.float16), values)


def test_floats_to_integers_truncate_and_clamp():
    print("seed 10")
    rng = np.random.default_rng(10)
    edges = np.array([2.0**k + d for k in (1, 3, 7, 8, 15, 16, 31, 32, 63, 64)
                      for d in (-1.5, -1, -0.5, 0, 0.5, 1)])
    values = np.concatenate([edges, -edges, rng.standard_normal(100) * 300,
                             [0.0, -0.0, 0.99, -0.99, np.inf, -np.inf, np.nan]])
    jobs = []
    for source in (dt.f32, dt.f64, dt.f16):
        with np.errstate(over="ignore"):
            given = values.astype(source.numpy)
        jobs += [(given, source, to) for to in INTEGERS]
    for (given, _, to), found in zip(jobs, converted(jobs), strict=True):
        expected = [0 if np.isnan(v) else to.max if v == np.inf else to.min if v == -np.inf
                    else min(max(int(v), to.min), to.max) for v in given.astype(float).tolist()]
        np.testing.assert_array_equal(found, np.array(expected, to.numpy), err_msg=str(to))


def test_integers_wrap():
    print("seed 11")
    rng = np.random.default_rng(11)
    jobs = []
    for source in INTEGERS:
        values = np.concatenate([rng.integers(source.min, source.max, 300, source.numpy, True),
                                 np.array([source.min, source.max, 0, 1], source.numpy)])
        jobs += [(values, source, to)
                 for to in (*INTEGERS, dt.bool_, dt.f32, dt.f64, *SUB_BYTE)]
    for (values, source, to), found in zip(jobs, converted(jobs), strict=True):
        expected = values.astype(to.numpy)
        if to in SUB_BYTE:
            low = values.astype(np.int64) & ((1 << to.bits) - 1)
            found = found.astype(np.int64)
            expected = np.where(low > to.max, low - (1 << to.bits), low)
        np.testing.assert_array_equal(found, expected, err_msg=f"{source} to {to}")


def test_only_the_low_bits_of_sub_byte_integers_count():
    """ml_dtypes leaves the upper bits of a byte zero, others extend the sign: both are read."""
    jobs = []
    for source in SUB_BYTE:
        codes = np.arange(256, dtype=np.uint8).view(source.numpy)
        jobs += [(codes, source, to) for to in (dt.i8, dt.i32, dt.f32, dt.bool_)]
    for (codes, source, to), found in zip(jobs, converted(jobs), strict=True):
        np.testing.assert_array_equal(found, codes.astype(np.int64).astype(to.numpy),
                                      err_msg=f"{source} to {to}")


def test_vector_conversions_and_their_tails():
    """The types that have vector code, in arrays around the registers' widths."""
    print("seed 12")
    rng = np.random.default_rng(12)
    kinds = [dt.f32, dt.i32, dt.u32, dt.u8, dt.i8, dt.bool_]
    jobs = []
    for size in (1, 15, 16, 17, 31, 33):
        for source in kinds:
            if source.is_float:
                values = (rng.standard_normal(size) * 1e10**rng.random(size)).astype(np.float32)
                values[0] = np.nan
            elif source.is_bool:
                values = rng.random(size) < 0.5
            else:
                values = rng.integers(source.min, source.max, size, source.numpy, True)
            jobs += [(values, source, to) for to in kinds if to is not source]
    for (values, source, to), found in zip(jobs, converted(jobs), strict=True):
        if source.is_float and to.is_integer:
            wide = np.nan_to_num(np.trunc(values.astype(np.float64)), nan=0.0)
            expected = np.clip(wide, to.min, to.max).astype(to.numpy)
        else:
            expected = values.astype(to.numpy)
        np.testing.assert_array_equal(found, expected, err_msg=f"{source} to {to}")
