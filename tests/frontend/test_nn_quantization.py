"""Quantised operators against ONNX Runtime: integer results are equal, or within one step where
ONNX Runtime rounds a sum of floats that it forms in another order."""

import numpy as np
import pytest
from frontend.ort_peer import by_runtime, by_smelt, check, model, seeded
from onnx import TensorProto

from smelt.frontend.onnx.loader import load_model

M = {"domain": "com.microsoft"}
EXACT = {"rtol": 0, "atol": 0}


class Draw:
    """Random operands: floats, bytes, scales."""

    def __init__(self, name: str):
        self.random = seeded(name)

    def f(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape, np.float32)

    def u(self, *shape: int) -> np.ndarray:
        return self.random.integers(0, 256, shape, dtype=np.uint8)

    def i(self, *shape: int, dtype=np.int8, bound: int = 128) -> np.ndarray:
        return np.asarray(self.random.integers(-bound, bound, shape), dtype)

    def s(self, *shape: int, by: float = 1.0) -> np.ndarray:
        return np.asarray(self.random.uniform(0.01, 0.1, shape) * by, np.float32)

    def ids(self, high: int, *shape: int, dtype=np.int32) -> np.ndarray:
        return self.random.integers(0, high, shape, dtype=dtype)


@pytest.fixture
def d(request):
    return Draw(request.node.name)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_linear(d, domain):
    check("QuantizeLinear", [5 * d.f(2, 4, 7), d.s(), d.u()], domain=domain, **EXACT)
    check("QuantizeLinear", [5 * d.f(2, 4, 7), d.s(4, by=0.01), d.i(4, dtype=np.int16)],
          {"axis": 1}, domain=domain, **EXACT)
    check("QuantizeLinear", [5 * d.f(2, 4, 7), d.s(7), d.i(7)], {"axis": -1}, domain=domain,
          **EXACT)
    check("DequantizeLinear", [d.u(2, 5), d.s(), d.u()], domain=domain)
    check("DequantizeLinear", [d.i(3, 4, dtype=np.int32, bound=9999), d.s(4)], {"axis": 1},
          domain=domain)


@pytest.mark.parametrize("extent", [12, 11])
def test_blocks(d, extent):
    attrs = {"axis": 1, "block_size": 4}
    check("QuantizeLinear", [d.f(3, extent, 2), d.s(3, 3, 2), d.u(3, 3, 2)], attrs,
          symbolic=False, **EXACT)
    check("DequantizeLinear", [d.u(3, extent, 2), d.s(3, 3, 2), d.u(3, 3, 2)], attrs,
          symbolic=False)


@pytest.mark.parametrize("shift", [0.0, 1.0, None])
def test_dynamic(d, shift):
    x = d.f(3, 5)
    x = np.zeros_like(x) if shift is None else np.abs(x) * shift + x * (1 - shift)
    check("DynamicQuantizeLinear", [x], outputs=3, rtol=1e-6, atol=0)


def test_products(d):
    check("QLinearMatMul", [d.u(2, 5, 7), d.s(), d.u(), d.i(7, 6), d.s(6), d.i(6), d.s(by=9),
                            d.u()], opset=10, **EXACT)
    check("QLinearMatMul", [d.i(5, 7), d.s(), d.i(), d.i(7, 6), d.s(), d.i(), d.s(by=9), d.i()],
          **EXACT)
    check("QLinearConv", [d.u(2, 4, 9, 8), d.s(), d.u(), d.i(6, 2, 3, 3), d.s(6),
                          np.zeros(6, np.int8), d.s(by=20), d.u(),
                          d.i(6, dtype=np.int32, bound=500)],
          {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1]}, constants=range(1, 9), **EXACT)
    check("QLinearConv", [d.u(2, 4, 9, 8), d.s(), d.u(), d.u(6, 4, 3, 3), d.s(), d.u(),
                          d.s(by=20), d.u()],
          {"auto_pad": "SAME_UPPER", "strides": [2, 1]}, constants=[3], **EXACT)
    check("QLinearConv", [d.u(2, 9, 8, 4), d.s(), d.u(), d.u(6, 4, 3, 3), d.s(), d.u(),
                          d.s(by=20), d.u()],
          {"channels_last": 1, "pads": [1, 1, 1, 1]}, constants=range(1, 8), **M, **EXACT)


def test_gemm(d):
    check("QGemm", [d.u(5, 7), d.s(), d.u(), d.i(6, 7), d.s(6), d.i(6),
                    d.i(6, dtype=np.int32, bound=500), d.s(by=20), d.u()], {"transB": 1},
          constants=[3], **M, **EXACT)
    check("QGemm", [d.u(5, 7), d.s(), d.u(), d.u(7, 6), d.s(), d.u(),
                    d.i(6, dtype=np.int32, bound=500)], {"alpha": 0.5}, **M)


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_arithmetic(d, op):
    check(op, [d.u(2, 3, 5), d.s(), d.u(), d.u(3, 1), d.s(), d.u(), d.s(), d.u()], atol=1,
          constants=[1, 2, 4, 5, 6, 7], **M)
    check(op, [d.i(2, 3, 5), d.s(), d.i(), d.i(3, 1), d.s(), d.i(), d.s()], atol=1,
          constants=[1, 2, 4, 5, 6], **M)


UNIT = (np.array(1 / 256, np.float32), np.zeros((), np.uint8))


