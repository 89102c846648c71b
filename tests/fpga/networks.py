"""Models for the fpga target, and what their integer graphs give."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from smelt.compilation import Request
from smelt.ir.graph.interpreter import interpret
from smelt.targets.fpga.settings import Settings
from smelt.targets.fpga.target import to_integers


def small_cnn(random: np.random.Generator, side: int = 9, channels: int = 6) -> onnx.ModelProto:
    """Convolutions, depthwise and 1x1, a residual, pooling of three kinds, a product."""
    def weights(name: str, *shape: int):
        return numpy_helper.from_array(
            (random.standard_normal(shape) * 0.4).astype(np.float32), name)

    c = channels
    held = [weights("w1", c, 3, 3, 3), weights("b1", c), weights("w2", c, 1, 3, 3),
            weights("b2", c), weights("w3", c, c, 1, 1), weights("b3", c),
            weights("w4", 5, c), weights("b4", 5)]
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4), node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1] * 4, group=c),
        node("Relu", ["c2"], ["r2"]), node("Conv", ["r2", "w3", "b3"], ["c3"]),
        node("Add", ["c3", "r1"], ["a"]), node("Relu", ["a"], ["ra"]),
        node("MaxPool", ["ra"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", ["p"], ["m"], kernel_shape=[2, 2], strides=[1, 1]),
        node("GlobalAveragePool", ["m"], ["g"]), node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w4", "b4"], ["y"], transB=1)]
    graph = helper.make_graph(
        nodes, "cnn", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantised_cnn(random: np.random.Generator, folder: Path, kind: str) -> Path:
    """The same, quantised by ONNX Runtime: "QDQ" with signed activations and weights per channel,
    or "QOperator" with unsigned ones."""
    from onnxruntime import quantization as q

    class Samples(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = [{"x": random.standard_normal((1, 3, 9, 9)).astype(np.float32)}
                         for _ in range(4)]

        def get_next(self):
            return self.rest.pop() if self.rest else None

    logging.getLogger().setLevel(logging.ERROR)
    source, target = folder / "float.onnx", folder / f"{kind}.onnx"
    onnx.save(small_cnn(random), source)
    q.quantize_static(source, target, Samples(), quant_format=q.QuantFormat[kind],
                      per_channel=kind == "QDQ", weight_type=q.QuantType.QInt8,
                      activation_type=q.QuantType.QInt8 if kind == "QDQ" else q.QuantType.QUInt8)
    return target


def without_softmax(path: Path) -> onnx.ModelProto:
    """A model that ends before its last softmax, so that all of it is exact."""
    model = onnx.load(path)
    last = model.graph.node[-1]
    assert last.op_type == "Softmax"
    for node in model.graph.node:
        node.output[:] = [last.output[0] if o == last.input[0] else o for o in node.output]
    model.graph.node.remove(last)
    return model


def integer_results(source, inputs: Mapping[str, np.ndarray], options: Mapping[str, str] = {},
                    ) -> list[np.ndarray]:
    """What the integer graph of a model gives in the interpreter."""
    graph = Request(source, "cpu").graph()
    to_integers(graph, Settings.parse(options))
    return interpret(graph, inputs)


def random_inputs(random: np.random.Generator, source, batch: int = 1) -> dict[str, np.ndarray]:
    """Standard normal inputs; open sizes are `batch`."""
    graph = Request(source, "cpu").graph()
    return {v.name: random.standard_normal([d if isinstance(d, int) else batch for d in v.shape]
                                           ).astype(np.float32) for v in graph.inputs}
