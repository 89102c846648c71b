"""Importers by operator: a function per ONNX operator that adds core operators to the graph.

    @importer("Add", "Sub", "Mul")
    def arithmetic(c: Site):
        return c.add(c.op_type.lower(), [c.input(0), c.input(1)])

The importer with the highest `since` not above the model's opset is used. It returns one value or
a sequence with one entry per ONNX output (None for an output nobody may use).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import ModelError
from ...ir.expr import Expr
from ...ir.graph.core import Dim, Graph, Value

Result = Value | Sequence[Any]
Importer = Callable[["Site"], Result]


class Site:
    """One ONNX node being imported into `graph`.

    `inputs` are core values (None where absent); `attrs` are Python values (strings decoded,
    tensors as numpy arrays, graphs as GraphProto); `opset` is the version of the node's domain.
    `importer` is the running model import (regions, functions).
    """

    def __init__(self, graph: Graph, op_type: str, domain: str, opset: int, origin: str,
                 inputs: list[Value | None], attrs: dict[str, Any], outputs: int, importer: Any):
        self.graph = graph
        self.op_type = op_type
        self.domain = domain
        self.opset = opset
        self.origin = origin
        self.inputs = inputs
        self.attrs = attrs
        self.outputs = outputs
        self.importer = importer

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    def input(self, i: int) -> Value:
        """Input `i`, which must be present."""
        value = self.inputs[i] if i < len(self.inputs) else None
        if value is None:
            raise self.error(f"input {i} is missing")
        return value

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute; a default that is a float is one of ONNX, which are of 32 bits."""
        value = self.attrs.get(name, default)
        return float(np.float32(value)) if isinstance(value, float) else value

    def add(self, op: str, inputs: Sequence[Value | None] = (), attrs: dict | None = None,
            **more: Any) -> Value:
        """Adds a core operator and returns its first output."""
        return self.graph.add(op, inputs, {**(attrs or {}), **more}, origin=self.origin)

    def add_multi(self, op: str, inputs: Sequence[Value | None] = (), attrs: dict | None = None,
                  **more: Any) -> list[Value]:
        """Adds a core operator and returns all its outputs."""
        node = self.graph.add_node(op, inputs, {**(attrs or {}), **more}, origin=self.origin)
        return node.outputs

    def constant(self, array, dtype=None) -> Value:
        return self.graph.constant(array, dtype=dtype)

    def known(self, i: int) -> np.ndarray | None:
        """The elements of input `i` when they are known numbers at compile time, else None."""
        from ...ir.expr import Const

        value = self.inputs[i] if i < len(self.inputs) else None
        if value is None:
            return None
        if value.constant is not None:
            return value.constant
        if value.content is not None and all(isinstance(e, Const) for e in value.content.flat):
            flat = [e.value for e in value.content.flat]
            return np.array(flat, value.dtype.numpy).reshape(value.content.shape)
        return None

    def dims(self, value: Value) -> tuple[Dim, ...]:
        """The elements of an integer tensor as dimensions (new sizes if only data tells)."""
        return self.graph.bind(value, self.origin)

    def require(self, condition: Expr) -> None:
        """States what sizes must satisfy at run time."""
        self.graph.require(condition, self.origin)

    def error(self, message: str) -> ModelError:
        return ModelError(f"{self.origin}: {message}")


_IMPORTERS: dict[tuple[str, str], list[tuple[int, Importer]]] = {}
_REFUSALS: set[Importer] = set()


def importer(*names: str, since: int = 1, domain: str = "") -> Callable[[Importer], Importer]:
    """Registers an importer for ONNX operators from opset version `since` on."""

    def register(function: Importer) -> Importer:
        for name in names:
            entries = _IMPORTERS.setdefault((domain, name), [])
            if any(v == since for v, _ in entries):
                raise ValueError(f"{domain}::{name} since {since} has two importers")
            entries.append((since, function))
            entries.sort(key=lambda e: e[0])
        return function

    return register


def refuse(*names: str, because: str, domain: str = "", since: int = 1) -> None:
    """Registers operators that no compiled model can have: "<operator> <because>" says why."""

    def refusal(c: Site) -> Result:
        raise c.error(f"{c.op_type} {because}")

    importer(*names, since=since, domain=domain)(refusal)
    _REFUSALS.add(refusal)


def find(domain: str, name: str, opset: int) -> Importer | None:
    """The importer for an operator at an opset version, or None."""
    best = None
    for since, function in _IMPORTERS.get(("" if domain == "ai.onnx" else domain, name), ()):
        if since <= opset:
            best = function
    return best


def supported() -> dict[tuple[str, str], list[int]]:
    """All (domain, operator) pairs with the versions at which their import changes."""
    found = {key: [v for v, function in entries if function not in _REFUSALS]
             for key, entries in sorted(_IMPORTERS.items())}
    return {key: versions for key, versions in found.items() if versions}
