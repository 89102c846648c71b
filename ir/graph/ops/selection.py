"""Selection by value: positions of non-zero elements, the best k, distinct rows, separate boxes.

Where the size of a result depends on data, an operator of maximal size also gives the count; the
importer binds it and takes a slice.
"""

from __future__ import annotations

import numpy as np

from ... import dtype as dt
from ...expr import simplify_dim, wrap
from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import normal_axis, require_at_most, type_like


def _nonzero_reference(ctx: OpContext, x):
    if x.ndim == 0:
        return np.zeros((0, np.count_nonzero(x)), np.int64)
    return np.stack(np.nonzero(x)).astype(np.int64)


define(OpDef(
    "nonzero", "opaque",
    infer=lambda ctx: [TensorType(dt.i64, (ctx.type(0).rank, ctx.attrs["size"]))],
    reference=_nonzero_reference, attrs={"size": REQUIRED},
    doc="Indices of the elements that are not 0, in row-major order, one column each; `size` is "
        "their number.",
))


def ordering(x: np.ndarray) -> np.ndarray:
    """`x` as an array that numpy sorts in the order of all operators here: NaN is highest."""
    return x.astype(np.float32) if x.dtype.kind in "Vf" and x.dtype.itemsize < 4 else x


def _topk_infer(ctx: OpContext):
    t, a = ctx.type(0), ctx.attrs
    if t.rank == 0:
        raise ctx.error("topk of a scalar")
    axis = a["axis"] = normal_axis(ctx, a["axis"], t.rank)
    k, extent = simplify_dim(a["k"]), t.shape[axis]
    require_at_most(ctx, 0, k, f"the best {k} elements")
    require_at_most(ctx, k, extent, f"the best {k} of {extent} elements")
    shape = (*t.shape[:axis], k, *t.shape[axis + 1:])
    return [type_like(t, shape), TensorType(dt.i64, shape)]


def _topk_reference(ctx: OpContext, x):
    axis = ctx.attrs["axis"]
    keys = ordering(x)
    if ctx.attrs["largest"]:
        # Sorting backwards both ways keeps equal elements in order.
        order = np.flip(x.shape[axis] - 1 - np.argsort(np.flip(keys, axis), axis, kind="stable"),
                        axis)
    else:
        order = np.argsort(keys, axis, kind="stable")
    k = ctx.out().shape[axis]
    order = np.take(order, np.arange(int(k)), axis).astype(np.int64)  # type: ignore[arg-type]
    return np.take_along_axis(x, order, axis), order


define(OpDef(
    "topk", "opaque", _topk_infer, _topk_reference,
    attrs={"k": REQUIRED, "axis": -1, "largest": True},
    doc="The k largest (or smallest) elements along `axis`, best first, and their positions; "
        "equal elements by position, NaN above all numbers.",
))


def _unique_infer(ctx: OpContext):
    t = ctx.type(0)
    if t.rank != 2:
        raise ctx.error(f"unique takes rows of a matrix, not {t}")
    rows = t.shape[0]
    return [TensorType(dt.i64, (rows,))] * 3 + [TensorType(dt.i64, (1,))]


def _unique_reference(ctx: OpContext, x):
    rows = len(x)
    keys = ordering(x)
    if rows:
        columns = [k for j in reversed(range(x.shape[1])) for k in (
            [keys[:, j], np.isnan(keys[:, j])] if keys.dtype.kind == "f" else [keys[:, j]])]
        order = np.lexsort(columns) if columns else np.arange(rows)
        s = keys[order]
        same = s[1:] == s[:-1]
        if keys.dtype.kind == "f":
            same |= np.isnan(s[1:]) & np.isnan(s[:-1])
        start = np.concatenate([[True], ~same.all(1)])
        first = order[start]
        inverse = np.empty(rows, np.int64)
        inverse[order] = np.cumsum(start) - 1
    else:
        first, inverse = np.zeros(0, np.int64), np.zeros(0, np.int64)
    counts = np.bincount(inverse, minlength=len(first))
    if not ctx.attrs["sorted"]:
        by_position = np.argsort(first)
        rank = np.empty(len(first), np.int64)
        rank[by_position] = np.arange(len(first))
        first, counts, inverse = first[by_position], counts[by_position], rank[inverse]
    padded = [np.concatenate([v, np.zeros(rows - len(v))]).astype(np.int64)
              for v in (first, inverse, counts)]
    return (*padded, np.array([len(first)], np.int64))


