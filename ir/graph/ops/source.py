"""Operators without tensor operands, and the one that turns data into sizes."""

from __future__ import annotations

from ... import dtype as dt
from ...expr import cast, equal, select, wrap
from ..core import TensorType
from ..definition import REQUIRED, OpDef, define

define(OpDef(
    "constant", "source",
    infer=lambda ctx: [TensorType(dt.from_numpy(ctx.attrs["value"]), ctx.attrs["value"].shape)],
    reference=lambda ctx: ctx.attrs["value"],
    attrs={"value": REQUIRED},
    doc="A literal tensor.",
))


def _check_bind(ctx):
    if not ctx.type(0).dtype.is_integer:
        raise ctx.error(f"sizes must be integers, not {ctx.type(0).dtype}")
    return []


define(OpDef(
    "bind", "control", infer=_check_bind, attrs={"symbols": REQUIRED},
    doc="Reads sizes from an integer tensor: element k becomes symbols[k].",
))


def _shape_body(ctx, index):
    result = wrap(ctx.attrs["dims"][-1])
    for k in reversed(range(len(ctx.attrs["dims"]) - 1)):
        result = select(equal(index[0], k), wrap(ctx.attrs["dims"][k]), result)
    return result


define(OpDef(
    "sizes", "source",
    infer=lambda ctx: [TensorType(dt.i64, (len(ctx.attrs["dims"]),))],
    body=_shape_body, attrs={"dims": REQUIRED},
    doc="The dimensions `dims` as an i64 tensor of rank 1.",
))

define(OpDef(
    "iota", "source",
    infer=lambda ctx: [TensorType(ctx.attrs["dtype"], (ctx.attrs["size"],))],
    body=lambda ctx, index: cast(index[0], ctx.attrs["dtype"]),
    attrs={"size": REQUIRED, "dtype": dt.i64},
    doc="0, 1, ..., size - 1.",
))
