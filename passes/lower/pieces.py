"""Loops over a part of an axis each, where one expression holds for all of the part.

A value that compares an index with a number, as after a concat, a pad or a rotary embedding,
is not one vector expression, but it is on either side of the number. One that asks whether its
last index is even is two, of every other element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from ...ir import dtype as dt
from ...ir.algebra import poly
from ...ir.expr import Const, Expr, Op, Var, broadcast, cast, const, substitute
from ...ir.kernel.intrinsics import shuffle
from ...ir.kernel.nodes import Buffer, Load, load
from .loops import (
    LoopWriter,
    collapse,
    has_reduce,
    linear_in,
    placeholder,
    value_nodes,
    vectorisable,
)
from .transposed import crossing

MOST_CUTS = 4
"""Places at which a loop may be cut."""

_TURNED = (dt.f32, dt.i32, dt.u32)
"""Element types whose pairs are taken apart in registers."""

Element = Callable[[Expr], Expr]
"""The value at a last index."""


def cuts(value: Expr, variable: Var) -> list[tuple[int, int]]:
    """(start, size) of the parts of the loop over `variable` in which the comparisons of the value
    with numbers are decided; none when there are no such comparisons, or too many."""
    extent = variable.extent
    if not isinstance(extent, int) or has_reduce(value):
        return []
    found: set[int] = set()
    for x in value_nodes(value):
        if not isinstance(x, Op) or x.name not in ("lt", "le", "gt", "ge") \
                or x.args[0].dtype is not dt.i64:
            continue
        split = linear_in(x.args[0] - x.args[1], variable)
        if split is None or not all(isinstance(s, Const) for s in split):
            continue
        slope, rest = (s.value for s in split)  # type: ignore[attr-defined]
        # v + b < 0 changes at -b and v + b <= 0 one behind; b - v the other way round.
        if slope in (1, -1):
            found.add(-rest * slope + ((x.name in ("le", "gt")) == (slope == 1)))
    places = sorted(at for at in found if 0 < at < extent)
    if not 0 < len(places) <= MOST_CUTS:
        return []
    return [(a, b - a) for a, b in zip([0, *places], [*places, extent], strict=True)]


def parts(value: Expr, variable: Var, element: Element) -> list[tuple[int, int]]:
    """The parts of a loop over the last index, if that makes vectors of some."""
    if vectorisable(value, variable):
        return []

    def makes_vectors(start: int, size: int) -> bool:
        v = placeholder(size)
        return size > 3 and vectorisable(element(v + start), v)

    found = cuts(value, variable)
    return found if any(makes_vectors(*part) for part in found) else []


def parts_of_axis(value: Expr, index: Sequence[Expr], axis: int, position: Expr,
                  element: Callable[[tuple[Expr, ...]], Expr], lanes: int) -> list[tuple[int, int]]:
    """The parts of the loop over another index, if in some of them the last one becomes vectors,
    or tiles, or part of a longer run."""
    last, variable = index[-1], index[axis]
    if not isinstance(last, Var) or not isinstance(variable, Var):
        return []
    short = isinstance(last.extent, int) and last.extent < lanes // 2
    if not short and vectorisable(value, last):
        return []

    def helps(start: int, size: int) -> bool:
        v = placeholder(size)
        i = v + start if size > 1 else const(start)
        e = element((*index[:axis], i, *index[axis + 1:]))
        at = substitute(position, {variable: i})
        variables = [v if i is variable else i for i in index if isinstance(i, Var)]
        if short:
            accesses = [at, *(x.index[-1] for x in value_nodes(e) if isinstance(x, Load))]
            return not any(i in value_nodes(e) for i in variables) and len(
                collapse(variables[-2:], accesses)) == 1
        return vectorisable(e, last) or crossing(variables, at, e, lanes) is not None or bool(
            parts(e, last, lambda j: element((*index[:axis], i, *index[axis + 1:-1], j))))

    found = cuts(value, variable) or _singles(value, variable, last)
    return found if any(helps(*part) for part in found) else []


def _singles(value: Expr, variable: Var, last: Var) -> list[tuple[int, int]]:
    """Every position of a short axis apart, when comparisons of the last index involve it, as in
    the windows of a padded signal."""
    extent = variable.extent
    if not isinstance(extent, int) or extent > MOST_CUTS + 1 or has_reduce(value):
        return []
    for x in value_nodes(value):
        if isinstance(x, Op) and x.name in ("lt", "le", "gt", "ge") and x.args[0].dtype is dt.i64:
            slopes = [linear_in(x.args[0] - x.args[1], v) for v in (variable, last)]
            if all(s is not None and isinstance(s[0], Const) and s[0].value for s in slopes):
                return [(k, 1) for k in range(extent)]
    return []


def alternates(value: Expr, variable: Var) -> bool:
    """Whether the value asks if `variable` is even."""
    return isinstance(variable.extent, int) and variable.extent % 2 == 0 and any(
        isinstance(x, Op) and x.name == "mod" and x.args[0] is variable and x.args[1] is const(2)
        for x in value_nodes(value))


def write_pairs(writer: LoopWriter, variables: list[Var], out: Buffer, position: Expr,
                element: Element, parallel: bool) -> bool:
    """Stores the elements at even and odd last indices together, both as vectors; False when
    that is not possible. The last of the variables is the last index."""
    b, inner = writer.b, variables[-1]
    pair = placeholder(inner.extent // 2)
    lanes = _lanes(pair.extent, writer.machine.lanes)
    at = substitute(position, {inner: pair * 2})
    split = linear_in(at, pair)
    if not lanes or out.dtype not in _TURNED or split is None or split[0] is not const(2):
        return False
    values = [element(pair * 2 + k) for k in (0, 1)]
    runs = _runs(values, pair)
    probes: dict[Expr, Expr] = {}
    for both in runs.values():
        for x in both:
            probes[x] = load(Buffer(f"probe{len(probes)}", x.dtype, (1 << 30,)), (pair,))
    if not all(vectorisable(substitute(e, probes), pair) for e in values):
        return False
    with ExitStack() as loops:
        place: dict[Expr, Expr] = {}
        chunks = placeholder(pair.extent // lanes)
        for k, v in enumerate([*variables[:-1], chunks]):
            kind = "parallel" if parallel and not k else "serial"
            place[v] = loops.enter_context(b.loop("i", v.extent, kind))
        start = place.pop(chunks) * lanes
        here = {**place, pair: start}
        bound: dict[Expr, Expr] = {}
        for even, odd in runs.values():
            first = substitute(even.index[-1], here)
            low, high = (b.let("p", load(even.buffer, (first + k * lanes,), lanes))
                         for k in (0, 1))
            for k, x in enumerate((even, odd)):
                bound[substitute(x, place)] = shuffle(low, high, range(k, 2 * lanes, 2))
        low, high = (b.let("s", broadcast(cast(
            writer.value(substitute(e, place), pair, lanes, start, None, bound), out.dtype),
            lanes)) for e in values)
        target = substitute(at, here)
        for k in (0, 1):
            picks = [c // 2 + lanes * (c % 2) for c in range(k * lanes, (k + 1) * lanes)]
            b.store(out, (target + k * lanes,), shuffle(low, high, picks))
    return True


def _lanes(pairs: int, most: int) -> int:
    """The lanes of the widest vectors that the pairs fill; 0 when none of 4 or more do."""
    while most >= 4 and pairs % most:
        most //= 2
    return most if most >= 4 else 0


def _runs(values: list[Expr], pair: Var) -> dict[tuple[Buffer, Expr], tuple[Load, Load]]:
    """The loads of the two elements of a pair, by where they are but for the last element."""
    found: dict[tuple[Buffer, Expr], dict[int, Load]] = {}
    for x in [x for e in values for x in value_nodes(e)]:
        split = linear_in(x.index[-1], pair) if isinstance(x, Load) else None
        if isinstance(x, Load) and split is not None and split[0] is const(2) \
                and x.dtype in _TURNED:
            constant = poly(x.index[-1]).get((), 0)
            found.setdefault((x.buffer, x.index[-1] - constant), {})[constant] = x
    return {where: (loads[low], loads[low + 1]) for where, loads in found.items()
            if len(loads) == 2 and (low := min(loads)) + 1 in loads}
