"""`webgpu`: WGSL shaders, weights, and a plan of launches over one arena."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from ...codegen.host import pack_weights, used_storages
from ...codegen.wgsl import storable
from ...codegen.wgsl_program import PlanPrinter, parts_of
from ...errors import ModelError, TargetError, UsageError
from ...ir.graph.clone import clone_graph
from ...ir.graph.core import Graph
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Kernel
from ...ir.program import Bind, Branch, Copy, Launch, Program, Repeat, Require, Step
from ...passes.dump import dump_kernels
from ...passes.graph.pipeline import Options, optimise
from ...passes.in_place import share
from ...passes.kernel.legalise import Capabilities, legalise
from ...passes.kernel.narrow import check_narrow
from ...passes.lower.generic import GENERIC_RULES
from ...passes.lower.loops import Machine
from ...passes.lower.lowering import Rule, lower
from ...passes.plan import Lifetime, best_fit, lifetimes
from ...passes.schedule.gpu import GpuLimits, check_limits, to_grid
from ...passes.schedule.gpu_gemm import gpu_product_rules
from ...passes.schedule.gpu_reduce import gpu_reduction_rules
from ...passes.schedule.gpu_rows import gpu_row_rules
from ..base import Build, BuildOptions, Progress, Target, describe_program, memory_report, silent
from .javascript import fallback_files, module_files, page_files, pixel_range, wants_fallback

LIMITS = GpuLimits()
RULES: tuple[Rule, ...] = (*gpu_product_rules(LIMITS), *gpu_row_rules(LIMITS),
                           *gpu_reduction_rules(LIMITS), *GENERIC_RULES)
MACHINE = Machine(lanes=1, flat=True)
BINDING_BYTES = 128 << 20
"""Bytes of a storage buffer that every adapter binds."""
MOST_PARTS = 7
"""Storage buffers that a shader may use (8), less the arena."""


@dataclass
class WebGpuTarget:
    """Compute shaders for any WebGPU adapter with default limits."""

    name: str = "webgpu"

    def describe(self) -> dict[str, Any]:
        try:
            tool = f"wgpu {metadata.version('wgpu')} to run it here"
        except metadata.PackageNotFoundError:
            tool = "none needed to compile; running it here needs wgpu: install smelt[webgpu]"
        return {"name": self.name, "variants": ["wgsl"], "toolchain": tool,
                "doc": f"WGSL for {LIMITS.threads} invocations and {LIMITS.shared // 1024} KiB "
                       f"of workgroup memory"}

    def build(self, graph: Graph, options: BuildOptions, progress: Progress = silent) -> Build:
        """Optimises, lowers and prints; see `Target.build`."""
        if options.states:
            raise UsageError("the webgpu target keeps no states between runs: pass them in and "
                             "out as inputs and outputs")
        if options.extra.get("profile"):
            raise TargetError("the webgpu target counts no times of kernels: profile cpu")
        if options.precision != "f32":
            raise TargetError(f"the webgpu target computes in f32 only, not in "
                              f"{options.precision}: compile with precision f32")
        other = clone_graph(graph) if wants_fallback(options) else None
        progress("optimising the graph", 0, 3)
        chosen = Options(passes=options.passes or "", channels_last=True)
        reports: dict[str, Any] = {"passes": optimise(graph, chosen)}
        progress("generating kernels", 1, 3)
        program = lower_for(graph)
        dump_kernels(program, self.name)
        progress("printing shaders", 2, 3)
        memory, static = plan_arena(program)
        weights = pack_weights(program, used_storages(program))
        printer = PlanPrinter(program, weights, parts_of(weights, BINDING_BYTES), memory, static)
        if len(printer.parts) > MOST_PARTS:
            raise ModelError(f"the weights take {weights.size >> 20} MiB, more than "
                             f"{MOST_PARTS * BINDING_BYTES >> 20} MiB that shaders can bind")
        files: dict[str, Any] = {"plan.json": printer.plan(), "weights.bin": weights.blob()}
        for name, text in printer.shaders.items():
            files[f"shaders/{name}.wgsl"] = text.encode()
        files |= module_files(options) | page_files(options)
        if other is not None:
            files |= fallback_files(other, options, progress)
        progress("done", 3, 3)
        manifest = {**describe_program(program, self.name, options), "isas": [],
                    "options": {"exact": options.exact, "pixels": pixel_range(options)}}
        reports["memory"] = memory_report(program, memory)
        reports["sizes"] = {"weights": weights.size, "arena": program.arena_size,
                            "code": sum(map(len, printer.shaders.values()))}
        return Build(manifest, files, program, graph, reports)


def lower_for(graph: Graph) -> Program:
    """The program of an optimised graph as legalised grid kernels. Raises ModelError naming what
    WebGPU cannot do."""
    program = lower(graph, RULES, MACHINE)
    program.steps = _copies_as_kernels(program.steps, {})
    _check_types(program)
    to_grid(program, LIMITS)
    capabilities = Capabilities(any_order=True)
    done: dict[Kernel, Kernel] = {}
    for step in program.walk():
        if isinstance(step, Launch):
            if step.kernel not in done:
                check_narrow(step.kernel)
                done[step.kernel] = legalise(step.kernel, capabilities)
                check_limits(done[step.kernel], LIMITS)
            step.kernel = done[step.kernel]
    share(program)
    return program


def _copies_as_kernels(steps: list[Step], made: dict[tuple, Kernel]) -> list[Step]:
    """Steps with a kernel in the place of each copy: buffers cannot be copied to themselves."""
    result: list[Step] = []
    for step in steps:
        if isinstance(step, Branch):
            step.then = _copies_as_kernels(step.then, made)
            step.orelse = _copies_as_kernels(step.orelse, made)
        elif isinstance(step, Repeat):
            step.body = _copies_as_kernels(step.body, made)
        elif isinstance(step, Copy):
            type = step.source.type
            key = type.dtype, type.numel
            if key not in made:
                b = Builder(f"copy{len(made)}")
                x, y = (b.param(n, type.dtype, (type.numel,)) for n in "xy")
                with b.loop("i", type.numel, "parallel") as i:
                    b.store(y, i, x[i])
                made[key] = b.kernel(1, 0, type.numel * (2 * type.dtype.itemsize))
            kernel = made[key]
            result.append(Launch(kernel, (step.source, step.target), kernel.sizes))
            continue
        result.append(step)
    return result


def _check_types(program: Program) -> None:
    """Refuses element types that no shader holds, sizes that only data tells, and numbers of more
    than 32 bits among the constants."""
    names = {s: f"{s.role} {s.name!r}" for s in (*program.inputs, *program.outputs)}
    bound = {v for s in program.inputs for v in s.type.symbols}
    for step in program.walk():
        if not isinstance(step, Launch):
            continue
        where = step.kernel.origin or step.kernel.name
        for s in step.args:
            dtype = s.type.dtype
            if not storable(dtype):
                raise ModelError(f"{names.get(s, where)}: WebGPU has no {dtype.name}: change the "
                                 f"model to a type that it has, such as f32 or i32")
            if s.root().role == "dynamic" or any(v not in bound for v in s.root().type.symbols):
                raise ModelError(f"{where}: the size of its result depends on data, which the "
                                 f"webgpu target does not support")
            if s.role == "constant" and dtype.name == "i64" and s.array is not None \
                    and s.array.size and np.abs(s.array.astype(np.float64)).max() >= 2.0**31:
                raise ModelError(f"{where}: a constant holds numbers of more than 32 bits, which "
                                 f"WebGPU does not compute with")


def plan_arena(program: Program) -> tuple[list[Lifetime], bool]:
    """Places inputs, outputs and temporaries in the arena: what lies there, and whether all sizes
    are constant. Inputs hold data from the start, outputs to the end, and so do the numbers that
    late checks read."""
    inputs, outputs = program.inputs, program.outputs
    roles = {s: s.role for s in (*inputs, *outputs)}
    for s in roles:
        s.role = "temporary"
    spans = {x.storage: x for x in lifetimes(program)}
    for s, role in roles.items():
        s.role = role
    end = max((x.last for x in spans.values()), default=0) + 1
    for s in (*inputs, *outputs):
        spans.setdefault(s.root(), Lifetime(s.root(), 0, 0))
    for s in inputs:
        spans[s].first = 0
    late = [a.source for a, b in zip(program.steps, program.steps[1:], strict=False)
            if isinstance(a, Bind) and isinstance(b, Require) and not b.of_sizes]
    for s in (*outputs, *late):
        if s.root() in spans:
            spans[s.root()].last = end
    memory = list(spans.values())
    static = all(x.storage.type.is_static for x in memory)
    if static:
        sizes = [int(x.storage.type.numel) * x.storage.type.dtype.itemsize  # type: ignore
                 for x in memory]
        offsets, program.arena_size = best_fit(sizes, [(x.first, x.last) for x in memory])
        for x, offset in zip(memory, offsets, strict=True):
            x.storage.offset = offset
    return memory, static


def make(text: str) -> Target:
    """The target `webgpu`, which has no variants. Raises TargetError."""
    if text:
        raise TargetError(f"the webgpu target has no variant {text!r}: use webgpu")
    return WebGpuTarget()

