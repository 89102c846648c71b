"""Bounds of float expressions, which tell where a conversion needs no clamp."""

from __future__ import annotations

import math

from ..ir.expr import Broadcast, Cast, Const, Expr, Op


def interval(e: Expr) -> tuple[float, float] | None:
    """Bounds of a float expression's non-NaN values, from clamps and constants; None if unknown."""
    if isinstance(e, Const):
        return (float(e.value), float(e.value)) if not math.isnan(e.value) else None
    if isinstance(e, Broadcast):
        return interval(e.args[0])
    if isinstance(e, Cast) and e.mode == "value":
        source = e.args[0].dtype
        if source.is_integer and source.bits <= 16:
            return float(source.min), float(source.max)
        return interval(e.args[0]) if source.is_float else None
    if not isinstance(e, Op):
        return None
    if e.name in ("min", "max"):
        return _clamped(e)
    known = [interval(a) for a in e.args]
    if any(k is None for k in known):
        return None
    bounds = [k for k in known if k is not None]
    if e.name in ("round", "floor", "ceil", "trunc"):
        low, high = bounds[0]
        return (low if math.isinf(low) else math.floor(low),
                high if math.isinf(high) else math.ceil(high))
    if e.name == "add":
        return _numbers(bounds[0][0] + bounds[1][0], bounds[0][1] + bounds[1][1])
    if e.name == "sub":
        return _numbers(bounds[0][0] - bounds[1][1], bounds[0][1] - bounds[1][0])
    if e.name in ("mul", "fma"):
        products = [x * y for x in bounds[0] for y in bounds[1]]
        if any(map(math.isnan, products)):
            return None
        low, high = bounds[2] if e.name == "fma" else (0.0, 0.0)
        return _numbers(min(products) + low, max(products) + high)
    return None


def _numbers(low: float, high: float) -> tuple[float, float] | None:
    """The bounds, unless infinities have cancelled."""
    return None if math.isnan(low) or math.isnan(high) else (low, high)


def _clamped(e: Op) -> tuple[float, float] | None:
    a, b = (interval(x) or (-math.inf, math.inf) for x in e.args)
    pick = min if e.name == "min" else max
    result = pick(a[0], b[0]), pick(a[1], b[1])
    return None if math.isinf(result[0]) and math.isinf(result[1]) else result
