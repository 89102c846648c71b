"""Channels-last convolutions: register tiles of pixels x output channels, and depthwise rows.

Weights are packed at compile time to [panels, window * C, panel width]. Where the width is known
and padding is zero, tiles at the left and right border leave out the taps that are outside, each
with code of its own; lines above and below are skipped. Otherwise the input is copied once into a
buffer with borders. Depthwise windows are cut at the borders pixel by pixel, because they are
short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import Const, Expr, both, broadcast, cast, const, op, var, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import same
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ...ir.program import Storage
from ..lower.generic import Group, materialise
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering
from .dot import Dot, ahead_of, choose_dot
from .gemm import (
    TASK_FLOPS,
    RowBlock,
    add_operand,
    finish,
    needed,
    operands,
    outer_value,
    row_blocks,
    store_tile,
)
from .microkernel import Epilogue, accumulators
from .tiles import Registers, Tile, choose

SHARED_WEIGHTS = 512 * 1024
"""Bytes of packed weights up to which all panels of a pixel row run in one task: they stay in a
level-2 cache."""


LONGEST_LINE = 1 << 16
"""Pixels of a line up to which its tiles at the borders are told apart, one by one."""


NEAR_WEIGHTS = 16 * 1024
"""Bytes of depthwise weights up to which a tile of pixels takes all channels in turn: they stay in
a level-1 cache, and lines are read from end to end."""


@dataclass
class Window:
    """A convolution's geometry, spatial axes outermost first."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[Any, ...]
    high: tuple[Any, ...]

    @property
    def padded(self) -> bool:
        return any(not same(p, 0) for p in (*self.low, *self.high))


def find_window(root: Node, weights: Value) -> Window | None:
    size = weights.shape[2:]
    if not all(isinstance(k, int) for k in size):
        return None
    a = root.attrs
    return Window(size, a["strides"], a["dilations"], a["low"], a["high"])  # type: ignore[arg-type]


def pad_copy(low: Lowering, source: Storage, before: Sequence[Any], after: Sequence[Any],
             value: float) -> Storage:
    """Launches a copy of [N, spatial..., C] with `value` around the spatial axes."""
    n, *spatial, c = source.type.shape
    grown = [wrap(d) + wrap(p) + wrap(q) for d, p, q in zip(spatial, before, after, strict=True)]
    dtype = source.type.dtype
    type = TensorType(dtype, (n, *grown, c))
    target = low.temporary(type, "padded")
    b = Builder(low.kernel_name("pad"))
    x = b.param("x", dtype, (source.type.numel,))
    y = b.param("y", dtype, (type.numel,))
    lanes = low.machine.lanes
    outer = [wrap(n), *grown[:-1]]
    rows: Expr = wrap(1)
    for e in outer:
        rows = rows * e
    wide, narrow = grown[-1] * wrap(c), wrap(spatial[-1]) * wrap(c)
    head = wrap(before[-1]) * wrap(c)
    with b.loop("r", rows, "parallel", grain=64) as r:
        inside: Expr = const(True, dt.bool_)
        position, rest = wrap(0), r
        scale: Expr = wrap(1)
        for axis in reversed(range(1, len(outer))):
            i, rest = rest % outer[axis], rest // outer[axis]
            at = i - wrap(before[axis - 1])
            inside = op("and", inside, op("and", op("ge", at, 0),
                                          op("lt", at, wrap(spatial[axis - 1]))))
            position = position + at * scale
            scale = scale * wrap(spatial[axis - 1])
        source_row = b.let("from", (rest * scale + position) * narrow)
        row = b.let("to", r * wide)
        with b.when(inside):
            fill(b, y, row, head, lanes, value)
            copy(b, x, source_row, y, row + head, narrow, lanes)
            fill(b, y, row + head + narrow, wide - head - narrow, lanes, value)
        with b.otherwise():
            fill(b, y, row, wide, lanes, value)
    low.launch(b.kernel(1, 0, (type.numel + source.type.numel) * dtype.itemsize),
               [source, target])
    return target


def _runs(b: Builder, length: Expr, lanes: int, write) -> None:
    """Calls write(offset, lanes, count) over `length` elements."""
    if length is const(0):
        return
    whole = length // lanes
    if whole is not const(0):
        with b.loop("v", whole) as v:
            write(v * lanes, lanes, None)
    rest = length - whole * lanes
    if rest is not const(0):
        with b.when(op("gt", rest, 0)):
            write(whole * lanes, lanes, rest)


