"""Artifacts for other machines, run here: 64-bit Arm under qemu, WebAssembly in node."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from smelt.ir.graph.core import Graph
from smelt.runtime import abi
from smelt.targets.base import Build, BuildOptions
from smelt.targets.cpu.isa import VARIANTS
from smelt.targets.cpu.target import CpuTarget
from smelt.targets.cpu.toolchain import find_compiler

DRIVERS = Path(__file__).parent / "drivers"
QEMU = shutil.which("qemu-aarch64-static")
NODE = shutil.which("node")
STATIC_ARM = "aarch64-linux-musl"
"""What the Arm code is linked for: qemu-user runs a static program without an Arm C library."""


def build(graph: Graph, variant: str, folder: Path, optimize: int = 1) -> Build:
    """Builds a graph for a variant and puts the files into a folder."""
    chosen = VARIANTS[variant]
    if variant == "aarch64":
        chosen = replace(chosen, zig=STATIC_ARM)
    target = CpuTarget(f"cpu:{variant}", [chosen])
    built = target.build(graph, BuildOptions(optimize=optimize))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in built.files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    return built


def run(variant: str, folder: Path, inputs: Sequence[np.ndarray], threads: int = 1,
        ) -> list[np.ndarray]:
    """The outputs of a model that `build` made."""
    given, found = folder / "inputs", folder / "outputs"
    given.write_bytes(_packed(inputs))
    if variant == "wasm32":
        command = [str(NODE), str(DRIVERS / "run_model.mjs"), str(folder), str(given), str(found)]
    else:
        command = [str(QEMU), str(_arm_program(folder)), str(folder), str(given), str(found),
                   str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{' '.join(command)}: {result.returncode} {result.stderr}"
    return _unpacked(found.read_bytes())


def _arm_program(folder: Path) -> Path:
    program = folder / "run_model"
    if not program.exists():
        header = folder / "smelt.h"
        header.write_bytes((folder / "model.h").read_bytes())
        compiler = find_compiler(STATIC_ARM)
        command = [*compiler.command, "-target", STATIC_ARM, "-static", "-O1", f"-I{folder}",
                   str(DRIVERS / "run_model.c"), str(folder / "libmodel.a"), "-lm", "-o",
                   str(program)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    return program


def _packed(arrays: Sequence[np.ndarray]) -> bytes:
    parts = [struct.pack("<i", len(arrays))]
    for array in arrays:
        name = abi.dtype_name(array.dtype)
        assert name is not None
        data = np.ascontiguousarray(array).tobytes()
        parts += [struct.pack(f"<ii{array.ndim}qq", abi.DTYPES[name], array.ndim, *array.shape,
                              len(data)), data]
    return b"".join(parts)


def _unpacked(data: bytes) -> list[np.ndarray]:
    (count,), at, arrays = struct.unpack_from("<i", data), 4, []
    for _ in range(count):
        dtype, rank = struct.unpack_from("<ii", data, at)
        *shape, size = struct.unpack_from(f"<{rank + 1}q", data, at + 8)
        at += 16 + 8 * rank
        kind = abi.numpy_dtype(abi.DTYPE_NAMES[dtype])
        arrays.append(np.frombuffer(data, kind, size // kind.itemsize, at).reshape(shape))
        at += size
    return arrays
