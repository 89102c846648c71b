"""Estimates that steer fusion: operations per element, reads per operand, sizes of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ir.expr import Expr, Op, const, evaluate, free_vars, var, walk
from ...ir.graph.core import Dim, Graph, Node, TensorType
from ...ir.graph.definition import OpContext, lookup

_EXPENSIVE = {
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos",
                     "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "pow",
                     "atan2"), 16),
    **dict.fromkeys(("div", "sqrt", "rsqrt", "rem", "mod", "floordiv"), 4),
}
_TYPICAL = 128
"""What a size of unknown range is taken for."""


@dataclass(frozen=True)
class Profile:
    """Of one output element: `flops` (weighted operations), `divisions` of indices, and `reads`,
    the number of elements read from each operand."""

    flops: int
    divisions: int
    reads: tuple[float, ...]


class _Probe(OpContext):
    """Counts what a body reads, with the extents of the reductions around each load."""

    def __init__(self, node: Node, sizes: Sizes):
        super().__init__(node, None, self._count)
        self.sizes = sizes
        self.times = 1.0
        self.reads = [0.0] * len(node.inputs)
        self.indices: list[Expr] = []

    def _count(self, i: int, index: tuple[Expr, ...]) -> Expr:
        self.reads[i] += self.times
        self.indices.extend(index)
        # A variable stands for the element; equal indices give equal elements.
        return var(f"x{i}_{hash(index)}", self.type(i).dtype)

    def reduce(self, kind: str, extents: Any, body: Any) -> Expr:
        before = self.times
        for e in extents:
            self.times *= self.sizes.dim(e)
        try:
            return super().reduce(kind, extents, body)
        finally:
            self.times = before


class Sizes:
    """Numbers for the sizes of a graph: typical values where only a range is known."""

    def __init__(self, graph: Graph):
        self.ranges = graph.root.symbols
        self.profiles: dict[Node, Profile] = {}

    def dim(self, d: Dim) -> float:
        """A dimension as a number."""
        if not isinstance(d, Expr):
            return d
        return max(0, evaluate(d, {v.name: self._typical(v.name) for v in free_vars(d)}))

    def _typical(self, name: str) -> int:
        low, high = self.ranges.get(name, (0, None))
        return max(low, _TYPICAL if high is None else min(_TYPICAL, high))

    def numel(self, type: TensorType) -> float:
        """The number of elements, at least 1."""
        total = 1.0
        for d in type.shape:
            total *= self.dim(d)
        return max(total, 1.0)

    def profile(self, node: Node) -> Profile:
        """The profile of a node with a body."""
        found = self.profiles.get(node)
        if found is None:
            found = self.profiles[node] = self._measure(node)
        return found

    def amplification(self, node: Node, i: int) -> float:
        """How often the node reads each element of operand `i`, on average."""
        if node.op in ("concat", "pad", "slice"):
            return 1.0
        value = node.inputs[i]
        assert value is not None
        reads = self.profile(node).reads[i] * self.numel(node.output.type)
        return reads / self.numel(value.type)

    def _measure(self, node: Node) -> Profile:
        body = lookup(node.op).body_of(0)
        assert body is not None
        probe = _Probe(node, self)
        index = tuple(const(0) if d == 1 else var(f"i{a}", extent=d)
                      for a, d in enumerate(node.output.shape))
        root = body(probe, index)
        flops = sum(_EXPENSIVE.get(e.name, 1) for e in walk(root) if isinstance(e, Op))
        divisions = sum(e.name in ("floordiv", "mod") for e in walk(*probe.indices)
                        if isinstance(e, Op))
        return Profile(flops, divisions, tuple(probe.reads))
