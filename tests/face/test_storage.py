"""`--precision bf16-storage` and `f16-storage`: half as large, with the results of rounded weights.

The oracle is ONNX Runtime on a model whose weights were rounded by ml_dtypes or numpy, in f32.
"""

import json

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import small_models
from command_line import refused
from onnx import ModelProto, TensorProto, helper

from smelt import api
from smelt.inspect_model import read_report

NUMPY = {"bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16)}
TOLERANCE = 2e-5
"""Of sums of 600 products that are of size 1 in all, in another order."""


def model(kind: str = "", rows: int = 3) -> ModelProto:
    """A table of embeddings, two products and a convolution; weights rounded to a kind."""
    rng = np.random.default_rng(7)

    def weights(*shape: int, reduction: int = 1) -> np.ndarray:
        array = (rng.standard_normal(shape) / np.sqrt(reduction)).astype(np.float32)
        return array.astype(NUMPY[kind]).astype(np.float32) if kind else array

    constants = {"table": weights(700, 600), "w1": weights(600, 251, reduction=600),
                 "w2": weights(251, 33, reduction=251),
                 "w3": weights(24, 3, 3, 3, reduction=27)}
    return small_models.model_of([
        helper.make_node("Gather", ["table", "n"], ["x"]),
        helper.make_node("MatMul", ["x", "w1"], ["h1"]),
        helper.make_node("Tanh", ["h1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "w2"], ["h3"]),
        helper.make_node("Reshape", ["h3", "shape"], ["h4"]),
        helper.make_node("Conv", ["h4", "w3"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
    ], {"n": (TensorProto.INT64, [rows])}, {"y": (TensorProto.FLOAT, [rows, 24, 1, 6])},
        {**constants, "shape": np.array([rows, 3, 1, 11], np.int64)})


@pytest.mark.parametrize("rows", [1, 3, 130])
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_results_are_those_of_rounded_weights(kind, rows, rng):
    index = rng.integers(-700, 700, rows)
    session = onnxruntime.InferenceSession(model(kind, rows).SerializeToString())
    wanted = np.asarray(session.run(None, {"n": index})[0])
    compiled = api.compile(model("", rows), precision=f"{kind}-storage", threads=1)
    got = compiled(index)
    np.testing.assert_allclose(got, wanted, 0, TOLERANCE)
    np.testing.assert_array_equal(
        got, api.compile(model("", rows), precision=f"{kind}-storage", threads=3)(index))


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3+x86-64-v2"])
def test_artifacts_are_half_as_large(target, tmp_path):
    bytes_of = {}
    for precision in ("f32", "bf16-storage", "f16-storage"):
        path = tmp_path / precision
        api.compile(model(), target, precision=precision, output=path)
        bytes_of[precision] = (path / "weights.bin").stat().st_size
        assert "precision" not in read_report(path)  # what bf16 products cost is not measured
        manifest = json.loads((path / "manifest.json").read_text())
        assert manifest["options"]["precision"] == precision
    assert bytes_of["bf16-storage"] == bytes_of["f16-storage"] < 0.51 * bytes_of["f32"]


def test_constants_in_the_source_are_16_bits_wide(tmp_path):
    for precision, wide in (("f32", True), ("f16-storage", False)):
        api.compile(small_models.mlp(batch=1), "cpu:generic", precision=precision,
                      output=tmp_path / precision)
        source = (tmp_path / precision / "model.c").read_text()
        assert ("static const uint16_t" in source) is not wide


def test_on_the_command_line(tmp_path, smelt):
    path = tmp_path / "model.onnx"
    path.write_bytes(model().SerializeToString())
    out = tmp_path / "out.smelt"
    result = smelt("compile", path, "--precision", "f16-storage", "-o", out)
    assert result.code == 0, result.err
    assert 2 * (700 * 600 + 600 * 251) < (out / "weights.bin").stat().st_size < 1_250_000
    result = smelt("verify", path, "--precision", "bf16-storage", "--json")
    assert result.code == 0 and result.json["passed"], result.out
    refused(smelt("compile", path, "--precision", "f8-storage", "-o", out), 2,
            "precision is 'f8-storage': use f32, bf16, bf16-storage or f16-storage")


def test_a_layer_that_overflows_is_named(tmp_path, smelt):
    proto = small_models.mlp()
    (weights,) = [t for t in proto.graph.initializer if t.name == "w1"]
    weights.raw_data = np.full((12, 16), 70000.0, np.float32).tobytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    refused(smelt("compile", path, "--precision", "f16-storage", "-o", tmp_path / "out"), 3,
            "first", "the weight 70000 is too large to be kept as f16", "another precision")
    assert not (tmp_path / "out").exists()
    assert smelt("compile", path, "--precision", "bf16-storage", "-o", tmp_path / "o").code == 0
