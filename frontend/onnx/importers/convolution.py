"""Convolutions: Conv, ConvTranspose, DeformConv, ConvInteger."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import op, simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from ..building import along, product, reshape
from ..registry import Site, importer
from ..windows import halves, integers, padding_mode, span, steps, window
from .matmul import centred


def plain_conv(c: Site, x: Value, w: Value, **attrs) -> Value:
    """The convolution that the node's attributes describe, without bias."""
    if x.rank < 3 or w.rank != x.rank:
        raise c.error(f"a convolution of {x.type} with weights {w.type} is not possible")
    kernel = c.attr("kernel_shape")
    if kernel and any(isinstance(d, int) and d != k
                      for d, k in zip(w.shape[2:], kernel, strict=True)):
        raise c.error(f"kernel_shape {list(kernel)} does not fit weights {w.type}")
    s = window(c, x.shape[2:], w.shape[2:])
    return c.add("conv", [x, w], strides=s.strides, dilations=s.dilations, low=s.low, high=s.high,
                 groups=c.attr("group", 1), **attrs)


def biased(c: Site, y: Value, bias: Value | None) -> Value:
    """`y` plus a bias per channel."""
    return y if bias is None else c.add("add", [y, along(c, bias, y.rank, 1)])


@importer("Conv")
def conv(c: Site):
    y = plain_conv(c, c.input(0), c.input(1))
    return biased(c, y, c.inputs[2] if c.has(2) else None)


@importer("ConvTranspose")
def conv_transpose(c: Site):
    x, w = c.input(0), c.input(1)
    n = x.rank - 2
    strides, dilations = steps(c, n)
    extra = integers(c, "output_padding", n, 0)
    mode, wanted = padding_mode(c), c.attr("output_shape")
    pads = integers(c, "pads", 2 * n, 0) if mode == "NOTSET" else (0,) * (2 * n)
    low: list[Dim] = []
    sizes: list[Dim] = []
    for i in range(n):
        extent, reach = wrap(x.shape[2 + i]), wrap(span(w.shape[2 + i], dilations[i]))
        full = (extent - 1) * strides[i] + extra[i] + reach
        if wanted:
            size: Dim = wanted[i - n]
        elif mode.startswith("SAME"):
            size = simplify_dim(extent * strides[i])
        else:
            low.append(pads[i])
            sizes.append(simplify_dim(op("max", full - pads[i] - pads[n + i], 0)))
            continue
        total = simplify_dim(op("max", full - size, 0))
        low.append(halves(total, mode == "SAME_UPPER")[0])
        sizes.append(size)
    y = c.add("conv_transpose", [x, w], strides=strides, dilations=dilations, low=tuple(low),
              sizes=tuple(sizes), groups=c.attr("group", 1))
    return biased(c, y, c.inputs[2] if c.has(2) else None)


@importer("DeformConv")
def deform_conv(c: Site):
    x, w, offset = c.input(0), c.input(1), c.input(2)
    mask = c.inputs[4] if c.has(4) else None
    kernel = c.attr("kernel_shape") or w.shape[2:]
    if not all(isinstance(k, int) for k in kernel):
        raise c.error("the window of a deformable convolution must be known")
    s = window(c, x.shape[2:], kernel)
    groups = c.attr("group", 1)
    columns = c.add("deform_sample", [x, offset] + ([] if mask is None else [mask]),
                    kernel=tuple(kernel), strides=s.strides, dilations=s.dilations, low=s.low,
                    high=s.high, groups=c.attr("offset_group", 1))
    batch, _, taps, *places = columns.shape
    per_group = product((w.shape[1], taps))
    columns = reshape(c, columns, (batch, groups, per_group, product(places)))
    weights = reshape(c, w, (1, groups, wrap(w.shape[0]) // groups, per_group))
    y = reshape(c, c.add("matmul", [weights, columns]), (batch, w.shape[0], *places))
    return biased(c, y, c.inputs[3] if c.has(3) else None)


def integer_conv(c: Site, x: Value, w: Value, x_zero: int, w_zero: int) -> Value:
    """Convolution of quantised operands less their zero points (inputs of the node), in i32."""
    left = centred(c, x, x_zero)
    right = centred(c, w, w_zero, lambda z: (*z.shape, *(1,) * (w.rank - 1)))
    return plain_conv(c, left, right, dtype=dt.i32)


@importer("ConvInteger")
def conv_integer(c: Site):
    return integer_conv(c, c.input(0), c.input(1), 2, 3)
