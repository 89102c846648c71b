"""Products of dequantised operands become integer products (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 2).

Quantised models are often written in floats, each product between operands that were dequantised
and a result that is quantised again (the QDQ form of ONNX). With x = sx (qx - zx) and
w = sw (qw - zw), sw a number or one for each feature, the product is sx sw times that of the
integers, which is exact. What follows is applied as it is written, but for the quantisation of a
product's result: biases become integers in units of sx sw, clipping that the integers' range does
anyway is left out, and one factor sx sw / sy takes the place of several roundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import dtype as dt
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.definition import lookup
from ...ir.graph.interpreter import run_node
from .base import Pass, register
from .rewrite import only_user, producer, rewrite, rule
from .zero_points import less_constant

_BYTES = (dt.u8, dt.i8)
_MOVES = ("reshape", "transpose", "cast")
"""Between constants and who reads them."""

_MOST_BIASES = 1 << 20
"""Bytes of offsets that are biases, and not a tensor of their own."""

_FAR = 32
"""Values that are looked at, at most, for a product that a quantised value is computed from."""


def evaluated(value: Value | None) -> np.ndarray | None:
    """The array of a constant, also through movement and casts of it."""
    if value is None or value.constant is not None or value.node is None:
        return None if value is None else value.constant
    node = value.node
    if node.op not in _MOVES or node.symbols():
        return None
    x = evaluated(node.inputs[0])
    return None if x is None else np.asarray(run_node(node, [x])[0])


@dataclass(frozen=True)
class Quantised:
    """An 8-bit tensor with the arrays of its scale (f32) and zero point (i64); weights are known,
    and their parameters broadcast against them."""

    value: Value
    scale: np.ndarray
    zero: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Known elements less their zero points, i64."""
        array = evaluated(self.value)
        assert array is not None
        return array.astype(np.int64) - self.zero


def dequantised(value: Value | None) -> Quantised | None:
    """What a value is the dequantisation of, with known parameters; also of weights that are
    transposed or reshaped afterwards."""
    node = None if value is None else value.node
    if node is None:
        return None
    if node.op in ("reshape", "transpose"):
        return _moved(node)
    if node.op != "dequantize" or node.output.dtype is not dt.f32:
        return None
    x, *zero, scale = node.inputs
    factor = evaluated(scale)
    offset = evaluated(zero[0]) if zero and zero[0] is not None else np.int64(0)
    if x is None or x.dtype not in _BYTES or factor is None or offset is None \
            or factor.dtype != np.float32 or not (np.isfinite(factor) & (factor > 0)).all() \
            or np.asarray(offset).dtype.kind not in "iu":
        return None
    return Quantised(x, factor, np.asarray(offset).astype(np.int64))


def _moved(node: Node) -> Quantised | None:
    """Weights behind a transpose or reshape, with their parameters written out where the movement
    tells them apart."""
    found = dequantised(node.inputs[0])
    array = None if found is None else evaluated(found.value)
    if found is None or array is None or node.symbols():
        return None
    moved = run_node(node, [array])[0]
    scale, zero = (p.reshape(()) if p.size == 1 else np.asarray(run_node(
        node, [np.broadcast_to(p, array.shape)])[0]) for p in (found.scale, found.zero))
    home = node.graph
    assert home is not None
    return Quantised(home.constant(np.ascontiguousarray(moved)), scale, zero)


