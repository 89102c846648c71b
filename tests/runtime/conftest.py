"""Small programs, written by hand as the compiler would write them, built into libraries."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import smelt.runtime
from smelt.runtime.artifact import write_artifact

PROGRAMS = Path(__file__).parent / "programs"
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-fvisibility=hidden"]

WEIGHTS = np.array([1, -2, 0.5, 8], np.float32)


def compile_c(output: Path, *arguments: str | Path) -> Path:
    """Runs gcc on the runtime's sources and `arguments`."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    sources = smelt.runtime.sources()
    include = next(iter(sources.values())).parent
    files = [str(path) for name, path in sources.items() if name.endswith(".c")]
    command = ["gcc", *FLAGS, f"-I{include}", *map(str, arguments), *files, "-o", str(output)]
    done = subprocess.run([*command, "-lm", "-lpthread"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """library("scale", "-DX"): the path of model.so of a program."""
    built: dict[tuple[str, ...], Path] = {}

    def build(program: str, *flags: str) -> Path:
        key = (program, *flags)
        if key not in built:
            folder = tmp_path_factory.mktemp(program)
            built[key] = compile_c(
                folder / "model.so", "-shared", *flags, PROGRAMS / f"{program}.c"
            )
        return built[key]

    return build


def weights_bytes() -> bytes:
    return WEIGHTS.tobytes().ljust(64, b"\0")


def manifest_of(program: str, **more: object) -> dict:
    return {
        "name": program, "target": "cpu", "isas": ["native"], "signature": {}, "states": [],
        "options": {}, "kernels": [], "source": {"sha256": "0" * 64}, **more,
    }


@pytest.fixture
def artifact(tmp_path: Path, library) -> Callable[..., Path]:
    """artifact("scale", flags, **manifest): the path of a fresh artifact."""

    def write(program: str, *flags: str, to: str = "model.smelt", **more: object) -> Path:
        files: dict[str, bytes | Path] = {"model.so": library(program, *flags)}
        if program == "scale":
            files["weights.bin"] = weights_bytes()
        return write_artifact(tmp_path / to, manifest_of(program, **more), files)

    return write


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh random numbers; the seed is printed."""
    seed = int(np.random.SeedSequence().entropy) % 2**32
    print(f"{request.node.name}: seed {seed}")
    return np.random.default_rng(seed)
