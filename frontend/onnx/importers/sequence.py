"""Sequences and optionals, which exist while importing only: lists of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dtype as dt
from ....ir.expr import simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from .. import vectors
from ..compile_time import Optional, TensorSequence, describe
from ..indices import checked_indices
from ..registry import Site, importer
from ..tensors import element_type
from .elementwise import as_scalar
from .movement import axis_of, part

LONGEST = 1 << 16
"""Elements of a sequence."""


def sequence(c: Site, i: int) -> TensorSequence:
    item: Any = c.input(i)
    if isinstance(item, Optional) and isinstance(item.item, TensorSequence):
        item = item.item
    if not isinstance(item, TensorSequence):
        raise c.error(f"input {i} must be a sequence, found {describe(item)}")
    return item


def position(c: Site, i: int, length: int, what: str) -> int:
    """A known position in a sequence of `length`, made non-negative."""
    found = vectors.numbers(c.input(i))
    if found is None or len(found) != 1:
        raise c.error(f"{what} must be known at compile time")
    at = found[0] + length if found[0] < 0 else found[0]
    if not 0 <= at < max(length, 1):
        raise c.error(f"{what} {found[0]} is outside a sequence of {length}")
    return at


@importer("SequenceConstruct")
def construct(c: Site) -> Any:
    return [TensorSequence(tuple(c.input(i) for i in range(len(c.inputs))))]


@importer("SequenceEmpty")
def empty(c: Site) -> Any:
    return [TensorSequence((), element_type(c.attr("dtype", 1), c.origin))]


@importer("SequenceLength")
def length(c: Site) -> Value:
    return c.constant(np.array(len(sequence(c, 0).items), np.int64))


@importer("SequenceAt")
def at(c: Site) -> Any:
    items = sequence(c, 0).items
    if vectors.numbers(c.input(1)) is None and items and all(
            isinstance(v, Value) and v.type == items[0].type for v in items):
        rows = [c.add("reshape", [v], shape=(1, *v.shape)) for v in items]
        at = checked_indices(c, as_scalar(c, c.input(1)), [len(items)])
        return c.add("gather", [c.add("concat", rows, axis=0), at], axis=0)
    if not items:
        raise c.error("the sequence is empty")
    return [items[position(c, 1, len(items), "position")]]


@importer("SequenceInsert")
def insert(c: Site) -> Any:
    items = list(sequence(c, 0).items)
    where = len(items)
    if c.has(2):
        found = vectors.numbers(c.input(2))
        if found is None or not -len(items) <= found[0] <= len(items):
            raise c.error(f"the position must be known and within a sequence of {len(items)}")
        where = found[0] + len(items) if found[0] < 0 else found[0]
    items.insert(where, c.input(1))
    return [TensorSequence(tuple(items))]


@importer("SequenceErase")
def erase(c: Site) -> Any:
    items = list(sequence(c, 0).items)
    if not items:
        raise c.error("the sequence is empty")
    del items[position(c, 1, len(items), "position") if c.has(1) else -1]
    return [TensorSequence(tuple(items), sequence(c, 0).dtype)]


@importer("ConcatFromSequence")
def concat(c: Site) -> Value:
    items = list(sequence(c, 0).items)
    if not items:
        raise c.error("the sequence is empty")
    rank = items[0].rank
    if c.attr("new_axis", 0):
        axis = axis_of(c, c.attrs["axis"], rank + 1)
        items = [c.add("reshape", [v], shape=(*v.shape[:axis], 1, *v.shape[axis:]))
                 for v in items]
    else:
        axis = axis_of(c, c.attrs["axis"], rank)
    return c.add("concat", items, axis=axis)


@importer("SplitToSequence")
def split(c: Site) -> Any:
    x = c.input(0)
    axis = axis_of(c, c.attr("axis", 0), x.rank)
    sizes, squeeze = _part_sizes(c, x, axis)
    items: list[Value] = []
    start = wrap(0)
    for n in sizes:
        item = part(c, x, axis, simplify_dim(start), n)
        start = start + wrap(n)
        if squeeze:
            item = c.add("reshape", [item], shape=(*x.shape[:axis], *x.shape[axis + 1:]))
        items.append(item)
    return [TensorSequence(tuple(items), x.dtype)]


def _part_sizes(c: Site, x: Value, axis: int) -> tuple[Sequence[Dim], bool]:
    extent = x.shape[axis]
    if c.has(1) and c.input(1).rank == 1 and vectors.numbers(c.input(1)) is None:
        return c.dims(vectors.integers(c, c.input(1))), False
    if isinstance(extent, int) and extent > LONGEST:
        raise c.error(f"cannot split into {extent} parts; {LONGEST} is the most")
    if not isinstance(extent, int):
        raise c.error(f"axis {axis} of {x.type} must have a known size to be split to a sequence")
    if not c.has(1):
        return [1] * extent, not c.attr("keepdims", 1)
    known = vectors.numbers(c.input(1))
    if known is None:
        raise c.error("the split must be known at compile time")
    if c.input(1).rank == 0:
        n = known[0]
        if n < 1:
            raise c.error(f"cannot split into parts of {n}")
        return [min(n, extent - k) for k in range(0, extent, n)], False
    if any(n < 0 for n in known) or sum(known) != extent:
        raise c.error(f"parts of {known} do not make up axis {axis} of {x.type}")
    return known, False


@importer("SequenceMap")
def sequence_map(c: Site) -> Any:
    first = sequence(c, 0)
    operands: list[Any] = [c.input(i) for i in range(1, len(c.inputs))]
    results: list[list[Any]] = [[] for _ in range(c.outputs)]
    for k, item in enumerate(first.items):
        others = []
        for x in operands:
            if isinstance(x, TensorSequence) and len(x.items) != len(first.items):
                raise c.error(f"sequences of {len(first.items)} and {len(x.items)} elements")
            others.append(x.items[k] if isinstance(x, TensorSequence) else x)
        for found, value in zip(results, c.importer.body(
                c.attrs["body"], c.graph, [item, *others], c.origin)):
            found.append(value)
    return [TensorSequence(tuple(found)) for found in results]


@importer("Optional")
def optional(c: Site) -> Any:
    return [Optional(c.input(0) if c.has(0) else None)]


@importer("OptionalHasElement")
def has_element(c: Site) -> Value:
    item: Any = c.inputs[0] if c.has(0) else Optional()
    present = not (isinstance(item, Optional) and item.item is None)
    return c.constant(np.array(present, dt.bool_.numpy))


@importer("OptionalGetElement")
def get_element(c: Site) -> Any:
    item: Any = c.input(0)
    if not isinstance(item, Optional):
        return [item]
    if item.item is None:
        raise c.error("the optional is empty")
    return [item.item]
