"""com.microsoft: activations and additions fused with them."""

from __future__ import annotations

from ....ir.expr import simplify_dim, wrap
from ..building import axis_of, product, reshape, scalar, slice_axis
from ..registry import Site, importer
from .generator import trilu

MICROSOFT = "com.microsoft"

importer("Trilu", domain=MICROSOFT)(trilu)


@importer("Gelu", domain=MICROSOFT)
def gelu(c: Site):
    return c.add("gelu", [c.input(0)])


@importer("BiasGelu", domain=MICROSOFT)
def bias_gelu(c: Site):
    return c.add("gelu", [c.add("add", [c.input(0), c.input(1)])])


@importer("FastGelu", domain=MICROSOFT)
def fast_gelu(c: Site):
    x = c.input(0)
    if c.has(1):
        x = c.add("add", [x, c.input(1)])
    return c.add("gelu", [x], approximate="tanh")


@importer("QuickGelu", domain=MICROSOFT)
def quick_gelu(c: Site):
    x, alpha = c.input(0), c.attr("alpha", 1.702)
    scaled = c.add("mul", [x, scalar(c, alpha, x.dtype)])
    return c.add("mul", [x, c.add("sigmoid", [scaled])])


@importer("BiasAdd", domain=MICROSOFT)
def bias_add(c: Site):
    return c.add("add", [c.add("add", [c.input(0), c.input(1)]), c.input(2)])


@importer("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(c: Site):
    x = c.add("add", [c.input(0), c.input(1)])
    last = x.rank - 1
    half = simplify_dim(wrap(x.shape[last]) // 2)
    left, right = (slice_axis(c, x, last, start, half) for start in (0, half))
    return c.add("mul", [left, c.add("gelu", [right])])


@importer("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(c: Site):
    x, bias = c.input(0), c.input(1)
    axis = axis_of(c, c.attr("axis", 1), x.rank)
    inner = x.shape[axis:]
    if c.attr("is_inner_broadcast", 1):
        # The bias has the leading axes of x, then ones, then the row.
        missing = x.rank - bias.rank
        if missing > 0:
            lead = bias.rank - len(inner)
            bias = reshape(c, bias, (*bias.shape[:lead], *(1,) * missing, *inner))
    total = c.add("add", [x, bias])
    rows = reshape(c, total, (product(x.shape[:axis]), product(inner)))
    return reshape(c, c.add("softmax", [rows], axis=1), x.shape)
