"""The ends of every dense contraction: a register tile of accumulators, and the epilogue that
stores it."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import Expr, Op, Var, broadcast, cast, const, substitute, var, wrap
from ...ir.graph.core import Value
from ...ir.graph.ops.shapes import flat_index
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ..kernel.elementary import EXPANSIONS
from ..lower.inline import Inliner
from ..lower.loops import LoopWriter, value_nodes, vectorisable
from .tiles import Tile

EXPENSIVE = 20
"""Operations that an elementary function expands to."""


def accumulators(b: Builder, tile: Tile, lanes: int, dtype: DType = dt.f32) -> Buffer:
    """A register tile set to zero."""
    acc = b.alloc("acc", dtype, (tile.rows, tile.vectors), "register", lanes)
    zero = broadcast(const(0, dtype), lanes)
    for r in range(tile.rows):
        for v in range(tile.vectors):
            b.store(acc, (r, v), zero)
    return acc


class Epilogue:
    """What happens to a contraction's result before it is stored: the elementwise operators that
    follow it in the group, for each output of the group."""

    def __init__(self, root: Value, outputs: Sequence[Value], buffers: dict[Value, Buffer],
                 known: dict[Value, Expr], targets: Sequence[Buffer], writer: LoopWriter):
        self.root = root
        self.outputs = list(outputs)
        self.targets = list(targets)
        self.writer = writer
        self.element = var("result", root.dtype)
        self.inliner = Inliner(buffers)
        self.inliner.known.update(known)
        self.inliner.hooks[root] = lambda index: self.element

    def vectorisable(self) -> bool:
        """Whether lanes along the last axis can carry the whole epilogue."""
        shape = self.root.shape
        index = tuple(var(f"e{k}", extent=wrap(d)) for k, d in enumerate(shape))
        last = index[-1]
        for value in self.outputs:
            if value.rank != len(shape):
                return False
            e = self.inliner.at(value, index)
            # The placeholder stands for a load with unit stride.
            probe = substitute(e, {self.element: _probe_load(self.root.dtype, last)})
            if not vectorisable(probe, last):
                return False
        return True

    def length(self) -> int:
        """Machine operations of one vector, roughly."""
        index = tuple(var(f"e{k}", extent=wrap(d)) for k, d in enumerate(self.root.shape))
        count = 0
        for value in self.outputs:
            for e in value_nodes(self.inliner.at(value, index)):
                if isinstance(e, Op):
                    count += EXPENSIVE if e.name in EXPANSIONS else 1
        return count

    def store(self, index: Sequence[Expr], column: Var, base: Expr, lanes: int, result: Expr,
              count: Expr | None = None) -> None:
        """Stores `lanes` results for the output index whose last entry is base, base + 1, ..."""
        stored: dict[Value, Expr] = {}
        for value, target in zip(self.outputs, self.targets, strict=True):
            where = (*index[:-1], column)
            node = value.node
            if node is not None and node.op == "cast" and node.attrs["mode"] == "value" \
                    and node.inputs[0] in stored:
                out = stored[node.inputs[0]]  # it leaves in another type as well
            else:
                e = self.inliner.at(value, where)
                out = self.writer.value(e, column, lanes, base, count, {self.element: result})
                if len(self.outputs) > 1:
                    out = self.writer.b.let("y", broadcast(out, lanes))
                stored[value] = out
            position = flat_index((*index[:-1], base), value.shape)
            self.writer.b.store(target, (position,),
                                broadcast(cast(out, target.dtype), lanes), count)


def _probe_load(dtype: DType, last: Var) -> Expr:
    return load(Buffer("probe", dtype, (1 << 30,)), (last,))
