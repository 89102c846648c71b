"""The scalar expression language: dimensions, operator bodies and kernels are all written in it.

    expr := Const | Var | Op(name, args) | Cast(x) | Broadcast(x, lanes) | Ramp(base, lanes)
          | Reduce(op, vars, body)                       -- operator bodies only
          | Load, Call                                   -- kernels only, see ir.kernel.nodes

Expressions are immutable and hash-consed: two equal expressions are the same object. Every
expression has a dtype and a number of lanes (1 for scalars). Integer sums and products of i64
are kept in a polynomial normal form (`ir.algebra`), so equal index expressions are identical.

Arithmetic: integers wrap; `div` of integers truncates, `floordiv`/`mod` floor; `min`/`max`
propagate NaN; `round` is half to even; shifts by less than 0 or at least the width give 0, those
of a signed integer to the right its sign (0 or -1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

import numpy as np

from . import dtype as dt
from .dtype import DType
from .operations import OPS, REDUCTIONS, OpInfo

_INTERN: WeakValueDictionary = WeakValueDictionary()


class Expr:
    """Base of all expressions. Build them with the functions below or with Python operators."""

    __slots__ = ("__weakref__", "_poly", "args", "dtype", "hash", "key", "lanes")

    dtype: DType
    lanes: int
    args: tuple[Expr, ...]

    def __hash__(self) -> int:
        return self.hash

    def __repr__(self) -> str:
        return text(self)

    def __reduce__(self):
        return (_rebuild, (type(self), self.key[1:], self.args))

    # Python operators build expressions; `==` stays identity, use `equal` for the operation.
    def __add__(self, other):
        return add(self, other)

    def __radd__(self, other):
        return add(other, self)

    def __sub__(self, other):
        return sub(self, other)

    def __rsub__(self, other):
        return sub(other, self)

    def __mul__(self, other):
        return mul(self, other)

    def __rmul__(self, other):
        return mul(other, self)

    def __truediv__(self, other):
        return op("div", self, other)

    def __rtruediv__(self, other):
        return op("div", other, self)

    def __floordiv__(self, other):
        return floordiv(self, other)

    def __rfloordiv__(self, other):
        return floordiv(other, self)

    def __mod__(self, other):
        return mod(self, other)

    def __rmod__(self, other):
        return mod(other, self)

    def __neg__(self):
        return mul(self, -1) if self.dtype is dt.i64 else op("neg", self)

    def __lt__(self, other):
        return op("lt", self, other)

    def __le__(self, other):
        return op("le", self, other)

    def __gt__(self, other):
        return op("gt", self, other)

    def __ge__(self, other):
        return op("ge", self, other)

    def __and__(self, other):
        return op("and", self, other)

    def __or__(self, other):
        return op("or", self, other)


def _rebuild(cls, fields, args):
    return cls._from_fields(fields, args)


def intern_expr(cls, fields: tuple, args: tuple[Expr, ...], dtype: DType, lanes: int):
    """The one expression of class `cls` with these fields and arguments (fields are hashable)."""
    key = (cls, *fields, *(id(a) for a in args), dtype, lanes)
    found = _INTERN.get(key)
    if found is not None:
        return found
    self = object.__new__(cls)
    self.key = (cls, *fields)
    self.args = args
    self.dtype = dtype
    self.lanes = lanes
    self.hash = hash(key)
    self._poly = None
    _INTERN[key] = self
    return self


class Const(Expr):
    """A literal. `value` is a Python bool, int or float; floats keep their sign and NaN."""

    __slots__ = ()

    @property
    def value(self):
        return self.key[2]

    @classmethod
    def _from_fields(cls, fields, args):
        return const(fields[1], dt.dtype(fields[2]))


class Var(Expr):
    """A named integer or scalar: a loop index, a size, or a let-bound value.

    `extent`, when known (int or Expr), promises 0 <= value < extent. `low` is a lower bound.
    Sizes of tensors are i64 variables with low = 0.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        return self.key[1]

    @property
    def extent(self):
        return self.key[2]

    @property
    def low(self):
        return self.key[3]

    @classmethod
    def _from_fields(cls, fields, args):
        raise TypeError("expressions with variables are pickled as text")


