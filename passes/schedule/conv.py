"""Channels-last convolutions, ordinary and transposed, of any rank and in any number of groups.

Weights are packed at compile time when they are constant, else by a kernel of their own. Where the
width is known and padding is zero, tiles at the left and right border leave out the taps that are
outside; otherwise the input is copied once into a buffer with borders.
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
from .conv_weights import WeightPlaces, Weights, pack_at_run
from .deep_conv import DeepLoops, deep_plans
from .depthwise import is_depthwise, write_depthwise
from .direct import DirectLoops, Packed, Place, spread_place
from .dot import F32, Dot, ahead_of, choose_dot
from .gemm import finish, left_operand, needed, operands, places, walks_as_one
from .groups import Groups, pack_groups, share_vectors
from .microkernel import Epilogue
from .plans import SHARED_WEIGHTS, DeepDirect, Direct, convolution_text, direct_plans
from .tiles import Registers
from .window import Window, bordered_image, is_copied, line_window, windows_of

SHUFFLED_ROWS = 14
"""Pixels of a tile whose inputs are shuffled."""


def conv_rule(low: Lowering, node: Node) -> bool:
    """conv_last and conv_transpose_last with elementwise epilogue, where the machine has an inner
    step for their types; of those with a step of several elements, the ones with constant
    weights."""
    group = Group(node)
    root = group.find("conv_last") or group.find("conv_transpose_last")
    if root is None:
        return False
    x, w = root.inputs
    assert x is not None and w is not None
    if any(same(d, 0) for d in (*root.output.shape, *x.shape)) \
            or any(v.shape != root.output.shape for v in group.outputs):
        return False
    weights = Weights.of(group, w)
    windows = None if weights is None else windows_of(root, weights.shape[2:])
    if weights is None or windows is None:
        return False
    if root.op == "conv_last" and is_depthwise(root, x, weights):
        return write_depthwise(low, node, group, root, x, weights, windows[0])
    dot = choose_dot(low.machine, x, w, root.output)
    if dot is None or (weights.array is None and dot.group > 1):
        return False
    return _write(low, node, group, root, dot, x, weights, windows)


def _write(low: Lowering, node: Node, group: Group, root: Node, dot: Dot, x: Value,
           weights: Weights, windows: list[Window]) -> bool:
    lanes, out = low.machine.lanes, root.output
    count, features, channels = _by_groups(root, weights.shape)
    groups = share_vectors(dot, lanes, count, channels, features)
    extents, batch, place = x.shape[1:-1], out.shape[0], spread_place
    size = weights.shape[2:]
    if _is_pointwise(root, windows[0]) and walks_as_one(group, root):
        batch, extents, windows, place = 1, *_one_line(windows[0], out)
        size = windows[0].size
    copied = is_copied(root, windows, extents)
    ops = operands(low, group, root.op.removesuffix(SUFFIX),
                   needed(group, root, *([] if copied or dot.widened else [x])))
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    if lanes > 1 and not epilogue.vectorisable():
        return False
    if copied:
        image, spatial, windows = bordered_image(low, group, ops, root, x, windows, dot.widened)
    else:
        image, spatial = left_operand(low, group, ops, x, dot), [wrap(d) for d in extents]
    # Taps at the borders are single: they must begin with a step of their own.
    merged = groups.blocks == 1 and not groups.shuffled and all(
        w.dilations[-1] == 1 and (channels % dot.group == 0 or not w.guarded[-1]) for w in windows)
    registers = Registers(lanes, low.machine.vector_registers)
    plans: Iterator[DeepDirect | Direct] = _plans(dot, groups, windows, merged, registers)
    if root.op == "conv_last" and dot is F32 and count == 1 and not copied \
            and weights.array is not None:
        plans = chain(deep_plans(windows[0], extents, channels, features, registers), plans)
    plan = low.choose("convolution", convolution_text(group, root), plans) \
        if root.op == "conv_last" and count == 1 else next(plans)
    if weights.array is None:
        storage, bases = pack_at_run(
            low, materialise(low, group, weights.value),
            WeightPlaces(groups, size, root.op != "conv_last"), windows, plan.vectors * lanes)
        ahead = 0
    else:
        array, bases = _packed(root, dot, groups, weights.array, windows, plan.vectors * lanes,
                               merged and not isinstance(plan, DeepDirect))
        storage, ahead = low.constant(array, TensorType(dot.packed, array.shape)), ahead_of(array)
    buffer = ops.b.param("packed", dot.packed, (storage.type.numel,))
    ops.args.append(storage)
    if isinstance(plan, DeepDirect):
        DeepLoops(ops.b, epilogue, plan, lanes, image, buffer, windows[0], wrap(batch), extents,
                  channels, features).write()
    else:
        DirectLoops(ops.b, epilogue, dot, groups, plan, lanes, image,
                    Packed(buffer, bases, ahead), spatial, [batch, *windows[0].pixels[:-1]],
                    windows, merged, place).write()
    finish(low, node, ops, sum((_product(batch, *w.pixels, *w.size) for w in windows), wrap(0))
           * (2 * channels * features * count))
    return True


def _by_groups(root: Node, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(groups, features, channels) of weights of this shape."""
    groups, (lead, inner) = root.attrs["groups"], shape[:2]
    return (groups, lead // groups, inner) if root.op == "conv_last" \
        else (groups, inner, lead // groups)


def _packed(root: Node, dot: Dot, groups: Groups, weights: np.ndarray, windows: list[Window],
            width: int, merged: bool) -> tuple[np.ndarray, list[int]]:
    """Constant weights as the loops read them, and where those of each window begin."""
    split = weights.reshape(groups.count, -1, *weights.shape[1:])
    if root.op != "conv_last":
        split = split.swapaxes(1, 2)
    arrays = [pack_groups(dot, groups, split[np.ix_(*map(range, split.shape[:3]), *w.taps)],
                          width, merged) for w in windows]
    bases = [sum(a.size for a in arrays[:k]) for k in range(len(arrays))]
    return arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(-1) for a in arrays]), bases


def _is_pointwise(root: Node, window: Window) -> bool:
    return root.op == "conv_last" and all(k == s == 1 for k, s in zip(
        window.size, window.strides, strict=True)) and not any(window.guarded)


def _one_line(window: Window, out: Value) -> tuple[tuple[Any, ...], list[Window], Place]:
    """The pixels of a pointwise convolution's images as one line: (extents, windows, place)."""
    pixels = simplify_dim(_product(*out.shape[:-1]))
    before, behind = places(out)
    return (pixels,), [line_window(pixels)], lambda window, n, outer, pixel: (
        *before, pixel, *behind)


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
