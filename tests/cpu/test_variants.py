"""One artifact for several instruction-set levels: which program runs where, and that all of them
give what the interpreter gives."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cpu.native_graphs import Cases
from small_models import mlp

import smelt
from smelt.errors import ArtifactError, TargetError
from smelt.ir import dtype as dt
from smelt.runtime import abi, load
from smelt.runtime.artifact import write_artifact
from smelt.runtime.module import Module
from smelt.targets.base import BuildOptions, find_target
from smelt.targets.cpu.isa import VARIANTS, cpu_features, find_variants
from smelt.targets.cpu.toolchain import find_compiler

DRIVER = Path(__file__).parent / "drivers" / "chosen_variant.c"
DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2")
"""Best first, which is the order in the artifact, whatever the order in the target's name."""
TARGET = "cpu:x86-64-v2+x86-64-v3+x86-64-v4"
V2, V3, V4 = abi.CPU_X86_64_V2, abi.CPU_X86_64_V3, abi.CPU_X86_64_V4

# Flags of /proc/cpuinfo that tell the levels apart.
NEEDS = {"x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
         "x86-64-v3": {"avx2", "fma", "bmi2", "movbe", "f16c"}, "x86-64-v2": {"sse4_2", "popcnt"}}
HERE = [level for level in LEVELS if NEEDS[level] <= cpu_features()]

pytestmark = pytest.mark.skipif(not HERE, reason="needs an x86-64 CPU")


def parts(symbolic: bool) -> Cases:
    """Kernels of all kinds, at sizes that leave a rest in the vectors of every level."""
    c = Cases(seed=int(np.random.SeedSequence().generate_state(1)[0]), symbolic=symbolic)
    g = c.graph
    w = c.rng.standard_normal((37, 45)).astype(np.float32)
    x = c.input(29, 37, fixed=(1,))
    c.output(g.add("gelu", [g.add("matmul", [x, g.constant(w)])]))
    c.output(g.add("softmax", [x], {"axis": 1}))
    c.output(g.add("layer_norm", [x], {"axis": 1, "epsilon": 1e-5}))
    c.output(g.add("exp", [c.input(3, 53)]))
    image = c.input(2, 5, 19, 17, fixed=(1,))
    kernel = c.rng.standard_normal((11, 5, 3, 3)).astype(np.float32)
    padded = {"low": (1, 1), "high": (1, 1)}
    c.output(g.add("relu", [g.add("conv", [image, g.constant(kernel)], padded)]))
    bits = c.input(dtype=dt.u8, array=c.rng.integers(0, 256, (13, 37), dtype=np.uint8), fixed=(1,))
    packed = c.rng.integers(-128, 128, (37, 21), dtype=np.int8)
    c.output(g.add("matmul", [bits, g.constant(packed)], {"dtype": dt.i32}))
    c.output(g.add("cumsum", [c.input(7, 23)], {"axis": 1}))
    return c


def write(cases: Cases, target: str, path: Path) -> Path:
    build = find_target(target).build(cases.graph, BuildOptions(optimize=1))
    return write_artifact(path, build.manifest, build.files)


def check(model: Module, cases: Cases, wanted: list[np.ndarray]) -> None:
    """f32 sums of some hundred terms of order 1 to 4; integers are equal."""
    for found, right in zip(model(*cases.arrays), wanted, strict=True):
        assert found.dtype == right.dtype and found.shape == right.shape
        np.testing.assert_allclose(found, right, 2e-5, 2e-4 if found.dtype.kind == "f" else 0)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """only(path, k): the model with its k-th best programs and worse ones alone."""
    declare = abi.declare

    def opened(path: Path, k: int) -> Module:
        def declared(library: ctypes.CDLL) -> None:
            declare(library)
            first = library.smelt_linked_programs() + k * ctypes.sizeof(ctypes.c_void_p)
            library.smelt_linked_programs = lambda: first  # type: ignore[method-assign]

        with monkeypatch.context() as patch:
            patch.setattr(abi, "declare", declared)
            return load(path)

    yield opened


