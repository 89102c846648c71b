"""64-bit integers on machines of 32 bits: which kernels give the same results there.

Elements of i64 tensors are numbers of 32 bits on such a machine (its runtime checks inputs, the
compiler constants), and all i64 arithmetic is done in 32 bits; floats become i64 by saturating at
32 bits. Sizes, loop counters and what is computed from them alone count memory, which is smaller
than 2**31 elements. So only arithmetic on elements has to be looked at: sums, differences and
products are exact modulo 2**32, which is enough for an index into memory; wherever else their value
counts, it must be known to fit.
"""

from __future__ import annotations

from ...errors import ModelError
from ...ir import dtype as dt
from ...ir.expr import Cast, Expr, Op, Var, walk, wrap
from ...ir.kernel.nodes import (
    For,
    If,
    Kernel,
    Let,
    Load,
    Store,
    While,
    expressions,
    statements,
)
from ...ir.kernel.ranges import INT32, Range, Ranges, within

_RING = ("add", "sub", "mul", "neg")
"""Operations whose low 32 bits follow from those of their operands."""


class _NarrowRanges(Ranges):
    """Bounds when the elements of i64 tensors are numbers of 32 bits."""

    def of(self, e: Expr) -> Range:
        for x in walk(e):
            if x.dtype is dt.i64 and x not in self._known and (
                    isinstance(x, Load) or (isinstance(x, Cast) and x.args[0].dtype.is_float)):
                self._known[x] = INT32
        return super().of(e)


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
        for s in statements(self.kernel.body):
            if isinstance(s, For):
                self.ranges.count(s.var, s.extent)
                self.counted(wrap(s.extent))
            elif isinstance(s, Let):
                self.ranges.define(s.var, s.value)
                self.counted(s.value)
            elif isinstance(s, Store):
                for i in s.index:
                    self.index(i)
                self.counted(s.value)
            elif isinstance(s, (If, While)):
                self.counted(s.condition)
            else:
                for e in expressions(s):
                    self.counted(e)

    def index(self, e: Expr) -> None:
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
                self.counted(x.args[0])
                stack.extend(x.args[1:])
            else:
                self.counted(x)

    def counted(self, e: Expr) -> None:
        """A value that counts as a number."""
        stack, seen = [e], set()
        while stack:
            x = stack.pop()
            if x in seen:
                continue
            seen.add(x)
            if isinstance(x, Load):
                for i in x.index:
                    self.index(i)
                continue
            if isinstance(x, Cast) and x.args[0].dtype is dt.i64 and x.dtype.is_integer \
                    and x.dtype.bits <= 32:
                self.index(x.args[0])  # wraps anyway
                continue
            self.fits(x)
            stack.extend(x.args)

    def fits(self, x: Expr) -> None:
        if x.dtype is not dt.i64 or not isinstance(x, (Op, Cast)):
            return
        if not within(self.ranges.of(x), INT32) and self.from_data(x):
            where = self.kernel.origin or self.kernel.name
            raise ModelError(f"{where}: i64 arithmetic on elements may need more than 32 bits, "
                             f"which this target computes with: use i32 in the model")


def check_narrow(kernel: Kernel) -> None:
    """Raises ModelError naming the node when i64 arithmetic of the kernel may not give in 32 bits
    what it gives in 64."""
    _Checker(kernel).run()

