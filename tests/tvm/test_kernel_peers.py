"""`smelt bench --kernels`: our schedules and TVM's code for the same operators."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from smelt.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    w = numpy_helper.from_array(rng.standard_normal((64, 48)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"]),
         helper.make_node("Softmax", ["z"], ["p"], axis=-1)], "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 48])], [w])
    path = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
              path)
    return path


def test_every_group_has_four_times(model, capfd):
    assert main(["bench", str(model), "--kernels", "--dim", "n=30", "--seconds", "0.05",
                 "--tvm-trials", "3", "--json"]) == 0
    kernels = json.loads(capfd.readouterr().out)["kernels"]
    assert len(kernels) == 2
    for k in kernels:
        assert k["smelt"] > 0 and k["scheduled"] > 0 and k["plain"] > 0, k
        assert k["metaschedule"] > 0, k
        assert not k["notes"] and k["kernels"] == 1 and 0 < k["share"] <= 1
    assert any("MatMul" in k["origin"] for k in kernels)


def test_the_table_has_a_column_for_metaschedule_only_with_trials(model, capfd):
    for trials in ("1", "0"):
        assert main(["bench", str(model), "--kernels", "--dim", "n=3", "--top", "1", "--seconds",
                     "0.05", "--tvm-trials", trials]) == 0
        told = capfd.readouterr()
        assert ("MetaSchedule" in told.out + told.err) == (trials == "1"), told


def test_a_wrong_result_is_not_timed(model, capfd, monkeypatch):
    from smelt.targets.tvm_blocks import BlockFunction

    real = BlockFunction.__call__
    monkeypatch.setattr(BlockFunction, "__call__", lambda self, inputs: [
        a + 1 for a in real(self, inputs)])
    assert main(["bench", str(model), "--kernels", "--dim", "n=3", "--top", "1", "--seconds",
                 "0.05", "--tvm-trials", "1", "--json"]) == 0
    (kernel,) = json.loads(capfd.readouterr().out)["kernels"]
    assert kernel["metaschedule"] is None and kernel["smelt"] > 0
    assert "the results of TVM's schedule are off by" in kernel["notes"]["metaschedule"]


def test_trials_are_of_the_comparison_of_kernels(model, capfd):
    assert main(["bench", str(model), "--tvm-trials", "4"]) != 0
    assert "add --kernels" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("options, sentence", [
    ([], "give --dim for n"),
    (["--dim", "n=2", "--threads", "2"], "on one thread"),
    (["--dim", "n=2", "--target", "cpu:generic"], "one cpu variant"),
])
def test_what_cannot_be_compared_is_refused(model, options, sentence, capfd):
    assert main(["bench", str(model), "--kernels", *options]) != 0
    assert sentence in " ".join(capfd.readouterr().err.split())
