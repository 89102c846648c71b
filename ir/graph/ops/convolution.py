"""Transposed convolution in gather form, and the sampling of deformable convolution."""

from __future__ import annotations

import itertools

import numpy as np

from ... import dtype as dt
from ...expr import Expr, both, cast, const, op, select, simplify_dim, wrap
from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import conv_extent, require_equal, same

# Transposed convolution ---------------------------------------------------------------------------


def _transpose_infer(ctx: OpContext):
    x, w, a = ctx.type(0), ctx.type(1), ctx.attrs
    n = x.rank - 2
    if w.rank != x.rank or n < 1:
        raise ctx.error(f"conv_transpose of {x} with weights {w}")
    for key, default in (("strides", 1), ("dilations", 1), ("low", 0)):
        a[key] = a[key] or (default,) * n
    for key in ("strides", "dilations", "low", "sizes"):
        if len(a[key]) != n:
            raise ctx.error(f"{key} needs {n} entries, has {len(a[key])}")
    channels, filters = x.shape[1], w.shape[0]
    require_equal(ctx, channels, filters, f"conv_transpose of {channels} channels with weights {w}")
    if isinstance(channels, int) and channels % a["groups"]:
        raise ctx.error(f"{channels} channels do not divide into {a['groups']} groups")
    features = simplify_dim(wrap(w.shape[1]) * a["groups"])
    return [TensorType(a["dtype"] or x.dtype, (x.shape[0], features, *a["sizes"]))]


