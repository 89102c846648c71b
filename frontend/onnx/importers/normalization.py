"""Normalisation: batch, instance, group, layer, RMS, mean-variance, Lp."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import wrap
from ....ir.graph.core import Value
from ....ir.graph.ops.shapes import same
from ..building import accumulator, along, axis_of, cast, product, reshape, scalar
from ..registry import Site, importer

# Batch --------------------------------------------------------------------------------------------


def _parameter(c: Site, v: Value, x: Value) -> Value:
    """A parameter per channel (or, in old models, per element of a sample) for broadcasting."""
    v = cast(c, v, accumulator(x.dtype))
    return along(c, v, x.rank, 1) if v.rank == 1 else reshape(c, v, (1, *v.shape))


def inverse_deviation(c: Site, variance: Value, epsilon: float) -> Value:
    shifted = c.add("add", [variance, scalar(c, epsilon, variance.dtype)])
    return c.add("rsqrt", [shifted])


def _batch_normalized(c: Site, x: Value, mean: Value, variance: Value) -> Value:
    epsilon = c.attr("epsilon", 1e-5)
    factor = c.add("mul", [_parameter(c, c.input(1), x),
                           inverse_deviation(c, variance, epsilon)])
    shift = c.add("sub", [_parameter(c, c.input(2), x), c.add("mul", [mean, factor])])
    wide = cast(c, x, factor.dtype)
    return cast(c, c.add("add", [c.add("mul", [wide, factor]), shift]), x.dtype)


@importer("BatchNormalization")
def batch_normalization(c: Site):
    x = c.input(0)
    if x.rank < 2:
        raise c.error(f"BatchNormalization needs [N, C, ...], got {x.type}")
    mean, variance = (_parameter(c, c.input(i), x) for i in (3, 4))
    training = c.attr("training_mode", 0) if c.opset >= 14 else c.outputs > 1
    if not training:
        return [_batch_normalized(c, x, mean, variance), *[None] * (c.outputs - 1)]
    wide = cast(c, x, accumulator(x.dtype))
    axes = tuple(a for a in range(x.rank) if a != 1)
    batch_mean = c.add("reduce_mean", [wide], axes=axes, keepdims=True)
    centred = c.add("sub", [wide, batch_mean])
    batch_variance = c.add("reduce_mean", [c.add("mul", [centred, centred])], axes=axes,
                           keepdims=True)
    momentum = scalar(c, c.attr("momentum", 0.9), wide.dtype)
    rest = scalar(c, 1 - c.attr("momentum", 0.9), wide.dtype)

    def running(old: Value, new: Value, i: int) -> Value:
        mixed = c.add("add", [c.add("mul", [old, momentum]), c.add("mul", [new, rest])])
        return cast(c, reshape(c, mixed, (x.shape[1],)), c.input(i).dtype)

    def saved(new: Value, i: int) -> Value:
        return cast(c, reshape(c, new, (x.shape[1],)), c.input(i).dtype)

    return [_batch_normalized(c, x, batch_mean, batch_variance),
            running(mean, batch_mean, 3), running(variance, batch_variance, 4),
            saved(batch_mean, 3), saved(batch_variance, 4)]


# Groups of one sample -----------------------------------------------------------------------------


def _scaled(c: Site, x: Value, factor: Value, shift: Value) -> Value:
    return c.add("add", [c.add("mul", [x, factor]), shift])


@importer("InstanceNormalization")
def instance_normalization(c: Site):
    x = c.input(0)
    if x.rank < 3:
        raise c.error(f"InstanceNormalization needs [N, C, spatial...], got {x.type}")
    wide = reshape(c, cast(c, x, accumulator(x.dtype)), (*x.shape[:2], product(x.shape[2:])))
    y = c.add("layer_norm", [wide], axis=2, epsilon=c.attr("epsilon", 1e-5))
    factor, shift = (along(c, cast(c, c.input(i), wide.dtype), 3, 1) for i in (1, 2))
    return cast(c, reshape(c, _scaled(c, y, factor, shift), x.shape), x.dtype)


@importer("GroupNormalization")
def group_normalization(c: Site):
    x, groups = c.input(0), c.attr("num_groups")
    if x.rank < 3:
        raise c.error(f"GroupNormalization needs [N, C, spatial...], got {x.type}")
    if groups < 1 or (isinstance(x.shape[1], int) and x.shape[1] % groups):
        raise c.error(f"{x.shape[1]} channels do not divide into {groups} groups")
    per_group = wrap(x.shape[1]) // groups * wrap(product(x.shape[2:]))
    wide = reshape(c, cast(c, x, accumulator(x.dtype)), (x.shape[0], groups, per_group))
    y = c.add("layer_norm", [wide], axis=2, epsilon=c.attr("epsilon", 1e-5))
    if c.opset >= 21:  # scale and bias are per channel, before that per group
        y = reshape(c, y, (*x.shape[:2], product(x.shape[2:])))
    factor, shift = (along(c, cast(c, c.input(i), wide.dtype), 3, 1) for i in (1, 2))
    return cast(c, reshape(c, _scaled(c, y, factor, shift), x.shape), x.dtype)


# Trailing axes ------------------------------------------------------------------------------------


def normalized_rows(c: Site, op: str, x: Value, scale: Value | None, bias: Value | None,
                    axis: int, epsilon: float, out: dt.DType | None = None) -> Value:
    """`op` (layer_norm or rms_norm) of the axes from `axis` on, scaled and shifted."""
    out = out or x.dtype
    parameters = [scale, bias]
    row = x.shape[axis:]
    fits = out is x.dtype and all(
        p is None or (p.dtype is x.dtype and p.rank == len(row) and all(
            same(a, b) for a, b in zip(p.shape, row, strict=True))) for p in parameters)
    if fits:
        while parameters and parameters[-1] is None:
            parameters.pop()
        return c.add(op, [x, *parameters], axis=axis, epsilon=epsilon)
    wide = accumulator(out)
    y = c.add(op, [cast(c, x, wide)], axis=axis, epsilon=epsilon)
    if scale is not None:
        y = c.add("mul", [y, cast(c, scale, wide)])
    if bias is not None:
        y = c.add("add", [y, cast(c, bias, wide)])
    return cast(c, y, out)


def row_statistics(c: Site, x: Value, axis: int, epsilon: float) -> tuple[Value, Value]:
    """Mean and 1 / sqrt(variance + epsilon) of the rows, reduced axes kept as 1."""
    axes = tuple(range(axis, x.rank))
    mean = c.add("reduce_mean", [x], axes=axes, keepdims=True)
    centred = c.add("sub", [x, mean])
    variance = c.add("reduce_mean", [c.add("mul", [centred, centred])], axes=axes, keepdims=True)
    return mean, inverse_deviation(c, variance, epsilon)


@importer("LayerNormalization")
def layer_normalization(c: Site):
    x, epsilon = c.input(0), c.attr("epsilon", 1e-5)
    axis = axis_of(c, c.attr("axis", -1), x.rank)
    bias = c.inputs[2] if c.has(2) else None
    y = normalized_rows(c, "layer_norm", x, c.input(1), bias, axis, epsilon)
    if c.outputs == 1:
        return y
    stash = {1: dt.f32, 11: dt.f64, 10: dt.f16, 16: dt.bf16}[c.attr("stash_type", 1)]
    statistics = row_statistics(c, cast(c, x, accumulator(stash)), axis, epsilon)
    return [y, *(cast(c, s, stash) for s in statistics)]


@importer("RMSNormalization")
def rms_normalization(c: Site):
    x = c.input(0)
    axis = axis_of(c, c.attr("axis", -1), x.rank)
    scale = c.input(1)
    return normalized_rows(c, "rms_norm", x, scale, None, axis, c.attr("epsilon", 1e-5),
                           scale.dtype)


# By axes ------------------------------------------------------------------------------------------


@importer("MeanVarianceNormalization")
def mean_variance_normalization(c: Site):
    x = c.input(0)
    axes = tuple(axis_of(c, a, x.rank) for a in c.attr("axes", (0, 2, 3)))
    wide = cast(c, x, accumulator(x.dtype))
    mean = c.add("reduce_mean", [wide], axes=axes, keepdims=True)
    centred = c.add("sub", [wide, mean])
    variance = c.add("reduce_mean", [c.add("mul", [centred, centred])], axes=axes, keepdims=True)
    deviation = c.add("add", [c.add("sqrt", [variance]), scalar(c, 1e-9, wide.dtype)])
    return cast(c, c.add("div", [centred, deviation]), x.dtype)


@importer("LpNormalization")
def lp_normalization(c: Site):
    x, p = c.input(0), c.attr("p", 2)
    axis = axis_of(c, c.attr("axis", -1), x.rank)
    if p not in (1, 2):
        raise c.error(f"LpNormalization is defined for p 1 and 2, not {p}")
    wide = cast(c, x, accumulator(x.dtype))
    terms = c.add("abs", [wide]) if p == 1 else c.add("mul", [wide, wide])
    norm = c.add("reduce_sum", [terms], axes=(axis,), keepdims=True)
    norm = norm if p == 1 else c.add("sqrt", [norm])
    # A zero row stays zero.
    empty = c.add("eq", [norm, scalar(c, 0, norm.dtype)])
    divisor = c.add("select", [empty, scalar(c, 1, norm.dtype), norm])
    return cast(c, c.add("div", [wide, divisor]), x.dtype)
