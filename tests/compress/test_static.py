"""Static quantisation: what it computes against numpy, where bytes are, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import smelt
from smelt.api import build
from smelt.calibration import Channels
from smelt.cli import main
from smelt.compression import Compression
from smelt.errors import InputError, UsageError
from smelt.frontend.onnx.loader import load_model
from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.interpreter import interpret
from smelt.passes.compress.ranges import parameters
from smelt.passes.compress.smooth import smooth
from smelt.passes.compress.static import add_biases, layers_of, place, quantise, rounded_weights
from smelt.precision import loss


class Net:
    """An ONNX model, node by node."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...]):
        self.rng, self.shape = rng, shape
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, **attrs) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], f"{op}{len(self.nodes)}",
                                           **attrs))
        return name

    def array(self, array) -> str:
        self.held.append(numpy_helper.from_array(np.asarray(array), f"c{len(self.held)}"))
        return self.held[-1].name

    def conv(self, x: str, *size: int, bias: bool = True, **attrs: Any) -> str:
        w = self.rng.standard_normal(size) * np.sqrt(2 / np.prod(size[1:]))
        operands = [self.array(w.astype(np.float32))]
        if bias:
            operands.append(self.array(self.rng.standard_normal(size[0]).astype(np.float32) / 4))
        return self.add("Conv", x, *operands, **attrs)

    def product(self, x: str, rows: int, columns: int) -> str:
        w = self.rng.standard_normal((rows, columns)) / np.sqrt(rows)
        return self.add("MatMul", x, self.array(w.astype(np.float32)))

    def save(self, path: Path, out: str) -> Path:
        graph = helper.make_graph(
            self.nodes, "main",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)], self.held)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)],
                                    ir_version=10), path)
        return path


SIDE = 11


def image_net(rng, path: Path) -> Path:
    """A stem with a pool, a residual block, a depthwise block with squeeze and excitation, a
    concatenation, and a classifier."""
    n, same = Net(rng, (1, 3, 2 * SIDE, 2 * SIDE)), (1, 1, 1, 1)
    x = n.add("Relu", n.conv("x", 16, 3, 3, 3, pads=same))
    x = n.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = n.add("Relu", n.conv(x, 16, 16, 3, 3, pads=same))
    x = n.add("Relu", n.add("Add", n.conv(y, 16, 16, 3, 3, pads=same), n.conv(x, 16, 16, 1, 1)))
    y = n.add("Clip", n.conv(x, 24, 16, 1, 1, bias=False), n.array(np.float32(0)),
              n.array(np.float32(6)))
    y = n.add("HardSwish", n.conv(y, 24, 1, 3, 3, group=24, pads=same))
    s = n.add("ReduceMean", y, n.array(np.array([2, 3])))
    s = n.add("Sigmoid", n.conv(s, 24, 24, 1, 1))
    y = n.conv(n.add("Mul", y, s), 16, 24, 1, 1, bias=False)
    x = n.add("Concat", n.add("Add", x, y), n.add("Relu", n.conv(x, 9, 16, 1, 1)), axis=1)
    x = n.add("Relu", n.conv(x, 20, 25, 3, 3, group=1, pads=same))
    x = n.add("Flatten", n.add("GlobalAveragePool", x))
    return n.save(path, n.product(x, 20, 30))


def images(rng, count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": rng.standard_normal((1, 3, 2 * SIDE, 2 * SIDE)).astype(np.float32)}
            for _ in range(count)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(v, np.float64).reshape(-1) for v in (a, b))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path / "cache"))


def quantised_graph(g: Graph, ranges: dict[Value, tuple[float, float]],
                    means: dict[Value, np.ndarray] | None = None) -> None:
    layers = layers_of(g)
    quantise(g, layers, place(g, layers), lambda values: ranges[values[0]], means or {})


