"""Models on the emulated device from Python: sizes, control flow, states, sessions, errors."""

import subprocess
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from small_models import mlp, model_of

import smelt
from smelt.api import build
from smelt.errors import InputError, TargetError, UsageError
from smelt.runtime.cuda.module import CudaModule

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def compiled(model, **options):
    return smelt.compile(model, target="cuda:emulated", cache=False, optimize=0, **options)


def reference(model, inputs):
    return ReferenceEvaluator(model).run(None, inputs)


def test_open_sizes_change_between_runs(rng):
    model = mlp()
    with compiled(model) as module:
        assert isinstance(module, CudaModule) and module.device == "the emulated CUDA device"
        assert module.isa == "emulated" and module.threads == 1
        for n in (1, 7, 0, 300, 2):
            x = rng.standard_normal((n, 12)).astype(np.float32)
            y = module(x)
            assert y.shape == (n, 5)
            np.testing.assert_allclose(y, reference(model, {"x": x})[0], 1e-5, 1e-6)
            np.testing.assert_array_equal(module.run({"x": x})["y"], y)


def test_the_source_is_that_for_a_gpu():
    emulated, real = (build(mlp(), t).files["kernels.cu"] for t in ("cuda:emulated", "cuda:sm_80"))
    assert emulated == real


def test_kernels_have_no_names_of_the_model(rng):
    """A size may be called as a keyword of C++ is."""
    model = mlp(x="break;secret_input", y="secret_output", batch="template")
    text = build(model, "cuda:emulated").files["kernels.cu"]
    assert isinstance(text, bytes) and b"secret" not in text
    x = rng.standard_normal((3, 12)).astype(np.float32)
    with compiled(model) as module:
        np.testing.assert_allclose(
            module(x), reference(mlp(), {"x": x})[0], 1e-5, 1e-6)


def test_layers_alike_share_a_kernel():
    built = build(model_of(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Tanh", ["a"], ["b"]),
         helper.make_node("MatMul", ["b", "v"], ["c"]), helper.make_node("Tanh", ["c"], ["y"])],
        {"x": (F32, [9, 8])}, {"y": (F32, [9, 8])},
        {"w": np.eye(8, dtype=np.float32), "v": np.ones((8, 8), np.float32)}), "cuda:emulated")
    text = built.files["kernels.cu"]
    assert isinstance(text, bytes) and text.count(b"__global__") == 1


def test_branches_and_loops_run_on_the_host(rng):
    double = helper.make_graph([helper.make_node("Add", ["x", "x"], ["d"])], "then", [],
                               [helper.make_tensor_value_info("d", F32, [5])])
    square = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["q"])], "else", [],
                               [helper.make_tensor_value_info("q", F32, [5])])
    body = helper.make_graph(
        [helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0),
         helper.make_node("Less", ["s", "most"], ["on"]),
         helper.make_node("Cast", ["i"], ["f"], to=F32),
         helper.make_node("Add", ["h", "f"], ["next"])], "body",
        [helper.make_tensor_value_info("i", I64, []),
         helper.make_tensor_value_info("going", BOOL, []),
         helper.make_tensor_value_info("h", F32, [5])],
        [helper.make_tensor_value_info("on", BOOL, []),
         helper.make_tensor_value_info("next", F32, [5])])
    model = model_of(
        [helper.make_node("Not", ["c"], ["n"]),
         helper.make_node("If", ["n"], ["z"], then_branch=square, else_branch=double),
         helper.make_node("Loop", ["m", "", "z"], ["y"], body=body)],
        {"c": (BOOL, []), "m": (I64, []), "x": (F32, [5])}, {"y": (F32, [5])},
        {"most": np.array(60, np.float32)})
    with compiled(model) as module:
        for condition, rounds in ((True, 3), (False, 0), (False, 5), (True, 40)):
            inputs = {"c": np.array(condition), "m": np.array(rounds),
                      "x": rng.standard_normal(5).astype(np.float32)}
            x = inputs["x"]
            h = x + x if condition else x * x
            for i in range(rounds):
                going, h = h.sum() < 60, h + np.float32(i)
                if not going:
                    break
            np.testing.assert_allclose(module.run(inputs)["y"], h, 1e-6, 1e-6)


def test_sizes_that_depend_on_data(rng):
    """Memory on the device grows within a run, and again in the next."""
    model = model_of([helper.make_node("NonZero", ["x"], ["i"]),
                      helper.make_node("Cast", ["i"], ["f"], to=F32),
                      helper.make_node("Exp", ["f"], ["y"])],
                     {"x": (F32, ["N"])}, {"i": (I64, [1, None]), "y": (F32, [1, None])})
    with compiled(model) as module:
        for n in (5, 0, 60, 1):
            x = rng.integers(0, 2, n).astype(np.float32)
            i, y = module(x)
            np.testing.assert_array_equal(i, np.stack(np.nonzero(x)))
            np.testing.assert_allclose(y, np.exp(i.astype(np.float32)), 1e-6)