define(OpDef(
    "unique", "opaque", _unique_infer, _unique_reference, attrs={"sorted": True},
    doc="Distinct rows of a matrix: row number of each one's first occurrence (in ascending order "
        "of the rows, or of occurrence), the distinct row that each row is, how often each "
        "occurs (both padded with 0 to the number of rows), and how many there are.",
))


def _nms_infer(ctx: OpContext):
    boxes, scores = ctx.type(0), ctx.type(1)
    if boxes.rank != 3 or scores.rank != 3 or boxes.dtype is not scores.dtype:
        raise ctx.error(f"nms takes boxes [batch, n, 4] and scores [batch, classes, n], got "
                        f"{boxes} and {scores}")
    rows = wrap(scores.shape[0]) * scores.shape[1] * ctx.attrs["limit"]
    return [TensorType(dt.i64, (rows, 3)), TensorType(dt.i64, (1,))]


def corners(box, center: bool):
    """(y1, x1, y2, x2) with y1 <= y2 and x1 <= x2 of a box of operator nms."""
    a, b, c, d = (box[..., k] for k in range(4))
    if center:
        half = box.dtype.type(0.5)
        return b - d * half, a - c * half, b + d * half, a + c * half
    return np.minimum(a, c), np.minimum(b, d), np.maximum(a, c), np.maximum(b, d)


def _overlaps(boxes, box, threshold):
    y1, x1, y2, x2 = boxes
    v1, u1, v2, u2 = box
    zero = y1.dtype.type(0)
    height = np.maximum(np.minimum(y2, v2) - np.maximum(y1, v1), zero)
    width = np.maximum(np.minimum(x2, u2) - np.maximum(x1, u1), zero)
    inter = height * width
    area, other = (y2 - y1) * (x2 - x1), (v2 - v1) * (u2 - u1)
    union = area + other - inter
    positive = (area > 0) & (other > 0) & (union > 0)
    return positive & (inter / np.where(positive, union, 1) > threshold)


def _nms_reference(ctx: OpContext, boxes, scores, iou, minimum):
    rows: list[tuple[int, int, int]] = []
    limit = ctx.out().shape[0]
    per_class = int(limit) // max(1, scores.shape[0] * scores.shape[1])  # type: ignore[arg-type]
    for i, j in np.ndindex(*scores.shape[:2]):
        value = scores[i, j]
        shape = np.stack(corners(boxes[i], ctx.attrs["center"]))
        alive = np.flatnonzero(value > minimum)
        for _ in range(per_class):
            if not len(alive):
                break
            best = alive[np.argmax(value[alive])]
            rows.append((i, j, best))
            overlap = _overlaps(shape[:, alive], shape[:, best], iou)
            alive = alive[~overlap & (alive != best)]
    result = np.zeros((int(limit), 3), np.int64)  # type: ignore[arg-type]
    result[: len(rows)] = np.array(rows, np.int64).reshape(-1, 3)
    return result, np.array([len(rows)], np.int64)


define(OpDef(
    "nms", "opaque", _nms_infer, _nms_reference, attrs={"limit": REQUIRED, "center": False},
    doc="Non-maximum suppression of boxes [batch, n, 4] with scores [batch, classes, n]: "
        "operands 2 and 3 are the scalar IoU threshold and score threshold. Rows (batch, class, "
        "box) by batch, class and falling score, at most `limit` per class, then zeros; and the "
        "number of rows. Boxes are two opposite corners (y, x, y, x), or with `center` (x, y, "
        "width, height).",
))
