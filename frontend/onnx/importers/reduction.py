"""Reductions, arg-reductions and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ....ir import dtype as dt
from ....ir.graph.core import Value
from .. import vectors
from ..registry import Site, importer
from .elementwise import as_scalar, cast, scalar
from .movement import axes_operand, axis_of, distinct_axes


def _core(c: Site, op: str, x: Value, axes: tuple[int, ...]) -> Value:
    """Reduction over `axes`, which stay with size 1."""
    return c.add(op, [x], axes=axes, keepdims=True) if axes else x


def _log_sum_exp(c: Site, x: Value, axes: tuple[int, ...]) -> Value:
    # Relative to the maximum, so that nothing overflows; an infinite one is no reference.
    top = _core(c, "reduce_max", x, axes)
    zero = scalar(c, 0, x.dtype)
    base = c.add("select", [c.add("isinf", [top]), zero, top])
    total = _core(c, "reduce_sum", c.add("exp", [c.add("sub", [x, base])]), axes)
    return c.add("add", [c.add("log", [total]), base])


def _extreme(c: Site, op: str, x: Value, axes: tuple[int, ...]) -> Value:
    if x.dtype.is_bool:
        op = "reduce_any" if op == "reduce_max" else "reduce_all"
    return _core(c, op, x, axes)


_KINDS: dict[str, Callable[[Site, Value, tuple[int, ...]], Value]] = {
    "ReduceSum": lambda c, x, axes: _core(c, "reduce_sum", x, axes),
    "ReduceProd": lambda c, x, axes: _core(c, "reduce_prod", x, axes),
    "ReduceMean": lambda c, x, axes: _core(c, "reduce_mean", x, axes),
    "ReduceMax": lambda c, x, axes: _extreme(c, "reduce_max", x, axes),
    "ReduceMin": lambda c, x, axes: _extreme(c, "reduce_min", x, axes),
    "ReduceL1": lambda c, x, axes: _core(c, "reduce_sum", c.add("abs", [x]), axes),
    "ReduceSumSquare": lambda c, x, axes: _core(c, "reduce_sum", c.add("mul", [x, x]), axes),
    "ReduceL2": lambda c, x, axes: c.add("sqrt", [
        _core(c, "reduce_sum", c.add("mul", [x, x]), axes)]),
    "ReduceLogSum": lambda c, x, axes: c.add("log", [_core(c, "reduce_sum", x, axes)]),
    "ReduceLogSumExp": _log_sum_exp,
}
_IN_FLOATS = {"ReduceL2", "ReduceLogSum", "ReduceLogSumExp"}


@importer(*_KINDS)
def reduce(c: Site) -> Value:
    x, keep, axes = c.input(0), bool(c.attr("keepdims", 1)), axes_operand(c)
    own = x.dtype
    if own.is_integer and c.op_type in _IN_FLOATS:
        x = cast(c, x, dt.f64 if own.bits > 32 else dt.f32)
    kind = _KINDS[c.op_type]
    known = None if axes is None else vectors.numbers(axes)
    if axes is not None and known is None and vectors.count(c, axes, "axes"):
        result = _run_time_axes(c, kind, x, axes, keep)
    else:
        over = tuple(range(x.rank)) if not known else tuple(sorted(set(
            axis_of(c, a, x.rank) for a in known)))
        if not known and c.attr("noop_with_empty_axes", 0):
            over = ()
        result = kind(c, x, over)
        if not keep and over:
            result = c.add("reshape", [result], shape=tuple(
                d for a, d in enumerate(x.shape) if a not in over))
    return cast(c, result, own)


def _run_time_axes(c: Site, kind, x: Value, axes: Value, keep: bool) -> Value:
    """The axes to reduce are moved to the end, in an order that the data gives."""
    n = vectors.count(c, axes, "axes")
    if n > x.rank:
        raise c.error(f"{n} axes of a tensor of rank {x.rank}")
    mask = vectors.axis_mask(c, axes, x.rank)
    stay = vectors.positions(c, c.add("not", [mask]), x.rank, x.rank - n)
    order = c.add("concat", [stay, vectors.positions(c, mask, x.rank, n)], axis=0)
    dims = vectors.vector(c, x.shape)
    moved_shape = c.dims(vectors.take(c, dims, order))
    moved = c.add("transpose_by", [x, order], shape=moved_shape)
    result = kind(c, moved, tuple(range(x.rank - n, x.rank)))
    if keep:
        one = c.constant(np.array(1, np.int64))
        return c.add("reshape", [result], shape=c.dims(c.add("select", [mask, one, dims])))
    return c.add("reshape", [result], shape=moved_shape[:x.rank - n])


@importer("ArgMax", "ArgMin")
def arg_reduction(c: Site) -> Value:
    x = c.input(0)
    axis = axis_of(c, c.attr("axis", 0), x.rank)
    result = c.add(c.op_type.lower(), [x], axis=axis, last=bool(c.attr("select_last_index", 0)))
    if c.attr("keepdims", 1):
        result = c.add("reshape", [result], shape=(*x.shape[:axis], 1, *x.shape[axis + 1:]))
    return result


@importer("CumSum", "CumProd")
def running(c: Site) -> Value:
    x = c.input(0)
    op = c.op_type.lower()
    flags: dict[str, Any] = {n: bool(c.attr(n, 0)) for n in ("exclusive", "reverse")}
    axis = vectors.numbers(c.input(1))
    if axis is not None:
        (at,) = distinct_axes(c, axis, x.rank)
        return c.add(op, [x], axis=at, **flags)
    if x.rank == 1:
        return c.add(op, [x], axis=0, **flags)
    axes = c.add("reshape", [as_scalar(c, vectors.integers(c, c.input(1)))], shape=(1,))
    mask = vectors.axis_mask(c, axes, x.rank)
    stay = vectors.positions(c, c.add("not", [mask]), x.rank, x.rank - 1)
    last = vectors.positions(c, mask, x.rank, 1)
    order = c.add("concat", [stay, last], axis=0)
    shape = c.dims(vectors.take(c, vectors.vector(c, x.shape), order))
    result = c.add(op, [c.add("transpose_by", [x, order], shape=shape)], axis=x.rank - 1, **flags)
    # The inverse order: where each axis went.
    place = c.add("select", [mask, c.constant(np.array(x.rank - 1, np.int64)),
                             vectors.rank_among(c, c.add("not", [mask]), x.rank)])
    return c.add("transpose_by", [result, place], shape=x.shape)
