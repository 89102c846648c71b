"""Diagonals of tensors."""

from __future__ import annotations

import numpy as np

from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import normal_axis, same, type_like


def _diagonal_infer(ctx: OpContext):
    t = ctx.type(0)
    first, second = (normal_axis(ctx, a, t.rank) for a in ctx.attrs["axes"])
    if first >= second:
        raise ctx.error(f"axes {ctx.attrs['axes']} must be ascending")
    if isinstance(t.shape[first], int) and isinstance(t.shape[second], int) and not same(
            t.shape[first], t.shape[second]):
        raise ctx.error(f"no diagonal of axes {first} and {second} of {t}")
    return [type_like(t, [d for a, d in enumerate(t.shape) if a != second])]


def _diagonal_body(ctx: OpContext, index):
    first, second = ctx.attrs["axes"]
    return ctx.load(0, (*index[:second], index[first], *index[second:]))


def _diagonal_reference(ctx: OpContext, x):
    first, second = ctx.attrs["axes"]
    return np.moveaxis(np.diagonal(x, axis1=first, axis2=second), -1, first)


define(OpDef(
    "diagonal", "injective", _diagonal_infer, _diagonal_reference, _diagonal_body,
    attrs={"axes": REQUIRED},
    doc="The elements whose indices along the two `axes` (ascending) agree; the second axis goes.",
))
