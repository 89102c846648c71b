"""Products of dequantised operands become integer products, with the results that floats give.

Sums of integers are exact, those of f32 are not, so a quantised result may be the neighbour where
it lies between two; results in floats agree to the rounding of f32 sums.
"""

from __future__ import annotations

import numpy as np
import pytest
from cpu.native_graphs import Cases, check

from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.interpreter import interpret
from smelt.passes.graph.canonicalise import Canonicalise
from smelt.passes.graph.dce import DeadCode
from smelt.passes.graph.fold import Fold
from smelt.passes.graph.integer_products import IntegerProducts


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    """Sums of at most 300 products of f32."""
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


CONV = ((2, 5, 9, 7), (6, 5, 3, 2), {"low": (1, 0), "high": (0, 1), "strides": (2, 1)})
DEPTHWISE = ((1, 6, 7, 8), (6, 1, 3, 3), {"groups": 6, "low": (1, 1), "high": (1, 1)})
LINE = ((1, 4, 13), (8, 2, 3), {"groups": 2})
MATMUL = ((2, 3, 37), (37, 5), {})
PRODUCTS = [CONV, DEPTHWISE, LINE, MATMUL]


def dequantised(g: Graph, x: Value, scale, zero=0) -> Value:
    """(x - zero) * scale; no zero point where it is 0."""
    zero = np.asarray(zero, x.dtype.numpy)
    zeros = [g.constant(zero)] if zero.any() else []
    return g.add("dequantize", [x, *zeros, g.constant(np.asarray(scale, np.float32))])


def quantised(g: Graph, x: Value, scale: float, zero: int, to: dt.DType) -> Value:
    return g.add("quantize", [x, g.constant(np.float32(scale)), g.constant(np.float32(zero))],
                 {"to": to})


class Product:
    """A graph of one product of a dequantised input of bytes and dequantised weights."""

    def __init__(self, rng: np.random.Generator, form, dtype: dt.DType = dt.u8, zero: int = 0,
                 per_feature: bool = True, weights: dt.DType = dt.i8, weight_zero: int = 0):
        shape, size, attrs = form
        self.rng, self.graph = rng, Graph()
        g = self.graph
        x = g.add_input("x", TensorType(dtype, shape))
        self.array = rng.integers(dtype.min, dtype.max, shape, endpoint=True).astype(dtype.numpy)
        w = rng.integers(weight_zero - 127, weight_zero + 128, size)
        w = np.clip(w, weights.min, weights.max).astype(weights.numpy)
        self.spatial = len(size) - 2
        axis = 0 if self.spatial else 1
        self.features = size[axis]
        scale = rng.uniform(0.001, 0.02, self.along() if per_feature else ())
        if per_feature and self.spatial:
            scale = scale.reshape(-1, *(1,) * (len(size) - 1))
        self.product = g.add("conv" if self.spatial else "matmul", [
            dequantised(g, x, 0.037, zero), dequantised(g, g.constant(w), scale, weight_zero)],
            attrs)

    def along(self) -> tuple[int, ...]:
        """The shape that broadcasts along the features."""
        return (1, self.features, *(1,) * self.spatial) if self.spatial else (self.features,)

    def bias(self) -> np.ndarray:
        return self.rng.standard_normal(self.along()).astype(np.float32)

    def run(self) -> np.ndarray:
        return np.asarray(interpret(self.graph, [self.array])[0])

    def after(self) -> list[str]:
        """The operators that the pass leaves, constants aside."""
        assert IntegerProducts().run(self.graph)
        for one in (Canonicalise(), Fold(), Canonicalise(), DeadCode()):
            one.run(self.graph)
        return [n.op for n in self.graph.ordered() if n.op != "constant"]


