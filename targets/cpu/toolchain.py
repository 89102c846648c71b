"""Finding and running a C compiler."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...config import cache_dir
from ...errors import TargetError

SEMANTICS = ("-std=gnu11", "-fvisibility=hidden", "-fwrapv", "-fno-strict-aliasing",
             "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-w")
COMMON = (*SEMANTICS, "-fPIC", "-pthread")


@dataclass(frozen=True)
class Compiler:
    """A C compiler's command and version text; `kind` is "gcc", "clang" or "zig"."""

    command: tuple[str, ...]
    kind: str
    version: str


@cache
def _probe(command: tuple[str, ...], kind: str) -> Compiler | None:
    try:
        result = subprocess.run([*command, "--version"], capture_output=True, text=True,
                                timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    version = result.stdout.splitlines()[0] if result.stdout else ""
    return Compiler(command, "clang" if kind == "cc" and "clang" in version else kind, version)


def find_compiler(zig_target: str = "") -> Compiler:
    """A compiler for this machine, or for `zig_target`. Raises TargetError with what to install."""
    if not zig_target or is_host(zig_target):
        for name, kind in (("gcc", "gcc"), ("clang", "clang"), ("cc", "cc")):
            path = shutil.which(name)
            found = _probe((path,), kind) if path else None
            if found is not None:
                return found
    else:
        cross = shutil.which(f"{zig_target.split('-')[0]}-linux-gnu-gcc")
        found = _probe((cross,), "gcc") if cross and "linux" in zig_target else None
        if found is not None:
            return found
    if importlib.util.find_spec("ziglang") is not None:
        found = _probe((sys.executable, "-m", "ziglang", "cc"), "zig")
        if found is not None:
            return found
    wanted = f" for {zig_target}" if zig_target else ""
    raise TargetError(f"no C compiler{wanted} was found: install gcc or clang, or run "
                      "pip install 'smelt[zig]'")


def is_host(zig_target: str) -> bool:
    """Whether a cross target is this machine."""
    return zig_target.split("-")[0] == platform.machine() and "linux" in zig_target


def run(command: Sequence[str], what: str) -> None:
    """Runs a compiler. Raises TargetError with the first line of its complaint."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = [x for x in result.stderr.splitlines() if "error" in x] or \
            result.stderr.splitlines() or [f"exit code {result.returncode}"]
        raise TargetError(f"the C compiler failed on {what}: {lines[0][:300]}")


def target_flags(compiler: Compiler, zig_target: str) -> tuple[str, ...]:
    """What makes the compiler write for `zig_target`. zig traps on undefined behaviour at -O0
    unless told not to."""
    if compiler.kind != "zig":
        return ()
    return (*(("-target", zig_target) if zig_target else ()), "-fno-sanitize=undefined")


def object_file(compiler: Compiler, source: Path, flags: Sequence[str], output: Path,
                key_files: Sequence[Path] = ()) -> Path:
    """Compiles one file, through the content-addressed cache; returns the object's path."""
    digest = hashlib.sha256(repr((compiler, list(flags), source.name)).encode())
    for path in (source, *key_files):
        digest.update(path.read_bytes())
    if "-march=native" in flags or "-mcpu=native" in flags:
        digest.update(repr(sorted(_cpu_identity())).encode())
    folder = cache_dir() / "objects"
    cached = folder / f"{digest.hexdigest()}.o"
    if cached.exists():
        return cached
    run([*compiler.command, *flags, "-c", str(source), "-o", str(output)], source.name)
    return _keep(output, cached)


def cached_bytes(name: str, make: Callable[[], bytes]) -> bytes:
    """The contents of a file of the cache of objects; what `make` returns where it has none."""
    cached = cache_dir() / "objects" / name
    if cached.exists():
        return cached.read_bytes()
    with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
        built = Path(folder) / name
        built.write_bytes(make())
        return _keep(built, cached).read_bytes()


def _keep(built: Path, cached: Path) -> Path:
    """Moves an object into the cache; where that cannot be written, uses it from its place."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as file:
            file.write(built.read_bytes())
        os.replace(file.name, cached)
    except OSError:
        return built
    return cached


@cache
def _cpu_identity() -> frozenset[str]:
    from .isa import cpu_features

    return cpu_features() | {platform.machine()}


def objects(compiler: Compiler, jobs: Sequence[tuple[Path, Sequence[str]]], folder: Path,
            key_files: Sequence[Path]) -> list[Path]:
    """Compiles several files at once, one process per CPU."""
    def one(item: tuple[int, tuple[Path, Sequence[str]]]) -> Path:
        number, (source, flags) = item
        return object_file(compiler, source, flags, folder / f"{number}.o", key_files)

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(one, enumerate(jobs)))
