"""Sizes and indices that only a run knows: those that a model cannot take are refused in words, by
the compiled program and by the interpreter, before anything is read or written out of place."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from small_models import model_of

import smelt
from smelt.errors import InputError, ModelError
from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret
from smelt.ir.graph.text import parse_graph, print_graph
from smelt.passes.graph.pipeline import optimise

F32, I32, I64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def numbers(*values, dtype=np.int64) -> np.ndarray:
    return np.array(values, dtype)


def one_node(op: str, inputs, constants=None, outputs=1, **attributes):
    names = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, [*inputs, *(constants or {})], names, "here", **attributes)
    kinds = {"TopK": [F32, I64]}.get(op, [F32])
    return model_of([node], inputs, {n: (k, None) for n, k in zip(names, kinds)}, constants,
                    opset=18, check=False)


# (model, arrays that it takes, arrays that it refuses, words of the refusal)
CASES = {
    "gather": (one_node("Gather", {"x": (F32, ["n", 3]), "i": (I64, ["k"])}),
               [ones(4, 3), numbers(3, -4)],
               [[ones(4, 3), numbers(4)], [ones(4, 3), numbers(0, -5)],
                [ones(4, 3), numbers(10**12)]], "index is outside its axis of n elements"),
    "gather_i32": (one_node("Gather", {"x": (F32, [2, 5]), "i": (I32, ["k"])}, axis=1),
                   [ones(2, 5), numbers(4, -5, dtype=np.int32)],
                   [[ones(2, 5), numbers(5, dtype=np.int32)]], "axis of 5 elements"),
    "gather_elements": (
        one_node("GatherElements", {"x": (F32, ["n", "m"]), "i": (I64, ["k", "l"])}, axis=1),
        [ones(2, 3), numbers([2, -3, 0, 1])],
        [[ones(2, 3), numbers([3])], [ones(2, 3), numbers([0], [0], [0])]], "here"),
    "gather_nd": (one_node("GatherND", {"x": (F32, ["n", 3]), "i": (I64, ["k", 2])}),
                  [ones(4, 3), numbers([3, -3])], [[ones(4, 3), numbers([0, 0], [0, 3])]],
                  "axis of n x 3 elements"),
    "scatter_nd": (
        one_node("ScatterND", {"x": (F32, [4, 3]), "i": (I64, ["k", 1]), "u": (F32, ["j", "m"])}),
        [ones(4, 3), numbers([3], [-4]), ones(2, 3)],
        [[ones(4, 3), numbers([4]), ones(1, 3)], [ones(4, 3), numbers([0]), ones(2, 3)],
         [ones(4, 3), numbers([0]), ones(1, 2)]], "here"),
    "scatter_elements": (
        one_node("ScatterElements",
                 {"x": (F32, ["n", 3]), "i": (I64, ["k", "l"]), "u": (F32, ["o", "p"])}),
        [ones(4, 3), numbers([3, -4]), ones(1, 2)],
        [[ones(4, 3), numbers([4]), ones(1, 1)], [ones(4, 3), numbers([0]), ones(1, 2)],
         [ones(4, 3), numbers([0, 0, 0, 0]), ones(1, 4)]], "here"),
    "matmul": (one_node("MatMul", {"x": (F32, [2, "n"]), "z": (F32, ["m", 2])}),
               [ones(2, 5), ones(5, 2)], [[ones(2, 4000), ones(3, 2)]],
               r"needs n = m \(here 4000 and 3\)|needs n = m"),
    "add": (one_node("Add", {"x": (F32, ["n"]), "z": (F32, ["m"])}),
            [ones(3), ones(1)], [[ones(3), ones(4)]], "n = m or n = 1 or m = 1"),
    "add_to_known": (one_node("Add", {"x": (F32, ["n"]), "z": (F32, [4])}),
                     [ones(1), ones(4)], [[ones(3), ones(4)]], "n = 4 or n = 1"),
    "concat": (one_node("Concat", {"x": (F32, ["a", "n"]), "z": (F32, ["b", "m"])}, axis=0),
               [ones(2, 3), ones(1, 3)], [[ones(2, 3), ones(1, 4)]], "needs n = m"),
    "conv": (one_node("Conv", {"x": (F32, [1, "c", 6])}, {"w": ones(4, 3, 3)}),
             [ones(1, 3, 6)], [[ones(1, 2, 6)]], "needs c = 3"),
    "reshape": (one_node("Reshape", {"x": (F32, ["n"])}, {"s": numbers(4, -1)}),
                [ones(8)], [[ones(6)]], "n // 4"),
    "reshape_by_data": (one_node("Reshape", {"x": (F32, ["n"]), "s": (I64, [2])}),
                        [ones(6), numbers(2, 3)],
                        [[ones(6), numbers(400, 500)], [ones(6), numbers(-2, -3)]], "here"),
    "expand_by_data": (one_node("Expand", {"x": (F32, ["n"]), "s": (I64, [1])}),
                       [ones(1), numbers(8)], [[ones(6), numbers(8)]], "here"),
    "split": (one_node("Split", {"x": (F32, ["n"])}, {"s": numbers(2, 3)}, outputs=2),
              [ones(5)], [[ones(4)], [ones(3)]], "here"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_refused_in_words(name: str, tmp_path):
    proto, good, bad, words = CASES[name]
    graph = load_model(proto)
    optimised = load_model(proto)
    optimise(optimised)
    with smelt.compile(proto, threads=1) as compiled:
        want = interpret(graph, good)
        names = [s.name for s in compiled.inputs]
        for a, b in zip(compiled.run(dict(zip(names, good))).values(), want, strict=True):
            np.testing.assert_array_equal(a, b)
        for arrays in bad:
            with pytest.raises(InputError, match=words):
                interpret(graph, arrays)
            with pytest.raises(InputError, match=words):
                interpret(optimised, arrays)
            with pytest.raises(InputError, match=words) as caught:
                compiled.run(dict(zip(names, arrays)))
            assert "node 'here'" in str(caught.value).lower()
        again = compiled.run(dict(zip(names, good)))
        for a, b in zip(again.values(), want, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("indices, words", [((5,), "index 5"), ((-6,), "index -6")])
def test_known_indices_are_checked_while_importing(indices, words):
    proto = one_node("Gather", {"x": (F32, [5])}, {"i": numbers(*indices)})
    with pytest.raises(ModelError, match=f"{words} is outside an axis of 5"):
        load_model(proto)


def test_an_index_that_must_fit_an_open_size():
    graph = load_model(one_node("Gather", {"x": (F32, ["n"])}, {"i": numbers(2, -4)}))
    np.testing.assert_array_equal(interpret(graph, [ones(4)])[0], [1, 1])
    with pytest.raises(InputError, match="n"):
        interpret(graph, [ones(3)])


def test_only_the_branch_that_is_taken_must_fit():
    shape = {"four": numbers(4, 5), "one": numbers(1, -1)}
    arms = [helper.make_graph([helper.make_node("Reshape", ["x", s], [out], "here")], out, [],
                              [helper.make_tensor_value_info(out, F32, None)])
            for s, out in (("four", "a"), ("one", "b"))]
    proto = model_of([helper.make_node("If", ["c"], ["y"], then_branch=arms[0],
                                       else_branch=arms[1])],
                     {"x": (F32, ["n"]), "c": (TensorProto.BOOL, [])}, {"y": (F32, None)}, shape,
                     check=False)
    with smelt.compile(proto, threads=1) as compiled:
        assert compiled(ones(6), np.array(False)).shape == (1, 6)
        assert compiled(ones(20), np.array(True)).shape == (4, 5)
        with pytest.raises(InputError, match=r"n = 20 \(here 6\)"):
            compiled(ones(6), np.array(True))


def test_sizes_that_are_equal_for_certain_are_not_compared():
    proto = model_of([helper.make_node("Add", ["x", "x"], ["a"]),
                      helper.make_node("MatMul", ["a", "z"], ["y"])],
                     {"x": (F32, ["n", 3]), "z": (F32, [3, "m"])}, {"y": (F32, ["n", "m"])})
    assert not load_model(proto).conditions


def test_checks_survive_the_text_form():
    for name in ("gather", "reshape_by_data", "add"):
        graph = load_model(CASES[name][0])
        printed = print_graph(graph)
        again = parse_graph(printed)
        assert print_graph(again) == printed
        with pytest.raises(InputError):
            interpret(again, CASES[name][2][0])


def test_a_check_in_a_loop_ends_the_run():
    body = helper.make_graph(
        [helper.make_node("Gather", ["x", "k"], ["v"], "here"),
         helper.make_node("Add", ["sum", "v"], ["more"]),
         helper.make_node("Identity", ["go"], ["still"])], "body",
        [helper.make_tensor_value_info("k", I64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("sum", F32, [])],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []),
         helper.make_tensor_value_info("more", F32, [])])
    proto = model_of([helper.make_node("Loop", ["trips", "", "zero"], ["y"], body=body)],
                     {"x": (F32, [3]), "trips": (I64, [])}, {"y": (F32, [])},
                     {"zero": np.float32(0)}, check=False)
    with smelt.compile(proto, threads=1) as compiled:
        assert compiled(ones(3), np.int64(3)) == 3
        with pytest.raises(InputError, match="axis of 3 elements"):
            compiled(ones(3), np.int64(4))
