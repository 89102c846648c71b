"""Pools, normalisation and softmax against ONNX Runtime."""

import numpy as np
import pytest
from frontend.ort_peer import check, model, seeded

from smelt.errors import ModelError
from smelt.frontend.onnx.loader import load_model


@pytest.fixture
def random(request):
    return seeded(request.node.name)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


MODES = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def sliding(mode: str, ceil: int) -> dict:
    pads = {"pads": [1, 1, 2, 0]} if mode == "NOTSET" else {}
    return {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": mode, "ceil_mode": ceil, **pads}


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_pools(random, mode, ceil):
    x, attrs = normal(random, 2, 4, 11, 10), sliding(mode, ceil)
    check("MaxPool", [x], attrs, outputs=2, rtol=0, atol=0)
    for included in (0, 1):
        check("AveragePool", [x], {**attrs, "count_include_pad": included})
    check("LpPool", [x], {**attrs, "p": 3})


@pytest.mark.parametrize(("shape", "attrs"), [
    ((2, 3, 12, 11), {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 0, 1],
                      "ceil_mode": 1, "strides": [2, 2], "storage_order": 1}),
    ((2, 3, 19), {"kernel_shape": [4], "strides": [3], "pads": [1, 2]}),
    ((2, 3, 9, 8, 7), {"kernel_shape": [2, 3, 3], "strides": [3, 1, 2],
                       "pads": [1, 2, 0, 1, 0, 0], "storage_order": 1}),
])
def test_max_pool_positions(random, shape, attrs):
    # Few values, so that maxima are tied and the first has to be found.
    x = random.integers(0, 4, shape).astype(np.float32)
    check("MaxPool", [x], attrs, outputs=2, rtol=0, atol=0)


def test_max_pool_of_bytes(random):
    x = random.integers(-128, 128, (2, 3, 9, 8), dtype=np.int8)
    check("MaxPool", [x], {"kernel_shape": [2, 3], "pads": [1, 1, 0, 0]}, opset=12, rtol=0, atol=0)


@pytest.mark.parametrize("included", [0, 1])
def test_average_pool_dilated(random, included):
    check("AveragePool", [normal(random, 2, 4, 11, 10)],
          {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 0, 1], "ceil_mode": 1,
           "strides": [2, 2], "count_include_pad": included})


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_global_pools(random, rank):
    x = normal(random, 2, 3, *(4, 5, 3)[:rank - 2])
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        check(op, [x])
    check("GlobalLpPool", [x], {"p": 3})


def test_max_unpool(random):
    x = normal(random, 1, 2, 3, 4)
    places = np.stack([random.permutation(6 * 8)[:12].reshape(3, 4) + k * 48 for k in range(2)])
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2]}
    check("MaxUnpool", [x, places[None]], attrs, symbolic=False)


def test_pool_refuses_a_bad_window(random):
    proto = model("MaxPool", [normal(random, 1, 2, 5, 5)], {"kernel_shape": [3]})
    with pytest.raises(ModelError, match="kernel_shape"):
        load_model(proto)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn(random, size):
    check("LRN", [normal(random, 2, 7, 4, 3)],
          {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 2.0})


@pytest.mark.parametrize("opset", [9, 15])
def test_batch_normalization(random, opset):
    x, (s, b, m) = normal(random, 2, 4, 5, 3), normal(random, 3, 4)
    check("BatchNormalization", [x, s, b, m, np.abs(normal(random, 4))], {"epsilon": 0.01},
          opset=opset)


def test_batch_normalization_training(random):
    x, (s, b, m) = normal(random, 2, 4, 5, 3), normal(random, 3, 4)
    check("BatchNormalization", [x, s, b, m, np.abs(normal(random, 4))],
          {"epsilon": 0.01, "training_mode": 1, "momentum": 0.7}, outputs=3)


@pytest.mark.parametrize(("op", "parameters", "attrs", "opset"), [
    ("InstanceNormalization", [(4,), (4,)], {"epsilon": 0.01}, 21),
    ("GroupNormalization", [(2,), (2,)], {"num_groups": 2}, 18),
    ("GroupNormalization", [(4,), (4,)], {"num_groups": 2}, 21),
    ("LayerNormalization", [(5, 6)], {"axis": 2}, 21),
    ("LayerNormalization", [(6,), (6,)], {"axis": -1}, 21),
    ("LayerNormalization", [(1, 6), (6,)], {"axis": -2}, 21),
    ("RMSNormalization", [(5, 6)], {"axis": 2, "epsilon": 1e-3}, 23),
    ("RMSNormalization", [(6,)], {"axis": 2, "epsilon": 1e-3}, 23),
    ("MeanVarianceNormalization", [], {"axes": [0, 2]}, 21),
    ("LpNormalization", [], {"axis": 1, "p": 1}, 21),
    ("LpNormalization", [], {"axis": -1, "p": 2}, 21),
])
def test_normalization(random, op, parameters, attrs, opset):
    inputs = [normal(random, 2, 4, 5, 6), *(normal(random, *s) for s in parameters)]
    check(op, inputs, attrs, opset=opset)


def test_layer_normalization_statistics(random):
    inputs = [normal(random, 3, 4, 5), normal(random, 5), normal(random, 5)]
    check("LayerNormalization", inputs, {"axis": -1, "epsilon": 1e-3}, outputs=3)


def test_layer_normalization_in_half_precision(random):
    # ONNX Runtime rounds to f16 in other places: a few units in the last place of values near 4.
    x, s = (normal(random, *n).astype(np.float16) for n in ((3, 4, 50), (50,)))
    check("LayerNormalization", [x, s], {"axis": -1}, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("opset", [9, 13])
def test_softmax(random, op, axis, opset):
    if opset < 11:
        axis %= 3
    check(op, [5 * normal(random, 3, 4, 5)], {"axis": axis}, opset=opset)
