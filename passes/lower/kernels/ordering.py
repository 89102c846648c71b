"""Comparisons and sorting that the kernels of several operators share."""

from __future__ import annotations

from collections.abc import Callable

from ....ir import dtype as dt
from ....ir.expr import Expr, both, equal, floordiv, minimum, op
from ....ir.kernel.builder import Builder
from ....ir.kernel.nodes import Buffer

Entry = tuple[Expr, ...]
"""What a slot of a heap holds."""


def negate(condition: Expr) -> Expr:
    """Logical not."""
    return op("not", condition)


def before(a: Expr, b: Expr, descending: bool = False) -> Expr:
    """Whether `a` sorts strictly before `b`; NaN is above all numbers."""
    if not a.dtype.is_float:
        return a > b if descending else a < b
    if descending:
        a, b = b, a
    return (a < b) | (op("isnan", b) & negate(op("isnan", a)))


def alike(a: Expr, b: Expr) -> Expr:
    """Whether `a` and `b` sort in the same place."""
    if not a.dtype.is_float:
        return equal(a, b)
    return equal(a, b) | (op("isnan", a) & op("isnan", b))


def merge_sort(b: Builder, count: Expr, order: Buffer, spare: Buffer,
               precedes: Callable[[Expr, Expr], Expr]) -> None:
    """Sorts order[0..count) stably, bottom-up; `spare` is work space of the same size.

    `precedes(p, q)` may emit statements and tells whether entry p goes strictly before q.
    """
    width = b.scalar("width", dt.i64, 1)
    with b.while_(width[()] < count):
        # Two passes a round, so that the result ends up in `order`.
        for source, target, factor in ((order, spare, 1), (spare, order, 2)):
            _merge_pass(b, count, source, target, b.let("run", width[()] * factor), precedes)
        b.store(width, (), width[()] * 4)


def sift(b: Builder, start, limit, entry: Entry, read: Callable[[Expr], Entry],
         write: Callable[[Expr, Entry], None], above: Callable[[Entry, Entry], Expr]) -> None:
    """Puts `entry` into the heap [0, limit) at the free slot `start` or below it.

    `read` and `write` access a slot; above(p, q) tells whether p belongs nearer to the root.
    """
    slot = b.scalar("slot", dt.i64, start)
    searching = b.scalar("searching", dt.bool_, True)
    with b.while_(both(searching[()], slot[()] * 2 + 1 < limit)):
        child = b.scalar("child", dt.i64, slot[()] * 2 + 1)
        left = b.let("left", child[()])
        right = left + 1
        # Two blocks: the right child may only be read where there is one.
        with b.when(right < limit), b.when(above(read(right), read(left))):
            b.store(child, (), right)
        upper = b.let("upper", child[()])
        with b.when(above(read(upper), entry)):
            write(slot[()], read(upper))
            b.store(slot, (), upper)
        with b.otherwise():
            b.store(searching, (), False)
    write(slot[()], entry)


def _merge_pass(b: Builder, count: Expr, source: Buffer, target: Buffer, run: Expr,
                precedes: Callable[[Expr, Expr], Expr]) -> None:
    pairs = b.let("pairs", floordiv(count + run * 2 - 1, run * 2))
    with b.loop("pair", pairs) as pair:
        low = b.let("low", pair * run * 2)
        middle = b.let("middle", minimum(low + run, count))
        high = b.let("high", minimum(low + run * 2, count))
        i, j = b.scalar("i", dt.i64, low), b.scalar("j", dt.i64, middle)
        with b.loop("q", b.let("length", high - low)) as q:
            left = b.scalar("left", dt.bool_, j[()] >= high)
            with b.when(both(i[()] < middle, j[()] < high)):
                p1, p2 = b.let("p", source[i[()]]), b.let("p", source[j[()]])
                b.store(left, (), negate(precedes(p2, p1)))
            with b.when(left[()]):
                b.store(target, low + q, source[i[()]])
                b.update(i, (), "add", 1)
            with b.otherwise():
                b.store(target, low + q, source[j[()]])
                b.update(j, (), "add", 1)
