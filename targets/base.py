"""What every target provides: a name, capabilities, and `build`, from graph to artifact files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import TargetError
from ..ir.graph.core import Graph
from ..ir.program import Program

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


def silent(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True)
class BuildOptions:
    """Options that every target understands. `optimize` is the C compiler's level (0-3), `exact`
    forbids approximate algorithms, `precision` is what contractions of f32 take ("f32", or "bf16"
    with sums in f32), `threads` False leaves all synchronisation out, `name` is the
    model's C identifier prefix. `extra` holds what single targets know: "profile": "true" makes a
    cpu library that counts the seconds of every kernel."""

    name: str = "model"
    optimize: int = 2
    exact: bool = False
    precision: str = "f32"
    threads: bool = True
    passes: str | None = None
    states: tuple[tuple[str, str], ...] = ()
    extra: dict[str, str] = field(default_factory=dict)


@dataclass
class Build:
    """A compiled model before it is packed: manifest entries, files by artifact-relative name
    (bytes, or the path of a file to copy), the program, and the pass and memory reports."""

    manifest: dict[str, Any]
    files: dict[str, bytes | Path]
    program: Program
    graph: Graph
    reports: dict[str, Any] = field(default_factory=dict)


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
    from . import cpu  # noqa: F401  (registers itself)

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
