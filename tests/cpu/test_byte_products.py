"""8-bit products and convolutions on machines with and without an instruction for them: exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cpu.foreign_machines import build, run
from cpu.native_graphs import VARIANTS, Cases, check, interpreted
from cpu.test_foreign_machines import MACHINES

from smelt.ir import dtype as dt
from smelt.ir.graph.core import Value
from smelt.ir.kernel.text import parse_kernel, print_kernel

TEMPLATES = ("_conv", "_matmul", "_depthwise")


def integers(c: Cases, shape: tuple[int, ...], dtype: dt.DType) -> np.ndarray:
    """All values of the type, its ends more often than others."""
    found = c.rng.integers(dtype.min, dtype.max, shape, endpoint=True)
    ends = np.where(c.rng.random(shape) < 0.5, dtype.min, dtype.max)
    return np.where(c.rng.random(shape) < 0.3, ends, found).astype(dtype.numpy)


def less(c: Cases, x: Value, zero: int) -> Value:
    """x - zero in i32, or x itself."""
    wide = c.graph.add("cast", [x], {"to": dt.i32})
    return c.graph.add("sub", [wide, c.graph.constant(np.int32(zero))]) if zero else x


def convolution(c: Cases, dtype: dt.DType, zero: int, shape: tuple[int, ...],
                weights: tuple[int, ...], **attrs) -> None:
    x = less(c, c.input(dtype=dtype, array=integers(c, shape, dtype)), zero)
    w = c.graph.constant(integers(c, weights, dt.i8))
    c.output(c.graph.add("conv", [x, w], {"dtype": dt.i32, **attrs}))


def cases(rng: np.random.Generator) -> Cases:
    """Runs of one byte, odd and prime numbers of them, sums whose pairs are as large as can be,
    groups, borders, strides and dilations of every rank, rows of one pixel."""
    c = Cases(int(rng.integers(1 << 31)))
    for dtype, zero in ((dt.u8, 0), (dt.u8, 77), (dt.i8, 0), (dt.i8, -3)):
        for m, k, n in ((1, 1, 1), (3, 7, 17), (15, 64, 33), (2, 131, 16)):
            x = less(c, c.input(dtype=dtype, array=integers(c, (m, k), dtype)), zero)
            w = c.graph.constant(integers(c, (k, n), dt.i8))
            c.output(c.graph.add("matmul", [x, w], {"dtype": dt.i32}))
        convolution(c, dtype, zero, (1, 5, 6, 17), (19, 5, 3, 3), low=(1, 2), high=(2, 1))
        convolution(c, dtype, zero, (2, 16, 5, 7), (3, 16, 1, 1))
        convolution(c, dtype, zero, (1, 3, 23), (17, 3, 4), strides=(2,), low=(3,), high=(2,))
        convolution(c, dtype, zero, (1, 6, 31), (8, 3, 3), groups=2, dilations=(3,))
        convolution(c, dtype, zero, (1, 4, 4, 5, 6), (6, 2, 2, 3, 1), groups=2, high=(1, 0, 1))
        convolution(c, dtype, zero, (1, 10, 7, 9), (10, 1, 3, 3), groups=10, low=(1, 1))
        convolution(c, dtype, zero, (1, 1, 1, 1), (1, 1, 1, 1))
    return c


def check_kernels(c: Cases, names: list[str]) -> None:
    """Each result of more than one element is by a template."""
    wanted = sum(y.type.numel != 1 for y in c.graph.outputs)
    assert sum(name.endswith(TEMPLATES) for name in names) >= wanted, names


@pytest.mark.parametrize("target", [*VARIANTS, "cpu:x86-64-v4"])
def test_products_are_exact(target, rng):
    c = cases(rng)
    program = check(c, target, 0, 0)
    check_kernels(c, [k.name for k in program.kernels()])
    for kernel in program.kernels():
        text = print_kernel(kernel)
        assert print_kernel(parse_kernel(text)) == text
    if target == "cpu:x86-64-v3":
        assert any("dot2_i16" in print_kernel(k) for k in program.kernels())
        for got, want in zip(interpreted(c, program), c.expected(), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("machine", MACHINES)
def test_products_on_other_machines(machine: str, tmp_path: Path, rng):
    c = cases(rng)
    built = build(c.graph, machine, tmp_path)
    check_kernels(c, [k["name"] for k in built.manifest["kernels"]])
    for got, want in zip(run(machine, tmp_path, c.arrays), c.expected(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_unsigned_weights_with_a_zero_point(rng):
    """Weights as ONNX Runtime's dynamic quantisation writes them: u8 around 128."""
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    x = c.input(dtype=dt.u8, array=integers(c, (1, 5, 8, 9), dt.u8))
    wide = g.add("cast", [g.constant(integers(c, (7, 5, 3, 3), dt.u8))], {"to": dt.i32})
    w = g.add("sub", [wide, g.constant(np.int32(128))])
    c.output(g.add("conv", [less(c, x, 99), w], {"dtype": dt.i32, "low": (1, 1)}))
    for target in ("cpu", "cpu:x86-64-v3"):
        check_kernels(c, [k.name for k in check(c, target, 0, 0).kernels()])


