"""Spells operations of integers in TVMScript: what wraps wraps, and nothing traps."""

from __future__ import annotations

from collections.abc import Callable

from ..ir import dtype as dt
from ..ir.dtype import DType
from ..ir.expr import Broadcast, Const, Expr, Op, Var, walk
from ..ir.kernel.nodes import Call, Load
from .tensorir_text import (
    Inexpressible,
    both,
    either,
    literal,
    memory_type,
    span,
    typed,
    value_type,
)

PLAIN = {"add": "+", "sub": "-", "mul": "*"}
_BITWISE = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}
_LOW32 = "T.uint64(4294967295)"


class IntegerPrinter:
    """The part of the expression printer that knows integers."""

    depth: int
    data_vars: set[Var]
    line: Callable[[str], None]
    fresh: Callable[[], str]

    def named(self, text: str, lanes: int, kind: str, index: bool = False) -> str:
        raise NotImplementedError

    def _index_op(self, e: Op, a: list[str]) -> str | None:
        """Arithmetic that does not overflow; None for what needs care anyway."""
        if e.name in PLAIN:
            return f"({a[0]} {PLAIN[e.name]} {a[1]})"
        if e.name in ("floordiv", "mod"):
            return f"T.{'floordiv' if e.name == 'floordiv' else 'floormod'}({a[0]}, {a[1]})"
        return None

    def _of_data(self, e: Expr) -> bool:
        """Whether an i64 is computed from elements of tensors, so that it may wrap."""
        return any(isinstance(x, (Load, Call)) or x in self.data_vars for x in walk(e))

    def wrapping(self, name: str, e: Expr, a: list[str]) -> str:
        """add, sub or mul of integers that wraps; `e` has the type and the lanes."""
        d, sign = e.dtype, PLAIN[name]
        kind = value_type(d)
        if d.bits < 32:
            return self._narrow(f"({a[0]} {sign} {a[1]})", d, e.lanes)
        if d.bits == 32:
            # In 64 bits nothing wraps; what is cut off is the same.
            wide = [f"T.Cast(\"{typed('int64', e.lanes)}\", {x})" for x in a]
            if d is dt.u32 and name == "mul":  # the product needs all 64 bits
                wide = [f"T.Cast(\"{typed('uint64', e.lanes)}\", {x})" for x in a]
            return f"T.Cast(\"{typed(kind, e.lanes)}\", {wide[0]} {sign} {wide[1]})"
        if d is dt.i64 and not self._of_data(e):
            return f"({a[0]} {sign} {a[1]})"
        return self._wrapping64(name, e.lanes, kind, a)

    def _wrapping64(self, name: str, lanes: int, kind: str, a: list[str]) -> str:
        """In halves of 32 bits, of which no sum or product leaves 64."""
        def every(text: str) -> str:
            return text if lanes == 1 else f"T.Broadcast({text}, {lanes})"

        low, by = every(_LOW32), every("T.uint64(32)")
        x, y = (self.named(f"T.Cast(\"{typed('uint64', lanes)}\", {t})", lanes, "uint64")
                for t in a)
        if name == "sub":
            y = self.named(f"T.bitwise_not({y})", lanes, "uint64")
        x0, y0 = (self.named(f"T.bitwise_and({t}, {low})", lanes, "uint64") for t in (x, y))
        x1, y1 = (self.named(f"T.shift_right({t}, {by})", lanes, "uint64") for t in (x, y))
        if name == "mul":
            product = self.named(f"{x0} * {y0}", lanes, "uint64")
            high = (f"T.bitwise_and({x0} * {y1}, {low}) + T.bitwise_and({x1} * {y0}, {low}) + "
                    f"T.shift_right({product}, {by})")
            bottom = product
        else:
            one = f" + {every('T.uint64(1)')}" if name == "sub" else ""
            bottom = self.named(f"{x0} + {y0}{one}", lanes, "uint64")
            high = f"{x1} + {y1} + T.shift_right({bottom}, {by})"
        whole = (f"T.bitwise_or(T.shift_left({high}, {by}), T.bitwise_and({bottom}, {low}))")
        return f"T.Cast(\"{typed(kind, lanes)}\", {whole})"

    def _narrow(self, text: str, d: DType, lanes: int) -> str:
        """The low bits of a byte as a value of a type narrower than one."""
        if d.bits >= 8:
            return text
        by = self._same(8 - d.bits, d, lanes)
        return f"T.shift_right(T.shift_left({text}, {by}), {by})"

    def _same(self, value: float, d: DType, lanes: int) -> str:
        text = literal(value, d)
        return text if lanes == 1 else f"T.Broadcast({text}, {lanes})"

    def _integer_op(self, e: Op, a: list[str], d: DType) -> str:
        name, lanes, signed = e.name, e.lanes, d.kind == "int"
        if name in PLAIN:
            return self.wrapping(name, e, a)
        if name in _BITWISE:
            return f"T.{_BITWISE[name]}({a[0]}, {a[1]})"
        zero, one = self._same(0, d, lanes), self._same(1, d, lanes)
        if name in ("min", "max"):
            x, y = self.named(a[0], lanes, value_type(d)), self.named(a[1], lanes, value_type(d))
            return f"T.Select({x} {'<' if name == 'min' else '>'} {y}, {x}, {y})"
        if name == "not":
            return self._narrow(f"T.bitwise_not({a[0]})", d, lanes)
        if name == "neg":
            return self.wrapping("sub", e, [zero, a[0]])
        if name == "abs":
            x = self.named(a[0], lanes, value_type(d))
            negative = self.wrapping("sub", e, [zero, x])
            return f"T.Select({x} < {zero}, {negative}, {x})" if signed else x
        if name == "sign":
            x = self.named(a[0], lanes, value_type(d))
            below = f"T.Select({x} < {zero}, {self._same(-1, d, lanes)}, {zero})" if signed \
                else zero
            return f"T.Select({x} > {zero}, {one}, {below})"
        if name == "fma":
            product = self.wrapping("mul", e, a[:2])
            return self.wrapping("add", e, [product, a[2]])
        if name in ("shl", "shr"):
            return self._shift(e, a, d)
        if name in ("div", "rem", "floordiv", "mod"):
            return self._divide(e, a, d)
        if name == "pow":
            return self._integer_power(e, a, d)
        raise Inexpressible(f"{name} of {d}")

    def _shift(self, e: Op, a: list[str], d: DType) -> str:
        lanes, left = e.lanes, e.name == "shl"
        function = "T.shift_left" if left else "T.shift_right"
        by = e.args[1].args[0] if isinstance(e.args[1], Broadcast) else e.args[1]
        if isinstance(by, Const) and 0 <= by.value < d.bits:
            return self._narrow(f"{function}({a[0]}, {a[1]})", d, lanes)
        count = self.named(a[1], lanes, value_type(d))
        zero, width = self._same(0, d, lanes), self._same(d.bits - 1, d, lanes)
        inside = self.named(both(f"{count} >= {zero}", f"{count} <= {width}", lanes), lanes, "bool")
        if not left and d.kind == "int":
            return f"{function}({a[0]}, T.Select({inside}, {count}, {width}))"
        moved = self._narrow(f"{function}({a[0]}, T.Select({inside}, {count}, {zero}))", d, lanes)
        return f"T.Select({inside}, {moved}, {zero})"

    def _divide(self, e: Op, a: list[str], d: DType) -> str:
        name, lanes = e.name, e.lanes
        function = {"div": "T.truncdiv", "rem": "T.truncmod", "floordiv": "T.floordiv",
                    "mod": "T.floormod"}[name]
        if d.kind == "uint":
            function = {"floordiv": "T.truncdiv", "mod": "T.truncmod"}.get(name, function)
        by = e.args[1].args[0] if isinstance(e.args[1], Broadcast) else e.args[1]
        if isinstance(by, Const) and by.value > 0:
            return self._narrow(f"{function}({a[0]}, {a[1]})", d, lanes)
        if d is dt.i64 and not self._of_data(e):
            return f"{function}({a[0]}, {a[1]})"
        # Zero and -1 are what processors trap on.
        x, y = self.named(a[0], lanes, value_type(d)), self.named(a[1], lanes, value_type(d))
        zero, one = self._same(0, d, lanes), self._same(1, d, lanes)
        none = self.named(f"T.EQ({y}, {zero})", lanes, "bool")
        quotient = name in ("div", "floordiv")
        if d.kind == "uint":
            whole = f"{function}({x}, T.Select({none}, {one}, {y}))"
            return f"T.Select({none}, {zero}, {whole})" if quotient else whole
        minus = self.named(f"T.EQ({y}, {self._same(-1, d, lanes)})", lanes, "bool")
        safe = self.named(f"T.Select({either(none, minus, lanes)}, {one}, {y})", lanes,
                          value_type(d))
        whole = f"{function}({x}, {safe})"
        if not quotient:
            return whole
        negative = self.wrapping("sub", e, [zero, x])
        return f"T.Select({none}, {zero}, T.Select({minus}, {negative}, {whole}))"

    def _integer_power(self, e: Op, a: list[str], d: DType) -> str:
        lanes, kind = e.lanes, memory_type(d)
        base, power = self.named(a[0], lanes, value_type(d)), self.named(a[1], lanes, value_type(d))
        zero, one = self._same(0, d, lanes), self._same(1, d, lanes)
        cells = [self.fresh() for _ in range(3)]
        for cell, start in zip(cells, (one, base, power), strict=True):
            self.line(f"{cell} = T.alloc_buffer((T.int64({lanes}),), \"{kind}\", scope=\"local\")")
            self.line(f"{cell}[{span('T.int64(0)', lanes)}] = {start}")
        result, square, rest = (f"{c}[{span('T.int64(0)', lanes)}]" for c in cells)
        self.line(f"for {self.fresh()} in T.serial(T.int64(0), T.int64({d.bits})):")
        self.depth += 1
        r, s, n = (self.named(t, lanes, value_type(d)) for t in (result, square, rest))
        odd = f"T.EQ(T.bitwise_and({n}, {one}), {one})"
        self.line(f"{result} = T.Select({odd}, {self.wrapping('mul', e, [r, s])}, {r})")
        self.line(f"{square} = {self.wrapping('mul', e, [s, s])}")
        self.line(f"{rest} = T.shift_right({n}, {one})")
        self.depth -= 1
        whole = self.named(result, lanes, value_type(d))
        if d.kind == "uint":
            return whole
        minus = self._same(-1, d, lanes)
        even = f"T.EQ(T.bitwise_and({power}, {one}), {zero})"
        inverse = (f"T.Select(T.EQ({base}, {one}), {one}, T.Select(T.EQ({base}, {minus}), "
                   f"T.Select({even}, {one}, {minus}), {zero}))")
        return f"T.Select({power} < {zero}, {inverse}, {whole})"

