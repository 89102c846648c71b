"""Quantise-dequantise models in integers: products and sums of dequantised tensors as products and
sums of the integers themselves, each with one requantisation at its end.

The result is what ONNX's QLinearConv and its like mean, and what engines make of such models: sums
and biases are exact integers, the scales multiply them once, in f32 (Jacob et al. 2018, section
2.2). The original's sums in f32 round at every step, so a result may differ from it by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import dtype as dt
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.interpreter import run_node
from ..graph.base import Pass, register
from ..graph.rewrite import rewrite, rule

SMALL = 1 << 16
"""Elements of scales, zero points and biases, which are evaluated while compiling."""


@register
@dataclass(frozen=True)
class IntegerForm(Pass):
    """Rewrites products, sums and movement of dequantised tensors to integers. With `round_biases`
    every bias is rounded to the unit of the sum that it is added to; without, only biases that are
    multiples of it already become integers."""

    name = "integer_form"
    round_biases: bool = False

    def run(self, graph: Graph) -> bool:
        return rewrite(graph, (*RULES, rounded_biases if self.round_biases else biases)) > 0


def known(value: Value | None) -> np.ndarray | None:
    """The array of a value that only constants decide, else None."""
    if value is None or value.node is None:
        return None
    if value.constant is not None:
        return np.asarray(value.constant)
    node = value.node
    if node.op not in ("reshape", "transpose", "cast", "expand", "mul", "div") or node.regions \
            or not value.type.is_static or int(value.type.numel) > SMALL:  # type: ignore[arg-type]
        return None
    arrays = [known(v) for v in node.inputs]
    return None if any(a is None for a in arrays) else run_node(node, arrays)[0]


@dataclass(frozen=True)
class Quantised:
    """(x - zero) * scale, with `scale` and `zero` arrays that broadcast to x."""

    x: Value
    scale: np.ndarray
    zero: np.ndarray

    @property
    def uniform(self) -> bool:
        return self.scale.size == 1 and self.zero.size == 1


def dequantised(value: Value | None) -> Quantised | None:
    """The integers that a value is dequantised from, for known parameters in f32."""
    node = None if value is None else value.node
    if node is None or node.op != "dequantize" or value.dtype is not dt.f32:  # type: ignore
        return None
    x, scale = node.inputs[0], known(node.inputs[-1])
    zero = known(node.inputs[1]) if len(node.inputs) == 3 else np.zeros((), np.int32)
    if x is None or scale is None or zero is None or not np.all(scale > 0):
        return None
    return Quantised(x, scale, zero.astype(np.int64))


def _dequantise(graph: Graph, x: Value, zero: np.ndarray, scale: np.ndarray,
                origin: str) -> Value:
    inputs = [x, graph.constant(scale)]
    if np.any(zero):
        inputs.insert(1, graph.constant(zero.astype(x.dtype.numpy)))
    return graph.add("dequantize", inputs, origin=origin)


@rule("reshape", "transpose", "pool_max", "slice")
def sink(node: Node, graph: Graph) -> Value | None:
    """op(dequantize(x)) to dequantize(op(x)), for one scale, which is positive, or its axes."""
    q = dequantised(node.inputs[0])
    if q is None:
        return None
    scale, zero = q.scale, q.zero
    if not q.uniform:
        if node.op != "transpose":
            return None
        scale, zero = (a.transpose(node.attrs["perm"]) if a.ndim == q.x.rank else a
                       for a in (scale, zero))
        if any(a.size > 1 and a.ndim != q.x.rank for a in (scale, zero)):
            return None
    moved = graph.add(node.op, [q.x, *node.inputs[1:]], dict(node.attrs), origin=node.origin)
    return _dequantise(graph, moved, zero, scale, node.origin)


@rule("argmax")
def largest(node: Node, graph: Graph) -> Value | None:
    """argmax(dequantize(x)) to argmax(x)."""
    q = dequantised(node.inputs[0])
    if q is None or not q.uniform:
        return None
    return graph.add("argmax", [q.x], dict(node.attrs), origin=node.origin)


def _centred(graph: Graph, x: Value, zero: np.ndarray, to: dt.DType, origin: str) -> Value:
    """x - zero in a type that sums fit."""
    wide = graph.add("cast", [x], {"to": to}, origin=origin)
    if not np.any(zero):
        return wide
    return graph.add("add", [wide, graph.constant((-zero).astype(to.numpy).reshape(()))],
                     origin=origin)


@rule("conv", "matmul")
def products(node: Node, graph: Graph) -> Value | None:
    """A product of dequantised operands to the integers' product times both scales."""
    q, w = dequantised(node.inputs[0]), dequantised(node.inputs[1])
    if q is None or w is None or not q.uniform or node.output.dtype is not dt.f32 \
            or (node.op == "conv" and node.attrs["fill"] != 0):
        return None
    weights = known(w.x)
    if weights is None:
        return None
    weights = weights.astype(np.int64) - w.zero
    features = 0 if node.op == "conv" else weights.ndim - 1
    shape = [1] * weights.ndim
    shape[features] = weights.shape[features]
    if w.scale.size > 1 and list(w.scale.shape) != shape and not (
            w.scale.ndim == 1 and node.op == "matmul"):
        return None
    taps = weights.size // max(weights.shape[features], 1)
    reach = int(np.abs(weights).max(initial=0)) * (1 << q.x.dtype.bits) * taps
    total = dt.i32 if reach < 1 << 30 else dt.i64
    narrow = weights.astype(np.int8 if np.abs(weights).max(initial=0) < 128 else np.int32)
    product = graph.add(node.op, [_centred(graph, q.x, q.zero, total, node.origin),
                                  graph.constant(narrow)],
                        {**node.attrs, "dtype": total}, origin=node.origin)
    factor = (q.scale.reshape(()) * w.scale).astype(np.float32)
    if factor.size == 1:
        factor = factor.reshape(())
    elif node.op == "conv":
        factor = factor.reshape(1, -1, *(1,) * (product.rank - 2))
    else:
        factor = factor.reshape(-1)
    return _times(graph, product, factor, node.origin)


