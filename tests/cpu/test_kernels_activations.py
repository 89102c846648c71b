"""Compiled activation functions of f32 against double precision.

The bounds are those that passes/kernel/activations.py states; they hold with and without a fused
multiply-add.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from cpu.native_graphs import VARIANTS, Cases, interpreted
from cpu.test_kernels_elementary import SPECIAL, every_exponent, ulps

from smelt.ir import dtype as dt
from smelt.ir.expr import Expr, Op, cast, ramp, rebuild, var, walk
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.definition import OpContext, lookup
from smelt.ir.kernel.nodes import Call
from smelt.passes.kernel.elementary import exp_up_to_one
from smelt.passes.kernel.legalise import Capabilities, Legaliser

ERFC = np.vectorize(math.erfc, otypes=[np.float64])


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * logistic(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


FUNCTIONS: dict[str, tuple[str, dict, Callable[[np.ndarray], np.ndarray]]] = {
    "sigmoid": ("sigmoid", {}, logistic),
    "silu": ("silu", {}, lambda x: x * logistic(x)),
    "softplus": ("softplus", {}, softplus),
    "mish": ("mish", {}, lambda x: x * np.tanh(softplus(x))),
    "gelu": ("gelu", {"approximate": "none"}, lambda x: x * ERFC(-x * math.sqrt(0.5)) / 2),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}, gelu_tanh),
}
WITHIN = {"sigmoid": 3.5, "silu": 3.5, "softplus": 3.0, "mish": 5.0}
"""Units in the last place, for every argument from -86 on."""
NEAR = {"gelu": 2.5e-7, "gelu_tanh": 2.5e-7}
"""Distance over |x|, and for positive arguments no more than 4 units in the last place."""


def of_each(cases: Cases, values: np.ndarray) -> list[Value]:
    x = cases.input(array=values)
    found = [cases.graph.add(name, [x], dict(attrs)) for name, attrs, _ in FUNCTIONS.values()]
    for y in found:
        cases.output(y)
    return found


@pytest.mark.parametrize("target", VARIANTS)
def test_errors_stay_within_what_is_documented(target: str):
    cases = Cases(seed=30)
    dense = cases.rng.choice([-1, 1], 60000) * 2.0 ** cases.rng.uniform(-12, 6.6, 60000)
    values = np.concatenate([every_exponent(cases.rng, 16), dense.astype(np.float32)])
    of_each(cases, values)
    results = cases.compiled(target)[1](1)
    wide = values.astype(np.float64)
    for (name, (_, _, exact)), found in zip(FUNCTIONS.items(), results, strict=True):
        with np.errstate(all="ignore"):
            wanted = exact(wide)
            errors = ulps(found, wanted)
        finite = np.isfinite(wanted)
        assert np.array_equal(np.isnan(found), np.isnan(wanted)), name
        if name in WITHIN:
            near = values >= -86
            assert errors[near].max() <= WITHIN[name], name
            # Farther out exp(-x) may overflow, or exp(x) be denormal.
            far = values < -86
            assert np.abs(found[far] - wanted[far])[finite[far]].max() <= 5e-36, name
        else:
            numbers = finite & (np.abs(wide) > 1e-35)
            worst = (np.abs(found[numbers] - wanted[numbers]) / np.abs(wide[numbers])).max()
            positive = errors[finite & (values > 0)].max()
            print(name, worst, positive)
            assert worst <= NEAR[name] and positive <= 4.0, name


@pytest.mark.parametrize("target", VARIANTS)
def test_special_values(target: str):
    """Signed zeros, infinities, the largest numbers, denormals and NaN with any payload."""
    huge = np.array([3.4e38, -3.4e38, 1e20, -1e20, 90.0, -90.0, -104.0, -5.6, -1e-40, 1e-40],
                    np.float32)
    payloads = np.array([0x7FC00001, 0x7F800123, 0xFFC0FFFF], np.uint32).view(np.float32)
    values = np.concatenate([SPECIAL, huge, payloads])
    cases = Cases(seed=31)
    of_each(cases, values)
    results = dict(zip(FUNCTIONS, cases.compiled(target)[1](1), strict=True))
    for name, found in results.items():
        y = dict(zip(values.tolist(), found.tolist(), strict=True))
        assert np.isnan(found[np.isnan(values)]).all(), name
        if name == "sigmoid":
            assert y[math.inf] == 1 and y[-math.inf] == 0 and found[0] == found[1] == 0.5
            continue
        if name == "softplus":
            assert y[math.inf] == math.inf and y[-math.inf] == 0
            assert found[0] == found[1] == pytest.approx(math.log(2), rel=1e-7)
            continue
        assert y[math.inf] == math.inf and y[float(huge[0])] == float(huge[0]), name
        # The limit of -inf * 0 is no number, which is what the definition computes.
        assert math.isnan(y[-math.inf]), name
        assert found[0] == found[1] == 0 and not np.signbit(found[0]) and np.signbit(found[1])
        for x in (-3.4e38, -1e20):
            assert y[float(np.float32(x))] == 0 and np.signbit(
                found[values == np.float32(x)]).all(), name
        for x in (-1e-40, 1e-40):
            assert y[float(np.float32(x))] == pytest.approx(
                x * (0.6 if name == "mish" else 0.5), abs=2e-45), name


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("size", [1, 7, 16, 17, 33])
def test_vectors_and_their_tails_give_the_same_bits(target: str, size: int):
    cases = Cases(seed=size)
    values = (cases.rng.standard_normal(64) * 4).astype(np.float32)
    of_each(cases, values)
    of_each(cases, values[64 - size:])
    program, run = cases.compiled(target)
    results = run(1)
    for whole, part in zip(results[:len(FUNCTIONS)], results[len(FUNCTIONS):], strict=True):
        np.testing.assert_array_equal(part, whole[64 - size:])
    # The interpreter rounds a fused multiply-add twice, once in double precision.
    for got, want in zip(interpreted(cases, program), results, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_is_one_formula_with_at_most_one_division(name: str):
    """Also with the operands of sums and products in the other order, as graphs may have them."""
    x = var("x", dt.f32)
    op_name, attrs, _ = FUNCTIONS[name]
    body = lookup(op_name).body
    assert body is not None
    graph = Graph()
    node = graph.add(op_name, [graph.add_input("x", TensorType(dt.f32, ()))], dict(attrs)).node
    written = body(OpContext(node, None, lambda i, at: x), ())
    for e in (written, mirrored(written)):
        found = list(walk(Legaliser(Capabilities())(e)))
        assert sum(isinstance(y, Op) and y.name == "div" for y in found) == (name != "softplus")
        assert not any(isinstance(y, Op) and y.name in ("select", "lt") for y in found)
        assert not any(isinstance(y, Call) for y in found)
        assert len(found) < 60


def mirrored(e: Expr) -> Expr:
    """The expression with the operands of every sum, product and maximum exchanged."""
    args = tuple(mirrored(a) for a in e.args)
    swaps = isinstance(e, Op) and e.name in ("add", "mul", "max")
    return rebuild(e, args[::-1] if swaps else args)


@pytest.mark.parametrize("x", [var("x", dt.f32), cast(ramp(var("i"), 16), dt.f32)])
def test_softmax_needs_no_denormals(x):
    """The exponential of softmax is one formula, except where sums may be taken apart."""
    e = exp_up_to_one(x)
    found = list(walk(Legaliser(Capabilities())(e)))
    assert not any(isinstance(y, Call) or isinstance(y, Op) and y.name in ("select", "lt")
                   for y in found)
    found = list(walk(Legaliser(Capabilities(any_order=True))(e)))
    assert any(isinstance(y, Op) and y.name == "round" for y in found)
