"""Rows on a GPU: softmax and normalisations with a block of threads for each row.

The templates are those of `rows`; here, a visit of a row is shared by the threads of a block, each
taking every n-th element, and a statistic is combined through shared memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from ...ir.expr import REDUCTIONS, Expr, const, op, wrap
from ...ir.graph.core import Node
from ...ir.graph.ops.shapes import unflatten
from ...ir.kernel.nodes import Buffer
from ..lower.generic import Group
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering, Rule
from ..lower.visits import Part, Statistic, Visits
from .gemm import finish, operands
from .gpu import GpuLimits, blocks
from .row_walk import Walk
from .rows import TEMPLATES, WORK, OtherIndex, plan_rows, row_anchor, row_rule, spill_buffer

SHORT = 32
"""Elements of a row that one thread takes alone."""


@dataclass(eq=False)
class Shared(Visits):
    """A range visited by `threads` threads (a power of two), of which `thread` is the number;
    `partial` is shared memory of one element for each."""

    thread: Expr = const(0)
    threads: int = 1
    partial: Buffer | None = None

    @property
    def slots(self) -> int:
        return 1

    def visit(self, body: Callable[[Part], None]) -> None:
        b, extents = self.b, [wrap(v.extent) for v in self.variables]
        total = const(1)
        for e in extents:
            total = total * e
        with b.loop("r", (total + (self.threads - 1)) // self.threads) as r:
            i = b.let("i", r * self.threads + self.thread)
            with b.when(i < total):
                index = [b.let("i", x) for x in unflatten(i, extents)]
                mapping: dict[Expr, Expr] = dict(zip(self.variables, index, strict=True))
                body(Part(mapping, index[-1], 1, None, 0))

    def _combined(self, kind: str, accumulators: list[Expr]) -> Statistic:
        """A tree: in each round, the lower half of the threads add what the upper half has."""
        b, partial, t = self.b, self.partial, self.thread
        assert partial is not None
        b.store(partial, t, accumulators[0])
        b.barrier()
        half = self.threads // 2
        while half:
            with b.when(t < half):
                b.store(partial, t, op(REDUCTIONS[kind], partial[t], partial[t + half]))
            b.barrier()
            half //= 2
        result = b.let("s", partial[0])
        b.barrier()  # the next statistic takes the same memory
        return Statistic((result,))


def gpu_row_rules(limits: GpuLimits) -> tuple[Rule, ...]:
    """The rules for rows: long ones by a block of threads, short ones by a thread each."""

    def long_rows(low: Lowering, node: Node) -> bool:
        group = Group(node)
        root = row_anchor(group)
        if root is None:
            return False
        ops = operands(low, group, root.op, set(group.inputs))
        try:
            plan = plan_rows(group, root, ops)
        except OtherIndex:
            return False
        space = plan.space
        length = prod(v.extent if isinstance(v.extent, int) else limits.threads
                      for v in space.row)
        if length < SHORT:
            return False
        threads = min(limits.threads, 1 << (length.bit_length() - 1))
        b, wide = ops.b, space.result.dtype
        spill = spill_buffer(low, ops, root, wide)
        rows = [wrap(v.extent) for v in plan.rows]
        count = const(1)
        for e in rows:
            count = count * e
        with blocks(b, count, limits) as row:
            partial = b.alloc("partial", wide, (threads,), "shared")
            with b.loop("thread", threads, "block.x") as t:
                index = [b.let("row", x) for x in unflatten(row, rows)]
                at: dict[Expr, Expr] = dict(zip(plan.rows, index, strict=True))
                visits = Shared(b, 1, space.row, False, t, threads, partial)
                walk = Walk(b, LoopWriter(b, low.machine), space.at(at), visits, wide, spill)
                TEMPLATES[root.op](walk, root, True)
        finish(low, node, ops, wrap(root.output.type.numel) * WORK[root.op])
        return True

    return long_rows, row_rule
