"""Bad input of every kind through the command line: one sentence, the documented exit code, no
partial output, no traceback."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models
from command_line import Result, refused
from onnx import TensorProto, external_data_helper, helper, numpy_helper

F32 = TensorProto.FLOAT


def compile_refused(smelt, path: Path, folder: Path, code: int, *parts: str) -> None:
    out = folder / "out"
    out.mkdir()
    refused(smelt("compile", path, "-o", out / "m.smelt"), code, *parts)
    assert os.listdir(out) == []


# Files that are no model -------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_truncated_files(smelt, mlp: Path, tmp_path: Path, share: float):
    data = mlp.read_bytes()
    mlp.write_bytes(data[: int(len(data) * share)])
    compile_refused(smelt, mlp, tmp_path, 3)


@pytest.mark.parametrize("kind", ["random", "text", "zeros", "zip"])
def test_garbage_files(smelt, tmp_path: Path, kind: str):
    path = tmp_path / "m.onnx"
    path.write_bytes({"random": np.random.default_rng(0).bytes(4000), "text": b"hello\n" * 50,
                      "zeros": bytes(3000), "zip": b"PK\x03\x04" + bytes(200)}[kind])
    compile_refused(smelt, path, tmp_path, 3)


def test_missing_files_and_folders(smelt, tmp_path: Path):
    for command in ("compile", "run", "bench", "verify", "inspect"):
        refused(smelt(command, tmp_path / "none.onnx"), 3, "there is no", "none.onnx")
    refused(smelt("compile", tmp_path), 3, "no model file")
    refused(smelt("run", tmp_path), 5, "manifest.json")


# Models that make no sense -----------------------------------------------------------------------


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return path


def broken(nodes, folder: Path, **constants: np.ndarray) -> Path:
    return saved(small_models.model_of(nodes, {"x": (F32, [2, 3])}, {"y": (F32, None)}, constants,
                                       check=False), folder)


def test_cyclic_graph(smelt, tmp_path: Path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"]),
             helper.make_node("Neg", ["a"], ["y"])]
    compile_refused(smelt, broken(nodes, tmp_path), tmp_path, 3)


@pytest.mark.parametrize("domain", ["", "com.example"])
def test_unknown_operator(smelt, tmp_path: Path, domain: str):
    node = helper.make_node("Frobnicate", ["x"], ["y"], "odd one", domain=domain)
    compile_refused(smelt, broken([node], tmp_path), tmp_path, 3, "Frobnicate")


def test_inconsistent_shapes(smelt, tmp_path: Path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    path = broken([node], tmp_path, w=np.zeros((4, 5), np.float32))
    compile_refused(smelt, path, tmp_path, 3, "product")


def test_undefined_tensor(smelt, tmp_path: Path):
    node = helper.make_node("Add", ["x", "nowhere"], ["y"], "sum")
    compile_refused(smelt, broken([node], tmp_path), tmp_path, 3, "nowhere")


@pytest.mark.parametrize("location", ["missing.data", "../m.data", "/etc/passwd", "a/../../b", ""])
def test_external_data_that_is_missing_or_outside(smelt, tmp_path: Path, location: str):
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "m.data").write_bytes(bytes(10_000))
    proto = small_models.mlp()
    for tensor in proto.graph.initializer:
        external_data_helper.set_external_data(tensor, location or "m.data")
        tensor.ClearField("raw_data")
        tensor.external_data[0].value = location
    compile_refused(smelt, saved(proto, folder), tmp_path, 3, "data")


def test_external_data_that_is_too_short(smelt, tmp_path: Path):
    proto = small_models.mlp()
    external_data_helper.convert_model_to_external_data(proto, location="m.data", size_threshold=0)
    path = saved(proto, tmp_path)
    (tmp_path / "m.data").write_bytes(b"12")
    compile_refused(smelt, path, tmp_path, 3, "m.data")


# Odd, but fine -----------------------------------------------------------------------------------

NAMES = ['quote"s', "new\nline", "*/ return", "int", "a b", "übung→", "x" * 10_000, "%s%n", "\\",
         "../up", "?" * 3 + "/", "\x01", "e\u0301", "𝒙"]


@pytest.mark.parametrize("name", NAMES, ids=lambda n: repr(n[:9]))
def test_any_name_is_fine(smelt, tmp_path: Path, name: str):
    proto = small_models.mlp(seed=2, x=name, y=f"out {name}")
    for node in proto.graph.node:
        node.name = name + node.name
    x = np.random.default_rng(1).standard_normal((2, 12), np.float32)
    np.savez(tmp_path / "in.npz", in_=x)
    np.save(tmp_path / "x.npy", x)
    path = saved(proto, tmp_path)
    result = smelt("run", path, tmp_path / "x.npy", "-o", tmp_path / "y.npz", "--json")
    assert result.code == 0, result.err
    assert result.json["outputs"][0]["name"] == f"out {name}"
    (found,) = np.load(tmp_path / "y.npz").values()
    np.testing.assert_allclose(found, small_models.mlp_reference(proto, x), atol=1e-5)
    page = smelt("inspect", path, "--dim", "N=1", "--html", tmp_path / "p.html")
    assert page.code == 0, page.err


@pytest.mark.slow
def test_a_chain_of_20000_nodes(smelt, tmp_path: Path):
    path = saved(small_models.chain(20_000), tmp_path)
    np.save(tmp_path / "x.npy", np.array([1, -2, 3, -4], np.float32))
    result = smelt("run", path, tmp_path / "x.npy", "-o", tmp_path / "y.npz")
    assert result.code == 0, result.err
    assert np.load(tmp_path / "y.npz")["y"].tolist() == [-1, -2, -3, -4]


@pytest.mark.slow
def test_a_constant_of_2_gb_that_is_never_used(smelt, tmp_path: Path):
    proto = small_models.mlp(seed=3)
    huge = numpy_helper.from_array(np.zeros(1, np.float32), "huge")
    huge.dims[:] = [1 << 29]
    external_data_helper.set_external_data(huge, "huge.data")
    huge.ClearField("raw_data")
    huge.data_location = TensorProto.EXTERNAL
    proto.graph.initializer.append(huge)
    with open(tmp_path / "huge.data", "wb") as file:
        file.truncate(1 << 31)  # sparse: no disk, and memory only if it is read
    path = saved(proto, tmp_path)
    # The peak of this process alone: ru_maxrss begins with what its parent had at the fork.
    code = ("import re, sys; from smelt.cli import main; code = main(sys.argv[1:]); "
            "status = open('/proc/self/status').read(); "
            "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) * 1024); sys.exit(code)")
    run = subprocess.run([sys.executable, "-c", code, "compile", str(path), "-o",
                          str(tmp_path / "m.smelt")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.splitlines()[-1]) < 1 << 30
    assert sum(p.stat().st_size for p in (tmp_path / "m.smelt").iterdir()) < 1 << 20


# Inputs at run time ------------------------------------------------------------------------------


@pytest.fixture
def artifact(smelt, mlp: Path, tmp_path: Path) -> Path:
    assert smelt("compile", mlp, "-o", tmp_path / "mlp.smelt").code == 0
    return tmp_path / "mlp.smelt"


@pytest.mark.parametrize(("array", "part"), [
    (np.zeros((1, 12)), "f64"), (np.zeros((1, 12), np.int32), "i32"),
    (np.zeros((1, 13), np.float32), "13"), (np.zeros(12, np.float32), "12"),
    (np.zeros((1, 2, 6), np.float32), ""), (np.array(["a"]), ""),
])
def test_wrong_inputs(smelt, artifact: Path, tmp_path: Path, array: np.ndarray, part: str):
    np.save(tmp_path / "x.npy", array)
    out = tmp_path / "y.npz"
    refused(smelt("run", artifact, tmp_path / "x.npy", "-o", out), 6, "x", part)
    assert not out.exists()


def test_missing_and_unknown_inputs(smelt, artifact: Path, tmp_path: Path):
    refused(smelt("run", artifact), 6, "x", "missing")
    np.save(tmp_path / "z.npy", np.zeros(3))
    refused(smelt("run", artifact, f"z={tmp_path / 'z.npy'}"), 6, "no input 'z'")
    refused(smelt("run", artifact, f"x={tmp_path / 'none.npy'}"), 6, "there is no file")


def test_an_open_size_must_be_given(smelt, tmp_path: Path):
    proto = small_models.model_of([helper.make_node("Neg", ["x"], ["y"])],
                                  {"x": (F32, [1, "height"])}, {"y": (F32, [1, "height"])})
    path = saved(proto, tmp_path)
    refused(smelt("run", path, "--random"), 2, "'height'", "--dim")
    assert smelt("run", path, "--random", "--dim", "height=3").code == 0


# Places that cannot be written -------------------------------------------------------------------


def test_read_only_output_folder(smelt, mlp: Path, artifact: Path, tmp_path: Path, monkeypatch):
    folder = tmp_path / "fixed"
    folder.mkdir()
    # Root may write anywhere: what counts is that the check comes first and is obeyed.
    monkeypatch.setattr("smelt.compilation.os.access", lambda path, mode: path != folder)
    refused(smelt("compile", mlp, "-o", folder / "m.smelt"), 7, "read-only", str(folder))
    refused(smelt("compile", mlp, "-o", folder / "a" / "m.zip"), 7, "read-only")
    refused(smelt("run", artifact, "--random", "-o", folder / "y.npz"), 7, "read-only")
    refused(smelt("inspect", artifact, "--html", folder / "p.html"), 7, "read-only")
    assert os.listdir(folder) == []


def test_output_over_something_else(smelt, mlp: Path, artifact: Path, tmp_path: Path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "precious").write_text("1")
    refused(smelt("compile", mlp, "-o", folder), 7, "other files")
    refused(smelt("compile", mlp, "-o", folder / "precious"), 7)
    refused(smelt("compile", mlp, "-o", folder / "precious" / "m"), 7)
    assert (folder / "precious").read_text() == "1" and os.listdir(folder) == ["precious"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    root = [] if os.getuid() == 0 else ["sudo", "-n"]
    command = [*root, "mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "smelt-test", str(folder)]
    if not shutil.which(command[0]) or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run([*root, "umount", str(folder)], check=True)


def test_full_disk(smelt, mlp: Path, artifact: Path, small_disk: Path, tmp_path: Path):
    refused(smelt("compile", mlp, "-o", small_disk / "m.smelt"), 7, "No space left")
    refused(smelt("compile", mlp, "-o", small_disk / "m.zip"), 7, "No space left")
    x = tmp_path / "x.npy"
    np.save(x, np.zeros((10_000, 12), np.float32))
    refused(smelt("run", artifact, x, "-o", small_disk / "y.npz"), 7, "No space left")
    assert os.listdir(small_disk) == []


def test_full_disk_under_the_cache(smelt, mlp: Path, small_disk: Path, tmp_path: Path,
                                   monkeypatch):
    monkeypatch.setenv("SMELT_CACHE", str(small_disk))
    refused(smelt("run", mlp, "--random"), 7, "No space left", "set SMELT_CACHE")
    # A model that goes elsewhere is written all the same, and that is said.
    result = smelt("compile", mlp, "-o", tmp_path / "m.smelt", "--json")
    assert result.code == 0 and "SMELT_CACHE" in result.json["note"]
    assert "No space left" in result.err
    assert smelt("run", tmp_path / "m.smelt", "--random").code == 0
    assert list((small_disk / "models").glob("*")) == []


# Artifacts that are not as they were written -----------------------------------------------------


def manifest_with(artifact: Path, **changes: object) -> None:
    path = artifact / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_newer_artifact(smelt, artifact: Path):
    manifest_with(artifact, schema_version=99)
    refused(smelt("run", artifact, "--random"), 5, "newer", "upgrade")
    refused(smelt("inspect", artifact), 5, "newer")


@pytest.mark.parametrize("name", ["model.so", "weights.bin", "report.json"])
def test_tampered_artifact(smelt, artifact: Path, name: str):
    data = bytearray((artifact / name).read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / name).write_bytes(data)
    refused(smelt("run", artifact, "--random"), 5, "damaged", name)


def test_artifact_with_files_missing(smelt, artifact: Path, tmp_path: Path):
    for name in ("weights.bin", "manifest.json"):
        copy = tmp_path / f"without-{name}"
        shutil.copytree(artifact, copy)
        (copy / name).unlink()
        refused(smelt("run", copy, "--random"), 5, name)


def test_artifact_whose_manifest_is_garbage(smelt, artifact: Path):
    for text in ("", "{", "[]", '{"schema_version": "x"}', '{"schema_version": 1, "files": 3}'):
        (artifact / "manifest.json").write_text(text)
        refused(smelt("run", artifact, "--random"), 5)


def test_artifact_whose_library_is_garbage(smelt, artifact: Path):
    import hashlib

    data = b"no library at all"
    (artifact / "model.so").write_bytes(data)
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    files["model.so"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest_with(artifact, files=files)
    refused(smelt("run", artifact, "--random"), 5, "cannot be loaded")


def test_artifact_of_another_machine(smelt, mlp: Path, tmp_path: Path):
    if not shutil.which("aarch64-linux-gnu-gcc"):
        pytest.importorskip("ziglang")
    out = tmp_path / "arm.smelt"
    result = smelt("compile", mlp, "--target", "cpu:aarch64", "-o", out, "--json")
    assert result.code == 0, result.err
    this = platform.machine()
    if this != "aarch64":
        refused(smelt("run", out, "--random"), 5, "was compiled for aarch64 (cpu:aarch64)",
                f"this machine, which is {this}")


def test_artifact_for_webassembly(smelt, mlp: Path, tmp_path: Path):
    pytest.importorskip("ziglang")
    out = tmp_path / "wasm.smelt"
    result = smelt("compile", mlp, "--target", "cpu:wasm32", "-o", out, "--json")
    assert result.code == 0, result.err
    refused(smelt("run", out, "--random"), 5, "is WebAssembly (cpu:wasm32)", "model.mjs", "Node.js")


# Tools that are not there ------------------------------------------------------------------------


def test_missing_compiler(mlp: Path, tmp_path: Path):
    code = ("import importlib.util, os, sys\n"
            "find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda n, *r: None if n == 'ziglang' else find(n, *r)\n"
            "os.environ['PATH'] = ''\n"
            "from smelt.cli import main; sys.exit(main(sys.argv[1:]))")
    run = subprocess.run(
        [sys.executable, "-c", code, "compile", str(mlp), "-o", str(tmp_path / "m.smelt")],
        capture_output=True, text=True, env={**os.environ, "SMELT_CACHE": str(tmp_path / "cache")})
    result = Result(run.returncode, run.stdout, run.stderr)
    refused(result, 4, "no C compiler", "smelt[zig]")
    assert not (tmp_path / "m.smelt").exists()


def test_compiler_that_fails(smelt, mlp: Path, tmp_path: Path, monkeypatch):
    for name in ("gcc", "clang", "cc"):
        fake = tmp_path / name
        fake.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo fake 1.0 && exit 0\n"
                        "echo 'fake: error: out of order' >&2\nexit 1\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path / "cache"))
    refused(smelt("compile", mlp, "-o", tmp_path / "m.smelt"), 4, "out of order")
    assert not (tmp_path / "m.smelt").exists()
