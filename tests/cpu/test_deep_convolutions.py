"""Convolutions whose weights are taken block by block through all lines, next to the interpreter
and, bit by bit, to the line by line form.

Tolerance: sums of n products in another order differ by at most about n units in the last place of
the sum of magnitudes; results are near 1 and n is below 3,000, so 2e-4 leaves a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from bits import assert_same_bits
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir.kernel.text import print_kernel
from smelt.passes.schedule import deep_conv
from smelt.passes.schedule.deep_conv import deep_plans
from smelt.passes.schedule.tiles import Registers
from smelt.passes.schedule.window import Window

AVX512, AVX2 = Registers(16, 32), Registers(8, 16)


def convolution(c: Cases, image: Sequence[int], features: int, size: tuple[int, int] = (3, 3),
                added: bool = False, **attrs: Any) -> None:
    """relu(conv + bias), or with another tensor added, as in a residual block."""
    weights = c.rng.standard_normal((features, image[-1], *size)) / np.sqrt(np.prod(size)
                                                                            * image[-1])
    attrs = {"low": (0, 0), "high": (0, 0), **attrs}
    y = c.graph.add("conv_last", [c.input(*image), c.graph.constant(weights.astype(np.float32))],
                    attrs)
    bias = c.graph.constant(c.rng.standard_normal(features).astype(np.float32))
    y = c.graph.add("add", [y, bias])
    if added:
        y = c.graph.add("add", [y, c.input(*(int(d) for d in y.shape))])
    c.output(c.graph.add("relu", [y]))


PADDED: dict[str, Any] = {"low": (1, 1), "high": (1, 1)}


def forms(c: Cases) -> None:
    """Images of one pixel, of several lines a tile with and without one left over, of several tiles
    a line; ragged channels and blocks of them; every kind of window and border."""
    convolution(c, (1, 7, 7, 48), 64, added=True, **PADDED)
    convolution(c, (2, 7, 7, 37), 33, **PADDED)
    convolution(c, (1, 14, 14, 16), 48, **PADDED, strides=(2, 2))
    convolution(c, (3, 9, 5, 19), 35, (1, 1), strides=(2, 2))
    convolution(c, (1, 6, 31, 17), 21, (3, 5), low=(0, 3), high=(2, 0))
    convolution(c, (1, 13, 6, 8), 16, (2, 3), low=(1, 0), high=(0, 2), strides=(1, 2),
                dilations=(3, 2))
    convolution(c, (1, 1, 1, 24), 40, **PADDED)
    convolution(c, (1, 3, 4, 11), 16, (5, 5), low=(4, 4), high=(4, 4))
    convolution(c, (1, 5, 7, 700), 32, (1, 3), low=(0, 1), high=(0, 1))


@pytest.fixture
def always(monkeypatch):
    """Takes every convolution deep, whatever its weights and however few tiles there are."""
    monkeypatch.setattr(deep_conv, "SHARED_WEIGHTS", -1)
    monkeypatch.setattr(deep_conv, "PARTIAL_BYTES", 1 << 30)
    monkeypatch.setattr(deep_conv, "LINE", 1 << 10)
    monkeypatch.setattr(deep_conv, "cycles", lambda tile, *_: 1.0)
    monkeypatch.setattr("smelt.passes.schedule.winograd.choose_transform", lambda *_: None)


@pytest.mark.parametrize("target", VARIANTS[:3])
def test_forms(always, monkeypatch, target, rng):
    c = Cases(int(rng.integers(1 << 31)))
    forms(c)
    program = check(c, target, 0, 2e-4)
    texts = [print_kernel(k) for k in program.kernels()]
    assert all("partial" in t for t in texts), texts
    deep = interpreted(c, program)
    for got, want in zip(deep, c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 2e-4)
    native = c.compiled(target)[1](2)
    monkeypatch.setattr(deep_conv, "SHARED_WEIGHTS", 1 << 40)
    program, run = c.compiled(target)
    assert not any("partial" in print_kernel(k) for k in program.kernels())
    assert_same_bits(run(1), native)


def window(size: tuple[int, int], strides: tuple[int, int], low: tuple[int, int],
           pixels: tuple[int, int]) -> Window:
    return Window(tuple(tuple(range(k)) for k in size), strides, (1, 1), low,
                  (any(low),) * 2, (0, 0), (1, 1), pixels)


def test_short_lines_share_a_tile():
    plan = next(deep_plans(window((3, 3), (1, 1), (1, 1), (7, 7)), (7, 7), 512, 512, AVX512))
    assert (plan.lines, plan.pixels, plan.vectors, plan.blocks) == (2, 7, 2, 2)
    plan = next(deep_plans(window((3, 3), (1, 1), (1, 1), (7, 7)), (7, 7), 512, 512, AVX2))
    assert plan.lines == 1


def test_only_streamed_weights_and_small_images_are_deep():
    near = window((3, 3), (1, 1), (1, 1), (7, 7))
    assert not list(deep_plans(near, (7, 7), 64, 64, AVX512))
    large = window((3, 3), (1, 1), (1, 1), (56, 56))
    assert not list(deep_plans(large, (56, 56), 512, 512, AVX512))
    single = window((3, 3), (1, 1), (1, 1), (1, 1))  # nothing to do while weights arrive
    assert not list(deep_plans(single, (1, 1), 512, 512, AVX512))
