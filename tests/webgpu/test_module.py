"""The artifact and its Python runtime: sizes, control flow, refusals."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from small_models import mlp, model_of

import smelt
from smelt.api import build
from smelt.errors import InputError, ModelError, TargetError, UsageError
from smelt.runtime import webgpu
from smelt.runtime.artifact import open_artifact

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def compiled(model, **options):
    return smelt.compile(model, target="webgpu", cache=False, **options)


def reference(model, inputs):
    return ReferenceEvaluator(model).run(None, inputs)


# Running ------------------------------------------------------------------------------------------


def test_open_sizes_change_between_runs(adapter, rng):
    model = mlp()
    with compiled(model) as module:
        for n in (1, 7, 0, 300, 2):
            x = rng.standard_normal((n, 12)).astype(np.float32)
            y = module(x)
            assert y.shape == (n, 5)
            np.testing.assert_allclose(y, reference(model, {"x": x})[0], 1e-5, 1e-6)
            np.testing.assert_array_equal(module.run({"x": x})["y"], y)


def test_equal_builds_give_equal_files(adapter, tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        compiled(mlp(), output=path).close()
    names = sorted(p.relative_to(paths[0]) for p in paths[0].rglob("*") if p.is_file())
    for name in names:
        assert (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes()
    assert any(name.suffix == ".wgsl" for name in names)


def test_a_zip_file_runs(adapter, tmp_path, rng):
    with compiled(mlp()) as module:
        path = module.save(tmp_path / "model.zip")
        x = rng.standard_normal((3, 12)).astype(np.float32)
        expected = module(x)
    with smelt.load(path) as module:
        np.testing.assert_array_equal(module(x), expected)
        assert [(s.name, s.shape[1:]) for s in module.inputs] == [("x", (12,))]


def test_layers_alike_share_a_shader(tmp_path):
    built = build(model_of(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Tanh", ["a"], ["b"]),
         helper.make_node("MatMul", ["b", "v"], ["c"]), helper.make_node("Tanh", ["c"], ["y"])],
        {"x": (F32, [9, 8])}, {"y": (F32, [9, 8])},
        {"w": np.eye(8, dtype=np.float32), "v": np.ones((8, 8), np.float32)}), "webgpu")
    plan = json.loads(built.files["plan.json"])
    assert len(plan["steps"]) == 2 and len(plan["shaders"]) == 1


def test_branches_and_loops_run_on_the_host(adapter, rng):
    double = helper.make_graph([helper.make_node("Add", ["x", "x"], ["d"])], "then", [],
                               [helper.make_tensor_value_info("d", F32, [5])])
    square = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["q"])], "else", [],
                               [helper.make_tensor_value_info("q", F32, [5])])
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]),
         helper.make_node("Cast", ["i"], ["f"], to=F32),
         helper.make_node("Add", ["h", "f"], ["next"])], "body",
        [helper.make_tensor_value_info("i", I64, []),
         helper.make_tensor_value_info("going", BOOL, []),
         helper.make_tensor_value_info("h", F32, [5])],
        [helper.make_tensor_value_info("on", BOOL, []),
         helper.make_tensor_value_info("next", F32, [5])])
    model = model_of(
        [helper.make_node("If", ["c"], ["z"], then_branch=double, else_branch=square),
         helper.make_node("Loop", ["m", "", "z"], ["y"], body=body)],
        {"c": (BOOL, []), "m": (I64, []), "x": (F32, [5])}, {"y": (F32, [5])})
    with compiled(model) as module:
        for condition, rounds in ((True, 3), (False, 0), (False, 5)):
            inputs = {"c": np.array(condition), "m": np.array(rounds),
                      "x": rng.standard_normal(5).astype(np.float32)}
            x = inputs["x"]
            expected = (x + x if condition else x * x) + sum(range(rounds))
            np.testing.assert_allclose(module.run(inputs)["y"], expected, 1e-6, 1e-6)


def gathering():
    return model_of([helper.make_node("Gather", ["x", "i"], ["y"], axis=0)],
                    {"x": (F32, [7, 3]), "i": (I64, [4])}, {"y": (F32, [4, 3])})


def test_indices_out_of_range_are_an_error_of_the_run(adapter, rng):
    x = rng.standard_normal((7, 3)).astype(np.float32)
    with compiled(gathering()) as module:
        np.testing.assert_array_equal(module(x, np.array([0, -1, 6, 2])), x[[0, -1, 6, 2]])
        with pytest.raises(InputError, match=r"range|outside|index"):
            module(x, np.array([0, 7, 1, 1]))
        with pytest.raises(InputError, match="more than 32 bits"):
            module(x, np.array([0, 1 << 40, 1, 1]))


def test_wrong_inputs_are_refused(adapter):
    x = np.zeros((2, 12), np.float32)
    with compiled(mlp()) as module:
        for message, args, named in (
                ('"x" is missing', (), {}), ('no input "z"', (x,), {"z": x}),
                ("1 inputs, but 2 were given", (x, x), {}), ("given twice", (x,), {"x": x}),
                ("must be f32", (x.astype(np.float64),), {}), ("axis 1 is 11", (x[:, 1:],), {}),
                ("has 1 axes", (x[0],), {})):
            with pytest.raises(InputError, match=message):
                module(*args, **named)
    with pytest.raises(UsageError, match="closed"):
        module(x)


# Refusals -----------------------------------------------------------------------------------------


def one_node(op, inputs, output, **attributes):
    return model_of([helper.make_node(op, list(inputs), ["y"], "the_node", **attributes)],
                    inputs, {"y": output})


@pytest.mark.parametrize(("model", "message"), [
    (one_node("Exp", {"x": (TensorProto.DOUBLE, [3])}, (TensorProto.DOUBLE, [3])), "f64"),
    (one_node("NonZero", {"x": (F32, [3])}, (I64, [1, None])), "the_node.*depends on data"),
    (one_node("Add", {"x": (I64, [3]), "z": (I64, [3])}, (I64, [3])), "the_node.*32 bits"),
])
def test_what_webgpu_cannot_do_names_the_place(model, message):
    with pytest.raises(ModelError, match=message):
        build(model, "webgpu")


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wgpu", None)
    webgpu.open_device.cache_clear()
    try:
        with pytest.raises(TargetError, match=r"smelt\[webgpu\]"):
            webgpu.open_device()
    finally:
        webgpu.open_device.cache_clear()


def test_a_variant_is_refused():
    with pytest.raises(TargetError, match="no variant 'fast'"):
        build(mlp(), "webgpu:fast")


def test_plans_of_another_version_are_refused(adapter, tmp_path):
    path = tmp_path / "model"
    compiled(mlp(), output=path).close()
    plan = json.loads((path / "plan.json").read_text())
    text = json.dumps({**plan, "version": 99})
    (path / "plan.json").write_text(text)
    with pytest.raises(smelt.errors.ArtifactError):
        webgpu.WebGpuModule(open_artifact(path, verify=False))


def test_emulated_adapters_that_stop_loops_are_refused(adapter):
    if "llvmpipe" not in str(adapter.adapter.info.get("device")):
        pytest.skip("the adapter is no emulation")
    model = onnx.helper.make_model(onnx.helper.make_graph(
        [helper.make_node("TopK", ["x", "k"], ["y", "i"])], "g",
        [helper.make_tensor_value_info("x", F32, [2, 70000])],
        [helper.make_tensor_value_info("y", F32, [2, 3]),
         helper.make_tensor_value_info("i", I64, [2, 3])],
        [onnx.numpy_helper.from_array(np.array([3]), "k")]), ir_version=9,
        opset_imports=[helper.make_opsetid("", 17)])
    with compiled(model) as module, pytest.raises(TargetError, match="loops more than 65535"):
        module(np.zeros((2, 70000), np.float32))
