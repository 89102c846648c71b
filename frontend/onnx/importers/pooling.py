"""Pools: MaxPool, AveragePool, LpPool, their global forms, MaxUnpool, LRN."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from ..building import accumulator, cast, product, reshape, scalar
from ..indices import checked_indices
from ..registry import Site, importer
from ..windows import Window, integers, window


def pool_window(c: Site, x: Value) -> Window:
    if x.rank < 3:
        raise c.error(f"a pool needs [N, C, spatial...], got {x.type}")
    kernel = c.attr("kernel_shape")
    if not kernel or len(kernel) != x.rank - 2 or min(kernel) < 1:
        raise c.error(f"kernel_shape {kernel} does not fit {x.type}")
    return window(c, x.shape[2:], tuple(kernel), bool(c.attr("ceil_mode", 0)))


def sliding(s: Window) -> dict:
    """Attributes of the core pools."""
    return {"kernel": s.kernel, "strides": s.strides, "dilations": s.dilations, "low": s.low,
            "sizes": s.sizes}


@importer("MaxPool")
def max_pool(c: Site):
    x = c.input(0)
    attrs = sliding(pool_window(c, x))
    y = c.add("pool_max", [x], attrs)
    if c.outputs < 2:
        return y
    return [y, c.add("pool_argmax", [x, y], attrs, column_major=bool(c.attr("storage_order", 0)))]


def mean_pool(c: Site, x: Value) -> Value:
    s = pool_window(c, x)
    return c.add("pool_mean", [x], sliding(s), high=s.high,
                 include_pad=bool(c.attr("count_include_pad", 0)))


@importer("AveragePool")
def average_pool(c: Site):
    return mean_pool(c, c.input(0))


def _to_power(c: Site, x: Value, p: float) -> Value:
    """|x| to the power p."""
    if p == 2:
        return c.add("mul", [x, x])
    magnitude = c.add("abs", [x])
    return magnitude if p == 1 else c.add("pow", [magnitude, scalar(c, p, x.dtype)])


def _root(c: Site, x: Value, p: float) -> Value:
    if p == 1:
        return x
    return c.add("sqrt", [x]) if p == 2 else c.add("pow", [x, scalar(c, 1 / p, x.dtype)])


@importer("LpPool")
def lp_pool(c: Site):
    x, p = c.input(0), c.attr("p", 2)
    wide = _to_power(c, cast(c, x, accumulator(x.dtype)), p)
    y = c.add("pool_sum", [wide], sliding(pool_window(c, x)))
    return cast(c, _root(c, y, p), x.dtype)


def _spatial(c: Site, x: Value) -> tuple[int, ...]:
    if x.rank < 2:
        raise c.error(f"a global pool needs [N, C, spatial...], got {x.type}")
    return tuple(range(2, x.rank))


@importer("GlobalAveragePool")
def global_average_pool(c: Site):
    return c.add("reduce_mean", [c.input(0)], axes=_spatial(c, c.input(0)), keepdims=True)


@importer("GlobalMaxPool")
def global_max_pool(c: Site):
    return c.add("reduce_max", [c.input(0)], axes=_spatial(c, c.input(0)), keepdims=True)


@importer("GlobalLpPool")
def global_lp_pool(c: Site):
    x, p = c.input(0), c.attr("p", 2)
    wide = _to_power(c, cast(c, x, accumulator(x.dtype)), p)
    total = c.add("reduce_sum", [wide], axes=_spatial(c, x), keepdims=True)
    return cast(c, _root(c, total, p), x.dtype)


@importer("MaxUnpool")
def max_unpool(c: Site):
    x, indices = c.input(0), c.input(1)
    n = x.rank - 2
    kernel = tuple(c.attr("kernel_shape") or ())
    if n < 1 or len(kernel) != n:
        raise c.error(f"kernel_shape {list(kernel)} does not fit {x.type}")
    strides, pads = integers(c, "strides", n, 1), integers(c, "pads", 2 * n, 0)
    pooled: list[Dim] = [simplify_dim((wrap(x.shape[2 + i]) - 1) * strides[i] + kernel[i]
                                      - pads[i] - pads[n + i]) for i in range(n)]
    inner = (*x.shape[:2], *pooled)
    zeros = c.add("expand", [scalar(c, 0, x.dtype)], shape=(product(inner),))
    count = product(x.shape)
    indices = checked_indices(c, indices, [product(inner)], negative=False)
    y = c.add("scatter_elements", [
        zeros, reshape(c, cast(c, indices, dt.i64), (count,)), reshape(c, x, (count,))], axis=0)
    y = reshape(c, y, inner)
    if not c.has(2):
        return y
    # The indices count in the tensor that was pooled; a larger output keeps it at its start.
    shape = c.dims(c.input(2))
    high = tuple(simplify_dim(wrap(a) - wrap(b)) for a, b in zip(shape, inner, strict=True))
    return c.add("pad", [y], low=(0,) * x.rank, high=high)


@importer("LRN")
def local_response_normalization(c: Site):
    x, size = c.input(0), c.attr("size")
    if x.rank < 3 or size < 1:
        raise c.error(f"LRN over {size} channels of {x.type} is not possible")
    # Channels become the first spatial axis, so that the sum over neighbours is a pool.
    rest = product(x.shape[2:])
    wide = reshape(c, cast(c, x, accumulator(x.dtype)), (x.shape[0], 1, x.shape[1], rest))
    total = c.add("pool_sum", [c.add("mul", [wide, wide])], kernel=(size, 1),
                  low=((size - 1) // 2, 0), sizes=(x.shape[1], rest))
    factor = scalar(c, c.attr("alpha", 1e-4) / size, wide.dtype)
    base = c.add("add", [c.add("mul", [total, factor]), scalar(c, c.attr("bias", 1.0),
                                                               wide.dtype)])
    beta = c.attr("beta", 0.75)
    y = c.add("mul", [wide, c.add("pow", [base, scalar(c, -beta, wide.dtype)])])
    return cast(c, reshape(c, y, x.shape), x.dtype)
