"""The library of a model for a GPU, without one: what it says of drivers that are missing or fail.
A stand-in for libcuda.so.1 is built from programs/driver.c; it computes nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import mlp

from smelt.api import build
from smelt.errors import TargetError
from smelt.runtime.artifact import write_artifact
from smelt.targets.cuda import toolchain

STUB = Path(__file__).parent / "programs" / "driver.c"
RUN = """
import numpy as np, smelt, sys
try:
    with smelt.load(sys.argv[1]) as module:
        for n in (3, 3, 3, 0, 700):
            y = module(np.ones((n, 12), np.float32))
            assert y.shape == (n, 5) and not y.any()
        print(module.device)
except smelt.errors.SmeltError as error:
    print(f"{type(error).__name__}: {error}")
"""

needs_compilers = pytest.mark.skipif(
    shutil.which("gcc") is None or not (toolchain.nvcc() or toolchain.nvrtc()),
    reason="needs gcc and a CUDA compiler")
pytestmark = needs_compilers


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    built = build(mlp(), "cuda:sm_80")
    return write_artifact(tmp_path_factory.mktemp("cuda") / "model", built.manifest, built.files)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    built = build(mlp(), "cuda:sm_80+sm_90a")
    return write_artifact(tmp_path_factory.mktemp("two") / "model", built.manifest, built.files)


@pytest.fixture(scope="module")
def with_graphs(tmp_path_factory) -> Path:
    built = build(mlp(), "cuda:sm_80", options={"graphs": "true"})
    return write_artifact(tmp_path_factory.mktemp("graphs") / "model", built.manifest, built.files)


@pytest.fixture(scope="module")
def stub(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(["gcc", "-shared", "-fPIC", str(STUB), "-o", str(folder / "libcuda.so.1")],
                   check=True)
    return folder


def run(artifact: Path, folder: Path, fails: str = "") -> str:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "STUB_FAILS": fails}
    done = subprocess.run([sys.executable, "-c", RUN, str(artifact)], env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_model_runs_through_the_driver(artifact, stub):
    assert run(artifact, stub) == "Stub 1000"


def test_a_file_that_is_no_driver(artifact, tmp_path):
    (tmp_path / "libcuda.so.1").write_text("nothing")
    assert run(artifact, tmp_path).startswith("TargetError: No NVIDIA driver was found (")


@pytest.mark.parametrize(("fails", "sentence"), [
    ("cuInit=100", "TargetError: The NVIDIA driver does not start: error 100."),
    ("cuDeviceGet=101", "TargetError: The CUDA device failed while opening it: error 101."),
    ("cuModuleLoadData=209", "TargetError: The model was compiled for sm_80, which Stub 1000 "
                             "(sm_86) does not run: compile it for cuda:sm_86."),
    ("cuModuleLoadData=300", "TargetError: Stub 1000 failed while loading the kernels: error 300."),
    ("cuModuleGetFunction=500", "TargetError: Stub 1000 failed while looking for a kernel: "
                                "error 500."),
    ("cuMemAlloc_v2=2", "SmeltError: Stub 1000 has no memory left for this model while copying "
                        "the weights."),
    ("cuStreamCreate=1", "TargetError: Stub 1000 failed while making a stream: error 1."),
    ("cuLaunchKernel=701", "TargetError: The kernel k1_matmul failed: error 701."),
    ("cuMemcpyDtoHAsync_v2=700", "TargetError: Stub 1000 failed while copying an output: "
                                 "error 700."),
])
def test_failures_are_sentences(artifact, stub, fails, sentence):
    assert run(artifact, stub, fails) == sentence


def test_one_artifact_for_several_architectures(two, stub, monkeypatch):
    assert (two / "sm_80.cubin").is_file() and (two / "sm_90a.cubin").is_file()
    assert run(two, stub, "cuModuleLoadData=209") == (
        "TargetError: The model was compiled for sm_90a+sm_80, which Stub 1000 (sm_86) does not "
        "run: compile it for cuda:sm_86.")
    monkeypatch.setenv("STUB_LOADS", "1")
    assert run(two, stub) == "Stub 1000"


def test_graphs_are_captured_and_launched(with_graphs, stub):
    assert run(with_graphs, stub) == "Stub 1000"
    for function, what in (("cuStreamBeginCapture_v2", "capturing a graph"),
                           ("cuStreamEndCapture", "capturing a graph"),
                           ("cuGraphInstantiateWithFlags", "capturing a graph"),
                           ("cuGraphLaunch", "running a graph")):
        assert run(with_graphs, stub, f"{function}=900") == (
            f"TargetError: Stub 1000 failed while {what}: error 900.")


def test_an_old_driver(artifact, tmp_path):
    old = tmp_path / "driver.c"
    old.write_text(STUB.read_text().replace("cuLaunchKernel", "cuLaunch"))
    subprocess.run(["gcc", "-shared", "-fPIC", str(old), "-o", str(tmp_path / "libcuda.so.1")],
                   check=True)
    assert run(artifact, tmp_path) == ("TargetError: The NVIDIA driver is too old: it has no "
                                       "cuLaunchKernel; install a newer one.")


def test_without_compilers(monkeypatch):
    monkeypatch.setattr(toolchain, "nvcc", lambda: None)
    monkeypatch.setattr(toolchain, "nvrtc", lambda: None)
    with pytest.raises(TargetError, match=r"install NVIDIA's CUDA toolkit, or run pip install "
                                          r"'smelt\[cuda\]'"):
        build(mlp(), "cuda:sm_80")


@pytest.mark.parametrize(("target", "message"), [
    ("cuda", "needs an architecture"), ("cuda:fast", "no variant 'fast'"),
    ("cuda:sm_11", "failed on the kernels for sm_11: ")])
def test_other_architectures_are_refused(target, message):
    with pytest.raises(TargetError, match=message):
        build(mlp(), target)


def test_equal_builds_give_equal_files():
    first, second = (build(mlp(), "cuda:sm_80").files for _ in range(2))
    assert first.keys() == second.keys()
    for name, content in first.items():
        assert content == second[name], name
