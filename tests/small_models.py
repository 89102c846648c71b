"""Small ONNX models for the tests of the face."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

F32 = TensorProto.FLOAT


def model_of(nodes: Sequence[NodeProto], inputs: dict[str, tuple[int, Sequence]],
             outputs: dict[str, tuple[int, Sequence | None]],
             constants: dict[str, np.ndarray] | None = None, *, opset: int = 17,
             check: bool = True) -> ModelProto:
    """A model from nodes, (element type, shape) by name, and constant arrays by name."""
    graph = helper.make_graph(
        list(nodes), "main",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = 9
    if check:
        checker.check_model(proto)
    return proto


def mlp(seed: int = 0, *, batch: int | str = "N", x: str = "x", y: str = "y") -> ModelProto:
    """Two dense layers and a softmax: x f32[batch, 12] -> y f32[batch, 5]."""
    random = np.random.default_rng(seed)
    return model_of(
        [helper.make_node("MatMul", [x, "w1"], ["h1"], "first"),
         helper.make_node("Add", ["h1", "b1"], ["h2"], "bias"),
         helper.make_node("Relu", ["h2"], ["h3"], "act"),
         helper.make_node("MatMul", ["h3", "w2"], ["h4"], "second"),
         helper.make_node("Softmax", ["h4"], [y], "last", axis=-1)],
        {x: (F32, [batch, 12])}, {y: (F32, [batch, 5])},
        {"w1": random.standard_normal((12, 16), np.float32),
         "b1": random.standard_normal(16, np.float32),
         "w2": random.standard_normal((16, 5), np.float32)})


def picture_net(seed: int = 0, channels: int = 3) -> ModelProto:
    """A convolution and a pool over a picture: image f32[1, channels, 8, 10] -> score f32[1, 4]."""
    random = np.random.default_rng(seed)
    return model_of(
        [helper.make_node("Conv", ["image", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
         helper.make_node("Relu", ["c"], ["r"], "act"),
         helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
         helper.make_node("Flatten", ["p"], ["score"], "flat")],
        {"image": (F32, [1, channels, 8, 10])}, {"score": (F32, [1, 4])},
        {"w": random.standard_normal((4, channels, 3, 3), np.float32)})


def chain(length: int) -> ModelProto:
    """x -> Abs, Neg, Abs, ... -> y over `length` nodes."""
    names = ["x", *(f"t{i}" for i in range(length - 1)), "y"]
    nodes = [helper.make_node("Neg" if i % 2 else "Abs", [a], [b])
             for i, (a, b) in enumerate(zip(names, names[1:]))]
    return model_of(nodes, {"x": (F32, [4])}, {"y": (F32, [4])}, check=False)


def mlp_reference(proto: ModelProto, x: np.ndarray) -> np.ndarray:
    """What `mlp` computes, in f64 by numpy."""
    w = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    h = np.maximum(x.astype(np.float64) @ w["w1"] + w["b1"], 0) @ w["w2"]
    e = np.exp(h - h.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
