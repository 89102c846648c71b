"""Chains of products and depthwise convolutions next to the graph interpreter, whose kernels are
numpy's.

Tolerance: sums of n products in another order differ by at most about n units in the last place of
the sum of magnitudes; weights are scaled so that results stay near 1, and 2e-5 leaves a margin.
"""

import numpy as np
import pytest
from bits import assert_same_bits
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir.graph.core import Value
from smelt.passes.graph import chain
from smelt.passes.graph.chain import Chain
from smelt.passes.graph.store_weights import StoreWeights
from smelt.passes.schedule.microkernel import Epilogue

ATOL = 2e-5


@pytest.fixture(autouse=True)
def _every_chain(monkeypatch):
    """Makes every possible chain, of small bands; the longer of two."""
    monkeypatch.setattr(Chain, "_gain", lambda self, stages, sizes: float(len(stages)))
    monkeypatch.setattr(chain, "BAND_BYTES", 12_000)


def product(c: Cases, x: Value, features: int, after: str = "relu") -> Value:
    inner = x.shape[-1]
    assert isinstance(inner, int)
    w = c.rng.standard_normal((inner, features)) / np.sqrt(inner)
    y = c.graph.add("matmul", [x, c.graph.constant(w.astype(np.float32))])
    bias = c.rng.standard_normal((1, 1, 1, features)).astype(np.float32)
    return c.graph.add(after, [c.graph.add("add", [y, c.graph.constant(bias)])])


def depthwise(c: Cases, x: Value, size=(3, 3), strides=(1, 1), dilations=(1, 1), low=(1, 1),
              high=(1, 1), after: str = "relu") -> Value:
    channels = x.shape[-1]
    w = (c.rng.standard_normal((channels, 1, *size)) / 3).astype(np.float32)
    y = c.graph.add("conv_last", [x, c.graph.constant(w)], {
        "strides": strides, "dilations": dilations, "low": low, "high": high, "groups": channels})
    return c.graph.add(after, [y])


WINDOWS = [
    {},
    {"strides": (2, 2), "low": (0, 0), "high": (1, 1)},
    {"size": (5, 5), "low": (2, 2), "high": (2, 2), "strides": (2, 1)},
    {"size": (3, 2), "dilations": (2, 1), "low": (0, 1), "high": (0, 0)},
    {"size": (2, 2), "strides": (3, 3), "low": (0, 0), "high": (0, 0)},
]


def expanded(c: Cases) -> None:
    """Product, depthwise."""
    for window, (n, h, w, channels, features) in zip(WINDOWS, (
            (1, 17, 14, 3, 24), (2, 12, 15, 5, 17), (1, 9, 7, 16, 33), (1, 23, 29, 1, 7),
            (1, 11, 9, 4, 16)), strict=True):
        c.output(depthwise(c, product(c, c.input(n, h, w, channels), features), **window))


def separable(c: Cases) -> None:
    """Depthwise, product with a residual and a scale for each line."""
    for window, (n, h, w, channels, features) in zip(WINDOWS, (
            (1, 17, 14, 24, 24), (2, 12, 15, 17, 40), (1, 9, 7, 33, 5), (1, 23, 29, 7, 64),
            (1, 11, 9, 16, 1)), strict=True):
        y = product(c, depthwise(c, c.input(n, h, w, channels), **window, after="silu"), features)
        y = c.graph.add("add", [y, c.input(array=c.rng.standard_normal(
            tuple(map(int, y.shape))).astype(np.float32))])
        c.output(c.graph.add("mul", [y, c.input(1, 1, int(y.shape[2]), 1)]))


def inverted(c: Cases) -> None:
    """Product, depthwise, product."""
    for window, (n, h, w, channels, features, out) in zip(WINDOWS, (
            (1, 17, 14, 3, 24, 8), (2, 12, 15, 5, 17, 33), (1, 9, 7, 16, 33, 16),
            (1, 23, 29, 1, 7, 3), (3, 11, 9, 4, 16, 20)), strict=True):
        x = c.input(n, h, w, channels)
        y = depthwise(c, product(c, x, features, "silu"), **window)
        y = product(c, y, out, "neg")
        c.output(c.graph.add("add", [y, x]) if y.shape == x.shape else y)


def perceptrons(c: Cases) -> None:
    """Product, product."""
    for n, h, w, channels, features, out in (
            (1, 17, 14, 3, 24, 8), (2, 5, 60, 16, 64, 33), (1, 1, 1, 5, 7, 3), (1, 30, 1, 8, 9, 8)):
        c.output(product(c, product(c, c.input(n, h, w, channels), features, "gelu"), out))


@pytest.mark.parametrize("target", VARIANTS[:3])
@pytest.mark.parametrize("make", [expanded, separable, inverted, perceptrons])
def test_chains(make, target, rng):
    c = Cases(int(rng.integers(1 << 31)))
    make(c)
    program = check(c, target, 0, ATOL, ["chain"])
    kernels = [k.name for k in program.kernels()]
    assert all("chain" in name for name in kernels), kernels
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, ATOL)


@pytest.mark.parametrize("kind, target", [("bf16", "cpu"), ("f16", "cpu:x86-64-v3")])
@pytest.mark.parametrize("make", [expanded, separable, inverted, perceptrons])
def test_weights_kept_in_16_bits(make, kind, target, rng):
    c = Cases(int(rng.integers(1 << 31)))
    make(c)
    StoreWeights(kind).run(c.graph)
    program = check(c, target, 0, ATOL, ["chain"])
    kernels = [k.name for k in program.kernels()]
    assert all("chain" in name for name in kernels), kernels
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, ATOL)


@pytest.mark.parametrize("kind", ["", "bf16"])
@pytest.mark.parametrize("make", [expanded, separable, inverted, perceptrons])
def test_bits_are_those_of_the_kernels_apart(make, kind, rng, monkeypatch):
    seed = int(rng.integers(1 << 31))
    results = []
    for gain in (1.0, 0.0):
        monkeypatch.setattr(Chain, "_gain", lambda *_, gain=gain: gain)
        c = Cases(seed)
        make(c)
        if kind:
            StoreWeights(kind).run(c.graph)
        program, run = c.compiled("cpu")
        assert any("chain" in k.name for k in program.kernels()) == bool(gain)
        results.append(run(1))
    assert_same_bits(*results)


def test_any_number_of_images(rng):
    """Also none."""
    for images in (0, 1, 3):
        c = Cases(int(rng.integers(1 << 31)), symbolic=True)
        x = c.input(images, 9, 8, 4, fixed=(1, 2, 3))
        c.output(product(c, depthwise(c, product(c, x, 20)), 6))
        check(c, "cpu", 0, ATOL, ["chain"])


def test_what_the_template_refuses_runs_in_turn(rng, monkeypatch):
    monkeypatch.setattr(Epilogue, "vectorisable", lambda self: False)
    c = Cases(int(rng.integers(1 << 31)))
    inverted(c)
    program = check(c, "cpu", 0, ATOL)
    assert not any("chain" in k.name for k in program.kernels())


def test_targets_without_vectors_do_not_make_chains(rng):
    c = Cases(int(rng.integers(1 << 31)))
    inverted(c)
    program = check(c, "cpu:generic", 0, ATOL)
    assert not any("chain" in k.name for k in program.kernels())
