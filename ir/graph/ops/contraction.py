"""Matrix products and convolutions."""

from __future__ import annotations

import numpy as np

from ...expr import both, cast, const, op, select, simplify_dim, wrap
from ..core import TensorType
from ..definition import OpContext, OpDef, define
from .shapes import broadcast_index, broadcast_shapes, conv_extent, require_equal, same


def _matmul_infer(ctx: OpContext):
    a, b = ctx.type(0), ctx.type(1)
    if a.rank < 2 or b.rank < 2:
        raise ctx.error(f"matmul needs matrices, got {a} and {b}")
    if a.dtype.is_float != b.dtype.is_float:
        raise ctx.error(f"matmul of {a.dtype} and {b.dtype}")
    k1, k2 = a.shape[-1], b.shape[-2]
    require_equal(ctx, k1, k2, f"matmul of {a} and {b}: inner sizes {k1} and {k2} differ")
    batch = broadcast_shapes(ctx, [a.shape[:-2], b.shape[:-2]])
    return [TensorType(ctx.attrs["dtype"] or a.dtype, (*batch, a.shape[-2], b.shape[-1]))]


def _matmul_body(ctx: OpContext, index):
    a, b, out = ctx.type(0), ctx.type(1), ctx.out()
    batch = out.shape[:-2]
    left = broadcast_index(index[:-2], a.shape[:-2], batch)
    right = broadcast_index(index[:-2], b.shape[:-2], batch)
    return ctx.reduce("sum", [a.shape[-1]], lambda k: (
        cast(ctx.load(0, (*left, index[-2], k)), out.dtype)
        * cast(ctx.load(1, (*right, k, index[-1])), out.dtype)))


def _matmul_reference(ctx: OpContext, a, b):
    out = ctx.out().dtype.numpy
    if ctx.out().dtype.is_float and out.itemsize < 4:
        return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(out)
    return np.matmul(a.astype(out), b.astype(out))


define(OpDef(
    "matmul", "contraction", _matmul_infer, _matmul_reference, _matmul_body,
    attrs={"dtype": None},
    doc="[..., M, K] x [..., K, N] with broadcast batch; `dtype` is the type of the sum "
        "(default that of operand 0; i32 for quantised operands).",
))


def _conv_infer(ctx: OpContext):
    x, w, a = ctx.type(0), ctx.type(1), ctx.attrs
    n = x.rank - 2
    if w.rank != x.rank or n < 1:
        raise ctx.error(f"conv of {x} with weights {w}")
    for key, default in (("strides", 1), ("dilations", 1), ("low", 0), ("high", 0)):
        a[key] = a[key] or (default,) * n
        if len(a[key]) != n:
            raise ctx.error(f"{key} needs {n} entries, has {len(a[key])}")
    groups = a["groups"]
    channels, per_group, features = x.shape[1], w.shape[1], w.shape[0]
    require_equal(ctx, channels, simplify_dim(wrap(per_group) * groups),
                  f"conv of {channels} channels with weights {w} in {groups} groups")
    if isinstance(features, int) and features % groups:
        raise ctx.error(f"{features} output channels do not divide into {groups} groups")
    spatial = [conv_extent(x.shape[2 + i], w.shape[2 + i], a["strides"][i], a["dilations"][i],
                           a["low"][i], a["high"][i]) for i in range(n)]
    return [TensorType(a["dtype"] or x.dtype, (x.shape[0], features, *spatial))]


def _conv_body(ctx: OpContext, index):
    x, w, a, out = ctx.type(0), ctx.type(1), ctx.attrs, ctx.out()
    n = x.rank - 2
    padded = any(not same(p, 0) for p in (*a["low"], *a["high"]))
    per_group = wrap(w.shape[1])
    features = wrap(w.shape[0]) // a["groups"]
    group = index[1] // features if a["groups"] > 1 else wrap(0)

    def term(c, *k):
        at = [index[2 + i] * a["strides"][i] + k[i] * a["dilations"][i] - wrap(a["low"][i])
              for i in range(n)]
        value = ctx.load(0, (index[0], group * per_group + c, *at))
        if padded:
            inside = both(*(op("ge", p, 0) for p in at),
                          *(op("lt", p, wrap(x.shape[2 + i])) for i, p in enumerate(at)))
            value = select(inside, value, const(a["fill"], value.dtype))
        return cast(value, out.dtype) * cast(ctx.load(1, (index[1], c, *k)), out.dtype)

    return ctx.reduce("sum", w.shape[1:], term)


def _conv_reference(ctx: OpContext, x, w):
    a, n = ctx.attrs, x.ndim - 2
    out = ctx.out().dtype.numpy
    wide = np.float32 if ctx.out().dtype.is_float and out.itemsize < 4 else out
    pads = [(0, 0), (0, 0), *((int(p), int(q)) for p, q in zip(a["low"], a["high"], strict=True))]
    x = np.pad(x.astype(wide), pads, constant_values=a["fill"])
    groups = a["groups"]
    spatial = [max(0, (x.shape[2 + i] - ((w.shape[2 + i] - 1) * a["dilations"][i] + 1))
                   // a["strides"][i] + 1) for i in range(n)]
    x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    w = w.astype(wide).reshape(groups, -1, *w.shape[1:])
    total = np.zeros((x.shape[0], groups, w.shape[1], *spatial), wide)
    for k in np.ndindex(*w.shape[3:]):
        window = x[(slice(None),) * 3 + tuple(
            slice(k[i] * a["dilations"][i],
                  k[i] * a["dilations"][i] + (spatial[i] - 1) * a["strides"][i] + 1,
                  a["strides"][i]) if spatial[i] else slice(0, 0) for i in range(n))]
        total += np.einsum("ngc...,gfc->ngf...", window, w[(slice(None),) * 3 + k])
    return total.reshape(x.shape[0], groups * w.shape[1], *spatial).astype(out)


define(OpDef(
    "conv", "contraction", _conv_infer, _conv_reference, _conv_body,
    attrs={"strides": None, "dilations": None, "low": None, "high": None, "groups": 1,
           "dtype": None, "fill": 0},
    doc="x [N, C, spatial...], weights [F, C/groups, window...]; low/high elements of value `fill` "
        "are added around the spatial axes; `dtype` as in matmul.",
))
