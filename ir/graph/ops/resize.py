"""Resampling on a grid: nearest elements as index maps, linear and cubic kernels as weighted taps.

Source coordinates are exact rational index arithmetic wherever the scale is a ratio of small
integers or of sizes, and computed in f32 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

import numpy as np

from ... import dtype as dt
from ...algebra import at_least
from ...expr import Const, Expr, cast, const, op, select, wrap
from ..core import Dim, TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import normal_axis

TRANSFORMS = ("asymmetric", "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric",
              "align_corners", "tf_crop_and_resize")
_LARGEST_TERM = 4096


def ratio_of(scale: float) -> Fraction | None:
    """The small fraction whose f32 value is `scale`, if there is one."""
    guess = Fraction(float(scale)).limit_denominator(_LARGEST_TERM)
    rounded = np.float32(guess.numerator) / np.float32(guess.denominator)
    if guess.numerator <= 0 or guess.numerator > 1 << 20 or rounded != np.float32(scale):
        return None
    return guess


@dataclass(frozen=True)
class _Axis:
    """What is known of one resized axis; `position` is its place in `axes`."""

    ctx: OpContext
    position: int

    @property
    def extent(self) -> Dim:
        return self.ctx.type(0).shape[self.ctx.attrs["axes"][self.position]]

    @property
    def size(self) -> Dim:
        return self.ctx.attrs["sizes"][self.position]

    def rational(self) -> tuple[Dim, Dim] | None:
        """The scale as numerator and denominator; None when it is an operand or irregular."""
        scales = self.ctx.attrs["scales"]
        if self.ctx.has(1):
            return None
        if scales is None:
            n, d = self.size, self.extent
            if isinstance(n, int) and isinstance(d, int) and n and d:
                shared = gcd(n, d)
                return n // shared, d // shared
            return n, d
        scale = scales[self.position]
        known = ratio_of(scale)
        if known is None or (self.ctx.node.op == "resize_nearest" and known != Fraction(scale)):
            # Rounding 3 / 0.6 depends on the digits that f32 cuts off, so it is done in f32.
            return None
        return known.numerator, known.denominator

    def scale(self) -> Expr:
        """The scale in f32."""
        if self.ctx.has(1):
            return self.ctx.load(1, (self.position,))
        scales = self.ctx.attrs["scales"]
        if scales is not None:
            return const(scales[self.position], dt.f32)
        return _real(self.size) / _real(self.extent)


def _real(x) -> Expr:
    return cast(wrap(x), dt.f32)


def _exact(axis: _Axis, i: Expr) -> tuple[Expr, Expr] | None:
    """The source coordinate of output position `i` as numerator and positive denominator."""
    mode = axis.ctx.attrs["transform"]
    scale = axis.rational()
    if scale is None or mode == "tf_crop_and_resize":
        return None
    p, q = map(wrap, scale)
    n, out = wrap(axis.extent), wrap(axis.size)
    if mode == "asymmetric":
        return i * q, op("max", p, 1)
    if mode == "align_corners":
        # i * (n - 1) / (scale * n - 1), where scale * n need not be the integer output size.
        return i * (n - 1) * q, op("max", p * n - q, 1)
    if mode == "half_pixel_symmetric":
        return (i * 2 + 1) * q - p + n * p - out * q, op("max", p * 2, 1)
    centred = (i * 2 + 1) * q - p
    if mode == "pytorch_half_pixel":
        centred = select(op("gt", out, 1), centred, const(0))
    return centred, op("max", p * 2, 1)


def _approximate(axis: _Axis, i: Expr) -> Expr:
    """The source coordinate in f32."""
    mode = axis.ctx.attrs["transform"]
    x, scale, n = _real(i), axis.scale(), _real(axis.extent)
    if mode == "asymmetric":
        return x / scale
    if mode in ("align_corners", "tf_crop_and_resize"):
        width = scale * n
        single = op("eq", width, 1)
        step = x * (n - 1) / select(single, const(1, dt.f32), width - 1)
        if mode == "align_corners":
            return select(single, const(0, dt.f32), step)
        start, end = _region(axis)
        return start * (n - 1) + select(single, (end - start) * (n - 1) * 0.5,
                                        step * (end - start))
    if mode == "half_pixel_symmetric":
        offset = n * 0.5 * (1 - _real(axis.size) / (scale * n))
        return offset + (x + 0.5) / scale - 0.5
    centred = (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return select(op("gt", wrap(axis.size), 1), centred, const(0, dt.f32))
    return centred


def _region(axis: _Axis) -> tuple[Expr, Expr]:
    count = len(axis.ctx.attrs["axes"])
    return axis.ctx.load(2, (axis.position,)), axis.ctx.load(2, (count + axis.position,))


def _beyond(axis: _Axis, x: Expr) -> Expr:
    """Whether a coordinate of tf_crop_and_resize is outside the input."""
    return op("or", op("lt", x, 0), op("gt", x, _real(axis.extent) - 1))


def _safe(axis: _Axis, x: Expr) -> Expr:
    """`x` kept where its floor fits an integer and clamping decides the rest."""
    return op("max", op("min", x, _real(axis.extent) + 4), -4)


def _clamp(axis: _Axis, i: Expr) -> Expr:
    return op("max", op("min", i, wrap(axis.extent) - 1), 0)


# Nearest ------------------------------------------------------------------------------------------


def _round(kind: str, num: Expr, den: Expr) -> Expr:
    if kind == "floor":
        return num // den
    if kind == "ceil":
        return -((-num) // den)
    if kind == "round_prefer_floor":
        return -((den - num * 2) // (den * 2))
    return (num * 2 + den) // (den * 2)


def _round_real(kind: str, x: Expr) -> Expr:
    rounded = {"floor": lambda: op("floor", x), "ceil": lambda: op("ceil", x),
               "round_prefer_floor": lambda: op("ceil", x - 0.5),
               "round_prefer_ceil": lambda: op("floor", x + 0.5)}[kind]()
    return cast(rounded, dt.i64)


def _plain(axis: _Axis, rounded: Callable[[Expr], Expr]) -> tuple[int, int, int] | None:
    """(q, p, c) when `rounded(i)` is (i * q) // p + c for every i.

    Both sides grow by q when i grows by p, so one period decides.
    """
    scale = axis.rational()
    if scale is None or axis.ctx.attrs["transform"] not in ("asymmetric", "half_pixel"):
        return None
    p, q = scale
    if not isinstance(p, int) or not isinstance(q, int) or p > 256:
        return None
    offsets = set()
    for k in range(p):
        at = rounded(const(k))
        if not isinstance(at, Const):
            return None
        offsets.add(at.value - k * q // p)
    return (q, p, offsets.pop()) if len(offsets) == 1 else None


def _ends_inside(axis: _Axis, plain: tuple[int, int, int] | None, last: Expr) -> bool:
    """Whether the source of the last position, `last`, is inside the input."""
    if at_least(wrap(axis.extent) - 1 - last, 0):
        return True
    if plain is None:
        return False
    # i < floor(n * p / q) gives i * q // p < n.
    q, p, offset = plain
    return offset <= 0 and wrap(axis.size) is wrap(axis.extent) * p // q


def _nearest_position(axis: _Axis, i: Expr) -> Expr:
    kind = axis.ctx.attrs["rounding"]
    if _exact(axis, i) is None:
        return _clamp(axis, _round_real(kind, _safe(axis, _approximate(axis, i))))

    def rounded(at: Expr) -> Expr:
        exact = _exact(axis, at)
        assert exact is not None
        return _round(kind, *exact)

    plain, source = _plain(axis, rounded), rounded
    if plain is not None:
        q, p, offset = plain

        def source(at: Expr) -> Expr:
            return at * q // p + offset

    position = source(i)
    # The map never falls, so its ends decide whether a clamp is needed.
    if not _ends_inside(axis, plain, source(wrap(axis.size) - 1)):
        position = op("min", position, wrap(axis.extent) - 1)
    return position if at_least(source(const(0)), 0) else op("max", position, 0)


def _outside(ctx: OpContext, index) -> Expr | None:
    """Whether output `index` takes the extrapolation value; None when none does."""
    if ctx.attrs["transform"] != "tf_crop_and_resize":
        return None
    result: Expr | None = None
    for k, a in enumerate(ctx.attrs["axes"]):
        axis = _Axis(ctx, k)
        beyond = _beyond(axis, _approximate(axis, index[a]))
        result = beyond if result is None else op("or", result, beyond)
    return result


def _finish(ctx: OpContext, index, value: Expr) -> Expr:
    outside = _outside(ctx, index)
    if outside is None:
        return value
    return select(outside, const(ctx.attrs["extrapolation"], value.dtype), value)


def _nearest_body(ctx: OpContext, index):
    source = list(index)
    for k, a in enumerate(ctx.attrs["axes"]):
        source[a] = _nearest_position(_Axis(ctx, k), index[a])
    return _finish(ctx, index, ctx.load(0, source))


# Weighted taps ------------------------------------------------------------------------------------


def _split(axis: _Axis, i: Expr) -> tuple[Expr, Expr]:
    """The source coordinate as an integer and a fraction in [0, 1)."""
    exact = _exact(axis, i)
    if exact is None:
        x = _safe(axis, _approximate(axis, i))
        floor = op("floor", x)
        return cast(floor, dt.i64), x - floor
    num, den = exact
    return num // den, _real(num % den) / _real(den)


def _linear(ctx: OpContext, index, load: Callable[[list[Expr]], Expr]) -> Expr:
    """Interpolation axis after axis, the last one innermost."""
    axes = ctx.attrs["axes"]
    parts = [_split(_Axis(ctx, k), index[a]) for k, a in enumerate(axes)]
    values = []
    for corner in np.ndindex(*(2,) * len(axes)):
        source = list(index)
        for k, a in enumerate(axes):
            source[a] = _clamp(_Axis(ctx, k), parts[k][0] + corner[k])
        values.append(load(source))
    for _, fraction in reversed(parts):
        weight = cast(fraction, values[0].dtype)
        values = [low * (1 - weight) + high * weight
                  for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _cubic_weight(distance: Expr, a: float) -> Expr:
    # Keys 1981: the cubic convolution kernel with parameter a.
    d = op("abs", distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d * a - 5 * a) * d + 8 * a) * d - 4 * a
    return select(op("le", d, 1), near, select(op("lt", d, 2), far, const(0, dt.f32)))


def _taps(ctx: OpContext, index, load: Callable[[list[Expr]], Expr]) -> Expr:
    """Sum of weight * element over the kernel's support, for cubic and antialiased resizing."""
    axes, cubic = ctx.attrs["axes"], ctx.attrs["kernel"] == "cubic"
    parts = [_split(_Axis(ctx, k), index[a]) for k, a in enumerate(axes)]
    counts = ctx.attrs["taps"] or (4 if cubic else 2,) * len(axes)

    def weight(k: int, t: Expr) -> Expr:
        axis = _Axis(ctx, k)
        distance = _real(t - (wrap(counts[k]) // 2 - 1)) - parts[k][1]
        if ctx.attrs["taps"]:
            distance = distance * op("min", axis.scale(), 1)
        value = (_cubic_weight(distance, ctx.attrs["cubic_a"]) if cubic
                 else op("max", 1 - op("abs", distance), 0))
        if ctx.attrs["exclude_outside"]:
            at = place(k, t)
            inside = op("and", op("ge", at, 0), op("lt", at, wrap(axis.extent)))
            value = select(inside, value, const(0, dt.f32))
        return value

    def place(k: int, t: Expr) -> Expr:
        return parts[k][0] + t - (wrap(counts[k]) // 2 - 1)

    def term(*t: Expr) -> Expr:
        source, product = list(index), const(1, dt.f32)
        for k, a in enumerate(axes):
            source[a] = _clamp(_Axis(ctx, k), place(k, t[k]))
            product = weight(k, t[k]) if k == 0 else product * weight(k, t[k])
        value = load(source)
        return cast(product, value.dtype) * value

    total = ctx.reduce("sum", counts, term)
    if ctx.attrs["taps"] or ctx.attrs["exclude_outside"]:
        for k in range(len(axes)):
            whole = ctx.reduce("sum", [counts[k]], lambda t, k=k: weight(k, t))
            whole = select(op("eq", whole, 0), const(1, dt.f32), whole)
            total = total / cast(whole, total.dtype)
    return total


def _resize_body(ctx: OpContext, index):
    out = ctx.out().dtype

    def load(source: list[Expr]) -> Expr:
        return cast(ctx.load(0, source), dt.f64 if out is dt.f64 else dt.f32)

    plain = ctx.attrs["kernel"] == "linear" and not (
        ctx.attrs["taps"] or ctx.attrs["exclude_outside"])
    value = _finish(ctx, index, (_linear if plain else _taps)(ctx, index, load))
    if out.is_float:
        return cast(value, out)
    return cast(op("max", op("min", op("round", value), float(out.max)), float(out.min)), out)


# Definitions --------------------------------------------------------------------------------------


def _infer(ctx: OpContext):
    x, a = ctx.type(0), ctx.attrs
    a["axes"] = tuple(normal_axis(ctx, axis, x.rank) for axis in a["axes"])
    n = len(a["axes"])
    if len(a["sizes"]) != n or any(a.get(k) and len(a[k]) != n for k in ("scales", "taps")):
        raise ctx.error(f"resize of {n} axes needs as many sizes and scales")
    if a["transform"] not in TRANSFORMS:
        raise ctx.error(f"unknown coordinate transformation {a['transform']!r}")
    if a["transform"] == "tf_crop_and_resize" and not ctx.has(2):
        raise ctx.error("tf_crop_and_resize needs a region of interest")
    shape = list(x.shape)
    for axis, size in zip(a["axes"], a["sizes"], strict=True):
        shape[axis] = size
    return [TensorType(x.dtype, tuple(shape))]


_ATTRS = {"axes": REQUIRED, "sizes": REQUIRED, "scales": None, "transform": "half_pixel",
          "extrapolation": 0.0}
_OPERANDS = ("Operand 1 (optional) holds the scales as f32, one per axis; otherwise they are "
             "`scales` (floats) or the ratio of the sizes. Operand 2 holds the starts, then the "
             "ends of the region of tf_crop_and_resize.")

define(OpDef(
    "resize_nearest", "injective", _infer, body=_nearest_body,
    attrs={**_ATTRS, "rounding": "round_prefer_floor"},
    doc="The element nearest to each source coordinate; rounding floor, ceil, round_prefer_floor "
        f"or round_prefer_ceil. {_OPERANDS}",
))
define(OpDef(
    "resize", "reduction", _infer, body=_resize_body,
    attrs={**_ATTRS, "kernel": "linear", "cubic_a": -0.75, "exclude_outside": False,
           "taps": None},
    doc="Interpolation with kernel linear or cubic, edges repeated. `taps`, when given, is the "
        "even number of elements per axis that the kernel, widened by 1 / scale, can reach "
        f"(antialiasing). {_OPERANDS}",
))
