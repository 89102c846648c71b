"""Writing at computed positions."""

from __future__ import annotations

import numpy as np

from ... import dtype as dt
from ...expr import both, cast, op, select, wrap
from ..definition import OpContext, OpDef, define
from .shapes import normal_axis, require_equal, require_positions, require_same_dtype

REDUCTIONS = {"none": None, "add": np.add, "mul": np.multiply, "min": np.minimum,
              "max": np.maximum}


def _check(ctx: OpContext) -> None:
    require_same_dtype(ctx, (0, 2))
    if not ctx.type(1).dtype.is_integer:
        raise ctx.error(f"indices must be integers, not {ctx.type(1).dtype}")
    if ctx.attrs["reduction"] not in REDUCTIONS:
        raise ctx.error(f"unknown reduction {ctx.attrs['reduction']!r}")


def _write(ctx: OpContext, x, at, updates):
    y = x.copy()
    function = REDUCTIONS[ctx.attrs["reduction"]]
    with np.errstate(all="ignore"):
        for k in np.ndindex(*updates.shape):
            where = tuple(np.asarray(i)[k] for i in at)
            y[where] = updates[k] if function is None else function(y[where], updates[k])
    return y


def _elements_infer(ctx: OpContext):
    _check(ctx)
    t, indices, updates = ctx.types
    if indices.rank != t.rank or updates.rank != t.rank:
        raise ctx.error(f"scatter_elements of {updates} at {indices} into {t}: ranks differ")
    axis = ctx.attrs["axis"] = normal_axis(ctx, ctx.attrs["axis"], t.rank)
    require_positions(ctx, indices, t, axis)
    for d1, d2 in zip(indices.shape, updates.shape, strict=True):
        require_equal(ctx, d1, d2, f"scatter_elements of {updates} at {indices}: shapes differ")
    return [t]


def _elements_reference(ctx: OpContext, x, indices, updates):
    axis = ctx.attrs["axis"]
    at = list(np.indices(indices.shape))
    at[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
    return _write(ctx, x, at, updates)


define(OpDef(
    "scatter_elements", "opaque", _elements_infer, _elements_reference,
    attrs={"axis": 0, "reduction": "none"},
    doc="Operand 0 with y[indices[i, j], j] = updates[i, j] (axis 0, and so on), in row-major "
        "order of the updates; reduction none, add, mul, min or max combines with what is there.",
))


def _nd_infer(ctx: OpContext):
    _check(ctx)
    t, indices, updates = ctx.types
    depth = indices.shape[-1] if indices.rank else None
    if not isinstance(depth, int) or depth > t.rank:
        raise ctx.error(f"scatter_nd into {t} at {indices}: the last axis must have a known size "
                        f"of at most {t.rank}")
    if updates.rank != indices.rank - 1 + t.rank - depth:
        raise ctx.error(f"scatter_nd of {updates} at {indices} into {t}: ranks do not match")
    for d1, d2 in zip(updates.shape, (*indices.shape[:-1], *t.shape[depth:]), strict=True):
        require_equal(ctx, d1, d2, f"scatter_nd of {updates} at {indices} into {t}")
    return [t]


def _nd_reference(ctx: OpContext, x, indices, updates):
    lead = indices.shape[:-1]
    y = x.copy()
    function = REDUCTIONS[ctx.attrs["reduction"]]
    with np.errstate(all="ignore"):
        for k in np.ndindex(*lead):
            where = tuple(int(i) for i in indices[k])
            y[where] = updates[k] if function is None else function(y[where], updates[k])
    return y


define(OpDef(
    "scatter_nd", "opaque", _nd_infer, _nd_reference, attrs={"reduction": "none"},
    doc="Operand 0 with y[indices[i, :]] = updates[i] for every index tuple in the last axis of "
        "`indices`, in row-major order; negative indices count from the end; reductions as in "
        "scatter_elements.",
))


def _tensor_scatter_infer(ctx: OpContext):
    require_same_dtype(ctx, (0, 1))
    t, update = ctx.type(0), ctx.type(1)
    axis = ctx.attrs["axis"] = normal_axis(ctx, ctx.attrs["axis"], t.rank)
    if update.rank != t.rank or axis == 0:
        raise ctx.error(f"tensor_scatter of {update} into {t} along axis {axis}")
    for a, (d1, d2) in enumerate(zip(update.shape, t.shape, strict=True)):
        if a != axis:
            require_equal(ctx, d1, d2, f"tensor_scatter of {update} into {t} along axis {axis}")
    return [t]


def _tensor_scatter_body(ctx: OpContext, index):
    axis, extent = ctx.attrs["axis"], wrap(ctx.type(0).shape[ctx.attrs["axis"]])
    position = index[axis]
    if ctx.has(2):
        position = position - cast(ctx.load(2, (index[0],)), dt.i64)
        if ctx.attrs["circular"]:
            position = position % extent
    inside = both(op("ge", position, 0),
                  op("lt", position, wrap(ctx.type(1).shape[axis])))
    new = ctx.load(1, (*index[:axis], position, *index[axis + 1:]))
    return select(inside, new, ctx.load(0, index))


define(OpDef(
    "tensor_scatter", "injective", _tensor_scatter_infer, body=_tensor_scatter_body,
    attrs={"axis": -2, "circular": False},
    doc="A cache (operand 0) with operand 1 written along `axis` from position operand 2[b] on "
        "(absent: 0) of each batch entry b; `circular` wraps around.",
))