def _times(graph: Graph, total: Value, factor: np.ndarray, origin: str) -> Value:
    real = graph.add("cast", [total], {"to": dt.f32}, origin=origin)
    return graph.add("mul", [real, graph.constant(factor)], origin=origin)


def _scaled(value: Value | None) -> tuple[Value, np.ndarray] | None:
    """(total, factor) of a value f32(total) * factor."""
    node = None if value is None else value.node
    if node is None or node.op != "mul" or node.inputs[1] is None:
        return None
    factor, cast = node.inputs[1].constant, node.inputs[0]
    if factor is None or cast is None or cast.node is None or cast.node.op != "cast":
        return None
    total = cast.node.inputs[0]
    if total is None or total.dtype not in (dt.i32, dt.i64) or total.shape != node.output.shape:
        return None
    return total, np.asarray(factor)


@rule("add")
def biases(node: Node, graph: Graph) -> Value | None:
    """f32(total) * factor + bias to f32(total + integer bias) * factor, for a bias that is a
    multiple of the factor, but for the rounding of its own scale."""
    return _with_bias(node, graph, 1e-4)


@rule("add")
def rounded_biases(node: Node, graph: Graph) -> Value | None:
    """The same for every bias, rounded to a multiple of the factor."""
    return _with_bias(node, graph, np.inf)


def _with_bias(node: Node, graph: Graph, tolerance: float) -> Value | None:
    found = _scaled(node.inputs[0])
    bias = _bias(node.inputs[1])
    if found is None or bias is None:
        return None
    total, factor = found
    if bias.ndim > total.rank or any(n not in (1, d) for n, d in zip(
            bias.shape[::-1], total.shape[::-1])):
        return None
    whole = bias.astype(np.float64) / factor.astype(np.float64)
    if not np.all(np.isfinite(whole)) or np.any(np.abs(whole) >= 1 << 30) \
            or np.any(np.abs(whole - np.rint(whole)) > tolerance * np.maximum(np.abs(whole), 1)):
        return None
    moved = graph.add("add", [total, graph.constant(np.rint(whole).astype(total.dtype.numpy))],
                      origin=node.origin)
    return _times(graph, moved, factor, node.origin)


