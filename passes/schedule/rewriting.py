"""Kernels with a statement exchanged, and copies of statements with other names and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ...ir.expr import Expr, Var, free_vars, rebuild, var, walk, wrap
from ...ir.kernel.nodes import (
    Alloc,
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


def exchange(kernel: Kernel, target: Stmt, by: Iterable[Stmt]) -> Kernel:
    """The kernel with other statements in the place of one."""
    by = tuple(by)

    def block(b: Block) -> Block:
        return Block(*(x for s in b.body for x in (by if s is target else (inner(s),))))

    def inner(s: Stmt) -> Stmt:
        if isinstance(s, (For, While)):
            body = block(s.body)
            return s if body.body == s.body.body else replace(s, body=body)
        if isinstance(s, If):
            then, orelse = block(s.then), block(s.orelse)
            same = then.body == s.then.body and orelse.body == s.orelse.body
            return s if same else If(s.condition, then, orelse)
        return s

    return replace(kernel, body=block(kernel.body))


class Names:
    """Hands out names that a kernel does not use."""

    def __init__(self, kernel: Kernel):
        self.taken = {b.name for b in kernel.params} | {v.name for v in kernel.sizes}
        self.taken |= self.defined(kernel.body)
        for s in statements(kernel.body):
            for e in expressions(s):
                self.taken.update(x.name for x in walk(e) if isinstance(x, Var))

    @staticmethod
    def defined(body: Block) -> set[str]:
        """The names that statements define."""
        return {s.buffer.name if isinstance(s, Alloc) else s.var.name
                for s in statements(body) if isinstance(s, (Alloc, For, Let))}

    def fresh(self, name: str) -> str:
        """`name`, with a number if it is taken."""
        found, k = name, 1
        while found in self.taken:
            k += 1
            found = f"{name}_{k}"
        self.taken.add(found)
        return found


class Copier:
    """Copies statements with variables exchanged for values and buffers for others. With `names`,
    whatever the copies define gets a name of its own."""

    def __init__(self, values: dict[Expr, Expr], buffers: dict[Buffer, Buffer] | None = None,
                 names: Names | None = None):
        self._values = dict(values)
        self._buffers = dict(buffers or {})
        self._names = names

    def value(self, e) -> Expr:
        e = wrap(e)
        memo = dict(self._values)
        for x in walk(e):
            if x in memo:
                continue
            args = tuple(memo[a] for a in x.args)
            if isinstance(x, Load) and x.buffer in self._buffers:
                rank = x.buffer.rank
                lanes = 1 if any(a.lanes > 1 for a in args[:rank]) else x.key[2]
                memo[x] = load(self._buffers[x.buffer], args[:rank], lanes,
                               args[rank] if len(args) > rank else None)
            else:
                memo[x] = rebuild(x, args)
        return memo[e]

    def block(self, block: Block) -> Block:
        return Block(*(self.statement(s) for s in block.body))

    def statement(self, s: Stmt) -> Stmt:
        if isinstance(s, Block):
            return self.block(s)
        if isinstance(s, For):
            extent = self.value(s.extent)
            return For(self._variable(s.var), extent, self.block(s.body), s.kind, s.grain, s.ii)
        if isinstance(s, While):
            return While(self.value(s.condition), self.block(s.body))
        if isinstance(s, If):
            return If(self.value(s.condition), self.block(s.then), self.block(s.orelse))
        if isinstance(s, Let):
            value = self.value(s.value)
            return Let(self._variable(s.var), value)
        if isinstance(s, Alloc):
            return Alloc(self._buffer(s.buffer))
        if isinstance(s, Store):
            return Store(self._buffers.get(s.buffer, s.buffer),
                         tuple(self.value(i) for i in s.index), self.value(s.value),
                         None if s.count is None else self.value(s.count))
        if isinstance(s, Prefetch):
            return Prefetch(self._buffers.get(s.buffer, s.buffer),
                            tuple(self.value(i) for i in s.index))
        if isinstance(s, Do):
            call = self.value(s.call)
            assert isinstance(call, Call)
            return Do(call)
        return s

    def _variable(self, v: Var) -> Var:
        """What a definition of `v` defines in the copy."""
        moved = v.extent is not None and any(x in self._values for x in free_vars(v.extent))
        if not moved and self._names is None:
            return v
        name = v.name if self._names is None else self._names.fresh(v.name)
        extent = None if v.extent is None else self.value(v.extent)
        self._values[v] = new = var(name, v.dtype, extent=extent, low=v.low)
        return new

    def _buffer(self, buffer: Buffer) -> Buffer:
        sizes = [wrap(d) for d in (*buffer.shape, *(buffer.strides or ()))]
        moved = any(x in self._values for x in free_vars(*sizes))
        if not moved and self._names is None:
            return buffer
        name = buffer.name if self._names is None else self._names.fresh(buffer.name)
        strides = buffer.strides and tuple(self.value(d) for d in buffer.strides)
        self._buffers[buffer] = new = replace(
            buffer, name=name, shape=tuple(self.value(d) for d in buffer.shape), strides=strides)
        return new
