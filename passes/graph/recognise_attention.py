"""Recognises attention written as matmul, softmax, matmul.

    y = matmul(guard(softmax(mask(bias(softcap(matmul(q, k^T) * scale))))), v)

The guard, if there is one, puts 0 in the place of NaN: the probabilities of a row all of whose
keys are hidden. The scale may sit on q and k instead; keys shared by several heads may be repeated,
or the heads folded into the rows of q; heads may be part of the batch (rank 3). A mask by position
becomes the attribute `causal`, a transpose of the result the attribute `perm`. Only f32 with heads
of a known size is recognised: kernels for others would be slower than two products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ...ir import dtype as dt
from ...ir.graph.core import Dim, Graph, Node, Value
from ...ir.graph.ops.shapes import same
from .pattern import private
from .rewrite import Replacement, only_user, producer, rule, scalar

_HIDDEN = -1e4
"""A bias at or below this hides a key: its exponential is 0 in every type."""

_LARGEST_HEAD = 1024
"""Elements of a head that a kernel can keep for a block of rows in the second-level cache."""


@dataclass
class _Scores:
    """What was found between the two products."""

    product: Node
    masked: bool
    guarded: bool
    scale: float = 1.0
    softcap: float = 0.0
    bias: Value | None = None
    masks: list[Value] = field(default_factory=list)
    fill: float = -math.inf


def _behind(value: Value | None, *ops: str) -> Value | None:
    """The operand of the node behind `value` when it is one of `ops`, else `value`."""
    node = value.node if value is not None else None
    return node.inputs[0] if node is not None and node.op in ops else value


def _probabilities(value: Value | None) -> tuple[Value | None, bool]:
    """(the softmax's value, whether NaN is replaced by 0) behind the second product's operand."""
    value = _behind(_behind(value, "reshape"), "cast")
    node = value.node if value is not None else None
    if node is None or node.op != "select" or scalar(node.inputs[1]) != 0:
        return value, False
    test, inner = producer(node, 0, "isnan"), node.inputs[2]
    return (inner, True) if test is not None and test.inputs[0] is inner else (value, False)


def _scores(value: Value | None) -> _Scores | None:
    """Reads the chain from the probabilities back to the first product."""
    value, guarded = _probabilities(value)
    node = value.node if value is not None else None
    if node is None or node.op != "softmax" or node.attrs["axis"] != node.output.rank - 1:
        return None
    found = _Scores(node, node.attrs["masked"], guarded)
    value = node.inputs[0]
    stage = 0  # mask, bias, softcap, scale: each at most once, in this order
    for _ in range(12):
        node = value.node if value is not None else None
        if node is None or value is None:
            return None
        if node.op == "matmul":
            found.product = node
            return found
        if node.op == "select" and stage < 1:
            number = scalar(node.inputs[2])
            if number is None or node.inputs[1] is None or node.inputs[0] is None \
                    or node.inputs[1].shape != value.shape:
                return None
            found.masks, found.fill = [node.inputs[0]], float(number)
            value, stage = node.inputs[1], 1
        elif node.op == "add" and stage < 2:
            side = next((i for i in (0, 1) if _leads_to_product(node.inputs[i])), None)
            if side is None or node.inputs[side].shape != value.shape:  # type: ignore
                return None
            found.bias, value, stage = node.inputs[1 - side], node.inputs[side], 2
        elif node.op == "mul" and stage < 3 and producer(node, 0, "tanh") is not None:
            cap, tanh = scalar(node.inputs[1]), producer(node, 0, "tanh")
            inner = producer(tanh, 0, "div", "mul") if tanh is not None else None
            by = scalar(inner.inputs[1]) if inner is not None else None
            if inner is None or not cap or not by:
                return None
            if abs((by if inner.op == "div" else 1 / by) / cap - 1) > 1e-4:
                return None
            found.softcap, value, stage = float(cap), inner.inputs[0], 3
        elif node.op in ("mul", "div"):
            number = scalar(node.inputs[1])
            if not number:
                return None
            found.scale *= float(number) if node.op == "mul" else 1 / float(number)
            value, stage = node.inputs[0], 4
        elif node.op in ("reshape", "cast"):
            value = node.inputs[0]
        else:
            return None
    return None


def _leads_to_product(value: Value | None) -> bool:
    for _ in range(8):
        node = value.node if value is not None else None
        if node is None:
            return False
        if node.op == "matmul":
            return True
        if node.op not in ("mul", "div", "reshape", "cast", "tanh"):
            return False
        value = node.inputs[0]
    return False


def _unscaled(value: Value, found: _Scores) -> Value:
    """`value` without a factor that is a number, which goes into the scale."""
    node = value.node
    if node is not None and node.op in ("mul", "div") and node.inputs[0] is not None \
            and node.inputs[0].shape == value.shape:
        number = scalar(node.inputs[1])
        if number:
            found.scale *= float(number) if node.op == "mul" else 1 / float(number)
            return node.inputs[0]
    return value


def _plain_heads(value: Value) -> Value:
    """[B, Hk, T, D] behind a value [B, H, T, D] in which each head is repeated for a group."""
    node = value.node
    if node is None or value.rank != 4:
        return value
    b, _, t, d = value.shape
    if node.op == "expand":
        source = node.inputs[0]
        assert source is not None
        return source if source.shape == (b, 1, t, d) else value
    expand = producer(node, 0, "expand") if node.op == "reshape" else None
    source = expand.inputs[0] if expand is not None else None
    if expand is None or source is None or source.rank != 5 or expand.output.rank != 5:
        return value
    hk = source.shape[1]
    if source.shape != (b, hk, 1, t, d) or expand.output.shape[:2] != (b, hk) \
            or expand.output.shape[3:] != (t, d):
        return value
    before = _behind(source, "reshape")
    return before if before is not None and before.shape == (b, hk, t, d) else value


def _offset(mask: Value, rows: Dim, keys: Dim) -> Dim | None:
    """The offset with which a mask shows key t to row s when t <= s + offset; None otherwise."""
    array = mask.constant
    if array is not None and array.dtype == bool:
        if array.size != math.prod(array.shape[-2:]) or array.ndim < 2 \
                or array.shape[-2:] != (rows, keys) or array.size < 2:
            return None
        flat = array.reshape(array.shape[-2:])
        offset = int(flat[0].sum()) - 1
        return offset if np.array_equal(flat, np.tri(*flat.shape, offset, dtype=bool)) else None
    node = mask.node
    if node is None or node.op not in ("le", "ge") or mask.rank < 2:
        return None
    key, row = node.inputs if node.op == "le" else node.inputs[::-1]
    shift: Dim = 0
    if row is not None and row.node is not None and row.node.op == "add":
        number = scalar(row.node.inputs[1])
        if number is None:
            return None
        shift, row = int(number), row.node.inputs[0]
    if _is_positions(key, keys, 1) and _is_positions(row, rows, 2):
        return shift
    return None


def _is_positions(value: Value | None, count: Dim, axis: int) -> bool:
    """Whether a value is 0, 1, ... along its axis number `axis` from the end."""
    if value is None or value.rank < axis or not same(value.shape[-axis], count):
        return False
    if any(not same(d, 1) for k, d in enumerate(value.shape) if k != value.rank - axis):
        return False
    inner = _behind(value, "reshape")
    return inner is not None and inner.node is not None and inner.node.op == "iota"


def _hidden(bias: Value) -> np.ndarray | None:
    """The mask that a constant bias of zeros and very low numbers amounts to."""
    array = bias.constant
    if array is None or array.size > 1 << 26:
        return None
    shown = array == 0
    if shown.all() or not (shown | (array <= _HIDDEN)).all():
        return None
    # A row that hides all its keys by a finite number still compares their scores.
    return shown if (np.isneginf(array) | shown).all() or shown.any(-1).all() else None


def _by_condition(bias: Value) -> tuple[Value, float] | None:
    """(mask, number) of a bias that is 0 where the mask holds and else a very low number."""
    node = bias.node
    if node is None or node.op != "select" or scalar(node.inputs[1]) != 0:
        return None
    low = scalar(node.inputs[2])
    if low is None or low > _HIDDEN or node.inputs[0] is None:
        return None
    return node.inputs[0], float(low)


def _masks(masks: list[Value]) -> list[Value]:
    """The operands of a conjunction."""
    result: list[Value] = []
    stack = list(masks)
    while stack:
        value = stack.pop()
        node = value.node
        if node is not None and node.op == "and":
            stack += [v for v in node.inputs if v is not None]
        else:
            result.append(value)
    return result


def _wide(graph: Graph, value: Value, at: str) -> Value:
    """A value of rank 3, whose batch holds the heads, in rank 4."""
    if value.rank != 3:
        return value
    shape = (value.shape[0], 1, *value.shape[1:])
    return graph.add("reshape", [value], {"shape": shape}, origin=at)


@rule("matmul")
def attention(node: Node, graph: Graph) -> Replacement:
    """The second product of attention; see the module."""
    found = _scores(node.inputs[0])
    v = node.inputs[1]
    if found is None or v is None or node.attrs["dtype"] not in (None, v.dtype):
        return None
    q, transposed = found.product.inputs
    if q is None or transposed is None or q.rank not in (3, 4):
        return None
    q, transposed = _unscaled(q, found), _unscaled(transposed, found)
    swap = transposed.node
    if swap is None or swap.op != "transpose" or transposed.rank != q.rank or v.rank != q.rank:
        return None
    if any(t.dtype is not dt.f32 for t in (q, transposed, v, node.output)) or not all(
            isinstance(d, int) and 0 < d <= _LARGEST_HEAD for d in (q.shape[-1], v.shape[-1])):
        return None
    leaves = {x for x in (q, transposed, v, found.bias, *found.masks) if x is not None}
    if not private(node, leaves):
        return None
    probabilities = node.inputs[0]
    assert probabilities is not None
    scores = _score_value(probabilities)
    at, rank = node.origin, q.rank
    if not _one_batch(q, transposed, v, scores):
        return None
    perm = (*range(rank - 2), rank - 1, rank - 2)
    attrs = {"scale": found.scale, "softcap": found.softcap, "fill": found.fill,
             "masked": found.masked, "guarded": found.guarded}
    bias, masks = found.bias, _masks(found.masks)
    if bias is not None and not masks:
        shown = _hidden(bias)
        if shown is not None:
            bias, masks, attrs["fill"] = None, [graph.constant(shown)], -math.inf
        chosen = _by_condition(bias) if bias is not None else None
        if chosen is not None:
            offset = _offset(chosen[0], *scores.shape[-2:])
            # Under a causal mask every row sees a key, so what hides the others does not matter.
            if chosen[1] == -math.inf or isinstance(offset, int) and offset >= 0:
                bias, masks, attrs["fill"] = None, _masks([chosen[0]]), -math.inf
    if attrs["fill"] == -math.inf:
        for mask in masks:
            offset = _offset(mask, *scores.shape[-2:])
            if offset is not None and (not isinstance(offset, int) or offset >= 0):
                masks.remove(mask)
                attrs |= {"causal": True, "offset": offset}
                break
    mask = masks[0] if masks else None
    for other in masks[1:]:
        mask = graph.add("and", [mask, other], origin=at)
    k = graph.add("transpose", [transposed], {"perm": perm}, origin=at)
    straight = _behind(k, "transpose") if swap.attrs["perm"] == perm else None
    if straight is not None and swap.inputs[0] is not None:
        k = _plain_heads(swap.inputs[0])
    v = _plain_heads(v) if k.rank == 4 and not same(k.shape[1], q.shape[1]) else v
    if rank == 4 and scores.rank == 4 and scores.shape[:3] != q.shape[:3]:
        q = graph.add("reshape", [q], {"shape": (*scores.shape[:3], q.shape[3])}, origin=at)
    extra = [None if x is None or x.rank != 3 or rank != 3 else _wide(graph, x, at)
             for x in (bias, mask)]
    inputs = [_wide(graph, q, at), _wide(graph, k, at), _wide(graph, v, at),
              extra[0] or bias, extra[1] or mask]
    while inputs[-1] is None:
        inputs.pop()
    heads, shared = inputs[0].shape[1], inputs[1].shape[1]  # type: ignore[union-attr]
    if shared != inputs[2].shape[1] or not same(heads, shared) and not (  # type: ignore[union-attr]
            isinstance(heads, int) and isinstance(shared, int)):
        return None
    result = graph.add("attention", inputs, attrs, origin=at)
    if result.shape == node.output.shape:
        return result
    return graph.add("reshape", [result], {"shape": node.output.shape}, origin=at)


def _one_batch(q: Value, transposed: Value, v: Value, scores: Value) -> bool:
    """Whether the products broadcast no batch, and no query head."""
    if any(not same(x.shape[0], q.shape[0]) for x in (transposed, v)):
        return False
    if q.rank != 4 or scores.rank != 4:
        return scores.rank == q.rank
    (b, h, s), (n, g, r) = q.shape[:3], scores.shape[:3]
    return same(b, n) and same(h * s, g * r)


def _score_value(probabilities: Value) -> Value:
    """The value that the softmax gives."""
    value, _ = _probabilities(probabilities)
    assert value is not None
    return value


@rule("transpose")
def attention_transposed(node: Node, graph: Graph) -> Replacement:
    """A transpose of the result that leaves elements of a head together."""
    inner, perm = producer(node, 0, "attention"), node.attrs["perm"]
    if inner is None or only_user(inner.output) is not node or perm[-1] != len(perm) - 1:
        return None
    attrs = {**inner.attrs, "perm": tuple(inner.attrs["perm"][a] for a in perm)}
    return graph.add("attention", inner.inputs, attrs, origin=inner.origin)


RULES = [attention, attention_transposed]