def copy(b: Builder, x: Buffer, source: Expr, y: Buffer, target: Expr, length: Expr,
         lanes: int) -> None:
    """y[target...] = x[source...] for `length` contiguous elements."""
    _runs(b, length, lanes, lambda at, n, count: b.store(
        y, (target + at,), load(x, (source + at,), n, count), count))


def fill(b: Builder, y: Buffer, target: Expr, length: Expr, lanes: int, value: float) -> None:
    """y[target...] = value for `length` contiguous elements."""
    zero = broadcast(const(value, y.dtype), lanes)
    _runs(b, length, lanes, lambda at, n, count: b.store(y, (target + at,), zero, count))


def conv_rule(low: Lowering, node: Node) -> bool:
    """f32 conv_last with constant weights, one group or depthwise, with elementwise epilogue."""
    group = Group(node)
    root = group.find("conv_last")
    if root is None:
        return False
    x, w = root.inputs
    assert x is not None and w is not None
    if w not in group.inputs or any(same(d, 0) for d in root.output.shape):
        return False
    weights = outer_value(group, w).constant
    window = find_window(root, w)
    if weights is None or window is None or any(v.shape != root.output.shape
                                                for v in group.outputs):
        return False
    groups, features = root.attrs["groups"], weights.shape[0]
    dot = choose_dot(low.machine, x, w, root.output)
    if groups == 1 and dot is not None:
        return _dense(low, node, group, root, dot, x, w, weights, window)
    plane = int(np.prod(window.size))
    floats = x.dtype is dt.f32 and root.output.dtype is dt.f32
    # Sums of 8-bit products stay exact in f32 below 2**24.
    exact = x.dtype in (dt.u8, dt.i8) and root.output.dtype is dt.i32 and plane * 2**15 < 2**24
    if groups == features == x.shape[-1] and weights.shape[1] == 1 and len(window.size) <= 2 \
            and (floats or exact):
        return _depthwise(low, node, group, root, x, w, weights, window)
    return False


def _dense(low: Lowering, node: Node, group: Group, root: Node, dot: Dot, x: Value, w: Value,
           weights: np.ndarray, window: Window) -> bool:
    lanes = low.machine.lanes
    out = root.output
    features = weights.shape[0]
    width_out = out.shape[-2]
    registers = Registers(lanes, low.machine.vector_registers)
    tile = choose(width_out if isinstance(width_out, int) else None, features, registers)
    width = tile.vectors * lanes
    cut = window.padded and root.attrs["fill"] == 0 and isinstance(width_out, int) \
        and width_out <= LONGEST_LINE \
        and isinstance(x.shape[-2], int) and all(isinstance(p, int) and p >= 0 for p in window.low)
    padded = window.padded and not cut
    ops = operands(low, group, "conv", needed(group, root, *([] if padded else [x])))
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    if lanes > 1 and not epilogue.vectorisable():
        return False
    b = ops.b
    spatial = [wrap(d) for d in x.shape[1:-1]]
    if padded:
        storage = pad_copy(low, materialise(low, group, x), window.low, window.high,
                           root.attrs["fill"])
        spatial = [d + wrap(p) + wrap(q) for d, p, q in
                   zip(spatial, window.low, window.high, strict=True)]
        image = b.param("image", x.dtype, (storage.type.numel,))
        ops.args.append(storage)
        zeros = (0,) * len(spatial)
        window = Window(window.size, window.strides, window.dilations, zeros, zeros)
    else:
        add_operand(low, group, ops, x)
        image = ops.buffers[x]
    # [window..., C, F]: a run of the reduction is what is contiguous in a line of pixels.
    k_last = np.moveaxis(weights, (0, 1), (-1, -2))
    run = weights.shape[1] * (window.size[-1] if _merges(window, wrap(x.shape[-1]), dot) else 1)
    array = dot.pack(k_last.reshape(-1, run, features), width)
    packed_storage = low.constant(array, TensorType(dot.packed, array.shape))
    packed = b.param("packed", dot.packed, (packed_storage.type.numel,))
    ops.args.append(packed_storage)
    _dense_loops(b, epilogue, dot, window, tile, lanes, image, packed, spatial, x.shape[-1],
                 features, out, array)
    flops = wrap(out.type.numel) * (2 * weights[0].size)
    finish(low, node, ops, flops)
    return True


