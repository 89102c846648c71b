"""Spells vector expressions in C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ir import dtype as dt
from ..ir.dtype import DType
from ..ir.expr import Broadcast, Cast, Const, Expr, Op, Ramp, wrap
from ..ir.kernel.intrinsics import REPEAT, SHUFFLE
from ..ir.kernel.nodes import Buffer, Call, Load
from .c_bounds import interval
from .c_types import INFIX, MASKS, literal, storage_type
from .c_vector import element_type, type_name

if TYPE_CHECKING:
    from .c import KernelPrinter


class VectorPrinter:
    """The part of the expression printer that knows vectors."""

    p: KernelPrinter

    def value(self, e: Expr) -> str:
        raise NotImplementedError

    def _helper(self, name: str) -> str:
        raise NotImplementedError

    def _gather(self, e: Load, name: str) -> str:
        index = e.index[-1]
        if not isinstance(index, Ramp):
            raise TypeError("a gather needs a ramp of indices")
        base = self.value(e.buffer.offset((*e.index[:-1], index.args[0])))
        present = self._lanes_below(e.count, e.lanes)
        start = self.p.temporary()
        self.p.line(f"const {storage_type(e.dtype)} *{start} = {name} + {base};")
        sign = "-(int32_t)" if e.dtype.is_bool else ""
        items = [f"{sign}{start}[{i * index.stride}]" for i in range(e.lanes)]
        items = ["0" if p == "0" else x if p == "1" else f"({p} ? {x} : 0)"
                 for x, p in zip(items, present, strict=True)]
        return f"({self.vector_type(e.dtype, e.lanes)}){{{', '.join(items)}}}"

    def _lanes_below(self, count: Expr | None, lanes: int) -> list[str]:
        """Per lane, the condition that it is among the first `count`: "0", "1" or a test."""
        if count is None:
            return ["1"] * lanes
        if isinstance(count, Const):
            return ["1" if i < count.value else "0" for i in range(lanes)]
        limit = self.value(count)
        return [f"{limit} > {i}" for i in range(lanes)]

    def scatter(self, e: Expr, buffer: Buffer, index: tuple[Expr, ...], value: str,
                count: Expr | None = None) -> None:
        """Prints the store of a vector (of its first `count` lanes) at a ramp of indices."""
        last = index[-1]
        if not isinstance(last, Ramp):
            raise TypeError("a scatter needs a ramp of indices")
        kind = self.vector_type(e.dtype, e.lanes)
        base = self.value(buffer.offset((*index[:-1], last.args[0])))
        present = self._lanes_below(count, e.lanes)
        name, start = self.p.temporary(), self.p.temporary()
        self.p.line(f"const {kind} {name} = {value};")
        self.p.line(f"{storage_type(buffer.dtype)} *{start} = {self.p.buffer_name(buffer)} + "
                    f"{base};")
        mask = " & 1" if buffer.dtype.is_bool else ""
        stores = [("" if p == "1" else f"if ({p}) ")
                  + f"{start}[{i * last.stride}] = {name}[{i}]{mask};"
                  for i, p in enumerate(present) if p != "0"]
        self.p.line(" ".join(stores))

    def store_vector(self, e: Expr, buffer: Buffer, where: str, value: str,
                     count: str | None) -> None:
        """Prints the store of a vector value at address text `where`."""
        memory = "u8" if buffer.dtype.is_bool else buffer.dtype.name
        vector = f"v{e.lanes}{memory}"
        self.p.needs.vector_types.add(vector)
        if buffer.dtype.is_bool:
            value = f"__builtin_convertvector({value} & 1, {vector})"
        if count is None:
            self.p.line(f"*({vector}_u *)({where}) = {value};")
            return
        helper = f"store_n_{vector}"
        self.p.needs.vector_helpers.add(helper)
        self.p.line(f"{helper}({where}, {value}, {count});")

    # Vectors ------------------------------------------------------------------------------------

    def vector_type(self, dtype: DType, lanes: int) -> str:
        name = type_name(dtype, lanes)
        self.p.needs.vector_types.add(name)
        return name

    def _mask_type(self, lanes: int) -> str:
        return self.vector_type(dt.i32, lanes)

    def _broadcast(self, e: Broadcast) -> str:
        a = self.value(e.args[0])
        kind = self.vector_type(e.dtype, e.lanes)
        if e.dtype.is_bool:
            a = f"(-(int32_t)({a}))"
        if isinstance(e.args[0], Const) and e.args[0].value == 0 and "-" not in a:
            return f"({kind}){{0}}"
        # x - 0 keeps every value and sign, which 0 + x would not for -0.
        return f"(({element_type(e.dtype)}){a} - ({kind}){{0}})"

    def _vector_helper(self, operation: str, e: Expr) -> str:
        name = f"{operation}_{type_name(e.dtype, e.lanes)}"
        self.vector_type(e.dtype, e.lanes)
        self.p.needs.vector_helpers.add(name)
        return name

    def _vector(self, e: Expr) -> str:
        if isinstance(e, Cast):
            return self._vector_cast(e)
        if isinstance(e, Ramp):
            return self._ramp(e, dt.i64)
        if not isinstance(e, Op):
            raise TypeError(f"C has no vector spelling for {e!r}")
        a = [self.value(x) for x in e.args]
        kind = self.vector_type(e.dtype, e.lanes)
        d, name = e.args[-1].dtype, e.name
        if name == "select":
            return self._vector_select(e, a, kind)
        if d.is_bool and name in MASKS:
            return f"({MASKS[name].format(*a)})"
        if name in ("eq", "ne", "lt", "le", "gt", "ge"):
            test = f"({a[0]} {INFIX[name]} {a[1]})"
            if d.bits != 32:
                return f"__builtin_convertvector({test}, {kind})"
            return f"({kind}){test}"
        if name in INFIX:
            return f"({a[0]} {INFIX[name]} {a[1]})"
        if name == "div":
            return f"({a[0]} / {a[1]})"
        if name in ("shl", "shr"):
            return f"({a[0]} {'<<' if name == 'shl' else '>>'} {a[1]})"
        if name == "neg":
            return f"(-{a[0]})"
        if name == "not":
            return f"(~{a[0]})"
        if name in ("min", "max"):
            return self._vector_minmax(name, e, a)
        mask = self._mask_type(e.lanes)
        if name == "abs" and d is dt.f32:
            return f"({kind})(({mask}){a[0]} & 0x7fffffff)"
        if name == "abs":
            sign = f"({a[0]} >> {d.bits - 1})"
            return a[0] if d.kind == "uint" else f"(({a[0]} ^ {sign}) - {sign})"
        if name == "sign":
            test = f"(({a[0]} < 0) - ({a[0]} > 0))"
            number = f"__builtin_convertvector({test}, {kind})"
            return f"({number} + 0 * {a[0]})" if d.is_float else f"({kind}){test}"
        if name == "isnan":
            return f"({mask})({a[0]} != {a[0]})"
        if name == "isinf":
            return f"({mask})((({mask}){a[0]} & 0x7fffffff) == 0x7f800000)"
        if name in ("fma", "sqrt", "floor", "ceil", "round", "trunc"):
            return f"{self._vector_helper(name, e)}({', '.join(a)})"
        raise TypeError(f"C has no vector {name}")

    def _vector_minmax(self, name: str, e: Op, a: list[str]) -> str:
        def number(x: Expr) -> bool:
            return isinstance(x, Const) or (isinstance(x, Broadcast) and number(x.args[0]))

        if e.dtype is dt.f32 and (e.dtype.name, e.lanes) and (
                f"{name}_number", "f32", e.lanes) in self.p.isa.spelling:
            if number(e.args[0]) or number(e.args[1]):
                x, y = (a[1], a[0]) if number(e.args[1]) else (a[0], a[1])
                return f"{self._vector_helper(name + '_number', e)}({x}, {y})"
        return f"{self._vector_helper(name, e)}({a[0]}, {a[1]})"

    def _vector_select(self, e: Op, a: list[str], kind: str) -> str:
        if e.dtype.bits == 32 or e.dtype.is_bool:
            mask, m = self._mask_type(e.lanes), a[0]
            if not m.isidentifier():
                m = self.p.temporary()
                self.p.line(f"const {mask} {m} = {a[0]};")
        else:
            mask = self.vector_type(dt.dtype(f"i{e.dtype.bits}"), e.lanes)
            m = f"__builtin_convertvector({a[0]}, {mask})"
        return f"({kind})(({m} & ({mask}){a[1]}) | (~{m} & ({mask}){a[2]}))"

    def _ramp(self, e: Ramp, target: DType) -> str:
        """base, base + stride, ... as integers of the target type."""
        kind = self.vector_type(target, e.lanes)
        steps = ", ".join(str(i * e.stride) for i in range(e.lanes))
        if e.args[0] is wrap(0):
            return f"({kind}){{{steps}}}"
        return f"(({element_type(target)}){self.value(e.args[0])} + ({kind}){{{steps}}})"

    def _vector_cast(self, e: Cast) -> str:
        source, target = e.args[0].dtype, e.dtype
        if isinstance(e.args[0], Ramp) and target is dt.i32:
            return self._ramp(e.args[0], target)
        a = self.value(e.args[0])
        kind, lanes = self.vector_type(target, e.lanes), e.lanes
        self.vector_type(source, lanes)
        if e.mode == "bits":
            return f"({kind}){a}"
        if dt.bf16 in (source, target):
            return self._bf16_cast(a, source, target, lanes)
        if source is dt.f16:
            assert target is dt.f32, target
            return f"{self._named('widen', source, lanes)}({a})"
        if target.is_bool:
            test = f"({a} != 0)"
            return (f"__builtin_convertvector({test}, {kind})" if source.bits != 32
                    else f"({kind}){test}")
        mask = self._mask_type(lanes)
        if source.is_bool:
            one = f"({a} & 1)"
            return one if target is dt.i32 else f"__builtin_convertvector({one}, {kind})"
        if source.is_float and target.is_integer:
            known = interval(e.args[0])
            if e.mode != "exact" and (
                    known is None or known[0] < target.min or known[1] > target.max):
                low, high = float(target.min), float(target.max)
                if target.bits == 32:
                    high = 2147483520.0 if target is dt.i32 else 4294967040.0
                a = self._saturated(a, lanes, low, high)
                if target.bits == 32:
                    # The clamp is to the largest f32 below 2**31 or 2**32; the rest are low bits.
                    rest = 127 if target is dt.i32 else 255
                    whole = f"__builtin_convertvector({a}, {kind})"
                    return f"({whole} | ({kind})({a}h & {rest}))"
            if target is dt.u32:
                return f"__builtin_convertvector({a}, {kind})"
            whole = f"__builtin_convertvector({a}, {mask})"
            return whole if target is dt.i32 else self._narrowed(whole, target, lanes)
        if source.bits < 32 and target.is_float:
            return f"__builtin_convertvector({self._widened(a, source, lanes)}, {kind})"
        if source.bits == 8 and target.bits == 32:
            return f"({kind}){self._widened(a, source, lanes)}"
        if source.bits == 32 and source.is_integer and target.bits == 8:
            return self._narrowed(f"({mask}){a}", target, lanes)
        return f"__builtin_convertvector({a}, {kind})"

    def _bf16_cast(self, a: str, source: DType, target: DType, lanes: int) -> str:
        """bf16 from or to f32; other types go by way of f32."""
        assert dt.f32 in (source, target), (source, target)
        direction = "narrow" if target is dt.bf16 else "widen"
        return f"{self._named(direction, dt.bf16, lanes)}({a})"

    def _named(self, operation: str, dtype: DType, lanes: int) -> str:
        name = f"{operation}_{self.vector_type(dtype, lanes)}"
        self.p.needs.vector_helpers.add(name)
        return name

    def _widened(self, a: str, source: DType, lanes: int) -> str:
        """8-bit lanes as i32."""
        if source.bits != 8:
            return f"__builtin_convertvector({a}, {self._mask_type(lanes)})"
        return f"{self._named('widen', source, lanes)}({a})"

    def _narrowed(self, a: str, target: DType, lanes: int) -> str:
        """The low 8 bits of i32 lanes."""
        if target.bits != 8:
            return f"__builtin_convertvector({a}, {self.vector_type(target, lanes)})"
        return f"{self._named('narrow', target, lanes)}({a})"

    def _saturated(self, a: str, lanes: int, low: float, high: float) -> str:
        """A vector of f32 clamped to [low, high], NaN replaced by 0: the name of a variable, which
        with an h behind is the mask of the lanes that were above."""
        kind, mask = self.vector_type(dt.f32, lanes), self._mask_type(lanes)
        t = self.p.temporary()
        self.p.line(f"const {kind} {t} = {a};")
        u = self.p.temporary()
        lo, hi = literal(low, dt.f32), literal(high, dt.f32)
        self.p.line(f"const {mask} {u}n = {t} == {t}, {u}l = {t} < {lo}, {u}h = {t} > {hi};")
        self.p.line(
            f"const {kind} {u} = ({kind})((({u}l & ({mask})({lo} - ({kind}){{0}})) | "
            f"({u}h & ({mask})({hi} - ({kind}){{0}})) | (~({u}l | {u}h) & ({mask}){t})) & {u}n);")
        return u

    def _call(self, e: Call) -> str:
        name = e.intrinsic.name
        if name.startswith("horizontal_"):
            vector = e.args[0]
            helper = f"{name}_{type_name(vector.dtype, vector.lanes)}"
            self.vector_type(vector.dtype, vector.lanes)
            self.p.needs.vector_helpers.add(helper)
            return f"{helper}({self.value(vector)})"
        if name == "pack4":
            source = e.args[0]
            assert isinstance(source, Load)
            where = f"{self.p.buffer_name(source.buffer)} + " \
                    f"{self.value(source.buffer.offset(source.index))}"
            if source.count is None:
                return f"{self._helper('pack4')}({where})"
            size = source.dtype.itemsize
            present = f"{self.value(source.count)} * {size}" if size > 1 else self.value(
                source.count)
            return f"{self._helper('pack4_n')}({where}, {present})"
        if name in ("dot4_u8i8", "dot2_i16", "dot2_bf16", "scale"):
            # Factors of dot products are vectors of i32 that hold four bytes or two halves each.
            a = [self.value(x) for x in e.args]
            return f"{self._vector_helper(name, e)}({', '.join(a)})"
        if name.startswith(SHUFFLE):
            x, y = (self.value(v) for v in e.args)
            picks = name.removeprefix(f"{SHUFFLE}_").replace("_", ", ")
            return f"__builtin_shufflevector({x}, {y}, {picks})"
        if name.startswith(REPEAT):
            source = e.args[0]
            assert isinstance(source, Load)
            where = f"{self.p.buffer_name(source.buffer)} + " \
                    f"{self.value(source.buffer.offset(source.index))}"
            return f"{self._vector_helper(f'{REPEAT}{source.lanes}', e)}({where})"
        raise TypeError(f"C has no spelling for intrinsic {name}")
