"""Whole models on the emulated fpga: bit for bit what their integer graphs give in the interpreter,
and near what ONNX Runtime gives for the original."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import onnx
import pytest
from fpga.networks import (
    integer_results,
    quantised_cnn,
    random_inputs,
    small_cnn,
    without_softmax,
)
from fpga.stages import FLAGS, HEADER, ROOT, run_design
from onnx import TensorProto, helper, numpy_helper
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


def in_interpreter(model, rng, foldings: int = 1) -> None:
    """The kernels of the layers, for foldings at random, against the integer graph."""
    graph, found, _ = design_of(model)
    frames = [rng.integers(w.element.low, w.element.high + 1, [int(d) for d in v.shape]).astype(
        v.dtype.numpy) for v, w in zip(found.inputs, found.network.inputs, strict=True)]
    results = []
    for _ in range(foldings):
        prices: dict = {}
        choices = fold(found.network, 10**9, lambda layer, choice, prices=prices: (
            prices.setdefault((layer, choice), rng.random())))
        design = assemble(found.network, choices)
        results.append(run_design(design, *(
            f.reshape(-1)[w.order] for f, w in zip(frames, found.network.inputs, strict=True))))
    wires = found.network.outputs
    expected = interpret(as_device(graph, found), frames)
    for streams in results:
        for stream, wire, want in zip(streams, wires, expected, strict=True):
            np.testing.assert_array_equal(stream[np.argsort(wire.order)], want.reshape(-1))


def test_any_folding_gives_the_same(rng):
    in_interpreter(small_cnn(rng, side=5, channels=4), rng, foldings=3)


def weights(rng, **shapes) -> list:
    return [numpy_helper.from_array((rng.standard_normal(s) * 0.5).astype(np.float32), n)
            for n, s in shapes.items()]


def chain(rng, shape, nodes, out=None, **shapes) -> onnx.ModelProto:
    """A model of nodes (operator, its other inputs, attributes) one after another."""
    made, x = [], "x"
    for k, (kind, others, attrs) in enumerate(nodes):
        y = "y" if k == len(nodes) - 1 else f"t{k}"
        made.append(helper.make_node(kind, [x, *others], [y], name=f"n{k}", **attrs))
        x = y
    graph = helper.make_graph(
        made, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", out or TensorProto.FLOAT, None)],
        weights(rng, **shapes))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CHAINS = {
    "one spatial axis": lambda r: chain(r, [1, 3, 11], [
        ("Conv", ["w", "b"], {"pads": [2, 1], "strides": [2], "dilations": [2]}), ("Relu", [], {}),
        ("MaxPool", [], {"kernel_shape": [2], "strides": [1], "pads": [1, 0]})],
        w=(4, 3, 3), b=(4,)),
    "groups": lambda r: chain(r, [1, 4, 5, 4], [
        ("Conv", ["w"], {"group": 2, "pads": [1, 0, 1, 2]}), ("Conv", ["v"], {"group": 6})],
        w=(6, 2, 3, 3), v=(6, 1, 2, 2)),
    "channels last": lambda r: chain(r, [1, 5, 6, 3], [
        ("Transpose", [], {"perm": [0, 3, 1, 2]}), ("Conv", ["w"], {"strides": [3, 2]}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]})], w=(4, 3, 2, 3)),
    "flattened pixels": lambda r: chain(r, [1, 2, 3, 4], [
        ("Conv", ["w"], {}), ("Relu", [], {}), ("Flatten", [], {}), ("MatMul", ["v"], {})],
        w=(3, 2, 1, 1), v=(36, 5)),
    "rows": lambda r: chain(r, [1, 7, 6], [
        ("MatMul", ["w"], {}), ("Relu", [], {}), ("MatMul", ["v"], {})], w=(6, 5), v=(5, 1)),
    "largest": lambda r: chain(r, [1, 3, 4, 4], [
        ("Conv", ["w"], {}), ("ArgMax", [], {"axis": 1, "keepdims": 0})], TensorProto.INT64,
        w=(5, 3, 2, 2)),
    "one of everything": lambda r: chain(r, [1, 1, 1, 1], [
        ("Conv", ["w", "b"], {}), ("GlobalAveragePool", [], {}), ("Flatten", [], {}),
        ("Gemm", ["v"], {})], w=(1, 1, 1, 1), b=(1,), v=(1, 1)),
    "one channel of pixels": lambda r: chain(r, [1, 1, 6, 4], [
        ("Sigmoid", [], {}), ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["w"], {}), ("Sigmoid", [], {}), ("GlobalAveragePool", [], {}),
        ("Conv", ["v"], {})], w=(1, 1, 1, 2), v=(2, 1, 1, 1)),
    "unused rows": lambda r: chain(r, [1, 2, 9, 9], [
        ("Conv", ["w"], {"strides": [4, 4]}), ("LeakyRelu", [], {"alpha": 0.1}),
        ("Sigmoid", [], {}), ("Conv", ["v"], {})], w=(2, 2, 3, 3), v=(2, 2, 1, 1)),
}


def shuffled(rng) -> onnx.ModelProto:
    """Halves of channels: one through a convolution, then interleaved and halved again, as in
    ShuffleNet (Ma et al. 2018)."""
    node = helper.make_node
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
             node("Split", ["a"], ["b", "c"], axis=1),
             node("Conv", ["c", "v"], ["d"], group=3), node("Concat", ["b", "d"], ["e"], axis=1),
             node("Reshape", ["e", "five"], ["f"]),
             node("Transpose", ["f"], ["g"], perm=[0, 2, 1, 3, 4]),
             node("Reshape", ["g", "four"], ["h"]), node("Split", ["h"], ["i", "j"], axis=1),
             node("Conv", ["j", "u"], ["k"]), node("Concat", ["i", "k", "i"], ["l"], axis=1),
             node("Conv", ["l", "t"], ["y"])]
    held = weights(rng, w=(6, 2, 3, 3), v=(3, 1, 1, 1), u=(2, 3, 1, 1), t=(2, 8, 1, 1))
    held += [numpy_helper.from_array(np.array(s, np.int64), n) for n, s in (
        ("five", [1, 2, 3, 4, 5]), ("four", [1, 6, 4, 5]))]
    graph = helper.make_graph(
        nodes, "shuffled", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CHAINS["shuffled channels"] = shuffled


def test_activations_that_are_never_positive_keep_their_bits(rng):
    """0.01 is more than the steps of both layers' results come to, the largest being 0.31."""
    made = chain(rng, [1, 1, 4, 1], [("Conv", ["w", "b"], {}), ("Conv", ["v"], {})],
                 w=(1, 1, 1, 1), b=(1,), v=(1, 1, 1, 1))
    for tensor, value in zip(made.graph.initializer, (0.01, -0.3, 1.0), strict=True):
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, value), tensor.name))
    x = rng.uniform(-1, 1, (1, 1, 4, 1)).astype(np.float32)
    found = smelt.compile(made, target="fpga:xcu280")(x)
    np.testing.assert_allclose(found, 0.01 * x - 0.3, 0, 0.01)


@pytest.mark.parametrize("name", CHAINS)
def test_shapes_of_layers(name, rng):
    in_interpreter(CHAINS[name](rng), rng, foldings=2)


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
    full = failed.stderr.partition("full: ")[2]
    assert failed.returncode != 0 and f"{branch['name']} (depth 4)" in full


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
    model = small_cnn(rng, side=5, channels=3)
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "HardSwish"
    onnx.checker.check_model(model)
    _, found, _ = design_of(model)
    assert [layer.kind for layer in found.network.layers].count("lookup") == 3
    agree(model, rng)
