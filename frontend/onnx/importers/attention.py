"""Attention and RotaryEmbedding of ai.onnx."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.graph.core import Value
from ..attending import (
    Attention,
    bias_or_mask,
    default_scale,
    lengthened,
    merge_heads,
    reach,
    rotate,
    split_heads,
    within,
)
from ..building import cast, dimension, reshape, scalar
from ..indices import checked_indices
from ..registry import Site, importer
from ..tensors import element_type


def _present(c: Site, past: int, new: Value) -> Value:
    """The cache, input `past`, with the new keys or values behind it."""
    return c.add("concat", [c.input(past), new], axis=2) if c.has(past) else new


@importer("Attention")
def attention(c: Site):
    q, k, v = (c.input(i) for i in range(3))
    flat = q.rank == 3
    if flat:
        q = split_heads(c, q, c.attr("q_num_heads", 0))
        k, v = (split_heads(c, x, c.attr("kv_num_heads", 0)) for x in (k, v))
    if not q.rank == k.rank == v.rank == 4:
        raise c.error(f"Attention needs operands of rank 3 or 4, got {c.input(0).type}")
    if c.has(4) != c.has(5):
        raise c.error("past_key and past_value must be given together")
    k, v = _present(c, 4, k), _present(c, 5, v)
    rows, keys = q.shape[2], k.shape[2]
    scale = c.attr("scale")
    run = Attention(default_scale(c, q.shape[3]) if scale is None else scale,
                    c.attr("softcap", 0.0))
    if c.attr("softmax_precision"):
        run.precision = element_type(c.attr("softmax_precision"), c.origin)
    if c.has(3):
        mask = c.input(3)
        bias_or_mask(c, lengthened(c, mask if mask.dtype.is_bool else cast(c, mask, q.dtype),
                                   keys), run)
    offset = dimension(c, c.input(4).shape[2]) if c.has(4) else scalar(c, 0, dt.i64)
    if c.has(6):
        valid = reshape(c, cast(c, c.input(6), dt.i64), (q.shape[0], 1, 1, 1))
        if not c.has(4):
            offset = c.add("sub", [valid, dimension(c, rows)])
        run.masks.append(within(c, keys, valid))
    run.masks += reach(c, rows, keys, offset, causal=bool(c.attr("is_causal", 0)),
                       left=c.attr("left_window_size", -1), right=c.attr("right_window_size", -1))
    y, scores = run.run(c, q, k, v)
    mode = c.attr("qk_matmul_output_mode", 0)
    stages = (scores.raw, scores.capped, scores.biased, scores.probabilities)
    if not 0 <= mode < len(stages):
        raise c.error(f"unknown qk_matmul_output_mode {mode}")
    return [merge_heads(c, y) if flat else y, k, v, cast(c, stages[mode], q.dtype)]


def cached_rows(c: Site, cache: Value, at: Value | None) -> Value:
    """Rows of a rotary cache: [B, S, half], looked up by position unless already laid out."""
    if at is None:
        return cache
    return c.add("gather", [cache, checked_indices(c, at, cache.shape[:1])], axis=0)


@importer("RotaryEmbedding", since=23)
def rotary_embedding(c: Site):
    x = c.input(0)
    flat = x.rank == 3
    heads = c.attr("num_heads", 0)
    if flat:
        if heads < 1 or (isinstance(x.shape[2], int) and x.shape[2] % heads):
            raise c.error(f"{x.type} does not split into {heads} heads")
        x = reshape(c, x, (*x.shape[:2], heads, x.shape[2] // heads))  # type: ignore[operator]
    at = c.input(3) if c.has(3) else None
    caches = []
    for i in (1, 2):
        rows = cached_rows(c, c.input(i), at)
        if rows.rank != 3:
            raise c.error(f"the cache {c.input(i).type} needs position_ids")
        batch, steps, half = rows.shape
        caches.append(reshape(c, rows, (batch, steps, 1, half) if flat
                              else (batch, 1, steps, half)))
    y = rotate(c, x, *caches, interleaved=bool(c.attr("interleaved", 0)),
               count=c.attr("rotary_embedding_dim", 0))
    return reshape(c, y, c.input(0).shape)
