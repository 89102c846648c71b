"""Softmax, LogSoftmax and the losses built on them."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.graph.core import Value
from ..building import axis_of, cast, product, reshape, scalar
from ..indices import checked_indices
from ..registry import Site, importer


@importer("Softmax", "LogSoftmax")
def flattened_softmax(c: Site):
    """Before opset 13 all axes from `axis` on are one row."""
    x = c.input(0)
    axis = axis_of(c, c.attr("axis", 1), x.rank)
    rows = reshape(c, x, (product(x.shape[:axis]), product(x.shape[axis:])))
    return reshape(c, c.add(_core(c), [rows], axis=1), x.shape)


@importer("Softmax", "LogSoftmax", since=13)
def softmax(c: Site):
    x = c.input(0)
    return c.add(_core(c), [x], axis=axis_of(c, c.attr("axis", -1), x.rank))


def _core(c: Site) -> str:
    return "softmax" if c.op_type == "Softmax" else "log_softmax"


def _loss(c: Site, scores: Value, target: Value, weight: Value | None) -> Value:
    """The negative score of each target, weighted, ignored targets left out, then reduced."""
    if scores.rank < 2 or target.rank != scores.rank - 1:
        raise c.error(f"a loss of scores {scores.type} with targets {target.type} is not possible")
    target = cast(c, target, dt.i64)
    kept = None
    if c.attr("ignore_index") is not None:
        kept = c.add("ne", [target, scalar(c, c.attr("ignore_index"), dt.i64)])
        target = c.add("select", [kept, target, scalar(c, 0, dt.i64)])
    target = checked_indices(c, target, scores.shape[1:2], negative=False)
    column = reshape(c, target, (target.shape[0], 1, *target.shape[1:]))
    picked = c.add("gather_elements", [scores, column], axis=1)
    loss = c.add("neg", [reshape(c, picked, target.shape)])
    factor = None
    if weight is not None:
        factor = c.add("gather", [weight, target], axis=0)
    elif kept is not None:
        factor = scalar(c, 1, loss.dtype)
    if kept is not None:
        factor = c.add("select", [kept, factor, scalar(c, 0, loss.dtype)])
    if factor is not None:
        loss = c.add("mul", [loss, factor])
    reduction = c.attr("reduction", "mean")
    if reduction == "none":
        return loss
    axes = tuple(range(loss.rank))
    if reduction == "sum" or (reduction == "mean" and factor is not None):
        total = c.add("reduce_sum", [loss], axes=axes)
        if reduction == "sum":
            return total
        return c.add("div", [total, c.add("reduce_sum", [factor], axes=axes)])
    if reduction != "mean":
        raise c.error(f"unknown reduction {reduction!r}")
    return c.add("reduce_mean", [loss], axes=axes)


@importer("NegativeLogLikelihoodLoss")
def negative_log_likelihood(c: Site):
    return _loss(c, c.input(0), c.input(1), c.inputs[2] if c.has(2) else None)


@importer("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(c: Site):
    scores = c.add("log_softmax", [c.input(0)], axis=1)
    loss = _loss(c, scores, c.input(1), c.inputs[2] if c.has(2) else None)
    return [loss, scores]
