"""Repetition, and transposition in an order that data gives."""

from __future__ import annotations

import numpy as np

from ... import dtype as dt
from ...expr import Expr, cast, const, equal, select, simplify_dim, wrap
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import same, type_like


def _tile_infer(ctx: OpContext):
    t, repeats = ctx.type(0), ctx.attrs["repeats"]
    if len(repeats) != t.rank:
        raise ctx.error(f"tile needs one count per axis of {t}, found {len(repeats)}")
    return [type_like(t, [simplify_dim(wrap(d) * wrap(r)) for d, r in zip(t.shape, repeats)])]


def _tile_body(ctx: OpContext, index):
    shape, repeats = ctx.type(0).shape, ctx.attrs["repeats"]
    return ctx.load(0, [i if same(r, 1) else i % wrap(d)
                        for i, d, r in zip(index, shape, repeats, strict=True)])


define(OpDef(
    "tile", "injective", _tile_infer, body=_tile_body, attrs={"repeats": REQUIRED},
    reference=lambda ctx, x: np.tile(x, [int(r) for r in ctx.attrs["repeats"]]),
    doc="Axis k repeated repeats[k] times.",
))


def _transpose_by_infer(ctx: OpContext):
    t, perm = ctx.type(0), ctx.type(1)
    if not perm.dtype.is_integer or perm.shape != (t.rank,) or len(ctx.attrs["shape"]) != t.rank:
        raise ctx.error(f"transpose_by of {t} needs an order and a shape of {t.rank} entries")
    return [type_like(t, ctx.attrs["shape"])]


def _transpose_by_body(ctx: OpContext, index):
    rank = ctx.type(0).rank
    order = [cast(ctx.load(1, [const(k)]), dt.i64) for k in range(rank)]
    source: list[Expr] = []
    for axis in range(rank):
        position: Expr = const(0)
        for k in range(rank):
            position = select(equal(order[k], axis), index[k], position)
        source.append(position)
    return ctx.load(0, source)


define(OpDef(
    "transpose_by", "injective", _transpose_by_infer, body=_transpose_by_body,
    reference=lambda ctx, x, perm: np.transpose(x, perm.tolist()), attrs={"shape": REQUIRED},
    doc="Output dimension k is input dimension operand1[k]; `shape` is that of the output.",
))
