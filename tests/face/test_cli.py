"""The command line: what each command prints, in words and as JSON, and its exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models
from command_line import refused

import smelt as package
from smelt import cli
from smelt.errors import ModelError, SmeltError


@pytest.fixture
def artifact(smelt, mlp: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mlp.smelt"
    result = smelt("compile", mlp, "-o", path)
    assert result.code == 0, result.err
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(8).standard_normal((3, 12), np.float32))
    return path


def test_version_and_help(smelt):
    assert smelt("--version").out.strip() == f"smelt {package.__version__}"
    text = smelt("--help").out
    for command in ("compile", "run", "bench", "verify", "inspect", "opt", "targets"):
        assert command in text
        assert "--json" in smelt(command, "--help").out


def test_the_entry_point_is_quick_to_import():
    # Seconds of the processor, of which other processes take none; 0.05 are usual.
    code = ("import time; t = time.process_time(); import smelt.cli_commands\n"
            "print(time.process_time() - t)")
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            for _ in range(5)]
    assert min(float(r.stdout) for r in runs) < 0.3
    loaded = subprocess.run(
        [sys.executable, "-c", "import smelt.cli_commands, sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "onnx", "networkx", "onnxruntime", "torch"} & set(loaded)


def test_as_a_module():
    run = subprocess.run([sys.executable, "-m", "smelt", "--version"], capture_output=True,
                         text=True)
    assert run.returncode == 0 and run.stdout.startswith("smelt ")


# compile -----------------------------------------------------------------------------------------


def test_compile_says_what_it_wrote(smelt, mlp: Path, tmp_path: Path):
    result = smelt("compile", mlp, "-o", tmp_path / "m.smelt", "--json")
    facts = result.json
    assert result.code == 0
    assert facts["artifact"] == str(tmp_path / "m.smelt") and facts["target"] == "cpu"
    # Packed for the kernels: no less than in the model.
    assert facts["weights"] == (tmp_path / "m.smelt" / "weights.bin").stat().st_size
    assert facts["weights"] >= 4 * (12 * 16 + 16 + 16 * 5)
    assert facts["bytes"] == sum(p.stat().st_size for p in (tmp_path / "m.smelt").iterdir())
    assert facts["inputs"] == [{"name": "x", "dtype": "f32", "shape": ["N", 12]}]
    assert facts["kernels"] > 0 and facts["seconds"] > 0
    again = smelt("compile", mlp, "-o", tmp_path / "m.zip")
    assert again.code == 0 and "from the cache" in again.out and "weights" in again.out


def test_compile_writes_next_to_us_by_default(smelt, mlp: Path, tmp_path: Path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert smelt("compile", mlp).code == 0
    assert (folder / "mlp.smelt" / "manifest.json").is_file()


def test_compile_options(smelt, mlp: Path, tmp_path: Path, inputs: Path):
    out = tmp_path / "m.smelt"
    facts = smelt("compile", mlp, "-o", out, "--dim", "N=3", "--json").json
    assert facts["inputs"][0]["shape"] == [3, 12] and facts["flops"] > 2 * 3 * 12 * 16
    facts = smelt("compile", mlp, "-o", out, "--shape", "x=7x12", "--json").json
    assert facts["inputs"][0]["shape"] == [7, 12]
    facts = smelt("compile", mlp, "-o", out, "--fixed", f"x={inputs}", "--json").json
    assert facts["inputs"] == []
    assert smelt("compile", mlp, "-o", out, "--no-threads", "-O1", "--exact").code == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["--dim", "N"], "--dim 'N'"), (["--dim", "Q=1"], "Q"), (["--shape", "z=1"], "z"),
    (["--shape", "x"], "--shape 'x'"), (["--state", "x"], "--state 'x'"),
    (["--optimize", "9"], "--optimize"), (["--passes", "nonsense"], "nonsense"),
    (["--fixed", "x"], "--fixed 'x'"), (["--fixed", "x=none.npy"], "cannot be read"),
    (["--name", "a b"], "name is 'a b'"), (["--what"], "--what"),
])
def test_bad_options_exit_2(smelt, mlp: Path, tmp_path: Path, arguments: list[str], message: str):
    result = smelt("compile", mlp, "-o", tmp_path / "m.smelt", *arguments)
    assert result.code == 2
    assert message in result.err and result.err.count("\n") == 1 and not result.out
    assert not (tmp_path / "m.smelt").exists()


def test_source_code_for_microcontrollers(smelt, mlp: Path, tmp_path: Path):
    out = tmp_path / "gen"
    arguments = ["compile", mlp, "-t", "cpu:generic", "--dim", "N=1", "--name", "tiny", "-o", out]
    facts = smelt(*arguments, "--json").json
    assert facts["flash"] > facts["weights"] > 0 and facts["ram"] >= facts["arena"] > 0
    assert {"tiny.c", "tiny.h"} <= set(facts["files"])
    assert "flash" in smelt(*arguments).out
    assert "weights.bin" in smelt(*arguments, "--option", "weights=blob", "--json").json["files"]
    assert smelt(*arguments, "--option", "weights").code == 2
    # A library for this machine lies beside the source, so that it can be tried.
    expected = smelt("run", mlp, "--random", "--dim", "N=1", "--json").json["outputs"][0]
    found = smelt("run", out, "--random", "--json").json["outputs"][0]
    assert found["max"] == pytest.approx(expected["max"], abs=1e-5)
    assert "flash" in smelt("inspect", out).out


def test_states_stay_in_the_model(smelt, tmp_path: Path):
    from onnx import TensorProto, helper

    proto = small_models.model_of(
        [helper.make_node("Add", ["x", "sum_in"], ["sum_out"]),
         helper.make_node("Neg", ["sum_out"], ["y"])],
        {"x": (TensorProto.FLOAT, [3]), "sum_in": (TensorProto.FLOAT, [3])},
        {"y": (TensorProto.FLOAT, [3]), "sum_out": (TensorProto.FLOAT, [3])})
    onnx.save(proto, tmp_path / "m.onnx")
    compile = ["compile", tmp_path / "m.onnx", "-o", tmp_path / "m.smelt", "--state"]
    assert smelt(*compile, "sum_out:sum_in").code == 0
    model = package.load(tmp_path / "m.smelt")
    assert [s.name for s in model.inputs] == ["x"] and [s.name for s in model.outputs] == ["y"]
    x = np.array([1, 2, 3], np.float32)
    assert [model(x).tolist() for _ in range(3)] == [[-1, -2, -3], [-2, -4, -6], [-3, -6, -9]]
    for pair, message in (("z:sum_in", "no output 'z'"), ("y:z", "no input 'z'")):
        result = smelt(*compile, pair)
        assert result.code == 2 and message in result.err


# run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("give", ["positional", "option", "named", "npz", "json"])
def test_run_takes_inputs_in_any_way(smelt, artifact: Path, inputs: Path, tmp_path: Path, give):
    x = np.load(inputs)
    np.savez(tmp_path / "x.npz", x=x)
    (tmp_path / "x.json").write_text(json.dumps({"x": x.tolist()}))
    arguments = {"positional": [inputs], "option": ["--input", inputs],
                 "named": ["-i", f"x={inputs}"], "npz": [tmp_path / "x.npz"],
                 "json": [tmp_path / "x.json"]}[give]
    result = smelt("run", artifact, *arguments, "-o", tmp_path / "y.npz", "--json")
    assert result.code == 0, result.err
    expected = small_models.mlp_reference(small_models.mlp(), x)
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], expected, atol=1e-5)
    (facts,) = result.json["outputs"]
    assert facts["shape"] == [3, 5] and facts["mean"] == pytest.approx(0.2, abs=1e-6)


def test_run_takes_a_model_too_and_sums_up(smelt, mlp: Path):
    result = smelt("run", mlp, "--random", "--seed", "3")
    assert result.code == 0, result.err
    assert "y" in result.out and "1x5" in result.out and "largest" in result.out


def test_run_on_a_picture(smelt, tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    onnx.save(small_models.picture_net(), tmp_path / "net.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (16, 20, 3), np.uint8)
    image.fromarray(pixels).save(tmp_path / "p.png")
    result = smelt("run", tmp_path / "net.onnx", tmp_path / "p.png", "--mean", "0.4,0.5,0.6",
                   "--std", "0.2", "--json")
    assert result.code == 0, result.err
    assert result.json["outputs"][0]["shape"] == [1, 4]


def test_run_takes_each_input_once(smelt, artifact: Path, inputs: Path, tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=np.load(inputs))
    for files in ([inputs, inputs], [inputs, "-i", f"x={inputs}"], [tmp_path / "x.npz", inputs]):
        refused(smelt("run", artifact, *files), 6, "input 'x' is given twice", "'x.npy'")


@pytest.mark.parametrize("name", ["y.txt", "y", "y.npy"])
def test_run_writes_npz_files_only(smelt, artifact: Path, tmp_path: Path, name: str):
    refused(smelt("run", artifact, "--random", "-o", tmp_path / name), 2, "must end in .npz")
    assert not (tmp_path / name).exists()


# bench -------------------------------------------------------------------------------------------


def test_bench_next_to_onnx_runtime(smelt, mlp: Path):
    pytest.importorskip("onnxruntime")
    result = smelt("bench", mlp, "--seconds", "0.2", "--dim", "N=4", "--json")
    assert result.code == 0, result.err
    facts = result.json
    assert [e["engine"] for e in facts["engines"]] == ["smelt", "ort"]
    ours, theirs = (e["seconds"] for e in facts["engines"])
    assert ours > 0 and theirs > 0
    assert facts["ratios"]["ort"] > 0
    assert facts["differences"]["ort"] < 1e-4
    assert facts["machine"]["cpu"] and facts["inputs"]["x"]["shape"] == [4, 12]


def test_bench_of_an_artifact_with_profile_or_peers(smelt, mlp: Path, artifact: Path):
    alone = smelt("bench", artifact, "--seconds", "0.1", "--against", "", "--json")
    assert alone.code == 0 and [e["engine"] for e in alone.json["engines"]] == ["smelt"]
    lacking = smelt("bench", artifact, "--against", "ort")
    assert lacking.code == 2 and "--model FILE" in lacking.err
    profiled = smelt("bench", mlp, "--seconds", "0.1", "--against", "", "--profile", "--json")
    kernels = profiled.json["kernels"]
    assert sum(k["share"] for k in kernels) == pytest.approx(1)
    assert all(k["seconds"] > 0 for k in kernels)


def test_bench_says_which_engine_is_missing(smelt, mlp: Path):
    result = smelt("bench", mlp, "--seconds", "0.1", "--against", "openvino")
    installed = package.cli.__name__ and _installed("openvino")
    assert result.code == 0
    assert installed or "OpenVINO was not timed" in result.err
    assert smelt("bench", mlp, "--against", "tensorflow").code == 2
    assert smelt("bench", mlp, "--against", "torch").code == 2


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def test_the_python_face_has_the_same_words(smelt, mlp: Path):
    x = np.random.default_rng(2).standard_normal((3, 12), np.float32)
    found = package.verify(onnx.load(mlp), {"x": x}, against="interpreter")
    assert found["passed"] and found["outputs"][0]["shape"] == (3, 5)
    facts = package.inspect(onnx.load(mlp), "cpu", dims={"N": 3})
    assert facts["operators"]["matmul"] == 2 and facts["arena_plan"] and facts["nodes"]
    times = package.bench(mlp, {"x": x}, against=[], seconds=0.1)
    assert times["engines"][0]["seconds"] > 0
    assert set(times) == set(smelt("bench", mlp, "--against", "", "--seconds", "0.1",
                                   "--json").json)


# verify ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("against", ["ort", "interpreter"])
def test_verify_agrees(smelt, mlp: Path, inputs: Path, against: str):
    if against == "ort":
        pytest.importorskip("onnxruntime")
    result = smelt("verify", mlp, "--data", inputs, "--against", against, "--json")
    assert result.code == 0, result.err
    (facts,) = result.json["outputs"]
    assert facts["passed"] and facts["relative"] < 1e-4 and facts["cosine"] > 0.999999
    assert "agree with" in smelt("verify", mlp, "--against", against).out


def test_verify_an_artifact_against_stored_outputs(smelt, mlp: Path, artifact: Path,
                                                   tmp_path: Path):
    x = np.random.default_rng(4).standard_normal((2, 12), np.float32)
    y = small_models.mlp_reference(onnx.load(mlp), x).astype(np.float32)
    np.savez(tmp_path / "d.npz", in_x=x, out_0=y)
    arguments = ["verify", mlp, "--artifact", artifact, "--data", tmp_path / "d.npz", "--against",
                 "data"]
    assert smelt(*arguments).code == 0
    np.savez(tmp_path / "d.npz", in_x=x, out_0=y + 0.01)
    result = smelt(*arguments, "--json")
    assert result.code == 8
    assert result.json["error"]["class"] == "VerifyError" and not result.json["passed"]
    assert result.json["outputs"][0]["absolute"] == pytest.approx(0.01, rel=0.01)
    assert smelt(*arguments, "--rtol", "0.5").code == 0


def test_verify_wants_the_model_not_what_came_of_it(smelt, mlp: Path, artifact: Path,
                                                    tmp_path: Path):
    refused(smelt("verify", artifact), 2, "is a compiled model", "smelt verify MODEL --artifact")
    with pytest.raises(ModelError, match="is a compiled model: give the model"):
        package.verify(artifact)
    refused(smelt("compile", artifact, "-o", tmp_path / "z.smelt"), 3, "is a compiled model")
    # Stored outputs need no model.
    x = np.ones((1, 12), np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=small_models.mlp_reference(onnx.load(mlp), x)
             .astype(np.float32))
    assert smelt("verify", artifact, "--data", tmp_path / "d.npz", "--against", "data").code == 0


def test_verify_lists_what_it_compares_with(smelt, mlp: Path):
    refused(smelt("verify", mlp, "--against", "nonsense"), 2, "use ort, interpreter, data")


# inspect -----------------------------------------------------------------------------------------


def test_inspect_a_model(smelt, mlp: Path):
    facts = smelt("inspect", mlp, "--json").json
    assert facts["parameters"] == 12 * 16 + 16 + 16 * 5
    assert facts["operators"]["matmul"] == 2 and facts["open_sizes"] == ["N"]
    assert facts["inputs"][0]["shape"] == ["N", 12] and "kernels" not in facts
    shown = smelt("inspect", mlp).out
    assert "N x 12" in shown and "matmul 2" in shown and "open sizes: N" in shown


def test_inspect_an_artifact(smelt, artifact: Path):
    facts = smelt("inspect", artifact, "--json").json
    assert facts["target"] == "cpu" and all(k["origin"] for k in facts["kernels"])
    assert isinstance(facts["kernels"][0]["flops"], str)  # depends on N
    facts = smelt("inspect", artifact, "--dim", "N=2", "--json").json
    assert sum(k["flops"] for k in facts["kernels"]) >= 2 * 2 * (12 * 16 + 16 * 5)
    assert facts["arena_plan"] and facts["arena"] > 0 and facts["sizes"] == {"N": 2}
    assert "--dim 'N=1'" in smelt("inspect", artifact).out


LONG = "p2o.DynamicDimension."


def test_inspect_calls_sizes_as_the_model_does(smelt, tmp_path: Path):
    """Formulas in the table are cut, those of the JSON whole, and all over the names of --dim."""
    info, f32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    sizes = [f"{LONG}{k}" for k in range(3)]
    node = onnx.helper.make_node("Concat", ["a", "b"], ["c"], axis=1)
    pool = onnx.helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[3, 3], strides=[2, 2])
    graph = onnx.helper.make_graph(
        [node, pool], "m", [info("a", f32, [sizes[0], 3, *sizes[1:]]),
                            info("b", f32, [sizes[0], 5, *sizes[1:]])],
        [info("y", f32, [sizes[0], 8, "h", "w"])])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    assert smelt("compile", tmp_path / "m.onnx", "-o", tmp_path / "m.smelt").code == 0
    given = ",".join(f"{name}=9" for name in sizes)
    for arguments in (["m.onnx", "--target", "cpu"], ["m.smelt"]):
        command = ["inspect", tmp_path / arguments[0], *arguments[1:]]
        result = smelt(*command)
        assert f"f32   {sizes[0]} x 3 x {sizes[1]} x {sizes[2]}" in result.out
        assert "n2" not in result.out and "…" in result.out
        rows = result.out.split("kernel ")[1].splitlines()
        found = smelt(*command, "--json").json
        assert len(rows) == 1 + len(found["kernels"]) + 2  # no formula takes a second line
        assert found["open_sizes"] == sizes and found["sizes"] == {}
        formulas = [k["bytes"] for k in found["kernels"]]
        assert max(map(len, formulas)) > 60 and not any("…" in f or "n2" in f for f in formulas)
        known = smelt(*command, "--dim", given, "--json").json
        assert all(isinstance(k["bytes"], int) for k in known["kernels"])
        assert known["outputs"][0]["shape"] == [9, 8, 4, 4] and known["open_sizes"] == []


def test_sizes_that_a_compiled_model_does_not_have_are_refused(smelt, artifact: Path):
    for command in (["inspect"], ["run", "--random"], ["bench", "--against", ""]):
        result = smelt(*command, artifact, "--dim", "Q=1")
        refused(result, 2, "--dim 'Q'", "it has 'N'")


def test_inspect_with_shares_and_a_page(smelt, mlp: Path, tmp_path: Path):
    result = smelt("inspect", mlp, "--profile", "--dim", "N=2", "--html", tmp_path / "p.html",
                   "--json")
    assert result.code == 0, result.err
    assert sum(k["share"] for k in result.json["kernels"]) == pytest.approx(1)
    assert "% of time" in (tmp_path / "p.html").read_text()


# opt, targets ------------------------------------------------------------------------------------


def test_opt_reads_both_forms_and_writes_text(smelt, mlp: Path, tmp_path: Path):
    first = smelt("opt", mlp)
    assert first.code == 0 and first.out.startswith("graph ")
    (tmp_path / "g.txt").write_text(first.out)
    again = smelt("opt", tmp_path / "g.txt")
    assert again.out == first.out
    fused = smelt("opt", tmp_path / "g.txt", "--passes", "fold,cse,fuse", "--notes")
    assert fused.code == 0 and "fused" in fused.out and "fuse: changed" in fused.err
    result = smelt("opt", mlp, "-p", "dce", "-o", tmp_path / "o.txt", "--json")
    assert (tmp_path / "o.txt").read_text() == result.json["text"]
    assert [p["name"] for p in result.json["passes"]] == ["dce"]
    short = smelt("opt", mlp, "--elide", "4").out
    assert len(short) < len(first.out)


def test_opt_refuses_bad_text(smelt, tmp_path: Path):
    (tmp_path / "g.txt").write_text("graph main(%x: f32[2]) {\n  %y = nonsense(%x)\n}\n")
    result = smelt("opt", tmp_path / "g.txt")
    assert result.code == 3 and result.err.count("\n") == 1
    (tmp_path / "g.txt").write_text("this is nothing")
    assert smelt("opt", tmp_path / "g.txt").code == 3
    assert smelt("opt", tmp_path / "none.txt").code == 3


def test_targets(smelt):
    rows = {r["name"]: r for r in smelt("targets", "--json").json["targets"]}
    assert rows["cpu"]["state"] == "ready" and rows["cpu"]["toolchain"]
    assert "cpu:x86-64-v3" in rows and "cpu:generic" in rows
    assert rows["fpga:xcu280"]["state"] == rows["cuda:emulated"]["state"] == "ready"
    assert "cpu:aarch64" in smelt("targets").out


# Errors ------------------------------------------------------------------------------------------


def raising(error: BaseException):
    def build(self, progress=None):
        raise error

    return build


@pytest.mark.parametrize(("error", "code", "message"), [
    (ValueError("some bug\nover lines"), 70, "unexpected ValueError (some bug over lines)"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (MemoryError(), 1, "not enough memory"),
    (PermissionError(13, "Permission denied", "/x"), 1, "the system refused '/x'"),
    *((cls("a sentence"), cls.exit_code, "a sentence")
      for cls in [SmeltError, *SmeltError.__subclasses__()]),
], ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else None)
def test_every_error_is_one_sentence_and_a_code(smelt, mlp: Path, tmp_path: Path, monkeypatch,
                                                error, code: int, message: str):
    monkeypatch.setattr("smelt.compilation.Request.build", raising(error))
    arguments = ["compile", mlp, "--no-cache", "-o", tmp_path / "m.smelt"]
    result = smelt(*arguments)
    assert result.code == code and message in result.err and result.out == ""
    assert result.err.count("\n") == 1 and "Traceback" not in result.err
    result = smelt(*arguments, "--json")
    assert result.json["error"]["exit_code"] == code
    assert result.json["error"]["message"] in result.err
    if code == 70:
        assert "please report" in result.err and "--debug" in result.err
        assert "Traceback" in smelt(*arguments, "--debug").err
    assert not (tmp_path / "m.smelt").exists()


def test_a_closed_pipe_is_no_error(mlp: Path):
    run = subprocess.run(f"{sys.executable} -m smelt opt {mlp} | head -c 10", shell=True,
                         capture_output=True, text=True)
    assert run.stdout == "graph main" and run.stderr == ""


def test_control_characters_do_not_reach_the_terminal(smelt, tmp_path: Path):
    name = "x\x1b[31m\nred" + "long" * 500
    onnx.save(small_models.mlp(x=name), tmp_path / "m.onnx")
    result = smelt("inspect", tmp_path / "m.onnx")
    assert result.code == 0 and "\x1b" not in result.out and "x\\x1b[31m\\nred" in result.out
    assert max(map(len, result.out.splitlines())) < 400
    assert smelt("inspect", tmp_path / "m.onnx", "--json").json["inputs"][0]["name"] == name


def test_main_is_the_console_entry():
    assert cli.main(["--version"]) == 0
