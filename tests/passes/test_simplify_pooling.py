"""Pools of the whole input become reductions; others stay. Exact but for the order of sums: 1e-6
of values of about 1."""

import numpy as np
import pytest

from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType
from smelt.ir.graph.interpreter import interpret
from smelt.passes.graph.base import parse_pass


def pooled(op: str, shape, kernel, low, **attrs) -> Graph:
    graph = Graph()
    x = graph.add_input("x", TensorType(dt.f32, shape))
    graph.outputs = [graph.add(op, [x], {"kernel": kernel, "low": low, **attrs})]
    return graph


WHOLE = [((2, 3, 7, 5), (7, 5), (0, 0)), ((1, 4, 7, 7), (1280, 1280), (0, 0)),
         ((2, 1, 3, 4), (9, 8), (2, 4)), ((1, 2, 6), (6,), (0,))]
MORE = [{}, {"include_pad": True, "high": 0}, {"include_pad": True, "high": 3}]


@pytest.mark.parametrize("shape, kernel, low", WHOLE)
@pytest.mark.parametrize("op, more", [("pool_max", {}), ("pool_sum", {}),
                                      *(("pool_mean", m) for m in MORE)])
def test_a_window_over_everything_is_a_reduction(op, more, shape, kernel, low, rng):
    n = len(kernel)
    attrs = {**more, "high": (more["high"],) * n} if more else {}
    graph = pooled(op, shape, kernel, low, sizes=(1,) * n, **attrs)
    x = rng.standard_normal(shape).astype(np.float32)
    want = interpret(graph, [x])[0]
    assert parse_pass("canonicalise").run(graph)
    assert not any(node.op.startswith("pool") for node in graph.nodes)
    np.testing.assert_allclose(interpret(graph, [x])[0], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape, kernel, low, sizes", [
    ((1, 2, 6, 6), (5, 6), (0, 0), (1, 1)),   # misses a row
    ((1, 2, 6, 6), (6, 6), (1, 0), (1, 1)),   # starts before, ends too early
    ((1, 2, 6, 6), (9, 9), (0, 0), (2, 1)),   # two windows
    ((1, 2, 0, 6), (3, 6), (0, 0), (1, 1)),   # nothing to reduce
])
def test_other_pools_stay(shape, kernel, low, sizes):
    graph = pooled("pool_mean", shape, kernel, low, sizes=sizes)
    parse_pass("canonicalise").run(graph)
    assert [node.op for node in graph.nodes] == ["pool_mean"]
