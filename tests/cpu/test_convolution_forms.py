"""Convolutions of random forms on the CPU against ONNX Runtime, all by templates.

Tolerance: sums of n products in another order differ by at most about n units in the last place of
the sum of magnitudes; operands are near 1 and n is below a thousand, so 2e-4 leaves a margin.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cpu.native_graphs import VARIANTS, Cases, check, interpreted
from onnx import TensorProto, helper, numpy_helper

from smelt.frontend.onnx.loader import load_model
from smelt.ir import dtype as dt
from smelt.ir.graph.core import Value
from smelt.ir.program import Program

TEMPLATES = re.compile(r"k\d+_(conv|conv_transpose|depthwise|winograd|matmul)$")


class OnnxCases(Cases):
    """Convolution nodes of one ONNX model, which ONNX Runtime runs as well. Weights are constants,
    or inputs when `given`."""

    def __init__(self, seed: int, given: bool = False):
        super().__init__(seed)
        self.given = given
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.weights: list[Any] = []
        self.results: list[str] = []

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def _input(self, array: np.ndarray) -> str:
        name = f"x{len(self.arrays)}"
        self.arrays.append(array)
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
        return name

    def node(self, op: str, x: np.ndarray, weights: np.ndarray, after: str = "",
             **attrs: Any) -> None:
        """op(x, weights, a bias), and an operator `after` it."""
        k = len(self.arrays)
        features = weights.shape[0] if op == "Conv" else weights.shape[1] * attrs.get("group", 1)
        operands = [self._input(x), f"w{k}", f"b{k}"]
        if self.given:
            operands[1] = self._input(weights)
        else:
            self.weights.append(numpy_helper.from_array(weights, f"w{k}"))
        self.weights.append(numpy_helper.from_array(self.normal(features), f"b{k}"))
        result = f"y{k}"
        self.nodes.append(helper.make_node(op, operands, [result], **attrs))
        if after:
            result = f"z{k}"
            self.nodes.append(helper.make_node(after, [f"y{k}"], [result]))
        self.results.append(result)

    def finished(self) -> OnnxCases:
        graph = helper.make_graph(
            self.nodes, "forms", self.inputs,
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in self.results],
            self.weights)
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)],
                                       ir_version=9)
        self.graph = load_model(self.model)
        return self

    def expected(self) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(self.model.SerializeToString(),
                                               providers=["CPUExecutionProvider"])
        named = {f"x{k}": a for k, a in enumerate(self.arrays)}
        return [np.asarray(y) for y in session.run(None, named)]


def check_kernels(c: Cases, program: Program) -> None:
    """There are as many kernels by templates as outputs."""
    names = [k.name for k in program.kernels()]
    assert sum(bool(TEMPLATES.match(n)) for n in names) >= len(c.graph.outputs), names


def verified(c: OnnxCases, target: str) -> None:
    """Native and interpreted results are those of ONNX Runtime, each node by a template."""
    c.finished()
    program = check(c, target, 0, 2e-4)
    check_kernels(c, program)
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 2e-4)


def some(rng: np.random.Generator, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def random_form(c: OnnxCases, op: str, rank: int, groups: int, channels: int,
                features: int) -> None:
    """One node of `groups` groups of `channels` to `features` with windows, strides, dilations and
    paddings at random."""
    rng = c.rng
    window = [some(rng, 1, 2, 3, 4) for _ in range(rank)]
    strides = [some(rng, 1, 2, 3) for _ in range(rank)]
    dilations = [some(rng, 1, 1, 2, 3) for _ in range(rank)]
    reach = [(k - 1) * d for k, d in zip(window, dilations, strict=True)]
    low, high = ([int(rng.integers(r + 1)) for r in reach] for _ in range(2))
    least = [max(1, r + 1 - p - q) for r, p, q in zip(reach, low, high, strict=True)]
    sizes = [n + int(rng.integers((20, 9, 5)[rank - 1])) for n in least]
    attrs: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads": low + high,
                             "group": groups}
    shape = (groups * features, channels)
    if op == "ConvTranspose":
        sizes = [some(rng, 1, 2, 5, 8) + r for r in range(rank)]
        full = [(n - 1) * s + r for n, s, r in zip(sizes, strides, reach, strict=True)]
        # Something must be left of every axis.
        low = [min(p, f // 2) for p, f in zip(low, full, strict=True)]
        high = [min(p, f // 2) for p, f in zip(high, full, strict=True)]
        attrs["pads"] = low + high
        attrs["output_padding"] = [int(rng.integers(s)) for s in strides]
        shape = (groups * channels, features)
    c.node(op, c.normal(some(rng, 1, 2), groups * channels, *sizes), c.normal(*shape, *window),
           some(rng, "", "Relu", "Sigmoid"), **attrs)


FORMS = [(1, 3, 5), (1, 8, 17), (1, 1, 40), (2, 8, 8), (2, 3, 24), (3, 1, 1), (5, 2, 3), (6, 4, 4),
         (17, 1, 1), (4, 1, 3), (9, 2, 1), (8, 1, 2), (3, 17, 2), (4, 5, 16), (7, 8, 4)]
"""Groups, channels and features of each."""


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_random_forms(op, rank, target, rng):
    c = OnnxCases(int(rng.integers(1 << 31)))
    for groups, channels, features in FORMS:
        random_form(c, op, rank, groups, channels, features)
    verified(c, target)


@pytest.mark.parametrize("target, rank", [("cpu", 2), ("cpu", 3), ("cpu:x86-64-v3", 1),
                                          ("cpu:generic", 2)])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_random_forms_with_given_weights(op, target, rank, rng):
    c = OnnxCases(int(rng.integers(1 << 31)), given=True)
    for groups, channels, features in FORMS:
        random_form(c, op, rank, groups, channels, features)
    verified(c, target)


@pytest.mark.parametrize("given", [False, True], ids=["constant", "given"])
def test_parts_of_lines_and_pointwise_groups(given, rng):
    """Few long lines are divided among tasks; the pixels of pointwise convolutions are one line."""
    c = OnnxCases(int(rng.integers(1 << 31)), given)
    c.node("Conv", c.normal(1, 24, 1999), c.normal(32, 24, 5), pads=[3, 1], strides=[2])
    c.node("Conv", c.normal(2, 12, 4001), c.normal(20, 3, 3), group=4, dilations=[2])
    c.node("ConvTranspose", c.normal(1, 16, 1201), c.normal(16, 32, 5), strides=[3], pads=[1, 2])
    c.node("Conv", c.normal(2, 15, 13, 17), c.normal(33, 5, 1, 1), "Relu", group=3)
    c.node("Conv", c.normal(1, 8, 3, 5, 7), c.normal(16, 1, 1, 1, 1), "Sigmoid", group=8)
    verified(c, "cpu")


def test_long_weights_are_divided_by_panels(rng):
    c = OnnxCases(int(rng.integers(1 << 31)))
    c.node("Conv", c.normal(1, 192, 4, 5), c.normal(288, 64, 3, 3) / 24, group=3, pads=[1] * 4)
    c.node("ConvTranspose", c.normal(1, 72, 3, 4), c.normal(72, 144, 4, 4) / 24, strides=[2, 2])
    c.node("Conv", c.normal(1, 3400, 3), c.normal(3400, 4, 11) / 6, group=850, pads=[5, 5])
    verified(c, "cpu")


@pytest.mark.parametrize("target", VARIANTS)
def test_weights_that_the_run_computes(target, rng):
    """Weights out of arithmetic (weight standardisation, modulation by an input) and decoded from
    8 bits are computed once, ahead of the convolution."""
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    for shape, groups in (((24, 5, 3, 3), 1), ((6, 1, 3, 2), 6), ((20, 2, 1, 1), 4)):
        style = c.input(shape[0], 1, 1, 1)
        for w in (g.constant(c.rng.standard_normal(shape).astype(np.float32)),
                  g.add("cast", [c.input(dtype=dt.i8, array=c.rng.integers(
                      -8, 8, shape).astype(np.int8))], {"to": dt.f32})):
            x = c.input(2, groups * shape[1], 7, 9)
            modulated = g.add("mul", [w, style])
            y = g.add("conv", [x, modulated], {"groups": groups, "low": (1, 0), "high": (1, 1)})
            c.output(g.add("relu", [y]))
    program = check(c, target, 0, 2e-3)
    check_kernels(c, program)


def test_weights_and_image_may_be_one_tensor(rng):
    c = Cases(int(rng.integers(1 << 31)))
    x = c.input(array=c.rng.standard_normal((6, 6, 5, 5)).astype(np.float32) / 4)
    c.output(c.graph.add("conv", [x, x], {"low": (2, 2), "high": (2, 2)}))
    c.output(c.graph.add("conv", [c.input(3, 4, 6), c.input(8, 2, 3)], {"groups": 2}))
    check_kernels(c, check(c, "cpu", 0, 2e-4))


@pytest.mark.parametrize("target", VARIANTS[:2])
def test_symbolic_sizes(target, rng):
    c = Cases(int(rng.integers(1 << 31)), symbolic=True)

    def weights(*shape: int) -> Value:
        return c.graph.constant(c.rng.standard_normal(shape).astype(np.float32))

    for groups, channels in ((2, 20), (5, 10), (1, 6)):
        x = c.input(2, channels, 9, 14, fixed=(1,))
        c.output(c.graph.add("conv", [x, weights(40, channels // groups, 3, 2)], {
            "groups": groups, "low": (1, 0), "high": (0, 2), "strides": (2, 1)}))
        x = c.input(1, channels, 7, 11, fixed=(1,))
        sizes = tuple((d - 1) * s + 3 for d, s in zip(x.shape[2:], (2, 3), strict=True))
        c.output(c.graph.add("conv_transpose", [x, weights(channels, 20, 4, 4)], {
            "groups": groups, "low": (1, 0), "sizes": sizes, "strides": (2, 3),
            "dilations": (1, 2)}))
        x = c.input(2, channels, 23, fixed=(1,))
        c.output(c.graph.add("relu", [c.graph.add(
            "conv", [x, weights(20, channels // groups, 1)], {"groups": groups})]))
    check(c, target, 0, 2e-4, ["conv_transpose"])


@pytest.mark.parametrize("target", VARIANTS)
def test_groups_of_integers_are_exact(target, rng):
    """8-bit groups of every width, with a zero point and without one, whose lines end in borders
    that begin within a group of four."""
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    for groups, channels, features in ((1, 3, 5), (1, 1, 17), (2, 6, 8), (3, 5, 1), (4, 4, 4),
                                       (6, 1, 2), (8, 3, 3)):
        for zero in (0, 77):
            x = c.input(dtype=dt.u8, array=c.rng.integers(
                0, 256, (1, groups * channels, 7, 9)).astype(np.uint8))
            wide = g.add("sub", [g.add("cast", [x], {"to": dt.i32}), g.constant(np.int32(zero))])
            w = c.rng.integers(-128, 128, (groups * features, channels, 3, 3)).astype(np.int8)
            c.output(g.add("conv", [wide, g.constant(w)], {
                "low": (1, 2), "high": (2, 1), "groups": groups, "dtype": dt.i32}))
    check(c, target, 0, 0)


def test_no_product_crosses_groups(rng):
    """Infinities stay in their own groups."""
    c = OnnxCases(int(rng.integers(1 << 31)))
    for groups in (2, 4, 8):
        x = c.normal(1, 16, 6, 5)
        x[:, 1] = np.inf
        c.node("Conv", x, np.abs(c.normal(16, 16 // groups, 3, 3)), group=groups, pads=[1] * 4)
    c.finished()
    _, run = c.compiled("cpu")
    for got, want in zip(run(1), c.expected(), strict=True):
        np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
        np.testing.assert_allclose(got, want, 0, 2e-4)
