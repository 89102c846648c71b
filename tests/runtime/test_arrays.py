"""Arrays that C reads where they lie: what is taken, what goes another way, and that both agree."""

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import smelt.runtime
from smelt.errors import InputError, UsageError
from smelt.runtime import Module, arrays

W = np.array([1, -2, 0.5, 8], np.float32)


@pytest.fixture(params=["in place", "general"])
def scale(artifact, request, monkeypatch) -> Module:
    """y = a x + W, and the rows whose sum is positive; also as where C cannot read arrays."""
    if request.param == "general":
        monkeypatch.setattr(arrays, "layout", lambda: None)
    elif arrays.layout() is None:
        pytest.skip("this interpreter's arrays are read by numpy only")
    return smelt.runtime.load(artifact("scale"), threads=1)


def wanted(x, a: float) -> np.ndarray:
    return np.float32(a) * np.asarray(x, np.float32) + W


def close(got: np.ndarray, x, a: float) -> None:
    # One multiplication and one addition, perhaps fused.
    np.testing.assert_allclose(got, wanted(x, a), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's objects")
def test_the_layout_is_known_here():
    assert arrays.layout() is not None


def test_a_layout_that_does_not_hold_is_not_used(monkeypatch):
    probe = arrays.layout.__wrapped__
    assert probe() is not None
    monkeypatch.setattr(arrays, "_CONTIGUOUS", 2)
    assert probe() is None
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    assert probe() is None


def test_results_never_share_memory(scale: Module, rng):
    xs = [rng.standard_normal((n, 4), np.float32) for n in (5, 5, 1, 7, 5)]
    kept = [scale(x, np.float32(k))[0] for k, x in enumerate(xs)]
    for k, x in enumerate(xs):
        close(kept[k], x, k)
        assert not any(np.shares_memory(kept[k], other) for other in kept[:k] + xs)
        assert kept[k].flags.writeable and kept[k].base is None


def test_inputs_stay_as_they_are(scale: Module, rng):
    x = rng.standard_normal((9, 4), np.float32)
    before = x.copy()
    for given in (x, np.asfortranarray(x), x.astype(">f4")):
        held = given.copy()
        scale(given, np.float32(2))
        assert given.tobytes() == held.tobytes() and given.dtype == held.dtype
    locked = x.copy()
    locked.setflags(write=False)
    close(scale(locked, np.float32(2))[0], before, 2)


def test_a_result_may_be_the_next_input(scale: Module, rng):
    x = first = rng.standard_normal((3, 4), np.float32)
    for _ in range(4):
        x = scale(x, np.float32(0.5))[0]
    for _ in range(4):
        first = wanted(first, 0.5)
    np.testing.assert_allclose(x, first, rtol=1e-5, atol=1e-5)


def test_arrays_are_not_held_after_a_call(scale: Module):
    x = np.ones((3, 4), np.float32)
    y = scale(x, np.float32(1))[0]
    gone = weakref.ref(x), weakref.ref(y)
    del x, y
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_every_way_to_hand_in_the_same_values(scale: Module, rng):
    x = rng.standard_normal((6, 4), np.float32)
    space = np.zeros(x.nbytes + 1, np.uint8)
    shifted = space[1:].view(np.float32).reshape(6, 4)
    shifted[...] = x
    assert not shifted.flags.aligned
    wide = np.zeros((6, 8), np.float32)
    wide[:, ::2] = x
    ways = [x, np.asfortranarray(x), wide[:, ::2], shifted, x.astype(">f4"), x[::-1][::-1],
            x.view(np.recarray), np.ma.array(x).data, x.tolist()]
    numbers = [np.float32(0.25), np.array(0.25, np.float32), 0.25, np.array(0.25, ">f4")]
    for k, given in enumerate(ways):
        for _ in range(2):
            close(scale(given, numbers[k % len(numbers)])[0], x, 0.25)
            close(scale.run({"a": numbers[k % len(numbers)], "x": given})["y"], x, 0.25)


def test_objects_of_equal_dtypes(artifact):
    model = smelt.runtime.load(artifact("identity", "-DDTYPE=5", "-DBYTES=8"), threads=1)
    for dtype in (np.int64, np.longlong, np.dtype(np.int64, metadata={"unit": "s"})):
        y = model(np.array([1, -5, 2**40], dtype))
        assert y.tolist() == [1, -5, 2**40] and y.dtype == np.int64


@pytest.mark.parametrize("n", [0, 1, 2, 3, 17, 0, 17, 4099, 1])
def test_sizes(scale: Module, rng, n):
    for m in (n, n, 5, n):
        x = rng.standard_normal((m, 4), np.float32)
        y, rows = scale(x, np.float32(3))
        close(y, x, 3)
        assert rows.dtype == np.int64 and y.shape == (m, 4)


def test_refusals_leave_the_model_usable(scale: Module):
    x, a = np.ones((2, 4), np.float32), np.float32(1)
    for wrong in ((x.astype(np.float64), a), (x[0], a), (x[:, :3], a), (x, x), (None, a),
                  (x.astype("U"), a), (x > 0, a), (x.astype(np.int32), a)):
        for _ in range(2):
            with pytest.raises(InputError, match=r'^Input "[xa]" must be '):
                scale(*wrong)
            close(scale(x, a)[0], x, 1)
    with pytest.raises(InputError, match='Input "a" is missing'):
        scale.run({"x": x})
    with pytest.raises(InputError, match='no input "b"'):
        scale.run({"x": x, "b": a})
    scale.close()
    with pytest.raises(UsageError, match="closed"):
        scale(x, a)


def test_threads_that_share_a_session(scale: Module, rng):
    xs = [rng.standard_normal((n, 4), np.float32) for n in (1, 1, 64, 7)]

    def many(k: int) -> None:
        for _ in range(100):
            close(scale(xs[k], np.float32(k))[0], xs[k], k)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, range(4)))
