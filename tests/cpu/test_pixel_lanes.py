"""Convolutions of one channel whose vectors hold several pixels, against ONNX Runtime.

Tolerance: sums of n products in another order differ by at most about n units in the last place of
the sum of magnitudes; operands are near 1 and n is below a hundred, so 5e-5 leaves a margin.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from cpu.native_graphs import Cases, check, interpreted
from cpu.test_convolution_forms import OnnxCases

from smelt.ir.kernel.text import parse_kernel, print_kernel
from smelt.passes.schedule.pixel_lanes import line_blocks, unit_of

TARGETS = ("cpu", "cpu:x86-64-v3", "cpu:x86-64-v2", "cpu:generic")


@pytest.mark.parametrize("target", TARGETS)
def test_results_of_several_pixels_share_a_vector(target, rng):
    """Features that fill a vector and that do not, lines of one unit, of a prime number of pixels
    and one past a tile; borders, dilations, long windows, every rank, long epilogues."""
    c = OnnxCases(int(rng.integers(1 << 31)))
    c.node("Conv", c.normal(1, 1, 28, 28), c.normal(8, 1, 5, 5), "Relu", pads=[2] * 4)
    c.node("Conv", c.normal(2, 1, 5, 33), c.normal(2, 1, 3, 3), "Sigmoid", pads=[0, 1, 2, 1])
    c.node("Conv", c.normal(1, 1, 7, 31), c.normal(1, 1, 3, 2), strides=[2, 1])
    c.node("Conv", c.normal(3, 1, 97), c.normal(3, 1, 17), pads=[9, 3])
    c.node("Conv", c.normal(1, 1, 3, 4, 37), c.normal(2, 1, 2, 3, 3), dilations=[1, 1, 2])
    c.node("Conv", c.normal(1, 1, 6, 18), c.normal(7, 1, 3, 3), "Tanh")
    c.finished()
    program = check(c, target, 0, 5e-5)
    texts = [print_kernel(k) for k in program.kernels()]
    loads = [text for text in texts if re.search(r"repeat_\d", text)]
    assert len(loads) >= 2 or target == "cpu:generic"
    for text in loads:
        assert print_kernel(parse_kernel(text)) == text
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 5e-5)


def test_operands_of_the_epilogue(rng):
    """Operands that vary by channel, by pixel, with both or not at all."""
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    for features in (1, 2):
        x = c.input(1, 1, 9, 67)
        w = g.constant(c.rng.standard_normal((features, 1, 3, 3)).astype(np.float32))
        y = g.add("conv", [x, w], {"low": (1, 1), "high": (1, 1)})
        for shape in ((1, features, 1, 1), (1, 1, 9, 67), (1, features, 9, 67), (1, 1, 1, 1)):
            y = g.add("add", [y, c.input(*shape)])
        c.output(g.add("relu", [y]))
    program = check(c, "cpu", 0, 5e-5)
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 5e-5)


def test_infinities_stay_in_their_windows(rng):
    """No pixel is multiplied with the weights of a neighbour, nor with zeros."""
    c = OnnxCases(int(rng.integers(1 << 31)))
    x = c.normal(1, 1, 9, 41)
    x[0, 0, 4, ::9] = np.inf
    c.node("Conv", x, np.abs(c.normal(2, 1, 3, 3)), pads=[1] * 4)
    c.finished()
    _, run = c.compiled("cpu")
    for got, want in zip(run(1), c.expected(), strict=True):
        np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
        np.testing.assert_allclose(got, want, 0, 5e-5)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_units_cover_every_line(lanes):
    for features in range(1, lanes // 2 + 1):
        unit = unit_of(features, lanes)
        assert unit is not None and unit.pixels > 1 and unit.filled <= lanes
        for pixels in (unit.pixels, unit.pixels + 1, 28, 97):
            seen: set[int] = set()
            for block in line_blocks(unit, max(pixels, unit.pixels), 14):
                for k in range(int(block.count) * block.height):  # pyright: ignore
                    first = block.start.value + k * unit.pixels  # pyright: ignore
                    seen.update(range(first, first + unit.pixels))
            assert seen == set(range(max(pixels, unit.pixels)))
    assert unit_of(lanes // 2 + 1, lanes) is None
