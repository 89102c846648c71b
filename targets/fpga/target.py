"""`fpga:<part>`: a dataflow project for high-level synthesis, and a library that emulates it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...codegen.cuda import CPP_RESERVED
from ...codegen.host import pack_weights, used_storages
from ...errors import TargetError, UsageError
from ...ir.graph.clone import clone_node
from ...ir.graph.core import Graph, Value
from ...ir.graph.interpreter import interpret
from ...passes.dataflow.assembly import Design, assemble
from ...passes.dataflow.fixed_point import is_float, random_samples, to_fixed_point
from ...passes.dataflow.folding import fold, intervals, quickest
from ...passes.dataflow.integer_form import IntegerForm
from ...passes.dataflow.network import Choice, Layer, Network, Wire
from ...passes.dataflow.recognise import Recognised, recognise
from ...passes.graph.base import PassReport, Pipeline
from ...passes.graph.dce import DeadCode
from ...passes.graph.pipeline import Options, optimise
from ...passes.in_place import share
from ...passes.kernel.legalise import Capabilities, legalise
from ...passes.lower.generic import GENERIC_RULES
from ...passes.lower.loops import Machine
from ...passes.lower.lowering import lower
from ...passes.plan import plan
from ...passes.schedule.rows import ROW_RULES
from ..base import Build, BuildOptions, Progress, Target, describe_program, memory_report, silent
from ..cpu.toolchain import find_compiler
from .emulation import HEADERS, EmulationPrinter, dataflow_rule, find_cxx, shared_library
from .parts import PARTS, Part, find_part
from .project import Golden, Port, Project
from .report import describe_design, page
from .resources import Usage, fifo_usage, layer_usage, plumbing_usage
from .settings import Settings, read_samples

FILL = 0.8
"""The share of a device that a design may take: more can hardly be routed."""
GOLDEN_FRAMES = 2


@dataclass
class FpgaTarget:
    """A part, for which models become networks of layers."""

    name: str
    part: Part

    def describe(self) -> dict[str, Any]:
        try:
            tool = f"{find_cxx().version} to emulate it; Vitis HLS to build it"
        except TargetError as error:
            tool = str(error)
        return {"name": self.name, "variants": list(PARTS), "toolchain": tool,
                "doc": "C++ for high-level synthesis, as layers that run at the same time"}

    def build(self, graph: Graph, options: BuildOptions, progress: Progress = silent) -> Build:
        """Makes integers of the model, and layers of those; see `Target.build`."""
        check_options(options)
        settings = Settings.parse(options.extra)
        find_compiler()
        find_cxx()
        progress("making integers", 0, 4)
        reports: dict[str, Any] = {"passes": to_integers(graph, settings)}
        found = recognise(graph)
        progress("folding layers", 1, 4)
        design = self.design(found.network, settings)
        name = options.name
        project = Project(name, design, ports(found.inputs, found.network.inputs, design.inputs),
                          ports(found.outputs, found.network.outputs, design.outputs))
        region = as_device(graph, found)
        progress("generating firmware", 2, 4)
        firmware = project.firmware()
        files: dict[str, Any] = {f"firmware/{k}": v.encode() for k, v in firmware.items()}
        for header in sorted(HEADERS.glob("*.hpp")):
            files[f"firmware/{header.name}"] = header.read_bytes()
        for file, text in project.testbench(
                golden_vectors(region, found.network.inputs)).items():
            files[file] = text.encode()
        files["build.tcl"] = project.tcl(self.part, settings.megahertz).encode()
        report = describe_design(design, self.part, settings.megahertz, usage_by_stage(design))
        files["design.json"] = json.dumps(report, indent=1, sort_keys=True).encode()
        files["design.html"] = page(report, name).encode()
        program = host_program(graph)
        lifetimes = plan(program)
        weights = pack_weights(program, used_storages(program))
        progress("compiling the emulation", 3, 4)
        printer = EmulationPrinter(program, weights, lifetimes)
        files["model.so"] = shared_library(printer, name, firmware,
                                           project.emulation("smelt_firmware"), options.optimize)
        files["weights.bin"] = weights.blob()
        progress("done", 4, 4)
        manifest = {**describe_program(program, self.name, options), "isas": ["emulation"],
                    "options": {"exact": options.exact}}
        reports["memory"] = memory_report(program, lifetimes)
        reports["sizes"] = {"weights": weights.size, "arena": program.arena_size}
        reports["fpga"] = report
        return Build(manifest, files, program, graph, reports)

    def design(self, network: Network, settings: Settings) -> Design:
        """The folded network: as slow as is asked for, or as quick as fits the part. Raises
        TargetError naming the layer that is too slow or too large."""
        def cost(layer: Layer, choice: Choice) -> float:
            return sum(layer_usage(layer, choice).shares(self.part).values())

        if settings.cycles is not None:
            design = assemble(network, fold(network, settings.cycles, cost))
            self.check(design)
            return design

        def estimate(interval: int) -> Usage:
            total = Usage()
            for layer, choice in fold(network, interval, cost).items():
                total = total + layer_usage(layer, choice)
            return total

        # Forks, converters and FIFOs come to what the layers take; they decide about little.
        candidates = intervals(network)
        best = quickest(candidates, lambda n: max(
            estimate(n).shares(self.part).values()) <= 0.9 * FILL)
        design = assemble(network, fold(network, best or candidates[-1], cost))
        self.check(design)
        return design

    def check(self, design: Design) -> None:
        """Raises TargetError when a design is too large for the part."""
        usage = usage_by_stage(design)
        total = sum(usage.values(), Usage())
        for resource, taken in total.shares(self.part).items():
            if taken > FILL:
                largest = max(usage, key=lambda n: usage[n].shares(self.part)[resource])
                placed = next((p for p in design.stages if p.name == largest), None)
                origin = placed.layer.origin if placed and placed.layer else largest
                raise TargetError(
                    f"the design takes an estimated {taken:.0%} of the {resource}s of "
                    f"{self.part.name}, of which {FILL:.0%} can be used; {origin} takes most "
                    f"({usage[largest].shares(self.part)[resource]:.0%}): ask for fewer frames per "
                    f"second, fewer bits, or take a larger part")


def check_options(options: BuildOptions) -> None:
    """Refuses what the target does not know."""
    if options.states:
        raise UsageError("the fpga target keeps no states between runs: pass them in and out as "
                         "inputs and outputs")
    if options.precision != "f32":
        raise TargetError(f"the fpga target computes with integers, not in {options.precision}: "
                          f"give their widths by --option activations=8 --option weights=8")
    if options.passes:
        raise UsageError("the fpga target runs passes of its own: leave --passes out")
    if options.name in CPP_RESERVED or options.name in ("main", "std", "frame") \
            or re.fullmatch(r"(in|out)\d+", options.name):
        raise UsageError(f"the name {options.name!r} means something else in the generated C++: "
                         f"give another by --name")


def to_integers(graph: Graph, settings: Settings) -> list[PassReport]:
    """Makes an integer graph of a model in place: of its own quantisation, else of fixed point."""
    whole = Options(fuse=False)
    reports = Pipeline((IntegerForm(),)).run(graph)
    reports += optimise(graph, whole)
    if is_float(graph):
        samples = random_samples(graph) if settings.samples is None \
            else read_samples(settings.samples)
        check_samples(graph, samples)
        to_fixed_point(graph, settings.widths, samples)
        reports += Pipeline((IntegerForm(round_biases=True),)).run(graph)
        reports += optimise(graph, whole)
    reports += Pipeline((IntegerForm(),)).run(graph)
    return reports + optimise(graph, whole)


def check_samples(graph: Graph, samples: list[dict[str, np.ndarray]] | Any) -> None:
    """Raises UsageError when samples are not inputs of the model."""
    for sample in samples:
        missing = [v.name for v in graph.inputs if v.name not in sample]
        if missing or len(sample) != len(graph.inputs):
            raise UsageError(f"the samples must hold an array for each input of the model: "
                             f"{', '.join(v.name for v in graph.inputs)}")


def ports(values: list[Value], wires: list, fifos: list) -> list[Port]:
    """The network's inputs or outputs, as the host sees them."""
    return [Port(f, v.dtype, w.order) for v, w, f in zip(values, wires, fifos, strict=True)]


