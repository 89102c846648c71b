"""Kernels of decision trees and of pairwise class probabilities."""

from __future__ import annotations

import math

from ....ir import dtype as dt
from ....ir.expr import Expr, both, cast, const, equal, op, select, wrap
from ....ir.graph.ops.ensembles import MODES
from ..procedural import Site, procedural
from .ordering import negate


def _only_mode(c: Site) -> str | None:
    """The comparison that all nodes make, when the modes are known and the same."""
    value = c.node.inputs[3]
    known = None if value is None else value.constant
    if known is None or not known.size or (known != known.flat[0]).any():
        return None
    return MODES[int(known.flat[0])]


@procedural("tree_ensemble")
def tree_ensemble(c: Site) -> None:
    b, y = c.b, c.output()
    x, features, thresholds, modes, yes, no, roots, targets, weights = (
        c.input(i) for i in range(9))
    kind = c.attrs["aggregate"]
    start = {"min": math.inf, "max": -math.inf}.get(kind, 0.0)
    combine = {"min": "min", "max": "max"}.get(kind, "add")
    only = _only_mode(c)

    def member(value: Expr, node: Expr) -> Expr:
        members, first = c.input(10), c.input(11)
        found = b.scalar("found", dt.bool_, False)
        begin = b.let("begin", cast(first[node], dt.i64))
        count = b.let("count", cast(first[node + 1], dt.i64) - begin)
        with b.loop("m", count) as m, b.when(equal(members[begin + m], value)):
            b.store(found, (), True)
        return found[()]

    def holds(value: Expr, node: Expr) -> Expr:
        limit = b.let("limit", thresholds[node])
        if only is not None and only != "member":
            return op(only, value, limit)
        result = member(value, node) if c.has(10) else const(False, dt.bool_)
        for k, mode in enumerate(MODES):
            if mode != "member":
                result = select(equal(modes[node], k), op(mode, value, limit), result)
        return result

    with c.nest("n", (x.shape[0],), wrap(roots.shape[0]) * 32) as (n,):
        with b.loop("t", y.shape[1]) as t:
            b.store(y, (n, t), start)
        with b.loop("tree", roots.shape[0]) as tree:
            place = b.scalar("place", dt.i64, cast(roots[tree], dt.i64))
            with b.while_(cast(features[place[()]], dt.i64) >= 0):
                node = b.let("node", place[()])
                value = b.let("value", x[n, cast(features[node], dt.i64)])
                true = holds(value, node)
                if c.has(9):
                    true = true | both(op("ne", c.input(9)[node], 0), op("isnan", value))
                b.store(place, (), cast(select(true, yes[node], no[node]), dt.i64))
            leaf = b.let("leaf", place[()])
            begin = b.let("begin", cast(yes[leaf], dt.i64))
            with b.loop("e", b.let("votes", cast(no[leaf], dt.i64) - begin)) as e:
                target = b.let("target", cast(targets[begin + e], dt.i64))
                b.update(y, (n, target), combine, weights[begin + e])
        if kind == "average":
            count = cast(op("max", wrap(roots.shape[0]), 1), y.dtype)
            with b.loop("t", y.shape[1]) as t:
                b.store(y, (n, t), y[n, t] / count)
        elif kind in ("min", "max"):
            with b.loop("t", y.shape[1]) as t, b.when(op("isinf", y[n, t])):
                b.store(y, (n, t), 0.0)


@procedural("couple_probabilities")
def couple_probabilities(c: Site) -> None:
    b, x, y = c.b, c.input(0), c.output()
    wide, k = dt.f64 if x.dtype is dt.f64 else dt.f32, c.attrs["classes"]
    q = c.scratch("q", wide, (x.shape[0], k, k))
    qp = c.scratch("qp", wide, (x.shape[0], k))
    p = c.scratch("p", wide, (x.shape[0], k))

    with c.nest("n", (x.shape[0],), k * k * 100) as (n,):
        def pair(i: Expr, j: Expr) -> Expr:
            """The place of pair i < j in a row."""
            return i * (k - 1) - op("floordiv", i * (i - 1), 2) + j - i - 1

        with b.loop("i", k) as i:
            b.store(p, (n, i), 1.0 / k)
            b.store(q, (n, i, i), 0.0)
        with b.loop("i", k) as i, b.loop("j", k - 1 - i) as rest:
            j = i + 1 + rest
            ahead = b.let("ahead", cast(x[n, pair(i, j)], wide))
            behind = b.let("behind", 1 - ahead)
            b.store(q, (n, i, j), op("neg", ahead * behind))
            b.store(q, (n, j, i), op("neg", ahead * behind))
            b.update(q, (n, j, j), "add", ahead * ahead)
            b.update(q, (n, i, i), "add", behind * behind)
        round_, open_ = b.scalar("round", dt.i64, 0), b.scalar("open", dt.bool_, True)
        with b.while_(both(open_[()], round_[()] < max(100, k))):
            b.update(round_, (), "add", 1)
            total = b.scalar("total", wide, 0.0)
            with b.loop("i", k) as i:
                value = b.scalar("value", wide, 0.0)
                with b.loop("j", k) as j:
                    b.update(value, (), "add", q[n, i, j] * p[n, j])
                b.store(qp, (n, i), value[()])
                b.update(total, (), "add", value[()] * p[n, i])
            worst = b.scalar("worst", wide, 0.0)
            with b.loop("i", k) as i:
                b.update(worst, (), "max", op("abs", qp[n, i] - total[()]))
            b.store(open_, (), negate(worst[()] < 0.005 / k))
            with b.when(open_[()]), b.loop("t", k) as t:
                own, before = b.let("own", q[n, t, t]), b.let("before", qp[n, t])
                step = b.let("step", (total[()] - before) / own)
                scale = b.let("scale", step + 1)
                b.update(p, (n, t), "add", step)
                b.store(total, (), (total[()] + step * (step * own + before * 2))
                        / (scale * scale))
                with b.loop("j", k) as j:
                    b.store(qp, (n, j), (qp[n, j] + step * q[n, t, j]) / scale)
                    b.store(p, (n, j), p[n, j] / scale)
        with b.loop("i", k) as i:
            b.store(y, (n, i), cast(p[n, i], x.dtype))
