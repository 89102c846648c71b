"""com.microsoft: layer and group normalisation with residuals and embeddings."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import wrap
from ....ir.graph.core import Value
from ..building import accumulator, along, axis_of, cast, product, reshape, scalar
from ..indices import checked_indices
from ..registry import Site, importer
from .microsoft_products import channels_first, channels_last
from .normalization import inverse_deviation, normalized_rows, row_statistics

MICROSOFT = "com.microsoft"


def _inverse_rms(c: Site, x: Value, axis: int, epsilon: float) -> Value:
    wide = cast(c, x, accumulator(x.dtype))
    square = c.add("reduce_mean", [c.add("mul", [wide, wide])], axes=tuple(range(axis, x.rank)),
                   keepdims=True)
    return inverse_deviation(c, square, epsilon)


@importer("SimplifiedLayerNormalization")
@importer("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(c: Site):
    x, scale = c.input(0), c.input(1)
    axis, epsilon = axis_of(c, c.attr("axis", -1), x.rank), c.attr("epsilon", 1e-5)
    y = normalized_rows(c, "rms_norm", x, scale, None, axis, epsilon, scale.dtype)
    return y if c.outputs == 1 else [y, _inverse_rms(c, x, axis, epsilon)]


@importer("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(c: Site):
    return _skipped(c, "layer_norm", c.inputs[3] if c.has(3) else None, 4)


@importer("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(c: Site):
    return _skipped(c, "rms_norm", None, 3)


def _skipped(c: Site, op: str, beta: Value | None, bias: int) -> list[Value]:
    """Normalised sum of input, skip and bias (input number `bias`): y, mean, 1 / deviation, sum."""
    total = c.add("add", [c.input(0), c.input(1)])
    if c.has(bias):
        total = c.add("add", [total, c.input(bias)])
    epsilon, axis = c.attr("epsilon", 1e-12), total.rank - 1
    y = normalized_rows(c, op, total, c.input(2), beta, axis, epsilon)
    if c.outputs == 1:
        return [y]
    wide = cast(c, total, accumulator(total.dtype))
    mean, inverse = row_statistics(c, wide, axis, epsilon)
    if op == "rms_norm":
        inverse = _inverse_rms(c, total, axis, epsilon)
    return [y, mean, inverse, total]


def _looked_up(c: Site, table: Value, ids: Value) -> Value:
    return c.add("gather", [table, checked_indices(c, ids, table.shape[:1])], axis=0)


@importer("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(c: Site):
    ids, table = c.input(0), c.input(3)
    batch, steps = ids.shape
    total = _looked_up(c, c.input(2), ids)
    if c.has(8):
        at = c.input(8)
    else:
        at = reshape(c, c.add("iota", size=steps), (1, steps))
    total = c.add("add", [total, _looked_up(c, table, at)])
    if c.has(1) and c.has(4):
        total = c.add("add", [total, _looked_up(c, c.input(4), c.input(1))])
    y = normalized_rows(c, "layer_norm", total, c.input(5), c.input(6), 2,
                        c.attr("epsilon", 1e-12))
    if c.has(7):
        index = c.add("reduce_sum", [cast(c, c.input(7), dt.i32)], axes=(1,))
    else:
        index = c.add("expand", [scalar(c, 0, dt.i32)], shape=(batch,))
    return [y, index, total]


@importer("GroupNorm", domain=MICROSOFT)
def group_norm(c: Site):
    return _group_norm(c, c.input(0))


@importer("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(c: Site):
    x, skip = c.input(0), c.input(3)
    last = bool(c.attr("channels_last", 1))
    if skip.rank == 2:
        ones = (1,) * (x.rank - 2)
        skip = reshape(c, skip, (skip.shape[0], *ones, skip.shape[1]) if last
                       else (*skip.shape, *ones))
    total = c.add("add", [x, skip])
    if c.has(4):
        total = c.add("add", [total, along(c, c.input(4), x.rank, x.rank - 1 if last else 1)])
    return [_group_norm(c, total), total]


def _group_norm(c: Site, x: Value) -> Value:
    last, groups = bool(c.attr("channels_last", 1)), c.attr("groups")
    nchw = channels_first(c, x) if last else x
    wide = cast(c, nchw, accumulator(x.dtype))
    size = wrap(nchw.shape[1]) // groups * wrap(product(nchw.shape[2:]))
    y = c.add("layer_norm", [reshape(c, wide, (nchw.shape[0], groups, size))], axis=2,
              epsilon=c.attr("epsilon", 1e-5))
    y = reshape(c, y, nchw.shape)
    gamma, beta = (along(c, cast(c, c.input(i), y.dtype), y.rank, 1) for i in (1, 2))
    y = c.add("add", [c.add("mul", [y, gamma]), beta])
    if c.attr("activation", 0) == 1:
        y = c.add("silu", [y])
    y = cast(c, y, x.dtype)
    return channels_last(c, y) if last else y
