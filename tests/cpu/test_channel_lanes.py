"""Convolutions and products of few features, whose lanes go over the channels, against ONNX Runtime
and the interpreters.

Tolerance: sums of n products in another order differ by at most about n units in the last place of
the sum of magnitudes; weights are scaled so that results are near 1 and n is below two thousand.
"""

from __future__ import annotations

import numpy as np
import pytest
from cpu.native_graphs import Cases, check, interpreted
from cpu.test_convolution_forms import OnnxCases

from smelt.ir import dtype as dt
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.nodes import load
from smelt.ir.kernel.text import parse_kernel, print_kernel
from smelt.passes.schedule.channel_lanes import LaneDot, sum_lanes

TARGETS = ("cpu", "cpu:x86-64-v3", "cpu:x86-64-v2", "cpu:generic")


def sums_of_lanes(text: str) -> bool:
    return "sum" in text and "shuffle" in text


@pytest.mark.parametrize("target", TARGETS)
def test_few_features(target, rng):
    """Numbers of features that fill a vector of results and that do not; channels below, at and
    beyond a vector; borders, strides, dilations, every rank, lines of one pixel and one past a
    tile, and padding whose value is cut off or copied."""
    c = OnnxCases(int(rng.integers(1 << 31)))

    def node(x, weights, after="", **attrs) -> None:
        w = c.normal(*weights)
        c.node("Conv", c.normal(*x), w / np.float32(np.sqrt(w[0].size)), after, **attrs)

    node((1, 64, 9, 17), (1, 64, 3, 3), "Relu", pads=[1] * 4)
    node((2, 37, 6, 33), (3, 37, 3, 2), "Sigmoid", pads=[0, 1, 2, 1])
    node((1, 16, 7, 31), (2, 16, 5, 5), strides=[2, 3], pads=[2] * 4)
    node((1, 48, 1, 1), (2, 48, 1, 1), "Tanh")
    node((3, 100, 97), (1, 100, 5), pads=[4, 3], dilations=[2])
    node((1, 8, 65), (1, 8, 9), pads=[9, 3])
    node((1, 19, 3, 4, 9), (2, 19, 2, 3, 3), dilations=[1, 1, 2], pads=[1, 0, 2, 0, 1, 2])
    node((2, 40, 5, 13), (1, 40, 1, 1), "Relu")
    node((1, 256, 4, 6), (4, 256, 3, 3), pads=[1] * 4)
    c.finished()
    program = check(c, target, 0, 5e-5)
    texts = [print_kernel(k) for k in program.kernels()]
    found = [text for text in texts if sums_of_lanes(text)]
    assert len(found) >= 7 or target not in TARGETS[:2]
    for text in found:
        assert print_kernel(parse_kernel(text)) == text
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 5e-5)


@pytest.mark.parametrize("target", TARGETS[:2])
def test_few_columns(target, rng):
    """Products, of rows in several axes too, with operands of the epilogue that vary by column, by
    row, by both or not at all."""
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    for rows, inner, columns in (((1,), 77, 1), ((5, 7), 64, 3), ((2, 1, 9), 130, 2),
                                 ((33,), 48, 4)):
        x = c.input(*rows, inner)
        w = c.rng.standard_normal((inner, columns)).astype(np.float32) / 8
        y = g.add("matmul", [x, g.constant(w)])
        for shape in ((columns,), (*rows, columns), (1,) * (len(rows) + 1)):
            y = g.add("add", [y, c.input(*shape)])
        c.output(g.add("relu", [y]))
    program = check(c, target, 0, 1e-4)
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 1e-4)


def test_symbolic_sizes(rng):
    c = Cases(int(rng.integers(1 << 31)), symbolic=True)
    for height, width in ((1, 5), (9, 34)):
        x = c.input(2, 32, height, width, fixed=(1,))
        w = c.rng.standard_normal((1, 32, 3, 3)).astype(np.float32) / 16
        c.output(c.graph.add("conv", [x, c.graph.constant(w)], {"low": (1, 1), "high": (1, 1)}))
        y = c.input(height, width, 48, fixed=(2,))
        w = c.rng.standard_normal((48, 2)).astype(np.float32) / 8
        c.output(c.graph.add("matmul", [y, c.graph.constant(w)]))
    check(c, "cpu", 0, 5e-5)


def test_infinities_stay_in_their_windows(rng):
    c = OnnxCases(int(rng.integers(1 << 31)))
    x = c.normal(1, 35, 9, 21)
    x[0, 3, 4, ::9] = np.inf
    c.node("Conv", x, np.abs(c.normal(2, 35, 3, 3)), pads=[1] * 4)
    c.finished()
    _, run = c.compiled("cpu")
    for got, want in zip(run(1), c.expected(), strict=True):
        np.testing.assert_array_equal(np.isinf(got), np.isinf(want))


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
def test_sums_come_in_order(lanes):
    """Any number of vectors up to the lanes gives so many sums in their order."""
    for count in range(1, lanes + 1):
        b = Builder("sums")
        x = b.param("x", dt.f32, (count * lanes,))
        y = b.param("y", dt.f32, (lanes,))
        b.store(y, (0,), sum_lanes(b, [load(x, (k * lanes,), lanes) for k in range(count)], lanes))
        given = np.arange(count * lanes, dtype=np.float32) ** 2
        found = np.zeros(lanes, np.float32)
        run_kernel(b.kernel(1), [given, found])
        np.testing.assert_array_equal(found[:count], given.reshape(count, lanes).sum(1))


def test_weights_are_packed_by_lanes(rng):
    matrix = rng.standard_normal((2, 5, 3)).astype(np.float32)
    packed = LaneDot(4, dt.f32, dt.f32).pack(matrix, 12)
    assert packed.shape == (1, 2, 2, 12)
    lanes = packed.reshape(2, 2, 3, 4).swapaxes(-1, -2).reshape(2, 8, 3)
    np.testing.assert_array_equal(lanes[:, :5], matrix)
    assert not lanes[:, 5:].any()
