"""Random ONNX graphs with random inputs, and what `onnx.reference` makes of them (ONNX Runtime
where the reference is known to be wrong).

Every node is evaluated as it is added, so shapes, types and values of all tensors are known, and a
node that the reference refuses, or whose result would say nothing (overflow, thousands of
elements), is not taken. Next to each tensor a copy is kept that was disturbed by one unit of
rounding after every inexact node: how far the two lie apart is how far rounding may carry a
correct program, and so the tolerance. Nodes that jump (rounding, comparing, casting to integers)
only take tensors that every program computes exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OPSET = 21
UNITS = {np.dtype(np.float64): 2.0**-40, np.dtype(np.float32): 2.0**-20,
         np.dtype(np.float16): 2.0**-9, np.dtype(ml_dtypes.bfloat16): 2.0**-6}
"""Relative disturbance by type: a few units in the last place, since reductions in another order
and functions of the math library differ by that. f64 uses libm on both sides."""

BY_RUNTIME = frozenset(["GlobalMaxPool", "LRN", "MaxPool", "QLinearMatMul"])
"""onnx.reference 1.23 pools windows of unequal sides or pads wrongly, takes inputs of GlobalMaxPool
to have rank 4, normalises only as many channels as there are batches, and adds the zero point of
QLinearMatMul before rounding."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph. `exact`: every correct program gives these very bits."""

    name: str
    array: np.ndarray
    noisy: np.ndarray
    exact: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def rank(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def is_float(self) -> bool:
        return self.dtype in UNITS

    @property
    def is_finite(self) -> bool:
        return not self.is_float or bool(np.isfinite(self.array.astype(np.float64)).all())


@dataclass(frozen=True)
class Step:
    """One node: names of inputs ("" where absent) and outputs, and attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)

    def proto(self, prefix: str = "") -> onnx.NodeProto:
        return helper.make_node(self.op, [n and prefix + n for n in self.inputs],
                                [n and prefix + n for n in self.outputs], **self.attrs)


@dataclass(frozen=True)
class FuzzGraph:
    """A graph with its inputs' and constants' arrays. Sizes of inputs listed in `symbolic` are
    named in the model, one name per size."""

    steps: tuple[Step, ...]
    inputs: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    outputs: tuple[str, ...]
    symbolic: frozenset[int] = frozenset()

    def parts(self, prefix: str = "") -> tuple[list, list, list, list]:
        """Nodes, inputs, outputs and initialisers for a model, every name with the prefix."""
        def dims(shape: Iterable[int]) -> list:
            return [f"{prefix}s{d}" if d in self.symbolic else d for d in shape]

        values = evaluate_graph(self)
        inputs = [_info(prefix + n, a.dtype, dims(a.shape)) for n, a in self.inputs.items()]
        outputs = [_info(prefix + n, values[n].dtype, None) for n in self.outputs]
        constants = [numpy_helper.from_array(a, prefix + n) for n, a in self.constants.items()]
        return [s.proto(prefix) for s in self.steps], inputs, outputs, constants

    def text(self) -> str:
        """Everything needed to build the graph again, for people."""
        def shown(a: np.ndarray) -> str:
            body = np.array2string(a, threshold=32, separator=", ").replace("\n", "")
            return f"{a.dtype}{list(a.shape)} = {body}"

        lines = [f"symbolic sizes {sorted(self.symbolic)}"] if self.symbolic else []
        lines += [f"input    {n}: {shown(a)}" for n, a in self.inputs.items()]
        lines += [f"constant {n}: {shown(a)}" for n, a in self.constants.items()]
        lines += [f"{', '.join(s.outputs)} = {s.op}({', '.join(s.inputs)})"
                  f"{' ' + repr(s.attrs) if s.attrs else ''}" for s in self.steps]
        return "\n".join([*lines, f"outputs {', '.join(self.outputs)}"])


def _info(name: str, dtype: np.dtype, shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def model_of(parts: Iterable[tuple[list, list, list, list]]) -> onnx.ModelProto:
    """One model of several independent graphs."""
    nodes, inputs, outputs, constants = [], [], [], []
    for part in parts:
        for whole, piece in zip((nodes, inputs, outputs, constants), part, strict=True):
            whole.extend(piece)
    graph = helper.make_graph(nodes, "fuzz", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


class Refused(Exception):
    """The reference does not take a node with these operands, or the result is of no use."""


def evaluate(step: Step, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of one node by onnx.reference."""
    given = {n: arrays[n] for n in step.inputs if n}
    infos = [_info(n, a.dtype, a.shape) for n, a in given.items()]
    unknown = [onnx.ValueInfoProto(name=n) for n in step.outputs]
    graph = helper.make_graph([step.proto()], "one", infos, unknown)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    try:
        if step.op in BY_RUNTIME:
            results = onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)
        else:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                results = ReferenceEvaluator(model).run(None, given)
    except Exception as error:  # whatever the reference's numpy code raises
        raise Refused(f"{step.op}: {error}") from error
    found = [np.asarray(r) for r in results]
    if any(r.dtype == object or r.dtype.kind in "SU" for r in found):
        raise Refused(f"{step.op}: no tensor")
    return found


