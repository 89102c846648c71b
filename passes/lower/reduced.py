"""Elements with reductions in them: several accumulators, lanes along the reduced axis or across
neighbouring results, each reduction computed once for all that use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import (
    Expr,
    Reduce,
    Var,
    broadcast,
    cast,
    const,
    free_vars,
    substitute,
    walk,
    wrap,
)
from ...ir.kernel.nodes import Buffer, Load
from .loops import (
    LoopWriter,
    accumulator_of,
    collapse,
    each,
    linear_in,
    merged,
    placeholder,
    value_nodes,
    vectorisable,
)
from .visits import Across, Along, Part, Visits, blocks_across, vectors_across

WIDE = (dt.f32, dt.i32)
"""Accumulators that vectors hold."""

UNROLLED = 36
"""Terms up to which a reduction is written without loops, such as a pooling window's."""


@dataclass(frozen=True, eq=False)
class Reduction:
    """One reduction: `source` is what the element's expression holds, `variables` and `body` the
    same with adjacent axes merged."""

    source: Reduce
    variables: list[Var]
    body: Expr
    accumulator: DType


def reductions(value: Expr, variables: Sequence[Var]) -> list[Reduction] | None:
    """The reductions of an element, those that others use first; None when one of them has to be
    computed again for each term of another, or its range depends on a variable."""
    found = []
    for e in walk(value):
        if not isinstance(e, Reduce):
            continue
        if any(set(e.vars) & set(free_vars(x)) for x in walk(e.body) if isinstance(x, Reduce)):
            return None
        if any(_uses(wrap(v.extent), other) for v in e.vars for other in (*variables, *e.vars)):
            return None
        found.append(_merge(e))
    return found


def _merge(e: Reduce) -> Reduction:
    """Adjacent reduced axes that memory holds as one become one."""
    variables, body = list(e.vars), e.body
    if not any(v in variables for v in value_nodes(body)):
        accesses = [x.index[-1] for x in walk(body) if isinstance(x, Load)]
        variables, mapping = merged(collapse(variables, accesses))
        body = substitute(body, mapping)
    return Reduction(e, variables, body, accumulator_of(e.dtype, e.op))


def write_reduced(writer: LoopWriter, variables: list[Var], out: Buffer, position: Expr,
                  value: Expr, parallel: bool) -> bool:
    """Stores elements with reductions; False when the plain loops have to do it."""
    lanes = writer.machine.lanes
    found = reductions(value, variables)
    if lanes == 1 or not found:
        return False
    inner = variables[-1] if variables else None
    split = linear_in(position, inner) if inner is not None else None
    wide = all(r.accumulator in WIDE and r.source.op in ("sum", "prod", "max", "min")
               for r in found) and out.dtype in (*WIDE, dt.bool_, dt.u8, dt.i8)
    if inner is not None and split is not None and split[0] is const(1) and wide:
        short = isinstance(inner.extent, int) and inner.extent < lanes // 2
        if not short and vectorisable(value, inner):
            _across(writer, variables, out, position, value, found, parallel, True)
            return True
    if any(_lanes_along(r, lanes) > 1 for r in found):
        _along(writer, variables, out, position, value, found, parallel)
        return True
    if inner is not None and split is not None and split[0] is const(1) and wide and not (
            isinstance(inner.extent, int) and inner.extent < lanes) and vectorisable(
                value, inner, strided=True):
        _across(writer, variables, out, position, value, found, parallel, False)
        return True
    return False


def _lanes_along(r: Reduction, lanes: int) -> int:
    """Lanes along the innermost reduced variable."""
    last = r.variables[-1]
    short = isinstance(last.extent, int) and last.extent < lanes // 2
    fits = (r.accumulator in WIDE and r.source.op in ("sum", "prod", "max", "min") and not short
            and not any(isinstance(x, Reduce) and _uses(x, last) for x in walk(r.body))
            and vectorisable(r.body, last))
    return lanes if fits else 1


def _uses(e: Expr, v: Var) -> bool:
    return any(x is v for x in walk(e))


def _along(writer: LoopWriter, variables: list[Var], out: Buffer, position: Expr, value: Expr,
           found: list[Reduction], parallel: bool) -> None:
    b = writer.b
    with each(b, variables, parallel) as mapping:
        bound: dict[Expr, Expr] = {}
        for r in found:
            body = substitute(r.body, mapping)
            last, lanes = r.variables[-1], _lanes_along(r, writer.machine.lanes)

            def term(part: Part, body: Expr = body, last: Var = last) -> Expr:
                e = substitute(body, part.mapping)
                held = {substitute(k, part.mapping): broadcast(v, part.lanes)
                        for k, v in bound.items()}
                return writer.value(e, last, part.lanes, part.base, part.count, held)

            total = Along(b, lanes, r.variables).reduce(r.source.op, r.accumulator, term)
            bound[substitute(r.source, mapping)] = cast(total.values[0], r.source.dtype)
        result = writer.value(substitute(value, mapping), bound=bound)
        b.store(out, substitute(position, mapping), cast(result, out.dtype))


def _across(writer: LoopWriter, variables: list[Var], out: Buffer, position: Expr, value: Expr,
            found: list[Reduction], parallel: bool, unit: bool) -> None:
    b, lanes = writer.b, writer.machine.lanes
    *others, inner = variables
    extent = wrap(inner.extent)
    vectors = vectors_across(inner.extent, lanes, unit)
    block = placeholder((extent + (vectors * lanes - 1)) // (vectors * lanes))
    with each(b, [*others, block], parallel) as mapping:
        base = b.let("base", mapping.pop(block) * (vectors * lanes))

        def write(width: int, bases: list[Expr], counts: list[Expr | None]) -> None:
            held: list[dict[Expr, Expr]] = [{} for _ in bases]
            for r in found:
                terms = prod(v.extent if isinstance(v.extent, int) else UNROLLED + 1
                             for v in r.variables)
                unrolled = terms * len(bases) <= UNROLLED
                visits = Across(b, width, r.variables, unrolled, bases, counts)
                _reduce_across(writer, visits, r, mapping, inner, held)
            for part in Across(b, width, [], False, bases, counts).parts(mapping):
                e = substitute(value, mapping)
                result = writer.value(e, inner, width, part.base, part.count, held[part.slot])
                where = substitute(position, {**mapping, inner: part.base})
                b.store(out, where, broadcast(cast(result, out.dtype), width),
                        part.count if width > 1 else None)

        blocks_across(b, extent, base, vectors, lanes, unit, write)


def _reduce_across(writer: LoopWriter, visits: Visits, r: Reduction, mapping: dict[Expr, Expr],
                   inner: Var, held: list[dict[Expr, Expr]]) -> None:
    """Adds the reduction's vectors to those that each slot holds."""
    body = substitute(r.body, mapping)

    def term(part: Part) -> Expr:
        e = substitute(body, part.mapping)
        known = {substitute(k, part.mapping): v for k, v in held[part.slot].items()}
        return writer.value(e, inner, part.lanes, part.base, part.count, known)

    total = visits.reduce(r.source.op, r.accumulator, term)
    for slot, vector in enumerate(total.values):
        held[slot][substitute(r.source, mapping)] = cast(vector, r.source.dtype)

