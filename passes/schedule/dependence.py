"""Which iterations of a loop touch the same memory: what primitives may not put in another order.

Two iterations that touch one element have equal indices there. An index linear in the loop
variables, sum s_k v_k + r, is a number in a mixed radix: where what lies below s_j always falls
into one window of s_j numbers, equal indices have equal v_j. Windows are proven from the ranges of
loops and from the conditions and lane counts around an access. What is not linear, or not proven,
counts as touching.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ...ir.algebra import Monomial, Poly, at_least, poly
from ...ir.expr import Const, Expr, Op, Ramp, Var, free_vars, substitute, var, walk, wrap
from ...ir.kernel.nodes import (
    Alloc,
    Barrier,
    Block,
    Buffer,
    Do,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    While,
    expressions,
    statements,
)
from ..lower.loops import linear_in

MOST_FACTS = 6
"""Facts that a proof may use."""

SEARCH = 200
"""Steps after which a proof is given up."""

EXACT_REDUCTIONS = ("min", "max", "and", "or", "xor")
REDUCTIONS = ("add", "mul", *EXACT_REDUCTIONS)


# Proofs -------------------------------------------------------------------------------------------


def proves(goal: Expr, facts: Sequence[Expr]) -> bool:
    """Whether goal >= 0 follows from facts, each at least 0; False when unknown."""
    if all(c > 0 for c in poly(goal).values()) and at_least(goal, 0):
        return True
    proof, terms = _Proof(facts), _terms(goal)
    return any(proof.follows(terms, depth) for depth in range(MOST_FACTS + 1)) or at_least(goal, 0)


class _Proof:
    """Looks for multiples of facts that, taken from a goal, leave no negative term."""

    def __init__(self, facts: Sequence[Expr]):
        # A term of a fact that its multiple can cancel. Constants cancel everything: they come
        # last.
        terms = [(p, m, -c) for p in map(_terms, dict.fromkeys(facts)) for m, c in p.items()
                 if c < 0]
        self.negative = sorted(terms, key=lambda term: not term[1])
        self.steps = 0
        self.signs: dict[Expr, bool] = {}

    def follows(self, goal: Poly, depth: int) -> bool:
        """Whether a goal follows from at most `depth` facts."""
        wrong = max((m for m, c in goal.items() if c < 0 or not self._non_negative(m)), key=len,
                    default=None)
        if wrong is None:
            return True
        self.steps += 1
        if goal[wrong] > 0 or depth == 0 or self.steps > SEARCH:
            return False
        for fact, monomial, coefficient in self.negative:
            rest = _quotient(wrong, monomial)
            if rest is None or not self._non_negative(rest):
                continue
            times = -(goal[wrong] // coefficient)
            if self.follows(_less(goal, fact, rest, times), depth - 1):
                return True
        return False

    def _non_negative(self, monomial: Monomial) -> bool:
        for atom in monomial:
            if atom not in self.signs:
                self.signs[atom] = at_least(atom, 0)
        return all(self.signs[atom] for atom in monomial)


def _terms(e: Expr) -> Poly:
    """The polynomial of an expression, with monomials in an order that is quick to find."""
    return {tuple(sorted(m, key=id)): c for m, c in poly(e).items()}


def _quotient(monomial: Monomial, by: Monomial) -> Monomial | None:
    rest = list(monomial)
    for atom in by:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _less(goal: Poly, fact: Poly, factor: Monomial, times: int) -> Poly:
    """goal - fact * factor * times."""
    found = dict(goal)
    for monomial, coefficient in fact.items():
        whole = tuple(sorted((*monomial, *factor), key=id))
        found[whole] = found.get(whole, 0) - coefficient * times
        if not found[whole]:
            del found[whole]
    return found


def facts_of(condition: Expr, holds: bool = True) -> list[Expr]:
    """Expressions that are at least 0 where a condition holds (or does not)."""
    if not isinstance(condition, Op):
        return []
    a = condition.args
    if condition.name == "not":
        return facts_of(a[0], not holds)
    if condition.name == ("and" if holds else "or"):
        return [*facts_of(a[0], holds), *facts_of(a[1], holds)]
    if condition.name == "eq" and holds and _index_like(*a):
        return [*_differences(a[1], a[0], 0), *_differences(a[0], a[1], 0)]
    orders = {"lt": ("lt", "ge"), "ge": ("ge", "lt"), "gt": ("gt", "le"), "le": ("le", "gt")}
    if condition.name not in orders or not _index_like(*a):
        return []
    name = orders[condition.name][0 if holds else 1]
    low, high = (a[0], a[1]) if name in ("lt", "le") else (a[1], a[0])
    return _differences(high, low, 1 if name in ("lt", "gt") else 0)


def _differences(high: Expr, low: Expr, step: int) -> list[Expr]:
    """high - low - step, for each operand of a minimum on the high or maximum on the low side."""
    if isinstance(high, Op) and high.name == "min":
        return [d for x in high.args for d in _differences(x, low, step)]
    if isinstance(low, Op) and low.name == "max":
        return [d for x in low.args for d in _differences(high, x, step)]
    return _unrounded(high - low - step)


def _unrounded(fact: Expr) -> list[Expr]:
    """A fact, and what it says of numbers whose rounded quotients it contains: where
    k * (x // d) + rest >= 0, k * x + d * rest is not negative either."""
    found = [fact]
    for monomial, times in poly(fact).items():
        atom = monomial[0] if len(monomial) == 1 else None
        if times > 0 and isinstance(atom, Op) and atom.name == "floordiv" and isinstance(
                divisor := atom.args[1], Const) and divisor.value > 0:
            found += _unrounded(atom.args[0] * times + (fact - atom * times) * divisor.value)
            break
    return found


def _index_like(*e: Expr) -> bool:
    return all(x.lanes == 1 and x.dtype.name == "i64" for x in e)


def range_facts(v: Var, extent: Expr) -> list[Expr]:
    """What a loop says of its variable: v < extent."""
    return _differences(extent, v, 1)


# Accesses -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Access:
    """An element (or lanes, of which the last index then holds a variable) that a statement reads
    or writes; `index` in terms of loop variables, None where it is not. `facts` hold there."""

    statement: Stmt
    buffer: Buffer
    index: tuple[Expr | None, ...]
    store: bool
    facts: tuple[Expr, ...]


@dataclass(eq=False)
class Scope:
    """What is known at a statement: names of index expressions, and expressions at least 0."""

    lets: dict[Expr, Expr] = field(default_factory=dict)
    facts: tuple[Expr, ...] = ()

    def with_facts(self, facts: Iterable[Expr]) -> Scope:
        return Scope(dict(self.lets), (*self.facts, *facts))

    def loop(self, s: For) -> Scope:
        """The scope of a loop's body."""
        extent = substitute(wrap(s.extent), self.lets)
        return self.with_facts([] if _reads(extent) else range_facts(s.var, extent))

    def branch(self, s: If, holds: bool) -> Scope:
        condition = substitute(s.condition, self.lets)
        return self.with_facts([] if _reads(condition) else facts_of(condition, holds))

    def let(self, s: Let) -> None:
        """Notes a name."""
        value = substitute(s.value, self.lets)
        if s.var.extent is not None:
            self.facts = (*self.facts, *range_facts(s.var, wrap(s.var.extent)))
        if value.dtype.name == "i64" and not _reads(value) and not _is_part(s.var, value):
            self.lets[s.var] = value


def _is_part(v: Var, value: Expr) -> bool:
    """Whether a name stands for the quotient or remainder of a variable."""
    return v.extent is not None and isinstance(value, Op) and value.name in (
        "floordiv", "mod") and isinstance(value.args[0], Var)


def scope_of(kernel: Kernel, target: Stmt) -> Scope:
    """What is known where a statement of the kernel starts."""
    found = _scope_below(kernel.body, target, Scope())
    assert found is not None
    return found


def _scope_below(block: Block, target: Stmt, scope: Scope) -> Scope | None:
    for s in block.body:
        if s is target:
            return scope
        found = None
        if isinstance(s, Let):
            scope.let(s)
        elif isinstance(s, For):
            found = _scope_below(s.body, target, scope.loop(s))
        elif isinstance(s, While):
            found = _scope_below(s.body, target, scope.with_facts(()))
        elif isinstance(s, If):
            found = _scope_below(s.then, target, scope.branch(s, True)) or _scope_below(
                s.orelse, target, scope.branch(s, False))
        if found is not None:
            return found
    return None


def _reads(e: Expr) -> bool:
    return any(isinstance(x, Load) for x in walk(e))


class Accesses:
    """The accesses below a loop to memory that outlives one of its iterations.

    `variables` are those that differ between iterations: of loops, of lanes, and names of the
    quotient and remainder of another one, which then stand for it (`parts`). `scope` is what
    holds around the loop.
    """

    def __init__(self, loop: For, scope: Scope):
        self.found: list[Access] = []
        self.variables: list[Var] = []
        self.parts: dict[Var, dict[tuple[str, Expr], Var]] = {}
        self._opaque: set[Var] = set()
        self._private: set[Buffer] = set()
        self._loop(loop, scope)

    def _loop(self, s: For, scope: Scope) -> None:
        self.variables.append(s.var)
        self._block(s.body, scope.loop(s))

    def _block(self, block: Block, scope: Scope) -> None:
        for s in block.body:
            for e in expressions(s):
                self._loads(s, e, scope)
            self._statement(s, scope)

    def _statement(self, s: Stmt, scope: Scope) -> None:
        if isinstance(s, Block):
            self._block(s, scope)
        elif isinstance(s, For):
            self._loop(s, scope)
        elif isinstance(s, While):
            self._block(s.body, scope.with_facts(()))
        elif isinstance(s, If):
            self._block(s.then, scope.branch(s, True))
            self._block(s.orelse, scope.branch(s, False))
        elif isinstance(s, Let):
            self._let(s, scope)
        elif isinstance(s, Alloc):
            self._private.add(s.buffer)
        elif isinstance(s, Store):
            wide = s.index[-1].lanes if s.index else 1
            lanes = s.value.lanes // s.buffer.lanes if wide == 1 else 1
            self._access(s, s.buffer, s.index, lanes, s.count, scope, True)

    def _let(self, s: Let, scope: Scope) -> None:
        value = substitute(s.value, scope.lets)
        scope.let(s)
        if s.var in scope.lets and not self._unknown(value):
            return
        whole = value.args[0] if _is_part(s.var, value) else None
        if isinstance(whole, Var) and isinstance(value, Op) and whole in self.variables \
                and not any(v in self.variables for v in free_vars(value.args[1])):
            self.parts.setdefault(whole, {})[value.name, value.args[1]] = s.var
            self.variables.append(s.var)
        elif s.var not in scope.lets:
            self._opaque.add(s.var)

    def _unknown(self, e: Expr) -> bool:
        return any(isinstance(x, Load) or x in self._opaque for x in walk(e))

    def _loads(self, s: Stmt, e: Expr, scope: Scope) -> None:
        for x in walk(e):
            if isinstance(x, Load):
                self._access(s, x.buffer, x.index, x.key[2], x.count, scope, False)

    def _access(self, s: Stmt, buffer: Buffer, index: Iterable[Expr], lanes: int,
                count: Expr | None, scope: Scope, store: bool) -> None:
        if buffer in self._private:
            return
        facts = scope.facts
        found: list[Expr | None] = []
        where = [substitute(i, scope.lets) for i in index]
        if where and max(lanes, where[-1].lanes) > 1:
            lanes = max(lanes, where[-1].lanes)
            lane = var(f"lane.{lanes}", extent=lanes)
            if lane not in self.variables:
                self.variables.append(lane)
            facts = (*facts, lanes - 1 - lane)
            last = where[-1]
            if last.lanes == 1:
                where[-1] = last + lane
            elif isinstance(last, Ramp) and last.args[0].lanes == 1:
                where[-1] = last.args[0] + lane * last.stride
            limit = None if count is None else substitute(count, scope.lets)
            if limit is not None and not self._unknown(limit):
                facts = (*facts, *_differences(limit, lane, 1))
        for i in where:
            found.append(None if i.lanes > 1 or self._unknown(i) else i)
        self.found.append(Access(s, buffer, tuple(found), store, facts))


# Conflicts ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Conflict:
    """Statements that may touch one element of a buffer in different iterations, a store among
    them; `equal` are the variables that are then the same. `reduction` is the operation when all
    of them only combine values into the element."""

    buffer: Buffer
    statements: tuple[Stmt, ...]
    equal: frozenset[Var]
    reduction: str | None

    def exact(self) -> bool:
        """Whether the order of a reduction does not matter to the last bit."""
        return self.reduction is not None and (
            not self.buffer.dtype.is_float or self.reduction in EXACT_REDUCTIONS)


def conflicts(loop: For, scope: Scope) -> Iterator[Conflict]:
    """The conflicts between iterations of a loop nest, one for each buffer that it writes."""
    accesses = Accesses(loop, scope)
    buffers = dict.fromkeys(a.buffer for a in accesses.found if a.store)
    for buffer in buffers:
        group = [a for a in accesses.found if a.buffer is buffer]
        equal = _forced(group, accesses)
        places = dict.fromkeys(a.statement for a in sorted(group, key=lambda a: not a.store))
        yield Conflict(buffer, tuple(places), frozenset(equal), _reduction(group))


def effects(loop: For) -> list[Stmt]:
    """Statements below a loop whose effect on memory is not known."""
    return [s for s in statements(loop.body) if isinstance(s, (Do, Barrier))]


def _reduction(group: list[Access]) -> str | None:
    kinds = {reduction_of(a.statement) for a in group}
    return kinds.pop() if len(kinds) == 1 else None


def reduction_of(s: Stmt) -> str | None:
    """The operation of x[i] = operation(x[i], value), else None."""
    if not isinstance(s, Store) or not isinstance(s.value, Op) or s.value.name not in REDUCTIONS:
        return None
    def own(e: Expr) -> bool:
        return isinstance(e, Load) and e.buffer is s.buffer and e.index == s.index \
            and e.lanes == s.value.lanes and e.count is s.count

    first, second = s.value.args
    rest = second if own(first) else first if own(second) else None
    if rest is None or any(isinstance(x, Load) and x.buffer is s.buffer
                           for x in walk(rest, *s.index)):
        return None
    return s.value.name


def _forced(group: list[Access], accesses: Accesses) -> set[Var]:
    """The variables that are equal whenever two accesses of the group meet."""
    equal = {v for v in accesses.variables if v.extent == 1}
    axes = range(group[0].buffer.rank)
    for _ in axes:  # what one axis says can help the others
        before = len(equal)
        for axis in axes:
            equal |= _forced_by(axis, group, accesses.variables, equal)
        for whole, parts in reversed(accesses.parts.items()):
            for (name, divisor), part in parts.items():
                other = parts.get(("mod" if name == "floordiv" else "floordiv", divisor))
                if part in equal and other in equal:
                    equal.add(whole)
        if len(equal) == before:
            break
    return equal


def _forced_by(axis: int, group: list[Access], variables: list[Var], equal: set[Var]) -> set[Var]:
    """Those that equal indices along one axis force, when the ones in `equal` are."""
    slopes: dict[Var, Expr] = {}
    rests: list[Expr] = []
    for k, access in enumerate(group):
        rest = access.index[axis]
        if rest is None:
            return set()
        for v in variables:
            split = linear_in(rest, v)
            if split is None:
                return set()
            if k == 0:
                slopes[v] = split[0]
            elif slopes[v] is not split[0]:
                return set()
            rest = split[1]
        rests.append(rest)
    if any(v in free_vars(e) for e in (*slopes.values(), *rests) for v in variables):
        return set()
    varying = {v: s for v, s in slopes.items() if s is not wrap(0) and v not in equal}
    flipped: dict[Expr, Expr] = {
        v: wrap(v.extent) - 1 - v for v, s in varying.items()
        if v.extent is not None and at_least(s * -1, 1)}
    for v in flipped:
        assert isinstance(v, Var)
        rests = [r + varying[v] * (wrap(v.extent) - 1) for r in rests]
        varying[v] = varying[v] * -1
    facts = [[substitute(f, flipped) for f in a.facts] if flipped else list(a.facts)
             for a in group]
    return _windows(varying, rests, facts)


def _windows(varying: dict[Var, Expr], rests: list[Expr], facts: list[list[Expr]]) -> set[Var]:
    """The variables v_k that sums s_k v_k + r determine, where r is the rest of each access."""
    start = next((r for r in rests if all(proves(x - r, f)
                                          for x, f in zip(rests, facts, strict=True))), None)
    if start is None:
        return set()
    found: set[Var] = set()
    below = dict(sorted(varying.items(), key=lambda item: _size(item[1])))
    while below:
        *others, largest = below
        low = _sum(below, others)
        if not all(proves(low + r - start, known) and proves(below[largest] - 1 - low - r + start,
                                                             known)
                   for r, known in zip(rests, facts, strict=True)):
            break
        found.add(largest)
        del below[largest]
    apart = _apart(_sum(below, below), rests, facts, start) if below else []
    if apart:
        found |= set.intersection(*(_windows(below, [rests[k] for k in part],
                                             [facts[k] for k in part]) for part in apart))
    return found


def _apart(low: Expr, rests: list[Expr], facts: list[list[Expr]], start: Expr) -> list[list[int]]:
    """The accesses by their rests when those with different ones never meet, low + r being
    below the next larger rest."""
    ordered = sorted(dict.fromkeys(rests), key=lambda r: _size(r - start))
    parts = [[k for k, r in enumerate(rests) if r is rest] for rest in ordered]
    for rest, above, part in zip(ordered, ordered[1:], parts, strict=False):
        if not all(proves(above - rest - 1 - low, facts[k]) for k in part):
            return []
    return parts if len(parts) > 1 and all(proves(low, f) for f in facts) else []


def _sum(slopes: dict[Var, Expr], variables: Iterable[Var]) -> Expr:
    total: Expr = wrap(0)
    for v in variables:
        total = total + slopes[v] * v
    return total


def _size(e: Expr) -> tuple[int, int]:
    """Orders slopes, roughly: a wrong order only loses a proof."""
    p = poly(e)
    return max(map(len, p), default=0), max(p.values(), default=0)
