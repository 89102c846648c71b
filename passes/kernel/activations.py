"""Activation functions of f32 that graphs write in elementary functions, each as one formula.

`composed` finds them in the expressions of a kernel. Taken as a whole they need neither what only
other arguments of the elementary functions would (denormal powers, a relative error near zero)
nor a second division. Errors, in units in the last place: sigmoid and SiLU 3.5 from -86 on, where
exp(-x) is no larger than f32, and there softplus 3 and mish 5; either form of GELU 4 where x is
positive, and elsewhere 2.5e-7 |x|.

The coefficients are weighted minimax fits made for this file in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ...ir import dtype as dt
from ...ir.expr import Broadcast, Const, Expr, Op, const, op
from .elementary import exp_up_to_one, exp_without_denormals, f, horner, over_one_plus_exp

EXP = (1.0, 0.9999997019767761, 0.4999914765357971, 0.16667655110359192, 0.04189815744757652,
       0.00828906986862421)
"""exp(r) for |r| <= ln(2) / 2, with a relative error of 9.2e-8."""

Composition = tuple[Callable[..., Expr], tuple[Expr, ...]]


def gelu(x: Expr) -> Expr:
    """x times the normal distribution function: 1/2 + x P(x**2) / Q(x**2) up to |x| = 5.5."""
    square = op("min", f(30.25), x * x)
    p = horner(square, (0.39894223462027206, 0.03385277869199226, 0.004677269211412062,
                        0.0001688270755684819, 6.352132583174891e-06, 2.274933536767807e-08))
    q = horner(square, (1.0, 0.2515222505293329, 0.02864594844162025, 0.001884452736662945,
                        7.364797844143151e-05, 1.1975041414955078e-06))
    # Farther out the quotient grows with x, so that its limit leaves exactly 0 or 1.
    half = op("max", f(-0.5), op("min", f(0.5), op("div", x * p, q)))
    return x * (half + 0.5)


def log1p_of_exp(x: Expr) -> Expr:
    """log(1 + exp(-|x|)), of which softplus is made."""
    y = exp_without_denormals(op("abs", x), -1.0)
    # log(1 + y) / y on [0, 1], with a relative error of 5.3e-9.
    return y * horner(y, (1.0, -0.4999993145465851, 0.33330464363098145, -0.24958020448684692,
                          0.1969212144613266, -0.15344977378845215, 0.10661371052265167,
                          -0.0574604868888855, 0.020088469609618187, -0.0032910797744989395))


def mish(x: Expr) -> Expr:
    """x tanh(log(1 + e)) = x w / (w + 2) for e = exp(x) and w = e (e + 2)."""
    # From 20 on the quotient is 1.
    e = exp_without_denormals(op("min", f(20.0), x))
    w = e * (e + 2.0)
    return x * op("div", w, w + 2.0)


def composed(x: Op) -> Composition | None:
    """The function that an f32 expression is made of, and its operands; None for any other."""
    for rule in _RULES.get(x.name, ()):
        found = rule(x)
        if found is not None:
            return found
    return None


def _exp_up_to_one(x: Op) -> Composition | None:
    """What `elementary.exp_up_to_one` writes."""
    below, _, power = x.args
    if not _is(below, "lt") or not _is(power, "exp"):
        return None
    v = below.args[0]
    return (exp_without_denormals, (v,)) if exp_up_to_one(v) is x else None


def _sigmoid(x: Op) -> Composition | None:
    """1 / (1 + exp(v))."""
    return _quotient(x.args[0], x)


def _silu(x: Op) -> Composition | None:
    """y / (1 + exp(v)) where v is y or a multiple of it, written as a product."""
    for y, factor in _orders(x):
        found = _quotient(y, factor)
        if found is None:
            continue
        _, (_, v) = found
        # Any other factor might go with a sigmoid that has more users.
        if v is y or (_is(v, "mul") and y in v.args):
            return found
    return None


def _softplus(x: Op) -> Composition | None:
    """log(1 + exp(-|v|))."""
    exponent = _operand(x.args[0], "exp")
    size = None if exponent is None else _operand(exponent, "neg")
    v = None if size is None else _operand(size, "abs")
    return None if v is None else (log1p_of_exp, (v,))


def _mish(x: Op) -> Composition | None:
    """y tanh(max(y, 0) + log(1 + exp(-|y|)))."""
    for y, factor in _orders(x):
        total = _operand(factor, "tanh")
        if total is None or not _is(total, "add"):
            continue
        for positive, rest in _orders(total):
            found = _softplus(rest) if isinstance(rest, Op) and rest.name == "log1p" else None
            if found and found[1] == (y,) and _is(positive, "max") and any(
                    v is y and _is_number(zero, 0.0) for v, zero in _orders(positive)):
                return mish, (y,)
    return None


def _quotient(numerator: Expr, x: Expr) -> Composition | None:
    """numerator / (1 + exp(v)) where x is 1 / (1 + exp(v))."""
    if not _is(x, "div") or not _is_number(x.args[0], 1.0):
        return None
    power = _plus_one(x.args[1])
    if power is None or not _is(power, "exp"):
        return None
    v, multiple = power.args[0], 1.0
    if _is(v, "neg"):
        v, multiple = v.args[0], -1.0
    return lambda n, v: over_one_plus_exp(n, v, multiple, EXP), (numerator, v)


def _gelu(x: Op) -> Composition | None:
    """y / 2 * (1 + erf(y / sqrt(2))) or y / 2 * (1 + tanh(v))."""
    for half, factor in _orders(x):
        y = _times(half, 0.5)
        inner = _plus_one(factor)
        if y is None or inner is None:
            continue
        if _is(inner, "tanh"):
            return lambda y, v: over_one_plus_exp(y, v, -2.0, EXP), (y, inner.args[0])
        if _is(inner, "erf") and _times(inner.args[0], math.sqrt(0.5)) is y:
            return gelu, (y,)
    return None


def _plus_one(x: Expr) -> Expr | None:
    """y where x is y + 1."""
    return next((y for y, one in _orders(x) if _is_number(one, 1.0)), None) \
        if _is(x, "add") else None


def _times(x: Expr, number: float) -> Expr | None:
    """y where x is y times the number."""
    return next((y for y, factor in _orders(x) if _is_number(factor, number)), None) \
        if _is(x, "mul") else None


def _operand(x: Expr, name: str) -> Expr | None:
    """The operand of an operation of this name."""
    return x.args[0] if _is(x, name) else None


def _orders(x: Expr) -> Iterator[tuple[Expr, Expr]]:
    a, b = x.args
    yield a, b
    yield b, a


def _is(x: Expr, name: str) -> bool:
    return isinstance(x, Op) and x.name == name


def _is_number(x: Expr, number: float) -> bool:
    value = x.args[0] if isinstance(x, Broadcast) else x
    return isinstance(value, Const) and value is const(number, dt.f32)


_RULES: dict[str, tuple[Callable[[Op], Composition | None], ...]] = {
    "div": (_sigmoid,), "mul": (_silu, _gelu, _mish), "log1p": (_softplus,),
    "select": (_exp_up_to_one,),
}
