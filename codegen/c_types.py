"""C types, literals and operator signs."""

from __future__ import annotations

import math

from ..ir import dtype as dt
from ..ir.dtype import DType

_SCALAR = {
    "bool": "uint8_t", "i8": "int8_t", "i16": "int16_t", "i32": "int32_t", "i64": "int64_t",
    "u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t", "f32": "float",
    "f64": "double", "i2": "int8_t", "i4": "int8_t", "u2": "uint8_t", "u4": "uint8_t",
    "f16": "uint16_t", "bf16": "uint16_t",
}
MASKS = {"add": "{0} | {1}", "max": "{0} | {1}", "or": "{0} | {1}", "mul": "{0} & {1}",
         "min": "{0} & {1}", "and": "{0} & {1}", "xor": "{0} ^ {1}", "ne": "{0} ^ {1}",
         "eq": "~({0} ^ {1})", "lt": "~{0} & {1}", "le": "~{0} | {1}", "gt": "{0} & ~{1}",
         "ge": "{0} | ~{1}", "not": "~{0}"}
"""Operations on vectors of booleans, which are masks of all or no bits."""

INFIX = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "eq": "==",
          "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
MATH = {"sqrt": "sqrt", "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log",
         "log1p": "log1p", "sin": "sin", "cos": "cos", "tan": "tan", "asin": "asin",
         "acos": "acos", "atan": "atan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
         "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "erf": "erf", "floor": "floor",
         "ceil": "ceil", "round": "rint", "trunc": "trunc", "pow": "pow", "rem": "fmod",
         "atan2": "atan2", "fma": "fma", "abs": "fabs"}


def c_type(dtype: DType) -> str:
    """The C type of a scalar of this dtype; narrow floats travel as their bits."""
    return _SCALAR.get(dtype.name, "uint8_t")


def storage_type(dtype: DType) -> str:
    """The C type of an element in memory."""
    return c_type(dtype)


def literal(value, dtype: DType) -> str:
    """A C literal of exactly this value."""
    if dtype.is_bool:
        return "1" if value else "0"
    if dtype.is_integer:
        if dtype is dt.i64:
            return "INT64_MIN" if value == dtype.min else (
                str(value) if abs(value) < 2**31 else f"INT64_C({value})")
        if dtype is dt.u64:
            return f"UINT64_C({value})"
        if dtype is dt.i32 and value == dtype.min:
            return "INT32_MIN"
        return f"{value}u" if dtype is dt.u32 else str(value)
    if math.isnan(value):
        text = "NAN"
    elif math.isinf(value):
        text = "INFINITY" if value > 0 else "(-INFINITY)"
    else:
        digits = float(value).hex() if dtype is dt.f64 else _short(value)
        text = digits + ("" if dtype is dt.f64 else "f")
        return f"({text})" if text.startswith("-") else text
    return f"(double){text}" if dtype is dt.f64 else text


def _short(value: float) -> str:
    """The shortest decimal that reads back as the same f32."""
    import numpy as np

    return str(np.float32(value))
