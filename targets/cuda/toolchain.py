"""Compiling CUDA C++ to a cubin: by nvcc, or where that is missing by NVRTC, a library that is in
the package nvidia-cuda-nvrtc."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from ...errors import TargetError
from ..cpu.toolchain import cached_bytes

SEMANTICS = ("--fmad=false",)
"""Flags of both compilers: sums and products are fused where the kernel says so and nowhere else.
Division and square root are exact by default, and denormals are kept."""


class CudaCompiler(Protocol):
    """Something that makes a cubin."""

    @property
    def version(self) -> str: ...

    def cubin(self, source: str, architecture: str) -> bytes:
        """The cubin of a .cu file for "sm_80" and so on. Raises TargetError."""
        ...


@dataclass(frozen=True)
class Nvcc:
    """NVIDIA's compiler driver."""

    path: str
    version: str

    def cubin(self, source: str, architecture: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="smelt-") as name:
            folder = Path(name)
            (folder / "kernels.cu").write_text(source)
            compute = architecture.replace("sm_", "compute_")
            result = subprocess.run(
                [self.path, "-cubin", "-std=c++17", f"-gencode=arch={compute},code={architecture}",
                 *SEMANTICS, "kernels.cu", "-o", "kernels.cubin"],
                cwd=folder, capture_output=True, text=True)
            if result.returncode:
                raise _failure("nvcc", architecture, result.stderr + result.stdout)
            return (folder / "kernels.cubin").read_bytes()


@dataclass(frozen=True)
class Nvrtc:
    """NVIDIA's compiler as a library."""

    path: str

    @property
    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"NVRTC {major.value}.{minor.value}"

    def cubin(self, source: str, architecture: str) -> bytes:
        library, program = self._library(), ctypes.c_void_p()
        self._check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(),
                                               b"kernels.cu", 0, None, None))
        try:
            flags = [f"--gpu-architecture={architecture}", "--std=c++17", *SEMANTICS]
            array = (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
            if library.nvrtcCompileProgram(program, len(flags), array):
                log = self._take(program, "ProgramLog").decode(errors="replace")
                raise _failure("NVRTC", architecture, log)
            return self._take(program, "CUBIN")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _library(self) -> ctypes.CDLL:
        library = _loaded(self.path)
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library

    def _check(self, code: int) -> None:
        if code:
            text = self._library().nvrtcGetErrorString(code).decode()
            raise TargetError(f"NVRTC failed: {text}")

    def _take(self, program: ctypes.c_void_p, what: str) -> bytes:
        """One of a program's results, by the name that NVRTC's functions give it."""
        library, size = self._library(), ctypes.c_size_t()
        self._check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        data = ctypes.create_string_buffer(size.value)
        self._check(getattr(library, f"nvrtcGet{what}")(program, data))
        return data.raw


@cache
def _loaded(path: str) -> ctypes.CDLL:
    # NVRTC looks for this one by its name, in the system's folders only.
    for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(path)


def _failure(tool: str, architecture: str, complaint: str) -> TargetError:
    lines = [x for x in complaint.splitlines() if "error" in x.lower() or "fatal" in x.lower()] \
        or complaint.splitlines() or ["no reason given"]
    return TargetError(f"{tool} failed on the kernels for {architecture}: {lines[0][:300]}")


@cache
def nvcc() -> Nvcc | None:
    """nvcc, when it is on the path and runs."""
    path = shutil.which("nvcc")
    if path is None:
        return None
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60,
                              check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    release = [line for line in text.splitlines() if "release" in line]
    return Nvcc(path, f"nvcc {release[0].split('release')[1].strip()}" if release else "nvcc")


@cache
def nvrtc() -> Nvrtc | None:
    """NVRTC, when its package is installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True):
            if ".alt." not in path.name:
                return Nvrtc(str(path))
    return None


def find_cuda_compiler() -> CudaCompiler:
    """nvcc, else NVRTC. Raises TargetError with what to install."""
    found = nvcc() or nvrtc()
    if found is None:
        raise TargetError("no CUDA compiler was found: install NVIDIA's CUDA toolkit, or run "
                          "pip install 'smelt[cuda]'")
    return found


def compile_cubin(compiler: CudaCompiler, source: str, architecture: str) -> bytes:
    """The cubin of a .cu file, through the content-addressed cache."""
    key = hashlib.sha256(repr((compiler.version, SEMANTICS, architecture, source)).encode())
    return cached_bytes(f"{key.hexdigest()}.cubin", lambda: compiler.cubin(source, architecture))
