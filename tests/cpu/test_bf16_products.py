"""Products and convolutions of bf16 with f32 sums.

What is compared are sums of the same rounded operands, so the tolerance is that of f32 sums in
another order (see test_contractions). The templates for AVX512_BF16 and AMX run in the kernel
interpreter on every machine, and natively, with the same bits, where the processor has them.
"""

import ml_dtypes
import numpy as np
import pytest
from bits import assert_same_bits
from cpu.native_graphs import Cases, check, interpreted

from smelt.codegen.c_vector import AVX512, with_dot2, with_tiles
from smelt.errors import TargetError, UsageError
from smelt.ir import dtype as dt
from smelt.ir.expr import var
from smelt.ir.graph.core import Value
from smelt.ir.kernel import intrinsics
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.nodes import load
from smelt.ir.kernel.text import parse_kernel, print_kernel
from smelt.ir.kernel.verifier import verify
from smelt.ir.program import Program
from smelt.passes.graph.pipeline import Options, optimise
from smelt.passes.schedule import tile_gemm, tile_product, tile_rows
from smelt.targets.base import BuildOptions, find_target
from smelt.targets.cpu.isa import Variant, native
from smelt.targets.cpu.target import lower_for

DOT2 = Variant("dot2", with_dot2(AVX512))
TILES = Variant("tiles", with_tiles(with_dot2(AVX512)))
SHAPES = [(1, 1, 1), (1, 65, 33), (2, 3, 16), (16, 32, 32), (17, 31, 48), (31, 64, 49),
          (33, 33, 17), (65, 130, 100)]


def rounded(c: Cases, x: Value) -> Value:
    return c.graph.add("cast", [x], {"to": dt.bf16})


def eighths(c: Cases, *shape: int) -> np.ndarray:
    """Numbers whose products add up exactly, in any order."""
    return c.rng.integers(-16, 17, shape).astype(np.float32) / 8


def weights(c: Cases, *shape: int) -> Value:
    array = c.rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    return c.graph.constant(array)


def products(c: Cases) -> None:
    """Bare ones, from f32 and from bf16, and those with an epilogue that leaves in bf16 too: what
    is rounded there is exact, since a sum in another order might round the other way."""
    g = c.graph
    for m, k, n in SHAPES:
        x = c.input(m, k) if m % 2 else c.input(m, k, dtype=dt.bf16)
        left = rounded(c, x) if m % 2 else x
        c.output(g.add("matmul", [left, weights(c, k, n)], {"dtype": dt.f32}))
    for shape, k, n in (((2, 19), 40, 50), ((1, 3, 11), 32, 64)):
        x = c.input(array=eighths(c, *shape, k))
        y = g.constant(eighths(c, k, n).astype(ml_dtypes.bfloat16))
        y = g.add("matmul", [rounded(c, x), y], {"dtype": dt.f32})
        y = g.add("relu", [g.add("add", [y, c.input(array=eighths(c, *shape, n))])])
        c.output(g.add("mul", [y, c.input(*shape, 1)]))
        c.output(g.add("matmul", [rounded(c, y), weights(c, n, 20)], {"dtype": dt.f32}))
    c.output(g.add("matmul", [c.input(0, 5, dtype=dt.bf16), weights(c, 5, 3)], {"dtype": dt.f32}))


def convolutions(c: Cases) -> None:
    g = c.graph
    for channels, features, spatial, window, stride, dilation, pads in (
            (3, 16, (9, 11), (3, 3), 1, 1, (1, 1)), (16, 40, (7, 7), (3, 3), 1, 1, (1, 1)),
            (7, 33, (13, 10), (5, 2), 2, 1, (2, 0)), (5, 8, (13, 12), (3, 3), 1, 2, (2, 2)),
            (32, 16, (4, 5), (3, 3), 3, 1, (0, 1)), (1, 20, (6, 40), (1, 7), 1, 3, (0, 9)),
            (32, 40, (7, 9), (3, 3), 1, 1, (1, 1)), (16, 20, (6, 10), (3, 2), 1, 1, (0, 1)),
            (64, 33, (9, 11), (3, 3), 1, 2, (2, 1)), (32, 5, (31, 33), (2, 3), 1, 1, (1, 0)),
            (96, 16, (1, 7), (5, 1), 1, 1, (2, 0)), (4, 48, (23,), (3,), 1, 1, (1,)),
            (4, 6, (5, 6, 7), (3, 2, 3), 1, 1, (1, 0, 1))):
        x = c.input(2, channels, *spatial)
        rank = len(spatial)
        y = g.add("conv", [rounded(c, x), weights(c, features, channels, *window)], {
            "strides": (stride,) * rank, "dilations": (dilation,) * rank, "low": pads,
            "high": tuple(reversed(pads)), "dtype": dt.f32})
        y = g.add("add", [y, c.input(2, features, *(1,) * rank)])
        c.output(g.add("relu", [y]))


