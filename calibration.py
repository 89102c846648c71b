"""Static quantisation as the face offers it: observes a model on samples, quantises it to bytes,
and leaves products in floats where accuracy asks for it.

What quantising a product costs is measured in a probe of the float model, as for bf16
(`precision`); what the whole costs, in the quantised model itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, UsageError
from .precision import loss, losses_of, to_keep, with_switch, work_of
from .probe import Run, runner

if TYPE_CHECKING:
    from collections.abc import Callable

    from .compression import Named, Progress
    from .ir.graph.core import Graph, Value
    from .passes.compress.ranges import Distribution
    from .passes.compress.static import Layer

MOST_SAMPLES = 8
"""Samples that the accuracy of single products and of the whole is measured on."""


Outputs = list[list[np.ndarray]]
"""A model's outputs for some samples."""


@dataclass
class Channels:
    """Of a tensor's channels: their largest magnitudes, and their sums over `count` elements."""

    axis: int
    largest: np.ndarray | None = None
    total: np.ndarray | None = None
    count: int = 0

    def update(self, x: np.ndarray) -> None:
        """Counts a tensor with the channels along `axis`."""
        if not x.size:
            return
        rows = np.moveaxis(x, self.axis, -1).reshape(-1, x.shape[self.axis])
        largest, total = np.abs(rows).max(0), rows.sum(0, dtype=np.float64)
        if self.largest is None or self.total is None:
            self.largest, self.total = largest, total
        else:
            self.largest, self.total = np.maximum(self.largest, largest), self.total + total
        self.count += len(rows)

    @property
    def mean(self) -> np.ndarray | None:
        return None if self.total is None else self.total / self.count


