"""Kernels of selection operators on awkward sizes, against numpy and ONNX's own reference."""

import numpy as np
import onnx.helper
import pytest
from kernels.single_nodes import by_kernel, by_reference, check
from onnx.reference import ReferenceEvaluator

from smelt.ir import dtype as dt

DTYPES = ["f32", "f64", "f16", "bf16", "i8", "u8", "i32", "u32", "i64", "u64"]


def data(shape, dtype: str, seed: int, few: bool = True) -> np.ndarray:
    """Values with many ties, NaN among floats."""
    rng = np.random.default_rng(seed)
    print("seed", seed)
    t = dt.dtype(dtype)
    x = rng.integers(0 if t.kind == "uint" else -3, 4 if few else 100, shape)
    y = x.astype(t.numpy)
    if t.is_float and y.size > 3:
        y[rng.random(shape) < 0.1] = np.nan
    return y


def order_keys(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype.kind in "Vf" else x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["argmax", "argmin"])
def test_arg_reductions(kind: str, last: bool, dtype: str):
    for shape, axis in [((7, 5, 3), 0), ((7, 5, 3), 1), ((2, 13), 1), ((1,), 0), ((3, 0, 2), 2),
                        ((17,), 0)]:
        x = data(shape, dtype, len(shape) + axis)
        keys, n = order_keys(x), shape[axis]
        function = getattr(np, kind)
        want = n - 1 - function(np.flip(keys, axis), axis) if last else function(keys, axis)
        check(kind, [x], {"axis": axis, "last": last}, [np.asarray(want, np.int64)])


def test_arg_reductions_of_infinities_keep_the_first():
    x = np.full((2, 5), -np.inf, np.float32)
    check("argmax", [x], {"axis": 1, "last": False}, [np.zeros(2, np.int64)])
    check("argmax", [x], {"axis": 1, "last": True}, [np.full(2, 4)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [True, False])
def test_topk(dtype: str, largest: bool):
    for seed, (shape, axis, ks) in enumerate([
            ((11,), 0, (0, 1, 2, 5, 10, 11)), ((3, 13, 2), 1, (1, 4, 13)), ((4, 1), 1, (1,)),
            ((0, 5), 1, (3,)), ((31, 3), 0, (7,))]):
        x = data(shape, dtype, seed)
        keys = np.moveaxis(order_keys(x), axis, -1)
        for k in ks:
            want = np.empty((*keys.shape[:-1], k), np.int64)
            for row in np.ndindex(*keys.shape[:-1]):
                # NaN is above everything; the position breaks ties.
                tagged = [((v != v), 0 if v != v else v) for v in keys[row].tolist()]
                if largest:
                    tagged = [(not a, -b) for a, b in tagged]
                want[row] = sorted(range(len(tagged)), key=lambda i: (tagged[i], i))[:k]
            want = np.moveaxis(want, -1, axis)
            check("topk", [x], {"k": k, "axis": axis, "largest": largest},
                  [np.take_along_axis(x, want, axis), want])


def test_topk_of_more_than_there_is_reads_nothing_beyond():
    # Only a symbolic axis lets such a model pass; the result is unspecified, memory is not.
    by_kernel("topk", [data((3,), "f32", 1)], {"k": 5}, symbolic=True)


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_nonzero(dtype: str):
    for seed, shape in enumerate([(7,), (3, 5, 2), (1, 1), (4, 0), (), (23,)]):
        x = data(shape, dtype, seed)
        n = int(np.count_nonzero(x))
        want = np.stack(np.nonzero(x)).astype(np.int64) if shape else np.zeros((0, n), np.int64)
        check("nonzero", [x], {"size": n}, [want])


@pytest.mark.parametrize("dtype", ["f32", "f16", "i8", "u8", "i64"])
@pytest.mark.parametrize("sorted_", [True, False])
def test_unique_of_rows(dtype: str, sorted_: bool):
    for seed, shape in enumerate([(1, 1), (17, 1), (0, 1), (29, 2), (64, 3), (5, 0), (33, 1)]):
        x = np.nan_to_num(data(shape, dtype, seed).astype(np.float64)).astype(
            dt.dtype(dtype).numpy)
        rows = shape[0]
        if shape[1]:
            values, first, inverse, counts = np.unique(x, True, True, True, axis=0)
            assert len(values) == len(first)
        else:
            first, inverse, counts = np.zeros(1, int), np.zeros(rows, int), np.array([rows])
        inverse = inverse.reshape(-1)
        if not sorted_:
            order = np.argsort(first)
            number = np.argsort(order)
            first, counts, inverse = first[order], counts[order], number[inverse]
        n = len(first)
        padded = [np.concatenate([v, np.zeros(rows - n)]).astype(np.int64)
                  for v in (first, counts)]
        want = [padded[0], inverse.astype(np.int64), padded[1], np.array([n])]
        check("unique", [x], {"sorted": sorted_}, want)
        for a, b in zip(by_reference("unique", [x], {"sorted": sorted_}), want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_unique_counts_nan_once():
    x = np.array([[np.nan], [1], [np.nan], [0], [np.nan]], np.float32)
    first, inverse, counts, number = by_kernel("unique", [x], {"sorted": True})
    assert first.tolist() == [3, 1, 0, 0, 0]
    assert inverse.tolist() == [2, 1, 2, 0, 2]
    assert counts.tolist() == [1, 1, 3, 0, 0]
    assert number.tolist() == [3]


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("case", [(1, 1, 1, 1), (2, 3, 19, 5), (1, 2, 0, 3), (2, 1, 31, 40)])
def test_nms(case, center: bool):
    batch, classes, n, limit = case
    print("case", case)
    rng = np.random.default_rng(sum(case))
    boxes = rng.random((batch, n, 4), np.float32)
    scores = rng.random((batch, classes, n), np.float32)
    if n > 4:
        scores[..., 3] = scores[..., 2]
    iou, minimum = np.array(0.25, np.float32), np.array(0.3, np.float32)
    rows, number = by_kernel("nms", [boxes, scores, iou, minimum],
                             {"limit": limit, "center": center})
    count = int(number[0])
    assert not rows[count:].any()
    check("nms", [boxes, scores, iou, minimum], {"limit": limit, "center": center})
    if not n:
        assert count == 0
        return
    node = onnx.helper.make_node("NonMaxSuppression", list("bsmit"), ["y"],
                                 center_point_box=int(center))
    (want,) = ReferenceEvaluator(node).run(None, {
        "b": boxes, "s": scores, "m": np.array([limit]), "i": iou.reshape(1),
        "t": minimum.reshape(1)})
    np.testing.assert_array_equal(rows[:count], want)
