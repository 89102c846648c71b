"""Which stages become one chain, and why others do not."""

import numpy as np
import pytest

from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.interpreter import interpret
from smelt.ir.graph.text import parse_graph, print_graph
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.chain import Chain
from smelt.passes.graph.fuse import Fuse


class Network:
    """Stages one after another on an input [1, size, size, channels]."""

    def __init__(self, size: int, channels: int):
        self.rng = np.random.default_rng()
        self.graph = Graph()
        self.value = self.graph.add_input("x", TensorType(dt.f32, (1, size, size, channels)))

    def constant(self, *shape: int) -> Value:
        return self.graph.constant((self.rng.standard_normal(shape) / 4).astype(np.float32))

    def product(self, features: int) -> Value:
        y = self.graph.add("matmul", [self.value, self.constant(self.channels, features)])
        return self._with_bias(y, features)

    def depthwise(self, stride: int = 1) -> Value:
        y = self.graph.add("conv_last", [self.value, self.constant(self.channels, 1, 3, 3)], {
            "strides": (stride, stride), "low": (1, 1), "high": (1, 1), "groups": self.channels})
        return self._with_bias(y, self.channels)

    @property
    def channels(self) -> int:
        channels = self.value.shape[-1]
        assert isinstance(channels, int)
        return channels

    def _with_bias(self, y: Value, features: int) -> Value:
        y = self.graph.add("add", [y, self.constant(1, 1, 1, features)])
        self.value = self.graph.add("relu", [y])
        return self.value


def chained(network: Network, **options) -> tuple[list[int], Chain]:
    """How many stages each chain has, in order; checks that the graph means the same."""
    g = network.graph
    g.outputs = [*g.outputs, network.value]
    x = network.rng.standard_normal(g.inputs[0].shape).astype(np.float32)
    wanted = interpret(g, [x])
    Fuse().run(g)
    item = Chain(**options)
    changed = item.run(g)
    verify(g)
    found = [len(n.regions[0].nodes) for n in g.ordered() if n.op == "chain"]
    assert changed == bool(found)
    for a, b in zip(wanted, interpret(g, [x]), strict=True):
        np.testing.assert_array_equal(a, b)
    return found, item


def test_an_inverted_residual_is_one_chain():
    n = Network(28, 8)
    n.product(48)
    n.depthwise(2)
    n.product(12)
    found, item = chained(n, cache=50_000)
    assert found == [3]
    assert "a chain of bands of 3 lines, which spares" in item.report


def test_small_tensors_stay_in_the_cache_between_kernels():
    n = Network(28, 8)
    n.product(48)
    n.depthwise()
    n.product(12)
    found, item = chained(n)
    assert not found
    assert "no chain" in item.report


def test_lines_computed_again_may_cost_more_than_memory():
    n = Network(28, 256)
    n.product(64)
    n.depthwise()
    found, _ = chained(n, cache=150_000)
    assert not found


def test_a_band_too_large_for_the_scratch_memory():
    n = Network(9, 3)
    n.product(20_000)
    n.depthwise()
    found, item = chained(n, cache=0)
    assert not found
    assert "a band of lines is too large" in item.report


def test_weights_that_every_band_would_stream():
    n = Network(14, 32)
    n.product(2048)
    n.product(32)
    found, item = chained(n, cache=1_000_000)
    assert not found
    assert "reads 1.57 MB of weights again" in item.report


@pytest.mark.parametrize("cut", ["returned", "read twice", "a residual on the way"])
def test_what_lies_between_two_stages_must_be_theirs_alone(cut):
    n = Network(28, 8)
    between = n.product(48)
    if cut == "a residual on the way":
        n.value = between = n.graph.add("add", [between, n.graph.add_input(
            "r", between.type)])
    n.depthwise()
    if cut == "returned":
        n.graph.outputs.append(between)
    elif cut == "read twice":
        n.value = n.graph.add("mul", [n.value, between])
    if cut == "a residual on the way":
        n.graph.outputs = [n.value]
        Fuse().run(n.graph)
        assert not Chain(cache=0).run(n.graph)
        return
    assert chained(n, cache=0)[0] == []


def test_the_best_of_a_long_row_of_stages():
    n = Network(28, 4)
    for _ in range(2):
        n.product(24)
        n.depthwise()
        n.product(4)
    assert chained(n, cache=20_000)[0] == [3, 3]


def test_chains_print_as_text_that_parses_back():
    n = Network(16, 4)
    n.product(24)
    n.depthwise()
    chained(n, cache=0)
    text = print_graph(n.graph)
    assert "chain()" in text
    assert print_graph(parse_graph(text)) == text
