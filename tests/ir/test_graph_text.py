"""Graphs print and parse back."""

import ml_dtypes
import numpy as np
import pytest
from random_graphs import random_graph

from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.expr import const, size
from smelt.ir.graph.core import Graph, TensorType
from smelt.ir.graph.interpreter import interpret
from smelt.ir.graph.text import parse_graph, print_attribute, print_graph
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.pipeline import optimise

EXAMPLE = """\
graph main(%0 "x": f32[N, 3], %1: i64[2], %2: bool[]) sizes {N: 1..64 "batch size", M: 0..} {
  bind(%1) {symbols = (d1, d2)} from "node 'a' (Shape)"
  %3: f32[3] = constant {value = [1.0, -0.0, inf]}
  %4 "sum": f32[N, 3] = add(%0, %3)
  %5: f32[N, 2], %6: i64[N, 2] = topk(%4) {k = 2, axis = 1, largest = false}
  %7: f32[N, 3, 1] = reshape(%0) {shape = (N, 3, 1)}
  %8: f32[(N - 1), 3] = slice(%0) {starts = (1, 0), sizes = ((N - 1), 3), steps = (1, 1)}
  %9: f32[d1, d2] = expand(%3) {shape = (d1, d2)}
  %10: f32[N, 3] = if(%2) {sizes = ()} region then() {
    %11: f32[N, 3] = relu(%4)
    return %11
  } region orelse() {
    return %0
  }
  %12: u8[N, 3] = cast(%4) {to = u8}
  %13: f32[1, N, 3] = reshape(%4) {shape = (1, N, 3)}
  return %4 as "y", %5 as "values", %6, %8, %9, %10, %12, %13
}"""


def test_the_text_is_a_fixed_point():
    assert print_graph(parse_graph(EXAMPLE)) == EXAMPLE


def test_names_origins_and_sizes_are_kept():
    graph = parse_graph(EXAMPLE)
    assert graph.inputs[0].name == "x" and graph.output_names == ["y", "values"]
    assert graph.symbols == {"N": (1, 64), "M": (0, None)}
    assert graph.symbols_origin == {"N": "batch size"}
    assert next(n for n in graph.nodes if n.op == "bind").origin == "node 'a' (Shape)"
    assert graph.fresh_symbol().name == "d3"


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_round_trip(seed):
    graph, inputs = random_graph(seed)
    for _ in range(2):
        text = print_graph(graph)
        again = parse_graph(text)
        verify(again)
        assert print_graph(again) == text
        for a, b in zip(interpret(graph, inputs), interpret(again, inputs), strict=True):
            assert a.tobytes() == b.tobytes()
        optimise(graph)


@pytest.mark.parametrize("dtype", dt.ALL.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 2), (7, 11)], ids=str)
def test_constants_keep_every_bit(dtype, shape):
    rng = np.random.default_rng(1)
    bits = 1 if dtype.is_bool else dtype.bits
    # A byte of a type narrower than it may hold the values of the type only.
    array = rng.integers(0, 1 << min(bits, 62), shape).astype(f"u{dtype.itemsize}")
    if dtype.is_float or bits >= 8 or dtype.is_bool:
        array = array.view(dtype.numpy)
    else:
        array = array.astype(dtype.numpy)
    graph = Graph()
    graph.outputs = [graph.constant(array)]
    found = parse_graph(print_graph(graph)).outputs[0].constant
    assert found is not None and found.dtype == array.dtype and found.shape == array.shape
    assert found.tobytes() == array.tobytes()


def test_constants_print_for_people():
    graph = Graph()
    arrays = [np.float32(0.1), np.full((4, 5), 2, np.int8), np.arange(40.0),
              np.array([0.1, np.nan], np.float32), np.array([1, 2], ml_dtypes.bfloat16)]
    graph.outputs = [graph.constant(a) for a in arrays]
    lines = [line.split("value = ")[1] for line in print_graph(graph, elide=16).splitlines()[1:6]]
    assert lines[:3] == ["0.1}", "elided}", "elided}"]
    assert lines[3].startswith('base64 "') and lines[4] == "[1.0, 2.0]}"
    assert "splat 2}" in print_graph(graph)
    with pytest.raises(ModelError, match="elided"):
        parse_graph(print_graph(graph, elide=16))


@pytest.mark.parametrize("value", [
    3, -3, 0.5, 1e-05, -2.0, float("inf"), True, False, None, "a \"b\"\n", dt.f32, (), (1,),
    (1, (2.0, "x")), [1, 2], size("N"), (size("N") + 1, 2), const(5), const(0.5, dt.f32),
    (size("N") + 1,), size("i32"),
], ids=repr)
def test_attributes_keep_their_type(value):
    graph = Graph()
    node = graph.add_node("sizes", (), {"dims": (1,)})
    node.attrs["dims"] = value
    text = print_graph(graph)
    assert f"dims = {print_attribute(value)}" in text
    from smelt.ir.graph.text import _Parser
    from smelt.ir.text import Reader

    found = _Parser(Reader(print_attribute(value))).attribute()
    assert type(found) is type(value)
    assert found is value or found == value


@pytest.mark.parametrize(("body", "message"), [
    ("%1: f32[3] = relu(%0)", "line 2.*relu gives"),
    ("%1: f32[2] = rely(%0)", "line 2.*unknown operator 'rely'"),
    ("%1: f32[2] = relu(%7)", "expected a value that is in scope, found '%7'"),
    ("%0: f32[2] = relu(%0)", "%0 is defined twice"),
    ("%1: f32[2] = relu(%0) {alpha = 1.0}", "relu has no attribute 'alpha'"),
    ("%1: f99[2] = relu(%0)", "expected a dtype"),
    ("%1: f32[2] = cast(%0)", "attribute 'to' is missing"),
])
def test_errors_say_where(body, message):
    with pytest.raises(ModelError, match=message):
        parse_graph(f"graph main(%0: f32[2]) {{\n  {body}\n  return %1\n}}")


def test_long_chains_need_no_stack():
    graph = Graph()
    value = graph.add_input("x", TensorType(dt.f32, (2,)))
    for _ in range(20_000):
        value = graph.add("neg", [value])
    graph.outputs = [value]
    assert len(parse_graph(print_graph(graph)).nodes) == 20_000
