"""Operator bodies on numpy: an index-notation expression evaluated for a whole output at once.

Every loop variable is an axis of its own, so sub-expressions broadcast instead of repeating.
Elements outside an operand (a `select` guards them) read its border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..dtype import DType
from ..expr import Cast, Const, Expr, Op, Reduce, Var, identity_of, intern_expr, var, walk
from ..operations import OPS
from .core import Node
from .definition import OpContext

LIMIT = 1 << 22
"""Elements of a temporary array; larger grids are evaluated in parts."""


class Read(Expr):
    """Element `args` of operand number `operand`."""

    __slots__ = ()

    @property
    def operand(self) -> int:
        return self.key[1]

    def format(self, args: Sequence[str]) -> str:
        return f"operand{self.operand}[{', '.join(args)}]"

    def with_args(self, args: tuple[Expr, ...]) -> Expr:
        return intern_expr(Read, (self.operand,), args, self.dtype, 1)


def working(dtype: DType) -> np.dtype:
    """The numpy type that arithmetic of `dtype` is done in: at least f32, at least a byte."""
    if dtype.is_float and dtype.bits < 32:
        return np.dtype(np.float32)
    if dtype.is_integer and dtype.bits < 8:
        return np.dtype(np.int8 if dtype.kind == "int" else np.uint8)
    return dtype.numpy


def evaluate_body(node: Node, k: int, body, arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    """Output `k` of `node`, whose types and attributes hold no symbols, from its operands."""
    out = node.outputs[k].type
    shape = tuple(int(d) for d in out.shape)  # type: ignore[arg-type]

    def load(i: int, index: tuple[Expr, ...]) -> Expr:
        value = node.inputs[i]
        assert value is not None
        return intern_expr(Read, (i,), index, value.dtype, 1)

    index = tuple(var(f"i{a}", extent=n) if n != 1 else var(f"i{a}", extent=1)
                  for a, n in enumerate(shape))
    root = body(OpContext(node, None, load), index)
    result = np.empty(shape, out.dtype.numpy)
    if not result.size:
        return result
    grid = _Grid(root, index, arrays)
    with np.errstate(all="ignore"):
        for part in _parts(shape):
            ranges = {v: (s.start, s.stop) for v, s in zip(index, part, strict=True)}
            value = narrow(grid.value(root, ranges), out.dtype)
            extents = [s.stop - s.start for s in part]
            trailing = value.shape[len(shape):] if value.ndim else ()
            assert all(n == 1 for n in trailing)
            value = value.reshape(value.shape[:len(shape)]) if value.ndim else value
            result[part] = np.broadcast_to(value, extents)
    return result


def _parts(shape: tuple[int, ...]):
    """Slices of the output with at most LIMIT elements each."""
    steps = list(shape)
    for axis in range(len(shape)):
        rest = math.prod(steps[axis + 1:])
        steps[axis] = max(1, min(shape[axis], LIMIT // max(rest, 1)))
        if rest <= LIMIT:
            break
    counts = [-(-n // s) for n, s in zip(shape, steps, strict=True)]
    for block in np.ndindex(*counts):
        yield tuple(slice(b * s, min(n, (b + 1) * s))
                    for b, s, n in zip(block, steps, shape, strict=True))


class _Grid:
    """Evaluates sub-expressions of one body; variable number k is axis k of every array."""

    def __init__(self, root: Expr, index: Sequence[Var], arrays):
        self.arrays = arrays
        self.axis: dict[Var, int] = {v: a for a, v in enumerate(index)}
        for e in walk(root):
            if isinstance(e, Reduce):
                for v in e.vars:
                    self.axis.setdefault(v, len(self.axis))
        self.rank = len(self.axis)

    def value(self, root: Expr, ranges: dict[Var, tuple[int, int]]) -> np.ndarray:
        """The array of `root`, its variables running over `ranges`."""
        done: dict[Expr, np.ndarray] = {}
        stack = [root]
        while stack:
            e = stack[-1]
            if e in done:
                stack.pop()
                continue
            args = () if isinstance(e, Reduce) else e.args
            pending = [a for a in args if a not in done]
            if pending:
                stack.extend(pending)
                continue
            stack.pop()
            done[e] = self._one(e, [done[a] for a in args], ranges)
        return done[root]

    def _one(self, e: Expr, args: list[np.ndarray], ranges) -> np.ndarray:
        if isinstance(e, Const):
            return np.asarray(e.value, e.dtype.numpy).astype(working(e.dtype))
        if isinstance(e, Var):
            start, stop = ranges[e]
            shape = [1] * self.rank
            shape[self.axis[e]] = stop - start
            return np.arange(start, stop, dtype=np.int64).reshape(shape)
        if isinstance(e, Read):
            return self._read(e, args, ranges)
        if isinstance(e, Op):
            return apply(e.name, e.dtype, args)
        if isinstance(e, Cast):
            return convert(args[0], e.args[0].dtype, e.dtype, e.mode)
        if isinstance(e, Reduce):
            return self._reduce(e, ranges)
        raise TypeError(f"cannot evaluate {type(e).__name__}")

    def _read(self, e: Read, index: list[np.ndarray], ranges) -> np.ndarray:
        array = self.arrays[e.operand]
        to = working(e.dtype)
        if not array.size:
            return np.zeros((), to)
        view = self._view(e, array, ranges)
        if view is None:
            picks = tuple(np.clip(i, 0, n - 1) for i, n in zip(index, array.shape, strict=True))
            view = np.asarray(array[picks])
        return view.astype(to, copy=False)

    def _view(self, e: Read, array: np.ndarray, ranges) -> np.ndarray | None:
        """A view of the operand when its index is made of distinct variables and constants."""
        picks: list = []
        axes: list[int] = []
        for i, n in zip(e.args, array.shape, strict=True):
            if isinstance(i, Const) and 0 <= i.value < n:
                picks.append(i.value)
            elif isinstance(i, Var) and ranges[i][1] <= n and self.axis[i] not in axes:
                picks.append(slice(*ranges[i]))
                axes.append(self.axis[i])
            else:
                return None
        view = array[tuple(picks)]
        shape = [1] * self.rank
        for a, n in zip(axes, view.shape, strict=True):
            shape[a] = n
        return view.transpose(np.argsort(axes)).reshape(shape) if axes else np.asarray(view)

    def _reduce(self, e: Reduce, ranges) -> np.ndarray:
        spans = [(v, int(v.extent)) for v in e.vars]
        outer = math.prod(b - a for a, b in ranges.values())
        identity = np.asarray(identity_of(e.op, e.dtype).value, working(e.dtype))
        if any(n == 0 for _, n in spans):
            return identity
        return self._reduce_over(e, dict(ranges), spans, outer)

    def _reduce_over(self, e: Reduce, ranges, spans, outer: int) -> np.ndarray:
        """Reduces over `spans`, in parts when the grid is too large; binds them in `ranges`."""
        (v, n), rest = spans[0], spans[1:]
        inside = math.prod(m for _, m in rest)
        step = max(1, min(n, LIMIT // max(outer * inside, 1)))
        total = None
        for start in range(0, n, step):
            ranges[v] = (start, min(n, start + step))
            if rest and step == 1:
                part = self._reduce_over(e, ranges, rest, outer)
            else:
                ranges.update({w: (0, m) for w, m in rest})
                part = self._fold(e, self.value(e.body, ranges), ranges)
            total = part if total is None else apply(_PAIRWISE[e.op], e.dtype, [total, part])
        for w, _ in spans:
            ranges.pop(w, None)
        assert total is not None
        return total

    def _fold(self, e: Reduce, body: np.ndarray, ranges) -> np.ndarray:
        axes = tuple(self.axis[w] for w in e.vars)
        shape = list(body.shape) if body.ndim else [1] * self.rank
        for w in e.vars:
            start, stop = ranges[w]
            shape[self.axis[w]] = stop - start
        full = np.broadcast_to(body, shape)
        result = _FOLDS[e.op].reduce(full, axis=axes, keepdims=True, dtype=working(e.dtype))
        return wrapped(result, e.dtype)


_PAIRWISE = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}
_FOLDS = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum,
          "any": np.logical_or, "all": np.logical_and}


def apply(name: str, dtype: DType, args: Sequence[np.ndarray]) -> np.ndarray:
    """The scalar operation `name` on arrays of working types; `dtype` is the result's."""
    if name == "pow" and dtype.is_integer:
        result = integer_power(*args)
    else:
        result = np.asarray(OPS[name].function(*args))
    to = working(dtype)
    return wrapped(result if result.dtype == to else result.astype(to), dtype)


