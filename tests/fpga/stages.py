"""Runs stages and designs in the kernel interpreter, and compiles C++ of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np

from smelt.codegen.hls import HlsKernelPrinter, stream_type, word_type
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.streams import stream_accesses
from smelt.ir.kernel.verifier import verify
from smelt.passes.dataflow.assembly import Design, stream_parameters
from smelt.passes.dataflow.templates import Stage

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "runtime" / "fpga" / "smelt_fpga.hpp"
FLAGS = ("-std=c++17", "-O1", "-fwrapv", "-w", "-pthread")


def words_of(buffer) -> tuple[int, ...]:
    """The shape of an array of a stream's words."""
    return (int(buffer.shape[0]), buffer.lanes) if buffer.lanes > 1 else (int(buffer.shape[0]),)


def run_stage(stage: Stage, *inputs: np.ndarray) -> list[np.ndarray]:
    """What a stage writes, flat; the kernel is verified first, and its order of accesses."""
    verify(stage.kernel)
    stream_accesses(stage.kernel)
    outputs = stream_parameters(stage)[-stage.kernel.outputs:]
    given, arrays = iter(inputs), []
    for b in stage.kernel.params:
        if b in stage.constants:
            arrays.append(stage.constants[b])
        elif b in outputs:
            arrays.append(np.zeros(words_of(b), b.dtype.numpy))
        else:
            arrays.append(np.ascontiguousarray(next(given), b.dtype.numpy).reshape(words_of(b)))
    run_kernel(stage.kernel, arrays)
    return [arrays[k].reshape(-1) for k, b in enumerate(stage.kernel.params) if b in outputs]


def run_design(design: Design, *inputs: np.ndarray) -> list[np.ndarray]:
    """What a design gives in the interpreter for streams of inputs, stage by stage."""
    held = dict(zip(design.inputs, inputs, strict=True))
    for placed in design.stages:
        cut = placed.stage.kernel.outputs
        results = run_stage(placed.stage, *(held[f] for f in placed.fifos[:-cut]))
        held.update(zip(placed.fifos[-cut:], results, strict=True))
    return [held[f] for f in design.outputs]


def compiled_stages(stages: list[Stage], folder: Path) -> Path:
    """A program of the stages' C++, each run once: it reads the elements of all inputs as text, in
    order, and prints those of all outputs, a line for each."""
    parts, calls = [f'#include "{HEADER}"', "#include <cstdio>"], []
    for stage in stages:
        printer = HlsKernelPrinter(stage.kernel)
        text = printer.text()
        parts += [printer.tables(stage.constants), "static " + text]
        streams = stream_parameters(stage)
        cut = len(streams) - stage.kernel.outputs
        calls.append("    {")
        for k, b in enumerate(streams):
            calls.append(f'        {stream_type(b)} s{k}("s{k}", {max(int(b.shape[0]), 1)});')
        for k, b in enumerate(streams[:cut]):
            calls.append(
                f"        for (int i = 0; i < {b.shape[0]}; ++i) {{ {word_type(b)} w; "
                f"for (int l = 0; l < {b.lanes}; ++l) {{ long v; if (scanf(\"%ld\", &v) != 1) "
                f"return 1; w.element[l] = v; }} s{k}.write(w); }}")
        calls.append(f"        {stage.kernel.name}("
                     f"{', '.join(f's{k}' for k in range(len(streams)))});")
        for k, b in list(enumerate(streams))[cut:]:
            calls.append(
                f"        for (int i = 0; i < {b.shape[0]}; ++i) {{ {word_type(b)} w = s{k}.read();"
                f" for (int l = 0; l < {b.lanes}; ++l) printf(\"%ld \", (long)w.element[l]); }}")
            calls.append('        puts("");')
        calls.append("    }")
    source = folder / "stages.cpp"
    source.write_text("\n".join([*parts, "int main() {", *calls, "}", ""]))
    subprocess.run(["g++", *FLAGS, str(source), "-o", str(folder / "stages")], check=True)
    return folder / "stages"


def run_compiled(program: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a program of `compiled_stages`."""
    text = "\n".join(" ".join(map(str, np.asarray(a).reshape(-1).tolist())) for a in inputs)
    done = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True)
    return [np.array(line.split(), np.int64) for line in done.stdout.splitlines()]


def has_compiler() -> bool:
    return shutil.which("g++") is not None
