"""Scaled dot-product attention as one operator."""

from __future__ import annotations

import math

import numpy as np

from ... import dtype as dt
from ...expr import Expr, both, cast, const, op, select, wrap
from ..core import TensorType
from ..definition import OpContext, OpDef, define
from .row import accumulator
from .shapes import broadcast_index, broadcast_shapes, require_equal, same


def _infer(ctx: OpContext):
    q, k, v = ctx.type(0), ctx.type(1), ctx.type(2)
    if any(t.rank != 4 for t in (q, k, v)) or not q.dtype.is_float \
            or any(t.dtype is not q.dtype for t in (k, v)):
        raise ctx.error(f"attention needs q, k and v of rank 4 and one float type, got {q}, {k}, "
                        f"{v}")
    heads, shared = q.shape[1], k.shape[1]
    if isinstance(heads, int) and isinstance(shared, int) and (not shared or heads % shared):
        raise ctx.error(f"{heads} query heads do not divide into {shared} key heads")
    for a, b, what in ((q.shape[3], k.shape[3], "head sizes"), (k.shape[2], v.shape[2], "keys"),
                       (shared, v.shape[1], "heads")):
        require_equal(ctx, a, b, f"q, k and v have different {what}: {a} and {b}")
    scores = (*q.shape[:3], k.shape[2])
    for i, kind in ((3, "bias"), (4, "mask")):
        if ctx.has(i):
            t = ctx.type(i)
            if t.rank > 4 or t.dtype.is_bool != (kind == "mask"):
                raise ctx.error(f"{kind} {t} does not fit scores {list(scores)}")
            broadcast_shapes(ctx, [scores, t.shape])
    if sorted(ctx.attrs["perm"]) != [0, 1, 2, 3]:
        raise ctx.error(f"attention cannot transpose its result by {ctx.attrs['perm']}")
    shape = (*q.shape[:3], v.shape[3])
    return [TensorType(q.dtype, tuple(shape[a] for a in ctx.attrs["perm"]))]


def _visible(ctx: OpContext, row: Expr, key: Expr) -> Expr:
    return op("le", key, row + wrap(ctx.attrs["offset"]))


def _body(ctx: OpContext, index):
    q, k, a = ctx.type(0), ctx.type(1), ctx.attrs
    b, h, s, d = (index[a["perm"].index(axis)] for axis in range(4))
    wide = accumulator(q.dtype)
    group = wrap(q.shape[1]) // wrap(k.shape[1])
    shared = h if same(q.shape[1], k.shape[1]) else h // group
    shape = (*q.shape[:3], k.shape[2])

    def score(t: Expr) -> Expr:
        value = ctx.reduce("sum", [q.shape[3]], lambda e: cast(ctx.load(0, (b, h, s, e)), wide)
                           * cast(ctx.load(1, (b, shared, t, e)), wide))
        value = value * a["scale"]
        if a["softcap"]:
            value = op("tanh", value / a["softcap"]) * a["softcap"]
        at = (b, h, s, t)
        if ctx.has(3):
            value = value + cast(
                ctx.load(3, broadcast_index(at, ctx.type(3).shape, shape)), wide)
        seen: Expr = const(True, dt.bool_)
        if ctx.has(4):
            seen = ctx.load(4, broadcast_index(at, ctx.type(4).shape, shape))
        if a["causal"]:
            seen = both(seen, _visible(ctx, s, t))
        return select(seen, value, const(a["fill"], wide))

    keys = [k.shape[2]]
    top = ctx.reduce("max", keys, score)
    if a["masked"]:
        top = select(op("eq", top, -math.inf), const(0, wide), top)
    total = ctx.reduce("sum", keys, lambda t: op("exp", score(t) - top))
    if a["masked"]:
        total = select(op("eq", total, 0), const(1, wide), total)

    def probability(t: Expr) -> Expr:
        # Probabilities are rounded to the operands' type before the second product.
        value = cast(op("exp", score(t) - top) / total, q.dtype)
        return select(op("isnan", value), const(0, q.dtype), value) if a["guarded"] else value

    return cast(ctx.reduce("sum", keys, lambda t: cast(probability(t), wide)
                           * cast(ctx.load(2, (b, shared, t, d)), wide)), q.dtype)


def _reference(ctx: OpContext, q, k, v, bias=None, mask=None):
    a, kind = ctx.attrs, q.dtype
    wide = np.float32 if kind.itemsize < 4 else kind
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.astype(wide) for x in (q, np.repeat(k, group, 1), np.repeat(v, group, 1)))
    scores = np.matmul(q, np.swapaxes(k, 2, 3)) * q.dtype.type(a["scale"])
    if a["softcap"]:
        cap = scores.dtype.type(a["softcap"])
        scores = np.tanh(scores / cap) * cap
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    seen = np.ones((), bool) if mask is None else mask
    if a["causal"]:
        rows, keys = np.indices(scores.shape[2:])
        seen = seen & (keys <= rows + int(a["offset"]))
    scores = np.where(seen, scores, scores.dtype.type(a["fill"]))
    if not scores.size:
        return np.zeros((*q.shape[:3], v.shape[3]), kind).transpose(a["perm"])
    with np.errstate(all="ignore"):
        top = scores.max(axis=3, keepdims=True)
        if a["masked"]:
            top = np.where(np.isneginf(top), 0, top).astype(scores.dtype)
        e = np.exp(scores - top)
        total = e.sum(axis=3, keepdims=True)
        if a["masked"]:
            total = np.where(total == 0, 1, total).astype(scores.dtype)
        p = (e / total).astype(kind).astype(scores.dtype)
        if a["guarded"]:
            p = np.where(np.isnan(p), 0, p).astype(scores.dtype)
        return np.ascontiguousarray(np.matmul(p, v).astype(kind).transpose(a["perm"]))


define(OpDef(
    "attention", "reduction", _infer, _reference, _body,
    attrs={"scale": 1.0, "softcap": 0.0, "causal": False, "offset": 0, "fill": -math.inf,
           "masked": False, "guarded": False, "rounded": False, "perm": (0, 1, 2, 3)},
    doc="softmax(q k^T * scale) v of q [B, H, S, D], k [B, Hk, T, D], v [B, Hk, T, Dv] to "
        "[B, H, S, Dv]; query head h reads key head h // (H / Hk). In order: scores are capped to "
        "softcap * tanh(scores / softcap) if softcap is not 0; operand 3 (bias, optional) is "
        "added; where operand 4 (bool mask, optional) is false, or `causal` holds and the key's "
        "position is above the row's + `offset`, `fill` replaces them. Bias and mask broadcast to "
        "[B, H, S, T]. With `masked`, a row that sees no key gives 0; with `guarded`, NaN among "
        "the probabilities counts as 0. The result is transposed by `perm`. Computed in f32 at "
        "least; with `rounded`, both products may round their operands to bf16.",
))
