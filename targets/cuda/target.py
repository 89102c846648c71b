"""`cuda:sm_80` and so on: a cubin and a C library that launches its kernels; `cuda:emulated`: the
same source and the same library with the kernels running on this CPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ...codegen.cuda_host import CudaHostPrinter, is_repeatable
from ...codegen.host import pack_weights, used_storages
from ...errors import TargetError, UsageError
from ...ir.graph.core import Graph
from ...ir.kernel.nodes import Kernel
from ...ir.program import Launch, Program
from ...passes.dump import dump_kernels
from ...passes.graph.pipeline import Options, optimise
from ...passes.in_place import share
from ...passes.kernel.legalise import Capabilities, legalise
from ...passes.lower.generic import GENERIC_RULES
from ...passes.lower.loops import Machine
from ...passes.lower.lowering import Rule, lower
from ...passes.plan import plan
from ...passes.schedule.gpu import GpuLimits, check_limits, to_grid
from ...passes.schedule.gpu_gemm import gpu_product_rules
from ...passes.schedule.gpu_reduce import gpu_reduction_rules
from ...passes.schedule.gpu_rows import gpu_row_rules
from ...runtime import abi
from ..base import Build, BuildOptions, Progress, Target, describe_program, memory_report, silent
from ..cpu.target import program_symbol
from ..cpu.toolchain import find_compiler
from .library import build_library, image_name
from .toolchain import compile_cubin, find_cuda_compiler

LIMITS = GpuLimits(threads=256, grid=2**31 - 1, shared=48 << 10, private=64 << 10, words=False)
RULES: tuple[Rule, ...] = (*gpu_product_rules(LIMITS), *gpu_row_rules(LIMITS),
                           *gpu_reduction_rules(LIMITS), *GENERIC_RULES)
MACHINE = Machine(lanes=1, flat=True)
EMULATED = "emulated"
SUGGESTED = ("sm_80", "sm_90a")
"""Architectures that `smelt targets` lists: A100, and H100 with all that it has."""


@dataclass
class CudaTarget:
    """Architectures such as "sm_80", the newest first, or "emulated" alone."""

    name: str
    architectures: tuple[str, ...]

    @property
    def emulated(self) -> bool:
        return self.architectures == (EMULATED,)

    def describe(self) -> dict[str, Any]:
        try:
            tool = find_compiler().version
            if not self.emulated:
                tool = f"{find_cuda_compiler().version}, {tool}"
        except TargetError as error:
            tool = str(error)
        doc = "CUDA kernels run and checked on this CPU" if self.emulated else \
            f"NVIDIA GPUs of {' and '.join(self.architectures)}: CUDA source, cubin and a C library"
        return {"name": self.name, "variants": list(self.architectures), "toolchain": tool,
                "doc": doc}

    def build(self, graph: Graph, options: BuildOptions, progress: Progress = silent) -> Build:
        """Optimises, lowers, prints and compiles; see `Target.build`."""
        if options.extra.get("profile"):
            raise TargetError("the cuda target counts no times of kernels: profile cpu")
        for key, value in options.extra.items():
            if key != "graphs":
                raise UsageError(f"the cuda target has no option {key!r}; it has graphs")
            if value not in ("true", "false"):
                raise UsageError(f"graphs is {value!r}: use true or false")
        if options.precision != "f32":
            raise TargetError(f"the cuda target computes in f32 only, not in "
                              f"{options.precision}: compile with precision f32")
        compiler = find_compiler()
        cuda = None if self.emulated else find_cuda_compiler()
        progress("optimising the graph", 0, 4)
        chosen = Options(passes=options.passes or "", channels_last=True)
        reports: dict[str, Any] = {"passes": optimise(graph, chosen)}
        progress("generating kernels", 1, 4)
        program = lower_for(graph)
        dump_kernels(program, f"cuda-{'+'.join(self.architectures)}")
        lifetimes = plan(program)
        graphs = options.extra.get("graphs") == "true"
        if graphs and not is_repeatable(program):
            raise TargetError("the model's steps depend on data, which a CUDA graph cannot follow: "
                              "leave the option graphs out")
        weights = pack_weights(program, used_storages(program))
        printer = CudaHostPrinter(
            program, weights, symbol=program_symbol(options, 0),
            architectures="+".join(self.architectures),
            images=[image_name(options, a) for a in self.architectures], dtype_numbers=abi.DTYPES,
            lifetimes=[(x.storage, x.first, x.last) for x in lifetimes], graphs=graphs)
        progress("compiling CUDA C++", 2, 4)
        source = printer.device_text()
        cubins = {a: compile_cubin(cuda, source, a) for a in self.architectures} if cuda else {}
        progress("compiling C", 3, 4)
        files = build_library(compiler, printer, cubins, options)
        files["weights.bin"] = weights.blob()
        progress("done", 4, 4)
        manifest = {**describe_program(program, self.name, options),
                    "isas": list(self.architectures), "library": "model.so",
                    "options": {"optimize": options.optimize, "exact": options.exact}}
        reports["memory"] = memory_report(program, lifetimes)
        code = sum(map(len, cubins.values())) or len(source)
        reports["sizes"] = {"weights": weights.size, "code": code, "arena": program.arena_size}
        return Build(manifest, files, program, graph, reports)


def lower_for(graph: Graph) -> Program:
    """The program of an optimised graph as legalised grid kernels. Raises ModelError naming what a
    GPU cannot do."""
    program = lower(graph, RULES, MACHINE)
    to_grid(program, LIMITS)
    capabilities = Capabilities()
    done: dict[Kernel, Kernel] = {}
    for step in program.walk():
        if isinstance(step, Launch):
            if step.kernel not in done:
                done[step.kernel] = legalise(step.kernel, capabilities)
                check_limits(done[step.kernel], LIMITS)
            step.kernel = done[step.kernel]
    share(program)
    return program


def make(text: str) -> Target:
    """The target `cuda:<architectures joined by +>` or `cuda:emulated`. Raises TargetError."""
    found = text.split("+")
    if text != EMULATED and not all(re.fullmatch(r"sm_\d{2,3}[af]?", a) for a in found):
        what = f"has no variant {text!r}" if text else "needs an architecture"
        raise TargetError(f"the cuda target {what}: use one such as cuda:sm_80 (A100) or "
                          f"cuda:sm_90a (H100), several joined by +, or cuda:emulated to run on "
                          f"the CPU")
    # A device takes the first that it runs: the one that uses most of what it has.
    found.sort(key=lambda a: (int(re.sub(r"\D", "", a) or 0), a), reverse=True)
    return CudaTarget(f"cuda:{text}", tuple(dict.fromkeys(found)))
