"""Which constant weights are kept in 16 bits."""

import ml_dtypes
import numpy as np
import pytest

from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.interpreter import interpret
from smelt.ir.graph.verifier import verify
from smelt.passes.graph import store_weights
from smelt.passes.graph.store_weights import StoreWeights


def product(graph: Graph, x: Value, weights: np.ndarray) -> Value:
    return graph.add("matmul", [x, graph.constant(weights)], origin="layer")


def kept(value: Value, operand: int = 1) -> np.ndarray:
    node = value.node
    assert node is not None
    weights = node.inputs[operand]
    assert weights is not None and weights.constant is not None
    return weights.constant


@pytest.mark.parametrize("kind, numpy", [("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
def test_weights_are_rounded_and_all_else_is_f32(kind, numpy, rng, monkeypatch):
    monkeypatch.setattr(store_weights, "LEAST_TABLE", 40)
    graph = Graph()
    x = graph.add_input("x", TensorType(dt.f32, (4, 6)))
    image = graph.add_input("i", TensorType(dt.f32, (1, 5, 5, 4)))
    index = graph.add_input("n", TensorType(dt.i64, (3,)))
    w, table = rng.standard_normal((6, 8), np.float32), rng.standard_normal((9, 5), np.float32)
    window = rng.standard_normal((6, 2, 3, 3), np.float32)
    shared = graph.constant(w)
    graph.outputs = [
        graph.add("matmul", [x, shared]), graph.add("matmul", [x, shared]),
        graph.add("conv_last", [image, graph.constant(window)], {"groups": 2}),
        graph.add("gather", [graph.constant(table), index])]
    arrays = [rng.standard_normal(v.shape).astype(np.float32) for v in (x, image)]
    assert StoreWeights(kind).run(graph)
    verify(graph)
    first, second, conv, rows = graph.outputs
    assert all(v.dtype is dt.f32 for v in graph.outputs)
    assert first.node.inputs[1] is second.node.inputs[1]  # type: ignore[union-attr]
    np.testing.assert_array_equal(kept(first), w.astype(numpy))
    np.testing.assert_array_equal(kept(conv), window.astype(numpy))
    assert rows.node is not None and rows.node.op == "cast" and rows.node.inputs[0] is not None
    np.testing.assert_array_equal(kept(rows.node.inputs[0], 0), table.astype(numpy))
    got = interpret(graph, [*arrays, np.array([8, 0, -1])])
    exact = arrays[0].astype(np.float64) @ w.astype(numpy).astype(np.float64)
    np.testing.assert_allclose(got[0], exact, 0, 1e-5)
    np.testing.assert_array_equal(got[3], table.astype(numpy).astype(np.float32)[[8, 0, -1]])


def test_what_stays_f32(rng):
    graph = Graph()
    x = graph.add_input("x", TensorType(dt.f32, (4, 8)))
    narrow = graph.add_input("h", TensorType(dt.f16, (4, 8)))
    image = graph.add_input("i", TensorType(dt.f32, (1, 8, 8, 16)))
    index = graph.add_input("n", TensorType(dt.i64, (3,)))
    depthwise = rng.standard_normal((16, 1, 3, 3)).astype(np.float32)
    scattered = rng.standard_normal((16, 1, 2, 2)).astype(np.float32)
    graph.outputs = [
        graph.add("matmul", [x, graph.add("transpose", [x], {"perm": (1, 0)})]),
        graph.add("matmul", [narrow, graph.constant(np.ones((8, 2), np.float16))]),
        graph.add("conv_last", [image, graph.constant(depthwise)], {"groups": 16}),
        graph.add("conv_transpose_last", [image, graph.constant(scattered)], {
            "groups": 16, "strides": (2, 2), "sizes": (16, 16)}),
        graph.add("gather", [graph.constant(np.ones((9, 2), np.float32)), index])]
    store = StoreWeights("f16")
    assert not store.run(graph)
    assert store.notes == [
        "conv_last: weights stay f32: it has one input channel a group",
        "conv_transpose_last: weights stay f32: it has one input channel a group",
        "gather: weights stay f32: it is no large table of rows"]


def test_the_largest_that_fits_and_infinities():
    """65520 is the least that f16 rounds to infinity."""
    graph = Graph()
    x = graph.add_input("x", TensorType(dt.f32, (1, 2)))
    weights = np.array([[65519.0, -np.inf], [np.inf, 1e-9]], np.float32)
    graph.outputs = [product(graph, x, weights)]
    store = StoreWeights("f16")
    assert store.run(graph) and store.notes == ["matmul (layer): weights as f16"]
    np.testing.assert_array_equal(kept(graph.outputs[0]), [[65504, -np.inf], [np.inf, 0]])


@pytest.mark.parametrize("kind, number", [("f16", -65520.0), ("bf16", 3.4e38)])
def test_what_is_too_large_is_an_error(kind, number):
    graph = Graph()
    x = graph.add_input("x", TensorType(dt.f32, (1, 2)))
    graph.outputs = [product(graph, x, np.array([[1], [number]], np.float32))]
    with pytest.raises(ModelError, match=rf"layer.*{number:g} is too large to be kept as {kind}"
                       .replace("+", r"\+")):
        StoreWeights(kind).run(graph)
