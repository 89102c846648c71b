"""Shorthands for the core operators that importers add most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import Expr, simplify_dim, wrap
from ...ir.graph.core import Dim, Value
from ...ir.graph.ops.shapes import same
from .registry import Site


def scalar(c: Site, number, dtype: DType) -> Value:
    """A constant of rank 0."""
    return c.constant(np.asarray(number).astype(dtype.numpy))


def cast(c: Site, x: Value, to: DType) -> Value:
    """`x` with element type `to`."""
    return x if x.dtype is to else c.add("cast", [x], to=to)


def reshape(c: Site, x: Value, shape: Sequence[Dim | Expr]) -> Value:
    """`x` in another shape of as many elements."""
    shape = tuple(simplify_dim(d) for d in shape)
    if len(shape) == x.rank and all(same(a, b) for a, b in zip(shape, x.shape, strict=True)):
        return x
    return c.add("reshape", [x], shape=shape)


def transpose(c: Site, x: Value, perm: Sequence[int]) -> Value:
    """Dimension k of the result is dimension perm[k] of `x`."""
    perm = tuple(perm)
    return x if perm == tuple(range(x.rank)) else c.add("transpose", [x], perm=perm)


def swap(c: Site, x: Value) -> Value:
    """`x` with its last two dimensions exchanged."""
    return transpose(c, x, (*range(x.rank - 2), x.rank - 1, x.rank - 2))


def product(dims: Sequence[Dim]) -> Dim:
    """The number of elements of a shape."""
    total: Expr = wrap(1)
    for d in dims:
        total = total * wrap(d)
    return simplify_dim(total)


def along(c: Site, vector: Value, rank: int, axis: int) -> Value:
    """A vector shaped to broadcast along `axis` of a tensor of `rank` dimensions."""
    return reshape(c, vector, [1] * axis + [vector.shape[0]] + [1] * (rank - axis - 1))


def slice_axis(c: Site, x: Value, axis: int, start: Dim | Expr, size: Dim | Expr,
               step: int = 1) -> Value:
    """`size` elements of `axis` from `start` on."""
    starts: list = [0] * x.rank
    sizes: list = list(x.shape)
    steps = [1] * x.rank
    starts[axis], sizes[axis], steps[axis] = simplify_dim(start), simplify_dim(size), step
    if same(starts[axis], 0) and step == 1 and same(sizes[axis], x.shape[axis]):
        return x
    return c.add("slice", [x], starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))


def split_axis(c: Site, x: Value, axis: int, sizes: Sequence[Dim]) -> list[Value]:
    """Consecutive parts of `axis`."""
    start: Expr = wrap(0)
    parts = []
    for size in sizes:
        parts.append(slice_axis(c, x, axis, start, size))
        start = start + wrap(size)
    return parts


def axis_of(c: Site, axis: int, rank: int) -> int:
    """`axis` counted from the front; raises ModelError when it is outside."""
    if not -rank <= axis < max(rank, 1):
        raise c.error(f"axis {axis} is outside a tensor of rank {rank}")
    return axis % rank if rank else 0


def accumulator(t: DType) -> DType:
    """The type statistics are computed in: at least f32."""
    return dt.f32 if t.is_float and t.bits < 32 else t


def is_zero(c: Site, i: int) -> bool:
    """Whether input `i` is absent or known to be zero throughout."""
    if not c.has(i):
        return True
    known = c.known(i)
    return known is not None and not np.asarray(known, np.float64).any()


def dimension(c: Site, d: Dim, dtype: DType = dt.i64) -> Value:
    """A size as a tensor of rank 0."""
    if isinstance(d, int):
        return scalar(c, d, dtype)
    return cast(c, reshape(c, c.add("sizes", dims=(d,)), ()), dtype)


def positions(c: Site, size: Dim, rank: int, axis: int) -> Value:
    """0, 1, ..., size - 1 (i64) along `axis` of `rank` dimensions."""
    return along(c, c.add("iota", size=size), rank, axis)
