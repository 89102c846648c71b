"""The reference interpreter: sizes, errors, control flow, memory, index notation in parts."""

import tracemalloc
import weakref

import numpy as np
import pytest

from smelt.errors import InputError
from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.graph import definition, evaluate
from smelt.ir.graph.core import Graph, tensor
from smelt.ir.graph.definition import OpDef
from smelt.ir.graph.interpreter import interpret, resolved


def numbers(*shape: int) -> np.ndarray:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def two_inputs() -> Graph:
    graph = Graph()
    n = size("n")
    x = graph.add_input("x", tensor(dt.f32, n, 3))
    y = graph.add_input("y", tensor(dt.f32, 3, n * 2))
    graph.outputs = [graph.add("matmul", [x, y])]
    return graph


def test_inputs_by_name_and_in_order():
    x, y = numbers(2, 3), numbers(3, 4)
    graph = two_inputs()
    by_order = interpret(graph, [x, y])
    np.testing.assert_array_equal(by_order, interpret(graph, {"y": y, "x": x}))
    np.testing.assert_allclose(by_order[0], x @ y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("inputs", "message"), [
    ({"x": numbers(2, 3)}, "missing.*'y'"),
    ([numbers(2, 3)], "2 inputs, 1"),
    ([numbers(2, 4), numbers(3, 4)], r"must be f32\[n, 3\]"),
    ([numbers(2, 3), numbers(3, 5)], r"input 'y' must be f32\[3, \(n \* 2\)\]"),
    ([numbers(2, 3, 1), numbers(3, 4)], "2 dimensions"),
    ([numbers(2, 3).astype(np.float64), numbers(3, 4)], "not float64"),
])
def test_inputs_that_do_not_fit(inputs, message: str):
    with pytest.raises(InputError, match=message):
        interpret(two_inputs(), inputs)


def test_sizes_from_data():
    graph = Graph()
    shape = graph.add_input("shape", tensor(dt.i32, 2))
    rows, columns = graph.bind(shape)
    one = graph.constant(np.float32(2))
    graph.outputs = [graph.add("expand", [one], {"shape": (columns, rows)}),
                     graph.add("iota", [], {"size": rows * columns + 1})]
    filled, counted = interpret(graph, [np.int32([2, 3])])
    np.testing.assert_array_equal(filled, np.full((3, 2), 2, np.float32))
    np.testing.assert_array_equal(counted, np.arange(7))
    with pytest.raises(InputError, match="negative size, -1"):
        interpret(graph, [np.int32([2, -1])])


def test_references_see_numbers_only():
    graph = Graph()
    x = graph.add_input("x", tensor(dt.f32, size("n")))
    node = graph.add_node("pad", [x], {"low": (size("n") * 2,), "high": (1,)})
    copy = resolved(node, {"n": 4})
    assert copy.attrs["low"] == (8,) and copy.output.shape == (13,)
    assert copy.inputs[0] is not None and copy.inputs[0].shape == (4,)
    assert node.attrs["low"] == (size("n") * 2,)


def test_values_are_freed_when_nothing_needs_them(monkeypatch: pytest.MonkeyPatch):
    alive: list[weakref.ref] = []
    most = 0

    def negative(ctx, x):
        nonlocal most
        result = -x
        alive.append(weakref.ref(result))
        most = max(most, sum(r() is not None for r in alive))
        return result

    found = OpDef("probe", "elementwise", lambda ctx: [ctx.type(0)], negative)
    monkeypatch.setitem(definition._REGISTRY, "probe", found)
    graph = Graph()
    value = graph.add_input("x", tensor(dt.f32, 8))
    for _ in range(50):
        value = graph.add("probe", [value])
    graph.outputs = [value]
    interpret(graph, [numbers(8)])
    assert most <= 3


def test_long_chains():
    graph = Graph()
    value = graph.add_input("x", tensor(dt.f32, 2))
    for _ in range(20_000):
        value = graph.add("neg", [value])
    graph.outputs = [value]
    np.testing.assert_array_equal(interpret(graph, [np.float32([1, 2])])[0], [1, 2])


def branch(parent: Graph, value, times: int) -> Graph:
    region = Graph("region", parent=parent)
    region.outputs = [region.add("concat", [value] * times, {"axis": 0})]
    return region


def test_a_branch_gives_its_size():
    graph = Graph()
    c = graph.add_input("c", tensor(dt.bool_))
    x = graph.add_input("x", tensor(dt.f32, size("n")))
    node = graph.add_node("if", [c, ], regions=[branch(graph, x, 2), branch(graph, x, 3)])
    (fresh,) = node.attrs["sizes"]
    sizes = graph.add("sizes", [], {"dims": (fresh, size("n"))})
    graph.outputs = [node.output, sizes]
    for condition, times in ((True, 2), (False, 3)):
        y, told = interpret(graph, [np.array(condition), np.float32([1, 2])])
        np.testing.assert_array_equal(y, np.tile(np.float32([1, 2]), times))
        np.testing.assert_array_equal(told, [2 * times, 2])


