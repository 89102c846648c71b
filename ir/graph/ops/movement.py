"""Movement: every output element is one input element at a mapped index."""

from __future__ import annotations

import numpy as np

from ... import dtype as dt
from ...algebra import at_least
from ...expr import Expr, both, cast, const, op, select, simplify_dim, wrap
from ..core import Dim, TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import (
    broadcast_index,
    flat_index,
    normal_axis,
    require_at_most,
    require_equal,
    require_one_of,
    require_positions,
    require_same_dtype,
    same,
    type_like,
    unflatten,
)


def _reshape_infer(ctx: OpContext):
    shape = ctx.attrs["shape"]
    old, new = ctx.type(0).numel, TensorType(ctx.type(0).dtype, shape).numel
    require_equal(ctx, old, new, f"cannot reshape {ctx.type(0)} to {list(shape)}")
    return [type_like(ctx.type(0), shape)]


def _reshape_body(ctx: OpContext, index):
    source, target = ctx.type(0).shape, ctx.out().shape
    # Leading and trailing dimensions that agree keep their index.
    head = 0
    while head < min(len(source), len(target)) and same(source[head], target[head]):
        head += 1
    tail = 0
    while (tail < min(len(source), len(target)) - head
           and same(source[-1 - tail], target[-1 - tail])):
        tail += 1
    s_end, t_end = len(source) - tail, len(target) - tail
    position = flat_index(index[head:t_end], target[head:t_end])
    middle = unflatten(position, source[head:s_end])
    return ctx.load(0, (*index[:head], *middle, *index[t_end:]))


define(OpDef(
    "reshape", "injective", _reshape_infer, body=_reshape_body, attrs={"shape": REQUIRED},
    reference=lambda ctx, x: x.reshape([int(d) for d in ctx.out().shape]),
    doc="The same elements in row-major order with another shape (a tuple of dimensions).",
))


def _transpose_infer(ctx: OpContext):
    perm, t = ctx.attrs["perm"], ctx.type(0)
    if sorted(perm) != list(range(t.rank)):
        raise ctx.error(f"perm {list(perm)} does not permute a tensor of rank {t.rank}")
    return [type_like(t, [t.shape[p] for p in perm])]


def _transpose_body(ctx: OpContext, index):
    source: list[Expr] = [const(0)] * len(index)
    for axis, p in enumerate(ctx.attrs["perm"]):
        source[p] = index[axis]
    return ctx.load(0, source)


define(OpDef(
    "transpose", "injective", _transpose_infer, body=_transpose_body, attrs={"perm": REQUIRED},
    reference=lambda ctx, x: np.transpose(x, ctx.attrs["perm"]),
    doc="Output dimension k is input dimension perm[k].",
))


def _expand_infer(ctx: OpContext):
    t, shape = ctx.type(0), ctx.attrs["shape"]
    if len(shape) < t.rank:
        raise ctx.error(f"cannot expand {t} to {list(shape)}")
    for d, wanted in zip(t.shape, shape[len(shape) - t.rank:], strict=True):
        if isinstance(d, int) and isinstance(wanted, int) and d not in (1, wanted):
            raise ctx.error(f"cannot expand {t} to {list(shape)}")
        require_one_of(ctx, d, (1, wanted))
    return [type_like(t, shape)]


define(OpDef(
    "expand", "injective", infer=_expand_infer,
    body=lambda ctx, index: ctx.load(
        0, broadcast_index(index, ctx.type(0).shape, ctx.out().shape)),
    reference=lambda ctx, x: np.broadcast_to(x, [int(d) for d in ctx.out().shape]),
    attrs={"shape": REQUIRED},
    doc="Broadcast to exactly `shape`.",
))


def _slice_infer(ctx: OpContext):
    t, a = ctx.type(0), ctx.attrs
    for axis, (start, size, step, extent) in enumerate(
            zip(a["starts"], a["sizes"], a["steps"], t.shape, strict=True)):
        if all(isinstance(v, int) for v in (start, size, step, extent)):
            last = start + (size - 1) * step
            if size > 0 and not (0 <= start < extent and 0 <= last < extent):
                raise ctx.error(f"slice of axis {axis} reads [{start}..{last}] of {extent}")
        elif not same(size, extent) or not same(start, 0):
            _require_inside(ctx, wrap(start), wrap(size), wrap(step), extent)
    return [type_like(t, a["sizes"])]


