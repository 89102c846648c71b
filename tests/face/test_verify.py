"""Comparing outputs, and finding the first kernel or ONNX node that differs."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper

from smelt import api, bisection
from smelt.compilation import Request
from smelt.errors import UsageError
from smelt.ir.graph.clone import clone_graph
from smelt.ir.graph.core import Graph
from smelt.passes.graph.base import known_passes
from smelt.verification import compare, reference_named

F32 = TensorProto.FLOAT


def arrays(dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(11).standard_normal((4, 50)).astype(dtype)


def test_errors_are_relative_to_the_largest_value():
    a = arrays()
    b = a.copy()
    b[1, 3] += 0.5
    found = compare("y", a, b)
    assert found.absolute == pytest.approx(0.5, rel=1e-5)
    assert found.relative == pytest.approx(0.5 / np.abs(a).max(), rel=1e-5)
    assert found.exact == pytest.approx(1 - 1 / 200) and not found.passed
    assert compare("y", a, b, rtol=1.0).passed and compare("y", a, a).cosine == pytest.approx(1)
    assert compare("y", a, a + np.float32(1e-5)).passed


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_tolerance_follows_the_type(dtype):
    a = arrays(dtype)
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert compare("y", a, (a.astype(np.float64) * (1 + eps)).astype(dtype)).passed
    assert not compare("y", a, (a.astype(np.float64) * 1.2).astype(dtype)).passed


def test_not_a_number_must_stand_in_the_same_places():
    a = arrays()
    a[0, 0], a[0, 1] = np.nan, np.inf
    assert compare("y", a, a.copy()).passed
    for value, reason in ((1.0, "other places"), (-np.inf, "other NaN")):
        b = a.copy()
        b[0, 1] = value
        found = compare("y", a, b)
        assert not found.passed and reason in found.reason


def test_integers_of_eight_bits_may_be_off_by_one_seldom():
    a = np.random.default_rng(2).integers(0, 250, 10_000).astype(np.uint8)
    b = a.copy()
    b[:4000] += 1
    assert compare("y", a, b).passed
    b[:9] += 2
    assert compare("y", a, b).passed  # 0.09 %
    b[:20] = a[:20] + 3
    assert not compare("y", a, b).passed
    wide = a.astype(np.int64)
    assert compare("y", wide, wide).passed and not compare("y", wide, b.astype(np.int64)).passed
    truth = a > 100
    assert compare("y", truth, truth).passed and not compare("y", truth, ~truth).passed


def test_other_shapes_and_types_fail():
    a = arrays()
    assert "shape" in compare("y", a, a[:2]).reason
    assert "float64" in compare("y", a, a.astype(np.float64)).reason
    assert compare("y", a[:0], a[:0]).passed
    zero = np.zeros(3, np.float32)
    assert compare("y", zero, zero).passed and not compare("y", zero, zero + 1).passed


def test_references(mlp: Path):
    x = {"x": np.random.default_rng(1).standard_normal((2, 12), np.float32)}
    expected = small_models.mlp_reference(onnx.load(mlp), x["x"])
    for name in ("ort", "interpreter"):
        if name == "ort":
            pytest.importorskip("onnxruntime")
        called, reference = reference_named(name, Request(mlp))
        assert called == name
        np.testing.assert_allclose(reference(x)["y"], expected, atol=1e-5)
    with pytest.raises(UsageError, match="use ort, interpreter or data"):
        reference_named("torch", Request(mlp))


# Bisection ---------------------------------------------------------------------------------------


def tower(levels: int, activation: str = "Tanh") -> onnx.ModelProto:
    """Dense layers with an activation each, which stay kernels of their own; layer k is named
    dense<k>."""
    random = np.random.default_rng(9)
    nodes, constants, last = [], {}, "x"
    for k in range(levels):
        constants[f"w{k}"] = random.standard_normal((16, 16), np.float32) / 4
        name = "y" if k == levels - 1 else f"h{k}"
        nodes += [helper.make_node("MatMul", [last, f"w{k}"], [f"m{k}"], f"dense{k}"),
                  helper.make_node(activation, [f"m{k}"], [name], f"act{k}")]
        last = name
    return small_models.model_of(nodes, {"x": (F32, [3, 16])}, {"y": (F32, [3, 16])}, constants)


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(10).standard_normal((3, 16), np.float32)}


def sabotage(monkeypatch, victim: str, when=lambda graph: True) -> None:
    """Makes the compiler compute sine where the node called `victim` says tanh."""
    from smelt.targets.cpu import target

    honest = target.lower_for

    def lower_for(graph, *rest):
        if when(graph):
            graph = clone_graph(graph)
            for part in graph.walk_graphs():
                for node in part.nodes:
                    if node.op == "tanh" and victim in node.origin:
                        node.op = "sin"
        return honest(graph, *rest)

    monkeypatch.setattr(target, "lower_for", lower_for)


def test_no_fault_no_finding(inputs):
    assert bisection.find(Request(tower(4)), inputs) is None


@pytest.mark.parametrize("victim", [0, 3, 5])
def test_the_faulty_kernel_is_named(monkeypatch, inputs, victim: int):
    sabotage(monkeypatch, f"act{victim}'")
    found = bisection.find(Request(tower(6)), inputs)
    assert found is not None and found.where == "in the compiled code"
    assert f"dense{victim}'" in found.origin or f"act{victim}'" in found.origin
    assert "tanh" in found.operators and "kernel k" in found.place
    assert found.checked == found.total and f"of {found.total} checked" in found.sentence


def test_a_fault_that_hides_when_many_values_are_outputs(monkeypatch, inputs):
    sabotage(monkeypatch, "act2'", when=lambda graph: len(graph.outputs) <= 2)
    found = bisection.find(Request(tower(6)), inputs)
    assert found is not None
    assert "dense2'" in found.origin or "act2'" in found.origin


# Bisection of convolutions: nearly every value has another layout than in the model ---------------

LAYERS = ("stem", "depthwise", "point", "deep", "head")


def conv_net() -> onnx.ModelProto:
    """Convolutions with padding, a pool, a depthwise one, a residual sum and a classifier; they
    are named as in LAYERS."""
    random = np.random.default_rng(12)
    constants = {}

    def conv(name: str, shape: tuple[int, ...], source: str, **attributes) -> onnx.NodeProto:
        constants[f"w_{name}"] = random.standard_normal(shape, np.float32) / 4
        constants[f"b_{name}"] = random.standard_normal(shape[0], np.float32)
        return helper.make_node("Conv", [source, f"w_{name}", f"b_{name}"], [name], name,
                                **attributes)

    nodes = [conv("stem", (8, 3, 3, 3), "x", pads=[1, 1, 1, 1]),
             helper.make_node("Relu", ["stem"], ["r0"], "act0"),
             helper.make_node("MaxPool", ["r0"], ["p"], "pool", kernel_shape=[2, 2],
                              strides=[2, 2]),
             conv("depthwise", (8, 1, 3, 3), "p", group=8, pads=[1, 1, 1, 1]),
             helper.make_node("Relu", ["depthwise"], ["r1"], "act1"),
             conv("point", (8, 8, 1, 1), "r1"),
             helper.make_node("Add", ["point", "p"], ["sum"], "residual"),
             conv("deep", (12, 8, 3, 3), "sum", pads=[1, 1, 1, 1], strides=[2, 2]),
             helper.make_node("Sigmoid", ["deep"], ["s"], "act2"),
             conv("head", (5, 12, 1, 1), "s"),
             helper.make_node("GlobalAveragePool", ["head"], ["g"], "average"),
             helper.make_node("Flatten", ["g"], ["y"], "flat")]
    return small_models.model_of(nodes, {"x": (F32, [1, 3, 12, 20])}, {"y": (F32, [1, 5])},
                                 constants)


@pytest.fixture
def picture() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(13).standard_normal((1, 3, 12, 20), np.float32)}


def change_weights(graph: Graph, layer: str, change: Callable[[np.ndarray], object]) -> None:
    """Changes a copy of the weights of the convolution called `layer`, if there is one."""
    for node in graph.nodes:
        if f"'{layer}'" in node.origin:
            for value in node.inputs:
                if value is not None and value.constant is not None and value.constant.ndim > 1:
                    assert value.node is not None
                    array = np.array(value.constant)
                    change(array)
                    value.node.attrs["value"] = array


def spoil_one(weights: np.ndarray) -> None:
    weights.reshape(-1)[weights.size // 2] += 2


def spoil_lowering(monkeypatch, layers: tuple[str, ...],
                   change: Callable[[np.ndarray], object]) -> None:
    from smelt.targets.cpu import target

    honest = target.lower_for

    def lower_for(graph, *rest):
        graph = clone_graph(graph)
        for layer in layers:
            change_weights(graph, layer, change)
        return honest(graph, *rest)

    monkeypatch.setattr(target, "lower_for", lower_for)


def assert_names(found: bisection.Finding | None, layer: str, at_least: float) -> None:
    """The finding is the kernel of this layer, found among this share of all kernels."""
    assert found is not None and f"'{layer}'" in found.origin
    kernels = {k.name: k for k in api.build(conv_net()).program.kernels()}
    assert found.total == len(kernels) and found.checked > at_least * found.total
    first, *others = found.place.removeprefix("kernel ").split(" or ")
    assert f"'{layer}'" in kernels[first].origin and len(others) <= 1
    assert f"the first of {found.checked} checked" in found.sentence


def test_no_fault_in_convolutions(picture):
    assert bisection.find(Request(conv_net()), picture) is None


@pytest.mark.parametrize("layer", LAYERS)
def test_the_faulty_convolution_is_named(monkeypatch, picture, layer: str):
    spoil_lowering(monkeypatch, (layer,), spoil_one)
    found = bisection.find(Request(conv_net()), picture)
    assert_names(found, layer, 0.99)
    assert found.where == "in the compiled code"


def test_of_two_faults_the_first_is_named(monkeypatch, picture):
    spoil_lowering(monkeypatch, ("deep", "depthwise"), spoil_one)
    assert_names(bisection.find(Request(conv_net()), picture), "depthwise", 0.99)


def test_errors_that_only_add_up(monkeypatch, inputs):
    """7e-5 in every layer is within the tolerance of 1e-4, twice that is not."""
    def change(weights: np.ndarray) -> None:
        weights *= np.float32(1 + 7e-5)

    spoil_lowering(monkeypatch, tuple(f"dense{k}" for k in range(4)), change)
    found = bisection.find(Request(tower(4, "Relu")), inputs, rtol=1e-4)
    assert found is not None and "add up" in found.where and "dense1'" in found.origin
    assert found.checked == found.total == 4


def spoil_pass(monkeypatch, name: str, fault: Callable[[Graph], object]) -> None:
    """Makes a pass do something wrong after its work."""
    cls = known_passes()[name]
    honest = cls.run
    monkeypatch.setattr(cls, "run", lambda self, graph: honest(self, graph) | bool(fault(graph)))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["recognise", "fold_affine", "channels_last"])
def test_a_pass_that_changes_a_weight_is_named(monkeypatch, picture, name: str, layer: str):
    done = []

    def fault(graph: Graph) -> None:
        if graph not in done:  # a pass may run twice
            change_weights(graph, layer, spoil_one)
        done.append(graph)

    spoil_pass(monkeypatch, name, fault)
    found = bisection.find(Request(conv_net()), picture)
    assert_names(found, layer, 0.8)
    assert found.where.startswith(f"in the graph pass {name} (")


def drop_bias(monkeypatch, layer: str) -> None:
    def fault(graph: Graph) -> None:
        for node in list(graph.nodes):
            if node.op == "add" and f"'{layer}'" in node.origin:
                assert node.inputs[0] is not None
                graph.replace(node.output, node.inputs[0])
                graph.erase(node)

    spoil_pass(monkeypatch, "fold_affine", fault)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_pass_that_drops_a_bias_is_named(monkeypatch, picture, layer: str):
    """Where nothing else follows in the kernel, its result has nothing to be compared with any
    more: then the kernel after it is named too, and one less of the eight is checked."""
    drop_bias(monkeypatch, layer)
    found = bisection.find(Request(conv_net()), picture)
    assert_names(found, layer, 0.7 if layer == "head" else 0.8)
    assert found is not None and found.where.startswith("in the graph pass fold_affine (")


def test_a_dropped_bias_of_the_result(monkeypatch, picture):
    random = np.random.default_rng(14)
    proto = small_models.model_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], "only")], {"x": (F32, [1, 3, 12, 20])},
        {"y": (F32, [1, 4, 10, 18])}, {"w": random.standard_normal((4, 3, 3, 3), np.float32),
                                       "b": random.standard_normal(4, np.float32)})
    drop_bias(monkeypatch, "only")
    found = bisection.find(Request(proto), picture)
    assert found is not None and "fold_affine" in found.where and "'only'" in found.origin


def test_kernels_of_branches_are_not_counted():
    """An If with three kernels in an arm that may not run, and one kernel before it."""
    inner = helper.make_graph(
        [helper.make_node("CumSum", ["h", "axis"], ["c"]),
         helper.make_node("Softmax", ["c"], ["arm"])], "arm", [],
        [helper.make_tensor_value_info("arm", F32, [3, 4])])
    other = helper.make_graph([helper.make_node("Softmax", ["h"], ["arm2"])], "other", [],
                              [helper.make_tensor_value_info("arm2", F32, [3, 4])])
    proto = small_models.model_of(
        [helper.make_node("Exp", ["x"], ["h"]),
         helper.make_node("If", ["go"], ["y"], then_branch=inner, else_branch=other)],
        {"x": (F32, [3, 4]), "go": (TensorProto.BOOL, [])}, {"y": (F32, [3, 4])},
        {"axis": np.array(1, np.int64)})
    given = {"x": arrays()[:3, :4], "go": np.array(False)}
    model = bisection.compiled(Request(proto), given, lambda what, done, total: None)
    assert len(model.values) == 2 and len(model.program.kernels()) > 2
    assert len(model.checked(model.values)) == 1
    assert bisection.find(Request(proto), given) is None


def test_values_are_compared_in_any_order_of_axes():
    a = arrays().reshape(2, 4, 25)
    found = bisection.compare_transposed("v", a, np.ascontiguousarray(a.transpose(2, 0, 1)))
    assert found is not None and found.passed and found.shape == (25, 2, 4)
    found = bisection.compare_transposed("v", a, a.transpose(2, 0, 1) + 1)
    assert found is not None and not found.passed
    assert bisection.compare_transposed("v", a, a.reshape(4, 50)) is None


# Bisection of the import -------------------------------------------------------------------------


def test_a_fault_of_the_import_is_named(monkeypatch, inputs):
    pytest.importorskip("onnxruntime")
    from smelt.frontend.onnx import registry

    honest = registry.find

    def find(domain, name, opset):
        importer = honest(domain, name, opset)
        if name == "Tanh":
            return lambda c: c.add("sin", [c.input(0)]) if "act1'" in c.origin else importer(c)
        return importer

    for module in ("registry", "model"):
        monkeypatch.setattr(f"smelt.frontend.onnx.{module}.find", find, raising=False)
    found = bisection.find(Request(tower(3)), inputs)
    assert found is not None and found.where == "in the import"
    assert found.place == "node act1" and found.operators == ("Tanh",)
    assert found.before == "dense1"


def test_verify_with_bisect_on_the_command_line(smelt, monkeypatch, tmp_path: Path, inputs):
    onnx.save(tower(4), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", inputs["x"])
    sabotage(monkeypatch, "act1'")
    arguments = ["verify", tmp_path / "m.onnx", "--data", tmp_path / "x.npy", "--optimize", "1"]
    result = smelt(*arguments)
    assert result.code == 8 and "--bisect names the kernel" in result.err
    result = smelt(*arguments, "--bisect", "--json")
    assert result.code == 8
    origin = result.json["bisect"]["origin"]
    assert "act1'" in origin or "dense1'" in origin
    assert result.json["error"]["class"] == "VerifyError"
    assert "first of" in result.err
