"""Transposes meet and cancel."""

import numpy as np
import pytest
from graph_texts import assert_same_results, check, graph_of

from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.graph.clone import clone_graph
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.base import Pipeline

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def test_through_elementwise_nodes():
    check("sink_transposes", """(%x: f32[N, 3, 8, 8], %s: f32[N, 1, 1, 3]) {
        %a: f32[N, 8, 8, 3] = transpose(%x) {perm = (0, 2, 3, 1)}
        %m: f32[N, 8, 8, 3] = mul(%a, %s)
        %r: f32[N, 8, 8, 3] = relu(%m)
        %y: f32[N, 3, 8, 8] = transpose(%r) {perm = (0, 3, 1, 2)}
        return %y
    }""", """(%x: f32[N, 3, 8, 8], %s: f32[N, 1, 1, 3]) {
        %t: f32[N, 3, 1, 1] = reshape(%s) {shape = (N, 3, 1, 1)}
        %m: f32[N, 3, 8, 8] = mul(%x, %t)
        %y: f32[N, 3, 8, 8] = relu(%m)
        return %y
    }""")


def test_through_everything_that_has_axes():
    check("sink_transposes", """(%x: f32[2, 3, 8]) {
        %a: f32[8, 2, 3] = transpose(%x) {perm = (2, 0, 1)}
        %b: f32[8, 2, 3] = softmax(%a) {axis = 0}
        %c: f32[16, 2, 3] = concat(%a, %b) {axis = 0}
        %d: f32[16, 4, 3] = pad(%c) {low = (0, 1, 0), high = (0, 1, 0)}
        %e: f32[16, 2, 3] = slice(%d) {starts = (0, 2, 0), sizes = (16, 2, 3), steps = (1, 1, 1)}
        %f: f32[1, 2, 3] = reduce_max(%e) {axes = (0,), keepdims = true}
        %g: f32[16, 2, 3] = sub(%e, %f)
        %y: f32[2, 3, 16] = transpose(%g) {perm = (1, 2, 0)}
        return %y
    }""", """(%x: f32[2, 3, 8]) {
        %b: f32[2, 3, 8] = softmax(%x) {axis = 2}
        %c: f32[2, 3, 16] = concat(%x, %b) {axis = 2}
        %d: f32[4, 3, 16] = pad(%c) {low = (1, 0, 0), high = (1, 0, 0)}
        %e: f32[2, 3, 16] = slice(%d) {starts = (2, 0, 0), sizes = (2, 3, 16), steps = (1, 1, 1)}
        %f: f32[2, 3, 1] = reduce_max(%e) {axes = (2,), keepdims = true}
        %y: f32[2, 3, 16] = sub(%e, %f)
        return %y
    }""")


def test_no_gain_no_change():
    check("sink_transposes", """(%x: f32[N, 3, 8], %z: f32[N, 8, 3]) {
        %a: f32[N, 8, 3] = transpose(%x) {perm = (0, 2, 1)}
        %y: f32[N, 8, 3] = add(%a, %z)
        return %y
    }""")


def test_one_transpose_for_two():
    """Two operands are transposed alike: one transpose of the sum is less."""
    check("sink_transposes", """(%x: f32[N, 3, 8], %z: f32[N, 3, 8]) {
        %a: f32[N, 8, 3] = transpose(%x) {perm = (0, 2, 1)}
        %b: f32[N, 8, 3] = transpose(%z) {perm = (0, 2, 1)}
        %y: f32[N, 8, 3] = add(%a, %b)
        return %y
    }""", """(%x: f32[N, 3, 8], %z: f32[N, 3, 8]) {
        %a: f32[N, 3, 8] = add(%x, %z)
        %y: f32[N, 8, 3] = transpose(%a) {perm = (0, 2, 1)}
        return %y
    }""")


def test_a_cut_through_a_cluster():
    """The wide part gains, the narrow part behind the reduction has to be transposed."""
    check("sink_transposes", """(%x: f32[4, 9, 8], %z: f32[4, 9, 8], %w: f32[1, 8, 9],
                                 %v: f32[4, 1, 9]) {
        %a: f32[4, 8, 9] = transpose(%x) {perm = (0, 2, 1)}
        %b: f32[4, 8, 9] = transpose(%z) {perm = (0, 2, 1)}
        %s: f32[4, 8, 9] = add(%a, %b)
        %r: f32[4, 1, 9] = reduce_max(%s) {axes = (1,), keepdims = true}
        %t: f32[4, 8, 9] = mul(%w, %r)
        %y: f32[4, 8, 9] = mul(%t, %v)
        return %y
    }""", """(%x: f32[4, 9, 8], %z: f32[4, 9, 8], %w: f32[1, 8, 9],
                                 %v: f32[4, 1, 9]) {
        %s: f32[4, 9, 8] = add(%x, %z)
        %r: f32[4, 9, 1] = reduce_max(%s) {axes = (2,), keepdims = true}
        %u: f32[4, 1, 9] = reshape(%r) {shape = (4, 1, 9)}
        %t: f32[4, 8, 9] = mul(%w, %u)
        %y: f32[4, 8, 9] = mul(%t, %v)
        return %y
    }""")


