"""Products and convolutions of f32 whose constant weights are kept in 16 bits.

The weights are random numbers rounded beforehand, which f32 holds exactly, so the oracles compute
what the kernels do: numpy's products, or the graph with the same weights as f32. Weights are drawn
so that results are near 2 whatever the reduction: up to 2500 products whose magnitudes sum up to
65, of which f32 in any order keeps 2e-5. Where the order is the same, bits are.
"""

from math import prod

import ml_dtypes
import numpy as np
import pytest
from bits import assert_same_bits
from cpu.foreign_machines import build, run
from cpu.native_graphs import VARIANTS, Cases, check, interpreted
from cpu.test_foreign_machines import MACHINES

from smelt.codegen.c_vector import AVX512, NEON
from smelt.ir import dtype as dt
from smelt.ir.dtype import DType
from smelt.ir.graph.core import Value
from smelt.ir.kernel.verifier import verify
from smelt.passes.graph.pipeline import Options, optimise
from smelt.targets.cpu.isa import Variant
from smelt.targets.cpu.target import lower_for

KINDS = (dt.bf16, dt.f16)
TOLERANCE = 2e-5
WIDE, ARM = Variant("wide", AVX512), Variant("arm", NEON)
SHAPES = [(1, 1, 1), (1, 257, 131), (5, 32, 65), (17, 31, 48), (61, 130, 100), (129, 24, 67)]
"""Rows of one tile and of many, which widen their weights first."""


class Stored(Cases):
    """Cases with weights of a type, or of f32 with the same numbers."""

    def __init__(self, seed: int, kind: DType, wide: bool = False, symbolic: bool = False):
        super().__init__(seed, symbolic)
        self.kind, self.wide = kind, wide

    def weights(self, *shape: int, reduction: int = 1) -> Value:
        array = self.rng.standard_normal(shape, np.float32) / np.sqrt(max(reduction, 1))
        array = array.astype(self.kind.numpy)
        return self.graph.constant(array.astype(np.float32) if self.wide else array)

    def product(self, x: Value, k: int, n: int) -> Value:
        return self.graph.add("matmul", [x, self.weights(k, n, reduction=k)], {"dtype": dt.f32})


def products(c: Stored) -> None:
    """Bare ones, some with an epilogue, with a batch, with a reduction long enough for blocks, with
    many rows of a short one, and with nothing."""
    g = c.graph
    for m, k, n in SHAPES:
        c.output(c.product(c.input(m, k), k, n))
    for shape, k, n in (((2, 19), 40, 50), ((1, 3, 11), 32, 64)):
        y = c.product(c.input(*shape, k), k, n)
        y = g.add("relu", [g.add("add", [y, c.input(*shape, n)])])
        c.output(g.add("mul", [y, c.input(*shape, 1)]))
    c.output(c.product(c.input(47, 1031), 1031, 35))
    c.output(c.product(c.input(530, 40), 40, 33))
    batch = c.weights(3, 20, 37, reduction=20)
    c.output(g.add("matmul", [c.input(3, 50, 20), batch], {"dtype": dt.f32}))
    c.output(c.product(c.input(0, 5), 5, 3))
    c.output(c.product(c.input(3, 0), 0, 4))


def convolutions(c: Stored) -> None:
    """Windows of several ranks at borders, pointwise ones, groups, and transposed ones."""
    g = c.graph
    for channels, features, spatial, window, stride, dilation, pads, groups in (
            (16, 40, (7, 7), (3, 3), 1, 1, (1, 1), 1), (7, 33, (13, 10), (5, 2), 2, 1, (2, 0), 1),
            (24, 70, (12, 13), (1, 1), 1, 1, (0, 0), 1), (24, 70, (1, 1), (1, 1), 1, 1, (0, 0), 1),
            (9, 20, (2, 150), (1, 7), 1, 3, (0, 9), 1),
            (4, 6, (5, 6, 7), (3, 2, 3), 1, 1, (1, 0, 1), 1),
            (8, 12, (11, 9), (3, 3), 1, 1, (1, 1), 4), (36, 34, (3, 17), (3, 3), 1, 1, (1, 1), 2)):
        x, rank = c.input(2, channels, *spatial), len(spatial)
        w = c.weights(features, channels // groups, *window,
                      reduction=channels // groups * prod(window))
        y = g.add("conv", [x, w], {
            "strides": (stride,) * rank, "dilations": (dilation,) * rank, "low": pads,
            "high": tuple(reversed(pads)), "groups": groups, "dtype": dt.f32})
        c.output(g.add("relu", [g.add("add", [y, c.input(2, features, *(1,) * rank)])]))
    for channels, features, extent, window, stride in ((5, 20, 9, 3, 2), (16, 7, 30, 2, 3)):
        sizes = ((extent - 1) * stride + window,) * 2
        c.output(g.add("conv_transpose", [
            c.input(2, channels, extent, extent),
            c.weights(channels, features, window, window, reduction=channels * window)], {
            "sizes": sizes, "strides": (stride,) * 2, "dtype": dt.f32}))


def rows_of_tables(c: Stored) -> None:
    """Rows gathered, alone and in the kernel of what follows, of vectors and of less."""
    g = c.graph
    for n, width in ((11, 48), (7, 33), (5, 1)):
        index = c.input(dtype=dt.i64, array=c.rng.integers(-n, n, (3, 13)))
        rows = g.add("cast", [g.add("gather", [c.weights(n, width), index])], {"to": dt.f32})
        c.output(g.add("mul", [g.add("add", [rows, c.input(13, width)]), c.input(3, 1, 1)]))
        c.output(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [products, convolutions, rows_of_tables])
@pytest.mark.parametrize("target", VARIANTS)
def test_native(target, make, kind, rng):
    """Within tolerance of the graph interpreter, and the same bits for any number of threads."""
    c = Stored(int(rng.integers(1 << 31)), kind)
    make(c)
    program = check(c, target, 0, TOLERANCE)
    assert any(s.type.dtype is kind for s in program.constants)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [products, convolutions])