@pytest.mark.parametrize("kind", ["conv", "depthwise", "matmul"])
def test_a_product_is_that_of_rounded_operands(kind, rng):
    """Bit for bit what numpy makes of operands that it rounds itself."""
    g = Graph()
    size, shape = {"conv": ((5, 3, 3, 2), (2, 3, 7, 6)), "depthwise": ((4, 1, 3, 3), (1, 4, 6, 5)),
                   "matmul": ((13, 6), (4, 13))}[kind]
    w = rng.standard_normal(size).astype(np.float32)
    w[-1] = 0  # a feature without a scale of its own
    x = g.add_input("x", TensorType(dt.f32, shape))
    attrs = {"groups": 4} if kind == "depthwise" else {}
    g.outputs.append(g.add("matmul" if kind == "matmul" else "conv", [x, g.constant(w)], attrs))
    add_biases(g, layers_of(g))
    low, high = -1.5, 2.0
    quantised_graph(g, {x: (low, high)})
    array = rng.standard_normal(shape).astype(np.float32)
    step, zero = parameters(low, high)
    rounded = (np.clip(np.rint(array / step) + zero, 0, 255) - zero).astype(np.float64) * step
    axes = (0,) if kind == "matmul" else tuple(range(1, w.ndim))
    top = np.abs(w).max(axis=axes, keepdims=True)
    top = np.where(top > 0, top, 127).astype(np.float32) / np.float32(127)
    weights = np.rint(w / top).astype(np.float64) * top
    h = Graph()
    operands = [h.add_input("x", TensorType(dt.f64, shape)), h.constant(weights)]
    h.outputs.append(h.add("matmul" if kind == "matmul" else "conv", operands, attrs))
    wanted = interpret(h, [rounded])[0]
    np.testing.assert_allclose(interpret(g, [array])[0], wanted, rtol=1e-5, atol=1e-5)


def test_errors_of_means_are_corrected(rng):
    """Inputs around 1, so that errors of the weights do not cancel."""
    def shift(corrected: bool) -> float:
        g = Graph()
        x = g.add_input("x", TensorType(dt.f32, (500, 40)))
        w = rng.standard_normal((40, 8)).astype(np.float32)
        w[0] *= 30  # wide steps
        g.outputs.append(g.add("matmul", [x, g.constant(w)]))
        add_biases(g, layers_of(g))
        array = rng.standard_normal((500, 40)).astype(np.float32) / 4 + 1
        array[:, 0] = 0
        wanted = interpret(g, [array])[0]
        channels = Channels(1)
        channels.update(array)
        np.testing.assert_allclose(channels.mean, array.mean(0), rtol=1e-5)
        assert channels.mean is not None
        quantised_graph(g, {x: (0.0, 2.5)}, {x: channels.mean} if corrected else {})
        return float(np.abs((interpret(g, [array])[0] - wanted).mean(0)).max())

    plain, corrected = shift(False), shift(True)
    assert corrected < plain / 4


def test_smoothing_changes_no_result_and_helps_rounding(rng):
    """One channel of the activations is a hundred times as large as the others."""
    x = rng.standard_normal((64, 48)).astype(np.float32)
    x[:, 5] *= 100
    w = rng.standard_normal((48, 24)).astype(np.float32)
    w[5] /= 50
    errors = []
    for smoothed in (False, True):
        g = Graph()
        left = g.add_input("x", TensorType(dt.f32, x.shape))
        g.outputs.append(g.add("matmul", [left, g.constant(w)]))
        wanted = x.astype(np.float64) @ w
        if smoothed:
            smooth(g, layers_of(g), {left: np.abs(x).max(0)})
            np.testing.assert_allclose(interpret(g, [x])[0], wanted, rtol=1e-4, atol=1e-3)
        add_biases(g, layers_of(g))
        (layer,) = layers_of(g)
        probe = Graph()
        probe.add_input("x", TensorType(dt.f32, x.shape))
        array = x if not smoothed else x * layer.left.node.inputs[1].constant  # type: ignore
        quantised_graph(g, {layer.left: (float(array.min()), float(array.max()))})
        errors.append(np.linalg.norm(interpret(g, [x])[0] - wanted))
    assert errors[1] < errors[0] / 3


def test_bytes_from_end_to_end(rng, tmp_path):
    """No kernel writes a whole image of floats but the one in front of the last mean; residual
    sums, pools, concatenation and squeezing read bytes."""
    path = image_net(rng, tmp_path / "m.onnx")
    data = images(rng)
    built = build(path, quantize="int8", data=data[:2], ranges="minmax")
    pixels = SIDE * SIDE
    wide = [k.name for k in built.program.kernels() for p in k.params[-k.outputs:]
            if p.dtype is dt.f32 and isinstance(p.shape[0], int) and p.shape[0] >= 9 * pixels]
    assert len(wide) == 1 and wide[0].endswith("_conv"), wide
    layers = built.reports["compression"]["layers"]
    assert len(layers) == 11 and all(x["encoding"] == "int8" for x in layers)
    names = " ".join(k.name for k in built.program.kernels())
    assert names.count("_conv") + names.count("_matmul") == 10 and "_depthwise" in names


