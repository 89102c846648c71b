"""com.microsoft: Attention, MultiHeadAttention, GroupQueryAttention, RotaryEmbedding."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import op, simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from ....ir.graph.ops.shapes import same
from ..attending import (
    Attention,
    default_scale,
    merge_heads,
    reach,
    rotate,
    split_heads,
    within,
)
from ..building import (
    cast,
    dimension,
    positions,
    reshape,
    scalar,
    slice_axis,
    split_axis,
    transpose,
)
from ..registry import Site, importer
from .attention import cached_rows
from .matmul import integer_product, multiply

MICROSOFT = "com.microsoft"


def _scale(c: Site, depth: Dim) -> float:
    return c.attr("scale") or default_scale(c, depth)


def _filter(c: Site, allowed: Value, dtype: dt.DType) -> Value:
    """The additive bias of a mask: 0 where allowed, mask_filter_value elsewhere."""
    return c.add("select", [allowed, scalar(c, 0, dtype),
                            scalar(c, c.attr("mask_filter_value", -10000.0), dtype)])


def _padding(c: Site, mask: Value, batch: Dim, keys: Dim) -> Value:
    """Which keys a mask operand allows, shaped against [B, H, S, T].

    Rank 1: lengths, then optionally first positions; rank 2 [B, T], rank 3 [B, S, T] and rank 4:
    positive allows.
    """
    if mask.rank == 1:
        count = cast(c, mask, dt.i64)
        if same(mask.shape[0], batch):
            return within(c, keys, reshape(c, count, (batch, 1, 1, 1)))
        if same(mask.shape[0], simplify_dim(wrap(batch) * 2)):
            end, start = (reshape(c, part, (batch, 1, 1, 1))
                          for part in split_axis(c, count, 0, (batch, batch)))
            later = c.add("ge", [positions(c, keys, 4, 3), start])
            return c.add("and", [within(c, keys, end), later])
        raise c.error(f"masks of shape {mask.type} for a batch of {batch} are not supported")
    allowed = c.add("gt", [mask, scalar(c, 0, mask.dtype)])
    if mask.rank == 2:
        return reshape(c, allowed, (mask.shape[0], 1, 1, mask.shape[1]))
    if mask.rank == 3:
        return reshape(c, allowed, (mask.shape[0], 1, *mask.shape[1:]))
    if mask.rank == 4:
        return allowed
    raise c.error(f"masks of shape {mask.type} are not supported")


def _check_self_attention(c: Site) -> None:
    if c.input(0).rank != 3 or c.attr("do_rotary", 0):
        raise c.error(f"{c.op_type} without rotary embedding on [batch, sequence, hidden] is "
                      "supported, nothing else")
    if c.attr("past_present_share_buffer", 0):
        raise c.error("past_present_share_buffer is not supported; export the model without it")


def _self_attention(c: Site, projected: Value, mask: int, past: int, bias: int | None):
    """Attention of projected queries, keys and values side by side, [B, S, 3 * hidden]; `mask`,
    `past` and `bias` are inputs of the node."""
    third = simplify_dim(wrap(projected.shape[2]) // 3)
    sizes = c.attr("qkv_hidden_sizes") or (third,) * 3
    q, k, v = (split_heads(c, p, c.attr("num_heads", 0))
               for p in split_axis(c, projected, 2, tuple(sizes)))
    before: Dim = 0
    if c.has(past):
        cache = c.input(past)
        before = cache.shape[3]
        halves = (reshape(c, slice_axis(c, cache, 0, n, 1), cache.shape[1:]) for n in (0, 1))
        k, v = (c.add("concat", [old, new], axis=2) for old, new in zip(halves, (k, v)))
    rows, keys = q.shape[2], k.shape[2]
    run = Attention(_scale(c, q.shape[3]))
    if c.has(mask):
        given = c.input(mask)
        if given.rank == 4:
            given = slice_axis(c, slice_axis(c, given, 2, before, rows), 3, 0, keys)
        run.biases.append(_filter(c, _padding(c, given, q.shape[0], keys), q.dtype))
    if bias is not None and c.has(bias):
        run.biases.append(c.input(bias))
    run.masks += reach(c, rows, keys, dimension(c, before),
                       causal=bool(c.attr("unidirectional", 0)))
    y = merge_heads(c, run.run(c, q, k, v)[0])
    if c.outputs == 1:
        return y
    stacked = [reshape(c, p, (1, *p.shape)) for p in (k, v)]
    return [y, c.add("concat", stacked, axis=0)]


@importer("Attention", domain=MICROSOFT)
def attention(c: Site):
    _check_self_attention(c)
    projected = multiply(c, c.input(0), c.input(1))
    if c.has(2):
        projected = c.add("add", [projected, c.input(2)])
    return _self_attention(c, projected, 3, 4, 5)


@importer("QAttention", domain=MICROSOFT)
def quantized_attention(c: Site):
    """Attention whose projection is an integer product."""
    _check_self_attention(c)
    total = integer_product(c, c.input(0), c.input(1), 6, 7)
    factor = c.add("mul", [c.input(3), c.input(4)])
    projected = c.add("mul", [cast(c, total, factor.dtype), factor])
    return _self_attention(c, c.add("add", [projected, c.input(2)]), 5, 8, None)


# MultiHeadAttention -------------------------------------------------------------------------------


def _unstacked(c: Site, packed: Value, parts: int) -> list[Value]:
    """[B, S, H, parts, D] as tensors [B, H, S, D]."""
    batch, steps, heads, _, depth = packed.shape
    return [transpose(c, reshape(c, slice_axis(c, packed, 3, n, 1),
                                 (batch, steps, heads, depth)), (0, 2, 1, 3))
            for n in range(parts)]


def _biased_heads(c: Site, x: Value, start: Dim, heads: int) -> Value:
    """Heads of [B, S, hidden] after adding its part of the projection's bias, input 3."""
    if c.has(3):
        x = c.add("add", [x, slice_axis(c, c.input(3), 0, start, x.shape[2])])
    return split_heads(c, x, heads)


