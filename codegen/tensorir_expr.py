"""Spells expressions in TVMScript, of any number of lanes: the expressions of `codegen.tensorir`.

TVM's code generator tells LLVM that 32-bit and 64-bit integers never wrap, its `!=` of floats is
false for NaN, and its simplifier takes x * 0 for 0; the texts here are such that none of it shows.
Booleans in memory are bytes. Floats narrower than 32 bits are their bits, as in C.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..ir import dtype as dt
from ..ir.dtype import DType
from ..ir.expr import Broadcast, Cast, Const, Expr, Op, Ramp, Var, broadcast, op, var, walk, wrap
from ..ir.kernel.intrinsics import DOT2_I16, DOT4, HORIZONTAL, PACK4, SCALE, SHUFFLE
from ..ir.kernel.nodes import Buffer, Call, Load
from .c_types import MATH
from .tensorir_integers import PLAIN, IntegerPrinter
from .tensorir_text import (
    Inexpressible,
    both,
    differs,
    either,
    hidden_zero,
    is_nan,
    is_number,
    literal,
    memory_type,
    span,
    typed,
    value_type,
    vector,
    zero_of,
)

MOST_TEXT = 160
"""Characters up to which an expression is written into its user."""

_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_TVM = {"sqrt": "T.sqrt", "floor": "T.floor", "ceil": "T.ceil", "trunc": "T.trunc",
        "round": "T.nearbyint", "abs": "T.abs"}


class ExpressionPrinter(IntegerPrinter):
    """Turns expressions into text; `line` prints a statement in front of the current one, `fresh`
    makes a name, `buffer_name` and `var_name` name things. `data_vars` are the variables whose
    values come from elements of tensors."""

    buffer_name: Callable[[Buffer], str]
    var_name: Callable[[Var], str]

    def __init__(self) -> None:
        self.depth = 2
        self.data_vars: set[Var] = set()
        self._short: set[str] = set()
        self._uses: dict[Expr, int] = {}
        self._scopes: list[dict[tuple[Expr, bool], str]] = [{}]

    # Entry points -------------------------------------------------------------------------------

    def begin(self, *roots: Expr) -> None:
        """Starts a statement: counts uses, so that shared values get a name."""
        self._uses, self._scopes = {}, [{}]
        seen: set[Expr] = set()
        stack = list(roots)
        for r in roots:
            self._uses[r] = self._uses.get(r, 0) + 1
        while stack:
            e = stack.pop()
            if e in seen:
                continue
            seen.add(e)
            for a in operands(e):
                self._uses[a] = self._uses.get(a, 0) + 1
                stack.append(a)

    def statement_value(self, e: Expr) -> str:
        self.begin(e)
        return self.value(e)

    def value(self, e: Expr, index: bool = False) -> str:
        """The text of an expression. `index`: of a place in memory, whose arithmetic is known not
        to overflow."""
        index = index and e.dtype is dt.i64
        key = (e, index)
        for scope in reversed(self._scopes):
            if key in scope:
                return scope[key]
        self._shorten(e, index)
        if isinstance(e, Op) and e.name == "select" and self._lazy(e):
            text = self._lazy_select(e, index)
        else:
            text = self._spell(e, index)
            if not isinstance(e, (Var, Const)) and (
                    self._uses.get(e, 0) > 1 or len(text) > MOST_TEXT):
                text = self.named(text, e.lanes, value_type(e.dtype), index)
        self._scopes[-1][key] = text
        return text

    def named(self, text: str, lanes: int, kind: str, index: bool = False) -> str:
        """A short text for one of type `kind` that is used more than once."""
        if text in self._short:
            return text
        name = self.fresh()
        if index and lanes == 1:
            self.line(f"{name}: T.let = {text}")
            short = name
        else:
            # TVM's analyses take named values for what they stand for, over and over, and fail on
            # those of vectors; they do not look into memory.
            place = f"{name}[{span('T.int64(0)', lanes)}]"
            memory = "uint8" if kind == "bool" else kind
            self.line(f"{name} = T.alloc_buffer((T.int64({lanes}),), \"{memory}\", "
                      "scope=\"local\")")
            if kind == "bool":
                text = f"T.Cast(\"{typed('uint8', lanes)}\", {text})"
            self.line(f"{place} = {text}")
            short = self._from_memory(place, dt.bool_, lanes) if kind == "bool" else place
        self._short.add(short)
        return short

    def _shorten(self, e: Expr, index: bool) -> None:
        """Spells the far end of a long chain of first operands, so that recursion stays shallow."""
        chain: list[Expr] = []
        while isinstance(e, Op) and e.name != "select" and (e, index) not in self._scopes[-1]:
            chain.append(e)
            e = e.args[0]
        for link in reversed(chain[32::32]):
            self.value(link, index)

    # Selection ----------------------------------------------------------------------------------

    def _lazy(self, e: Expr) -> bool:
        """Whether an arm reads memory, which may be done only where the arm is taken."""
        condition = e.args[0]
        if condition.lanes > 1 and not isinstance(condition, Broadcast):
            return False
        return any(isinstance(x, Load) and x.buffer.space != "register" for x in walk(*e.args[1:]))

    def _lazy_select(self, e: Expr, index: bool) -> str:
        condition = e.args[0].args[0] if isinstance(e.args[0], Broadcast) else e.args[0]
        test, name = self.value(condition), self.fresh()
        place = f"{name}[{span('T.int64(0)', e.lanes)}]"
        self.line(f"{name} = T.alloc_buffer((T.int64({e.lanes}),), \"{memory_type(e.dtype)}\", "
                  "scope=\"local\")")
        for head, arm in ((f"if {test}:", e.args[1]), ("else:", e.args[2])):
            self.line(head)
            self.depth += 1
            self._scopes.append({})
            self.line(f"{place} = {self.to_memory(self.value(arm, index), e)}")
            self._scopes.pop()
            self.depth -= 1
        return self.named(self._from_memory(place, e.dtype, e.lanes), e.lanes, value_type(e.dtype))

    # Spelling -----------------------------------------------------------------------------------

    def _spell(self, e: Expr, index: bool) -> str:
        if isinstance(e, Const):
            return literal(e.value, e.dtype)
        if isinstance(e, Var):
            return self.var_name(e)
        if isinstance(e, Load):
            return self._load(e)
        if isinstance(e, Broadcast):
            return f"T.Broadcast({self.value(e.args[0], index)}, {e.lanes})"
        if isinstance(e, Ramp):
            return span(self.value(e.args[0], index), e.lanes, e.stride)
        if isinstance(e, Call):
            return self._call(e)
        if isinstance(e, Cast):
            return self._cast(e)
        assert isinstance(e, Op), e
        return self._op(e, index)

    def _op(self, e: Op, index: bool) -> str:
        a = [self.value(x, index) for x in e.args]
        d, name = e.args[-1].dtype, e.name
        if name == "select":
            return f"T.Select({', '.join(a)})"
        if d.is_bool:
            return self._bool_op(name, a, e.lanes)
        if d.is_float and d not in (dt.f32, dt.f64):
            raise Inexpressible(f"{name} of {d}")
        if name == "eq":
            return f"T.EQ({a[0]}, {a[1]})"
        if name == "ne":
            return differs(a[0], a[1], e.lanes)
        if name in _COMPARE:
            return f"({a[0]} {_COMPARE[name]} {a[1]})"
        if d.is_integer:
            if index and d is dt.i64:
                exact = self._index_op(e, a)
                if exact is not None:
                    return exact
            return self._integer_op(e, a, d)
        return self._float_op(e, a, d)

    def _bool_op(self, name: str, a: list[str], lanes: int) -> str:
        if name in ("neg", "abs", "sign"):
            return a[0]
        if name == "not":
            return f"T.Not({a[0]})"
        if name in ("and", "mul", "min"):
            return both(a[0], a[1], lanes)
        if name in ("or", "add", "max"):
            return either(a[0], a[1], lanes)
        a = [self.named(x, lanes, "bool") for x in a]
        x, y = a
        if name in ("eq", "ne", "xor"):
            same, other = (y, f"T.Not({y})") if name == "eq" else (f"T.Not({y})", y)
            return f"T.Select({x}, {same}, {other})"
        if name in ("lt", "ge"):
            less = both(f"T.Not({x})", y, lanes)
            return less if name == "lt" else f"T.Not({less})"
        if name in ("gt", "le"):
            more = both(x, f"T.Not({y})", lanes)
            return more if name == "gt" else f"T.Not({more})"
        raise Inexpressible(f"{name} of bool")

    # Floats -------------------------------------------------------------------------------------

    def _float_op(self, e: Op, a: list[str], d: DType) -> str:
        name, lanes = e.name, e.lanes
        if name in PLAIN or name == "div":
            a = [hidden_zero(x, t) for x, t in zip(e.args, a, strict=True)]
            if name == "div":
                return f"T.Div({a[0]}, {a[1]})"
            if name == "mul":
                return f"({a[0]} * {a[1]})"
            # TVM takes (x + y) - y for x; LLVM makes plain sums of these.
            one = self._same(1.0 if name == "add" else -1.0, d, lanes)
            return f"T.fma({a[1]}, {one}, {a[0]})"
        if name == "fma":
            return f"T.fma({', '.join(a)})"
        if name == "neg":
            return f"({a[0]} * {self._same(-1.0, d, lanes)})"
        if name in _TVM:
            return f"{_TVM[name]}({a[0]})"
        if name == "rsqrt":
            return f"T.Div({self._same(1.0, d, lanes)}, T.sqrt({a[0]}))"
        x = self.named(a[0], lanes, value_type(d))
        if name == "isnan":
            return is_nan(x)
        if name == "isinf":
            return f"T.EQ(T.abs({x}), {self._same(math.inf, d, lanes)})"
        if name in ("min", "max"):
            return self._extreme(e, [x, self.named(a[1], lanes, value_type(d))])
        if name == "sign":
            zero = self._same(0.0, d, lanes)
            other = f"T.Select(T.EQ({x}, {zero}), {zero}, {x})"
            below = f"T.Select({x} < {zero}, {self._same(-1.0, d, lanes)}, {other})"
            return f"T.Select({x} > {zero}, {self._same(1.0, d, lanes)}, {below})"
        if name in ("mod", "floordiv"):
            return self._float_modulus(e, x, self.named(a[1], lanes, value_type(d)), d)
        return self._library(MATH["rem" if name == "rem" else name], d, lanes, [x, *a[1:]])

    def _extreme(self, e: Op, a: list[str]) -> str:
        # The second operand is taken when either is NaN, so a number goes first.
        sign = "<" if e.name == "min" else ">"
        numbers = [is_number(x) for x in e.args]
        x, y = (a[1], a[0]) if numbers[1] else (a[0], a[1])
        if any(numbers):
            return f"T.Select({x} {sign} {y}, {x}, {y})"
        return f"T.Select({either(f'{x} {sign} {y}', is_nan(x), e.lanes)}, {x}, {y})"

    def _float_modulus(self, e: Op, x: str, y: str, d: DType) -> str:
        """As numpy: by fmod, with the sign of the divisor."""
        lanes = e.lanes
        zero, one = self._same(0.0, d, lanes), self._same(1.0, d, lanes)
        rest = self.named(self._library("fmod", d, lanes, [x, y]), lanes, value_type(d))
        off = self.named(both(
            differs(rest, zero, lanes),
            f"T.Select({y} < {zero}, {rest} > {zero}, {rest} < {zero})", lanes), lanes, "bool")
        if e.name == "mod":
            signed = f"T.Select(T.EQ({rest}, {zero}), " \
                     f"{self._library('copysign', d, lanes, [zero, y])}, {rest})"
            return f"T.Select({off}, {rest} + {y}, {signed})"
        whole = self.named(f"T.Div({x} - {rest}, {y}) - T.Select({off}, {one}, {zero})", lanes,
                           value_type(d))
        near = self.named(f"T.floor({whole})", lanes, value_type(d))
        half = self._same(0.5, d, lanes)
        up = f"T.Select({whole} - {near} > {half}, {near} + {one}, {near})"
        ratio = self.named(f"T.Div({x}, {y})", lanes, value_type(d))
        nothing = self._library("copysign", d, lanes, [zero, ratio])
        some = f"T.Select(T.EQ({whole}, {zero}), {nothing}, {up})"
        return f"T.Select(T.EQ({y}, {zero}), {ratio}, {some})"

    def _library(self, name: str, d: DType, lanes: int, a: list[str]) -> str:
        """A function of C's library, lane by lane."""
        function = name + ("f" if d is dt.f32 else "")
        kind = value_type(d)
        if lanes == 1:
            return f"T.call_pure_extern(\"{kind}\", \"{function}\", {', '.join(a)})"
        a = [self.named(x, lanes, kind) for x in a]
        calls = [f"T.call_pure_extern(\"{kind}\", \"{function}\", "
                 + ", ".join(f"T.Shuffle([{x}], [{k}])" for x in a) + ")" for k in range(lanes)]
        return vector([self.named(c, 1, kind) for c in calls])

    # Conversions --------------------------------------------------------------------------------

    def _cast(self, e: Cast) -> str:
        source, target, lanes = e.args[0].dtype, e.dtype, e.lanes
        a = self.value(e.args[0])
        kind = f"\"{typed(value_type(target), lanes)}\""
        if e.mode == "bits":
            return a if value_type(source) == value_type(target) else f"T.reinterpret({kind}, {a})"
        if source.is_float and source.bits < 32:
            a, source = self._widened(a, source, lanes), dt.f32
        if target.is_bool:
            return differs(a, self._same(0, source, lanes), lanes) if not source.is_bool else a
        if target.is_float and target.bits < 32:
            return self._rounded(a, source, target, lanes)
        if target.is_float:
            return a if source is target else f"T.Cast({kind}, {a})"
        if source.is_float:
            return self._float_to_int(e, a, source, target)
        if e.mode == "saturate" and not source.is_bool:
            raise Inexpressible(f"a saturating cast of {source} to {target}")
        return self._narrow(f"T.Cast({kind}, {a})", target, lanes)

    def _float_to_int(self, e: Cast, a: str, source: DType, target: DType) -> str:
        lanes = e.lanes
        kind = f"\"{typed(value_type(target), lanes)}\""
        if e.mode == "exact":
            return f"T.Cast({kind}, {a})"
        x = self.named(a, lanes, value_type(source))
        # 2**bits is exact in the source type even where the largest integer is not.
        above = self._same(float(2 ** (target.bits - (target.kind == "int"))), source, lanes)
        below = self._same(float(target.min), source, lanes)
        low, high = (self._same(v, target, lanes) for v in (target.min, target.max))
        inner = f"T.Select({x} <= {below}, {low}, T.Cast({kind}, {x}))"
        ordered = f"T.Select({x} >= {above}, {high}, {inner})"
        return f"T.Select({is_nan(x)}, {self._same(0, target, lanes)}, {ordered})"

    def _widened(self, a: str, source: DType, lanes: int) -> str:
        """A narrow float's bits as f32."""
        if source is dt.f16:
            half = f"T.reinterpret(\"{typed('float16', lanes)}\", {a})"
            return f"T.Cast(\"{typed('float32', lanes)}\", {half})"
        if source is dt.bf16:
            wide = f"T.Cast(\"{typed('uint32', lanes)}\", {a})"
            bits = f"T.shift_left({wide}, {self._same(16, dt.u32, lanes)})"
            return f"T.reinterpret(\"{typed('float32', lanes)}\", {bits})"
        raise Inexpressible(f"arithmetic of {source}")

    def _rounded(self, a: str, source: DType, target: DType, lanes: int) -> str:
        """The bits of a narrow float that is the value rounded once."""
        if source is dt.f64 or (target is dt.bf16 and source.is_integer and source.bits > 16):
            raise Inexpressible(f"a cast of {source} to {target}")
        if source is not dt.f32:
            a = f"T.Cast(\"{typed('float32', lanes)}\", {a})"
        if target is dt.f16:
            half = f"T.Cast(\"{typed('float16', lanes)}\", {a})"
            return f"T.reinterpret(\"{typed('uint16', lanes)}\", {half})"
        if target is not dt.bf16:
            raise Inexpressible(f"a cast to {target}")
        x = self.named(a, lanes, "float32")
        bits = self.named(f"T.reinterpret(\"{typed('uint32', lanes)}\", {x})", lanes, "uint32")

        def u32(n: int) -> str:
            return self._same(n, dt.u32, lanes)

        top = self.named(f"T.shift_right({bits}, {u32(16)})", lanes, "uint32")
        # Below NaN the sum stays in 32 bits, and of NaN it is not used.
        odd = f"T.bitwise_and({top}, {u32(1)})"
        low = f"T.bitwise_and({bits}, {u32(0xFFFF)})"
        up = f"{top} + T.shift_right({low} + {u32(0x7FFF)} + {odd}, {u32(16)})"
        nan = f"T.bitwise_or(T.bitwise_and({top}, {u32(0x8000)}), {u32(0x7FC0)})"
        chosen = f"T.Select({is_nan(x)}, {nan}, {up})"
        return f"T.Cast(\"{typed('uint16', lanes)}\", {chosen})"

    # Intrinsics ---------------------------------------------------------------------------------

    def _call(self, e: Call) -> str:
        intrinsic, lanes = e.intrinsic, e.lanes
        a = [self.value(x) for x in e.args]
        if intrinsic is PACK4:
            return f"T.reinterpret(\"int32\", {a[0]})"
        if intrinsic is SCALE:
            return self._scale(a, lanes)
        if intrinsic is DOT4 or intrinsic is DOT2_I16:
            return self._integer_dot(e, a)
        if intrinsic.name.startswith(f"{SHUFFLE}_"):
            picks = ", ".join(intrinsic.name.split("_")[1:])
            return f"T.Shuffle([{a[0]}, {a[1]}], [{picks}])"
        kind = next((k for k, one in HORIZONTAL.items() if one is intrinsic), None)
        if kind is None:
            raise Inexpressible(f"the intrinsic {intrinsic.name}")
        return self._horizontal(kind, e.args[0], a[0])

    def _horizontal(self, fold: str, x: Expr, text: str) -> str:
        name = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}[fold]
        kind = value_type(x.dtype)
        text, width = self.named(text, x.lanes, kind), x.lanes
        while width > 1:
            half = width // 2
            parts = [self.named(f"T.Shuffle([{text}], [{', '.join(map(str, r))}])", half, kind)
                     for r in (range(half), range(half, width))]
            # Variables stand for the halves.
            pair = tuple(var(k, x.dtype) for k in ("left", "right"))
            self.data_vars.update(pair)
            like = op(name, *(broadcast(v, half) for v in pair))
            assert isinstance(like, Op)
            spelled = self._integer_op(like, parts, x.dtype) if x.dtype.is_integer \
                else self._float_op(like, parts, x.dtype)
            text, width = self.named(spelled, half, kind), half
        return text

    def _scale(self, a: list[str], lanes: int) -> str:
        """x * 2**n by two factors, of which only the second product rounds."""
        whole = self.named(f"T.Cast(\"{typed('int32', lanes)}\", {a[1]})", lanes, "int32")
        half = self.named(f"T.shift_right({whole}, {self._same(1, dt.i32, lanes)})", lanes, "int32")

        def power(n: str) -> str:
            exponent = f"{n} + {self._same(127, dt.i32, lanes)}"
            bits = f"T.shift_left({exponent}, {self._same(23, dt.i32, lanes)})"
            return f"T.reinterpret(\"{typed('float32', lanes)}\", {bits})"

        return f"({a[0]} * {power(half)} * {power(f'({whole} - {half})')})"

    def _integer_dot(self, e: Call, a: list[str]) -> str:
        """Products of the parts of i32 lanes: four u8 with i8, or two i16 with i16."""
        lanes, signed = e.lanes, e.intrinsic is DOT2_I16
        bits = 16 if signed else 8
        x, y = self.named(a[1], lanes, "int32"), self.named(a[2], lanes, "int32")

        def i32(n: int) -> str:
            return self._same(n, dt.i32, lanes)

        def part(z: str, k: int) -> str:
            above = i32(32 - bits - bits * k)
            return f"T.shift_right(T.shift_left({z}, {above}), {i32(32 - bits)})"

        products = []
        for k in range(32 // bits):
            u = part(x, k) if signed else \
                f"T.bitwise_and(T.shift_right({x}, {i32(8 * k)}), {i32(255)})"
            products.append(self.named(f"{u} * {part(y, k)}", lanes, "int32"))
        return self.wrapping("add", e, [a[0], f"({' + '.join(products)})"])

    # Memory -------------------------------------------------------------------------------------

    def place(self, buffer: Buffer, index: tuple[Expr, ...], lanes: int) -> tuple[str, str]:
        """(name of the buffer, text of the flat index) of an access of so many lanes."""
        name = self.buffer_name(buffer)
        last = index[-1] if index else wrap(0)
        if last.lanes > 1:
            if not isinstance(last, Ramp):
                raise Inexpressible("a gather by a vector that is not a ramp")
            base = buffer.offset((*index[:-1], last.args[0]))
            return name, span(self.value(base, True), lanes, last.stride)
        offset = buffer.offset(index)
        if buffer.lanes > 1:
            offset = offset * wrap(buffer.lanes)
        return name, span(self.value(offset, True), lanes)

    def _load(self, e: Load) -> str:
        name, at = self.place(e.buffer, e.index, e.lanes)
        if e.count is None:
            return self._from_memory(f"{name}[{at}]", e.dtype, e.lanes)
        if e.lanes == 1:
            raise Inexpressible("a counted load of a single lane")
        kind = memory_type(e.dtype)
        zero = f"T.Broadcast({zero_of(kind)}, {e.lanes})"
        present = self.named(self.mask(e.count, e.lanes), e.lanes, "bool")
        last = e.index[-1]
        if isinstance(last, Ramp) and last.stride != 1:
            base = self.value(e.buffer.offset((*e.index[:-1], last.args[0])), True)
            items = [f"T.if_then_else(T.Shuffle([{present}], [{k}]), "
                     f"{name}[{base} + T.int64({k * last.stride})], {zero_of(kind)})"
                     for k in range(e.lanes)]
            whole = vector([self.named(x, 1, kind) for x in items])
            return self._from_memory(whole, e.dtype, e.lanes)
        loaded = f"T.masked_load(\"{typed(kind, e.lanes)}\", {name}, {at}, {present})"
        return self._from_memory(f"T.Select({present}, {loaded}, {zero})", e.dtype, e.lanes)

    def mask(self, count: Expr, lanes: int) -> str:
        """The lanes below `count`."""
        # TVM fails where it finds out that a comparison of vectors always holds.
        limit = self.named(self.value(count, True), 1, "int64")
        return f"({span('T.int64(0)', lanes)} < T.Broadcast({limit}, {lanes}))"

    def _from_memory(self, text: str, d: DType, lanes: int) -> str:
        if d.is_bool:
            zero = "T.uint8(0)" if lanes == 1 else f"T.Broadcast(T.uint8(0), {lanes})"
            return differs(text, zero, lanes)
        return self._narrow(text, d, lanes) if d.is_integer else text

    def to_memory(self, text: str, e: Expr) -> str:
        """The element that stands for a value in a buffer."""
        return f"T.Cast(\"{typed('uint8', e.lanes)}\", {text})" if e.dtype.is_bool else text


def operands(e: Expr) -> tuple[Expr, ...]:
    """The expressions that the text of `e` is made of."""
    if isinstance(e, Load):
        index, buffer = e.index, e.buffer
        if index and isinstance(index[-1], Ramp):
            index = (*index[:-1], index[-1].args[0])
        offset = buffer.offset(index)
        if buffer.lanes > 1:
            offset = offset * wrap(buffer.lanes)
        return (offset,) if e.count is None else (offset, e.count)
    return e.args
