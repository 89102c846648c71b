"""Resampling: Resize, Upsample, CenterCropPad, AffineGrid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ....ir import dtype as dt
from ....ir.expr import op, simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from ....ir.graph.ops.resize import TRANSFORMS, ratio_of
from ....ir.graph.ops.shapes import same
from ..building import along, axis_of, cast, reshape, scalar, slice_axis
from ..registry import Site, importer


@dataclass
class _Plan:
    """The resized axes. Scales are numbers (`scales`), data (`factors`), or the ratio of sizes."""

    axes: tuple[int, ...]
    sizes: tuple[Dim, ...]
    scales: tuple[float, ...] | None = None
    factors: Value | None = None

    def keep(self, c: Site, chosen: Sequence[int]) -> _Plan:
        """The plan of the entries `chosen` alone."""
        if len(chosen) == len(self.axes):
            return self
        factors = self.factors
        if factors is not None:
            factors = c.add("gather", [factors, c.constant(np.array(chosen, np.int64))], axis=0)
        return _Plan(tuple(self.axes[k] for k in chosen), tuple(self.sizes[k] for k in chosen),
                     None if self.scales is None else tuple(self.scales[k] for k in chosen),
                     factors)


def _fraction(scale: float) -> Fraction:
    return ratio_of(scale) or Fraction(float(np.float32(scale)))


def _from_scales(c: Site, x: Value, axes: tuple[int, ...], i: int) -> _Plan:
    known = c.known(i)
    if known is not None:
        return _from_numbers(c, x, axes, [float(s) for s in known.reshape(-1)])
    factors = cast(c, c.input(i), dt.f32)
    if not same(factors.type.numel, len(axes)):
        raise c.error(f"scales {factors.type} do not fit {len(axes)} axes")
    extents = c.add("sizes", dims=tuple(x.shape[a] for a in axes))
    wanted = c.add("floor", [c.add("mul", [cast(c, extents, dt.f32), factors])])
    return _Plan(axes, c.dims(cast(c, wanted, dt.i64)), factors=factors)


def _from_numbers(c: Site, x: Value, axes: tuple[int, ...], scales: list[float]) -> _Plan:
    if len(scales) != len(axes) or not all(0 < s < float("inf") for s in scales):
        raise c.error(f"scales {scales} do not fit {len(axes)} axes of {x.type}")
    sizes = []
    for a, s in zip(axes, scales, strict=True):
        d, f = x.shape[a], _fraction(s)
        if isinstance(d, int):
            sizes.append(int(np.floor(np.float32(d) * np.float32(s))))
        else:
            sizes.append(simplify_dim(wrap(d) * f.numerator // f.denominator))
    return _Plan(axes, tuple(sizes), tuple(float(np.float32(s)) for s in scales))


def _from_sizes(c: Site, x: Value, axes: tuple[int, ...], i: int) -> _Plan:
    sizes = c.dims(c.input(i))
    if len(sizes) != len(axes):
        raise c.error(f"{len(sizes)} sizes do not fit {len(axes)} axes of {x.type}")
    policy = c.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return _Plan(axes, tuple(sizes))
    if policy not in ("not_larger", "not_smaller"):
        raise c.error(f"unknown keep_aspect_ratio_policy {policy!r}")
    extents = [x.shape[a] for a in axes]
    if all(isinstance(d, int) and d > 0 for d in (*sizes, *extents)):
        ratios = [Fraction(s, d) for s, d in zip(sizes, extents, strict=True)]  # type: ignore
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        rounded = [int(ratio * d + Fraction(1, 2)) for d in extents]  # type: ignore[operator]
        return _Plan(axes, tuple(rounded), (float(np.float32(float(ratio))),) * len(axes))
    old, new = (cast(c, c.add("sizes", dims=tuple(d)), dt.f32) for d in (extents, sizes))
    kind = "reduce_min" if policy == "not_larger" else "reduce_max"
    ratio_value = c.add(kind, [c.add("div", [new, old])], axes=(0,), keepdims=True)
    factors = c.add("expand", [ratio_value], shape=(len(axes),))
    rounded_value = c.add("floor", [c.add("add", [c.add("mul", [old, factors]),
                                                  scalar(c, 0.5, dt.f32)])])
    return _Plan(axes, c.dims(cast(c, rounded_value, dt.i64)), factors=factors)


def _given(c: Site, i: int) -> bool:
    return c.has(i) and not same(c.input(i).type.numel, 0)


def _changed(x: Value, plan: _Plan) -> list[int]:
    """Entries whose axis is not resized to itself."""
    if plan.factors is not None:
        return list(range(len(plan.axes)))
    return [k for k, a in enumerate(plan.axes)
            if not same(plan.sizes[k], x.shape[a]) or (plan.scales is not None
                                                       and plan.scales[k] != 1)]


def _taps(c: Site, x: Value, plan: _Plan, support: int) -> tuple[Dim, ...] | None:
    """Elements per axis that an antialiasing kernel of this support reaches."""
    if plan.factors is not None:
        shrink = c.add("min", [plan.factors, scalar(c, 1, dt.f32)])
        reach = c.add("ceil", [c.add("div", [scalar(c, support, dt.f32), shrink])])
        return tuple(simplify_dim(wrap(d) * 2) for d in c.dims(cast(c, reach, dt.i64)))
    counts: list[Dim] = []
    for k, a in enumerate(plan.axes):
        if plan.scales is not None:
            f = min(_fraction(plan.scales[k]), Fraction(1))
            reach = -(-support * f.denominator // f.numerator)
        else:
            size = op("max", wrap(plan.sizes[k]), 1)
            reach = op("max", -((wrap(x.shape[a]) * -support) // size), support)
        counts.append(simplify_dim(wrap(reach) * 2))
    return None if all(same(n, 2 * support) for n in counts) else tuple(counts)


def _region(c: Site, rank: int, axes: tuple[int, ...], kept: Sequence[int]) -> Value:
    """The region of interest, f32: starts of the kept axes, then their ends."""
    if not _given(c, 1):
        raise c.error("tf_crop_and_resize needs a region of interest")
    roi = cast(c, c.input(1), dt.f32)
    n = len(axes)
    if not same(roi.type.numel, 2 * n):
        raise c.error(f"the region of interest {roi.type} does not fit {n} axes")
    if len(kept) == n:
        return roi
    picks = np.array([*kept, *(n + k for k in kept)], np.int64)
    return c.add("gather", [roi, c.constant(picks)], axis=0)


def _cropped(c: Site, n: int) -> list[int]:
    """Entries that a known region of interest crops; all when it is not known."""
    roi = c.known(1)
    if roi is None or roi.size != 2 * n:
        return list(range(n))
    return [k for k in range(n) if roi[k] != 0 or roi[n + k] != 1]


@importer("Resize", since=11)
def resize(c: Site):
    x = c.input(0)
    axes = c.attr("axes")
    axes = tuple(range(x.rank)) if axes is None else tuple(axis_of(c, a, x.rank) for a in axes)
    if _given(c, 2):
        plan = _from_scales(c, x, axes, 2)
    elif _given(c, 3):
        plan = _from_sizes(c, x, axes, 3)
    else:
        raise c.error("Resize needs scales or sizes")
    transform = c.attr("coordinate_transformation_mode", "half_pixel")
    if transform not in TRANSFORMS:
        raise c.error(f"unknown coordinate_transformation_mode {transform!r}")
    kept = _changed(x, plan)
    if transform == "tf_crop_and_resize":
        kept = sorted({*kept, *_cropped(c, len(axes))})
    if not kept:
        return x
    plan = plan.keep(c, kept)
    operands: list[Value | None] = [x, plan.factors]
    if transform == "tf_crop_and_resize":
        operands.append(_region(c, x.rank, axes, kept))
    attrs = {"axes": plan.axes, "sizes": plan.sizes, "scales": plan.scales,
             "transform": transform, "extrapolation": c.attr("extrapolation_value", 0.0)}
    mode = c.attr("mode", "nearest")
    if mode == "nearest":
        return _add(c, "resize_nearest", operands, attrs,
                    rounding=c.attr("nearest_mode", "round_prefer_floor"))
    if mode not in ("linear", "cubic"):
        raise c.error(f"unknown mode {mode!r}")
    taps = _taps(c, x, plan, 2 if mode == "cubic" else 1) if c.attr("antialias", 0) else None
    return _add(c, "resize", operands, attrs, kernel=mode, taps=taps,
                cubic_a=c.attr("cubic_coeff_a", -0.75),
                exclude_outside=bool(c.attr("exclude_outside", 0)))


def _add(c: Site, name: str, operands: list[Value | None], attrs: dict, **more) -> Value:
    while operands[-1] is None:
        operands.pop()
    return c.add(name, operands, attrs, **more)


def _upsample(c: Site, x: Value, plan: _Plan) -> Value:
    """The resampling of Upsample and of Resize 10: coordinates i / scale, rounded down where the
    axis grows and up where it shrinks (as ONNX Runtime does), or linear."""
    mode = c.attr("mode", "nearest")
    kept = _changed(x, plan)
    if mode in ("linear", "bilinear"):
        plan = plan.keep(c, kept)
        return x if not kept else _add(c, "resize", [x, plan.factors], {
            "axes": plan.axes, "sizes": plan.sizes, "scales": plan.scales,
            "transform": "asymmetric"})
    if mode != "nearest":
        raise c.error(f"unknown mode {mode!r}")
    shrinking = [k for k in kept if plan.scales is not None and plan.scales[k] < 1]
    for rounding, chosen in (("floor", [k for k in kept if k not in shrinking]),
                             ("ceil", shrinking)):
        if chosen:
            part = plan.keep(c, chosen)
            x = _add(c, "resize_nearest", [x, part.factors], {
                "axes": part.axes, "sizes": part.sizes, "scales": part.scales,
                "transform": "asymmetric"}, rounding=rounding)
    return x


@importer("Resize", since=10)
@importer("Upsample", since=9)
def resize_by_scales(c: Site):
    x = c.input(0)
    return _upsample(c, x, _from_scales(c, x, tuple(range(x.rank)), 1))


@importer("Upsample", since=7)
def upsample_by_attribute(c: Site):
    x = c.input(0)
    return _upsample(c, x, _from_numbers(c, x, tuple(range(x.rank)), list(c.attr("scales"))))


@importer("Upsample")
def upsample_image(c: Site):
    x = c.input(0)
    if x.rank != 4:
        raise c.error(f"Upsample needs [N, C, H, W], got {x.type}")
    scales = [1.0, 1.0, c.attr("height_scale"), c.attr("width_scale")]
    return _upsample(c, x, _from_numbers(c, x, (0, 1, 2, 3), scales))


@importer("CenterCropPad")
def center_crop_pad(c: Site):
    x = c.input(0)
    axes = c.attr("axes")
    axes = tuple(range(x.rank)) if axes is None else tuple(axis_of(c, a, x.rank) for a in axes)
    wanted = c.dims(c.input(1))
    if len(wanted) != len(axes):
        raise c.error(f"{len(wanted)} sizes do not fit {len(axes)} axes")
    starts: list[Dim] = [0] * x.rank
    sizes: list[Dim] = list(x.shape)
    low: list[Dim] = [0] * x.rank
    high: list[Dim] = [0] * x.rank
    for a, size in zip(axes, wanted, strict=True):
        extent = wrap(x.shape[a])
        starts[a] = simplify_dim(op("max", extent - size, 0) // 2)
        sizes[a] = simplify_dim(op("min", extent, wrap(size)))
        missing = op("max", wrap(size) - extent, 0)
        low[a] = simplify_dim(missing // 2)
        high[a] = simplify_dim(missing - missing // 2)
    if any(not same(a, b) for a, b in zip(sizes, x.shape, strict=True)):
        x = c.add("slice", [x], starts=tuple(starts), sizes=tuple(sizes), steps=(1,) * x.rank)
    if any(not same(n, 0) for n in (*low, *high)):
        x = c.add("pad", [x], low=tuple(low), high=tuple(high))
    return x


def _coordinates(c: Site, size: Dim, corners: bool, dtype: dt.DType) -> Value:
    """Positions of `size` samples over [-1, 1]: from end to end, or centres of equal cells."""
    at = cast(c, c.add("iota", size=size), dtype)
    count = cast(c, reshape(c, c.add("sizes", dims=(size,)), ()), dtype)
    one = scalar(c, 1, dtype)
    if corners:  # i * 2 / (n - 1) - 1, and 0 for a single sample
        gaps = c.add("sub", [count, one])
        step = c.add("div", [scalar(c, 2, dtype), c.add("max", [gaps, one])])
        return c.add("sub", [c.add("mul", [at, step]), c.add("min", [gaps, one])])
    doubled = c.add("add", [c.add("add", [at, at]), one])
    return c.add("sub", [c.add("div", [doubled, count]), one])


@importer("AffineGrid")
def affine_grid(c: Site):
    theta = c.input(0)
    _, _, *spatial = c.dims(c.input(1))
    n = len(spatial)
    if n not in (2, 3) or theta.rank != 3:
        raise c.error(f"AffineGrid of {theta.type} and {n} spatial axes is not possible")
    corners = bool(c.attr("align_corners", 0))

    def column(k: int) -> Value:
        """Factors of homogeneous coordinate k, for broadcasting over the grid."""
        part = slice_axis(c, theta, 2, k, 1)
        return reshape(c, part, (theta.shape[0], *(1,) * n, theta.shape[1]))

    y = column(n)
    for axis, size in enumerate(spatial):
        at = _coordinates(c, size, corners, theta.dtype)
        # Coordinates are named x, y, z from the last axis on.
        y = c.add("add", [y, c.add("mul", [column(n - 1 - axis), along(c, at, n + 2, 1 + axis)])])
    return y
