"""Indices that come from data: known ones are checked while importing, others by the program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.algebra import at_least
from ...ir.expr import both, op, wrap
from ...ir.graph.core import Dim, Value, readable
from . import vectors
from .registry import Site


def checked_indices(c: Site, indices: Value, extents: Sequence[Dim],
                    negative: bool = True) -> Value:
    """`indices` into an axis, or tuples of indices (in their last axis) into several; `extents` are
    the sizes of those axes. With `negative` they may count from the end.

    Out of range they are a ModelError now, or an InputError at run time.
    """
    if not indices.dtype.is_integer:
        raise c.error(f"indices must be integers, not {indices.dtype}")
    if indices.constant is not None:
        _check_numbers(c, indices.constant, extents, negative)
        return indices
    if indices.content is not None:
        _require(c, indices.content, extents, negative)
        return indices
    if not extents or any(d == 0 for d in indices.shape if isinstance(d, int)):
        return indices
    wide = indices if indices.dtype is dt.i64 else c.add("cast", [indices], to=dt.i64)
    high = vectors.vector(c, extents)
    if len(extents) == 1:
        high = c.add("reshape", [high], shape=())
    low = c.add("neg", [high]) if negative else c.constant(np.zeros((), np.int64))
    outside = c.add("or", [c.add("lt", [wide, low]), c.add("ge", [wide, high])])
    count = c.add("reduce_sum", [c.add("cast", [outside], to=dt.i64)],
                  axes=tuple(range(indices.rank)))
    sizes = " x ".join(readable(wrap(d), c.graph.root.symbols_origin) for d in extents)
    return c.add("checked", [indices, count],
                 message=f"{c.origin}: an index is outside its axis of {sizes} elements")


def _check_numbers(c: Site, array: np.ndarray, extents: Sequence[Dim], negative: bool) -> None:
    columns = [array] if len(extents) == 1 else [array[..., k] for k in range(len(extents))]
    for column, extent in zip(columns, extents, strict=True):
        if not column.size:
            continue
        least, most = int(column.min()), int(column.max())
        _require_span(c, least, most, extent, negative)


def _require_span(c: Site, least: Any, most: Any, extent: Dim, negative: bool) -> None:
    """States that the indices from `least` to `most` are positions of an axis."""
    known = all(isinstance(v, int) for v in (least, most, extent))
    lowest = -wrap(extent) if negative else wrap(0)
    if known and not (-extent if negative else 0) <= least <= most < extent:
        wrong = most if most >= extent else least
        raise c.error(f"index {wrong} is outside an axis of {extent} elements")
    conditions = []
    if not at_least(wrap(least) - lowest, 0):
        conditions.append(op("ge", least, lowest))
    if not at_least(wrap(extent) - most, 1):
        conditions.append(op("lt", most, extent))
    c.graph.require(both(*conditions), c.origin)


def _require(c: Site, content: np.ndarray, extents: Sequence[Dim], negative: bool) -> None:
    for at in np.ndindex(*content.shape):
        extent = extents[0] if len(extents) == 1 else extents[at[-1]]
        e = content[at]
        index = getattr(e, "value", e)
        _require_span(c, index, index, extent, negative)
