"""GridSample, Col2Im, and random numbers through import and interpretation."""

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch

from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret


def run(op: str, inputs: list[np.ndarray], opset: int = 20, known=(), **attrs) -> np.ndarray:
    names = [f"x{k}" for k in range(len(inputs))]
    values = [oh.make_tensor_value_info(n, oh.np_dtype_to_tensor_dtype(v.dtype), v.shape)
              for k, (n, v) in enumerate(zip(names, inputs, strict=True)) if k not in known]
    constants = [onnx.numpy_helper.from_array(inputs[k], names[k]) for k in known]
    node = oh.make_node(op, names, ["y"], name="draw", **attrs)
    graph = oh.make_graph([node], "g", values, [onnx.ValueInfoProto(name="y")], constants)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9)
    given = [x for k, x in enumerate(inputs) if k not in known]
    return interpret(load_model(model), given)[0]


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode, shape", [
    ("nearest", (7, 5)), ("bilinear", (7, 5)), ("nearest", (3, 4, 5)), ("bilinear", (3, 4, 5)),
    ("bilinear", (1, 6))])
def test_grid_sample(mode: str, shape, padding: str, align: bool):
    print("seed", len(shape))
    rng = np.random.default_rng(len(shape))
    x = rng.standard_normal((2, 3, *shape)).astype(np.float32)
    grid = rng.uniform(-2.5, 2.5, (2, *(n + 1 for n in shape), len(shape))).astype(np.float32)
    want = torch.nn.functional.grid_sample(torch.from_numpy(x), torch.from_numpy(grid), mode,
                                           padding, align).numpy()
    got = run("GridSample", [x, grid], mode={"bilinear": "linear"}.get(mode, mode),
              padding_mode=padding, align_corners=int(align))
    # Coordinates carry f32 rounding, some 1e-6 of an element.
    wrong = np.abs(got - want) > 1e-4
    # A nearest neighbour may flip where the coordinate falls between two elements.
    assert wrong.mean() <= (0.002 if mode == "nearest" else 0)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [False, True])
def test_cubic_grid_sample_inside_the_image(padding: str, align: bool):
    """Outside, ONNX clips coordinates first and PyTorch does not."""
    print("seed 6")
    rng = np.random.default_rng(6)
    x = rng.standard_normal((1, 2, 6, 7)).astype(np.float32)
    grid = rng.uniform(-0.8, 0.8, (1, 5, 4, 2)).astype(np.float32)
    want = torch.nn.functional.grid_sample(torch.from_numpy(x), torch.from_numpy(grid), "bicubic",
                                           padding, align).numpy()
    got = run("GridSample", [x, grid], mode="cubic", padding_mode=padding,
              align_corners=int(align))
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_grid_sample_keeps_the_type(dtype):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((1, 2, 6, 7)).astype(dtype)
    grid = rng.uniform(-1, 1, (1, 5, 4, 2)).astype(np.float32)
    got = run("GridSample", [x, grid])
    want = torch.nn.functional.grid_sample(
        torch.from_numpy(x.astype(np.float64)), torch.from_numpy(grid.astype(np.float64)),
        align_corners=False).numpy()
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, atol=1e-2 if dtype == np.float16 else 1e-12)


@pytest.mark.parametrize("image, window, stride, dilation, pad", [
    ((6, 7), (2, 3), (1, 1), (1, 1), (0, 0)), ((9, 8), (3, 2), (2, 3), (1, 2), (1, 1)),
    ((5, 5), (5, 5), (1, 1), (1, 1), (2, 2))])
def test_col2im(image, window, stride, dilation, pad):
    print("seed 8")
    rng = np.random.default_rng(8)
    blocks = [(i + 2 * p - d * (k - 1) - 1) // s + 1
              for i, k, s, d, p in zip(image, window, stride, dilation, pad, strict=True)]
    x = rng.standard_normal((2, 3 * int(np.prod(window)), int(np.prod(blocks)))).astype(np.float32)
    want = torch.nn.functional.fold(torch.from_numpy(x), image, window, dilation, pad,
                                    stride).numpy()
    got = run("Col2Im", [x, np.array(image), np.array(window)], 18, known=(1, 2),
              strides=list(stride), dilations=list(dilation), pads=[*pad, *pad])
    np.testing.assert_allclose(got, want, atol=1e-5)


# Random numbers: 40,000 draws; the bounds are 5 standard errors.

MANY = 40_000


def test_uniform_numbers():
    y = run("RandomUniform", [], shape=[200, 200], low=-1.0, high=3.0, seed=7.0)
    assert y.dtype == np.float32
    assert y.min() >= -1 and y.max() < 3
    assert abs(y.mean() - 1) < 5 * 4 / np.sqrt(12 * MANY)
    counts = np.histogram(y, 16, (-1, 3))[0]
    assert (np.abs(counts - MANY / 16) < 5 * np.sqrt(MANY / 16)).all()


@pytest.mark.parametrize("dtype, kind", [(1, np.float32), (10, np.float16), (11, np.float64)])
def test_normal_numbers(dtype: int, kind):
    y = run("RandomNormal", [], shape=[200, 200], mean=2.0, scale=0.5, seed=7.0, dtype=dtype)
    assert y.dtype == kind
    z = (y.astype(np.float64) - 2) / 0.5
    assert abs(z.mean()) < 5 / np.sqrt(MANY)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / MANY)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / MANY)


def test_seeds_tell_streams_apart_and_repeat():
    a, b, c = (run("RandomUniform", [], shape=[1000], seed=s) for s in (1.0, 1.0, 2.0))
    np.testing.assert_array_equal(a, b)
    assert abs(np.corrcoef(a, c)[0, 1]) < 5 / np.sqrt(1000)


def test_like_operators_take_shape_and_type():
    x = np.zeros((3, 0, 5), np.float64)
    assert run("RandomNormalLike", [x]).shape == (3, 0, 5)
    assert run("RandomUniformLike", [x]).dtype == np.float64
    assert run("RandomUniformLike", [x], dtype=1).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bernoulli(dtype):
    p = np.repeat(np.array([0.0, 0.2, 0.7, 1.0], dtype), MANY // 4).reshape(4, -1)
    y = run("Bernoulli", [p], seed=3.0)
    assert y.dtype == dtype
    assert set(np.unique(y)) == {0, 1}
    means = y.mean(1)
    assert means[0] == 0 and means[3] == 1
    assert np.abs(means - p[:, 0]).max() < 5 * np.sqrt(0.25 / (MANY / 4))


def test_multinomial():
    p = np.array([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25]], np.float32)
    with np.errstate(divide="ignore"):
        x = np.log(p) + np.array([[3.0], [-2.0]], np.float32)
    y = run("Multinomial", [x], sample_size=MANY // 2, dtype=7, seed=4.0)
    assert y.dtype == np.int64 and y.shape == (2, MANY // 2)
    shares = np.stack([np.bincount(row, minlength=4) / (MANY // 2) for row in y])
    assert shares[0, 1] == 0
    assert np.abs(shares - p).max() < 5 * np.sqrt(0.25 / (MANY / 2))