@dataclass(frozen=True)
class Found:
    """What became of a product: bytes of its weights before and after, the error of its weights
    relative to their norm, and the loss (1 - cosine of an output) when it alone is quantised, where
    that was measured."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    dense: int
    encoded: int
    weight_error: float
    output_error: float | None = None
    loss: float | None = None


@dataclass
class Static:
    """How to quantise statically: how ranges are chosen, whether activations are smoothed, products
    to leave in floats by patterns of their names, and the least cosine of the outputs (None: not
    looked after)."""

    ranges: str = "mse"
    smoothed: bool = False
    keep: Sequence[str] = ()
    accuracy: float | None = None
    progress: Progress = field(default=lambda *_: None)

    def apply(self, graph: Graph, samples: Sequence[Named]) -> dict[str, Any]:
        """Quantises a graph in place and returns the report. Raises InputError and UsageError."""
        from .passes.compress.smooth import smooth
        from .passes.compress.static import add_biases, layers_of, rounded_weights

        if not samples:
            raise InputError("there are no samples to calibrate with: give one or more")
        _prepare(graph)
        layers = layers_of(graph)
        add_biases(graph, layers)
        for pattern in self.keep:
            if not any(_matches(layer.name, (pattern,)) for layer in layers):
                raise UsageError(f"no layer to keep has a name with {pattern!r} in it")
        candidates = [layer for layer in layers if not _matches(layer.name, self.keep)
                      and layer.left.type.numel != 0]
        if self.smoothed:
            largest = self._channels(graph, candidates, samples)
            smooth(graph, candidates, {v: c.largest for v, c in largest.items()
                                       if c.largest is not None})
        with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
            distributions, channels, exact = self._observe(graph, candidates, samples,
                                                           Path(folder))
        ranges = _Ranges(self.ranges, distributions)
        losses: dict[Layer, float] = {}
        kept: list[Layer] = []
        if self.accuracy and candidates:
            losses, kept = self._sensitive(graph, candidates, ranges, samples, self.accuracy)
        chosen, cosine = self._within(graph, exact, candidates, kept, losses, ranges, channels,
                                      samples)
        found = []
        for layer in layers:
            w = layer.weights
            taken = layer in chosen
            rounded, scale = rounded_weights(layer)
            error = float(np.linalg.norm(rounded * scale - w) / max(np.linalg.norm(w), 1e-30))
            found.append(Found(layer.name, w.shape, "int8" if taken else "f32", w.nbytes,
                               rounded.nbytes + scale.nbytes if taken else w.nbytes,
                               error if taken else 0.0, None, losses.get(layer)))
        _quantise(graph, [layer for layer in layers if layer in chosen], ranges, channels)
        return {"scheme": "int8", "encoding": "int8", "ranges": self.ranges,
                "method": "smoothquant" if self.smoothed else "rtn", "samples": len(samples),
                "cosine": cosine, "layers": [asdict(layer) for layer in found],
                "dense": sum(x.dense for x in found), "encoded": sum(x.encoded for x in found)}

    # Observing --------------------------------------------------------------------------------

    def _channels(self, graph: Graph, layers: Sequence[Layer],
                  samples: Sequence[Named]) -> dict[Value, Channels]:
        """The channels of the left operands of all matrix products."""
        found = {layer.left: Channels(layer.channel_axis) for layer in layers if not layer.is_conv}
        with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
            self._run(_probe(graph, list(found), Path(folder)), samples, lambda arrays: [
                c.update(x) for c, x in zip(found.values(), arrays, strict=True)])
        return found

    def _observe(self, graph: Graph, layers: Sequence[Layer], samples: Sequence[Named],
                 folder: Path) -> tuple[dict[Value, Distribution], dict[Value, Channels], Outputs]:
        """The distributions of all values that may be quantised, the channels of the layers' left
        operands, and the outputs for the first samples."""
        from .passes.compress.ranges import Distribution
        from .passes.compress.static import place

        values = {v: Distribution() for v in place(graph, layers).groups}
        channels = {layer.left: Channels(layer.channel_axis) for layer in layers}
        run = _probe(graph, [*values, *channels, *graph.outputs], folder)
        exact: Outputs = []

        def first(arrays: list[np.ndarray]) -> None:
            for observe, array in zip([*(d.bound for d in values.values()),
                                       *(c.update for c in channels.values())], arrays,
                                      strict=False):
                if not np.isfinite(array).all():
                    raise InputError("infinities or NaN arise inside the model, which have no "
                                     "range")
                observe(array)
            if len(exact) < MOST_SAMPLES:
                exact.append(arrays[len(values) + len(channels):])

        def second(arrays: list[np.ndarray]) -> None:
            for distribution, array in zip(values.values(), arrays, strict=False):
                distribution.count(array)

        self._run(run, samples, first)
        for layer in layers:
            if channels[layer.left].largest is None:
                raise InputError(f"calibration data: what {layer.name} multiplies has no element "
                                 f"in any sample: give samples whose sizes are not 0")
        self._run(run, samples, second)
        return values, channels, exact

    def _run(self, run: Run, samples: Sequence[Named],
             observe: Callable[[list[np.ndarray]], object]) -> None:
        for k, (name, sample) in enumerate(samples):
            self.progress("running the calibration data", k, len(samples))
            try:
                observe(run(sample))
            except InputError as error:
                raise InputError(f"calibration data: {name}: {error}") from None

    # Accuracy ---------------------------------------------------------------------------------

    def _sensitive(self, graph: Graph, layers: Sequence[Layer], ranges: _Ranges,
                   samples: Sequence[Named], accuracy: float,
                   ) -> tuple[dict[Layer, float], list[Layer]]:
        """What each layer loses when it alone is quantised, and those to leave in floats so that
        the rest is within the accuracy."""
        from .ir.graph.clone import clone_graph
        from .passes.compress.static import rounded_weights

        mapping: dict[Value, Value] = {}
        probe = clone_graph(graph, mapping)
        switches = []
        for k, layer in enumerate(layers):
            rounded, scale = rounded_weights(layer)
            twin = mapping[layer.node.output].node
            assert twin is not None and twin.inputs[0] is not None
            through = _through_bytes(probe, twin.inputs[0], *ranges.of_left(layer))
            switches.append(with_switch(probe, twin, f"quantised{k}", through, rounded * scale))
        self.progress("building the probe of accuracy", 0, 1)
        with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
            run = runner(probe, Path(folder))

            def outputs(shares: np.ndarray) -> Outputs:
                given = dict(zip(switches, (np.asarray(s, np.float32) for s in shares),
                                 strict=True))
                return [run({**sample, **given}) for _, sample in samples[:MOST_SAMPLES]]

            exact, count = outputs(np.zeros(len(layers))), len(layers)

            def measured(shares: np.ndarray) -> float:
                return _loss(exact, outputs(shares))

            losses = losses_of(count, measured, self.progress)
            kept: list[int] = []
            if measured(np.ones(count)) > 1 - accuracy:
                work = [work_of(layer.node) for layer in layers]
                kept, _ = to_keep(losses, work, 1 - accuracy, measured)
        return dict(zip(layers, losses.tolist(), strict=True)), [layers[k] for k in kept]

    def _within(self, graph: Graph, exact: Outputs, layers: Sequence[Layer], kept: Sequence[Layer],
                losses: Mapping[Layer, float], ranges: _Ranges, channels: dict[Value, Channels],
                samples: Sequence[Named]) -> tuple[list[Layer], float]:
        """The layers to quantise, fewer until the quantised model itself is within the accuracy,
        and its cosine."""
        from .ir.graph.clone import clone_graph

        left = [layer for layer in layers if layer not in kept]
        left.sort(key=lambda layer: losses.get(layer, 0.0) / work_of(layer.node))
        while True:
            mapping: dict[Value, Value] = {}
            trial = clone_graph(graph, mapping)
            self.progress("measuring the quantised model", 0, 1)
            _quantise(trial, [layer.through(mapping) for layer in layers if layer in left],
                      ranges.through(mapping), {mapping[v]: c for v, c in channels.items()})
            with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
                run = runner(trial, Path(folder))
                reached = _loss(exact, [run(sample) for _, sample in samples[:MOST_SAMPLES]])
            if self.accuracy is None or reached <= 1 - self.accuracy or not left:
                return left, 1 - reached
            del left[-max(1, len(layers) // 32):]


@dataclass(frozen=True)
class _Ranges:
    """The ranges of values by their distributions."""

    how: str
    distributions: Mapping[Value, Distribution]

    def __call__(self, values: Sequence[Value]) -> tuple[float, float]:
        from .passes.compress.ranges import RANGES, joined

        return joined([RANGES[self.how](self.distributions[v]) for v in values])

    def through(self, mapping: Mapping[Value, Value]) -> _Ranges:
        """The same for the values of a copy of the graph."""
        return _Ranges(self.how, {mapping[v]: d for v, d in self.distributions.items()})

    def of_left(self, layer: Layer) -> tuple[np.float32, int]:
        """The scale and zero point of a layer's left operand."""
        from .passes.compress.ranges import parameters
        from .passes.compress.static import sources

        return parameters(*self(sources(layer.left)))


