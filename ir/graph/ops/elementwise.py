"""Elementwise operators with numpy broadcasting: one line each, from a scalar function.

Operators named as in `ir.expr.OPS` map to that operation; the rest are written out in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ... import dtype as dt
from ...expr import OPS, Expr, cast, const, op, select
from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import broadcast_index, broadcast_shapes, require_same_dtype


def _operands(ctx: OpContext, index) -> list[Expr]:
    out = ctx.out().shape
    return [ctx.load(i, broadcast_index(index, t.shape, out)) for i, t in enumerate(ctx.types)]


def elementwise(name: str, scalar: Callable[..., Expr], *, result=None, reference=None,
                attrs: dict | None = None, doc: str = "", uniform: int = 0) -> OpDef:
    """Defines an operator from `scalar(*elements, **attrs)`.

    `result` is the output dtype when it is neither attribute `to` nor that of the last operand;
    operands from number `uniform` on must share their dtype.
    """
    names = tuple(attrs or ())

    def infer(ctx: OpContext):
        require_same_dtype(ctx, range(uniform, len(ctx.node.inputs)))
        shape = broadcast_shapes(ctx, [t.shape for t in ctx.types])
        return [TensorType(result or ctx.attrs.get("to") or ctx.types[-1].dtype, shape)]

    def body(ctx: OpContext, index):
        return scalar(*_operands(ctx, index), **{n: ctx.attrs[n] for n in names})

    return define(OpDef(name, "elementwise", infer, reference, body, attrs=attrs or {}, doc=doc))


def _from_scalar_op(name: str, doc: str) -> None:
    info = OPS[name]
    function = info.function

    def reference(ctx, *arrays):
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays)).astype(ctx.out().dtype.numpy)

    elementwise(name, lambda *a: op(name, *a), reference=reference, doc=doc,
                result=dt.bool_ if info.result == "bool" else None,
                uniform=1 if name == "select" else 0)


_DOCS = {
    "add": "a + b", "sub": "a - b", "mul": "a * b",
    "div": "a / b; integers truncate toward zero, x / 0 is 0",
    "mod": "a - floor(a / b) * b", "rem": "C remainder, sign of a", "pow": "a to the power b",
    "min": "smaller, NaN propagates", "max": "larger, NaN propagates",
    "and": "bitwise or logical and", "or": "bitwise or logical or", "xor": "exclusive or",
    "shl": "shift left", "shr": "shift right", "eq": "a == b", "ne": "a != b", "lt": "a < b",
    "le": "a <= b", "gt": "a > b", "ge": "a >= b", "select": "condition ? a : b",
    "neg": "-x", "abs": "absolute value", "sign": "-1, 0 or 1", "not": "bitwise or logical not",
    "sqrt": "square root", "rsqrt": "1 / sqrt(x)", "exp": "e to the x", "exp2": "2 to the x",
    "expm1": "exp(x) - 1", "log": "natural logarithm", "log1p": "log(1 + x)",
    "sin": "sine", "cos": "cosine", "tan": "tangent", "asin": "inverse sine",
    "acos": "inverse cosine", "atan": "inverse tangent", "sinh": "hyperbolic sine",
    "cosh": "hyperbolic cosine", "tanh": "hyperbolic tangent", "asinh": "inverse of sinh",
    "acosh": "inverse of cosh", "atanh": "inverse of tanh", "erf": "error function",
    "floor": "round down", "ceil": "round up", "round": "round half to even",
    "trunc": "round toward zero", "isnan": "is not a number", "atan2": "angle of (b, a)",
    "isinf": "is infinite", "fma": "a * b + c",
}
for _name, _doc in _DOCS.items():
    _from_scalar_op(_name, _doc)


def _cast_reference(ctx, x):
    to, mode = ctx.attrs["to"], ctx.attrs["mode"]
    if mode == "bits":
        return x.view(to.numpy)
    with np.errstate(all="ignore"):
        if to.is_integer and dt.from_numpy(x).is_float:
            wide = np.nan_to_num(np.trunc(x.astype(np.float64)), nan=0.0, posinf=np.inf,
                                 neginf=-np.inf)
            clipped = np.clip(wide, float(to.min), float(to.max))
            # float(2**63 - 1) rounds up to 2**63, which no i64 holds.
            top = clipped >= float(to.max)
            safe = np.where(top, 0, clipped).astype(np.int64 if to is not dt.u64 else np.uint64)
            return np.where(top, np.array(to.max, safe.dtype), safe).astype(to.numpy)
        if mode == "saturate" and to.is_float:
            finite = np.isfinite(x.astype(np.float64))
            x = np.where(finite, np.clip(x.astype(np.float64), to.min, to.max), x)
        return x.astype(to.numpy)


elementwise("cast", lambda x, to, mode: cast(x, to, mode), reference=_cast_reference,
            attrs={"to": REQUIRED, "mode": "value"},
            doc="Conversion to another element type; rules in ir.expr.Cast.")


def unary(name: str, scalar: Callable[..., Expr], doc: str, attrs: dict | None = None) -> None:
    """An activation of one operand, written in scalar operations of its dtype."""
    elementwise(name, scalar, attrs=attrs, doc=doc)


def sigmoid(x: Expr) -> Expr:
    return op("div", 1, op("add", op("exp", op("neg", x)), 1))


def softplus(x: Expr) -> Expr:
    # max(x, 0) + log1p(exp(-|x|)) does not overflow.
    return op("max", x, 0) + op("log1p", op("exp", op("neg", op("abs", x))))


def gelu(x: Expr, approximate: str) -> Expr:
    half = x * 0.5
    if approximate == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return half * (op("tanh", inner) + 1)
    return half * (op("erf", x * math.sqrt(0.5)) + 1)


def _hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    return op("max", 0, op("min", 1, x * alpha + beta))


unary("sigmoid", sigmoid, "1 / (1 + exp(-x))")
unary("relu", lambda x: op("max", 0, x), "max(0, x)")
unary("gelu", gelu, "x * Phi(x); approximate is 'none' or 'tanh'", {"approximate": "none"})
unary("silu", lambda x: x * sigmoid(x), "x * sigmoid(x)")
unary("softplus", softplus, "log(1 + exp(x))")
unary("mish", lambda x: x * op("tanh", softplus(x)), "x * tanh(softplus(x))")
unary("hard_sigmoid", _hard_sigmoid, "clamp(alpha * x + beta, 0, 1)",
      {"alpha": 0.2, "beta": 0.5})
unary("hard_swish", lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5), "x * hard_sigmoid(x, 1/6, 1/2)")
unary("leaky_relu", lambda x, alpha: select(op("lt", x, 0), x * alpha, x), "x < 0 ? alpha * x : x",
      {"alpha": 0.01})
unary("elu", lambda x, alpha: select(op("lt", x, 0), op("expm1", x) * alpha, x),
      "x < 0 ? alpha * (exp(x) - 1) : x", {"alpha": 1.0})


def _quantize(x: Expr, scale: Expr, zero: Expr, to) -> Expr:
    # Rounds to even and saturates: the affine quantisation of ONNX QuantizeLinear.
    rounded = op("round", op("div", x, scale)) + zero
    low, high = const(to.min, x.dtype), const(to.max, x.dtype)
    return cast(op("min", op("max", rounded, low), high), to)


elementwise("quantize", _quantize, attrs={"to": REQUIRED},
            doc="saturate(round(x / scale) + zero) for integer `to`; operands are floats.")
