"""Index algebra: i64 expressions as polynomials over atoms, with exact division and bounds.

A polynomial is a dict from a monomial (a tuple of atoms ordered by `_order`) to a non-zero
integer. Atoms are variables and whatever is not a sum or product. All rules hold for floor
division and mathematical integers; sizes and indices stay far below 2**63.
"""

from __future__ import annotations

from . import dtype as dt
from .expr import Const, Expr, Op, Var, const, intern_expr, text

Monomial = tuple[Expr, ...]
Poly = dict[Monomial, int]


def _order(atom: Expr) -> tuple:
    return (0, atom.name) if isinstance(atom, Var) else (1, text(atom))


def poly(e) -> Poly:
    """The polynomial of an i64 expression."""
    if not isinstance(e, Expr):
        return {(): int(e)} if e else {}
    if isinstance(e, Const):
        return {(): e.value} if e.value else {}
    if e._poly is None:
        if isinstance(e, Op) and e.name in ("add", "sub", "mul"):
            raise AssertionError("sums and products are built by from_poly")
        e._poly = {(e,): 1}
    return e._poly


def _scaled_sum(a: Poly, b: Poly, scale: int) -> Poly:
    result = dict(a)
    for monomial, coefficient in b.items():
        total = result.get(monomial, 0) + scale * coefficient
        if total:
            result[monomial] = total
        else:
            result.pop(monomial, None)
    return result


def _product(a: Poly, b: Poly) -> Poly:
    result: Poly = {}
    for m1, c1 in a.items():
        for m2, c2 in b.items():
            monomial = tuple(sorted(m1 + m2, key=_order)) if m1 and m2 else m1 + m2
            total = result.get(monomial, 0) + c1 * c2
            if total:
                result[monomial] = total
            else:
                result.pop(monomial, None)
    return result


def combine(name: str, a: Expr, b: Expr) -> Expr:
    """a + b, a - b or a * b in normal form."""
    if name == "mul":
        return from_poly(_product(poly(a), poly(b)))
    return from_poly(_scaled_sum(poly(a), poly(b), 1 if name == "add" else -1))


def from_poly(p: Poly) -> Expr:
    """The canonical expression of a polynomial: monomials by descending degree, then name."""
    if not p:
        return const(0)
    if len(p) == 1:
        ((monomial, coefficient),) = p.items()
        if not monomial:
            return const(coefficient)
        if coefficient == 1 and len(monomial) == 1:
            return monomial[0]
    terms = sorted(p, key=lambda m: (-len(m), [_order(a) for a in m]))
    # A positive term first, so that a subtraction needs no leading negation.
    terms.sort(key=lambda m: not m)
    positive = next((m for m in terms if p[m] > 0), None)
    if positive is not None:
        terms.remove(positive)
        terms.insert(0, positive)
    result: Expr | None = None
    for monomial in terms:
        coefficient = p[monomial]
        negative = result is not None and coefficient < 0
        term = _term(monomial, -coefficient if negative else coefficient)
        result = term if result is None else _raw("sub" if negative else "add", result, term)
    assert result is not None
    result._poly = p
    return result


def _term(monomial: Monomial, coefficient: int) -> Expr:
    if not monomial:
        return const(coefficient)
    result = monomial[0]
    for atom in monomial[1:]:
        result = _raw("mul", result, atom)
    if coefficient != 1:
        result = _raw("mul", result, const(coefficient))
    return result


def _raw(name: str, a: Expr, b: Expr) -> Expr:
    e = intern_expr(Op, (name,), (a, b), dt.i64, 1)
    if e._poly is None:
        pa, pb = poly(a), poly(b)
        e._poly = _product(pa, pb) if name == "mul" else _scaled_sum(
            pa, pb, 1 if name == "add" else -1)
    return e