@pytest.mark.parametrize("form", PRODUCTS, ids=["conv", "depthwise", "line", "matmul"])
@pytest.mark.parametrize("dtype, zero", [(dt.u8, 0), (dt.u8, 113), (dt.i8, -7)], ids=str)
@pytest.mark.parametrize("per_feature", [False, True])
def test_a_product_is_one_of_integers_times_a_scale(form, dtype, zero, per_feature, rng):
    p = Product(rng, form, dtype, zero, per_feature)
    p.graph.outputs.append(p.product)
    wanted = p.run()
    ops = p.after()
    assert ops == ["conv" if form is not MATMUL else "matmul", *(["add"] if zero else []), "cast",
                   "mul"]
    close(p.run(), wanted)


def test_weights_lose_their_zero_point(rng):
    """Unsigned weights around 128, whose differences fit signed bytes."""
    p = Product(rng, CONV, weights=dt.u8, weight_zero=128)
    p.graph.outputs.append(p.product)
    wanted = p.run()
    assert p.after() == ["conv", "cast", "mul"]
    conv = next(n for n in p.graph.ordered() if n.op == "conv")
    assert conv.inputs[1] is not None and conv.inputs[1].dtype is dt.i8
    close(p.run(), wanted)


def test_weights_of_a_transposed_matrix(rng):
    """What Gemm with transB becomes: weights dequantised by rows, then transposed."""
    g = Graph()
    x = g.add_input("x", TensorType(dt.u8, (3, 11)))
    w = rng.integers(-127, 128, (4, 11)).astype(np.int8)
    wide = dequantised(g, g.constant(w), rng.uniform(0.01, 0.1, (4, 1)))
    right = g.add("transpose", [wide], {"perm": (1, 0)})
    g.outputs.append(g.add("matmul", [dequantised(g, x, 0.1, 7), right]))
    array = rng.integers(0, 256, (3, 11)).astype(np.uint8)
    wanted = interpret(g, [array])[0]
    assert IntegerProducts().run(g)
    assert [n.output.dtype for n in g.ordered() if n.op == "matmul"] == [dt.i32]
    close(interpret(g, [array])[0], wanted)


@pytest.mark.parametrize("form", PRODUCTS, ids=["conv", "depthwise", "line", "matmul"])
@pytest.mark.parametrize("clip, to, zero, whole", [
    ("", dt.u8, 100, True), ("", dt.i8, -5, True), ("relu", dt.u8, 0, True),
    ("relu", dt.u8, 3, False), ("relu6", dt.u8, 0, True), ("relu1", dt.u8, 0, False)], ids=str)
def test_a_quantised_result_is_requantised(form, clip, to, zero, whole, rng):
    """By one factor, where clipping is no narrower than what the integers do."""
    p = Product(rng, form, dt.u8, 9)
    g, y = p.graph, p.product
    y = g.add("add", [y, g.constant(p.bias())])
    if clip:
        y = g.add("relu", [y])
    if len(clip) > 4:
        y = g.add("min", [y, g.constant(np.float32(clip[4:]))])
    scale = 6 / 255 if clip == "relu6" else 0.05
    g.outputs.append(quantised(g, y, scale, zero, to))
    wanted = p.run().astype(int)
    ops = p.after()
    assert ("mul" in ops) is not whole and ops[-1] == "requantize"
    assert np.ptp(wanted) >= 20
    assert np.abs(p.run().astype(int) - wanted).max() <= 1


def test_integer_biases_are_added_as_they_are(rng):
    """i32 in units of the product's scale, behind a reshape, as importers write them."""
    p = Product(rng, CONV, per_feature=False)
    g = p.graph
    units = rng.integers(-9999, 9999, p.features).astype(np.int32)
    conv = p.product.node
    assert conv is not None
    weight_scale = conv.inputs[1].node.inputs[-1].constant  # type: ignore[union-attr]
    bias = g.add("reshape", [dequantised(g, g.constant(units), 0.037 * weight_scale)],
                 {"shape": p.along()})
    g.outputs.append(quantised(g, g.add("add", [p.product, bias]), 0.1, 128, dt.u8))
    wanted = p.run().astype(int)
    assert p.after() == ["conv", "add", "requantize"]
    added = next(n for n in g.ordered() if n.op == "add").inputs[1]
    assert added is not None and added.constant is not None
    np.testing.assert_array_equal(added.constant.reshape(-1), units)
    assert np.abs(p.run().astype(int) - wanted).max() <= 1


