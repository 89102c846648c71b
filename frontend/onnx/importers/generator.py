"""Tensors made of nothing or of positions: constants, ranges, masks, one-hot rows."""

from __future__ import annotations

import math

import numpy as np

from ....ir import dtype as dt
from ....ir.expr import op, simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from .. import vectors
from ..compile_time import Item, Text
from ..registry import Site, importer
from ..tensors import element_type
from .elementwise import as_scalar, cast, scalar
from .movement import axis_of


@importer("Constant")
def constant(c: Site) -> list[Item]:
    found = [n for n in c.attrs if n in (
        "value", "sparse_value", "value_float", "value_floats", "value_int", "value_ints",
        "value_string", "value_strings")]
    if len(found) != 1:
        raise c.error(f"a constant needs one value, found {len(found)}")
    value = c.attrs[found[0]]
    if found[0].startswith("value_string"):
        return [Text(np.array(value, object))]
    kind = {"f": np.float32, "i": np.int64}.get(found[0][6:7])
    array = np.asarray(value, kind) if kind is not None else value
    return [Text(array) if array.dtype == object else c.constant(array)]


@importer("ConstantOfShape")
def constant_of_shape(c: Site) -> Value:
    value = c.attr("value", np.zeros(1, np.float32))
    if value.size != 1:
        raise c.error(f"the value must be one element, not {value.size}")
    shape = c.dims(vectors.integers(c, c.input(0)))
    return c.add("expand", [c.constant(value.reshape(()))], shape=shape)


@importer("Range")
def range_of(c: Site) -> Value:
    start, limit, delta = (as_scalar(c, c.input(i)) for i in range(3))
    dtype = start.dtype
    known = [v.constant for v in (start, limit, delta)]
    if dtype.is_integer:
        size = _integer_count(c, start, limit, delta)
    elif all(v is not None for v in known):
        a, b, d = (float(v) for v in known)  # type: ignore[arg-type]
        if not d or not all(map(math.isfinite, (a, b, d))):
            raise c.error(f"cannot count from {a} to {b} by {d}")
        size = max(0, math.ceil((b - a) / d))
    else:
        steps = c.add("ceil", [c.add("div", [c.add("sub", [limit, start]), delta])])
        whole = vectors.maximum(c, cast(c, steps, dt.i64), 0)
        (size,) = c.dims(whole)
    steps = c.add("mul", [c.add("iota", size=size, dtype=dtype), delta])
    return c.add("add", [start, steps])


def _integer_count(c: Site, start: Value, limit: Value, delta: Value) -> Dim:
    a, b, d = (cast(c, v, dt.i64) for v in (start, limit, delta))
    step = vectors.numbers(d)
    if step == [0]:
        raise c.error("a range cannot have step 0")
    if step is not None and a.content is not None and b.content is not None:
        low, high = wrap(a.content[()]), wrap(b.content[()])
        span = high - low if step[0] > 0 else low - high
        return simplify_dim(op("max", (span + (abs(step[0]) - 1)) // abs(step[0]), 0))
    # ceil(span / step): one more than the truncated quotient of one less, towards the step.
    span, sign = c.add("sub", [b, a]), c.add("sign", [d])
    (size,) = c.dims(vectors.maximum(
        c, c.add("div", [c.add("add", [span, c.add("sub", [d, sign])]), d]), 0))
    return size


def _positions(c: Site, extent: Dim, *shape: Dim) -> Value:
    return c.add("reshape", [c.add("iota", size=extent, dtype=dt.i64)], shape=shape)


@importer("EyeLike")
def eye_like(c: Site) -> Value:
    x = c.input(0)
    if x.rank != 2:
        raise c.error(f"needs a matrix, got {x.type}")
    to = element_type(c.attrs["dtype"], c.origin) if "dtype" in c.attrs else x.dtype
    rows, columns = x.shape
    diagonal = c.add("add", [_positions(c, rows, rows, 1), scalar(c, c.attr("k", 0), dt.i64)])
    return cast(c, c.add("eq", [diagonal, _positions(c, columns, columns)]), to)


@importer("Trilu")
def trilu(c: Site) -> Value:
    x = c.input(0)
    if x.rank < 2:
        raise c.error(f"needs matrices, got {x.type}")
    rows, columns = x.shape[-2:]
    k = as_scalar(c, c.input(1)) if c.has(1) else scalar(c, 0, dt.i64)
    diagonal = c.add("add", [_positions(c, rows, rows, 1), k])
    keep = c.add("ge" if c.attr("upper", 1) else "le", [_positions(c, columns, columns), diagonal])
    return c.add("select", [keep, x, scalar(c, 0, x.dtype)])


@importer("OneHot")
def one_hot(c: Site) -> Value:
    indices, values = c.input(0), c.input(2)
    (depth,) = c.dims(vectors.integers(c, cast(c, c.input(1), dt.i64)))
    if values.type.numel != 2:
        raise c.error(f"values must be [off, on], got {values.type}")
    rank = indices.rank + 1
    axis = axis_of(c, c.attr("axis", -1), rank)
    count = c.add("reshape", [vectors.vector(c, [depth])], shape=())
    at = vectors.wrap_negative(c, cast(c, indices, dt.i64), count)
    at = c.add("reshape", [at], shape=(*indices.shape[:axis], 1, *indices.shape[axis:]))
    places = _positions(c, depth, depth, *[1] * (rank - 1 - axis))
    off, on = (c.add("reshape", [c.add("slice", [values], starts=(k,), sizes=(1,), steps=(1,))],
                     shape=()) for k in (0, 1))
    return c.add("select", [c.add("eq", [at, places]), on, off])
