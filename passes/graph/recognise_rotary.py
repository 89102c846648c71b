"""Recognises rotary position embedding however its pairs are taken apart and put together.

What a value holds at the two elements of a pair is written in index notation and must be

    even: x[even] * cos - x[odd] * sin        odd: x[odd] * cos + x[even] * sin

Movement between the products and x, cos and sin, and signs on the way, are followed by index, so
slices, splits, gathers, stacks and x * cos + concat(-x2, x1) * sin are all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...ir.expr import Const, Expr, const, var, wrap
from ...ir.graph.core import Dim, Graph, Node, Value
from ...ir.graph.definition import OpContext, lookup
from ...ir.graph.ops.shapes import broadcast_index, same
from .pattern import private
from .rewrite import Replacement, producer, rule

_MOVEMENT = ("concat", "expand", "gather", "reshape", "slice", "transpose")
_DEPTH = 8

Index = tuple[Expr, ...]
Shape = tuple[Dim, ...]
Chain = dict[tuple[Value, Index], int]
"""Elements that are the same number, the last to be computed first, with their signs."""


@dataclass
class _Product:
    """sign * left * right."""

    sign: int
    factors: tuple[Chain, Chain]


@dataclass
class _Pair:
    """Where one pair is: even and odd index of the result, and its number."""

    even: Index
    odd: Index
    number: Expr
    count: int
    interleaved: bool


def _source(value: Value, index: Index) -> tuple[Value, Index] | None:
    """The element that a movement node has at `index`, if that is one for all indices."""
    node = value.node
    body = lookup(node.op).body if node is not None else None
    if node is None or body is None:
        return None
    read: dict[Expr, tuple[Value, Index]] = {}

    def load(i: int, at: Index) -> Expr:
        operand = node.inputs[i]
        assert operand is not None
        if operand.content is not None and all(isinstance(j, Const) for j in at):
            return operand.content[tuple(j.value for j in at)]  # type: ignore[attr-defined]
        mark = var(f"element{len(read)}", operand.dtype)
        read[mark] = operand, at
        return mark

    return read.get(body(OpContext(node, None, load), index))


def _chain(value: Value, index: Index) -> Chain:
    found: Chain = {}
    sign = 1
    for _ in range(_DEPTH):
        found[value, index] = sign
        node = value.node
        if node is not None and node.op == "neg" and node.inputs[0] is not None:
            value, sign = node.inputs[0], -sign
            continue
        before = _source(value, index) if node is not None and node.op in _MOVEMENT else None
        if before is None:
            break
        value, index = before
    return found


def _products(value: Value, index: Index) -> list[_Product] | None:
    """The element as a sum of two products."""
    sign = 1
    for _ in range(_DEPTH):
        node = value.node
        if node is None:
            return None
        if node.op in ("add", "sub"):
            break
        if node.op not in _MOVEMENT:
            return None
        before = _source(value, index)
        if before is None:
            return None
        value, index = before
    node = value.node
    if node is None or node.op not in ("add", "sub"):
        return None
    result = []
    for i, operand in enumerate(node.inputs):
        assert operand is not None
        sign = -1 if i and node.op == "sub" else 1
        at = broadcast_index(index, operand.shape, value.shape)
        product = next(((v, j, s * sign) for (v, j), s in _chain(operand, at).items()
                        if v.node is not None and v.node.op == "mul"), None)
        if product is None:
            return None
        inner, where, sign = product
        assert inner.node is not None
        left, right = (_chain(v, broadcast_index(where, v.shape, inner.shape))
                       for v in inner.node.inputs if v is not None)
        result.append(_Product(sign, (left, right)))
    return result


def _times(products: list[_Product], x: tuple[Value, Index]) -> list[tuple[Chain, int]]:
    """The other factors, with signs, of the products in which the element x is."""
    return [(p.factors[1 - k], p.sign * p.factors[k][x])
            for p in products for k in (0, 1) if x in p.factors[k]]


def _angle(first: list[tuple[Chain, int]], second: list[tuple[Chain, int]], signs: tuple[int, int],
           pair: _Pair, shape: Shape, keep: set[Value]) -> Value | None:
    """The value that is, with these signs, a factor at the pair's even and odd element: one with
    an element per pair, if there is one."""
    best: Value | None = None
    for chain, sign in first:
        for (value, index), inner in chain.items():
            for other, other_sign in second:
                place = next((j for v, j in other if v is value), None)
                if place is None or sign * inner != signs[0] \
                        or other_sign * other[value, place] != signs[1]:
                    continue
                if _fits(value, index, place, pair, shape[:-1]) and (
                        best is None or value.shape[-1] < best.shape[-1]):  # type: ignore
                    keep |= {v for c in (chain, other) for v, _ in c}
                    best = value
    return best


def _fits(value: Value, even: Index, odd: Index, pair: _Pair, shape: Shape) -> bool:
    """Whether a value has one element per pair, or one for each of its two, there."""
    lead = pair.even[:-1]
    if not 0 < value.rank <= len(lead) + 1:
        return False
    if any(not same(d, 1) and not same(d, e) for d, e in zip(
            value.shape[:-1], shape[len(lead) - value.rank + 1:], strict=True)):
        return False
    at = broadcast_index(lead, value.shape[:-1], shape)
    if value.shape[-1] == pair.count // 2:
        return even == odd == (*at, pair.number)
    return value.shape[-1] == pair.count and even == (*at, pair.even[-1]) \
        and odd == (*at, pair.odd[-1])


def _pairs(root: Value) -> Iterator[_Pair]:
    """The ways in which a value of rank n may hold pairs along its last axis."""
    depth = root.shape[-1]
    if not isinstance(depth, int):
        return
    lead = tuple(const(0) if same(d, 1) else var(f"l{a}", extent=d)
                 for a, d in enumerate(root.shape[:-1]))
    node = root.node
    assert node is not None
    halves = {depth}
    if node.op == "concat":
        widths = [v.shape[-1] for v in node.inputs if v is not None]
        halves = {n for n in (2 * w for w in widths[:1] if isinstance(w, int)) if n <= depth}
    for count in halves:
        if count % 2 == 0 and count:
            half = count // 2
            p = var("p", extent=half) if half > 1 else const(0)
            yield _Pair((*lead, p), (*lead, p + half), p, count, False)
            if node.op == "add":
                yield _Pair((*lead, p * 2), (*lead, p * 2 + 1), p, count, True)


@rule("add", "concat")
def rotary(node: Node, graph: Graph) -> Replacement:
    """The last node that computes turned pairs."""
    root = node.output
    if not root.dtype.is_float or not root.rank:
        return None
    if node.op == "add":
        if not any(producer(node, i, "mul", "neg", *_MOVEMENT) for i in (0, 1)):
            return None
    elif node.attrs["axis"] != root.rank - 1 or not 2 <= len(node.inputs) <= 3:
        return None
    elif all(v is not None and same(v.shape[-1], 1) for v in node.inputs) \
            and len(node.inputs) == 2 and root.rank > 1:
        return _stacked(node, graph)
    for pair in _pairs(root):
        even, odd = _products(root, pair.even), _products(root, pair.odd)
        if even is not None and odd is not None:
            found = _turned(node, graph, pair, even, odd, root.shape)
            if found is not None:
                return found
    return None


def _stacked(node: Node, graph: Graph) -> Replacement:
    """Pairs along an axis of their own, the last."""
    root = node.output
    half = root.shape[-2]
    if not isinstance(half, int) or half < 1:
        return None
    lead = tuple(const(0) if same(d, 1) else var(f"l{a}", extent=d)
                 for a, d in enumerate(root.shape[:-2]))
    p = var("p", extent=half) if half > 1 else const(0)
    even, odd = (_products(root, (*lead, p, const(k))) for k in (0, 1))
    if even is None or odd is None:
        return None
    flat = (*root.shape[:-2], half * 2)
    pair = _Pair((*lead, p * 2), (*lead, p * 2 + 1), p, half * 2, True)
    found = _turned(node, graph, pair, even, odd, flat)
    if found is None:
        return None
    return graph.add("reshape", [found], {"shape": root.shape}, origin=node.origin)


def _turned(node: Node, graph: Graph, pair: _Pair, even: list[_Product], odd: list[_Product],
            shape: Shape) -> Value | None:
    """The rotary node of this shape that gives these products."""
    elements = dict.fromkeys(e for p in even for c in p.factors for e in c)
    for x, index in elements:
        start = _start(x, index, pair, shape)
        if start is None:
            continue
        (*lead, _), stacked = index, len(index) > len(shape)
        if stacked:
            places = index, (*lead, const(1))
        else:
            places = index, (*lead, pair.odd[-1] + start)
        if not _rest_passes(node, x, start, pair, shape):
            continue
        at_even = [_times(even, (x, i)) for i in places]
        at_odd = [_times(odd, (x, i)) for i in places]
        keep = {x}
        cos = _angle(at_even[0], at_odd[1], (1, 1), pair, shape, keep)
        sin = _angle(at_even[1], at_odd[0], (-1, 1), pair, shape, keep)
        if cos is None or sin is None or not private(node, keep) \
                or not x.dtype is cos.dtype is sin.dtype:
            continue
        return graph.add("rotary", [_operand(graph, x, start, shape, node), cos, sin],
                         {"size": pair.count, "interleaved": pair.interleaved},
                         origin=node.origin)
    return None


def _start(x: Value, index: Index, pair: _Pair, shape: Shape) -> int | None:
    """From where on x has the elements of the result, if `index` is its even one."""
    if not index:
        return None
    *lead, last = index
    if x.rank == len(shape) + 1:
        whole = (*shape[:-1], pair.count // 2, 2) if pair.interleaved else ()
        fits = x.shape == whole and index == (*pair.even[:-1], pair.number, const(0))
        return 0 if fits else None
    if x.rank != len(shape) or tuple(lead) != pair.even[:-1] or not all(
            map(same, x.shape[:-1], shape[:-1])):
        return None
    start = last - pair.even[-1]
    return start.value if isinstance(start, Const) and start.value >= 0 else None


def _rest_passes(node: Node, x: Value, start: int, pair: _Pair, shape: Shape) -> bool:
    """Whether the result has x's own elements behind the turned ones."""
    depth = shape[-1]
    assert isinstance(depth, int)
    if depth == pair.count:
        return True
    j = var("j", extent=depth - pair.count) if depth > pair.count + 1 else const(0)
    lead = pair.even[:-1]
    behind = _chain(node.output, (*lead, j + pair.count))
    return behind.get((x, (*lead, j + (pair.count + start)))) == 1