def test_fewer_layers_need_no_other_ranges(rng):
    """What is observed for all layers is enough when some of them stay floats."""
    g = Graph()
    x = y = g.add_input("x", TensorType(dt.f32, (1, 4, 5, 5)))
    for k in range(7):
        w = g.constant(rng.standard_normal((4, 4, 1, 1)).astype(np.float32))
        y = g.add("relu", [g.add("conv", [y, w])])
        if k % 2:
            x = y = g.add("relu", [g.add("add", [x, g.add("conv", [y, w])])])
    g.outputs.append(y)
    layers = layers_of(g)
    every = set(place(g, layers).groups)
    assert len(every) >= 9
    for first in range(len(layers)):
        for last in range(first, len(layers)):
            rest = [*layers[:first], *layers[last + 1:]]
            assert set(place(g, rest).groups) <= every


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:generic"])
def test_a_whole_network_stays_close(target, rng, tmp_path, cached):
    path = image_net(rng, tmp_path / "m.onnx")
    data = images(rng)
    want = interpret(load_model(path), [data[2]["x"]])[0]
    module = smelt.compile(path, target, quantize="int8", data=iter(data))
    got = np.array(module(data[2]["x"]))
    assert cosine(got, want) > 0.998
    np.testing.assert_array_equal(np.array(module(data[2]["x"])), got)


def test_onnx_runtime_agrees_with_the_rounded_model(rng, tmp_path, cached):
    """The QDQ model that ONNX Runtime's own tool writes is integer kernels here, and gives what
    ONNX Runtime gives, but for single steps of the last activations."""
    ort = pytest.importorskip("onnxruntime")
    quantization = pytest.importorskip("onnxruntime.quantization")
    path, data = image_net(rng, tmp_path / "m.onnx"), images(rng)

    class Reader(quantization.CalibrationDataReader):
        left = list(data[:2])

        def get_next(self):
            return self.left.pop() if self.left else None

    out = tmp_path / "qdq.onnx"
    quantization.quantize_static(str(path), str(out), Reader(), per_channel=True,
                                 quant_format=quantization.QuantFormat.QDQ)
    want = ort.InferenceSession(out, providers=["CPUExecutionProvider"]).run(None, data[2])[0]
    built = build(out)
    assert sum(k.name.endswith(("_conv", "_matmul", "_depthwise"))
               for k in built.program.kernels()) >= 10
    got = np.array(smelt.compile(out)(data[2]["x"]))
    assert cosine(got, want) > 0.9995


def test_functions_and_reshapes_between_products(rng, tmp_path):
    """A GELU that is written out stays one operator in the kernel of the product before it, not
    quantised halfway; bytes go through a reshape, and no product reads wider integers."""
    n = Net(rng, (1, 12, 40))
    x = n.product("x", 40, 64)
    y = n.add("Erf", n.add("Div", x, n.array(np.float32(np.sqrt(2)))))
    y = n.add("Mul", n.add("Mul", x, n.add("Add", y, n.array(np.float32(1)))),
              n.array(np.float32(0.5)))
    y = n.add("Reshape", y, n.array(np.array([1, 6, 128])))
    path = n.save(tmp_path / "m.onnx", n.product(y, 128, 24))
    built = build(path, quantize="int8", data=[{"x": np.asarray(
        rng.standard_normal((1, 12, 40)), np.float32)}])
    ops = [m.op for k in built.graph.ordered() for r in k.regions for m in r.ordered()]
    assert ops.count("gelu") == 1 and "erf" not in ops and ops.count("requantize") == 1
    lefts = [m.inputs[0].dtype for k in built.graph.ordered() for r in k.regions
             for m in r.ordered() if m.op == "matmul" and m.inputs[0] is not None]
    assert lefts == [dt.u8, dt.u8]


def sensitive_net(rng, path: Path) -> Path:
    """relu(x A - offset) B, with columns of A whose sums with x are near the offset: A is the
    product that 8 bits are too few for."""
    n = Net(rng, (64, 40))
    a = rng.standard_normal((41, 32)) / 6
    a[0] += 300
    one = n.array(np.ones((64, 1), np.float32))
    x = n.add("MatMul", n.add("Concat", one, "x", axis=1), n.array(a.astype(np.float32)))
    x = n.add("Relu", n.add("Sub", x, n.array(np.float32(300))))
    return n.save(path, n.product(n.add("Relu", n.product(x, 32, 48)), 48, 16))


def test_sensitive_layers_stay_floats(rng, tmp_path):
    path = sensitive_net(rng, tmp_path / "m.onnx")
    data = [{"x": rng.standard_normal((64, 40)).astype(np.float32)} for _ in range(3)]
    plain, reached = (build(path, quantize="int8", data=data, accuracy=a).reports["compression"]
                      for a in (None, 0.995))
    assert plain["cosine"] < 0.995 <= reached["cosine"]
    layers = reached["layers"]
    assert [x["encoding"] for x in layers] == ["f32", "int8", "int8"]
    assert layers[0]["loss"] > max(x["loss"] for x in layers[1:])
    assert layers[0]["encoded"] == layers[0]["dense"] and layers[0]["weight_error"] == 0
    assert plain["encoded"] < reached["encoded"] < reached["dense"]


