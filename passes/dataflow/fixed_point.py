"""Float models in fixed point: quantise-dequantise pairs whose scales are powers of two.

Every tensor that passes between layers gets a width and a binary point of its own, as `ap_fixed`
would, from the range that it has on samples; weights get them per output channel. What the pass
writes is an ordinary quantised model, which `integer_form` then takes: results are rounded half to
even and saturate. Two bits of weights mean -1, 0 and 1 times a scale (Li & Liu 2016, "Ternary
weight networks", section 2.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ModelError, UsageError
from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.definition import lookup
from ...ir.graph.interpreter import interpret
from .monotone import is_monotone

PRODUCTS = ("conv", "matmul")
POOLING = ("pool_max", "pool_mean", "reduce_mean")
MOVEMENT = ("reshape", "transpose", "slice")

Samples = Sequence[Mapping[str, np.ndarray]]
"""Inputs by name, to be run one after another."""


@dataclass(frozen=True)
class Widths:
    """Bits of activations (2 to 16) and of weights (2, which is ternary, to 8)."""

    activations: int = 8
    weights: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.activations <= 16:
            raise UsageError(f"activations of {self.activations} bits: use 2 to 16")
        if not 2 <= self.weights <= 8:
            raise UsageError(f"weights of {self.weights} bits: use 2 to 8")


def is_float(graph: Graph) -> bool:
    """Whether a model has products of floats with constant weights, which fixed point is for."""
    return any(n.op in PRODUCTS and n.output.dtype.is_float for n in graph.nodes)


def to_fixed_point(graph: Graph, widths: Widths, samples: Samples) -> None:
    """Writes quantise-dequantise pairs into an optimised f32 graph, in place. Raises ModelError
    naming a node that a layer is made of and no fixed point."""
    device = _device_nodes(graph)
    ends = [v for v in (*graph.inputs, *(n.output for n in device))
            if v.dtype is dt.f32 and _ends(v, device)]
    ranges = value_ranges(graph, ends, samples)
    for value, (low, high) in zip(ends, ranges, strict=True):
        _activation(graph, value, low, high, widths.activations)
    for node in device:
        if node.op in PRODUCTS:
            _weights(graph, node, widths.weights)


def _device_nodes(graph: Graph) -> dict[Node, None]:
    """The nodes that become layers: all that a product or a pooling comes after or is, and the
    elementwise ones right behind."""
    order = graph.ordered()
    before: set[Node] = set()
    for node in reversed(order):
        if node.op in (*PRODUCTS, *POOLING) or any(
                user in before for v in node.outputs for user in v.users):
            before.add(node)
    found: dict[Node, None] = {}
    fed: set[Value] = set(graph.inputs)
    for node in order:
        if not any(v in fed for v in node.inputs):
            continue  # of constants alone
        if not _known_layer(node, fed):
            if node in before:
                raise ModelError(f"{node.origin or node.op}: the fpga target has no layer for "
                                 f"operator {node.op} of {node.output.type}: what comes before the "
                                 f"last product or pooling must be products with constant weights, "
                                 f"pooling, elementwise operators and movement")
            continue
        if node in before or any(v in fed and v.node in found for v in node.inputs):
            found[node] = None
            fed.update(node.outputs)
    return found


def _known_layer(node: Node, fed: set[Value]) -> bool:
    if len(node.outputs) != 1 or node.output.dtype is not dt.f32:
        return False
    if node.op in PRODUCTS:
        weights = node.inputs[1]
        return weights is not None and weights.constant is not None
    if node.op in (*POOLING, *MOVEMENT):
        return True
    if node.op == "concat":
        return all(v in fed for v in node.inputs)
    return lookup(node.op).kind == "elementwise" and (
        sum(v in fed for v in node.inputs) == 1 or node.op == "add")


def _ends(value: Value, device: dict[Node, None]) -> bool:
    """Whether a tensor passes from layer to layer: unless it is only moved, or goes on into the one
    monotone operator that uses it."""
    if value.constant is not None or (value.node is not None and value.node.op in MOVEMENT) \
            or (value.node is not None and value.node.op == "pool_max") or not (
                value.users or value.node is not None):
        return False
    users = list(value.users)
    following = [u for u in users if u in device]
    if value.node is None and not following:
        return False
    return not (len(users) == 1 and len(following) == 1
                and is_monotone(following[0]))


def value_ranges(graph: Graph, values: Sequence[Value],
                 samples: Samples) -> list[tuple[float, float]]:
    """The least and the largest element of each value over samples."""
    inner = [v for v in values if v.node is not None]
    outputs, graph.outputs = graph.outputs, inner
    low, high = np.full(len(values), np.inf), np.full(len(values), -np.inf)
    try:
        for sample in samples:
            arrays = dict(zip(inner, interpret(graph, dict(sample)), strict=True))
            for k, v in enumerate(values):
                array = arrays[v] if v in arrays else sample[v.name]
                if not np.all(np.isfinite(array)):
                    raise ModelError(f"{v.name or 'a tensor'}: a sample gives it elements that are "
                                     f"not finite, for which there is no fixed point")
                low[k] = min(low[k], array.min(initial=0))
                high[k] = max(high[k], array.max(initial=0))
    finally:
        graph.outputs = outputs
    return list(zip(low.tolist(), high.tolist(), strict=True))


def random_samples(graph: Graph, count: int = 8, seed: int = 0) -> Samples:
    """Standard normal inputs; open sizes are 1. Raises ModelError for inputs of other types."""
    random = np.random.default_rng(seed)
    for v in graph.inputs:
        if v.dtype is not dt.f32:
            raise ModelError(f"input {v.name!r} is {v.dtype}: fixed point is for inputs of f32")
    return [{v.name: random.standard_normal(
        [d if isinstance(d, int) else 1 for d in v.shape]).astype(np.float32)
        for v in graph.inputs} for _ in range(count)]


def _power(size: float, levels: int) -> float:
    """The least power of two whose multiples by up to `levels` reach `size`."""
    return 2.0 ** int(np.ceil(np.log2(size / levels))) if size > 0 else 1.0


def _container(bits: int, signed: bool) -> DType:
    names = ("i8", "i16") if signed else ("u8", "u16")
    return dt.dtype(names[bits > 8])


def _activation(graph: Graph, value: Value, low: float, high: float, bits: int) -> None:
    """Puts the pair behind a value."""
    signed = low < 0
    top = (1 << bits - signed) - 1
    scale = max((_power(size, n) for size, n in ((high, top), (-low, top + 1)) if size > 0),
                default=1.0)
    to = _container(bits, signed)
    origin = value.node.origin if value.node is not None else f"input {value.name!r}"
    users, returned = dict(value.users), [v is value for v in graph.outputs]
    step, zero = graph.constant(np.float32(scale)), graph.constant(np.float32(0))
    q = graph.add("quantize", [value, step, zero], {"to": to}, origin=origin)
    if bits != to.bits:
        if signed:
            q = graph.add("max", [q, graph.constant(-1 - top, dtype=to)], origin=origin)
        q = graph.add("min", [q, graph.constant(top, dtype=to)], origin=origin)
    pair = graph.add("dequantize", [q, step], origin=origin)
    for node in users:
        node.inputs = [pair if v is value else v for v in node.inputs]
        pair.users[node] = users[node]
        del value.users[node]
    graph.outputs = [pair if r else v for v, r in zip(graph.outputs, returned, strict=True)]


def _weights(graph: Graph, node: Node, bits: int) -> None:
    """Puts quantised weights in the place of a product's."""
    value = node.inputs[1]
    assert value is not None and value.constant is not None
    w = np.asarray(value.constant, np.float64)
    if not np.all(np.isfinite(w)):
        raise ModelError(f"{node.origin or node.op}: weights that are not finite have no fixed "
                         f"point")
    features = 0 if node.op == "conv" else w.ndim - 1
    others = tuple(a for a in range(w.ndim) if a != features)
    size = np.abs(w)
    if bits == 2:
        chosen = size > 0.7 * size.mean(axis=others, keepdims=True)
        scale = np.where(chosen, size, 0).sum(axis=others, keepdims=True) / np.maximum(
            chosen.sum(axis=others, keepdims=True), 1)
        scale = np.where(scale > 0, scale, 1.0)
        whole = np.where(chosen, np.sign(w), 0)
    else:
        top = (1 << bits - 1) - 1
        largest = size.max(axis=others, keepdims=True, initial=0)
        scale = np.vectorize(lambda s: _power(s, top), otypes=[np.float64])(largest)
        whole = np.clip(np.rint(w / scale), -top, top)
    scale = scale.astype(np.float32)
    quantised = graph.add("dequantize", [
        graph.constant(whole.astype(np.int8)),
        graph.constant(scale if w.ndim > 2 else scale.reshape(-1))], origin=node.origin)
    graph.replace(node.output, graph.add(node.op, [node.inputs[0], quantised], dict(node.attrs),
                                         origin=node.origin))
