"""Bounds of integer expressions, from loop extents and types: which type holds a value, and
where a sum cannot overflow."""

from __future__ import annotations

from ..expr import Cast, Const, Expr, Op, Var, walk, wrap
from .nodes import Load

Range = tuple[int, int]

INT32: Range = (-(1 << 31), (1 << 31) - 1)


def within(inner: Range, outer: Range) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


class Ranges:
    """Inclusive bounds of the integer and boolean expressions of one kernel."""

    def __init__(self) -> None:
        self._known: dict[Expr, Range] = {}

    def define(self, variable: Var, value: Expr) -> None:
        """States that a variable has the value of an expression."""
        if value.dtype.is_integer:
            self._known[variable] = self.of(value)

    def count(self, variable: Var, extent) -> None:
        """States that a variable counts from 0 up to below an extent."""
        self._known[variable] = (0, max(0, self.of(wrap(extent))[1] - 1))

    def of(self, e: Expr) -> Range:
        """The bounds of an integer's value; those of its type when nothing better is known."""
        if e not in self._known:
            for x in walk(e):
                if x not in self._known and (x.dtype.is_integer or x.dtype.is_bool):
                    exact, whole = self._exact(x), _of_type(x)
                    inside = exact is not None and within(exact, whole)
                    self._known[x] = exact if inside and exact is not None else whole
        return self._known[e]

    def overflows(self, e: Op) -> bool:
        """Whether the mathematical result may lie outside the type of `e`."""
        self.of(e)
        exact = self._exact(e)
        return exact is None or not within(exact, _of_type(e))

    def compare(self, name: str, a: Expr, b: Expr) -> bool | None:
        """Whether a < b, a <= b, a > b or a >= b ("lt", "le", "gt", "ge"); None when unknown."""
        x, y = self.of(a), self.of(b)
        if name in ("gt", "ge"):
            x, y = y, x
        strict = name in ("lt", "gt")
        if x[1] < y[0] or (x[1] == y[0] and not strict):
            return True
        if x[0] > y[1] or (x[0] == y[1] and strict):
            return False
        return None

    def _exact(self, e: Expr) -> Range | None:
        """Bounds before wrapping to the type; None when the operation tells none."""
        if isinstance(e, Const):
            return int(e.value), int(e.value)
        if isinstance(e, Var):
            return _of_variable(e)
        if isinstance(e, Cast) and e.mode == "value" and e.args[0] in self._known:
            return self._known[e.args[0]]
        if not isinstance(e, Op) or isinstance(e, Load):
            return None
        if any(a not in self._known for a in e.args):
            return None
        known = [self._known[a] for a in e.args]
        if e.name == "select":
            return min(known[1][0], known[2][0]), max(known[1][1], known[2][1])
        if len(known) != 2:
            return None
        return _binary(e.name, *known)


def _binary(name: str, a: Range, b: Range) -> Range | None:
    if name == "add":
        return a[0] + b[0], a[1] + b[1]
    if name == "sub":
        return a[0] - b[1], a[1] - b[0]
    if name == "mul":
        products = [x * y for x in a for y in b]
        return min(products), max(products)
    if name == "min":
        return min(a[0], b[0]), min(a[1], b[1])
    if name == "max":
        return max(a[0], b[0]), max(a[1], b[1])
    positive = b[0] > 0
    if name == "floordiv" and positive:
        return min(a[0] // b[0], a[0] // b[1]), max(a[1] // b[0], a[1] // b[1])
    if name in ("mod", "rem") and positive and a[0] >= 0:
        return 0, min(a[1], b[1] - 1)
    if name == "mod" and positive:
        return 0, b[1] - 1
    if name == "and" and (a[0] >= 0 or b[0] >= 0):
        return 0, min(x[1] for x in (a, b) if x[0] >= 0)
    if name == "shr" and b[0] == b[1] and 0 <= b[0] < 64:
        return a[0] >> b[0], a[1] >> b[0]
    return None


def _of_type(e: Expr) -> Range:
    return (0, 1) if e.dtype.is_bool else (int(e.dtype.min), int(e.dtype.max))


def _of_variable(v: Var) -> Range | None:
    low = v.low if v.low is not None else 0
    if isinstance(v.extent, int):
        return low, max(low, v.extent - 1)
    if isinstance(v.extent, Const):
        return low, max(low, v.extent.value - 1)
    return None
