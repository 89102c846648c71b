"""Matrix products and convolutions on the CPU against the operators' numpy references.

Tolerance: sums of n products in another order differ by at most about n units in the last place of
the sum of magnitudes; 2e-5 of the largest magnitude leaves a margin for n up to a thousand. Weights
of convolutions are scaled so that results are near 2, the largest near 10: 1e-4 is 1e-5 of that, of
which Winograd's transforms take up to 2e-6 (see test_winograd). Integer products are exact.
"""

import numpy as np
import pytest
from bits import assert_same_bits
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir import dtype as dt
from smelt.ir.graph.core import Value
from smelt.passes.schedule import deep_gemm
from smelt.passes.schedule.tiles import Registers, candidates, choose, split_rows

SHAPES = [(1, 1, 1), (1, 7, 33), (2, 0, 3), (0, 4, 5), (3, 5, 17), (13, 16, 16), (14, 31, 32),
          (15, 64, 48), (29, 3, 100), (64, 65, 9)]


def matmuls(c: Cases, constant: bool) -> None:
    for m, k, n in SHAPES:
        right = c.rng.standard_normal((k, n)).astype(np.float32)
        w = c.graph.constant(right) if constant else c.input(k, n, array=right)
        y = c.graph.add("matmul", [c.input(m, k), w])
        c.output(y)


def batched(c: Cases, constant: bool) -> None:
    for lead_a, lead_b in (((2,), (2,)), ((2, 3), (1, 3)), ((1, 3), (2, 1)), ((4,), ())):
        for m, k, n in ((5, 7, 19), (1, 16, 16), (17, 4, 40)):
            right = c.rng.standard_normal((*lead_b, k, n)).astype(np.float32)
            w = c.graph.constant(right) if constant else c.input(array=right)
            c.output(c.graph.add("matmul", [c.input(*lead_a, m, k), w]))


def epilogues(c: Cases, constant: bool) -> None:
    g = c.graph
    for m, k, n in ((6, 9, 20), (1, 33, 64), (31, 8, 7)):
        w = g.constant(c.rng.standard_normal((k, n)).astype(np.float32))
        y = g.add("matmul", [c.input(2, m, k), w])
        y = g.add("add", [y, c.input(n)])
        y = g.add("mul", [y, g.add("sigmoid", [y])])
        c.output(g.add("add", [y, c.input(2, m, n)]))
        y = g.add("matmul", [c.input(2, m, k), w])
        c.output(g.add("add", [y, c.input(2, m, 1)]))


def check_close(c: Cases, target: str, kernels=()) -> None:
    program = check(c, target, 0, 1e-4, kernels)
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 1e-4)


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("make", [matmuls, batched, epilogues])
def test_matmul(make, constant, target, rng):
    c = Cases(int(rng.integers(1 << 31)))
    make(c, constant)
    check_close(c, target, ["matmul"])


@pytest.mark.parametrize("make", [matmuls, batched])
def test_matmul_of_symbolic_sizes(make, rng):
    c = Cases(int(rng.integers(1 << 31)), symbolic=True)
    make(c, False)
    check(c, "cpu", 0, 1e-4)


@pytest.mark.parametrize("target", VARIANTS[:3])
@pytest.mark.parametrize("rows_bytes", [deep_gemm.ROWS_BYTES, 60_000])
def test_deep_products(target, rows_bytes, rng, monkeypatch):
    """Blocks of the reduction: several, a ragged last one, ragged panels, rows in one chunk and in
    several; epilogues run once. And the sums are those of an unbroken reduction."""
    monkeypatch.setattr(deep_gemm, "ROWS_BYTES", rows_bytes)
    monkeypatch.setattr(deep_gemm, "PANEL_BYTES", 10_000)
    c = Cases(int(rng.integers(1 << 31)))
    for m, k, n in ((42, 331, 7), (100, 400, 65), (43, 1000, 160), (151, 160, 33)):
        w = c.graph.constant((c.rng.standard_normal((k, n)) / np.sqrt(k)).astype(np.float32))
        y = c.graph.add("add", [c.graph.add("matmul", [c.input(1, m, k), w]), c.input(n)])
        c.output(c.graph.add("relu", [y]))
    right = (c.rng.standard_normal((257, 40)) / 16).astype(np.float32)
    c.output(c.graph.add("matmul", [c.input(60, 257), c.input(array=right)]))
    check_close(c, target, ["matmul"])
    _, run = c.compiled(target)
    broken = run(1)
    monkeypatch.setattr(deep_gemm, "PANEL_BYTES", 1 << 30)
    _, run = c.compiled(target)
    assert_same_bits(broken, run(1))