def evaluate_graph(graph: FuzzGraph) -> dict[str, np.ndarray]:
    """The reference's value of every tensor."""
    values = {**graph.inputs, **graph.constants}
    for step in graph.steps:
        values.update(zip(step.outputs, evaluate(step, values), strict=True))
    return values


def noisy_values(graph: FuzzGraph, exact_ops: Callable[[str], bool],
                 rng: np.random.Generator) -> dict[str, Tensor]:
    """Every tensor with its disturbed copy."""
    found = {n: Tensor(n, a, a, True) for n, a in (graph.inputs | graph.constants).items()}
    for step in graph.steps:
        for tensor in run_step(step, found, exact_ops(step.op), rng):
            found[tensor.name] = tensor
    return found


def run_step(step: Step, tensors: dict[str, Tensor], exact_op: bool,
             rng: np.random.Generator) -> list[Tensor]:
    """The outputs of a node, disturbed where its operands or its own rounding are."""
    operands = [tensors[n] for n in step.inputs if n]
    arrays = evaluate(step, {t.name: t.array for t in operands})
    settled = all(t.exact for t in operands)
    noisy = arrays if settled else evaluate(step, {t.name: t.noisy for t in operands})
    results = []
    for name, array, other in zip(step.outputs, arrays, noisy, strict=True):
        if array.shape != other.shape:
            raise Refused(f"{step.op}: the shape depends on rounding")
        exact = settled and (array.dtype not in UNITS or (exact_op and _is_dyadic(array)))
        if not exact and array.dtype in UNITS:
            unit = UNITS[array.dtype] * rng.choice([-1.0, 1.0], array.shape)
            other = (other.astype(np.float64) * (1 + unit)).astype(array.dtype)
        results.append(Tensor(name, array, other, exact))
    return results


def _is_dyadic(array: np.ndarray) -> bool:
    """Sums of such numbers are exact in f32 in any order."""
    wide = array.astype(np.float64)
    wide = wide[np.isfinite(wide)]
    scaled = wide * 1024
    if array.dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        return bool((np.abs(wide) < 16).all() and (wide * 8 == np.rint(wide * 8)).all())
    return bool((np.abs(wide) < 2048).all() and (scaled == np.rint(scaled)).all())


def tolerance(tensor: Tensor) -> np.ndarray | float:
    """How far a correct result may lie from the reference, per element."""
    if not tensor.is_float or tensor.exact:
        return 0.0
    a, b = (x.astype(np.float64) for x in (tensor.array, tensor.noisy))
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    apart = apart[np.isfinite(apart)]
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return 8 * apart.max(initial=0.0) + UNITS[tensor.dtype] * scale


def difference(found: np.ndarray, tensor: Tensor) -> str:
    """What is wrong with a result; "" when nothing is."""
    want = tensor.array
    if found.dtype != want.dtype or found.shape != want.shape:
        return f"{found.dtype}{list(found.shape)} in place of {want.dtype}{list(want.shape)}"
    if not tensor.is_float:
        good = found == want
    else:
        a, b = found.astype(np.float64), want.astype(np.float64)
        with np.errstate(invalid="ignore"):
            good = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= tolerance(tensor))
    if np.all(good):
        return ""
    at = tuple(int(i) for i in np.argwhere(~np.asarray(good))[0])
    return (f"{np.size(good) - np.count_nonzero(good)} of {np.size(good)} elements of "
            f"{want.dtype}{list(want.shape)} differ, first {list(at)}: {found[at]} in place of "
            f"{want[at]}, tolerance {tolerance(tensor):.3g}")


def restricted(graph: FuzzGraph, outputs: Iterable[str], given: dict[str, np.ndarray]) -> FuzzGraph:
    """What computes `outputs`, with the tensors of `given` fed instead of computed."""
    wanted, steps = set(outputs), []
    for step in reversed(graph.steps):
        if wanted & set(step.outputs) - given.keys():
            steps.append(step)
            wanted |= {n for n in step.inputs if n}
    made = {n for s in steps for n in s.outputs}
    fed = {**graph.inputs, **given}
    return replace(
        graph, steps=tuple(reversed(steps)), outputs=tuple(outputs),
        inputs={n: a for n, a in fed.items() if n in wanted and (n not in made or n in given)},
        constants={n: a for n, a in graph.constants.items() if n in wanted})