def test_what_is_no_product_of_bytes_by_features_stays(rng):
    """Scales along the sum, blocks, scales that a run tells, and sums that leave the i32."""
    def graph(scale: np.ndarray, rows: int = 8, runtime: bool = False) -> Graph:
        g = Graph()
        x = g.add_input("x", TensorType(dt.u8, (2, rows)))
        at = g.add_input("s", TensorType(dt.f32, ())) if runtime else g.constant(np.float32(0.1))
        w = g.constant(np.full((rows, 3), 127, np.int8))
        g.outputs.append(g.add("matmul", [g.add("dequantize", [x, at]), dequantised(g, w, scale)]))
        return g

    assert IntegerProducts().run(graph(rng.uniform(0.1, 1, 3)))
    assert not IntegerProducts().run(graph(rng.uniform(0.1, 1, (8, 1))))
    assert not IntegerProducts().run(graph(np.array(0.1), runtime=True))
    assert not IntegerProducts().run(graph(np.array(-0.1)))
    assert IntegerProducts().run(graph(np.array(0.1), 33155))
    assert not IntegerProducts().run(graph(np.array(0.1), 33156))  # * 127 * 255 > 2^30


def block(c: Cases) -> None:
    """A residual block of bytes: an ordinary, a depthwise and a pointwise convolution, the sum of
    the first and the last, and a matrix product of its mean."""
    rng, g = c.rng, c.graph

    def layer(x: Value, size: tuple[int, ...], **attrs) -> Value:
        w = g.constant(rng.integers(-127, 128, size).astype(np.int8))
        scale = rng.uniform(0.5, 1, (size[0], *(1,) * (len(size) - 1))) * 0.03 / np.sqrt(
            np.prod(size[1:]))
        y = g.add("conv", [x, dequantised(g, w, scale)], attrs)
        bias = rng.standard_normal((1, size[0], 1, 1)).astype(np.float32)
        return g.add("add", [y, g.constant(bias)])

    def through(x: Value, scale: float, zero: int) -> Value:
        return dequantised(g, quantised(g, x, scale, zero, dt.u8), scale, zero)

    array = rng.integers(0, 256, (1, 19, 9, 7)).astype(np.uint8)
    x = dequantised(g, c.input(dtype=dt.u8, array=array), 0.02, 120)
    x = through(g.add("relu", [layer(x, (33, 19, 3, 3), low=(1, 1), high=(1, 1))]), 0.01, 0)
    y = layer(x, (33, 1, 3, 3), groups=33, low=(1, 1), high=(1, 1))
    y = through(g.add("min", [g.add("relu", [y]), g.constant(np.float32(2.55))]), 0.01, 0)
    y = through(layer(y, (33, 33, 1, 1)), 0.02, 128)
    y = through(g.add("add", [x, y]), 0.03, 125)
    mean = through(g.add("reduce_mean", [y], {"axes": (2, 3), "keepdims": False}), 0.01, 128)
    w = g.constant(rng.integers(-127, 128, (33, 10)).astype(np.int8))
    out = g.add("matmul", [mean, dequantised(g, w, rng.uniform(0.001, 0.01, 10))])
    c.output(out)


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:generic"])
def test_whole_blocks_run_on_bytes(target, rng):
    """No kernel keeps a tensor of the image's size in floats. One step of each of the quantisations
    in a row, which tell on what follows, is 0.03 at most."""
    c = Cases(int(rng.integers(1 << 31)))
    block(c)
    program = check(c, target, 0.03, 0.03)
    names = [k.name for k in program.kernels()]
    assert sum(n.endswith(("_conv", "_matmul", "_depthwise")) for n in names) == 4, names
    large = [p for k in program.kernels() for p in k.params
             if p.dtype is dt.f32 and p.shape[0] == 33 * 63]
    assert not large