def conv(c: Cases, n, channels, features, spatial, window, stride=1, dilation=1, pad=0, groups=1,
         after: str | None = None) -> Value:
    g, rank = c.graph, len(spatial)
    w = c.rng.standard_normal((features, channels // groups, *window))
    w = (w / np.sqrt(w[0].size)).astype(np.float32)
    pads = (pad,) * rank if isinstance(pad, int) else pad
    y = g.add("conv", [c.input(n, channels, *spatial), g.constant(w)], {
        "strides": (stride,) * rank, "dilations": (dilation,) * rank, "low": pads,
        "high": tuple(reversed(pads)), "groups": groups})
    bias = c.rng.standard_normal((features, *(1,) * rank)).astype(np.float32)
    y = g.add("add", [y, g.constant(bias)])
    return g.add(after, [y]) if after else y


def dense(c: Cases) -> None:
    for channels, features in ((1, 8), (3, 16), (5, 33), (16, 20), (40, 7)):
        c.output(conv(c, 1, channels, features, (9, 11), (3, 3), pad=1, after="relu"))
        c.output(conv(c, 2, channels, features, (8, 7), (3, 2), stride=2, pad=(0, 1)))
        c.output(conv(c, 1, channels, features, (13, 31), (3, 3), dilation=2, pad=2))
    c.output(conv(c, 1, 4, 18, (1, 1), (1, 1)))
    c.output(conv(c, 1, 6, 6, (17, 40), (5, 7), stride=3, pad=(2, 3), after="sigmoid"))
    c.output(conv(c, 1, 2, 4, (2, 2), (3, 3), pad=1))


def depthwise(c: Cases) -> None:
    for channels in (1, 7, 16, 17, 50):
        c.output(conv(c, 1, channels, channels, (9, 8), (3, 3), pad=1, groups=channels))
        c.output(conv(c, 2, channels, channels, (10, 13), (5, 3), stride=2, pad=(2, 1),
                      groups=channels, after="relu"))
    c.output(conv(c, 1, 12, 12, (7, 9), (3, 3), dilation=2, pad=2, groups=12))
    c.output(conv(c, 1, 12, 12, (19,), (4,), pad=1, groups=12))


def other_ranks(c: Cases) -> None:
    c.output(conv(c, 2, 6, 10, (23,), (3,), pad=1))
    c.output(conv(c, 1, 3, 5, (40,), (9,), stride=4))
    c.output(conv(c, 1, 4, 6, (5, 6, 7), (3, 2, 3), pad=(1, 0, 1)))
    c.output(conv(c, 1, 8, 12, (7, 9), (3, 3), pad=1, groups=4))


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("make", [dense, depthwise, other_ranks])
def test_convolution(make, target, rng):
    c = Cases(int(rng.integers(1 << 31)))
    make(c)
    check(c, target, 0, 1e-4)


def test_convolution_of_symbolic_sizes(rng):
    for channels, groups in ((6, 1), (6, 6)):
        c = Cases(int(rng.integers(1 << 31)), symbolic=True)
        w = c.rng.standard_normal((6, channels // groups, 3, 3))
        w = (w / np.sqrt(w[0].size)).astype(np.float32)
        for height, width in ((3, 4), (9, 31)):
            x = c.input(2, channels, height, width, fixed=(1,))
            c.output(c.graph.add("conv", [x, c.graph.constant(w)], {
                "low": (1, 1), "high": (1, 1), "groups": groups, "strides": (2, 1)}))
        check(c, "cpu", 0, 1e-4)


def integers(c: Cases, shape, dtype: dt.DType) -> np.ndarray:
    return c.rng.integers(dtype.min, dtype.max, shape, endpoint=True).astype(dtype.numpy)


@pytest.mark.parametrize("target", VARIANTS)
def test_quantised_products_are_exact(target, rng):
    """(x - zero) . w with saturating requantisation, as exporters write it."""
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    for m, k, n, zero in ((1, 1, 1, 0), (3, 7, 17, 128), (20, 64, 33, 5), (2, 130, 16, 255)):
        x = c.input(dtype=dt.u8, array=integers(c, (m, k), dt.u8))
        wide = g.add("sub", [g.add("cast", [x], {"to": dt.i32}), g.constant(np.int32(zero))])
        y = g.add("matmul", [wide, g.constant(integers(c, (k, n), dt.i8))], {"dtype": dt.i32})
        c.output(y)
    for channels, groups in ((3, 1), (16, 1), (20, 20)):
        x = c.input(dtype=dt.u8, array=integers(c, (1, channels, 9, 12), dt.u8))
        wide = g.add("sub", [g.add("cast", [x], {"to": dt.i32}), g.constant(np.int32(113))])
        w = g.constant(integers(c, (20, channels // groups, 3, 3), dt.i8))
        y = g.add("conv", [wide, w], {"low": (1, 1), "high": (1, 1), "groups": groups,
                                      "dtype": dt.i32})
        scale = g.constant(c.rng.uniform(1e-4, 1e-2, (20, 1, 1)).astype(np.float32))
        c.output(g.add("requantize", [y, scale, g.constant(np.float32(7))], {"to": dt.u8}))
        c.output(y)
    check(c, target, 0, 0)


def test_tiles_fit_the_registers_and_cover_the_rows():
    for registers in (Registers(16, 32), Registers(8, 16), Registers(4, 32), Registers(1, 16)):
        for tile in candidates(registers):
            assert tile.rows * tile.vectors + tile.vectors + 1 <= registers.count
        assert choose(169, 64, registers) in candidates(registers)
    for rows in range(1, 200):
        for limit in (1, 6, 14):
            blocks = split_rows(rows, limit)
            assert sum(h * n for h, n in blocks) == rows
            assert all(1 <= h <= limit for h, _ in blocks)