def test_a_network_that_vanishes_has_lost_everything(rng):
    x = rng.standard_normal(9)
    assert loss([x], [np.zeros(9)]) == 1 and loss([np.zeros(9)], [np.zeros(9)]) == 0
    assert loss([x, x], [2 * x, x]) < 1e-12


def test_layers_are_kept_by_name(rng, tmp_path):
    path = sensitive_net(rng, tmp_path / "m.onnx")
    data = [{"x": rng.standard_normal((64, 40)).astype(np.float32)}]
    found = build(path, quantize="int8", data=data, keep=["MatMul1"]).reports["compression"]
    assert [x["encoding"] for x in found["layers"]] == ["f32", "int8", "int8"]
    with pytest.raises(UsageError, match="no layer to keep has a name with 'nothing' in it"):
        build(path, quantize="int8", data=data, keep=["nothing"])


def test_command_line(rng, tmp_path, cached, capsys):
    path, folder = sensitive_net(rng, tmp_path / "m.onnx"), tmp_path / "data"
    folder.mkdir()
    for k in range(2):
        np.savez(folder / f"{k}.npz", x=rng.standard_normal((64, 40)).astype(np.float32))
    command = ["compile", str(path), "-o", str(tmp_path / "m.smelt"), "--quantize", "int8",
               "--data", str(folder), "--ranges", "entropy", "--method", "smoothquant",
               "--accuracy", "0.99", "--json"]
    assert main(command) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["compression"]
    assert found["ranges"] == "entropy" and found["method"] == "smoothquant"
    assert found["samples"] == 2 and found["cosine"] >= 0.99 and len(found["layers"]) == 3
    assert "layers stay f32" in captured.err and "MatMul1" in captured.err


def test_bad_requests_are_refused(rng, tmp_path):
    path = sensitive_net(rng, tmp_path / "m.onnx")
    x = rng.standard_normal((64, 40)).astype(np.float32)
    for options, message in (
            ({"data": None}, "int8 needs samples"),
            ({"group": 32}, "leave the group out"),
            ({"method": "gptq"}, "no method 'gptq' for int8: use rtn or smoothquant"),
            ({"ranges": "best"}, "no ranges 'best': use one of minmax")):
        with pytest.raises(UsageError, match=message):
            Compression("int8", **{"data": [{"x": x}], **options})
    with pytest.raises(UsageError, match="ranges are chosen for int8, not for w8"):
        Compression("w8", ranges="mse")
    with pytest.raises(UsageError, match="ranges and keep are options of quantisation"):
        build(path, ranges="mse")
    with pytest.raises(InputError, match="sample 0: infinities or NaN arise inside the model"):
        build(path, quantize="int8", data=[{"x": np.full((64, 40), 3e38, np.float32)}])
    with pytest.raises(InputError, match="there are no samples"):
        build(path, quantize="int8", data=[])


@pytest.mark.parametrize("method", ["rtn", "smoothquant"])
def test_samples_without_elements_are_refused(method, rng, tmp_path):
    net = Net(rng, ("N", 5))
    path = net.save(tmp_path / "m.onnx", net.product("x", 5, 3))
    with pytest.raises(InputError, match="MatMul0.* has no element in any sample"):
        build(path, quantize="int8", method=method, data=[{"x": np.zeros((0, 5), np.float32)}])


@pytest.mark.parametrize("largest", [1e-43, 3.3e38])
def test_ranges_of_extreme_numbers(largest, rng, tmp_path):
    """Denormal numbers, and a range whose width is beyond f32."""
    net = Net(rng, (2, 5))
    weights = net.array(np.full((5, 3), 1e-3, np.float32))
    path = net.save(tmp_path / "m.onnx", net.add("MatMul", "x", weights))
    x = np.zeros((2, 5), np.float32)
    x[:, 0], x[:, 1] = largest, -largest / 2
    report = build(path, quantize="int8", data=[{"x": x}], accuracy=0.0).reports["compression"]
    assert [layer["encoding"] for layer in report["layers"]] == ["int8"]


def test_weights_fill_seven_bits(rng):
    g = Graph()
    x = g.add_input("x", TensorType(dt.f32, (3, 9)))
    w = rng.standard_normal((9, 5)).astype(np.float32)
    g.outputs.append(g.add("matmul", [x, g.constant(w)]))
    rounded, scale = rounded_weights(layers_of(g)[0])
    assert rounded.dtype == np.int8 and np.abs(rounded).max(0).tolist() == [127] * 5
    np.testing.assert_allclose(rounded * scale, w, atol=float(scale.max()) / 2 * 1.001)
