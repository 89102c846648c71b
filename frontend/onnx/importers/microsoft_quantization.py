"""com.microsoft: operators on quantised tensors, QLinear... and QGemm."""

from __future__ import annotations

from collections.abc import Callable

from ....ir import dtype as dt
from ....ir.graph.core import Value
from ....ir.graph.ops.shapes import same
from ..building import along, axis_of, cast, product, reshape, scalar, swap
from ..registry import Site, importer
from .convolution import integer_conv
from .matmul import centred, left_zero
from .microsoft_products import channels_first, channels_last
from .pooling import mean_pool
from .quantization import (
    dequantized,
    nonzero_point,
    output_factor,
    quantized,
    requantized,
)

MICROSOFT = "com.microsoft"


def _real(c: Site, i: int) -> Value:
    """Input `i`, followed by its scale and zero point, in f32."""
    return dequantized(c, c.input(i), c.input(i + 1), nonzero_point(c, i + 2))


def _back(c: Site, y: Value, scale: int, to: dt.DType) -> Value:
    """`y` in the quantisation of inputs `scale` and `scale` + 1."""
    return quantized(c, y, c.input(scale), nonzero_point(c, scale + 1), to)


@importer("QLinearAdd", domain=MICROSOFT)
def qlinear_add(c: Site):
    return _back(c, c.add("add", [_real(c, 0), _real(c, 3)]), 6, c.input(0).dtype)


@importer("QLinearMul", domain=MICROSOFT)
def qlinear_mul(c: Site):
    left, right = (cast(c, centred(c, c.input(i), i + 2), dt.i32) for i in (0, 3))
    factor = output_factor(c, c.input(1), c.input(4), c.input(6))
    return requantized(c, c.add("mul", [left, right]), factor, 7, c.input(0).dtype)


def _mapped(name: str, function: Callable[[Site, Value], Value]) -> None:
    """A QLinear operator of one tensor: x, scale, zero, y scale, y zero."""

    def run(c: Site) -> Value:
        return _back(c, function(c, _real(c, 0)), 3, c.input(0).dtype)

    importer(name, domain=MICROSOFT)(run)


def _softmax(c: Site, x: Value) -> Value:
    if c.attr("opset", 13) >= 13:
        return c.add("softmax", [x], axis=axis_of(c, c.attr("axis", -1), x.rank))
    axis = axis_of(c, c.attr("axis", 1), x.rank)
    rows = reshape(c, x, (product(x.shape[:axis]), product(x.shape[axis:])))
    return reshape(c, c.add("softmax", [rows], axis=1), x.shape)


def _in_channels_first(function: Callable[[Site, Value], Value]) -> Callable[[Site, Value], Value]:
    def run(c: Site, x: Value) -> Value:
        if not c.attr("channels_last", 0):
            return function(c, x)
        return channels_last(c, function(c, channels_first(c, x)))

    return run


def _global_mean(c: Site, x: Value) -> Value:
    return c.add("reduce_mean", [x], axes=tuple(range(2, x.rank)), keepdims=True)


def _mean(c: Site, x: Value) -> Value:
    axes = c.attr("axes") or tuple(range(x.rank))
    return c.add("reduce_mean", [x], axes=tuple(axis_of(c, a, x.rank) for a in axes),
                 keepdims=bool(c.attr("keepdims", 1)))


_mapped("QLinearSigmoid", lambda c, x: c.add("sigmoid", [x]))
_mapped("QLinearLeakyRelu", lambda c, x: c.add("leaky_relu", [x], alpha=c.attr("alpha", 0.01)))
_mapped("QLinearSoftmax", _softmax)
_mapped("QLinearAveragePool", _in_channels_first(mean_pool))
_mapped("QLinearGlobalAveragePool", _in_channels_first(_global_mean))
_mapped("QLinearReduceMean", _mean)


@importer("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(c: Site):
    if len(c.inputs) < 5 or len(c.inputs) % 3 != 2:
        raise c.error("QLinearConcat needs a scale and zero point for every tensor")
    to = c.input(1).dtype
    parts = []
    for i in range(2, len(c.inputs), 3):
        x = c.input(i)
        same_scale = c.input(i + 1) is c.input(0) and c.inputs[i + 2] is c.inputs[1]
        parts.append(x if same_scale else quantized(c, _real(c, i), c.input(0),
                                                    nonzero_point(c, 1), to))
    return c.add("concat", parts, axis=axis_of(c, c.attr("axis"), parts[0].rank))


@importer("QLinearWhere", domain=MICROSOFT)
def qlinear_where(c: Site):
    chosen = c.add("select", [cast(c, c.input(0), dt.bool_), _real(c, 1), _real(c, 4)])
    return _back(c, chosen, 7, c.input(1).dtype)


@importer("QLinearConv", domain=MICROSOFT)
def qlinear_conv(c: Site):
    x, w_scale = c.input(0), c.input(4)
    last = bool(c.attr("channels_last", 0))
    total = integer_conv(c, channels_first(c, x) if last else x, c.input(3), 2, 5)
    if c.has(8):
        total = c.add("add", [total, along(c, c.input(8), total.rank, 1)])
    if w_scale.rank and not same(w_scale.shape[0], 1):
        w_scale = along(c, w_scale, total.rank, 1)
    y = requantized(c, total, output_factor(c, c.input(1), w_scale, c.input(6)), 7,
                    c.input(7).dtype)
    return channels_last(c, y) if last else y


@importer("QGemm", domain=MICROSOFT)
def qgemm(c: Site):
    """alpha * a' * b' + bias in i32, requantised when there is an output scale, else f32."""
    a = centred(c, c.input(0), 2)
    b = centred(c, c.input(3), 5, left_zero if c.attr("transB", 0) else None)
    a = swap(c, a) if c.attr("transA", 0) else a
    b = swap(c, b) if c.attr("transB", 0) else b
    total = c.add("matmul", [a, b], dtype=dt.i32)
    if c.has(6):
        total = c.add("add", [total, c.input(6)])
    factor = c.add("mul", [c.input(1), c.input(4)])
    if c.attr("alpha", 1.0) != 1:
        factor = c.add("mul", [factor, scalar(c, c.attr("alpha"), dt.f32)])
    if not c.has(7):
        return c.add("mul", [cast(c, total, dt.f32), factor])
    return requantized(c, total, c.add("div", [factor, c.input(7)]), 8, c.input(0).dtype)
