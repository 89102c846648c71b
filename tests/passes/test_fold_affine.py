"""Constant scales and offsets go into weights."""

import numpy as np
import pytest
from graph_texts import assert_same_results, check

from smelt.ir import dtype as dt
from smelt.ir.graph.clone import clone_graph
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.base import Pipeline

PIPELINE = Pipeline.parse("canonicalise,fold,fold_affine,dce")


class Products:
    """A graph with one input and random constants."""

    def __init__(self, *shape: int, dtype=dt.f32):
        self.g = Graph()
        self.rng = np.random.default_rng()
        self.dtype = dtype
        self.x = self.g.add_input("x", TensorType(dtype, shape))

    def constant(self, *shape: int) -> Value:
        # Away from 0, so that quotients are tame.
        array = self.rng.uniform(0.5, 2, shape) * self.rng.choice([-1, 1], shape)
        return self.g.constant(array, dtype=self.dtype)

    def add(self, op: str, *inputs: Value, **attrs) -> Value:
        return self.g.add(op, inputs, attrs)

    def run(self, result: Value) -> list[str]:
        """The operators that are left; the meaning is checked."""
        self.g.outputs = [result]
        before = clone_graph(self.g)
        PIPELINE.run(self.g)
        verify(self.g)
        loose = 1e-4 if self.dtype is dt.f32 else 5e-2
        assert_same_results(before, self.g, 5, rtol=loose, atol=loose * 10)
        return [n.op for n in self.g.ordered() if n.op != "constant"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("op", ["mul", "div"])
def test_batch_normalisation(groups, op):
    p = Products(2, 4, 5, 5)
    y = p.add("conv", p.x, p.constant(8, 4 // groups, 3, 3), groups=groups, low=(1, 1),
              high=(1, 0))
    y = p.add("add", y, p.constant(1, 8, 1, 1))
    y = p.add("sub", y, p.constant(1, 8, 1, 1))
    y = p.add(op, y, p.constant(1, 8, 1, 1))
    y = p.add("mul", y, p.constant(8, 1, 1))
    y = p.add("add", y, p.constant(1, 8, 1, 1))
    assert p.run(y) == ["conv", "add"]


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups):
    p = Products(1, 4, 5, 5)
    y = p.add("conv_transpose", p.x, p.constant(4, 6 // groups, 2, 2), sizes=(6, 6),
              groups=groups)
    assert p.run(p.add("mul", y, p.constant(1, 6, 1, 1))) == ["conv_transpose"]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(), (1, 4, 1, 1)])
def test_scale_before_a_convolution(groups, shape):
    p = Products(2, 4, 5, 5)
    x = p.add("mul", p.x, p.constant(*shape))
    y = p.add("conv", x, p.constant(6, 4 // groups, 3, 3), groups=groups, low=(1, 1), high=(1, 1))
    assert p.run(y) == ["conv"]


def test_offset_before_a_convolution_without_padding():
    p = Products(2, 4, 5, 5)
    x = p.add("add", p.x, p.constant(1, 4, 1, 1))
    y = p.add("conv", x, p.constant(6, 2, 3, 3), groups=2)
    assert p.run(y) == ["conv", "add"]
    p = Products(2, 4, 5, 5)
    x = p.add("add", p.x, p.constant(1, 4, 1, 1))
    y = p.add("conv", x, p.constant(6, 4, 3, 3), low=(1, 1), high=(1, 1))
    assert p.run(y) == ["add", "conv"]


def test_matrix_products():
    p = Products(3, 5, 4)
    x = p.add("add", p.add("mul", p.x, p.constant(4)), p.constant(4))
    y = p.add("matmul", x, p.constant(4, 6))
    y = p.add("add", p.add("mul", p.add("add", y, p.constant(6)), p.constant(1, 6)), p.constant())
    assert p.run(y) == ["matmul", "add"]


def test_weights_on_the_left():
    p = Products(4, 6)
    x = p.add("mul", p.x, p.constant(4, 1))
    y = p.add("mul", p.add("matmul", p.constant(3, 4), x), p.constant(3, 1))
    assert p.run(y) == ["matmul"]


def test_scales_along_other_axes_stay():
    p = Products(2, 4, 5, 5)
    y = p.add("conv", p.x, p.constant(6, 4, 3, 3))
    assert p.run(p.add("mul", y, p.constant(3, 1))) == ["conv", "mul"]
    p = Products(5, 4)
    y = p.add("matmul", p.x, p.constant(4, 6))
    assert p.run(p.add("mul", y, p.constant(5, 1))) == ["matmul", "mul"]


def test_products_that_others_use_stay():
    check("fold_affine", """(%x: f32[2, 2]) {
        %w: f32[2, 2] = constant {value = [1.0, 2.0, 3.0, 4.0]}
        %s: f32[] = constant {value = 2.0}
        %a: f32[2, 2] = matmul(%x, %w)
        %y: f32[2, 2] = mul(%a, %s)
        return %y, %a
    }""")


def test_results_that_overflow_stay():
    p = Products(2, 4, dtype=dt.f16)
    w = p.g.constant(np.full((4, 3), 3e4), dtype=dt.f16)
    y = p.add("mul", p.add("matmul", p.add("mul", p.x, p.g.constant(1e-4, dtype=dt.f16)), w),
              p.g.constant(np.full(3, 4.0), dtype=dt.f16))
    p.g.outputs = [y]
    Pipeline.parse("fold_affine").run(p.g)
    for node in p.g.nodes:
        if node.op == "constant":
            assert np.isfinite(node.attrs["value"].astype(np.float64)).all()


def test_weights_are_rounded_once():
    p = Products(1, 1, dtype=dt.f32)
    w, s = np.float32(1.1), np.float32(1.3)
    y = p.add("mul", p.add("matmul", p.x, p.g.constant(w.reshape(1, 1))), p.g.constant(s))
    p.g.outputs = [p.add("mul", y, p.g.constant(np.float32(0.7)))]
    PIPELINE.run(p.g)
    (found,) = (n.attrs["value"] for n in p.g.nodes if n.op == "constant")
    first = np.float32(np.float64(w) * np.float64(s))
    assert found[0, 0] == np.float32(np.float64(first) * np.float64(np.float32(0.7)))
