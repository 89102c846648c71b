"""Tensors from npy, npz, JSON and pictures, and to npz."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from smelt import data
from smelt.errors import InputError, OutputError, UsageError
from smelt.ir import dtype as dt
from smelt.signature import Spec

X = Spec("x", dt.f32, (2, 3))
I = Spec("i=j", dt.i8, ("N",))


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, 3), np.float32)


def test_npy_by_name_and_alone(tmp_path: Path, values):
    np.save(tmp_path / "v.npy", values)
    alone = data.read_inputs([str(tmp_path / "v.npy")], [X])
    named = data.read_inputs([f"x={tmp_path / 'v.npy'}"], [X, I])
    assert np.array_equal(alone["x"], values) and np.array_equal(named["x"], values)
    with pytest.raises(InputError, match="say which input 'v.npy' is for"):
        data.read_inputs([str(tmp_path / "v.npy")], [X, I])


def test_names_may_hold_an_equals_sign(tmp_path: Path):
    np.save(tmp_path / "a=b.npy", np.arange(4, dtype=np.int8))
    found = data.read_inputs([f"i=j={tmp_path / 'a=b.npy'}"], [X, I])
    assert found["i=j"].tolist() == [0, 1, 2, 3]


def test_npz_by_name_and_by_prefix(tmp_path: Path, values):
    np.savez(tmp_path / "v.npz", in_x=values, **{"i=j": np.zeros(2, np.int8)}, out_0=values + 1,
             other=values)
    found = data.read_inputs([str(tmp_path / "v.npz")], [X, I])
    assert set(found) == {"x", "i=j"} and np.array_equal(found["x"], values)
    expected = data.expected_outputs(tmp_path / "v.npz", [Spec("y", dt.f32, (2, 3))])
    assert np.array_equal(expected["y"], values + 1)
    np.savez(tmp_path / "w.npz", z=values)
    with pytest.raises(InputError, match="w.npz holds 'z', and the model takes 'x'"):
        data.read_inputs([str(tmp_path / "w.npz")], [X])


def test_written_npz_reads_back_with_any_name_and_type(tmp_path: Path, values):
    names = {"file": values, "a/b\n\"ü": values.astype(ml_dtypes.bfloat16), "s": np.float64(3)}
    data.write_npz(tmp_path / "o.npz", names)
    held = np.load(tmp_path / "o.npz")
    assert set(held.files) == set(names) and held["s"] == 3
    specs = [Spec(n, dt.from_numpy(np.asarray(a)), np.asarray(a).shape) for n, a in names.items()]
    found = data.read_inputs([str(tmp_path / "o.npz")], specs)
    assert all(found[n].tobytes() == np.asarray(a).tobytes() for n, a in names.items())
    assert found["a/b\n\"ü"].dtype == ml_dtypes.bfloat16


def test_json(tmp_path: Path):
    path = tmp_path / "v.json"
    path.write_text(json.dumps({"x": [[1, 2, 3], [4, 5, 6.5]], "i=j": [-128, 127]}))
    found = data.read_inputs([str(path)], [X, I])
    assert found["x"].dtype == np.float32 and found["x"][1, 2] == 6.5
    assert found["i=j"].dtype == np.int8
    path.write_text("[1, 2, 3, 4, 5, 6]")  # flat: takes the shape
    assert data.read_inputs([str(path)], [X])["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(("text", "spec", "message"), [
    ("[1, 2", X, "cannot be read as JSON"),
    ("[[1, 2], [3]]", X, "unequal lengths"),
    ('["a", "b"]', X, "not a number"),
    ("[1.5]", I, "has fractions"),
    ("[128]", I, "i8 holds -128 to 127"),
    ('{"z": [1]}', X, "the model has no input 'z': it takes 'x'"),
    ("[" * 100_000, X, "cannot be read as JSON"),
])
def test_bad_json_is_refused(tmp_path: Path, text: str, spec: Spec, message: str):
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        data.read_inputs([str(path)], [spec])


@pytest.mark.parametrize("name", ["v.npy", "v.npz"])
def test_damaged_arrays_are_refused(tmp_path: Path, name: str, values):
    np.savez(tmp_path / "v.npz", x=values)
    np.save(tmp_path / "v.npy", values)
    whole = (tmp_path / name).read_bytes()
    for broken in (whole[: len(whole) // 2], b"garbage", b""):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            data.read_inputs([f"x={tmp_path / name}"], [X])


def test_pickled_arrays_are_refused(tmp_path: Path):
    np.save(tmp_path / "v.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        data.read_inputs([f"x={tmp_path / 'v.npy'}"], [X])


def test_missing_files_and_unknown_kinds(tmp_path: Path):
    with pytest.raises(InputError, match="there is no file"):
        data.read_inputs([f"x={tmp_path / 'v.npy'}"], [X])
    with pytest.raises(InputError, match="the model has no input 'q'"):
        data.read_inputs([f"q={tmp_path / 'v.npy'}"], [X])
    (tmp_path / "v.txt").write_text("1")
    with pytest.raises(InputError, match="give tensors as"):
        data.read_inputs([f"x={tmp_path / 'v.txt'}"], [X])


# Pictures ----------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(5).integers(0, 256, (6, 8, 3), np.uint8)
    path = tmp_path / "p.png"
    image.fromarray(pixels).save(path)
    return path, pixels


def test_a_picture_becomes_planes(picture):
    path, pixels = picture
    spec = Spec("image", dt.f32, ("N", 3, 6, 8))
    found = data.read_inputs([str(path)], [spec])["image"]
    assert found.shape == (1, 3, 6, 8) and found.flags.c_contiguous
    # Pixels / 255 in f32: one rounding each.
    np.testing.assert_allclose(found[0], pixels.transpose(2, 0, 1) / 255, rtol=1e-6)
    how = data.Picture(scale=1.0, mean=(1, 2, 3), std=(2.0,), bgr=True)
    found = data.read_inputs([str(path)], [spec], how)["image"]
    expected = (pixels[..., ::-1].astype(np.float32) - [1, 2, 3]) / 2
    np.testing.assert_allclose(found[0], expected.transpose(2, 0, 1), rtol=1e-6)


def test_a_picture_is_resized_and_laid_out(picture):
    path, pixels = picture
    found = data.read_picture(path, Spec("i", dt.u8, (1, 3, 4, 3)), data.Picture(layout="NHWC"))
    assert found.shape == (1, 3, 4, 3) and found.dtype == np.uint8
    grey = data.read_picture(path, Spec("i", dt.f32, (1, 6, 8)), data.Picture())
    assert grey.shape == (1, 6, 8)
    free = data.read_picture(path, Spec("i", dt.u8, ("N", "H", "W", 3)), data.Picture())
    assert np.array_equal(free[0], pixels)


def test_inputs_that_take_no_picture(picture):
    path, _ = picture
    with pytest.raises(InputError, match="takes no picture: it has 2 dimensions"):
        data.read_inputs([str(path)], [X])
    with pytest.raises(InputError, match="no dimension has 1, 3 or 4 channels"):
        data.read_inputs([str(path)], [Spec("x", dt.f32, (1, 7, 8, 8))])
    with pytest.raises(UsageError, match="--mean has 2 numbers"):
        data.read_picture(path, Spec("x", dt.f32, (3, 8, 8)), data.Picture(mean=(1, 2)))
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        data.read_inputs([str(path)], [Spec("x", dt.f32, (1, 3, 8, 8))])


# Writing -----------------------------------------------------------------------------------------


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, values, monkeypatch):
    path = tmp_path / "o.npz"
    data.write_npz(path, {"x": values})
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OutputError, match="o.npz' cannot be written: No space left"):
        data.write_npz(path, {"x": values + 1})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["o.npz"]


def test_summaries():
    facts = data.summary("y", np.array([[0.1, 0.7, 0.2]], np.float32))
    assert facts["top"][0] == [1, pytest.approx(0.7)] and facts["max"] == pytest.approx(0.7)
    facts = data.summary("y", np.array([np.nan, np.inf, 1.0]))
    assert facts["not_finite"] == 2 and facts["max"] == 1 and "top" not in facts
    assert "min" not in data.summary("y", np.zeros((0, 3), np.float32))
    assert data.summary("b", np.array([True, False]))["mean"] == 0.5