@pytest.mark.slow
@pytest.mark.parametrize("symbolic", [False, True])
def test_every_program_of_one_artifact(symbolic: bool, tmp_path: Path, only):
    cases = parts(symbolic)
    wanted = cases.expected()
    path = write(cases, TARGET, tmp_path / "model.smelt")
    with load(path) as model:
        assert model.isa == HERE[0]
        assert model.manifest["isas"] == list(LEVELS)
    for k, level in enumerate(LEVELS):
        if level in HERE:
            with only(path, k) as model:
                assert model.isa == level
                check(model, cases, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_alone(level: str, tmp_path: Path):
    cases = parts(symbolic=False)
    wanted = cases.expected()
    path = write(cases, f"cpu:{level}", tmp_path / "model.smelt")
    if level not in HERE:
        with pytest.raises(ArtifactError, match=f"needs a CPU with {level}"):
            load(path)
        return
    with load(path, threads=1) as model:
        assert model.isa == level
        check(model, cases, wanted)


@pytest.mark.slow
def test_one_artifact_gives_the_bits_of_the_single_ones(tmp_path: Path, only):
    images = np.load(DIGITS / "digits_test.npz")["images"]
    digits = DIGITS / "digits.onnx"
    path = smelt.compile(digits, TARGET).save(tmp_path / "all.smelt")
    for level in HERE:
        alone = smelt.compile(digits, f"cpu:{level}")
        together = only(path, LEVELS.index(level))
        assert alone.isa == together.isa == level
        np.testing.assert_array_equal(alone(images), together(images))


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory):
    """chosen(features): the exit code and the variant, or the refusal, on a CPU with these."""
    folder = tmp_path_factory.mktemp("variants")
    path = smelt.compile(mlp(), TARGET, optimize=1).save(folder / "model.smelt")
    program = folder / "chosen_variant"
    subprocess.run([*find_compiler().command, f"-I{path}", str(DRIVER), str(path / "libmodel.a"),
                    "-lm", "-pthread", "-o", str(program)], check=True)

    def run(features: int) -> tuple[int, str]:
        done = subprocess.run([str(program), str(path), str(features)], capture_output=True,
                              text=True)
        return done.returncode, done.stdout.strip()

    return run


@pytest.mark.parametrize(("features", "level"), [
    (V2, "x86-64-v2"), (V2 | V3, "x86-64-v3"), (V2 | V3 | abi.CPU_AVX_VNNI, "x86-64-v3"),
    (V2 | V3 | V4, "x86-64-v4"), (V2 | V3 | V4 | abi.CPU_AVX512_VNNI, "x86-64-v4"),
])
def test_the_best_that_the_cpu_runs_is_taken(chosen, features: int, level: str):
    assert chosen(features) == (abi.OK, level)


def test_a_cpu_that_runs_none(chosen):
    assert chosen(0) == (abi.UNSUPPORTED_CPU,
                         "The model needs a CPU with x86-64-v4, x86-64-v3, x86-64-v2, which this "
                         "one is not: compile it for this CPU.")


def test_names_of_targets():
    for text in ("x86-64-v2+x86-64-v4+x86-64-v3", "x86-64-v4+x86-64-v3+x86-64-v2"):
        assert find_variants(text) == [VARIANTS[level] for level in LEVELS]
    with pytest.raises(TargetError, match="unknown CPU variant 'x86-64-v9'"):
        find_target("cpu:x86-64-v3+x86-64-v9")
    with pytest.raises(TargetError, match="different machines"):
        find_target("cpu:x86-64-v3+wasm32")


def test_the_same_bytes_in_any_order():
    def files(text: str) -> dict:
        c = Cases(seed=7)
        w = c.rng.standard_normal((9, 33)).astype(np.float32)
        c.output(c.graph.add("matmul", [c.input(5, 9), c.graph.constant(w)]))
        return find_target(f"cpu:{text}").build(c.graph, BuildOptions(optimize=0)).files

    both = files("x86-64-v2+x86-64-v3")
    assert both == files("x86-64-v3+x86-64-v2")
    assert {"model.c", "model1.c", "model.so", "weights.bin"} <= both.keys()
