"""Rules that remove and merge data movement, and reductions beside it. All are exact, but that
merged sums add in another order."""

from __future__ import annotations

import numpy as np

from ...ir.algebra import at_least
from ...ir.expr import simplify_dim, wrap
from ...ir.graph.core import Dim, Graph, Node, Value
from ...ir.graph.definition import lookup
from ...ir.graph.ops.shapes import same
from .permute import moves_nothing, reshape_groups, sink_below_reshape
from .rewrite import Replacement, only_user, producer, result_type, rule, scalar


def _plus(a: Dim, b: Dim) -> Dim:
    return simplify_dim(wrap(a) + wrap(b))


def _times(a: Dim, b: Dim) -> Dim:
    return simplify_dim(wrap(a) * wrap(b))


def _is(d: Dim, number: int) -> bool:
    return isinstance(d, int) and d == number


@rule("reshape", "expand", "slice", "pad", "transpose")
def identity_movement(node: Node, graph: Graph) -> Replacement:
    """Movement that moves nothing."""
    x, a = node.inputs[0], node.attrs
    if x is None or x.shape != node.output.shape:
        return None
    if node.op == "slice" and not all(_is(s, 0) and (_is(k, 1) or _is(d, 1)) for s, k, d in zip(
            a["starts"], a["steps"], x.shape, strict=True)):
        return None
    if node.op == "pad" and not all(_is(p, 0) for p in (*a["low"], *a["high"])):
        return None
    if node.op == "transpose" and list(a["perm"]) != sorted(a["perm"]):
        return None
    return x


@rule("reshape")
def reshape_of_reshape(node: Node, graph: Graph) -> Replacement:
    inner = producer(node, 0, "reshape")
    if inner is None:
        return None
    return graph.add("reshape", [inner.inputs[0]], {"shape": node.attrs["shape"]},
                     origin=node.origin)


@rule("transpose")
def transpose_of_transpose(node: Node, graph: Graph) -> Replacement:
    inner = producer(node, 0, "transpose")
    if inner is None:
        return None
    perm = tuple(inner.attrs["perm"][p] for p in node.attrs["perm"])
    return graph.add("transpose", [inner.inputs[0]], {"perm": perm}, origin=node.origin)


@rule("transpose")
def transpose_of_unit_axes(node: Node, graph: Graph) -> Replacement:
    """A transpose that only moves axes of size 1 is a reshape."""
    x, perm = node.inputs[0], node.attrs["perm"]
    assert x is not None
    kept = [p for p in perm if not _is(x.shape[p], 1)]
    if kept != sorted(kept):
        return None
    return graph.add("reshape", [x], {"shape": node.output.shape}, origin=node.origin)


@rule("reshape")
def reshape_of_transpose(node: Node, graph: Graph) -> Replacement:
    """The reshape first, then a transpose of its axes, when it merges neighbours only: then the
    transpose may meet another."""
    inner = producer(node, 0, "transpose")
    if inner is None or only_user(inner.output) is not node:
        return None
    x = inner.inputs[0]
    assert x is not None
    found = sink_below_reshape(x.shape, tuple(inner.attrs["perm"]), node.output.shape)
    if found is None:
        return None
    shape, perm = found
    y = graph.add("reshape", [x], {"shape": shape}, origin=node.origin)
    return graph.add("transpose", [y], {"perm": perm}, origin=inner.origin)


@rule("expand")
def expand_of_expand(node: Node, graph: Graph) -> Replacement:
    """Also an expand of a reshape that only adds leading axes of size 1."""
    inner = producer(node, 0, "expand", "reshape")
    if inner is None:
        return None
    x = inner.inputs[0]
    assert x is not None
    if inner.op == "reshape":
        added = inner.output.rank - x.rank
        if added <= 0 or inner.output.shape[added:] != x.shape \
                or not all(_is(d, 1) for d in inner.output.shape[:added]):
            return None
    return graph.add("expand", [x], {"shape": node.attrs["shape"]}, origin=node.origin)


