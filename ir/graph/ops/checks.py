"""What must hold of data and sizes for the rest of the graph to make sense."""

from __future__ import annotations

from ....errors import InputError
from ... import dtype as dt
from ..definition import REQUIRED, OpContext, OpDef, define


def _require_infer(ctx: OpContext):
    if ctx.attrs["condition"].dtype is not dt.bool_:
        raise ctx.error(f"{ctx.attrs['condition']!r} is no condition")
    return []


define(OpDef(
    "require", "control", _require_infer, attrs={"condition": REQUIRED, "message": ""},
    doc="Refuses the run with `message` unless a bool expression of sizes holds.",
))


def _checked_infer(ctx: OpContext):
    wrong = ctx.type(1)
    if wrong.dtype is not dt.i64 or wrong.shape != ():
        raise ctx.error(f"the number of wrong elements must be one i64, not {wrong}")
    return [ctx.type(0)]


def _checked_reference(ctx: OpContext, x, wrong):
    if wrong:
        raise InputError(ctx.attrs["message"])
    return x


define(OpDef(
    "checked", "control", _checked_infer, _checked_reference,
    body=lambda ctx, index: ctx.load(0, index), attrs={"message": REQUIRED},
    doc="Operand 0 as it is; refuses the run with `message` unless operand 1 (one i64) is 0.",
))
