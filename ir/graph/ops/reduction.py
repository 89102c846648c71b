"""Reductions over axes, arg-reductions and running sums."""

from __future__ import annotations

import numpy as np

from ... import dtype as dt
from ...expr import cast, wrap
from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import normal_axis, type_like


def _axes_infer(ctx: OpContext):
    t = ctx.type(0)
    axes = tuple(sorted({normal_axis(ctx, a, t.rank) for a in ctx.attrs["axes"]}))
    ctx.attrs["axes"] = axes
    keep = ctx.attrs["keepdims"]
    shape = [1 if a in axes else d for a, d in enumerate(t.shape) if keep or a not in axes]
    return [type_like(t, shape)]


def reduced_index(ctx: OpContext, index, variables):
    """The input index of output `index` with `variables` in the place of the reduced axes."""
    axes, keep = ctx.attrs["axes"], ctx.attrs["keepdims"]
    outer = iter(i for a, i in enumerate(index) if not (keep and a in axes))
    inner = iter(variables)
    return [next(inner) if a in axes else next(outer) for a in range(ctx.type(0).rank)]


def _reduction(kind: str, function, doc: str) -> None:
    def body(ctx: OpContext, index):
        extents = [ctx.type(0).shape[a] for a in ctx.attrs["axes"]]
        return ctx.reduce(kind, extents, lambda *r: ctx.load(0, reduced_index(ctx, index, r)))

    def reference(ctx: OpContext, x):
        options: dict = {"axis": ctx.attrs["axes"], "keepdims": ctx.attrs["keepdims"]}
        if kind in ("max", "min"):
            t = ctx.type(0).dtype
            limit = np.inf if t.is_float else t.max
            options["initial"] = np.asarray(-limit if t.is_float and kind == "max" else (
                t.min if kind == "max" else limit), x.dtype)
        if kind in ("sum", "prod"):
            wide = np.float32 if x.dtype.itemsize < 4 and dt.from_numpy(x).is_float else x.dtype
            return np.asarray(function(x.astype(wide), **options)).astype(x.dtype)
        return function(x, **options)

    define(OpDef(f"reduce_{kind}", "reduction", _axes_infer, reference, body,
                 attrs={"axes": REQUIRED, "keepdims": False}, doc=doc))


_reduction("sum", np.sum, "Sum over `axes`.")
_reduction("prod", np.prod, "Product over `axes`.")
_reduction("max", np.max, "Maximum over `axes`; of nothing, the lowest value.")
_reduction("min", np.min, "Minimum over `axes`; of nothing, the highest value.")
_reduction("any", np.any, "Whether any element over `axes` is true.")
_reduction("all", np.all, "Whether all elements over `axes` are true.")


def _mean_body(ctx: OpContext, index):
    extents = [ctx.type(0).shape[a] for a in ctx.attrs["axes"]]
    narrow = ctx.out().dtype
    # The sum of a narrow float need not fit it.
    wide = dt.f32 if narrow.is_float and narrow.bits < 32 else narrow
    total = ctx.reduce("sum", extents,
                       lambda *r: cast(ctx.load(0, reduced_index(ctx, index, r)), wide))
    count = wrap(1)
    for e in extents:
        count = count * wrap(e)
    return cast(total / cast(count, wide), narrow)


define(OpDef(
    "reduce_mean", "reduction", _axes_infer,
    lambda ctx, x: np.mean(x, axis=ctx.attrs["axes"], keepdims=ctx.attrs["keepdims"],
                           dtype=np.float32 if x.dtype.itemsize < 4 else x.dtype).astype(x.dtype),
    _mean_body, attrs={"axes": REQUIRED, "keepdims": False}, doc="Mean over `axes`.",
))


def _arg_infer(ctx: OpContext):
    t = ctx.type(0)
    axis = normal_axis(ctx, ctx.attrs["axis"], t.rank)
    ctx.attrs["axis"] = axis
    return [TensorType(dt.i64, t.shape[:axis] + t.shape[axis + 1:])]


def _arg_reference(function):
    def reference(ctx: OpContext, x):
        axis = ctx.attrs["axis"]
        if ctx.attrs["last"]:
            flipped = function(np.flip(x, axis), axis=axis)
            return (x.shape[axis] - 1 - flipped).astype(np.int64)
        return function(x, axis=axis).astype(np.int64)

    return reference


for _name, _function in (("argmax", np.argmax), ("argmin", np.argmin)):
    define(OpDef(_name, "opaque", _arg_infer, _arg_reference(_function),
                 attrs={"axis": REQUIRED, "last": False},
                 doc=f"Position of the {_name[3:]}imum along `axis` (removed); the first or last."))


def _scan_reference(function, neutral: int):
    def reference(ctx: OpContext, x):
        axis, n = ctx.attrs["axis"], x.shape[ctx.attrs["axis"]]
        wide = np.float32 if x.dtype.itemsize < 4 and dt.from_numpy(x).is_float else x.dtype
        y = np.flip(x, axis) if ctx.attrs["reverse"] else x
        with np.errstate(all="ignore"):
            total = function(y, axis=axis, dtype=wide)
        if ctx.attrs["exclusive"]:
            first = np.full_like(np.take(total, np.arange(min(n, 1)), axis), neutral)
            total = np.concatenate([first, np.take(total, np.arange(max(n - 1, 0)), axis)], axis)
        return (np.flip(total, axis) if ctx.attrs["reverse"] else total).astype(x.dtype)

    return reference


def _same_axis_infer(ctx: OpContext):
    ctx.attrs["axis"] = normal_axis(ctx, ctx.attrs["axis"], ctx.type(0).rank)
    return [ctx.type(0)]


for _name, _function, _neutral in (("cumsum", np.cumsum, 0), ("cumprod", np.cumprod, 1)):
    define(OpDef(
        _name, "opaque", _same_axis_infer, _scan_reference(_function, _neutral),
        attrs={"axis": REQUIRED, "exclusive": False, "reverse": False},
        doc=f"Running {'product' if _neutral else 'sum'} along `axis`; `exclusive` leaves out the "
            "element itself, `reverse` starts at the end. f16 and bf16 accumulate in f32.",
    ))
