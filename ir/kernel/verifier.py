"""Checks that a kernel is well formed, and refuses what is provably wrong in any run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from ...errors import ModelError
from .. import dtype as dt
from ..algebra import at_least, poly
from ..expr import Cast, Expr, Op, Ramp, Reduce, Var, free_vars, substitute, walk, wrap
from . import arithmetic
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
    Load,
    Prefetch,
    Stmt,
    Store,
    While,
    expressions,
)

SERIAL = ("serial", "unroll", "pipeline")


def verify(kernel: Kernel, when: str = "") -> None:
    """Raises ModelError naming the kernel when it breaks a rule of the kernel IR.

    Checked: names are unique and defined before use, in scope; ranks, dtypes and lanes of loads,
    stores, conditions and calls agree; loops keep the ranges that their variables promise;
    outputs are written. Refused as provably wrong: an index that leaves its buffer in some
    iteration of the loops around it, unless a condition guards it; in a parallel loop, a store
    to shared memory whose place is the same in all iterations; a barrier that not all threads
    of a block reach. `when` is added to the message.
    """
    _Verifier(kernel, f" ({when})" if when else "").run()


@dataclass
class _Scope:
    """What holds at a statement: the loops around it, whether a condition guards it."""

    loops: tuple[For, ...] = ()
    conditions: tuple[Expr, ...] = ()
    buffers: dict[Buffer, int] = field(default_factory=dict)  # to the number of loops around it
    variables: set[Var] = field(default_factory=set)
    lets: dict[Var, Expr] = field(default_factory=dict)

    def inner(self) -> _Scope:
        return _Scope(self.loops, self.conditions, dict(self.buffers), set(self.variables),
                      dict(self.lets))


class _Verifier:
    def __init__(self, kernel: Kernel, when: str):
        self.kernel = kernel
        self.when = when
        self.stored: set[Buffer] = set()
        self.calls: set[tuple] = set()
        self.sound: set[Expr] = set()

    def fail(self, message: str) -> NoReturn:
        raise ModelError(f"kernel {self.kernel.name}: {message}{self.when}")

    def run(self) -> None:
        kernel = self.kernel
        scope = _Scope()
        for v in kernel.sizes:
            if v.dtype is not dt.i64:
                self.fail(f"size {v.name} is {v.dtype}, not i64")
            self.define(scope, v)
        for buffer in kernel.params:
            self.define_buffer(scope, buffer)
        if not 0 <= kernel.outputs <= len(kernel.params):
            self.fail(f"{kernel.outputs} outputs among {len(kernel.params)} parameters")
        self.block(kernel.body, scope)
        for buffer in kernel.params[len(kernel.params) - kernel.outputs:]:
            if buffer not in self.stored and not any(_is_zero(d) for d in buffer.shape):
                self.fail(f"output {buffer.name} is never written")

    # Scopes -------------------------------------------------------------------------------------

    def named(self, scope: _Scope, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            self.fail(f"{name!r} is no name")
        if any(v.name == name for v in scope.variables) or any(
                b.name == name for b in scope.buffers):
            self.fail(f"{name} is defined twice")

    def define(self, scope: _Scope, v: Var) -> None:
        self.named(scope, v.name)
        if v.extent is not None:
            self.scoped(wrap(v.extent), scope)
        scope.variables.add(v)

    def define_buffer(self, scope: _Scope, buffer: Buffer) -> None:
        self.named(scope, buffer.name)
        for d in (*buffer.shape, *(buffer.strides or ())):
            self.scoped(wrap(d), scope)
        if buffer.strides is not None and len(buffer.strides) != buffer.rank:
            self.fail(f"{buffer.name} has rank {buffer.rank} and {len(buffer.strides)} strides")
        scope.buffers[buffer] = len(scope.loops)

    def scoped(self, e: Expr, scope: _Scope) -> None:
        for x in walk(e):
            if isinstance(x, Var) and x not in scope.variables:
                self.fail(f"{x.name} is used where it is not defined")
            if isinstance(x, Load) and x.buffer not in scope.buffers:
                self.fail(f"buffer {x.buffer.name} is used where it is not defined")

    # Statements ---------------------------------------------------------------------------------

    def block(self, block: Block, scope: _Scope) -> None:
        for s in block.body:
            for e in expressions(s):
                self.scoped(e, scope)
                self.well_typed(e)
            self.statement(s, scope)

    def statement(self, s: Stmt, scope: _Scope) -> None:
        if isinstance(s, Block):
            self.block(s, scope)
            return
        for e in expressions(s):
            for load in _certain_loads(e):
                self.bounds(load.buffer, load.index, load.key[2], load.count, scope)
        if isinstance(s, Let):
            if s.value.lanes != 1 or s.value.dtype is not s.var.dtype:
                self.fail(f"{s.var.name} of {s.var.dtype} names {s.value.lanes} lanes of "
                          f"{s.value.dtype}")
            self.define(scope, s.var)
            scope.lets[s.var] = s.value
        elif isinstance(s, Alloc):
            if s.buffer.space == "shared" and any(f.kind.startswith("block")
                                                  for f in scope.loops):
                self.fail(f"shared {s.buffer.name} is allocated by a single thread")
            self.define_buffer(scope, s.buffer)
        elif isinstance(s, Store):
            self.store(s, scope)
        elif isinstance(s, For):
            self.loop(s, scope)
        elif isinstance(s, (If, While)):
            if s.condition.dtype is not dt.bool_ or s.condition.lanes != 1:
                self.fail(f"a condition of {s.condition.lanes} lanes of {s.condition.dtype}")
            for body in ((s.then, s.orelse) if isinstance(s, If) else (s.body,)):
                inner = scope.inner()
                inner.conditions = (*scope.conditions, s.condition)
                self.block(body, inner)
        elif isinstance(s, Barrier):
            for f in scope.loops:
                if f.kind.startswith("block") and any(
                        self.depends(c, f, scope) for c in scope.conditions):
                    self.fail(f"not every thread of {f.var.name} reaches a barrier")
        elif isinstance(s, Prefetch):
            if s.buffer not in scope.buffers or len(s.index) != s.buffer.rank:
                self.fail(f"prefetch of {s.buffer.name}, which is not in scope or of another rank")
        elif not isinstance(s, Do):
            self.fail(f"unknown statement {type(s).__name__}")

    def loop(self, s: For, scope: _Scope) -> None:
        extent = wrap(s.extent)
        if s.var.dtype is not dt.i64 or extent.dtype is not dt.i64 or extent.lanes != 1:
            self.fail(f"loop {s.var.name} of {s.var.dtype} runs to {extent!r}")
        promised = s.var.extent
        if promised is not None and not at_least(wrap(promised) - extent, 0):
            self.fail(f"loop {s.var.name} runs to {extent!r} but promises to stay below "
                      f"{promised!r}")
        axis = s.kind if "." in s.kind else None
        if axis is not None and any(f.kind == axis for f in scope.loops):
            self.fail(f"loop {s.var.name} is on {axis} inside another one")
        if axis is not None and axis.startswith("grid") and any(
                f.kind.startswith("block") for f in scope.loops):
            self.fail(f"grid loop {s.var.name} lies inside a block loop")
        inner = scope.inner()
        inner.loops = (*scope.loops, s)
        self.define(inner, s.var)
        self.block(s.body, inner)

    def store(self, s: Store, scope: _Scope) -> None:
        buffer = s.buffer
        if buffer not in scope.buffers:
            self.fail(f"buffer {buffer.name} is used where it is not defined")
        if s.value.dtype is not buffer.dtype:
            self.fail(f"{s.value.dtype} is stored to {buffer.name} of {buffer.dtype}")
        self.access(buffer, s.index, s.count)
        wide = s.index[-1].lanes if s.index else 1
        if s.value.lanes % buffer.lanes or (
                wide > 1 and s.value.lanes != wide * buffer.lanes):
            self.fail(f"{s.value.lanes} lanes are stored to {buffer.name} at {wide} indices of "
                      f"{buffer.lanes}")
        lanes = 1 if wide > 1 else s.value.lanes // buffer.lanes
        self.bounds(buffer, s.index, lanes, s.count, scope)
        self.stored.add(buffer)
        level = scope.buffers[buffer]
        for f in scope.loops[level:]:
            if f.kind in SERIAL or f.extent == 1:
                continue
            if not any(self.depends(e, f, scope) for e in (*s.index, *scope.conditions)):
                self.fail(f"all iterations of the {f.kind} loop {f.var.name} write the same "
                          f"element of {buffer.name}")

    def depends(self, e: Expr, loop: For, scope: _Scope) -> bool:
        """Whether a value may differ between iterations of a loop: it mentions its variable, or
        memory or a variable of the loop's body."""
        level = scope.loops.index(loop)
        stack, seen = [e], set()
        while stack:
            x = stack.pop()
            if x in seen:
                continue
            seen.add(x)
            if x is loop.var:
                return True
            if isinstance(x, Load) and scope.buffers.get(x.buffer, 0) > level:
                return True
            if isinstance(x, Var) and x in scope.lets:
                stack.append(scope.lets[x])
            stack.extend(x.args)
        return False

    # Expressions --------------------------------------------------------------------------------

    def well_typed(self, e: Expr) -> None:
        for x in walk(e):
            if x in self.sound:
                continue
            self.sound.add(x)
            if isinstance(x, Load):
                self.access(x.buffer, x.index, x.count)
            elif isinstance(x, Reduce):
                self.fail(f"a reduction is left in an expression: {x!r}")
            elif isinstance(x, Cast) and x.mode == "bits":
                if x.dtype.itemsize != x.args[0].dtype.itemsize:
                    self.fail(f"the bits of {x.args[0].dtype} do not make a {x.dtype}")
            elif isinstance(x, Ramp) and (x.args[0].dtype is not dt.i64
                                          or x.lanes % x.args[0].lanes
                                          or not isinstance(x.args[0], Ramp)
                                          and x.args[0].lanes != 1):
                self.fail(f"a ramp starts at {x.args[0]!r}, not at one i64 or a ramp")
            elif isinstance(x, Op) and any(a.lanes != x.lanes for a in x.args):
                self.fail(f"{x.name} on different numbers of lanes")
            elif isinstance(x, Call):
                self.call(x)

    def access(self, buffer: Buffer, index: tuple[Expr, ...], count: Expr | None) -> None:
        if len(index) != buffer.rank:
            self.fail(f"{buffer.name} has rank {buffer.rank}, indexed by {len(index)}")
        for i in (*index, *(() if count is None else (count,))):
            if i.dtype is not dt.i64:
                self.fail(f"{buffer.name} is indexed by {i.dtype}, not i64")
        if any(i.lanes > 1 for i in index[:-1]) or (count is not None and count.lanes > 1):
            self.fail(f"{buffer.name}: only the last index may be a vector")

    def call(self, e: Call) -> None:
        """The result type that a call states against what the intrinsic's meaning gives."""
        key = (e.intrinsic, e.dtype, e.lanes, *((a.dtype, a.lanes) for a in e.args))
        if key in self.calls:
            return
        self.calls.add(key)
        operands = [np.ones(a.lanes, arithmetic.computing(a.dtype)) for a in e.args]
        try:
            with np.errstate(all="ignore"):
                result = np.asarray(e.intrinsic.semantics(*operands))
        except (TypeError, ValueError) as error:
            self.fail(f"@{e.intrinsic.name} does not take these operands: {error}")
        lanes = result.shape[-1] if result.ndim else 1
        if result.dtype != arithmetic.computing(e.dtype) or lanes != e.lanes:
            self.fail(f"@{e.intrinsic.name} gives {lanes} lanes of {result.dtype}, its call says "
                      f"{e.lanes} of {e.dtype}")

    def bounds(self, buffer: Buffer, index: tuple[Expr, ...], lanes: int, count: Expr | None,
               scope: _Scope) -> None:
        """Refuses an index that leaves the buffer in a certain iteration."""
        if scope.conditions or any(_is_zero(f.extent) for f in scope.loops):
            return
        for axis, (i, extent) in enumerate(zip(index, buffer.shape, strict=True)):
            if i.lanes > 1 or (count is not None and axis == len(index) - 1):
                continue
            width = lanes if axis == len(index) - 1 else 1
            low, high = _range(i, scope)
            if at_least(wrap(-1) - low, 0):
                self.fail(f"{buffer.name} is indexed by {i!r}, which reaches {low!r}")
            if at_least(high + width - 1 - wrap(extent), 0):
                self.fail(f"{buffer.name} is indexed by {i!r}, which reaches {high + width - 1!r} "
                          f"in dimension {axis} of size {extent!r}")