def test_bits_are_those_of_f32_weights(make, kind, rng):
    """Every sum is taken in the order of the f32 kernels."""
    seed, found = int(rng.integers(1 << 31)), []
    for wide in (False, True):
        c = Stored(seed, kind, wide)
        make(c)
        _, native = c.compiled("cpu")
        found.append(native(1))
    assert_same_bits(*found)


@pytest.mark.parametrize("make", [products, convolutions])
@pytest.mark.parametrize("variant, kind", [(WIDE, dt.bf16), (ARM, dt.f16)])
def test_in_the_interpreter(variant, make, kind, rng):
    c = Stored(int(rng.integers(1 << 31)), kind)
    make(c)
    wanted = c.expected()
    optimise(c.graph, Options(channels_last=True))
    program = lower_for(c.graph, variant)
    for kernel in program.kernels():
        verify(kernel)
    for got, want in zip(interpreted(c, program), wanted, strict=True):
        np.testing.assert_allclose(got, want, 0, TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 29, 200])
def test_rows_that_only_a_run_knows(m, kind, rng):
    c = Stored(int(rng.integers(1 << 31)), kind, symbolic=True)
    for k, n in ((64, 40), (33, 16), (2500, 35)):
        c.output(c.product(c.input(m, k, fixed=(1,)), k, n))
    for channels, features in ((16, 40), (3, 20)):
        x = c.input(1, channels, 9, m, fixed=(0, 1, 2))
        w = c.weights(features, channels, 3, 3, reduction=9 * channels)
        c.output(c.graph.add("conv", [x, w], {
            "low": (1, 1), "high": (1, 1), "dtype": dt.f32}))
    check(c, "cpu", 0, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kind", KINDS)
def test_foreign_machines(kind, machine, rng, tmp_path):
    c = Stored(int(rng.integers(1 << 31)), kind)
    for make in (products, convolutions, rows_of_tables):
        make(c)
    wanted = c.expected()
    build(c.graph, machine, tmp_path)
    found = run(machine, tmp_path, c.arrays)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, 0, TOLERANCE)
    if machine == "aarch64":
        assert_same_bits(found, run(machine, tmp_path, c.arrays, 3))


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:x86-64-v2", "cpu:generic"])
def test_every_f16_is_widened_as_numpy_does(target):
    """Denormals, infinities and NaN among them, by lanes and by their tails."""
    for count in (1 << 16, 65531):
        array = np.arange(count, dtype=np.uint16).view(np.float16)
        c = Cases(0)
        c.output(c.graph.add("cast", [c.input(dtype=dt.f16, array=array)], {"to": dt.f32}))
        _, native = c.compiled(target)
        (got,), number = native(1), ~np.isnan(array)
        np.testing.assert_array_equal(got.view(np.uint32)[number],
                                      array[number].astype(np.float32).view(np.uint32))
        assert np.isnan(got[~number]).all()


def test_rounding_is_to_nearest_even(rng):
    """The oracle of the oracles: ml_dtypes and numpy agree with rounding by arithmetic in f64."""
    x = rng.standard_normal(1000).astype(np.float32)
    for kind, bits in ((np.dtype(ml_dtypes.bfloat16), 8), (np.dtype(np.float16), 11)):
        mantissa, exponent = np.frexp(x.astype(np.float64))
        wanted = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
        normal = np.abs(x) > 1e-4
        np.testing.assert_array_equal(x.astype(kind).astype(np.float64)[normal], wanted[normal])
