"""What every target provides: a name, capabilities, and `build`, from graph to artifact files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import TargetError
from ..ir.expr import text
from ..ir.graph.core import Graph
from ..ir.program import Program, Storage
from ..passes.plan import Lifetime
from .records import NO_RECORDS, Records

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


def silent(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True)
class BuildOptions:
    """Options that every target understands. `optimize` is the C compiler's level (0-3), `exact`
    forbids approximate algorithms, `precision` is what contractions of f32 take ("f32"; "bf16" with
    sums in f32, but for products of the origins `keep`; "bf16-storage" or "f16-storage": f32, with
    constant weights kept in 16 bits), `threads` False leaves all synchronisation out, `name` is the
    model's C identifier prefix. `records` hold decisions made by measuring. `extra` holds what
    single targets know: "profile": "true" makes a cpu library that counts the seconds of every
    kernel."""

    name: str = "model"
    optimize: int = 2
    exact: bool = False
    precision: str = "f32"
    keep: tuple[str, ...] = ()
    threads: bool = True
    passes: str | None = None
    states: tuple[tuple[str, str], ...] = ()
    records: Records = NO_RECORDS
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def storage(self) -> str:
        """The type that constant weights of f32 are kept in; "" is theirs."""
        kind, _, storage = self.precision.partition("-")
        return kind if storage else ""


@dataclass
class Build:
    """A compiled model before it is packed: manifest entries, files by artifact-relative name
    (bytes, or the path of a file to copy), the program, and the pass and memory reports."""

    manifest: dict[str, Any]
    files: dict[str, bytes | Path]
    program: Program
    graph: Graph
    reports: dict[str, Any] = field(default_factory=dict)


def describe_program(program: Program, target: str, options: BuildOptions) -> dict[str, Any]:
    """The manifest's entries that every artifact has: name, target, signature, states, kernels."""
    def tensor(storage: Storage) -> dict[str, Any]:
        return {"name": storage.name, "dtype": storage.type.dtype.name,
                "shape": [text(d) for d in storage.type.shape]}

    return {
        "name": options.name, "target": target,
        "signature": {"inputs": [tensor(s) for s in program.inputs],
                      "outputs": [tensor(s) for s in program.outputs],
                      "sizes": {n: list(r) for n, r in program.symbols.items()}},
        "states": [list(s) for s in options.states],
        "kernels": [{"name": k.name, "origin": k.origin, "flops": text(k.flops),
                     "bytes": text(k.bytes)} for k in program.kernels()],
    }


def memory_report(program: Program, lifetimes: Sequence[Lifetime]) -> list[dict[str, Any]]:
    """The temporaries with their lifetimes, sizes and places, for people."""
    return [{"name": x.storage.name, "type": repr(x.storage.type), "first": x.first,
             "last": x.last, "offset": x.storage.offset,
             "bytes": text(x.storage.type.numel * x.storage.type.dtype.itemsize)}
            for x in lifetimes]


class Target(Protocol):
    """A target such as cpu:x86-64-v3, made from its name by `find_target`."""

    name: str

    def build(self, graph: Graph, options: BuildOptions, progress: Progress = silent) -> Build:
        """Compiles an imported graph. Raises TargetError when a toolchain is missing or fails,
        ModelError when the model needs what the target lacks."""
        ...

    def describe(self) -> dict[str, Any]:
        """Capabilities and toolchain as shown by `smelt targets`."""
        ...


_FAMILIES: dict[str, Callable[[str], Target]] = {}


def register(family: str, make: Callable[[str], Target]) -> None:
    """Adds a family of targets; `make` receives the text after the colon ("" when absent)."""
    _FAMILIES[family] = make


def families() -> dict[str, Callable[[str], Target]]:
    """The registered families by name."""
    from . import cpu, cuda, fpga, webgpu  # noqa: F401  (register themselves)

    return dict(sorted(_FAMILIES.items()))


def find_target(spec: str) -> Target:
    """The target called `spec`, such as "cpu", "cpu:x86-64-v3+x86-64-v4" or "cpu:generic".

    Raises TargetError naming the known families when it is unknown.
    """
    family, _, variant = spec.partition(":")
    known = families()
    if family not in known:
        raise TargetError(f"unknown target {spec!r}: use one of {', '.join(known)}")
    return known[family](variant)
