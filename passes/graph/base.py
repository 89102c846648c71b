"""What a graph pass is, and flat pipelines of passes.

    @register
    @dataclass(frozen=True)
    class Fuse(Pass):
        name = "fuse"
        max_inputs: int = 24            # an option: fuse{max_inputs=8}

        def run(self, graph: Graph) -> bool: ...
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from ... import config
from ...errors import UsageError
from ...ir.graph.core import Graph
from ..dump import dump


@dataclass(frozen=True)
class Pass:
    """A rewrite of a graph and of the regions in it. The fields are its options.

    `run` changes the graph in place and returns whether it changed anything. `notes` collects
    sentences about what was decided and why, in order; it is cleared by `Pipeline`.
    """

    name: ClassVar[str] = ""
    notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def run(self, graph: Graph) -> bool:
        raise NotImplementedError

    @property
    def report(self) -> str:
        """The notes of the last run, one per line."""
        return "\n".join(self.notes)

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Option names with their defaults."""
        return {f.name: f.default for f in fields(cls) if f.init}

    def __str__(self) -> str:
        changed = [f"{k}={_option_text(getattr(self, k))}" for k, default in
                   self.options().items() if getattr(self, k) != default]
        return f"{self.name}{{{','.join(changed)}}}" if changed else self.name


_REGISTRY: dict[str, type[Pass]] = {}


P = TypeVar("P", bound=type[Pass])


def register(cls: P) -> P:
    """Makes a pass known to `parse_pass` under its name."""
    if not cls.name or cls.name in _REGISTRY:
        raise ValueError(f"{cls.__name__} needs a pass name of its own")
    _REGISTRY[cls.name] = cls
    return cls


def known_passes() -> dict[str, type[Pass]]:
    """All passes by name."""
    from ..dataflow import integer_form  # noqa: F401
    from . import pipeline  # noqa: F401  (imports every other pass)

    return dict(sorted(_REGISTRY.items()))


@dataclass(frozen=True)
class PassReport:
    """What one pass of a pipeline did: whether it changed anything, seconds, and its notes."""

    name: str
    modified: bool
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """Passes run one after another."""

    passes: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """A pipeline from "fold,cse,fuse{max_inputs=8}". Raises UsageError on unknown names."""
        return cls(tuple(parse_pass(item) for item in _split(text)))

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def run(self, graph: Graph) -> list[PassReport]:
        """Runs all passes; dumps and verifies as SMELT_DUMP and SMELT_VERIFY say."""
        reports: list[PassReport] = []
        for item in self.passes:
            item.notes.clear()
            start = time.perf_counter()
            modified = item.run(graph)
            reports.append(PassReport(str(item), modified, time.perf_counter() - start,
                                      tuple(item.notes)))
            if modified and config.dump_dir() is not None:
                dump(item.name, "ir", lambda: _text(graph))
            if config.verify_level() >= 2:
                _verify(graph, f"after pass {item}")
        if config.verify_level() == 1:
            _verify(graph, f"after passes {self}")
        return reports


def _text(graph: Graph) -> str:
    from ...ir.graph.text import print_graph

    return print_graph(graph, elide=16)


def _verify(graph: Graph, when: str) -> None:
    from ...ir.graph.verifier import verify

    verify(graph, when)


def parse_pass(text: str) -> Pass:
    """A pass from "name" or "name{option=value,...}"."""
    name, brace, rest = text.strip().partition("{")
    known = known_passes()
    if name not in known:
        raise UsageError(f"There is no pass {name!r}; there are {', '.join(known)}.")
    if brace and not rest.endswith("}"):
        raise UsageError(f"The options of pass {text!r} need a closing brace.")
    cls = known[name]
    chosen: dict[str, Any] = {}
    for item in _split(rest[:-1]) if brace else ():
        key, equals, value = item.partition("=")
        key = key.strip()
        if key not in cls.options() or not equals:
            have = ", ".join(cls.options()) or "none"
            raise UsageError(f"Pass {name} has no option {item!r}; its options: {have}.")
        chosen[key] = _option_value(name, key, value.strip(), cls.options()[key])
    return cls(**chosen)


def _option_value(name: str, key: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text]
        if isinstance(default, (int, float)):
            return type(default)(text)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "an integer"}.get(type(default), "a number")
        raise UsageError(f"Option {key} of pass {name} is {text!r}: use {kind}.") from None
    if isinstance(default, tuple):
        return tuple(text.split("+")) if text else ()
    return text


def _option_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _split(text: str) -> Iterator[str]:
    """The comma-separated items outside braces."""
    depth, item = 0, ""
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            yield item
            item = ""
        else:
            item += character
    if item.strip():
        yield item
