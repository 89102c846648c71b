"""Comparing outputs, and finding the first kernel or ONNX node that differs."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper

from smelt import bisection
from smelt.compilation import Request
from smelt.errors import UsageError
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
    with pytest.raises(UsageError, match="use ort or interpreter"):
        reference_named("torch", Request(mlp))


# Bisection ---------------------------------------------------------------------------------------


def tower(levels: int) -> onnx.ModelProto:
    """Dense layers with an activation each, which stay kernels of their own; layer k is named
    dense<k>."""
    random = np.random.default_rng(9)
    nodes, constants, last = [], {}, "x"
    for k in range(levels):
        constants[f"w{k}"] = random.standard_normal((16, 16), np.float32) / 4
        name = "y" if k == levels - 1 else f"h{k}"
        nodes += [helper.make_node("MatMul", [last, f"w{k}"], [f"m{k}"], f"dense{k}"),
                  helper.make_node("Tanh", [f"m{k}"], [name], f"act{k}")]
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
    assert "sin" in found.operators and "kernel k" in found.place
    assert f"of {victim + 1} checked" in found.sentence


def test_a_fault_that_hides_when_many_values_are_outputs(monkeypatch, inputs):
    sabotage(monkeypatch, "act2'", when=lambda graph: len(graph.outputs) <= 2)
    found = bisection.find(Request(tower(6)), inputs)
    assert found is not None
    assert "dense2'" in found.origin or "act2'" in found.origin


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
