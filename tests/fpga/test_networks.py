"""Whole models on the emulated fpga: bit for bit what their integer graphs give in the interpreter,
and near what ONNX Runtime gives for the original."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from fpga.networks import (
    integer_results,
    quantised_cnn,
    random_inputs,
    small_cnn,
    without_softmax,
)
from fpga.stages import FLAGS, HEADER, ROOT, run_design
from trained_models import models_folder

import smelt
import smelt.api
from smelt.compilation import Request
from smelt.ir.graph.interpreter import interpret
from smelt.passes.dataflow.assembly import assemble, set_depths
from smelt.passes.dataflow.folding import fold
from smelt.passes.dataflow.recognise import recognise
from smelt.targets.fpga.settings import Settings
from smelt.targets.fpga.target import FpgaTarget, as_device, find_part, to_integers


def agree(source, rng, options=None, batch: int = 1, part: str = "xcu280") -> None:
    """Emulation and interpreter give the same bits."""
    inputs = random_inputs(rng, source, batch)
    module = smelt.compile(source, target=f"fpga:{part}", options=options)
    for got, want in zip(module.run(inputs).values(), integer_results(source, inputs,
                                                                      options or {})):
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["QDQ", "QOperator"])
def test_quantised_models(kind, rng, tmp_path):
    path = quantised_cnn(rng, tmp_path, kind)
    agree(path, rng)
    # ONNX Runtime's own integer kernels round the same products; one step of the output.
    import onnxruntime as ort

    inputs = random_inputs(rng, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,), (got,) = session.run(None, inputs), integer_results(path, inputs)
    step = np.diff(np.unique(np.concatenate([expected.ravel(), got.ravel()]))).min(initial=1.0)
    assert np.abs(got - expected).max() <= 1.01 * max(step, 0.02 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("widths", [{"weights": "2"}, {"activations": "5", "weights": "4"},
                                    {"activations": "12", "weights": "6"}])
def test_widths_of_fixed_point(widths, rng):
    agree(small_cnn(rng, side=7, channels=5), rng, widths)


@pytest.mark.slow
def test_digits(rng):
    """A batch of three; and probabilities within 0.05 of the float model's, on its own test set,
    with the same digit in at least 98 of 100 cases."""
    path = ROOT / "examples" / "digits" / "digits.onnx"
    agree(without_softmax(path), rng, batch=3, part="xc7z020")
    module = smelt.compile(path, target="fpga:xc7z020")
    with np.load(path.parent / "digits_test.npz") as held:
        images = held[held.files[0]][:100].astype(np.float32)
    images = images.reshape(-1, 1, 8, 8)
    import onnxruntime as ort

    expected = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"image": images})[0]
    got = module(images)
    assert np.mean(got.argmax(1) == expected.argmax(1)) >= 0.98
    assert np.mean(np.abs(got - expected)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name, tolerance", [("mnist8", 0.1), ("ad01_fp32", 0.2)])
def test_trained_models(name, tolerance, rng):
    """Largest error over the largest output for inputs like those that decided about the binary
    points: 8 bits for each tensor and power-of-two scales leave about one part in 64 a layer."""
    path = models_folder() / f"{name}.onnx"
    agree(path, rng)
    import onnxruntime as ort

    inputs = random_inputs(rng, path)
    expected = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, inputs)[0]
    got = integer_results(path, inputs)[0]
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.slow
def test_resnet8(rng):
    agree(without_softmax(models_folder() / "resnet8.onnx"), rng,
          {"target-fps": "2000", "clock": "150MHz"})


def design_of(model, options=None, part: str = "xcu280"):
    settings = Settings.parse(options or {})
    graph = Request(model, "cpu").graph()
    to_integers(graph, settings)
    found = recognise(graph)
    target = FpgaTarget(f"fpga:{part}", find_part(part))
    return graph, found, target.design(found.network, settings)


def test_any_folding_gives_the_same(rng):
    """In the kernel interpreter, for foldings at random."""
    graph, found, _ = design_of(small_cnn(rng, side=5, channels=4))
    value = found.inputs[0]
    frame = rng.integers(-128, 128, [int(d) for d in value.shape]).astype(value.dtype.numpy)
    results = []
    for _ in range(3):
        prices: dict = {}
        choices = fold(found.network, 10**9, lambda layer, choice, prices=prices: (
            prices.setdefault((layer, choice), rng.random())))
        design = assemble(found.network, choices)
        stream = frame.reshape(-1)[found.network.inputs[0].order]
        (result,) = run_design(design, stream)
        results.append(result[np.argsort(found.network.outputs[0].order)])
    whole = as_device(graph, found)
    (expected,) = interpret(whole, [frame])
    results.append(expected.reshape(-1))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[0], results[3])


@pytest.mark.slow
def test_project_has_what_the_tools_need(rng, tmp_path):
    """The testbench agrees; the design's report adds up; a FIFO made too small is a deadlock that
    names it."""
    built = smelt.api.build(small_cnn(rng), target="fpga:xczu7ev",
                            options={"target-fps": "5000", "clock": "100MHz"})
    for name, content in built.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    report = json.loads((tmp_path / "design.json").read_text())
    assert report["frames_per_second"] >= 5000 and report["interval"] <= 20_000
    assert report["interval"] == max(s["cycles"] for s in report["stages"])
    assert report["resources"]["DSP"] == sum(s["DSP"] for s in report["stages"])
    assert {s["source"] for s in report["stages"]} == {"modelled"}
    tcl = (tmp_path / "build.tcl").read_text()
    assert "set_part xczu7ev-ffvc1156-2-e" in tcl and "create_clock -period 10.000" in tcl
    for step in ("csim_design", "csynth_design", "cosim_design", "export_design"):
        assert step in tcl
    assert (tmp_path / "firmware" / "smelt_fpga.hpp").read_bytes() == HEADER.read_bytes()

    def testbench() -> subprocess.CompletedProcess:
        subprocess.run(["g++", *FLAGS, "testbench.cpp", "firmware/model.cpp", "-o", "bench"],
                       cwd=tmp_path, check=True)
        return subprocess.run(["./bench"], cwd=tmp_path, capture_output=True, text=True)

    assert testbench().stdout == "all elements agree\n"
    branch = next(f for f in report["fifos"] if f["name"].startswith("copy") and f["depth"] > 32)
    top = tmp_path / "firmware" / "model.cpp"
    text = top.read_text()
    declared = f"SMELT_FIFO({branch['name']}, {branch['depth']})"
    assert declared in text
    top.write_text(text.replace(declared, f"SMELT_FIFO({branch['name']}, 4)"))
    failed = testbench()
    assert failed.returncode != 0 and f"full: {branch['name']} (depth 4)" in failed.stderr


def test_depths_suffice_and_less_does_not(rng):
    """The computed depth of a residual's branch holds what the other branch takes to begin."""
    _, _, design = design_of(small_cnn(rng))
    depths = {f.name: f.depth for f in design.fifos}
    set_depths(design)
    assert depths == {f.name: f.depth for f in design.fifos}
    assert any(f.depth > 32 for f in design.fifos if f.name.startswith("copy"))


@pytest.mark.slow
def test_activations_that_are_not_monotone_are_tables(rng):
    """hard-swish behind a convolution: the sum is rounded first, and its function looked up."""
    import onnx

    model = small_cnn(rng, side=5, channels=3)
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "HardSwish"
    onnx.checker.check_model(model)
    _, found, _ = design_of(model)
    assert [layer.kind for layer in found.network.layers].count("lookup") == 3
    agree(model, rng)
