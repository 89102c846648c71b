"""Quantisation from the outside: `smelt.compile` and `smelt compile` with --quantize."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import smelt
from smelt.api import build
from smelt.cli import main
from smelt.errors import InputError, UsageError
from smelt.inspect_model import read_report


def model(rng, path: Path) -> Path:
    """Two products with a bias and an activation between them."""
    arrays = {"w1": rng.standard_normal((64, 96)) / 8, "b": rng.standard_normal(96),
              "w2": rng.standard_normal((96, 40)) / 10}
    held = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["h"], "first"),
             helper.make_node("Add", ["h", "b"], ["i"]), helper.make_node("Relu", ["i"], ["j"]),
             helper.make_node("MatMul", ["j", "w2"], ["y"], "second")]
    graph = helper.make_graph(
        nodes, "main", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 40])], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)],
                                ir_version=10), path)
    return path


def samples(rng, count: int = 3) -> list[dict[str, np.ndarray]]:
    mix = rng.standard_normal((20, 64))
    return [{"x": (rng.standard_normal((50, 20)) @ mix).astype(np.float32) / 4}
            for _ in range(count)]


def written(folder: Path, given: list[dict[str, np.ndarray]]) -> Path:
    folder.mkdir()
    for k, sample in enumerate(given):
        np.savez(folder / f"{k}.npz", **sample)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path / "cache"))


def test_errors_fall_with_the_method(rng, tmp_path, cached):
    path, data = model(rng, tmp_path / "m.onnx"), samples(rng, 4)
    x = data.pop()
    want = smelt.compile(path, threads=1)(x["x"])
    errors = {}
    for scheme, method in (("w8", "rtn"), ("w3", "rtn"), ("w3", "gptq"), ("w3", "awq"),
                           ("w3", "descent")):
        module = smelt.compile(path, quantize=scheme, method=method, data=data, threads=1)
        errors[scheme, method] = np.linalg.norm(module(x["x"]) - want) / np.linalg.norm(want)
    assert errors["w8", "rtn"] < 0.02
    assert max(errors["w3", m] for m in ("gptq", "awq", "descent")) < errors["w3", "rtn"] < 0.5


def test_command_line(rng, tmp_path, cached, capsys):
    path, out = model(rng, tmp_path / "m.onnx"), tmp_path / "m.smelt"
    folder = written(tmp_path / "data", samples(rng))
    command = ["compile", str(path), "-o", str(out), "--quantize", "w4a8", "--group", "32",
               "--data", str(folder), "--json"]
    assert main(command) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["compression"]
    assert found["method"] == "gptq" and found["samples"] == 3
    assert found["encoding"] == "int{group=32,zeros=true}"
    assert [x["shape"] for x in found["layers"]] == [[64, 96], [96, 40]]
    assert all(0 < x["output_error"] < 0.2 and x["encoded"] < x["dense"] / 6
               for x in found["layers"])
    assert "first" in captured.err and "all" in captured.err
    assert read_report(out)["compression"] == found
    assert json.loads((main(command) == 0 and capsys.readouterr().out) or "{}")["cached"]
    # Other data are another model.
    np.savez(folder / "3.npz", **samples(rng, 1)[0])  # type: ignore[arg-type]
    assert main(command) == 0
    assert not json.loads(capsys.readouterr().out)["cached"]


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "descent"])
def test_kept_layers_have_eight_bits(method, rng, tmp_path):
    built = build(model(rng, tmp_path / "m.onnx"), quantize="w2", group=16, method=method,
                  data=samples(rng), keep=["s?cond"])
    first, second = built.reports["compression"]["layers"]
    assert (first["encoding"], second["encoding"]) == (
        "int{group=16,bits=2,zeros=true}", "int{group=16,bits=8}")
    assert second["output_error"] < 0.02 < first["output_error"]


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda s: {"x": s["x"].astype(np.float64)}, "is float64, not f32"),
    (lambda s: {"x": s["x"][:, :60]}, "has the shape 50x60, not nx64"),
    (lambda s: {"x": np.where(s["x"] > 2, np.nan, s["x"])}, "holds NaN or infinities"),
    (lambda s: {"z": s["x"]}, "has no input 'x'"),
    (lambda s: {**s, "z": s["x"]}, "has 'z', which is no input"),
])
def test_bad_samples_get_one_sentence(change, sentence, rng, tmp_path, cached):
    path, data = model(rng, tmp_path / "m.onnx"), samples(rng)
    data[1] = change(data[1])
    with pytest.raises(InputError, match=sentence) as caught:
        smelt.compile(path, quantize="w4", data=data, output=tmp_path / "m.smelt")
    assert "sample 1" in str(caught.value) and not (tmp_path / "m.smelt").exists()


def test_bad_files_end_with_their_code(rng, tmp_path, cached, capsys):
    path, out = model(rng, tmp_path / "m.onnx"), tmp_path / "m.smelt"
    folder = written(tmp_path / "data", [{"x": np.full((2, 64), np.inf, np.float32)}])
    assert main(["compile", str(path), "-o", str(out), "--quantize", "w4", "--data",
                 str(folder)]) == InputError.exit_code
    assert "input 'x' of 0.npz holds NaN or infinities" in capsys.readouterr().err
    assert main(["compile", str(path), "-o", str(out), "--quantize", "w4", "--data",
                 str(tmp_path / "none")]) == InputError.exit_code
    assert "no npz files" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("options", "sentence"), [
    ({"quantize": "w7"}, "did you mean"), ({"group": 32}, "options of quantisation"),
    ({"quantize": "w4", "method": "gptq"}, "needs samples"),
    ({"quantize": "w4", "method": "best"}, "no method"),
    ({"quantize": "w4", "group": 7}, "multiple of 16"),
    ({"quantize": "w4", "keep": ["third"]}, "no layer to keep has a name with 'third'"),
])
def test_bad_options_get_one_sentence(options, sentence, rng, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        smelt.compile(model(rng, tmp_path / "m.onnx"), **options)


def test_channels_of_outliers_stay_floats(rng, tmp_path, cached):
    """One channel a hundred times as large as the rest widens the steps of every row."""
    path, data = model(rng, tmp_path / "m.onnx"), samples(rng, 3)
    for sample in data:
        sample["x"][:, 7] *= 300
    x = data.pop()["x"]
    want = smelt.compile(path, threads=1)(x)
    errors = {}
    for method in ("rtn", "outliers"):
        built = build(path, quantize="w8a8", group=0, method=method, data=data)
        module = smelt.compile(path, quantize="w8a8", group=0, method=method, data=data)
        errors[method] = np.linalg.norm(module(x) - want) / np.linalg.norm(want)
        first = built.reports["compression"]["layers"][0]
        assert first["encoded"] >= 64 * 96 + (96 * 4 if method == "outliers" else 0)
    assert errors["outliers"] < errors["rtn"] / 2 and errors["outliers"] < 0.02
    with pytest.raises(UsageError, match="outliers is for activations of 8 bits: use w4a8"):
        build(path, quantize="w4", method="outliers", data=data)
