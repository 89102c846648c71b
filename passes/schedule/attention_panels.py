"""Attention in one pass over the keys, with vector lanes for rows of queries.

It keeps a running maximum and sum for each row of queries and rescale what they have when the
maximum grows (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"), so scores
of one block of keys at a time are in memory (Rabe & Staats 2021; Dao et al. 2022,
"FlashAttention").

Queries are transposed when a task begins; then keys and values are read as they are, one element
for all lanes, with whatever strides they have, and maxima, sums and factors take no work across
lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from ...ir import dtype as dt
from ...ir.algebra import at_least
from ...ir.expr import Expr, Var, broadcast, cast, const, op, ramp, select, substitute, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ..kernel.elementary import exp_up_to_one
from ..lower.loops import LoopWriter
from ..lower.transposed import transpose
from .gemm import RowBlock, row_blocks
from .microkernel import accumulators
from .tiles import Registers, Tile, split_rows, step_cycles

SCORE_BYTES = 16 * 1024
"""Scores of a panel and a block of keys, which stay in the first-level cache."""

MOST_KEYS = 256
"""Keys of a block, whose exponentials are summed one after the other."""

TYPICAL = 256
"""Keys, and rows of queries, where only a run knows how many."""


@dataclass(frozen=True, eq=False)
class Strided:
    """Elements [batch, head, position, depth] of a buffer: `base`, in terms of `batch` and `head`,
    plus position * step + depth * inner."""

    buffer: Buffer
    base: Expr
    step: Expr
    inner: Expr
    batch: Expr
    head: Expr

    def start(self, batch: Expr, head: Expr) -> Expr:
        return substitute(self.base, {self.batch: batch, self.head: head})


@dataclass(frozen=True, eq=False)
class Element:
    """An operand's element as an expression of (batch, head, row, column): with lanes for columns
    of queries, for keys or rows of a mask or bias."""

    value: Expr
    index: tuple[Expr, ...]

    def at(self, *index: Expr | None) -> Expr:
        """The expression for this index; None leaves a variable."""
        mapping: dict[Expr, Expr] = {
            v: i for v, i in zip(self.index, index, strict=True)
            if isinstance(v, Var) and i is not None}
        return substitute(self.value, mapping)


@dataclass(eq=False)
class Problem:
    """What is computed: sizes, operands, and `put(batch, head, row, column, lanes, value, count)`,
    which stores `lanes` results from a column on. `by_row` and `by_key` tell of a mask or bias
    whether lanes can stand for rows, or keys, in its expression."""

    b: Builder
    writer: LoopWriter
    lanes: int
    registers: int
    batch: Any
    heads: Any
    shared: Any
    rows: Any
    keys: Any
    depth: int
    width: int
    q: Element
    k: Strided
    v: Strided
    bias: Element | None
    mask: Element | None
    attrs: dict[str, Any]
    put: Callable[..., None]
    by_row: Callable[[Element], bool]

    @property
    def group(self) -> Any:
        """Query heads that read one key head."""
        return 1 if self.heads is self.shared else self.heads // self.shared

    def alters(self) -> bool:
        """Whether anything happens to the scores between their scale and the maximum."""
        return bool(self.bias or self.mask or self.attrs["causal"] or self.attrs["softcap"])

    def altered(self, score: Expr, bias: Expr | None, mask: Expr | None,
                after: Expr | None) -> Expr:
        """A vector of scores capped, with bias and masks; `after` is false for keys that the row
        does not reach."""
        lanes = score.lanes
        cap = self.attrs["softcap"]
        if cap:
            score = op("tanh", score * splat(1 / cap, lanes)) * splat(cap, lanes)
        if bias is not None:
            score = score + broadcast(bias, lanes)
        seen = [broadcast(x, lanes) for x in (mask, after) if x is not None]
        if seen:
            seen = seen[0] if len(seen) == 1 else op("and", *seen)
            score = select(seen, score, splat(self.attrs["fill"], lanes))
        return score

    def first_total(self) -> Expr:
        """What the sums begin with: without any key the result is 0, not 0 / 0."""
        if at_least(wrap(self.keys), 1):
            return splat(0.0, self.lanes)
        none = select(op("eq", wrap(self.keys), 0), const(1.0, dt.f32), const(0.0, dt.f32))
        return broadcast(self.b.let("none", none), self.lanes)

    def inverse(self, total: Expr) -> Expr:
        if self.attrs["masked"] or self.attrs["guarded"]:
            total = select(op("eq", total, splat(0.0, total.lanes)), splat(1.0, total.lanes), total)
        return op("div", splat(1.0, total.lanes), total)

    def result(self, value: Expr, inverse: Expr) -> Expr:
        scaled = value * inverse
        if self.attrs["guarded"]:
            return select(op("eq", inverse, inverse), scaled, splat(0.0, scaled.lanes))
        return scaled

    def reach(self, row: Expr, count: int) -> Expr:
        """Keys that some of `count` rows from `row` on see."""
        keys = wrap(self.keys)
        if not self.attrs["causal"] or self.attrs["fill"] != -inf:
            return keys
        reached = row + count + wrap(self.attrs["offset"])
        return self.b.let("reach", op("max", op("min", keys, reached), 0))


def splat(number: float, lanes: int) -> Expr:
    return broadcast(const(number, dt.f32), lanes)


def finite(top: Expr) -> Expr:
    """A maximum to subtract: 0 where nothing was seen, so that no -inf - -inf comes up."""
    return select(op("eq", top, splat(-inf, top.lanes)), splat(0.0, top.lanes), top)


# Panels -------------------------------------------------------------------------------------------


def panel_tile(p: Problem) -> Tile:
    """Rows (of keys, then of the head) and vectors of queries with the fewest modelled cycles."""
    machine = Registers(p.lanes, p.registers)
    queries = p.rows if isinstance(p.rows, int) else TYPICAL
    keys = p.keys if isinstance(p.keys, int) else TYPICAL

    def cycles(height: int, vectors: int, rows: int) -> float:
        return sum(count * step_cycles(Tile(h, vectors), machine)
                   for h, count in split_rows(rows, height))

    def cost(tile: Tile) -> float:
        panels = ceil(queries / (tile.vectors * p.lanes))
        products = (p.depth * cycles(tile.rows, tile.vectors, min(keys, TYPICAL)) / min(
            keys, TYPICAL) + cycles(tile.rows, tile.vectors, p.width))
        return panels * (products + 12 * tile.vectors)

    # Tiles of two rows are slower than their model: too few multiply-adds are on the way.
    tiles = [Tile(min(16, (p.registers - n - 1) // n), n) for n in (1, 2, 3, 4)]
    return min((t for t in tiles if t.rows > 2), key=cost)


class Panels:
    """One task for each panel of rows of each head."""

    score_bytes = SCORE_BYTES

    def __init__(self, p: Problem):
        self.p, self.b = p, p.b
        self.tile = self.tile_of(p)
        limit = min(MOST_KEYS, self.score_bytes // (4 * self.tile.vectors * p.lanes))
        limit = max(limit // self.tile.rows, 1) * self.tile.rows
        keys = p.keys
        if isinstance(keys, int) and keys > limit:
            # Even blocks, of whole tiles.
            even = ceil(keys / ceil(keys / limit))
            limit = min(limit, ceil(even / self.tile.rows) * self.tile.rows)
        elif isinstance(keys, int):
            limit = keys
        self.block = limit
        self.single = isinstance(keys, int) and keys <= limit
        across = self.tile.vectors * p.lanes
        self.staged = {x: not p.by_row(x) for x in (p.bias, p.mask) if x is not None}
        self.ragged = wrap(p.rows) % across is not const(0)

    def write(self) -> None:
        p, b = self.p, self.b
        across = self.tile.vectors * p.lanes
        panels = (wrap(p.rows) + (across - 1)) // across
        work = 2 * across * (p.depth + p.width) * (p.keys if isinstance(p.keys, int) else TYPICAL)
        grain = max(1, 200_000 // max(1, work))
        total = wrap(p.batch) * wrap(p.heads) * panels
        with b.loop("t", total, "parallel", grain) as t:
            panel, head = b.let("p", t % panels), b.let("h", t // panels % wrap(p.heads))
            batch = b.let("n", t // panels // wrap(p.heads))
            start = b.let("start", panel * across)
            if self.tile.vectors == 1 or not self.ragged:
                self.panel(batch, head, start, self.tile.vectors)
                return
            # A last panel of few rows takes one vector after the other.
            rest = b.let("rest", wrap(p.rows) - start)
            with b.when(op("gt", rest, (self.tile.vectors - 1) * p.lanes)):
                self.panel(batch, head, start, self.tile.vectors)
            with b.otherwise(), b.loop("u", (rest + (p.lanes - 1)) // p.lanes) as u:
                self.panel(batch, head, b.let("start", start + u * p.lanes), 1)

    def tile_of(self, p: Problem) -> Tile:
        """Keys and vectors of queries of a step."""
        return panel_tile(p)

    def panel(self, batch: Expr, head: Expr, start: Expr, vectors: int) -> None:
        Panel(self, batch, head, start, vectors).write()


class Panel:
    """One panel: `vectors` x lanes rows of queries from `start` on."""

    def __init__(self, whole: Panels, batch: Expr, head: Expr, start: Expr, vectors: int):
        self.whole, self.p, self.b = whole, whole.p, whole.b
        self.batch, self.head, self.start = batch, head, start
        self.vectors, self.lanes = vectors, whole.p.lanes
        self.across = vectors * self.lanes
        group = self.p.group
        shared = head if group == 1 else self.b.let("hk", head // group)
        self.k_base = self.b.let("kb", self.p.k.start(batch, shared))
        self.v_base = self.b.let("vb", self.p.v.start(batch, shared))

    def write(self) -> None:
        b, p, lanes = self.b, self.p, self.lanes
        whole = self.whole
        self.reserve()
        self.turn_queries()
        self.top = b.alloc("top", dt.f32, (self.vectors,), "register", lanes)
        self.total = b.alloc("total", dt.f32, (self.vectors,), "register", lanes)
        first = p.first_total()
        for v in range(self.vectors):
            b.store(self.top, (v,), splat(-inf, lanes))
            b.store(self.total, (v,), first)
        if whole.single:
            self.keys(const(0), p.reach(self.start, self.across))
        else:
            with b.loop("i", self.sums.shape[0] // lanes) as i:
                b.store(self.sums, (i * lanes,), splat(0.0, lanes))
            reach = p.reach(self.start, self.across)
            blocks = reach // whole.block
            with b.loop("k", blocks) as k:
                self.keys(b.let("key", k * whole.block), const(whole.block))
            rest = reach - blocks * whole.block
            if rest is not const(0):
                rest = b.let("rest", rest)
                with b.when(op("gt", rest, 0)):
                    self.keys(b.let("key", blocks * whole.block), rest)
        self.finish()

    def reserve(self) -> None:
        """Memory for the queries, a block of scores, and the sums."""
        b, p = self.b, self.p
        self.queries = b.alloc("queries", dt.f32, (p.depth * self.across,))
        self.scores = b.alloc("scores", dt.f32, (max(self.whole.block, 1) * self.across,))
        self.sums = b.alloc("sums", dt.f32, (p.width * self.across,))

    def score_at(self, key: Expr, v: Expr | int) -> tuple[Expr]:
        """Where the scores of a key of the block and vector v of queries are."""
        return (wrap(key * self.across + v * self.lanes),)

    def sum_at(self, depth: Expr | int, v: Expr | int) -> tuple[Expr]:
        """Where the sums of one position of the head and vector v of queries are."""
        return (wrap(depth * self.across + v * self.lanes),)

    def counted(self, v: int) -> Expr | None:
        """Rows in vector v of a panel that may be cut; None when they are all there."""
        if not self.whole.ragged:
            return None
        left = wrap(self.p.rows) - self.start - v * self.lanes
        return self.b.let("rows", op("max", op("min", left, self.lanes), 0))

    def row(self, offset: Expr | int) -> Expr:
        """A row of this panel, the last one where there is none."""
        at = self.start + offset
        return op("min", at, wrap(self.p.rows) - 1) if self.whole.ragged else at

    def turn_queries(self) -> None:
        """queries[depth, row] = scaled queries."""
        b, p, lanes = self.b, self.p, self.lanes

        def chunk(v: Expr, depth: Expr, count: int | None) -> None:
            for i, column in enumerate(self.turned(v, depth, count)[:count]):
                b.store(self.queries, ((depth + i) * self.across + v * lanes,), column)

        whole = p.depth // lanes
        with b.loop("v", self.vectors) as v:
            if whole:
                with b.loop("e", whole) as e:
                    chunk(v, e * lanes, None)
            if p.depth % lanes:
                chunk(v, const(whole * lanes), p.depth % lanes)

    def turned(self, v: Expr, depth: Expr, count: int | None) -> list[Expr]:
        """As many scaled positions as there are lanes (`count` of them when fewer), each of the
        queries of vector v."""
        b, p, lanes = self.b, self.p, self.lanes
        rows = []
        for i in range(lanes):
            at = b.let("row", self.row(v * lanes + i))
            e = p.q.at(self.batch, self.head, at, None)
            value = p.writer.value(e, _variable(p.q.index[3]), lanes, depth,
                                   None if count is None else const(count))
            value = broadcast(value, lanes)
            if p.attrs["scale"] != 1:
                value = value * splat(p.attrs["scale"], lanes)
            rows.append(b.let("q", value))
        return transpose(b, rows)

    # A block of keys ----------------------------------------------------------------------------

    def keys(self, key: Expr, count: Expr) -> None:
        """Takes `count` keys from `key` on into the sums."""
        b, p, lanes = self.b, self.p, self.lanes
        before = [b.let("before", self.top[v]) for v in range(self.vectors)]
        self.score_keys(b.let("kk", self.k_base + key * p.k.step), count)
        if p.alters():
            self.alter(key, count)
        shift = [b.let("shift", finite(self.top[v])) for v in range(self.vectors)]
        factor: list[Expr] = []
        if not self.whole.single:
            factor = [b.let("factor", exp_up_to_one(b.let("d", x - s)))
                      for x, s in zip(before, shift, strict=True)]
        # Blocks are summed on their own: rounding errors grow with their length, and with their
        # number, but not with the number of keys.
        part = b.alloc("part", dt.f32, (self.vectors,), "register", lanes)
        for v in range(self.vectors):
            b.store(part, (v,), splat(0.0, lanes))
        self.exponentials(count, shift, part)
        for v in range(self.vectors):
            old = self.total[v]
            b.store(self.total, (v,), op("fma", old, factor[v], part[v]) if factor
                    else old + part[v])
        self.weigh_values(b.let("vv", self.v_base + key * p.v.step), count, factor)

    def score_keys(self, keys: Expr, count: Expr) -> None:
        """The scores of `count` keys, which begin at `keys`, and their maxima if nothing alters
        them."""
        number = getattr(count, "value", count)
        for rows in row_blocks(number, self.whole.tile.rows):
            with _repeated(self.b, rows) as at:
                self.score(self.b.let("ko", keys + at * self.p.k.step), at, rows.height)

    def exponentials(self, count: Expr, shift: list[Expr], part: Buffer) -> None:
        """Exchanges scores for their exponentials, which `part` sums."""
        b, lanes = self.b, self.lanes
        with b.loop("j", count) as j:
            for v in range(self.vectors):
                where = self.score_at(j, v)
                e = b.let("d", load(self.scores, where, lanes) - shift[v])
                e = b.let("e", exp_up_to_one(e))
                b.store(self.scores, where, e)
                b.store(part, (v,), part[v] + e)

    def weigh_values(self, values: Expr, count: Expr, factor: list[Expr]) -> None:
        """Takes `count` values, which begin at `values`, into the sums."""
        for rows in row_blocks(self.p.width, self.whole.tile.rows):
            with _repeated(self.b, rows) as at:
                origin = self.b.let("vo", values + at * self.p.v.inner)
                self.weigh(origin, at, rows.height, count, factor)

    def score(self, origin: Expr, at: Expr, height: int) -> None:
        """scores[at:at + height] = keys x queries."""
        b, p, lanes = self.b, self.p, self.lanes
        acc = accumulators(b, Tile(height, self.vectors), lanes)
        with b.loop("e", p.depth) as e:
            columns = [b.let("w", load(self.queries, (e * self.across + v * lanes,), lanes))
                       for v in range(self.vectors)]
            for r in range(height):
                x = load(p.k.buffer, (origin + r * p.k.step + e * p.k.inner,))
                x = b.let("a", broadcast(x, lanes))
                for v in range(self.vectors):
                    b.store(acc, (r, v), op("fma", x, columns[v], acc[r, v]))
        for r in range(height):
            for v in range(self.vectors):
                b.store(self.scores, self.score_at(at + r, v), acc[r, v])
                if not p.alters():
                    self.raise_top(v, acc[r, v])

    def raise_top(self, v: int, score: Expr) -> None:
        self.b.store(self.top, (v,), op("max", self.top[v], score))

    def alter(self, key: Expr, count: Expr) -> None:
        """Applies cap, bias and masks to the scores."""
        b, p, lanes = self.b, self.p, self.lanes
        turned = {x: self.stage(x, key, count) for x, staged in self.whole.staged.items() if staged}
        rows = [b.let("r", cast(ramp(self.start + v * lanes, lanes), dt.i32))
                for v in range(self.vectors)] if p.attrs["causal"] else []
        counts = [self.counted(v) for v in range(self.vectors)]
        with b.loop("j", count) as j:
            at = b.let("t", key + j)
            bound = b.let("bound", cast(at - wrap(p.attrs["offset"]), dt.i32)) if rows else None

            def operand(x: Element | None, v: int) -> Expr | None:
                if x is None:
                    return None
                if x in turned:
                    value = load(turned[x], (j * self.across + v * lanes,), lanes)
                    return value if x is p.bias else op("ne", value, splat(0.0, lanes))
                e = x.at(self.batch, self.head, None, at)
                row = x.index[2]
                if not isinstance(row, Var):
                    return p.writer.value(e)
                return p.writer.value(e, row, lanes, self.start + v * lanes, counts[v])

            for v in range(self.vectors):
                where = self.score_at(j, v)
                after = op("ge", rows[v], broadcast(bound, lanes)) if bound is not None else None
                score = p.altered(load(self.scores, where, lanes), operand(p.bias, v),
                                  operand(p.mask, v), after)
                score = b.let("s", score)
                b.store(self.scores, where, score)
                self.raise_top(v, score)

    def stage(self, x: Element, key: Expr, count: Expr) -> Buffer:
        """A block of a bias or mask that is contiguous along the keys, transposed."""
        b, p, lanes = self.b, self.p, self.lanes
        chunks = -(-self.whole.block // lanes)
        target = b.alloc("turned", dt.f32, (chunks * lanes * self.across,))
        with b.loops("c", ((count + (lanes - 1)) // lanes, self.vectors)) as (c, v):
            left = b.let("left", op("min", count - c * lanes, lanes))
            rows = []
            for i in range(lanes):
                at = b.let("row", self.row(v * lanes + i))
                e = x.at(self.batch, self.head, at, None)
                value = p.writer.value(e, _variable(x.index[3]), lanes, key + c * lanes, left)
                value = broadcast(value, lanes)
                if x is p.mask:
                    value = select(value, splat(1.0, lanes), splat(0.0, lanes))
                rows.append(b.let("x", value))
            for i, column in enumerate(transpose(b, rows)):
                b.store(target, ((c * lanes + i) * self.across + v * lanes,), column)
        return target

    def weigh(self, origin: Expr, at: Expr, height: int, count: Expr,
              factor: list[Expr]) -> None:
        """sums[at:at + height] = sums * factor + values^T x exponentials."""
        b, p, lanes = self.b, self.p, self.lanes
        acc = accumulators(b, Tile(height, self.vectors), lanes)
        with b.loop("j", count) as j:
            columns = [b.let("w", load(self.scores, self.score_at(j, v), lanes))
                       for v in range(self.vectors)]
            for r in range(height):
                x = load(p.v.buffer, (origin + j * p.v.step + r * p.v.inner,))
                x = b.let("a", broadcast(x, lanes))
                for v in range(self.vectors):
                    b.store(acc, (r, v), op("fma", x, columns[v], acc[r, v]))
        for r in range(height):
            for v in range(self.vectors):
                where = self.sum_at(at + r, v)
                old = load(self.sums, where, lanes)
                b.store(self.sums, where, op("fma", old, factor[v], acc[r, v]) if factor
                        else acc[r, v])

    def finish(self) -> None:
        """Divides by the sums of exponentials, transposes back and stores."""
        b, p, lanes = self.b, self.p, self.lanes
        inverse = b.alloc("inverse", dt.f32, (self.across,))
        for v in range(self.vectors):
            b.store(inverse, (v * lanes,), p.inverse(self.total[v]))
        with b.loops("v", (self.vectors, -(-p.width // lanes))) as (v, c):
            by = b.let("by", load(inverse, (v * lanes,), lanes))
            column = b.let("column", c * lanes)
            vectors = []
            for i in range(lanes):
                d = column + i if p.width % lanes == 0 else op("min", column + i, p.width - 1)
                value = load(self.sums, self.sum_at(d, v), lanes)
                vectors.append(b.let("y", p.result(value, by)))
            count = None if p.width % lanes == 0 else b.let(
                "count", op("min", const(p.width) - column, lanes))
            for i, row in enumerate(transpose(b, vectors)):
                at = b.let("row", self.start + v * lanes + i)
                if self.whole.ragged:
                    with b.when(op("lt", at, wrap(p.rows))):
                        p.put(self.batch, self.head, at, column, lanes, row, count)
                else:
                    p.put(self.batch, self.head, at, column, lanes, row, count)


def _variable(x: Expr) -> Var | None:
    return x if isinstance(x, Var) else None


@contextmanager
def _repeated(b: Builder, rows: RowBlock) -> Iterator[Expr]:
    """A loop over the tiles of a block of rows; yields where each starts."""
    if isinstance(rows.count, int) and rows.count == 1:
        yield wrap(rows.start)
        return
    with b.loop("q", rows.count) as q:
        yield b.let("at", rows.start + q * rows.height)
