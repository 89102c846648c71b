"""What an operator is: one `OpDef` per operator, kept in a registry.

An operator's `body` gives one output element as a scalar expression of the output index, reading
inputs through `OpContext.load`. From it follow the interpreter, fusion by inlining, lowering to
loops, and the evaluation of shape arithmetic (`Value.content`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import ModelError
from ..algebra import at_least
from ..expr import REDUCTIONS, Const, Expr, Reduce, Var, const, op, reduce, var, walk, wrap
from .core import Graph, Node, TensorType, Value

CONTENT_LIMIT = 64
"""Tensors of at most this many elements carry their contents symbolically."""

FLOAT_CONTENT_LIMIT = 8
"""The same for floats, which are factors of sizes (of Resize, Range) and else data."""


class NotKnown(Exception):
    """Raised inside a body when an element's content is not known at compile time."""


class OpContext:
    """What a type rule or a body sees of a node. `load(i, index)` gives an input's element."""

    def __init__(self, node: Node, graph: Graph | None = None,
                 load: Callable[[int, tuple[Expr, ...]], Expr] | None = None,
                 unroll: bool = False):
        self.node = node
        self.unroll = unroll
        self.graph = graph
        self.attrs = node.attrs
        self.requirements: list[Expr] = []
        self._load = load

    def has(self, i: int) -> bool:
        """Whether optional input `i` is present."""
        return i < len(self.node.inputs) and self.node.inputs[i] is not None

    def type(self, i: int) -> TensorType:
        value = self.node.inputs[i] if i < len(self.node.inputs) else None
        if value is None:
            raise self.error(f"input {i} is missing")
        return value.type

    @property
    def types(self) -> list[TensorType]:
        return [self.type(i) for i in range(len(self.node.inputs))]

    def out(self, k: int = 0) -> TensorType:
        return self.node.outputs[k].type

    def content(self, i: int) -> np.ndarray | None:
        value = self.node.inputs[i]
        return None if value is None else value.content

    def load(self, i: int, index: Sequence) -> Expr:
        """Element `index` (ints or i64 expressions, one per dimension) of input `i`."""
        assert self._load is not None
        return self._load(i, tuple(wrap(x) for x in index))

    def reduce(self, kind: str, extents: Sequence, body: Callable[..., Expr]) -> Expr:
        """Reduction over fresh variables with these extents; `body` receives the variables."""
        if self.unroll:
            return self._unrolled(kind, extents, body)
        variables = tuple(var(f"r{next(_COUNTER)}", extent=e) for e in extents)
        return reduce(kind, variables, body(*variables))

    def _unrolled(self, kind: str, extents: Sequence, body: Callable[..., Expr]) -> Expr:
        if not all(isinstance(e, int) for e in extents) or math.prod(extents) > CONTENT_LIMIT:
            raise NotKnown
        terms = [body(*map(const, index)) for index in np.ndindex(*extents)]
        if not terms:
            raise NotKnown
        return functools.reduce(lambda a, b: op(REDUCTIONS[kind], a, b), terms)

    def require(self, condition: Expr) -> None:
        """States, in a type rule, what the sizes of the operands must satisfy at run time."""
        self.requirements.append(condition)

    def error(self, message: str) -> ModelError:
        where = self.node.origin or self.node.op
        return ModelError(f"{where}: {message}")


_COUNTER = itertools.count()


