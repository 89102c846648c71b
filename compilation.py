"""From a source and options to an artifact, through a cache of whole models.

A cached model is a folder named by the hash of everything it depends on: the model's bytes, its
external data (size and time of change), every option, this version of smelt and, for targets
that follow the machine, the machine. It appears by one rename, so processes may compile the same
model at the same time, and an interrupted one leaves nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import __version__, config, object_cache
from .errors import ArtifactError, ModelError, OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from .compression import Compression
    from .ir.graph.core import Graph
    from .targets.base import Build, BuildOptions, Target
    from .targets.records import Records

Progress = Callable[[str, int, int], None]
Used = TypeVar("Used")
Packed = tuple[dict[str, Any], dict[str, bytes | Path]]
"""A manifest and files by name."""

PRECISIONS = ("f32", "bf16", "bf16-storage", "f16-storage")
"""What contractions of f32 may take; sums are f32 in all of them."""
BF16_ACCURACY = 0.999
"""The least cosine of an output with bf16 where none is asked for."""
REPORT = "report.json"
"""The artifact's file with what `smelt inspect` shows."""
CACHE_LIMIT = 4_000_000_000
"""Bytes of cached models; beyond, the ones not used for longest are removed."""
SOURCES = ("py", "c", "cpp", "h", "hpp", "sv", "mjs", "mts", "css", "json", "html")
"""Endings of smelt's own files that what it compiles depends on."""
STALE_SECONDS = 24 * 3600
"""Unfinished folders older than this belong to processes that were killed."""


@dataclass(frozen=True)
class Compiled:
    """Where an artifact is, and whether it came from the cache; `note` is a sentence about what
    did not go as usual."""

    path: Path
    cached: bool
    seconds: float
    note: str = ""


class CacheError(OutputError):
    """The cache cannot be written; `packed` is what should have gone there."""

    def __init__(self, models: Path, why: str, packed: Packed):
        super().__init__(f"the cache folder {str(models)!r} cannot be written ({why}): set "
                         f"SMELT_CACHE to another, or do without the cache")
        self.packed = packed


