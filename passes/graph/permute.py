"""The same computation on permuted tensors: how an operator's attributes follow its axes.

A value u is kept as u' with u = transpose(u', perm): axis a of u is axis perm[a] of u'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...ir.algebra import divide
from ...ir.expr import simplify_dim, wrap
from ...ir.graph.core import Dim, Node
from ...ir.graph.definition import lookup
from ...ir.graph.ops.shapes import same

Perm = tuple[int, ...]
Group = tuple[list[int], list[int]]


def inverse(perm: Perm) -> Perm:
    result = [0] * len(perm)
    for k, p in enumerate(perm):
        result[p] = k
    return tuple(result)


def compose(inner: Perm, outer: Perm) -> Perm:
    """The perm of transpose(transpose(x, inner), outer)."""
    return tuple(inner[p] for p in outer)


def spread(items: Sequence[Any], perm: Perm) -> tuple[Any, ...]:
    """Entries per axis of u as entries per axis of u'."""
    result: list[Any] = [None] * len(perm)
    for a, item in enumerate(items):
        result[perm[a]] = item
    return tuple(result)


def moves_nothing(shape: Sequence[Any], perm: Perm) -> bool:
    """Whether a transpose of this shape only moves axes of size 1: it is a view."""
    kept = [p for p in perm if not (isinstance(shape[p], int) and shape[p] == 1)]
    return kept == sorted(kept)


def _axis(node: Node, perm: Perm) -> dict[str, Any]:
    return {**node.attrs, "axis": perm[node.attrs["axis"]]}


def _axes(node: Node, perm: Perm) -> dict[str, Any]:
    return {**node.attrs, "axes": tuple(perm[a] for a in node.attrs["axes"])}


def _sorted_axes(node: Node, perm: Perm) -> dict[str, Any]:
    return {**node.attrs, "axes": tuple(sorted(perm[a] for a in node.attrs["axes"]))}


def _entries(*names: str) -> Callable[[Node, Perm], dict[str, Any]]:
    return lambda node, perm: {**node.attrs, **{n: spread(node.attrs[n], perm) for n in names}}


_REDUCTIONS = ("sum", "prod", "max", "min", "any", "all", "mean")
_RULES: dict[str, Callable[[Node, Perm], dict[str, Any]]] = {
    "concat": _axis,
    "softmax": _axis,
    "log_softmax": _axis,
    "cumsum": _axis,
    "slice": _entries("starts", "sizes", "steps"),
    "pad": _entries("low", "high"),
    "expand": _entries("shape"),
    "tile": _entries("repeats"),
    "resize": _axes,
    "resize_nearest": _axes,
    **{f"reduce_{kind}": _sorted_axes for kind in _REDUCTIONS},
}


def permutable(node: Node) -> bool:
    """Whether the node can compute on permuted tensors: all its tensors of the result's rank are
    permuted alike."""
    if len(node.outputs) != 1 or node.regions or node.output.rank < 2:
        return False
    if lookup(node.op).kind == "elementwise":
        return all(v is not None for v in node.inputs)
    if node.op not in _RULES or any(
            node.inputs[i] is None or node.inputs[i].rank != node.output.rank  # type: ignore
            for i in operands(node)):
        return False
    return not node.op.startswith("reduce_") or node.attrs["keepdims"]


def operands(node: Node) -> range:
    """The operands that are permuted with the result."""
    if node.op == "concat" or lookup(node.op).kind == "elementwise":
        return range(len(node.inputs))
    return range(1)


def permuted_attrs(node: Node, perm: Perm) -> dict[str, Any]:
    """The attributes of the node that computes u' in the place of u."""
    rule = _RULES.get(node.op)
    return dict(node.attrs) if rule is None else rule(node, perm)


def spoils_rows(node: Node, perm: Perm) -> bool:
    """Whether a row operator would lose its contiguous rows."""
    if node.op not in ("softmax", "log_softmax"):
        return False
    last = node.output.rank - 1
    return node.attrs["axis"] == last and perm[last] != last


def reshape_groups(source: Sequence[Dim], target: Sequence[Dim]) -> list[Group] | None:
    """The axes of a reshape in groups (source axes, target axes) of equal products, in order and
    without the axes of size 1. None when the sizes cannot be compared."""
    src, dst = ([a for a, d in enumerate(shape) if not same(d, 1)] for shape in (source, target))
    groups: list[Group] = []
    i = j = 0
    while i < len(src) and j < len(dst):
        left, right = [src[i]], [dst[j]]
        a, b = source[src[i]], target[dst[j]]
        i, j = i + 1, j + 1
        while not same(a, b):
            if _divides(a, b) and i < len(src):
                left.append(src[i])
                a, i = simplify_dim(wrap(a) * wrap(source[src[i]])), i + 1
            elif j < len(dst):
                right.append(dst[j])
                b, j = simplify_dim(wrap(b) * wrap(target[dst[j]])), j + 1
            else:
                return None
        groups.append((left, right))
    return groups if i == len(src) and j == len(dst) else None


def _divides(a: Dim, b: Dim) -> bool:
    """Whether b is a multiple of a, or larger where both are numbers."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return same(simplify_dim(divide(wrap(b), wrap(a))[1]), 0)


def sink_below_reshape(shape: Sequence[Dim], perm: Perm,
                       target: Sequence[Dim]) -> tuple[tuple[Dim, ...], Perm] | None:
    """How reshape(transpose(x, perm), target) of x with `shape` is transpose(reshape(x, s), p):
    (s, p), or None when axes that the reshape merges are not neighbours in x."""
    groups = reshape_groups([shape[p] for p in perm], target)
    if not groups:
        return None
    kept = [a for a, d in enumerate(shape) if not same(d, 1)]
    placed: list[tuple[int, list[int]]] = []
    for left, right in groups:
        axes = [kept.index(perm[a]) for a in left]
        if axes != list(range(axes[0], axes[0] + len(axes))):
            return None
        placed.append((axes[0], list(right)))
    # Axes of size 1 stay with the one before them.
    for j, d in enumerate(target):
        if same(d, 1):
            before = [right for _, right in placed if any(k < j for k in right)]
            (before[-1] if before else placed[0][1]).append(j)
    order = [j for _, right in sorted(placed) for j in sorted(right)]
    return tuple(target[j] for j in order), tuple(order.index(j) for j in range(len(target)))


def split_before_reshape(shape: Sequence[Dim], perm: Perm, target: Sequence[Dim]
                         ) -> tuple[Perm, tuple[Dim, ...], Perm] | None:
    """reshape(transpose(x, perm), target) of x with `shape` in two steps: (inner, s, outer) with
    transpose(reshape(transpose(x, inner), s), outer), where `inner` only brings together what the
    reshape merges. None when the reshape cannot be followed."""
    groups = reshape_groups([shape[p] for p in perm], target)
    if not groups:
        return None
    placed = sorted(([perm[a] for a in left], list(right)) for left, right in groups)
    placed.sort(key=lambda item: min(item[0]))
    for j, d in enumerate(target):
        if same(d, 1):
            before = [right for _, right in placed if any(k < j for k in right)]
            (before[-1] if before else placed[0][1]).append(j)
    units = [a for a, d in enumerate(shape) if same(d, 1)]
    inner = (*units, *(a for left, _ in placed for a in left))
    order = [j for _, right in placed for j in sorted(right)]
    return (inner, tuple(target[j] for j in order),
            tuple(order.index(j) for j in range(len(target))))