def _bias(value: Value | None) -> np.ndarray | None:
    """A bias: a constant, or a dequantised one."""
    direct = known(value)
    if direct is not None or value is None or value.node is None:
        return direct
    if value.node.op in ("reshape", "expand"):
        inner = _bias(value.node.inputs[0])
        return None if inner is None else run_node(value.node, [inner])[0]
    q = dequantised(value)
    stored = None if q is None else known(q.x)
    return None if q is None or stored is None else (
        (stored.astype(np.float32) - q.zero.astype(np.float32)) * q.scale).astype(np.float32)


@rule("reduce_mean", "pool_mean")
def means(node: Node, graph: Graph) -> Value | None:
    """A mean of dequantised elements to the sum of the integers times scale / count."""
    q = dequantised(node.inputs[0])
    if q is None or not q.uniform or not all(isinstance(d, int) for d in q.x.shape[1:]):
        return None
    attrs = dict(node.attrs)
    if node.op == "reduce_mean":
        if 0 in attrs["axes"]:
            return None
        count = int(np.prod([q.x.shape[a] for a in attrs["axes"]]))
        kind = "reduce_sum"
    else:
        axes = range(q.x.rank - 2)
        outside = any(attrs["low"][i] or (attrs["sizes"][i] - 1) * attrs["strides"][i]
                      + (attrs["kernel"][i] - 1) * attrs["dilations"][i] >= q.x.shape[2 + i]
                      for i in axes)
        if outside:
            return None
        count, kind = int(np.prod(attrs["kernel"])), "pool_sum"
        attrs = {k: v for k, v in attrs.items() if k not in ("high", "include_pad")}
    if count << q.x.dtype.bits >= 1 << 31:
        return None  # the sum could leave i32
    total = graph.add(kind, [_centred(graph, q.x, q.zero, dt.i32, node.origin)], attrs,
                      origin=node.origin)
    return _times(graph, total, (q.scale.reshape(()) / np.float32(count)).astype(np.float32),
                  node.origin)


@rule("quantize")
def requantised(node: Node, graph: Graph) -> Value | None:
    """quantize(f32(total) * factor, scale, zero) to one requantisation; quantize(relu(x)) to
    quantize(x) where zero is the lowest integer; quantize(dequantize(x)) to x for equal scales."""
    x, scale, zero = node.inputs[0], known(node.inputs[1]), known(node.inputs[2])
    if x is None or scale is None or zero is None or scale.size != 1 or zero.size != 1 \
            or x.dtype is not dt.f32:
        return None
    to = node.attrs["to"]
    if x.node is not None and x.node.op == "relu" and zero.item() == to.min:
        return graph.add("quantize", [x.node.inputs[0], *node.inputs[1:]], dict(node.attrs),
                         origin=node.origin)
    q = dequantised(x)
    if q is not None and q.uniform and q.x.dtype is to and q.scale.item() == scale.item() \
            and q.zero.item() == zero.item():
        return q.x
    found = _scaled(x)
    if found is None:
        return None
    total, factor = found
    return graph.add("requantize", [
        total, graph.constant((factor / scale.reshape(())).astype(np.float32)),
        graph.constant(zero.reshape(()).astype(np.float32))], {"to": to}, origin=node.origin)


@rule("quantize")
def apart(node: Node, graph: Graph) -> Value | None:
    """quantize(concat(x...)) to concat(quantize(x)...), for one scale."""
    x, scale, zero = node.inputs[0], known(node.inputs[1]), known(node.inputs[2])
    if x is None or x.node is None or x.node.op != "concat" or scale is None or zero is None \
            or scale.size != 1 or zero.size != 1:
        return None
    parts = [graph.add("quantize", [part, *node.inputs[1:]], dict(node.attrs), origin=node.origin)
             for part in x.node.inputs]
    return graph.add("concat", parts, dict(x.node.attrs), origin=x.node.origin)


RULES = (sink, apart, largest, products, means, requantised)
