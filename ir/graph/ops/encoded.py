"""Tensors that are stored in an encoding: what they mean, and encoding what a program computes."""

from __future__ import annotations

import functools

import numpy as np

from ... import dtype as dt
from ...encoding.base import Encoding, parse
from ...expr import Expr, cast
from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define


def encoding_of(attrs) -> Encoding:
    """The encoding that a `decode` or `encode` node names."""
    return parse(attrs["encoding"])


def row_major(shape: tuple, axis: int) -> tuple:
    """A shape, or an index, with the encoded axis last."""
    return (*shape[:axis], *shape[axis + 1:], shape[axis])


def _decode_infer(ctx: OpContext):
    a = ctx.attrs
    shape, axis = a["shape"], a["axis"]
    if not 0 <= axis < len(shape) or not isinstance(shape[axis], int):
        raise ctx.error(f"decode along axis {axis} of {list(shape)}: the axis must have a number "
                        f"for its size")
    rows = row_major(shape, axis)
    parts = encoding_of(a).parts(rows[-1])
    wanted = [TensorType(p.dtype, p.shape(rows)) for p in parts]
    given = [ctx.type(i) for i in range(len(ctx.node.inputs))]
    if given != wanted:
        raise ctx.error(f"{a['encoding']} of {list(shape)} along axis {axis} is held by {wanted}, "
                        f"not by {given}")
    return [TensorType(a["to"], tuple(shape))]


def _decode_body(ctx: OpContext, index: tuple[Expr, ...]) -> Expr:
    where = row_major(index, ctx.attrs["axis"])
    return cast(encoding_of(ctx.attrs).element(ctx.load, where), ctx.attrs["to"])


def _decode_reference(ctx: OpContext, *arrays: np.ndarray) -> np.ndarray:
    a = ctx.attrs
    unpacked = encoding_of(a).unpack(arrays, a["shape"][a["axis"]])
    return np.moveaxis(unpacked, -1, a["axis"]).astype(a["to"].numpy)


define(OpDef(
    "decode", "injective", _decode_infer, _decode_reference, _decode_body,
    attrs={"encoding": REQUIRED, "shape": REQUIRED, "axis": REQUIRED, "to": dt.f32},
    doc="The tensor of `shape` that the operands, the parts of an encoding along `axis`, stand "
        "for. Each part has the other axes first, then the encoding's.",
))


def _encode_infer(ctx: OpContext):
    t, encoding = ctx.type(0), encoding_of(ctx.attrs)
    if t.dtype is not dt.f32 or not t.rank or not isinstance(t.shape[-1], int):
        raise ctx.error(f"cannot encode {t}: it takes f32 whose last size is a number")
    if not encoding.dynamic:
        raise ctx.error(f"{encoding} is for constants: programs cannot encode in it")
    return [TensorType(p.dtype, p.shape(t.shape)) for p in encoding.parts(t.shape[-1])]


def _encode_body(part: int, ctx: OpContext, index: tuple[Expr, ...]) -> Expr:
    k = ctx.type(0).shape[-1]
    assert isinstance(k, int)
    return encoding_of(ctx.attrs).packed(part, lambda at: ctx.load(0, at), index, k, ctx.reduce)


def _encode_reference(ctx: OpContext, x: np.ndarray) -> tuple[np.ndarray, ...]:
    return encoding_of(ctx.attrs).pack(x)


MOST_PARTS = 3
"""Parts of an encoding that programs may encode in."""

define(OpDef(
    "encode", "opaque", _encode_infer, _encode_reference,
    bodies=tuple(functools.partial(_encode_body, k) for k in range(MOST_PARTS)),
    attrs={"encoding": REQUIRED},
    doc="The parts of f32 [..., K] in an encoding, along the last axis.",
))
