"""Transposed convolutions become ordinary ones, few groups become one.

Tolerance: the same products in another order, some hundred of them.
"""

import numpy as np
import pytest
from graph_texts import assert_same_results

from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.graph.clone import clone_graph
from smelt.ir.graph.core import Graph, TensorType
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.base import Pipeline

PIPELINE = Pipeline.parse("plain_convolutions,dce")


def left_over(g: Graph) -> list[str]:
    """The operators after the pass; the meaning is checked."""
    before = clone_graph(g)
    PIPELINE.run(g)
    verify(g)
    assert_same_results(before, g, 3, rtol=1e-4, atol=1e-4)
    return [n.op for n in g.ordered() if n.op != "constant"]


def transposed(x_shape, features: int, window, groups: int = 1, **attrs) -> Graph:
    seed = int(np.random.default_rng().integers(1 << 31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    g = Graph()
    for d in x_shape:
        if not isinstance(d, int):
            g.symbols[d.name] = (1, 9)
    x = g.add_input("x", TensorType(dt.f32, x_shape))
    w = g.constant(rng.standard_normal((x_shape[1], features // groups, *window)), dtype=dt.f32)
    g.outputs = [g.add("conv_transpose", [x, w], {"groups": groups, **attrs})]
    return g


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("low", [0, 1, 2])
def test_one_axis(stride, window, low):
    for extra in (-1, 0, 1, 4):
        out = (6 - 1) * stride + window - low + extra
        if out < 1:
            continue
        g = transposed((2, 4, 6), 6, (window,), strides=(stride,), low=(low,), sizes=(out,))
        assert "conv_transpose" not in left_over(g)


def test_two_axes_and_groups():
    for groups in (1, 2, 4):
        g = transposed((2, 8, 5, 7), 12, (3, 4), groups, strides=(1, 2), low=(1, 1),
                       sizes=(5, 14))
        assert "conv" in left_over(g)


def test_the_usual_upsampling_needs_no_cut():
    g = transposed((1, 16, 6, 6), 8, (4, 4), strides=(2, 2), low=(1, 1), sizes=(12, 12))
    assert left_over(g) == ["conv", "reshape", "transpose", "reshape"]


def test_symbolic_sizes():
    n = size("N")
    g = transposed((1, 4, n), 6, (5,), strides=(2,), low=(2,), sizes=(2 * n - 1,))
    assert left_over(g)[0] == "conv"


def test_dilated_windows():
    g = transposed((1, 4, 6, 5), 4, (3, 1), 4, strides=(1, 2), dilations=(2, 1), low=(1, 0),
                   sizes=(8, 9))
    assert left_over(g)[0] == "conv"


def test_dilated_strides_and_weights_of_the_run_stay():
    g = transposed((1, 4, 6), 6, (3,), strides=(2,), dilations=(2,), low=(0,), sizes=(15,))
    assert left_over(g) == ["conv_transpose"]
    g = Graph()
    x, w = (g.add_input(k, TensorType(dt.f32, s)) for k, s in (("x", (1, 4, 6)), ("w", (4, 2, 3))))
    g.outputs = [g.add("conv_transpose", [x, w], {"sizes": (8,)})]
    assert left_over(g) == ["conv_transpose"]


@pytest.mark.parametrize("groups, channels, features, merged", [
    (2, 8, 8, True), (2, 16, 64, True), (4, 4, 8, False), (4, 16, 16, True), (8, 32, 32, False)])
def test_few_groups(groups, channels, features, merged):
    g = Graph()
    x = g.add_input("x", TensorType(dt.f32, (2, channels, 6, 5)))
    rng = np.random.default_rng(3)
    w = g.constant(rng.standard_normal((features, channels // groups, 3, 3)), dtype=dt.f32)
    g.outputs = [g.add("conv", [x, w], {"groups": groups, "low": (1, 1), "strides": (2, 1)})]
    assert left_over(g) == ["conv"]
    (conv,) = (n for n in g.ordered() if n.op == "conv")
    assert (conv.attrs["groups"] == 1) == merged
