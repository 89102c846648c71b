"""Patterns over values, for recognising operators that were written out.

    x, eps = Any("x"), Number("eps")
    square = Op("mul", x, x)
    root = Op("rsqrt", Op("add", Op("reduce_mean", square, name="mean"), eps))
    found = match(value, root)       # {"x": Value, "eps": 1e-5, "mean": Node} or None

The same name stands for the same value everywhere. Operands of commutative operators match in
either order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any as Anything

from ...ir.graph.core import Node, Value
from .rewrite import is_returned, scalar

Found = dict[str, Anything]
_COMMUTATIVE = ("add", "mul", "min", "max", "and", "or")


class Pattern:
    """Base of patterns; `find(value, found)` yields every way to match."""

    def find(self, value: Value | None, found: Found):
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Any(Pattern):
    """Any value, under a name."""

    name: str
    test: Callable[[Value], bool] | None = None

    def find(self, value: Value | None, found: Found):
        if value is None or found.get(self.name, value) is not value:
            return
        if self.test is None or self.test(value):
            yield {**found, self.name: value}


@dataclass(frozen=True, eq=False)
class Number(Pattern):
    """A constant all of whose elements are one number (`value`, when given, up to rounding)."""

    name: str = ""
    value: float | None = None

    def find(self, value: Value | None, found: Found):
        number = scalar(value)
        if number is None:
            return
        if self.value is not None and abs(number - self.value) > 1e-3 * abs(self.value):
            return
        yield {**found, self.name: float(number)} if self.name else found


@dataclass(frozen=True, eq=False)
class Op(Pattern):
    """A node of operator `op` (or of one of several) on these operands; trailing operands that
    the node has besides must be absent. `name` captures the node."""

    op: str | tuple[str, ...]
    args: tuple[Pattern, ...]
    name: str = ""
    test: Callable[[Node], bool] | None = None

    def __init__(self, op: str | tuple[str, ...], *args: Pattern, name: str = "",
                 test: Callable[[Node], bool] | None = None):
        object.__setattr__(self, "op", op)
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "test", test)

    def find(self, value: Value | None, found: Found):
        node = value.node if value is not None else None
        if node is None or node.op not in ((self.op,) if isinstance(self.op, str) else self.op):
            return
        if len(node.outputs) != 1 or self.test is not None and not self.test(node):
            return
        if any(v is not None for v in node.inputs[len(self.args):]) \
                or len(node.inputs) < len(self.args):
            return
        if self.name:
            if found.get(self.name, node) is not node:
                return
            found = {**found, self.name: node}
        orders = [node.inputs]
        if node.op in _COMMUTATIVE and len(self.args) == 2:
            orders.append(node.inputs[::-1])
        for inputs in orders:
            yield from _all(self.args, inputs, found)


@dataclass(frozen=True, eq=False)
class Either(Pattern):
    """The first of several patterns that lead to a match."""

    choices: tuple[Pattern, ...]

    def __init__(self, *choices: Pattern):
        object.__setattr__(self, "choices", choices)

    def find(self, value: Value | None, found: Found):
        for choice in self.choices:
            yield from choice.find(value, found)


def _all(patterns, values, found: Found):
    if not patterns:
        yield found
        return
    for first in patterns[0].find(values[0], found):
        yield from _all(patterns[1:], values[1:], first)


def match(value: Value | None, pattern: Pattern) -> Found | None:
    """What the names of the pattern stand for in its first match."""
    return next(pattern.find(value, {}), None)


def private(root: Node, leaves: set[Value]) -> bool:
    """Whether only `root` needs what lies between it and the leaves, so that it dies with it."""
    inside: dict[Node, None] = {root: None}
    stack = [root]
    while stack:
        node = stack.pop()
        for value in node.inputs:
            made = value.node if value is not None else None
            if made is None or value in leaves or made.op == "constant" or made in inside:
                continue
            inside[made] = None
            stack.append(made)
    return all(not is_returned(v) and all(u in inside for u in v.users)
               for n in inside if n is not root for v in n.outputs)
