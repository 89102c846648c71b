"""Activation functions."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.graph.core import Value
from ....ir.graph.ops.shapes import same
from ..registry import Site, importer
from .elementwise import cast, scalar
from .movement import flattened

_PLAIN = {"Relu": "relu", "Sigmoid": "sigmoid", "Softplus": "softplus", "Mish": "mish",
          "HardSwish": "hard_swish"}


@importer(*_PLAIN)
def plain(c: Site) -> Value:
    return c.add(_PLAIN[c.op_type], [c.input(0)])


@importer("Gelu")
def gelu(c: Site) -> Value:
    approximate = c.attr("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise c.error(f"approximate {approximate!r} is neither none nor tanh")
    return c.add("gelu", [c.input(0)], approximate=approximate)


@importer("LeakyRelu")
def leaky_relu(c: Site) -> Value:
    return c.add("leaky_relu", [c.input(0)], alpha=c.attr("alpha", 0.01))


@importer("Elu")
def elu(c: Site) -> Value:
    return c.add("elu", [c.input(0)], alpha=c.attr("alpha", 1.0))


@importer("HardSigmoid")
def hard_sigmoid(c: Site) -> Value:
    return c.add("hard_sigmoid", [c.input(0)], alpha=c.attr("alpha", 0.2),
                 beta=c.attr("beta", 0.5))


@importer("Swish")
def swish(c: Site) -> Value:
    x, alpha = c.input(0), c.attr("alpha", 1.0)
    if alpha == 1:
        return c.add("silu", [x])
    return c.add("mul", [x, c.add("sigmoid", [c.add("mul", [x, scalar(c, alpha, x.dtype)])])])


@importer("Celu")
def celu(c: Site) -> Value:
    x, alpha = c.input(0), c.attr("alpha", 1.0)
    scaled = c.add("div", [x, scalar(c, alpha, x.dtype)])
    below = c.add("mul", [c.add("expm1", [scaled]), scalar(c, alpha, x.dtype)])
    zero = scalar(c, 0, x.dtype)
    return c.add("add", [c.add("max", [zero, x]), c.add("min", [zero, below])])


@importer("Selu")
def selu(c: Site) -> Value:
    x = c.input(0)
    alpha = c.attr("alpha", 1.67326319217681884765625)
    gamma = c.attr("gamma", 1.05070102214813232421875)
    return c.add("mul", [c.add("elu", [x], alpha=alpha), scalar(c, gamma, x.dtype)])


@importer("ThresholdedRelu")
def thresholded_relu(c: Site) -> Value:
    x = c.input(0)
    above = c.add("gt", [x, scalar(c, c.attr("alpha", 1.0), x.dtype)])
    return c.add("select", [above, x, scalar(c, 0, x.dtype)])


@importer("PRelu")
def prelu(c: Site) -> Value:
    x, slope = c.input(0), c.input(1)
    if c.opset < 7 and slope.rank == 1 and x.rank > 1 and not same(slope.shape[0], 1):
        slope = c.add("reshape", [slope], shape=(slope.shape[0], *[1] * (x.rank - 2)))
    below = c.add("lt", [x, scalar(c, 0, x.dtype)])
    return c.add("select", [below, c.add("mul", [slope, x]), x])


@importer("Softsign")
def softsign(c: Site) -> Value:
    x = c.input(0)
    return c.add("div", [x, c.add("add", [c.add("abs", [x]), scalar(c, 1, x.dtype)])])


@importer("Shrink")
def shrink(c: Site) -> Value:
    x = c.input(0)
    bias, limit = (scalar(c, c.attr(n, d), x.dtype) for n, d in (("bias", 0.0), ("lambd", 0.5)))
    low = c.add("lt", [x, c.add("neg", [limit])])
    high = c.add("gt", [x, limit])
    inner = c.add("select", [high, c.add("sub", [x, bias]), scalar(c, 0, x.dtype)])
    return c.add("select", [low, c.add("add", [x, bias]), inner])


@importer("Hardmax")
def hardmax(c: Site) -> Value:
    """1 where the first maximum of a row is, else 0; until opset 12 of the matrix from `axis` on.
    """
    x = c.input(0)
    if c.opset < 13:
        matrix = flattened(c, x, c.attr("axis", 1))
        return c.add("reshape", [_hardmax(c, matrix, 1)], shape=x.shape)
    axis = c.attr("axis", -1)
    if not -x.rank <= axis < x.rank:
        raise c.error(f"axis {axis} is outside a tensor of rank {x.rank}")
    return _hardmax(c, x, axis % x.rank)


def _hardmax(c: Site, x: Value, axis: int) -> Value:
    best = c.add("argmax", [x], axis=axis)
    kept = c.add("reshape", [best], shape=(*x.shape[:axis], 1, *x.shape[axis + 1:]))
    count = c.add("iota", size=x.shape[axis], dtype=dt.i64)
    positions = c.add("reshape", [count], shape=(x.shape[axis], *[1] * (x.rank - axis - 1)))
    return cast(c, c.add("eq", [positions, kept]), x.dtype)


