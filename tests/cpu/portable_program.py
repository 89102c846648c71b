"""Programs around portable models: tensors on standard input, results on standard output, so that
they run under any emulator. Every sample is run twice, which shows memory that a run leaves behind.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smelt.ir.dtype import dtype
from smelt.targets.base import Build, BuildOptions, find_target

STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-ffreestanding")


def portable(graph, **options) -> Build:
    """A graph compiled for cpu:generic."""
    return find_target("cpu:generic").build(graph, BuildOptions(**options))


def write_sources(build: Build, folder: Path) -> list[Path]:
    """Writes the model and a main program around it; returns the C files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in build.files.items():
        assert isinstance(content, bytes)
        (folder / name).write_bytes(content)
    name = next(n for n in build.files if n.endswith(".c")).removesuffix(".c")
    main = folder / "main.c"
    main.write_text(_main(build, name))
    return [main, folder / f"{name}.c"]


def _main(build: Build, name: str) -> str:
    signature = build.manifest["signature"]
    text = (build.files[f"{name}.h"]).decode()  # type: ignore[union-attr]
    prototype = text[text.index(f"int {name}_run("):].partition(")")[0]
    kinds = [p.split("(")[-1].replace("const ", "").strip().split(" *")[0]
             for p in prototype.split(",")]
    ins = [f"in{k}" for k in range(len(signature["inputs"]))]
    outs = [f"out{k}" for k in range(len(signature["outputs"]))]
    lines = [f'#include "{name}.h"', "#include <stdio.h>"]
    for kind, array in zip(kinds, [*ins, *outs], strict=True):
        count = f"{name.upper()}_{array.upper()}_COUNT"
        # One element more: an empty array is no C, and what is behind the end is checked.
        lines.append(f"static {kind} {array}[{count} + 1];")
    read = " && ".join(f"(sizeof {a} <= sizeof *{a} || "
                       f"fread({a}, sizeof {a} - sizeof *{a}, 1, stdin) == 1)" for a in ins)
    lines += ["int main(void) {"]
    if "weights.bin" in build.files:
        lines += [f"    static _Alignas(64) unsigned char weights[{name.upper()}_WEIGHT_BYTES];",
                  '    FILE *file = fopen("weights.bin", "rb");',
                  "    if (!file || fread(weights, sizeof weights, 1, file) != 1) return 3;",
                  f"    {name}_weights(weights);"]
    call = f"{name}_run({', '.join([*ins, *outs])})"
    lines += [f"    while ({read}) {{", f"        if ({call} || {call}) return 2;"]
    for a in outs:
        lines += [f"        for (unsigned i = 0; i < sizeof *{a}; ++i)",
                  f"            if (((unsigned char *)({a} + sizeof {a} / sizeof *{a} - 1))[i]) "
                  "return 4;",
                  f"        fwrite({a}, 1, sizeof {a} - sizeof *{a}, stdout);"]
    return "\n".join([*lines, "    }", "    return 0;", "}", ""])


def compiled(sources: Sequence[Path], *command: str) -> Path:
    """Compiles a program; a warning is a failure. The main file gets no strict options."""
    main, model = sources
    folder = main.parent
    objects = []
    for path, flags in ((model, STRICT), (main, ())):
        objects.append(path.with_suffix(".o"))
        run_tool([*command, *flags, "-c", str(path), "-o", str(objects[-1])])
    program = folder / "program"
    run_tool([*command, *map(str, objects), "-lm", "-o", str(program)])
    return program


def run_tool(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[:3000]}"
    return result.stdout


def run(build: Build, program: Path, samples: Sequence[Sequence[np.ndarray]],
        *emulator: str) -> list[list[np.ndarray]]:
    """The outputs for each sample of inputs."""
    given = b"".join(np.ascontiguousarray(a).tobytes() for sample in samples for a in sample)
    result = subprocess.run([*emulator, str(program)], input=given, capture_output=True,
                            cwd=program.parent)
    assert result.returncode == 0, (result.returncode, result.stderr.decode()[:2000])
    found, at = [], 0
    for _ in samples:
        outputs = []
        for spec in build.manifest["signature"]["outputs"]:
            shape = [int(d) for d in spec["shape"]]
            kind = np.dtype(dtype(spec["dtype"]).numpy)
            size = int(np.prod(shape)) * kind.itemsize
            outputs.append(np.frombuffer(result.stdout[at:at + size], kind).reshape(shape))
            at += size
        found.append(outputs)
    assert at == len(result.stdout)
    return found


def largest_error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest error over the largest value."""
    assert got.shape == want.shape and got.dtype == want.dtype
    if not want.size:
        return 0.0
    error = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
    return float(error / max(1e-30, np.abs(want.astype(np.float64)).max()))
