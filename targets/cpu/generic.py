"""`cpu:generic`: the model as one portable C11 file, for microcontrollers and unusual compilers.

Where a C compiler is at hand the artifact also has a shared library made from that very file, so
that `smelt run`, `verify` and `bench` exercise it on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...codegen.c_vector import SCALAR
from ...codegen.host import pack_weights, used_storages
from ...codegen.portable import Arenas, Blob, PortablePrinter, bound_sizes
from ...errors import TargetError, UsageError
from ...ir.graph.core import Graph
from ...ir.program import Program
from ...passes.dump import dump_kernels
from ...passes.graph.pipeline import Options, optimise
from ...passes.kernel.simplify import simplify
from ...passes.plan import plan_by_type
from ..base import Build, BuildOptions, Progress, memory_report, silent
from .generic_library import shared_library
from .generic_size import measure
from .isa import Variant
from .target import build_manifest, check_precision, lower_for, machine_of, tuning_report
from .toolchain import Compiler, find_compiler

PORTABLE = Variant("generic", SCALAR, doc="portable C11: no heap, no threads, no system")


@dataclass
class GenericTarget:
    """Portable C. Option `weights`: "array" (constants in the source) or "blob" (weights.bin)."""

    name: str = "cpu:generic"

    def describe(self) -> dict[str, Any]:
        found = _compiler()
        return {"name": self.name, "variants": ["generic"], "doc": PORTABLE.doc,
                "toolchain": found.version if found else "any C11 compiler"}

    def build(self, graph: Graph, options: BuildOptions, progress: Progress = silent) -> Build:
        """Optimises, lowers and prints; see `Target.build`. Compiles where there is a compiler,
        to measure code and stack and to make the library."""
        check_precision([PORTABLE], options)
        blob = _wants_blob(options)
        _require_constant_inputs(graph)
        progress("optimising the graph", 0, 3)
        chosen = Options(passes=options.passes or "", channels_last=True, low_bit=True,
                         storage=options.storage)
        reports: dict[str, Any] = {"passes": optimise(graph, chosen)}
        progress("generating kernels", 1, 3)
        choices = options.records.choices(machine_of(PORTABLE))
        program = lower_for(graph, PORTABLE, choices=choices)
        if options.records.entries:
            reports["tuning"] = tuning_report([choices])
        bound_sizes(program)  # raises before memory of unknown size is planned
        _simplify(program)
        dump_kernels(program, PORTABLE.name)
        memory = plan_by_type(program)
        weights = pack_weights(program, used_storages(program)) if blob else None
        printer = PortablePrinter(
            program, options.name, Arenas(memory.sizes, memory.places),
            Blob(weights.offsets, weights.size) if weights else None, options.states)
        name, source, header = printer.name, printer.source(), printer.header()
        files: dict[str, bytes | Path] = {f"{name}.c": source.encode(),
                                          f"{name}.h": header.encode()}
        stored = printer.weight_bytes
        if weights:
            files["weights.bin"] = weights.blob()
            stored = weights.size
        reports["memory"] = memory_report(program, memory.lifetimes)
        reports["sizes"] = {"weights": stored, "arena": int(program.arena_size)}
        compiler = _compiler()
        if compiler is not None:
            progress("compiling C", 2, 3)
            reports["sizes"].update(measure(compiler, name, source, header,
                                            stored if blob else 0))
            files["model.so"] = shared_library(compiler, printer, source, header, options)
        progress("done", 3, 3)
        manifest = build_manifest(self.name, [PORTABLE], program, options)
        return Build(manifest, files, program, graph, reports)


def _compiler() -> Compiler | None:
    try:
        return find_compiler()
    except TargetError:
        return None


def _wants_blob(options: BuildOptions) -> bool:
    choice = options.extra.get("weights", "array")
    if choice not in ("array", "blob"):
        raise UsageError(f"weights={choice!r}: use array or blob")
    if options.extra.get("profile"):
        raise TargetError("cpu:generic counts no times of kernels: profile the cpu target")
    return choice == "blob"


def _require_constant_inputs(graph: Graph) -> None:
    names = getattr(graph, "symbols_origin", {})
    for value in graph.inputs:
        open_sizes = [names.get(v.name) or v.name for v in value.type.symbols]
        if open_sizes:
            wanted = " ".join(f"--dim {name}=1" for name in dict.fromkeys(open_sizes))
            raise UsageError(f"cpu:generic needs constant sizes, but input {value.name!r} has open "
                             f"ones: fix them, for example with {wanted}")


def _simplify(program: Program) -> None:
    done: dict = {}
    for step in program.walk():
        kernel = getattr(step, "kernel", None)
        if kernel is not None:
            if kernel not in done:
                done[kernel] = simplify(kernel, hints=False)
            step.kernel = done[kernel]  # type: ignore[attr-defined]