def lowered(c: Cases, variant: Variant) -> Program:
    optimise(c.graph, Options(channels_last=True, bf16=True))
    program = lower_for(c.graph, variant)
    for kernel in program.kernels():
        verify(kernel)
    return program


@pytest.mark.parametrize("rows_bytes", [tile_rows.SHARED_BYTES, 0])
@pytest.mark.parametrize("make", [products, convolutions])
def test_templates(make, rows_bytes, rng, monkeypatch):
    """Rows gathered for all panels at once, and in chunks."""
    monkeypatch.setattr(tile_rows, "SHARED_BYTES", rows_bytes)
    monkeypatch.setattr(tile_rows, "ROWS_BYTES", 16 * 1024)
    seed = int(rng.integers(1 << 31))
    for variant in (DOT2, TILES):
        c = Cases(seed)
        make(c)
        wanted = c.expected()
        program = lowered(c, variant)
        for got, want in zip(interpreted(c, program), wanted, strict=True):
            np.testing.assert_allclose(got, want, 0, 2e-4)
        used = any(f"@{intrinsics.TILE_DOT.name}" in str(k) for k in program.kernels())
        assert used == variant.vector.tiles
    if native().vector.dot2:
        c = Cases(seed)
        make(c)
        _, run = c.compiled("cpu")
        alone = run(1)
        assert_same_bits(alone, run(3))
        c = Cases(seed)
        make(c)
        for got, want in zip(alone, interpreted(c, lowered(c, native())), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("make", [products, convolutions])
@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:generic"])
def test_any_machine_computes_with_bf16_operands(target, make, rng):
    c = Cases(int(rng.integers(1 << 31)))
    make(c)
    check(c, target, 0, 2e-4)


def test_symbolic_rows_and_batches(rng):
    c = Cases(int(rng.integers(1 << 31)), symbolic=True)
    for m, k, n in ((1, 64, 40), (37, 33, 16), (64, 8, 35)):
        x = rounded(c, c.input(m, k, fixed=(1,)))
        c.output(c.graph.add("matmul", [x, weights(c, k, n)], {"dtype": dt.f32}))
    x = rounded(c, c.input(3, 32, 9, 7, fixed=(1, 2, 3)))
    c.output(c.graph.add("conv", [x, weights(c, 20, 32, 3, 3)], {
        "strides": (1, 1), "dilations": (1, 1), "low": (1, 1), "high": (1, 1), "dtype": dt.f32}))
    wanted = c.expected()
    for got, want in zip(interpreted(c, lowered(c, TILES)), wanted, strict=True):
        np.testing.assert_allclose(got, want, 0, 2e-4)
    check(c, "cpu", 0, 2e-4)


def layers_of_f32(c: Cases) -> None:
    """Products and convolutions, those with gathered windows and those of a padded image."""
    g = c.graph
    for m, k, n in ((16, 32, 32), (17, 64, 33), (31, 33, 1), (65, 130, 100)):
        w = g.constant(c.rng.standard_normal((k, n), np.float32))
        c.output(g.add("relu", [g.add("matmul", [c.input(m, k), w])]))
    for channels, features, spatial, window, stride in (
            (32, 40, (7, 9), (3, 3), 1), (64, 33, (21, 23), (3, 3), 1),
            (40, 16, (9, 11), (3, 3), 2), (33, 33, (13, 10), (5, 2), 1)):
        w = g.constant(c.rng.standard_normal((features, channels, *window), np.float32))
        c.output(g.add("conv", [c.input(2, channels, *spatial), w], {
            "strides": (stride,) * 2, "low": (1, 1), "high": (1, 0)}))


@pytest.mark.parametrize("rows_bytes", [tile_rows.SHARED_BYTES, 0])
def test_f32_in_two_parts(rows_bytes, rng, monkeypatch):
    """Two parts hold 16 bits or more: a term errs by 3 * 2^-18 at most, and up to 600 of them of
    about 2, at random, by 3e-4 (one part alone: by 0.1)."""
    monkeypatch.setattr(tile_rows, "SHARED_BYTES", rows_bytes)
    monkeypatch.setattr(tile_rows, "ROWS_BYTES", 16 * 1024)
    monkeypatch.setattr(tile_gemm, "LEAST_IN_PARTS", 0)
    seed = int(rng.integers(1 << 31))
    c = Cases(seed)
    layers_of_f32(c)
    wanted = c.expected()
    optimise(c.graph, Options(channels_last=True))
    program = lower_for(c.graph, TILES, parts=True)
    for kernel in program.kernels():
        verify(kernel)
    used = [k for k in program.kernels() if f"@{intrinsics.TILE_DOT.name}" in str(k)]
    assert len(used) == len(wanted)
    in_parts = interpreted(c, program)
    for got, want in zip(in_parts, wanted, strict=True):
        np.testing.assert_allclose(got, want, 0, 2e-3)
    exact = lower_for(c.graph, TILES, exact=True, parts=True)
    assert all(f"@{intrinsics.TILE_DOT.name}" not in str(k) for k in exact.kernels())
    if native().vector.tiles:
        c = Cases(seed)
        layers_of_f32(c)
        _, run = c.compiled("cpu", precision="bf16", keep=("",))  # nodes of no origin
        alone = run(1)
        assert_same_bits(alone, run(3))
        for got, want in zip(alone, in_parts, strict=True):
            np.testing.assert_array_equal(got, want)


# What the intrinsics mean -------------------------------------------------------------------------


def bf16(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)


def test_pairs_and_tiles_are_sums_of_exact_products(rng):
    """In f64 the products of bf16 are exact. A sum of n in f32 errs by at most n units in the last
    place of the sum of magnitudes."""
    a, b, total = bf16(rng, 16, 2), bf16(rng, 16, 2), rng.standard_normal(16).astype(np.float32)
    wide = (a.astype(np.float64) * b.astype(np.float64)).sum(-1) + total
    got = intrinsics.DOT2.semantics(total, a.view(np.int32)[:, 0], b.view(np.int32)[:, 0])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wide, 0, 3 * 2**-23 * 8)
    a, b = bf16(rng, 16, 32), bf16(rng, 32, 16)
    total = rng.standard_normal((16, 16)).astype(np.float32)
    pairs = b.reshape(16, 2, 16).swapaxes(1, 2)
    got = intrinsics.TILE_DOT.semantics(total.reshape(-1), a.reshape(-1), pairs.reshape(-1))
    wide = total + a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(got.reshape(16, 16), wide, 0, 34 * 2**-23 * 64)


