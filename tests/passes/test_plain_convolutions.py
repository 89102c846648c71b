"""Transposed convolutions become ordinary ones where that takes fewer products.

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
from smelt.passes.graph import plain_convolutions
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


@pytest.fixture
def always(monkeypatch) -> None:
    """Makes ordinary ones of all that can be, whatever it costs."""
    monkeypatch.setattr(plain_convolutions, "MOST_PHASES", 0)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("low", [0, 1, 2])
def test_one_axis(stride, window, low, always):
    for extra in (-1, 0, 1, 4):
        out = (6 - 1) * stride + window - low + extra
        if out < 1:
            continue
        g = transposed((2, 4, 6), 6, (window,), strides=(stride,), low=(low,), sizes=(out,))
        assert "conv_transpose" not in left_over(g)


def test_two_axes():
    g = transposed((2, 8, 5, 7), 6, (3, 4), strides=(1, 2), low=(1, 1), sizes=(5, 14))
    assert "conv" in left_over(g)


@pytest.mark.parametrize("features, form", [(4, "conv"), (8, "conv_transpose"),
                                            (64, "conv_transpose")])
def test_phases_together_fill_vectors_where_channels_are_few(features, form):
    """Windows of 4 x 4 are 2 x 2 for each phase and 3 x 3 for all together: 9 vector products
    against 16 where a vector holds four phases, 18 where it holds two, 144 against 64."""
    g = transposed((1, 16, 6, 6), features, (4, 4), strides=(2, 2), low=(1, 1), sizes=(12, 12))
    assert left_over(g)[0] == form


def test_groups_and_many_phases():
    g = transposed((2, 8, 5, 7), 12, (3, 4), 2, strides=(1, 2), low=(1, 1), sizes=(5, 14))
    assert left_over(g) == ["conv_transpose"]
    g = transposed((2, 8, 5, 7), 12, (3, 4), 2, strides=(1, 1), low=(1, 1), sizes=(5, 8))
    assert left_over(g) == ["conv"]
    g = transposed((1, 8, 2, 2), 32, (8, 8), strides=(8, 8), low=(0, 0), sizes=(16, 16))
    assert left_over(g)[0] == "conv"


def test_the_usual_upsampling_needs_no_cut():
    g = transposed((1, 16, 6, 6), 4, (4, 4), strides=(2, 2), low=(1, 1), sizes=(12, 12))
    assert left_over(g) == ["conv", "reshape", "transpose", "reshape"]


def test_symbolic_sizes():
    n = size("N")
    g = transposed((1, 4, n), 6, (5,), strides=(2,), low=(2,), sizes=(2 * n - 1,))
    assert left_over(g)[0] == "conv"


def test_dilated_windows(always):
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
