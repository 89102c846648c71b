"""Decision trees, and probabilities from pairwise comparisons of classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define

MODES = ("le", "lt", "ge", "gt", "eq", "ne", "member")
"""Comparisons of a feature with a node's threshold; "member" looks for it in the node's set."""

AGGREGATES = ("sum", "average", "min", "max")


def _tree_infer(ctx: OpContext):
    x, thresholds, weights = ctx.type(0), ctx.type(2), ctx.type(8)
    if x.rank != 2 or not x.dtype.is_float or thresholds.dtype is not x.dtype:
        raise ctx.error(f"tree_ensemble takes rows of {thresholds.dtype}, not {x}")
    if ctx.attrs["aggregate"] not in AGGREGATES:
        raise ctx.error(f"unknown aggregate {ctx.attrs['aggregate']!r}")
    return [TensorType(weights.dtype, (x.shape[0], ctx.attrs["targets"]))]


def _goes_true(mode: str, value, threshold, members) -> bool:
    if mode == "member":
        return bool(np.any(value == members))
    return {"le": value <= threshold, "lt": value < threshold, "ge": value >= threshold,
            "gt": value > threshold, "eq": value == threshold, "ne": value != threshold}[mode]


def _tree_reference(ctx: OpContext, x, features, thresholds, modes, yes, no, roots, targets,
                    weights, missing=None, members=None, first: Any = None):
    kind = ctx.attrs["aggregate"]
    count = int(ctx.attrs["targets"])
    start = {"min": np.inf, "max": -np.inf}.get(kind, 0.0)
    combine = {"min": np.minimum, "max": np.maximum}.get(kind, np.add)
    result = np.full((len(x), count), start, weights.dtype)
    for row, total in zip(x, result, strict=True):
        for node in roots.tolist():
            while features[node] >= 0:
                value = row[features[node]]
                own = members[first[node]:first[node + 1]] if members is not None else ()
                true = _goes_true(MODES[modes[node]], value, thresholds[node], own) or (
                    missing is not None and missing[node] and np.isnan(value))
                node = (yes if true else no)[node]
            for entry in range(yes[node], no[node]):
                total[targets[entry]] = combine(total[targets[entry]], weights[entry])
    if kind == "average":
        result /= weights.dtype.type(max(len(roots), 1))
    # Nothing voted for these.
    return np.where(np.isinf(result), 0, result).astype(weights.dtype) \
        if kind in ("min", "max") else result


define(OpDef(
    "tree_ensemble", "opaque", _tree_infer, _tree_reference,
    attrs={"targets": REQUIRED, "aggregate": "sum"},
    doc="Decision trees on rows x [N, F] to [N, targets]. Per node: feature i32 (below 0: a leaf), "
        "threshold, mode u8 (index into MODES), next node i32 when the comparison holds and when "
        "not (leaf: begin and end of its entries); root nodes i32; per entry: target i32 and "
        "weight. Optional: u8 per node, whether NaN goes the true way; members of the sets and "
        "where each node's begin (i32, one more than nodes). Targets without a vote are 0.",
))


def _couple_infer(ctx: OpContext):
    t, k = ctx.type(0), ctx.attrs["classes"]
    if t.rank != 2 or t.shape[1] != k * (k - 1) // 2 or not t.dtype.is_float:
        raise ctx.error(f"{k} classes have {k * (k - 1) // 2} pairs, got {t}")
    return [TensorType(t.dtype, (t.shape[0], k))]


def _couple_reference(ctx: OpContext, pairs):
    k = ctx.attrs["classes"]
    wide = pairs.astype(np.float64 if pairs.dtype == np.float64 else np.float32)
    result = np.empty((len(pairs), k), wide.dtype)
    upper = np.triu_indices(k, 1)
    for row, out in zip(wide, result, strict=True):
        r = np.zeros((k, k), wide.dtype)
        r[upper] = row
        r.T[upper] = 1 - row
        q = -r * r.T
        np.fill_diagonal(q, (r ** 2).sum(0))
        p = np.full(k, 1 / k, wide.dtype)
        for _ in range(max(100, k)):
            qp = q @ p
            total = p @ qp
            if np.abs(qp - total).max() < 0.005 / k:
                break
            for t in range(k):
                step = (total - qp[t]) / q[t, t]
                p[t] += step
                total = (total + step * (step * q[t, t] + 2 * qp[t])) / (1 + step) ** 2
                qp = (qp + step * q[t]) / (1 + step)
                p /= 1 + step
        out[:] = p
    return result.astype(pairs.dtype)


define(OpDef(
    "couple_probabilities", "opaque", _couple_infer, _couple_reference,
    attrs={"classes": REQUIRED},
    doc="Wu, Lin & Weng 2004, second method: class probabilities [N, classes] from the probability "
        "of class i against j for all pairs i < j, [N, classes * (classes - 1) / 2].",
))

