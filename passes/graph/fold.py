"""Constant folding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Cast, Const, Expr, Op, Var, walk
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.definition import lookup
from ...ir.graph.interpreter import run_node
from .base import Pass, register
from .cse import is_pure
from .rewrite import is_returned, own_graphs

_SMALL = 4096  # bytes up to which anything known becomes a constant


@register
@dataclass(frozen=True)
class Fold(Pass):
    """Evaluates nodes whose operands are constants, and turns known contents into constants.

    A result stays unevaluated when it is both larger than `limit` bytes and larger than `growth`
    times the operands' bytes. `expand` and `iota` are evaluated only as operands of other nodes,
    unless small. Contents that depend on sizes become `sizes` nodes, so that the shape
    arithmetic behind them dies.
    """

    name = "fold"
    growth: int = 4
    limit: int = 64 << 20

    def run(self, graph: Graph) -> bool:
        modified = False
        for home in own_graphs(graph):
            for node in home.ordered():
                if node.op != "constant" and node.outputs:
                    modified |= self._fold(node, home)
        return modified

    def _fold(self, node: Node, home: Graph) -> bool:
        values = [_known(v) for v in node.outputs]
        if any(v is None for v in values):
            values = self._evaluated(node)
        if values is None:
            return self._sizes(node, home)
        for old, array in zip(node.outputs, values, strict=True):
            home.replace(old, home.add("constant", (), {"value": array}, origin=node.origin))
        home.erase(node)
        return True

    def _evaluated(self, node: Node) -> list | None:
        """The outputs' arrays when all operands are at hand and the result is worth its size."""
        definition = lookup(node.op)
        if definition.kind in ("control", "source") or node.regions or not is_pure(node.op):
            return None
        if node.op == "decode":  # `decode_ahead` chooses which are worth it
            return None
        if not node.inputs or node.symbols():
            return None
        size = sum(v.type.numel * v.dtype.itemsize for v in node.outputs)  # type: ignore[misc]
        if node.op == "expand" and size > _SMALL:
            return None
        operands = [None if v is None else _array(v) for v in node.inputs]
        if any(a is None and v is not None for a, v in zip(operands, node.inputs, strict=True)):
            return None
        given = sum(_stored(a) for a in operands if a is not None)
        if size > self.limit and size > self.growth * given:
            self.notes.append(f"{node.origin or node.op}: {size} bytes from {given} are computed "
                              f"at run time")
            return None
        return [np.array(a, order="C") for a in run_node(node, operands)]

    def _sizes(self, node: Node, home: Graph) -> bool:
        """Replaces an integer tensor of sizes, if something that is not shape arithmetic reads
        it."""
        value = node.outputs[0]
        if len(node.outputs) > 1 or node.op == "sizes" or value.content is None:
            return False
        if not value.dtype.is_integer or value.rank > 1 or not value.content.size:
            return False
        if not is_returned(value) and all(_is_shape_arithmetic(u) for u in value.users):
            return False
        dims = [_as_dim(e, value.dtype) for e in value.content.reshape(-1)]
        if any(d is None for d in dims) or not _beyond_sizes(node):
            return False
        new = home.add("sizes", (), {"dims": tuple(dims)}, origin=node.origin)
        if value.rank == 0:
            new = home.add("reshape", [new], {"shape": ()}, origin=node.origin)
        if value.dtype is not dt.i64:
            new = home.add("cast", [new], {"to": value.dtype}, origin=node.origin)
        home.replace(value, new)
        home.erase(node)
        return True


def _known(value: Value) -> np.ndarray | None:
    """The array of fully known contents."""
    content = value.content
    if content is None or not all(isinstance(e, Const) for e in content.flat):
        return None
    flat = np.empty(content.size, value.dtype.numpy)
    for k, e in enumerate(content.flat):
        flat[k] = e.value
    return flat.reshape(content.shape)


def _array(value: Value) -> np.ndarray | None:
    """The array of a constant, of an `iota`, or of an `expand` of those (as a view)."""
    if value.constant is not None:
        return value.constant
    node = value.node
    if node is None or not value.type.is_static:
        return None
    if node.op == "iota":
        return np.arange(node.attrs["size"]).astype(value.dtype.numpy)
    if node.op == "expand" and node.inputs[0] is not None:
        base = node.inputs[0].constant
        return None if base is None else np.broadcast_to(base, value.shape)  # type: ignore
    return None


def _stored(array: np.ndarray) -> int:
    """Bytes of the distinct elements behind a view."""
    count = 1
    for n, stride in zip(array.shape, array.strides, strict=True):
        count *= n if stride else 1
    return count * array.itemsize


def _as_dim(e: Expr, dtype: dt.DType) -> int | Expr | None:
    """An i64 expression over sizes with the value of a content element."""
    if isinstance(e, Const):
        return e.value
    if dtype is not dt.i64:
        if not isinstance(e, Cast) or e.mode != "value" or e.args[0].dtype is not dt.i64:
            return None
        e = e.args[0]
    simple = all(isinstance(x, (Const, Var, Op)) and (x.dtype is dt.i64 or x.dtype.is_bool)
                 for x in walk(e))
    return e if simple else None


def _is_shape_arithmetic(node: Node) -> bool:
    return node.op == "bind" or len(node.outputs) == 1 and node.output.content is not None \
        and node.output.dtype.is_integer and node.output.rank <= 1


def _beyond_sizes(node: Node) -> bool:
    """Whether replacing the node gets rid of something: not the cast or reshape of sizes."""
    while node.op in ("cast", "reshape"):
        value = node.inputs[0]
        if value is None or value.node is None:
            return False
        node = value.node
    return node.op != "sizes"
