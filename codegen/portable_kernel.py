"""Kernels in strictly portable C11.

Indices take 32 bits wherever their bounds allow, because most small processors have no wider
registers. Signed arithmetic whose result may not fit its type goes through unsigned types, where
C defines the outcome; nothing depends on compiler flags.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection

from ..ir import dtype as dt
from ..ir.expr import Const, Expr, Op
from ..ir.kernel.nodes import Buffer, For, Kernel, Let, Stmt
from ..ir.kernel.ranges import INT32, Ranges, within
from .c import KernelPrinter, Needs
from .c_expr import ExpressionPrinter
from .c_types import INFIX
from .c_vector import SCALAR

COLUMNS = 100

_REPEATED = frozenset(["min", "max", "sign", "isnan", "isinf", "abs"])
"""Operations whose spelling contains an operand more than once."""

_NO_FRACTION = 2.0 ** 22
"""f32 sums with numbers from here on have at most one bit behind the point."""


class PortableExpressions(ExpressionPrinter):
    """Spells expressions without relying on anything that C11 leaves open to the compiler."""

    def __init__(self, printer: KernelPrinter):
        super().__init__(printer)
        self.ranges = Ranges()

    def scalar_type(self, e: Expr) -> str:
        if e.dtype is dt.i64 and within(self.ranges.of(e), INT32):
            return "int32_t"
        return super().scalar_type(e)

    def _scalar_op(self, e: Op) -> str:
        if e.name in _REPEATED:
            for x in e.args:
                self._name(x)
        if e.name == "add" and e.dtype is dt.f32 and any(
                isinstance(x, Const) and abs(x.value) >= _NO_FRACTION for x in e.args):
            # Added to be rounded, which wider intermediate results must not prevent.
            return f"(float){super()._scalar_op(e)}"
        if e.dtype is dt.i64 and e.name in ("add", "sub", "mul"):
            return self._wide(e)
        if e.dtype is dt.i32 and e.name in ("add", "sub", "mul") and not self.ranges.overflows(e):
            a, b = (self.value(x) for x in e.args)
            return f"({a} {INFIX[e.name]} {b})"
        if e.args[0].dtype is dt.i64 and e.name in ("floordiv", "mod"):
            if self.ranges.of(e.args[0])[0] >= 0 and self.ranges.of(e.args[1])[0] > 0:
                a, b = (self.value(x) for x in e.args)
                return f"({a} {'/' if e.name == 'floordiv' else '%'} {b})"
        if e.name in ("lt", "le", "gt", "ge") and e.args[0].dtype.is_integer:
            truth = self.ranges.compare(e.name, *e.args)
            if truth is not None:  # compilers warn of comparisons that types decide
                return "1" if truth else "0"
        if e.name == "isinf":
            x = self.value(e.args[0])
            return f"({x} == INFINITY || {x} == -INFINITY)"
        return super()._scalar_op(e)

    def _name(self, e: Expr) -> None:
        """Makes sure that a value is a name or a number."""
        text = self.value(e)
        if re.fullmatch(r"\w+|\(?-?[\d.e+-]+f?\)?", text) is None:
            name = self.p.temporary()
            self.p.line(f"const {self.scalar_type(e)} {name} = {text};")
            self._scopes[-1][e] = name

    def _wide(self, e: Op) -> str:
        """A sum, difference or product whose operands may be held in 32 bits."""
        a, b = (self.value(x) for x in e.args)
        sign = INFIX[e.name]
        if self.ranges.overflows(e):
            return f"(int64_t)((uint64_t){a} {sign} (uint64_t){b})"
        if all(within(self.ranges.of(x), INT32) for x in (e, *e.args)):
            return f"({a} {sign} {b})"
        return f"((int64_t){a} {sign} {b})"


class PortableKernelPrinter(KernelPrinter):
    """Prints one legalised kernel, without vectors and threads, as a static C function."""

    expr: PortableExpressions
    stack_bytes = float("inf")

    def __init__(self, kernel: Kernel, needs: Needs, symbol: str | None = None,
                 aliased: Collection[Buffer] = ()):
        super().__init__(kernel, SCALAR, needs, threads=False, symbol=symbol, aliased=aliased)
        self.expr = PortableExpressions(self)

    def statement(self, s: Stmt) -> None:
        if isinstance(s, Let):
            self.expr.ranges.define(s.var, s.value)
        super().statement(s)

    def _for(self, s: For) -> None:
        self.expr.ranges.count(s.var, s.extent)
        super()._for(s)

    def line(self, text: str) -> None:
        indent = "    " * self.depth
        self.lines += textwrap.wrap(bare(text), COLUMNS, initial_indent=indent,
                                    subsequent_indent=f"{indent}    ", break_long_words=False,
                                    break_on_hyphens=False)

    def text(self) -> str:
        """The complete C text of the kernel."""
        head = wrapped(f"static void {self.symbol}(", self.prototype().split(", "), ") {",
                       "        ")
        self._used_parameters()
        self._top(self.kernel.body)
        return "\n".join([head, *self.lines, "}"]) + "\n"


def wrapped(head: str, items: list[str], tail: str, indent: str) -> str:
    """head, the items between commas, and tail, broken into lines that fit."""
    lines = [head]
    for k, item in enumerate(items):
        piece = item + ("," if k + 1 < len(items) else tail)
        space = "" if k == 0 else " "
        if k and len(lines[-1]) + 1 + len(piece) > COLUMNS:
            lines.append(indent)
            space = ""
        lines[-1] += space + piece
    return "\n".join(lines) if items else head + tail


def bare(text: str) -> str:
    """A statement without the parentheses around a whole value, index or condition."""
    matching: dict[int, int] = {}
    stack: list[int] = []
    for i, character in enumerate(text):
        if character == "(":
            stack.append(i)
        elif character == ")":
            matching[stack.pop()] = i
    dropped: set[int] = set()
    for start, end in matching.items():
        before, after = text[:start], text[end + 1:]
        if (before.endswith(" = ") and after == ";" or before.endswith("[") and after[:1] == "]"
                or before == "if (" and after == ") {"):
            dropped |= {start, end}
    return "".join(c for i, c in enumerate(text) if i not in dropped)
