"""The kernel of RoIAlign."""

from __future__ import annotations

import math

from ....ir import dtype as dt
from ....ir.expr import Expr, both, cast, const, op, select, wrap
from ..procedural import Site, procedural


@procedural("roi_align")
def roi_align(c: Site) -> None:
    b, x, rois, images, y, a = c.b, c.input(0), c.input(1), c.input(2), c.output(), c.attrs
    wide = dt.f64 if x.dtype is dt.f64 else dt.f32
    height, width = wrap(x.shape[2]), wrap(x.shape[3])
    offset = 0.5 if a["half_pixel"] else 0.0

    def edge(r: Expr, k: int) -> Expr:
        return cast(rois[r, k], wide) * a["scale"] - offset

    def count(extent: Expr) -> Expr:
        return const(a["ratio"]) if a["ratio"] > 0 else op(
            "max", cast(op("ceil", extent), dt.i64), 0)

    def around(at: Expr, size: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        """The two positions around a coordinate, and their weights."""
        at = b.let("at", op("max", at, 0))
        low = b.let("low", op("min", cast(at, dt.i64), size - 1))
        high = b.let("high", op("min", low + 1, size - 1))
        part = b.let("part", select(low < size - 1, at - cast(low, wide), const(0, wide)))
        return low, high, 1 - part, part

    channels = x.shape[1]
    totals = c.scratch("totals", wide, (y.shape[0], channels))
    work = wrap(channels) * wrap(y.shape[2]) * wrap(y.shape[3]) * 32
    with c.nest("i", (y.shape[0],), work) as (r,):
        image = b.let("image", cast(images[r], dt.i64))
        left, top = b.let("left", edge(r, 0)), b.let("top", edge(r, 1))
        w, h = edge(r, 2) - left, edge(r, 3) - top
        if not a["half_pixel"]:
            w, h = op("max", w, 1), op("max", h, 1)
        bin_h = b.let("bin_h", h / cast(wrap(y.shape[2]), wide))
        bin_w = b.let("bin_w", w / cast(wrap(y.shape[3]), wide))
        rows, columns = b.let("rows", count(bin_h)), b.let("columns", count(bin_w))
        start = -math.inf if a["mode"] == "max" else 0.0
        with b.loops("p", y.shape[2:]) as (p, q):
            with b.loop("m", channels) as m:
                b.store(totals, (r, m), start)
            with b.loops("s", (rows, columns)) as (s, t):
                v = b.let("v", top + cast(p, wide) * bin_h
                          + (cast(s, wide) + 0.5) * bin_h / cast(rows, wide))
                u = b.let("u", left + cast(q, wide) * bin_w
                          + (cast(t, wide) + 0.5) * bin_w / cast(columns, wide))
                with b.when(both(v >= -1, v <= cast(height, wide), u >= -1,
                                 u <= cast(width, wide))):
                    y0, y1, g0, g1 = around(v, height)
                    x0, x1, f0, f1 = around(u, width)
                    taps = [(i, j, b.let("weight", g * f)) for i, g in ((y0, g0), (y1, g1))
                            for j, f in ((x0, f0), (x1, f1))]
                    with b.loop("m", channels) as m:
                        sample = totals[r, m]
                        for i, j, weight in taps:
                            sample = op("add" if a["mode"] == "avg" else "max", sample,
                                        cast(x[image, m, i, j], wide) * weight)
                        b.store(totals, (r, m), sample)
                if a["mode"] == "max":
                    with b.otherwise(), b.loop("m", channels) as m:
                        # A sample outside the image counts as 0.
                        b.update(totals, (r, m), "max", 0.0)
            samples = b.let("samples", rows * columns)
            with b.loop("m", channels) as m:
                value = totals[r, m]
                if a["mode"] == "avg":
                    value = value / cast(op("max", samples, 1), wide)
                else:
                    value = select(samples > 0, value, const(0, wide))
                b.store(y, (r, m, p, q), cast(value, x.dtype))
