"""Fourier transforms, windows and mel filters through import and interpretation, against numpy."""

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret


def run(op: str, inputs: dict[str, np.ndarray], known: dict[str, np.ndarray], opset: int = 20,
        dims=None, **attrs) -> tuple[np.ndarray, set[str]]:
    """The output, and the core operators used. `known` operands are constants; `dims` names
    sizes of the first input."""
    names = list(inputs) + list(known)
    order = [n if n in names else "" for n in sorted(names)]
    values = [oh.make_tensor_value_info(n, oh.np_dtype_to_tensor_dtype(v.dtype),
                                        dims if dims and k == 0 else v.shape)
              for k, (n, v) in enumerate(inputs.items())]
    constants = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in known.items()]
    node = oh.make_node(op, order, ["y"], **attrs)
    graph = oh.make_graph([node], "g", values, [onnx.ValueInfoProto(name="y")], constants)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9)
    loaded = load_model(model)
    (y,) = interpret(loaded, list(inputs.values()))
    return y, {n.op for n in loaded.nodes}


def complex_of(x: np.ndarray) -> np.ndarray:
    return x[..., 0] + (1j * x[..., 1] if x.shape[-1] == 2 else 0)


def close(got: np.ndarray, want: np.ndarray, n: int) -> None:
    """Within the rounding of sums of n terms: n * 2**-24 of the largest, with room for the
    twiddle factors' own rounding."""
    assert got.shape == want.shape
    unit = 2.0**-24 if got.dtype == np.float32 else 2.0**-53
    scale = np.abs(want).max(initial=1e-30)
    assert np.abs(got - want).max(initial=0) <= 8 * max(np.sqrt(n), 4) * unit * scale


def pair(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 257, 360, 400, 1024, 1031, 2053])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("inverse", [0, 1])
def test_dft_of_many_lengths(n: int, parts: int, inverse: int):
    print("seed", n)
    x = np.random.default_rng(n).standard_normal((2, n, parts)).astype(np.float32)
    y, _ = run("DFT", {"a": x}, {}, inverse=inverse)
    function = np.fft.ifft if inverse else np.fft.fft
    close(y, pair(function(complex_of(x.astype(np.float64)), axis=1)), n)


def test_long_transforms_are_products_of_factors():
    x = np.random.default_rng(1).standard_normal((4096, 2)).astype(np.float32)
    y, ops = run("DFT", {"a": x}, {}, inverse=0)
    assert "dft" not in ops
    close(y, pair(np.fft.fft(complex_of(x.astype(np.float64)))), 4096)


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("length", [5, 8, 9, 12, 600])
def test_dft_cuts_or_pads(n: int, length: int):
    print("seed", n)
    x = np.random.default_rng(n).standard_normal((3, n, 2, 2)).astype(np.float64)
    for axis, onesided in ((1, 0), (1, 1), (-2, 0), (-3, 1), (0, 0)):
        y, _ = run("DFT", {"a": x}, {"b": np.array(length), "c": np.array(axis)},
                   onesided=onesided)
        full = np.fft.fft(complex_of(x), length, axis if axis >= 0 else axis + 1)
        if onesided:
            full = np.take(full, np.arange(length // 2 + 1), axis if axis >= 0 else axis + 1)
        close(y, pair(full), length)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 301, 512])
@pytest.mark.parametrize("given", [None, 3])
def test_the_inverse_of_one_sided_frequencies_is_real(length: int, given):
    print("seed", length)
    rows = length // 2 + 1 if given is None else given
    x = np.random.default_rng(length).standard_normal((2, rows, 2)).astype(np.float32)
    y, _ = run("DFT", {"a": x}, {"b": np.array(length)}, inverse=1, onesided=1)
    want = np.fft.irfft(complex_of(x.astype(np.float64)), length)[..., None]
    close(y, want, length)