class Op(Expr):
    """An operation of `OPS` on equal-lane arguments."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return self.key[1]

    @classmethod
    def _from_fields(cls, fields, args):
        return op(fields[0], *args)


class Cast(Expr):
    """Conversion to another dtype.

    float to int truncates toward zero (out of range is clamped to the type's limits, NaN is 0);
    int to int wraps; to bool is `!= 0`; to a narrower float rounds half to even.
    `mode` "bits" reinterprets the bits; "saturate" clamps finite overflow to the largest
    finite; "exact" promises that the value is a number in the target's range.
    """

    __slots__ = ()

    @property
    def mode(self) -> str:
        return self.key[1]

    @classmethod
    def _from_fields(cls, fields, args):
        raise TypeError("casts are pickled as text")


class Broadcast(Expr):
    """A scalar repeated in every lane."""

    __slots__ = ()


class Ramp(Expr):
    """Lanes base, base + stride, base + 2*stride, ... (i64 indices); stride is an int. With lanes
    as base, the lanes of base, then those of base + stride, ...: a block of rows."""

    __slots__ = ()

    @property
    def stride(self) -> int:
        return self.key[1]


class Reduce(Expr):
    """Reduction of `body` over `vars` (each a Var with an extent) by "sum", "prod", "max", "min",
    "any" or "all". Only in operator bodies; lowering turns it into loops. An empty range gives
    the identity (0, 1, lowest, highest)."""

    __slots__ = ()

    @property
    def op(self) -> str:
        return self.key[1]

    @property
    def vars(self) -> tuple[Var, ...]:
        return self.args[1:]  # type: ignore[return-value]

    @property
    def body(self) -> Expr:
        return self.args[0]


def const(value, dtype: DType = dt.i64) -> Const:
    """A literal of `dtype`, rounded (floats) or wrapped (integers) to it."""
    if dtype.is_bool:
        value = bool(value)
        field: tuple = (value, value)
    elif dtype.is_integer:
        value = int(value)
        low, span = dtype.min, 1 << dtype.bits
        value = (value - low) % span + low
        field = (value, value)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            value = float(np.asarray(value, np.float64).astype(dtype.numpy))
        # NaN != NaN and -0.0 == 0.0, so the text is the identity.
        field = (repr(value), value)
    if dtype.is_float and math.isnan(value):
        field = ("nan", _NAN)
    return intern_expr(Const, (*field, dtype.name), (), dtype, 1)


_NAN = float("nan")


def var(name: str, dtype: DType = dt.i64, *, extent=None, low: int | None = None) -> Var:
    """A variable; see `Var`. Loop indices pass `extent`, tensor sizes pass low=0."""
    if extent is not None:
        extent = simplify_dim(extent)
        low = 0
    return intern_expr(Var, (name, extent, low), (), dtype, 1)


def size(name: str) -> Var:
    """A symbolic tensor size, at least 0."""
    return var(name, low=0)


def wrap(value, dtype: DType | None = None) -> Expr:
    """`value` as an expression: Expr as it is, Python and numpy numbers as constants."""
    if isinstance(value, Expr):
        return value
    if dtype is None:
        if isinstance(value, (bool, np.bool_)):
            dtype = dt.bool_
        elif isinstance(value, (int, np.integer)):
            dtype = dt.i64
        else:
            dtype = dt.f32
    return const(value, dtype)


def simplify_dim(value):
    """A dimension as int when it is constant, else as the canonical expression."""
    if isinstance(value, Const):
        return int(value.value)
    return value if isinstance(value, Expr) else int(value)


def _unify(args: Iterable) -> list[Expr]:
    """Wraps Python numbers with the dtype (and lanes) of the expressions beside them."""
    items = list(args)
    exprs = [a for a in items if isinstance(a, Expr)]
    dtype = exprs[-1].dtype if exprs else None
    wrapped = [wrap(a, dtype) for a in items]
    lanes = max(a.lanes for a in wrapped)
    return [broadcast(a, lanes) for a in wrapped]


def op(name: str, *args) -> Expr:
    """The operation `name` on `args`, checked and folded when all arguments are constant."""
    info = OPS.get(name)
    if info is None:
        raise ValueError(f"unknown operation {name!r}")
    if len(args) != info.arity:
        raise ValueError(f"{name} takes {info.arity} arguments, got {len(args)}")
    if name == "select":
        condition = wrap(args[0], dt.bool_)
        rest = _unify(args[1:])
        lanes = max(condition.lanes, rest[0].lanes)
        exprs = [broadcast(a, lanes) for a in (condition, *rest)]
    else:
        exprs = _unify(args)
    if name in ("add", "sub", "mul") and exprs[0].dtype is dt.i64 and exprs[0].lanes == 1:
        from .algebra import combine

        return combine(name, *exprs)
    checked = exprs[1:] if name == "select" else exprs
    if any(a.dtype is not checked[0].dtype for a in checked):
        kinds = ", ".join(a.dtype.name for a in checked)
        raise TypeError(f"{name} on mixed dtypes ({kinds})")
    if name == "select" and exprs[0].dtype is not dt.bool_:
        raise TypeError(f"select on a {exprs[0].dtype} condition")
    dtype = dt.bool_ if info.result == "bool" else exprs[-1].dtype
    folded = _fold(name, exprs, dtype, info)
    if folded is not None:
        return folded
    return intern_expr(Op, (name,), tuple(exprs), dtype, exprs[0].lanes)


def _fold(name: str, args: list[Expr], dtype: DType, info: OpInfo) -> Expr | None:
    if all(isinstance(a, Const) for a in args):
        if name in ("div", "floordiv", "mod", "rem") and args[1].dtype.is_integer:
            if args[1].value == 0:  # type: ignore[attr-defined]
                return None
        values = [np.asarray(a.value, a.dtype.numpy) for a in args]  # type: ignore[attr-defined]
        with np.errstate(all="ignore"):
            return const(info.function(*values).item(), dtype)
    if name == "select" and isinstance(args[0], Const):
        return args[1] if args[0].value else args[2]
    if name == "select" and args[1] is args[2]:
        return args[1]
    if name in ("min", "max") and args[0] is args[1]:
        return args[0]
    if dtype.is_bool and name in ("and", "or"):
        for one, other in ((args[0], args[1]), (args[1], args[0])):
            if isinstance(one, Const):
                return (other if one.value else one) if name == "and" else (
                    one if one.value else other)
    if args[0].dtype is dt.i64 and args[0].lanes == 1:
        from .algebra import decide

        return decide(name, args)
    return None


def add(a, b) -> Expr:
    return op("add", a, b)


def sub(a, b) -> Expr:
    return op("sub", a, b)


def mul(a, b) -> Expr:
    return op("mul", a, b)


def floordiv(a, b) -> Expr:
    a, b = _unify((a, b))
    if a.dtype is dt.i64 and a.lanes == 1:
        from .algebra import divide

        return divide(a, b)[0]
    return op("floordiv", a, b)


def mod(a, b) -> Expr:
    a, b = _unify((a, b))
    if a.dtype is dt.i64 and a.lanes == 1:
        from .algebra import divide

        return divide(a, b)[1]
    return op("mod", a, b)


def select(condition, a, b) -> Expr:
    return op("select", condition, a, b)


def minimum(a, b) -> Expr:
    return op("min", a, b)


def maximum(a, b) -> Expr:
    return op("max", a, b)


def equal(a, b) -> Expr:
    return op("eq", a, b)


def both(*conditions) -> Expr:
    """Conjunction of any number of conditions."""
    result: Expr = const(True, dt.bool_)
    for condition in conditions:
        result = op("and", result, wrap(condition, dt.bool_))
    return result


def cast(x, dtype: DType, mode: str = "value") -> Expr:
    """`x` converted to `dtype`; see `Cast` for the rules."""
    x = wrap(x)
    if x.dtype is dtype:
        return x
    if isinstance(x, Const) and mode == "value":
        value = x.value
        if dtype.is_integer and x.dtype.is_float:
            if math.isnan(value):
                value = 0
            elif math.isinf(value):
                value = dtype.max if value > 0 else dtype.min
            else:
                value = min(max(math.trunc(value), dtype.min), dtype.max)
        return const(value, dtype)
    return intern_expr(Cast, (mode,), (x,), dtype, x.lanes)


def broadcast(x, lanes: int) -> Expr:
    """`x` in `lanes` lanes; identity when it already has them."""
    x = wrap(x)
    if x.lanes == lanes:
        return x
    if x.lanes != 1:
        raise ValueError(f"cannot broadcast {x.lanes} lanes to {lanes}")
    return intern_expr(Broadcast, (), (x,), x.dtype, lanes)


def ramp(base, lanes: int, stride: int = 1) -> Expr:
    """i64 lanes base, base + stride, ...; a multiple of the lanes of base."""
    return intern_expr(Ramp, (stride,), (wrap(base),), dt.i64, lanes)


def reduce(kind: str, variables: Iterable[Var], body: Expr) -> Expr:
    """Reduction of `body` over `variables`; see `Reduce`. Extent-1 variables are substituted."""
    if kind not in REDUCTIONS:
        raise ValueError(f"unknown reduction {kind!r}")
    variables = tuple(variables)
    single: dict[Expr, Expr] = {v: const(0) for v in variables if v.extent == 1}
    if single:
        body = substitute(body, single)
        variables = tuple(v for v in variables if v.extent != 1)
    if not variables:
        return body
    return intern_expr(Reduce, (kind,), (body, *variables), body.dtype, 1)


def identity_of(kind: str, dtype: DType) -> Const:
    """The identity element of a reduction."""
    if kind == "max":
        return const(-math.inf if dtype.is_float else dtype.min, dtype)
    if kind == "min":
        return const(math.inf if dtype.is_float else dtype.max, dtype)
    return const({"sum": 0, "prod": 1, "any": False, "all": True}[kind], dtype)


def rebuild(e: Expr, args: tuple[Expr, ...]) -> Expr:
    """`e` with other arguments, going through the checking and folding constructors."""
    if all(a is b for a, b in zip(args, e.args, strict=True)):
        return e
    if isinstance(e, Op):
        return floordiv(*args) if e.name == "floordiv" else (
            mod(*args) if e.name == "mod" else op(e.name, *args))
    if isinstance(e, Cast):
        return cast(args[0], e.dtype, e.mode)
    if isinstance(e, Broadcast):
        return broadcast(args[0], e.lanes)
    if isinstance(e, Ramp):
        return ramp(args[0], e.lanes, e.stride)
    if isinstance(e, Reduce):
        return reduce(e.op, args[1:], args[0])  # type: ignore[arg-type]
    return e.with_args(args)  # type: ignore[attr-defined]


def substitute(e: Expr, mapping: dict[Expr, Expr], _memo: dict | None = None) -> Expr:
    """`e` with every occurrence of a key replaced by its value (simultaneously)."""
    memo = dict(mapping) if _memo is None else _memo
    stack = [e]
    while stack:
        current = stack[-1]
        if current in memo:
            stack.pop()
            continue
        pending = [a for a in current.args if a not in memo]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        memo[current] = rebuild(current, tuple(memo[a] for a in current.args))
    return memo[e]


def walk(*roots: Expr) -> Iterable[Expr]:
    """Every distinct sub-expression, arguments before users."""
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        current, ready = stack.pop()
        if ready:
            yield current
        elif current not in seen:
            seen.add(current)
            stack.append((current, True))
            stack.extend((a, False) for a in reversed(current.args) if a not in seen)


def free_vars(*roots) -> list[Var]:
    """The variables that occur, in order of first use; reduction variables are bound."""
    bound = {v for e in walk(*map(wrap, roots)) if isinstance(e, Reduce) for v in e.vars}
    return [e for e in walk(*map(wrap, roots)) if isinstance(e, Var) and e not in bound]


def evaluate(e, env: dict[str, int]) -> int:
    """The integer value of a dimension or index expression with variables from `env`.

    Raises KeyError naming a variable that `env` lacks.
    """
    if not isinstance(e, Expr):
        return int(e)
    values: dict[Expr, object] = {}
    for node in walk(e):
        if isinstance(node, Const):
            values[node] = node.value
        elif isinstance(node, Var):
            values[node] = env[node.name]
        elif isinstance(node, Cast):
            values[node] = cast(const(values[node.args[0]], node.args[0].dtype),
                                node.dtype, node.mode).value  # type: ignore[attr-defined]
        elif isinstance(node, Op) and node.name in _PYTHON and not node.dtype.is_float:
            values[node] = _PYTHON[node.name](*(values[x] for x in node.args))
        elif isinstance(node, Op):
            arrays = (np.asarray(values[x], x.dtype.numpy) for x in node.args)
            values[node] = OPS[node.name].function(*arrays).item()
        else:
            raise TypeError(f"cannot evaluate {node!r}")
    return int(values[e])  # type: ignore[call-overload]


_PYTHON: dict[str, Callable] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "min": min, "max": max,
    "select": lambda c, a, b: a if c else b,
}


def text(e) -> str:
    """The textual form of an expression or int, which `ir.text.parse_expr` reads back."""
    from .text import print_expr

    return print_expr(e)
