"""Kernels with shared memory and barriers: rows, products, convolutions.

Tolerances: sums of up to 300 products in another order than the reference's differ by a few units
in the last place of the largest partial sum; 2e-5 of values around 10 leaves a margin. Rows as in
tests/cpu/test_row_kernels.py.
"""

import numpy as np
import pytest
from cpu.magnitudes import layer_norm
from cpu.native_graphs import Cases
from webgpu.device_graphs import check, eighths, fresh

from smelt.ir import dtype as dt
from smelt.ir.kernel.nodes import Alloc, Barrier, statements

pytestmark = pytest.mark.usefixtures("adapter")


def rows(c: Cases) -> None:
    g = c.graph
    for n in (1, 5, 31, 32, 33, 255, 257, 300):
        x, scale, bias = c.input(3, n), c.input(n), c.input(n)
        c.output(g.add("softmax", [x], {"axis": 1}))
        c.output(g.add("log_softmax", [x], {"axis": 1}))
        layer_norm(c, x, scale, bias, axis=1)
        c.output(g.add("rms_norm", [x, scale], {"axis": 1, "epsilon": 1e-3}))
    c.output(g.add("softmax", [c.input(2, 37, 5)], {"axis": 1}))
    layer_norm(c, c.input(2, 3, 4, 5), axis=1)


def fused_rows(c: Cases) -> None:
    g = c.graph
    x, mask, other = c.input(2, 3, 4, 70), c.input(2, 1, 1, 70), c.input(2, 3, 4, 70)
    scaled = g.add("add", [g.add("mul", [x, g.constant(np.float32(0.25))]), mask])
    y = g.add("softmax", [scaled], {"axis": 3})
    c.output(g.add("mul", [g.add("tanh", [y]), other]))


@pytest.mark.parametrize("make", [rows, fused_rows])
@pytest.mark.parametrize("symbolic", [False, True])
def test_rows(make, symbolic):
    check(fresh(make, symbolic), 1e-5, 1e-6)


def test_long_rows_share_memory():
    program = check(fresh(lambda c: c.output(c.graph.add("softmax", [c.input(3, 64)]))),
                    1e-5, 1e-6, ["softmax"])
    found = list(statements(program.kernels()[0].body))
    assert any(isinstance(s, Barrier) for s in found)
    assert any(isinstance(s, Alloc) and s.buffer.space == "shared" for s in found)


def test_more_rows_than_one_axis_of_the_grid_holds():
    def make(c: Cases) -> None:
        c.output(c.graph.add("softmax", [c.input(65535 + 9, 33)]))
    check(fresh(make), 1e-5, 1e-6, ["softmax"], by_kernels=False)


def products(c: Cases) -> None:
    g = c.graph
    for m, k, n in ((5, 1, 1), (16, 17, 65), (17, 16, 16), (31, 33, 7), (48, 5, 49),
                    (64, 32, 64), (65, 300, 67)):
        c.output(g.add("matmul", [c.input(m, k), c.input(k, n)]))
    c.output(g.add("matmul", [c.input(2, 3, 9, 20), c.input(2, 3, 20, 70)]))
    c.output(g.add("matmul", [c.input(2, 1, 9, 20), c.input(3, 20, 5)]))
    c.output(g.add("matmul", [c.input(2, 7, 12), c.input(12, 33)]))
    product = g.add("matmul", [c.input(70, 40), c.input(40, 66)])
    c.output(g.add("gelu", [g.add("add", [product, c.input(66)])]))
    c.output(g.add("add", [g.add("matmul", [g.add("relu", [c.input(40, 20)]), c.input(20, 40)]),
                           c.input(40, 40)]))


@pytest.mark.parametrize("symbolic", [False, True])
def test_products(symbolic):
    check(fresh(products, symbolic), 2e-5, 2e-4, ["matmul"])


def convolutions(c: Cases) -> None:
    g = c.graph
    for (channels, features, window, stride, dilation, padding) in (
            (1, 1, 1, 1, 1, 0), (3, 17, 3, 1, 1, 1), (5, 64, 3, 2, 1, 1), (16, 33, 1, 1, 1, 0),
            (4, 20, 5, 1, 2, 3), (7, 16, 2, 3, 1, 0)):
        x = c.input(2, channels, 13, 11)
        w = g.constant(c.rng.standard_normal((features, channels, window, window)).astype("f4"))
        y = g.add("conv", [x, w], {
            "strides": (stride, stride), "dilations": (dilation, dilation),
            "low": (padding, padding), "high": (padding, padding - 1 if padding else 0)})
        c.output(g.add("relu", [g.add("add", [y, c.input(features, 1, 1)])]))
    depthwise = g.constant(c.rng.standard_normal((6, 1, 3, 3)).astype("f4"))
    c.output(g.add("conv", [c.input(1, 6, 9, 8), depthwise],
                   {"groups": 6, "low": (1, 1), "high": (1, 1)}))


@pytest.mark.parametrize("symbolic", [False, True])
def test_convolutions(symbolic):
    def make(c: Cases) -> None:
        if not symbolic:
            convolutions(c)
            return
        w = c.graph.constant(c.rng.standard_normal((17, 3, 3, 3)).astype("f4"))
        x = c.input(2, 3, 13, 11, fixed=(1,))
        c.output(c.graph.add("conv", [x, w], {"low": (1, 1), "high": (1, 1)}))
    check(fresh(make, symbolic), 2e-5, 2e-4, ["conv"])


def reductions(c: Cases) -> None:
    g = c.graph
    for shape, axes in (((3, 1000), (1,)), ((7, 333), (0, 1)), ((129, 5), (0,)),
                        ((2, 16, 17, 3), (1, 2))):
        x = eighths(c, *shape)
        for op in ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min"):
            c.output(g.add(op, [x], {"axes": axes, "keepdims": True}))
    x, y = eighths(c, 4, 500), eighths(c, 4, 500)
    total = g.add("reduce_sum", [g.add("mul", [x, y])], {"axes": (1,), "keepdims": False})
    c.output(g.add("tanh", [g.add("add", [total, c.input(4)])]))
    c.output(g.add("reduce_any", [g.add("gt", [c.input(5, 200), g.constant(np.float32(5.8))])],
                   {"axes": (1,), "keepdims": False}))
    c.output(g.add("reduce_sum", [c.input(300, array=c.rng.integers(-9, 9, 300).astype("i4"),
                                          dtype=dt.i32)], {"axes": (0,), "keepdims": False}))
    c.output(g.add("matmul", [eighths(c, 1, 700), eighths(c, 700, 3)]))


@pytest.mark.parametrize("symbolic", [False, True])
def test_reductions(symbolic):
    """Sums are exact; means and hyperbolic tangents are rounded by a few units."""
    program = check(fresh(reductions, symbolic), 1e-5, 1e-6, [] if symbolic else ["reduce"])
    if not symbolic:
        assert any(isinstance(s, Barrier) for k in program.kernels() for s in statements(k.body))