def _operand(graph: Graph, x: Value, start: int, shape: Shape, node: Node) -> Value:
    """x, or its elements from `start` on, in the shape of the result."""
    if x.shape == shape:
        return x
    if x.rank > len(shape):
        return graph.add("reshape", [x], {"shape": shape}, origin=node.origin)
    return graph.add("slice", [x], {
        "starts": (*(0,) * (x.rank - 1), start), "sizes": shape, "steps": (1,) * x.rank,
    }, origin=node.origin)


@rule("concat")
def partial_rotary(node: Node, graph: Graph) -> Replacement:
    """Some elements turned, the ones behind them as they are."""
    root = node.output
    inner = producer(node, 0, "rotary")
    if inner is None or len(node.inputs) != 2 or node.attrs["axis"] != root.rank - 1 \
            or not isinstance(root.shape[-1], int) or node.inputs[1] is None:
        return None
    lead = tuple(const(0) if same(d, 1) else var(f"l{a}", extent=d)
                 for a, d in enumerate(root.shape[:-1]))
    turned, rest = inner.inputs[0], node.inputs[1]
    assert turned is not None
    first = _chain(turned, (*lead, const(0)))
    j = var("j", extent=rest.shape[-1]) if rest.shape[-1] != 1 else const(0)
    behind = _chain(rest, (*lead, j))
    for x, index in first:
        start = index[-1]
        if x.rank != root.rank or index[:-1] != lead or not isinstance(start, Const):
            continue
        moved = j + start + wrap(turned.shape[-1])
        if behind.get((x, (*lead, moved))) == first[x, index] == 1 and all(
                map(same, x.shape[:-1], root.shape[:-1])):
            return graph.add("rotary", [_operand(graph, x, start.value, root.shape, node),
                                        *inner.inputs[1:]], dict(inner.attrs), origin=node.origin)
    return None


RULES = [rotary, partial_rotary]