class Network:
    """A small convolutional network with everything that layouts meet."""

    def __init__(self):
        self.g = Graph(symbols={"N": (1, 4)})
        self.rng = np.random.default_rng(7)
        self.x = self.g.add_input("x", TensorType(dt.f32, (size("N"), 3, 12, 12)))

    def constant(self, *shape: int) -> Value:
        return self.g.constant(self.rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5,
                               dtype=dt.f32)

    def conv(self, x: Value, features: int, window: int, stride: int = 1) -> Value:
        w = self.constant(features, int(x.shape[1]), window, window)
        p = (window // 2,) * 2
        y = self.g.add("conv", [x, w], {"strides": (stride,) * 2, "low": p, "high": p})
        return self.g.add("add", [y, self.constant(features, 1, 1)])

    def build(self) -> Graph:
        g = self.g
        h = first = g.add("relu", [self.conv(self.x, 8, 3, 2)])
        h = self.conv(g.add("relu", [self.conv(h, 8, 3)]), 8, 1)
        s = g.add("reduce_mean", [h], {"axes": (2, 3), "keepdims": True})
        h = g.add("mul", [h, g.add("sigmoid", [self.conv(s, 8, 1)])])
        h = g.add("relu", [g.add("add", [h, first])])
        up = g.add("resize_nearest", [h], {"axes": (2, 3), "sizes": (12, 12)})
        h = self.conv(g.add("concat", [up, self.x], {"axis": 1}), 16, 3, 2)
        pooled = g.add("pool_max", [h], {"kernel": (2, 2), "sizes": (3, 3), "strides": (2, 2)})
        mean = g.add("reduce_mean", [pooled], {"axes": (2, 3)})
        g.outputs = [g.add("matmul", [mean, self.constant(16, 5)]), pooled]
        return g


def test_a_network_has_transposes_at_its_ends_only():
    graph = Network().build()
    before = clone_graph(graph)
    Pipeline.parse("channels_last,sink_transposes,cse,dce").run(graph)
    verify(graph)
    assert_same_results(before, graph, 3, rtol=1e-4, atol=1e-5)
    kept = [n for n in graph.nodes if n.op == "transpose"]
    assert len(kept) == 2
    assert {n.inputs[0].node is None or n.output in graph.outputs for n in kept} == {True}


@pytest.mark.parametrize("seed", range(20))
def test_random_clusters(seed):
    """Random elementwise networks between transposes keep their meaning, and never gain any."""
    rng = np.random.default_rng(seed)
    g = Graph()
    shape = (2, 3, 4, 5)
    values: list[Value] = []
    for k in range(3):
        x = g.add_input(f"x{k}", TensorType(dt.f32, tuple(shape[i] for i in FIRST)))
        values.append(g.add("transpose", [x], {"perm": LAST}) if k else g.add(
            "reshape", [x], {"shape": shape}))
        assert values[-1].shape == shape
    for _ in range(12):
        a, b = (values[int(i)] for i in rng.integers(len(values), size=2))
        kind = int(rng.integers(5))
        if kind == 0:
            row = g.add("reduce_max", [a], {"axes": (int(rng.integers(4)),), "keepdims": True})
            values.append(g.add("sub", [b, row]))
        elif kind == 1:
            y = g.add("transpose", [a], {"perm": FIRST})
            g.outputs.append(g.add("matmul", [y, g.constant(rng.normal(size=(4, 2)),
                                                            dtype=dt.f32)]))
        elif kind == 2:
            values.append(g.add("tanh", [a]))
        else:
            values.append(g.add("add", [a, b]))
    g.outputs.append(values[-1])
    before = clone_graph(g)
    count = sum(n.op == "transpose" for n in g.nodes)
    Pipeline.parse("dce,canonicalise,cse,sink_transposes,cse,dce").run(g)
    verify(g)
    assert_same_results(before, g, seed, rtol=1e-4, atol=1e-4)
    assert sum(n.op == "transpose" for n in g.nodes) <= count


def test_graphs_from_text_stay_usable():
    graph = graph_of("""(%x: f32[N, 3, 8]) {
        %a: f32[N, 8, 3] = transpose(%x) {perm = (0, 2, 1)}
        return %a
    }""")
    assert not Pipeline.parse("sink_transposes").run(graph)[0].modified
