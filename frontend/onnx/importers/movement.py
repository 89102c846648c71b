"""Shapes and movement: reshape, transpose, concat, split, expand, tile, gather."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dtype as dt
from ....ir.algebra import at_least
from ....ir.expr import Const, Expr, simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from ....ir.graph.ops.shapes import broadcast_shapes, same
from .. import vectors
from ..compile_time import Text, describe
from ..indices import checked_indices
from ..registry import Site, importer


def product(dims: Sequence[Dim]) -> Dim:
    total: Expr = wrap(1)
    for d in dims:
        total = total * wrap(d)
    return simplify_dim(total)


def axis_of(c: Site, axis: int, rank: int, extra: int = 0) -> int:
    """`axis` in [0, rank + extra), negative values counted from the end."""
    if not -rank <= axis < rank + extra:
        raise c.error(f"axis {axis} is outside a tensor of rank {rank}")
    return axis % rank if axis < 0 else axis


def distinct_axes(c: Site, axes: Sequence[int], rank: int) -> list[int]:
    found = [axis_of(c, int(a), rank) for a in axes]
    if len(set(found)) != len(found):
        raise c.error(f"axes {list(axes)} name an axis twice")
    return found


def flattened(c: Site, x: Value, axis: int) -> Value:
    """The matrix of the dimensions before and from `axis` on."""
    axis = axis_of(c, axis, x.rank, 1)
    return c.add("reshape", [x], shape=(product(x.shape[:axis]), product(x.shape[axis:])))


def _sizes(c: Site) -> tuple[Dim, ...]:
    item: Any = c.input(0)
    if isinstance(item, Text):
        return item.array.shape
    if not isinstance(item, Value):
        raise c.error(f"{describe(item)} has no shape")
    return item.shape


@importer("Shape")
def shape_of(c: Site) -> Value:
    shape = _sizes(c)
    rank = len(shape)
    bounds = []
    for name, default in (("start", 0), ("end", rank)):
        at = c.attr(name, default)
        bounds.append(min(max(at + rank if at < 0 else at, 0), rank))
    return vectors.vector(c, shape[bounds[0]:max(bounds)] if bounds[1] >= bounds[0] else ())


@importer("Size")
def size_of(c: Site) -> Value:
    return c.add("reshape", [vectors.vector(c, [product(_sizes(c))])], shape=())


@importer("Reshape", since=1)
def reshape_attribute(c: Site) -> Value:
    shape = c.attr("shape")
    if shape is None:
        raise c.error("attribute 'shape' is missing")
    return c.add("reshape", [c.input(0)], shape=target_shape(c, c.input(0), shape, False))


@importer("Reshape", since=5)
def reshape(c: Site) -> Value:
    x, shape = c.input(0), vectors.integers(c, c.input(1))
    zero_is_size = bool(c.attr("allowzero", 0))
    if shape.content is None:
        shape = _run_time_shape(c, x, shape, zero_is_size)
        return c.add("reshape", [x], shape=c.dims(shape))
    return c.add("reshape", [x], shape=target_shape(c, x, c.dims(shape), zero_is_size))


def target_shape(c: Site, x: Value, shape: Sequence[Dim], zero_is_size: bool) -> tuple[Dim, ...]:
    """A shape with 0 (the input's dimension) and -1 (the rest) worked out."""
    dims: list[Dim] = list(shape)
    unknown = None
    for k, d in enumerate(dims):
        if same(d, 0) and not zero_is_size:
            if k >= x.rank:
                raise c.error(f"shape entry {k} copies a dimension that {x.type} does not have")
            dims[k] = x.shape[k]
        elif isinstance(d, int) and d < 0:
            if d != -1 or unknown is not None:
                raise c.error(f"cannot reshape {x.type} to {list(shape)}")
            unknown = k
    if unknown is not None:
        others = product([d for k, d in enumerate(dims) if k != unknown])
        total = x.type.numel
        if isinstance(others, int) and (others == 0 or (
                isinstance(total, int) and total % others)):
            raise c.error(f"cannot reshape {x.type} to {list(shape)}: -1 cannot be worked out")
        dims[unknown] = simplify_dim(wrap(total) // wrap(others))
    return tuple(dims)


def _run_time_shape(c: Site, x: Value, shape: Value, zero_is_size: bool) -> Value:
    n = vectors.count(c, shape, "shape entries")
    if not zero_is_size:
        own = vectors.vector(c, [x.shape[k] if k < x.rank else 0 for k in range(n)])
        copied = c.add("eq", [shape, c.constant(np.array(0, np.int64))])
        shape = c.add("select", [copied, own, shape])
    rest = c.add("eq", [shape, c.constant(np.array(-1, np.int64))])
    one = c.constant(np.array(1, np.int64))
    known = c.add("reduce_prod", [c.add("select", [rest, one, shape])], axes=(0,))
    inferred = c.add("div", [vectors.vector(c, [x.type.numel]), known])
    return c.add("select", [rest, inferred, shape])


@importer("Flatten")
def flatten(c: Site) -> Value:
    return flattened(c, c.input(0), c.attr("axis", 1))


def axes_operand(c: Site, i: int = 1) -> Value | None:
    """Axes given by attribute or as input `i`, as an i64 vector; None when not given."""
    if "axes" in c.attrs:
        return c.constant(np.array(c.attrs["axes"], np.int64))
    return vectors.integers(c, c.input(i)) if c.has(i) else None


@importer("Squeeze")
def squeeze(c: Site) -> Value:
    x, axes = c.input(0), axes_operand(c)
    if axes is None:
        for d in x.shape:
            if not isinstance(d, int) and not at_least(d, 2):
                raise c.error(f"no axes are given, and whether a dimension of {x.type} is 1 shows "
                              "only at run time; state the axes or fix the size")
        return c.add("reshape", [x], shape=tuple(d for d in x.shape if not same(d, 1)))
    known = vectors.numbers(axes)
    if known is None:
        n = x.rank - vectors.count(c, axes, "axes")
        kept = c.add("not", [vectors.axis_mask(c, axes, x.rank)])
        where = vectors.positions(c, kept, x.rank, n)
        return c.add("reshape", [x], shape=c.dims(
            vectors.take(c, vectors.vector(c, x.shape), where)))
    gone = distinct_axes(c, known, x.rank)
    for axis in gone:
        if isinstance(x.shape[axis], int) and x.shape[axis] != 1:
            raise c.error(f"cannot squeeze axis {axis} of {x.type}")
    return c.add("reshape", [x], shape=tuple(d for a, d in enumerate(x.shape) if a not in gone))


@importer("Unsqueeze")
def unsqueeze(c: Site) -> Value:
    x, axes = c.input(0), axes_operand(c)
    if axes is None:
        raise c.error("the axes are missing")
    rank = x.rank + vectors.count(c, axes, "axes")
    known = vectors.numbers(axes)
    if known is not None:
        new = distinct_axes(c, known, rank)
        own = iter(x.shape)
        return c.add("reshape", [x], shape=tuple(1 if a in new else next(own)
                                                 for a in range(rank)))
    mask = vectors.axis_mask(c, axes, rank)
    source = vectors.rank_among(c, c.add("not", [mask]), rank)
    dims = vectors.vector(c, [*x.shape, *[1] * (rank - x.rank)])
    one = c.constant(np.array(1, np.int64))
    shape = c.add("select", [mask, one, vectors.take(c, dims, source)])
    return c.add("reshape", [x], shape=c.dims(shape))


@importer("Transpose")
def transpose(c: Site) -> Value:
    x = c.input(0)
    perm = c.attr("perm") or tuple(reversed(range(x.rank)))
    return c.add("transpose", [x], perm=tuple(axis_of(c, p, x.rank) for p in perm))


@importer("Expand")
def expand(c: Site) -> Value:
    x = c.input(0)
    wanted = vectors.integers(c, c.input(1))
    if wanted.content is None:
        n = vectors.count(c, wanted, "shape entries")
        wanted = vectors.maximum(c, wanted, 0)
        own = vectors.vector(c, [1] * (n - x.rank) + list(x.shape[max(0, x.rank - n):]))
        # A dimension of 1 takes the other's size.
        single = c.add("eq", [wanted, c.constant(np.array(1, np.int64))])
        tail = c.dims(c.add("select", [single, own, wanted]))
        return c.add("expand", [x], shape=(*x.shape[:max(0, x.rank - n)], *tail))
    shape = broadcast_shapes(c, [x.shape, c.dims(wanted)])  # type: ignore[arg-type]
    return c.add("expand", [x], shape=shape)


@importer("Tile", since=6)
def tile(c: Site) -> Value:
    x, repeats = c.input(0), vectors.integers(c, c.input(1))
    if vectors.count(c, repeats, "repeats") != x.rank:
        raise c.error(f"tile needs {x.rank} repeats, found {repeats.type}")
    return c.add("tile", [x], repeats=c.dims(repeats))


@importer("Concat")
def concat(c: Site) -> Value:
    operands = [c.input(i) for i in range(len(c.inputs))]
    return c.add("concat", operands, axis=axis_of(c, c.attr("axis", 1), operands[0].rank))


def part(c: Site, x: Value, axis: int, start: Dim, size: Dim) -> Value:
    """`size` rows of `x` along `axis`, from `start`."""
    starts: list[Dim] = [0] * x.rank
    sizes = list(x.shape)
    starts[axis], sizes[axis] = start, size
    return c.add("slice", [x], starts=tuple(starts), sizes=tuple(sizes), steps=(1,) * x.rank)


@importer("Split")
def split(c: Site) -> list[Value]:
    x = c.input(0)
    axis = axis_of(c, c.attr("axis", 0), x.rank)
    sizes = split_sizes(c, x, axis)
    start: Expr = wrap(0)
    results = []
    for n in sizes:
        results.append(part(c, x, axis, simplify_dim(start), n))
        start = start + wrap(n)
    extent = x.shape[axis]
    if isinstance(start, Const) and isinstance(extent, int) and start.value != extent:
        raise c.error(f"parts of {list(sizes)} do not make up axis {axis} of {x.type}")
    return results


def split_sizes(c: Site, x: Value, axis: int) -> Sequence[Dim]:
    if c.attr("split"):
        sizes: Sequence[Dim] = c.attrs["split"]
    elif c.has(1):
        sizes = c.dims(vectors.integers(c, c.input(1)))
    else:
        n = c.attr("num_outputs", c.outputs)
        extent = x.shape[axis]
        if n < 1 or n != c.outputs:
            raise c.error(f"{n} parts asked for, and {c.outputs} outputs")
        if c.opset < 18 and isinstance(extent, int) and extent % n:
            raise c.error(f"axis {axis} of {x.type} does not split into {n} equal parts")
        each = (wrap(extent) + (n - 1)) // n
        return [*[simplify_dim(each)] * (n - 1), simplify_dim(wrap(extent) - each * (n - 1))]
    if len(sizes) != c.outputs or any(isinstance(n, int) and n < 0 for n in sizes):
        raise c.error(f"parts of {list(sizes)} for {c.outputs} outputs")
    return sizes


@importer("Gather")
def gather(c: Site) -> Value:
    x = c.input(0)
    axis = axis_of(c, c.attr("axis", 0), x.rank)
    return c.add("gather", [x, checked_indices(c, c.input(1), x.shape[axis:axis + 1])], axis=axis)


@importer("GatherElements")
def gather_elements(c: Site) -> Value:
    x = c.input(0)
    axis = axis_of(c, c.attr("axis", 0), x.rank)
    return c.add("gather_elements", [x, checked_indices(c, c.input(1), [x.shape[axis]])], axis=axis)


@importer("GatherND")
def gather_nd(c: Site) -> Value:
    x, indices, batch = c.input(0), c.input(1), c.attr("batch_dims", 0)
    return c.add("gather_nd", [x, checked_indices(c, indices, indexed_axes(c, x, indices, batch))],
                 batch_dims=batch)


def indexed_axes(c: Site, x: Value, indices: Value, batch: int = 0) -> Sequence[Dim]:
    """The axes of `x` that index tuples in the last axis of `indices` name, behind `batch`."""
    depth = indices.shape[-1] if indices.rank else None
    if not isinstance(depth, int) or not 0 <= batch <= x.rank - depth:
        raise c.error(f"index tuples {indices.type} do not fit {x.type} with {batch} batch axes")
    return x.shape[batch:batch + depth]


@importer("DepthToSpace")
def depth_to_space(c: Site) -> Value:
    x, b = c.input(0), c.attr("blocksize")
    n, ch, h, w = spatial(c, x, b)
    if isinstance(ch, int) and ch % (b * b):
        raise c.error(f"{ch} channels do not divide into blocks of {b} x {b}")
    depth = simplify_dim(wrap(ch) // (b * b))
    mode = c.attr("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise c.error(f"mode {mode!r} is neither DCR nor CRD")
    split = (n, b, b, depth, h, w) if mode == "DCR" else (n, depth, b, b, h, w)
    perm = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    apart = c.add("transpose", [c.add("reshape", [x], shape=split)], perm=perm)
    return c.add("reshape", [apart], shape=(n, depth, wrap(h) * b, wrap(w) * b))


@importer("SpaceToDepth")
def space_to_depth(c: Site) -> Value:
    x, b = c.input(0), c.attr("blocksize")
    n, ch, h, w = spatial(c, x, b)
    if any(isinstance(d, int) and d % b for d in (h, w)):
        raise c.error(f"{x.type} does not divide into blocks of {b} x {b}")
    rows, columns = simplify_dim(wrap(h) // b), simplify_dim(wrap(w) // b)
    mode = c.attr("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise c.error(f"mode {mode!r} is neither DCR nor CRD")
    perm = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    apart = c.add("reshape", [x], shape=(n, ch, rows, b, columns, b))
    moved = c.add("transpose", [apart], perm=perm)
    return c.add("reshape", [moved], shape=(n, wrap(ch) * (b * b), rows, columns))


def spatial(c: Site, x: Value, block: int) -> tuple[Dim, ...]:
    if x.rank != 4 or block < 1:
        raise c.error(f"needs a tensor of rank 4 and a positive block size, got {x.type} and "
                      f"{block}")
    return x.shape


@importer("ReverseSequence")
def reverse_sequence(c: Site) -> Value:
    """The first `lengths[b]` steps of sequence b backwards, the rest as they are."""
    x, lengths = c.input(0), vectors.integers(c, c.input(1))
    batch, time = c.attr("batch_axis", 1), c.attr("time_axis", 0)
    if x.rank < 2 or {batch, time} != {0, 1}:
        raise c.error(f"batch_axis {batch} and time_axis {time} must be 0 and 1")
    lengths = checked_indices(c, lengths, [simplify_dim(wrap(x.shape[time]) + 1)], negative=False)
    steps = c.add("reshape", [c.add("iota", size=x.shape[time], dtype=dt.i64)],
                  shape=(1, x.shape[time]))
    ends = c.add("reshape", [lengths], shape=(x.shape[batch], 1))
    last = c.add("sub", [ends, c.constant(np.array(1, np.int64))])
    source = c.add("select", [c.add("lt", [steps, ends]), c.add("sub", [last, steps]), steps])
    swap = (1, 0, *range(2, x.rank))
    rows = x if batch == 0 else c.add("transpose", [x], perm=swap)
    index = c.add("reshape", [source], shape=(x.shape[batch], x.shape[time], 1))
    result = c.add("gather_nd", [rows, index], batch_dims=1)
    return result if batch == 0 else c.add("transpose", [result], perm=swap)


