"""Static quantisation: products of unsigned bytes with signed ones, by ranges known beforehand.

A graph of floats gains the pairs of `quantize` and `dequantize` that a model in the QDQ form of
ONNX has, and `integer_products` makes of them what it makes of those. Activations are quantised
where they arise: after what follows a product elementwise, and in front of movement, pooling and
concatenation, which then move bytes. Weights have one scale for each feature and no zero point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir import dtype as dt
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.definition import lookup
from .ranges import parameters

MOST = 127
"""The largest weight."""

MOVES = ("reshape", "transpose", "slice", "pool_max")
"""Operators that do the same to bytes as to what they stand for; `concat` does where its operands
are quantised alike."""

REDUCING = ("reduction",)
"""Kinds of operators that read a value once, in whatever type it is."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A product of floats with constant weights."""

    node: Node

    @property
    def name(self) -> str:
        return self.node.origin or self.node.op

    @property
    def left(self) -> Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def weights(self) -> np.ndarray:
        """f32 [F, C / groups, window...] of a convolution, [..., K, N] of a matrix product."""
        value = self.node.inputs[1]
        assert value is not None and value.constant is not None
        return np.asarray(value.constant)

    def through(self, mapping: Mapping[Value, Value]) -> Layer:
        """The layer's copy in a copied graph."""
        node = mapping[self.node.output].node
        assert node is not None
        return Layer(node)

    @property
    def is_conv(self) -> bool:
        return self.node.op == "conv"

    @property
    def channel_axis(self) -> int:
        """The axis of the left operand along which it is summed."""
        return 1 if self.is_conv else self.left.rank - 1


def layers_of(graph: Graph) -> list[Layer]:
    """The products of the graph, in order, that can take bytes."""
    found = []
    for node in graph.ordered():
        if node.op not in ("conv", "matmul"):
            continue
        x, w = node.inputs
        assert x is not None and w is not None
        if x.dtype is w.dtype is node.output.dtype is dt.f32 and w.constant is not None \
                and w.constant.size and x.constant is None and np.isfinite(w.constant).all() \
                and (node.op == "conv" or w.rank == 2):
            found.append(Layer(node))
    return found


