"""`cpu` and `cpu:<variants>`: a shared and a static library with the runtime inside."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...codegen.host import HostPrinter, Weights, pack_weights, used_storages
from ...codegen.portable import identifier
from ...errors import TargetError
from ...ir.graph.core import Graph
from ...ir.program import Program
from ...passes.dump import dump_kernels
from ...passes.graph.base import PassReport
from ...passes.graph.pipeline import Options, optimise
from ...passes.in_place import share
from ...passes.kernel.legalise import Capabilities, legalise
from ...passes.lower.choices import Choices
from ...passes.lower.generic import GENERIC_RULES
from ...passes.lower.loops import Machine
from ...passes.lower.lowering import Rule, lower
from ...passes.plan import Lifetime, plan
from ...passes.schedule.attention import attention_rule
from ...passes.schedule.chain import chain_rule
from ...passes.schedule.channel_lanes import channel_lanes_rule
from ...passes.schedule.conv import conv_rule
from ...passes.schedule.gemm import matmul_rule
from ...passes.schedule.low_bit import low_bit_rule
from ...passes.schedule.low_bit_encode import encode_rule
from ...passes.schedule.pixel_lanes import pixel_lanes_rule
from ...passes.schedule.rows import ROW_RULES
from ...passes.schedule.tile_gemm import tile_conv_rule, tile_matmul_rule
from ...passes.schedule.winograd import winograd_rule
from ...passes.views import place_views
from ...runtime import abi
from ..base import (
    Build,
    BuildOptions,
    Progress,
    Target,
    describe_program,
    memory_report,
    silent,
)
from .isa import Variant, find_variants
from .toolchain import SEMANTICS, Compiler, find_compiler, objects, run, target_flags

RULES: tuple[Rule, ...] = (chain_rule, attention_rule, encode_rule, low_bit_rule, tile_matmul_rule,
                           tile_conv_rule, channel_lanes_rule, matmul_rule, winograd_rule,
                           pixel_lanes_rule, conv_rule, *ROW_RULES, *GENERIC_RULES)
RUNTIME = Path(abi.__file__).parent / "c"


@dataclass
class CpuTarget:
    """Native code for one machine family, one program per variant."""

    name: str
    variants: list[Variant]

    def describe(self) -> dict[str, Any]:
        try:
            compiler = find_compiler(self.variants[0].zig)
            tool = compiler.version
        except TargetError as error:
            tool = str(error)
        return {"name": self.name, "variants": [v.name for v in self.variants], "toolchain": tool,
                "doc": "; ".join(v.doc for v in self.variants)}

    def optimise(self, graph: Graph, options: BuildOptions) -> list[PassReport]:
        """Runs the graph passes; returns their reports."""
        return optimise(graph, self.pass_options(options))

    def pass_options(self, options: BuildOptions) -> Options:
        """What the graph passes are asked for."""
        vectors = all(v.vector.lanes > 1 for v in self.variants)
        return Options(
            passes=options.passes or "", channels_last=True, attention=vectors, chains=vectors,
            low_bit=True, bf16=options.precision == "bf16", keep=options.keep,
            storage=options.storage, unsigned=any(v.vector.dot4 for v in self.variants))

    def build(self, graph: Graph, options: BuildOptions, progress: Progress = silent) -> Build:
        """Optimises, lowers and compiles; see `Target.build`."""
        compiler = find_compiler(self.variants[0].zig)
        check_precision(self.variants, options)
        if not self.variants[0].threads:
            options = replace(options, threads=False)
        progress("optimising the graph", 0, 4)
        reports: dict[str, Any] = {"passes": self.optimise(graph, options)}
        programs, taken = [], []
        for variant in self.variants:
            progress(f"generating kernels for {variant.name}", 1, 4)
            choices = options.records.choices(machine_of(variant, options.exact))
            programs.append(lower_for(graph, variant, options.exact, choices,
                                      options.precision == "bf16"))
            taken.append(choices)
            dump_kernels(programs[-1], variant.name)
        lifetimes = [plan(p) for p in programs]
        weights = _shared_weights(programs)
        sources = []
        for k, (variant, program) in enumerate(zip(self.variants, programs, strict=True)):
            printer = host_printer(program, weights[k], variant, options, lifetimes[k],
                                   program_symbol(options, k))
            sources.append(printer.text())
        progress("compiling C", 2, 4)
        files, sizes = compile_library(compiler, sources, self.variants, options)
        files["weights.bin"] = weights[0].blob()
        progress("done", 4, 4)
        manifest = build_manifest(self.name, self.variants, programs[0], options)
        reports["memory"] = memory_report(programs[0], lifetimes[0])
        reports["sizes"] = {"weights": weights[0].size, "code": sizes,
                            "arena": programs[0].arena_size}
        if options.records.entries:
            reports["tuning"] = tuning_report(taken)
        return Build(manifest, files, programs[0], graph, reports)


def check_precision(variants: list[Variant], options: BuildOptions) -> None:
    """Raises TargetError when a variant has no instructions for the precision."""
    lacking = [v.name for v in variants if not v.vector.dot2]
    if options.precision == "bf16" and lacking:
        raise TargetError(f"{' and '.join(lacking)} has no instructions for bf16 products "
                          f"(AVX512_BF16): compile with precision f32, or on a machine that has "
                          f"them for target cpu")


def machine_of(variant: Variant, exact: bool = False, parts: bool = False) -> Machine:
    """What schedules need to know of a variant; with `parts` f32 may be taken as sums of bf16."""
    vector = variant.vector
    halves = ("fma", "f32", vector.lanes // 2) in vector.spelling
    return Machine(vector.lanes, vector.registers, vector.dot4, halves, exact, vector.dot2,
                   vector.tiles, parts=parts and vector.tiles and not exact)


def lower_for(graph: Graph, variant: Variant, exact: bool = False,
              choices: Choices | None = None, parts: bool = False) -> Program:
    """The legalised program of an optimised graph for one variant; `exact` forbids algorithms that
    round more than the operators' definitions, `choices` holds decisions made by measuring, `parts`
    allows products of f32 as sums of products of bf16."""
    program = lower(graph, RULES, machine_of(variant, exact, parts), choices)
    vector = variant.vector
    scale = frozenset(n for name, _, n in vector.spelling if name == "scale")
    capabilities = Capabilities(fma=vector.fma, scale=scale)
    done: dict = {}
    for step in program.walk():
        kernel = getattr(step, "kernel", None)
        if kernel is not None:
            if kernel not in done:
                done[kernel] = legalise(kernel, capabilities)
            step.kernel = done[kernel]  # type: ignore[attr-defined]
    program.notes += place_views(program)
    share(program)
    return program


def host_printer(program: Program, weights: Weights, variant: Variant, options: BuildOptions,
                 lifetimes: list[Lifetime], symbol: str) -> HostPrinter:
    supported = "is_supported" if variant.supported else None
    return HostPrinter(program, weights, variant.vector, symbol=symbol, isa_name=variant.name,
                       threads=options.threads, supported=supported,
                       supported_condition=variant.supported,
                       profile=options.extra.get("profile") == "true", dtype_numbers=abi.DTYPES,
                       lifetimes=[(x.storage, x.first, x.last) for x in lifetimes])


def _shared_weights(programs: list[Program]) -> list[Weights]:
    """One block of constants that serves every variant."""
    first = pack_weights(programs[0], used_storages(programs[0]))
    result = [first]
    for program in programs[1:]:
        result.append(pack_weights(program, used_storages(program), first))
    return result


def program_symbol(options: BuildOptions, variant: int) -> str:
    """The C name of a variant's program. It carries the model's name, so that one C program can
    link several models."""
    return f"{identifier(options.name)}_program_{variant}"


def program_table(name: str, symbols: list[str]) -> str:
    """C text of a table of programs: `<model>_programs` for smelt_open_program(), and
    `smelt_programs`, in an object of its own, for smelt_open()."""
    declared = "".join(f"extern const smelt_program {s};\n" for s in symbols)
    entries = ", ".join(f"&{s}" for s in symbols)
    return (f'#include "program.h"\n{declared}extern const smelt_program *const {name}[];\n'
            f"const smelt_program *const {name}[] = {{{entries}, 0}};\n")


def compile_library(compiler: Compiler, sources: list[str], variants: list[Variant],
                    options: BuildOptions) -> tuple[dict[str, bytes | Path], int]:
    """Compiles the programs and the runtime; returns the artifact's files and the code's bytes."""
    system = variants[0]
    with tempfile.TemporaryDirectory(prefix="smelt-") as name:
        folder = Path(name)
        built = link_library(compiler, sources, variants, options, folder)
        archive = folder / "libmodel.a"
        make_archive(compiler, built, archive)
        files: dict[str, bytes | Path] = {
            system.library: (folder / system.library).read_bytes(),
            "libmodel.a": archive.read_bytes(),
            "model.h": (RUNTIME / "smelt.h").read_bytes(),
            "program.h": (RUNTIME / "program.h").read_bytes(),
        }
        for k, source in enumerate(sources):
            files[f"model{k or ''}.c"] = source.encode()
        for file, path in system.beside:
            files[file] = (RUNTIME.parent / path).read_bytes()
        code = sum(p.stat().st_size for p in built[:len(sources)])
    return files, code


def link_library(compiler: Compiler, sources: list[str], variants: list[Variant],
                 options: BuildOptions, folder: Path) -> list[Path]:
    """Makes the shared library in `folder`, by the name that the variants' system gives it; returns
    the objects in it, those of the programs first."""
    level, system = f"-O{options.optimize}", variants[0]
    cross = target_flags(compiler, system.zig)
    threads = () if options.threads else ("-DSMELT_NO_THREADS",)
    symbols = [program_symbol(options, k) for k in range(len(sources))]
    tables = {f"{name}.c": program_table(name, symbols)
              for name in (f"{identifier(options.name)}_programs", "smelt_programs")}
    jobs: list[tuple[Path, tuple[str, ...]]] = []
    base = (*cross, *SEMANTICS, *system.system, *threads, f"-I{RUNTIME}")
    for k, (source, variant) in enumerate(zip(sources, variants, strict=True)):
        path = folder / f"model{k or ''}.c"
        path.write_text(source)
        jobs.append((path, (*base, level, *variant.flags)))
    for file, table in tables.items():
        path = folder / file
        path.write_text(table)
        jobs.append((path, (*base, level)))
    jobs += [(path, (*base, "-O2")) for path in sorted(RUNTIME.glob("*.c"))]
    built = objects(compiler, jobs, folder, sorted(RUNTIME.glob("*.h")))
    exported = [f"-Wl,--export={f}" for f in public_functions()] if not system.threads else []
    run([*compiler.command, *cross, *system.link, *exported, *map(str, built), "-lm", "-o",
         str(folder / system.library)], "the shared library")
    return built


def public_functions() -> list[str]:
    """The functions of smelt.h that need no files, and those that hand out memory: what a library
    without a dynamic linker has to name."""
    names = re.findall(r"\b(smelt_\w+)\(", re.sub(r"/\*.*?\*/", "", (
        RUNTIME / "smelt.h").read_text(), flags=re.DOTALL))
    from_files = {"smelt_open", "smelt_open_program"}
    return [*(n for n in dict.fromkeys(names) if n not in from_files), "aligned_alloc", "free"]


def make_archive(compiler: Compiler, built: list[Path], archive: Path) -> None:
    """A static library with deterministic contents."""
    renamed = []
    for k, path in enumerate(built):
        copy = archive.parent / f"smelt{k}.o"
        copy.write_bytes(path.read_bytes())
        renamed.append(str(copy))
    command = ([*compiler.command[:-1], "ar"] if compiler.kind == "zig" else ["ar"])
    run([*command, "rcsD", str(archive), *renamed], "the static library")


def build_manifest(target: str, variants: list[Variant], program: Program,
                   options: BuildOptions) -> dict[str, Any]:
    """The manifest's entries that every CPU artifact has."""
    return {
        **describe_program(program, target, options),
        "isas": [v.name for v in variants], "library": variants[0].library,
        "options": {"optimize": options.optimize, "exact": options.exact,
                    "precision": options.precision, "threads": options.threads},
    }


def tuning_report(taken: list[Choices]) -> dict[str, int]:
    """How many decisions came from records, and how many records name a plan that the templates do
    not have."""
    return {"applied": sum(len(c.applied - c.unknown) for c in taken),
            "unknown": sum(len(c.unknown) for c in taken)}


def make(text: str) -> Target:
    """The target of `cpu`, `cpu:generic` or `cpu:<variants>`. Raises TargetError."""
    if text == "generic":
        from .generic import GenericTarget

        return GenericTarget()
    return CpuTarget(f"cpu:{text}" if text else "cpu", find_variants(text))

