"""Takes out of a kernel what its constants decide: loops of one round, conditions that are known,
names of constants, and names that nothing uses."""

from __future__ import annotations

from dataclasses import replace

from ...ir.expr import Const, Expr, Var, const, walk, wrap
from ...ir.kernel.nodes import (
    Block,
    For,
    If,
    Kernel,
    Let,
    Prefetch,
    Stmt,
    Store,
    While,
    expressions,
    statements,
)
from ..schedule.rewriting import Copier


def simplify(kernel: Kernel, hints: bool = True) -> Kernel:
    """The kernel with the same effect and no statement that its constants make superfluous; without
    `hints` no prefetch is left either."""
    body = _Simplifier(hints).block(kernel.body)
    while (smaller := _without_unused(body)) is not body:
        body = smaller
    return replace(kernel, body=body)


class _Simplifier(Copier):
    """Rewrites statements in program order; variables with a constant value disappear."""

    def __init__(self, hints: bool) -> None:
        super().__init__({})
        self._hints = hints

    def value(self, e) -> Expr:
        return super().value(e) if self._values else wrap(e)

    def block(self, block: Block) -> Block:
        return Block(*(x for s in block.body for x in self._kept(s)))

    def _kept(self, s: Stmt) -> list[Stmt]:
        """What becomes of a statement: nothing, or what it consists of."""
        if isinstance(s, Block):
            return list(self.block(s).body)
        if isinstance(s, For):
            return self._loop(s)
        if isinstance(s, If):
            return self._branch(s)
        if isinstance(s, Let):
            value = self.value(s.value)
            if isinstance(value, Const):
                self._values[s.var] = value
                return []
            return [Let(self._variable(s.var), value)]
        if isinstance(s, Prefetch) and not self._hints:
            return []
        return [self.statement(s)]

    def _loop(self, s: For) -> list[Stmt]:
        extent = self.value(s.extent)
        if isinstance(extent, Const) and extent.value <= 0:
            return []
        if isinstance(extent, Const) and extent.value == 1:
            self._values[s.var] = const(0, s.var.dtype)
            return list(self.block(s.body).body)
        return [self.statement(s)]

    def _branch(self, s: If) -> list[Stmt]:
        condition = self.value(s.condition)
        if isinstance(condition, Const):
            return list(self.block(s.then if condition.value else s.orelse).body)
        then, orelse = self.block(s.then), self.block(s.orelse)
        return [If(condition, then, orelse)] if then.body or orelse.body else []


def _without_unused(body: Block) -> Block:
    """The block without names that nothing uses; itself when there are none."""
    used: set[Var] = set()
    for s in statements(body):
        for e in _read(s):
            used.update(x for x in walk(e) if isinstance(x, Var))
    if all(s.var in used for s in statements(body) if isinstance(s, Let)):
        return body
    return _filtered(body, used)


def _read(s: Stmt) -> tuple[Expr, ...]:
    """The expressions of a statement, of the memory that it writes, and of the range that the
    variable it defines is promised to stay in."""
    if isinstance(s, Store):
        return (*expressions(s), *(wrap(d) for d in s.buffer.element_strides()))
    if isinstance(s, (For, Let)) and s.var.extent is not None:
        return (*expressions(s), wrap(s.var.extent))
    return expressions(s)


def _filtered(block: Block, used: set[Var]) -> Block:
    kept: list[Stmt] = []
    for s in block.body:
        if isinstance(s, Let) and s.var not in used:
            continue
        if isinstance(s, (For, While)):
            s = replace(s, body=_filtered(s.body, used))
        elif isinstance(s, If):
            s = If(s.condition, _filtered(s.then, used), _filtered(s.orelse, used))
            if not s.then.body and not s.orelse.body:
                continue
        kept.append(s)
    return Block(*kept)
