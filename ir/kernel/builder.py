"""Writes kernels in the order they run.

    b = Builder("scale")
    x, y = b.param("x", dt.f32, (n,)), b.param("y", dt.f32, (n,))
    with b.loop("i", n, "parallel") as i:
        b.store(y, i, x[i] * 2.0)
    kernel = b.kernel(outputs=1)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import dtype as dt
from ..dtype import DType
from ..expr import Const, Expr, Var, broadcast, free_vars, op, var, wrap
from .nodes import (
    Alloc,
    Barrier,
    Block,
    Buffer,
    Call,
    Do,
    For,
    If,
    Kernel,
    Let,
    Prefetch,
    Stmt,
    Store,
    While,
    expressions,
    load,
    statements,
)


class Builder:
    """Collects statements into nested blocks. Names get a number, so they never clash."""

    def __init__(self, name: str, origin: str = ""):
        self.name = name
        self.origin = origin
        self.params: list[Buffer] = []
        self._blocks: list[list[Stmt]] = [[]]
        self._count = 0

    def _unique(self, name: str) -> str:
        self._count += 1
        # Names such as d7 and round2 are those of sizes.
        return f"{name}{'_' if name in ('d', 'round') else ''}{self._count}"

    def param(self, name: str, dtype: DType, shape: Sequence[Any], space: str = "global",
              lanes: int = 1, bits: int = 0, banks: tuple[int, ...] = ()) -> Buffer:
        """A parameter of the kernel; outputs come last."""
        buffer = Buffer(self._unique(name), dtype, tuple(shape), space, lanes, None, bits, banks)
        self.params.append(buffer)
        return buffer

    def alloc(self, name: str, dtype: DType, shape: Sequence[Any], space: str = "local",
              lanes: int = 1, bits: int = 0, banks: tuple[int, ...] = ()) -> Buffer:
        """Storage for the rest of the current block, contents undefined."""
        buffer = Buffer(self._unique(name), dtype, tuple(shape), space, lanes, None, bits, banks)
        self.emit(Alloc(buffer))
        return buffer

    def scalar(self, name: str, dtype: DType, initial=None) -> Buffer:
        """A mutable scalar; read it with `s[()]`, write it with `b.store(s, (), value)`."""
        buffer = self.alloc(name, dtype, (), "register")
        if initial is not None:
            self.store(buffer, (), initial)
        return buffer

    def emit(self, statement: Stmt) -> None:
        self._blocks[-1].append(statement)

    def let(self, name: str, value) -> Expr:
        """Names a value for the rest of the block and returns the name; constants stay as is."""
        value = wrap(value)
        if isinstance(value, (Const, Var)):
            return value
        if value.lanes > 1:
            holder = self.alloc(name, value.dtype, (), "register", value.lanes)
            self.store(holder, (), value)
            return holder[()]
        variable = var(self._unique(name), value.dtype)
        self.emit(Let(variable, value))
        return variable

    def store(self, buffer: Buffer, index, value, count=None) -> None:
        """buffer[index] = value; Python numbers take the buffer's dtype."""
        index = tuple(wrap(i) for i in (index if isinstance(index, tuple) else (index,)))
        if len(index) != buffer.rank:
            raise ValueError(f"{buffer.name} has rank {buffer.rank}, indexed by {len(index)}")
        value = wrap(value, buffer.dtype)
        if value.dtype is not buffer.dtype:
            raise TypeError(f"store of {value.dtype} to {buffer.name} of {buffer.dtype}")
        if value.lanes < buffer.lanes:
            value = broadcast(value, buffer.lanes)
        self.emit(Store(buffer, index, value, None if count is None else wrap(count)))

    def load(self, buffer: Buffer, index, lanes: int = 1, count=None) -> Expr:
        index = index if isinstance(index, tuple) else (index,)
        return load(buffer, index, lanes, count)

    def update(self, buffer: Buffer, index, kind: str, value) -> None:
        """buffer[index] = kind(buffer[index], value), kind an operation such as "add"."""
        index = index if isinstance(index, tuple) else (index,)
        self.store(buffer, index, op(kind, load(buffer, index), wrap(value, buffer.dtype)))

    @contextmanager
    def loop(self, name: str, extent, kind: str = "serial", grain: int = 1,
             ii: int = 1) -> Iterator[Var]:
        """for 0 <= v < extent."""
        variable = var(self._unique(name), extent=wrap(extent))
        with self._nested() as body:
            yield variable
        self.emit(For(variable, extent, Block(*body), kind, grain, ii))

    @contextmanager
    def loops(self, name: str, extents: Sequence[Any], kind: str = "serial", grain: int = 1):
        """A nest of loops, one per extent, outermost first; yields their variables. `kind` and
        `grain` are those of the outermost."""
        variables = tuple(var(self._unique(name), extent=wrap(e)) for e in extents)
        with self._nested() as body:
            yield variables
        block = Block(*body)
        for k in reversed(range(len(variables))):
            outermost = (kind, grain) if k == 0 else ("serial", 1)
            block = Block(For(variables[k], extents[k], block, *outermost))
        self.emit(block)

    @contextmanager
    def when(self, condition) -> Iterator[None]:
        """if condition: ..."""
        with self._nested() as body:
            yield
        self.emit(If(wrap(condition, dt.bool_), Block(*body)))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """The else of the `when` just closed."""
        before = self._blocks[-1].pop()
        if not isinstance(before, If) or before.orelse.body:
            raise ValueError("otherwise() must follow when()")
        with self._nested() as body:
            yield
        self.emit(If(before.condition, before.then, Block(*body)))

    @contextmanager
    def while_(self, condition) -> Iterator[None]:
        """while condition: ...; the condition is evaluated before each round."""
        with self._nested() as body:
            yield
        self.emit(While(wrap(condition, dt.bool_), Block(*body)))

    def barrier(self, scope: str = "shared") -> None:
        self.emit(Barrier(scope))

    def prefetch(self, buffer: Buffer, index) -> None:
        """A hint that buffer[index] is read soon; the index may lie outside."""
        index = index if isinstance(index, tuple) else (index,)
        self.emit(Prefetch(buffer, tuple(wrap(i) for i in index)))

    def do(self, call: Call) -> None:
        self.emit(Do(call))

    @contextmanager
    def _nested(self) -> Iterator[list[Stmt]]:
        block: list[Stmt] = []
        self._blocks.append(block)
        try:
            yield block
        finally:
            self._blocks.pop()

    def kernel(self, outputs: int = 1, flops: Any = 0, bytes: Any = 0) -> Kernel:
        """The finished kernel; sizes are the variables that nothing in it defines."""
        body = Block(*self._blocks[0])
        return Kernel(self.name, tuple(self.params), sizes_of(self.params, body), body, outputs,
                      flops, bytes, self.origin)


def sizes_of(params: Sequence[Buffer], body: Block) -> tuple[Var, ...]:
    """The free variables of a kernel, by name."""
    used: dict[Var, None] = {}
    defined: set[Var] = set()
    for buffer in params:
        used.update(dict.fromkeys(free_vars(*buffer.shape)))
    for s in statements(body):
        if isinstance(s, (For, Let)):
            defined.add(s.var)
        for e in expressions(s):
            used.update(dict.fromkeys(free_vars(e)))
    return tuple(sorted((v for v in used if v not in defined), key=lambda v: v.name))