@dataclass(frozen=True, eq=False)
class Request:
    """What to compile and how; parameters as of `smelt.compile`, and `records` of measured plans.
    """

    source: Any
    target: str = "cpu"
    shapes: Mapping[str, Sequence[int | str]] | None = None
    dims: Mapping[str, int] | None = None
    fixed: Mapping[str, np.ndarray] | None = None
    threads: bool = True
    optimize: int = 2
    exact: bool = False
    precision: str = "f32"
    accuracy: float | None = None
    passes: str | None = None
    states: tuple[tuple[str, str], ...] = ()
    name: str = "model"
    extra: Mapping[str, str] | None = None
    compression: Compression | None = None
    records: Records | None = None

    def __post_init__(self) -> None:
        if self.optimize not in (0, 1, 2, 3):
            raise UsageError(f"optimize is {self.optimize!r}: use 0, 1, 2 or 3")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision is {self.precision!r}: use {', '.join(PRECISIONS[:-1])} "
                             f"or {PRECISIONS[-1]}")
        if self.accuracy is not None and not 0 <= self.accuracy < 1:
            raise UsageError(f"accuracy is {self.accuracy!r}: it is the least cosine to f32 of an "
                             f"output, a number from 0 to below 1; 0 measures nothing")
        if not (self.name.isascii() and self.name.isidentifier()):
            raise UsageError(f"name is {self.name!r}: use letters, digits and _, for C names "
                             f"begin with it")

    @cached_property
    def model(self) -> str | Path | bytes | Any:
        """The source as the ONNX frontend takes it; torch programs are exported first."""
        return as_onnx(self.source)

    @cached_property
    def label(self) -> str:
        """What the model is called in reports."""
        for given in (self.source, self.model):
            if isinstance(given, (str, os.PathLike)):
                return Path(given).name
        return "model"

    def graph(self) -> Graph:
        """Imports the model, without optimising it."""
        from .frontend.onnx.loader import load_model

        return load_model(self.model, shapes=self.shapes, dims=self.dims, fixed=self.fixed)

    def options(self) -> Any:
        from .targets.base import BuildOptions
        from .targets.records import NO_RECORDS

        return BuildOptions(name=self.name, optimize=self.optimize, exact=self.exact,
                            precision=self.precision, threads=self.threads,
                            passes=self.passes, states=self.states,
                            records=self.records or NO_RECORDS, extra=dict(self.extra or {}))

    def build(self, progress: Progress | None = None) -> Build:
        """Imports and compiles. Raises ModelError, TargetError or UsageError."""
        from .targets.base import find_target, silent

        progress = progress or silent
        target = find_target(self.target)
        progress("reading the model", 0, 1)
        graph = self.graph()
        self._check_states(graph)
        compressed = self.compression.apply(graph, progress) if self.compression else None
        with object_cache.in_use():
            options, chosen = self._with_accuracy(target, graph, progress)
            built = target.build(graph, options, progress)
        object_cache.prune()
        if compressed is not None:
            built.reports["compression"] = compressed
        if chosen is not None:
            built.reports["precision"] = chosen
        return built

    def _with_accuracy(self, target: Target, graph: Graph, progress: Progress,
                       ) -> tuple[BuildOptions, dict[str, Any] | None]:
        """The target's options, with the products that bf16 is not accurate enough for, and what
        was measured to find them."""
        from .precision import choose_products
        from .targets.cpu.target import CpuTarget, check_precision

        options = self.options()
        accuracy = BF16_ACCURACY if self.accuracy is None else self.accuracy
        if self.precision != "bf16" or not accuracy or self.passes \
                or not isinstance(target, CpuTarget):
            return options, None
        check_precision(target.variants, options)
        choice = choose_products(graph, target.pass_options(options), accuracy, progress)
        return replace(options, keep=choice.keep), choice.as_dict()

    def _check_states(self, graph: Graph) -> None:
        names = list(graph.output_names) or [v.name for v in graph.outputs]
        outputs = dict(zip(names, graph.outputs))
        inputs = {v.name: v for v in graph.inputs}
        for out, into in self.states:
            for kind, name, known in (("output", out, outputs), ("input", into, inputs)):
                if name not in known:
                    raise UsageError(f"state {out}:{into}: the model has no {kind} {name!r}; it "
                                     f"has {', '.join(map(repr, known)) or 'none'}")
            a, b = outputs[out], inputs[into]
            if a.dtype is not b.dtype or a.rank != b.rank:
                raise UsageError(f"state {out}:{into}: the output is {a.type}, the input "
                                 f"{b.type}")
        fed = [into for _, into in self.states]
        if len(set(fed)) < len(fed):
            raise UsageError("states: an input is fed by two outputs")

    def key(self) -> str:
        """The hash that names the result in the cache."""
        h = hashlib.blake2b(digest_size=20)

        def add(*parts: Any) -> None:
            for part in parts:
                data = part if isinstance(part, bytes) else repr(part).encode()
                h.update(len(data).to_bytes(8, "little"))
                h.update(data)

        add(_toolchain_version(), self.target)
        if ":" not in self.target or self.target.endswith(("native", ":emulated")):
            add(_machine())
        add(self.threads, self.optimize, self.exact, self.precision, self.accuracy, self.passes,
            self.states, self.name)
        add(self.records.digest() if self.records else "")
        add(sorted((k, tuple(v)) for k, v in (self.shapes or {}).items()))
        add(sorted((self.dims or {}).items()), sorted((self.extra or {}).items()))
        for value in (self.extra or {}).values():
            if os.path.isfile(value):  # such as samples: what is in it counts
                add(Path(value).read_bytes())
        if self.compression is not None:
            add(self.compression.key())
        for name, array in sorted((self.fixed or {}).items()):
            import numpy as np

            array = np.ascontiguousarray(array)
            add(name, array.dtype.str, array.shape, array.tobytes())
        data, folder = _bytes_of(self.model)
        add(data)
        add(_external_state(data, folder))
        return h.hexdigest()


def as_onnx(source: Any) -> Any:
    """`source` as the ONNX frontend takes it: torch programs are exported, compiled models refused.
    """
    if isinstance(source, (str, os.PathLike)):
        from .running import is_artifact

        path = Path(source)
        if is_artifact(path) and (path.is_file() or (path / "manifest.json").is_file()):
            raise ModelError(f"{str(path)!r} is a compiled model: give the model that it was made "
                             f"from")
        is_torch = path.suffix == ".pt2"
    else:
        is_torch = type(source).__module__.partition(".")[0] == "torch" or hasattr(
            source, "named_parameters")
    if isinstance(source, tuple) and len(source) == 2:
        from .frontend.torch import export

        return export(source[0], source[1])
    if is_torch:
        from .frontend.torch import export

        return export(source)
    return source


def compile_into(request: Request, output: Path, *, cache: bool = True,
                 progress: Progress | None = None) -> Compiled:
    """Compiles into a folder (or .zip) of the caller's. Raises OutputError as well."""
    from .runtime.artifact import open_artifact, write_artifact

    start = time.perf_counter()
    check_writable(output)
    note = ""
    if cache:
        try:
            _, found = through_cache(request, lambda path: open_artifact(path).save(output),
                                     progress=progress)
            return Compiled(output, found.cached, time.perf_counter() - start)
        except CacheError as error:
            packed, note = error.packed, str(error)
    else:
        packed = _packed(request, progress)
    write_artifact(output, *packed)
    return Compiled(output, False, time.perf_counter() - start, note)


