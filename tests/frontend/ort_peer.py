"""One ONNX operator imported and interpreted, next to ONNX Runtime on the same inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.core import Graph
from smelt.ir.graph.interpreter import interpret

onnxruntime.set_default_logger_severity(4)


def seeded(text: str) -> np.random.Generator:
    """A generator with a fresh seed, printed for the report of a failure."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"{text}: seed {seed}")
    return np.random.default_rng(seed)


def model(op: str, inputs: Sequence[np.ndarray | None], attrs: dict[str, Any], *,
          domain: str = "", opset: int = 21, outputs: int = 1, constants: Sequence[int] = (),
          symbolic: bool = False, fixed: Sequence[int] = (), names: dict[int, str] | None = None,
          types: Sequence[int] | None = None) -> onnx.ModelProto:
    """A model of one node. Inputs numbered in `constants` become initialisers. `symbolic` gives
    every size of the others a name, except for inputs in `fixed`; with `names`, a letter per axis
    of the inputs it lists names the sizes ("-" keeps a number), and all others are numbers."""
    operands = ["" if a is None else f"x{i}" for i, a in enumerate(inputs)]
    node = helper.make_node(op, operands, [f"y{k}" for k in range(outputs)], "it", domain=domain,
                            **attrs)
    given, held = [], []
    for i, (name, array) in enumerate(zip(operands, inputs, strict=True)):
        if array is None:
            continue
        if i in constants:
            held.append(numpy_helper.from_array(array, name))
            continue
        shape: list[Any] = list(array.shape)
        if symbolic and names is not None:
            shape = [n if letter == "-" else letter
                     for n, letter in zip(shape, names.get(i, "-" * array.ndim), strict=True)]
        elif symbolic and i not in fixed:
            shape = [f"d{i}_{a}" for a in range(array.ndim)]
        given.append(helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), shape))
    kinds = types or [TensorProto.UNDEFINED] * outputs
    results = [helper.make_empty_tensor_value_info(f"y{k}") if not kinds[k]
               else helper.make_tensor_value_info(f"y{k}", kinds[k], None)
               for k in range(outputs)]
    graph = helper.make_graph([node], "main", given, results, held)
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def by_runtime(proto: onnx.ModelProto, inputs: Sequence[np.ndarray | None],
               constants: Sequence[int] = ()) -> list[np.ndarray]:
    """What ONNX Runtime gives with its graph optimisations switched off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options,
                                           providers=["CPUExecutionProvider"])
    return session.run(None, {f"x{i}": a for i, a in enumerate(inputs)
                              if a is not None and i not in constants})


def by_smelt(graph: Graph, inputs: Sequence[np.ndarray | None],
             constants: Sequence[int] = ()) -> list[np.ndarray]:
    return interpret(graph, {f"x{i}": a for i, a in enumerate(inputs)
                             if a is not None and i not in constants})


def close(found: np.ndarray, wanted: np.ndarray, rtol: float, atol: float) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), rtol, atol)


def check(op: str, inputs: Sequence[np.ndarray | None], attrs: dict[str, Any] | None = None, *,
          rtol: float = 1e-5, atol: float = 1e-5, symbolic: bool = True,
          constants: Sequence[int] = (), outputs: int = 1, compared: int | None = None,
          **options: Any) -> None:
    """Asserts that smelt gives what ONNX Runtime gives, with sizes known and with names."""
    proto = model(op, inputs, attrs or {}, constants=constants, outputs=outputs, **options)
    wanted = by_runtime(proto, inputs, constants)[:compared]
    for named in (False, True) if symbolic else (False,):
        graph = load_model(model(op, inputs, attrs or {}, constants=constants, outputs=outputs,
                                 symbolic=named, **options))
        found = by_smelt(graph, inputs, constants)
        for mine, theirs in zip(found, wanted, strict=False):
            close(mine, theirs, rtol, atol)
