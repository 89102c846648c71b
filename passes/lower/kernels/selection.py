"""Kernels of selection operators: arg-reductions, nonzero, topk, unique, nms."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import Expr, both, const, equal, floordiv, identity_of, maximum, op, select, wrap
from ....ir.kernel.builder import Builder
from ....ir.kernel.nodes import Buffer
from ..procedural import Site, procedural
from .ordering import Entry, alike, before, merge_sort, negate, sift


def insert(index: tuple[Expr, ...], axis: int, position) -> tuple[Expr, ...]:
    """`index` with `position` put in at `axis`."""
    return (*index[:axis], wrap(position), *index[axis:])


def without(shape: tuple, axis: int) -> tuple:
    """`shape` less the dimension `axis`."""
    return (*shape[:axis], *shape[axis + 1:])


def _arg(c: Site, kind: str) -> None:
    b, x, y, axis = c.b, c.input(0), c.output(), c.attrs["axis"]
    with c.nest("i", y.shape, x.shape[axis]) as index:
        best = b.scalar("best", x.dtype, identity_of(kind, x.dtype)
                        if not x.dtype.is_bool else kind == "min")
        place = b.scalar("place", dt.i64, 0)
        with b.loop("k", x.shape[axis]) as k:
            value = b.let("value", x[insert(index, axis, k)])
            name = ("ge" if c.attrs["last"] else "gt") if kind == "max" else (
                "le" if c.attrs["last"] else "lt")
            better = op(name, value, best[()])
            if x.dtype.is_float:
                # The first (last) NaN wins over every number.
                new = op("isnan", value)
                better = better | (new if c.attrs["last"] else new & negate(
                    op("isnan", best[()])))
            with b.when(better):
                b.store(best, (), value)
                b.store(place, (), k)
        b.store(y, index, place[()])
    c.flops = _elements(x)


def _elements(x: Buffer):
    total: Expr = const(1)
    for d in x.shape:
        total = total * wrap(d)
    return total


@procedural("argmax")
def argmax(c: Site) -> None:
    _arg(c, "max")


@procedural("argmin")
def argmin(c: Site) -> None:
    _arg(c, "min")


@procedural("nonzero")
def nonzero(c: Site) -> None:
    b, x, y = c.b, c.input(0), c.output()
    count = b.scalar("count", dt.i64, 0)
    with b.loops("i", x.shape) as index:
        value = x[index]
        found = value if x.dtype.is_bool else op("ne", value, 0)
        with b.when(found):
            for axis, i in enumerate(index):
                b.store(y, (const(axis), count[()]), i)
            b.update(count, (), "add", 1)


@procedural("topk")
def topk(c: Site) -> None:
    """A heap of the best k so far with the worst on top, sorted at the end; O(n log k)."""
    b, x, values, places = c.b, c.input(0), c.output(0), c.output(1)
    axis, descending = c.attrs["axis"], c.attrs["largest"]
    n, k = wrap(x.shape[axis]), wrap(values.shape[axis])

    def worse(p: Entry, q: Entry) -> Expr:
        return before(q[0], p[0], descending) | (alike(p[0], q[0]) & (p[1] > q[1]))

    with c.nest("i", without(x.shape, axis), n * 4) as index:
        def at(j) -> tuple[Expr, ...]:
            return insert(index, axis, j)

        def read(slot: Expr) -> Entry:
            return values[at(slot)], places[at(slot)]

        def write(slot: Expr, entry: Entry) -> None:
            b.store(values, at(slot), entry[0])
            b.store(places, at(slot), entry[1])

        def held(slot: Expr) -> Entry:
            value, place = read(slot)
            return b.let("value", value), b.let("place", place)

        # A k beyond a symbolic axis must at least stay inside memory.
        with b.when(k <= n):
            with b.loop("j", k) as j:
                write(j, (x[at(j)], j))
            with b.loop("j", floordiv(k, 2)) as j:
                start = b.let("start", floordiv(k, 2) - 1 - j)
                sift(b, start, k, held(start), read, write, worse)
            with b.when(k > 0), b.loop("j", n - k) as j:
                value = b.let("value", x[at(k + j)])
                # Later positions lose ties, so only a strictly better value gets in.
                with b.when(before(value, values[at(0)], descending)):
                    sift(b, const(0), k, (value, k + j), read, write, worse)
            with b.loop("j", maximum(k - 1, 0)) as j:
                end = b.let("end", k - 1 - j)
                last = held(end)
                write(end, read(const(0)))
                sift(b, const(0), end, last, read, write, worse)


@procedural("unique")
def unique(c: Site) -> None:
    b, x = c.b, c.input(0)
    first, inverse, counts, total = (c.output(k) for k in range(4))
    rows, columns = wrap(x.shape[0]), wrap(x.shape[1])
    order, spare = c.scratch("order", dt.i64, (rows,)), c.scratch("spare", dt.i64, (rows,))

    def compare(p: Expr, q: Expr) -> Expr:
        """-1, 0 or 1: row p sorts before, with, or after row q."""
        if x.shape[1] == 1:
            return select(before(x[p, 0], x[q, 0]), -1, select(before(x[q, 0], x[p, 0]), 1, 0))
        sign, column = b.scalar("sign", dt.i64, 0), b.scalar("column", dt.i64, 0)
        with b.while_(both(equal(sign[()], 0), column[()] < columns)):
            v, w = b.let("v", x[p, column[()]]), b.let("w", x[q, column[()]])
            b.store(sign, (), select(before(v, w), -1, select(before(w, v), 1, 0)))
            b.update(column, (), "add", 1)
        return sign[()]

    with b.loop("i", rows) as i:
        b.store(order, i, i)
        b.store(first, i, 0)
        b.store(counts, i, 0)
    merge_sort(b, rows, order, spare, lambda p, q: compare(p, q) < 0)
    found = b.scalar("found", dt.i64, 0)
    with b.loop("i", rows) as i:
        row = b.let("row", order[i])
        new = b.scalar("new", dt.bool_, True)
        with b.when(i > 0):
            b.store(new, (), op("ne", compare(b.let("previous", order[i - 1]), row), 0))
        with b.when(new[()]):
            b.store(first, found[()], row)
            b.update(found, (), "add", 1)
        b.store(inverse, row, found[()] - 1)
        b.update(counts, found[()] - 1, "add", 1)
    b.store(total, 0, found[()])
    if not c.attrs["sorted"]:
        _by_occurrence(b, rows, found, (first, inverse, counts), (order, spare))


def _by_occurrence(b: Builder, rows: Expr, found: Buffer, outputs, scratch) -> None:
    """Renumbers sorted distinct rows in the order of their first occurrence."""
    first, inverse, counts = outputs
    number, old_counts = scratch
    with b.loop("i", b.let("distinct", found[()])) as i:
        b.store(old_counts, i, counts[i])
    fresh = b.scalar("fresh", dt.i64, 0)
    with b.loop("i", rows) as i:
        group = b.let("group", inverse[i])
        with b.when(equal(first[group], i)):
            b.store(number, group, fresh[()])
            b.store(counts, fresh[()], old_counts[group])
            b.update(fresh, (), "add", 1)
    # `first` is still in sorted order above; inverse tells each row's new number.
    with b.loop("i", rows) as i:
        b.store(inverse, i, number[inverse[i]])
    b.store(fresh, (), 0)
    with b.loop("i", rows) as i, b.when(equal(inverse[i], fresh[()])):
        b.store(first, fresh[()], i)
        b.update(fresh, (), "add", 1)


@procedural("nms")
def nms(c: Site) -> None:
    """Greedy suppression: candidates leave a heap in the order of their scores, and stay when they
    overlap none of those that stayed before."""
    b, boxes, scores = c.b, c.input(0), c.input(1)
    rows, total = c.output(0), c.output(1)
    batch, classes, n = (wrap(d) for d in scores.shape)
    limit = wrap(c.attrs["limit"])
    heap = c.scratch("heap", dt.i64, (batch, classes, n))
    picked = c.scratch("picked", dt.i64, (batch, classes, limit))
    shapes = c.scratch("shapes", boxes.dtype, (batch, classes, limit, const(5)))
    number = c.scratch("number", dt.i64, (batch, classes))

    def sides(i: Expr, k: Expr) -> list[Expr]:
        """Top, left, bottom, right and area of a box."""
        p, q, r, s = (boxes[i, k, j] for j in range(4))
        if c.attrs["center"]:
            edges = [q - s * 0.5, p - r * 0.5, q + s * 0.5, p + r * 0.5]
        else:
            edges = [op("min", p, r), op("min", q, s), op("max", p, r), op("max", q, s)]
        named = [b.let("side", e) for e in edges]
        return [*named, b.let("area", (named[2] - named[0]) * (named[3] - named[1]))]

    def overlap(one: list[Expr], two: list[Expr]) -> Expr:
        height = op("max", op("min", one[2], two[2]) - op("max", one[0], two[0]), 0)
        width = op("max", op("min", one[3], two[3]) - op("max", one[1], two[1]), 0)
        common = b.let("common", height * width)
        union = b.let("union", one[4] + two[4] - common)
        return both(one[4] > 0, two[4] > 0, union > 0, common / union > c.input(2)[()])

    with c.nest("i", (batch, classes), n * 16) as (i, j):
        def read(slot: Expr) -> Entry:
            return (heap[i, j, slot],)

        def write(slot: Expr, entry: Entry) -> None:
            b.store(heap, (i, j, slot), entry[0])

        def above(p: Entry, q: Entry) -> Expr:
            one, two = scores[i, j, p[0]], scores[i, j, q[0]]
            return (one > two) | (equal(one, two) & (p[0] < q[0]))

        count, taken = b.scalar("count", dt.i64, 0), b.scalar("taken", dt.i64, 0)
        with b.loop("k", n) as k, b.when(scores[i, j, k] > c.input(3)[()]):
            write(count[()], (k,))
            b.update(count, (), "add", 1)
        half = b.let("half", floordiv(count[()], 2))
        with b.loop("k", half) as k:
            start = b.let("start", half - 1 - k)
            sift(b, start, count[()], (b.let("entry", heap[i, j, start]),), read, write, above)
        with b.while_(both(taken[()] < limit, count[()] > 0)):
            best = b.let("best", heap[i, j, 0])
            b.update(count, (), "sub", 1)
            left = b.let("left", count[()])
            with b.when(left > 0):
                sift(b, const(0), left, (b.let("entry", heap[i, j, left]),), read, write, above)
            box = sides(i, best)
            free, t = b.scalar("free", dt.bool_, True), b.scalar("t", dt.i64, 0)
            with b.while_(both(free[()], t[()] < taken[()])):
                other = [b.let("other", shapes[i, j, t[()], e]) for e in range(5)]
                b.store(free, (), negate(overlap(box, other)))
                b.update(t, (), "add", 1)
            with b.when(free[()]):
                b.store(picked, (i, j, taken[()]), best)
                for e, side in enumerate(box):
                    b.store(shapes, (i, j, taken[()], const(e)), side)
                b.update(taken, (), "add", 1)
        b.store(number, (i, j), taken[()])
    written = b.scalar("written", dt.i64, 0)
    with (b.loops("i", (batch, classes)) as (i, j),
          b.loop("k", b.let("length", number[i, j])) as k):
        for column, value in enumerate((i, j, picked[i, j, k])):
            b.store(rows, (written[()], const(column)), value)
        b.update(written, (), "add", 1)
    b.store(total, 0, written[()])
    with b.loop("k", b.let("rest", wrap(rows.shape[0]) - written[()])) as k:
        for column in range(3):
            b.store(rows, (written[()] + k, const(column)), 0)
