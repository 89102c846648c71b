"""A model that runs, wherever it comes from: an artifact as it is, a model compiled first."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .compilation import Request, through_cache
from .errors import ArtifactError, ModelError
from .ir import dtype as dt
from .signature import Spec, by_compiler_names, check_sizes, names_in

Progress = Callable[[str, int, int], None]


@dataclass
class Runnable:
    """`run` takes and gives arrays by name. `sizes` maps names of open sizes to the model's own
    names for them."""

    path: Path
    module: Any
    inputs: list[Spec]
    outputs: list[Spec]
    sizes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for inputs by name. Raises InputError."""
        return self.module.run(inputs)

    def dims(self, given: Mapping[str, int]) -> dict[str, int]:
        """Sizes by the names that `inputs` use, from sizes by either name."""
        return by_compiler_names(given, self.sizes)


def is_artifact(path: Path) -> bool:
    """Whether the path is a compiled model rather than a model."""
    return path.is_dir() or (path.is_file() and zipfile.is_zipfile(path)
                             and path.suffix not in (".pt2", ".onnx"))


def open_artifact_at(path: Path, threads: int | None = None,
                     verify: bool | None = None) -> Runnable:
    """Loads an artifact; `verify` as of `open_artifact`. Raises ArtifactError."""
    from .inspect_model import read_report
    from .runtime import load

    module = load(path, threads=threads, verify=verify)
    try:
        sizes = read_report(path).get("sizes") or {}
    except ArtifactError:  # made without the command line: sizes keep the compiler's names
        sizes = {}
    return Runnable(path, module, _specs(module.inputs), _specs(module.outputs), sizes)


def open_runnable(source: Any, request: Request, threads: int | None = None,
                  progress: Progress | None = None) -> Runnable:
    """Loads an artifact, or compiles a model as `request` says (through the cache) and loads it."""
    if isinstance(source, (str, Path)):
        if not Path(source).exists():
            raise ModelError(f"there is no model or compiled model at {str(source)!r}")
        if is_artifact(Path(source)):
            ready = open_artifact_at(Path(source), threads)
            own = {n: n for s in ready.inputs for d in s.dims for n in names_in(d)}
            check_sizes(request.dims or {}, ready.sizes or own)
            return ready
    result, compiled = through_cache(request,
                                     lambda cached: open_artifact_at(cached, threads),
                                     progress=progress)
    result.seconds = compiled.seconds
    return result


def _specs(found: Any) -> list[Spec]:
    return [Spec(s.name, dt.dtype(s.dtype), tuple(s.shape)) for s in found]
