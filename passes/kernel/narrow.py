"""64-bit integers on machines of 32 bits: which kernels give the same results there.

Elements of i64 tensors are numbers of 32 bits on such a machine (its runtime checks inputs, the
compiler constants), and all i64 arithmetic is done in 32 bits; floats become i64 by saturating
there. Sizes, loop counters and what is computed from them alone count memory, which is smaller
than 2**31 elements. So only arithmetic on elements has to be looked at: sums, differences and
products are exact modulo 2**32, which is enough for an index into memory; wherever else their value
counts, it must be known to fit.
"""

from __future__ import annotations

from ...errors import ModelError
from ...ir import dtype as dt
from ...ir.expr import Cast, Expr, Op, Var, walk
from ...ir.kernel.nodes import (
    For,
    Kernel,
    Let,
    Load,
    Store,
    expressions,
    statements,
)
from ...ir.kernel.ranges import INT32, Range, Ranges, within

_RING = ("add", "sub", "mul", "neg")
"""Operations whose low 32 bits follow from those of their operands."""


FROM_FLOAT: Range = (-2147483520, 2147483520)
"""Where floats converted to i64 saturate: the largest f32 of 32 bits, which leaves room for the
neighbours of a place that was computed as a float."""


class _NarrowRanges(Ranges):
    """Bounds when the elements of i64 tensors are numbers of 32 bits, with what conditions say of
    the arms of selections."""

    def of(self, e: Expr) -> Range:
        for x in walk(e):
            if x.dtype is dt.i64 and x not in self._known:
                if isinstance(x, Load):
                    self._known[x] = INT32
                elif isinstance(x, Cast) and x.args[0].dtype.is_float:
                    self._known[x] = FROM_FLOAT
        return super().of(e)

    def _exact(self, e: Expr) -> Range | None:
        if isinstance(e, Op) and e.name == "select":
            arms = [self.assuming(e.args[0], holds).of(arm)
                    for holds, arm in ((True, e.args[1]), (False, e.args[2]))]
            return min(low for low, _ in arms), max(high for _, high in arms)
        return super()._exact(e)

    def assuming(self, condition: Expr, holds: bool) -> _NarrowRanges:
        """The bounds where a condition holds (or does not)."""
        inner = _NarrowRanges()
        inner._known = {x: r for x, r in self._known.items() if isinstance(x, Var)}
        inner._assume(condition, holds)
        return inner

    def _assume(self, condition: Expr, holds: bool) -> None:
        if not isinstance(condition, Op) or condition.name not in ("and", "lt", "le", "gt", "ge"):
            return
        name, (x, y) = condition.name, condition.args
        if name == "and":
            for part in (x, y) if holds else ():
                self._assume(part, True)
            return
        if not x.dtype.is_integer:
            return
        if name in ("gt", "ge"):
            x, y, name = y, x, {"gt": "lt", "ge": "le"}[name]
        if not holds:
            x, y, name = y, x, {"lt": "le", "le": "lt"}[name]
        step = 1 if name == "lt" else 0  # now x + step <= y
        (x_low, x_high), (y_low, y_high) = self.of(x), self.of(y)
        bounds = {x: (x_low, min(x_high, y_high - step)), y: (max(y_low, x_low + step), y_high)}
        # Conditions that never hold leave bounds as they are: nothing is computed there.
        self._known.update({e: r for e, r in bounds.items() if r[0] <= r[1]})


class _Checker:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.ranges = _NarrowRanges()
        self.names = {s.var: s.value for s in statements(kernel.body) if isinstance(s, Let)}
        stores = [s for s in statements(kernel.body) if isinstance(s, Store)]
        # The buffers that hold what is computed from elements, not from positions.
        self.data = set(kernel.params) - {s.buffer for s in stores}
        grown = True
        while grown:
            grown = False
            for s in stores:
                if s.buffer not in self.data and self.from_data(s.value):
                    self.data.add(s.buffer)
                    grown = True

    def from_data(self, e: Expr) -> bool:
        """Whether a value is computed from elements of tensors (not only chosen by them)."""
        stack, seen = [e], set()
        while stack:
            x = stack.pop()
            if x in seen:
                continue
            seen.add(x)
            if isinstance(x, Load):
                if x.buffer in self.data:
                    return True
                continue
            if isinstance(x, Var) and x in self.names:
                stack.append(self.names[x])
            if isinstance(x, Op) and x.dtype.is_bool:
                continue
            stack.extend(x.args[1:] if isinstance(x, Op) and x.name == "select" else x.args)
        return False

    def run(self) -> None:
        ranges = self.ranges
        for s in statements(self.kernel.body):
            if isinstance(s, For):
                ranges.count(s.var, s.extent)
            elif isinstance(s, Let):
                ranges.define(s.var, s.value)
            elif isinstance(s, Store):
                for i in s.index:
                    self.index(i, ranges)
                self.counted(s.value, ranges)
                continue
            for e in expressions(s):
                self.counted(e, ranges)

    def index(self, e: Expr, ranges: _NarrowRanges) -> None:
        """An index into memory: only its low 32 bits count."""
        stack, seen = [e], set()
        while stack:
            x = stack.pop()
            if x in seen:
                continue
            seen.add(x)
            if isinstance(x, Op) and x.name in _RING and x.dtype is dt.i64:
                stack.extend(x.args)
            elif isinstance(x, Op) and x.name == "select":
                self.counted(x.args[0], ranges)
                self.index(x.args[1], ranges.assuming(x.args[0], True))
                self.index(x.args[2], ranges.assuming(x.args[0], False))
            else:
                self.counted(x, ranges)

    def counted(self, e: Expr, ranges: _NarrowRanges) -> None:
        """A value that counts as a number."""
        stack, seen = [e], set()
        while stack:
            x = stack.pop()
            if x in seen:
                continue
            seen.add(x)
            if isinstance(x, Load):
                for i in x.index:
                    self.index(i, ranges)
                continue
            if isinstance(x, Cast) and x.args[0].dtype is dt.i64 and x.dtype.is_integer \
                    and x.dtype.bits <= 32:
                self.index(x.args[0], ranges)  # wraps anyway
                continue
            self.fits(x, ranges)
            if isinstance(x, Op) and x.name == "select":
                stack.append(x.args[0])
                self.counted(x.args[1], ranges.assuming(x.args[0], True))
                self.counted(x.args[2], ranges.assuming(x.args[0], False))
                continue
            stack.extend(x.args)

    def fits(self, x: Expr, ranges: _NarrowRanges) -> None:
        if x.dtype is not dt.i64 or not isinstance(x, (Op, Cast)):
            return
        if not within(ranges.of(x), INT32) and self.from_data(x):
            where = self.kernel.origin or self.kernel.name
            raise ModelError(f"{where}: i64 arithmetic on elements may need more than 32 bits, "
                             f"which this target computes with: use i32 in the model")


def check_narrow(kernel: Kernel) -> None:
    """Raises ModelError naming the node when i64 arithmetic of the kernel may not give in 32 bits
    what it gives in 64."""
    _Checker(kernel).run()

