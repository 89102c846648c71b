"""Sliding windows over the spatial axes: maxima, where they are, sums and means.

All take x [N, C, spatial...] and attributes `kernel`, `strides`, `dilations`, `low` (padding
before each axis) and `sizes` (the output's spatial sizes; a window may end beyond the input).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ... import dtype as dt
from ...algebra import at_least
from ...expr import Expr, both, cast, const, op, select, wrap
from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import flat_index, same, unflatten


def _infer_as(dtype=None):
    def infer(ctx: OpContext):
        x, a = ctx.type(0), ctx.attrs
        n = x.rank - 2
        if n < 1:
            raise ctx.error(f"pooling needs [N, C, spatial...], got {x}")
        a["strides"] = a["strides"] or (1,) * n
        a["dilations"] = a["dilations"] or (1,) * n
        a["low"] = a["low"] or (0,) * n
        for key in ("kernel", "strides", "dilations", "low", "sizes"):
            if len(a[key]) != n:
                raise ctx.error(f"{key} needs {n} entries, has {len(a[key])}")
        return [TensorType(dtype or x.dtype, (*x.shape[:2], *a["sizes"]))]

    return infer


def _positions(ctx: OpContext, index, k) -> list[Expr]:
    a = ctx.attrs
    return [index[2 + i] * a["strides"][i] + k[i] * a["dilations"][i] - wrap(a["low"][i])
            for i in range(len(k))]


def _reaches_outside(ctx: OpContext, axis: int) -> bool:
    """Whether some window may touch padding along spatial axis `axis`."""
    a, extent = ctx.attrs, wrap(ctx.type(0).shape[2 + axis])
    last = (wrap(a["sizes"][axis]) - 1) * a["strides"][axis] + (
        wrap(a["kernel"][axis]) - 1) * a["dilations"][axis] - wrap(a["low"][axis])
    return not same(a["low"][axis], 0) or not at_least(extent - last, 1)


def _guard(ctx: OpContext, at: list[Expr]) -> Expr:
    """The condition under which position `at` is inside the input."""
    checks = []
    for i, p in enumerate(at):
        if _reaches_outside(ctx, i):
            checks += [op("ge", p, 0), op("lt", p, wrap(ctx.type(0).shape[2 + i]))]
    return both(*checks)


def _window(ctx: OpContext, kind: str, index, value: Callable[[Expr, list[Expr]], Expr],
            outside: Expr) -> Expr:
    """Reduction over the window of `value(element, position)`, `outside` in the padding."""

    def term(*k):
        at = _positions(ctx, index, k)
        return select(_guard(ctx, at), value(ctx.load(0, (*index[:2], *at)), at), outside)

    return ctx.reduce(kind, ctx.attrs["kernel"], term)


def _windows(ctx: OpContext, x: np.ndarray, fill) -> np.ndarray:
    """All windows, numpy: [N, C, out..., window...], `fill` outside the input."""
    a, n = ctx.attrs, x.ndim - 2
    kernel, sizes, low = ([int(v) for v in a[key]] for key in ("kernel", "sizes", "low"))
    high = [max(0, (sizes[i] - 1) * a["strides"][i] + (kernel[i] - 1) * a["dilations"][i] + 1
                - low[i] - x.shape[2 + i]) for i in range(n)]
    padded = np.pad(x, [(0, 0), (0, 0), *((max(p, 0), q) for p, q in zip(low, high, strict=True))],
                    constant_values=fill)
    # A negative low cuts instead.
    grids = [np.arange(sizes[i])[:, None] * a["strides"][i]
             + np.arange(kernel[i])[None, :] * a["dilations"][i] + max(-low[i], 0)
             for i in range(n)]
    where = [g.reshape([g.shape[0] if j == i else g.shape[1] if j == n + i else 1
                        for j in range(2 * n)]) for i, g in enumerate(grids)]
    return padded[(slice(None), slice(None), *where)]


def _last_axes(n: int) -> tuple[int, ...]:
    return tuple(range(-n, 0))


_ATTRS = {"kernel": REQUIRED, "sizes": REQUIRED, "strides": None, "dilations": None, "low": None}


# Maxima ---------------------------------------------------------------------------------------


def _lowest(dtype) -> Expr:
    return const(-np.inf if dtype.is_float else dtype.min, dtype)


def _max_reference(ctx: OpContext, x):
    t = ctx.type(0).dtype
    fill = -np.inf if t.is_float else t.min
    return _windows(ctx, x, np.asarray(fill, x.dtype)).max(axis=_last_axes(x.ndim - 2))


define(OpDef(
    "pool_max", "reduction", _infer_as(), _max_reference,
    body=lambda ctx, index: _window(ctx, "max", index, lambda x, at: x,
                                    _lowest(ctx.out().dtype)),
    attrs=_ATTRS, doc="Maximum of each window; padding never wins.",
))


def _argmax_body(ctx: OpContext, index):
    shape, top = ctx.type(0).shape, ctx.load(1, index)
    none = const(dt.i64.max)

    def position(x: Expr, at: list[Expr]) -> Expr:
        hit = op("eq", x, top)
        if x.dtype.is_float:
            hit = op("or", hit, op("isnan", x))
        return select(hit, flat_index(at, shape[2:]), none)

    first = _window(ctx, "min", index, position, none)
    plane: Expr = const(1)
    for d in shape[2:]:
        plane = plane * wrap(d)
    if ctx.attrs["column_major"]:
        place = unflatten(first, shape[2:])
        first = flat_index(place[::-1], shape[:1:-1])
    return (index[0] * wrap(shape[1]) + index[1]) * plane + first


def _argmax_reference(ctx: OpContext, x, top):
    n = x.ndim - 2
    inside = _windows(ctx, np.ones_like(x, bool), False)
    plane = np.arange(int(np.prod(x.shape[2:]))).reshape(1, 1, *x.shape[2:])
    flat = _windows(ctx, np.broadcast_to(plane, x.shape), 0)
    windows = _windows(ctx, x, np.asarray(0, x.dtype))
    hit = windows == top[(..., *(None,) * n)]
    if x.dtype.kind not in "iub":
        hit |= np.isnan(windows)
    first = np.where(hit & inside, flat, np.iinfo(np.int64).max).min(axis=_last_axes(n))
    if ctx.attrs["column_major"]:
        place = np.unravel_index(np.minimum(first, plane.size - 1), x.shape[2:])
        first = np.ravel_multi_index(place[::-1], x.shape[:1:-1])
    images = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *(1,) * n)
    return (images * plane.size + first).astype(np.int64)


define(OpDef(
    "pool_argmax", "reduction", _infer_as(dt.i64), _argmax_reference, _argmax_body,
    attrs={**_ATTRS, "column_major": False},
    doc="Flat position in x of the first maximum of each window, given x and its pool_max. "
        "column_major counts the spatial axes from the first.",
))


# Sums and means -------------------------------------------------------------------------------


def _zero(ctx: OpContext) -> Expr:
    return const(0, ctx.out().dtype)


def _wide_sum(x: np.ndarray, n: int) -> np.ndarray:
    wide = np.float32 if x.dtype.itemsize < 4 and x.dtype.kind not in "iub" else x.dtype
    return x.sum(axis=_last_axes(n), dtype=wide)


define(OpDef(
    "pool_sum", "reduction", _infer_as(),
    lambda ctx, x: _wide_sum(_windows(ctx, x, np.asarray(0, x.dtype)), x.ndim - 2).astype(x.dtype),
    body=lambda ctx, index: _window(ctx, "sum", index, lambda x, at: x, _zero(ctx)),
    attrs=_ATTRS, doc="Sum of each window, zeros in the padding.",
))


def _taps_between(ctx: OpContext, index, axis: int, low: Expr, high: Expr) -> Expr:
    """How many window positions along `axis` lie in [low, high)."""
    a = ctx.attrs
    start = index[2 + axis] * a["strides"][axis] - wrap(a["low"][axis])
    step, count = a["dilations"][axis], wrap(a["kernel"][axis])
    first = op("max", (low - start + (step - 1)) // step, 0)
    beyond = op("min", (high - start + (step - 1)) // step, count)
    return op("max", beyond - first, 0)


def _mean_body(ctx: OpContext, index):
    a, x = ctx.attrs, ctx.type(0)
    count: Expr = const(1)
    for i in range(x.rank - 2):
        if a["include_pad"]:
            low, high = -wrap(a["low"][i]), wrap(x.shape[2 + i]) + wrap(a["high"][i])
        else:
            low, high = const(0), wrap(x.shape[2 + i])
        if a["include_pad"] and _ends_within(ctx, i, high) or not (
                a["include_pad"] or _reaches_outside(ctx, i)):
            taps = wrap(a["kernel"][i])
        else:
            taps = _taps_between(ctx, index, i, low, high)
        count = count * taps
    total = _window(ctx, "sum", index, lambda value, at: value, _zero(ctx))
    return total / cast(op("max", count, 1), ctx.out().dtype)


def _ends_within(ctx: OpContext, axis: int, high: Expr) -> bool:
    a = ctx.attrs
    last = (wrap(a["sizes"][axis]) - 1) * a["strides"][axis] + (
        wrap(a["kernel"][axis]) - 1) * a["dilations"][axis] - wrap(a["low"][axis])
    return at_least(high - last, 1)


def _mean_infer(ctx: OpContext):
    types = _infer_as()(ctx)
    a = ctx.attrs
    a["high"] = a["high"] or (0,) * (ctx.type(0).rank - 2)
    return types


def _mean_reference(ctx: OpContext, x):
    a, n = ctx.attrs, x.ndim - 2
    counted = np.ones((1, 1, *x.shape[2:]), np.float64)
    low = [int(p) for p in a["low"]]
    if a["include_pad"]:
        counted = np.pad(counted, [(0, 0), (0, 0), *(
            (max(p, 0), max(int(q), 0)) for p, q in zip(low, a["high"], strict=True))],
            constant_values=1)
        low = [min(p, 0) for p in low]
    shadow = OpContext(ctx.node)
    shadow.attrs = {**a, "low": tuple(low)}
    counts = _windows(shadow, counted, 0).sum(axis=_last_axes(n))
    total = _wide_sum(_windows(ctx, x, np.asarray(0, x.dtype)), n)
    return (total / np.maximum(counts, 1)).astype(x.dtype)


define(OpDef(
    "pool_mean", "reduction", _mean_infer, _mean_reference, _mean_body,
    attrs={**_ATTRS, "high": None, "include_pad": False},
    doc="Mean of each window over the elements of the input, or with include_pad over those of "
        "the input padded by low and high.",
))

