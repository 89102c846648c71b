"""The body of a loop as statements on lanes, one lane for each iteration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...ir import dtype as dt
from ...ir.expr import Const, Expr, Op, Var, broadcast, const, op, ramp, substitute, var, walk, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import (
    Alloc,
    Block,
    Buffer,
    For,
    If,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    expressions,
    load,
)
from ..lower.loops import LoopWriter, Machine, linear_in, value_nodes, vectorisable
from .dependence import Scope, facts_of, proves
from .rewriting import Names

IN_REGISTERS = (dt.f32, dt.i32, dt.u32)
"""Element types of registers of lanes."""


class NoLanes(Exception):
    """A statement has no form on lanes."""

    def __init__(self, statement: Stmt, why: str):
        super().__init__(why)
        self.statement = statement
        self.why = why


def in_lanes(loop: For, names: Names, scope: Scope) -> list[Stmt]:
    """What a loop of independent iterations does, without the loop; `scope` is known around it.
    Raises NoLanes."""
    assert isinstance(loop.extent, int)
    return _Lanes(loop.var, loop.extent, names).block(loop.body, scope.with_facts(()), None)


@dataclass(eq=False)
class _Lanes:
    variable: Var
    lanes: int
    names: Names
    # Names and scalars of the body, and the registers that hold them in lanes.
    wide: dict[Expr, Expr] = field(default_factory=dict)
    _registers: dict[Buffer, Buffer] = field(default_factory=dict)
    _values: dict[Expr, Expr] = field(default_factory=dict)

    def block(self, block: Block, scope: Scope, count: Expr | None) -> list[Stmt]:
        return [x for s in block.body for x in self._statement(s, scope, count)]

    def _statement(self, s: Stmt, scope: Scope, count: Expr | None) -> list[Stmt]:
        for e in expressions(s):
            for x in walk(e):
                if x.lanes > 1:
                    raise NoLanes(s, "it works on lanes already")
        if isinstance(s, Store):
            return [self._store(s, count)]
        if isinstance(s, Let):
            return self._let(s, scope, count)
        if isinstance(s, Alloc):
            if s.buffer.shape or s.buffer.lanes > 1 or s.buffer.dtype not in IN_REGISTERS:
                raise NoLanes(s, "each lane would need an array of its own" if s.buffer.shape else
                              f"there are no registers of lanes of {s.buffer.dtype}")
            self._registers[s.buffer] = new = replace(s.buffer, lanes=self.lanes)
            self.wide[s.buffer[()]] = new[()]
            return [Alloc(new)]
        if isinstance(s, For):
            if self._varies(wrap(s.extent)):
                raise NoLanes(s, "it runs differently often in each lane")
            body = Block(*self.block(s.body, scope.loop(s), count))
            return [replace(s, extent=self._uniform(wrap(s.extent)), body=body)]
        if isinstance(s, If):
            return self._branch(s, scope, count)
        if isinstance(s, Prefetch):
            return [Prefetch(s.buffer, tuple(self._uniform(i) for i in s.index))]
        raise NoLanes(s, f"{type(s).__name__} has no form on lanes")

    def _branch(self, s: If, scope: Scope, count: Expr | None) -> list[Stmt]:
        condition = substitute(s.condition, self._values)
        if not self._varies(condition):
            return [If(condition, Block(*self.block(s.then, scope.branch(s, True), count)),
                       Block(*self.block(s.orelse, scope.branch(s, False), count)))]
        limits = self._limits(condition)
        if not limits or s.orelse.body or count is not None:
            raise NoLanes(s, "the condition does not choose the first lanes")
        least = limits[0]
        for limit in limits[1:]:
            least = op("min", least, limit)
        name = var(self.names.fresh(f"{self.variable.name}_n"))
        body = Block(*self.block(s.then, scope.branch(s, True), name))
        if not all(proves(substitute(x, scope.lets) - 1, scope.facts) for x in limits):
            body = Block(If(op("gt", name, 0), body))
        return [Let(name, op("min", least, self.lanes)), *body.body]

    def _limits(self, condition: Expr) -> list[Expr]:
        """Numbers of lanes: the condition holds in lanes below all of them. Empty if it is not of
        this kind."""
        if not isinstance(condition, Op) or condition.name not in ("lt", "le", "gt", "ge"):
            return []
        found = []
        for fact in facts_of(condition):
            parts = linear_in(fact, self.variable)
            if parts is None or parts[0] is not const(-1) or self._varies(parts[1]):
                return []
            found.append(parts[1] + 1)
        return found

    def _let(self, s: Let, scope: Scope, count: Expr | None) -> list[Stmt]:
        value = substitute(s.value, self._values)
        if not self._varies(value):
            new = replace(s, value=value)
            scope.let(new)
            return [new]
        if s.var.dtype is dt.i64 and linear_in(value, self.variable) is not None and not any(
                isinstance(x, Load) for x in walk(value)):
            self._values[s.var] = value
            return []
        if s.var.dtype not in IN_REGISTERS:
            raise NoLanes(s, f"there are no registers of lanes of {s.var.dtype}")
        register = Buffer(self.names.fresh(f"{s.var.name}_v"), s.var.dtype, (), "register",
                          self.lanes)
        stored = broadcast(self._value(s, value, count), self.lanes)
        self.wide[s.var] = register[()]
        return [Alloc(register), Store(register, (), stored)]

    def _store(self, s: Store, count: Expr | None) -> Stmt:
        value = broadcast(self._value(s, substitute(s.value, self._values), count), self.lanes)
        if s.buffer in self._registers:
            return Store(self._registers[s.buffer], (), value)
        index = tuple(substitute(i, self._values) for i in s.index)
        where = self._place(s, s.buffer, index)
        return Store(s.buffer, where, value, count)

    def _place(self, s: Stmt, buffer: Buffer, index: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """The index of lanes: that of the first when they are contiguous, else a ramp."""
        if any(self._varies(i) for i in index[:-1]):
            raise NoLanes(s, f"the lanes are not along the last axis of {buffer.name}")
        parts = linear_in(index[-1], self.variable)
        if parts is None or not isinstance(parts[0], Const) or self._varies(parts[1]):
            raise NoLanes(s, f"the places in {buffer.name} are not evenly spaced")
        if buffer.space == "register" or buffer.lanes > 1:
            raise NoLanes(s, f"{buffer.name} is in registers, which have no addresses")
        slope = parts[0].value
        last = parts[1] if slope == 1 else ramp(parts[1], self.lanes, slope)
        return (*index[:-1], last)

    def _value(self, s: Stmt, e: Expr, count: Expr | None) -> Expr:
        """A value in lanes, or once when they all have the same."""
        if not self._varies(e):
            return e
        bound, probes = dict(self.wide), dict[Expr, Expr]()
        for k, x in enumerate(self.wide):
            probe = Buffer(f"probe{k}", x.dtype, (1 << 30,))
            probes[x] = load(probe, (self.variable,))
        for x in value_nodes(e):
            if isinstance(x, Load) and x not in bound and any(map(self._varies, x.index)):
                where = self._place(s, x.buffer, x.index)
                lanes = self.lanes if where[-1].lanes == 1 else 1
                bound[x] = load(x.buffer, where, lanes, count)
        if not vectorisable(substitute(e, probes), self.variable, strided=True):
            raise NoLanes(s, "lanes cannot compute the value")
        writer = LoopWriter(Builder("lanes"), Machine(self.lanes))
        return writer.value(e, self.variable, self.lanes, const(0), count, bound)

    def _varies(self, e: Expr) -> bool:
        return any(x is self.variable or x in self.wide or x in self._values for x in walk(e))

    def _uniform(self, e: Expr) -> Expr:
        """The value in the first lane."""
        return substitute(substitute(e, self._values), {self.variable: const(0)})
