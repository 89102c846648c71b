"""Channels-last convolutions, ordinary and transposed, of any rank and in any number of groups.

Weights are packed at compile time. Where the width is known and padding is zero, tiles at the
left and right border leave out the taps that are outside; otherwise the input is copied once into
a buffer with borders.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from math import ceil, prod
from typing import Any

import numpy as np

from ...ir.expr import Expr, simplify_dim, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.channels_last import SUFFIX
from ...ir.graph.ops.shapes import same
from ..lower.generic import Group, materialise
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering
from .deep_conv import DeepLoops, deep_plans
from .depthwise import is_depthwise, write_depthwise
from .direct import DirectLoops, Packed, Place, spread_place
from .dot import F32, Dot, ahead_of, choose_dot
from .gemm import add_operand, finish, needed, operands, outer_value, places, walks_as_one
from .groups import Groups, pack_groups, share_vectors
from .microkernel import Epilogue
from .plans import SHARED_WEIGHTS, DeepDirect, Direct, convolution_text, direct_plans
from .tiles import Registers
from .window import (
    LONGEST_LINE,
    Window,
    bordered,
    borders,
    pad_copy,
    windows_of,
    within,
)

CUT_WINDOWS = 4
"""Windows up to which tiles at the borders have code of their own: with more, the code would be
long and a copy of the input with borders is small beside the output."""

SHUFFLED_ROWS = 14
"""Pixels of a tile whose inputs are shuffled."""


def conv_rule(low: Lowering, node: Node) -> bool:
    """conv_last and conv_transpose_last with constant weights and elementwise epilogue, where the
    machine has an inner step for their types."""
    group = Group(node)
    root = group.find("conv_last") or group.find("conv_transpose_last")
    if root is None:
        return False
    x, w = root.inputs
    assert x is not None and w is not None
    if w not in group.inputs or any(same(d, 0) for d in (*root.output.shape, *x.shape)):
        return False
    weights = outer_value(group, w).constant
    if weights is None or any(v.shape != root.output.shape for v in group.outputs):
        return False
    windows = windows_of(root, weights.shape[2:])
    if windows is None:
        return False
    if root.op == "conv_last" and is_depthwise(root, x, weights):
        return write_depthwise(low, node, group, root, x, w, weights, windows[0])
    dot = choose_dot(low.machine, x, w, root.output)
    return dot is not None and _write(low, node, group, root, dot, x, weights, windows)


def _write(low: Lowering, node: Node, group: Group, root: Node, dot: Dot, x: Value,
           weights: np.ndarray, windows: list[Window]) -> bool:
    lanes, out = low.machine.lanes, root.output
    weights = _by_groups(root, weights)
    count, features, channels = weights.shape[:3]
    groups = share_vectors(dot, lanes, count, channels, features)
    extents, batch, place = x.shape[1:-1], out.shape[0], spread_place
    if _is_pointwise(root, windows[0]) and walks_as_one(group, root):
        batch, extents, windows, place = 1, *_one_line(windows[0], out)
    known = all(isinstance(d, int) for w in windows for d in (extents[-1], w.pixels[-1], w.low[-1]))
    cut = known and root.attrs.get("fill", 0) == 0 and len(windows) <= CUT_WINDOWS \
        and windows[0].pixels[-1] <= LONGEST_LINE
    copied = any(any(w.guarded) for w in windows) and not cut
    ops = operands(low, group, root.op.removesuffix(SUFFIX),
                   needed(group, root, *([] if copied else [x])))
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    if lanes > 1 and not epilogue.vectorisable():
        return False
    spatial = [wrap(d) for d in extents]
    if copied:
        before, after = borders(windows, extents, root.attrs.get("high"))
        storage = pad_copy(low, materialise(low, group, x), before, after,
                           root.attrs.get("fill", 0))
        image = ops.b.param("image", x.dtype, (storage.type.numel,))
        ops.args.append(storage)
        spatial = bordered(extents, before, after)
        windows = [within(w, before) for w in windows]
    else:
        add_operand(low, group, ops, x)
        image = ops.buffers[x]
    # Taps at the borders are single: they must begin with a step of their own.
    merged = groups.blocks == 1 and not groups.shuffled and all(
        w.dilations[-1] == 1 and (channels % dot.group == 0 or not w.guarded[-1]) for w in windows)
    registers = Registers(lanes, low.machine.vector_registers)
    plans: Iterator[DeepDirect | Direct] = _plans(dot, groups, windows, merged, registers)
    if root.op == "conv_last" and dot is F32 and count == 1 and not copied:
        plans = chain(deep_plans(windows[0], extents, channels, features, registers), plans)
    plan = low.choose("convolution", convolution_text(group, root), plans) \
        if root.op == "conv_last" and count == 1 else next(plans)
    if isinstance(plan, DeepDirect):
        merged = False
    arrays = [pack_groups(dot, groups, weights[np.ix_(*map(range, weights.shape[:3]), *w.taps)],
                          plan.vectors * lanes, merged) for w in windows]
    array = arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(-1) for a in arrays])
    buffer = ops.b.param("packed", dot.packed, (array.size,))
    ops.args.append(low.constant(array, TensorType(dot.packed, array.shape)))
    bases = [sum(a.size for a in arrays[:k]) for k in range(len(arrays))]
    if isinstance(plan, DeepDirect):
        DeepLoops(ops.b, epilogue, plan, lanes, image, buffer, windows[0], wrap(batch), extents,
                  channels, features).write()
    else:
        DirectLoops(ops.b, epilogue, dot, groups, plan, lanes, image,
                    Packed(buffer, bases, ahead_of(array)), spatial,
                    [batch, *windows[0].pixels[:-1]], windows, merged, place).write()
    finish(low, node, ops, sum((_product(batch, *w.pixels, *w.size) for w in windows), wrap(0))
           * (2 * channels * features * count))
    return True


def _by_groups(root: Node, weights: np.ndarray) -> np.ndarray:
    """The weights as [groups, features, channels, window...]."""
    groups = root.attrs["groups"]
    if root.op == "conv_last":
        return weights.reshape(groups, -1, *weights.shape[1:])
    return weights.reshape(groups, -1, *weights.shape[1:]).swapaxes(1, 2)


def _is_pointwise(root: Node, window: Window) -> bool:
    return root.op == "conv_last" and all(k == s == 1 for k, s in zip(
        window.size, window.strides, strict=True)) and not any(window.guarded)


def _one_line(window: Window, out: Value) -> tuple[tuple[Any, ...], list[Window], Place]:
    """The pixels of a pointwise convolution's images as one line: (extents, windows, place)."""
    pixels = simplify_dim(_product(*out.shape[:-1]))
    line = Window(((0,),), (1,), (1,), (0,), (False,), (0,), (1,), (pixels,))
    before, behind = places(out)
    return (pixels,), [line], lambda window, n, outer, pixel: (*before, pixel, *behind)


def _plans(dot: Dot, groups: Groups, windows: list[Window], merged: bool,
           registers: Registers) -> Iterator[Direct]:
    """The plans for the windows of all groups, the cost model's first."""
    pixels, steps = windows[0].pixels[-1], 0
    for w in windows:
        taps = prod(w.size)
        if merged and taps:
            run = groups.together * groups.channels * w.size[-1]
            steps += taps // w.size[-1] * ceil(run / dot.group)
        else:
            steps += taps * groups.steps(dot)
    if groups.shuffled:  # One vector; registers for weights, a row and the lanes of its shuffle.
        size = groups.blocks * steps * registers.lanes * dot.packed.itemsize
        yield Direct(min(SHUFFLED_ROWS, registers.count - 4), 1, size <= SHARED_WEIGHTS)
        return
    yield from direct_plans(pixels if isinstance(pixels, int) else None,
                            groups.together * groups.features, steps, dot.packed.itemsize,
                            registers, groups.blocks)


def _product(*dims: Any) -> Expr:
    total: Expr = wrap(1)
    for d in dims:
        total = total * wrap(d)
    return total
