"""Quantisation as the face offers it: options, calibration data, and the report.

Calibration data are samples of a model's inputs, a folder of npz files or mappings from names to
arrays; the float model runs on them with the left operands of its products as outputs.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, UsageError
from .probe import runner

if TYPE_CHECKING:
    from .ir.graph.core import Graph, Value
    from .passes.compress.statistics import Statistics
    from .signature import Spec

Progress = Callable[[str, int, int], None]
Samples = str | Path | Iterable[Mapping[str, "np.ndarray"]]
Named = tuple[str, Mapping[str, "np.ndarray"]]
"""A sample, and what to call it in messages."""
Sample = tuple[str, Path | Mapping[str, "np.ndarray"]]
"""The same before it is read."""


@dataclass(frozen=True, eq=False)
class Compression:
    """How to quantise: a scheme such as "w4", "w4a8" or "int8", elements to a scale (None: as the
    scheme likes, 0: whole columns), the method (None: "gptq" with data, else "rtn") and samples. Of
    int8 alone, how ranges are chosen, and the least cosine of an output to that of floats for the
    samples (None: whatever it is)."""

    scheme: str
    group: int | None = None
    method: str | None = None
    data: Samples | None = None
    keep: Sequence[str] = ()
    ranges: str | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        from .passes.compress.scheme import STATIC, check_method, check_static, parse_scheme

        if self.scheme == STATIC:
            check_static(self.group, self.method, self.ranges, self.data is not None)
            return
        if self.ranges is not None:
            raise UsageError(f"ranges are chosen for {STATIC}, not for {self.scheme}")
        scheme = parse_scheme(self.scheme, self.group)
        if check_method(self.chosen, scheme) != "rtn" and self.data is None:
            raise UsageError(f"method {self.chosen} needs samples of the model's inputs: give "
                             f"data, a folder of npz files")

    @property
    def chosen(self) -> str:
        """The method."""
        from .passes.compress.scheme import STATIC

        if self.scheme == STATIC:
            return self.method or "rtn"
        return self.method or ("rtn" if self.data is None else "gptq")

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples as they were given, not yet read or checked. Raises InputError."""
        if self.data is None:
            return []
        if not isinstance(self.data, (str, Path)):
            return [(f"sample {k}", sample) for k, sample in enumerate(self.data)]
        folder = Path(self.data)
        files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
        if not files:
            raise InputError(f"there are no npz files in {str(folder)!r} to calibrate with")
        return [(file.name, file) for file in files]

    def key(self) -> bytes:
        """What a result depends on, as bytes."""
        options = repr((self.scheme, self.group, self.chosen, self.ranges, self.accuracy,
                        *self.keep))
        h = hashlib.blake2b(options.encode(), digest_size=20)
        for name, sample in self.samples:
            h.update(name.encode())
            if isinstance(sample, Path):
                h.update(sample.read_bytes())
                continue
            for key, array in sorted(sample.items()):
                array = np.asarray(array)
                h.update(f"{key} {array.dtype.str} {array.shape}".encode())
                h.update(np.ascontiguousarray(array).tobytes())
        return h.digest()

    def apply(self, graph: Graph, progress: Progress) -> dict[str, Any]:
        """Quantises an imported graph in place and returns the report. Raises InputError."""
        from .passes.compress.quantise import prepare, products, quantise
        from .passes.compress.scheme import STATIC, parse_scheme

        if self.scheme == STATIC:
            return self._static(graph, progress)
        scheme = parse_scheme(self.scheme, self.group)
        prepare(graph)
        lefts = [v for v in products(graph, scheme) if v.node is None or v.node.graph is graph]
        statistics: dict[Value, Statistics] = {}
        if self.data is not None:
            samples = read_samples(self.samples, graph)
            statistics = observe(graph, lefts, samples, progress)
        layers = quantise(graph, scheme, self.chosen, statistics, progress, self.keep)
        return {"scheme": self.scheme, "encoding": str(scheme.weights), "method": self.chosen,
                "samples": len(self.samples), "layers": [asdict(layer) for layer in layers],
                "dense": sum(layer.dense for layer in layers),
                "encoded": sum(layer.encoded for layer in layers)}


    def _static(self, graph: Graph, progress: Progress) -> dict[str, Any]:
        from .calibration import Static
        from .passes.compress.scheme import DEFAULT_RANGES

        static = Static(self.ranges or DEFAULT_RANGES, self.chosen == "smoothquant", self.keep,
                        self.accuracy, progress)
        return static.apply(graph, read_samples(self.samples, graph))


def read_samples(samples: Sequence[Sample], graph: Graph) -> list[Named]:
    """The samples as inputs of the graph. Raises InputError naming the sample, the input and what
    is wrong with it."""
    from .data import read_inputs
    from .signature import of_graph

    specs, _ = of_graph(graph)
    checked: list[Named] = []
    for name, given in samples:
        arrays = read_inputs([str(given)], specs) if isinstance(given, Path) else given
        sample = {key: np.asarray(array) for key, array in arrays.items()}
        for spec in specs:
            if spec.name not in sample:
                raise InputError(f"calibration data: {name} has no input {spec.name!r}")
            _check_array(name, spec, sample[spec.name])
        unknown = set(sample) - {s.name for s in specs}
        if unknown:
            raise InputError(f"calibration data: {name} has {min(unknown)!r}, which is no input of "
                             f"the model")
        checked.append((name, sample))
    return checked


def _check_array(name: str, spec: Spec, array: np.ndarray) -> None:
    where = f"calibration data: input {spec.name!r} of {name}"
    if array.dtype != spec.dtype.numpy:
        raise InputError(f"{where} is {array.dtype}, not {spec.dtype}")
    if array.ndim != len(spec.dims) or any(
            isinstance(d, int) and d != n for d, n in zip(spec.dims, array.shape, strict=True)):
        wanted = "x".join(map(str, spec.dims)) or "a scalar"
        raise InputError(f"{where} has the shape {'x'.join(map(str, array.shape))}, not {wanted}")
    if spec.dtype.is_float and not np.isfinite(array.astype(np.float64)).all():
        raise InputError(f"{where} holds NaN or infinities")


def observe(graph: Graph, values: Sequence[Value], samples: Sequence[Named],
            progress: Progress) -> dict[Value, Statistics]:
    """Statistics of values of a graph while the samples run through it."""
    from .ir.graph.clone import clone_graph
    from .passes.compress.statistics import Statistics

    found: dict[Value, Statistics] = {}
    for value in values:
        width = value.shape[-1]
        if isinstance(width, int):
            found[value] = Statistics(width)
    mapping: dict[Value, Value] = {}
    probe = clone_graph(graph, mapping)
    probe.outputs = [mapping[v] for v in found]
    probe.output_names = [f"observed{k}" for k in range(len(found))]
    with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
        run = runner(probe, Path(folder))
        for k, (name, sample) in enumerate(samples):
            progress("running the calibration data", k, len(samples))
            try:
                arrays = run(sample)
            except InputError as error:
                raise InputError(f"calibration data: {name}: {error}") from None
            for statistics, array in zip(found.values(), arrays, strict=True):
                statistics.update(array)
    return found
