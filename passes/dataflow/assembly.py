"""A folded network as stages between FIFOs: the layers' kernels, with forks where several use a
wire, and converters where one layer's words are wider than the next one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd

from ...ir.kernel.nodes import Buffer
from ...ir.kernel.streams import stream_accesses
from ...ir.kernel.verifier import verify
from . import templates
from .fifos import depths
from .network import Choice, Layer, Network, Wire
from .templates import Element, Stage


@dataclass(eq=False)
class Fifo:
    """A queue of words; `depth` in words. `outside` tells those that the host fills or empties."""

    name: str
    element: Element
    lanes: int
    words: int
    depth: int = 0
    outside: bool = False

    @property
    def bits(self) -> int:
        """Bits of a word."""
        return self.lanes * self.element.bits


@dataclass(eq=False)
class Placed:
    """A stage in the design: its FIFOs, as its stream parameters come, the cycles of a frame, and
    the layer that it is (None for forks and converters)."""

    stage: Stage
    fifos: list[Fifo]
    cycles: int
    kind: str
    layer: Layer | None = None
    choice: Choice | None = None

    @property
    def name(self) -> str:
        return self.stage.kernel.name


@dataclass(eq=False)
class Design:
    """Stages in topological order, and their FIFOs: first those of the inputs, in order, then the
    inner ones; `outputs` are among them."""

    stages: list[Placed] = field(default_factory=list)
    fifos: list[Fifo] = field(default_factory=list)
    inputs: list[Fifo] = field(default_factory=list)
    outputs: list[Fifo] = field(default_factory=list)

    @property
    def interval(self) -> int:
        """Cycles from frame to frame: those of the slowest stage."""
        return max(p.cycles for p in self.stages)

    @property
    def bottleneck(self) -> Placed:
        """The stage that decides the interval."""
        return max(self.stages, key=lambda p: p.cycles)


def assemble(network: Network, choices: Mapping[Layer, Choice]) -> Design:
    """The design of a network whose layers are folded so. Every kernel is verified, and the order
    of its accesses; FIFOs are as deep as they must be."""
    assembly = _Assembly(network, choices)
    assembly.build()
    set_depths(assembly.design)
    return assembly.design


class _Assembly:
    def __init__(self, network: Network, choices: Mapping[Layer, Choice]):
        self.network, self.choices = network, choices
        self.design = Design()
        self.ends: dict[tuple[Layer | None, int], Fifo] = {}
        self.count: dict[str, int] = {}

    def build(self) -> None:
        for k, wire in enumerate(self.network.inputs):
            users = self.network.users(wire.stream)
            lanes = self.lanes(users[0], wire) if users else 1
            fifo = self.fifo(f"input{k}", wire.element, lanes, wire.elements, outside=True)
            self.design.inputs.append(fifo)
            self.distribute(wire, fifo)
        for layer in self.network.layers:
            choice = self.choices[layer]
            stage = layer.stage(self.name(layer.kind), choice)
            sources = [self.ends[layer, k] for k in range(len(layer.inputs))]
            wire = layer.output
            target = self.fifo(f"from_{stage.kernel.name}", wire.element, choice.output,
                               wire.elements)
            self.place(stage, [*sources, target], choice.cycles, layer.kind, layer, choice)
            self.distribute(wire, target)
        self.design.outputs = [self.ends[None, k] for k in range(len(self.network.outputs))]
        for fifo in self.design.outputs:
            fifo.outside = True

    def name(self, kind: str) -> str:
        self.count[kind] = self.count.get(kind, -1) + 1
        return f"{kind}{self.count[kind]}"

    def lanes(self, user: tuple[Layer | None, int], wire: Wire) -> int:
        """Channels that a user takes at a time; the host takes them as they come."""
        layer, k = user
        return self.choices[layer].inputs[k] if layer is not None else 0

    def fifo(self, name: str, element: Element, lanes: int, elements: int,
             outside: bool = False) -> Fifo:
        fifo = Fifo(name, element, lanes, elements // lanes, outside=outside)
        self.design.fifos.append(fifo)
        return fifo

    def place(self, stage: Stage, fifos: list[Fifo], cycles: int, kind: str,
              layer: Layer | None = None, choice: Choice | None = None) -> None:
        verify(stage.kernel)
        self.design.stages.append(Placed(stage, fifos, cycles, kind, layer, choice))

    def distribute(self, wire: Wire, fifo: Fifo) -> None:
        """Brings a wire to all that use it."""
        users = self.network.users(wire)
        if len(users) > 1:
            stage = templates.fork(self.name("fork"), wire.element, fifo.words, fifo.lanes,
                                   len(users))
            copies = [self.fifo(f"copy{k}_{stage.kernel.name}", wire.element, fifo.lanes,
                                wire.elements) for k in range(len(users))]
            self.place(stage, [fifo, *copies], fifo.words, "fork")
        else:
            copies = [fifo]
        for user, copy in zip(users, copies, strict=True):
            self.ends[user] = self.converted(wire, copy, self.lanes(user, wire) or fifo.lanes)

    def converted(self, wire: Wire, fifo: Fifo, lanes: int) -> Fifo:
        """A wire in words of another width; in two steps where neither divides the other."""
        common = gcd(fifo.lanes, lanes)
        for step in ((lanes,) if common in (fifo.lanes, lanes) else (common, lanes)):
            if step == fifo.lanes:
                continue
            stage = templates.convert(self.name("convert"), wire.element, wire.elements, fifo.lanes,
                                      step)
            target = self.fifo(f"from_{stage.kernel.name}", wire.element, step, wire.elements)
            self.place(stage, [fifo, target], max(fifo.words, target.words), "convert")
            fifo = target
        return fifo


def stream_parameters(stage: Stage) -> list[Buffer]:
    """The streams of a stage: those that it reads, then those that it writes."""
    return [b for b in stage.kernel.params if b.space == "stream"]


def set_depths(design: Design) -> None:
    """Makes FIFOs as deep as they must be."""
    numbers = {fifo: k for k, fifo in enumerate(design.fifos)}
    processes = []
    for placed in design.stages:
        streams = stream_parameters(placed.stage)
        written = set(streams[len(streams) - placed.stage.kernel.outputs:])
        processes.append((stream_accesses(placed.stage.kernel),
                          {b: numbers[f] for b, f in zip(streams, placed.fifos, strict=True)},
                          written))
    outside = {numbers[f]: f.words for f in design.inputs}
    outside |= {numbers[f]: 0 for f in design.outputs}
    found = depths(processes, [f.words for f in design.fifos], [f.bits for f in design.fifos],
                   outside)
    for fifo, depth in zip(design.fifos, found, strict=True):
        fifo.depth = depth


def simplest(network: Network) -> dict[Layer, Choice]:
    """Every layer folded as far as possible."""
    return {layer: min(layer.choices(), key=lambda c: (-c.cycles, c.output, c.inputs))
            for layer in network.layers}


def converter_cycles(elements: int, lanes: Sequence[int]) -> int:
    """Cycles that converting a wire from one width to the other takes."""
    a, b = lanes
    return 0 if a == b else elements // gcd(a, b)