def _prepare(graph: Graph) -> None:
    """Makes one operator of each function that is written out, and brings constants to where
    products read them."""
    from .passes.compress.quantise import prepare
    from .passes.graph.base import Pipeline

    # Functions first: their factors would go into weights.
    Pipeline.parse("dce,fold,cse,canonicalise,fold,cse,recognise").run(graph)
    prepare(graph)


def _quantise(graph: Graph, layers: Sequence[Layer], ranges: _Ranges,
              channels: Mapping[Value, Channels]) -> None:
    from .passes.compress.static import place, quantise

    means = {v: c.mean for v, c in channels.items() if c.mean is not None}
    quantise(graph, layers, place(graph, layers), ranges, means)


def _probe(graph: Graph, values: Sequence[Value], folder: Path) -> Run:
    """Runs a copy of the graph with these values as outputs."""
    from .ir.graph.clone import clone_graph

    mapping: dict[Value, Value] = {}
    probe = clone_graph(graph, mapping)
    probe.outputs = [mapping[v] for v in values]
    probe.output_names = [f"observed{k}" for k in range(len(values))]
    return runner(probe, folder)


def _through_bytes(graph: Graph, x: Value, scale: np.float32, zero: int) -> Value:
    """x quantised and dequantised."""
    from .ir import dtype as dt

    parameters = [graph.constant(scale), graph.constant(np.float32(zero))]
    rounded = graph.add("quantize", [x, *parameters], {"to": dt.u8})
    return graph.add("dequantize", [rounded, graph.constant(np.uint8(zero)), parameters[0]])


def _loss(exact: Outputs, actual: Outputs) -> float:
    """The largest 1 - cosine of an output in any sample."""
    return max((loss(a, b) for a, b in zip(exact, actual, strict=True)), default=0.0)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, f"*{p}*") for p in patterns)