@rule("reshape")
def reshape_to_expand(node: Node, graph: Graph) -> Replacement:
    """A reshape that adds or removes axes of size 1 of an expand comes first: then the expand
    may vanish in an elementwise user."""
    inner = producer(node, 0, "expand")
    x = inner.inputs[0] if inner is not None else None
    if inner is None or x is None or only_user(inner.output) is not node:
        return None
    wide, target = inner.output.shape, node.output.shape
    padded = (1,) * (len(wide) - x.rank) + tuple(x.shape)
    kept = [k for k, d in enumerate(wide) if not _is(d, 1)]
    where = [k for k, d in enumerate(target) if not _is(d, 1)]
    if len(kept) != len(where) or any(not same(wide[k], target[j])
                                      for k, j in zip(kept, where, strict=True)):
        return None
    shape: list[Dim] = [1] * len(target)
    for k, j in zip(kept, where, strict=True):
        shape[j] = padded[k]
    small = graph.add("reshape", [x], {"shape": tuple(shape)}, origin=node.origin)
    return graph.add("expand", [small], {"shape": target}, origin=node.origin)


def elementwise_without_expand(node: Node, graph: Graph) -> Replacement:
    """f(expand(x), y) to f(x, y) when the broadcast of the operator does the same; the expand of
    the only operand comes after."""
    if lookup(node.op).kind != "elementwise":
        return None
    inputs = list(node.inputs)
    changed = False
    for i, value in enumerate(inputs):
        inner = producer(node, i, "expand")
        if inner is None or value is None:
            continue
        trial = [*inputs[:i], inner.inputs[0], *inputs[i + 1:]]
        type = result_type(graph, node.op, trial, node.attrs)
        if type is not None and type == node.output.type:
            inputs, changed = trial, True
    if changed:
        return graph.add(node.op, inputs, dict(node.attrs), origin=node.origin)
    present = [i for i, v in enumerate(inputs) if v is not None and scalar(v) is None]
    inner = producer(node, present[0], "expand") if len(present) == 1 else None
    if inner is None or only_user(inner.output) is not node:
        return None
    inputs[present[0]] = inner.inputs[0]
    type = result_type(graph, node.op, inputs, node.attrs)
    if type is None or type.dtype is not node.output.dtype:
        return None
    small = graph.add(node.op, inputs, dict(node.attrs), origin=node.origin)
    return graph.add("expand", [small], {"shape": node.output.shape}, origin=node.origin)


def elementwise_before_reshape(node: Node, graph: Graph) -> Replacement:
    """f(reshape(x), y) to reshape(f(x, y)) where a reduction, contraction or row operator makes
    x, so that it can compute f as well. y has one element, is reshaped alike, or repeats over the
    trailing axes that the reshape keeps."""
    if lookup(node.op).kind != "elementwise":
        return None
    views = [producer(node, i, "reshape") for i in range(len(node.inputs))]
    view = next((v for v in views if v is not None and only_user(v.output) is node
                 and v.output.shape == node.output.shape and behind_anchor(v.inputs[0])), None)
    x = view.inputs[0] if view is not None else None
    if view is None or x is None:
        return None
    trailing = 0
    while trailing < min(x.rank, view.output.rank) and same(
            x.shape[-1 - trailing], view.output.shape[-1 - trailing]):
        trailing += 1
    inputs: list[Value | None] = []
    for value, other in zip(node.inputs, views, strict=True):
        if value is None:
            return None
        source = other.inputs[0] if other is not None else None
        if value.shape == view.output.shape:
            if source is None or source.shape != x.shape:
                return None
            inputs.append(source)
            continue
        extra = value.rank - trailing
        if not all(_is(d, 1) for d in value.shape[:max(extra, 0)]):
            return None
        inputs.append(value if extra <= 0 else graph.add(
            "reshape", [value], {"shape": value.shape[extra:]}, origin=node.origin))
    type = result_type(graph, node.op, inputs, node.attrs)
    if type is None or type.shape != x.shape:
        return None
    result = graph.add(node.op, inputs, dict(node.attrs), origin=node.origin)
    return graph.add("reshape", [result], {"shape": node.output.shape}, origin=node.origin)


def behind_anchor(value: Value | None) -> bool:
    """Whether a reduction, contraction or row operator makes the value, up to elementwise nodes
    after it."""
    for _ in range(16):
        node = value.node if value is not None else None
        if node is None:
            return False
        kind = lookup(node.op).kind
        if kind != "elementwise":
            return kind in ("reduction", "contraction", "row")
        value = node.inputs[0]
    return False


@rule("slice")
def slice_of_slice(node: Node, graph: Graph) -> Replacement:
    inner = producer(node, 0, "slice")
    if inner is None:
        return None
    a, b = inner.attrs, node.attrs
    starts = tuple(_plus(s, _times(t, k)) for s, k, t in zip(
        a["starts"], a["steps"], b["starts"], strict=True))
    steps = tuple(_times(k, m) for k, m in zip(a["steps"], b["steps"], strict=True))
    return graph.add("slice", [inner.inputs[0]],
                     {"starts": starts, "sizes": b["sizes"], "steps": steps}, origin=node.origin)