def integer_power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a ** b; a negative exponent truncates (0 but for bases 1 and -1)."""
    negative = b < 0
    power = np.power(a, np.where(negative, 0, b))
    odd = (b & 1).astype(bool)
    unit = np.where(a == 1, 1, np.where((a == -1) & odd, -1, np.where(a == -1, 1, 0)))
    return np.where(negative, unit, power).astype(a.dtype)


def wrapped(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Integers narrower than a byte brought back into their range."""
    if dtype.bits >= 8 or not dtype.is_integer:
        return x
    x = x & ((1 << dtype.bits) - 1)
    if dtype.kind == "int":
        sign = 1 << (dtype.bits - 1)
        x = (x ^ sign) - sign
    return x.astype(working(dtype))


def narrow(x: np.ndarray, dtype: DType) -> np.ndarray:
    """An array of the working type rounded to `dtype` itself."""
    return x.astype(dtype.numpy, copy=False)


def convert(x: np.ndarray, source: DType, to: DType, mode: str = "value") -> np.ndarray:
    """The cast of an array of working type; see `ir.expr.Cast` for the rules."""
    if mode == "bits":
        return np.ascontiguousarray(narrow(x, source)).view(to.numpy).reshape(x.shape).astype(
            working(to))
    if to.is_bool:
        return x != 0
    if to.is_integer and source.is_float:
        clean = np.where(np.isnan(x), x.dtype.type(0), np.trunc(x))
        # Limits as floats may round up beyond the type, so they are set, not converted.
        high, low = clean >= float(to.max), clean <= float(to.min)
        safe = np.where(high | low, x.dtype.type(0), clean).astype(working(to))
        limit = working(to).type
        return np.where(high, limit(to.max), np.where(low, limit(to.min), safe))
    if to.is_float:
        if mode == "saturate":
            x = np.where(np.isfinite(x), np.clip(x.astype(np.float64), to.min, to.max), x)
        return x.astype(to.numpy).astype(working(to), copy=False)
    return wrapped(x.astype(np.int8 if to.bits < 8 and to.kind == "int" else working(to)), to)
