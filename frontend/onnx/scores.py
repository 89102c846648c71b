"""What the classifiers and regressors of ai.onnx.ml share: score transforms and class labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.graph.core import Value
from .building import cast, scalar
from .compile_time import Unavailable
from .registry import Site

TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def post_transform(c: Site) -> str:
    kind = c.attr("post_transform", "NONE")
    if kind not in TRANSFORMS:
        raise c.error(f"unknown post_transform {kind!r}")
    return kind


def rows(c: Site) -> Value:
    """The operand as rows of floats; f64 stays."""
    x = c.input(0)
    if x.rank == 1:
        x = c.add("reshape", [x], shape=(1, x.shape[0]))
    if x.rank != 2:
        raise c.error(f"expected rows of features, found {x.type}")
    return x if x.dtype in (dt.f32, dt.f64) else cast(c, x, dt.f32)


def _probit(c: Site, x: Value) -> Value:
    """The quantile of the normal distribution by Winitzki's approximation of erf's inverse."""
    def number(value: float) -> Value:
        return scalar(c, value, x.dtype)

    v = c.add("sub", [c.add("mul", [x, number(2.0)]), number(1.0)])
    one = number(1.0)
    log = c.add("log", [c.add("mul", [c.add("sub", [one, v]), c.add("add", [one, v])])])
    a = c.add("add", [c.add("mul", [log, number(0.5)]), number(2 / (math.pi * 0.147))])
    square = c.add("sub", [c.add("mul", [a, a]), c.add("mul", [log, number(1 / 0.147)])])
    root = c.add("sqrt", [c.add("sub", [c.add("sqrt", [square]), a])])
    signed = c.add("select", [c.add("lt", [v, number(0.0)]), c.add("neg", [root]), root])
    return c.add("mul", [signed, number(1.41421356)])


def _softmax_zero(c: Site, x: Value) -> Value:
    """Softmax in which scores of 0 stay 0."""
    def number(value: float) -> Value:
        return scalar(c, value, x.dtype)

    top = c.add("reduce_max", [x], axes=(1,), keepdims=True)
    e = c.add("exp", [c.add("sub", [x, top])])
    small = c.add("le", [c.add("abs", [x]), number(1e-7)])
    scaled = c.add("mul", [x, c.add("exp", [c.add("neg", [top])])])
    value = c.add("select", [small, scaled, e])
    total = c.add("reduce_sum", [value], axes=(1,), keepdims=True)
    nothing = c.add("eq", [total, number(0.0)])
    safe = c.add("select", [nothing, number(1.0), total])
    return c.add("select", [nothing, number(0.5), c.add("div", [value, safe])])


def transformed(c: Site, scores: Value, kind: str) -> Value:
    """Scores [N, C] after a post transform; a single column knows only PROBIT."""
    if kind == "PROBIT":
        return _probit(c, scores)
    if kind == "NONE" or scores.shape[1] == 1:
        return scores
    if kind == "LOGISTIC":
        return c.add("sigmoid", [scores])
    return _softmax_zero(c, scores) if kind == "SOFTMAX_ZERO" else c.add("softmax", [scores])


def two_columns(c: Site, score: Value, kind: str, complement: bool) -> Value:
    """Scores of two classes from that of the second [N, 1]: LOGISTIC of (-s, s); else (1 - s, s)
    with `complement`, else (-s, s). As ONNX Runtime does; the standard is silent."""
    opposite = c.add("neg", [score])
    if kind == "LOGISTIC":
        return c.add("sigmoid", [c.add("concat", [opposite, score], axis=1)])
    if complement or kind == "PROBIT":
        opposite = c.add("add", [opposite, scalar(c, 1, score.dtype)])
    both = c.add("concat", [opposite, score], axis=1)
    return _probit(c, both) if kind == "PROBIT" else both


def class_labels(c: Site, integers: str, strings: str) -> tuple[list[int] | None, int]:
    """The integer labels (None when they are strings), and how many classes there are."""
    texts = c.attr(strings)
    if texts is not None and len(texts):
        return None, len(texts)
    labels = [int(v) for v in c.attr(integers, ())]
    return labels, len(labels)


def labelled(c: Site, labels: list[int] | None, place: Value) -> Any:
    """The class labels at positions [N]; strings are nothing that a compiled model gives."""
    if labels is None:
        return Unavailable("a tensor of strings (class labels): take the scores instead, or export "
                           "the model with integer labels")
    if labels == list(range(len(labels))):
        return place
    return c.add("gather", [c.constant(np.array(labels, np.int64)), place], axis=0)


def best(c: Site, scores: Value) -> Value:
    """i64 [N]: the first column with the largest score."""
    return c.add("argmax", [scores], axis=1)


def above(c: Site, score: Value, threshold: float) -> Value:
    """i64 [N]: 1 where the score [N, 1] exceeds the threshold, else 0."""
    flat = c.add("reshape", [score], shape=(score.shape[0],))
    return cast(c, c.add("gt", [flat, scalar(c, threshold, score.dtype)]), dt.i64)
