"""Constant folding, common subexpressions, dead code."""

import numpy as np
from graph_texts import check, graph_of

from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.graph.core import Graph, TensorType
from smelt.passes.graph.cse import CommonSubexpressions
from smelt.passes.graph.dce import DeadCode
from smelt.passes.graph.fold import Fold


def test_constants_are_computed():
    graph = graph_of("""(%x: f32[2, 2]) {
        %a: f32[2] = constant {value = [1.0, 4.0]}
        %b: f32[2] = sqrt(%a)
        %c: f32[1, 2] = reshape(%b) {shape = (1, 2)}
        %y: f32[2, 2] = mul(%x, %c)
        return %y
    }""")
    assert Fold().run(graph)
    assert DeadCode().run(graph)
    constant, product = graph.ordered()
    assert constant.op == "constant" and product.op == "mul"
    np.testing.assert_array_equal(constant.attrs["value"], [[1, 2]])


def test_what_sizes_decide_becomes_sizes():
    check("fold", """(%x: f32[N, 4]) {
        %s: i64[2] = sizes() {dims = (N, 4)}
        %one: i64[] = constant {value = 1}
        %a: i64[2] = add(%s, %one)
        %f: f32[2] = cast(%a) {to = f32}
        return %f
    }""", """(%x: f32[N, 4]) {
        %s: i64[2] = sizes() {dims = ((N + 1), 5)}
        %f: f32[2] = cast(%s) {to = f32}
        %old: i64[2] = sizes() {dims = (N, 4)}
        %one: i64[] = constant {value = 1}
        return %f
    }""")


def test_large_results_are_not_stored():
    def graph() -> Graph:
        g = Graph()
        a = g.constant(np.arange(1000.0).reshape(1000, 1), dtype=dt.f32)
        b = g.constant(np.arange(1000.0), dtype=dt.f32)
        g.outputs = [g.add("add", [a, b])]
        return g

    g, limited = graph(), Fold(limit=1 << 20)
    assert not limited.run(g) and "4000000 bytes from 8000" in limited.report
    assert Fold(limit=1 << 22).run(g) and g.outputs[0].constant.shape == (1000, 1000)
    assert Fold(limit=1 << 20, growth=1000).run(graph())


def test_expands_and_counters_are_computed_for_others_only():
    g = Graph()
    wide = g.add("expand", [g.constant(2.0, dtype=dt.f32)], {"shape": (100, 100)})
    count = g.add("iota", (), {"size": 100})
    shifted = g.add("add", [count, g.constant(1, dtype=dt.i64)])
    g.outputs = [wide, count, shifted]
    assert Fold().run(g)
    assert [v.node.op for v in g.outputs] == ["expand", "iota", "constant"]
    np.testing.assert_array_equal(shifted.constant if shifted.node in g.nodes
                                  else g.outputs[2].constant, np.arange(1, 101))


def test_random_numbers_are_no_constants():
    g = Graph()
    names = ["random_bits"]
    from smelt.ir.graph.definition import registry
    from smelt.passes.graph.cse import is_pure

    assert all(n in registry() for n in names)
    assert not any(is_pure(n) for n in registry() if n.startswith("random"))
    assert is_pure("add") and not is_pure("bind")
    assert not Fold().run(g)


def test_equal_nodes_are_merged():
    check("cse", """(%x: f32[N, 4]) {
        %c: f32[2] = constant {value = [1.0, 2.0]}
        %d: f32[2] = constant {value = [1.0, 2.0]}
        %a: f32[N, 4] = exp(%x)
        %b: f32[N, 4] = exp(%x)
        %s: f32[N, 1] = reduce_sum(%a) {axes = (1,), keepdims = true}
        %t: f32[N, 1] = reduce_sum(%b) {axes = (1,), keepdims = true}
        %u: f32[N] = reduce_sum(%b) {axes = (1,)}
        return %s, %t, %u, %c, %d
    }""", """(%x: f32[N, 4]) {
        %c: f32[2] = constant {value = [1.0, 2.0]}
        %a: f32[N, 4] = exp(%x)
        %s: f32[N, 1] = reduce_sum(%a) {axes = (1,), keepdims = true}
        %u: f32[N] = reduce_sum(%a) {axes = (1,)}
        return %s, %s, %u, %c, %c
    }""")


def test_unequal_nodes_stay():
    check("cse", """(%x: f32[4], %k: i64[1]) {
        %a: f32[] = constant {value = 0.0}
        %b: f32[] = constant {value = -0.0}
        %i: i32[] = constant {value = 0}
        %p: f32[4] = leaky_relu(%x) {alpha = 1.0}
        %q: f32[4] = leaky_relu(%x) {alpha = 2.0}
        bind(%k) {symbols = (d1,)}
        bind(%k) {symbols = (d2,)}
        %s: i64[2] = sizes() {dims = (d1, d2)}
        return %a, %b, %i, %p, %q, %s
    }""")


def test_large_constants_are_compared_by_their_memory():
    data = np.random.default_rng(1).normal(size=(200, 200)).astype(np.float32)
    g = Graph()
    g.outputs = [g.constant(a) for a in (data, data[:], data.T, data.copy())]
    assert CommonSubexpressions().run(g)
    first, second, third, fourth = g.outputs
    assert first is second and len({first, third, fourth}) == 3


def test_dead_code():
    check("dce", """(%x: f32[4], %k: i64[1], %c: bool[]) {
        bind(%k) {symbols = (d1,)}
        bind(%k) {symbols = (d2,)}
        %a: f32[4] = neg(%x)
        %b: f32[d1, 4] = expand(%x) {shape = (d1, 4)}
        %r: f32[4] = if(%c) {sizes = ()} region then() {
          %p: f32[4] = neg(%a)
          %q: f32[4] = exp(%x)
          return %q
        } region orelse() {
          return %x
        }
        return %b, %r
    }""", """(%x: f32[4], %k: i64[1], %c: bool[]) {
        bind(%k) {symbols = (d1,)}
        %b: f32[d1, 4] = expand(%x) {shape = (d1, 4)}
        %r: f32[4] = if(%c) {sizes = ()} region then() {
          %q: f32[4] = exp(%x)
          return %q
        } region orelse() {
          return %x
        }
        return %b, %r
    }""")


def test_a_bind_that_only_types_need_stays():
    g = Graph()
    k = g.add_input("k", TensorType(dt.i64, (1,)))
    x = g.add_input("x", TensorType(dt.f32, (4,)))
    (d,) = g.bind(k)
    g.outputs = [g.add("expand", [x], {"shape": (d, 4)})]
    g.add("expand", [x], {"shape": (size("d1"), 2, 4)})
    assert DeadCode().run(g)
    assert [n.op for n in g.ordered()] == ["bind", "expand"]
