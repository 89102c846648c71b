"""Methods of quantisation on matrices: what each promises of the error, and GPTQ against its
textbook form.

Correlated rows are what the methods are for: X = Z A with fewer independent directions than
columns, and columns of very different size.
"""

from __future__ import annotations

import numpy as np
import pytest

from smelt.errors import UsageError
from smelt.ir.encoding.base import Affine, parse
from smelt.passes.compress.awq import awq, smoothing
from smelt.passes.compress.descent import descent
from smelt.passes.compress.gptq import DAMPING, gptq
from smelt.passes.compress.scheme import METHODS, WEIGHTS, check_method, parse_scheme
from smelt.passes.compress.statistics import Statistics, relative_error, squared_error

TEXTS = ["int{group=32,zeros=true}", "int{group=16,bits=3}", "int{bits=2,zeros=true}",
         "ternary{group=32}"]


def affine(text: str) -> Affine:
    encoding = parse(text)
    assert isinstance(encoding, Affine)
    return encoding


def problem(rng, n: int, k: int, rows: int = 300) -> tuple[np.ndarray, Statistics, np.ndarray]:
    mix = rng.standard_normal((max(2, k // 3), k)) * np.exp(rng.standard_normal(k))
    x = rng.standard_normal((rows, len(mix))) @ mix + 0.1 * rng.standard_normal((rows, k))
    x = x.astype(np.float32)
    statistics = Statistics(k)
    for part in np.array_split(x, 3):
        statistics.update(part)
    return rng.standard_normal((n, k)).astype(np.float32), statistics, x


def result_error(w: np.ndarray, x: np.ndarray, encoding: Affine, arrays) -> float:
    """Measured on the data themselves, not by the Gram matrix."""
    now = encoding.unpack(arrays, w.shape[1])
    return float(np.linalg.norm(x.astype(np.float64) @ (w - now).T))


def test_statistics_tell_the_error_of_results(rng):
    w, statistics, x = problem(rng, 5, 37)
    v = w + 0.1 * rng.standard_normal(w.shape).astype(np.float32)
    exact = np.linalg.norm(x.astype(np.float64) @ (w - v).T.astype(np.float64))
    assert np.sqrt(squared_error(w.astype(np.float64) - v, statistics.gram)) == pytest.approx(
        exact, rel=1e-4)
    whole = np.linalg.norm(x.astype(np.float64) @ w.T.astype(np.float64))
    assert relative_error(w, v, statistics.gram) == pytest.approx(exact / whole, rel=1e-4)
    assert statistics.rows == len(x)
    np.testing.assert_allclose(statistics.magnitude, np.abs(x).sum(0), rtol=1e-5)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("k", [64, 172])
def test_calibrated_methods_beat_rounding(text, k, rng):
    encoding = affine(text)
    w, statistics, x = problem(rng, 24, k)
    plain = result_error(w, x, encoding, encoding.pack(w))
    by_gptq = result_error(w, x, encoding, gptq(w, encoding, statistics))
    by_descent = result_error(w, x, encoding, descent(w, encoding, statistics))
    assert by_descent < by_gptq < plain
    factors = smoothing([w], encoding, statistics)
    wide = w if factors is None else w * factors
    gram = statistics.gram if factors is None else statistics.gram / np.outer(factors, factors)
    now = encoding.unpack(awq(wide, encoding, gram), k)
    now = now if factors is None else now / factors
    by_awq = np.linalg.norm(x.astype(np.float64) @ (w - now).T)
    # Nothing but the factors is chosen for ternary weights, and 1 may be the best.
    assert by_awq < plain or (text.startswith("ternary") and factors is None)


def textbook(w: np.ndarray, encoding: Affine, statistics: Statistics) -> np.ndarray:
    """GPTQ as optimal brain surgeon states it: after each column the inverse of the Gram matrix of
    those left is computed anew. Returns what the weights become."""
    k = w.shape[1]
    scale, zero = encoding.parameters(w)
    s, z = (encoding.spread(a, k).astype(np.float64) for a in (scale, zero))
    gram = statistics.gram + np.eye(k) * DAMPING * np.mean(np.diagonal(statistics.gram))
    rest, done = w.astype(np.float64), np.empty(w.shape)
    order = list(np.argsort(-np.diagonal(statistics.gram), kind="stable"))
    for step, i in enumerate(order):
        left = order[step:]
        inverse = np.linalg.inv(gram[np.ix_(left, left)])
        field = np.clip(np.rint(rest[:, i] / s[:, i]) + z[:, i], 0, encoding.highest)
        done[:, i] = (field - z[:, i]) * s[:, i]
        error = (rest[:, i] - done[:, i]) / inverse[0, 0]
        rest[:, left] -= np.outer(error, inverse[0])
    return done


def test_gptq_is_what_its_paper_says(rng):
    """With the same scales: ternary ranges are not narrowed. A tie may fall either way."""
    encoding = affine("ternary{group=32}")
    w, statistics, _ = problem(rng, 8, 150)  # more than a block of columns
    got = encoding.unpack(gptq(w, encoding, statistics), 150)
    want = textbook(w, encoding, statistics)
    assert (np.abs(got - want) < 1e-5).mean() > 0.98


@pytest.mark.parametrize("method", [gptq, descent])
def test_inputs_that_are_always_zero(method, rng):
    """They tell nothing, and break nothing."""
    encoding = affine("int{group=32}")
    w, _, x = problem(rng, 6, 40)
    x[:, 7] = x[:, 33] = 0
    statistics = Statistics(40)
    statistics.update(x)
    assert np.isfinite(encoding.unpack(method(w, encoding, statistics), 40)).all()
    silent = Statistics(40)
    silent.update(np.zeros_like(x))
    assert np.isfinite(encoding.unpack(method(w, encoding, silent), 40)).all()
    assert smoothing([w], encoding, silent) is None


def test_weights_of_one_column_and_of_zeros(rng):
    for text in TEXTS:
        encoding = affine(text)
        w, statistics, _ = problem(rng, 3, 1)
        for method in (gptq, descent):
            got = encoding.unpack(method(w, encoding, statistics), 1)
            assert np.isfinite(got).all()
            assert not encoding.unpack(method(w * 0, encoding, statistics), 1).any()


def test_vocabulary():
    for name in WEIGHTS:
        scheme = parse_scheme(name)
        assert not scheme.rounded and scheme.weights.group == WEIGHTS[name][1]
        assert parse_scheme(f"{name}a8", 0).rounded and not parse_scheme(name, 0).weights.group
    for method in METHODS:
        assert check_method(method, parse_scheme("w4a8")) == method
    with pytest.raises(UsageError, match=r"no scheme 'w5' .* did you mean .*w4"):
        parse_scheme("w5")
    with pytest.raises(UsageError, match="use one of w8, w8a8, w4"):
        parse_scheme("#")
    with pytest.raises(UsageError, match="multiple of 16"):
        parse_scheme("w4", 20)
    with pytest.raises(UsageError, match="no method"):
        check_method("magic", parse_scheme("w4"))