@rule("slice")
def slice_of_concat(node: Node, graph: Graph) -> Replacement:
    """A slice that reads one operand of a concat only."""
    inner = producer(node, 0, "concat")
    if inner is None:
        return None
    axis, a = inner.attrs["axis"], node.attrs
    start, size, step = a["starts"][axis], a["sizes"][axis], a["steps"][axis]
    if not isinstance(step, int) or step == 0 or not at_least(size, 1):
        return None
    last = _plus(start, _times(_plus(size, -1), step))
    low, high = (start, last) if step > 0 else (last, start)
    begin: Dim = 0
    for value in inner.inputs:
        assert value is not None
        end = _plus(begin, value.shape[axis])
        if at_least(wrap(low) - wrap(begin), 0) and at_least(wrap(end) - wrap(high), 1):
            starts = (*a["starts"][:axis], _plus(start, _times(begin, -1)),
                      *a["starts"][axis + 1:])
            return graph.add("slice", [value], {**a, "starts": starts}, origin=node.origin)
        begin = end
    return None


@rule("concat")
def concat_of_few(node: Node, graph: Graph) -> Replacement:
    """A concat of one operand, or with operands that have no elements."""
    axis = node.attrs["axis"]
    kept = [v for v in node.inputs if v is not None and not _is(v.shape[axis], 0)]
    if len(kept) == 1:
        return kept[0]
    if not kept or len(kept) == len(node.inputs):
        return None
    return graph.add("concat", kept, {"axis": axis}, origin=node.origin)


@rule("concat")
def concat_of_concat(node: Node, graph: Graph) -> Replacement:
    """concat(concat(a, b), c) to concat(a, b, c), when nothing else uses the inner one."""
    axis = node.attrs["axis"]
    operands: list[Value | None] = []
    for i, value in enumerate(node.inputs):
        inner = producer(node, i, "concat")
        if inner is not None and inner.attrs["axis"] == axis and only_user(inner.output) is node:
            operands += inner.inputs
        else:
            operands.append(value)
    if len(operands) == len(node.inputs):
        return None
    return graph.add("concat", operands, {"axis": axis}, origin=node.origin)


@rule("concat")
def concat_of_adjacent_slices(node: Node, graph: Graph) -> Replacement:
    """Slices of one value that follow each other become one slice."""
    axis = node.attrs["axis"]
    operands: list[Value | None] = []
    for i, value in enumerate(node.inputs):
        here = producer(node, i, "slice")
        before = operands[-1].node if operands and operands[-1] is not None else None
        if here is not None and before is not None and before.op == "slice" \
                and before.inputs[0] is here.inputs[0] and _follows(before, here, axis):
            size = _plus(before.attrs["sizes"][axis], here.attrs["sizes"][axis])
            sizes = (*here.attrs["sizes"][:axis], size, *here.attrs["sizes"][axis + 1:])
            operands[-1] = graph.add("slice", [here.inputs[0]],
                                     {**before.attrs, "sizes": sizes}, origin=node.origin)
        else:
            operands.append(value)
    if len(operands) == len(node.inputs):
        return None
    return graph.add("concat", operands, {"axis": axis}, origin=node.origin)


def _follows(before: Node, here: Node, axis: int) -> bool:
    a, b = before.attrs, here.attrs
    for k in range(len(a["starts"])):
        if not same(a["steps"][k], b["steps"][k]):
            return False
        if k != axis and not (same(a["starts"][k], b["starts"][k])
                              and same(a["sizes"][k], b["sizes"][k])):
            return False
    end = _plus(a["starts"][axis], _times(a["sizes"][axis], a["steps"][axis]))
    return same(end, b["starts"][axis])


@rule("transpose")
def transpose_of_stack(node: Node, graph: Graph) -> Replacement:
    """transpose(reshape(concat(a, b), [..., 2, n, ...])), which interleaves a and b: a concat of
    views, when the transpose moves nothing within a and b."""
    view = producer(node, 0, "reshape")
    stack = producer(view, 0, "concat") if view is not None else None
    if view is None or stack is None or only_user(view.output) is not node \
            or only_user(stack.output) is not view:
        return None
    axis, count, perm = stack.attrs["axis"], len(stack.inputs), tuple(node.attrs["perm"])
    if any(v is None or not same(v.shape[axis], stack.inputs[0].shape[axis])  # type: ignore
           for v in stack.inputs):
        return None
    groups = reshape_groups(stack.output.shape, view.output.shape)
    target = next((right for left, right in groups or () if left == [axis]), None)
    if target is None or len(target) < 2 or not _is(view.output.shape[target[0]], count):
        return None
    shape = list(view.output.shape)
    shape[target[0]] = 1
    if not moves_nothing(shape, perm):
        return None
    turned = tuple(shape[p] for p in perm)
    parts = [graph.add("reshape", [v], {"shape": turned}, origin=node.origin)
             for v in stack.inputs]
    return graph.add("concat", parts, {"axis": perm.index(target[0])}, origin=stack.origin)


