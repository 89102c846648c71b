"""The templates and generic kernels that CUDA shares with WebGPU, on the emulated device: awkward
sizes, sizes known only to a run, and every element type. Tolerances are those of the tests that the
graphs come from; arithmetic is that of the CPU, so they are wide.
"""

import numpy as np
import pytest
from webgpu import test_generic_kernels as generic
from webgpu import test_templates as templates
from webgpu.device_graphs import check, fresh

from smelt.ir import dtype as dt

INTEGERS = [dt.i8, dt.u8, dt.i16, dt.u16, dt.i32, dt.u32, dt.i64, dt.u64]


def emulated(cases, rtol, atol, kernels=(), by_kernels=False):
    return check(cases, rtol, atol, kernels, by_kernels, "cuda:emulated", optimize=0)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("make", "rtol", "atol"), [
    (templates.rows, 1e-5, 1e-6), (templates.fused_rows, 1e-5, 1e-6),
    (templates.products, 2e-5, 2e-4), (templates.reductions, 1e-5, 1e-4),
    (generic.movement, 1e-5, 1e-6), (generic.reductions, 1e-5, 1e-6)])
def test_templates(make, rtol, atol, symbolic):
    """Static ones also in the kernel interpreter, which finds races in any order of threads."""
    emulated(fresh(make, symbolic), rtol, atol, by_kernels=make is templates.fused_rows)


def test_convolutions():
    emulated(fresh(templates.convolutions), 2e-5, 2e-4, ["conv"])


def test_functions():
    emulated(fresh(generic.functions), 1e-5, 1e-6)


def integers(dtype: dt.DType):
    """Arithmetic of the whole width: CUDA has 64 bits."""
    def make(c) -> None:
        g = c.graph
        for n in (1, 3, 255, 1023):
            x, y = (c.input(dtype=dtype, array=c.rng.integers(
                dtype.min, dtype.max, n, endpoint=True, dtype=dtype.numpy)) for _ in "xy")
            for name in ("add", "sub", "mul", "min", "max", "and", "or", "xor", "div", "mod",
                         "lt", "eq", "ge"):
                c.output(g.add(name, [x, y]))
            for other in (dt.f32, dt.f64, dt.i64, dt.u8):
                c.output(g.add("cast", [x], {"to": other}))
    return make


@pytest.mark.parametrize("dtype", INTEGERS, ids=repr)
def test_integers(dtype):
    emulated(fresh(integers(dtype)), 0, 0)


def doubles(c) -> None:
    """Within a few units in the last place of numpy's."""
    g = c.graph
    for n in (1, 33, 300):
        x = c.input(n, dtype=dt.f64)
        for op in ("exp", "tanh", "erf", "sin", "floor", "abs", "neg", "sigmoid"):
            c.output(g.add(op, [x]))
        c.output(g.add("reduce_sum", [x], {"axes": (0,), "keepdims": False}))
        c.output(g.add("softmax", [c.input(2, n, dtype=dt.f64)], {"axis": 1}))


def test_doubles():
    emulated(fresh(doubles), 1e-13, 1e-13)


@pytest.mark.parametrize("dtype", [dt.f16, dt.bf16, dt.f8e4m3fn, dt.f8e5m2], ids=repr)
def test_narrow_floats_round_as_numpy(dtype):
    def make(c) -> None:
        g = c.graph
        for n in (1, 3, 255, 514):
            x = (c.rng.standard_normal(n) * np.exp(c.rng.uniform(-4, 4, n))).astype(np.float32)
            c.output(g.add("cast", [c.input(array=x)], {"to": dtype}))
            y = c.input(n, dtype=dtype)
            c.output(g.add("add", [y, c.input(n, dtype=dtype)]))
            c.output(g.add("cast", [y], {"to": dt.f32}))
    emulated(fresh(make), 0, 0)


def test_sorting_runs_in_one_thread():
    def make(c) -> None:
        for n, k in ((1, 1), (37, 5), (64, 64)):
            node = c.graph.add_node("topk", [c.input(3, n)], {"axis": 1, "largest": True, "k": k})
            for value in node.outputs:
                c.output(value)
    emulated(fresh(make), 0, 0)
