"""The attention operator: its body against its reference, and both against plain numpy."""

import math

import ml_dtypes
import numpy as np
import pytest

from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType
from smelt.ir.graph.definition import lookup
from smelt.ir.graph.evaluate import evaluate_body
from smelt.ir.graph.interpreter import interpret

SHAPES = {"q": (2, 4, 5, 8), "k": (2, 2, 7, 8), "v": (2, 2, 7, 6)}


def build(dtype, attrs: dict, *extra: np.ndarray | None):
    """The graph and its inputs for random q, k, v and these bias and mask."""
    rng = np.random.default_rng(3)
    graph = Graph()
    arrays = [rng.normal(size=s).astype(dtype.numpy) for s in SHAPES.values()]
    values = [graph.add_input(n, TensorType(dtype, s)) for n, s in SHAPES.items()]
    for k, array in enumerate(extra):
        if array is None:
            values.append(None)
            continue
        arrays.append(array)
        values.append(graph.add_input(f"extra{k}", TensorType(dt.from_numpy(array), array.shape)))
    graph.outputs = [graph.add("attention", values, attrs)]
    return graph, arrays


def expected(q, k, v, scale=1.0, softcap=0.0, bias=None, mask=None, fill=-np.inf):
    """Attention in f64, head by head."""
    out = np.zeros((2, 4, 5, 6))
    for b in range(2):
        for h in range(4):
            scores = q[b, h].astype(np.float64) @ k[b, h // 2].astype(np.float64).T * scale
            if softcap:
                scores = np.tanh(scores / softcap) * softcap
            if bias is not None:
                scores = scores + np.broadcast_to(bias, (2, 4, 5, 7))[b, h]
            if mask is not None:
                scores = np.where(np.broadcast_to(mask, (2, 4, 5, 7))[b, h], scores, fill)
            e = np.exp(scores - scores.max(1, keepdims=True))
            out[b, h] = e / e.sum(1, keepdims=True) @ v[b, h // 2].astype(np.float64)
    return out


RNG = np.random.default_rng(5)
BIAS = RNG.normal(size=(1, 4, 1, 7)).astype(np.float32)
MASK = RNG.integers(0, 2, (2, 1, 5, 7)).astype(bool)
MASK[..., 0] = True
CASES = {
    "plain": ({}, (), {}),
    "scaled and capped": ({"scale": 0.3, "softcap": 2.0}, (), {"scale": 0.3, "softcap": 2.0}),
    "bias": ({}, (BIAS,), {"bias": BIAS}),
    "mask": ({"masked": True}, (None, MASK), {"mask": MASK}),
    "bias and mask": ({"fill": -1e9}, (BIAS, MASK), {"bias": BIAS, "mask": MASK, "fill": -1e9}),
    "causal": ({"causal": True, "offset": 2}, (), {"mask": np.tri(5, 7, 2, dtype=bool)}),
    "causal and mask": ({"causal": True}, (None, MASK),
                        {"mask": MASK & np.tri(5, 7, dtype=bool)}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [dt.f32, dt.f16, dt.bf16])
def test_reference_and_body(case, dtype):
    attrs, extra, wanted = CASES[case]
    graph, arrays = build(dtype, attrs, *(None if e is None or e.dtype == bool else e
                                          for e in extra[:1]), *extra[1:])
    want = expected(*arrays[:3], **wanted)
    # Probabilities and results are rounded to the operands' type.
    tolerance = {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2}[dtype.name]
    (found,) = interpret(graph, arrays)
    np.testing.assert_allclose(found.astype(np.float64), want, rtol=tolerance, atol=tolerance)
    node = graph.outputs[0].node
    body = lookup("attention").body
    given = iter(arrays)
    operands = [None if v is None else next(given) for v in node.inputs]
    again = evaluate_body(node, 0, body, operands)
    np.testing.assert_allclose(again.astype(np.float64), want, rtol=tolerance, atol=tolerance)


def test_rows_that_see_nothing():
    mask = MASK.copy()
    mask[0, 0, 1] = False
    graph, arrays = build(dt.f32, {"masked": True}, None, mask)
    (found,) = interpret(graph, arrays)
    assert (found[0, :, 1] == 0).all() and np.isfinite(found).all()
    graph, arrays = build(dt.f32, {}, None, mask)
    assert np.isnan(interpret(graph, arrays)[0][0, :, 1]).all()


@pytest.mark.parametrize(("shapes", "message"), [
    (((2, 4, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), "4 query heads do not divide into 3"),
    (((2, 4, 5, 8), (2, 2, 7, 9), (2, 2, 7, 6)), "different head sizes"),
    (((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 6, 6)), "different keys"),
    (((4, 5, 8), (4, 7, 8), (4, 7, 6)), "rank 4"),
])
def test_operands_are_checked(shapes, message):
    graph = Graph()
    values = [graph.add_input(str(i), TensorType(dt.f32, s)) for i, s in enumerate(shapes)]
    with pytest.raises(ModelError, match=message):
        graph.add("attention", values)


def test_biases_in_another_float_type():
    bias = BIAS.astype(ml_dtypes.bfloat16)
    graph, arrays = build(dt.f32, {"scale": math.pi}, bias)
    want = expected(*arrays[:3], scale=math.pi, bias=bias.astype(np.float64))
    np.testing.assert_allclose(interpret(graph, arrays)[0], want, rtol=1e-5, atol=1e-5)