def _fill(node: Node):
    """The number that a constant pad writes, None when it is not known."""
    return scalar(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else 0


@rule("pad")
def pad_of_pad(node: Node, graph: Graph) -> Replacement:
    """Constant pads with one fill that do not cut."""
    inner = producer(node, 0, "pad")
    if inner is None or inner.attrs["mode"] != "constant" or node.attrs["mode"] != "constant":
        return None
    amounts = [*node.attrs["low"], *node.attrs["high"], *inner.attrs["low"], *inner.attrs["high"]]
    if _fill(node) is None or _fill(node) != _fill(inner) \
            or not all(at_least(p, 0) for p in amounts):
        return None
    low, high = (tuple(_plus(a, b) for a, b in zip(inner.attrs[k], node.attrs[k], strict=True))
                 for k in ("low", "high"))
    return graph.add("pad", [inner.inputs[0], *node.inputs[1:]], {"low": low, "high": high},
                     origin=node.origin)


@rule("conv")
def pad_into_conv(node: Node, graph: Graph) -> Replacement:
    """Zeros around the spatial axes become the convolution's own."""
    inner = producer(node, 0, "pad")
    if inner is None or inner.attrs["mode"] != "constant" or _fill(inner) != 0:
        return None
    low, high = inner.attrs["low"], inner.attrs["high"]
    if not all(_is(p, 0) for p in (*low[:2], *high[:2])) \
            or not all(at_least(p, 0) for p in (*low, *high)):
        return None
    attrs = dict(node.attrs)
    attrs["low"] = tuple(_plus(a, b) for a, b in zip(attrs["low"], low[2:], strict=True))
    attrs["high"] = tuple(_plus(a, b) for a, b in zip(attrs["high"], high[2:], strict=True))
    return graph.add("conv", [inner.inputs[0], *node.inputs[1:]], attrs, origin=node.origin)


@rule("gather")
def gather_of_known_rows(node: Node, graph: Graph) -> Replacement:
    """Positions at equal distances are a slice."""
    x, rows = node.inputs
    axis = node.attrs["axis"]
    array = rows.constant if rows is not None else None
    if x is None or array is None or not 0 < array.size <= 1 << 16:
        return None
    d = x.shape[axis]
    flat = array.reshape(-1).astype(np.int64)
    if (flat < 0).any():
        if not isinstance(d, int):
            if (flat >= 0).any() or flat.size > 1:
                return None
        else:
            flat = np.where(flat < 0, flat + d, flat)
    steps = np.diff(flat)
    if steps.size and (steps != steps[0]).any() or steps.size and steps[0] == 0:
        return None
    if isinstance(d, int) and not ((flat >= 0) & (flat < d)).all():
        return None
    start: Dim = int(flat[0])
    if start < 0:
        start = _plus(d, start)
    starts, sizes, strides = [0] * x.rank, list(x.shape), [1] * x.rank
    starts[axis], sizes[axis] = start, int(flat.size)  # type: ignore[call-overload]
    strides[axis] = int(steps[0]) if steps.size else 1
    part = graph.add("slice", [x], {"starts": tuple(starts), "sizes": tuple(sizes),
                                    "steps": tuple(strides)}, origin=node.origin)
    return graph.add("reshape", [part], {"shape": node.output.shape}, origin=node.origin)


@rule("scatter_nd")
def scatter_of_known_block(node: Node, graph: Graph) -> Replacement:
    """Constant indices that run over whole rows at successive positions of one axis: a concat of
    what is before, the updates, and what is after."""
    x, indices, updates = node.inputs
    array = indices.constant if indices is not None else None
    if x is None or updates is None or array is None or node.attrs["reduction"] != "none" \
            or not 0 < array.size <= 1 << 22:
        return None
    depth = array.shape[-1]
    dims = x.shape[:depth]
    if not depth or not all(isinstance(d, int) for d in dims):
        return None
    flat = array.reshape(-1, depth).astype(np.int64)
    flat = np.where(flat < 0, flat + np.array(dims), flat)
    low, counts = flat.min(0), np.ptp(flat, 0) + 1
    if np.prod(counts) != len(flat) or (low < 0).any() or (low + counts > dims).any():
        return None
    if (flat != low + np.stack(np.unravel_index(np.arange(len(flat)), counts), 1)).any():
        return None
    partial = [a for a in range(depth) if counts[a] != dims[a]]
    if len(partial) > 1:
        return None
    at = node.origin
    block = graph.add("reshape", [updates], {"shape": (*map(int, counts), *x.shape[depth:])},
                      origin=at)
    if not partial:
        return block
    (axis,) = partial
    parts = []
    top = int(low[axis] + counts[axis])
    for start, size in ((0, int(low[axis])), (top, _plus(dims[axis], -top))):
        starts, sizes = [0] * x.rank, list(x.shape)
        starts[axis], sizes[axis] = start, size
        parts.append(graph.add("slice", [x], {"starts": tuple(starts), "sizes": tuple(sizes),
                                              "steps": (1,) * x.rank}, origin=at))
    return graph.add("concat", [parts[0], block, parts[1]], {"axis": axis}, origin=at)


_REDUCTIONS = ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_any",
               "reduce_all", "reduce_mean")


