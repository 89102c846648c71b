"""TfIdfVectorizer on random token rows, against ONNX Runtime."""

import numpy as np
import onnx.helper as oh
import onnxruntime as ort
import pytest

from smelt.errors import ModelError
from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret


def model_of(x: np.ndarray, dims, **attrs):
    node = oh.make_node("TfIdfVectorizer", ["x"], ["y"], **attrs)
    graph = oh.make_graph(
        [node], "g", [oh.make_tensor_value_info("x", oh.np_dtype_to_tensor_dtype(x.dtype), dims)],
        [oh.make_tensor_value_info("y", 1, None)])
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 9)], ir_version=8)


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("low, high, skips", [(1, 1, 0), (1, 2, 0), (2, 2, 3), (1, 3, 2),
                                              (3, 3, 9)])
@pytest.mark.parametrize("shape", [(11,), (3, 11), (2, 2), (1, 7)])
def test_counts_of_ngrams(mode: str, low: int, high: int, skips: int, shape):
    print("seed", low + 10 * high + skips)
    rng = np.random.default_rng(low + 10 * high + skips)
    x = rng.integers(0, 4, shape)
    grams = [np.unique(rng.integers(0, 4, (5, n)), axis=0) for n in (1, 2, 3)]
    total = sum(map(len, grams))
    starts = np.cumsum([0, *(g.size for g in grams)])[:3]
    attrs = {
        "mode": mode, "min_gram_length": low, "max_gram_length": high, "max_skip_count": skips,
        "pool_int64s": np.concatenate([g.ravel() for g in grams]).tolist(),
        "ngram_counts": starts.tolist(), "ngram_indexes": rng.permutation(total).tolist(),
        "weights": rng.random(total).astype(np.float32).tolist()}
    for dims in (list(shape), [f"s{k}" for k in range(len(shape))]):
        model = model_of(x, dims, **attrs)
        (got,) = interpret(load_model(model), [x])
        want = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, 1e-6)


def test_ngrams_of_strings_are_refused():
    x = np.zeros((2, 3), np.int64)
    with pytest.raises(ModelError, match="give the model token numbers"):
        load_model(model_of(x, [2, 3], mode="TF", min_gram_length=1, max_gram_length=1,
                            max_skip_count=0, pool_strings=["a"], ngram_counts=[0],
                            ngram_indexes=[0]))


