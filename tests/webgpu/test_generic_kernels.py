"""Elementwise, movement, reductions and procedural operators as grid kernels.

Tolerances: WGSL promises division within 2.5 and sqrt within about 2 units in the last place;
1e-5 relative and 1e-6 absolute leave a margin for expressions of a few operations.
"""

import numpy as np
import pytest
from cpu.native_graphs import Cases
from webgpu.device_graphs import check, eighths, fresh

from smelt.ir import dtype as dt

pytestmark = pytest.mark.usefixtures("adapter")

SIZES = (1, 2, 31, 255, 256, 257, 1009)


def functions(c: Cases) -> None:
    g = c.graph
    for op in ("exp", "expm1", "tanh", "erf", "sin", "cos", "atan", "sinh", "asinh", "abs", "neg",
               "floor", "ceil", "round", "trunc", "sign", "sigmoid"):
        c.output(g.add(op, [c.input(257)]))
    for op in ("log", "log1p", "sqrt", "rsqrt", "exp2"):
        x = np.exp(c.rng.uniform(-6, 6, 255)).astype(np.float32)
        c.output(g.add(op, [c.input(array=np.minimum(x, 80) if op == "exp2" else x)]))
    for op in ("add", "sub", "mul", "min", "max", "lt", "ge", "eq"):
        c.output(g.add(op, [c.input(7, 1, 5), c.input(3, 1)]))
    c.output(g.add("div", [c.input(31), c.input(array=c.rng.uniform(1, 2, 31).astype("f4"))]))
    c.output(g.add("pow", [c.input(array=np.abs(c.rng.standard_normal(65)).astype("f4") + 0.1),
                           c.input(65)]))


def movement(c: Cases) -> None:
    g = c.graph
    for n in SIZES:
        x = c.input(n, 3)
        c.output(g.add("transpose", [x], {"perm": (1, 0)}))
    a, b = c.input(2, 5, 3), c.input(2, 1, 3)
    c.output(g.add("concat", [a, b, a], {"axis": 1}))
    c.output(g.add("mul", [g.add("transpose", [a], {"perm": (2, 0, 1)}), c.input(5)]))


def reductions(c: Cases) -> None:
    g = c.graph
    for n in (1, 7, 300):
        x = eighths(c, 5, n, 3)
        for op in ("reduce_sum", "reduce_max", "reduce_min", "reduce_mean"):
            for axes in ((1,), (0, 2), (0, 1, 2)):
                c.output(g.add(op, [x], {"axes": axes, "keepdims": False}))
        c.output(g.add("argmax", [x], {"axis": 1}))


@pytest.mark.parametrize("make", [functions, movement, reductions])
def test_floats(make):
    check(fresh(make), 1e-5, 1e-6)


@pytest.mark.parametrize("make", [movement, reductions])
def test_symbolic_sizes(make):
    check(fresh(make, symbolic=True), 1e-5, 1e-6)


def of_type(dtype: dt.DType):
    def make(c: Cases) -> None:
        g = c.graph
        low, high = max(int(dtype.min), -(1 << 31)), min(int(dtype.max), (1 << 31) - 1)
        for n in (1, 3, 4, 5, 255, 1023):
            x, y = (c.input(dtype=dtype, array=c.rng.integers(
                low, high, n, endpoint=True).astype(dtype.numpy)) for _ in "xy")
            names = ("min", "max") if dtype is dt.i64 else (
                "add", "sub", "mul", "min", "max", "and", "or", "xor", "div", "mod")
            for name in names:
                c.output(g.add(name, [x, y]))
            for name in ("lt", "eq", "ge"):
                c.output(g.add(name, [x, y]))
            c.output(g.add("cast", [x], {"to": dt.f32}))
            if dtype is not dt.i64:
                c.output(g.add("cast", [x], {"to": dt.i64}) if dtype is not dt.u32 else x)
            c.output(g.add("cast", [x], {"to": dt.u8}))
    return make


@pytest.mark.parametrize("dtype", [dt.i8, dt.u8, dt.i16, dt.u16, dt.i32, dt.u32, dt.i64],
                         ids=repr)
def test_integers(dtype):
    """Narrow ones share words in memory: threads that write neighbours must not disturb them."""
    check(fresh(of_type(dtype)), 1e-6, 0)


@pytest.mark.parametrize("dtype", [dt.f16, dt.bf16], ids=repr)
def test_narrow_floats_round_as_numpy(dtype):
    def make(c: Cases) -> None:
        g = c.graph
        for n in (1, 2, 3, 255, 514):
            x = (c.rng.standard_normal(n) * np.exp(c.rng.uniform(-20, 12, n))).astype(np.float32)
            special = [np.inf, -np.inf, np.nan, 0.0, -0.0, 65519, 65520, 2**-14, 2**-25, 1e-7]
            x[:min(n, len(special))] = special[:n]
            c.output(g.add("cast", [c.input(array=x)], {"to": dtype}))
            y = c.input(n, dtype=dtype)
            c.output(g.add("add", [y, c.input(n, dtype=dtype)]))
            c.output(g.add("cast", [y], {"to": dt.f32}))
    check(fresh(make), 0, 0)


def test_minima_and_maxima_propagate_nan():
    def make(c: Cases) -> None:
        x = c.rng.standard_normal(64).astype(np.float32)
        y = c.rng.standard_normal(64).astype(np.float32)
        x[::3], y[::5] = np.nan, np.nan
        a, b, zero = c.input(array=x), c.input(array=y), c.graph.constant(np.float32(0))
        for op in ("min", "max"):
            c.output(c.graph.add(op, [a, b]))
            c.output(c.graph.add(op, [a, zero]))
        c.output(c.graph.add("isnan", [a]))
    check(fresh(make), 0, 0)


def test_sorting_runs_in_one_thread():
    def make(c: Cases) -> None:
        for n, k in ((1, 1), (37, 5), (64, 64)):
            node = c.graph.add_node("topk", [c.input(3, n)], {"axis": 1, "largest": True, "k": k})
            for value in node.outputs:
                c.output(value)
    check(fresh(make), 0, 0)


def test_more_threads_than_one_axis_of_the_grid_holds():
    def make(c: Cases) -> None:
        c.output(c.graph.add("neg", [c.input(array=np.arange(65535 * 256 + 77, dtype="f4"))]))
    check(fresh(make), 0, 0, by_kernels=False)
