"""Kernels on matrices."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import cast, op, wrap
from ..procedural import Site, procedural


@procedural("det")
def det(c: Site) -> None:
    """Gaussian elimination with partial pivoting on a copy; the product of the pivots."""
    b, x, y = c.b, c.input(0), c.output()
    wide = dt.f64 if x.dtype is dt.f64 else dt.f32
    n = wrap(x.shape[-1])
    work = c.scratch("work", wide, x.shape)
    with c.nest("i", y.shape, n * n * n) as lead:
        with b.loops("r", (n, n)) as (r, s):
            b.store(work, (*lead, r, s), cast(x[(*lead, r, s)], wide))
        product = b.scalar("product", wide, 1.0)
        with b.loop("k", n) as k:
            best = b.scalar("best", wide, op("abs", work[(*lead, k, k)]))
            pivot = b.scalar("pivot", dt.i64, k)
            rest = b.let("rest", n - 1 - k)
            with b.loop("r", rest) as r:
                size = b.let("size", op("abs", work[(*lead, k + 1 + r, k)]))
                with b.when(size > best[()]):
                    b.store(best, (), size)
                    b.store(pivot, (), k + 1 + r)
            chosen = b.let("chosen", pivot[()])
            with b.when(op("ne", chosen, k)):
                b.update(product, (), "mul", -1.0)
                with b.loop("s", n) as s:
                    held = b.let("held", work[(*lead, k, s)])
                    b.store(work, (*lead, k, s), work[(*lead, chosen, s)])
                    b.store(work, (*lead, chosen, s), held)
            diagonal = b.let("diagonal", work[(*lead, k, k)])
            b.update(product, (), "mul", diagonal)
            with b.when(op("ne", diagonal, 0)), b.loop("r", rest) as r:
                row = k + 1 + r
                factor = b.let("factor", work[(*lead, row, k)] / diagonal)
                with b.loop("s", rest) as s:
                    column = k + 1 + s
                    b.store(work, (*lead, row, column), work[(*lead, row, column)]
                            - factor * work[(*lead, k, column)])
        b.store(y, lead, cast(product[()], x.dtype))
