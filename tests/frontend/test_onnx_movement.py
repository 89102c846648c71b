"""Shapes, bounds and axes that are constants, or only known at run time, next to ONNX Runtime.

Every case runs four ways: parameters as constants and as inputs, sizes of the data known and named.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from frontend.ort_peer import check, seeded

ROUNDS = 12
FAR = [np.iinfo(np.int64).max, np.iinfo(np.int64).min, np.iinfo(np.int32).max]


def four_ways(op: str, x: np.ndarray | None, parameters: Sequence[Any],
              attrs: dict[str, Any] | None = None, symbolic: bool = True, **more: Any) -> None:
    arrays = [x, *(None if p is None else np.asarray(p) for p in parameters)]
    if x is None:
        arrays = arrays[1:]
    numbers = tuple(i for i in range(0 if x is None else 1, len(arrays)))
    check(op, arrays, attrs, constants=[i for i in numbers if arrays[i] is not None],
          symbolic=symbolic and x is not None, **more)
    check(op, arrays, attrs, fixed=numbers, symbolic=symbolic and x is not None, **more)


def data(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def some_axes(rng: np.random.Generator, rank: int, least: int = 1) -> np.ndarray:
    """Distinct axes in any order, some counted from the end."""
    axes = rng.permutation(rank)[:rng.integers(least, rank + 1)]
    return np.where(rng.random(len(axes)) < 0.4, axes - rank, axes).astype(np.int64)


@pytest.mark.parametrize("round", range(ROUNDS))
def test_slice(round: int):
    rng = seeded("slice")
    x = data(rng, *rng.integers(1, 7, 3))
    axes = some_axes(rng, 3)
    low, high = rng.integers(-9, 10, (2, len(axes)))
    for bounds in (low, high):
        far = rng.random(len(axes)) < 0.25
        bounds[far] = rng.choice(FAR, far.sum())
    steps = rng.choice([-3, -2, -1, 1, 1, 2, 3], len(axes))
    # ONNX Runtime takes a huge end of a backward slice for the start of the axis; ONNX does not.
    high[(steps < 0) & (high > 9)] = 9
    four_ways("Slice", x, [low, high, axes, steps])
    four_ways("Slice", x, [low, high, axes])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("round", range(ROUNDS // 3))
def test_pad(mode: str, round: int):
    rng = seeded("pad")
    x = data(rng, *rng.integers(3, 6, 3))
    low = -1 if mode == "constant" else 0
    fill = np.float32(rng.standard_normal()) if mode == "constant" else None
    amounts = rng.integers(low, 3, 6)
    four_ways("Pad", x, [amounts, fill], {"mode": mode})
    axes = some_axes(rng, 3)
    four_ways("Pad", x, [amounts[:2 * len(axes)], fill, axes], {"mode": mode})


@pytest.mark.parametrize(("shape", "allowzero"), [
    ([4, 6], 0), ([-1], 0), ([0, -1], 0), ([2, 0, -1], 0), ([0, 0, 0], 0), ([2, -1, 2, 3], 0),
    ([1, 2, 3, 4], 1)])
def test_reshape(shape: list[int], allowzero: int):
    four_ways("Reshape", data(seeded("reshape"), 2, 3, 4), [np.int64(shape)],
              {"allowzero": allowzero} if allowzero else None)


def test_reshape_of_nothing():
    four_ways("Reshape", data(seeded("reshape"), 0, 3), [np.int64([3, 4, 0])], {"allowzero": 1})


@pytest.mark.parametrize(("shape", "to"), [
    ((3, 1), [3, 4]), ((3, 1), [1, 1]), ((3, 1), [2, 1, 4]), ((1,), [2, 3]), ((2, 3), [3]),
    ((2, 3), [1]), ((), [2, 2]), ((1, 3), [0, 3])])
def test_expand(shape: tuple[int, ...], to: list[int]):
    four_ways("Expand", data(seeded("expand"), *shape), [np.int64(to)])


def test_tile():
    rng = seeded("tile")
    four_ways("Tile", data(rng, 2, 3), [np.int64([3, 2])])
    four_ways("Tile", data(rng, 2, 3), [np.int64([1, 0])])


@pytest.mark.parametrize("round", range(ROUNDS // 2))
def test_squeeze_and_unsqueeze(round: int):
    rng = seeded("squeeze")
    shape = rng.integers(2, 4, 4)
    axes = some_axes(rng, 4)
    shape[axes] = 1
    x = data(rng, *shape)
    four_ways("Squeeze", x, [axes])
    rank = 2 + len(axes)
    new = rng.permutation(rank)[:len(axes)]
    new = np.where(rng.random(len(axes)) < 0.4, new - rank, new).astype(np.int64)
    four_ways("Unsqueeze", data(rng, 2, 3), [new])


@pytest.mark.parametrize("kind", ["Sum", "Mean", "Prod", "Max", "Min", "L1", "L2", "LogSum",
                                  "LogSumExp", "SumSquare"])
def test_reductions(kind: str):
    rng = seeded("reduce")
    x = np.abs(data(rng, 3, 4, 2)) + np.float32(0.1)
    for keep in (0, 1):
        four_ways("Reduce" + kind, x, [some_axes(rng, 3)], {"keepdims": keep})
        four_ways("Reduce" + kind, x, [np.zeros(0, np.int64)], {"keepdims": keep})
    for noop in (0, 1):
        check("Reduce" + kind, [x], {"noop_with_empty_axes": noop})


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("flags", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_running_sums(axis: int, flags: tuple[int, int]):
    four_ways("CumSum", data(seeded("cumsum"), 3, 4, 2), [np.int64(axis)],
              {"exclusive": flags[0], "reverse": flags[1]})


@pytest.mark.parametrize(("kind", "keep", "last"), [
    ("ArgMax", 0, 0), ("ArgMax", 1, 1), ("ArgMin", 1, 0), ("ArgMin", 0, 1)])
def test_arg_reductions(kind: str, keep: int, last: int):
    x = seeded("argmax").integers(0, 3, (4, 5, 3)).astype(np.float32)
    for axis in (0, 1, -1):
        check(kind, [x], {"axis": axis, "keepdims": keep, "select_last_index": last})


def test_split():
    rng = seeded("split")
    x = data(rng, 7, 4)
    four_ways("Split", x, [np.int64([3, 0, 4])], {"axis": 0}, outputs=3)
    four_ways("Split", x, [np.int64([1, 3])], {"axis": -1}, outputs=2)
    check("Split", [x], {"axis": 0, "num_outputs": 3}, outputs=3)
    check("Split", [x], {"axis": 1, "num_outputs": 2}, outputs=2)


@pytest.mark.parametrize(("start", "limit", "delta"), [
    (0, 5, 1), (0, 5, 2), (5, 0, -2), (3, 3, 1), (5, 0, 1), (-4, 9, 3), (9, -4, -5)])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32])
def test_range(start: int, limit: int, delta: int, dtype: type):
    four_ways("Range", None, [dtype(start), dtype(limit), dtype(delta)])


def test_constant_of_shape():
    four_ways("ConstantOfShape", None, [np.int64([2, 0, 3])])
    four_ways("ConstantOfShape", None, [np.int64([2, 3])])


@pytest.mark.parametrize("k", [-9, -2, 0, 1, 9])
@pytest.mark.parametrize("upper", [0, 1])
def test_triangles(k: int, upper: int):
    four_ways("Trilu", data(seeded("trilu"), 2, 3, 5), [np.int64(k)], {"upper": upper})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis: int):
    indices = seeded("one_hot").integers(-6, 7, (2, 3))
    four_ways("OneHot", indices, [np.int64(5), np.float32([0.5, 2])], {"axis": axis})


@pytest.mark.parametrize("round", range(4))
def test_gathers(round: int):
    rng = seeded("gather")
    x = data(rng, 4, 5, 3)
    for axis in (0, 1, -1):
        n = x.shape[axis]
        check("Gather", [x, rng.integers(-n, n, (2, 3))], {"axis": axis})
        check("GatherElements", [x, rng.integers(-n, n, x.shape)], {"axis": axis})
    check("GatherND", [x, rng.integers(-4, 4, (6, 1))], fixed=[1])
    check("GatherND", [x, rng.integers(-4, 4, (2, 2, 2))], fixed=[1])
    check("GatherND", [x, rng.integers(-3, 3, (4, 2, 1))], {"batch_dims": 1}, fixed=[1],
          symbolic=False)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(mode: str):
    rng = seeded("depth")
    check("DepthToSpace", [data(rng, 2, 8, 3, 2)], {"blocksize": 2, "mode": mode})
    check("SpaceToDepth", [data(rng, 2, 3, 4, 6)], {"blocksize": 2})


@pytest.mark.parametrize("time", [0, 1])
def test_reverse_sequence(time: int):
    rng = seeded("reverse")
    x = data(rng, 4, 4, 2)
    check("ReverseSequence", [x, rng.integers(1, 5, 4)],
          {"time_axis": time, "batch_axis": 1 - time})


def test_shapes_as_data():
    x = data(seeded("shape"), 2, 3, 4)
    check("Shape", [x])
    for start, end in ((1, 3), (-2, -1), (2, 1), (-9, 9)):
        check("Shape", [x], {"start": start, "end": end})
    check("Size", [x])


@pytest.mark.parametrize(("a", "b"), [("int8", "int8"), ("int32", "int32"), ("int64", "int64")])
def test_integer_division(a: str, b: str):
    rng = seeded("division")
    x = rng.integers(-100, 100, (5, 7)).astype(a)
    y = rng.integers(1, 9, (5, 1)).astype(b) * rng.choice([-1, 1], (5, 1)).astype(b)
    check("Div", [x, y])
    check("Mod", [x, y])
    check("Mod", [x, y], {"fmod": 1})