def test_nodes_wait_for_the_sizes_of_control_flow():
    graph = Graph()
    c = graph.add_input("c", tensor(dt.bool_))
    x = graph.add_input("x", tensor(dt.f32, 4))
    node = graph.add_node("if", [c], regions=[branch(graph, x, 1), branch(graph, x, 2)])
    early = graph.add("iota", [], {"size": node.attrs["sizes"][0]})
    early.node.serial = 0  # type: ignore[union-attr]
    graph.outputs = [early]
    assert [n.op for n in graph.ordered()] == ["if", "iota"]


def test_fused_groups_mean_their_region():
    graph = Graph()
    x = graph.add_input("x", tensor(dt.f32, size("n"), 4))
    inner = Graph("fused", parent=graph)
    formal = inner.add_input("", x.type)
    inner.outputs = [inner.add("exp", [inner.add("neg", [formal])])]
    group = graph.add("fused", [x], {"kind": "elementwise"}, regions=[inner])
    graph.outputs = [group]
    data = numbers(3, 4)
    np.testing.assert_allclose(interpret(graph, [data])[0], np.exp(-data), rtol=1e-6)


@pytest.mark.parametrize("limit", [1, 5, 64, 1 << 22])
def test_grids_are_evaluated_in_parts(limit: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate, "LIMIT", limit)
    graph = Graph()
    x = graph.add_input("x", tensor(dt.f32, 4, 5))
    y = graph.add_input("y", tensor(dt.f32, 5, 3))
    product = graph.add("matmul", [x, y])
    graph.outputs = [
        product, graph.add("reduce_max", [x], {"axes": (0, 1)}),
        graph.add("reduce_mean", [x], {"axes": (0,), "keepdims": True}),
        graph.add("transpose", [product], {"perm": (1, 0)}),
        graph.add("pad", [x], {"low": (2, 1), "high": (1, 0), "mode": "reflect"})]
    a, b = numbers(4, 5), numbers(5, 3)
    found = interpret(graph, [a, b], bodies=True)
    wanted = [a @ b, a.max(), a.mean(0, keepdims=True), (a @ b).T,
              np.pad(a, ((2, 1), (1, 0)), mode="reflect")]
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_large_reductions_take_bounded_memory():
    n = 400  # the whole grid would take 400 ** 3 * 4 bytes = 256 MB, several times over
    graph = Graph()
    x = graph.add_input("x", tensor(dt.f32, n, n))
    graph.outputs = [graph.add("matmul", [x, x])]
    data = numbers(n, n)
    tracemalloc.start()
    (found,) = interpret(graph, [data], bodies=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * evaluate.LIMIT * 4
    np.testing.assert_allclose(found, data @ data, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("to", "values", "wanted"), [
    (dt.i8, [300.7, -300.0, np.nan, -1.9], [127, -128, 0, -1]),
    (dt.u8, [300.7, -3.0, np.nan, 1.9], [255, 0, 0, 1]),
    (dt.i64, [np.inf, -np.inf, 1e30, 2.5], [2**63 - 1, -2**63, 2**63 - 1, 2]),
    (dt.i4, [9.0, -9.0, 3.7, -3.7], [7, -8, 3, -3]),
    (dt.bool_, [0.0, -0.0, np.nan, 0.1], [False, False, True, True]),
    (dt.bf16, [1.00390625, 1.01171875, 3e38, np.inf], [1.0, 1.015625, 3.0e38, np.inf]),
])
def test_casts_in_bodies(to, values, wanted):
    graph = Graph()
    x = graph.add_input("x", tensor(dt.f32, 4))
    graph.outputs = [graph.add("cast", [x], {"to": to})]
    for bodies in (False, True):
        (found,) = interpret(graph, [np.float32(values)], bodies=bodies)
        np.testing.assert_allclose(found.astype(np.float64), np.float64(wanted), rtol=2**-8)


def test_narrow_integers_wrap():
    graph = Graph()
    x = graph.add_input("x", tensor(dt.i4, 4))
    graph.outputs = [graph.add("add", [x, x])]
    data = np.array([7, -8, 3, -1]).astype(dt.i4.numpy)
    (found,) = interpret(graph, [data], bodies=True)
    np.testing.assert_array_equal(found.astype(int), [-2, 0, 6, -2])


def test_operands_outside_their_range_are_guarded():
    graph = Graph()
    x = graph.add_input("x", tensor(dt.f32, 3))
    graph.outputs = [graph.add("pad", [x], {"low": (2,), "high": (2,)})]
    np.testing.assert_array_equal(interpret(graph, [np.float32([1, 2, 3])], bodies=True)[0],
                                  [0, 0, 1, 2, 3, 0, 0])


def test_integer_powers():
    a, b = np.int64([2, -1, -1, 1, 0, 3]), np.int64([5, 3, -2, -9, 0, -1])
    np.testing.assert_array_equal(evaluate.integer_power(a, b), [32, -1, 1, 1, 1, 0])
