"""Shape arithmetic on i64 vectors, for shapes, axes and bounds that only run-time data tells.

Everything here is made of operators with bodies, so what is known folds away at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Const, wrap
from ...ir.graph.core import Dim, Value
from .registry import Site

LONGEST = 128
"""Entries of a shape, of paddings (two per axis): numpy knows 64 dimensions."""


def vector(c: Site, dims: Sequence[Dim]) -> Value:
    """Dimensions as an i64 tensor of rank 1."""
    if all(isinstance(d, int) for d in dims):
        return c.constant(np.array(dims, np.int64))
    return c.add("sizes", dims=tuple(dims))


def integers(c: Site, x: Value) -> Value:
    """An integer tensor of any shape as an i64 vector."""
    if not x.dtype.is_integer:
        raise c.error(f"sizes and axes must be integers, not {x.dtype}")
    if x.dtype is not dt.i64:
        x = c.add("cast", [x], to=dt.i64, mode="value")
    return x if x.rank == 1 else c.add("reshape", [x], shape=(x.type.numel,))


def count(c: Site, x: Value, what: str) -> int:
    """The number of elements of a vector, which must be known."""
    number = x.type.numel
    if not isinstance(number, int):
        raise c.error(f"the number of {what} must be known at compile time, found {x.type}")
    if number > LONGEST:
        raise c.error(f"{number} {what} are more than any tensor has dimensions")
    return number


def numbers(x: Value) -> list[int] | None:
    """The elements of an integer tensor when all are known numbers, else None."""
    if x.content is not None and all(isinstance(e, Const) for e in x.content.flat):
        return [int(e.value) for e in x.content.flat]
    if x.constant is not None:
        return [int(v) for v in x.constant.reshape(-1)]
    return None


def signed(c: Site, x: Value) -> tuple[Dim, ...]:
    """The elements of an integer vector, which may be negative, as dimensions."""
    if x.content is not None:
        return c.dims(x)
    n = count(c, x, "elements")
    parts = c.add("concat", [maximum(c, x, 0), maximum(c, c.add("neg", [x]), 0)], axis=0)
    found = c.dims(parts)
    return tuple(wrap(p) - wrap(q) for p, q in zip(found[:n], found[n:]))


def maximum(c: Site, x: Value, bound: int) -> Value:
    return c.add("max", [x, c.constant(np.array(bound, np.int64))])


def wrap_negative(c: Site, x: Value, extent: Value) -> Value:
    """Positions counted from the end made positive."""
    negative = c.add("lt", [x, c.constant(np.array(0, np.int64))])
    return c.add("select", [negative, c.add("add", [x, extent]), x])


def take(c: Site, x: Value, positions: Value) -> Value:
    """Elements of a vector."""
    return c.add("gather", [x, positions], axis=0)


def axis_matches(c: Site, axes: Value, rank: int) -> Value:
    """bool [rank, k]: whether axis a is entry j of `axes`."""
    n = count(c, axes, "axes")
    axes = wrap_negative(c, axes, c.constant(np.array(rank, np.int64)))
    own = c.constant(np.arange(rank, dtype=np.int64).reshape(rank, 1))
    return c.add("eq", [own, c.add("reshape", [axes], shape=(1, n))])


def axis_mask(c: Site, axes: Value, rank: int) -> Value:
    """bool [rank]: whether an axis is among `axes`."""
    return c.add("reduce_any", [axis_matches(c, axes, rank)], axes=(1,))


def spread(c: Site, entries: Value, axes: Value, rank: int, default: Value) -> Value:
    """i64 [rank]: entry j of `entries` at axis `axes[j]`, `default` elsewhere."""
    matches = axis_matches(c, axes, rank)
    zero = c.constant(np.array(0, np.int64))
    picked = c.add("reduce_sum", [c.add("select", [matches, entries, zero])], axes=(1,))
    given = c.add("reduce_any", [matches], axes=(1,))
    return c.add("select", [given, picked, default])


def rank_among(c: Site, mask: Value, rank: int) -> Value:
    """i64 [rank]: how many axes before an axis have `mask` set."""
    before = c.constant(np.tril(np.ones((rank, rank), bool), -1))
    both = c.add("and", [before, c.add("reshape", [mask], shape=(1, rank))])
    return c.add("reduce_sum", [c.add("cast", [both], to=dt.i64, mode="value")], axes=(1,))


def positions(c: Site, mask: Value, rank: int, n: int) -> Value:
    """i64 [n]: the axes for which `mask` is set (n of them), ascending."""
    order = c.add("reshape", [rank_among(c, mask, rank)], shape=(1, rank))
    wanted = c.constant(np.arange(n, dtype=np.int64).reshape(n, 1))
    here = c.add("and", [c.add("eq", [order, wanted]),
                         c.add("reshape", [mask], shape=(1, rank))])
    own = c.constant(np.arange(rank, dtype=np.int64))
    zero = c.constant(np.array(0, np.int64))
    return c.add("reduce_sum", [c.add("select", [here, own, zero])], axes=(1,))
