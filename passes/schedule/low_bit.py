"""Products with weights of a few bits, read as they are stored.

Fields of a group are multiplied and summed as they are, then scaled once (per group, in the order
of MixPE, Zhang et al. 2024), so a weight costs no more than its field's way into a register.

f32 activations: a field is put into the low bits of the fraction of 2^23, or of a smaller power of
two where it does not lie at the bottom, which makes a float of it without a conversion (Kim et al.
2022, "Who Says Elephants Can't Run"). Activations in the encoding `rounded`: four products at once
in integers, as in llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.encoding.base import Affine, Encoding
from ...ir.encoding.rounded import Rounded
from ...ir.expr import Expr, broadcast, cast, const, op, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.encoded import encoding_of
from ...ir.graph.ops.shapes import broadcast_index, flat_index, same, unflatten
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import dot4, horizontal, pack4
from ...ir.kernel.nodes import Buffer, load
from ..lower.generic import Group
from ..lower.loops import LoopWriter, Machine
from ..lower.lowering import Lowering
from .dot import ahead_of
from .gemm import (
    Operands,
    add_operand,
    finish,
    needed,
    operands,
    outer_value,
    row_blocks,
    store_tile,
)
from .low_bit_panels import Words, pack_panels, words_of
from .microkernel import Epilogue, accumulators
from .product_plans import TASK_FLOPS
from .tiles import Registers, Tile, split_rows

FRACTION = 23
"""Bits of the fraction of f32."""

UNROLLED_SUM = 16
"""Vectors of a group up to which their sum is unrolled."""


def reads(encoding: Encoding, k: int) -> bool:
    """Whether the kernels read weights whose columns of `k` elements are encoded so."""
    return words_of(encoding, k) is not None


@dataclass(frozen=True)
class Work:
    """What the kernel writer needs beside the epilogue: the cut into words, the zero point that
    all groups share (None: `zeros` holds them), the tile of registers, elements of a row of
    activations."""

    words: Words
    zero: int | None
    lanes: int
    vectors: int
    packed: Buffer
    scales: Buffer
    zeros: Buffer | None
    ahead: int
    stride: Any

    @property
    def width(self) -> int:
        return self.vectors * self.lanes


def low_bit_rule(low: Lowering, node: Node) -> bool:
    """Products whose right operand is decoded from constants, with elementwise epilogue."""
    group = Group(node)
    root = group.find("matmul")
    if root is None:
        return False
    left, right = root.inputs
    assert left is not None and right is not None
    source = right.node
    if source is None or source.op != "decode" or source not in group.nodes:
        return False
    encoding = encoding_of(source.attrs)
    k, n = right.shape[-2], right.shape[-1]
    if right.rank != 2 or source.attrs["axis"] or not isinstance(k, int) or not isinstance(n, int):
        return False
    words = words_of(encoding, k)
    arrays = [_constant(group, v) for v in source.inputs if v is not None]
    if words is None or any(a is None for a in arrays) or not isinstance(encoding, Affine):
        return False
    if not left.dtype is right.dtype is root.output.dtype is dt.f32 or any(
            same(d, 0) for d in root.output.shape):
        return False
    if any(v.shape != root.output.shape for v in group.outputs):
        return False
    integers = low.machine.dot4 and _rounded_left(group, left, encoding)
    parts = [v for v in left.node.inputs if v] if integers and left.node else [left]
    ops = operands(low, group, "low_bit", needed(group, root, *parts))
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(root.output, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    lanes = low.machine.lanes
    if lanes > 1 and not epilogue.vectorisable():
        return False
    for part in parts:
        add_operand(low, group, ops, part)
    rows = left.shape[-2]
    limit, vectors = _tile(low.machine, rows if isinstance(rows, int) else None, words, integers)
    panels = pack_panels(encoding, [a for a in arrays if a is not None], words, vectors * lanes)

    def constant(name: str, array: np.ndarray, dtype: DType) -> Buffer:
        ops.args.append(low.constant(array, TensorType(dtype, array.shape)))
        return ops.b.param(name, dtype, (array.size,))

    work = Work(words, encoding.zero, lanes, vectors, constant("packed", panels.words, dt.i32),
                constant("scales", panels.scales, dt.f32),
                None if panels.zeros is None else constant("zeros", panels.zeros, dt.f32),
                ahead_of(panels.words), parts[0].shape[-1])
    _write(ops, epilogue, work, [ops.buffers[p] for p in parts], root.output, left, limit)
    finish(low, node, ops, wrap(root.output.type.numel) * k * 2)
    return True


def _constant(group: Group, value: Value) -> np.ndarray | None:
    """The array of a group's operand; constants of one element are inside the group."""
    return outer_value(group, value).constant if value in group.inputs else value.constant


def _rounded_left(group: Group, left: Value, encoding: Affine) -> bool:
    """Whether the left operand is decoded from 8-bit integers in the groups of the weights."""
    node = left.node
    if node is None or node.op != "decode" or node not in group.nodes:
        return False
    rounded = encoding_of(node.attrs)
    return isinstance(rounded, Rounded) and rounded.group == encoding.group and \
        node.attrs["axis"] == left.rank - 1


