"""Elementary functions of f32 in add, multiply, select and bit operations.

They work on any number of lanes, so a vector loop and its scalar tail give the same bits, and they
need no math library. Coefficients are weighted minimax fits made for this file in double
precision. Errors, in units in the last place over all finite arguments: exp 1.25, log 1.5,
tanh 2, erf 2, expm1 3, log1p 2. Activations made of them are in `activations`.

Some rely on sums being rounded as written. `EXPANSIONS_IN_ANY_ORDER` is for languages whose
compilers may take (x + c) - c for x (WGSL).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from ...ir import dtype as dt
from ...ir.expr import Broadcast, Const, Expr, Op, broadcast, cast, const, op, select
from ...ir.kernel.intrinsics import scale

F = dt.f32
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860682030941723e-06
ROUNDS = 12582912.0
"""1.5 * 2**23: in a sum with it there is no room for a fraction, so the addition rounds, and the
lowest bits of the sum are those of the whole number."""
EXP = (1.0, 1.0, 0.4999999403953552, 0.1666652113199234, 0.04166826233267784,
       0.008368674665689468, 0.0013821055181324482)
"""exp(r) for |r| <= ln(2) / 2, with a relative error of 3.2e-9."""

LEAST_EXPONENT = -87.0
"""Below it `exp_up_to_one` is 0."""

Reduction = Callable[[Expr, float, int], tuple[Expr, Expr, Expr]]
"""(x, multiple, bias) to (t, n, r) with multiple * x = n * ln 2 + multiple * r and
|multiple * r| <= ln(2) / 2, for a multiple that is a power of two or its negative: n whole, as f32,
and t for `power_in`."""


def f(value: float) -> Expr:
    return const(value, F)


def fma(a, b, c) -> Expr:
    return op("fma", a, b, c)


def horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """The polynomial with these coefficients, constant term first."""
    result: Expr = broadcast(f(coefficients[-1]), x.lanes)
    for c in reversed(coefficients[:-1]):
        result = fma(result, x, f(c))
    return result


def power_of_two(n: Expr) -> Expr:
    """2**n for i32 n in [-126, 127], through the exponent bits."""
    return cast(op("shl", n + const(127, dt.i32), const(23, dt.i32)), F, "bits")


def reduced_by_sum(x: Expr, multiple: float, bias: int) -> tuple[Expr, Expr, Expr]:
    """The quickest `Reduction`: a sum that has to be rounded as written."""
    t = fma(x, f(multiple / math.log(2)), f(ROUNDS + bias))
    n = t - f(ROUNDS + bias)
    return t, n, _rest(x, multiple, n)


def reduced_by_round(x: Expr, multiple: float, bias: int) -> tuple[Expr, Expr, Expr]:
    """A `Reduction` for any order of sums."""
    n = op("round", x * f(multiple / math.log(2)))
    t = cast(cast(n, dt.i32) + const(bias, dt.i32), F, "bits")
    return t, n, _rest(x, multiple, n)


def _rest(x: Expr, multiple: float, n: Expr) -> Expr:
    return fma(n, f(-LN2_LOW / multiple), fma(n, f(-LN2_HIGH / multiple), x))


def power_in(t: Expr) -> Expr:
    """2**(n + bias - 127) for the t that goes with n, where the exponent is in [-127, 127]; 0 where
    it is -127. Of a NaN it makes any number."""
    return cast(op("shl", cast(t, dt.i32, "bits"), const(23, dt.i32)), F, "bits")


def exp_polynomial(r: Expr, coefficients: Sequence[float], multiple: float = 1.0,
                   factor: float = 1.0) -> Expr:
    """factor * exp(multiple * r) for the reduced r; both numbers are powers of two, or their
    negatives, so that the coefficients stay exact."""
    return horner(r, [factor * c * multiple**k for k, c in enumerate(coefficients)])


def _with_sign(value: Expr, x: Expr) -> Expr:
    """`value`, which is not negative where x is positive, with the sign bit of x set too."""
    sign = op("and", cast(x, dt.i32, "bits"), const(-(1 << 31), dt.i32))
    return cast(op("or", cast(value, dt.i32, "bits"), sign), F, "bits")


def _exp_tail(r: Expr) -> Expr:
    """exp(r) - 1 for the reduced r."""
    p = horner(r, (0.5, 0.166665181517601, 0.04166620597243309, 0.008368889801204205,
                   0.0013950489228591323))
    return fma(p, r * r, r)


def _clamped(x: Expr, low: float, high: float) -> Expr:
    """x between two numbers; as it is where it is known to be (or NaN)."""
    if not _bounded(x, "max", low):
        x = op("max", f(low), x)
    return x if _bounded(x, "min", high) else op("min", f(high), x)


def _bounded(x: Expr, kind: str, limit: float) -> bool:
    """Whether x is already the maximum ("max") with a number at least `limit`, or the minimum
    with one at most that."""
    if kind == "max" and limit <= 0 and isinstance(x, Op) and x.name == "abs":
        return True
    if not isinstance(x, Op) or x.name not in ("min", "max"):
        return False
    numbers, others = [], []
    for a in x.args:
        inner = a.args[0] if isinstance(a, Broadcast) else a
        (numbers if isinstance(inner, Const) else others).append(inner)
    if not numbers or not others:
        return False
    inside = numbers[0].value >= limit if kind == "max" else numbers[0].value <= limit
    return inside and (x.name == kind or _bounded(others[0], kind, limit))


def exp(x: Expr, reduced: Reduction = reduced_by_sum) -> Expr:
    if isinstance(x, Op) and x.name == "neg":
        x = _clamped(x.args[0], -89.0, 104.0)
        _, n, r = reduced(x, -1.0, 0)
        return scale(exp_polynomial(r, EXP, -1.0), n)
    x = _clamped(x, -104.0, 89.0)
    _, n, r = reduced(x, 1.0, 0)
    return scale(exp_polynomial(r, EXP), n)


def exp_up_to_one(x: Expr) -> Expr:
    """exp(x) for x <= 0 with 0 in the place of denormal numbers, as softmax wants it: in a sum of
    numbers the greatest of which is 1 they do not count, and they take many times longer."""
    if x.dtype is not F:
        return op("exp", x)
    low, zero = broadcast(f(LEAST_EXPONENT), x.lanes), broadcast(f(0.0), x.lanes)
    return select(op("lt", x, low), zero, op("exp", op("min", op("max", x, low), zero)))


def exp_without_denormals(x: Expr, multiple: float = 1.0) -> Expr:
    """exp(multiple * x) for multiple * x <= 88 and a multiple of 1 or -1, with 0 in the place of
    denormal numbers."""
    # At the limit n is -126, and 2**(n - 1) comes out as 0.
    x = op("max", f(-87.33), x) if multiple > 0 else op("min", f(87.33), x)
    t, _, r = reduced_by_sum(x, multiple, 126)
    return exp_polynomial(r, EXP, multiple, 2.0) * power_in(t)


def scale_by_factors(x: Expr, n: Expr) -> Expr:
    """x * 2**n for a whole n in [-252, 254]. Only the second product rounds, so the result is that
    of the instruction."""
    whole = cast(n, dt.i32)
    half = op("shr", whole, const(1, dt.i32))
    return x * power_of_two(half) * power_of_two(whole - half)


def expm1(x: Expr, reduced: Reduction = reduced_by_sum) -> Expr:
    x = op("min", f(89.0), op("max", f(-18.0), x))
    _, n, r = reduced(x, 1.0, 0)
    whole = cast(n, dt.i32)
    half = op("shr", whole, const(1, dt.i32))
    big, rest = power_of_two(half), power_of_two(whole - half)
    scale = big * rest
    small = fma(_exp_tail(r), scale, scale - 1.0)
    # n = 128 overflows the scale but not the result.
    large = (_exp_tail(r) + 1.0) * big * rest
    return _with_sign(select(op("gt", n, 126.0), large, small), x)


def log(x: Expr) -> Expr:
    tiny = op("lt", x, f(1.17549435e-38))
    scaled = select(tiny, x * f(8388608.0), x)
    bits = cast(scaled, dt.i32, "bits")
    # Take the mantissa to [sqrt(1/2), sqrt(2)).
    shifted = bits - const(0x3F3504F3, dt.i32)
    e = op("shr", shifted, const(23, dt.i32))
    mantissa = cast(bits - op("shl", e, const(23, dt.i32)), F, "bits")
    exponent = cast(e, F) - select(tiny, f(23.0), f(0.0))
    result = _log_near_one(mantissa - 1.0, exponent)
    result = select(op("eq", x, f(math.inf)), x, result)
    result = select(op("eq", x, 0.0), f(-math.inf), result)
    # Written so that NaN takes the last arm as well.
    return select(op("ge", x, 0.0), result, f(math.nan))


def _log_near_one(t: Expr, exponent: Expr) -> Expr:
    """log(1 + t) + exponent * ln 2 for 1 + t in [sqrt(1/2), sqrt(2))."""
    p = horner(t, (0.3333331048488617, -0.24999986588954926, 0.20002226531505585,
                   -0.16669251024723053, 0.14218658208847046, -0.1238434836268425,
                   0.11872976273298264, -0.11789807677268982, 0.06915368139743805))
    square = t * t
    low = fma(p * t, square, fma(exponent, f(LN2_LOW), square * -0.5))
    return fma(exponent, f(LN2_HIGH), t + low)


def log1p(x: Expr) -> Expr:
    u = x + 1.0
    # Goldberg 1991, theorem 4: the rounding of 1 + x is made up for.
    correction = op("div", x - (u - 1.0), u)
    exact = log(u) + select(op("lt", op("abs", x), f(1e10)), correction, f(0.0))
    return select(op("eq", u, 1.0), x, select(op("eq", u, 0.0), f(-math.inf), exact))


def _log1p_in_any_order(x: Expr) -> Expr:
    """log1p without the rounding error of 1 + x, which a compiler may take for 0."""
    near = op("and", op("gt", x, f(-0.29)), op("lt", x, f(0.41)))
    return select(near, _log_near_one(x, f(0.0)), log(x + 1.0))


def over_one_plus_exp(numerator: Expr, x: Expr, multiple: float, coefficients: Sequence[float],
                      reduced: Reduction = reduced_by_sum) -> Expr:
    """numerator / (1 + exp(multiple * x)), where `multiple` is a power of two or its negative."""
    low, high = sorted((-87.0 / multiple, 89.0 / multiple))
    t, _, r = reduced(_clamped(x, low, high), multiple, 126)
    # 2 exp(multiple * r) times 2**(n - 1), as n may be 128: what is too large becomes infinite.
    power = exp_polynomial(r, coefficients, multiple, 2.0)
    return op("div", numerator, fma(power, power_in(t), f(1.0)))


def tanh(x: Expr, reduced: Reduction = reduced_by_sum) -> Expr:
    a = op("abs", x)
    square = x * x
    p = horner(square, (-0.3333328068256378, 0.13331425189971924, -0.05373761057853699,
                        0.020630402490496635, -0.005693510174751282))
    small = fma(a * square, p, a)
    large = over_one_plus_exp(broadcast(f(-2.0), x.lanes), a, 2.0, EXP, reduced) + 1.0
    return _with_sign(select(op("lt", a, f(0.625)), small, large), x)


def erf(x: Expr, reduced: Reduction = reduced_by_sum) -> Expr:
    a = op("abs", x)
    square = x * x
    p = horner(square, (0.12837916612625122, -0.37612634897232056, 0.11283694207668304,
                        -0.02685927040874958, 0.005200634244829416, -0.0008137437398545444,
                        8.345225069206208e-05))
    small = fma(a, p, a)
    # -log(erfc(a)) as a polynomial on [0.92, 3.95]; beyond, erf rounds to 1.
    t = op("min", a, f(3.95))
    q = horner(t, (-0.00017468445003032684, 1.1295149326324463, 0.6333469152450562,
                   0.10828009247779846, -0.02511942759156227, 0.00417106319218874,
                   -0.00043446265044622123, 2.109505294356495e-05))
    large = 1.0 - exp(op("neg", q), reduced)
    return _with_sign(select(op("lt", a, f(0.925)), small, large), x)


def rsqrt(x: Expr) -> Expr:
    return op("div", f(1.0), op("sqrt", x))


EXPANSIONS: dict[str, Callable[[Expr], Expr]] = {
    "exp": exp, "expm1": expm1, "log": log, "log1p": log1p, "tanh": tanh, "erf": erf,
    "rsqrt": rsqrt,
}

EXPANSIONS_IN_ANY_ORDER: dict[str, Callable[[Expr], Expr]] = {
    **EXPANSIONS, "log1p": _log1p_in_any_order,
    **{function.__name__: partial(function, reduced=reduced_by_round)
       for function in (exp, expm1, tanh, erf)},
}
