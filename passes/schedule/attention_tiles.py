"""Attention whose products are of bf16 in tile registers (AMX), sums and softmax in f32.

It runs as in `attention_panels`, with 32 rows of queries to a panel. Keys and values are rounded
and laid out in tiles by kernels ahead, once for all panels; a task rounds its scaled queries, and
the exponentials of each block. Keys are then the rows of a product and queries its columns; values,
with the positions of the head as rows, are those of the second one, and exponentials its columns
(FlashAttention in mixed precision: Dao et al. 2022). The sums of exponentials are of those that
were not rounded.

A tile of keys has 16 keys and 32 positions of the head, one of values 16 positions and 32 keys.
Keys that a last tile has no room for are zeros as values, and as exponentials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from ...ir import dtype as dt
from ...ir.algebra import at_least
from ...ir.expr import (
    Const,
    Expr,
    Var,
    broadcast,
    cast,
    const,
    op,
    ramp,
    select,
    simplify_dim,
    var,
    wrap,
)
from ...ir.graph.core import Node, TensorType
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import (
    TILE_COLUMNS,
    TILE_FACTORS,
    TILE_ROWS,
    TILE_SUMS,
    shuffle,
    tile_dot,
)
from ...ir.kernel.nodes import Buffer, load
from ..kernel.elementary import exp_up_to_one
from ..lower.inline import Inliner
from ..lower.loops import LoopWriter, Machine
from ..lower.lowering import Lowering
from ..lower.transposed import transpose
from .attention_operands import Reading
from .attention_panels import Element, Panel, Panels, Problem, Strided, splat
from .gemm import Operands, add_inputs, add_operand
from .tile_rows import STEP
from .tiles import Tile

BLOCK_TILES = 2
"""Tiles of keys or positions, and vectors of queries, of a step: four tiles of sums."""

PACKED_TILES = 16
"""Tiles that a task packs."""

SCORE_BYTES = 32 * 1024
"""Scores of a panel and a block of keys, next to which queries and exponentials are half as large
(256 keys; with 128, 1500 keys of 64 take 4 % longer)."""

LEAST_ROWS = TILE_COLUMNS + 1
"""Rows of queries from which on they fill more than one column of tiles."""


def takes_tiles(machine: Machine, root: Node) -> bool:
    """Whether an attention node may round its operands, and this machine has the products."""
    q = root.inputs[0]
    assert q is not None
    return bool(root.attrs["rounded"]) and machine.tiles and machine.lanes == TILE_COLUMNS \
        and at_least(wrap(q.shape[2]), LEAST_ROWS)


# Keys and values ----------------------------------------------------------------------------------


def pack(low: Lowering, reading: Reading, ops: Operands) -> tuple[Strided, Strided]:
    """Launches kernels that pack keys and values for `ops`, which gains them as operands. A
    position and a depth are where those say at the beginning of a tile."""
    return (_pack(low, reading, ops, 1, "keys", _write_keys, STEP),
            _pack(low, reading, ops, 2, "values", _write_values, TILE_ROWS))


def _pack(low: Lowering, reading: Reading, ops: Operands, i: int, name: str,
          write: Callable[[_Source, Buffer], None], unit: int) -> Strided:
    value = reading.root.inputs[i]
    assert value is not None
    b = Builder(low.kernel_name(name), reading.group.node.origin)
    own = Operands(b, {}, {}, [], [])
    add_inputs(low, reading.group, own, reading.kept([value]))
    if value in reading.stored:
        add_operand(low, reading.group, own, value)
    inliner = Inliner(own.buffers)
    inliner.known.update(own.known)
    found = reading.element(inliner, i)
    assert found is not None
    batch, heads, count, size = value.shape
    assert isinstance(size, int)
    per_key = ceil(size / unit) * unit
    per_head = _blocks(count) * (STEP * per_key)
    total = wrap(batch) * wrap(heads) * per_head
    type = TensorType(dt.bf16, (simplify_dim(total),))
    target = Buffer("packed", dt.bf16, type.shape)
    write(_Source(b, LoopWriter(b, low.machine), low.machine.lanes, found, wrap(batch),
                  wrap(heads), wrap(count), size), target)
    b.params.append(target)
    moved = wrap(value.type.numel) * value.dtype.itemsize + total * 2
    storage = low.temporary(type, name)
    low.launch(b.kernel(1, 0, moved), [*own.args, storage])
    ops.args.append(storage)
    n, h = var("batch", extent=wrap(batch)), var("head", extent=wrap(heads))
    return Strided(ops.b.param(name, dt.bf16, type.shape), (n * wrap(heads) + h) * per_head,
                   const(per_key), const(1), n, h)


@dataclass(frozen=True)
class _Source:
    """Keys or values [batch, heads, count, size], and the builder of the kernel that packs them."""

    b: Builder
    writer: LoopWriter
    lanes: int
    element: Element
    batch: Expr
    heads: Expr
    count: Expr
    size: int

    def read(self, batch: Expr, head: Expr, key: Expr, depth: int) -> Expr:
        """A vector of one key, with zeros where there are no positions of the head; a key where
        there is none is the last one."""
        left = min(self.size - depth, self.lanes)
        if left <= 0:
            return splat(0.0, self.lanes)
        variable = self.element.index[3]
        at = self.b.let("key", op("min", key, self.count - 1))
        value = self.writer.value(
            self.element.at(batch, head, at, None), variable if isinstance(variable, Var) else None,
            self.lanes, const(depth), None if left == self.lanes else const(left))
        return _first(broadcast(value, self.lanes), const(left))


def _write_keys(x: _Source, target: Buffer) -> None:
    """Keys as [batch, heads, tiles of keys, tiles of positions, 16 keys, 32 positions]."""
    b, steps = x.b, ceil(x.size / STEP)
    tiles = _blocks(x.count) * (STEP // TILE_ROWS)
    with b.loop("t", x.batch * x.heads * tiles, "parallel", grain=PACKED_TILES) as t:
        n, h = b.let("n", t // tiles // x.heads), b.let("h", t // tiles % x.heads)
        with b.loop("i", TILE_ROWS) as i:
            key = b.let("k", t % tiles * TILE_ROWS + i)
            for depth in range(0, steps * STEP, x.lanes):
                at = (t * steps + depth // STEP) * TILE_FACTORS + i * STEP + depth % STEP
                b.store(target, (at,), cast(x.read(n, h, key, depth), dt.bf16))


def _write_values(x: _Source, target: Buffer) -> None:
    """Values as [batch, heads, blocks of 32 keys, tiles of positions, 16 positions, 32 keys], with
    zeros behind the last key."""
    b, tiles, blocks = x.b, ceil(x.size / TILE_ROWS), _blocks(x.count)
    with b.loop("t", x.batch * x.heads * blocks, "parallel", grain=PACKED_TILES) as t:
        n, h = b.let("n", t // blocks // x.heads), b.let("h", t // blocks % x.heads)
        with b.loop("half", STEP // x.lanes) as half:
            first = b.let("first", t % blocks * STEP + half * x.lanes)
            there = b.let("there", op("max", op("min", x.count - first, x.lanes), 0))
            for d in range(tiles):
                rows = [b.let("x", x.read(n, h, first + i, d * TILE_ROWS)) for i in range(x.lanes)]
                for i, column in enumerate(transpose(b, rows)):
                    at = (t * tiles + d) * TILE_FACTORS + i * STEP + half * x.lanes
                    b.store(target, (at,), cast(_first(column, there), dt.bf16))


def _blocks(keys: Any) -> Expr:
    """Blocks of keys, a step each."""
    return (wrap(keys) + (STEP - 1)) // STEP


def _first(value: Expr, count: Expr) -> Expr:
    """A vector with zeros from lane `count` on."""
    lanes = value.lanes
    if isinstance(count, Const) and count.value >= lanes:
        return value
    inside = op("lt", cast(ramp(const(0), lanes), dt.i32),
                broadcast(cast(count, dt.i32), lanes))
    return select(inside, value, splat(0.0, lanes))


# Panels -------------------------------------------------------------------------------------------


class TilePanels(Panels):
    """One task for each panel of rows of each head, on packed keys and values."""

    score_bytes = SCORE_BYTES

    def __init__(self, p: Problem):
        super().__init__(p)
        self.block = ceil(self.block / STEP) * STEP

    def tile_of(self, p: Problem) -> Tile:
        return Tile(STEP, BLOCK_TILES)

    def panel(self, batch: Expr, head: Expr, start: Expr, vectors: int) -> None:
        _TilePanel(self, batch, head, start, vectors).write()


class _TilePanel(Panel):
    """Scores and sums are in tiles of 16 keys, or positions, and 16 queries: [vectors, keys, 16].
    Queries and exponentials are in tiles of 16 pairs, of positions or of keys, and 16 queries."""

    def reserve(self) -> None:
        b, p, block = self.b, self.p, self.whole.block
        self.steps = ceil(p.depth / STEP)
        self.tiles = ceil(p.width / TILE_ROWS)
        self.queries = b.alloc("queries", dt.bf16, (self.vectors * self.steps * TILE_FACTORS,))
        self.scores = b.alloc("scores", dt.f32, (self.vectors * block * self.lanes,))
        self.weights = b.alloc("weights", dt.bf16, (self.vectors * block * self.lanes,))
        self.sums = b.alloc("sums", dt.f32, (self.vectors * self.tiles * TILE_SUMS,))

    def score_at(self, key: Expr, v: Expr | int) -> tuple[Expr]:
        return ((v * wrap(self.whole.block) + key) * self.lanes,)

    def sum_at(self, depth: Expr | int, v: Expr | int) -> tuple[Expr]:
        return ((v * wrap(self.tiles * TILE_ROWS) + depth) * self.lanes,)

    def turn_queries(self) -> None:
        b, lanes, depth = self.b, self.lanes, self.p.depth

        def chunk(v: Expr, e: Expr, count: int) -> None:
            columns = self.turned(v, e * lanes, count if count < lanes else None)[:count] \
                if count > 0 else []
            columns += [splat(0.0, lanes)] * (lanes - len(columns))
            for pair in range(lanes // 2):
                at = (v * (2 * self.steps) + e) * (lanes * lanes) + pair * (2 * lanes)
                b.store(self.queries, (at,), paired(*columns[2 * pair:2 * pair + 2]))

        with b.loop("v", self.vectors) as v:
            if depth // lanes:
                with b.loop("e", depth // lanes) as e:
                    chunk(v, e, lanes)
            for e in range(depth // lanes, 2 * self.steps):
                chunk(v, const(e), depth - e * lanes)

    def score_keys(self, keys: Expr, count: Expr) -> None:
        b = self.b
        with b.loop("k", _blocks(count)) as k:
            sums = b.alloc("sum", dt.f32, (BLOCK_TILES, self.vectors), "register", TILE_SUMS)
            for r in range(BLOCK_TILES):
                for v in range(self.vectors):
                    b.store(sums, (r, v), splat(0.0, TILE_SUMS))
            start = b.let("ko", keys + k * (STEP * self.p.k.step))
            with b.loop("e", self.steps) as e:
                self.multiply(
                    sums, [(self.p.k.buffer, start + (r * self.steps + e) * TILE_FACTORS)
                           for r in range(BLOCK_TILES)],
                    [(self.queries, (v * self.steps + e) * TILE_FACTORS)
                     for v in range(self.vectors)])
            for r in range(BLOCK_TILES):
                for v in range(self.vectors):
                    b.store(self.scores, self.score_at(k * STEP + r * TILE_ROWS, v), sums[r, v])
        if not self.p.alters():
            with b.loop("j", count) as j:
                for v in range(self.vectors):
                    self.raise_top(v, load(self.scores, self.score_at(j, v), self.lanes))

    def exponentials(self, count: Expr, shift: list[Expr], part: Buffer) -> None:
        b, lanes = self.b, self.lanes
        blocks = b.let("blocks", _blocks(count))
        # A key that is not there has no weight.
        with b.loop("j", blocks * STEP - count) as j:
            for v in range(self.vectors):
                b.store(self.scores, self.score_at(count + j, v), splat(-inf, lanes))
        with b.loop("j", blocks * (STEP // 2)) as j:
            for v in range(self.vectors):
                pair = [b.let("e", exp_up_to_one(b.let("d", load(
                    self.scores, self.score_at(2 * j + i, v), lanes) - shift[v])))
                    for i in range(2)]
                b.store(part, (v,), part[v] + (pair[0] + pair[1]))
                at = v * (self.whole.block * lanes) + j * (2 * lanes)
                b.store(self.weights, (at,), paired(*pair))

    def weigh_values(self, values: Expr, count: Expr, factor: list[Expr]) -> None:
        b, lanes, vectors = self.b, self.lanes, range(self.vectors)
        if factor:
            with b.loop("d", self.tiles * TILE_ROWS) as d:
                for v in vectors:
                    old = load(self.sums, self.sum_at(d, v), lanes)
                    b.store(self.sums, self.sum_at(d, v), old * factor[v])
        pairs, rest = divmod(self.tiles, BLOCK_TILES)
        with b.loop("r", pairs) as r:
            self.weigh_tiles(values, count, b.let("tile", r * BLOCK_TILES), BLOCK_TILES)
        if rest:
            # A block of its own, whose tile registers end with it.
            with b.loop("r", 1):
                self.weigh_tiles(values, count, const(pairs * BLOCK_TILES), rest)

    def weigh_tiles(self, values: Expr, count: Expr, tile: Expr, height: int) -> None:
        """The sums of `height` tiles of positions from `tile` on."""
        b, lanes = self.b, self.lanes
        sums = b.alloc("sum", dt.f32, (height, self.vectors), "register", TILE_SUMS)
        places = [((r, v), self.sum_at((tile + r) * TILE_ROWS, v))
                  for r in range(height) for v in range(self.vectors)]
        for register, where in places:
            b.store(sums, register, splat(0.0, TILE_SUMS) if self.whole.single
                    else load(self.sums, where, TILE_SUMS))
        with b.loop("s", _blocks(count)) as s:
            start = b.let("vo", values + s * (STEP * self.p.v.step))
            self.multiply(
                sums, [(self.p.v.buffer, start + (tile + r) * TILE_FACTORS)
                       for r in range(height)],
                [(self.weights, v * (self.whole.block * lanes) + s * TILE_FACTORS)
                 for v in range(self.vectors)])
        for register, where in places:
            b.store(self.sums, where, sums[register])

    def multiply(self, sums: Buffer, rows: Sequence[tuple[Buffer, Expr]],
                 columns: Sequence[tuple[Buffer, Expr]]) -> None:
        """sums[r, v] += tile r of rows x tile v of columns."""
        b = self.b
        left, right = ([b.let("t", load(buffer, (at,), TILE_FACTORS)) for buffer, at in side]
                       for side in (rows, columns))
        for r, row in enumerate(left):
            for v, column in enumerate(right):
                b.store(sums, (r, v), tile_dot(sums[r, v], row, column))


def paired(x: Expr, y: Expr) -> Expr:
    """Two vectors rounded to bf16, lane by lane next to each other."""
    return shuffle(cast(x, dt.bf16), cast(y, dt.bf16),
                   [lane + k * x.lanes for lane in range(x.lanes) for k in range(2)])
