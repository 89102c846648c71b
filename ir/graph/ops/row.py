"""Row operators: each output row needs statistics of the whole input row.

Their bodies name the statistics as reductions that do not depend on the position in the row, so
that a row kernel computes each once. Rows of f16 and bf16 are computed in f32.
"""

from __future__ import annotations

import math

import numpy as np

from ... import dtype as dt
from ...expr import Expr, cast, const, op, select, wrap
from ..core import Dim
from ..definition import OpContext, OpDef, define
from .shapes import normal_axis, require_equal, same


def accumulator(t: dt.DType) -> dt.DType:
    """The type in which rows of `t` are computed: at least f32."""
    return dt.f32 if t.bits < 32 else t


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


# Softmax ------------------------------------------------------------------------------------------


def _axis_infer(ctx: OpContext):
    t = ctx.type(0)
    if not t.dtype.is_float:
        raise ctx.error(f"needs floating-point operands, not {t.dtype}")
    ctx.attrs["axis"] = normal_axis(ctx, ctx.attrs["axis"], t.rank)
    return [t]


def _exponentials(ctx: OpContext, index) -> tuple[Expr, Expr]:
    """x - max(row) at `index`, and the sum of exp(x - max(row)) over the row."""
    axis, t = ctx.attrs["axis"], ctx.type(0)
    wide = accumulator(t.dtype)
    extent = [t.shape[axis]]

    def element(position) -> Expr:
        return cast(ctx.load(0, (*index[:axis], position, *index[axis + 1:])), wide)

    top = ctx.reduce("max", extent, element)
    if ctx.attrs.get("masked"):
        top = select(op("eq", top, -math.inf), const(0, wide), top)
    total = ctx.reduce("sum", extent, lambda k: op("exp", element(k) - top))
    return element(index[axis]) - top, total


def _softmax_body(ctx: OpContext, index):
    shifted, total = _exponentials(ctx, index)
    if ctx.attrs["masked"]:
        total = select(op("eq", total, 0), const(1, total.dtype), total)
    return cast(op("exp", shifted) / total, ctx.out().dtype)


def _softmax_reference(ctx: OpContext, x):
    axis, wide = ctx.attrs["axis"], _wide(x)
    if not x.size:
        return x
    with np.errstate(all="ignore"):
        top = wide.max(axis=axis, keepdims=True)
        if ctx.attrs["masked"]:
            top = np.where(np.isneginf(top), 0, top).astype(wide.dtype)
        e = np.exp(wide - top)
        total = e.sum(axis=axis, keepdims=True)
        if ctx.attrs["masked"]:
            total = np.where(total == 0, 1, total).astype(wide.dtype)
        return (e / total).astype(x.dtype)


define(OpDef("softmax", "row", _axis_infer, _softmax_reference, _softmax_body,
             attrs={"axis": -1, "masked": False},
             doc="exp(x) / sum(exp(x)) along `axis`; with `masked`, rows that are -inf throughout "
                 "give zeros instead of NaN."))


def _log_softmax_body(ctx: OpContext, index):
    shifted, total = _exponentials(ctx, index)
    return cast(shifted - op("log", total), ctx.out().dtype)


def _log_softmax_reference(ctx: OpContext, x):
    axis, wide = ctx.attrs["axis"], _wide(x)
    if not x.size:
        return x
    with np.errstate(all="ignore"):
        shifted = wide - wide.max(axis=axis, keepdims=True)
        return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).astype(x.dtype)


define(OpDef("log_softmax", "row", _axis_infer, _log_softmax_reference, _log_softmax_body,
             attrs={"axis": -1}, doc="x - log(sum(exp(x))) along `axis`."))


# Normalisation over the trailing axes -------------------------------------------------------------