@pytest.mark.parametrize(("op", "shape", "attrs", "unit"), [
    ("QLinearSigmoid", (2, 3, 5), {}, True), ("QLinearLeakyRelu", (2, 3, 5), {"alpha": 0.2}, False),
    ("QLinearSoftmax", (2, 3, 5), {"axis": -1, "opset": 13}, True),
    ("QLinearSoftmax", (2, 3, 5), {"axis": 1, "opset": 11}, True),
    ("QLinearGlobalAveragePool", (2, 3, 9, 8), {}, False),
    ("QLinearAveragePool", (2, 3, 9, 8),
     {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, False),
    ("QLinearAveragePool", (2, 9, 8, 3),
     {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "channels_last": 1,
      "count_include_pad": 1}, False),
])
def test_functions(d, op, shape, attrs, unit):
    out = UNIT if unit else (d.s(), d.u())
    check(op, [d.u(*shape), d.s(), d.u(), *out], attrs, atol=1, constants=[1, 2, 3, 4], **M)


def test_concat_and_where(d):
    check("QLinearConcat", [d.s(), d.u(), d.u(2, 3, 5), d.s(), d.u(), d.u(2, 4, 5), d.s(), d.u()],
          {"axis": 1}, atol=1, constants=[0, 1, 3, 4, 6, 7], **M)
    condition = d.random.random((3, 5)) > 0.5
    check("QLinearWhere", [condition, d.u(2, 3, 5), d.s(), d.u(), d.u(5), d.s(), d.u(), d.s(),
                           d.u()], atol=1, constants=[2, 3, 5, 6, 7, 8], **M)


def test_reduced_mean(d):
    """No peer on the CPU: dequantise, mean, quantise in numpy."""
    x, (s, z, t, y) = d.u(2, 3, 5), (d.s(), d.u(), d.s(), d.u())
    proto = model("QLinearReduceMean", [x, s, z, t, y], {"axes": [1], "keepdims": 0},
                  types=[TensorProto.UINT8], **M)
    (found,) = by_smelt(load_model(proto), [x, s, z, t, y])
    mean = ((x.astype(np.float64) - z) * s).mean(axis=1)
    wanted = np.clip(np.rint(mean / t) + y, 0, 255)
    assert np.abs(found.astype(np.float64) - wanted).max() <= 1


def test_integer_products_with_float_results(d):
    check("DynamicQuantizeMatMul", [d.f(2, 5, 7), d.i(7, 6), d.s(6), d.i(6), d.f(6)],
          constants=[1], **M)
    check("DynamicQuantizeMatMul", [d.f(5, 7), d.u(7, 6), d.s(), d.u()], **M)
    check("MatMulIntegerToFloat", [d.u(5, 7), d.i(7, 6), d.s(), d.s(6), d.u(), d.i(6), d.f(6)],
          **M)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("k", [64, 80])
def test_packed_weights(d, bits, k):
    blocks, blob = -(-k // 32), 4 * bits
    attrs = {"K": k, "N": 6, "bits": bits, "block_size": 32}
    a, b, s = d.f(2, 3, k), d.u(6, blocks, blob), d.s(6, blocks)
    packed = d.u(6, -(-blocks * bits // 8))
    for inputs in ([a, b, s], [a, b, s, packed, None, d.f(6)]):
        check("MatMulNBits", inputs, attrs, constants=[1, 2, 3], fixed=[5], rtol=1e-4, atol=1e-4,
              **M)
    if bits == 4 and k == 64:
        check("MatMulNBits", [a, b, s, d.f(6, blocks)], attrs, constants=[1, 2, 3], rtol=1e-4,
              atol=1e-4, **M)


@pytest.mark.parametrize("symbolic", [False, True])
def test_packed_weights_with_rounded_rows(d, symbolic):
    """Accuracy level 4 lets rows be 8-bit integers, 127 for a block's largest element: each element
    errs by half a step, and the product by those halves times the weights' magnitudes. Both sides
    round, not always the same way, so each is compared with numpy in f64."""
    attrs = {"K": 96, "N": 16, "bits": 4, "block_size": 32, "accuracy_level": 4}
    a, packed, scales = d.f(3, 96), d.u(16, 3, 16), d.s(16, 3)
    weights = np.stack([packed & 15, packed >> 4], -1).reshape(16, 3, 32) - 8.0
    weights *= scales[..., None]
    blocks = a.astype(np.float64).reshape(3, 3, 32)
    exact = np.einsum("mbk,nbk->mn", blocks, weights)
    half_steps = np.abs(blocks).max(-1) / 254
    bound = np.einsum("mb,nbk->mn", half_steps, np.abs(weights))
    inputs, held = [a, packed, scales], [1, 2]
    proto = model("MatMulNBits", inputs, attrs, constants=held, symbolic=symbolic, **M)
    for (found,) in (by_smelt(load_model(proto), inputs, held), by_runtime(proto, inputs, held)):
        assert found.dtype == np.float32 and found.shape == exact.shape
        # And 96 roundings to f32: 96 * 254 * 2^-24 of the bound.
        assert (np.abs(found - exact) <= 1.002 * bound).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_tables(d, bits):
    rows = d.ids(9, 2, 3, dtype=np.int64)
    check("GatherBlockQuantized", [d.u(9, 8 * bits), rows, d.s(9, 2), d.u(9, bits // 4)],
          {"block_size": 32, "bits": bits, "quantize_axis": 1}, constants=[0, 2, 3], **M)
