"""Layers, and the wires between them.

A wire carries one tensor of a frame as a stream: pixel by pixel, and of each its channels. `order`
says which element of the tensor comes when, so that movement costs nothing where the next layer can
take the elements as they come. How many channels a layer takes or gives at a time, its `Choice`, is
left to the folding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import gcd
from typing import ClassVar

import numpy as np

from . import templates
from .epilogue import Epilogue
from .templates import Blend, Element, Folding, Sliding, Stage

WORD_BITS = 2048
"""Bits of a word up to which layers are widened."""


@dataclass(eq=False)
class Wire:
    """`pixels` times `channels` elements; position p of the stream is element `order[p]` of the
    row-major tensor of one frame. `name` is for messages, `source` the layer that gives it (None
    for inputs of the network)."""

    name: str
    element: Element
    pixels: int
    channels: int
    order: np.ndarray
    source: Layer | None = None
    base: Wire | None = None

    @property
    def elements(self) -> int:
        return self.pixels * self.channels

    @property
    def stream(self) -> Wire:
        """The wire that carries the elements: this one, or the one that it is a view of."""
        return self if self.base is None else self.base.stream

    def view(self, pixels: int, channels: int, order: np.ndarray) -> Wire:
        """The same elements as another tensor."""
        return Wire(self.name, self.element, pixels, channels, order, self.source, self)


@dataclass(frozen=True)
class Choice:
    """Channels that a layer takes from each input and gives, at a time, and the cycles that it
    then needs for a frame."""

    inputs: tuple[int, ...]
    output: int
    cycles: int


@dataclass(eq=False)
class Layer:
    """A function from wires to one wire; `origin` names the source node."""

    kind: ClassVar[str] = ""
    origin: str
    inputs: list[Wire]
    output: Wire

    @property
    def as_given(self) -> bool:
        """Whether its words must be as wide as they come: those of windows by channel hold other
        elements in another width."""
        return False

    def choices(self) -> Iterator[Choice]:
        """The ways to fold it."""
        raise NotImplementedError

    def stage(self, name: str, choice: Choice) -> Stage:
        """The kernel for one of them."""
        raise NotImplementedError

    @property
    def products(self) -> int:
        """Multiplications of a frame."""
        return 0


def divisors(n: int, element: Element) -> list[int]:
    """The numbers of channels of a word of such elements, for n channels."""
    return [d for d in range(1, n + 1) if n % d == 0 and (d == 1 or d * element.bits <= WORD_BITS)]


@dataclass(eq=False)
class LaneLayer(Layer):
    """A layer that gives as many channels at a time as it takes."""

    @property
    def split(self) -> int:
        """Channels that words divide."""
        return self.output.channels

    def cycles(self, lanes: int) -> int:
        return max(w.elements for w in (*self.inputs, self.output)) // lanes

    def choices(self) -> Iterator[Choice]:
        for lanes in divisors(self.split, self.inputs[0].element):
            yield Choice((lanes,) * len(self.inputs), lanes, self.cycles(lanes))


@dataclass(eq=False)
class Window(LaneLayer):
    """Sliding windows."""

    kind = "window"
    sliding: Sliding

    @property
    def split(self) -> int:
        return self.sliding.channels

    def cycles(self, lanes: int) -> int:
        return self.sliding.cycles(lanes)

    def stage(self, name: str, choice: Choice) -> Stage:
        return templates.sliding_window(name, self.inputs[0].element, self.sliding, choice.output)


@dataclass(eq=False)
class MatrixVector(Layer):
    """A product with a matrix [outputs, inputs] for each pixel, and what follows it."""

    kind = "matrix_vector"
    weights: np.ndarray
    epilogue: Epilogue
    total: Element

    def choices(self) -> Iterator[Choice]:
        outputs, inputs = self.weights.shape
        pixels = self.output.pixels
        for o in divisors(outputs, self.output.element):
            for i in divisors(inputs, self.inputs[0].element):
                yield Choice((i,), o, pixels * (outputs // o) * (inputs // i))

    def stage(self, name: str, choice: Choice) -> Stage:
        return templates.matrix_vector(
            name, self.inputs[0].element, self.weights, self.epilogue, self.output.element,
            self.total, self.output.pixels, Folding(choice.output, choice.inputs[0]))

    @property
    def products(self) -> int:
        return self.output.pixels * self.weights.size


@dataclass(eq=False)
class WindowSum(LaneLayer):
    """Weights [channels, taps] times windows, channel by channel: depthwise, and mean pooling."""

    kind = "window_sum"
    weights: np.ndarray
    epilogue: Epilogue
    total: Element

    @property
    def as_given(self) -> bool:
        return self.weights.shape[1] > 1

    def stage(self, name: str, choice: Choice) -> Stage:
        return templates.window_sum(
            name, self.inputs[0].element, self.weights, self.epilogue, self.output.element,
            self.total, self.output.pixels, choice.output)

    @property
    def products(self) -> int:
        return self.output.pixels * self.weights.size


@dataclass(eq=False)
class WindowMaximum(LaneLayer):
    """Maxima of windows, channel by channel."""

    kind = "window_maximum"
    taps: int

    @property
    def as_given(self) -> bool:
        return self.taps > 1

    def stage(self, name: str, choice: Choice) -> Stage:
        return templates.window_maximum(name, self.output.element, self.output.pixels,
                                        self.output.channels, self.taps, choice.output)


@dataclass(eq=False)
class FrameSum(LaneLayer):
    """The sum of each channel over all pixels, and what follows it."""

    kind = "frame_sum"
    epilogue: Epilogue
    total: Element

    def stage(self, name: str, choice: Choice) -> Stage:
        x = self.inputs[0]
        return templates.frame_sum(name, x.element, self.epilogue, self.output.element, self.total,
                                   x.pixels, x.channels, choice.output)


@dataclass(eq=False)
class Lookup(LaneLayer):
    """A function of each element, as the table of its results."""

    kind = "lookup"
    table: np.ndarray

    def stage(self, name: str, choice: Choice) -> Stage:
        return templates.lookup(name, self.inputs[0].element, self.table, self.output.element,
                                self.output.elements // choice.output, choice.output)


@dataclass(eq=False)
class Join(LaneLayer):
    """A function of two elements: blended, or the table of its results."""

    kind = "join"
    how: Blend | np.ndarray

    def stage(self, name: str, choice: Choice) -> Stage:
        return templates.join(name, self.inputs[0].element, self.inputs[1].element, self.how,
                              self.output.element, self.output.elements // choice.output,
                              choice.output)


@dataclass(eq=False)
class Concatenate(Layer):
    """The channels of two tensors, pixel by pixel."""

    kind = "concatenate"

    def choices(self) -> Iterator[Choice]:
        a, b = (w.channels for w in self.inputs)
        for lanes in divisors(gcd(a, b), self.output.element):
            yield Choice((lanes, lanes), lanes, self.output.elements // lanes)

    def stage(self, name: str, choice: Choice) -> Stage:
        a, b = self.inputs
        return templates.concatenate(name, self.output.element, self.output.pixels,
                                     (a.channels, b.channels), choice.output)


@dataclass(eq=False)
class Keep(Layer):
    """Some channels of each pixel: those of `runs` (first, beyond)."""

    kind = "keep"
    runs: tuple[tuple[int, int], ...]

    def choices(self) -> Iterator[Choice]:
        x = self.inputs[0]
        common = gcd(x.channels, *(n for run in self.runs for n in run))
        for lanes in divisors(common, x.element):
            yield Choice((lanes,), lanes, x.elements // lanes)

    def stage(self, name: str, choice: Choice) -> Stage:
        x = self.inputs[0]
        return templates.keep(name, x.element, x.pixels, x.channels, self.runs, choice.output)


@dataclass(eq=False)
class ArgMax(Layer):
    """The number of each pixel's largest channel."""

    kind = "argmax"
    numbers: np.ndarray

    def choices(self) -> Iterator[Choice]:
        x = self.inputs[0]
        for lanes in divisors(x.channels, x.element):
            if lanes <= 8:  # they are compared one after another
                yield Choice((lanes,), 1, x.elements // lanes)

    def stage(self, name: str, choice: Choice) -> Stage:
        x = self.inputs[0]
        return templates.argmax(name, x.element, x.pixels, x.channels, choice.inputs[0],
                                self.numbers, self.output.element)


@dataclass(eq=False)
class Network:
    """Layers in topological order, and the wires that come from and go to the host."""

    inputs: list[Wire] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    outputs: list[Wire] = field(default_factory=list)

    def users(self, wire: Wire) -> list[tuple[Layer | None, int]]:
        """Who takes a wire: layers with the number of their input, and the host (None, output)."""
        found: list[tuple[Layer | None, int]] = [
            (layer, k) for layer in self.layers for k, w in enumerate(layer.inputs)
            if w.stream is wire]
        return found + [(None, k) for k, w in enumerate(self.outputs) if w.stream is wire]