def _tile(machine: Machine, rows: int | None, words: Words, integers: bool) -> tuple[int, int]:
    """(rows, vectors) of the tile with the fewest modelled cycles: a word's fields are taken apart
    once for all rows of a tile."""
    registers = Registers(machine.lanes, machine.vector_registers)
    room = max(4, registers.count // 2 - 2)
    apart = 2 if integers else 3  # operations on the way of a field

    def cost(vectors: int) -> tuple[float, int]:
        limit = room // vectors
        blocks = [(1, 1), (limit, 1)] if rows is None else split_rows(rows, limit)
        cycles = sum(count * max(vectors * (apart + height) / registers.throughput,
                                 registers.latency) for height, count in blocks)
        return cycles / vectors, -vectors

    best = min((4, 2, 1), key=cost)
    return room // best, best


def _write(ops: Operands, epilogue: Epilogue, work: Work, parts: list[Buffer], out: Value,
           left: Value, limit: int) -> None:
    b, words, width = ops.b, work.words, work.width
    batch, rows = out.shape[:-2], left.shape[-2]
    columns = wrap(out.shape[-1])
    panels = (columns + (width - 1)) // width
    typical = rows if isinstance(rows, int) else 1
    grain = max(1, TASK_FLOPS // (2 * words.k * width * typical))
    count: Any = 1
    for d in batch:
        count = count * wrap(d)
    with b.loop("p", panels, "parallel", grain) as panel, b.loop("m", count) as m:
        base = b.let("w", panel * (words.total * width))
        side = b.let("g", panel * (words.groups * width))
        lead = unflatten(m, batch) if batch else ()
        source = flat_index(broadcast_index(lead, left.shape[:-2], batch), left.shape[:-2]) \
            if batch else const(0)
        for block in row_blocks(rows, limit):
            with b.loop("r", block.count) as r:
                row = b.let("row", block.start + r * block.height)
                tile = Tile(block.height, work.vectors)
                first = b.let("first", source * wrap(rows) + row)
                acc = accumulators(b, tile, work.lanes)
                inner = _Integers(b, work, parts, first, base, side, tile, acc) \
                    if len(parts) > 1 else _Floats(b, work, parts, first, base, side, tile, acc)
                inner.groups()
                store_tile(b, epilogue, tile, work.lanes, acc, panel, columns, width,
                           lambda r, column, row=row, lead=lead: (*lead, row + r, column))


@dataclass
class _Inner:
    """The reduction of a register tile: groups, words, fields. `first` is the tile's first row,
    `base` the panel's first word and `side` its first scale."""

    b: Builder
    work: Work
    parts: list[Buffer]
    first: Expr
    base: Expr
    side: Expr
    tile: Tile
    acc: Buffer

    def groups(self) -> None:
        words = self.work.words
        ragged = words.last != words.group
        whole = words.groups - ragged
        if whole:
            with self.b.loop("g", whole) as g:
                self.group(g, words.group)
        if ragged:
            self.group(const(whole), words.last)

    def group(self, g: Expr, size: int) -> None:
        words = self.work.words
        total = self.start()
        first = g * words.per_group
        count, rest = divmod(size, words.fields)
        if count:
            with self.b.loop("w", count) as w:
                self.word(total, first + w, g * words.group + w * words.fields, words.fields)
        if rest:
            self.word(total, first + count, g * words.group + count * words.fields, rest)
        self.finish(total, g, size)

    def start(self) -> Buffer:
        """Accumulators of a group, set to zero."""
        raise NotImplementedError

    def word(self, total: Buffer, word: Expr, k: Expr, fields: int) -> None:
        """Adds the first `fields` fields of a word, those of the elements from `k` on."""
        raise NotImplementedError

    def finish(self, total: Buffer, g: Expr, size: int) -> None:
        """Adds a group's sum, scaled."""
        raise NotImplementedError

    def load_words(self, word: Expr) -> list[Expr]:
        """One step of the panel."""
        work = self.work
        at = self.base + word * work.width
        for v in range(work.vectors if work.ahead else 0):
            self.b.prefetch(work.packed, at + v * work.lanes + work.ahead)
        return [self.b.let("p", load(work.packed, (at + v * work.lanes,), work.lanes))
                for v in range(work.vectors)]

    def beside(self, buffer: Buffer, g: Expr, v: int) -> Expr:
        """Scales or zero points of a group."""
        at = self.side + g * self.work.width + v * self.work.lanes
        return self.b.let("s", load(buffer, (at,), self.work.lanes))

    def wide(self, x: Expr) -> Expr:
        return broadcast(x, self.work.lanes)


class _Floats(_Inner):
    """f32 activations [rows, K]."""

    def start(self) -> Buffer:
        return accumulators(self.b, self.tile, self.work.lanes)

    def word(self, total: Buffer, word: Expr, k: Expr, fields: int) -> None:
        b, words, (x,) = self.b, self.work.words, self.parts
        low = self.load_words(word)
        high: list[Expr] = []
        for f in range(fields):
            half, shift = divmod(words.position(f), 16)
            if half and not high:
                high = [b.let("h", op("shr", p, self.wide(const(16, dt.i32)))) for p in low]
            rows = [b.let("x", self.wide(load(x, ((self.first + r) * self.work.stride + k + f,))))
                    for r in range(self.tile.rows)]
            for v in range(self.tile.vectors):
                weight = b.let("f", self._number((high if half else low)[v], shift))
                for r in range(self.tile.rows):
                    b.store(total, (r, v), op("fma", rows[r], weight, total[r, v]))

    def _number(self, word: Expr, shift: int) -> Expr:
        """The field from bit `shift` on (at most 15), less a zero point that all groups share."""
        one = float(1 << (FRACTION - shift))
        exponent = (127 + FRACTION - shift) << FRACTION
        mask = ((1 << self.work.words.bits) - 1) << shift
        bits = op("or", op("and", word, self.wide(const(mask, dt.i32))),
                  self.wide(const(exponent, dt.i32)))
        return cast(bits, dt.f32, "bits") - self.wide(const(one + (self.work.zero or 0), dt.f32))

    def finish(self, total: Buffer, g: Expr, size: int) -> None:
        b, work = self.b, self.work
        sums: list[Expr] = []
        if work.zeros is not None:
            sums = [b.let("t", self.wide(self._sum(r, g, size))) for r in range(self.tile.rows)]
        for v in range(self.tile.vectors):
            scale = self.beside(work.scales, g, v)
            zero = self.beside(work.zeros, g, v) if work.zeros is not None else None
            for r in range(self.tile.rows):
                value = total[r, v] if zero is None else total[r, v] - zero * sums[r]
                b.store(self.acc, (r, v), op("fma", scale, value, self.acc[r, v]))

    def _sum(self, r: int, g: Expr, size: int) -> Expr:
        """The sum of row r's elements of a group."""
        b, lanes, (x,) = self.b, self.work.lanes, self.parts
        at = (self.first + r) * self.work.stride + g * self.work.words.group
        total = b.alloc("sum", dt.f32, (), "register", lanes)
        b.store(total, (), self.wide(const(0.0, dt.f32)))
        count, rest = divmod(size, lanes)
        if count > UNROLLED_SUM:
            with b.loop("k", count) as k:
                b.store(total, (), total[()] + load(x, (at + k * lanes,), lanes))
        else:
            for k in range(count):
                b.store(total, (), total[()] + load(x, (at + k * lanes,), lanes))
        if rest:
            b.store(total, (), total[()] + load(x, (at + count * lanes,), lanes, rest))
        return horizontal("sum", total[()])


class _Integers(_Inner):
    """Activations as `rounded`: fields i8 [rows, K in whole groups], scales and sums f32 [rows,
    groups]."""

    def start(self) -> Buffer:
        return accumulators(self.b, self.tile, self.work.lanes, dt.i32)

    def word(self, total: Buffer, word: Expr, k: Expr, fields: int) -> None:
        b, bits, x = self.b, self.work.words.bits, self.parts[0]
        packed = self.load_words(word)
        mask = self.wide(const(((1 << bits) - 1) * 0x01010101, dt.u32))
        for j in range(-(-fields // 4)):
            rows = [b.let("x", self.wide(pack4(load(
                x, ((self.first + r) * self.work.stride + k + 4 * j,), 4))))
                for r in range(self.tile.rows)]
            for v in range(self.tile.vectors):
                four = packed[v]
                if bits < 8:
                    shifted = op("shr", four, self.wide(const(bits * j, dt.i32))) if j else four
                    four = b.let("f", op("and", shifted, cast(mask, dt.i32, "bits")))
                for r in range(self.tile.rows):
                    b.store(total, (r, v), dot4(total[r, v], four, rows[r]))

    def finish(self, total: Buffer, g: Expr, size: int) -> None:
        b, work = self.b, self.work
        _, scales, sums = self.parts
        at = [(self.first + r) * work.words.groups + g for r in range(self.tile.rows)]
        factors = [b.let("x", self.wide(load(scales, (i,)))) for i in at]
        shared = None if work.zero is None else const(-float(work.zero), dt.f32)
        offsets = [b.let("z", self.wide(load(sums, (i,)) * shared if shared is not None
                                        else op("neg", load(sums, (i,))))) for i in at]
        for v in range(self.tile.vectors):
            scale = self.beside(work.scales, g, v)
            zero = self.beside(work.zeros, g, v) if work.zeros is not None else None
            for r in range(self.tile.rows):
                offset = offsets[r] if zero is None else zero * offsets[r]
                value = op("fma", cast(total[r, v], dt.f32), factors[r], offset)
                b.store(self.acc, (r, v), op("fma", scale, value, self.acc[r, v]))
