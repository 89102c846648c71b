"""Trained models on the emulated device, next to their stored outputs or ONNX Runtime.

Tolerance: 1e-3 of the largest |value| (in practice about 1e-6).
"""

from pathlib import Path

import numpy as np
import pytest
from trained_models import models_folder

import smelt

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"
MODELS = ("mnist8", "resnet8", "ad01_fp32", "gtcrn_stream", "silero_vad_16k_op15",
          "stories260k_kv", "shufflenet_v2_int8", "ultraface_rfb320", "vit_track")


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype
    if want.size:
        error = np.abs(got.astype(np.float64) - want).max()
        assert error <= 1e-3 * max(1e-30, np.abs(want).max())


def test_digits(rng):
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(DIGITS, providers=["CPUExecutionProvider"])
    (spec,) = session.get_inputs()
    with smelt.compile(DIGITS, target="cuda:emulated", optimize=0) as module:
        for n in (1, 5, 33):
            shape = [d if isinstance(d, int) else n for d in spec.shape]
            x = rng.standard_normal(shape).astype(np.float32)
            assert_close(module(x), session.run(None, {spec.name: x})[0])


def check_model(name: str, target: str) -> None:
    """The stored outputs of a trained model, by name or in order."""
    with smelt.compile(models_folder() / f"{name}.onnx", target=target, optimize=1) as module, \
            np.load(models_folder() / "data" / f"{name}.npz") as data:
        results = module.run({k[3:]: data[k] for k in data.files if k.startswith("in_")})
        expected = {k[4:]: data[k] for k in data.files if k.startswith("out_")}
        pairs = [(results[k], expected[k]) for k in expected] if set(results) == set(
            expected) else zip(results.values(), expected.values(), strict=True)
        for got, want in pairs:
            assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_trained_model(name):
    check_model(name, "cuda:emulated")


@pytest.mark.slow
def test_super_resolution_of_a_small_picture(rng):
    ort = pytest.importorskip("onnxruntime")
    path = models_folder() / "super_resolution.onnx"
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (spec,) = session.get_inputs()
    x = rng.random((1, *spec.shape[1:]), np.float32)
    with smelt.compile(path, target="cuda:emulated", dims={"batch_size": 1}) as module:
        assert_close(module(x), session.run(None, {spec.name: x})[0])
