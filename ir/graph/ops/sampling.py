"""Reading images between their elements, and adding windows back into an image."""

from __future__ import annotations

import math

import numpy as np

from ... import dtype as dt
from ...expr import Expr, both, cast, const, equal, op, select, simplify_dim, wrap
from ..core import Dim, TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import flat_index, require_equal, type_like

# Grid sampling ----------------------------------------------------------------------------------

MODES = ("nearest", "linear", "cubic")
PADDINGS = ("zeros", "border", "reflection")


def _grid_infer(ctx: OpContext):
    x, grid, a = ctx.type(0), ctx.type(1), ctx.attrs
    n = x.rank - 2
    if n < 1 or grid.rank != x.rank or grid.shape[-1] != n or not grid.dtype.is_float:
        raise ctx.error(f"grid_sample of {x} at {grid}")
    if a["mode"] not in MODES or a["padding"] not in PADDINGS:
        raise ctx.error(f"unknown mode {a['mode']!r} or padding {a['padding']!r}")
    require_equal(ctx, x.shape[0], grid.shape[0], f"grid_sample of {x} at {grid}: batches differ")
    return [type_like(x, (x.shape[0], x.shape[1], *grid.shape[1:-1]))]


def _grid_body(ctx: OpContext, index):
    x, grid, a = ctx.type(0), ctx.type(1), ctx.attrs
    n, wide = x.rank - 2, dt.f64 if dt.f64 in (x.dtype, grid.dtype) else dt.f32
    axes = []
    for axis in range(n):
        # The last entry of a grid point is the position on the innermost axis.
        at = cast(ctx.load(1, (index[0], *index[2:], const(n - 1 - axis))), wide)
        axes.append(_taps(at, x.shape[2 + axis], wide, a))
    direct = a["mode"] == "nearest"

    def value(axis: int, places: tuple[Expr, ...], inside: Expr) -> Expr:
        if axis == n:
            read = ctx.load(0, (index[0], index[1], *places))
            read = select(inside, read, const(0, x.dtype))
            return read if direct else cast(read, wide)
        terms = []
        for place, weight, valid in axes[axis]:
            term = value(axis + 1, (*places, place), both(inside, valid))
            terms.append(term if weight is None else term * weight)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    return cast(value(0, (), const(True, dt.bool_)), x.dtype)


def _taps(at: Expr, extent: Dim, wide, attrs) -> list[tuple[Expr, Expr | None, Expr]]:
    """(position, weight, whether it is inside) along one axis for a coordinate in [-1, 1]."""
    padding, align = attrs["padding"], attrs["align_corners"]
    d = wrap(extent)
    size = cast(d, wide)
    x = (at + 1) * 0.5 * (size - 1) if align else ((at + 1) * size - 1) * 0.5
    if attrs["mode"] == "nearest":
        x = op("round", x)
    if padding == "border":
        x = op("min", op("max", x, 0), size - 1)
    elif padding == "reflection":
        # A triangle wave between the centres, or the borders, of the outermost elements.
        low = 0.0 if align else -0.5
        period = op("max", (size - 1) * 2, 1) if align else size * 2
        distance = op("rem", op("abs", x - low), period)
        x = op("min", distance, period - distance) + low
    if attrs["mode"] == "nearest":
        place, inside = _place(cast(x, dt.i64), d, padding, align)
        return [(place, None, inside)]
    floor = op("floor", x)
    first, f = cast(floor, dt.i64), x - floor
    if attrs["mode"] == "linear":
        weights = [(0, 1 - f), (1, f)]
    else:
        weights = list(zip(range(-1, 3), _cubic(f), strict=True))
    found = []
    for step, weight in weights:
        place, inside = _place(first + step, d, padding, align)
        found.append((place, weight, inside))
    return found


def _place(i: Expr, d: Expr, padding: str, align: bool) -> tuple[Expr, Expr]:
    """A position made to lie inside, and whether its element counts."""
    if padding == "zeros":
        return i, both(op("ge", i, 0), op("lt", i, d))
    if padding == "reflection":
        period = op("max", (d - 1) * 2, 1) if align else d * 2
        folded = i % period
        i = op("min", folded, (period if align else period - 1) - folded)
    return op("max", op("min", i, d - 1), 0), const(True, dt.bool_)


def _cubic(f: Expr) -> list[Expr]:
    """Keys 1981, cubic convolution with a = -0.75: weights of the four elements around."""
    a = -0.75
    near = [((a + 2) * t - (a + 3)) * t * t + 1 for t in (f, 1 - f)]
    far = [((a * t - 5 * a) * t + 8 * a) * t - 4 * a for t in (f + 1, 2 - f)]
    return [far[0], near[0], near[1], far[1]]


define(OpDef(
    "grid_sample", "reduction", _grid_infer, body=_grid_body,
    attrs={"mode": "linear", "padding": "zeros", "align_corners": False},
    doc="x [N, C, spatial...] at the points grid [N, out..., rank of space] in [-1, 1], innermost "
        "axis first; nearest, linear or cubic; outside: zeros, border or reflection.",
))


# Regions of interest ----------------------------------------------------------------------------