def divide(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """(a // b, a % b), floor semantics, with the multiples of b taken out of a."""
    divisor = poly(b)
    if len(divisor) != 1 or a is b:
        if a is b:
            return const(1), const(0)
        return _raw_divide(a, b)
    ((factors, scale),) = divisor.items()
    if not factors and scale == 1:
        return a, const(0)
    quotient: Poly = {}
    rest: Poly = {}
    for monomial, coefficient in poly(a).items():
        reduced = _without(monomial, factors)
        if reduced is not None and coefficient % scale == 0:
            quotient[reduced] = coefficient // scale
        elif reduced is not None and scale > 1 and abs(coefficient) > scale:
            quotient[reduced] = coefficient // scale
            rest[monomial] = coefficient % scale
        else:
            rest[monomial] = coefficient
    remainder = from_poly(rest)
    if not rest or (at_least(remainder, 0) and at_least(b - remainder, 1)):
        return from_poly(quotient), remainder
    if not factors and scale > 1:
        common = _common_factor(rest, scale)
        if common > 1:
            # (c*x) // (c*d) = x // d and (c*x) % (c*d) = c * (x % d).
            inner_q, inner_r = divide(from_poly({m: c // common for m, c in rest.items()}),
                                      const(scale // common))
            return from_poly(quotient) + inner_q, inner_r * common
        nested = _nested(remainder, scale)
        if nested is not None:
            return from_poly(quotient) + nested[0], nested[1]
    q, r = _raw_divide(remainder, b)
    return from_poly(quotient) + q, r


def _nested(e: Expr, scale: int) -> tuple[Expr, Expr] | None:
    """(x // c) // d = x // (c*d); (x % (c*d)) % d = x % d, for positive constants."""
    if not isinstance(e, Op) or e.name != "floordiv" or not isinstance(e.args[1], Const):
        return None
    inner = e.args[1].value
    if inner > 0:
        quotient = divide(e.args[0], const(inner * scale))[0]
        return quotient, from_poly(_scaled_sum(poly(e), poly(quotient), -scale))
    return None


def _common_factor(p: Poly, scale: int) -> int:
    from math import gcd

    result = scale
    for coefficient in p.values():
        result = gcd(result, coefficient)
    return result


def _raw_divide(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    if isinstance(a, Const) and isinstance(b, Const) and b.value != 0:
        return const(a.value // b.value), const(a.value % b.value)
    if isinstance(a, Op) and a.name == "mod" and isinstance(b, Const) and b.value > 0 \
            and isinstance(a.args[1], Const) and a.args[1].value % b.value == 0:
        quotient = intern_expr(Op, ("floordiv",), (a, b), dt.i64, 1)
        return quotient, divide(a.args[0], b)[1]
    return (intern_expr(Op, ("floordiv",), (a, b), dt.i64, 1),
            intern_expr(Op, ("mod",), (a, b), dt.i64, 1))


def _without(monomial: Monomial, factors: Monomial) -> Monomial | None:
    rest = list(monomial)
    for factor in factors:
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest)


def at_least(e, bound: int) -> bool:
    """True when e >= bound is proven from the bounds of its variables; False when unknown."""
    p = _scaled_sum(poly(e), {(): bound} if bound else {}, -1)
    return _non_negative(p, 4)


def _non_negative(p: Poly, depth: int) -> bool:
    if all(c > 0 and all(_atom_non_negative(a) for a in m) for m, c in p.items()):
        return True
    if depth == 0:
        return False
    # Replace one bounded variable of a negative monomial by its largest value, or a lower-bounded
    # one by low + itself; both only weaken the claim.
    for monomial, coefficient in p.items():
        if coefficient >= 0:
            continue
        for atom in monomial:
            top = _upper(atom)
            if top is None or not _linear_and_signed(p, atom):
                continue
            if _non_negative(_replace(p, atom, poly(top)), depth - 1):
                return True
    for atom in {a for m in p for a in m}:
        low = _lower(atom)
        if low and _linear_and_signed(p, atom, sign=1):
            raised = _scaled_sum({(): low}, {(): 0}, 0)
            if _non_negative(_replace(p, atom, raised), depth - 1):
                return True
    return False


def _linear_and_signed(p: Poly, atom: Expr, sign: int = -1) -> bool:
    """The atom occurs only linearly, with one sign and non-negative cofactors."""
    for monomial, coefficient in p.items():
        count = monomial.count(atom)
        if count > 1 or (count == 1 and coefficient * sign < 0):
            return False
        if count == 1 and not all(a is atom or _atom_non_negative(a) for a in monomial):
            return False
    return True


def _replace(p: Poly, atom: Expr, value: Poly) -> Poly:
    result: Poly = {}
    for monomial, coefficient in p.items():
        term: Poly = {tuple(a for a in monomial if a is not atom): coefficient}
        if atom in monomial:
            term = _product(term, value)
        result = _scaled_sum(result, term, 1)
    return result


def _atom_non_negative(atom: Expr) -> bool:
    return (_lower(atom) or 0) >= 0 if _lower(atom) is not None else False


def _lower(atom: Expr) -> int | None:
    """A constant lower bound of an atom, if one is known."""
    if isinstance(atom, Const):
        return atom.value
    if isinstance(atom, Var):
        return atom.low
    if isinstance(atom, Op):
        a = atom.args
        if atom.name == "mod" and at_least(a[1], 1):
            return 0
        if atom.name == "floordiv" and isinstance(a[1], Const) and a[1].value > 0:
            low = lower_bound(a[0])
            return None if low is None else low // a[1].value
        if atom.name == "floordiv" and at_least(a[1], 1) and at_least(a[0], 0):
            return 0
        if atom.name == "max":
            lows = [x for x in (lower_bound(a[0]), lower_bound(a[1])) if x is not None]
            return max(lows) if lows else None
        if atom.name in ("min", "select"):
            one, other = lower_bound(a[-2]), lower_bound(a[-1])
            return None if one is None or other is None else min(one, other)
    return None


def lower_bound(e: Expr) -> int | None:
    """A constant lower bound of an expression; None when none is known."""
    p = poly(e)
    total = 0
    for monomial, coefficient in p.items():
        if not monomial:
            total += coefficient
            continue
        if coefficient > 0 and all(_atom_non_negative(a) for a in monomial):
            product = coefficient
            for atom in monomial:
                product *= _lower(atom) or 0
            total += product
            continue
        if len(monomial) == 1 and coefficient < 0:
            top = _upper(monomial[0])
            if top is not None and isinstance(top, Const):
                total += coefficient * top.value
                continue
        return None
    return total


def upper_bound(e: Expr) -> int | None:
    """A constant upper bound (inclusive) of an expression; None when none is known."""
    low = lower_bound(e * -1)
    return None if low is None else -low


def _upper(atom: Expr) -> Expr | None:
    """An inclusive upper bound of an atom, if one is known."""
    if isinstance(atom, Var) and atom.extent is not None:
        extent = atom.extent
        return (extent if isinstance(extent, Expr) else const(extent)) - 1
    if isinstance(atom, Op):
        a = atom.args
        if atom.name == "mod" and at_least(a[1], 1):
            return a[1] - 1
        if atom.name == "min":
            return a[1] if isinstance(a[1], Const) else a[0]
        if atom.name == "floordiv" and isinstance(a[1], Const) and a[1].value > 0:
            top = upper_bound(a[0])
            return None if top is None else const(top // a[1].value)
    return None


def decide(name: str, args: list[Expr]) -> Expr | None:
    """Comparisons, min and max of i64 that the bounds decide; None when they do not."""
    if len(args) != 2 or name not in ("lt", "le", "gt", "ge", "eq", "ne", "min", "max"):
        return None
    a, b = args
    if name in ("gt", "ge"):
        a, b, name = b, a, "lt" if name == "gt" else "le"
    if name == "min":
        return a if at_least(b - a, 0) else b if at_least(a - b, 0) else None
    if name == "max":
        return b if at_least(b - a, 0) else a if at_least(a - b, 0) else None
    true, false = const(True, dt.bool_), const(False, dt.bool_)
    if name == "lt":
        return true if at_least(b - a, 1) else false if at_least(a - b, 0) else None
    if name == "le":
        return true if at_least(b - a, 0) else false if at_least(a - b, 1) else None
    if at_least(b - a, 1) or at_least(a - b, 1):
        return false if name == "eq" else true
    if a is b:
        return true if name == "eq" else false
    return None
