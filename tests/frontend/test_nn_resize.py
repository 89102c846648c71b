"""Resampling against ONNX Runtime (tolerance 1e-5: coordinates are f32 there)."""

import numpy as np
import pytest
from frontend.ort_peer import check, model, seeded

from smelt.frontend.onnx.loader import load_model
from smelt.ir.expr import var, wrap
from smelt.ir.graph.definition import OpContext, lookup

TRANSFORMS = ("asymmetric", "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
SCALES = ([1, 1, 2.0, 3.0], [1, 1, 0.6, 1.7], [1, 1, 0.5, 0.25], [1, 1, 2.3333333, 0.77])


@pytest.fixture
def random(request):
    return seeded(request.node.name)


@pytest.fixture
def x(random):
    return random.standard_normal((2, 4, 11, 10), np.float32)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS[:3])
def test_nearest(x, transform, scales, rounding):
    check("Resize", [x, None, f32(*scales)],
          {"mode": "nearest", "coordinate_transformation_mode": transform,
           "nearest_mode": rounding}, constants=[2])


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_linear_and_cubic(x, transform, scales):
    common = {"coordinate_transformation_mode": transform}
    check("Resize", [x, None, f32(*scales)], {"mode": "linear", **common}, constants=[2])
    check("Resize", [x, None, f32(*scales)], {"mode": "linear", **common}, symbolic=False)
    for exclude in (0, 1):
        check("Resize", [x, None, f32(*scales)],
              {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": exclude, **common},
              constants=[2])


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("exclude", [0, 1])
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_antialiased(x, scales, exclude, mode):
    attrs = {"mode": mode, "antialias": 1, "exclude_outside": exclude}
    check("Resize", [x, None, f32(*scales)], attrs, constants=[2])
    check("Resize", [x, None, f32(*scales)], attrs, fixed=[2])


@pytest.mark.parametrize("constants", [[3], []], ids=["known", "data"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transform", [*TRANSFORMS, "align_corners"])
@pytest.mark.parametrize("sizes", [(2, 4, 22, 30), (2, 4, 7, 13), (2, 4, 1, 10)], ids=str)
def test_sizes(x, sizes, transform, mode, constants):
    check("Resize", [x, None, None, i64(*sizes)],
          {"mode": mode, "coordinate_transformation_mode": transform}, constants=constants,
          fixed=[3])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_crop(x, mode):
    roi = f32(0, 0, 0.1, 0.2, 1, 1, 0.9, 1.2)
    attrs = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize",
             "extrapolation_value": 3.0}
    for constants in ([1, 2], [2]):
        check("Resize", [x, roi, f32(1, 1, 2, 3)], attrs, constants=constants, fixed=[1])
    check("Resize", [x, roi, None, i64(2, 4, 9, 21)], attrs, constants=[3], fixed=[1])


@pytest.mark.parametrize("constants", [[3], []], ids=["known", "data"])
@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratio(x, policy, constants):
    check("Resize", [x, None, None, i64(20, 7)],
          {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": policy},
          constants=constants, fixed=[3])


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_old_versions(x, mode):
    for constants in ([1], []):
        check("Resize", [x, f32(1, 1, 2.25, 0.5)], {"mode": mode}, opset=10, constants=constants,
              fixed=[1], symbolic=constants == [1])
    check("Upsample", [x], {"mode": mode, "scales": [1.0, 1.0, 2.0, 1.5]}, opset=8)
    check("Upsample", [x, f32(1, 1, 2, 1.5)], {"mode": mode}, opset=9, constants=[1])


def test_bytes_are_rounded(random):
    # ONNX Runtime cuts the fraction off, the specification's reference rounds.
    x = random.integers(0, 256, (1, 2, 6, 7), dtype=np.uint8)
    check("Resize", [x, None, f32(1, 1, 2, 1.5)], {"mode": "linear"}, constants=[2], atol=1)


@pytest.mark.parametrize("factor", [2, 3, 0.5])
def test_whole_factors_are_plain_index_maps(x, factor):
    """Fusion sees i // 2 or 2 * i, with no clamping and no floating point."""
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
             "nearest_mode": "floor"}
    for symbolic in (False, True):
        graph = load_model(model("Resize", [x, None, f32(1, 1, factor, factor)], attrs,
                                 constants=[2], symbolic=symbolic))
        (node,) = [n for n in graph.ordered() if n.op == "resize_nearest"]
        seen = []

        def load(_: int, index, seen=seen):
            seen.extend(index)
            return wrap(0.0)

        body = lookup("resize_nearest").body
        assert body is not None
        at = tuple(var(f"i{k}", extent=d) for k, d in enumerate(node.output.shape))
        body(OpContext(node, None, load), at)
        wanted = at[2] // factor if factor > 1 else at[2] * round(1 / factor)
        assert seen[2] is wanted


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("constants", [[1], []], ids=["known", "data"])
def test_affine_grid(random, corners, constants):
    for theta, size in (((2, 2, 3), (2, 3, 5, 6)), ((2, 3, 4), (2, 3, 5, 6, 4))):
        check("AffineGrid", [random.standard_normal(theta, np.float32), i64(*size)],
              {"align_corners": corners}, opset=20, constants=constants, symbolic=False)


@pytest.mark.parametrize("constants", [[1], []], ids=["known", "data"])
def test_center_crop_pad(x, constants):
    check("CenterCropPad", [x, i64(12, 7)], {"axes": [-2, 3]}, opset=18, constants=constants,
          fixed=[1])
