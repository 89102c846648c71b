"""The box of a buffer that a loop reads, copied into a buffer of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import gcd

from ...ir.algebra import from_poly, poly
from ...ir.expr import Const, Expr, Var, both, const, free_vars, op, substitute, var, walk, wrap
from ...ir.kernel.nodes import (
    Alloc,
    Block,
    Buffer,
    For,
    If,
    Let,
    Load,
    Stmt,
    Store,
    children,
    expressions,
    load,
    statements,
)
from ..lower.loops import linear_in
from .dependence import Scope, proves
from .rewriting import Copier, Names


class NoBox(Exception):
    """A statement reads what is no box of known size."""

    def __init__(self, statement: Stmt, why: str):
        super().__init__(why)
        self.statement = statement
        self.why = why


@dataclass(eq=False)
class _Digit:
    """An axis of the box: `extent` elements `stride` times `unit` apart along an axis of the
    buffer. The unit is 1 or a product of sizes."""

    unit: Expr
    stride: int
    extent: int = 1
    variables: list[Var] = field(default_factory=list)


@dataclass(frozen=True)
class _Slope:
    """What an index gains with each step of a variable."""

    unit: Expr
    times: int
    extent: int


@dataclass(eq=False)
class _Axis:
    """What loads do along one axis of the buffer: slopes of variables, and for each load where it
    starts behind `start`, a constant number of elements."""

    slopes: dict[Var, _Slope]
    start: Expr
    behind: list[int]
    digits: list[_Digit] = field(default_factory=list)

    def __post_init__(self) -> None:
        units = dict.fromkeys(s.unit for s in self.slopes.values() if s.unit is not const(1))
        self.digits = [d for unit in (*units, const(1)) for d in self._digits(unit)]
        for k in range(len(self.behind)):
            for digit, first in zip(self.digits, self.first(k), strict=True):
                span = sum(self.slopes[v].times // digit.stride * (self.slopes[v].extent - 1)
                           for v in digit.variables)
                digit.extent = max(digit.extent, first + span + 1)

    def _digits(self, unit: Expr) -> list[_Digit]:
        """Those of one unit, largest stride first."""
        apart = gcd(*self.behind) if unit is const(1) else 0
        found: list[_Digit] = []
        reach = 0
        own = [(v, s) for v, s in self.slopes.items() if s.unit is unit]
        for v, s in sorted(own, key=lambda item: item[1].times):
            if not found:
                found.append(_Digit(unit, gcd(s.times, apart)))
            elif s.times > reach + found[0].stride:
                found.insert(0, _Digit(unit, s.times))
            else:
                found[0].stride = gcd(found[0].stride, s.times)
            found[0].variables.append(v)
            reach += s.times * (s.extent - 1)
        return found if found or not apart else [_Digit(unit, apart)]

    def first(self, k: int) -> list[int]:
        """The digits at which load `k` starts."""
        found, rest = [], self.behind[k]
        for digit in self.digits:
            found.append(rest // digit.stride if digit.unit is const(1) else 0)
            rest -= found[-1] * digit.stride
        return found

    def index(self, k: int) -> list[Expr]:
        """Where load `k` is in the box."""
        return [sum((v * (self.slopes[v].times // digit.stride) for v in digit.variables),
                    const(first))
                for first, digit in zip(self.first(k), self.digits, strict=True)]


def staged(loop: For, name: str, box: tuple[str, str], names: Names, scope: Scope,
           along: str | None) -> list[Stmt]:
    """A copy of what the loop reads of buffer `name` into `box` (name and space), and the loop
    reading that. The axis on which variable `along` moves is the last one. Raises NoBox."""
    found: dict[Load, tuple[Stmt, list[Expr]]] = {}
    extents: dict[Var, object] = {}
    for s, lets in _inside(loop, dict(scope.lets)):
        if isinstance(s, For):
            extents[s.var] = s.extent if extents.get(s.var, s.extent) == s.extent else None
        for e in () if s is loop else expressions(s):
            for x in walk(e):
                if isinstance(x, Load) and x.buffer.name == name:
                    index = [substitute(i, lets) for i in x.index]
                    if found.setdefault(x, (s, index))[1] != index:
                        raise NoBox(s, "a name in its index has several values")
    if not found:
        raise NoBox(loop, f"it does not read {name}")
    buffer = next(iter(found)).buffer
    if buffer.lanes > 1 or buffer.space == "register":
        raise NoBox(loop, f"{name} is in registers already")
    inner = {s.var for s in statements(loop) if isinstance(s, (For, Let))}
    axes = [_axis(k, found, extents, inner) for k in range(buffer.rank)]
    digits = [d for axis in axes for d in axis.digits]
    order = sorted(range(len(digits)), key=lambda k: along in [
        v.name for v in digits[k].variables])
    if along is not None and along not in [v.name for d in digits for v in d.variables]:
        raise NoBox(loop, f"no index of {name} moves with {along}")
    if order != sorted(order) and any(x.lanes > 1 for x in found):
        raise NoBox(loop, "its loads of lanes are along another axis")
    shape = tuple(digits[k].extent for k in order) or (1,)
    copy = Buffer(names.fresh(box[0]), buffer.dtype, shape, box[1])
    moved: dict[Expr, Expr] = {}
    first_lane: dict[Expr, Expr] = {v: const(0) for v in extents if v not in inner}
    for k, x in enumerate(found):
        index = [substitute(i, first_lane) for axis in axes for i in axis.index(k)]
        index = [index[d] for d in order] or [const(0)]
        moved[x] = load(copy, index, x.key[2], x.count)
    reading = replace(loop, body=Copier(moved).block(loop.body))
    return [Alloc(copy), *_copy(buffer, copy, axes, order, names, scope), reading]


def _inside(s: Stmt, lets: dict[Expr, Expr]) -> Iterator[tuple[Stmt, dict[Expr, Expr]]]:
    """Statements below one, with the names that stand for index expressions there."""
    yield s, lets
    for child in children(s):
        inner = dict(lets)
        for x in child.body if isinstance(child, Block) else (child,):
            yield from _inside(x, inner)
            if isinstance(x, Let) and not any(isinstance(y, Load) for y in walk(x.value)):
                inner[x.var] = substitute(x.value, inner)


def _axis(k: int, found: dict[Load, tuple[Stmt, list[Expr]]], extents: dict[Var, object],
          inner: set[Var]) -> _Axis:
    slopes: dict[Var, _Slope] | None = None
    starts: list[Expr] = []
    for x, (s, index) in found.items():
        rest = index[k]
        if rest.lanes > 1:
            raise NoBox(s, "it gathers")
        own: dict[Var, _Slope] = {}
        if k == x.buffer.rank - 1 and x.lanes > 1:
            lane = var(f"lane.{x.lanes}", extent=x.lanes)
            extents[lane] = x.lanes
            own[lane] = _Slope(const(1), 1, x.lanes)
        for v in free_vars(rest):
            if v not in inner:
                continue
            parts, extent = linear_in(rest, v), extents.get(v)
            terms = poly(parts[0]) if parts is not None else {}
            if parts is None or len(terms) != 1 or any(y in inner for y in free_vars(parts[0])):
                raise NoBox(s, f"its index is not linear in {v.name}")
            if not isinstance(extent, int):
                raise NoBox(s, f"how far {v.name} goes is known at run time only")
            ((unit, times),) = terms.items()
            if times < 0:
                raise NoBox(s, f"its index falls with {v.name}")
            own[v] = _Slope(from_poly({unit: 1}), times, extent)
            rest = parts[1]
        if any(isinstance(y, Load) or y in inner for y in walk(rest)):
            raise NoBox(s, "its index depends on memory")
        if slopes is not None and own != slopes:
            raise NoBox(s, "several loads go different ways")
        slopes = own
        starts.append(rest)
    differences = [e - starts[0] for e in starts]
    for e, (s, _) in zip(differences, found.values(), strict=True):
        if not isinstance(e, Const):
            raise NoBox(s, "how far it is from another load is known at run time only")
    behind = [e.value for e in differences if isinstance(e, Const)]
    assert slopes is not None
    return _Axis(slopes, starts[0] + min(behind), [d - min(behind) for d in behind])


def _copy(buffer: Buffer, box: Buffer, axes: list[_Axis], order: list[int], names: Names,
          scope: Scope) -> list[Stmt]:
    variables: list[Var] = []
    where: list[Expr] = []
    guards: list[Expr] = []
    for axis, size in zip(axes, buffer.shape, strict=True):
        at, last = axis.start, axis.start
        for digit in axis.digits:
            variables.append(var(names.fresh(f"{box.name}_c"), extent=digit.extent))
            at = at + variables[-1] * digit.stride * digit.unit
            last = last + digit.unit * ((digit.extent - 1) * digit.stride)
        where.append(at)
        # Loads that happen are inside; the box may be larger than what they read.
        if not proves(axis.start, scope.facts):
            guards.append(op("ge", at, 0))
        if not proves(wrap(size) - 1 - last, scope.facts):
            guards.append(op("lt", at, wrap(size)))
    index = tuple(variables[k] for k in order) or (const(0),)
    body = Block(Store(box, index, load(buffer, where)))
    if guards:
        body = Block(If(both(*guards), body))
    for v in reversed(variables):
        body = Block(For(v, v.extent, body))
    return list(body.body)
