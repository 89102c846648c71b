"""Trained models end to end: compiled with defaults, run, and compared with stored outputs.

Tolerances: largest |error| over the output's largest |value| (float models), or 99.9 % of the
outputs within one quantisation step (8-bit models).
"""

from __future__ import annotations

import numpy as np
import pytest
from trained_models import models_folder

import smelt
from smelt.targets.cpu.isa import native

FLOAT = {
    "mnist8": 1e-4, "super_resolution": 1e-4, "ultraface_rfb320": 1e-4, "yolox_nano": 1e-3,
    "ppocr_v3_det": 1e-4, "silero_vad_16k_op15": 1e-4, "gtcrn_stream": 1e-4, "resnet8": 1e-4,
    "ad01_fp32": 1e-4, "vit_track": 1e-4, "stories260k_kv": 1e-4,
}
pytestmark = pytest.mark.slow


def sets(name: str) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    found = []
    for suffix in ("", "_real"):
        path = models_folder() / "data" / f"{name}{suffix}.npz"
        if path.exists():
            with np.load(path) as data:
                found.append(({k[3:]: data[k] for k in data.files if k.startswith("in_")},
                              {k[4:]: data[k] for k in data.files if k.startswith("out_")}))
    assert found, f"no data for {name}"
    return found


def compiled(name: str):
    return smelt.compile(models_folder() / f"{name}.onnx", target="cpu", threads=1)


def matched(results: dict[str, np.ndarray], expected: dict[str, np.ndarray]):
    """Pairs by name; names that the archive could not hold pair by position."""
    if set(results) == set(expected):
        return [(results[k], expected[k]) for k in expected]
    return list(zip(results.values(), expected.values(), strict=True))


def largest_error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    if not want.size:
        return 0.0
    return float(np.abs(got.astype(np.float64) - want).max() / max(1e-30, np.abs(want).max()))


@pytest.mark.parametrize("name", FLOAT)
def test_matches_stored_outputs(name):
    module = compiled(name)
    for inputs, expected in sets(name):
        for got, want in matched(module.run(inputs), expected):
            assert largest_error(got, want) <= FLOAT[name]


BF16 = ("mnist8", "super_resolution", "ultraface_rfb320", "resnet8", "ad01_fp32", "vit_track",
        "stories260k_kv", "gtcrn_stream")


@pytest.mark.parametrize("name", BF16)
def test_bf16_products_keep_the_direction_of_outputs(name):
    """Where the processor has no bf16 products, the precision is f32, which keeps it as well."""
    precision = "bf16" if native().vector.dot2 else "f32"
    module = smelt.compile(models_folder() / f"{name}.onnx", threads=1, precision=precision)
    for inputs, expected in sets(name):
        for got, want in matched(module.run(inputs), expected):
            a, b = got.astype(np.float64).reshape(-1), want.astype(np.float64).reshape(-1)
            assert a @ b >= 0.999 * np.linalg.norm(a) * np.linalg.norm(b)


def test_quantised_model_matches_within_a_step():
    module = compiled("shufflenet_v2_int8")
    for inputs, expected in sets("shufflenet_v2_int8"):
        for got, want in matched(module.run(inputs), expected):
            # The output is dequantised: the smallest difference between values is the step.
            levels = np.unique(want)
            step = float(np.diff(levels).min())
            close = np.abs(got - want) <= step * 1.001
            assert close.mean() >= 0.999


def reference(name: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(models_folder() / f"{name}.onnx"), options,
                                   providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def test_one_text_detector_runs_at_any_size(rng):
    """Parts of a photograph around a line of text, repeated as needed: without text the
    detector's largest output is so small that it says nothing."""
    module = compiled("ppocr_v3_det")
    inputs, expected = sets("ppocr_v3_det")[-1]
    photo, (found,) = inputs["x"], expected.values()
    row, column = np.unravel_index(found.argmax(), found.shape)[2:]
    for height, width in ((320, 480), (480, 736), (96, 96)):
        shift = -row + height // 2, -column + width // 2
        around = np.roll(photo, shift, axis=(2, 3))
        times = -(-height // photo.shape[2]), -(-width // photo.shape[3])
        x = np.ascontiguousarray(np.tile(around, (1, 1, *times))[:, :, :height, :width])
        x += rng.normal(0, 0.01, x.shape).astype(np.float32)
        want, = reference("ppocr_v3_det", {"x": x})
        assert want.max() > 0.5
        assert largest_error(module(x), want) <= 1e-4


def test_super_resolution_runs_at_any_batch(rng):
    module = compiled("super_resolution")
    for batch in (1, 4):
        x = rng.standard_normal((batch, 1, 224, 224), np.float32)
        want, = reference("super_resolution", {"input": x})
        assert largest_error(module(x), want) <= 1e-4


def language_model_inputs(past: int, tokens: list[int], caches=None) -> dict[str, np.ndarray]:
    inputs = {"input_ids": np.array([tokens], np.int64),
              "position_ids": np.arange(past, past + len(tokens), dtype=np.int64)[None]}
    for layer in range(5):
        for kind in "kv":
            name = f"past_{kind}{layer}"
            inputs[name] = (np.zeros((1, 4, past, 8), np.float32) if caches is None
                            else caches[name])
    return inputs


def test_language_model_takes_any_past(rng):
    module = compiled("stories260k_kv")
    for past in (0, 1, 17):
        inputs = language_model_inputs(past, [1, 403, 407])
        for name in inputs:
            if name.startswith("past"):
                inputs[name] = rng.standard_normal(inputs[name].shape, np.float32)
        want = reference("stories260k_kv", inputs)
        for got, expected in zip(module.run(inputs).values(), want, strict=True):
            assert largest_error(got, expected) <= 1e-4


def test_language_model_writes_the_same_story_as_the_reference():
    """Greedy decoding of 60 tokens with the caches fed back: the tokens agree with those that
    ONNX Runtime decodes, and they are no repetition of one token."""
    module = compiled("stories260k_kv")

    def decode(run) -> list[int]:
        tokens, caches, position, last = [1], None, 0, [1]
        for _ in range(60):
            outputs = run(language_model_inputs(position, last, caches))
            logits, *states = outputs
            names = [f"past_{kind}{layer}" for layer in range(5) for kind in "kv"]
            caches = dict(zip(names, states, strict=True))
            position += len(last)
            last = [int(logits[0, -1].argmax())]
            tokens += last
        return tokens

    mine = decode(lambda x: list(module.run(x).values()))
    theirs = decode(lambda x: reference("stories260k_kv", x))
    assert mine == theirs
    assert len(set(mine)) > 20
