"""Transposes and elementwise kernels whose operands run along different axes, on the CPU.

Movement is exact; arithmetic is a handful of correctly rounded f32 operations, so 1e-6 covers the
functions among them.
"""

import numpy as np
import pytest
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir import dtype as dt
from smelt.ir.expr import walk
from smelt.ir.kernel.nodes import Load, expressions, statements
from smelt.ir.kernel.text import print_kernel

SIZES = (1, 8, 15, 16, 17, 33, 127)


def matrices(c: Cases) -> None:
    for rows in SIZES:
        for columns in SIZES:
            x = c.input(rows, columns)
            c.output(c.graph.add("transpose", [x], {"perm": (1, 0)}))


def batched(c: Cases) -> None:
    g = c.graph
    for perm in ((0, 2, 3, 1), (0, 3, 1, 2), (2, 1, 0, 3), (3, 2, 1, 0), (1, 3, 0, 2)):
        c.output(g.add("transpose", [c.input(3, 5, 17, 20)], {"perm": perm}))
        c.output(g.add("transpose", [c.input(2, 40, 1, 33)], {"perm": perm}))


def fused(c: Cases) -> None:
    g = c.graph
    for n, m in ((20, 37), (16, 64), (9, 12)):
        x, y, row, column = c.input(2, n, m), c.input(2, m, n), c.input(n), c.input(m, 1)
        turned = g.add("transpose", [x], {"perm": (0, 2, 1)})
        total = g.add("add", [g.add("mul", [turned, y]), row])
        c.output(g.add("tanh", [g.add("sub", [total, column])]))
        other = g.add("transpose", [g.add("exp", [x])], {"perm": (0, 2, 1)})
        c.output(g.add("max", [other, turned]))
        # One operand of each direction, and the sum of a matrix and its transpose.
    square = c.input(50, 50)
    c.output(g.add("add", [square, g.add("transpose", [square], {"perm": (1, 0)})]))
    part = g.add("slice", [c.input(40, 60)], {"starts": (3, 5), "sizes": (33, 50),
                                              "steps": (1, 1)})
    c.output(g.add("transpose", [part], {"perm": (1, 0)}))


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("make", [matrices, batched, fused])
def test_transposes(make, target):
    c = Cases(int(np.random.default_rng().integers(1 << 31)))
    make(c)
    tolerance = 1e-6 if make is fused else 0.0
    program = check(c, target, tolerance, tolerance)
    if target == VARIANTS[0]:
        for got, want in zip(interpreted(c, program), c.expected(), strict=True):
            np.testing.assert_allclose(got, want, tolerance, tolerance)


@pytest.mark.parametrize("dtype", [dt.u8, dt.i8, dt.f16, dt.bf16, dt.i32, dt.i64, dt.bool_, dt.f64],
                         ids=repr)
def test_types(dtype):
    c = Cases(int(np.random.default_rng().integers(1 << 31)))
    for rows, columns in ((16, 32), (17, 40), (5, 127)):
        array = (c.rng.standard_normal((rows, columns)) * 50).astype(dtype.numpy)
        x = c.input(array=array, dtype=dtype)
        c.output(c.graph.add("transpose", [x], {"perm": (1, 0)}))
    check(c, "cpu", 0, 0)


def test_symbolic_sizes():
    for rows, columns in ((0, 5), (1, 16), (33, 17), (64, 15)):
        c = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic=True)
        c.output(c.graph.add("transpose", [c.input(rows, columns)], {"perm": (1, 0)}))
        check(c, "cpu", 0, 0)


def test_large_transposes_read_vectors_only():
    c = Cases(1)
    c.output(c.graph.add("transpose", [c.input(2, 32, 64)], {"perm": (0, 2, 1)}))
    program = check(c, "cpu:x86-64-v3", 0, 0)
    (kernel,) = program.kernels()
    loads = [e for s in statements(kernel.body) for x in expressions(s) for e in walk(x)
             if isinstance(e, Load) and e.buffer.space == "global"]
    assert loads and all(e.lanes == 8 for e in loads)


def pictures(c: Cases) -> None:
    """A few channels become the last axis, as they are and in bytes."""
    g = c.graph
    for channels in (2, 3, 4):
        for pixels in (15, 16, 17, 33, 130):
            x = c.input(2, channels, pixels, fixed=(1,))
            turned = g.add("transpose", [x], {"perm": (0, 2, 1)})
            c.output(g.add("mul", [turned, c.input(channels, fixed=(0,))]))
            scale, zero = g.constant(np.float32(0.03)), g.constant(np.float32(114))
            quantised = g.add("quantize", [x, scale, zero], {"to": dt.u8})
            c.output(g.add("transpose", [quantised], {"perm": (0, 2, 1)}))


@pytest.mark.parametrize("target, symbolic", [
    ("cpu", False), ("cpu", True), ("cpu:x86-64-v3", True), ("cpu:generic", False)])
def test_a_few_channels_are_interleaved(target, symbolic):
    c = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic)
    pictures(c)
    program = check(c, target, 0, 0)
    if target == "cpu":
        text = "".join(print_kernel(k) for k in program.kernels())
        assert text.count("shuffle") > 50
        for got, want in zip(interpreted(c, program), c.expected(), strict=True):
            np.testing.assert_array_equal(got, want)
