"""Kernels that write at computed positions."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import Expr, cast, select, wrap
from ....ir.kernel.builder import Builder
from ..procedural import Site, procedural
from .selection import insert, without


def _copy(c: Site) -> None:
    x, y = c.input(0), c.output()
    with c.nest("i", x.shape) as index:
        c.b.store(y, index, x[index])


def _position(b: Builder, raw: Expr, extent) -> Expr:
    """A possibly negative index as a position."""
    p = b.let("p", cast(raw, dt.i64))
    return b.let("p", select(p < 0, p + wrap(extent), p))


def _combine(c: Site, index: tuple[Expr, ...], value: Expr) -> None:
    y, kind = c.output(), c.attrs["reduction"]
    if kind == "none":
        c.b.store(y, index, value)
        return
    if y.dtype.is_bool:
        kind = {"add": "or", "max": "or", "mul": "and", "min": "and"}[kind]
    c.b.update(y, index, kind, value)


@procedural("scatter_elements")
def scatter_elements(c: Site) -> None:
    b, x, indices, updates = c.b, c.input(0), c.input(1), c.input(2)
    axis = c.attrs["axis"]
    _copy(c)
    # Only updates along the axis can meet, so the other axes are independent.
    others = without(indices.shape, axis)
    with c.nest("i", others, indices.shape[axis]) as rest, b.loop("k", indices.shape[axis]) as k:
        at = insert(rest, axis, k)
        p = _position(b, indices[at], x.shape[axis])
        _combine(c, insert(rest, axis, p), updates[at])


@procedural("scatter_nd")
def scatter_nd(c: Site) -> None:
    b, x, indices, updates = c.b, c.input(0), c.input(1), c.input(2)
    depth: int = indices.shape[-1]
    _copy(c)
    with b.loops("i", indices.shape[:-1]) as lead:
        at = tuple(_position(b, indices[(*lead, wrap(k))], x.shape[k]) for k in range(depth))
        with b.loops("k", x.shape[depth:]) as rest:
            _combine(c, (*at, *rest), updates[(*lead, *rest)])
