"""Affine quantisation: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, QLinearConv,
QLinearMatMul."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.dtype import DType
from ....ir.expr import simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from ....ir.graph.ops.shapes import same
from ..building import along, axis_of, cast, is_zero, reshape, scalar
from ..registry import Site, importer
from ..tensors import element_type
from .convolution import integer_conv
from .matmul import integer_product, left_zero, multiply

# Parameters along an axis or per block ------------------------------------------------------------


class Layout:
    """How the scales of a node lie along its tensor: one, one per index of an axis, or blocks.

    `view` shapes the tensor so that what `parameter` gives broadcasts against it; `restore`
    undoes it.
    """

    def __init__(self, c: Site, x: Value, scale: Value, axis: int, block: int):
        self.c, self.x, self.block, self.blocked = c, x, block, False
        self.single = not scale.rank or (scale.rank == 1 and same(scale.shape[0], 1))
        if self.single:
            return
        self.axis = axis_of(c, axis, x.rank)
        extent = x.shape[self.axis]
        if scale.rank == 1 and x.rank >= 1 and not block:
            if isinstance(extent, int) and not same(scale.shape[0], extent):
                raise c.error(f"scales {scale.type} do not fit axis {axis} of {x.type}")
            return
        if block < 1 or scale.rank != x.rank:
            raise c.error(f"scales {scale.type} do not fit {x.type} in blocks of {block}")
        self.blocked = True
        self.blocks = scale.shape[self.axis]
        self.whole = same(simplify_dim(wrap(self.blocks) * block), extent)

    def _split(self, shape, parts: tuple[Dim, Dim]) -> tuple[Dim, ...]:
        return (*shape[:self.axis], *parts, *shape[self.axis + 1:])

    def view(self, x: Value) -> Value:
        if not self.blocked or not self.whole:
            return x
        return reshape(self.c, x, self._split(x.shape, (self.blocks, self.block)))

    def restore(self, y: Value) -> Value:
        return reshape(self.c, y, self.x.shape)

    def parameter(self, p: Value) -> Value:
        c = self.c
        if self.single:
            return reshape(c, p, ())
        if not self.blocked:
            return along(c, p, self.x.rank, self.axis)
        if self.whole:
            return reshape(c, p, self._split(p.shape, (self.blocks, 1)))
        # The last block is cut off: each index takes the parameters of its block.
        at = c.add("div", [c.add("iota", size=self.x.shape[self.axis]),
                           scalar(c, self.block, dt.i64)])
        return c.add("gather", [p, at], axis=self.axis)


def quantized(c: Site, x: Value, scale: Value, zero: Value | None, to: DType, axis: int = 1,
              block: int = 0, saturate: bool = True) -> Value:
    """saturate(round(x / scale) + zero), computed in f32."""
    layout = Layout(c, x, scale, axis, block)
    wide = layout.view(cast(c, x, dt.f32))
    factor = cast(c, layout.parameter(scale), dt.f32)
    if to.is_float:
        y = c.add("cast", [c.add("div", [wide, factor])], to=to,
                  mode="saturate" if saturate else "value")
    else:
        offset = scalar(c, 0, dt.f32) if zero is None else cast(
            c, layout.parameter(zero), dt.f32)
        y = c.add("quantize", [wide, factor, offset], to=to)
    return layout.restore(y)


def dequantized(c: Site, x: Value, scale: Value, zero: Value | None, out: DType | None = None,
                axis: int = 1, block: int = 0) -> Value:
    """(x - zero) * scale in the type `out` (default: that of the scale)."""
    out = out or scale.dtype
    layout = Layout(c, x, scale, axis, block)
    factor = layout.parameter(scale)
    operands = [layout.view(x)]
    if zero is not None and x.dtype.is_integer:
        operands.append(layout.parameter(zero))
    operands.append(factor if factor.dtype is out else cast(c, factor, dt.f32))
    return layout.restore(cast(c, c.add("dequantize", operands), out))


def nonzero_point(c: Site, i: int) -> Value | None:
    """The zero point, input `i`, unless it is known to be zero."""
    return None if is_zero(c, i) else c.input(i)


@importer("QuantizeLinear")
@importer("QuantizeLinear", domain="com.microsoft")
def quantize_linear(c: Site):
    to = dt.u8
    if c.attr("output_dtype"):
        to = element_type(c.attr("output_dtype"), c.origin)
    if c.has(2):
        to = c.input(2).dtype
    return quantized(c, c.input(0), c.input(1), nonzero_point(c, 2), to, c.attr("axis", 1),
                     c.attr("block_size", 0), bool(c.attr("saturate", 1)))


@importer("DequantizeLinear")
@importer("DequantizeLinear", domain="com.microsoft")
def dequantize_linear(c: Site):
    out = None
    if c.attr("output_dtype"):
        out = element_type(c.attr("output_dtype"), c.origin)
    return dequantized(c, c.input(0), c.input(1), nonzero_point(c, 2), out, c.attr("axis", 1),
                       c.attr("block_size", 0))


def dynamic_parameters(c: Site, x: Value) -> tuple[Value, Value]:
    """Scale and zero point (f32) that map the range of `x`, with 0 in it, to u8."""
    axes = tuple(range(x.rank))
    nought = scalar(c, 0, dt.f32)
    low = c.add("min", [c.add("reduce_min", [x], axes=axes), nought])
    high = c.add("max", [c.add("reduce_max", [x], axes=axes), nought])
    width = c.add("sub", [high, low])
    scale = c.add("div", [width, scalar(c, 255, dt.f32)])
    scale = c.add("select", [c.add("eq", [width, nought]), scalar(c, 1, dt.f32), scale])
    zero = c.add("div", [c.add("neg", [low]), scale])
    zero = c.add("min", [c.add("max", [zero, nought]), scalar(c, 255, dt.f32)])
    return scale, c.add("round", [zero])


@importer("DynamicQuantizeLinear")
def dynamic_quantize_linear(c: Site):
    x = c.input(0)
    scale, zero = dynamic_parameters(c, x)
    return [c.add("quantize", [x, scale, zero], to=dt.u8), scale, cast(c, zero, dt.u8)]


# Products -----------------------------------------------------------------------------------------


def output_factor(c: Site, left: Value, right: Value, out: Value) -> Value:
    """left * right / out of scales, in f32: what an accumulator is multiplied by."""
    return c.add("div", [c.add("mul", [cast(c, left, dt.f32), cast(c, right, dt.f32)]),
                         cast(c, out, dt.f32)])


def requantized(c: Site, total: Value, factor: Value, zero: int, to: DType) -> Value:
    """The accumulator in the output's quantisation; `zero` is an input of the node."""
    if to.is_float:
        wide = c.add("mul", [cast(c, total, dt.f32), factor])
        return c.add("cast", [wide], to=to, mode="saturate")
    offset = scalar(c, 0, dt.f32)
    if c.has(zero):
        offset = cast(c, c.input(zero), dt.f32)
        offset = reshape(c, offset, ()) if offset.rank == 1 and same(
            offset.shape[0], 1) else offset
    return c.add("requantize", [total, factor, offset], to=to)