def _require_inside(ctx: OpContext, start: Expr, size: Expr, step: Expr, extent: Dim) -> None:
    """States that start, start + step, ..., if there are any, are positions of an axis."""
    last = start + (size - 1) * step
    inside: Expr = const(True, dt.bool_)
    for end in (start, last):
        if not at_least(end, 0):
            inside = both(inside, op("ge", end, 0))
        if not at_least(wrap(extent) - end, 1):
            inside = both(inside, op("lt", end, extent))
    if inside is not const(True, dt.bool_):
        ctx.require(op("or", op("le", size, 0), inside))


def _slice_reference(ctx: OpContext, x):
    picks = [int(s) + np.arange(int(n)) * int(k) for s, n, k in zip(
        ctx.attrs["starts"], ctx.attrs["sizes"], ctx.attrs["steps"], strict=True)]
    return x[np.ix_(*picks)] if picks else x


define(OpDef(
    "slice", "injective", _slice_infer, reference=_slice_reference,
    body=lambda ctx, index: ctx.load(0, [
        wrap(s) + i * wrap(k)
        for i, s, k in zip(index, ctx.attrs["starts"], ctx.attrs["steps"], strict=True)]),
    attrs={"starts": REQUIRED, "sizes": REQUIRED, "steps": REQUIRED},
    doc="Element i of an axis is starts + i * steps; one entry per axis, in range.",
))


def _concat_infer(ctx: OpContext):
    require_same_dtype(ctx, range(len(ctx.node.inputs)))
    types = ctx.types
    axis = normal_axis(ctx, ctx.attrs["axis"], types[0].rank)
    ctx.attrs["axis"] = axis
    total: Dim = 0
    shape = list(types[0].shape)
    for t in types:
        if t.rank != types[0].rank:
            raise ctx.error(f"concat of ranks {types[0].rank} and {t.rank}")
        for d in range(t.rank):
            if d != axis:
                require_equal(ctx, shape[d], t.shape[d],
                              f"concat of {types[0]} and {t} on axis {axis}")
                if isinstance(t.shape[d], int):
                    shape[d] = t.shape[d]
        total = simplify_dim(wrap(total) + wrap(t.shape[axis]))
    shape[axis] = total
    return [type_like(types[0], shape)]


def _concat_body(ctx: OpContext, index):
    axis = ctx.attrs["axis"]
    starts: list[Expr] = [const(0)]
    for t in ctx.types[:-1]:
        starts.append(starts[-1] + wrap(t.shape[axis]))

    def part(k: int) -> Expr:
        return ctx.load(k, (*index[:axis], index[axis] - starts[k], *index[axis + 1:]))

    position = index[axis]
    count = len(ctx.types)
    chosen: Expr | None = None
    for k in reversed(range(count)):
        if same(ctx.type(k).shape[axis], 0):
            continue
        inside = both(op("ge", position, starts[k]),
                      True if k + 1 == count else op("lt", position, starts[k + 1]))
        if inside is const(False, dt.bool_):
            continue
        chosen = part(k) if chosen is None else select(op("lt", position, starts[k + 1]),
                                                       part(k), chosen)
        if inside is const(True, dt.bool_):
            return part(k)
    return part(0) if chosen is None else chosen


define(OpDef(
    "concat", "injective", _concat_infer, body=_concat_body, attrs={"axis": REQUIRED},
    reference=lambda ctx, *xs: np.concatenate(xs, axis=ctx.attrs["axis"]),
    doc="The operands one after another along `axis`.",
))


