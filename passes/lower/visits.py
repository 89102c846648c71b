"""Visits of an index range, part by part, with the accumulators of statistics over it.

`Along` puts vector lanes along the innermost variable of the range, so a statistic is one number;
`Across` puts them across neighbouring ranges, so a statistic is a vector for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import (
    REDUCTIONS,
    Const,
    Expr,
    Var,
    broadcast,
    cast,
    const,
    identity_of,
    op,
    ramp,
    select,
    wrap,
)
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import horizontal

ACCUMULATORS = 4
"""Independent accumulators of a statistic: enough to hide the latency of an addition."""


@dataclass(frozen=True, eq=False)
class Part:
    """`lanes` elements of a range (or of `lanes` ranges) from `base` on, the first `count` of them
    when given; `mapping` places the variables that lanes do not stand for. `slot` numbers its
    accumulator, `key` its register when the range stays in registers."""

    mapping: dict[Expr, Expr]
    base: Expr
    lanes: int
    count: Expr | None
    slot: int
    key: tuple | None = None


@dataclass(frozen=True, eq=False)
class Statistic:
    """A number for each slot, or one for all."""

    values: tuple[Expr, ...]

    def of(self, part: Part) -> Expr:
        """The number that belongs to a part, in its lanes."""
        slot = part.slot if len(self.values) > 1 else 0
        return broadcast(self.values[slot], part.lanes)


@dataclass(eq=False)
class Visits:
    """Visits of the range of `variables`, innermost last. With `resident` all loops are unrolled,
    so that values of one visit can be kept for the next."""

    b: Builder
    lanes: int
    variables: list[Var]
    resident: bool = False

    masks: ClassVar[bool] = True  # whether lanes beyond a count must not reach a statistic

    @property
    def slots(self) -> int:
        """Number of accumulators of a statistic."""
        raise NotImplementedError

    def visit(self, body: Callable[[Part], None]) -> None:
        """Runs `body` for every part."""
        raise NotImplementedError

    def _combined(self, kind: str, accumulators: list[Expr]) -> Statistic:
        raise NotImplementedError

    def reduce(self, kind: str, dtype: DType, value: Callable[[Part], Expr]) -> Statistic:
        """The reduction of value(part) over the range; accumulates in `dtype`."""
        b, slots = self.b, self.slots
        neutral = broadcast(identity_of(kind, dtype), self.lanes)
        acc = b.alloc("acc", dtype, (slots,), "register", self.lanes)
        for s in range(slots):
            b.store(acc, s, neutral)

        def body(part: Part) -> None:
            v = broadcast(cast(value(part), dtype), part.lanes)
            if part.count is not None and self.masks:
                v = select(first_lanes(part.count, part.lanes), v, neutral)
            b.store(acc, part.slot, op(REDUCTIONS[kind], acc[part.slot], v))

        self.visit(body)
        return self._combined(kind, [acc[s] for s in range(slots)])


class Along(Visits):
    """Lanes along the innermost variable."""

    @property
    def slots(self) -> int:
        if self.lanes == 1:
            return 1
        extent = self.variables[-1].extent
        if isinstance(extent, int):
            return max(1, min(ACCUMULATORS, -(-extent // self.lanes)))
        return ACCUMULATORS

    def _combined(self, kind: str, accumulators: list[Expr]) -> Statistic:
        combine = REDUCTIONS[kind]
        while len(accumulators) > 1:
            half = (len(accumulators) + 1) // 2
            accumulators = [
                op(combine, accumulators[i], accumulators[i + half])
                if i + half < len(accumulators) else accumulators[i] for i in range(half)]
        return Statistic((self.b.let("s", horizontal(kind, accumulators[0])),))

    def visit(self, body: Callable[[Part], None]) -> None:
        *nest, inner = self.variables
        nested(self.b, nest, {}, lambda mapping: self._inner(inner, mapping, body))

    def _inner(self, variable: Var, mapping: dict[Expr, Expr], body) -> None:
        b, lanes, slots = self.b, self.lanes, self.slots
        extent = wrap(variable.extent)
        if lanes == 1:
            with b.loop("r", extent) as r:
                body(Part({**mapping, variable: r}, r, 1, None, 0))
            return
        whole = extent // lanes
        rest = extent - whole * lanes
        if self.resident:
            assert isinstance(whole, Const) and isinstance(rest, Const)
            for k in range(whole.value):
                body(Part(mapping, const(k * lanes), lanes, None, k % slots, (k,)))
            if rest.value:
                k = whole.value
                body(Part(mapping, const(k * lanes), lanes, rest, k % slots, (k,)))
            return
        groups = whole // slots
        if groups is not const(0):
            with b.loop("r", groups) as r:
                for s in range(slots):
                    body(Part(mapping, (r * slots + s) * lanes, lanes, None, s))
        single = whole - groups * slots
        if isinstance(single, Const):
            for s in range(single.value):
                body(Part(mapping, (groups * slots + s) * lanes, lanes, None, s))
        else:
            with b.loop("r", single) as r:
                body(Part(mapping, (groups * slots + r) * lanes, lanes, None, 0))
        if isinstance(rest, Const):
            if rest.value:
                body(Part(mapping, whole * lanes, lanes, rest, slots - 1))
        else:
            with b.when(op("gt", rest, 0)):
                body(Part(mapping, whole * lanes, lanes, rest, slots - 1))


@dataclass(eq=False)
class Across(Visits):
    """Lanes across ranges: one vector for each of `bases`, cut to the entry of `counts`."""

    bases: Sequence[Expr] = ()
    counts: Sequence[Expr | None] = ()
    masks: ClassVar[bool] = False  # lanes beyond the last range are never stored

    @property
    def slots(self) -> int:
        return len(self.bases)

    def _combined(self, kind: str, accumulators: list[Expr]) -> Statistic:
        return Statistic(tuple(accumulators))

    def parts(self, mapping: dict[Expr, Expr], key: tuple = ()) -> list[Part]:
        """One part for each vector of ranges."""
        return [Part(mapping, base, self.lanes, count, s, (*key, s) if self.resident else None)
                for s, (base, count) in enumerate(zip(self.bases, self.counts, strict=True))]

    def visit(self, body: Callable[[Part], None]) -> None:
        self._nest(self.variables, {}, (), body)

    def _nest(self, variables: list[Var], mapping: dict[Expr, Expr], key: tuple, body) -> None:
        if not variables:
            for part in self.parts(mapping, key):
                body(part)
            return
        first, rest = variables[0], variables[1:]
        if self.resident:
            assert isinstance(first.extent, int)
            for k in range(first.extent):
                self._nest(rest, {**mapping, first: const(k)}, (*key, k), body)
            return
        with self.b.loop("r", first.extent) as r:
            self._nest(rest, {**mapping, first: r}, key, body)


def nested(b: Builder, variables: Sequence[Var], mapping: dict[Expr, Expr],
           body: Callable[[dict[Expr, Expr]], None]) -> None:
    """Serial loops over the variables around body(what each stands for)."""
    if not variables:
        body(mapping)
        return
    with b.loop("r", variables[0].extent) as r:
        nested(b, variables[1:], {**mapping, variables[0]: r}, body)


def first_lanes(count: Expr, lanes: int) -> Expr:
    """A mask of the first `count` lanes."""
    return op("lt", cast(ramp(0, lanes), dt.i32), broadcast(cast(count, dt.i32), lanes))


def blocks_across(b: Builder, extent: Expr, base: Expr, vectors: int, lanes: int, unit: bool,
                  write: Callable[[int, list[Expr], list[Expr | None]], None]) -> None:
    """write(lanes, bases, counts) for the ranges from `base` on: a block of vectors, or what is
    left of one at the end. Without `unit` stride the last ranges come one by one."""
    block = vectors * lanes

    def whole() -> None:
        write(lanes, [base + k * lanes for k in range(vectors)], [None] * vectors)

    def ragged() -> None:
        left = extent - base
        if not unit:
            with b.loop("j", left) as j:
                write(1, [base + j], [None])
            return
        with b.loop("j", left // lanes) as j:
            write(lanes, [base + j * lanes], [None])
        rest = b.let("rest", left % lanes)
        with b.when(op("gt", rest, 0)):
            write(lanes, [base + left - rest], [rest])

    if extent % block is const(0):
        whole()
    elif isinstance(extent, Const) and extent.value < block and unit:
        last = extent.value % lanes
        end: Expr | None = const(last) if last else None
        write(lanes, [base + k * lanes for k in range(vectors)], [*[None] * (vectors - 1), end])
    else:
        with b.when(op("le", base + block, extent)):
            whole()
        with b.otherwise():
            ragged()


def vectors_across(extent: int | Expr, lanes: int, unit: bool) -> int:
    """How many vectors of ranges to visit at once."""
    if not unit:
        return 1
    return min(ACCUMULATORS, -(-extent // lanes)) if isinstance(extent, int) else ACCUMULATORS
