"""What a call costs: smelt_run from C next to the same model from Python, in turns.

    python bench/call.py [--only mnist8,gtcrn_stream] [--seconds 2] [--json out.json]

Needs SMELT_MODELS. The C program (call.c) is linked with the artifact's static library.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from suite import real_models
from suite_report import number, table

from smelt import data
from smelt.compilation import Request, compile_to_cache
from smelt.errors import SmeltError
from smelt.inspect_model import read_report
from smelt.measure import machine, measure
from smelt.runtime import abi
from smelt.targets.cpu.toolchain import find_compiler, run

HERE = Path(__file__).parent
MODELS = "mnist8,silero_vad_16k_op15,gtcrn_stream,stories260k_kv"
ENGINES = ("c", "smelt-call", "smelt-run")


def linked(artifact: Path, folder: Path) -> Path:
    """The C program with the model in it."""
    program = folder / "call"
    run([*find_compiler().command, "-O2", f"-I{artifact}", str(HERE / "call.c"),
         str(artifact / "libmodel.a"), "-lm", "-pthread", "-o", str(program)], "call.c")
    return program


def write_inputs(path: Path, inputs: dict[str, np.ndarray]) -> None:
    """Number of inputs, then of each: element type, rank, sizes, data; numbers of 64 bits."""
    parts = [struct.pack("<q", len(inputs))]
    for array in inputs.values():
        kind = abi.dtype_name(array.dtype)
        assert kind is not None
        parts += [struct.pack(f"<{2 + array.ndim}q", abi.DTYPES[kind], array.ndim, *array.shape),
                  np.ascontiguousarray(array).tobytes()]
    path.write_bytes(b"".join(parts))


def timed(model: Any, seconds: float, folder: Path) -> dict[str, Any]:
    """Seconds of a run from C, by `m(x)` and by `m.run({name: x})`."""
    artifact = compile_to_cache(Request(model.path)).path
    program = linked(artifact, folder)
    given, result = folder / "inputs.raw", folder / "outputs.raw"
    order = [spec["name"] for spec in read_report(artifact)["inputs"]]
    write_inputs(given, {name: model.inputs[name] for name in order})
    python = [sys.executable, str(HERE / "engines.py")]
    timings, failures, outputs = measure(
        dict.fromkeys(ENGINES, str(artifact)), model.inputs, seconds=seconds,
        programs={"c": [str(program), str(artifact), str(given), str(result)],
                  "smelt-call": python, "smelt-run": python})
    if failures:
        raise SmeltError("; ".join(failures.values()))
    ours = b"".join(np.ascontiguousarray(a).tobytes() for a in outputs["smelt-run"].values())
    if result.read_bytes() != ours:
        raise SmeltError(f"{model.name}: C and Python give different outputs")
    return {t.engine: t.median for t in timings}


def main(
    only: Annotated[str, typer.Option(help="Names of models.")] = MODELS,
    seconds: Annotated[float, typer.Option(min=0.05, help="For each model and caller.")] = 2.0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Times calls and prints a Markdown table, in microseconds."""
    rows: dict[str, dict[str, float]] = {}
    models = real_models([n for n in only.split(",") if n])
    if not models:
        raise typer.BadParameter("there are no such models: set SMELT_MODELS")
    for model in models:
        print(f"{model.name} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="smelt-call-") as name:
            rows[model.name] = timed(model, seconds, Path(name))
    if json_file is not None:
        data.write_text(json_file, json.dumps({"machine": machine(), "models": rows},
                                              indent=1) + "\n")
    lines = []
    for name, t in rows.items():
        c, call, named = (t[engine] for engine in ENGINES)
        lines.append([name, *(number(v, ".2f", 1e6)
                              for v in (c, call, call - c, named, named - c))])
    print("\n".join(table(("model", "smelt_run µs", "m(x) µs", "more", "m.run(dict) µs", "more"),
                          lines)))


if __name__ == "__main__":
    typer.run(main)
