"""The scalar operations of the expression language: arity, result type, numpy meaning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OpInfo:
    """What an operation is: arity, how the result dtype follows, and its numpy meaning."""

    arity: int
    result: str  # "same" as the last argument, or "bool"
    function: Callable


def _left_shift(a, b):
    inside = (b >= 0) & (b < np.asarray(a).dtype.itemsize * 8)
    return np.where(inside, np.left_shift(a, np.where(inside, b, np.zeros_like(b))),
                    np.zeros_like(a))


def _right_shift(a, b):
    width = np.asarray(a).dtype.itemsize * 8
    inside = (b >= 0) & (b < width)
    if np.asarray(a).dtype.kind == "i":
        return np.right_shift(a, np.where(inside, b, np.full_like(b, width - 1)))
    return np.where(inside, np.right_shift(a, np.where(inside, b, np.zeros_like(b))),
                    np.zeros_like(a))


def _int_div(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind not in "iu":
        return np.true_divide(a, b).astype(a.dtype)
    safe = np.where(b == 0, np.ones_like(b), b)
    with np.errstate(over="ignore"):  # the lowest number by -1
        quotient = np.floor_divide(a - np.fmod(a, safe), safe)
    return np.where(b == 0, np.zeros_like(a), quotient).astype(a.dtype)


def _remainder(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind in "iu":
        return np.fmod(a, np.where(b == 0, np.ones_like(b), b))
    return np.fmod(a, b)


def _erf(x):
    array = np.asarray(x)
    return np.vectorize(math.erf, otypes=[np.float64])(array).astype(array.dtype)


def _isinf(x):
    return np.isinf(x)


OPS: dict[str, OpInfo] = {
    "add": OpInfo(2, "same", np.add),
    "sub": OpInfo(2, "same", np.subtract),
    "mul": OpInfo(2, "same", np.multiply),
    "div": OpInfo(2, "same", _int_div),
    "floordiv": OpInfo(2, "same", lambda a, b: np.floor_divide(a, b)),
    "mod": OpInfo(2, "same", lambda a, b: np.mod(a, b)),
    "rem": OpInfo(2, "same", _remainder),
    "pow": OpInfo(2, "same", lambda a, b: np.power(a, b)),
    "min": OpInfo(2, "same", np.minimum),
    "max": OpInfo(2, "same", np.maximum),
    "fma": OpInfo(3, "same", lambda a, b, c: a * b + c),
    "atan2": OpInfo(2, "same", np.arctan2),
    "and": OpInfo(2, "same", np.bitwise_and),
    "or": OpInfo(2, "same", np.bitwise_or),
    "xor": OpInfo(2, "same", np.bitwise_xor),
    "shl": OpInfo(2, "same", _left_shift),
    "shr": OpInfo(2, "same", _right_shift),
    "eq": OpInfo(2, "bool", np.equal),
    "ne": OpInfo(2, "bool", np.not_equal),
    "lt": OpInfo(2, "bool", np.less),
    "le": OpInfo(2, "bool", np.less_equal),
    "gt": OpInfo(2, "bool", np.greater),
    "ge": OpInfo(2, "bool", np.greater_equal),
    "select": OpInfo(3, "same", np.where),
    "neg": OpInfo(1, "same", np.negative),
    "abs": OpInfo(1, "same", np.abs),
    "sign": OpInfo(1, "same", np.sign),
    "not": OpInfo(1, "same", np.invert),
    "sqrt": OpInfo(1, "same", np.sqrt),
    "rsqrt": OpInfo(1, "same", lambda x: 1 / np.sqrt(x)),
    "exp": OpInfo(1, "same", np.exp),
    "exp2": OpInfo(1, "same", np.exp2),
    "expm1": OpInfo(1, "same", np.expm1),
    "log": OpInfo(1, "same", np.log),
    "log1p": OpInfo(1, "same", np.log1p),
    "sin": OpInfo(1, "same", np.sin),
    "cos": OpInfo(1, "same", np.cos),
    "tan": OpInfo(1, "same", np.tan),
    "asin": OpInfo(1, "same", np.arcsin),
    "acos": OpInfo(1, "same", np.arccos),
    "atan": OpInfo(1, "same", np.arctan),
    "sinh": OpInfo(1, "same", np.sinh),
    "cosh": OpInfo(1, "same", np.cosh),
    "tanh": OpInfo(1, "same", np.tanh),
    "asinh": OpInfo(1, "same", np.arcsinh),
    "acosh": OpInfo(1, "same", np.arccosh),
    "atanh": OpInfo(1, "same", np.arctanh),
    "erf": OpInfo(1, "same", _erf),
    "floor": OpInfo(1, "same", np.floor),
    "ceil": OpInfo(1, "same", np.ceil),
    "round": OpInfo(1, "same", np.rint),
    "trunc": OpInfo(1, "same", np.trunc),
    "isnan": OpInfo(1, "bool", np.isnan),
    "isinf": OpInfo(1, "bool", _isinf),
}

REDUCTIONS: dict[str, str] = {"sum": "add", "prod": "mul", "max": "max", "min": "min",
                              "any": "or", "all": "and"}
