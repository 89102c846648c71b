"""Linear models and support vector machines of ai.onnx.ml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dtype as dt
from ....ir.graph.core import Value
from ..building import cast, scalar
from ..registry import Site, importer
from ..scores import (
    above,
    best,
    class_labels,
    labelled,
    post_transform,
    rows,
    transformed,
    two_columns,
)


def _floats(c: Site, name: str) -> np.ndarray:
    return np.asarray(c.attr(name) if c.attr(name) is not None else (), np.float32)


def _affine(c: Site, x: Value, coefficients: np.ndarray, intercepts: np.ndarray) -> Value:
    """x [N, F] times coefficients [C, F], plus intercepts."""
    y = c.add("matmul", [x, c.constant(coefficients.T.astype(x.dtype.numpy))])
    if intercepts.size and intercepts.any():
        y = c.add("add", [y, c.constant(intercepts.reshape(1, -1).astype(x.dtype.numpy))])
    return y


def _matrix(c: Site, x: Value, values: np.ndarray, count: int) -> np.ndarray:
    width = x.shape[1]
    if count < 1 or values.size % count or (
            isinstance(width, int) and values.size != count * width):
        raise c.error(f"{values.size} coefficients for {count} outputs of rows {x.type}")
    return values.reshape(count, -1)


@importer("LinearRegressor", domain="ai.onnx.ml")
def linear_regressor(c: Site) -> Value:
    x = rows(c)
    matrix = _matrix(c, x, _floats(c, "coefficients"), int(c.attr("targets", 1)))
    scores = _affine(c, x, matrix, _floats(c, "intercepts"))
    return cast(c, transformed(c, scores, post_transform(c)), dt.f32)


@importer("LinearClassifier", domain="ai.onnx.ml")
def linear_classifier(c: Site) -> Sequence[Any]:
    x, kind = rows(c), post_transform(c)
    labels, count = class_labels(c, "classlabels_ints", "classlabels_strings")
    coefficients, intercepts = _floats(c, "coefficients"), _floats(c, "intercepts")
    targets = intercepts.size or count
    scores = _affine(c, x, _matrix(c, x, coefficients, targets), intercepts)
    if targets == 1:
        if count != 2:
            raise c.error(f"one score cannot decide between {count} classes")
        return [labelled(c, labels, above(c, scores, 0.0)),
                cast(c, two_columns(c, scores, kind, True), dt.f32)]
    if count not in (0, targets):
        raise c.error(f"{targets} scores for {count} classes")
    return [labelled(c, labels if labels is None or count else list(range(targets)),
                     best(c, scores)),
            cast(c, transformed(c, scores, kind), dt.f32)]


# Support vector machines ------------------------------------------------------------------------


def _kernel(c: Site, x: Value, vectors: np.ndarray) -> Value:
    """[N, V]: the kernel function of rows and support vectors."""
    kind = c.attr("kernel_type", "LINEAR")
    given = [float(v) for v in (c.attr("kernel_params") or (0.0, 0.0, 0.0))]
    if len(given) != 3 or kind not in ("LINEAR", "POLY", "RBF", "SIGMOID"):
        raise c.error(f"kernel {kind!r} with parameters {given} is unknown")
    gamma, offset, degree = given

    def number(value: float) -> Value:
        return scalar(c, value, x.dtype)

    if kind == "RBF":
        # |x - v|^2 term by term: the expanded square loses digits.
        one = c.add("reshape", [x], shape=(x.shape[0], 1, vectors.shape[1]))
        apart = c.add("sub", [one, c.constant(vectors[None].astype(x.dtype.numpy))])
        square = c.add("reduce_sum", [c.add("mul", [apart, apart])], axes=(2,))
        return c.add("exp", [c.add("mul", [square, number(-gamma)])])
    product = c.add("matmul", [x, c.constant(vectors.T.astype(x.dtype.numpy))])
    if kind == "LINEAR":
        return product
    product = c.add("add", [c.add("mul", [product, number(gamma)]), number(offset)])
    if kind == "SIGMOID":
        return c.add("tanh", [product])
    return c.add("pow", [product, number(degree)])


@importer("SVMRegressor", domain="ai.onnx.ml")
def svm_regressor(c: Site) -> Value:
    x, count = rows(c), int(c.attr("n_supports", 0))
    coefficients, rho = _floats(c, "coefficients"), _floats(c, "rho")
    if rho.size != 1:
        raise c.error(f"rho has {rho.size} entries, not 1")
    if count > 0:
        kernel = _kernel(c, x, _matrix_of(c, _floats(c, "support_vectors"), count))
        scores = _affine(c, kernel, _matrix(c, kernel, coefficients, 1), rho)
    else:
        scores = _affine(c, x, _matrix(c, x, coefficients, 1), rho)
    if c.attr("one_class", 0):
        one = scalar(c, 1.0, x.dtype)
        positive = c.add("gt", [scores, scalar(c, 0.0, x.dtype)])
        scores = c.add("select", [positive, one, c.add("neg", [one])])
    return cast(c, transformed(c, scores, post_transform(c)), dt.f32)


def _matrix_of(c: Site, values: np.ndarray, count: int) -> np.ndarray:
    if values.size % count:
        raise c.error(f"{values.size} numbers do not make {count} support vectors")
    return values.reshape(count, -1)


@importer("SVMClassifier", domain="ai.onnx.ml")
def svm_classifier(c: Site) -> Sequence[Any]:
    x, kind = rows(c), post_transform(c)
    labels, count = class_labels(c, "classlabels_ints", "classlabels_strings")
    coefficients, rho = _floats(c, "coefficients"), _floats(c, "rho")
    per_class = [int(v) for v in c.attr("vectors_per_class") or ()]
    if not sum(per_class):
        count = max(count, 1)
        matrix = _matrix(c, x, coefficients, count)
        scores = _affine(c, x, matrix, np.repeat(rho[:1], count))
        return [labelled(c, labels, best(c, scores)),
                cast(c, transformed(c, scores, kind), dt.f32)]
    if len(per_class) != count or count < 2:
        raise c.error(f"support vectors of {len(per_class)} classes for {count} labels")
    pairs = count * (count - 1) // 2
    total = sum(per_class)
    if rho.size != pairs or coefficients.size != total * (count - 1):
        raise c.error(f"{rho.size} offsets and {coefficients.size} coefficients for {total} "
                      f"support vectors of {count} classes")
    kernel = _kernel(c, x, _matrix_of(c, _floats(c, "support_vectors"), total))
    # One column of weights per pair of classes, so that all decisions are one product.
    dual, starts = coefficients.reshape(count - 1, total), np.cumsum([0, *per_class])
    weights = np.zeros((pairs, total), np.float32)
    sides = [(i, j) for i in range(count) for j in range(i + 1, count)]
    for k, (i, j) in enumerate(sides):
        own, other = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        weights[k, own], weights[k, other] = dual[j - 1, own], dual[i, other]
    decisions = _affine(c, kernel, weights, rho)
    won = c.add("gt", [decisions, scalar(c, 0.0, x.dtype)])
    votes = np.zeros((2, pairs, count), np.float32)
    for k, (i, j) in enumerate(sides):
        votes[0, k, i], votes[1, k, j] = 1, 1
    # votes = won @ votes[0] + (1 - won) @ votes[1]
    tally = _affine(c, cast(c, won, dt.f32), (votes[0] - votes[1]).T, votes[1].sum(0))
    place = best(c, tally)
    a, b = _floats(c, "prob_a"), _floats(c, "prob_b")
    if a.size:
        scores = _probabilities(c, decisions, a, b, count)
        return [labelled(c, labels, place), cast(c, transformed(c, scores, kind), dt.f32)]
    if count > 2:
        return [labelled(c, labels, place), cast(c, transformed(c, decisions, kind), dt.f32)]
    return [labelled(c, labels, place),
            cast(c, two_columns(c, decisions, kind, kind != "NONE"), dt.f32)]


def _probabilities(c: Site, decisions: Value, a: np.ndarray, b: np.ndarray, count: int) -> Value:
    """Class probabilities from decision values (Platt's sigmoids, then coupled)."""
    pairs = decisions.shape[1]
    if a.size != pairs or b.size != pairs:
        raise c.error(f"prob_a and prob_b have {a.size} and {b.size} entries for {pairs} pairs")
    own = decisions.dtype
    slope, shift = (c.constant(v.reshape(1, -1).astype(own.numpy)) for v in (a, b))
    value = c.add("add", [c.add("mul", [decisions, slope]), shift])
    p = c.add("sigmoid", [c.add("neg", [value])])
    p = c.add("min", [c.add("max", [p, scalar(c, 1e-7, own)]), scalar(c, 1 - 1e-7, own)])
    return c.add("couple_probabilities", [p], classes=count)
