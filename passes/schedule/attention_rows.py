"""Attention for a few rows of queries, where the speed of reading keys and values is what counts.

A task takes all rows of the query heads that share a key head, so keys and values come from memory
once. Products of queries and keys have lanes along the head (or along keys that are contiguous),
those of probabilities and values along the head. Maxima and sums run as in `attention_panels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from ...ir import dtype as dt
from ...ir.expr import Expr, Var, broadcast, cast, const, op, ramp, select, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import horizontal, shuffle
from ...ir.kernel.nodes import load
from ..kernel.elementary import exp_up_to_one
from .attention_panels import TYPICAL, Element, Problem, finite, splat

BLOCK = 256
"""Keys of a block."""

SUMS = 8
"""Vectors of sums of values at a time: two multiply-adds a cycle of four cycles' latency."""


def few_rows(lanes: int) -> int:
    """Rows up to which lanes along rows would waste more than sums across lanes cost."""
    return max(1, lanes // 4)


def lane_sums(b: Builder, vectors: list[Expr]) -> Expr:
    """The sums of as many vectors as they have lanes, that of vector i in lane i."""
    n, distance = len(vectors), 1
    while len(vectors) > 1:
        own = [c if not c & distance else n + c for c in range(n)]
        other = [c ^ distance if not c & distance else n + (c ^ distance) for c in range(n)]
        vectors = [b.let("s", shuffle(x, y, own) + shuffle(x, y, other))
                   for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
        distance *= 2
    return vectors[0]


class Rows:
    """One task for each key head. `most` bounds the rows of a query head."""

    def __init__(self, p: Problem, most: int):
        self.p, self.b, self.lanes = p, p.b, p.lanes
        self.most = most
        block = min(BLOCK, p.keys) if isinstance(p.keys, int) else BLOCK
        self.block = -(-block // p.lanes) * p.lanes
        self.depth = -(-p.depth // p.lanes) * p.lanes
        self.width = -(-p.width // p.lanes) * p.lanes

    def write(self) -> None:
        b, p, lanes = self.b, self.p, self.lanes
        keys = p.keys if isinstance(p.keys, int) else TYPICAL
        work = 2 * self.most * p.group * (p.depth + p.width) * keys
        grain = max(1, 100_000 // max(1, work))
        with b.loop("t", wrap(p.batch) * wrap(p.shared), "parallel", grain) as t:
            self.batch, self.head = b.let("n", t // wrap(p.shared)), b.let("h", t % wrap(p.shared))
            count = self.most * p.group
            self.queries = b.alloc("queries", dt.f32, (count * self.depth,))
            self.scores = b.alloc("scores", dt.f32, (count * self.block,))
            self.sums = b.alloc("sums", dt.f32, (count * self.width,))
            self.top = b.alloc("top", dt.f32, (count * lanes,))
            self.total = b.alloc("total", dt.f32, (count * lanes,))
            self.last = b.alloc("last", dt.f32, (count,))
            first = p.first_total()
            # The lanes of a total are summed in the end.
            with self.each_row() as (r, head, row):
                self.scale(r, head, row)
                b.store(self.top, (r * lanes,), splat(-inf, lanes))
                b.store(self.last, (r,), const(-inf, dt.f32))
                b.store(self.total, (r * lanes,), first * splat(1 / lanes, lanes))
                with b.loop("e", self.width // lanes) as e:
                    b.store(self.sums, (r * self.width + e * lanes,), splat(0.0, lanes))
            reach = p.reach(wrap(p.rows) - 1, 1)
            k_base = b.let("kb", p.k.start(self.batch, self.head))
            v_base = b.let("vb", p.v.start(self.batch, self.head))
            with b.loop("k", (reach + (self.block - 1)) // self.block) as k:
                key = b.let("key", k * self.block)
                count = b.let("count", op("min", reach - key, self.block))
                with b.loop("c", (count + (lanes - 1)) // lanes) as c:
                    self.score(k_base, b.let("at", key + c * lanes), c, reach)
                with self.each_row() as (r, _, _):
                    self.weigh(r, b.let("vv", v_base + key * p.v.step), count)
            with self.each_row() as (r, head, row):
                self.finish(r, head, row)

    @contextmanager
    def each_row(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """(number, query head, row) of every row of the task."""
        b, p = self.b, self.p
        with b.loops("r", (p.group, p.rows)) as (g, s):
            head = b.let("head", self.head * p.group + g)
            yield b.let("r", g * wrap(p.rows) + s), head, s

    def scale(self, r: Expr, head: Expr, row: Expr) -> None:
        b, p, lanes = self.b, self.p, self.lanes
        last = p.q.index[3]

        def move(e: Expr, count: int | None) -> None:
            value = p.writer.value(p.q.at(self.batch, head, row, None),
                                   last if isinstance(last, Var) else None, lanes, e,
                                   None if count is None else const(count))
            value = broadcast(value, lanes) * splat(p.attrs["scale"], lanes)
            if count is not None:
                # Lanes beyond the head are 0 whatever the query's expression makes of them.
                value = select(op("lt", cast(ramp(const(0), lanes), dt.i32),
                                  broadcast(const(count, dt.i32), lanes)), value, splat(0.0, lanes))
            b.store(self.queries, (r * self.depth + e,), value)

        whole = p.depth // lanes
        if whole:
            with b.loop("e", whole) as e:
                move(e * lanes, None)
        if p.depth % lanes:
            move(const(whole * lanes), p.depth % lanes)

    def score(self, base: Expr, key: Expr, c: Expr, reach: Expr) -> None:
        """Scores of a vector of keys for every row."""
        b, p, lanes = self.b, self.p, self.lanes
        last = wrap(p.keys) - 1
        along = p.k.step is const(1) and p.k.inner is not const(1)
        places = [] if along else [
            b.let("ko", base + op("min", key + i, last) * p.k.step) for i in range(lanes)]
        left = b.let("left", reach - key)
        inside = op("lt", cast(ramp(const(0), lanes), dt.i32),
                    broadcast(b.let("left", cast(op("min", left, lanes), dt.i32)), lanes))
        present = b.let("present", op("min", left, lanes))
        with self.each_row() as (r, head, row):
            score = (self.along_keys(base + key, r, left) if along
                     else self.along_head(places, r))
            after = None
            if p.attrs["causal"]:
                keys = cast(ramp(key - wrap(p.attrs["offset"]), lanes), dt.i32)
                after = op("le", keys, broadcast(cast(row, dt.i32), lanes))

            def operand(x: Element | None) -> Expr | None:
                if x is None:
                    return None
                e, column = x.at(self.batch, head, row, None), x.index[3]
                if not isinstance(column, Var):
                    return p.writer.value(e)
                return p.writer.value(e, column, lanes, key, present)

            score = p.altered(score, operand(p.bias), operand(p.mask), after)
            score = b.let("s", select(inside, score, splat(-inf, lanes)))
            b.store(self.scores, (r * self.block + c * lanes,), score)
            top = op("max", load(self.top, (r * lanes,), lanes), score)
            b.store(self.top, (r * lanes,), top)

    def along_head(self, places: list[Expr], r: Expr) -> Expr:
        b, p, lanes = self.b, self.p, self.lanes
        acc = b.alloc("acc", dt.f32, (lanes,), "register", lanes)
        for i in range(lanes):
            b.store(acc, (i,), splat(0.0, lanes))

        def step(e: Expr, count: int | None) -> None:
            q = b.let("q", load(self.queries, (r * self.depth + e,), lanes))
            for i, place in enumerate(places):
                k = load(p.k.buffer, (place + e,), lanes, count)
                b.store(acc, (i,), op("fma", k, q, acc[i]))

        whole = p.depth // lanes
        if whole:
            with b.loop("e", whole) as e:
                step(e * lanes, None)
        if p.depth % lanes:
            step(const(whole * lanes), p.depth % lanes)
        return lane_sums(b, [acc[i] for i in range(lanes)])

    def along_keys(self, place: Expr, r: Expr, left: Expr) -> Expr:
        b, p, lanes = self.b, self.p, self.lanes
        acc = b.alloc("acc", dt.f32, (), "register", lanes)
        b.store(acc, (), splat(0.0, lanes))
        count = b.let("count", op("min", left, lanes))
        with b.loop("e", p.depth) as e:
            q = broadcast(load(self.queries, (r * self.depth + e,)), lanes)
            k = load(p.k.buffer, (place + e * p.k.inner,), lanes, count)
            b.store(acc, (), op("fma", k, q, acc[()]))
        return acc[()]

    def weigh(self, r: Expr, values: Expr, count: Expr) -> None:
        """Takes a block of scores into the maximum, the total and the sums of a row."""
        b, lanes = self.b, self.lanes
        tops = b.let("tops", load(self.top, (r * lanes,), lanes))
        before = b.scalar("before", dt.f32, load(self.last, (r,)))
        top = b.let("top", horizontal("max", tops))
        b.store(self.last, (r,), top)
        shift = b.let("shift", finite(top))
        factor = b.let("factor", exp_up_to_one(b.let("d", before[()] - shift)))
        acc = b.alloc("sum", dt.f32, (), "register", lanes)
        b.store(acc, (), splat(0.0, lanes))
        with b.loop("c", (count + (lanes - 1)) // lanes) as c:
            where = (r * self.block + c * lanes,)
            d = b.let("d", load(self.scores, where, lanes) - broadcast(shift, lanes))
            e = b.let("e", exp_up_to_one(d))
            b.store(self.scores, where, e)
            b.store(acc, (), acc[()] + e)
        old = load(self.total, (r * lanes,), lanes)
        b.store(self.total, (r * lanes,), op("fma", old, broadcast(factor, lanes), acc[()]))
        vectors = self.width // lanes
        for first in range(0, vectors, SUMS):
            self.sum_values(r, values, count, factor, range(first, min(first + SUMS, vectors)))

    def sum_values(self, r: Expr, values: Expr, count: Expr, factor: Expr, part: range) -> None:
        b, p, lanes = self.b, self.p, self.lanes
        phases = max(1, min(4, SUMS // len(part)))
        acc = b.alloc("acc", dt.f32, (phases, len(part)), "register", lanes)
        for i in range(len(part)):
            for phase in range(phases):
                b.store(acc, (phase, i), splat(0.0, lanes))

        def take(key: Expr, phase: int) -> None:
            x = load(self.scores, (r * self.block + key,))
            x = b.let("a", broadcast(x, lanes))
            for i, v in enumerate(part):
                rest = p.width - v * lanes
                value = load(p.v.buffer, (values + key * p.v.step + v * lanes,), lanes,
                             rest if rest < lanes else None)
                b.store(acc, (phase, i), op("fma", x, value, acc[phase, i]))

        with b.loop("j", count // phases) as j:
            for phase in range(phases):
                take(j * phases + phase, phase)
        if phases > 1:
            with b.loop("j", count % phases) as j:
                take(count // phases * phases + j, 0)
        for i, v in enumerate(part):
            whole = acc[0, i]
            for phase in range(1, phases):
                whole = whole + acc[phase, i]
            where = (r * self.width + v * lanes,)
            old = load(self.sums, where, lanes)
            b.store(self.sums, where, op("fma", old, broadcast(factor, lanes), whole))

    def finish(self, r: Expr, head: Expr, row: Expr) -> None:
        b, p, lanes = self.b, self.p, self.lanes
        total = b.let("total", horizontal("sum", load(self.total, (r * lanes,), lanes)))
        inverse = broadcast(b.let("by", p.inverse(total)), lanes)

        def move(column: Expr, count: Expr | None) -> None:
            value = load(self.sums, (r * self.width + column,), lanes)
            p.put(self.batch, head, row, column, lanes, b.let("y", p.result(value, inverse)), count)

        whole = p.width // lanes
        if whole:
            with b.loop("e", whole) as e:
                move(e * lanes, None)
        if p.width % lanes:
            move(const(whole * lanes), const(p.width % lanes))