@rule(*_REDUCTIONS)
def reduction_of_nothing(node: Node, graph: Graph) -> Replacement:
    """A reduction over axes of size 1 only."""
    x = node.inputs[0]
    assert x is not None
    axes = [a for a in node.attrs["axes"] if not _is(x.shape[a], 1)]
    if axes:
        return None
    return graph.add("reshape", [x], {"shape": node.output.shape}, origin=node.origin)


@rule("reshape")
def reduction_keeps_axes(node: Node, graph: Graph) -> Replacement:
    """A reshape that puts the reduced axes back as 1: the reduction keeps them."""
    inner = producer(node, 0, *_REDUCTIONS)
    if inner is None or inner.attrs["keepdims"] or only_user(inner.output) is not node:
        return None
    attrs = {**inner.attrs, "keepdims": True}
    if result_type(graph, inner.op, inner.inputs, attrs) != node.output.type:
        return None
    return graph.add(inner.op, inner.inputs, attrs, origin=inner.origin)


@rule(*_REDUCTIONS)
def reduction_of_transpose(node: Node, graph: Graph) -> Replacement:
    """The transpose comes after the reduction, where there is less to move."""
    inner = producer(node, 0, "transpose")
    if inner is None or only_user(inner.output) is not node:
        return None
    perm, keep = inner.attrs["perm"], node.attrs["keepdims"]
    axes = tuple(sorted(perm[a] for a in node.attrs["axes"]))
    result = graph.add(node.op, [inner.inputs[0]], {"axes": axes, "keepdims": keep},
                       origin=node.origin)
    if not keep:
        rank = [a for a in range(len(perm)) if a not in axes]
        perm = [rank.index(p) for p in perm if p not in axes]
    return graph.add("transpose", [result], {"perm": tuple(perm)}, origin=node.origin)


@rule("reduce_sum", "reduce_max", "reduce_min", "reduce_mean", "reduce_any", "reduce_all")
def reduction_of_reduction(node: Node, graph: Graph) -> Replacement:
    """Reductions of one kind over different axes, one after the other."""
    inner = producer(node, 0, node.op)
    if inner is None or only_user(inner.output) is not node:
        return None
    x = inner.inputs[0]
    assert x is not None
    if node.attrs["keepdims"] != inner.attrs["keepdims"] or not x.dtype.is_float \
            and node.op == "reduce_mean":
        return None
    left = [a for a in range(x.rank) if inner.attrs["keepdims"] or a not in inner.attrs["axes"]]
    axes = tuple(sorted({*inner.attrs["axes"], *(left[a] for a in node.attrs["axes"])}))
    return graph.add(node.op, [x], {"axes": axes, "keepdims": node.attrs["keepdims"]},
                     origin=node.origin)




RULES = [identity_movement, reshape_of_reshape, transpose_of_transpose, transpose_of_unit_axes,
         reshape_of_transpose, expand_of_expand, reshape_to_expand, slice_of_slice,
         slice_of_concat, concat_of_few, concat_of_concat, concat_of_adjacent_slices, pad_of_pad,
         pad_into_conv, gather_of_known_rows, scatter_of_known_block, reduction_of_nothing,
         reduction_keeps_axes, reduction_of_transpose, reduction_of_reduction]