def matrices(c: Cases) -> None:
    """Products with matrices of the run: u8 x i8, and bytes of any sign less known and unknown zero
    points, in batches, with reductions and columns that fill no step and no panel."""
    def given(dtype: dt.DType, shape: tuple[int, ...], zero: int | None) -> Value:
        x = c.input(dtype=dtype, array=integers(c, shape, dtype))
        if zero is not None:
            return less(c, x, zero)
        point = c.input(dtype=dtype, array=integers(c, (), dtype))
        wide = (c.graph.add("cast", [v], {"to": dt.i32}) for v in (x, point))
        return c.graph.add("sub", list(wide))

    for left, right in (((3, 7), (7, 17)), ((1, 1), (1, 1)), ((2, 3, 15, 64), (2, 3, 64, 33)),
                        ((2, 9, 131), (131, 16)), ((5, 0), (0, 4))):
        for kinds, zeros in (((dt.u8, dt.i8), (0, 0)), ((dt.u8, dt.u8), (0, 77)),
                             ((dt.i8, dt.u8), (-3, None)), ((dt.i8, dt.i8), (None, None))):
            operands = [given(k, s, z) for k, s, z in zip(kinds, (left, right), zeros, strict=True)]
            c.output(c.graph.add("matmul", operands, {"dtype": dt.i32}))


@pytest.mark.parametrize("target", [*VARIANTS, "cpu:x86-64-v4"])
def test_matrices_of_the_run_are_packed(target, rng):
    c = Cases(int(rng.integers(1 << 31)))
    matrices(c)
    program = check(c, target, 0, 0)
    names = [k.name for k in program.kernels()]
    assert sum(n.endswith("_matmul") for n in names) >= 3 * 4, names
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:generic"])
def test_zero_points_that_a_run_tells(target, rng):
    """As in what ONNX Runtime's dynamic quantisation writes: one for all rows, or one for each."""
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    w = g.constant(integers(c, (37, 19), dt.i8))
    for dtype, shape in ((dt.u8, ()), (dt.u8, (5, 1)), (dt.i8, (2, 5, 1))):
        x = c.input(dtype=dtype, array=integers(c, (2, 5, 37), dtype))
        zero = c.input(dtype=dtype, array=integers(c, shape, dtype))
        wide = [g.add("cast", [v], {"to": dt.i32}) for v in (x, zero)]
        c.output(g.add("matmul", [g.add("sub", wide), w], {"dtype": dt.i32}))
    program = check(c, target, 0, 0)
    assert sum(k.name.endswith("_matmul") for k in program.kernels()) == 3
