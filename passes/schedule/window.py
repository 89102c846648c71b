"""The geometry of convolutions on channels-last images, and copies of images with borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd
from typing import Any

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import Const, Expr, const, op, simplify_dim, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import same
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer
from ...ir.program import Storage
from ..lower.generic import Group, materialise
from ..lower.lowering import Lowering
from .copies import copy, fill
from .gemm import Operands, RowBlock, row_blocks

CUT_WINDOWS = 4
"""Windows up to which tiles at the borders have code of their own: with more, the code would be
long and a copy of the input with borders is small beside the output."""

LONGEST_LINE = 1 << 16
"""Pixels of a line up to which its tiles at the borders are told apart, one by one."""


@dataclass(frozen=True)
class Window:
    """The windows of some results, spatial axes outermost first: result q of an axis reads elements
    q * stride + k * dilation - low of the image, for `size` values of k. Where `guarded`, some of
    them are outside. The results are those at first, first + spread, ... of the output, `pixels`
    of them; tap k is weight taps[k] of the operator's window."""

    taps: tuple[tuple[int, ...], ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[Any, ...]
    guarded: tuple[bool, ...]
    first: tuple[int, ...]
    spread: tuple[int, ...]
    pixels: tuple[Any, ...]

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(map(len, self.taps))

    @property
    def rank(self) -> int:
        return len(self.taps)


def windows_of(root: Node, size: Sequence[int]) -> list[Window] | None:
    """The windows of a conv_last or conv_transpose_last with windows of `size`; None where the
    padding of a transposed one is not known."""
    a, n = root.attrs, len(size)
    x, out = root.inputs[0], root.output
    assert x is not None
    extents, pixels = x.shape[1:-1], out.shape[1:-1]
    if root.op == "conv_last":
        guarded = tuple(not (same(p, 0) and same(q, 0))
                        for p, q in zip(a["low"], a["high"], strict=True))
        return [Window(tuple(tuple(range(k)) for k in size), a["strides"], a["dilations"],
                       a["low"], guarded, (0,) * n, (1,) * n, pixels)]
    if not all(isinstance(p, int) for p in a["low"]):
        return None
    axes = [_phases(*given) for given in zip(size, a["strides"], a["dilations"], a["low"],
                                             extents, pixels, strict=True)]
    found = [Window(*zip(*phases, strict=True)) for phases in product(*axes)]
    return [w for w in found if not any(same(n, 0) for n in w.pixels)]


def _phases(size: int, stride: int, dilation: int, low: int, extent: Any, pixels: Any):
    """One axis of a transposed convolution as `stride` ordinary ones: the fields of a Window.

    Result stride * q + r takes tap k from element (stride * q + r + low - k * dilation) / stride,
    if that is whole (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional
    layer?"). Those k are every (stride / g)-th, g = gcd(stride, dilation), and from one to the next
    the element moves by dilation / g.
    """
    g = gcd(stride, dilation)
    found = []
    for r in range(stride):
        taps = [k for k in range(size) if (r + low - k * dilation) % stride == 0]
        # In the order of the elements, the last tap reads the first of them.
        taps.reverse()
        begin = (r + low - taps[0] * dilation) // stride if taps else 0
        count = simplify_dim(op("max", (wrap(pixels) - r + (stride - 1)) // stride, 0))
        last = begin + (len(taps) - 1) * (dilation // g)
        inside = isinstance(count, int) and isinstance(extent, int) and begin >= 0 \
            and count - 1 + last < extent
        found.append((tuple(taps), 1, dilation // g, -begin, bool(taps) and not inside, r, stride,
                      count))
    return found


def line_window(pixels: Any) -> Window:
    """Windows of one element of a line each."""
    return Window(((0,),), (1,), (1,), (0,), (False,), (0,), (1,), (pixels,))


def is_copied(root: Node, windows: Sequence[Window], extents: Sequence[Any]) -> bool:
    """Whether windows that reach out of the image need a copy of it with borders, because its tiles
    at the borders cannot leave out what is outside."""
    known = all(isinstance(d, int) for w in windows for d in (extents[-1], w.pixels[-1], w.low[-1]))
    cut = known and root.attrs.get("fill", 0) == 0 and len(windows) <= CUT_WINDOWS \
        and windows[0].pixels[-1] <= LONGEST_LINE
    return any(any(w.guarded) for w in windows) and not cut


def bordered_image(low: Lowering, group: Group, ops: Operands, root: Node, x: Value,
                   windows: Sequence[Window], to: DType | None = None,
                   ) -> tuple[Buffer, list[Expr], list[Window]]:
    """A parameter that holds `x` with borders, in the element type `to` when given; its extents,
    and the windows on it."""
    extents = x.shape[1:-1]
    before, after = borders(windows, extents, root.attrs.get("high"))
    storage = pad_copy(low, materialise(low, group, x), before, after, root.attrs.get("fill", 0),
                       to)
    ops.args.append(storage)
    image = ops.b.param("image", storage.type.dtype, (storage.type.numel,))
    return image, bordered(extents, before, after), [within(w, before) for w in windows]


def borders(windows: Sequence[Window], extents: Sequence[Any], high: Sequence[Any] | None,
            ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Elements that a copy of the image needs before and after it so that all windows are inside;
    `high` is the padding of a convolution."""
    before, after = [], []
    for axis, extent in enumerate(extents):
        least: Any = 0
        most: Any = 0 if high is None else high[axis]
        for w in windows:
            least = simplify_dim(op("max", wrap(w.low[axis]), least))
            if high is None:
                last = (wrap(w.pixels[axis]) - 1) * w.strides[axis] \
                    + (w.size[axis] - 1) * w.dilations[axis] - w.low[axis]
                most = op("max", last - wrap(extent) + 1, wrap(most))
        before.append(least)
        after.append(simplify_dim(op("max", wrap(most), 0)))
    return tuple(before), tuple(after)


def within(window: Window, before: Sequence[Any]) -> Window:
    """The window on an image that has `before` more elements at the start of each axis, and as many
    at the end as needed."""
    low = tuple(simplify_dim(wrap(p) - wrap(q)) for p, q in zip(window.low, before, strict=True))
    return replace(window, low=low, guarded=(False,) * window.rank)


def bordered_blocks(window: Window, extent: Expr, limit: int,
                    ) -> list[tuple[RowBlock, list[list[int]] | None]]:
    """Row blocks of a line, each with the rows that every tap of the line may read, or None where
    all may: tiles at the borders are blocks of their own."""
    blocks = row_blocks(window.pixels[-1], limit)
    if not window.guarded[-1] or not isinstance(extent, Const):
        return [(block, None) for block in blocks]
    result: list[tuple[RowBlock, list[list[int]] | None]] = []
    for block in blocks:
        assert isinstance(block.start, Const)
        for q in range(int(block.count)):
            first = block.start.value + q * block.height
            rows = [[r for r in range(block.height)
                     if 0 <= (first + r) * window.strides[-1] + k * window.dilations[-1]
                     - window.low[-1] < extent.value] for k in range(window.size[-1])]
            whole = all(len(x) == block.height for x in rows)
            last = result[-1] if result else None
            if whole and last is not None and last[1] is None \
                    and last[0].height == block.height:
                last[0].count += 1
            else:
                result.append((RowBlock(const(first), block.height, 1), None if whole else rows))
    return result


def bordered(extents: Sequence[Any], before: Sequence[Any], after: Sequence[Any]) -> list[Expr]:
    """The extents of an image with borders."""
    return [wrap(d) + wrap(p) + wrap(q) for d, p, q in zip(extents, before, after, strict=True)]


def pad_copy(low: Lowering, source: Storage, before: Sequence[Any], after: Sequence[Any],
             value: float, to: DType | None = None) -> Storage:
    """Launches a copy of [N, spatial..., C] with `value` around the spatial axes, in the element
    type `to` when given."""
    n, *spatial, c = source.type.shape
    grown = bordered(spatial, before, after)
    dtype = source.type.dtype
    type = TensorType(to or dtype, (n, *grown, c))
    target = low.temporary(type, "padded")
    b = Builder(low.kernel_name("pad"))
    x = b.param("x", dtype, (source.type.numel,))
    y = b.param("y", type.dtype, (type.numel,))
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
    low.launch(b.kernel(1, 0, type.numel * type.dtype.itemsize
                        + source.type.numel * dtype.itemsize),
               [source, target])
    return target
