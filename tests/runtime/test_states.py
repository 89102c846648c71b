"""States: outputs fed to inputs, from zeros, from initial values, growing, replaced and reset."""

import re
import threading

import numpy as np
import pytest

import smelt.runtime
from smelt.errors import ArtifactError, InputError
from smelt.runtime import Module

LINKS = [["sum_out", "sum"], ["present", "past"]]


@pytest.fixture(params=[1, 2])
def model(artifact, request) -> Module:
    """recurrent.c: sum_out = sum + x, present = past then x, y = sum of present."""
    return smelt.runtime.load(artifact("recurrent", states=LINKS), threads=request.param)


class Oracle:
    def __init__(self, n: int):
        self.sum = np.zeros((n, 2), np.float32)
        self.past = np.zeros((0, 2), np.float32)

    def __call__(self, x: np.ndarray) -> np.float32:
        self.sum = self.sum + x
        self.past = np.concatenate([self.past, x])
        total = np.float32(0)
        for value in self.past.reshape(-1):  # in the program's order
            total += value
        return total


def random(rng, n: int) -> np.ndarray:
    return rng.standard_normal((n, 2), np.float32)


def test_declared_states_leave_the_signature(model: Module):
    assert [s.name for s in model.inputs] == ["x"]
    assert [s.name for s in model.outputs] == ["y"]


def test_states_go_from_run_to_run(model: Module, rng):
    oracle = Oracle(3)
    for _ in range(30):
        x = random(rng, 3)
        assert model(x) == oracle(x)
        np.testing.assert_array_equal(model.state("sum"), oracle.sum)
        np.testing.assert_array_equal(model.state("past"), oracle.past)


def test_reset_starts_again_also_with_other_sizes(model: Module, rng):
    for n in (3, 1, 5, 5, 0):
        model.reset_states()
        assert model.state("past") is None
        oracle = Oracle(n)
        for _ in range(3):
            x = random(rng, n)
            assert model(x) == oracle(x)


def test_a_state_keeps_its_size(model: Module, rng):
    model(random(rng, 3))
    with pytest.raises(InputError, match='N differs between inputs "x" and "sum"'):
        model(random(rng, 4))
    model.reset_states()
    model(random(rng, 4))


def test_a_failed_run_leaves_states_alone(model: Module, rng):
    oracle = Oracle(2)
    x = random(rng, 2)
    assert model(x) == oracle(x)
    for wrong in (np.full((2, 2), -1234, np.float32), np.zeros((3, 2), np.float32)):
        with pytest.raises(InputError):
            model(wrong)
        np.testing.assert_array_equal(model.state("sum"), oracle.sum)
    assert model(x) == oracle(x)


def test_a_value_replaces_the_state_of_one_run(model: Module, rng):
    oracle = Oracle(2)
    x = random(rng, 2)
    assert model(x) == oracle(x)
    oracle.past = random(rng, 5)
    assert model(x, past=oracle.past) == oracle(x)
    assert model(x) == oracle(x)
    oracle.sum = random(rng, 2)
    assert model.run({"sum": oracle.sum, "x": x})["y"] == oracle(x)
    np.testing.assert_array_equal(model.state("sum"), oracle.sum)


def test_initial_values(artifact, rng):
    model = smelt.runtime.load(artifact("recurrent"))
    start = random(rng, 4)
    model.link_state("present", "past", start)
    start_copy = start.copy()
    start[...] = 0
    for _ in range(2):
        np.testing.assert_array_equal(model.state("past"), start_copy)
        oracle = Oracle(3)
        oracle.past = start_copy
        for _ in range(3):
            x, sum = random(rng, 3), random(rng, 3)
            y, sum_out = model(x, sum)
            assert y == oracle(x)
            np.testing.assert_array_equal(sum_out, sum + x)
        model.reset_states()


