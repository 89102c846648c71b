"""Writes a value of a fused group as one scalar expression of its index.

Inner values are inlined through the bodies of their operators; values from outside the group
become loads of flat buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import ModelError
from ...ir.expr import Expr, wrap
from ...ir.graph.core import Value
from ...ir.graph.definition import OpContext, lookup
from ...ir.graph.ops.shapes import flat_index
from ...ir.kernel.nodes import Buffer, load


class Inliner:
    """Expressions of values; `buffers` maps the values that are in memory to flat buffers, `known`
    those of one element to what is known of it, `hooks` those that a template computes to what
    stands for their element."""

    def __init__(self, buffers: dict[Value, Buffer]):
        self.buffers = buffers
        self.known: dict[Value, Expr] = {}
        self.hooks: dict[Value, Callable[[tuple[Expr, ...]], Expr]] = {}
        self._memo: dict[tuple[Value, tuple[Expr, ...]], Expr] = {}

    def at(self, value: Value, index: Sequence) -> Expr:
        """Element `index` of `value`. Raises ModelError when an operator has no body."""
        index = tuple(wrap(i) for i in index)
        key = (value, index)
        if key not in self._memo:
            self._memo[key] = self._build(value, index)
        return self._memo[key]

    def _build(self, value: Value, index: tuple[Expr, ...]) -> Expr:
        buffer = self.buffers.get(value)
        if buffer is not None:
            return load(buffer, (flat_index(index, value.shape),))
        if value in self.hooks:
            return self.hooks[value](index)
        if value in self.known:
            return self.known[value]
        if value.content is not None and value.type.numel == 1:
            return value.content.reshape(-1)[0]
        node = value.node
        if node is None:
            raise ModelError(f"{value!r} is read by a group that does not list it as an input")
        body = lookup(node.op).body_of(value.index)
        if body is None:
            raise ModelError(f"{node.origin or node.op}: operator {node.op} has no loop form")
        inputs = node.inputs

        def read(i: int, at: tuple[Expr, ...]) -> Expr:
            source = inputs[i]
            assert source is not None
            return self.at(source, at)

        return body(OpContext(node, None, read), index)
