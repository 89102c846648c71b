"""Which products keep more than bf16: choices on graphs whose sensitive product is known.

A difference of nearly equal sums loses the digits that bf16 has, so the product in front of it is
the one to keep; the product of the difference may be rounded.
"""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import smelt
from smelt.compilation import Request
from smelt.errors import TargetError, UsageError
from smelt.inspect_model import read_report
from smelt.ir.graph.interpreter import interpret
from smelt.passes.graph.pipeline import Options, optimise
from smelt.precision import _choose, choose_products, loss
from smelt.targets.cpu.isa import native


def model(rng, offset: float, batch: int | str = 128, kind: int = TensorProto.FLOAT) -> bytes:
    """y = relu(x A - offset) B, with columns of A whose sums with x are near `offset` times 1."""
    a = rng.standard_normal((64, 96), np.float32) / 8
    a[0] += offset
    b = rng.standard_normal((96, 80), np.float32)
    nodes = [helper.make_node("Concat", ["one", "x"], ["c"], "join", axis=1),
             helper.make_node("MatMul", ["c", "a"], ["p"], "first"),
             helper.make_node("Sub", ["p", "offset"], ["d"], "difference"),
             helper.make_node("Relu", ["d"], ["r"], "positive"),
             helper.make_node("MatMul", ["r", "b"], ["y"], "second")]
    held = [numpy_helper.from_array(array, name) for name, array in (
        ("a", a), ("b", b), ("offset", np.array(offset, np.float32)),
        ("one", np.ones((128, 1), np.float32)))]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, (batch, 63))],
        [helper.make_tensor_value_info("y", kind, (128, 80))], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)],
                             ir_version=10).SerializeToString()


BF16 = Options(channels_last=True, bf16=True)


def test_the_product_before_a_cancellation_is_kept(rng):
    graph = Request(model(rng, 200.3)).graph()
    before = len(graph.nodes)
    choice = choose_products(graph, BF16, 0.999)
    assert len(graph.nodes) == before
    assert choice.products == 2 and len(choice.keep) == 1 and "first" in choice.keep[0]
    assert choice.plain < 0.999 <= 1 - 4 * (1 - choice.reached)


def test_accurate_products_are_all_rounded(rng):
    choice = choose_products(Request(model(rng, 0)).graph(), BF16, 0.999)
    assert choice.keep == () and choice.plain == choice.reached > 0.9999


def test_models_without_such_products_and_with_open_sizes(rng):
    node = helper.make_node("Relu", ["x"], ["y"])
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (4,)) for n in "xy"]
    plain = helper.make_model(helper.make_graph([node], "g", infos[:1], infos[1:]))
    assert choose_products(Request(plain).graph(), BF16, 0.999).products == 0
    a = numpy_helper.from_array(rng.standard_normal((64, 64), np.float32), "a")
    node = helper.make_node("MatMul", ["x", "a"], ["y"])
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, "T", 64)) for n in "xy"]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [a])
    choice = choose_products(Request(helper.make_model(graph)).graph(), BF16, 0.999)
    assert choice.keep == () and "accuracy was not measured: size 'T'" in choice.note


def attention(offset: float) -> bytes:
    """softmax(q k) (v + offset) - offset, of 40 rows and 48 keys."""
    shapes = {"q": (1, 2, 40, 16), "k": (1, 2, 48, 16), "v": (1, 2, 48, 16), "y": (1, 2, 40, 16)}
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    nodes = [helper.make_node("Transpose", ["k"], ["t"], "turned", perm=[0, 1, 3, 2]),
             helper.make_node("MatMul", ["q", "t"], ["s"], "scores"),
             helper.make_node("Softmax", ["s"], ["p"], "probabilities", axis=-1),
             helper.make_node("Add", ["v", "offset"], ["w"], "moved"),
             helper.make_node("MatMul", ["p", "w"], ["z"], "averages"),
             helper.make_node("Sub", ["z", "offset"], ["y"], "back")]
    held = [numpy_helper.from_array(np.array(offset, np.float32), "offset")]
    graph = helper.make_graph(nodes, "g", [infos[n] for n in "qkv"], [infos["y"]], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)],
                             ir_version=10).SerializeToString()


@pytest.mark.parametrize(("offset", "kept"), [(0.0, 0), (500.0, 1)])
def test_attention_is_a_product_that_may_be_kept(offset, kept):
    """The offset takes the digits that bf16 has for the values."""
    options = replace(BF16, attention=True)
    choice = choose_products(Request(attention(offset)).graph(), options, 0.999)
    assert choice.products == 1 and len(choice.keep) == kept
    graph = Request(attention(offset)).graph()
    optimise(graph, replace(options, keep=choice.keep))
    (node,) = [n for g in graph.walk_graphs() for n in g.nodes if n.op == "attention"]
    assert node.attrs["rounded"] is not bool(kept)


def test_products_are_kept_by_loss_for_work():
    """Losses that add up: of 4, the one that costs most for its work goes first."""
    losses, work = np.array([1e-3, 4e-3, 2e-3, 1e-4]), [1.0, 16.0, 1.0, 1.0]
    choice = _choose("abcd", work, 1.2e-3, lambda on: float(losses @ on), lambda *_: None)
    assert choice.keep == ("a", "b", "c")
    choice = _choose("abcd", work, 4.2e-3, lambda on: float(losses @ on), lambda *_: None)
    assert choice.keep == ("a", "c")
    # Losses that grow together: the choice is measured, and more are kept until it is enough.
    choice = _choose("abcd", work, 1.2e-3, lambda on: float(losses @ on) * on.sum() ** 4,
                     lambda *_: None)
    assert choice.keep == ("a", "b", "c") and choice.reached == pytest.approx(1 - 1e-4)


def test_loss_is_the_worst_outputs():
    x = np.array([3.0, 4.0], np.float32)
    assert loss([x, x], [x, 2 * x]) == pytest.approx(0, abs=1e-12)
    assert loss([x, x], [x, x[::-1]]) == pytest.approx(1 - 24 / 25)
    assert loss([x], [x * np.nan]) == loss([x], [x * 0]) == 1
    assert loss([x * np.inf, x * 0, np.arange(2)], [x, x, np.arange(2) + 1]) == 0


def test_compiled_models_reach_the_accuracy(rng, tmp_path):
    data = model(rng, 200.3)
    if not native().vector.dot2:
        with pytest.raises(TargetError, match="no instructions for bf16 products"):
            smelt.compile(data, precision="bf16")
        return
    x = rng.standard_normal((128, 63), np.float32)
    (wanted,) = interpret(Request(data).graph(), [x])
    cosines = []
    for accuracy in (0.999, 0):
        path = tmp_path / f"{accuracy}.smelt"
        module = smelt.compile(data, precision="bf16", accuracy=accuracy, output=path)
        (y,) = module(x) if isinstance(module(x), tuple) else (module(x),)
        cosines.append(1 - loss([wanted], [y]))
        report = read_report(path).get("precision")
        assert (report is None) == (accuracy == 0)
        json.dumps(report)
    assert cosines[0] > 0.999 > cosines[1]


def test_an_impossible_accuracy_is_refused():
    for accuracy in (1, -0.5, float("nan")):
        with pytest.raises(UsageError, match="accuracy is .*: it is the least cosine"):
            Request(onnx.ModelProto(), precision="bf16", accuracy=accuracy)
