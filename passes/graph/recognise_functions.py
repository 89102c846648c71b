"""Recognises activation functions by their values.

Exporters write GELU, SiLU and the like in many ways. So instead of comparing forms, the part of
the graph that computes a value from one other value and numbers alone is evaluated at sample
points in f64 and compared with each known function. What is found must be made of the operators
that the function needs, so that a few points cannot mislead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import OPS, Cast, Const, Expr, Var, cast, const, var, walk
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.definition import OpContext, lookup
from .rewrite import Replacement, is_returned, rule, scalar

_MAX_NODES = 16
_SAMPLES = np.concatenate([np.linspace(-12, 12, 193), [-50.0, -20.0, 20.0, 50.0]])
_X = var("x", dt.f64)
_ROOTS = ("mul", "div", "min", "max", "log", "add", "hard_sigmoid")


@dataclass(frozen=True)
class _Known:
    """A function: the operator with its attributes, and operators of which one must occur."""

    op: str
    needs: tuple[tuple[str, ...], ...]
    attrs: dict = field(default_factory=dict)


_EXPONENTIAL = ("exp", "sigmoid", "silu")
_CLAMP = ("min", "relu", "max", "hard_sigmoid")
_FUNCTIONS = (
    _Known("gelu", (("erf",),), {"approximate": "none"}),
    _Known("gelu", (("tanh",),), {"approximate": "tanh"}),
    _Known("silu", (_EXPONENTIAL,)),
    _Known("sigmoid", (_EXPONENTIAL,)),
    _Known("mish", (("tanh",), ("exp", "softplus"))),
    _Known("softplus", (("exp",), ("log", "log1p"))),
    _Known("hard_swish", (_CLAMP,)),
    _Known("hard_sigmoid", (_CLAMP,), {"alpha": 1 / 6, "beta": 0.5}),
    _Known("hard_sigmoid", (_CLAMP,), {"alpha": 0.2, "beta": 0.5}),
)


@functools.cache
def _values_of(k: int) -> np.ndarray:
    known = _FUNCTIONS[k]
    node = Node(known.op, (), {**lookup(known.op).attrs, **known.attrs})
    return _evaluate(_scalar(node, [_X]))


def _scalar(node: Node, operands: list[Expr]) -> Expr:
    """The body of an elementwise node on scalar operands, in f64."""
    body: Callable | None = lookup(node.op).body
    assert body is not None
    return body(_ScalarContext(node, operands), ())


class _ScalarContext(OpContext):
    """A node's context with rank-0 operands of f64."""

    def __init__(self, node: Node, operands: list[Expr]):
        twin = Node(node.op, (), {**node.attrs})
        graph = Graph()
        twin.inputs = [Value(_F64, None, i) for i in range(len(operands))]
        twin.outputs = [Value(_F64, twin, 0)]
        super().__init__(twin, graph, lambda i, index: operands[i])


_F64 = Graph().constant(np.zeros(())).type


def _evaluate(root: Expr) -> np.ndarray:
    values: dict[Expr, np.ndarray] = {}
    with np.errstate(all="ignore"):
        for e in walk(root):
            if isinstance(e, Const):
                values[e] = np.asarray(e.value)
            elif isinstance(e, Var):
                values[e] = _SAMPLES
            elif isinstance(e, Cast):
                values[e] = values[e.args[0]]
            else:
                values[e] = OPS[e.name].function(  # type: ignore[attr-defined]
                    *(values[a] for a in e.args))
    return np.broadcast_to(np.asarray(values[root], np.float64), _SAMPLES.shape)


@rule(*_ROOTS)
def known_function(node: Node, graph: Graph) -> Replacement:
    """The largest part behind the node that is a known function of one value."""
    if not node.output.dtype.is_float or node.output.dtype.bits > 32:
        return None
    best: tuple[Value, _Known] | None = None
    for source, inside in _parts(node):
        known = _identify(node, source, inside)
        if known is not None:
            best = source, known
    if best is None:
        return None
    source, known = best
    if known.op == node.op and source is node.inputs[0]:
        return None
    return graph.add(known.op, [source], dict(known.attrs), origin=node.origin)


def _parts(root: Node):
    """Every (value, nodes) such that the nodes compute the root from that value and numbers, and
    nothing else uses what is between."""
    shape = root.output.shape
    inside: dict[Node, None] = {}
    frontier: dict[Value, None] = {root.output: None}
    while len(inside) < _MAX_NODES:
        value = next((v for v in frontier if v is root.output or (
            all(u in inside for u in v.users) and not is_returned(v))), None)
        node = value.node if value is not None else None
        if value is None or node is None or not _plain(node) or value.shape != shape:
            return
        del frontier[value]
        inside[node] = None
        for operand in node.inputs:
            if operand is not None and scalar(operand) is None:
                frontier[operand] = None
        if not frontier:
            return
        if len(frontier) == 1 and len(inside) > 1:
            (source,) = frontier
            if source.shape == shape and source.dtype is root.output.dtype:
                yield source, inside


_ROUNDING = ("cast", "quantize", "requantize", "dequantize")


def _plain(node: Node) -> bool:
    return lookup(node.op).kind == "elementwise" and node.op not in (*_ROUNDING, "select") \
        and all(v is not None for v in node.inputs)


def _identify(root: Node, source: Value, inside: dict[Node, None]) -> _Known | None:
    ops = {n.op for n in inside}
    chosen = [k for k, f in enumerate(_FUNCTIONS) if all(ops & set(any_of) for any_of in f.needs)]
    if not chosen:
        return None
    memo: dict[Value, Expr] = {source: _X}
    stack = [root.output]
    while stack:
        value = stack[-1]
        if value in memo:
            stack.pop()
            continue
        number = scalar(value)
        if number is not None:
            memo[value] = const(float(number), dt.f64)
            continue
        node = value.node
        if node is None or node not in inside:
            return None
        missing = [v for v in node.inputs if v is not None and v not in memo]
        if missing:
            stack += missing
            continue
        memo[value] = cast(_scalar(node, [memo[v] for v in node.inputs if v is not None]), dt.f64)
    values = _evaluate(memo[root.output])
    # Numbers written in the tensor's type are off by its rounding.
    tolerance = 1e-6 if source.dtype.bits >= 32 else 2e-3
    for k in chosen:
        wanted = _values_of(k)
        if math.isfinite(float(values.sum())) and (
                np.abs(values - wanted) <= tolerance * (1 + np.abs(wanted))).all():
            return _FUNCTIONS[k]
    return None


RULES = [known_function]
