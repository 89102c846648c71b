"""Spells expressions in C, scalar and vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ir import dtype as dt
from ..ir.algebra import at_least
from ..ir.dtype import DType
from ..ir.expr import Broadcast, Cast, Const, Expr, Op, Var, wrap
from ..ir.kernel.nodes import Buffer, Call, Load
from .c_bounds import interval
from .c_prelude import SMALL_FLOATS
from .c_types import INFIX, MATH, c_type, literal
from .c_vector_expr import VectorPrinter
from .values import ValuePrinter

if TYPE_CHECKING:
    from .c import KernelPrinter


class ExpressionPrinter(ValuePrinter, VectorPrinter):
    """Turns expressions into C text, adding temporaries through the kernel printer."""

    p: KernelPrinter

    def __init__(self, printer: KernelPrinter):
        super().__init__()
        self.p = printer

    def declaration(self, e: Expr, name: str, text: str | None) -> str:
        kind = self.scalar_type(e) if e.lanes == 1 else self.vector_type(e.dtype, e.lanes)
        return f"{kind} {name};" if text is None else f"const {kind} {name} = {text};"

    def _spell(self, e: Expr) -> str:
        if isinstance(e, Const):
            if e.dtype.is_float and e.dtype not in (dt.f32, dt.f64):
                return self.to_storage_from(literal(e.value, dt.f64), e.dtype)
            return literal(e.value, e.dtype)
        if isinstance(e, Var):
            return self.p.var_name(e)
        if isinstance(e, Load):
            return self._load(e)
        if isinstance(e, Broadcast):
            return self._broadcast(e)
        if isinstance(e, Call):
            return self._call(e)
        if e.lanes > 1:
            return self._vector(e)
        if isinstance(e, Cast):
            return self._cast(e)
        assert isinstance(e, Op), e
        return self._scalar_op(e)

    # Scalars ------------------------------------------------------------------------------------

    def scalar_type(self, e: Expr) -> str:
        """The C type of a local that holds a scalar value."""
        return c_type(e.dtype)

    def _scalar_op(self, e: Op) -> str:
        a = [self.value(x) for x in e.args]
        d = e.args[-1].dtype
        name = e.name
        if name == "select":
            return f"({a[0]} ? {a[1]} : {a[2]})"
        if d.is_bool and name in ("add", "mul"):
            return f"({a[0]} {'|' if name == 'add' else '&'} {a[1]})"
        if name in INFIX:
            text = f"({a[0]} {INFIX[name]} {a[1]})"
            if name in ("add", "sub", "mul"):
                if d is dt.i32:
                    return f"(int32_t)((uint32_t){a[0]} {INFIX[name]} (uint32_t){a[1]})"
                if d is dt.u16 and name == "mul":  # the product may not fit an int
                    return f"(uint16_t)((uint32_t){a[0]} * {a[1]})"
                if d.is_integer and d.bits < 32:
                    return f"({c_type(d)}){text}"
            return text
        if name in ("min", "max"):
            return self._minmax(name, e, a)
        if d.is_bool:
            return {"not": f"(!{a[0]})", "neg": a[0], "abs": a[0], "sign": a[0]}[name]
        if d.is_integer:
            return self._integer_op(name, e, a, d)
        if name == "div":
            return f"({a[0]} / {a[1]})"
        if name == "neg":
            return f"(-{a[0]})"
        if name == "sign":
            return f"(({c_type(d)})(({a[0]} > 0) - ({a[0]} < 0)) + 0 * {a[0]})"
        if name == "isnan":
            return f"({a[0]} != {a[0]})"
        if name == "isinf":
            return f"(isinf({a[0]}) != 0)"
        if name == "rsqrt":
            return f"(1 / {self._function('sqrt', d)}({a[0]}))"
        if name == "mod":
            return f"{self._helper('fmod_' + d.name)}({a[0]}, {a[1]})"
        if name == "floordiv":
            return f"{self._function('floor', d)}({a[0]} / {a[1]})"
        return f"{self._function(MATH[name], d)}({', '.join(a)})"

    def _integer_op(self, name: str, e: Op, a: list[str], d: DType) -> str:
        c, bits = c_type(d), d.bits
        signed = d.kind == "int"
        wide = "i64" if signed else "u64"
        if name in ("floordiv", "mod"):
            positive = not signed or (d is dt.i64 and at_least(e.args[0], 0))
            nonzero = isinstance(e.args[1], Const) and e.args[1].value > 0
            if positive and nonzero:
                return f"({a[0]} {'/' if name == 'floordiv' else '%'} {a[1]})"
            family = wide if not signed else None
            if family:
                helper = "div_u64" if name == "floordiv" else "rem_u64"
            else:
                helper = f"{name}_i64"
            return f"({c}){self._helper(helper)}({a[0]}, {a[1]})"
        if name in ("div", "rem"):
            return f"({c}){self._helper(f'{name}_{wide}')}({a[0]}, {a[1]})"
        if name == "pow":
            return f"({c}){self._helper(f'pow_{wide}')}({a[0]}, {a[1]})"
        if name == "neg":
            return f"({c})(0 - (u{c.lstrip('u')}){a[0]})"
        if name == "abs":
            return a[0] if not signed else f"({c})({a[0]} < 0 ? 0 - (u{c}){a[0]} : (u{c}){a[0]})"
        if name == "not":
            return f"({c})(~{a[0]})"
        if name == "sign":
            return f"({c})(({a[0]} > 0) - ({a[0]} < 0))" if signed else f"({c})({a[0]} > 0)"
        if name in ("shl", "shr"):
            sign = "<<" if name == "shl" else ">>"
            unsigned = "uint64_t" if bits == 64 else "uint32_t"
            left = f"({unsigned}){a[0]}" if name == "shl" else a[0]
            if isinstance(e.args[1], Const) and 0 <= e.args[1].value < bits:
                return f"({c})({left} {sign} {a[1]})"
            if name == "shr" and signed:
                return f"({c})({left} >> ((uint64_t){a[1]} < {bits} ? {a[1]} : {bits - 1}))"
            return f"({c})((uint64_t){a[1]} < {bits} ? {left} {sign} {a[1]} : 0)"
        if name == "fma":
            unsigned = "uint64_t" if bits == 64 else "uint32_t"
            return f"({c})(({unsigned}){a[0]} * ({unsigned}){a[1]} + ({unsigned}){a[2]})"
        raise TypeError(f"C has no integer {name}")

    def _minmax(self, name: str, e: Op, a: list[str]) -> str:
        sign = "<" if name == "min" else ">"
        if not e.dtype.is_float:
            return f"({a[0]} {sign} {a[1]} ? {a[0]} : {a[1]})"
        # The second operand is returned when either is NaN, so a number goes first.
        x, y = (a[1], a[0]) if isinstance(e.args[1], Const) else (a[0], a[1])
        if isinstance(e.args[0], Const) or isinstance(e.args[1], Const):
            return f"({x} {sign} {y} ? {x} : {y})"
        return f"({x} {sign} {y} || {x} != {x} ? {x} : {y})"

    def _function(self, name: str, d: DType) -> str:
        return name + ("f" if d is dt.f32 else "")

    def _helper(self, name: str) -> str:
        self.p.needs.helpers.add(name)
        return name

    def _cast(self, e: Cast) -> str:
        source, target = e.args[0].dtype, e.dtype
        a = self.value(e.args[0])
        if e.mode == "bits":
            return self._bits(a, source, target)
        if source.is_float and source not in (dt.f32, dt.f64):
            a, source = self._widen(a, source), dt.f32
        if target.is_bool:
            return f"({a} != 0)"
        if target.is_float:
            if target in (dt.f32, dt.f64):
                return f"({c_type(target)}){a}" if source is not target else a
            return self.to_storage_from(a, target)
        if source.is_float:
            return self._float_to_int(a, e.args[0], source, target, e.mode == "exact")
        if target.bits < 8:
            return self._narrow(a, target)
        return f"({c_type(target)}){a}"

    def _narrow(self, a: str, target: DType) -> str:
        """The low bits of an integer as one of a type narrower than a byte."""
        shift, kind = 8 - target.bits, c_type(target)
        return f"({kind})(({kind})((uint8_t){a} << {shift}) >> {shift})"

    def _float_to_int(self, a: str, e: Expr, source: DType, target: DType,
                      exact: bool = False) -> str:
        c = c_type(target)
        low, high = float(target.min), float(target.max)
        known = interval(e)
        if exact or (known is not None and low <= known[0] and known[1] <= high):
            return f"({c}){a}"
        name = f"sat_{source.name}_{target.name}"
        s = c_type(source)
        top = f"{c_type(target)}"
        limit_low, limit_high = literal(target.min, target), literal(target.max, target)
        # 2**bits is exact in the source type even where the largest integer is not.
        above = literal(float(2 ** (target.bits - (target.kind == "int"))), source)
        below = literal(low, source)
        self.p.needs.helpers.add(name)
        from . import c_prelude

        c_prelude.HELPERS.setdefault(name, (
            f"static inline {top} {name}({s} x) {{\n"
            f"    if (!(x == x)) return 0;\n"
            f"    if (x >= {above}) return {limit_high};\n"
            f"    if (x <= {below}) return {limit_low};\n"
            f"    return ({top})x;\n}}"))
        return f"{name}({a})"

    def _widen(self, a: str, source: DType) -> str:
        """A narrow float's bits as f32 text."""
        if source is dt.bf16:
            return f"{self._helper('bits_f32')}((uint32_t){a} << 16)"
        if source is dt.f16:
            return f"{self._helper('f16_to_f32')}({a})"
        if source is dt.f8e8m0:
            return f"{self._helper('e8m0_to_f32')}({a})"
        e, m, bias, special = SMALL_FLOATS[source.name]
        return f"{self._helper('small_to_f32')}({a}, {e}, {m}, {bias}, {special})"

    def to_storage_from(self, a: str, target: DType) -> str:
        """The bits of a narrow float holding the rounded value of the f32 or f64 text `a`."""
        c = c_type(target)
        if target is dt.f8e8m0:
            return f"({c}){self._helper('f32_to_e8m0')}({a})"
        e, m, bias, special = SMALL_FLOATS[target.name]
        return f"({c}){self._helper('f32_to_small')}({a}, {e}, {m}, {bias}, {special})"

    def to_storage(self, a: str, target: DType) -> str:
        return a

    def _bits(self, a: str, source: DType, target: DType) -> str:
        if source is dt.f32:
            return f"({c_type(target)}){self._helper('f32_bits')}({a})"
        if source is dt.f64:
            return f"({c_type(target)}){self._helper('f64_bits')}({a})"
        if target is dt.f32:
            return f"{self._helper('bits_f32')}((uint32_t){a})"
        if target is dt.f64:
            return f"{self._helper('bits_f64')}((uint64_t){a})"
        return f"({c_type(target)}){a}"

    # Memory -------------------------------------------------------------------------------------

    def register(self, buffer: Buffer, index) -> str:
        """The local that holds an element of a register buffer."""
        name = self.p.buffer_name(buffer)
        if not buffer.shape:
            return name
        offset = buffer.offset(index)
        if not isinstance(offset, Const):
            raise ValueError(f"{buffer.name}: register index {offset} is not constant")
        return f"{name}_{offset.value}"

    def _load(self, e: Load) -> str:
        buffer = e.buffer
        if buffer.space == "register":
            return self.register(buffer, e.index)
        name = self.p.buffer_name(buffer)
        index = e.index[-1] if e.index else wrap(0)
        if index.lanes > 1:
            return self._gather(e, name)
        offset = self.value(buffer.offset(e.index))
        if e.lanes == 1 and e.dtype.is_integer and e.dtype.bits < 8:
            return self._narrow(f"{name}[{offset}]", e.dtype)  # only the low bits count
        if e.lanes == 1:
            return f"{name}[{offset}]"
        memory = "u8" if e.dtype.is_bool else e.dtype.name
        vector = f"v{e.lanes}{memory}"
        self.p.needs.vector_types.add(vector)
        if e.count is None:
            text = f"*(const {vector}_u *)({name} + {offset})"
        else:
            helper = f"load_n_{vector}"
            self.p.needs.vector_helpers.add(helper)
            text = f"{helper}({name} + {offset}, {self.value(e.count)})"
        if e.dtype.is_bool:
            mask = self.vector_type(e.dtype, e.lanes)
            return f"({mask})(__builtin_convertvector({text}, {mask}) != 0)"
        return text if e.count is not None else f"({vector})({text})"
