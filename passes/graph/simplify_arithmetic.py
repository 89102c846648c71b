"""Rules that simplify elementwise arithmetic. All are exact, but for the sign of a zero result
and for pow(-inf, 0.5)."""

from __future__ import annotations

import math
import operator

import numpy as np

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.graph.core import Graph, Node, Value
from .rewrite import Replacement, is_constant, only_user, producer, rule, scalar, shaped

_MIRRORED = {"add": "add", "mul": "mul", "min": "min", "max": "max", "and": "and", "or": "or",
             "xor": "xor", "eq": "eq", "ne": "ne", "lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}
_NEGATION_LIMIT = 1 << 20  # bytes of a constant that is worth negating


def _like(graph: Graph, number, value: Value) -> Value:
    """A constant of one element with the element type of `value`."""
    return graph.constant(np.array(number), dtype=value.dtype)


@rule(*_MIRRORED)
def constants_right(node: Node, graph: Graph) -> Replacement:
    """c + x to x + c; c < x to x > c."""
    a, b = node.inputs
    if not is_constant(a) or is_constant(b):
        return None
    return graph.add(_MIRRORED[node.op], [b, a], origin=node.origin)


@rule("add", "sub", "mul", "div", "and", "or", "xor", "shl", "shr", "pow")
def neutral(node: Node, graph: Graph) -> Replacement:
    """x + 0, x - 0, x * 1, x / 1, x and true, x to the power 1, ..."""
    x, c = node.inputs
    number = scalar(c)
    if number is None or x is None:
        return None
    ones = True if x.dtype.is_bool else -1 if x.dtype.kind == "int" else x.dtype.max
    wanted = {"mul": 1, "div": 1, "pow": 1, "and": ones}.get(node.op, 0)
    if number != wanted or isinstance(number, bool) != isinstance(wanted, bool) \
            and not x.dtype.is_bool:
        return None
    return shaped(graph, x, node)


@rule("sub")
def subtract_constant(node: Node, graph: Graph) -> Replacement:
    """x - c to x + -c."""
    x, c = node.inputs
    array = c.constant if c is not None else None
    if array is None or is_constant(x) or array.nbytes > _NEGATION_LIMIT:
        return None
    if c is None or not (c.dtype.is_float or c.dtype.kind == "int"):
        return None
    return graph.add("add", [x, graph.constant(np.negative(array), dtype=c.dtype)],
                     origin=node.origin)


@rule("div")
def divide_by_power_of_two(node: Node, graph: Graph) -> Replacement:
    """x / 2**k to x * 2**-k, when that is exact."""
    x, c = node.inputs
    number = scalar(c)
    if c is None or x is None or not isinstance(number, float) or not math.isfinite(number):
        return None
    if number == 0 or abs(math.frexp(number)[0]) != 0.5 or float(
            np.array(1 / number).astype(c.dtype.numpy)) * number != 1:
        return None
    tiny = float(np.finfo(np.float32).tiny) if c.dtype is dt.f32 else 0.0
    if abs(1 / number) < tiny:
        return None
    return graph.add("mul", [x, graph.constant(np.full(
        [int(d) for d in c.shape], 1 / number), dtype=c.dtype)],  # type: ignore[arg-type]
        origin=node.origin)


@rule("pow")
def known_power(node: Node, graph: Graph) -> Replacement:
    """Powers 2, 3, 0.5, -0.5 and -1 of floats."""
    x, c = node.inputs
    number = scalar(c)
    if x is None or not x.dtype.is_float or number not in (2, 3, 0.5, -0.5, -1):
        return None
    x, at = shaped(graph, x, node), node.origin
    if number == 2:
        return graph.add("mul", [x, x], origin=at)
    if number == 3:
        return graph.add("mul", [graph.add("mul", [x, x], origin=at), x], origin=at)
    if number == -1:
        return graph.add("div", [_like(graph, 1, x), x], origin=at)
    return graph.add("sqrt" if number == 0.5 else "rsqrt", [x], origin=at)


@rule("div")
def reciprocal_of_root(node: Node, graph: Graph) -> Replacement:
    """1 / sqrt(x) to rsqrt(x)."""
    root = producer(node, 1, "sqrt")
    if root is None or scalar(node.inputs[0]) != 1:
        return None
    x = root.inputs[0]
    return graph.add("rsqrt", [shaped(graph, x, node)], origin=node.origin) if x else None


@rule("mul")
def times_minus_one(node: Node, graph: Graph) -> Replacement:
    """x * -1 to -x."""
    x, c = node.inputs
    if x is None or scalar(c) != -1 or x.dtype.is_bool:
        return None
    return graph.add("neg", [shaped(graph, x, node)], origin=node.origin)


@rule("mul")
def square(node: Node, graph: Graph) -> Replacement:
    """(-x) * (-x) and |x| * |x| to x * x."""
    a, b = producer(node, 0, "neg", "abs"), producer(node, 1, "neg", "abs")
    if a is None or a is not b or not node.output.dtype.is_float:
        return None
    return graph.add("mul", [a.inputs[0], a.inputs[0]], origin=node.origin)


@rule("add")
def add_negative(node: Node, graph: Graph) -> Replacement:
    """a + -b to a - b."""
    for i in (1, 0):
        negation, other = producer(node, i, "neg"), node.inputs[1 - i]
        if negation is not None and not is_constant(other) \
                and only_user(negation.output) is node:
            return graph.add("sub", [other, negation.inputs[0]], origin=node.origin)
    return None


@rule("sub")
def subtract_negative(node: Node, graph: Graph) -> Replacement:
    """a - -b to a + b."""
    negation = producer(node, 1, "neg")
    if negation is None:
        return None
    return graph.add("add", [node.inputs[0], negation.inputs[0]], origin=node.origin)


@rule("neg", "not")
def double_negation(node: Node, graph: Graph) -> Replacement:
    """-(-x), not not x."""
    inner = producer(node, 0, node.op)
    return inner.inputs[0] if inner is not None else None


@rule("abs", "relu", "floor", "ceil", "round", "trunc", "sign")
def idempotent(node: Node, graph: Graph) -> Replacement:
    """f(f(x)) to f(x); |-x| to |x|; roundings of a rounded value."""
    inner = producer(node, 0)
    if inner is None:
        return None
    roundings = ("floor", "ceil", "round", "trunc")
    if inner.op == node.op or node.op in roundings and inner.op in roundings:
        return inner.output
    if node.op == "abs" and inner.op == "neg":
        return graph.add("abs", [inner.inputs[0]], origin=node.origin)
    if node.op == "abs" and inner.op == "relu":
        return inner.output
    return None


@rule("max")
def rectifier(node: Node, graph: Graph) -> Replacement:
    """max(x, 0) to relu(x)."""
    x, c = node.inputs
    if x is None or not x.dtype.is_float or scalar(c) != 0 or is_constant(x):
        return None
    return graph.add("relu", [shaped(graph, x, node)], origin=node.origin)


@rule("min", "max", "add", "mul", "and", "or", "xor")
def merge_constants(node: Node, graph: Graph) -> Replacement:
    """min(min(x, 3), 2) to min(x, 2), and so on; sums and products of integers only."""
    inner, number = producer(node, 0, node.op), scalar(node.inputs[1])
    if inner is None or number is None or only_user(inner.output) is not node:
        return None
    x, first = inner.inputs[0], scalar(inner.inputs[1])
    if x is None or first is None or node.op in ("add", "mul") and not x.dtype.is_integer:
        return None
    if x.shape != node.output.shape or number != number or first != first:
        return None
    function = {"min": min, "max": max, "add": lambda a, b: a + b, "mul": lambda a, b: a * b,
                "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}
    merged = function[node.op](first, number)
    if x.dtype.is_integer:
        span = 1 << x.dtype.bits
        merged = (merged - x.dtype.min) % span + x.dtype.min
    return graph.add(node.op, [x, _like(graph, merged, x)], origin=node.origin)


@rule("select")
def known_selection(node: Node, graph: Graph) -> Replacement:
    """select with a constant condition, with equal branches, or with a negated condition."""
    condition, a, b = node.inputs
    if a is None or b is None:
        return None
    if a is b and a.shape == node.output.shape:
        return a
    number = scalar(condition)
    if number is not None:
        return shaped(graph, a if number else b, node)
    negation = producer(node, 0, "not")
    if negation is not None:
        return graph.add("select", [negation.inputs[0], b, a], origin=node.origin)
    return None


@rule("eq", "ne", "lt", "le", "gt", "ge", "cast")
def test_of_selection(node: Node, graph: Graph) -> Replacement:
    """Asking which of two numbers was selected: (c ? 1 : 0) == 0 is not c. Also a cast to bool."""
    inner = producer(node, 0, "select")
    if inner is None or inner.output.shape != node.output.shape or not node.output.dtype.is_bool:
        return None
    condition, number = inner.inputs[0], 0
    if node.op != "cast":
        number = scalar(node.inputs[1])
    a, b = scalar(inner.inputs[1]), scalar(inner.inputs[2])
    if condition is None or number is None or a is None or b is None \
            or condition.shape != node.output.shape:
        return None
    function = _COMPARE["ne" if node.op == "cast" else node.op]
    yes, no = function(a, number), function(b, number)
    if yes == no:
        return shaped(graph, _like(graph, yes, node.output), node)
    return condition if yes else graph.add("not", [condition], origin=node.origin)


_COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
            "gt": operator.gt, "ge": operator.ge}


def lossless(narrow: DType, wide: DType) -> bool:
    """Whether every value of `narrow` is one of `wide`."""
    if narrow is wide or narrow.is_bool:
        return True
    if wide.is_bool or narrow.is_float and wide.is_integer:
        return False
    if narrow.is_integer and wide.is_integer:
        return wide.min <= narrow.min and wide.max >= narrow.max
    precision = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}.get(wide.name)
    if precision is None:
        return False
    if narrow.is_integer:
        return narrow.bits - (narrow.kind == "int") <= precision and wide.max >= narrow.max
    return (narrow, wide) in {(dt.f16, dt.f32), (dt.bf16, dt.f32), (dt.f16, dt.f64),
                              (dt.bf16, dt.f64), (dt.f32, dt.f64)} or (
        narrow.bits <= 8 and wide in (dt.f32, dt.f64) and narrow is not dt.f8e8m0)


@rule("cast")
def needless_cast(node: Node, graph: Graph) -> Replacement:
    """A cast to the type that is there, and a cast after one that lost nothing."""
    x, to = node.inputs[0], node.attrs["to"]
    if x is None:
        return None
    if x.dtype is to:
        return x
    inner = producer(node, 0, "cast")
    if inner is None or node.attrs["mode"] != "value" or inner.attrs["mode"] != "value":
        return None
    source = inner.inputs[0]
    if source is None or not lossless(source.dtype, inner.attrs["to"]):
        return None
    if source.dtype is to:
        return source
    # From float to integer clamps, from integer to integer wraps.
    if source.dtype.is_integer and inner.attrs["to"].is_float and to.is_integer:
        return None
    return graph.add("cast", [source], {"to": to}, origin=node.origin)


RULES = [constants_right, neutral, subtract_constant, divide_by_power_of_two, known_power,
         reciprocal_of_root, times_minus_one, square, add_negative, subtract_negative,
         double_negation, idempotent, rectifier, merge_constants, known_selection,
         test_of_selection, needless_cast]
