"""Pieces of TVMScript: types, literals and logic, of any number of lanes."""

from __future__ import annotations

import math

import numpy as np

from ..ir import dtype as dt
from ..ir.dtype import DType
from ..ir.expr import Broadcast, Const, Expr


class Inexpressible(Exception):
    """A kernel that has no TensorIR form here; the text names what is missing."""


def value_type(d: DType) -> str:
    """TVM's name of the type that values of `d` have: bits for the narrow floats."""
    if d.is_bool:
        return "bool"
    if d.is_float:
        return {64: "float64", 32: "float32", 16: "uint16", 8: "uint8", 4: "uint8"}[d.bits]
    return f"{d.kind}{max(d.bits, 8)}"


def memory_type(d: DType) -> str:
    """TVM's name of the element type of buffers."""
    return "uint8" if d.is_bool else value_type(d)


def typed(kind: str, lanes: int) -> str:
    return kind if lanes == 1 else f"{kind}x{lanes}"


def span(base: str, lanes: int, stride: int = 1) -> str:
    """The flat indices of consecutive lanes."""
    return base if lanes == 1 else f"T.Ramp({base}, T.int64({stride}), {lanes})"


def vector(items: list[str]) -> str:
    """Scalars as the lanes of a vector."""
    return f"T.Shuffle([{', '.join(items)}], [{', '.join(map(str, range(len(items))))}])"


def _truth(value: bool, lanes: int) -> str:
    return f"T.bool({value})" if lanes == 1 else f"T.Broadcast(T.bool({value}), {lanes})"


def both(a: str, b: str, lanes: int) -> str:
    """a and b; TVM's simplifier fails on `T.And` and `T.Or` of vectors."""
    return f"T.And({a}, {b})" if lanes == 1 else f"T.Select({a}, {b}, {_truth(False, lanes)})"


def either(a: str, b: str, lanes: int) -> str:
    """a or b."""
    return f"T.Or({a}, {b})" if lanes == 1 else f"T.Select({a}, {_truth(True, lanes)}, {b})"


def differs(a: str, b: str, lanes: int) -> str:
    """a != b, also for NaN."""
    return f"T.Select(T.EQ({a}, {b}), {_truth(False, lanes)}, {_truth(True, lanes)})"


def is_nan(x: str) -> str:
    # TVM takes x == x for true.
    return f"T.isnan({x})"


def zero_of(kind: str) -> str:
    return f"T.{kind}(0)"


def is_number(e: Expr) -> bool:
    """Whether it is a constant other than NaN."""
    inner = e.args[0] if isinstance(e, Broadcast) else e
    return isinstance(inner, Const) and inner.value == inner.value


def hidden_zero(e: Expr, text: str) -> str:
    """A zero that TVM's constant folding does not see: x * 0 is NaN for an infinite x."""
    inner = e.args[0] if isinstance(e, Broadcast) else e
    if not isinstance(inner, Const) or inner.value != 0:
        return text
    bits = np.asarray(inner.value, inner.dtype.numpy).view(f"u{inner.dtype.itemsize}").item()
    zero = f"T.reinterpret(\"{value_type(inner.dtype)}\", {_bits(bits, inner.dtype.bits)})"
    return zero if e.lanes == 1 else f"T.Broadcast({zero}, {e.lanes})"


def _bits(value: int, width: int) -> str:
    if width == 64 and value >= 1 << 63:
        return f"T.reinterpret(\"uint64\", T.int64({value - (1 << 64)}))"
    return f"T.uint{width}({value})"


def literal(value, d: DType) -> str:
    """A constant."""
    if d.is_bool:
        return f"T.bool({bool(value)})"
    if d.is_integer:
        return _bits(value, 64) if d is dt.u64 else f"T.{value_type(d)}({int(value)})"
    if d.bits < 32:
        bits = np.asarray(value, np.float64).astype(d.numpy).reshape(1).view(
            f"u{d.itemsize}").item()
        return f"T.{value_type(d)}({bits})"
    if math.isfinite(value):
        if value == 0 and math.copysign(1, value) < 0:
            return f"T.reinterpret(\"{value_type(d)}\", {_bits(1 << (d.bits - 1), d.bits)})"
        return f"T.{value_type(d)}({float(value)!r})"
    text = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return f"T.{value_type(d)}(\"{text}\")"
