"""Affine quantisation: what `quantize` (elementwise) leaves out."""

from __future__ import annotations

import numpy as np

from ... import dtype as dt
from ...expr import Expr, cast, const, op, simplify_dim, wrap
from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .elementwise import elementwise


def _dequantize(x: Expr, *rest: Expr) -> Expr:
    *zero, scale = rest
    real = dt.f64 if scale.dtype is dt.f64 else dt.f32
    value = cast(x, real)
    if zero:
        value = value - cast(zero[0], real)
    return cast(value * cast(scale, real), scale.dtype)


def _dequantize_reference(ctx: OpContext, x, *rest):
    *zero, scale = rest
    real = np.float64 if scale.dtype == np.float64 else np.float32
    value = x.astype(real)
    if zero:
        value = value - zero[0].astype(real)
    return (value * scale.astype(real)).astype(scale.dtype)


elementwise("dequantize", _dequantize, reference=_dequantize_reference, uniform=3,
            doc="(x - zero) * scale in f32, rounded to the scale's type; operands x, scale or "
                "x, zero, scale.")


def _requantize(x: Expr, factor: Expr, zero: Expr, to) -> Expr:
    rounded = op("round", cast(x, dt.f32) * factor) + zero
    low, high = const(to.min, dt.f32), const(to.max, dt.f32)
    return cast(op("min", op("max", rounded, low), high), to)


def _requantize_reference(ctx: OpContext, x, factor, zero):
    to = ctx.attrs["to"]
    rounded = np.rint(x.astype(np.float32) * factor) + zero
    return np.clip(rounded, to.min, to.max).astype(to.numpy)


elementwise("requantize", _requantize, reference=_requantize_reference, uniform=1,
            attrs={"to": REQUIRED},
            doc="saturate(round(f32(x) * factor) + zero) for an integer accumulator x and f32 "
                "factor and zero: the end of a quantised product.")


def _unpack_infer(ctx: OpContext):
    t, to = ctx.type(0), ctx.attrs["to"]
    if t.dtype is not dt.u8 or to.kind != "uint" or to.bits not in (2, 4) or not t.rank:
        raise ctx.error(f"cannot unpack {to} from {t}")
    return [TensorType(to, (*t.shape[:-1], simplify_dim(wrap(t.shape[-1]) * (8 // to.bits))))]


def _unpack_body(ctx: OpContext, index):
    to = ctx.attrs["to"]
    per_byte = 8 // to.bits
    byte = ctx.load(0, (*index[:-1], index[-1] // per_byte))
    shift = cast(index[-1] % per_byte * to.bits, dt.u8)
    return cast(op("and", op("shr", byte, shift), const((1 << to.bits) - 1, dt.u8)), to)


def _unpack_reference(ctx: OpContext, x):
    to = ctx.attrs["to"]
    shifts = np.arange(0, 8, to.bits, dtype=np.uint8)
    fields = (x[..., None] >> shifts) & np.uint8((1 << to.bits) - 1)
    return fields.reshape(*x.shape[:-1], -1).astype(to.numpy)


define(OpDef(
    "unpack_bits", "injective", _unpack_infer, _unpack_reference, _unpack_body,
    attrs={"to": REQUIRED},
    doc="u8 [..., n] to u4 or u2 [..., n * elements per byte], lowest bits first.",
))
