"""Shapes, sizes and states from text, and random inputs that fit a signature."""

import numpy as np
import pytest

from smelt.errors import UsageError
from smelt.ir import dtype as dt
from smelt.signature import (
    Spec,
    by_compiler_names,
    fill,
    in_model_names,
    names_in,
    parse_dims,
    parse_shapes,
    parse_states,
    random_inputs,
    shape_text,
    size_text,
    size_value,
)


def test_shapes_dims_and_states_from_text():
    assert parse_shapes(["x=1x3x224x224", "a=b=Nx3", "s=", "t=N,max_len"]) == {
        "x": (1, 3, 224, 224), "a=b": ("N", 3), "s": (), "t": ("N", "max_len")}
    assert parse_dims(["N=1,H=320", "a.b=0"]) == {"N": 1, "H": 320, "a.b": 0}
    assert parse_states(["h_out:h_in", "a:b:c"]) == (("h_out", "h_in"), ("a:b", "c"))


@pytest.mark.parametrize("text", ["x", "=1x2", "x=1x-2", "x=1x2.5", "x=1x"])
def test_bad_shapes_are_refused(text: str):
    with pytest.raises(UsageError, match="--shape"):
        parse_shapes([text])


@pytest.mark.parametrize("text", ["N", "N=", "N=x", "N=-1", "=3", "N=1.5"])
def test_bad_dims_are_refused(text: str):
    with pytest.raises(UsageError, match="--dim"):
        parse_dims([text])


@pytest.mark.parametrize(("size", "value"), [
    (7, 7), ("N", 3), ("((N - 1) // 2) + 1", 2), ("max(N, 5) * 2", 10), ("min(-N, 4)", -3),
    ("dim.0", 9), ("M", None), ("N + M", None), ("__import__('os')", None), ("N // (N - 3)", None),
    ("select(eq(N, 3), 8, 9)", 8), ("select(lt(N, 3), 8, max(N, 4))", 4)])
def test_sizes_are_worked_out(size, value):
    assert size_value(size, {"N": 3, "dim.0": 9}) == value


def test_names_in_a_size():
    assert names_in("max(N, M + 1)") == ["N", "M"]
    assert names_in("dim.0") == ["dim.0"] and names_in("a b") == ["a b"] and names_in(4) == []


def test_the_models_names_of_sizes():
    sizes = {"n": "n2", "n2": "a.b", "n3": "past + 1"}
    assert in_model_names("n3", sizes) == "past + 1"
    assert in_model_names("max((n2 * n), n20)", sizes) == "max((a.b * n2), n20)"
    assert in_model_names("f32[n, n3]", sizes) == "f32[n2, 'past + 1']"
    assert by_compiler_names({"n2": 5, "a.b": 6}, sizes) == {"n": 5, "n2": 6}
    assert by_compiler_names({"n2": 5}, sizes) == {"n": 5}
    assert by_compiler_names({"n": 1, "k": 2}, sizes) == {"n": 1, "k": 2}


def test_a_batch_is_one_and_other_sizes_must_be_given():
    x = Spec("x", dt.f32, ("N", 3, "H"))
    assert fill([x], {"H": 8}) == {"N": 1, "H": 8}
    with pytest.raises(UsageError, match=r"size 'height' of input 'x' is open.*--dim 'height=64'"):
        fill([x], {}, {"H": "height"})


@pytest.mark.parametrize("dtype", list(dt.ALL.values()), ids=str)
def test_random_inputs_have_their_type_and_depend_on_the_seed(dtype):
    spec = Spec("x", dtype, ("N", 40))
    a, b = (random_inputs([spec], {"N": 3}, seed)["x"] for seed in (1, 2))
    again = random_inputs([spec], {"N": 3}, 1)["x"]
    assert a.dtype == dtype.numpy and a.shape == (3, 40)
    assert a.tobytes() == again.tobytes() and a.tobytes() != b.tobytes()
    assert np.isfinite(a.astype(np.float64)).all()


def test_shapes_for_people():
    assert shape_text([1, "N", 3]) == "1 x N x 3" and shape_text([]) == "scalar"
    assert shape_text(["(a + b)", "(a) + (b)"]) == "a + b x (a) + (b)"
    long = "(n + 1) * (n + 2) * (n + 3) * (n + 4)"
    assert shape_text([2, long]) == f"2 x {long[:29].rstrip()}…" and len(size_text(long)) <= 30
    assert shape_text(["a.very.long.name.of.a.size.of.the.model"] * 2).count("…") == 0
