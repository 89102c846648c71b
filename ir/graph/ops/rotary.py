"""Rotary position embedding (Su et al. 2021)."""

from __future__ import annotations

import numpy as np

from ...expr import Expr, const, equal, op, select, wrap
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import broadcast_index, require_one_of, require_same_dtype


def _infer(ctx: OpContext):
    x, count = ctx.type(0), ctx.attrs["size"]
    require_same_dtype(ctx, (0, 1, 2))
    if not x.rank or not x.dtype.is_float or not isinstance(x.shape[-1], int):
        raise ctx.error(f"rotary needs floats whose last axis has a known size, got {x}")
    if count % 2 or not 0 < count <= x.shape[-1]:
        raise ctx.error(f"cannot rotate {count} of {x.shape[-1]} elements")
    for t in (ctx.type(1), ctx.type(2)):
        fits = 0 < t.rank <= x.rank and t.shape[-1] in (count, count // 2)
        if not fits or any(
                isinstance(a, int) and isinstance(b, int) and b not in (a, 1)
                for a, b in zip(x.shape[-t.rank:-1], t.shape[:-1], strict=True)):
            raise ctx.error(f"angles {t} do not fit {x} with {count} rotated elements")
        for a, b in zip(x.shape[-t.rank:-1], t.shape[:-1], strict=True):
            require_one_of(ctx, b, (a, 1))
    return [x]


def _body(ctx: OpContext, index):
    *lead, i = index
    x, count = ctx.type(0), ctx.attrs["size"]
    half = count // 2

    def at(position: Expr) -> Expr:
        return ctx.load(0, (*lead, position))

    def angle(k: int, pair: Expr) -> Expr:
        t = ctx.type(k)
        where = broadcast_index(lead, t.shape[:-1], x.shape[:-1])
        return ctx.load(k, (*where, pair if t.shape[-1] == half else i))

    def turned(pair: Expr, other: Expr, sign: str) -> Expr:
        return op(sign, at(i) * angle(1, pair), at(other) * angle(2, pair))

    if ctx.attrs["interleaved"]:
        pair = i // wrap(2)
        result = select(equal(i % wrap(2), 0), turned(pair, i + 1, "sub"),
                        turned(pair, i - 1, "add"))
    else:
        result = select(op("lt", i, const(half)), turned(i, i + half, "sub"),
                        turned(i - half, i - half, "add"))
    return result if x.shape[-1] == count else select(op("lt", i, const(count)), result, at(i))


def _reference(ctx: OpContext, x, cos, sin):
    count, wide = ctx.attrs["size"], np.float32 if x.dtype.itemsize < 4 else x.dtype
    half = count // 2
    first, second = (slice(0, count, 2), slice(1, count, 2)) if ctx.attrs["interleaved"] else (
        slice(0, half), slice(half, count))
    a, b = x[..., first].astype(wide), x[..., second].astype(wide)
    # The angles of the first and of the second elements.
    (c, d), (s, t) = ((f[..., first], f[..., second]) if f.shape[-1] == count else (f, f)
                      for f in (cos.astype(wide), sin.astype(wide)))
    y = x.copy()
    y[..., first] = a * c - b * s
    y[..., second] = b * d + a * t
    return y


define(OpDef(
    "rotary", "injective", _infer, _reference, _body,
    attrs={"size": REQUIRED, "interleaved": False},
    doc="Turns pairs (a, b) of the first `size` elements of x's last axis to (a cos - b sin, "
        "b cos + a sin); the rest stays. Pairs are (i, i + size / 2), or (2i, 2i + 1) when "
        "`interleaved`. cos and sin broadcast against x; their last axis has one element per "
        "pair, or `size`, one per element.",
))