@dataclass(frozen=True)
class OpDef:
    """An operator.

    name: lower_snake_case. kind: how fusion treats it -- "elementwise" (output index = input
    index, broadcasting allowed), "injective" (movement: one load per element at a mapped index),
    "reduction", "contraction" (matmul, conv), "row" (softmax, norms: whole rows at a time),
    "opaque" (procedural kernel), "control", "source" (no tensor read).
    infer(ctx) -> output types; reference(ctx, *arrays) -> array or tuple of arrays (numpy);
    body(ctx, index) -> Expr for single-output operators, or bodies, one per output.
    attrs: attribute name -> default; REQUIRED marks mandatory ones.
    """

    name: str
    kind: str
    infer: Callable[[OpContext], Sequence[TensorType]]
    reference: Callable[..., Any] | None = None
    body: Callable[[OpContext, tuple[Expr, ...]], Expr] | None = None
    bodies: tuple[Callable[[OpContext, tuple[Expr, ...]], Expr], ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    doc: str = ""

    def body_of(self, k: int) -> Callable[[OpContext, tuple[Expr, ...]], Expr] | None:
        return self.bodies[k] if self.bodies else self.body if k == 0 else None


def find_definition(name: str) -> OpDef:
    """The definition of an operator whose module is already loaded."""
    return _REGISTRY[name]


REQUIRED = object()
_REGISTRY: dict[str, OpDef] = {}


def define(definition: OpDef) -> OpDef:
    """Registers an operator; raises ValueError on a second definition of the same name."""
    if definition.name in _REGISTRY:
        raise ValueError(f"operator {definition.name!r} is defined twice")
    _REGISTRY[definition.name] = definition
    return definition


def lookup(name: str) -> OpDef:
    """The definition of operator `name`; raises ModelError when there is none."""
    from . import ops  # noqa: F401  (fills the registry)

    if name not in _REGISTRY:
        raise ModelError(f"unknown operator {name!r} in the graph IR")
    return _REGISTRY[name]


def registry() -> dict[str, OpDef]:
    """All operators by name."""
    from . import ops  # noqa: F401

    return dict(sorted(_REGISTRY.items()))


def infer(graph: Graph, node: Node) -> tuple[list[TensorType], list[np.ndarray | None]]:
    """Output types and known contents of `node`; fills in defaults of absent attributes."""
    definition = lookup(node.op)
    ctx = OpContext(node, graph)
    for key, default in definition.attrs.items():
        if key not in node.attrs:
            if default is REQUIRED:
                raise ctx.error(f"attribute {key!r} is missing")
            node.attrs[key] = default
    for key in node.attrs:
        if key not in definition.attrs:
            raise ctx.error(f"{node.op} has no attribute {key!r}")
    types = list(definition.infer(ctx))
    if graph.root.importing:
        negative = [op("ge", d, 0) for t in types for d in t.shape
                    if isinstance(d, Expr) and not at_least(d, 0)]
        for condition in (*ctx.requirements, *negative):
            graph.require(condition, node.origin)
    return types, [_content(definition, node, types, k) for k in range(len(types))]


def _content(definition: OpDef, node: Node, types: list[TensorType], k: int):
    type = types[k]
    limit = FLOAT_CONTENT_LIMIT if type.dtype.is_float else CONTENT_LIMIT
    if not type.is_static or type.numel > limit:  # type: ignore[operator]
        return None
    if node.op == "constant":
        array = node.attrs["value"]
        flat = [const(x, type.dtype) for x in np.asarray(array).reshape(-1).tolist()]
        return _object_array(flat, type.shape)
    body = definition.body_of(k)
    if body is None:
        return None
    if definition.kind != "source" and not any(
            v is not None and v.content is not None for v in node.inputs):
        return None

    def load(i: int, index: tuple[Expr, ...]) -> Expr:
        value = node.inputs[i]
        if value is None or value.content is None:
            raise NotKnown
        if not all(isinstance(x, Const) for x in index):
            raise NotKnown
        position = tuple(x.value for x in index)  # type: ignore[attr-defined]
        if any(not 0 <= p < n for p, n in zip(position, value.content.shape, strict=True)):
            raise NotKnown
        return value.content.item(position)

    ctx = OpContext(node, None, load, unroll=True)
    node.outputs = [Value(t, node, j) for j, t in enumerate(types)]
    try:
        flat = [body(ctx, tuple(const(i) for i in index))
                for index in np.ndindex(*type.shape)]  # type: ignore[arg-type]
    except NotKnown:
        return None
    finally:
        node.outputs = []
    if any(isinstance(x, (Reduce, Var)) and not _is_size(x) for e in flat for x in walk(e)):
        return None
    return _object_array(flat, type.shape)


def _is_size(x: Expr) -> bool:
    return isinstance(x, Var) and x.extent is None


def _object_array(flat: list, shape) -> np.ndarray:
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape)
