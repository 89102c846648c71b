"""What the scalar operations mean on numpy values: the arithmetic of the kernel interpreter.

Values are numpy arrays or scalars of a type's computing dtype (the storage dtype, with one byte
integers for types narrower than a byte). A lone i64 is a Python int, a lone bool may be a Python
bool. Every function returns the exact dtype, rounded or wrapped to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import dtype as dt
from ..dtype import DType
from ..operations import OPS

_TOP, _MASK = 1 << 63, (1 << 64) - 1


def computing(dtype: DType) -> np.dtype:
    """The numpy dtype that values of `dtype` have in computations."""
    if dtype.is_integer and dtype.bits < 8:
        return np.dtype(np.int8 if dtype.kind == "int" else np.uint8)
    return dtype.numpy


def wrap64(x: int) -> int:
    """A Python int as an i64."""
    return ((x + _TOP) & _MASK) - _TOP


def narrow(x: Any, dtype: DType) -> Any:
    """A computing value wrapped to an integer type narrower than a byte."""
    if dtype.kind == "uint":
        return x & type_of(dtype)((1 << dtype.bits) - 1)
    shift = np.int8(8 - dtype.bits)
    return (x << shift) >> shift


def type_of(dtype: DType) -> Callable[[Any], Any]:
    """Makes a scalar of the computing dtype."""
    return computing(dtype).type


def literal(value: Any, dtype: DType) -> Any:
    """A constant as a computing scalar: Python int and bool for i64 and bool."""
    if dtype is dt.i64 or dtype.is_bool:
        return value
    if dtype.is_float:
        return np.asarray(value, np.float64).astype(dtype.numpy)[()]
    return np.asarray(value).astype(computing(dtype))[()]


def lone(x: Any, dtype: DType) -> Any:
    """A numpy scalar or 0-d array as the lone value of a type."""
    if dtype is dt.i64:
        return int(x)
    return bool(x) if dtype.is_bool else np.asarray(x)[()]


def from_memory(x: Any, dtype: DType) -> Any:
    """Stored elements as computing values."""
    return x.astype(computing(dtype)) if dtype.is_integer and dtype.bits < 8 else x


def poison(count: int, lanes: int, dtype: DType) -> np.ndarray:
    """`count` elements that nobody wrote: NaN, or a pattern far outside any index range."""
    shape = (count,) if lanes == 1 else (count, lanes)
    if dtype.is_float:
        return np.full(shape, np.nan, np.float64).astype(dtype.numpy)
    if dtype.is_bool:
        return np.ones(shape, np.bool_)
    if dtype.bits < 8:
        return np.full(shape, dtype.max, np.int64).astype(dtype.numpy)
    return np.full((*shape, dtype.itemsize), 0xCD, np.uint8).view(dtype.numpy)[..., 0]


# Operations -------------------------------------------------------------------------------------


def _int_div(a, b):
    """Truncating division; x / 0 is 0."""
    zero = b == 0
    safe = np.where(zero, np.ones_like(b), b)
    quotient = a // safe
    if np.asarray(a).dtype.kind == "i":
        # Floor division is one below truncation when the signs differ and a rest is left.
        quotient = quotient + (((a < 0) != (safe < 0)) & (quotient * safe != a))
    return np.where(zero, np.zeros_like(quotient), quotient)


def _int_pow(a, b):
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    result = np.power(a, np.maximum(b, 0))
    if a.dtype.kind == "i":
        odd = np.where(b % 2 == 0, np.ones_like(a), a)
        inverse = np.where(np.abs(a) == 1, odd, np.zeros_like(a))
        result = np.where(b < 0, inverse, result)
    return result


def _shift(left: bool, width: int):
    def shift(a, b):
        inside = (b >= 0) & (b < width)
        if not left and np.asarray(a).dtype.kind == "i":
            return np.right_shift(a, np.where(inside, b, np.full_like(b, width - 1)))
        by = np.where(inside, b, np.zeros_like(b))
        moved = np.left_shift(a, by) if left else np.right_shift(a, by)
        return np.where(inside, moved, np.zeros_like(moved))

    return shift


def _fma(a, b, c):
    return a * b + c


_INT_FUNCTIONS: dict[str, Callable] = {
    "div": _int_div, "pow": _int_pow, "floordiv": np.floor_divide, "mod": np.mod,
    "rem": np.fmod, "fma": _fma,
}

_EXACT = frozenset((
    "add", "sub", "mul", "div", "min", "max", "neg", "abs", "sign", "eq", "ne", "lt", "le", "gt",
    "ge", "isnan", "isinf", "floor", "ceil", "round", "trunc", "select"))
"""Operations that numpy rounds correctly, or does not round, in every float type."""


def function(name: str, dtype: DType) -> Callable:
    """The meaning of operation `name` on computing values of operand type `dtype`."""
    if name == "not" and dtype.is_bool:
        return np.logical_not
    if dtype.is_bool:
        return {"min": np.logical_and, "max": np.logical_or, "add": np.logical_or,
                "mul": np.logical_and}.get(name, OPS[name].function)
    if dtype.is_integer:
        if name in ("shl", "shr"):
            plain = _shift(name == "shl", dtype.bits)
        else:
            plain = _INT_FUNCTIONS.get(name, OPS[name].function)
        if dtype.bits < 8 and OPS[name].result == "same" and name != "select":
            return lambda *a: narrow(plain(*a), dtype)
        return plain
    plain = np.true_divide if name == "div" else OPS[name].function
    if dtype is dt.f64:
        return plain
    if name == "fma":
        return lambda a, b, c: _round(_wide(a) * _wide(b) + _wide(c), dtype)
    if dtype is dt.f32 or name in _EXACT:
        return plain
    return lambda *a: _round(plain(*(x.astype(np.float32) for x in a)), dtype)


def _wide(x):
    return x.astype(np.float64)


def _round(x, dtype: DType):
    return x.astype(dtype.numpy)


def python_div(a: int, b: int) -> int:
    if b == 0:
        return 0
    quotient = abs(a) // abs(b)
    return wrap64(quotient if (a < 0) == (b < 0) else -quotient)


def _python_pow(a: int, b: int) -> int:
    if b < 0:
        return (a if b % 2 else 1) if abs(a) == 1 else 0
    return wrap64(pow(a, b, 1 << 64))


LONE_I64: dict[str, Callable] = {
    "div": python_div, "pow": _python_pow,
    "rem": lambda a, b: 0 if b == 0 else int(math.fmod(a, b)) if abs(a) < 1 << 53 > abs(b)
    else a - b * python_div(a, b),
    "shl": lambda a, b: wrap64(a << b) if 0 <= b < 64 else 0,
    "shr": lambda a, b: a >> (b if 0 <= b < 64 else 63),
    "min": min, "max": max, "abs": lambda a: wrap64(abs(a)), "neg": lambda a: wrap64(-a),
    "sign": lambda a: (a > 0) - (a < 0), "fma": lambda a, b, c: wrap64(a * b + c),
    "xor": lambda a, b: a ^ b,
}
"""Operations on lone i64 values, beyond those that Python spells itself."""


# Conversions ------------------------------------------------------------------------------------


def converter(source: DType, target: DType, mode: str) -> Callable[[Any], Any]:
    """The cast of computing values; see `ir.expr.Cast`. Lone i64 results are Python ints."""
    kernel = _converter(source, target, mode)

    def convert(x):
        result = kernel(np.asarray(x, computing(source)))
        return lone(result, target) if np.ndim(x) == 0 else result

    return convert


def _converter(source: DType, target: DType, mode: str) -> Callable[[np.ndarray], np.ndarray]:
    to = computing(target)
    if mode == "bits":
        if source.itemsize != target.itemsize:
            raise TypeError(f"the bits of {source} do not make a {target}")
        return lambda x: x.view(to)
    if target.is_bool:
        return lambda x: x != np.zeros((), x.dtype)
    if source.is_float and target.is_integer:
        return lambda x: _float_to_int(x, target)
    if source.is_float and mode == "saturate":
        low, high = target.min, target.max

        def saturate(x):
            wide = x.astype(np.float64)
            return np.where(np.isfinite(wide), np.clip(wide, low, high), wide).astype(to)

        return saturate
    if target.is_integer and mode == "saturate":
        return lambda x: _clip_int(x, target).astype(to)
    if target.is_integer and target.bits < 8:
        return lambda x: narrow(x.astype(to), target)
    return lambda x: x.astype(to)


def _clip_int(x: np.ndarray, target: DType) -> np.ndarray:
    limits = np.iinfo(x.dtype) if x.dtype.kind in "iu" else None
    if limits is None:
        return x
    return np.clip(x, max(target.min, limits.min), min(target.max, limits.max))


def _float_to_int(x: np.ndarray, target: DType) -> np.ndarray:
    wide = np.trunc(x.astype(np.float64))
    low, high = float(target.min), float(target.max)
    # float(2**63 - 1) is 2**63, so the top is put in by hand.
    over, under, nothing = wide >= high, wide <= low, np.isnan(wide)
    safe = np.where(over | under | nothing, 0.0, wide)
    result = safe.astype(np.uint64 if target.kind == "uint" else np.int64)
    result = np.where(over, np.array(target.max, result.dtype), result)
    result = np.where(under, np.array(target.min, result.dtype), result)
    return result.astype(computing(target))