def rounded_weights(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """(i8 weights, f32 scales that broadcast against them), symmetric, a scale for each feature."""
    w = layer.weights
    axes = tuple(range(1, w.ndim)) if layer.is_conv else (0,)
    largest = np.abs(w).max(axis=axes, keepdims=True)
    scale = np.where(largest > 0, largest / MOST, 1).astype(np.float32)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    return np.clip(np.rint(w / scale), -MOST, MOST).astype(np.int8), scale


# Where to quantise --------------------------------------------------------------------------------


@dataclass
class Placement:
    """Where activations are quantised: values by the group of those that share a range, and the
    users of each that read bytes or what they stand for; others read the floats."""

    groups: dict[Value, Value] = field(default_factory=dict)
    readers: dict[Value, set[Node]] = field(default_factory=dict)

    def find(self, value: Value) -> Value:
        """The value that stands for the group of `value`."""
        while self.groups[value] is not value:
            value = self.groups[value]
        return value

    def members(self) -> dict[Value, list[Value]]:
        """The groups."""
        found: dict[Value, list[Value]] = {}
        for value in self.groups:
            found.setdefault(self.find(value), []).append(value)
        return found

    def add(self, values: Sequence[Value]) -> None:
        """Quantises values with one range."""
        for value in values:
            self.groups.setdefault(value, value)
            self.readers.setdefault(value, set())
            self.groups[self.find(value)] = self.find(values[0])

    def add_each(self, values: Iterable[Value]) -> None:
        """Quantises values with a range of their own each."""
        for value in values:
            self.add([value])


def sources(value: Value) -> list[Value]:
    """The values whose elements are moved to make this one."""
    node = value.node
    if node is None or node.op not in (*MOVES, "concat") or value.dtype is not dt.f32:
        return [value]
    operands = node.inputs if node.op == "concat" else node.inputs[:1]
    return list(dict.fromkeys(s for x in operands if x is not None for s in sources(x)))


def place(graph: Graph, layers: Sequence[Layer]) -> Placement:
    """Where to quantise so that these layers take bytes, and tensors between them are bytes."""
    placement = Placement()
    order = {node: k for k, node in enumerate(graph.ordered())}
    chosen = {layer.node for layer in layers}
    for layer in layers:
        placement.add(sources(layer.left))
    leads: dict[Node, bool] = {}

    def ends_in_bytes(node: Node) -> bool:
        """Whether all that becomes of an elementwise node is quantised."""
        if node not in leads:
            leads[node] = False
            leads[node] = node.output in placement.groups or _is_elementwise(node) and bool(
                node.output.users) and not _is_output(graph, node.output) and all(
                _is_elementwise(u) and ends_in_bytes(u) for u in node.output.users)
        return leads[node]

    for node in reversed(list(order)):
        if _is_elementwise(node) and ends_in_bytes(node):
            made = [(v, p) for v in dict.fromkeys(node.inputs) if v is not None
                    and v.type.numel == node.output.type.numel and v not in placement.groups
                    and (p := _product_behind(v)) is not None and p in chosen]
            # The kernel of the first product whose result goes nowhere else computes this node, the
            # others leave their results.
            made.sort(key=lambda pair: order[pair[1]])
            inside = [(v, p) for v, p in made if all(_is_elementwise(u) for u in v.users)]
            placement.add_each(v for v, p in made if (v, p) not in inside or p is not inside[0][1])
    for value, readers in placement.readers.items():
        for user in value.users:
            if user.graph is graph and (user in chosen or user.op in (*MOVES, "concat")
                                        or _is_elementwise(user) and ends_in_bytes(user)):
                readers.add(user)
        rest = [u for u in value.users if u not in readers]
        if not _is_output(graph, value) and all(
                u.graph is graph and lookup(u.op).kind in REDUCING for u in rest):
            readers.update(rest)
    return placement


def _is_output(graph: Graph, value: Value) -> bool:
    return any(v is value for g in graph.walk_graphs() for v in g.outputs)


def _is_elementwise(node: Node) -> bool:
    return lookup(node.op).kind == "elementwise" and len(node.outputs) == 1 \
        and node.output.dtype is dt.f32


def _product_behind(value: Value) -> Node | None:
    """The product whose kernel can compute an elementwise value: the first one behind it."""
    seen: set[Value] = set()
    stack = [value]
    while stack:
        x = stack.pop()
        node = x.node
        if node is None or x in seen or x.type.numel != value.type.numel:
            continue
        seen.add(x)
        if node.op in ("conv", "matmul"):
            return node
        if _is_elementwise(node):
            stack += [v for v in reversed(node.inputs) if v is not None]
    return None


# Rewriting ----------------------------------------------------------------------------------------


Range = Callable[[Sequence[Value]], tuple[float, float]]
"""The range of values that share one."""


def quantise(graph: Graph, layers: Sequence[Layer], placement: Placement, range_of: Range,
             means: Mapping[Value, np.ndarray]) -> None:
    """Puts quantisation into the graph. `means` of the left operands' channels, where they are
    known, correct biases."""
    numbers: dict[Value, tuple[np.float32, int]] = {}
    for members in placement.members().values():
        numbers.update(dict.fromkeys(members, parameters(*range_of(members))))
    for layer in layers:
        _round_weights(graph, layer, means.get(layer.left))
    bytes_of: dict[Value, Value] = {}
    for value in placement.groups:
        scale, zero = numbers[value]
        operands = [value, graph.constant(scale), graph.constant(np.float32(zero))]
        bytes_of[value] = _add_after(graph, value, "quantize", operands, {"to": dt.u8})
    for layer in layers:
        numbers[layer.left] = numbers[sources(layer.left)[0]]
        _moved(graph, layer.left, bytes_of, numbers)
    for value, moved in bytes_of.items():
        wide = _dequantised(graph, moved, *numbers[value], value)
        if value not in placement.groups:
            graph.replace(value, wide)
            continue
        for user in placement.readers[value]:
            for i, operand in enumerate(user.inputs):
                if operand is value:
                    replace_input(user, i, wide)


def _moved(graph: Graph, value: Value, bytes_of: dict[Value, Value],
           numbers: dict[Value, tuple[np.float32, int]]) -> Value:
    """The bytes of a value: its own, or its sources' after the same movement."""
    if value not in bytes_of:
        node = value.node
        assert node is not None
        operands = [v for v in node.inputs if v is not None]
        for v in operands:
            numbers[v] = numbers[value]
        inputs = [_moved(graph, v, bytes_of, numbers) for v in operands]
        bytes_of[value] = _add_after(graph, value, node.op, inputs, dict(node.attrs))
    return bytes_of[value]


def _dequantised(graph: Graph, x: Value, scale: np.float32, zero: int, like: Value) -> Value:
    zeros = [graph.constant(np.uint8(zero))] if zero else []
    return _add_after(graph, like, "dequantize", [x, *zeros, graph.constant(scale)], {})


def _add_after(graph: Graph, value: Value, op: str, inputs: Sequence[Value | None],
               attrs: dict) -> Value:
    """A node that is as old as the one that makes `value`, so that the order of products stays."""
    made = value.node
    new = graph.add(op, inputs, attrs, origin=made.origin if made is not None else "")
    assert new.node is not None
    new.node.serial = made.serial if made is not None else 0
    return new


def replace_input(node: Node, i: int, value: Value) -> None:
    """Makes a value the node's input `i`."""
    old = node.inputs[i]
    assert old is not None
    node.inputs[i] = value
    value.users[node] = value.users.get(node, 0) + 1
    old.users[node] -= 1
    if not old.users[node]:
        del old.users[node]


def _round_weights(graph: Graph, layer: Layer, mean: np.ndarray | None) -> None:
    """Gives a layer dequantised weights. What rounding them adds to the mean of its results is
    taken off again (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", section 4.2; the mean is that of the data, and borders count as inside)."""
    rounded, scale = rounded_weights(layer)
    error = layer.weights - rounded * scale.astype(np.float64)
    value = graph.add("dequantize", [graph.constant(rounded), graph.constant(scale)],
                      origin=layer.name)
    replace_input(layer.node, 1, value)
    if mean is None:
        return
    _correct_bias(graph, layer, _mean_result(layer, error, mean))


def _mean_result(layer: Layer, weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What a layer with these weights, shaped as its own, makes of channels that are `mean`
    everywhere, for each feature."""
    if not layer.is_conv:
        return mean @ weights
    groups = layer.node.attrs["groups"]
    taps = weights.reshape(groups, -1, weights.shape[1], int(np.prod(weights.shape[2:]))).sum(-1)
    return np.einsum("gfc,gc->gf", taps, mean.reshape(groups, -1)).reshape(-1)


def add_biases(graph: Graph, layers: Sequence[Layer]) -> None:
    """Lets every layer be followed by the addition of a constant for each feature, if only of
    zeros, so that values stay the same when biases are corrected."""
    for layer in layers:
        if _bias(graph, layer) is not None:
            continue
        output = layer.node.output
        features = layer.weights.shape[0 if layer.is_conv else -1]
        zeros = np.zeros(features, np.float32)
        if layer.is_conv:
            zeros = zeros.reshape(1, -1, *(1,) * (output.rank - 2))
        users = list(output.users)
        after = _add_after(graph, output, "add", [output, graph.constant(zeros)], {})
        for user in users:
            for i, operand in enumerate(user.inputs):
                if operand is output:
                    replace_input(user, i, after)
        for home in graph.walk_graphs():
            home.outputs = [after if v is output else v for v in home.outputs]


def _bias(graph: Graph, layer: Layer) -> tuple[Node, np.ndarray] | None:
    """The addition of a constant to a layer's results, for each feature, and the constant."""
    output = layer.node.output
    user = next(iter(output.users)) if len(output.users) == 1 else None
    if user is None or user.op != "add" or user.graph is not graph or _is_output(graph, output):
        return None
    bias = user.inputs[1]
    array = None if bias is None else bias.constant
    axis = 1 if layer.is_conv else output.rank - 1
    if array is None or user.output.shape != output.shape:
        return None
    wide = array.reshape((1,) * (output.rank - array.ndim) + array.shape)
    if any(n != 1 for k, n in enumerate(wide.shape) if k != axis):
        return None
    return user, array


def _correct_bias(graph: Graph, layer: Layer, shift: np.ndarray) -> None:
    """Adds to a layer's results, a number for each feature."""
    found = _bias(graph, layer)
    assert found is not None
    node, bias = found
    if layer.is_conv:
        shift = shift.reshape(1, -1, *(1,) * (layer.node.output.rank - 2))
    replace_input(node, 1, graph.constant((bias + shift).astype(np.float32)))