def _along_features(node: Node, scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The scales of weights of this shape as they broadcast against the product's result; None when
    they vary within a sum."""
    rank = node.output.rank
    if scale.size == 1:
        return scale.reshape(())
    wide = np.broadcast_to(scale, shape)
    axis = 0 if node.op == "conv" else len(shape) - 1
    vector = np.moveaxis(wide, axis, 0).reshape(wide.shape[axis], -1)
    if node.op == "matmul" and len(shape) != 2 or (vector != vector[:, :1]).any():
        return None
    vector = np.ascontiguousarray(vector[:, 0])
    return vector.reshape(1, -1, *(1,) * (rank - 2)) if node.op == "conv" else vector


def _fits(node: Node, left: Quantised, weights: np.ndarray) -> bool:
    """Whether no sum can leave the i32, with a bias below 2^30 added to it (see
    `requantised_product`)."""
    kind = left.value.dtype
    largest = int(max(abs(kind.max - left.zero), abs(kind.min - left.zero)))
    axes = tuple(range(1, weights.ndim)) if node.op == "conv" else -2
    sums = np.abs(weights).sum(axis=axes)
    return not sums.size or int(sums.max()) * largest <= 1 << 30


@rule("conv", "matmul")
def integer_product(node: Node, graph: Graph) -> Value | None:
    """product(dequantize(x), dequantize(w)) to f32(product(x, v) - zx * sum(v)) * (sx * sw), with
    v = w - zw."""
    if node.output.dtype is not dt.f32:
        return None
    left, right = dequantised(node.inputs[0]), dequantised(node.inputs[1])
    if left is None or right is None or left.scale.size != 1 or left.zero.size != 1 \
            or evaluated(right.value) is None:
        return None
    weights = right.weights
    scale = _along_features(node, right.scale, weights.shape)
    narrow = weights.size == 0 or bool(weights.min() >= dt.i8.min and weights.max() <= dt.i8.max)
    if scale is None or not narrow or not _fits(node, left, weights):
        return None
    at, whole = node.origin, {**node.attrs, "dtype": dt.i32}
    w = weights.astype(np.int8)
    bare = graph.add_node(node.op, [left.value, graph.constant(w)], whole, origin=at)
    total = less_constant(bare, graph, left.value, w, -int(left.zero.reshape(())))
    factor = left.scale.reshape(()) * scale
    if not (np.isfinite(factor) & (factor >= np.finfo(np.float32).tiny)).all():
        return None
    result = graph.add("cast", [total], {"to": dt.f32}, origin=at)
    return graph.add("mul", [result, graph.constant(factor)], origin=at)


@dataclass(frozen=True)
class _Ending:
    """Where a quantisation starts from: product sums (i32), their scales, what is added to them,
    and what bounds the sum."""

    total: Value
    scale: np.ndarray
    bias: np.ndarray | None
    low: float
    high: float


def _ending(value: Value | None, consumer: Node) -> _Ending | None:
    """clip(f32(total) * scale + bias) of an integer product that nothing but `consumer` needs."""
    low, high, bias = -np.inf, np.inf, None
    while value is not None and value.node is not None and only_user(value) is consumer:
        node = value.node
        other = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op in ("relu", "max", "min"):
            number = 0.0 if node.op == "relu" else _number(other)
            if number is None or bias is not None:
                return None
            if node.op == "min":
                high = max(min(high, number), low)
            else:
                low = min(max(low, number), high)
        elif node.op == "add":
            offset = _known(other)
            if offset is None or bias is not None or offset.nbytes > _MOST_BIASES:
                return None
            bias = offset
        elif node.op == "mul":
            found = _scaled_sum(node)
            return None if found is None else _Ending(*found, bias, low, high)
        else:
            return None
        value, consumer = node.inputs[0], node
    return None


def _scaled_sum(node: Node) -> tuple[Value, np.ndarray] | None:
    """(total, scale) of f32(total) * scale, total being the i32 sums of a product that nothing else
    needs."""
    cast, scale = producer(node, 0, "cast"), evaluated(node.inputs[1])
    total = None if cast is None else cast.inputs[0]
    if cast is None or total is None or scale is None or total.dtype is not dt.i32 \
            or only_user(cast.output) is not node or only_user(total) is not cast:
        return None
    product = producer(total.node, 0) if total.node is not None and total.node.op == "add" \
        else total.node
    if product is None or product.op not in ("conv", "matmul"):
        return None
    return total, scale


def _number(value: Value | None) -> float | None:
    """The number of a constant of one element, also reshaped."""
    array = evaluated(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _known(value: Value | None) -> np.ndarray | None:
    """A constant, also dequantised: biases are integers of 32 bits."""
    node = None if value is None else value.node
    if node is None or node.op not in ("dequantize", *_MOVES) or node.symbols():
        return evaluated(value)
    arrays = [_known(v) for v in node.inputs]
    return None if any(a is None for a in arrays) else np.asarray(run_node(node, arrays)[0])


def _parameters(node: Node) -> tuple[float, int] | None:
    """A quantisation's scale and zero point when they are one each."""
    scale, zero = (_number(v) for v in node.inputs[1:3])
    if scale is None or zero is None or not 0 < scale < np.inf or node.inputs[0] is None \
            or node.inputs[0].dtype is not dt.f32:
        return None
    return scale, int(zero)


@rule("quantize")
def requantised_product(node: Node, graph: Graph) -> Value | None:
    """quantize(clip(f32(total) * s + bias), sy, zy) to requantize(total + round(bias / s), s / sy,
    zy), where the clipping is no narrower than the integers' range."""
    parameters, to = _parameters(node), node.attrs["to"]
    found = None if parameters is None else _ending(node.inputs[0], node)
    if found is None or parameters is None:
        return None
    scale, zero = parameters
    # A bound that rounds to the end of the range clips what saturates anyway.
    if found.low > -np.inf and round(found.low / scale) + zero > to.min \
            or found.high < np.inf and round(found.high / scale) + zero < to.max:
        return None
    total, at = found.total, node.origin
    if found.bias is not None:
        units = np.rint(found.bias.astype(np.float64) / found.scale)
        if not (np.abs(units) < 1 << 30).all() or units.ndim > total.rank:
            return None
        total = graph.add("add", [total, graph.constant(units.astype(np.int32))], origin=at)
        if total.shape != node.output.shape:
            return None
    factor = (found.scale.astype(np.float64) / scale).astype(np.float32)
    return graph.add("requantize", [total, graph.constant(factor),
                                    graph.constant(np.float32(zero))], {"to": to}, origin=at)


@rule("quantize")
def scaled_result(node: Node, graph: Graph) -> Value | None:
    """quantize(y, s, z) to requantize(y, 1 / s, z) for what becomes of an integer product by
    elementwise operators: a product in place of a division, after a sum without an order."""
    parameters = _parameters(node)
    if parameters is None or not _from_product(node.inputs[0]):
        return None
    scale, zero = parameters
    return graph.add("requantize", [node.inputs[0], graph.constant(np.float32(1 / scale)),
                                    graph.constant(np.float32(zero))],
                     {"to": node.attrs["to"]}, origin=node.origin)


def _from_product(value: Value | None) -> bool:
    """Whether an integer product is among what the value is computed from elementwise."""
    seen: dict[Value, None] = {}
    stack = [value]
    while stack and len(seen) < _FAR:
        x = stack.pop()
        node = None if x is None else x.node
        if x is None or node is None or x in seen:
            continue
        seen[x] = None
        if node.op in ("conv", "matmul"):
            if node.output.dtype is dt.i32:
                return True
        elif lookup(node.op).kind == "elementwise":
            stack += node.inputs
    return False


@register
@dataclass(frozen=True)
class IntegerProducts(Pass):
    """Makes integer products of convolutions and matrix products whose operands, the right one
    constant, are dequantised."""

    name = "integer_products"

    def run(self, graph: Graph) -> bool:
        modified = rewrite(graph, [integer_product]) > 0
        if not modified:
            return False
        rewrite(graph, [requantised_product])
        rewrite(graph, [scaled_result])
        return True
