"""Selection by value: NonZero, Compress, Unique, TopK, NonMaxSuppression."""

from __future__ import annotations

import math

import numpy as np

from ....ir import dtype as dt
from ....ir.expr import maximum, minimum, simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from .. import vectors
from ..registry import Site, importer
from .elementwise import as_scalar, cast, scalar
from .movement import axis_of, product


def positions(c: Site, x: Value) -> Value:
    """i64 [rank, n]: where `x` is not 0."""
    if x.constant is not None and x.rank:
        return c.constant(np.stack(np.nonzero(x.constant)).astype(np.int64))
    flat = c.add("reshape", [x], shape=(product(x.shape),))
    found = flat if x.dtype.is_bool else c.add("ne", [flat, scalar(c, 0, x.dtype)])
    (size,) = c.dims(c.add("reduce_sum", [cast(c, found, dt.i64)], axes=(0,), keepdims=True))
    return c.add("nonzero", [x], size=size)


@importer("NonZero")
def nonzero(c: Site) -> Value:
    return positions(c, c.input(0))


@importer("Compress")
def compress(c: Site) -> Value:
    x, condition = c.input(0), c.input(1)
    if condition.rank != 1:
        raise c.error(f"the condition must have rank 1, not {condition.type}")
    axis = c.attr("axis")
    if axis is None:
        x, axis = c.add("reshape", [x], shape=(product(x.shape),)), 0
    found = positions(c, condition)
    where = c.add("reshape", [found], shape=(found.shape[1],))
    return c.add("gather", [x, where], axis=axis_of(c, axis, x.rank))


@importer("Unique")
def unique(c: Site) -> list[Value]:
    x, axis = c.input(0), c.attr("axis")
    if axis is None:
        x, axis = c.add("reshape", [x], shape=(product(x.shape),)), 0
    axis = axis_of(c, axis, x.rank)
    order = (axis, *(a for a in range(x.rank) if a != axis))
    rows = x.shape[axis]
    moved = c.add("transpose", [x], perm=order) if axis else x
    matrix = c.add("reshape", [moved], shape=(rows, product(moved.shape[1:])))
    first, inverse, counts, number = c.add_multi(
        "unique", [matrix], {"sorted": bool(c.attr("sorted", 1))})
    (size,) = c.dims(number)
    first, counts = (c.add("slice", [v], starts=(0,), sizes=(size,), steps=(1,))
                     for v in (first, counts))
    return [c.add("gather", [x, first], axis=axis), first, inverse, counts]


def _top(c: Site, k: Dim) -> list[Value]:
    x = c.input(0)
    axis = axis_of(c, c.attr("axis", -1), x.rank)
    if not isinstance(k, int):
        # What the data asks for beyond the axis cannot be had.
        k = simplify_dim(minimum(k, wrap(x.shape[axis])))
    return c.add_multi("topk", [x], {"k": k, "axis": axis, "largest": bool(c.attr("largest", 1))})


@importer("TopK", since=1)
def topk_attribute(c: Site) -> list[Value]:
    if "k" not in c.attrs:
        raise c.error("attribute k is missing")
    return _top(c, c.attrs["k"])


@importer("TopK", since=10)
def topk(c: Site) -> list[Value]:
    k = vectors.integers(c, c.input(1))
    if vectors.count(c, k, "elements of k") != 1:
        raise c.error(f"k must be one number, not {k.type}")
    return _top(c, c.dims(k)[0])


@importer("NonMaxSuppression")
def non_max_suppression(c: Site) -> Value:
    boxes, scores = c.input(0), c.input(1)
    nothing = c.constant(np.zeros((0, 3), np.int64))
    if not c.has(2):
        return nothing
    limit = c.add("reshape", [as_scalar(c, c.input(2))], shape=(1,))
    known = vectors.numbers(limit)
    most: Dim = max(known[0], 0) if known else c.dims(
        vectors.maximum(c, vectors.integers(c, limit), 0))[0]
    most = simplify_dim(maximum(minimum(most, wrap(boxes.shape[1])), 0))
    if isinstance(most, int) and most == 0:
        return nothing
    # Without a score threshold every box is a candidate.
    bounds = [cast(c, as_scalar(c, c.input(i)), boxes.dtype) if c.has(i)
              else scalar(c, default, boxes.dtype) for i, default in ((3, 0.0), (4, -math.inf))]
    rows, number = c.add_multi("nms", [boxes, scores, *bounds], {
        "limit": most, "center": bool(c.attr("center_point_box", 0))})
    (size,) = c.dims(number)
    return c.add("slice", [rows], starts=(0, 0), sizes=(size, 3), steps=(1, 1))
