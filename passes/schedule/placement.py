"""Kernels that read or write a tensor as columns of the rows of a larger one.

A tensor of rows of `block` elements lies in another of rows of `whole` elements, from column
`offset` on: element block * q + r is element whole * q + r + offset there. An index is split into
q, the terms that are multiples of the block, and r, the rest. That these are the element's row and
column needs 0 <= r < block in every lane, which is proven from the ranges of loops, the conditions
and the lane counts around the access.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from ...ir.algebra import Poly, at_least, from_poly, poly
from ...ir.expr import (
    Const,
    Expr,
    Ramp,
    Var,
    broadcast,
    const,
    floordiv,
    ramp,
    rebuild,
    substitute,
    var,
    walk,
    wrap,
)
from ...ir.kernel.nodes import (
    Block,
    Buffer,
    Call,
    Do,
    For,
    If,
    Kernel,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    While,
    expressions,
    load,
    statements,
)
from ..kernel.simplify import simplify
from .dependence import Scope, proves, range_facts
from .rewriting import Names


@dataclass(frozen=True)
class Window:
    """Where a tensor of `rows` rows of `block` elements lies in a larger one: a row every `whole`
    elements from `offset` on. With one row, the block may be an expression of sizes; otherwise
    only the number of rows."""

    rows: Any
    block: Any
    whole: Any
    offset: int = 0

    def split(self, e: Expr) -> tuple[Expr, Expr]:
        """(q, r) of an index in the tensor: e = block * q + r."""
        return (const(0), e) if self.rows == 1 else _split(e, self.block)

    def place(self, e: Expr) -> Expr:
        """An index in the tensor as one in the larger tensor, where the terms say it."""
        q, r = self.split(e)
        return r + self.offset if self.rows == 1 else q * self.whole + r + self.offset

    @property
    def end(self) -> Expr:
        """The first element of the larger tensor behind the window."""
        return (wrap(self.rows) - 1) * wrap(self.whole) + wrap(self.block) + self.offset

    def apart(self, other: Window) -> bool:
        """Whether two windows on one tensor are known to have no element in common."""
        low, high = sorted((self, other), key=lambda w: w.offset)
        if at_least(high.offset - low.end, 0):
            return True
        column = self._column(other)
        return column is not None and column >= self.block and (
            column + other.block <= self.whole)

    def holds(self, other: Window) -> bool:
        """Whether all of another window is known to be in this one."""
        if other.offset < self.offset or not at_least(self.end - other.end, 0):
            return False
        column = self._column(other)
        return self.rows == 1 or column is not None and column + other.block <= self.block

    def _column(self, other: Window) -> int | None:
        """The column of this window's rows in which the rows of another one of the same pace
        begin."""
        if self.rows == 1 or other.rows == 1 or self.whole != other.whole:
            return None
        return (other.offset - self.offset) % self.whole


def _split(e: Expr, block: int) -> tuple[Expr, Expr]:
    """(q, r) with e = block * q + r, where q has the terms that are multiples of the block."""
    quotient: Poly = {}
    rest: Poly = {}
    for monomial, coefficient in poly(e).items():
        q, r = divmod(coefficient, block)
        if r and monomial:
            q, r = 0, coefficient
        if q:
            quotient[monomial] = q
        if r:
            rest[monomial] = r
    return from_poly(quotient), from_poly(rest)


class Unplaceable(Exception):
    """A kernel whose accesses are not proven to stay in their rows."""


# Proofs -------------------------------------------------------------------------------------------


def between(scope: Scope, r: Expr, lanes: int, count: Expr | None, low: Any, high: Any) -> bool:
    """Whether the elements r, r + 1, ... of an access (one for each lane below `count`, if given)
    lie in low, ..., high - 1."""
    if not proves(r - low, scope.facts):
        return False
    if proves(wrap(high) - lanes - r, scope.facts):
        return True
    if count is None:
        return False
    lane = var(f"lane.{lanes}", extent=lanes)
    facts = range_facts(lane, substitute(count, scope.lets))
    return proves(wrap(high) - 1 - r - lane, (*scope.facts, lanes - 1 - lane, *facts))


def scoped(block: Block, scope: Scope) -> Iterator[tuple[Stmt, Scope]]:
    """Every statement with what is known where it starts, to be used before the next is asked."""
    for s in block.body:
        yield s, scope
        if isinstance(s, Let):
            scope.let(s)
        elif isinstance(s, For):
            yield from scoped(s.body, scope.loop(s))
        elif isinstance(s, While):
            yield from scoped(s.body, scope.with_facts(()))
        elif isinstance(s, If):
            yield from scoped(s.then, scope.branch(s, True))
            yield from scoped(s.orelse, scope.branch(s, False))


def _lanes(s: Store) -> int:
    return s.value.lanes // s.buffer.lanes


# Copies -------------------------------------------------------------------------------------------


def copies_of(kernel: Kernel, part: Collection[Buffer], whole: Collection[Buffer],
              into: bool) -> frozenset[Stmt]:
    """The stores that copy between parameters that hold a tensor and ones that hold a larger one
    (`into` it, or out of it). Empty unless the kernel does nothing else with the former."""
    sources, targets = (part, whole) if into else (whole, part)
    found: set[Stmt] = set()
    for s in statements(kernel.body):
        if isinstance(s, Store) and s.buffer in targets and isinstance(s.value, Load) \
                and s.value.buffer in sources and s.value.count is s.count \
                and s.index[0].lanes == s.value.index[0].lanes == 1:
            found.add(s)
        elif isinstance(s, (Store, Prefetch)) and s.buffer in part or any(
                isinstance(x, Load) and x.buffer in part for x in walk(*expressions(s))):
            return frozenset()
    return frozenset(found)


def window_of(kernel: Kernel, copies: Collection[Stmt], window: Window, into: bool,
              size: Any) -> Window | None:
    """The window, of which all but the offset is given, in a tensor of `size` elements, that copies
    go to or come from. None when they do not follow it."""
    offset: int | None = None
    for s, scope in scoped(kernel.body, Scope()):
        if s not in copies:
            continue
        assert isinstance(s, Store) and isinstance(s.value, Load)
        here, there = substitute(s.value.index[0], scope.lets), substitute(s.index[0], scope.lets)
        if not into:
            here, there = there, here
        distance = there - window.place(here)
        if not isinstance(distance, Const) or offset not in (None, distance.value):
            return None
        if not between(scope, window.split(here)[1], _lanes(s), s.count, 0, window.block):
            return None
        offset = distance.value
    if offset is None or offset < 0:
        return None
    found = replace(window, offset=offset)
    return found if at_least(wrap(size) - found.end, 0) else None


def avoids(kernel: Kernel, buffer: Buffer, copies: Collection[Stmt], window: Window) -> bool:
    """Whether nothing but the copies is stored in a window of an output."""
    for s, scope in scoped(kernel.body, Scope()):
        if not isinstance(s, Store) or s.buffer is not buffer or s in copies:
            continue
        if s.index[0].lanes > 1:
            return False
        e, lanes = substitute(s.index[0], scope.lets), _lanes(s)
        if between(scope, e, lanes, s.count, 0, window.offset) or proves(
                e - window.end, scope.facts):
            continue
        if window.rows == 1 or not between(
                scope, _split(e - window.offset, window.whole)[1], lanes, s.count, window.block,
                window.whole):
            return False
    return True


def without(kernel: Kernel, stores: Collection[Stmt], params: Collection[Buffer]) -> Kernel:
    """The kernel without some stores, the loops that this leaves empty, and some parameters."""

    def block(b: Block) -> Block:
        kept = []
        for s in b.body:
            if s in stores:
                continue
            if isinstance(s, For):
                body = block(s.body)
                if not body.body:
                    continue
                s = replace(s, body=body)
            elif isinstance(s, While):
                s = While(s.condition, block(s.body))
            elif isinstance(s, If):
                s = If(s.condition, block(s.then), block(s.orelse))
            kept.append(s)
        return Block(*kept)

    outputs = sum(b not in params for b in kernel.params[len(kernel.params) - kernel.outputs:])
    return simplify(replace(kernel, params=tuple(b for b in kernel.params if b not in params),
                            outputs=outputs, body=block(kernel.body)))


# Rewriting ----------------------------------------------------------------------------------------


def placed(kernel: Kernel, buffers: Mapping[Buffer, Buffer], window: Window) -> Kernel:
    """The kernel with parameters that hold a tensor exchanged for ones that hold the larger tensor
    it lies in. Raises Unplaceable."""
    kernel = simplify(kernel)
    body = _Placing(kernel, buffers, window).block(kernel.body, Scope())
    return simplify(replace(kernel, params=tuple(buffers.get(b, b) for b in kernel.params),
                            body=body))


def _shifted(e: Expr, offset: int) -> Expr:
    """The sum of an index, perhaps of lanes, and a number."""
    if isinstance(e, Ramp):
        return ramp(_shifted(e.args[0], offset), e.lanes, e.stride)
    return e + broadcast(const(offset), e.lanes)


class _Placing:
    """Rewrites statements. A name whose value has terms that are multiples of the block, such as
    the start of a row, gets a counterpart in the larger tensor, so that what loops add to it stays
    as it is."""

    def __init__(self, kernel: Kernel, buffers: Mapping[Buffer, Buffer], window: Window):
        self.name, self.buffers, self.window = kernel.name, buffers, window
        self.names = Names(kernel)
        self.counterparts: dict[Expr, Var] = {}
        self.values: dict[Expr, Expr] = {}
        self.reads: dict[Expr, bool] = {}

    # Statements ------------------------------------------------------------------------------

    def block(self, block: Block, scope: Scope) -> Block:
        done: list[Stmt] = []
        for s in block.body:
            done.append(self.statement(s, scope))
            if isinstance(s, Let):
                scope.let(s)
                done += self.counterpart(s, scope)
        return Block(*done)

    def statement(self, s: Stmt, scope: Scope) -> Stmt:
        def value(e) -> Expr:
            return self.value(wrap(e), scope)

        if isinstance(s, For):
            if self._reads(wrap(s.extent)):
                raise Unplaceable(f"{self.name} counts to an element of it")
            return replace(s, body=self.block(s.body, scope.loop(s)))
        if isinstance(s, While):
            return While(value(s.condition), self.block(s.body, scope.with_facts(())))
        if isinstance(s, If):
            return If(value(s.condition), self.block(s.then, scope.branch(s, True)),
                      self.block(s.orelse, scope.branch(s, False)))
        if isinstance(s, Let):
            return Let(s.var, value(s.value))
        if isinstance(s, Store):
            index = tuple(map(value, s.index))
            count = None if s.count is None else value(s.count)
            if s.buffer in self.buffers:
                index = (self.index(index[0], _lanes(s), count, scope),)
            return Store(self.buffers.get(s.buffer, s.buffer), index, value(s.value), count)
        if isinstance(s, Prefetch) and s.buffer in self.buffers:
            return Prefetch(self.buffers[s.buffer], (self.hint(s.index[0], scope),))
        if isinstance(s, Do):
            call = value(s.call)
            assert isinstance(call, Call)
            return Do(call)
        return s

    def counterpart(self, s: Let, scope: Scope) -> list[Stmt]:
        """The name of the same place in the larger tensor, where that is another one."""
        if s.var not in scope.lets or self.window.rows == 1:
            return []
        moved = self.moved(s.value)
        if moved is s.value:
            return []
        name = var(self.names.fresh(s.var.name))
        self.counterparts[s.var] = name
        self.values[name] = self.expanded(moved, scope)
        return [Let(name, moved)]

    # Expressions -----------------------------------------------------------------------------

    def value(self, e: Expr, scope: Scope) -> Expr:
        """An expression with its loads rewritten."""
        if not self._reads(e):
            return e
        memo: dict[Expr, Expr] = {}
        for x in walk(e):
            args = tuple(memo[a] for a in x.args)
            if isinstance(x, Load) and x.buffer in self.buffers:
                where, *rest = args
                count = rest[0] if rest else None
                place = self.index(where, x.key[2], count, scope)
                memo[x] = load(self.buffers[x.buffer], (place,),
                               1 if place.lanes > 1 else x.key[2], count)
            else:
                memo[x] = rebuild(x, args) if self._reads(x) else x
        return memo[e]

    def _reads(self, e: Expr) -> bool:
        if e not in self.reads:
            for x in walk(e):
                if x not in self.reads:
                    self.reads[x] = isinstance(x, Load) and x.buffer in self.buffers or any(
                        self.reads[a] for a in x.args)
        return self.reads[e]

    def index(self, e: Expr, lanes: int, count: Expr | None, scope: Scope) -> Expr:
        """An index in the tensor as one in the larger tensor."""
        window = self.window
        if window.rows == 1:
            return _shifted(e, window.offset)
        if e.lanes > 1:
            raise Unplaceable(f"{self.name} accesses elements that may lie in several rows")
        expanded = substitute(e, scope.lets)
        r = window.split(expanded)[1]
        if not between(scope, r, lanes, count, 0, window.block):
            return self.divided(expanded, r, lanes)
        return self.adjusted(e, window.place(expanded), scope)

    def divided(self, e: Expr, r: Expr, lanes: int) -> Expr:
        """An index whose row is found by division: lanes that begin at a multiple of a number of
        elements of which the block is one, too, lie in one row."""
        step = gcd(self.window.block, *poly(r).values())
        if lanes == 1 or lanes > step:
            raise Unplaceable(f"{self.name} accesses {lanes} elements at once, which may leave a "
                              f"row of {self.window.block}")
        row = floordiv(r, const(self.window.block))
        return self.window.place(e) + row * (self.window.whole - self.window.block)

    def hint(self, e: Expr, scope: Scope) -> Expr:
        """The index of a prefetch, which need not be right."""
        if self.window.rows == 1:
            return e + self.window.offset
        return self.adjusted(e, self.window.place(substitute(e, scope.lets)), scope)

    def adjusted(self, e: Expr, goal: Expr, scope: Scope) -> Expr:
        """An index in the larger tensor, in the names of `e` if those differ from it by a
        constant."""
        moved = self.moved(e)
        distance = goal - self.expanded(moved, scope)
        return moved + distance if isinstance(distance, Const) else goal

    def moved(self, e: Expr) -> Expr:
        """An index with multiples of the block and names exchanged; constants may be wrong."""
        block, whole = self.window.block, self.window.whole
        terms: Poly = {}
        total: Expr = const(0)
        for monomial, coefficient in poly(e).items():
            name = monomial[0] if len(monomial) == 1 else None
            if monomial and coefficient % block == 0:
                terms[monomial] = coefficient // block * whole
            elif name in self.counterparts and coefficient == 1:
                total = total + self.counterparts[name]
            else:
                terms[monomial] = coefficient
        return total + from_poly(terms)

    def expanded(self, e: Expr, scope: Scope) -> Expr:
        return substitute(e, {**scope.lets, **self.values})
