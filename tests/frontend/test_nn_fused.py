"""Fused operators of com.microsoft against ONNX Runtime."""

import numpy as np
import pytest
from frontend.ort_peer import by_smelt, check, close, model, seeded
from onnx import TensorProto

from smelt.frontend.onnx.loader import load_model

M = {"domain": "com.microsoft"}


@pytest.fixture
def random(request):
    return seeded(request.node.name)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


@pytest.mark.parametrize(("activation", "params"), [
    ("Relu", []), ("Tanh", []), ("Sigmoid", []), ("LeakyRelu", [0.2]), ("Clip", [-0.5, 0.7]),
    ("HardSigmoid", [0.3, 0.4]),
])
def test_conv(random, activation, params):
    attrs = {"activation": activation, **({"activation_params": params} if params else {})}
    inputs = [normal(random, 2, 4, 8, 8), normal(random, 6, 4, 3, 3), normal(random, 6)]
    check("FusedConv", inputs, attrs, rtol=1e-4, atol=1e-4, **M)


def test_conv_with_residual(random):
    inputs = [normal(random, 2, 4, 8, 8), normal(random, 6, 4, 3, 3), normal(random, 6),
              normal(random, 2, 6, 8, 8)]
    check("FusedConv", inputs, {"activation": "Relu", "pads": [1, 1, 1, 1]}, rtol=1e-4, atol=1e-4,
          **M)


def test_products(random):
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    check("FusedMatMul", [normal(random, 2, 3, 4, 5), normal(random, 2, 3, 6, 5)],
          {"alpha": 0.3, "transB": 1}, **M, **tolerance)
    check("FusedMatMul", [normal(random, 3, 5, 4), normal(random, 3, 5, 6)],
          {"alpha": 0.3, "transA": 1}, **M, **tolerance)
    check("FusedMatMul", [normal(random, 4, 3, 5), normal(random, 5, 3, 6)],
          {"transBatchA": 1, "transBatchB": 1}, **M, **tolerance)
    check("FusedGemm", [normal(random, 5, 4), normal(random, 4, 6), normal(random, 6)],
          {"activation": "LeakyRelu", "activation_alpha": 0.3}, **M, **tolerance)


def test_activations(random):
    x = normal(random, 2, 3, 10)
    check("Gelu", [x], **M)
    check("BiasGelu", [x, normal(random, 10)], **M)
    check("FastGelu", [x, normal(random, 10)], **M)
    check("QuickGelu", [x], {"alpha": 1.5}, **M)
    check("Trilu", [x, np.array(1)], {"upper": 0}, **M)


def test_max_pool_of_channels_last(random):
    x = random.integers(0, 256, (2, 9, 8, 3), dtype=np.uint8)
    check("NhwcMaxPool", [x], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]},
          **M)


@pytest.mark.parametrize(("op", "shapes"), [
    ("SkipLayerNormalization", [(2, 3, 8), (2, 3, 8), (8,), (8,), (8,)]),
    ("SkipLayerNormalization", [(2, 3, 8), (3, 8), (8,)]),
    ("SkipSimplifiedLayerNormalization", [(2, 3, 8), (2, 3, 8), (8,), (8,)]),
])
def test_skip_normalization(random, op, shapes):
    check(op, [normal(random, *s) for s in shapes], {"epsilon": 1e-3}, **M)


def test_skip_normalization_gives_the_sum(random):
    x, skip, gamma = normal(random, 2, 3, 8), normal(random, 2, 3, 8), normal(random, 8)
    proto = model("SkipLayerNormalization", [x, skip, gamma], {}, outputs=4,
                  types=[TensorProto.FLOAT] * 4, **M)
    *_, total = by_smelt(load_model(proto), [x, skip, gamma])
    np.testing.assert_array_equal(total, x + skip)


def test_simplified_layer_normalization(random):
    check("SimplifiedLayerNormalization", [normal(random, 2, 3, 8), normal(random, 8)],
          {"epsilon": 1e-3, "axis": -1, "stash_type": 1}, outputs=2)


def test_embedding(random):
    ids, segments, mask = (random.integers(0, n, (2, 5), dtype=np.int32) for n in (9, 2, 2))
    tables = [normal(random, n, 8) for n in (9, 7, 2)]
    scale, shift = normal(random, 8), normal(random, 8)
    attrs = {"epsilon": 1e-4}
    check("EmbedLayerNormalization", [ids, segments, *tables, scale, shift, mask], attrs,
          outputs=2, names={0: "BS", 1: "BS", 7: "BS"}, **M)
    at = random.integers(0, 7, (2, 5), dtype=np.int32)
    check("EmbedLayerNormalization", [ids, None, *tables[:2], None, scale, shift, None, at], attrs,
          outputs=3, names={0: "BS", 8: "BS"}, **M)


# Without a peer on the CPU: numpy, from the operators' documentation ------------------------------


def found_by(op: str, inputs, attrs) -> list[np.ndarray]:
    proto = model(op, inputs, attrs, types=[TensorProto.FLOAT], **M)
    return by_smelt(load_model(proto), inputs)


def test_bias_softmax(random):
    x = normal(random, 2, 3, 4, 5)
    for bias, axis, inner in (((2, 1, 1, 5), 3, 1), ((4, 5), 2, 0)):
        b = normal(random, *bias)
        (found,) = found_by("BiasSoftmax", [x, b], {"axis": axis, "is_inner_broadcast": inner})
        total = (x + b).reshape(-1, int(np.prod(x.shape[axis:]))).astype(np.float64)
        e = np.exp(total - total.max(axis=1, keepdims=True))
        close(found, (e / e.sum(axis=1, keepdims=True)).reshape(x.shape).astype(np.float32),
              1e-5, 1e-6)


def test_bias_split_gelu_and_bias_add(random):
    from math import erf

    x, b = normal(random, 2, 3, 8), normal(random, 8)
    (found,) = found_by("BiasSplitGelu", [x, b], {})
    left, right = np.split((x + b).astype(np.float64), 2, axis=-1)
    wanted = left * right * (1 + np.vectorize(erf)(right / np.sqrt(2))) / 2
    close(found, wanted.astype(np.float32), 1e-5, 1e-5)
    (found,) = found_by("BiasAdd", [x, b, x], {})
    np.testing.assert_array_equal(found, x + b + x)


@pytest.mark.parametrize("last", [0, 1])
def test_group_norm(random, last):
    x, gamma, beta = normal(random, 2, 4, 5, 6), normal(random, 4), normal(random, 4)
    groups = x.reshape(2, 2, -1).astype(np.float64)
    y = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-3)
    y = y.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]
    y = y / (1 + np.exp(-y))
    given = x.transpose(0, 2, 3, 1).copy() if last else x
    attrs = {"groups": 2, "epsilon": 1e-3, "activation": 1, "channels_last": last}
    (found,) = found_by("GroupNorm", [given, gamma, beta], attrs)
    close(found, (y.transpose(0, 2, 3, 1) if last else y).astype(np.float32), 1e-4, 1e-4)
