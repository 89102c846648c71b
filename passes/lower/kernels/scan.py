"""Kernels of running sums and products."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import cast, const, op, wrap
from ..procedural import Site, procedural


def _scan(c: Site, kind: str, neutral: int) -> None:
    """Rows that lie beside each other in memory go forward together."""
    b, x, y, axis = c.b, c.input(0), c.output(), c.attrs["axis"]
    wide = dt.f32 if x.dtype.is_float and x.dtype.bits < 32 else x.dtype
    extent, inner = wrap(x.shape[axis]), x.shape[axis + 1:]
    totals = c.scratch("totals", wide, (*x.shape[:axis], *inner)) if inner else None
    work = extent
    for d in inner:
        work = work * wrap(d)
    with c.nest("i", x.shape[:axis], work) as lead:
        total = b.scalar("total", wide, const(neutral, wide)) if totals is None else totals
        if totals is not None:
            with b.loops("j", inner) as rest:
                b.store(totals, (*lead, *rest), const(neutral, wide))
        with b.loop("k", x.shape[axis]) as k, b.loops("j", inner) as rest:
            at = (*lead, extent - 1 - k if c.attrs["reverse"] else k, *rest)
            own = (*lead, *rest) if inner else ()
            before = b.let("before", total[own])
            after = b.let("after", op(kind, before, cast(x[at], wide)))
            b.store(y, at, cast(before if c.attrs["exclusive"] else after, x.dtype))
            b.store(total, own, after)


@procedural("cumsum")
def cumsum(c: Site) -> None:
    _scan(c, "add", 0)


@procedural("cumprod")
def cumprod(c: Site) -> None:
    _scan(c, "mul", 1)
