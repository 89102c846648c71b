"""Compiling through the Python face: sources, options, and the cache of whole models."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, external_data_helper, helper, numpy_helper

import smelt as package
from smelt import object_cache
from smelt.compilation import Request, compile_into, compile_to_cache
from smelt.errors import ModelError, OutputError, TargetError, UsageError
from smelt.runtime.artifact import open_artifact

# f32 sums of 12 and 16 terms against f64.
TOLERANCE = 1e-5


def batch(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 12), np.float32)


def entries(cache: Path) -> set[str]:
    return {p.name for p in (cache / "models").iterdir()} if (cache / "models").exists() else set()


@pytest.fixture
def own_cache(tmp_path: Path, cache: Path, monkeypatch) -> Path:
    """An empty cache of models that shares the compiled objects."""
    own = tmp_path / "cache"
    own.mkdir()
    (cache / "objects").mkdir(exist_ok=True)
    (own / "objects").symlink_to(cache / "objects")
    monkeypatch.setenv("SMELT_CACHE", str(own))
    return own


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "proto"])
def test_every_kind_of_source_gives_the_same_model(kind: str, mlp: Path):
    source = {"path": mlp, "text": str(mlp), "bytes": mlp.read_bytes(),
              "proto": onnx.load(mlp)}[kind]
    model = package.compile(source)
    x = batch(1, 3)
    expected = small_models.mlp_reference(onnx.load(mlp), x)
    np.testing.assert_allclose(model(x), expected, atol=TOLERANCE)
    np.testing.assert_allclose(model.run({"x": x})["y"], expected, atol=TOLERANCE)


def test_a_second_compile_comes_from_the_cache(own_cache: Path, mlp: Path):
    first = compile_to_cache(Request(mlp))
    start = time.process_time()  # of which other processes take none
    second = compile_to_cache(Request(mlp))
    seconds = time.process_time() - start
    assert not first.cached and second.cached and second.path == first.path
    assert seconds < 0.1
    assert entries(own_cache) == {first.path.name}


def test_every_option_gives_another_entry(own_cache: Path, mlp: Path):
    requests = [
        Request(mlp), Request(mlp, optimize=1), Request(mlp, exact=True),
        Request(mlp, threads=False), Request(mlp, passes="fold"), Request(mlp, name="other"),
        Request(mlp, dims={"N": 2}), Request(mlp, dims={"N": 3}), Request(mlp, "cpu:x86-64-v2"),
        Request(mlp, shapes={"x": ("M", 12)}), Request(mlp, extra={"profile": "true"}),
        Request(mlp, fixed={"x": batch(0, 2)}), Request(mlp, fixed={"x": batch(1, 2)}),
        Request(mlp, states=(("y", "x"),)), Request(mlp, precision="bf16"),
        Request(small_models.mlp(seed=1)),
    ]
    keys = [r.key() for r in requests]
    assert len(set(keys)) == len(keys)
    assert keys[0] == Request(mlp).key() == Request(mlp.read_bytes()).key()


def test_options_reach_the_model(mlp: Path):
    x = batch(2, 4)
    expected = small_models.mlp_reference(onnx.load(mlp), x)
    fixed_size = package.compile(mlp, dims={"N": 4})
    assert fixed_size.inputs[0].shape == (4, 12)
    np.testing.assert_allclose(fixed_size(x), expected, atol=TOLERANCE)
    constant = package.compile(mlp, fixed={"x": x})
    assert constant.inputs == []
    np.testing.assert_allclose(constant(), expected, atol=TOLERANCE)
    single = package.compile(mlp, threads=False)
    np.testing.assert_allclose(single(x), expected, atol=TOLERANCE)
    assert package.compile(mlp, threads=1).threads == 1


@pytest.mark.parametrize(("options", "message"), [
    ({"optimize": 5}, "optimize is 5"),
    ({"name": "not a name"}, "name is 'not a name'"),
    ({"fixed": {"z": np.zeros(1)}}, "fixed: the model has no input 'z'"),
    ({"fixed": {"x": np.zeros((1, 12))}}, "fixed: input 'x' is float32, not float64"),
    ({"fixed": {"x": np.zeros((1, 3), np.float32)}}, r"has shape \[None, 12\], not \[1, 3\]"),
    ({"dims": {"Q": 3}}, "Q"),
    ({"passes": "nonsense"}, "nonsense"),
])
def test_bad_options_are_refused(mlp: Path, options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        package.compile(mlp, **options)


@pytest.mark.parametrize("target", ["gpu", "cpu:z80", "cpu:x86-64-v3+aarch64"])
def test_unknown_targets_are_refused(mlp: Path, target: str):
    with pytest.raises(TargetError):
        package.compile(mlp, target)


def test_output_goes_to_a_folder_or_a_zip_file(tmp_path: Path, mlp: Path):
    x = batch(3, 2)
    for name in ("m.smelt", "deep/er/m.zip"):
        package.compile(mlp, output=tmp_path / name)
        loaded = package.load(tmp_path / name, threads=1)
        expected = small_models.mlp_reference(onnx.load(mlp), x)
        np.testing.assert_allclose(loaded(x), expected, atol=TOLERANCE)


def test_output_is_the_same_with_and_without_the_cache(tmp_path: Path, mlp: Path):
    for name, cache in (("a", True), ("b", False)):
        compile_into(Request(mlp), tmp_path / name, cache=cache)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in "ab")
    assert a == b


def test_without_the_cache_nothing_is_kept(own_cache: Path, mlp: Path):
    model = package.compile(mlp, cache=False)
    assert model(batch(4, 1)).shape == (1, 5)
    assert entries(own_cache) == set()


def test_a_build_stays_at_hand(mlp: Path):
    built = package.api.build(mlp)
    assert built.program.kernels() and built.manifest["signature"]
    assert [v.name for v in built.graph.inputs] == ["x"]


def test_a_damaged_entry_is_compiled_again(own_cache: Path, mlp: Path):
    path = compile_to_cache(Request(mlp)).path
    (path / "weights.bin").write_bytes(b"")
    model = package.compile(mlp)
    assert model(batch(5, 1)).shape == (1, 5)


# External data -----------------------------------------------------------------------------------


def with_external_data(folder: Path, seed: int = 0) -> Path:
    proto = small_models.mlp(seed)
    path = folder / "m.onnx"
    (folder / "m.data").unlink(missing_ok=True)  # onnx would append
    external_data_helper.convert_model_to_external_data(
        proto, all_tensors_to_one_file=True, location="m.data", size_threshold=0)
    onnx.save(proto, path)
    return path


def test_external_data_counts(tmp_path: Path):
    path = with_external_data(tmp_path)
    before = Request(path).key()
    assert Request(path).key() == before
    x = batch(6, 2)
    np.testing.assert_allclose(package.compile(path)(x),
                               small_models.mlp_reference(small_models.mlp(), x), atol=TOLERANCE)
    text = path.read_bytes()
    with_external_data(tmp_path, seed=1)
    assert path.read_bytes() == text  # the same model file, other weights
    assert Request(path).key() != before
    np.testing.assert_allclose(package.compile(path)(x),
                               small_models.mlp_reference(small_models.mlp(1), x), atol=TOLERANCE)


def test_external_data_in_regions_counts(tmp_path: Path):
    inner = numpy_helper.from_array(np.ones(3, np.float32), "w")
    external_data_helper.set_external_data(inner, "inner.data")
    inner.ClearField("raw_data")
    inner.data_location = TensorProto.EXTERNAL
    branch = helper.make_graph([], "b", [], [
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [3])], [inner])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    proto = small_models.model_of([node], {"c": (TensorProto.BOOL, [])},
                                  {"y": (TensorProto.FLOAT, [3])}, check=False)
    onnx.save(proto, tmp_path / "m.onnx")
    keys = set()
    for k in range(2):
        (tmp_path / "inner.data").write_bytes(bytes(12 + k))
        keys.add(Request(tmp_path / "m.onnx").key())
    assert len(keys) == 2


# Several processes -------------------------------------------------------------------------------

COMPILE = ("import sys, smelt, numpy as np; m = smelt.compile(sys.argv[1]); "
           "print(m(np.ones((1, 12), np.float32)).sum())")


def test_processes_may_compile_the_same_model_at_once(own_cache: Path, mlp: Path):
    started = [subprocess.Popen([sys.executable, "-c", COMPILE, str(mlp)], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert float(out) == pytest.approx(1, abs=1e-5)  # a softmax
    assert len(entries(own_cache)) == 1


@pytest.mark.parametrize("delay", [0.3, 0.8, 1.5, 2.5])
def test_an_interrupted_compile_leaves_nothing(tmp_path: Path, mlp: Path, delay: float):
    cache, out = tmp_path / "cache", tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "smelt", "compile", str(mlp), "-o", str(out / "m.smelt")],
        env={**os.environ, "SMELT_CACHE": str(cache)}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    # The signal may come before Python can handle it, or when all is done.
    assert process.returncode in (0, 130, -signal.SIGINT), err
    # What is there is complete.
    for name in os.listdir(out):
        assert name == "m.smelt" and open_artifact(out / name, verify=True)
    for entry in entries(cache):
        open_artifact(cache / "models" / entry, verify=True)


def test_what_killed_processes_left_is_removed(own_cache: Path, mlp: Path):
    stale, fresh = (own_cache / "models" / f".partial-{n}" for n in ("old", "new"))
    for folder in (stale, fresh):
        (folder / "model.smelt").mkdir(parents=True)
    os.utime(stale, (0, 0))
    compile_to_cache(Request(mlp))
    assert not stale.exists() and fresh.exists()


def test_the_cache_stays_below_its_limit(own_cache: Path, mlp: Path, monkeypatch):
    first = compile_to_cache(Request(mlp)).path
    size = sum(p.stat().st_size for p in first.rglob("*"))
    monkeypatch.setattr("smelt.compilation.CACHE_LIMIT", 2.5 * size)
    paths = [first]
    for n in range(1, 4):
        os.utime(paths[0], (time.time() - 1000, time.time() - 1000 + n))
        paths.append(compile_to_cache(Request(mlp, dims={"N": n})).path)
    assert not paths[0].exists() and paths[-1].exists()


def held_objects(cache: Path, count: int, size: int) -> list[Path]:
    """Compiled files of `size` bytes each, used one hour after the other, the last one just now."""
    (cache / "objects").mkdir(parents=True)
    files = [cache / "objects" / f"{k:064x}.o" for k in range(count)]
    for k, path in enumerate(files):
        path.write_bytes(bytes(size))
        last = time.time() - 3600 * (count - 1 - k)
        os.utime(path, (last, last - 1e6 if k % 2 else last))  # read later, or written only
    return files


def test_compiled_files_stay_below_their_limit(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path))
    monkeypatch.setattr(object_cache, "OBJECTS_LIMIT", 3500)
    files = held_objects(tmp_path, 6, 1000)
    for name, age in (("tmpold", 2e5), ("tmpnew", 0)):  # of processes that were killed, or are on
        (tmp_path / "objects" / name).write_bytes(b"")
        os.utime(tmp_path / "objects" / name, (time.time() - age,) * 2)
    object_cache.prune()
    assert [p.exists() for p in files] == [False] * 3 + [True] * 3
    assert not (tmp_path / "objects" / "tmpold").exists()
    assert (tmp_path / "objects" / "tmpnew").exists()


def test_no_compiled_file_goes_below_a_build(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path))
    monkeypatch.setattr(object_cache, "OBJECTS_LIMIT", 500)
    (file,) = held_objects(tmp_path, 1, 1000)
    with object_cache.in_use(), object_cache.in_use():  # of any process
        object_cache.prune()
        assert file.exists()
    object_cache.prune()
    assert not file.exists()


def test_a_compile_keeps_the_compiled_files_in_check(tmp_path: Path, mlp: Path, monkeypatch):
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path))
    monkeypatch.setattr(object_cache, "OBJECTS_LIMIT", 0)
    model = package.compile(mlp, cache=False, optimize=0)
    assert model(batch(8, 1)).shape == (1, 5)
    assert list((tmp_path / "objects").glob("*.o")) == []


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, mlp: Path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("SMELT_CACHE", str(blocked))
    with pytest.raises(OutputError, match="set SMELT_CACHE to another"):
        package.compile(mlp)
    assert package.compile(mlp, cache=False)(batch(7, 1)).shape == (1, 5)


# Torch -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torch_programs_compile(tmp_path: Path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh())
    x = torch.randn(2, 6)
    with pytest.raises(UsageError, match="training mode"):
        package.compile((module, x))
    module.eval()
    with pytest.raises(UsageError, match="example arguments"):
        package.compile(module)
    expected = module(x).detach().numpy()
    # f32 sums of six terms in another order.
    np.testing.assert_allclose(package.compile((module, x))(x), expected, atol=1e-6)
    free = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("N")},))
    np.testing.assert_allclose(package.compile(free)(x), expected, atol=1e-6)
    torch.export.save(free, tmp_path / "m.pt2")
    assert package.compile(tmp_path / "m.pt2")(x.repeat(3, 1)).shape == (6, 4)
    (tmp_path / "bad.pt2").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be loaded as a torch program"):
        package.compile(tmp_path / "bad.pt2")


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="a model is a path"):
        package.compile(42)
    with pytest.raises(ModelError, match="there is no model file"):
        package.compile(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="no model file"):
        package.compile(tmp_path)


def test_missing_compiler(tmp_path: Path, mlp: Path, monkeypatch):
    """Without any C compiler, and without ziglang, the sentence says what to install."""
    import importlib.util

    from smelt.targets.cpu import toolchain

    found = importlib.util.find_spec
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "ziglang" else found(name, *rest))
    assert shutil.which("gcc") is None and toolchain
    with pytest.raises(TargetError, match="no C compiler.*install gcc or clang"):
        package.compile(mlp, dims={"N": 77})
