"""Procedural kernels compiled for the CPU, in many element types, next to numpy's results."""

import numpy as np
import pytest
from cpu.native_graphs import Cases, check, interpreted

from smelt.ir import dtype as dt

DTYPES = [dt.f32, dt.f64, dt.f16, dt.bf16, dt.i8, dt.u8, dt.i32, dt.u32, dt.i64, dt.u64]


def values(cases: Cases, shape, dtype: dt.DType) -> np.ndarray:
    """Small whole numbers with ties, exact in every type; NaN among floats (but bf16, whose NaN
    numpy does not compare)."""
    x = cases.rng.integers(0 if dtype.kind == "uint" else -3, 4, shape).astype(np.float64)
    if dtype.is_float and dtype is not dt.bf16:
        x[cases.rng.random(shape) < 0.05] = np.nan
    return x.astype(dtype.numpy)


@pytest.mark.parametrize("symbolic", [False, True])
def test_selection_in_every_type(symbolic: bool):
    cases = Cases(1, symbolic)
    g = cases.graph
    for dtype in DTYPES:
        x = cases.input(array=values(cases, (5, 13), dtype), dtype=dtype, fixed=(1,))
        for op in ("argmax", "argmin"):
            cases.output(g.add(op, [x], {"axis": 1, "last": op == "argmin"}))
        for largest in (True, False):
            attrs = {"k": 6, "axis": 1, "largest": largest}
            for v in g.add_node("topk", [x], attrs).outputs:
                cases.output(v)
        if not symbolic:
            count = int(np.count_nonzero(cases.arrays[-1]))
            cases.output(g.add("nonzero", [x], {"size": count}))
        for v in g.add_node("unique", [x], {"sorted": True}).outputs:
            cases.output(v)
    program = check(cases, "cpu", 0, 0, ("argmax", "topk", "unique"))
    for got, want in zip(interpreted(cases, program), cases.expected(), strict=True):
        np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))


def test_scatter_and_scans_in_every_type():
    cases = Cases(2)
    g, rng = cases.graph, cases.rng
    for dtype in [*DTYPES, dt.bool_]:
        def whole(shape, dtype=dtype):
            x = rng.integers(0 if dtype.kind == "uint" else -3, 4, shape)
            return cases.input(array=x.astype(dtype.numpy), dtype=dtype)

        x, updates = whole((7, 5)), whole((4, 5))
        at = cases.input(array=rng.integers(-7, 7, (4, 5)), dtype=dt.i64)
        pairs = cases.input(array=np.stack([rng.integers(-7, 7, 9), rng.integers(-5, 5, 9)], 1)
                            .astype(np.int32), dtype=dt.i32)
        some = whole((9,))
        for kind in ("none", "add", "mul", "min", "max"):
            cases.output(g.add("scatter_elements", [x, at, updates],
                               {"axis": 0, "reduction": kind}))
            cases.output(g.add("scatter_nd", [x, pairs, some], {"reduction": kind}))
        if not dtype.is_bool:
            cases.output(g.add("cumsum", [x], {"axis": 1, "reverse": True}))
            cases.output(g.add("cumsum", [x], {"axis": 0, "exclusive": True}))
            cases.output(g.add("cumprod", [x], {"axis": 1}))
    check(cases, "cpu", 0, 0, ("scatter_elements", "scatter_nd", "cumsum", "cumprod"))


def test_numeric_kernels():
    cases = Cases(3)
    g, rng = cases.graph, cases.rng
    for dtype in (dt.f32, dt.f64, dt.f16):
        x = cases.input(2, 3, 7, 5, dtype=dtype)
        rois = np.abs(rng.standard_normal((4, 4))) * 2
        rois[:, 2:] += rois[:, :2]
        boxes = cases.input(array=rois.astype(dtype.numpy), dtype=dtype)
        images = cases.input(array=rng.integers(0, 2, 4), dtype=dt.i64)
        for mode in ("avg", "max"):
            cases.output(g.add("roi_align", [x, boxes, images], {
                "height": 2, "width": 3, "ratio": 0, "mode": mode}))
        grid = cases.input(array=rng.uniform(-1.5, 1.5, (2, 4, 6, 2)).astype(np.float32))
        for mode in ("linear", "cubic"):
            for padding in ("zeros", "border", "reflection"):
                cases.output(g.add("grid_sample", [x, grid], {"mode": mode, "padding": padding}))
        cases.output(g.add("det", [cases.input(3, 4, 4, dtype=dtype)]))
        cases.output(g.add("dft", [cases.input(2, 9, 2, dtype=dtype)], {"length": 7}))
    pairs = cases.input(array=rng.uniform(0.1, 0.9, (5, 6)).astype(np.float32))
    cases.output(g.add("couple_probabilities", [pairs], {"classes": 4}))
    # f16 results round to 2**-11; a det of f16 elements sums products of about 10.
    check(cases, "cpu", 4e-3, 2e-2, ("roi_align", "det"))


def test_random_bits_and_suppression():
    cases = Cases(4)
    g, rng = cases.graph, cases.rng
    cases.output(g.add("random_bits", [], {"shape": (3, 1001), "seed": 1 << 40, "stream": 2}))
    boxes = rng.random((2, 200, 4), np.float32)
    boxes[..., 2:] = boxes[..., :2] + 0.2
    scores = np.round(rng.random((2, 3, 200), np.float32), 2)
    operands = [cases.input(array=boxes), cases.input(array=scores),
                cases.input(array=np.array(0.3, np.float32)),
                cases.input(array=np.array(0.2, np.float32))]
    for center in (False, True):
        for v in g.add_node("nms", operands, {"limit": 50, "center": center}).outputs:
            cases.output(v)
    check(cases, "cpu", 0, 0, ("random_bits", "nms"))