def _transpose_body(ctx: OpContext, index):
    x, w, a, out = ctx.type(0), ctx.type(1), ctx.attrs, ctx.out()
    n = x.rank - 2
    per_group = simplify_dim(wrap(x.shape[1]) // a["groups"])
    group = index[1] // wrap(w.shape[1])
    feature = index[1] % wrap(w.shape[1])

    def term(c, *k):
        conditions, at = [], []
        for i in range(n):
            position = index[2 + i] + wrap(a["low"][i]) - k[i] * a["dilations"][i]
            source = position // a["strides"][i]
            conditions += [op("ge", position, 0), op("lt", source, wrap(x.shape[2 + i]))]
            if a["strides"][i] != 1:
                conditions.append(op("eq", position % a["strides"][i], 0))
            at.append(source)
        channel = group * wrap(per_group) + c
        value = ctx.load(0, (index[0], channel, *at))
        value = select(both(*conditions), value, const(0, value.dtype))
        return cast(value, out.dtype) * cast(ctx.load(1, (channel, feature, *k)), out.dtype)

    return ctx.reduce("sum", (per_group, *w.shape[2:]), term)


def _transpose_reference(ctx: OpContext, x, w):
    a, n = ctx.attrs, x.ndim - 2
    out = ctx.out().dtype.numpy
    wide = np.float32 if ctx.out().dtype.is_float and out.itemsize < 4 else out
    groups, sizes = a["groups"], [int(d) for d in a["sizes"]]
    low = [int(p) for p in a["low"]]
    x = x.astype(wide).reshape(x.shape[0], groups, -1, *x.shape[2:])
    w = w.astype(wide).reshape(groups, -1, *w.shape[1:])
    spatial = x.shape[3:]
    # The whole scattered field, from which the output is cut.
    full = [max((spatial[i] - 1) * a["strides"][i] + (w.shape[3 + i] - 1) * a["dilations"][i] + 1,
                low[i] + sizes[i]) if spatial[i] else low[i] + sizes[i] for i in range(n)]
    total = np.zeros((x.shape[0], groups, w.shape[2], *full), wide)
    for k in np.ndindex(*w.shape[3:]):
        place = (slice(None),) * 3 + tuple(
            slice(k[i] * a["dilations"][i],
                  k[i] * a["dilations"][i] + (spatial[i] - 1) * a["strides"][i] + 1,
                  a["strides"][i]) if spatial[i] else slice(0, 0) for i in range(n))
        total[place] += np.einsum("ngc...,gcf->ngf...", x, w[(slice(None),) * 3 + k])
    cut = (slice(None),) * 2 + tuple(slice(p, p + s) for p, s in zip(low, sizes, strict=True))
    return total.reshape(x.shape[0], -1, *full)[cut].astype(out)


define(OpDef(
    "conv_transpose", "contraction", _transpose_infer, _transpose_reference, _transpose_body,
    attrs={"sizes": REQUIRED, "strides": None, "dilations": None, "low": None, "groups": 1,
           "dtype": None},
    doc="x [N, C, spatial...], weights [C, F/groups, window...] to [N, F, sizes...]: element i of "
        "x is spread to positions i * stride + k * dilation - low.",
))


# Deformable sampling ------------------------------------------------------------------------------


def _deform_infer(ctx: OpContext):
    x, offset, a = ctx.type(0), ctx.type(1), ctx.attrs
    n = x.rank - 2
    for key, default in (("strides", 1), ("dilations", 1), ("low", 0), ("high", 0)):
        a[key] = a[key] or (default,) * n
    if offset.rank != x.rank or len(a["kernel"]) != n:
        raise ctx.error(f"deform_sample of {x} with offsets {offset}")
    taps = 1
    for k in a["kernel"]:
        taps *= k
    spatial = [conv_extent(x.shape[2 + i], a["kernel"][i], a["strides"][i], a["dilations"][i],
                           a["low"][i], a["high"][i]) for i in range(n)]
    for want, have in zip(spatial, offset.shape[2:], strict=True):
        require_equal(ctx, want, have, f"offsets {offset} do not fit output {spatial}")
    if not same(offset.shape[1], a["groups"] * taps * n):
        raise ctx.error(f"offsets {offset} do not fit {a['groups']} groups of {taps} taps")
    return [TensorType(x.dtype, (*x.shape[:2], taps, *offset.shape[2:]))]


def _deform_body(ctx: OpContext, index):
    x, a, real = ctx.type(0), ctx.attrs, ctx.type(1).dtype
    n, extents = x.rank - 2, ctx.type(0).shape[2:]
    batch, channel, tap, place = index[0], index[1], index[2], index[3:]
    group = channel // (wrap(x.shape[1]) // a["groups"])
    taps = ctx.out().shape[2]
    lows: list[Expr] = []
    fractions: list[Expr] = []
    rest = tap
    window: list[Expr] = []
    for k in reversed(a["kernel"]):
        window.append(rest % k)
        rest = rest // k
    window.reverse()
    for i in range(n):
        base = place[i] * a["strides"][i] + window[i] * a["dilations"][i] - wrap(a["low"][i])
        row = (group * taps + tap) * n + i
        position = cast(base, real) + ctx.load(1, (batch, row, *place))
        # Far outside everything reads as zero; the clamp keeps the integer conversion in range.
        position = op("max", op("min", position, cast(wrap(extents[i]), real) + 1), -2)
        floor = op("floor", position)
        lows.append(cast(floor, dt.i64))
        fractions.append(position - floor)
    total: Expr | None = None
    for corner in itertools.product((0, 1), repeat=n):
        at = [low + c for low, c in zip(lows, corner, strict=True)]
        inside = both(*(op("ge", p, 0) for p in at),
                      *(op("lt", p, wrap(e)) for p, e in zip(at, extents, strict=True)))
        value = ctx.load(0, (batch, channel, *at))
        value = select(inside, value, const(0, value.dtype))
        for c, f in zip(corner, fractions, strict=True):
            weight = f if c else 1 - f
            value = value * cast(weight, value.dtype)
        total = value if total is None else total + value
    assert total is not None
    if ctx.has(2):
        total = total * ctx.load(2, (batch, group * taps + tap, *place))
    return total


define(OpDef(
    "deform_sample", "reduction", _deform_infer, body=_deform_body,
    attrs={"kernel": REQUIRED, "strides": None, "dilations": None, "low": None, "high": None,
           "groups": 1},
    doc="The windows of a deformable convolution: x [N, C, spatial...] and offsets "
        "[N, groups * taps * n, out...] (and a mask [N, groups * taps, out...]) to "
        "[N, C, taps, out...], sampled linearly, zero outside x.",
))