def _pad_infer(ctx: OpContext):
    t, a = ctx.type(0), ctx.attrs
    if len(a["low"]) != t.rank or len(a["high"]) != t.rank:
        raise ctx.error(f"pad needs one amount per axis of {t}")
    if a["mode"] not in ("constant", "edge", "reflect", "wrap"):
        raise ctx.error(f"unknown padding mode {a['mode']!r}")
    if a["mode"] != "constant":
        for d, p, q in zip(t.shape, a["low"], a["high"], strict=True):
            if not (same(p, 0) and same(q, 0)):
                require_at_most(ctx, 1, d, f"nothing to copy along an axis of 0 elements of {t}")
    return [type_like(t, [simplify_dim(wrap(d) + wrap(p) + wrap(q))
                          for d, p, q in zip(t.shape, a["low"], a["high"], strict=True)])]


def _pad_body(ctx: OpContext, index):
    if ctx.attrs["mode"] != "constant":
        return _copied_pad(ctx, index)
    inside: Expr = const(True, dt.bool_)
    source: list[Expr] = []
    for i, d, low, high in zip(index, ctx.type(0).shape, ctx.attrs["low"], ctx.attrs["high"],
                               strict=True):
        position = i - wrap(low)
        if not at_least(position, 0):
            inside = both(inside, op("ge", position, 0))
        if not at_least(wrap(d) - position, 1) and not (same(high, 0)):
            inside = both(inside, op("lt", position, wrap(d)))
        source.append(position)
    fill = ctx.load(1, ()) if ctx.has(1) else cast(const(0), ctx.out().dtype)
    return select(inside, ctx.load(0, source), fill)


def _copied_pad(ctx: OpContext, index):
    """Padding with elements of the operand. Before, inside and behind the innermost padded axis
    are three loads, each at a linear index, where the padding is known to be short."""
    shape, mode = ctx.type(0).shape, ctx.attrs["mode"]
    low, high = ctx.attrs["low"], ctx.attrs["high"]
    source: list[Expr] = []
    last = None
    for axis, (i, d) in enumerate(zip(index, shape, strict=True)):
        position = i - wrap(low[axis])
        if not (same(low[axis], 0) and same(high[axis], 0)):
            if _short(mode, d, low[axis], high[axis]):
                last = axis
            position = _folded(mode, position, d)
        source.append(position)
    if last is None:
        return ctx.load(0, source)
    position, extent = index[last] - wrap(low[last]), wrap(shape[last])
    before, behind = {
        "edge": (const(0), extent - 1),
        "wrap": (position + extent, position - extent),
        "reflect": (position * -1, (extent - 1) * 2 - position),
    }[mode]

    def load(at: Expr) -> Expr:
        return ctx.load(0, (*source[:last], at, *source[last + 1:]))

    return select(op("lt", position, 0), load(before),
                  select(op("lt", position, extent), load(position), load(behind)))


def _short(mode: str, d: Dim, low: Dim, high: Dim) -> bool:
    """Whether padding repeats no element of a copy more than once."""
    most = wrap(d) - (1 if mode == "reflect" else 0)
    return at_least(low, 0) and at_least(high, 0) and (
        mode == "edge" or (at_least(most - wrap(low), 0) and at_least(most - wrap(high), 0)))


def _folded(mode: str, position: Expr, d: Dim) -> Expr:
    """The position in an axis of size d that padding at `position` copies."""
    if mode == "edge":
        return op("max", op("min", position, wrap(d) - 1), 0)
    if mode == "wrap":
        return position % wrap(d)
    # Reflection with period 2 * (d - 1), which also covers pads longer than the axis.
    period = op("max", (wrap(d) - 1) * 2, 1)
    folded = position % period
    return op("min", folded, period - folded) if not same(d, 1) else const(0)


def _pad_reference(ctx: OpContext, x, fill=None):
    low, high = ([int(v) for v in ctx.attrs[k]] for k in ("low", "high"))
    keep = tuple(slice(max(0, -a), n - max(0, -b)) for a, b, n in zip(low, high, x.shape,
                                                                     strict=True))
    widths = [(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True)]
    if ctx.attrs["mode"] == "constant":
        value = 0 if fill is None else fill
        return np.pad(x[keep], widths, constant_values=value)
    return np.pad(x[keep], widths, mode=ctx.attrs["mode"])