def tile_kernel(pitch: int):
    """y = a tile of rows `pitch` apart, times a packed tile."""
    b = Builder("tile")
    x, w = b.param("x", dt.bf16, (16 * pitch,)), b.param("w", dt.bf16, (512,))
    y = b.param("y", dt.f32, (256,))
    total = b.alloc("total", dt.f32, (), "register", 256)
    b.store(total, (), 0.0)
    rows = b.let("a", load(x, (tile_product._tile_at(var("s", extent=1) * 0, pitch),)))
    b.store(total, (), intrinsics.tile_dot(total[()], rows, b.let("b", load(w, (0,), 512))))
    b.store(y, (0,), total[()])
    return b.kernel()


def test_a_tile_of_rows_apart(rng):
    kernel = tile_kernel(40)
    verify(kernel)
    assert print_kernel(parse_kernel(print_kernel(kernel))) == print_kernel(kernel)
    x, w, y = bf16(rng, 16, 40), bf16(rng, 16, 16, 2), np.zeros(256, np.float32)
    run_kernel(kernel, [x.reshape(-1), w.reshape(-1), y])
    flat = w.swapaxes(1, 2).reshape(32, 16).astype(np.float64)
    np.testing.assert_allclose(y.reshape(16, 16), x[:, :32].astype(np.float64) @ flat, 0, 1e-4)


# Conversions and options --------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:x86-64-v2"])
def test_vectors_round_to_bf16_as_ml_dtypes_does(target, rng):
    """All upper halves with lower ones around a tie, infinities and denormals among them."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = rng.choice(np.array([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff], np.uint32), upper.shape)
    array = (upper | lower).view(np.float32)
    c = Cases(0)
    x = c.input(array=array)
    y = rounded(c, x)
    c.output(y)
    c.output(c.graph.add("cast", [y], {"to": dt.f32}))
    program, run = c.compiled(target)
    assert all("f32_to_small" not in str(k) for k in program.kernels())
    narrow, wide = run(1)
    want = array.astype(ml_dtypes.bfloat16)
    number = ~np.isnan(array)
    np.testing.assert_array_equal(narrow.view(np.uint16)[number], want.view(np.uint16)[number])
    assert np.isnan(narrow[~number]).all()
    np.testing.assert_array_equal(wide, narrow.astype(np.float32))


@pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu:generic"])
def test_a_target_without_the_instructions_says_so(target):
    c = Cases(0)
    c.output(c.graph.add("relu", [c.input(3)]))
    with pytest.raises(TargetError, match="no instructions for bf16 products"):
        find_target(target).build(c.graph, BuildOptions(precision="bf16"))


def test_an_unknown_precision_is_refused():
    from smelt.compilation import Request

    with pytest.raises(UsageError, match="precision is 'fp4': use f32, bf16, bf16-storage or f16"):
        Request(b"", precision="fp4")
