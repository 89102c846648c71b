"""3 x 3 convolutions by Winograd's algorithm next to the interpreter, whose sums are direct.

Tolerance: a transform may err by LARGEST_ERROR of the largest result. Sums of products by random
data come to the largest element times the root of the weights' squares, and so do errors, whatever
is left where terms cancel: F(4 x 4) is seen to err by a third of the tolerance for 256 channels.
"""

import numpy as np
import pytest
from cpu.native_graphs import Cases, check

from smelt.ir.graph.core import Value
from smelt.passes.schedule import winograd
from smelt.passes.schedule.tiles import Registers
from smelt.passes.schedule.winograd import (
    LARGEST_ERROR,
    TRANSFORMS,
    error_estimate,
    even_polynomial,
    transformed_weights,
)


def convolution(c: Cases, x: Value, features: int, low=(1, 1), high=(1, 1)) -> None:
    channels = x.shape[3]
    assert isinstance(channels, int)
    weights = c.rng.standard_normal((features, channels, 3, 3)) / np.sqrt(9 * channels)
    bias = c.rng.standard_normal(features).astype(np.float32)
    y = c.graph.add("conv_last", [x, c.graph.constant(weights.astype(np.float32))],
                    {"low": low, "high": high})
    y = c.graph.add("relu", [c.graph.add("add", [y, c.graph.constant(bias)])])
    of_each = np.sqrt((weights ** 2).sum((1, 2, 3)))
    c.output(y, np.abs(c.array_of(x)).max() * of_each + np.abs(bias))


def convolutions(c: Cases, shapes) -> None:
    for n, h, w, channels, features, low, high in shapes:
        convolution(c, c.input(n, h, w, channels), features, low, high)


SHAPES = [
    (1, 8, 8, 16, 32, (1, 1), (1, 1)),
    (2, 5, 7, 17, 33, (1, 1), (1, 1)),
    (1, 1, 1, 3, 5, (1, 1), (1, 1)),
    (1, 3, 30, 64, 48, (0, 0), (0, 0)),
    (3, 29, 13, 20, 7, (2, 0), (0, 2)),
    (1, 14, 14, 256, 64, (1, 1), (1, 1)),
    (1, 14, 13, 67, 150, (1, 1), (1, 1)),  # one block of tiles, weights that are asked for early
]


@pytest.fixture(params=range(len(TRANSFORMS)), ids=["4x4", "2x2"])
def transform(request, monkeypatch):
    """Makes every convolution take one transform."""
    chosen = TRANSFORMS[request.param]
    monkeypatch.setattr(winograd, "choose_transform", lambda *_: chosen)
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:x86-64-v2"])
def test_shapes(transform, target):
    cases = Cases(seed=np.random.SeedSequence().entropy % 2**32)
    convolutions(cases, SHAPES)
    check(cases, target, LARGEST_ERROR, 0, kernels=["winograd"])


@pytest.mark.slow
def test_many_blocks_in_scratch_memory(transform, monkeypatch):
    """Blocks of tiles that lie in the threads' own memory, more than there are threads."""
    monkeypatch.setattr(winograd, "LEAST_BLOCKS", 1)
    monkeypatch.setattr(winograd, "INPUT_BYTES", 100_000)
    cases = Cases(seed=np.random.SeedSequence().entropy % 2**32)
    convolutions(cases, SHAPES)
    check(cases, "cpu", LARGEST_ERROR, 0, kernels=["winograd"])


@pytest.mark.slow
def test_open_sizes(transform):
    cases = Cases(seed=np.random.SeedSequence().entropy % 2**32, symbolic=True)
    for n, h, w in ((1, 9, 9), (2, 4, 21)):
        x = cases.input(n, h, w, 32, fixed=(3,))
        convolution(cases, x, 40)
        assert not isinstance(cases.graph.outputs[-1].shape[1], int)
    check(cases, "cpu", LARGEST_ERROR, 0, kernels=["winograd"])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=["4x4", "2x2"])
def test_the_transforms_are_exact_in_exact_arithmetic(transform, rng):
    n, m = transform.size, transform.outputs
    d, g = rng.standard_normal((n, n)), rng.standard_normal((1, 1, 3, 3))

    def both(step, rows):
        first = step(list(rows), winograd._sum)
        return np.stack([np.stack(step(list(r), winograd._sum)) for r in first])

    points = transform.kernel()
    products = both(transform.input, d) * (points @ g[0, 0] @ points.T)
    found = both(transform.output, products)
    wanted = sum(g[0, 0, a, b] * d[a:a + m, b:b + m] for a in range(3) for b in range(3))
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    again = transformed_weights(transform, g.astype(np.float32))
    np.testing.assert_allclose(again.reshape(n, n), points @ g[0, 0] @ points.T, rtol=1e-5,
                               atol=1e-6)


def test_polynomials():
    assert even_polynomial([]) == [1.0]
    np.testing.assert_allclose(even_polynomial([1.0, 2.0]), [4.0, -5.0, 1.0])


def test_the_estimate_grows_with_the_transform(rng):
    weights = rng.standard_normal((32, 128, 3, 3)).astype(np.float32)
    large, small = (error_estimate(t, weights) for t in TRANSFORMS)
    assert small < large < 1e-5


def test_weights_that_lose_precision_are_computed_directly(rng, monkeypatch):
    weights = rng.standard_normal((32, 64, 3, 3)).astype(np.float32)
    cases = Cases(seed=0)
    x = cases.input(1, 56, 56, 64)
    y = cases.graph.add("conv_last", [x, cases.graph.constant(weights)],
                        {"low": (1, 1), "high": (1, 1)})
    registers = Registers(16, 32)
    assert winograd.choose_transform(y, weights, registers) is TRANSFORMS[0]
    monkeypatch.setattr(winograd, "LARGEST_ERROR", 1e-9)
    assert winograd.choose_transform(y, weights, registers) is None


def test_small_convolutions_stay_direct(rng):
    cases = Cases(seed=0)
    for channels, features in ((3, 64), (4, 8)):
        weights = rng.standard_normal((features, channels, 3, 3)).astype(np.float32)
        x = cases.input(1, 4, 4, channels)
        y = cases.graph.add("conv_last", [x, cases.graph.constant(weights)],
                            {"low": (1, 1), "high": (1, 1)})
        assert winograd.choose_transform(y, weights, Registers(16, 32)) is None
