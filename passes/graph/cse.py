"""Common subexpression elimination."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from ...ir.graph.core import Graph, Node
from ...ir.graph.definition import lookup
from .base import Pass, register
from .rewrite import own_graphs


@register
@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """One node for equal operations on equal values; constants are compared by their bytes up to
    `max_constant_bytes`, above that by being the same memory."""

    name = "cse"
    max_constant_bytes: int = 1 << 16

    def run(self, graph: Graph) -> bool:
        modified = False
        for home in own_graphs(graph):
            seen: dict[Hashable, Node] = {}
            for node in home.ordered():
                if node.regions or not node.outputs or not is_pure(node.op):
                    continue
                key = (node.op, tuple(node.inputs), self._attributes(node))
                first = seen.setdefault(key, node)
                if first is node:
                    continue
                for old, new in zip(node.outputs, first.outputs, strict=True):
                    home.replace(old, new)
                home.erase(node)
                modified = True
        return modified

    def _attributes(self, node: Node) -> Hashable:
        if node.op != "constant":
            return attribute_key(node)
        array: np.ndarray = node.attrs["value"]
        if array.nbytes <= self.max_constant_bytes:
            return (array.dtype, array.shape, array.tobytes())
        return (array.dtype, array.shape, array.strides, array.__array_interface__["data"][0])


def is_pure(op: str) -> bool:
    """Whether equal operands always give equal results and nothing else happens."""
    return lookup(op).kind != "control" and not op.startswith("random")


def attribute_key(node: Node) -> Hashable:
    """The attributes as something to compare by; 1, 1.0 and True differ, and so do 0.0 and -0.0.
    """
    return tuple(sorted((k, _key(v)) for k, v in node.attrs.items()))


def _key(value) -> str:
    if isinstance(value, (tuple, list)):
        return "(" + ",".join(map(_key, value)) + ")"
    return f"{type(value).__name__}:{value!r}"
