"""Kernels that write at computed positions, and running sums, against plain Python loops."""

import itertools

import numpy as np
import pytest
from kernels.single_nodes import by_kernel, by_reference, check

from smelt.ir import dtype as dt

KINDS = {"none": lambda a, b: b, "add": np.add, "mul": np.multiply, "min": np.minimum,
         "max": np.maximum}


def numbers(rng, shape, dtype: str) -> np.ndarray:
    t = dt.dtype(dtype)
    if t.is_bool:
        return rng.random(shape) < 0.5
    return rng.integers(0 if t.kind == "uint" else -4, 5, shape).astype(t.numpy)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i8", "u8", "i64", "bool"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_scatter_elements(kind: str, dtype: str):
    print("seed 3")
    rng = np.random.default_rng(3)
    for shape, small, axis in [((7, 5), (3, 5), 0), ((7, 5), (9, 2), 0),
                               ((2, 3, 11), (2, 3, 11), 2),
                               ((5,), (0,), 0), ((1, 1), (1, 4), 1)]:
        x, updates = numbers(rng, shape, dtype), numbers(rng, small, dtype)
        indices = rng.integers(-shape[axis], shape[axis], small).astype(
            rng.choice([np.int32, np.int64]))
        want = x.copy()
        for k in np.ndindex(*small):
            at = (*k[:axis], indices[k], *k[axis + 1:])
            want[at] = KINDS[kind](want[at], updates[k])
        check("scatter_elements", [x, indices, updates], {"axis": axis, "reduction": kind}, [want])


@pytest.mark.parametrize("kind", list(KINDS))
def test_scatter_nd(kind: str):
    print("seed 4")
    rng = np.random.default_rng(4)
    for shape, lead, depth in [((7, 5), (3,), 1), ((7, 5), (13,), 2), ((3, 4, 5), (2, 3), 2),
                               ((5,), (0,), 1), ((3, 2), (2,), 0), ((1, 1, 1), (4,), 3)]:
        x = numbers(rng, shape, "f32")
        updates = numbers(rng, (*lead, *shape[depth:]), "f32")
        indices = np.stack([rng.integers(-n, n, lead) for n in shape[:depth]], -1) \
            if depth else np.zeros((*lead, 0), np.int64)
        want = x.copy()
        for k in np.ndindex(*lead):
            at = tuple(indices[k].tolist())
            want[at] = KINDS[kind](want[at], updates[k])
        check("scatter_nd", [x, indices, updates], {"reduction": kind}, [want])


@pytest.mark.parametrize("op", ["cumsum", "cumprod"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "u8", "i64"])
def test_running_sums(op: str, dtype: str):
    print("seed 5")
    rng = np.random.default_rng(5)
    for (shape, axis), exclusive, reverse in itertools.product(
            [((7,), 0), ((3, 5, 2), 1), ((2, 0), 1), ((4, 1), 1)], (False, True), (False, True)):
        x = numbers(rng, shape, dtype)
        want = np.empty_like(x)
        moved, target = np.moveaxis(x, axis, -1), np.moveaxis(want, axis, -1)
        for row in np.ndindex(*moved.shape[:-1]):
            total = x.dtype.type(op == "cumprod")
            order = range(shape[axis])
            for k in reversed(order) if reverse else order:
                before = total
                with np.errstate(over="ignore"):
                    total = total + moved[row][k] if op == "cumsum" else total * moved[row][k]
                target[row][k] = before if exclusive else total
        check(op, [x], {"axis": axis, "exclusive": exclusive, "reverse": reverse}, [want])


def test_narrow_floats_accumulate_in_f32():
    x = np.full(4096, 1.0, dt.bf16.numpy)
    (got,) = by_kernel("cumsum", [x], {"axis": 0})
    (want,) = by_reference("cumsum", [x], {"axis": 0})
    # bf16 sums would stop at 256.
    assert float(got[-1]) == 4096
    np.testing.assert_array_equal(got, want)
