"""Matrix products and convolutions of bf16 in tile registers: what their rows are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Expr, both, const, op, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import same, unflatten
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import TILE_COLUMNS
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
from .tile_product import STEP, RowSource, TileProduct, convert, pack, row_operand, zeros
from .window import Window, windows_of


@dataclass
class MatrixRows:
    """The rows of a [total, K] matrix."""

    x: Buffer
    reduction: int
    total: Any

    def gather(self, b: Builder, row: Expr, target: Buffer, at: Expr) -> None:
        whole = -(-self.reduction // STEP) * STEP
        convert(b, self.x, b.let("from", row * self.reduction), target, b.let("to", at),
                self.reduction, whole)


@dataclass
class WindowRows:
    """The windows of a channels-last convolution of [N, H, W, C], one for each output pixel, with
    zeros where they reach over the border (im2col)."""

    x: Buffer
    window: Window
    extents: tuple[Any, ...]
    channels: int
    shape: tuple[Any, ...]

    @property
    def total(self) -> Any:
        return product(self.shape)

    def gather(self, b: Builder, row: Expr, target: Buffer, at: Expr) -> None:
        w, c = self.window, self.channels
        n, *pixel = unflatten(row, self.shape)
        firsts = [b.let("first", p * s - wrap(low))
                  for p, s, low in zip(pixel, w.strides, w.low, strict=True)]
        n, at = b.let("n", n), b.let("to", at)
        self._lines(b, n, firsts, [], const(0), target, at)
        reduction = prod(w.size) * c
        zeros(b, target, at, reduction, -(-reduction // STEP) * STEP)

    def _lines(self, b: Builder, image: Expr, firsts: list[Expr], taps: list[Expr], number: Expr,
               target: Buffer, at: Expr) -> None:
        """The window's lines, by loops over its outer axes; `image` and `number` are the flat
        position so far, in the input and among the taps."""
        w, axis = self.window, len(taps)
        if axis < len(w.size) - 1:
            with b.loop("k", w.size[axis]) as k:
                self._lines(b, image, firsts, [*taps, k], number * w.size[axis] + k, target, at)
            return
        line, size = w.size[-1] * self.channels, wrap(self.extents[-1])
        inside = self._inside(firsts, taps)
        position = image
        for i, k in enumerate(taps):
            position = position * wrap(self.extents[i]) + firsts[i] + k * w.dilations[i]
        start = b.let("from", (position * size + firsts[-1]) * self.channels)
        goal = b.let("goal", at + number * line)

        def taps_apart() -> None:
            with b.loop("k", w.size[-1]) as k:
                column = firsts[-1] + k * w.dilations[-1]
                reached = both(op("ge", column, 0), op("lt", column, size)) \
                    if self._reaches_over(-1) else None
                self._guarded(b, reached, self.channels, target, goal + k * self.channels,
                              lambda: convert(b, self.x,
                                              start + k * (w.dilations[-1] * self.channels), target,
                                              goal + k * self.channels, self.channels,
                                              self.channels))

        def whole_line() -> None:
            if w.dilations[-1] != 1 and w.size[-1] > 1:
                taps_apart()
            elif not self._reaches_over(-1):
                convert(b, self.x, start, target, goal, line, line)
            else:
                with b.when(both(op("ge", firsts[-1], 0),
                                 op("le", firsts[-1] + w.size[-1], size))):
                    convert(b, self.x, start, target, goal, line, line)
                with b.otherwise():
                    taps_apart()

        self._guarded(b, inside, line, target, goal, whole_line)

    def _guarded(self, b: Builder, inside: Expr | None, length: int, target: Buffer, goal: Expr,
                 copy: Callable[[], None]) -> None:
        """copy() where a part of the window is inside the input, else zeros."""
        if inside is None:
            copy()
            return
        with b.when(inside):
            copy()
        with b.otherwise():
            zeros(b, target, goal, 0, length)

    def _reaches_over(self, axis: int) -> bool:
        return self.window.guarded[axis]

    def _inside(self, firsts: list[Expr], taps: list[Expr]) -> Expr | None:
        conditions = []
        for axis, k in enumerate(taps):
            if self._reaches_over(axis):
                at = firsts[axis] + k * self.window.dilations[axis]
                conditions += [op("ge", at, 0), op("lt", at, wrap(self.extents[axis]))]
        return both(*conditions) if conditions else None


def tile_matmul_rule(low: Lowering, node: Node) -> bool:
    """bf16 products with a constant right matrix, in tile registers."""
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
    """bf16 channels-last convolutions with constant weights, in tile registers."""
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
    channels = weights.shape[1]
    matrix = np.moveaxis(weights, (0, 1), (-1, -2)).reshape(-1, weights.shape[0])
    return _write(low, group, root, x, matrix, lambda image: WindowRows(
        image, window, x.shape[1:-1], channels, root.output.shape[:-1]))


def _takes(low: Lowering, group: Group, root: Node) -> bool:
    x, w = root.inputs[:2]
    return low.machine.tiles and low.machine.lanes == TILE_COLUMNS and x is not None \
        and w is not None and x.dtype is w.dtype is dt.bf16 and root.output.dtype is dt.f32 \
        and w in group.inputs and not any(same(d, 0) for d in (*root.output.shape, *x.shape)) \
        and all(v.shape == root.output.shape for v in group.outputs)


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
    array = pack(weights)
    storage = low.constant(array, TensorType(dt.bf16, array.shape))
    packed = ops.b.param("packed", dt.bf16, array.shape)
    ops.args.append(storage)
    TileProduct(ops.b, epilogue, rows, weights.shape[0], weights.shape[1],
                _index(group, root), packed).write(low, ops.args)
    finish(low, group.node, ops, wrap(out.type.numel) * (2 * weights.shape[0]))
    return True


def _index(group: Group, root: Node) -> Callable[[Expr, Expr], tuple[Expr, ...]]:
    """The output's index of a row and a column."""
    out = root.output
    if walks_as_one(group, root):
        lead, between = places(out)
        return lambda row, column: (*lead, row, *between, column)
    return lambda row, column: (*unflatten(row, out.shape[:-1]), column)