def as_device(graph: Graph, found: Recognised) -> Graph:
    """Puts a `dataflow` node into the place of the layers; returns its region."""
    region = Graph("dataflow", parent=graph)
    mapping: dict[Value, Value] = {}
    for value in found.inputs:
        mapping[value] = region.add_input(value.name, value.type)
    needed: set = set()
    stack = [v for v in found.outputs]
    while stack:
        value = stack.pop()
        if value in found.inputs or value.node is None or value.node in needed:
            continue
        needed.add(value.node)
        stack.extend(v for v in value.node.inputs if v is not None)
    for node in graph.ordered():
        if node in needed:
            clone_node(node, region, mapping)
    region.outputs = [mapping[v] for v in found.outputs]
    node = graph.add_node("dataflow", found.inputs, regions=[region], origin="the layers")
    for old, new in zip(found.outputs, node.outputs, strict=True):
        graph.replace(old, new)
    Pipeline((DeadCode(),)).run(graph)
    return region


def golden_vectors(region: Graph, wires: Sequence[Wire], frames: int = GOLDEN_FRAMES) -> Golden:
    """Random frames for the inputs that `wires` carry, and what the integer graph gives for
    them."""
    random = np.random.default_rng(0)
    inputs: list[list[np.ndarray]] = [[] for _ in region.inputs]
    outputs: list[list[np.ndarray]] = [[] for _ in region.outputs]
    for _ in range(frames):
        given = []
        for value, wire in zip(region.inputs, wires, strict=True):
            batch, shape = value.shape[0], [int(d) for d in value.shape[1:]]  # type: ignore
            frame = random.integers(wire.element.low, wire.element.high, shape, endpoint=True)
            count = batch if isinstance(batch, int) else 1
            given.append(np.ascontiguousarray(np.broadcast_to(
                frame.astype(value.dtype.numpy), (count, *frame.shape))))
        for kept, arrays in ((inputs, given), (outputs, interpret(region, given))):
            for k, array in enumerate(arrays):
                kept[k].append(array[0])
    return Golden([np.stack(f) for f in inputs], [np.stack(f) for f in outputs])


def host_program(graph: Graph):
    """The program of what the host does, with the firmware as one launch."""
    program = lower(graph, (dataflow_rule, *ROW_RULES, *GENERIC_RULES), Machine(lanes=1))
    done: dict = {}
    for step in program.walk():
        kernel = getattr(step, "kernel", None)
        if kernel is not None and kernel.body.body:
            if kernel not in done:
                done[kernel] = legalise(kernel, Capabilities())
            step.kernel = done[kernel]  # type: ignore[attr-defined]
    share(program)
    return program


def usage_by_stage(design: Design) -> Mapping[str, Usage]:
    """The estimate for each stage, and for the FIFOs together."""
    found: dict[str, Usage] = {}
    for placed in design.stages:
        if placed.layer is not None and placed.choice is not None:
            found[placed.name] = layer_usage(placed.layer, placed.choice)
        else:
            found[placed.name] = plumbing_usage(placed.fifos)
    inner = [f for f in design.fifos if not f.outside]
    found["FIFOs"] = sum(map(fifo_usage, inner), Usage())
    return found


def make(text: str) -> Target:
    """The target of `fpga:<part>`. Raises TargetError."""
    part = find_part(text)
    return FpgaTarget(f"fpga:{part.name}", part)


