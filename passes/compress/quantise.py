"""Quantises the weights of a graph's products, and says what that cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ...errors import UsageError
from ...ir import dtype as dt
from ...ir.encoding.base import Affine
from ...ir.encoding.rounded import Rounded
from ...ir.graph.core import Graph, Node, Value
from ..graph.base import Pipeline
from ..graph.rewrite import own_graphs
from .awq import awq, smoothing
from .descent import descent
from .gptq import gptq
from .outliers import outliers, product_of, without
from .scheme import Scheme
from .statistics import Statistics, relative_error

BEFORE = "dce,fold,cse,canonicalise,fold,cse,fold_affine,dce"
"""Passes after which constants that can be folded into weights are."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Layer:
    """What became of one product: bytes of its weights before and after, the norm of the error
    over that of the weights, and over that of the results for the calibration data."""

    name: str
    shape: tuple[int, int]
    encoding: str
    dense: int
    encoded: int
    weight_error: float
    output_error: float | None


def prepare(graph: Graph) -> None:
    """Brings constants to where products read them."""
    Pipeline.parse(BEFORE).run(graph)


def products(graph: Graph, scheme: Scheme) -> dict[Value, list[Node]]:
    """The products of f32 with constant weights [K, N] that the scheme makes smaller, by their
    left operand."""
    found: dict[Value, list[Node]] = {}
    for home in own_graphs(graph):
        for node in home.ordered():
            if node.op != "matmul":
                continue
            left, right = node.inputs
            assert left is not None and right is not None
            array = right.constant
            if array is None or array.ndim != 2 or not array.size or left.rank < 2:
                continue
            if not left.dtype is right.dtype is node.output.dtype is dt.f32:
                continue
            if scheme.weights.size((array.shape[1], array.shape[0])) < array.nbytes:
                found.setdefault(left, []).append(node)
    return found


def quantise(graph: Graph, scheme: Scheme, method: str,
             statistics: Mapping[Value, Statistics], progress: Progress,
             keep: Sequence[str] = ()) -> list[Layer]:
    """Stores the weights of all products as the scheme says, in place. `statistics` of the left
    operands is what all methods but `rtn` need, and what errors of results are told by. Products
    whose names have a part that matches a pattern of `keep` get 8 bits. Raises UsageError for a
    pattern that matches none."""
    found = products(graph, scheme)
    layers: list[Layer] = []
    names = [n.origin or n.op for nodes in found.values() for n in nodes]
    for pattern in keep:
        if not any(_matches(name, (pattern,)) for name in names):
            raise UsageError(f"no layer to keep has a name with {pattern!r} in it")
    total = len(names)
    for left, nodes in found.items():
        known = statistics.get(left)
        columns = [np.ascontiguousarray(_weights(n).T) for n in nodes]
        factors = smoothing(columns, scheme.weights, known) \
            if method == "awq" and known is not None else None
        apart = outliers(known) if method == "outliers" and known is not None else None
        if apart is not None and not apart.size:
            apart = None
        operands: dict[Graph, Value] = {}
        for node, weights in zip(nodes, columns, strict=True):
            progress(f"quantising {node.origin or node.op}", len(layers), total)
            encoding = scheme.kept if _matches(node.origin or node.op, keep) else scheme.weights
            wide = weights if factors is None else weights * factors
            if apart is not None:
                wide = weights.copy()
                wide[:, apart] = 0
            if method == "gptq" and known is not None:
                arrays = gptq(weights, encoding, known)
            elif method == "descent" and known is not None:
                arrays = descent(weights, encoding, known)
            elif method == "awq" and known is not None:
                gram = known.gram if factors is None else known.gram / np.outer(factors, factors)
                arrays = awq(wide, encoding, gram)
            else:
                arrays = encoding.pack(wide)
            now = encoding.unpack(arrays, weights.shape[1])
            now = now if factors is None else now / factors
            floats = 0
            if apart is not None:
                now[:, apart] = weights[:, apart]
                floats = weights[:, apart].nbytes
            layers.append(Layer(
                node.origin or node.op, (weights.shape[1], weights.shape[0]), str(encoding),
                weights.nbytes, sum(a.nbytes for a in arrays) + floats,
                relative_error(weights, now),
                None if known is None else relative_error(weights, now, known.gram)))
            home = node.graph
            assert home is not None
            if home not in operands:
                rest = left if apart is None else without(home, left, apart, node.origin)
                operands[home] = _left(home, rest, factors, scheme, node.origin)
            added = None if apart is None else product_of(home, left, weights, apart, node.origin)
            _replace(node, operands[home], arrays, encoding, added)
    return layers


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, f"*{p}*") for p in patterns)


def _weights(node: Node) -> np.ndarray:
    right = node.inputs[1]
    assert right is not None and right.constant is not None
    return np.asarray(right.constant)


def _left(home: Graph, left: Value, factors: np.ndarray | None, scheme: Scheme,
          origin: str) -> Value:
    """The left operand as the products of one graph take it."""
    if factors is not None:
        left = home.add("mul", [left, home.constant(1 / factors)], origin=origin)
    if scheme.rounded and isinstance(left.shape[-1], int):
        encoding = str(Rounded(scheme.weights.group))
        parts = home.add_node("encode", [left], {"encoding": encoding}, origin=origin).outputs
        left = home.add("decode", parts, {"encoding": encoding, "shape": left.shape,
                                          "axis": left.rank - 1}, origin=origin)
    return left


def _replace(node: Node, left: Value, arrays: tuple[np.ndarray, ...], encoding: Affine,
             added: Value | None) -> None:
    """Lets a product take the operand and encoded weights; `added` is added to it."""
    home, weights = node.graph, _weights(node)
    assert home is not None
    right = home.add("decode", [home.constant(a) for a in arrays],
                     {"encoding": str(encoding), "shape": weights.shape, "axis": 0},
                     origin=node.origin)
    product = home.add("matmul", [left, right], dict(node.attrs), origin=node.origin)
    if added is not None:
        product = home.add("add", [product, added], origin=node.origin)
    home.replace(node.output, product)
    home.erase(node)
