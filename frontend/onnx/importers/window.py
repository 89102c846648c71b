"""Slice and Pad, with bounds known at compile time or only at run time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir.expr import Const, Expr, op, select, simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from .. import vectors
from ..registry import Site, importer
from .elementwise import as_scalar, cast, scalar
from .movement import distinct_axes

FAR = (1 << 31) - 1
"""Bounds at least this far out mean the end of the axis (exporters write INT_MAX, INT64_MAX)."""


@importer("Slice", since=1)
def slice_attributes(c: Site) -> Value:
    x, starts, ends = c.input(0), c.attr("starts", ()), c.attr("ends", ())
    axes = c.attr("axes") or range(len(starts))
    return known_slice(c, x, starts, ends, distinct_axes(c, axes, x.rank), [1] * len(starts))


@importer("Slice", since=10)
def slice_operands(c: Site) -> Value:
    x = c.input(0)
    starts, ends = vectors.integers(c, c.input(1)), vectors.integers(c, c.input(2))
    n = vectors.count(c, starts, "starts")
    axes = vectors.integers(c, c.input(3)) if c.has(3) else c.constant(np.arange(n))
    steps = vectors.integers(c, c.input(4)) if c.has(4) else c.constant(np.ones(n, np.int64))
    if any(vectors.count(c, v, "bounds") != n for v in (ends, axes, steps)):
        raise c.error("starts, ends, axes and steps have different lengths")
    known = vectors.numbers(axes), vectors.numbers(steps)
    if known[0] is None or known[1] is None or starts.content is None or ends.content is None:
        return run_time_slice(c, x, starts, ends, axes, steps)
    places = distinct_axes(c, known[0], x.rank)
    return known_slice(c, x, c.dims(starts), c.dims(ends), places, known[1])


def known_slice(c: Site, x: Value, starts: Sequence[Dim], ends: Sequence[Dim],
                axes: Sequence[int], steps: Sequence[int]) -> Value:
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise c.error("starts, ends, axes and steps have different lengths")
    first: list[Dim] = [0] * x.rank
    sizes, strides = list(x.shape), [1] * x.rank
    for axis, start, end, step in zip(axes, starts, ends, steps):
        if not step:
            raise c.error("a slice cannot have step 0")
        first[axis], sizes[axis] = bounds(x.shape[axis], start, end, step)
        strides[axis] = step
    return c.add("slice", [x], starts=tuple(first), sizes=tuple(sizes), steps=tuple(strides))


def bounds(extent: Dim, start: Dim, end: Dim, step: int) -> tuple[Dim, Dim]:
    """First position and number of elements of extent[start:end:step]. As ONNX has it (and numpy
    not), a backward slice that starts before the axis takes its first element."""
    d = wrap(extent)
    low, high = (wrap(0), d) if step > 0 else (wrap(-1), d - 1)
    s, e = _clamped(start, d, wrap(0), high), _clamped(end, d, low, high)
    span = e - s if step > 0 else s - e
    size = simplify_dim(op("max", (span + (abs(step) - 1)) // abs(step), 0))
    if isinstance(size, int) and size == 0:
        return 0, 0
    return simplify_dim(s), size


def _clamped(at: Dim, d: Expr, low: Expr, high: Expr) -> Expr:
    if isinstance(at, int) and at >= FAR:
        return high
    if isinstance(at, int) and at < -FAR:
        return low
    position = wrap(at)
    if isinstance(position, Const):
        position = position + d if position.value < 0 else position
    else:
        position = select(op("lt", position, 0), position + d, position)
    return op("min", op("max", position, low), high)


def run_time_slice(c: Site, x: Value, starts: Value, ends: Value, axes: Value,
                   steps: Value) -> Value:
    """All bounds of all axes as vectors, worked out when the model runs."""
    rank = x.rank
    dims = vectors.vector(c, x.shape)
    zero, one = (c.constant(np.array(n, np.int64)) for n in (0, 1))
    stride = vectors.spread(c, steps, axes, rank, one)
    back = c.add("lt", [stride, zero])
    low = c.add("select", [back, c.add("neg", [one]), zero])
    high = c.add("add", [dims, low])

    def clamped(v: Value, default: Value, low: Value) -> Value:
        far = c.constant(np.array(FAR, np.int64))
        near = c.add("max", [c.add("min", [v, far]), c.add("neg", [far])])
        at = vectors.wrap_negative(c, vectors.spread(c, near, axes, rank, default), dims)
        return c.add("min", [c.add("max", [at, low]), high])

    first = clamped(starts, zero, zero)
    span = c.add("sub", [clamped(ends, dims, low), first])
    width = c.add("abs", [stride])
    span = c.add("select", [back, c.add("neg", [span]), span])
    steps_taken = c.add("div", [c.add("add", [span, c.add("sub", [width, one])]), width])
    sizes = c.dims(vectors.maximum(c, steps_taken, 0))
    first = c.dims(vectors.maximum(c, first, 0))
    return c.add("slice", [x], starts=first, sizes=sizes, steps=vectors.signed(c, stride))


# Pad --------------------------------------------------------------------------------------------


@importer("Pad", since=1)
def pad_attributes(c: Site) -> Value:
    x = c.input(0)
    amounts = c.attr("pads", c.attr("paddings", ()))
    return pad_by(c, x, amounts, range(x.rank), scalar(c, c.attr("value", 0.0), x.dtype))


@importer("Pad", since=11)
def pad_operands(c: Site) -> Value:
    x, amounts = c.input(0), vectors.integers(c, c.input(1))
    fill = cast(c, as_scalar(c, c.input(2)), x.dtype) if c.has(2) else None
    axes = vectors.integers(c, c.input(3)) if c.has(3) else None
    known = range(x.rank) if axes is None else vectors.numbers(axes)
    if known is not None:
        return pad_by(c, x, vectors.signed(c, amounts), known, fill)
    assert axes is not None
    n = vectors.count(c, axes, "axes")
    zero = c.constant(np.array(0, np.int64))
    ends = [c.add("slice", [amounts], starts=(k,), sizes=(n,), steps=(1,)) for k in (0, n)]
    both = c.add("concat", [vectors.spread(c, e, axes, x.rank, zero) for e in ends], axis=0)
    return pad_by(c, x, vectors.signed(c, both), range(x.rank), fill)


def pad_by(c: Site, x: Value, amounts: Sequence[Dim], axes: Sequence[int],
           fill: Value | None) -> Value:
    if len(amounts) != 2 * len(axes):
        raise c.error(f"{len(amounts)} pads for {len(axes)} axes")
    low: list[Dim] = [0] * x.rank
    high: list[Dim] = [0] * x.rank
    for k, axis in enumerate(distinct_axes(c, list(axes), x.rank)):
        low[axis], high[axis] = amounts[k], amounts[len(axes) + k]
    mode = c.attr("mode", "constant")
    operands = [x] if fill is None or mode != "constant" else [x, fill]
    return c.add("pad", operands, low=tuple(low), high=tuple(high), mode=mode)
