"""Which contractions take bf16 operands, and how fusion places the casts."""

import ml_dtypes
import numpy as np
from graph_texts import graph_of

from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.fuse import Fuse
from smelt.passes.graph.reduce_precision import ReducePrecision


def layer(graph: Graph, x, k: int, n: int, rng):
    return graph.add("matmul", [x, graph.constant(rng.standard_normal((k, n), np.float32))])


def test_operands_are_rounded_and_sums_are_f32(rng):
    graph = Graph()
    x = graph.add_input("x", TensorType(dt.f32, (128, 64)))
    first, second = (layer(graph, x, 64, 32, rng) for _ in range(2))
    graph.outputs = [first, second]
    given = [v.node.inputs[1].constant for v in graph.outputs]
    assert ReducePrecision().run(graph)
    verify(graph)
    casts = [n for n in graph.ordered() if n.op == "cast"]
    assert len(casts) == 1 and casts[0].output.dtype is dt.bf16
    for value, weights in zip(graph.outputs, given, strict=True):
        assert value.dtype is dt.f32 and value.node.inputs[0] is casts[0].output
        np.testing.assert_array_equal(value.node.inputs[1].constant,
                                      weights.astype(ml_dtypes.bfloat16))


def test_what_stays_f32(rng):
    graph = Graph()
    x = graph.add_input("x", TensorType(dt.f32, (64, 64)))
    narrow = graph.add_input("h", TensorType(dt.f16, (64, 64)))
    image = graph.add_input("i", TensorType(dt.f32, (1, 8, 8, 32)))
    grouped = graph.constant(rng.standard_normal((32, 1, 3, 3), np.float32))
    graph.outputs = [
        graph.add("matmul", [x, x]), layer(graph, x, 64, 4, rng), layer(graph, x, 64, 8, rng),
        graph.add("matmul", [narrow, narrow]),
        graph.add("conv_last", [image, grouped], {"groups": 32})]
    reduce = ReducePrecision()
    assert not reduce.run(graph)
    assert [note.partition(": ")[2] for note in reduce.notes] == [
        "its right operand is no constant", "64 products for 4 results are too few",
        "65536 operations are too few", "its types are others", "it has groups"]


def test_a_group_leaves_in_f32_and_in_bf16():
    """The sum of a residual block goes into two products and into the next sum."""
    graph = graph_of("""(%a: f32[8, 16], %b: f32[16, 16], %r: f32[8, 16], %c: bf16[16, 16]) {
        %p: f32[8, 16] = matmul(%a, %b)
        %s: f32[8, 16] = add(%p, %r)
        %h: bf16[8, 16] = cast(%s) {to = bf16}
        %q: f32[8, 16] = matmul(%h, %c) {dtype = f32}
        %y: f32[8, 16] = add(%q, %s)
        %z: f32[8, 16] = matmul(%h, %c) {dtype = f32}
        return %y, %z
    }""")
    Fuse().run(graph)
    verify(graph)
    first, second, third = graph.ordered()
    assert third.op == "matmul"
    assert [n.op for n in first.regions[0].ordered()] == ["matmul", "add", "cast"]
    assert [v.dtype for v in first.outputs] == [dt.f32, dt.bf16]
    assert [n.op for n in second.regions[0].ordered()] == ["matmul", "add"]


def test_a_product_that_alone_reads_a_sum_rounds_it_itself():
    graph = graph_of("""(%a: f32[8, 16], %b: f32[16, 16], %r: f32[8, 16], %c: bf16[16, 16]) {
        %p: f32[8, 16] = matmul(%a, %b)
        %s: f32[8, 16] = add(%p, %r)
        %h: bf16[8, 16] = cast(%s) {to = bf16}
        %q: f32[8, 16] = matmul(%h, %c) {dtype = f32}
        %y: f32[8, 16] = add(%q, %s)
        return %y
    }""")
    Fuse(prologue=True).run(graph)
    verify(graph)
    first, second = graph.ordered()
    assert [n.op for n in first.regions[0].ordered()] == ["matmul", "add"]
    assert [n.op for n in second.regions[0].ordered()] == ["cast", "matmul", "add"]
