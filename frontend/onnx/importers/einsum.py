"""Einsum: contracted pair by pair into transposes, reshapes and matrix products."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ....ir.expr import simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from ....ir.graph.ops.shapes import same
from ..building import product, reshape, transpose
from ..registry import Site, importer


@dataclass
class _Term:
    """A tensor with one label per dimension; labels of an ellipsis are integers."""

    value: Value
    labels: list


def _parse(c: Site, equation: str, ranks: list[int]) -> tuple[list[list], list]:
    """Labels of each operand and of the result."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise c.error(f"equation {equation!r} has {len(terms)} terms for {len(ranks)} operands")
    spans = [ranks[k] - len(t.replace("...", "")) for k, t in enumerate(terms) if "..." in t]
    widest = max(spans, default=0)
    operands = [_labels(c, equation, t, ranks[k], widest) for k, t in enumerate(terms)]
    counts = Counter(label for labels in operands for label in labels)
    if arrow:
        result = _labels(c, equation, right, None, widest)
    else:
        result = [*range(widest), *sorted(
            x for x, n in counts.items() if n == 1 and isinstance(x, str))]
    for label in result:
        if label not in counts or result.count(label) > 1:
            raise c.error(f"equation {equation!r}: label {label!r} of the result is not usable")
    return operands, result


def _labels(c: Site, equation: str, term: str, rank: int | None, widest: int) -> list:
    head, dots, tail = term.partition("...")
    if not all(x.isalpha() and x.isascii() for x in head + tail):
        raise c.error(f"equation {equation!r} is malformed at {term!r}")
    span = (widest if rank is None else rank - len(head) - len(tail)) if dots else 0
    if span < 0 or (rank is not None and len(head) + len(tail) + span != rank):
        raise c.error(f"equation {equation!r}: term {term!r} does not fit an operand of rank "
                      f"{rank}")
    # Dimensions of an ellipsis are counted from its end, as in broadcasting.
    return [*head, *range(widest - span, widest), *tail]


@importer("Einsum")
def einsum(c: Site):
    values = [c.input(i) for i in range(len(c.inputs))]
    operands, result = _parse(c, c.attr("equation", ""), [v.rank for v in values])
    terms = [_Term(v, labels) for v, labels in zip(values, operands, strict=True)]
    sizes = _sizes(c, terms)
    terms = [_without_ones(c, _on_diagonal(c, t), sizes) for t in terms]
    current = terms[0]
    for k in range(1, len(terms)):
        later = {x for t in terms[k + 1:] for x in t.labels} | set(result)
        current = _contract(c, current, terms[k], later, sizes)
    current = _sum_out(c, current, set(result))
    return _arranged(c, current, result, sizes)


def _sizes(c: Site, terms: list[_Term]) -> dict:
    sizes: dict = {}
    for term in terms:
        for label, d in zip(term.labels, term.value.shape, strict=True):
            old = sizes.get(label, 1)
            if isinstance(old, int) and isinstance(d, int) and old != d and 1 not in (old, d):
                raise c.error(f"label {label!r} stands for sizes {old} and {d}")
            if same(old, 1) or (isinstance(d, int) and d != 1):
                sizes[label] = d
    return sizes


def _on_diagonal(c: Site, term: _Term) -> _Term:
    """Repeated labels of one operand become one."""
    value, labels = term.value, list(term.labels)
    while len(set(labels)) < len(labels):
        second = next(k for k, x in enumerate(labels) if x in labels[:k])
        value = c.add("diagonal", [value], axes=(labels.index(labels[second]), second))
        del labels[second]
    return _Term(value, labels)


def _without_ones(c: Site, term: _Term, sizes: dict) -> _Term:
    """Drops dimensions of size 1 that broadcast against larger ones."""
    keep = [k for k, (x, d) in enumerate(zip(term.labels, term.value.shape, strict=True))
            if not (same(d, 1) and not same(sizes[x], 1))]
    if len(keep) == len(term.labels):
        return term
    return _Term(reshape(c, term.value, [term.value.shape[k] for k in keep]),
                 [term.labels[k] for k in keep])


def _sum_out(c: Site, term: _Term, needed: set) -> _Term:
    axes = tuple(k for k, x in enumerate(term.labels) if x not in needed)
    if not axes:
        return term
    return _Term(c.add("reduce_sum", [term.value], axes=axes),
                 [x for x in term.labels if x in needed])


def _contract(c: Site, a: _Term, b: _Term, later: set, sizes: dict) -> _Term:
    """The product of two terms, summed over the labels that nobody needs later."""
    a = _sum_out(c, a, later | set(b.labels))
    b = _sum_out(c, b, later | set(a.labels))
    both = [x for x in a.labels if x in b.labels]
    batch = [x for x in both if x in later]
    summed = [x for x in both if x not in later]
    rows = [x for x in a.labels if x not in both]
    columns = [x for x in b.labels if x not in both]
    labels = batch + rows + columns
    if not summed:
        left = _arranged(c, a, labels, {})
        right = _arranged(c, b, labels, {})
        return _Term(c.add("mul", [left, right]), labels)

    def dims(names: list) -> list[Dim]:
        return [sizes[x] for x in names]

    left = _arranged(c, a, batch + rows + summed, sizes)
    right = _arranged(c, b, batch + summed + columns, sizes)
    left = reshape(c, left, [*dims(batch), product(dims(rows)), product(dims(summed))])
    right = reshape(c, right, [*dims(batch), product(dims(summed)), product(dims(columns))])
    y = c.add("matmul", [left, right])
    return _Term(reshape(c, y, dims(labels)), labels)


def _arranged(c: Site, term: _Term, labels: list, sizes: dict) -> Value:
    """The term with dimensions in the order of `labels`; missing ones have size 1, or are
    expanded to `sizes`."""
    order = sorted(range(len(term.labels)), key=lambda k: labels.index(term.labels[k]))
    value = transpose(c, term.value, order)
    present = iter(value.shape)
    shape = [next(present) if x in term.labels else 1 for x in labels]
    value = reshape(c, value, shape)
    wanted = [simplify_dim(wrap(sizes.get(x, d))) for x, d in zip(labels, shape, strict=True)]
    if any(not same(d, w) and x not in term.labels
           for x, d, w in zip(labels, shape, wanted, strict=True)):
        value = c.add("expand", [value], shape=tuple(wanted))
    return value