def test_linking_later_and_unlinking(artifact, rng):
    model = smelt.runtime.load(artifact("recurrent"))
    x, sum, past = random(rng, 2), random(rng, 2), random(rng, 3)
    y, sum_out, present = model(x, sum, past)
    assert [len(y.shape), sum_out.shape, present.shape] == [0, (2, 2), (5, 2)]
    model.link_state("sum_out", "sum")
    for turn in range(1, 4):
        y, present = model(x, past)
        np.testing.assert_allclose(model.state("sum"), x * turn, rtol=1e-6)
    model.link_state("sum_out", "sum", sum)  # again, with another start
    model(x, past)
    np.testing.assert_array_equal(model.state("sum"), x + sum)
    model.link_state("present", "past")
    model.unlink_state("sum")
    y, sum_out = model(x, sum)
    np.testing.assert_array_equal(sum_out, x + sum)
    np.testing.assert_array_equal(model.state("past"), x)
    model.unlink_state("past")
    assert [s.name for s in model.outputs] == ["y", "sum_out", "present"]
    assert model(x, sum, past)[2].shape == (5, 2)


def test_sessions_have_states_of_their_own(model: Module, rng):
    sessions = [model, model.session(threads=1), model.session(threads=2)]
    failures = []

    def many(session, n: int, seed: int) -> None:
        own = np.random.default_rng(seed)
        oracle = Oracle(n)
        for _ in range(50):
            x = random(own, n)
            if session(x) != oracle(x):
                failures.append((n, seed))

    seeds = rng.integers(0, 2**31, 3).tolist()
    threads = [
        threading.Thread(target=many, args=(s, n, seed)) for s, n, seed in zip(sessions, (2, 3, 2),
                                                                               seeds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_growing_states_are_seldom_allocated(model: Module, rng):
    x = random(rng, 100)
    places = set()
    for _ in range(300):
        model(x)
        tensor = smelt.runtime.abi.Tensor()
        model._c.smelt_state(model._handle, b"past", tensor)
        places.add(tensor.data)
    # Two buffers, each half as large again every time: 2 * log(300) / log(1.5) = 28 places.
    assert len(places) < 40


@pytest.mark.parametrize(
    ("output", "input", "initial", "sentence"),
    [
        ("nothing", "past", None, 'The model has no output "nothing".'),
        ("present", "nothing", None, 'The model has no input "nothing".'),
        ("y", "past", None, 'Output "y" (f32, rank 0) cannot feed input "past" (f32, rank 2).'),
        ("sum_out", "past", None, 'Output "sum_out" feeds another input already.'),
        ("present", "past", np.zeros(3, np.float32), 'value of state "past" must be f32 of rank 2'),
        ("present", "past", np.zeros((3, 2)), 'value of state "past" must be f32 of rank 2'),
    ],
)
def test_impossible_links(artifact, output, input, initial, sentence):
    model = smelt.runtime.load(artifact("recurrent"))
    model.link_state("sum_out", "sum")
    with pytest.raises(InputError, match=re.escape(sentence)):
        model.link_state(output, input, initial)
    assert [s.name for s in model.inputs] == ["x", "past"]
    with pytest.raises(InputError, match='No state is linked to the input "past".'):
        model.unlink_state("past")
    with pytest.raises(InputError, match='No state is linked to the input "past".'):
        model.state("past")


@pytest.mark.parametrize("states", [[["no", "past"]], [["present"]], [3], 3])
def test_states_that_the_model_lacks(artifact, states):
    with pytest.raises(ArtifactError, match="declares states that its model does not have"):
        smelt.runtime.load(artifact("recurrent", states=states))


def test_initial_values_must_fit_the_signature(artifact):
    model = smelt.runtime.load(artifact("recurrent"))
    model.link_state("present", "past", np.zeros((1, 3), np.float32))
    x = np.zeros((1, 2), np.float32)
    with pytest.raises(InputError, match=r'"past" must be f32\[P, 2\], but is f32\[1, 3\]'):
        model(x, x)
