"""Zero points leave integer products: by the pass, and with the same results."""

from __future__ import annotations

import numpy as np
import pytest

from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.interpreter import interpret
from smelt.passes.graph.canonicalise import Canonicalise
from smelt.passes.graph.dce import DeadCode
from smelt.passes.graph.fold import Fold
from smelt.passes.graph.zero_points import ZeroPoints


def product(g: Graph, kind: str, x: Value, w: np.ndarray, **attrs) -> Value:
    return g.add(kind, [x, g.constant(w)], {"dtype": dt.i32, **attrs})


def after(g: Graph, unsigned: bool) -> list[str]:
    """The operators of the graph after the pass."""
    for one in (Canonicalise(), Fold(), ZeroPoints(unsigned), DeadCode()):
        one.run(g)
    return [n.op for n in g.ordered() if n.op != "constant"]


def given(rng: np.random.Generator, g: Graph, dtype: dt.DType, *shape: int) -> np.ndarray:
    g.add_input("x", TensorType(dtype, shape))
    return rng.integers(dtype.min, dtype.max, shape, endpoint=True).astype(dtype.numpy)


@pytest.mark.parametrize("dtype, zero", [(dt.u8, 128), (dt.u8, 0), (dt.i8, -7), (dt.i8, 0)],
                         ids=str)
@pytest.mark.parametrize("unsigned", [False, True])
def test_left_operands_stay_bytes(dtype, zero, unsigned, rng):
    """What pads a convolution is the zero point in whatever form the operand has."""
    for kind, shape, size, attrs in (
            ("conv", (2, 3, 5, 4), (4, 3, 3, 2), {"low": (1, 2), "high": (0, 1)}),
            ("matmul", (5, 7), (7, 3), {})):
        g = Graph()
        array = given(rng, g, dtype, *shape)
        x = g.inputs[0]
        if zero:
            x = g.add("sub", [g.add("cast", [x], {"to": dt.i32}), g.constant(np.int32(zero))])
        w = rng.integers(-128, 128, size).astype(np.int8)
        g.outputs.append(product(g, kind, x, w, **attrs))
        wanted = interpret(g, [array])[0]
        signed = dtype is dt.i8 and unsigned
        ops = after(g, unsigned)
        assert ops == (["cast", "add", "cast"] if signed else []) + [kind] + (
            ["add"] if zero or signed else [])
        left = next(n for n in g.ordered() if n.op == kind).inputs[0]
        assert left is not None and left.dtype is (dt.u8 if signed else dtype)
        np.testing.assert_array_equal(interpret(g, [array])[0], wanted)


def test_signed_depthwise_operands_stay_signed(rng):
    g = Graph()
    array = given(rng, g, dt.i8, 1, 4, 5, 6)
    w = rng.integers(-128, 128, (4, 1, 3, 3)).astype(np.int8)
    g.outputs.append(product(g, "conv", g.inputs[0], w, groups=4))
    wanted = interpret(g, [array])[0]
    assert after(g, True) == ["conv"]
    np.testing.assert_array_equal(interpret(g, [array])[0], wanted)


@pytest.mark.parametrize("least, narrow", [(-128, True), (-129, False)])
def test_weights_are_bytes_where_they_fit(least, narrow, rng):
    """Unsigned weights less a zero point of 128 fit signed bytes, those less 129 need not."""
    g = Graph()
    array = given(rng, g, dt.u8, 1, 4, 9)
    w = rng.integers(-5, 128, (2, 4, 3)).astype(np.int32)
    w[0, 0, 0] = least
    g.outputs.append(product(g, "conv", g.inputs[0], w))
    wanted = interpret(g, [array])[0]
    after(g, False)
    right = next(n for n in g.ordered() if n.op == "conv").inputs[1]
    assert right is not None and right.dtype is (dt.i8 if narrow else dt.i32)
    np.testing.assert_array_equal(interpret(g, [array])[0], wanted)
