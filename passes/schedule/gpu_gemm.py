"""Contractions on a GPU: matrix products, and convolutions as products with an image of patches
that is never made (implicit GEMM, Chetlur et al. 2014).

A block of threads computes a tile of the result. It goes along the inner size in steps; in each,
the threads copy a slab of both operands into shared memory, then every thread adds its outer
products to a small tile in registers. Operands are read through functions of their index, so
whatever comes before the product in its group, and the borders of a convolution, are computed
while copying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Const, Expr, both, cast, const, op, select, simplify_dim, var, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import broadcast_index, same, unflatten
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ..lower.generic import Group
from ..lower.inline import Inliner
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering, Rule
from .gemm import Operands, finish, operands, outer_value
from .gpu import GpuLimits, blocks
from .microkernel import Epilogue

FEW_ROWS = 4
"""Rows up to which a thread for each result reads the right operand as well as a tile does."""

LONGEST_EPILOGUE = 160
"""Operations of an epilogue, over all results of a thread, up to which tiles are large."""

Element = Callable[[Expr, Expr, Expr], Expr]
"""The element of an operand: (batch, row, inner) of the left one, (batch, inner, column) of the
right one. Called with indices inside the operand."""


@dataclass(frozen=True)
class BlockTile:
    """`rows` x `columns` results of a block in steps of `depth` along the inner size; a thread has
    `own_rows` x `own_columns` of them."""

    rows: int
    columns: int
    depth: int
    own_rows: int
    own_columns: int

    @property
    def threads(self) -> int:
        return (self.rows // self.own_rows) * (self.columns // self.own_columns)


@dataclass
class Product:
    """Sizes of a product, and its operands."""

    batch: Expr
    rows: Expr
    inner: Expr
    columns: Expr
    left: Element
    right: Element


def choose_tile(rows: Any, columns: Any, epilogue: int, limits: GpuLimits) -> BlockTile:
    """The tile for a product of these sizes, where they are known. Large tiles read less, small
    ones waste less at the borders and make more blocks."""
    def few(size: Any, most: int) -> bool:
        return isinstance(size, int) and size <= most

    if few(rows, 16):
        return BlockTile(16, 64, 16, 1, 4)
    if few(columns, 16):
        return BlockTile(64, 16, 16, 4, 1)
    if few(rows, 48) or few(columns, 48) or 16 * epilogue > LONGEST_EPILOGUE \
            or limits.threads < 256:
        return BlockTile(32, 32, 16, 2, 2) if limits.threads >= 256 else BlockTile(16, 16, 16, 2, 2)
    return BlockTile(64, 64, 16, 4, 4)


def write_product(ops: Operands, product: Product, tile: BlockTile, limits: GpuLimits,
                  store: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
    """Writes the kernel; store(batch, row, column, result) stores one element."""
    b = ops.b
    row_tiles = (product.rows + (tile.rows - 1)) // tile.rows
    column_tiles = (product.columns + (tile.columns - 1)) // tile.columns
    with blocks(b, product.batch * row_tiles * column_tiles, limits) as block:
        left = b.alloc("left", dt.f32, (tile.depth, tile.rows + 1), "shared")
        right = b.alloc("right", dt.f32, (tile.depth, tile.columns), "shared")
        with b.loop("thread", tile.threads, "block.x") as t:
            batch, i, j = (b.let("tile", x) for x in unflatten(
                block, (product.batch, row_tiles, column_tiles)))
            first_row, first_column = b.let("row", i * tile.rows), b.let("column", j * tile.columns)
            across = tile.columns // tile.own_columns
            own_row, own_column = b.let("own", t // across), b.let("own", t % across)
            rows = [own_row + r * (tile.rows // tile.own_rows) for r in range(tile.own_rows)]
            columns = [own_column + c * across for c in range(tile.own_columns)]
            acc = b.alloc("acc", dt.f32, (tile.own_rows, tile.own_columns), "register")
            for r in range(tile.own_rows):
                for c in range(tile.own_columns):
                    b.store(acc, (r, c), 0.0)
            with b.loop("step", (product.inner + (tile.depth - 1)) // tile.depth) as step:
                start = b.let("start", step * tile.depth)
                _copy(b, tile, product, t, left, right, (batch, first_row, first_column, start))
                b.barrier()
                with b.loop("k", tile.depth) as k:
                    x = [b.let("x", left[k, r]) for r in rows]
                    y = [b.let("y", right[k, c]) for c in columns]
                    for r, xr in enumerate(x):
                        for c, yc in enumerate(y):
                            b.store(acc, (r, c), op("fma", xr, yc, acc[r, c]))
                b.barrier()
            for r, row in enumerate(rows):
                for c, column in enumerate(columns):
                    at = b.let("row", first_row + row), b.let("column", first_column + column)
                    inside = both(_below(at[0], product.rows, tile.rows),
                                  _below(at[1], product.columns, tile.columns))
                    with b.when(inside):
                        store(batch, *at, acc[r, c])


def _below(index: Expr, size: Expr, step: int) -> Expr:
    """Whether an index is inside a size that tiles of `step` cover."""
    whole = isinstance(size, Const) and size.value % step == 0
    return const(True, dt.bool_) if whole else op("lt", index, size)


def _copy(b: Builder, tile: BlockTile, product: Product, t: Expr, left: Buffer, right: Buffer,
          at: tuple[Expr, Expr, Expr, Expr]) -> None:
    """Both slabs of a step into shared memory, zeros where the operands end. Neighbouring threads
    read neighbouring elements of a row of either operand."""
    batch, first_row, first_column, start = at
    for slab, (outer, inner), read in (
            (left, (tile.rows, tile.depth), product.left),
            (right, (tile.depth, tile.columns), product.right)):
        count = outer * inner
        for first in range(0, count, tile.threads):
            e = b.let("e", t + first)
            p, q = b.let("p", e // inner), b.let("q", e % inner)
            if slab is left:
                index = b.let("i", first_row + p), b.let("i", start + q)
                inside = both(_below(index[0], product.rows, tile.rows),
                              _below(index[1], product.inner, tile.depth))
                place = q, p
            else:
                index = b.let("i", start + p), b.let("i", first_column + q)
                inside = both(_below(index[0], product.inner, tile.depth),
                              _below(index[1], product.columns, tile.columns))
                place = p, q
            value = select(inside, read(batch, *index), const(0, dt.f32))
            if count - first < tile.threads:
                with b.when(e < count):
                    b.store(slab, place, value)
            else:
                b.store(slab, place, value)


# Rules --------------------------------------------------------------------------------------------


def gpu_product_rules(limits: GpuLimits) -> tuple[Rule, ...]:
    """The rules for f32 products and dense channels-last convolutions."""

    def matmul(low: Lowering, node: Node) -> bool:
        group = Group(node)
        root = group.find("matmul")
        if root is None or not _fits(group, root):
            return False
        left, right = root.inputs
        assert left is not None and right is not None
        out = root.output
        ops = operands(low, group, "matmul", set(group.inputs))
        inliner = _inliner(ops)
        writer = LoopWriter(ops.b, low.machine)
        *lead, rows, columns = out.shape
        flat = right.rank == 2
        if flat:
            lead, rows = [], _count(out.shape[:-1])
        if isinstance(rows, int) and rows <= FEW_ROWS:
            return False

        def read(value: Value, batch: Expr, *at: Expr) -> Expr:
            if flat and value is left:
                at = (*unflatten(at[0], left.shape[:-1]), at[1])
            outer = broadcast_index((*unflatten(batch, lead), const(0), const(0)),
                                    value.shape, out.shape) if lead else ()
            e = inliner.at(value, (*outer[:-2], *at))
            return cast(writer.value(e), dt.f32)

        product = Product(wrap(_count(lead)), wrap(rows), wrap(left.shape[-1]), wrap(columns),
                          lambda m, i, k: read(left, m, i, k),
                          lambda m, k, j: read(right, m, k, j))

        def index_of(batch: Expr, row: Expr) -> Sequence[Expr]:
            return unflatten(row, out.shape[:-1]) if flat else (*unflatten(batch, lead), row)

        _finish(low, node, group, root, ops, writer, product, limits, index_of)
        return True

    def conv(low: Lowering, node: Node) -> bool:
        group = Group(node)
        root = group.find("conv_last")
        if root is None or not _fits(group, root) or root.attrs["groups"] != 1:
            return False
        x, w = root.inputs
        assert x is not None and w is not None
        window = w.shape[2:]
        if w not in group.inputs or not all(isinstance(k, int) for k in w.shape):
            return False
        weights = outer_value(group, w).constant
        if weights is None:
            return False
        ops = operands(low, group, "conv", set(group.inputs) - {w})
        inliner = _inliner(ops)
        writer = LoopWriter(ops.b, low.machine)
        # [window..., C, F]: neighbouring threads read neighbouring features.
        packed = np.ascontiguousarray(np.moveaxis(weights, (0, 1), (-1, -2)))
        features = weights.shape[0]
        storage = low.constant(packed.reshape(-1), TensorType(dt.f32, (packed.size,)))
        matrix = ops.b.param("packed", dt.f32, (packed.size,))
        ops.args.append(storage)
        out, a = root.output, root.attrs
        channels = x.shape[-1]

        def patch(_: Expr, row: Expr, k: Expr) -> Expr:
            n, *place = unflatten(row, out.shape[:-1])
            *taps, c = unflatten(k, (*window, channels))
            at = [ops.b.let("at", p * a["strides"][d] + tap * a["dilations"][d]
                            - wrap(a["low"][d]))
                  for d, (p, tap) in enumerate(zip(place, taps, strict=True))]
            inside = both(*(both(op("ge", p, 0), op("lt", p, wrap(x.shape[1 + d])))
                            for d, p in enumerate(at)
                            if not (same(a["low"][d], 0) and same(a["high"][d], 0))))
            value = writer.value(inliner.at(x, (n, *at, c)))
            return select(inside, value, const(a["fill"], dt.f32))

        product = Product(const(1), wrap(_count(out.shape[:-1])), wrap(packed.size // features),
                          wrap(features), patch,
                          lambda _, k, f: load(matrix, (k * features + f,)))
        _finish(low, node, group, root, ops, writer, product, limits,
                lambda _, row: unflatten(row, out.shape[:-1]))
        return True

    return matmul, conv


def _fits(group: Group, root: Node) -> bool:
    """Whether the operands and the result are f32, and all outputs of the group are like it."""
    values = [v for v in (*root.inputs, root.output) if v is not None]
    return all(v.dtype is dt.f32 for v in values) \
        and all(v.shape == root.output.shape for v in group.outputs) \
        and not any(same(d, 0) for v in values for d in v.shape)


def _inliner(ops: Operands) -> Inliner:
    inliner = Inliner(ops.buffers)
    inliner.known.update(ops.known)
    return inliner


def _count(shape: Sequence[Any]) -> Any:
    total: Any = 1
    for d in shape:
        total = total * d
    return total


def _finish(low: Lowering, node: Node, group: Group, root: Node, ops: Operands,
            writer: LoopWriter, product: Product, limits: GpuLimits,
            index_of: Callable[[Expr, Expr], Sequence[Expr]]) -> None:
    """Writes the product with the group's epilogue, and launches it."""
    out = root.output
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    along = var("column", extent=product.columns)

    def store(batch: Expr, row: Expr, column: Expr, result: Expr) -> None:
        epilogue.store((*index_of(batch, row), column), along, column, 1, result)

    tile = choose_tile(simplify_dim(product.rows), simplify_dim(product.columns),
                       epilogue.length(), limits)
    write_product(ops, product, tile, limits, store)
    finish(low, node, ops, wrap(out.type.numel) * product.inner * 2)
