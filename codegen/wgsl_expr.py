"""Spells scalar expressions in WGSL.

Values of i64 and of narrow integers are i32 or u32, rewrapped to their width after arithmetic;
values of f16 and bf16 are their bits in a u32. `passes.kernel.narrow` tells which kernels may have
i64 so.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelError
from ..ir import dtype as dt
from ..ir.algebra import at_least
from ..ir.dtype import DType
from ..ir.expr import Cast, Const, Expr, Op, Var, substitute, var
from ..ir.kernel.nodes import Load
from .c_bounds import interval
from .values import ValuePrinter

if TYPE_CHECKING:
    from .wgsl import ShaderPrinter

HALVES = (dt.f16, dt.bf16)
INFIX = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "eq": "==",
         "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
BOOLS = {"add": "({0} || {1})", "max": "({0} || {1})", "or": "({0} || {1})",
         "mul": "({0} && {1})", "min": "({0} && {1})", "and": "({0} && {1})",
         "xor": "({0} != {1})", "ne": "({0} != {1})", "eq": "({0} == {1})",
         "lt": "(!{0} && {1})", "le": "(!{0} || {1})", "gt": "({0} && !{1})",
         "ge": "({0} || !{1})", "not": "(!{0})", "neg": "{0}", "abs": "{0}", "sign": "{0}"}
BUILTINS = frozenset(["sqrt", "exp", "exp2", "log", "sin", "cos", "tan", "asin", "acos", "atan",
                      "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "floor", "ceil", "round",
                      "trunc", "atan2", "fma", "abs", "sign"])


def wgsl_type(dtype: DType) -> str:
    """The WGSL type that holds a value. Raises KeyError for types that none can hold."""
    if dtype is dt.f32:
        return "f32"
    if dtype.is_bool:
        return "bool"
    if dtype.kind == "int":
        return "i32"
    if (dtype.kind == "uint" and dtype.bits <= 32) or dtype in HALVES:
        return "u32"
    raise KeyError(dtype.name)


class WgslExpressions(ValuePrinter):
    """Turns expressions into WGSL, adding temporaries through the shader printer."""

    p: ShaderPrinter

    def __init__(self, printer: ShaderPrinter):
        super().__init__()
        self.p = printer
        self._naturals: dict[Expr, Expr] = {}

    def define(self, v: Var, value: Expr) -> None:
        """States what a variable stands for."""
        if value.dtype is dt.i64 and self._natural(value):
            self._naturals[v] = var(v.name, low=0)

    def type_of(self, dtype: DType) -> str:
        """The WGSL type of a value. Raises ModelError naming the node for others."""
        try:
            return wgsl_type(dtype)
        except KeyError:
            raise self.refusal(f"WGSL has no {dtype.name}") from None

    def refusal(self, why: str) -> ModelError:
        kernel = self.p.kernel
        return ModelError(f"{kernel.origin or kernel.name}: {why}, so this does not run on webgpu")

    def declaration(self, e: Expr, name: str, text: str | None) -> str:
        kind = self.type_of(e.dtype)
        return f"var {name}: {kind};" if text is None else f"let {name}: {kind} = {text};"

    def named(self, e: Expr) -> str:
        """A name, or number, for a value that its user spells more than once."""
        return self.text_named(e, self.value(e))

    def text_named(self, e: Expr, text: str) -> str:
        if re.fullmatch(r"[\w.]+", text) is None:
            name = self.p.temporary()
            self.p.line(self.declaration(e, name, text))
            self._scopes[-1][e] = text = name
        return text

    def helper(self, name: str) -> str:
        self.p.helpers.add(name)
        return name

    # Values -------------------------------------------------------------------------------------

    def _spell(self, e: Expr) -> str:
        if e.lanes > 1:
            raise TypeError(f"{self.p.kernel.name}: vectors have no spelling in WGSL: {e!r}")
        if isinstance(e, Const):
            return self.literal(e)
        if isinstance(e, Var):
            return self.p.var_name(e)
        if isinstance(e, Load):
            return self.p.load(e)
        if isinstance(e, Cast):
            return self._cast(e)
        assert isinstance(e, Op), e
        return self._op(e)

    def literal(self, e: Const) -> str:
        d, value = e.dtype, e.value
        kind = self.type_of(d)
        if d.is_bool:
            return "true" if value else "false"
        if d in HALVES:
            bits = int(np.asarray(value, d.numpy).view(np.uint16))
            return f"{bits:#x}u"
        if kind == "f32":
            if not math.isfinite(value):
                bits = int(np.asarray(value, np.float32).view(np.uint32))
                return f"{self.helper('bits_to_f32')}({bits:#x}u)"
            text = str(np.float32(value)) + "f"
        elif kind == "u32":
            return f"{value}u"
        else:
            value = min(max(value, -(1 << 31)), (1 << 31) - 1)
            text = "i32(-2147483648)" if value == -(1 << 31) else f"{value}i"
        return f"({text})" if text.startswith("-") else text

    def _op(self, e: Op) -> str:
        a = [self.value(x) for x in e.args]
        d, name = e.args[-1].dtype, e.name
        if name == "select":
            return f"select({a[2]}, {a[1]}, {a[0]})"
        if d.is_bool:
            return BOOLS[name].format(*a)
        if d in HALVES:
            raise TypeError(f"{d} {name} is not legalised")
        kind = self.type_of(d)
        if name in INFIX:
            text = f"({a[0]} {INFIX[name]} {a[1]})"
            return self._wrapped(text, d) if name in ("add", "sub", "mul") else text
        if kind == "f32":
            return self._float_op(name, e, a)
        return self._integer_op(name, e, a, kind)

    def _float_op(self, name: str, e: Op, a: list[str]) -> str:
        if name in ("min", "max"):
            # A number as the first operand makes NaN of the second one pass.
            for x, y, number in ((a[0], a[1], e.args[0]), (a[1], a[0], e.args[1])):
                if isinstance(number, Const):
                    y = self.text_named(e.args[1] if number is e.args[0] else e.args[0], y)
                    return f"select({y}, {x}, {x} {'<' if name == 'min' else '>'} {y})"
            return f"{self.helper(name + '_f32')}({a[0]}, {a[1]})"
        if name == "div":
            return f"({a[0]} / {a[1]})"
        if name == "neg":
            return f"(-{a[0]})"
        if name in ("isnan", "isinf"):
            return f"{self.helper('is_' + name[2:])}({a[0]})"
        if name in ("mod", "pow", "rem"):
            return f"{self.helper(name + '_f32')}({a[0]}, {a[1]})"
        if name == "floordiv":
            return f"floor({a[0]} / {a[1]})"
        if name in BUILTINS:
            return f"{name}({', '.join(a)})"
        raise TypeError(f"WGSL has no {name} of floats")

    def _integer_op(self, name: str, e: Op, a: list[str], kind: str) -> str:
        d = e.dtype
        if name in ("min", "max"):
            return f"{name}({a[0]}, {a[1]})"
        if name in ("floordiv", "mod", "div", "rem"):
            whole = name in ("floordiv", "div")
            if self._natural(e.args[0]) and self._positive(e.args[1]):
                return f"({a[0]} {'/' if whole else '%'} {a[1]})"
            if kind == "u32":
                name = "div" if whole else "rem"
            return self._wrapped(f"{self.helper(f'{name}_{kind}')}({a[0]}, {a[1]})", d)
        if name in ("shl", "shr"):
            amount = e.args[1]
            if isinstance(amount, Const) and 0 <= amount.value < min(d.bits, 32):
                text = f"({a[0]} {'<<' if name == 'shl' else '>>'} {amount.value}u)"
            else:
                text = f"{self.helper(f'{name}_{kind}')}({a[0]}, {a[1]})"
            return self._wrapped(text, d)
        if name == "pow":
            return self._wrapped(f"{self.helper('pow_' + kind)}({a[0]}, {a[1]})", d)
        if name == "fma":
            return self._wrapped(f"({a[0]} * {a[1]} + {a[2]})", d)
        if name == "neg":
            zero = "0i" if kind == "i32" else "0u"
            return self._wrapped(f"({zero} - {a[0]})", d)
        if name == "not":
            return self._wrapped(f"(~{a[0]})", d)
        if name == "abs":
            return self._wrapped(f"abs({a[0]})", d)
        if name == "sign":
            return f"sign({a[0]})" if kind == "i32" else f"min({a[0]}, 1u)"
        raise TypeError(f"WGSL has no integer {name}")

    def _natural(self, e: Expr) -> bool:
        return e.dtype.kind == "uint" or (
            e.dtype is dt.i64 and at_least(substitute(e, dict(self._naturals)), 0))

    def _positive(self, e: Expr) -> bool:
        # What is divided by a size of 0 is never used: nothing has an index in it.
        return e.value > 0 if isinstance(e, Const) else e.dtype is dt.i64 and self._natural(e)

    def _wrapped(self, text: str, d: DType) -> str:
        """The low bits of an integer as one of its type."""
        return text if d.bits >= 32 else f"extractBits({text}, 0u, {d.bits}u)"

    # Conversions --------------------------------------------------------------------------------

    def _cast(self, e: Cast) -> str:
        source, target = e.args[0].dtype, e.dtype
        a = self.value(e.args[0])
        kind, origin = self.type_of(target), self.type_of(source)
        if e.mode == "bits":
            if target.bits < 32 or source.bits < 32:
                return a if kind == origin else self._wrapped(f"{kind}({a})", target)
            return a if kind == origin else f"bitcast<{kind}>({a})"
        if source in HALVES:
            a = self.widened(a, source)
            origin = "f32"
        if target in HALVES:
            a = a if origin == "f32" else f"f32({a})"
            return f"{self.helper('f32_to_' + target.name)}({a})"
        if target.is_bool:
            return f"({a} != {kind_zero(origin)})"
        if kind == "f32":
            return a if origin == "f32" else f"f32({a})"
        if origin == "f32":
            return self._float_to_int(a, e, target, kind)
        if origin == kind:
            return a if source.bits <= target.bits else self._wrapped(a, target)
        return self._wrapped(f"{kind}({a})", target)

    def _float_to_int(self, a: str, e: Cast, target: DType, kind: str) -> str:
        low, high = int(target.min), int(target.max)
        if target is dt.i64:  # passes.kernel.narrow.FROM_FLOAT
            low, high = -2147483520, 2147483520
        known = interval(e.args[0])
        if e.mode == "exact" or (known is not None and low <= known[0] and known[1] <= high):
            return f"{kind}({a})"
        text = f"{self.helper('to_' + kind)}({a})"
        if target.bits == 32:
            return text
        ends = (f"{low}i", f"{high}i") if kind == "i32" else (f"{low}u", f"{high}u")
        return f"clamp({text}, {ends[0]}, {ends[1]})"

    def widened(self, a: str, source: DType) -> str:
        """The f32 value of the bits of a narrow float."""
        if source is dt.bf16:
            return f"{self.helper('bits_to_f32')}({a} << 16u)"
        return f"{self.helper('f16_to_f32')}({a})"


def kind_zero(kind: str) -> str:
    """0 in a WGSL type."""
    return {"f32": "0.0f", "i32": "0i", "u32": "0u", "bool": "false"}[kind]
