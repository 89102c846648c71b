"""Legalisation: rewrites a kernel so that an emitter for C-like languages can spell every
expression: narrow floats compute in f32, sub-byte integers in i32, f32 elementary functions become
arithmetic, and multiply-adds are fused where the machine can."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...ir import dtype as dt
from ...ir.expr import Cast, Const, Expr, Op, broadcast, cast, const, op, rebuild, walk
from ...ir.kernel.intrinsics import SCALE
from ...ir.kernel.nodes import Block, Call, For, If, Kernel, Let, Prefetch, Stmt, Store, While
from .activations import composed
from .elementary import EXPANSIONS, EXPANSIONS_IN_ANY_ORDER, scale_by_factors

SOFT_FLOATS = (dt.f16, dt.bf16, dt.f8e4m3fn, dt.f8e4m3fnuz, dt.f8e5m2, dt.f8e5m2fnuz, dt.f8e8m0,
               dt.f4e2m1)
SUB_BYTE = (dt.i2, dt.i4, dt.u2, dt.u4)


@dataclass(frozen=True)
class Capabilities:
    """What the target's language does by itself. `fma`: one-instruction fused multiply-add.
    `scale`: numbers of lanes in which x * 2**n is one instruction. `any_order`: its compilers may
    take (x + c) - c for x."""

    fma: bool = True
    scale: frozenset[int] = frozenset()
    any_order: bool = False


class Legaliser:
    """Rewrites expressions with a memo that lives as long as one kernel."""

    def __init__(self, capabilities: Capabilities):
        self.capabilities = capabilities
        self._memo: dict[Expr, Expr] = {}

    def __call__(self, e: Expr) -> Expr:
        for x in walk(e):
            if x in self._memo:
                continue
            if isinstance(x, Const):
                self._memo[x] = x
                continue
            args = tuple(self._memo[a] for a in x.args)
            self._memo[x] = self._one(x, args)
        return self._memo[e]

    def _one(self, x: Expr, args: tuple[Expr, ...]) -> Expr:
        if isinstance(x, Op):
            return self._op(x, args)
        if isinstance(x, Cast) and x.mode != "bits":
            return self._cast(x, args[0])
        if isinstance(x, Call) and x.intrinsic is SCALE and x.lanes not in self.capabilities.scale:
            return self(scale_by_factors(*args))
        return rebuild(x, args)

    def _op(self, x: Op, args: tuple[Expr, ...]) -> Expr:
        operand = args[-1].dtype
        if operand in SOFT_FLOATS and x.name != "select":
            wide = tuple(cast(a, dt.f32) if a.dtype in SOFT_FLOATS else a for a in args)
            result = self._op_f32(x.name, wide)
            return result if result.dtype.is_bool else self._round(result, x.dtype)
        if operand in SUB_BYTE and x.name != "select":
            wide = tuple(cast(a, dt.i32) if a.dtype in SUB_BYTE else a for a in args)
            result = op(x.name, *wide)
            return result if result.dtype.is_bool else cast(result, x.dtype)
        if operand is dt.f32:
            # As one formula they rely on the order of sums.
            found = None if self.capabilities.any_order else composed(x)
            if found is not None:
                function, operands = found
                return self(function(*(self._memo[a] for a in operands)))
            return self._op_f32(x.name, args)
        if x.name == "fma" and not self.capabilities.fma:
            return op("add", op("mul", args[0], args[1]), args[2])
        return rebuild(x, args)

    def _op_f32(self, name: str, args: tuple[Expr, ...]) -> Expr:
        table = EXPANSIONS_IN_ANY_ORDER if self.capabilities.any_order else EXPANSIONS
        expansion = table.get(name)
        if expansion is not None:
            return self(expansion(args[0]))
        if name == "fma" and not self.capabilities.fma:
            return op("add", op("mul", args[0], args[1]), args[2])
        if name == "div" and isinstance(args[1], Const) and _exact_reciprocal(args[1].value):
            return op("mul", args[0], const(1 / args[1].value, dt.f32))
        return op(name, *args)

    def _round(self, x: Expr, dtype: dt.DType) -> Expr:
        return cast(x, dtype)

    def _cast(self, x: Cast, arg: Expr) -> Expr:
        source, target = arg.dtype, x.dtype
        if x.mode == "exact":
            return cast(arg, target, "exact")
        if x.mode == "saturate" and target.is_float:
            if source in SOFT_FLOATS:
                arg, source = cast(arg, dt.f32), dt.f32
            low, high = const(target.min, source), const(target.max, source)
            finite = op("lt", op("abs", arg), const(float("inf"), source))
            arg = op("select", finite, op("min", high, op("max", low, arg)), arg)
        if source in SOFT_FLOATS and target is not dt.f32:
            return self._cast_to(cast(arg, dt.f32), target)
        return self._cast_to(arg, target)

    def _cast_to(self, arg: Expr, target: dt.DType) -> Expr:
        if target in SOFT_FLOATS and arg.dtype is not dt.f32:
            if arg.dtype is dt.f64 or arg.dtype.bits > 16:
                return cast(arg, target)  # rounded once, from the wide type
            arg = cast(arg, dt.f32)
        return cast(arg, target)


def _exact_reciprocal(value: float) -> bool:
    return value != 0 and math.isfinite(value) and abs(math.frexp(value)[0]) == 0.5 \
        and 2.0 ** -100 < abs(value) < 2.0 ** 100


def legalise(kernel: Kernel, capabilities: Capabilities) -> Kernel:
    """The kernel with every expression legal for C-like languages."""
    rewrite = Legaliser(capabilities)
    return replace(kernel, body=map_expressions(kernel.body, rewrite))


def map_expressions(s: Stmt, rewrite) -> Block:
    """A block with `rewrite` applied to every expression of its statements."""
    result = _map(s, rewrite)
    return result if isinstance(result, Block) else Block(result)


def _map(s: Stmt, rewrite) -> Stmt:
    if isinstance(s, Block):
        return Block(*(_map(x, rewrite) for x in s.body))
    if isinstance(s, For):
        extent = rewrite(s.extent) if isinstance(s.extent, Expr) else s.extent
        return replace(s, extent=extent, body=map_expressions(s.body, rewrite))
    if isinstance(s, While):
        return While(rewrite(s.condition), map_expressions(s.body, rewrite))
    if isinstance(s, If):
        return If(rewrite(s.condition), map_expressions(s.then, rewrite),
                  map_expressions(s.orelse, rewrite))
    if isinstance(s, Let):
        return Let(s.var, rewrite(s.value))
    if isinstance(s, Store):
        value = rewrite(s.value)
        return Store(s.buffer, tuple(rewrite(i) for i in s.index), broadcast(value, s.value.lanes),
                     None if s.count is None else rewrite(s.count))
    if isinstance(s, Prefetch):
        return Prefetch(s.buffer, tuple(rewrite(i) for i in s.index))
    return s
