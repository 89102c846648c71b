"""Softmax and normalisations on the CPU against the operators' numpy references.

Tolerances: the references accumulate pairwise in f32, the kernels in at least four accumulators;
both are within a few units in the last place of exact for rows this short, so 1e-5 relative and
1e-6 absolute leave a margin; for layer norms relative to their terms (see magnitudes). Rows of f16
are rounded once at the end.
"""

import numpy as np
import pytest
from cpu.magnitudes import layer_norm, norm_magnitude
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir import dtype as dt
from smelt.ir.expr import evaluate
from smelt.passes.lower.generic import operations

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 64, 127, 128, 129, 300)


def along_rows(c: Cases) -> None:
    for n in LENGTHS:
        x = c.input(5, n)
        c.output(c.graph.add("softmax", [x], {"axis": 1}))
        c.output(c.graph.add("log_softmax", [x], {"axis": 1}))
        scale, bias = c.input(n), c.input(n)
        layer_norm(c, x, scale, bias, axis=1)
        c.output(c.graph.add("rms_norm", [x, scale], {"axis": 1, "epsilon": 1e-3}))


def across_rows(c: Cases) -> None:
    for n in (1, 2, 9, 19):
        for inner in (1, 3, 16, 17, 33, 127):
            c.output(c.graph.add("softmax", [c.input(3, n, inner)], {"axis": 1}))
    for rows, n in ((1, 2), (17, 2), (40, 3), (33, 5), (100, 8), (31, 1)):
        x = c.input(rows, n)
        c.output(c.graph.add("softmax", [x], {"axis": -1}))
        layer_norm(c, x, c.input(n), axis=1)


def fused(c: Cases) -> None:
    g = c.graph
    for n in (5, 17, 130, 200):
        x, mask, other = c.input(2, 3, 4, n), c.input(2, 1, 1, n), c.input(2, 3, 4, n)
        scaled = g.add("add", [g.add("mul", [x, g.constant(np.float32(0.25))]), mask])
        y = g.add("softmax", [scaled], {"axis": 3})
        c.output(g.add("mul", [g.add("tanh", [y]), other]))
    for n in (12, 96):
        x, y, scale = c.input(2, 7, n), c.input(2, 7, n), c.input(n)
        h = g.add("layer_norm", [g.add("add", [x, y]), scale], {"axis": 2})
        c.output(g.add("sigmoid", [h]))
    image = c.input(2, 6, 35)
    scale, bias = c.input(6, 1), c.input(6, 1)
    norm = g.add("layer_norm", [image], {"axis": 2})
    c.output(g.add("add", [g.add("mul", [norm, scale]), bias]),
             norm_magnitude(*map(c.array_of, (image, scale, bias)), axis=2))
    layer_norm(c, c.input(3, 4, 5, 6), axis=1)


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("make", [along_rows, across_rows, fused])
def test_f32_rows(make, target):
    c = Cases(int(np.random.default_rng().integers(1 << 31)))
    make(c)
    program = check(c, target, 1e-5, 1e-6)
    c.assert_close(interpreted(c, program), c.expected(), 1e-5, 1e-6)


@pytest.mark.parametrize("make", [along_rows, fused])
def test_symbolic_sizes(make):
    c = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic=True)
    make(c)
    check(c, "cpu", 1e-5, 1e-6)


def test_symbolic_rows_behind_the_axis():
    for inner in (0, 1, 16, 70, 127):
        c = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic=True)
        c.output(c.graph.add("softmax", [c.input(2, 5, inner, fixed=(0, 1))], {"axis": 1}))
        check(c, "cpu", 1e-5, 1e-6)


@pytest.mark.parametrize("dtype", [dt.f16, dt.bf16, dt.f64], ids=repr)
def test_other_types(dtype):
    c = Cases(int(np.random.default_rng().integers(1 << 31)))
    for n in (1, 17, 100):
        x, scale = c.input(4, n, dtype=dtype), c.input(n, dtype=dtype)
        c.output(c.graph.add("softmax", [x], {"axis": 1}))
        c.output(c.graph.add("log_softmax", [c.input(2, n, 3, dtype=dtype)], {"axis": 1}))
        c.output(c.graph.add("layer_norm", [x, scale], {"axis": 1}))
        c.output(c.graph.add("rms_norm", [x, scale], {"axis": 1}))
    tolerance = {dt.f16: 2e-3, dt.bf16: 1.6e-2, dt.f64: 1e-12}[dtype]
    check(c, "cpu", tolerance, tolerance)


def test_extreme_rows():
    c = Cases(1)
    x = np.full((6, 40), -np.inf, np.float32)
    x[1, 3] = 2.0
    x[2] = 1e30
    x[3] = np.linspace(-200, 200, 40)
    x[4, :20] = 3e38
    x[5] = 0
    for attrs in ({"axis": 1, "masked": True}, {"axis": 1, "masked": False}):
        c.output(c.graph.add("softmax", [c.input(array=x)], attrs))
    far = (c.rng.standard_normal((3, 200)) + 1e4).astype(np.float32)
    check(c, "cpu", 1e-5, 1e-6)
    d = Cases(2)
    d.output(d.graph.add("layer_norm", [d.input(array=far)], {"axis": 1}))
    exact = far.astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
    _, run = d.compiled("cpu")
    # The mean of numbers near 1e4 is good to 1e-3 / sqrt(accumulators); deviations are near 1.
    np.testing.assert_allclose(run(1)[0], exact, 0, 2e-3)


def test_masked_rows_have_no_denormal_numbers():
    x = np.linspace(-300, 0, 200, dtype=np.float32)[None].repeat(3, 0)
    x[1] = -1e9
    x[1, :3] = 0
    x[2, 50:] = -np.inf
    c = Cases(4)
    c.output(c.graph.add("softmax", [c.input(array=x)], {"axis": 1}))
    c.output(c.graph.add("softmax", [c.input(array=x.T)], {"axis": 0}))
    for target in VARIANTS:
        check(c, target, 1e-5, 1e-6)
    _, run = c.compiled("cpu")
    for y in run(1):
        assert not ((y > 0) & (y < 1e-38)).any()


def test_rows_never_recompute_their_statistics():
    c = Cases(3)
    c.output(c.graph.add("softmax", [c.input(4, 50, dtype=dt.f64)], {"axis": 1}))
    program = check(c, "cpu", 1e-12, 1e-12)
    (kernel,) = program.kernels()
    # Maximum, subtraction, exponential, sum, scale: a few operations for each element.
    assert evaluate(operations(kernel), {}) < 4 * 50 * 8