def compile_to_cache(request: Request, *, progress: Progress | None = None) -> Compiled:
    """Compiles into the cache, or finds it there."""
    from .runtime.artifact import write_artifact

    start = time.perf_counter()
    models = config.cache_dir() / "models"
    entry = models / f"{request.key()}.smelt"
    if (entry / "manifest.json").is_file():
        with contextlib.suppress(OSError):
            os.utime(entry)
        return Compiled(entry, True, time.perf_counter() - start)
    partial = models / f".partial-{secrets.token_hex(8)}"
    packed = _packed(request, progress)
    try:
        partial.mkdir(parents=True)
        write_artifact(partial / "model.smelt", *packed)
        try:
            os.rename(partial / "model.smelt", entry)
        except OSError:
            if not (entry / "manifest.json").is_file():  # else another process was first
                raise
    except (OSError, OutputError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        raise CacheError(models, getattr(cause, "strerror", None) or str(error), packed) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _prune(models, entry)
    return Compiled(entry, False, time.perf_counter() - start)


def through_cache(request: Request, use: Callable[[Path], Used], *,
                  progress: Progress | None = None) -> tuple[Used, Compiled]:
    """What `use` makes of the cached model; a damaged one is compiled again."""
    found = compile_to_cache(request, progress=progress)
    try:
        return use(found.path), found
    except ArtifactError:
        if not found.cached:
            raise
    shutil.rmtree(found.path, ignore_errors=True)
    found = compile_to_cache(request, progress=progress)
    return use(found.path), found


def _packed(request: Request, progress: Progress | None) -> Packed:
    """Manifest and files of a fresh build, with the report that `inspect` shows."""
    from .inspect_model import describe_build

    built = request.build(progress)
    report = describe_build(built, request.label, request.target)
    files = {**built.files, REPORT: json.dumps(report, sort_keys=True, indent=1).encode()}
    return built.manifest, files


def check_writable(output: Path) -> None:
    """Raises OutputError when nothing can be written at `output`: before the work, not after."""
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{str(folder)!r} is a file, not a folder to write {output.name!r} to")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {str(folder)!r} is read-only: choose another output")
    if output.is_dir() and any(output.iterdir()) and not (output / "manifest.json").is_file():
        raise OutputError(f"{str(output)!r} is a folder with other files: choose another output")


def _prune(models: Path, keep: Path) -> None:
    """Removes what killed processes left, and the oldest models beyond the limit."""
    now, held = time.time(), []
    with contextlib.suppress(OSError):
        for path in models.iterdir():
            with contextlib.suppress(OSError):
                age = now - path.stat().st_mtime
                if path.name.startswith(".partial-"):
                    if age > STALE_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
                elif path != keep:
                    size = sum(p.stat().st_size for p in path.rglob("*"))
                    held.append((age, size, path))
    total = sum(size for _, size, _ in held)
    for _, size, path in sorted(held, reverse=True):
        if total <= CACHE_LIMIT:
            break
        shutil.rmtree(path, ignore_errors=True)
        total -= size


# What a result depends on ------------------------------------------------------------------------


@once
def _toolchain_version() -> str:
    """The version, and a fingerprint of the package's files: editable installs change."""
    root = Path(__file__).resolve().parent
    h = hashlib.blake2b(digest_size=16)
    for path, status in sorted(_sources(root), key=lambda entry: entry[0]):
        h.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return f"{__version__} {h.hexdigest()}"


def _sources(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    outside = {"tests", "docs", "examples", "bench", "build", "dist", "__pycache__"}
    stack = [str(root)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.name[0] == "." or entry.name in outside:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif entry.name.rpartition(".")[2] in SOURCES:
                    yield os.path.relpath(entry.path, root), entry.stat()


@once
def _machine() -> str:
    """The processor, as far as compiled code depends on it."""
    text = f"{platform.system()} {platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError):
        info = Path("/proc/cpuinfo").read_text()
        lines = [line for line in info.splitlines()
                 if line.startswith(("flags", "Features", "model name", "CPU part"))]
        text += "".join(sorted(set(lines)))
    return text


def _bytes_of(model: Any) -> tuple[bytes, Path | None]:
    """A model's bytes and the folder of its external data."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model), None
    if hasattr(model, "SerializeToString"):
        return model.SerializeToString(deterministic=True), None
    if not isinstance(model, (str, os.PathLike)):
        raise UsageError(f"a model is a path, bytes, a ModelProto or a torch program, not "
                         f"{type(model).__name__}")
    path = Path(model)
    try:
        if not path.is_file():
            raise ModelError(f"there is no model file at {str(path)!r}")
        return path.read_bytes(), path.parent
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {str(path)!r}: {error}") from None


def _external_state(data: bytes, folder: Path | None) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file of external data."""
    if folder is None or b"location" not in data:
        return []
    from .frontend.onnx.fixed import locations

    state = []
    for name in locations(data):
        with contextlib.suppress(OSError, ValueError):  # the importer says what is wrong with it
            status = (folder / name).stat()
            state.append((name, status.st_size, status.st_mtime_ns))
    return state
