"""Rules that recognise softmax, layer norm and RMS norm written in primitive operators.

They expect the forms that canonicalisation leaves: constants on the right, squares as x * x,
reductions that keep their axes.
"""

from __future__ import annotations

from ...ir import dtype as dt
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.ops.shapes import same
from .pattern import Any, Either, Number, Op, match
from .rewrite import Replacement, only_user, producer, rule


def _one_axis(node: Node) -> bool:
    return node.attrs["keepdims"] and len(node.attrs["axes"]) == 1


def _trailing(node: Node) -> bool:
    """A reduction over the last axes."""
    rank, axes = node.output.rank, node.attrs["axes"]
    return node.attrs["keepdims"] and tuple(axes) == tuple(range(rank - len(axes), rank))


_X = Any("x")
_SHIFTED = Op("sub", _X, Op("reduce_max", _X, name="max", test=_one_axis))
_EXP = Either(Op("exp", _SHIFTED, name="exp"), Op("exp", _X, name="exp"))
_TOTAL = Op("reduce_sum", _EXP, name="sum", test=_one_axis)


@rule("div")
def softmax(node: Node, graph: Graph) -> Replacement:
    """exp(x - max(x)) / sum(exp(x - max(x))), also without the maximum."""
    found = match(node.output, Op("div", _EXP, _TOTAL))
    if found is None or not node.output.dtype.is_float:
        return None
    axes = found["sum"].attrs["axes"]
    if "max" in found and found["max"].attrs["axes"] != axes:
        return None
    return graph.add("softmax", [found["x"]], {"axis": axes[0]}, origin=node.origin)


@rule("sub", "log")
def log_softmax(node: Node, graph: Graph) -> Replacement:
    """log(softmax(x)) and x - max(x) - log(sum(exp(x - max(x))))."""
    inner = producer(node, 0, "softmax")
    if node.op == "log":
        if inner is None or inner.attrs["masked"]:
            return None
        return graph.add("log_softmax", [inner.inputs[0]], {"axis": inner.attrs["axis"]},
                         origin=node.origin)
    found = match(node.output, Op("sub", _SHIFTED, Op("log", _TOTAL)))
    if found is None or found["sum"].attrs["axes"] != found["max"].attrs["axes"]:
        return None
    return graph.add("log_softmax", [found["x"]], {"axis": found["sum"].attrs["axes"][0]},
                     origin=node.origin)


_CENTRED = Op("sub", _X, Op("reduce_mean", _X, name="mean", test=_trailing), name="centred")
_VARIANCE = Op("reduce_mean", Op("mul", _CENTRED, _CENTRED), name="variance", test=_trailing)
_SQUARES = Op("reduce_mean", Op("mul", _X, _X), name="squares", test=_trailing)


def _normalised(value, mean):
    """value / sqrt(mean + eps)."""
    inside = Op("add", mean, Number("epsilon"))
    return Either(Op("div", value, Op("sqrt", inside)), Op("mul", value, Op("rsqrt", inside)))


_LAYER_NORM = _normalised(_CENTRED, _VARIANCE)
_RMS_NORM = _normalised(_X, _SQUARES)


@rule("div", "mul")
def layer_norm(node: Node, graph: Graph) -> Replacement:
    """(x - mean) / sqrt(mean((x - mean) ** 2) + epsilon) over the last axes."""
    found = match(node.output, _LAYER_NORM)
    if found is None or found["mean"].attrs["axes"] != found["variance"].attrs["axes"]:
        return None
    return _norm("layer_norm", node, graph, found, found["mean"])


@rule("div", "mul")
def rms_norm(node: Node, graph: Graph) -> Replacement:
    """x / sqrt(mean(x ** 2) + epsilon) over the last axes."""
    found = match(node.output, _RMS_NORM)
    return None if found is None else _norm("rms_norm", node, graph, found, found["squares"])


def _norm(op: str, node: Node, graph: Graph, found: dict, reduction: Node) -> Replacement:
    x, epsilon = found["x"], found["epsilon"]
    if not x.dtype.is_float or epsilon < 0:
        return None
    return graph.add(op, [x], {"axis": reduction.attrs["axes"][0], "epsilon": epsilon},
                     origin=node.origin)


@rule("mul", "add")
def norm_affine(node: Node, graph: Graph) -> Replacement:
    """The scale, then the offset, of a norm go into it."""
    for i in (0, 1):
        inner, other = producer(node, i, "layer_norm", "rms_norm"), node.inputs[1 - i]
        if inner is None or other is None or only_user(inner.output) is not node:
            continue
        has_scale, has_offset = (len(inner.inputs) > k and inner.inputs[k] is not None
                                 for k in (1, 2))
        if has_offset or node.op == "mul" and has_scale:
            continue
        row = inner.output.shape[inner.attrs["axis"]:]
        extra = other.rank - len(row)
        if inner.output.shape != node.output.shape or any(
                not same(d, 1) for d in other.shape[:max(extra, 0)]):
            continue
        kept = (1,) * max(-extra, 0) + tuple(other.shape[max(extra, 0):])
        if any(not same(d, e) and not same(d, 1) for d, e in zip(kept, row, strict=True)):
            continue
        if not all(map(same, kept, row)) and (other.constant is None or other.type.numel != 1):
            continue
        operand = _as_row(graph, other, row, node.origin)
        inputs = [inner.inputs[0], operand] if node.op == "mul" else [
            inner.inputs[0], inner.inputs[1] if has_scale else None, operand]
        return graph.add(inner.op, inputs, dict(inner.attrs), origin=node.origin)
    return None


def _as_row(graph: Graph, value: Value, row, origin: str) -> Value:
    if value.type.numel == 1 and value.shape != tuple(row):
        flat = graph.add("reshape", [value], {"shape": (1,) * len(row)}, origin=origin)
        return graph.add("expand", [flat], {"shape": tuple(row)}, origin=origin)
    if value.shape == tuple(row):
        return value
    return graph.add("reshape", [value], {"shape": tuple(row)}, origin=origin)


@rule("cast")
def norm_in_f32(node: Node, graph: Graph) -> Replacement:
    """A norm of f16 or bf16 rows, without scale, between casts to f32 and back: norms of those
    types are computed in f32 anyway."""
    inner = producer(node, 0, "layer_norm", "rms_norm", "softmax")
    widen = producer(inner, 0, "cast") if inner is not None else None
    x = widen.inputs[0] if widen is not None else None
    if inner is None or x is None or only_user(inner.output) is not node \
            or any(v is not None for v in inner.inputs[1:]):
        return None
    if x.dtype not in (dt.f16, dt.bf16) or inner.output.dtype is not dt.f32 \
            or node.attrs["to"] is not x.dtype or node.attrs["mode"] != "value":
        return None
    return graph.add(inner.op, [x], dict(inner.attrs), origin=inner.origin)


RULES = [softmax, log_softmax, layer_norm, rms_norm, norm_affine, norm_in_f32]
