"""Matrix products and convolutions of bf16 in tile registers: what their rows are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Expr, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import same, unflatten
from ...ir.kernel.intrinsics import TILE_COLUMNS, TILE_ROWS
from ...ir.kernel.nodes import Buffer
from ..lower.generic import Group
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering
from .gemm import (
    add_operand,
    finish,
    needed,
    operands,
    outer_value,
    places,
    product,
    walks_as_one,
)
from .microkernel import Epilogue
from .tile_image import ImageRows
from .tile_product import TileProduct, pack
from .tile_rows import STEP, MatrixRows, RowSource, WindowRows, row_operand
from .window import windows_of

LEAST_IN_PARTS = 2048
"""Channels times features from which on three products of bf16 are quicker than one of f32: every
element of the left operand is rounded twice for its products with all features."""


def tile_matmul_rule(low: Lowering, node: Node) -> bool:
    """Products of bf16, or of f32 in parts, with a constant right matrix, in tile registers."""
    group = Group(node)
    root = group.find("matmul")
    if root is None or not _takes(low, group, root):
        return False
    left, right = root.inputs
    assert left is not None and right is not None
    weights = outer_value(group, right).constant
    if weights is None or weights.ndim != 2:
        return False
    reduction = weights.shape[0]
    return _write(low, group, root, left, weights,
                  lambda x: MatrixRows(x, reduction, product(left.shape[:-1])))


def tile_conv_rule(low: Lowering, node: Node) -> bool:
    """Channels-last convolutions of bf16, or of f32 in parts, with constant weights, in tile
    registers."""
    group = Group(node)
    root = group.find("conv_last")
    if root is None or not _takes(low, group, root):
        return False
    x, w = root.inputs
    assert x is not None and w is not None
    weights = outer_value(group, w).constant
    windows = None if weights is None else windows_of(root, weights.shape[2:])
    if weights is None or windows is None or root.attrs["groups"] != 1 \
            or any(windows[0].guarded) and root.attrs["fill"] != 0:
        return False
    (window,) = windows
    channels, out = weights.shape[1], root.output
    matrix = np.moveaxis(weights, (0, 1), (-1, -2)).reshape(-1, weights.shape[0])

    def rows(image: Buffer) -> RowSource:
        sizes: list[Any] = [*x.shape[1:], *out.shape[1:-1]]
        if ImageRows.takes(window, sizes, channels):
            return ImageRows(image, window, x.shape[0], *sizes)
        return WindowRows(image, window, x.shape[1:-1], channels, out.shape[:-1])

    return _write(low, group, root, x, matrix, rows)


def _takes(low: Lowering, group: Group, root: Node) -> bool:
    x, w = root.inputs[:2]
    return low.machine.tiles and low.machine.lanes == TILE_COLUMNS and x is not None \
        and w is not None and root.output.dtype is dt.f32 \
        and (x.dtype is w.dtype is dt.bf16 or _in_parts(low, group, root)) \
        and w in group.inputs and not any(same(d, 0) for d in (*root.output.shape, *x.shape)) \
        and all(v.shape == root.output.shape for v in group.outputs)


def _in_parts(low: Lowering, group: Group, root: Node) -> bool:
    """Whether a product of f32 is taken as three of bf16."""
    x, w = root.inputs[:2]
    assert x is not None and w is not None
    results, channels, features = root.output.type.numel, x.shape[-1], root.output.shape[-1]
    if not low.machine.parts or not x.dtype is w.dtype is dt.f32 or not isinstance(results, int) \
            or not isinstance(channels, int) or not isinstance(features, int):
        return False
    return channels >= STEP and channels * features >= LEAST_IN_PARTS \
        and results >= TILE_ROWS * features


def _write(low: Lowering, group: Group, root: Node, left: Value, weights: np.ndarray,
           rows_of: Callable[[Buffer], RowSource]) -> bool:
    """Writes a product of `weights` [K, N] with the rows that `rows_of` makes of the left operand's
    buffer; False when the epilogue does not fit vectors."""
    source, out = row_operand(group, left), root.output
    ops = operands(low, group, root.op.removesuffix("_last"), needed(group, root, source))
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs,
                        LoopWriter(ops.b, low.machine))
    if not epilogue.vectorisable():
        return False
    add_operand(low, group, ops, source)
    rows = rows_of(ops.buffers[source])
    if weights.dtype == np.float32:
        rounded = weights.astype(dt.bf16.numpy)
        parts = [pack(rounded), pack((weights - rounded).astype(dt.bf16.numpy))]
    else:
        parts = [pack(weights)]
    array = np.concatenate(parts)
    storage = low.constant(array, TensorType(dt.bf16, array.shape))
    packed = ops.b.param("packed", dt.bf16, array.shape)
    ops.args.append(storage)
    TileProduct(ops.b, epilogue, rows, weights.shape[1], _index(group, root), packed,
                parts[0].size if len(parts) > 1 else 0).write(low, ops.args)
    finish(low, group.node, ops, wrap(out.type.numel) * (2 * weights.shape[0]))
    return True


def _index(group: Group, root: Node) -> Callable[[Expr, Expr], tuple[Expr, ...]]:
    """The output's index of a row and a column."""
    out = root.output
    if walks_as_one(group, root):
        lead, between = places(out)
        return lambda row, column: (*lead, row, *between, column)
    return lambda row, column: (*unflatten(row, out.shape[:-1]), column)