@pytest.mark.parametrize("inverse, onesided", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_dft_of_a_length_that_is_a_name(inverse: int, onesided: int):
    x = np.random.default_rng(2).standard_normal((2, 11, 2)).astype(np.float32)
    y, ops = run("DFT", {"a": x}, {}, dims=["B", "L", 2], inverse=inverse, onesided=onesided)
    z = complex_of(x.astype(np.float64))
    if inverse and onesided:
        want = np.fft.irfft(z, 20)[..., None]
    else:
        full = np.fft.ifft(z) if inverse else np.fft.fft(z)
        want = pair(full[:, : 11 // 2 + 1] if onesided else full)
    assert "dft" in ops
    close(y, want, 20)


def test_dft_with_length_and_axis_as_data():
    x = np.random.default_rng(3).standard_normal((3, 6, 4, 1)).astype(np.float32)
    for axis in (0, 1, -2):
        y, _ = run("DFT", {"a": x, "b": np.array(5), "c": np.array(axis)}, {})
        close(y, pair(np.fft.fft(x[..., 0].astype(np.float64), 5, axis % 4)), 5)


@pytest.mark.parametrize("opset, axis", [(17, 1), (17, 2)])
def test_dft_17_takes_the_axis_as_attribute(opset: int, axis: int):
    x = np.random.default_rng(4).standard_normal((2, 5, 6, 1)).astype(np.float32)
    y, _ = run("DFT", {"a": x}, {}, opset, axis=axis)
    close(y, pair(np.fft.fft(x[..., 0].astype(np.float64), axis=axis)), 6)


def frames_of(x: np.ndarray, step: int, length: int) -> np.ndarray:
    count = (x.shape[1] - length) // step + 1
    return np.stack([x[:, f * step: f * step + length] for f in range(count)], 1)


@pytest.mark.parametrize("length, step", [(16, 4), (25, 10), (400, 160)])
@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("named", [False, True])
def test_stft(length: int, step: int, onesided: int, named: bool):
    print("seed", length)
    rng = np.random.default_rng(length)
    x = rng.standard_normal((2, 3 * length + 5)).astype(np.float32)
    window = rng.random(length).astype(np.float32)
    y, _ = run("STFT", {"a": x}, {"b": np.array(step), "c": window}, 17,
               dims=["B", "L"] if named else None, onesided=onesided)
    frames = frames_of(x.astype(np.float64), step, length) * window
    full = np.fft.fft(frames)
    close(y, pair(full[..., : length // 2 + 1] if onesided else full), length)


def test_stft_without_window_and_of_complex_signals():
    x = np.random.default_rng(5).standard_normal((2, 50, 2)).astype(np.float32)
    known = {"b": np.array(7), "d": np.array(16)}
    names = ["a", "b", "", "d"]
    values = [oh.make_tensor_value_info("a", 1, x.shape)]
    constants = [onnx.numpy_helper.from_array(v, n) for n, v in known.items()]
    node = oh.make_node("STFT", names, ["y"], onesided=0)
    graph = oh.make_graph([node], "g", values, [onnx.ValueInfoProto(name="y")], constants)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)
    (y,) = interpret(load_model(model), [x])
    close(y, pair(np.fft.fft(frames_of(complex_of(x.astype(np.float64)), 7, 16))), 16)


WINDOWS = {"HannWindow": np.hanning, "HammingWindow": None, "BlackmanWindow": np.blackman}


@pytest.mark.parametrize("op", list(WINDOWS))
@pytest.mark.parametrize("size", [2, 10, 37])
@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("constant", [True, False])
def test_windows(op: str, size: int, periodic: int, constant: bool):
    given = {"a": np.array(size)}
    y, _ = run(op, {} if constant else given, given if constant else {}, 17, periodic=periodic)
    span = size + periodic
    if op == "HammingWindow":
        n = np.arange(span)
        want = 25 / 46 - 21 / 46 * np.cos(2 * np.pi * n / (span - 1))
    else:
        want = WINDOWS[op](span)
    np.testing.assert_allclose(y, want[:size], atol=1e-6)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("filters, length, rate, low, high", [
    (8, 16, 8192, 0.0, 4096.0), (20, 64, 16000, 60.0, 7600.0), (3, 512, 44100, 20.0, 20000.0)])
def test_mel_filters(filters: int, length: int, rate: int, low: float, high: float,
                     constant: bool):
    operands = {"a": np.array(filters), "b": np.array(length), "c": np.array(rate),
                "d": np.array(low, np.float32), "e": np.array(high, np.float32)}
    y, _ = run("MelWeightMatrix", {} if constant else operands, operands if constant else {}, 17)
    from onnx.reference import ReferenceEvaluator

    node = oh.make_node("MelWeightMatrix", list("abcde"), ["y"])
    (want,) = ReferenceEvaluator(node).run(None, operands)
    np.testing.assert_allclose(y, want, atol=1e-6)