def _operands(c: Site) -> tuple[Value, Value, Value]:
    """q, k, v as [B, heads, length, head size] in all the forms MultiHeadAttention takes."""
    query, heads = c.input(0), c.attr("num_heads", 0)
    if query.rank == 5:
        if c.has(3):
            raise c.error("a bias of packed operands is not supported")
        q, k, v = _unstacked(c, query, 3)
        return q, k, v
    hidden = query.shape[2]
    q = _biased_heads(c, query, 0, heads)
    key = c.input(1)
    if key.rank == 5:
        return q, *_unstacked(c, key, 2)  # type: ignore[return-value]
    value = c.input(2)
    if key.rank == 4:  # cross attention with keys and values projected before
        return q, key, value
    k = _biased_heads(c, key, hidden, heads)
    v = _biased_heads(c, value, simplify_dim(wrap(hidden) * 2), heads)
    return q, k, v


@importer("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(c: Site):
    if c.has(8) or c.has(9):
        raise c.error("shared cache buffers and cache_indirection are not supported")
    q, k, v = _operands(c)
    past: Dim = 0
    if c.has(6) and c.has(7):
        past = c.input(6).shape[2]
        k = c.add("concat", [c.input(6), k], axis=2)
        v = c.add("concat", [c.input(7), v], axis=2)
    rows, keys = q.shape[2], k.shape[2]
    run = Attention(_scale(c, q.shape[3]))
    if c.has(4):
        run.biases.append(_filter(c, _padding(c, c.input(4), q.shape[0], keys), q.dtype))
    if c.has(5):
        run.biases.append(c.input(5))
    run.masks += reach(c, rows, keys, dimension(c, past),
                       causal=bool(c.attr("unidirectional", 0)))
    y, scores = run.run(c, q, k, v)
    return [merge_heads(c, y), k, v, cast(c, scores.biased, q.dtype)]


# GroupQueryAttention ------------------------------------------------------------------------------


class _Cache:
    """Where new keys go: `starts` [B] i64 is the first position of the new ones, `length` the
    length of the caches afterwards."""

    def __init__(self, c: Site, rows: Dim):
        (total,) = c.dims(c.input(6))
        past = c.input(3).shape[2] if c.has(3) else 0
        self.empty = same(past, 0)
        self.length: Dim = rows if self.empty else simplify_dim(op("max", wrap(total),
                                                                   wrap(past)))
        lengths = reshape(c, cast(c, c.input(5), dt.i64), (c.input(0).shape[0],))
        before = c.add("sub", [lengths, c.add("sub", [dimension(c, rows), scalar(c, 1, dt.i64)])])
        if self.empty:
            self.starts = c.add("expand", [scalar(c, 0, dt.i64)], shape=lengths.shape)
        else:
            # A prompt starts at 0 even where shorter rows of the batch are padded.
            prompt = c.add("eq", [dimension(c, total), dimension(c, rows)])
            self.starts = c.add("select", [prompt, scalar(c, 0, dt.i64), before])

    def extended(self, c: Site, i: int, new: Value) -> Value:
        """The cache, input `i`, with the new rows in place: [B, Hk, length, D]."""
        if self.empty:
            return new
        past = c.input(i)
        more = simplify_dim(wrap(self.length) - wrap(past.shape[2]))
        if not same(more, 0):
            past = c.add("pad", [past], low=(0,) * 4, high=(0, 0, more, 0))
        return c.add("tensor_scatter", [past, new, self.starts], axis=2)


def _check_group_query(c: Site) -> tuple[int, int]:
    heads, shared = c.attr("num_heads", 0), c.attr("kv_num_heads", 0)
    if c.attr("sliding_window_cache", 0) or c.has(12) or c.has(13):
        raise c.error("window-sized and quantised caches are not supported")
    if c.has(1) != c.has(2) or c.has(3) != c.has(4) or heads < 1 or shared < 1:
        raise c.error("keys and values, and their caches, must be given in pairs, with the "
                      "numbers of heads")
    return heads, shared


def _group_heads(c: Site, heads: int, shared: int) -> list[Value]:
    """q [B, H, S, D], k and v [B, Hk, S, D] of separate or packed operands."""
    query = c.input(0)
    if c.has(1):
        return [split_heads(c, x, n) for x, n in ((query, heads), (c.input(1), shared),
                                                  (c.input(2), shared))]
    depth = simplify_dim(wrap(query.shape[2]) // (heads + 2 * shared))
    sizes = [simplify_dim(wrap(depth) * n) for n in (heads, shared, shared)]
    return [split_heads(c, part, n) for part, n in zip(
        split_axis(c, query, 2, sizes), (heads, shared, shared), strict=True)]


def _rows_at(c: Site, i: int, at: Value) -> Value:
    """Rows of the rotary cache, input `i`, at positions [B, S], shaped against [B, H, S, half]."""
    rows = cached_rows(c, c.input(i), at)
    return reshape(c, rows, (rows.shape[0], 1, *rows.shape[1:]))


@importer("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(c: Site):
    heads, shared = _check_group_query(c)
    q, k, v = _group_heads(c, heads, shared)
    rows = q.shape[2]
    cache = _Cache(c, rows)
    if c.has(14) and c.has(15):
        epsilon = c.attr("qk_norm_epsilon", 1e-6)
        q, k = (c.add("rms_norm", [x, cast(c, c.input(i), x.dtype)], axis=3, epsilon=epsilon)
                for x, i in ((q, 14), (k, 15)))
    batch = q.shape[0]
    if c.attr("do_rotary", 0):
        column = reshape(c, cache.starts, (batch, 1))
        at = c.add("add", [column, positions(c, rows, 2, 1)])
        if c.has(9):
            at = cast(c, c.input(9), dt.i64)
        caches = [_rows_at(c, i, at) for i in (7, 8)]
        turned = simplify_dim(wrap(caches[0].shape[3]) * 2)
        q, k = (rotate(c, x, *caches, interleaved=bool(c.attr("rotary_interleaved", 0)),
                       count=turned if isinstance(turned, int) else 0) for x in (q, k))
    keys, values = cache.extended(c, 3, k), cache.extended(c, 4, v)
    run = Attention(_scale(c, q.shape[3]), c.attr("softcap", 0.0))
    if c.has(10):
        bias = c.input(10)
        run.biases.append(slice_axis(c, bias, bias.rank - 1, 0, cache.length))
    offset = reshape(c, cache.starts, (batch, 1, 1, 1))
    window = c.attr("local_window_size", -1)
    if c.attr("causal", 1):
        run.masks += reach(c, rows, cache.length, offset, causal=True,
                           left=window - 1 if window > 0 else -1)
    else:
        lengths = reshape(c, cast(c, c.input(5), dt.i64), (batch, 1, 1, 1))
        run.masks.append(c.add("le", [positions(c, cache.length, 4, 3), lengths]))
    if c.has(11):
        run.sink = c.input(11)
    elif c.attr("smooth_softmax", 0) == 1:
        run.sink = c.add("expand", [scalar(c, 0, dt.f32)], shape=(heads,))
    y, scores = run.run(c, q, keys, values)
    results: list[Value | None] = [merge_heads(c, y), keys, values]
    if not c.attr("qk_output", 0):
        return [*results, None]
    if c.attr("qk_output") == 2:
        return [*results, scores.probabilities]
    # Hidden keys read as 0 here.
    hidden = c.add("isinf", [scores.biased])
    nought = scalar(c, 0, scores.biased.dtype)
    return [*results, cast(c, c.add("select", [hidden, nought, scores.biased]), q.dtype)]


@importer("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(c: Site):
    x, at = c.input(0), cast(c, c.input(1), dt.i64)
    if c.attr("is_packed_batching", 0):
        raise c.error("packed batches are not supported")
    flat = x.rank == 3
    half = c.input(2).shape[1]
    if flat:
        heads = c.attr("num_heads", 0)
        if not heads:  # whole heads are rotated, so the cache tells their size
            width = wrap(x.shape[2]) // (wrap(half) * 2)
            heads = simplify_dim(width)
        x = reshape(c, x, (*x.shape[:2], heads, wrap(x.shape[2]) // wrap(heads)))
    steps = x.shape[1] if flat else x.shape[2]
    if at.rank == 1:
        at = c.add("add", [reshape(c, at, (1, 1)), positions(c, steps, 2, 1)])
    caches = []
    for i in (2, 3):
        rows = cached_rows(c, c.input(i), at)
        batch = rows.shape[0]
        caches.append(reshape(c, rows, (batch, steps, 1, half) if flat
                              else (batch, 1, steps, half)))
    y = rotate(c, x, *caches, interleaved=bool(c.attr("interleaved", 0)),
               count=c.attr("rotary_embedding_dim", 0))
    if c.attr("scale", 1.0) not in (0.0, 1.0):
        raise c.error("a scale of rotary embedding is not supported")
    return reshape(c, y, c.input(0).shape)