def _norm_infer(ctx: OpContext):
    types = _axis_infer(ctx)
    t, axis = ctx.type(0), ctx.attrs["axis"]
    for i in range(1, len(ctx.node.inputs)):
        if not ctx.has(i):
            continue
        p = ctx.type(i)
        if p.dtype is not t.dtype:
            raise ctx.error(f"operand {i} is {p.dtype}, the rows are {t.dtype}")
        otherwise = f"operand {i} {p} does not have the row shape of {t} from axis {axis}"
        if p.rank != t.rank - axis:
            raise ctx.error(otherwise)
        for a, b in zip(p.shape, t.shape[axis:], strict=True):
            require_equal(ctx, a, b, otherwise)
    return types


def _row(ctx: OpContext, index):
    """(extents of the row, element(row index) in the accumulator's type, number of elements)."""
    axis, t = ctx.attrs["axis"], ctx.type(0)
    wide = accumulator(t.dtype)
    extents: list[Dim] = [d for d in t.shape[axis:] if not same(d, 1)]

    def element(*r) -> Expr:
        inner = iter(r)
        full = [const(0) if same(d, 1) else next(inner) for d in t.shape[axis:]]
        return cast(ctx.load(0, (*index[:axis], *full)), wide)

    count: Expr = const(1)
    for d in extents:
        count = count * wrap(d)
    return extents, element, cast(count, wide)


def _own(ctx: OpContext, index) -> Expr:
    return cast(ctx.load(0, index), accumulator(ctx.type(0).dtype))


def _affine(ctx: OpContext, index, value: Expr) -> Expr:
    axis = ctx.attrs["axis"]
    if ctx.has(1):
        value = value * cast(ctx.load(1, index[axis:]), value.dtype)
    if ctx.has(2):
        value = value + cast(ctx.load(2, index[axis:]), value.dtype)
    return cast(value, ctx.out().dtype)


def _layer_norm_body(ctx: OpContext, index):
    extents, element, count = _row(ctx, index)
    mean = ctx.reduce("sum", extents, element) / count

    def square(*r) -> Expr:
        d = element(*r) - mean
        return d * d

    variance = ctx.reduce("sum", extents, square) / count
    scale = op("rsqrt", variance + ctx.attrs["epsilon"])
    return _affine(ctx, index, (_own(ctx, index) - mean) * scale)


def _rms_norm_body(ctx: OpContext, index):
    extents, element, count = _row(ctx, index)

    def square(*r) -> Expr:
        value = element(*r)
        return value * value

    scale = op("rsqrt", ctx.reduce("sum", extents, square) / count + ctx.attrs["epsilon"])
    return _affine(ctx, index, _own(ctx, index) * scale)


def _norm_reference(centred: bool):
    def reference(ctx: OpContext, x, scale=None, bias=None):
        wide = _wide(x)
        axes = tuple(range(ctx.attrs["axis"], x.ndim))
        if not x.size:
            return x
        if centred:
            wide = wide - wide.mean(axis=axes, keepdims=True)
        epsilon = wide.dtype.type(ctx.attrs["epsilon"])
        y = wide / np.sqrt(np.mean(wide * wide, axis=axes, keepdims=True) + epsilon)
        if scale is not None:
            y = y * scale.astype(y.dtype)
        if bias is not None:
            y = y + bias.astype(y.dtype)
        return y.astype(x.dtype)

    return reference


define(OpDef(
    "layer_norm", "row", _norm_infer, _norm_reference(True), _layer_norm_body,
    attrs={"axis": -1, "epsilon": 1e-5},
    doc="(x - mean) / sqrt(variance + epsilon) over the axes from `axis` on, times operand 1 plus "
        "operand 2 (optional, of the row's shape).",
))
define(OpDef(
    "rms_norm", "row", _norm_infer, _norm_reference(False), _rms_norm_body,
    attrs={"axis": -1, "epsilon": 1e-5},
    doc="x / sqrt(mean(x * x) + epsilon) over the axes from `axis` on, times operand 1 plus "
        "operand 2 (optional, of the row's shape).",
))
