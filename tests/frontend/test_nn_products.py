"""Matrix products and convolutions against ONNX Runtime (tolerance: f32 sums of a few hundred
terms, 1e-4); integer products are exact."""

import numpy as np
import pytest
from frontend.ort_peer import check, close, seeded

from smelt.errors import ModelError
from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def random(request):
    return seeded(request.node.name)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def unsigned(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(0, 256, shape, dtype=np.uint8)


def signed(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(-128, 128, shape, dtype=np.int8)


@pytest.mark.parametrize(("a", "b"), [
    ((5,), (5,)), ((5,), (3, 5, 2)), ((2, 3, 5), (5,)), ((4, 5), (5, 3)), ((2, 1, 4, 5), (3, 5, 2)),
    ((1, 4, 5), (6, 5, 1)),
])
def test_matmul(random, a, b):
    check("MatMul", [normal(random, *a), normal(random, *b)], symbolic=False, **TOLERANCE)
    x, y = (random.integers(-9, 9, s, dtype=np.int32) for s in (a, b))
    check("MatMul", [x, y], symbolic=False)


@pytest.mark.parametrize(("shapes", "attrs"), [
    (((5, 4), (6, 5), (6,)), {"transA": 1, "transB": 1, "alpha": 0.3, "beta": 1.7}),
    (((5, 4), (4, 6), (5, 1)), {"beta": 0.5}), (((5, 4), (4, 6)), {"alpha": 2.0}),
    (((5, 4), (4, 6), ()), {}),
])
def test_gemm(random, shapes, attrs):
    check("Gemm", [normal(random, *s) for s in shapes], attrs, **TOLERANCE)


@pytest.mark.parametrize(("equation", "shapes"), [
    ("bij, bjk -> bik", [(2, 3, 4), (2, 4, 5)]), ("bhwc,hkc->bhwk", [(2, 3, 4, 5), (3, 6, 5)]),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]), ("i,j->ij", [(3,), (4,)]), ("ij->ji", [(3, 4)]),
    ("ii->i", [(4, 4)]), ("...ii->...i", [(2, 4, 4)]), ("iij->j", [(3, 3, 4)]), ("ij->", [(3, 4)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (5, 4, 6)]), ("ij,ij->ij", [(3, 4), (3, 4)]),
    ("abc,cd", [(2, 3, 4), (4, 5)]), ("ij,jk->ki", [(1, 3), (3, 4)]), ("bn,anm,bm->ba",
     [(2, 3), (5, 3, 4), (2, 4)]), ("i...,i->...", [(3, 2, 4), (3,)]),
    ("ij,kj->ik", [(3, 1), (4, 5)]),
    ("BA,AC", [(2, 3), (3, 4)]), ("ijk,ik->ij", [(2, 3, 4), (2, 4)]),
])
def test_einsum(random, equation, shapes):
    inputs = [normal(random, *s) for s in shapes]
    graph = load_model(_einsum(equation, inputs))
    wanted = np.einsum(equation.replace(" ", ""), *(x.astype(np.float64) for x in inputs))
    (found,) = interpret(graph, inputs)
    close(found, np.asarray(wanted, np.float32), 1e-4, 1e-4)


def _einsum(equation: str, inputs, symbolic: bool = False):
    from frontend.ort_peer import model

    return model("Einsum", inputs, {"equation": equation}, symbolic=symbolic)


@pytest.mark.parametrize("equation", ["ij,jk", "i,->j", "ij->ik", "i.j->i", "i1->i"])
def test_einsum_refuses(random, equation):
    with pytest.raises(ModelError, match="Einsum"):
        load_model(_einsum(equation, [normal(random, 2, 3)]))


CONVOLUTIONS = {
    "padded": ((2, 4, 11, 10), (6, 4, 2, 3), {"pads": [0, 1, 2, 3], "dilations": [2, 2]}),
    "upper": ((2, 4, 11, 10), (6, 4, 2, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "lower": ((2, 4, 11, 10), (6, 2, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 3],
                                            "group": 2}),
    "valid": ((2, 4, 11, 10), (6, 4, 2, 3), {"auto_pad": "VALID", "strides": [2, 1]}),
    "depthwise": ((1, 6, 9, 9), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    "line": ((1, 3, 17), (5, 3, 4), {"pads": [2, 1], "strides": [3]}),
    "volume": ((1, 3, 5, 6, 7), (5, 3, 2, 3, 2), {"pads": [1, 0, 1, 1, 1, 0]}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv(random, name):
    x, w, attrs = CONVOLUTIONS[name]
    check("Conv", [normal(random, *x), normal(random, *w), normal(random, w[0])], attrs,
          constants=[1, 2], **TOLERANCE)


@pytest.mark.parametrize("mode", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("extra", [0, 1])
def test_conv_transpose(random, mode, extra):
    x = normal(random, 2, 4, 11, 10)
    grouped = {"group": 2, "strides": [2, 3], "auto_pad": mode, "dilations": [1, 2],
               "output_padding": [extra, extra]}
    check("ConvTranspose", [x, normal(random, 4, 3, 3, 2), normal(random, 6)], grouped,
          constants=[1, 2], **TOLERANCE)
    wanted = {"strides": [2, 3], "auto_pad": mode, "output_padding": [extra, extra],
              "output_shape": [22, 29]}
    check("ConvTranspose", [x, normal(random, 4, 3, 4, 3)], wanted, **TOLERANCE)


def test_conv_transpose_of_a_line(random):
    check("ConvTranspose", [normal(random, 1, 3, 9), normal(random, 3, 2, 4)],
          {"pads": [1, 2], "strides": [3]}, **TOLERANCE)


@pytest.mark.parametrize("mask", [False, True])
def test_deform_conv(random, mask):
    inputs = [normal(random, 2, 4, 11, 10), normal(random, 6, 2, 3, 2),
              2 * normal(random, 2, 24, 11, 5), normal(random, 6)]
    inputs += [normal(random, 2, 12, 11, 5)] if mask else []
    check("DeformConv", inputs, {"group": 2, "offset_group": 2, "kernel_shape": [3, 2],
                                 "pads": [1, 0, 1, 1], "strides": [1, 2]},
          constants=[1, 3], symbolic=False, opset=22, **TOLERANCE)


def test_integer_products(random):
    check("ConvInteger", [unsigned(random, 1, 4, 7, 7), unsigned(random, 3, 4, 3, 3),
                          unsigned(random), unsigned(random)], {"pads": [1, 1, 1, 1]},
          constants=[1], rtol=0, atol=0)
    check("MatMulInteger", [unsigned(random, 2, 5, 7), unsigned(random, 7, 3),
                            unsigned(random, 1), unsigned(random, 3)], rtol=0, atol=0,
          fixed=[2, 3])
    check("MatMulInteger", [unsigned(random, 5, 7), signed(random, 7, 3)], rtol=0, atol=0)


def test_zero_points_that_are_zero_leave_no_trace(random):
    """Operands of integer products without zero points stay 8 bits wide."""
    from frontend.ort_peer import model

    zero = np.zeros((), np.uint8)
    graph = load_model(model("MatMulInteger", [unsigned(random, 5, 7), signed(random, 7, 3), zero],
                             {}, constants=[2]))
    assert [n.op for n in graph.ordered()] == ["matmul"]