define(OpDef(
    "pad", "injective", _pad_infer, reference=_pad_reference, body=_pad_body,
    attrs={"low": REQUIRED, "high": REQUIRED, "mode": "constant"},
    doc="low/high elements added per axis (negative removes); modes constant (fill: scalar "
        "operand 1, else 0), edge, reflect, wrap.",
))


def _gather_infer(ctx: OpContext):
    t, indices = ctx.type(0), ctx.type(1)
    if not indices.dtype.is_integer:
        raise ctx.error(f"indices must be integers, not {indices.dtype}")
    axis = normal_axis(ctx, ctx.attrs["axis"], t.rank)
    ctx.attrs["axis"] = axis
    return [type_like(t, (*t.shape[:axis], *indices.shape, *t.shape[axis + 1:]))]


def wrapped(position: Expr, extent: Dim) -> Expr:
    """A possibly negative index counted from the end; an i64 expression."""
    position = cast(position, dt.i64)
    if at_least(position, 0):
        return position
    return select(op("lt", position, 0), position + wrap(extent), position)


def _gather_body(ctx: OpContext, index):
    axis, count = ctx.attrs["axis"], ctx.type(1).rank
    position = ctx.load(1, index[axis:axis + count])
    extent = ctx.type(0).shape[axis]
    return ctx.load(0, (*index[:axis], wrapped(position, extent), *index[axis + count:]))


define(OpDef(
    "gather", "injective", _gather_infer, body=_gather_body, attrs={"axis": 0},
    reference=lambda ctx, x, i: np.take(x, np.where(i < 0, i + x.shape[ctx.attrs["axis"]], i),
                                        axis=ctx.attrs["axis"]),
    doc="Rows of operand 0 along `axis` at the positions in operand 1 (negative from the end).",
))


def _gather_elements_body(ctx: OpContext, index):
    axis = ctx.attrs["axis"]
    position = wrapped(ctx.load(1, index), ctx.type(0).shape[axis])
    return ctx.load(0, (*index[:axis], position, *index[axis + 1:]))


def _gather_elements_infer(ctx: OpContext):
    t, indices = ctx.type(0), ctx.type(1)
    axis = ctx.attrs["axis"] = normal_axis(ctx, ctx.attrs["axis"], t.rank)
    require_positions(ctx, indices, t, axis)
    return [type_like(t, indices.shape)]


def _gather_elements_reference(ctx: OpContext, x, i):
    axis = ctx.attrs["axis"]
    grid = list(np.indices(i.shape))
    grid[axis] = np.where(i < 0, i + x.shape[axis], i)
    return x[tuple(grid)]


define(OpDef(
    "gather_elements", "injective", _gather_elements_infer, body=_gather_elements_body,
    reference=_gather_elements_reference, attrs={"axis": 0},
    doc="out[i, j] = x[indices[i, j], j] for axis 0, and so on.",
))


def _gather_nd_infer(ctx: OpContext):
    t, indices, b = ctx.type(0), ctx.type(1), ctx.attrs["batch_dims"]
    depth = indices.shape[-1]
    if not isinstance(depth, int) or depth + b > t.rank:
        raise ctx.error(f"gather_nd of {t} by {indices} with {b} batch dimensions")
    for d1, d2 in zip(t.shape[:b], indices.shape[:b], strict=True):
        require_equal(ctx, d1, d2, f"gather_nd of {t} by {indices}: batches differ")
    return [type_like(t, (*indices.shape[:-1], *t.shape[b + depth:]))]


def _gather_nd_body(ctx: OpContext, index):
    t, indices, b = ctx.type(0), ctx.type(1), ctx.attrs["batch_dims"]
    depth, lead = indices.shape[-1], indices.rank - 1
    picks = [wrapped(ctx.load(1, (*index[:lead], const(k))), t.shape[b + k])
             for k in range(depth)]  # type: ignore[arg-type]
    return ctx.load(0, (*index[:b], *picks, *index[lead:]))


define(OpDef(
    "gather_nd", "injective", _gather_nd_infer, body=_gather_nd_body, attrs={"batch_dims": 0},
    doc="Slices of operand 0 at the index tuples in the last axis of operand 1.",
))