def _is_zero(d) -> bool:
    return isinstance(d, int) and d <= 0


def _certain_loads(e: Expr) -> Iterator[Load]:
    """Loads that happen whenever the expression is evaluated: not those that a `select` guards."""
    stack, seen = [e], set()
    while stack:
        x = stack.pop()
        if x in seen:
            continue
        seen.add(x)
        if isinstance(x, Load):
            yield x
        stack.extend(x.args[:1] if isinstance(x, Op) and x.name == "select" else x.args)


def _range(i: Expr, scope: _Scope) -> tuple[Expr, Expr]:
    """Values that an index takes in its extreme iterations, where they are known: those of an
    index linear in loop variables."""
    for v, value in reversed(scope.lets.items()):
        if not any(isinstance(x, Load) for x in walk(value)):
            i = substitute(i, {v: value})
    low = high = i
    for f in reversed(scope.loops):
        top = wrap(f.extent) - 1
        low = _extreme(low, f.var, top, False)
        high = _extreme(high, f.var, top, True)
    return low, high


def _extreme(e: Expr, v: Var, top: Expr, highest: bool) -> Expr:
    """`e` with `v` at the end of its range where `e` is largest (or smallest)."""
    terms = [c for m, c in poly(e).items() if v in m]
    linear = all(m.count(v) <= 1 and all(isinstance(a, Var) and a.low == 0 for a in m)
                 for m in poly(e) if v in m)
    inside = any(v in free_vars(a) for m in poly(e) for a in m if a is not v)
    if not terms or not linear or inside or len({c > 0 for c in terms}) > 1:
        return e
    at_top = (terms[0] > 0) == highest
    return substitute(e, {v: top if at_top else wrap(0)})



