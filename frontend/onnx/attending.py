"""Scaled dot-product attention and rotary embedding in core operators, as all importers build it.

    scores = reshape(q) x k^T * scale -> softcap -> + bias -> select(mask, scores, -inf)
    y = softmax(scores) x v

Scores of f16 and bf16 are kept in f32. Heads that share keys are folded into the rows of q,
[B, Hk, G * S, D], which moves no data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import simplify_dim, wrap
from ...ir.graph.core import Dim, Value
from ...ir.graph.ops.shapes import same
from .building import accumulator, cast, positions, reshape, scalar, slice_axis, swap, transpose
from .registry import Site


@dataclass
class Scores:
    """The score tensor [B, H, S, T] at each stage, as far as built."""

    raw: Value
    capped: Value
    biased: Value
    probabilities: Value


@dataclass
class Attention:
    """What modifies the scores. Biases are added; masks are bool, false hides a key; both
    broadcast against [B, H, S, T]. `sink` is a logit per head that only takes part in the sum."""

    scale: float
    softcap: float = 0.0
    biases: list[Value] = field(default_factory=list)
    masks: list[Value] = field(default_factory=list)
    precision: DType | None = None
    sink: Value | None = None

    def run(self, c: Site, q: Value, k: Value, v: Value) -> tuple[Value, Scores]:
        """y [B, H, S, Dv] of q [B, H, S, D], k [B, Hk, T, D], v [B, Hk, T, Dv]."""
        batch, heads, rows, depth = q.shape
        shared = k.shape[1]
        if isinstance(heads, int) and isinstance(shared, int) and (
                not shared or heads % shared):
            raise c.error(f"{heads} query heads do not divide into {shared} key heads")
        folded = (batch, shared, _rows(heads, shared, rows))
        wide = accumulator(q.dtype)
        raw = c.add("matmul", [reshape(c, q, (*folded, depth)), swap(c, k)], dtype=wide)
        raw = c.add("mul", [reshape(c, raw, (batch, heads, rows, k.shape[2])),
                            scalar(c, self.scale, wide)])
        capped = raw
        if self.softcap:
            cap = scalar(c, self.softcap, raw.dtype)
            capped = c.add("mul", [c.add("tanh", [c.add("div", [raw, cap])]), cap])
        biased = capped
        for bias in self.biases:
            biased = c.add("add", [biased, cast(c, bias, biased.dtype)])
        if self.masks:
            mask = self.masks[0]
            for other in self.masks[1:]:
                mask = c.add("and", [mask, other])
            biased = c.add("select", [mask, biased, scalar(c, -math.inf, biased.dtype)])
        probabilities = cast(c, self._softmax(c, biased), q.dtype)
        y = c.add("matmul", [reshape(c, probabilities, (*folded, k.shape[2])),
                             cast(c, v, q.dtype)])
        y = reshape(c, y, (batch, heads, rows, v.shape[3]))
        return y, Scores(raw, capped, biased, probabilities)

    def _softmax(self, c: Site, scores: Value) -> Value:
        if self.precision is not None:
            scores = cast(c, scores, self.precision)
        masked = bool(self.masks or self.biases)
        if self.sink is None:
            return c.add("softmax", [scores], axis=3, masked=masked)
        column = reshape(c, cast(c, self.sink, scores.dtype), (1, self.sink.shape[0], 1, 1))
        column = c.add("expand", [column], shape=(*scores.shape[:3], 1))
        wide = c.add("softmax", [c.add("concat", [scores, column], axis=3)], axis=3)
        return slice_axis(c, wide, 3, 0, scores.shape[3])


def _rows(heads: Dim, shared: Dim, rows: Dim) -> Dim:
    """Rows of q per key head."""
    if same(heads, shared):
        return rows
    return simplify_dim(wrap(heads) // wrap(shared) * wrap(rows))


# Masks --------------------------------------------------------------------------------------------


def reach(c: Site, rows: Dim, keys: Dim, offset: Value, *, causal: bool = False, left: int = -1,
          right: int = -1) -> list[Value]:
    """Which keys [.., S, T] a row may see by position: row i stands at offset + i. `offset` is
    i64, a scalar or [B, 1, 1, 1]; `left` and `right` bound the distance (-1: no bound)."""
    if not causal and left < 0 and right < 0:
        return []
    at = c.add("add", [positions(c, rows, 4, 2), offset])
    key = positions(c, keys, 4, 3)

    def moved(by: int) -> Value:
        return at if not by else c.add("add", [at, scalar(c, by, dt.i64)])

    masks = []
    if causal:
        masks.append(c.add("le", [key, at]))
    if left >= 0:
        masks.append(c.add("ge", [key, moved(-left)]))
    if right >= 0:
        masks.append(c.add("le", [key, moved(right)]))
    return masks


def within(c: Site, keys: Dim, count: Value) -> Value:
    """Mask of the first `count` keys; `count` is i64, shaped against [B, H, S, T]."""
    return c.add("lt", [positions(c, keys, 4, 3), count])


# Heads --------------------------------------------------------------------------------------------


def split_heads(c: Site, x: Value, heads: int) -> Value:
    """[B, S, H * D] to [B, H, S, D]."""
    if x.rank != 3 or heads < 1 or (isinstance(x.shape[2], int) and x.shape[2] % heads):
        raise c.error(f"{x.type} does not split into {heads} heads")
    depth = simplify_dim(wrap(x.shape[2]) // heads)
    return transpose(c, reshape(c, x, (*x.shape[:2], heads, depth)), (0, 2, 1, 3))


def merge_heads(c: Site, x: Value) -> Value:
    """[B, H, S, D] to [B, S, H * D]."""
    y = transpose(c, x, (0, 2, 1, 3))
    return reshape(c, y, (*y.shape[:2], wrap(y.shape[2]) * wrap(y.shape[3])))


def default_scale(c: Site, depth: Dim) -> float:
    """1 / sqrt(head size), which must be known."""
    if not isinstance(depth, int) or depth < 1:
        raise c.error("the head size must be known at compile time")
    return 1 / math.sqrt(depth)


# Rotary embedding (Su et al. 2021) ----------------------------------------------------------------


def rotate(c: Site, x: Value, cos: Value, sin: Value, *, interleaved: bool,
           count: int = 0) -> Value:
    """Rotates the first `count` elements (0: all) of the last axis of `x`; the caches, half as
    long, broadcast against the rest."""
    last = x.rank - 1
    depth = x.shape[last]
    if not isinstance(depth, int):
        raise c.error("the head size must be known at compile time")
    count = count or depth
    if count % 2 or count > depth:
        raise c.error(f"cannot rotate {count} of {depth} elements")
    angles = [cast(c, v if isinstance(v.shape[-1], int)
                   else reshape(c, v, (*v.shape[:-1], count // 2)), x.dtype) for v in (cos, sin)]
    return c.add("rotary", [x, *angles], size=count, interleaved=interleaved)


def bias_or_mask(c: Site, value: Value, attention: Attention) -> None:
    """Adds an operand that may be a bool mask or an additive bias."""
    (attention.masks if value.dtype.is_bool else attention.biases).append(value)


def lengthened(c: Site, mask: Value, keys: Dim) -> Value:
    """A mask or bias whose last axis is short, hiding the keys beyond."""
    have = mask.shape[-1]
    if same(have, keys):
        return mask
    fill = c.constant(np.zeros((), bool)) if mask.dtype.is_bool else scalar(
        c, -math.inf, mask.dtype)
    more = simplify_dim(wrap(keys) - wrap(have))
    return c.add("pad", [mask, fill], low=(0,) * mask.rank, high=(*(0,) * (mask.rank - 1), more))
