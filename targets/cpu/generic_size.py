"""How much flash, memory and stack a portable model takes, by compiling it for size."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from .toolchain import Compiler, run

STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-ffreestanding")
"""What the generated file must compile with, without a warning."""


def measure(compiler: Compiler, name: str, source: str, header: str,
            outside: int = 0) -> dict[str, int]:
    """Bytes as the compiler makes them for this machine with -Os: "code", "flash" (code, constants
    and `outside`, weights that are not in the file), "static" (all static memory), "stack" (the
    deepest call) and "ram" (static and stack). Leaves out what the tools do not tell.

    Raises TargetError when the compiler refuses the file."""
    with tempfile.TemporaryDirectory(prefix="smelt-") as text:
        folder = Path(text)
        path, built = folder / f"{name}.c", folder / f"{name}.o"
        path.write_text(source)
        (folder / f"{name}.h").write_text(header)
        calls = ("-fcallgraph-info=su",) if compiler.kind == "gcc" else ()
        run([*compiler.command, *STRICT, "-Os", *calls, "-c", str(path), "-o", str(built)],
            path.name)
        sizes = section_sizes(built)
        graph = built.with_suffix(".ci")
        depth = deepest_stack(graph.read_text(), f"{name}_run") if graph.exists() else None
    result: dict[str, int] = {}
    if sizes:
        code, constants, data, zeros = (
            sum(size for section, size in sizes.items() if section.startswith(start))
            for start in (".text", ".rodata", ".data", ".bss"))
        result = {"code": code, "flash": code + constants + data + outside, "static": data + zeros}
    if depth is not None:
        result["stack"] = depth
    if "static" in result and "stack" in result:
        result["ram"] = result["static"] + result["stack"]
    return result


def section_sizes(built: Path) -> dict[str, int]:
    """Bytes of an object file's sections; nothing where `size` cannot tell."""
    try:
        told = subprocess.run(["size", "-A", str(built)], capture_output=True, text=True,
                              check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    rows = [line.split() for line in told.splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[1].isdigit()}


def deepest_stack(graph: str, root: str) -> int | None:
    """The largest sum of stack frames along calls from `root`, read from the text of GCC's
    -fcallgraph-info=su; functions of the C library count as nothing. None without `root`."""
    frames = {title.rpartition(":")[2]: int(size) for title, size in re.findall(
        r'node: \{ title: "([^"]*)" label: "[^"]*?(\d+) bytes', graph)}
    calls: dict[str, list[str]] = {}
    for source, target in re.findall(
            r'edge: \{ sourcename: "([^"]*)" targetname: "([^"]*)"', graph):
        calls.setdefault(source.rpartition(":")[2], []).append(target.rpartition(":")[2])
    if root not in frames:
        return None

    def depth(function: str) -> int:  # kernels call helpers, which call helpers: a few levels
        below = [depth(f) for f in calls.get(function, ()) if f in frames]
        return frames[function] + max(below, default=0)

    return depth(root)