def test_states_stay_between_runs(rng):
    model = model_of([helper.make_node("Add", ["x", "h"], ["next"])],
                     {"x": (F32, [3]), "h": (F32, [3])}, {"next": (F32, [3])})
    with compiled(model, states=[("next", "h")]) as module:
        total = np.zeros(3, np.float32)
        for _ in range(4):
            x = rng.standard_normal(3).astype(np.float32)
            module(x)
            total = total + x
            np.testing.assert_array_equal(module.state("h"), total)


def test_indices_out_of_range_are_an_error_of_the_run(rng):
    model = model_of([helper.make_node("Gather", ["x", "i"], ["y"], axis=0)],
                     {"x": (F32, [7, 3]), "i": (I64, [4])}, {"y": (F32, [4, 3])})
    x = rng.standard_normal((7, 3)).astype(np.float32)
    with compiled(model) as module:
        for _ in range(2):
            np.testing.assert_array_equal(module(x, np.array([0, -1, 6, 2])), x[[0, -1, 6, 2]])
            for wrong in (7, 1 << 40):
                with pytest.raises(InputError, match=r"range|outside|index"):
                    module(x, np.array([0, wrong, 1, 1]))


def test_sessions_in_threads(rng):
    """They share the model's weights on the device; each has an arena of its own."""
    model = mlp()
    x = rng.standard_normal((9, 12)).astype(np.float32)
    with compiled(model) as module:
        expected, results = module(x), []

        def work():
            with module.session() as session:
                results.extend(session(x) for _ in range(5))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(results) == 15
        for y in results:
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"precision": "bf16"}, TargetError, "computes in f32 only"),
    ({"options": {"profile": "true"}}, TargetError, "counts no times"),
    ({"states": [("y", "nothing")]}, UsageError, "nothing")])
def test_what_is_not_there_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        compiled(mlp(), **options)


# Graphs -------------------------------------------------------------------------------------------


def test_graphs_are_captured_anew_when_sizes_change(rng):
    """Runs of one size: the first launches, the second captures, later ones replay."""
    model = mlp()
    with compiled(model) as plain, compiled(model, options={"graphs": "true"}) as module:
        for n in (3, 3, 3, 3, 700, 700, 700, 3, 3, 3, 0, 0, 0, 5):
            x = rng.standard_normal((n, 12)).astype(np.float32)
            np.testing.assert_array_equal(module(x), plain(x))


def test_copies_are_part_of_a_graph(rng):
    model = model_of([helper.make_node("Identity", ["x"], ["y"]),
                      helper.make_node("Neg", ["x"], ["z"])],
                     {"x": (F32, ["N"])}, {"y": (F32, ["N"]), "z": (F32, ["N"])})
    with compiled(model, options={"graphs": "true"}) as module:
        for n in (4, 4, 4, 9, 9, 9):
            x = rng.standard_normal(n).astype(np.float32)
            y, z = module(x)
            np.testing.assert_array_equal(y, x)
            np.testing.assert_array_equal(z, -x)


def test_graphs_of_steps_that_depend_on_data_are_refused():
    model = model_of([helper.make_node("NonZero", ["x"], ["y"])], {"x": (F32, [3])},
                     {"y": (I64, [1, None])})
    with pytest.raises(TargetError, match="leave the option graphs out"):
        compiled(model, options={"graphs": "true"})


# C ------------------------------------------------------------------------------------------------

PROGRAM = """
#include "model.h"
#include <stdio.h>
int main(int count, char **arguments) {
    smelt_model *model;
    smelt_session *session;
    static float ones[24];
    for (int i = 0; i < 24; i++) ones[i] = 1;
    const int64_t shape[] = {2, 12};
    smelt_tensor x = {ones, shape, SMELT_F32, 2}, y = {0};
    if (smelt_open(arguments[1], &model) || smelt_session_open(model, 0, &session) ||
        smelt_run(session, &x, 1, &y, 1)) {
        puts(smelt_error());
        return 1;
    }
    for (int i = 0; i < 10; i++) printf("%.9g ", ((float *)y.data)[i]);
    puts(smelt_model_device(model));
    smelt_session_close(session);
    smelt_close(model);
    return 0;
}
"""


def test_a_c_program_uses_a_model_as_one_for_the_cpu(tmp_path):
    model = mlp()
    with compiled(model, output=tmp_path / "model") as module:
        expected = module(np.ones((2, 12), np.float32)).reshape(-1)
    (tmp_path / "program.c").write_text(PROGRAM)
    program = tmp_path / "program"
    subprocess.run(["gcc", f"-I{tmp_path / 'model'}", str(tmp_path / "program.c"),
                    str(tmp_path / "model" / "libmodel.a"), "-lm", "-ldl", "-pthread", "-o",
                    str(program)], check=True)
    done = subprocess.run([program, tmp_path / "model"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    *numbers, device = done.stdout.strip().split(" ", 10)
    np.testing.assert_array_equal(np.array(numbers, np.float32), expected)
    assert device == "the emulated CUDA device"
