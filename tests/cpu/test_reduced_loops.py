"""Reductions on the CPU against numpy.

Tolerance: the kernels add in at least as many partial sums as numpy does in pairs; 1e-5 relative
to the sum of magnitudes is some ten times the error bound of either. Maxima and integers are exact.
"""

import numpy as np
import pytest
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir import dtype as dt

SIZES = (1, 2, 7, 15, 16, 17, 33, 127)


def last_axis(c: Cases) -> None:
    for n in SIZES:
        for kind in ("sum", "mean", "max", "min", "prod"):
            c.output(c.graph.add(f"reduce_{kind}", [c.input(5, n)], {"axes": (1,)}))


def first_axis(c: Cases) -> None:
    for n in SIZES:
        for kind in ("sum", "max"):
            c.output(c.graph.add(f"reduce_{kind}", [c.input(6, n)], {"axes": (0,)}))
            c.output(c.graph.add(f"reduce_{kind}", [c.input(n, 70)], {"axes": (0,),
                                                                      "keepdims": True}))


def several_axes(c: Cases) -> None:
    for shape, axes in (((2, 7, 7, 40), (1, 2)), ((2, 40, 7, 7), (2, 3)), ((2, 3, 4, 5), (0, 2)),
                        ((8, 9, 33), (0, 1, 2)), ((30, 3), (1,)), ((6, 1, 20), (1,)),
                        ((4, 5, 6, 7), (1, 3)), ((64, 5), (1,))):
        c.output(c.graph.add("reduce_mean", [c.input(*shape)], {"axes": axes}))
        c.output(c.graph.add("reduce_min", [c.input(*shape)], {"axes": axes, "keepdims": True}))


def fused(c: Cases) -> None:
    g = c.graph
    for shape, axis in (((6, 50), 1), ((50, 40), 0), ((3, 20, 5), 2)):
        x, y = c.input(*shape), c.input(*shape)
        product = g.add("mul", [g.add("sub", [x, y]), x])
        total = g.add("reduce_sum", [product], {"axes": (axis,)})
        c.output(g.add("tanh", [g.add("mul", [total, g.constant(np.float32(0.1))])]))
        mask = g.add("lt", [x, y])
        c.output(g.add("reduce_any", [mask], {"axes": (axis,)}))
        c.output(g.add("reduce_all", [mask], {"axes": (axis,)}))


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("make", [last_axis, first_axis, several_axes, fused])
def test_reductions(make, target):
    c = Cases(int(np.random.default_rng().integers(1 << 31)))
    make(c)
    program = check(c, target, 1e-4, 1e-4)
    if target == VARIANTS[0]:
        for got, want in zip(interpreted(c, program), c.expected(), strict=True):
            np.testing.assert_allclose(got, want, 1e-4, 1e-4)


@pytest.mark.parametrize("make", [last_axis, first_axis, several_axes])
def test_symbolic_sizes(make):
    c = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic=True)
    make(c)
    check(c, "cpu", 1e-4, 1e-4)


def test_nothing_to_reduce_and_no_results():
    c = Cases(1, symbolic=True)
    for kind in ("sum", "max", "prod"):
        for shape in ((0, 20), (20, 0)):
            for axis in (0, 1):
                c.output(c.graph.add(f"reduce_{kind}", [c.input(*shape)], {"axes": (axis,)}))
    check(c, "cpu", 0, 0)


@pytest.mark.parametrize("dtype", [dt.i32, dt.i64, dt.u8, dt.i8, dt.f16, dt.bf16, dt.f64], ids=repr)
def test_types(dtype):
    c = Cases(int(np.random.default_rng().integers(1 << 31)))
    for shape, axis in (((5, 100), 1), ((33, 40), 0)):
        array = (c.rng.standard_normal(shape) * 9).astype(dtype.numpy)
        for kind in ("sum", "max", "min"):
            x = c.input(array=array, dtype=dtype)
            c.output(c.graph.add(f"reduce_{kind}", [x], {"axes": (axis,)}))
    check(c, "cpu", 1e-2 if dtype.bits < 32 else 1e-5, 1e-5 if dtype.bits >= 32 else 0.3)


def test_nan_wins_over_every_number():
    x = np.arange(120, dtype=np.float32).reshape(3, 40)
    x[0, 3] = x[1, 39] = x[2, 0] = np.nan
    c = Cases(1)
    for kind in ("max", "min", "sum"):
        for axis in (0, 1):
            c.output(c.graph.add(f"reduce_{kind}", [c.input(array=x)], {"axes": (axis,)}))
    for target in VARIANTS:
        check(c, target, 0, 0)


def test_long_sums_are_accurate():
    c = Cases(2)
    x = c.rng.random(1 << 20).astype(np.float32)
    c.output(c.graph.add("reduce_sum", [c.input(array=x)], {"axes": (0,)}))
    _, run = c.compiled("cpu:x86-64-v3")
    # 32 partial sums of 2**15 terms each: the error is far below the bound of one long sum.
    assert abs(float(run(1)[0]) / x.astype(np.float64).sum() - 1) < 2e-6