def _roi_infer(ctx: OpContext):
    x, rois, batch, a = ctx.type(0), ctx.type(1), ctx.type(2), ctx.attrs
    if x.rank != 4 or rois.rank != 2 or batch.rank != 1 or rois.dtype is not x.dtype:
        raise ctx.error(f"roi_align of {x} at {rois} of images {batch}")
    if a["mode"] not in ("avg", "max"):
        raise ctx.error(f"unknown mode {a['mode']!r}")
    require_equal(ctx, rois.shape[0], batch.shape[0], f"{rois} with images {batch}")
    return [type_like(x, (rois.shape[0], x.shape[1], a["height"], a["width"]))]


def _roi_reference(ctx: OpContext, x, rois, batch):
    a = ctx.attrs
    wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    kind = wide.dtype.type
    result = np.zeros((len(rois), x.shape[1], int(a["height"]), int(a["width"])), wide.dtype)
    offset = kind(0.5 if a["half_pixel"] else 0.0)
    for r, box in enumerate(rois.astype(kind)):
        x1, y1, x2, y2 = box * kind(a["scale"]) - offset
        w, h = x2 - x1, y2 - y1
        if not a["half_pixel"]:
            w, h = max(w, kind(1)), max(h, kind(1))
        bins = h / kind(a["height"]), w / kind(a["width"])
        grid = [a["ratio"] if a["ratio"] > 0 else max(0, math.ceil(b)) for b in bins]
        image = wide[batch[r]]
        for p, q in np.ndindex(int(a["height"]), int(a["width"])):
            values = []
            for i, j in np.ndindex(*grid):
                y = y1 + kind(p) * bins[0] + kind(i + 0.5) * bins[0] / kind(grid[0])
                z = x1 + kind(q) * bins[1] + kind(j + 0.5) * bins[1] / kind(grid[1])
                values.append(_bilinear_terms(image, y, z))
            if values:
                stacked = np.stack(values)
                result[r, :, p, q] = stacked.sum(1).sum(0) / max(len(values), 1) \
                    if a["mode"] == "avg" else stacked.max(1).max(0)
    return result.astype(x.dtype)


def _bilinear_terms(image, y, x):
    """[4, C]: the four weighted elements around a point."""
    height, width = image.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros((4, len(image)), image.dtype)
    y, x = max(y, image.dtype.type(0)), max(x, image.dtype.type(0))
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy = y - y0 if int(y) < height - 1 else image.dtype.type(0)
    fx = x - x0 if int(x) < width - 1 else image.dtype.type(0)
    return np.stack([(1 - fy) * (1 - fx) * image[:, y0, x0], (1 - fy) * fx * image[:, y0, x1],
                     fy * (1 - fx) * image[:, y1, x0], fy * fx * image[:, y1, x1]])


define(OpDef(
    "roi_align", "opaque", _roi_infer, _roi_reference,
    attrs={"height": REQUIRED, "width": REQUIRED, "ratio": 0, "scale": 1.0, "mode": "avg",
           "half_pixel": True},
    doc="He et al. 2017, RoIAlign: x [N, C, H, W], boxes [R, 4] (x1, y1, x2, y2, times `scale`), "
        "image numbers [R]. Every bin is the mean (or the largest weighted term) of `ratio`^2 "
        "bilinear samples, by default one per element that it covers.",
))


# Adding windows ---------------------------------------------------------------------------------


def _col2im_infer(ctx: OpContext):
    x, a = ctx.type(0), ctx.attrs
    if x.rank != 3:
        raise ctx.error(f"col2im takes [N, C * window, positions], not {x}")
    taps = wrap(1)
    for k in a["window"]:
        taps = taps * wrap(k)
    channels = simplify_dim(wrap(x.shape[1]) // taps)
    return [TensorType(x.dtype, (x.shape[0], channels, *a["image"]))]


def _col2im_body(ctx: OpContext, index):
    a, out = ctx.attrs, ctx.out()
    window, n = a["window"], len(a["window"])
    taps = wrap(1)
    for k in window:
        taps = taps * wrap(k)
    blocks = [(wrap(a["image"][i]) + a["low"][i] + a["high"][i]
               - a["dilations"][i] * (wrap(window[i]) - 1) - 1) // a["strides"][i] + 1
              for i in range(n)]

    def term(*k: Expr) -> Expr:
        inside, places = const(True, dt.bool_), []
        for i in range(n):
            start = index[2 + i] + a["low"][i] - k[i] * a["dilations"][i]
            place = start // a["strides"][i]
            inside = both(inside, op("ge", start, 0), equal(start % a["strides"][i], 0),
                          op("lt", place, blocks[i]))
            places.append(place)
        channel = index[1] * taps + flat_index(k, window)
        read = ctx.load(0, (index[0], channel, flat_index(places, blocks)))
        return select(inside, read, const(0, out.dtype))

    return ctx.reduce("sum", window, term)


define(OpDef(
    "col2im", "reduction", _col2im_infer, body=_col2im_body,
    attrs={"image": REQUIRED, "window": REQUIRED, "strides": REQUIRED, "dilations": REQUIRED,
           "low": REQUIRED, "high": REQUIRED},
    doc="Sums windows [N, C * window, positions] at their places in images [N, C, image...] that "
        "are padded by low and high: the transpose of taking windows out.",
))