def _one(c: Site, scale: Value) -> Value:
    return reshape(c, scale, ()) if scale.rank == 1 and same(scale.shape[0], 1) else scale


@importer("QLinearMatMul")
def qlinear_matmul(c: Site):
    a, a_scale, b, b_scale = (c.input(i) for i in (0, 1, 3, 4))
    to = c.input(7).dtype
    if a.dtype.is_float:
        total = multiply(c, a, b, dtype=dt.f32)
    else:
        total = integer_product(c, a, b, 2, 5)
    a_scale = _one(c, a_scale)
    if a_scale.rank == 1 and a.rank > 1:
        a_scale = reshape(c, a_scale, left_zero(a_scale))
    return requantized(c, total, output_factor(c, a_scale, _one(c, b_scale), _one(c, c.input(6))),
                       7, to)


@importer("QLinearConv")
def qlinear_conv(c: Site):
    x, w, w_scale = c.input(0), c.input(3), _one(c, c.input(4))
    total = integer_conv(c, x, w, 2, 5)
    if c.has(8):
        total = c.add("add", [total, along(c, c.input(8), total.rank, 1)])
    if w_scale.rank:
        w_scale = along(c, w_scale, total.rank, 1)
    factor = output_factor(c, _one(c, c.input(1)), w_scale, _one(c, c.input(6)))
    return requantized(c, total, factor, 7, c.input(7).dtype)