def _merges(window: Window, channels: Expr, dot: Dot) -> bool:
    """Whether the taps of a line are one run of the reduction: they follow each other in memory,
    and no group of products lies across two of them."""
    return window.dilations[-1] == 1 and (
        dot.group == 1 or isinstance(channels, Const) and channels.value % dot.group == 0)


def _dense_loops(b: Builder, epilogue: Epilogue, dot: Dot, window: Window, tile: Tile,
                 lanes: int, image: Buffer, packed: Buffer, spatial: list[Expr], channels: Any,
                 features: int, out: Value, array: np.ndarray) -> None:
    width = tile.vectors * lanes
    panels = -(-features // width)
    c = wrap(channels)
    taps = window.size
    depth = wrap(array.shape[1] * array.shape[2])
    n, *sizes, _ = out.shape
    lines = [wrap(n), *(wrap(d) for d in sizes[:-1])]
    rows: Expr = wrap(1)
    for e in lines:
        rows = rows * e
    blocks = _bordered_blocks(window, spatial[-1], sizes[-1], tile.rows)
    share = array.nbytes <= SHARED_WEIGHTS
    work = 2 * (sizes[-1] if isinstance(sizes[-1], int) else 64) * width * (
        int(np.prod(taps)) * (channels if isinstance(channels, int) else 64))
    work *= panels if share else 1
    tasks = rows if share else rows * panels
    with b.loop("t", tasks, "parallel", grain=max(1, TASK_FLOPS // max(1, work))) as t:
        line = b.let("line", t if share else t % rows)

        def panel_body(panel: Expr) -> None:
            index, rest = [], line
            for e in reversed(lines[1:]):
                index.append(b.let("o", rest % e))
                rest = rest // e
            image_n = b.let("n", rest)
            outer = index[::-1]
            for block, taps_of in blocks:
                with b.loop("q", block.count) as q:
                    first = b.let("first", block.start + q * block.height)
                    _conv_tile(b, epilogue, dot, Tile(block.height, tile.vectors), lanes, window,
                               image, packed, spatial, c, depth, image_n, outer, first,
                               panel, features, taps_of, ahead_of(array))

        if share:
            with b.loop("p", panels) as panel:
                panel_body(panel)
        else:
            panel_body(b.let("p", t // rows))


def _conv_tile(b: Builder, epilogue: Epilogue, dot: Dot, tile: Tile, lanes: int, window: Window,
               image: Buffer, packed: Buffer, spatial: list[Expr], c: Expr, depth: Expr,
               n: Expr, outer: list[Expr], first: Expr, panel: Expr, features: int,
               rows_of: list[list[int]] | None, ahead: int) -> None:
    """One tile. `rows_of`, for a tile at a border, lists for each tap of the line the rows whose
    pixel is inside."""
    width = tile.vectors * lanes
    acc = accumulators(b, tile, lanes, dot.accumulator)
    step = window.strides[-1]
    merged = _merges(window, c, dot)
    run = c * window.size[-1] if merged else c
    extents: list[Any] = list(window.size[:-1])
    base_w = b.let("wb", panel * depth * width)

    def taps(index: list[Expr], remaining: list[Any]) -> None:
        if remaining:
            with b.loop("k", remaining[0]) as k:
                taps([*index, k], remaining[1:])
            return
        at = n
        number: Expr = const(0)
        inside: Expr = const(True, dt.bool_)
        for axis, k in enumerate(index):
            y = outer[axis] * window.strides[axis] + k * window.dilations[axis] \
                - wrap(window.low[axis])
            if not (same(window.low[axis], 0) and same(window.high[axis], 0)):
                inside = both(inside, op("ge", y, 0), op("lt", y, spatial[axis]))
            at = at * spatial[axis] + y
            number = number * window.size[axis] + k
        line = b.let("at", (at * spatial[-1] + first * step - wrap(window.low[-1])) * c)
        if inside is const(True, dt.bool_):
            line_taps(line, number)
            return
        with b.when(inside):
            line_taps(line, number)

    def line_taps(line: Expr, number: Expr) -> None:
        if rows_of is not None:
            for kw, rows in enumerate(rows_of):
                if rows:
                    one_tap(line, number, const(kw), rows)
            return
        if merged:
            weight = b.let("wk", base_w + number * dot.steps(run) * width)
            dot.accumulate(b, acc, tile, lanes, run, lambda r: (image, line + r * step * c),
                           packed, weight, ahead=ahead)
            return
        with b.loop("k", window.size[-1]) as kw:
            one_tap(line, number, kw, None)

    def one_tap(line: Expr, number: Expr, kw: Expr, rows: list[int] | None) -> None:
        # In a merged run the taps of a line follow each other without gaps.
        if merged and dot.group == 1:
            weight = b.let("wk", base_w + (number * run + kw * c) * width)
        else:
            weight = b.let("wk", base_w + (number * window.size[-1] + kw) * dot.steps(c) * width)
        tap = b.let("tap", line + kw * window.dilations[-1] * c)
        dot.accumulate(b, acc, tile, lanes, c, lambda r: (image, tap + r * step * c),
                       packed, weight, rows, ahead)

    taps([], extents)
    store_tile(b, epilogue, tile, lanes, acc, panel, wrap(features), width,
               lambda r, column: (n, *outer, first + r, column))


def _bordered_blocks(window: Window, extent: Expr, columns: Any, limit: int):
    """Row blocks of a line, each with the rows that every tap of the line may read, or None where
    all may: tiles at the borders are blocks of their own."""
    blocks = row_blocks(columns, limit)
    if same(window.low[-1], 0) and same(window.high[-1], 0) or not isinstance(extent, Const):
        return [(block, None) for block in blocks]
    result: list[tuple[RowBlock, list[list[int]] | None]] = []
    for block in blocks:
        assert isinstance(block.start, Const)
        for q in range(int(block.count)):
            first = block.start.value + q * block.height
            rows = [[r for r in range(block.height)
                     if 0 <= (first + r) * window.strides[-1] + kw * window.dilations[-1]
                     - window.low[-1] < extent.value] for kw in range(window.size[-1])]
            whole = all(len(x) == block.height for x in rows)
            last = result[-1] if result else None
            if whole and last is not None and last[1] is None \
                    and last[0].height == block.height:
                last[0].count += 1
            else:
                result.append((RowBlock(const(first), block.height, 1), None if whole else rows))
    return result


# Depthwise ------------------------------------------------------------------------------------


def _depthwise(low: Lowering, node: Node, group: Group, root: Node, x: Value, w: Value,
               weights: np.ndarray, window: Window) -> bool:
    lanes = low.machine.lanes
    out = root.output
    channels = weights.shape[0]
    spatial = [wrap(d) for d in x.shape[1:-1]]
    # Borders are skipped, so that only zeros may be there.
    bordered = window.padded and root.attrs["fill"] != 0
    ops = operands(low, group, "depthwise", needed(group, root, *([] if bordered else [x])))
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    if lanes > 1 and not epilogue.vectorisable():
        return False
    b = ops.b
    if bordered:
        source = pad_copy(low, materialise(low, group, x), window.low, window.high,
                          root.attrs["fill"])
        image = b.param("image", x.dtype, (source.type.numel,))
        ops.args.append(source)
        spatial = [d + wrap(p) + wrap(q) for d, p, q in
                   zip(spatial, window.low, window.high, strict=True)]
        zeros = (0,) * len(spatial)
        window = Window(window.size, window.strides, window.dilations, zeros, zeros)
    else:
        add_operand(low, group, ops, x)
        image = ops.buffers[x]
    blocks = -(-channels // lanes)
    # Vectors hold 8-bit factors as f32, whose sums are exact; scalars need not.
    kind = weights_type(w, lanes)
    array = np.zeros((int(np.prod(window.size)), blocks * lanes), kind.numpy)
    array[:, :channels] = weights.reshape(channels, -1).T
    storage = low.constant(array, TensorType(kind, array.shape))
    packed = b.param("packed", kind, (array.size,))
    ops.args.append(storage)
    lift = len(window.size) == 1
    if lift:  # a 1-D window is one row
        window = Window((1, *window.size), (1, *window.strides), (1, *window.dilations),
                        (0, *window.low), (0, *window.high))
    n = wrap(x.shape[0])
    height = wrap(1) if lift else spatial[0]
    wide = spatial[-1]
    out_h = wrap(1) if lift else wrap(out.shape[1])
    plan = DepthwisePlan(b, epilogue, window, lanes, image, packed, channels, blocks,
                         height, wide, lift)
    rows = n * out_h
    columns = out.shape[-2]
    per_row = (columns if isinstance(columns, int) else 64) * channels * 2 * array.shape[0]
    with b.loop("t", rows, "parallel", grain=max(1, TASK_FLOPS // max(1, per_row))) as t:
        plan.row(b.let("n", t // out_h), b.let("oy", t % out_h), columns)
    finish(low, node, ops, wrap(out.type.numel) * (2 * array.shape[0]))
    return True


def weights_type(weights: Value, lanes: int) -> DType:
    """The type of packed depthwise weights."""
    return weights.dtype if lanes == 1 else dt.f32


@dataclass
class DepthwisePlan:
    """What a depthwise kernel's loops share."""

    b: Builder
    epilogue: Epilogue
    window: Window
    lanes: int
    image: Buffer
    packed: Buffer
    channels: int
    blocks: int
    height: Expr
    wide: Expr
    lift: bool

    def row(self, n: Expr, oy: Expr, columns: Any) -> None:
        """One row of output pixels: border pixels one by one, the rest in tiles."""
        b, w = self.b, self.window
        stride, span = w.strides[1], (w.size[1] - 1) * w.dilations[1]
        total = wrap(columns)
        left = op("min", (wrap(w.low[1]) + (stride - 1)) // stride, total)
        # The last pixel whose window ends inside.
        inside = (self.wide + wrap(w.low[1]) - span - 1) // stride + 1
        right = op("max", op("min", inside, total), left)
        left, right = b.let("left", left), b.let("right", right)
        top = b.let("top", oy * w.strides[0] - wrap(w.low[0]))
        if self.packed.shape[0] * self.packed.dtype.itemsize <= NEAR_WEIGHTS:
            self._pixels(total, left, right, lambda *where: self._channels(
                lambda v, count: self._tile(n, oy, top, v, count, *where)))
        else:
            self._channels(lambda v, count: self._pixels(
                total, left, right, lambda *where: self._tile(n, oy, top, v, count, *where)))

    def _channels(self, write: Callable[[Expr, Expr | None], None]) -> None:
        """write(vector, number of channels in it if they do not fill it) for all channels."""
        full, rest = divmod(self.channels, self.lanes)
        if full:
            with self.b.loop("v", full) as v:
                write(v, None)
        if rest:
            write(wrap(full), wrap(rest))

    def _pixels(self, total: Expr, left: Expr, right: Expr,
                write: Callable[[Expr, int, bool], None]) -> None:
        """write(first pixel, how many, whether at a border) for a line."""
        b, tile = self.b, 6
        with b.loop("x", left) as ox:
            write(ox, 1, True)
        middle = right - left
        with b.loop("x", middle // tile) as q:
            write(b.let("ox", left + q * tile), tile, False)
        with b.loop("x", middle % tile) as q:
            write(b.let("ox", left + middle // tile * tile + q), 1, False)
        with b.loop("x", total - right) as q:
            write(b.let("ox", right + q), 1, True)

    def _tile(self, n, oy, top, v, count, ox: Expr, rows: int, cut: bool) -> None:
        b, w, lanes = self.b, self.window, self.lanes
        whole = self.packed.dtype is not dt.f32
        wide = dt.i32 if whole else dt.f32
        acc = accumulators(b, Tile(rows, 1), lanes, wide)
        start = b.let("sx", ox * w.strides[1] - wrap(w.low[1]))
        with b.loop("k", w.size[0]) as ky:
            y = b.let("y", top + ky * w.dilations[0])
            with b.when(op("and", op("ge", y, 0), op("lt", y, self.height))):
                base = b.let("base", ((n * self.height + y) * self.wide + start) * self.channels
                             + v * lanes)

                def tap(kx: Expr, ky=ky, base=base) -> None:
                    weight = b.let("w", cast(load(
                        self.packed, ((ky * w.size[1] + kx) * (self.blocks * lanes) + v * lanes,),
                        lanes), wide))
                    for r in range(rows):
                        at = base + (r * w.strides[1] + kx * w.dilations[1]) * self.channels
                        value = cast(load(self.image, (at,), lanes, count), wide)
                        total = acc[r, 0] + value * weight if whole else op(
                            "fma", value, weight, acc[r, 0])
                        b.store(acc, (r, 0), total)

                if not cut:
                    for kx in range(w.size[1]):
                        tap(const(kx))
                else:
                    with b.loop("k", w.size[1]) as kx:
                        at = start + kx * w.dilations[1]
                        with b.when(op("and", op("ge", at, 0), op("lt", at, self.wide))):
                            tap(kx)
        column = var("column", extent=wrap(self.channels))
        for r in range(rows):
            index = (n, ox + r, column) if self.lift else (n, oy, ox + r, column)
            result = acc[r, 0] if whole else cast(acc[r, 0], self.epilogue.root.dtype, "exact")
            self.epilogue.store(index, column, v * lanes, lanes, result, count)

