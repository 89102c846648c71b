"""Compares a compiled model with a reference, output by output, and finds where they part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .compilation import Request
from .errors import ModelError, UsageError
from .ir import dtype as dt

Arrays = Mapping[str, np.ndarray]

TOLERANCE = {"f64": 1e-4, "f32": 1e-4, "f16": 1e-2, "bf16": 5e-2}
"""Default tolerance by output type: the largest error over the reference's largest value. f64
models are held to what f32 gives, as many of them only end in f64."""
LEVEL_SHARE = 0.999
"""Share of an integer output of at most 8 bits that must lie within one step of the reference:
roundings that fall on a tie go either way."""


@dataclass(frozen=True)
class Difference:
    """How one output differs. `relative` is the largest error over the reference's largest
    absolute value; `exact` the share of equal elements; `cosine` is None where it means nothing."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    cosine: float | None
    exact: float
    tolerance: float
    passed: bool
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(name: str, reference: np.ndarray, actual: np.ndarray,
            rtol: float | None = None) -> Difference:
    """The difference of one output. NaN and infinities must stand in the same places."""
    kind = dt.from_numpy(reference)
    tolerance = rtol if rtol is not None else TOLERANCE.get(kind.name, 0.0)

    def fail(reason: str) -> Difference:
        return Difference(name, kind.name, tuple(reference.shape), float("inf"), float("inf"), None,
                          0.0, tolerance, False, reason)

    if reference.shape != actual.shape:
        return fail(f"shape {list(actual.shape)} where the reference has {list(reference.shape)}")
    if reference.dtype != actual.dtype:
        return fail(f"{actual.dtype} where the reference has {reference.dtype}")
    if not reference.size:
        return Difference(name, kind.name, tuple(reference.shape), 0.0, 0.0, None, 1.0, tolerance,
                          True)
    a, b = reference.astype(np.float64).reshape(-1), actual.astype(np.float64).reshape(-1)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return fail("NaN or infinity in other places than in the reference")
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return fail("other NaN or infinities than in the reference")
    a, b = a[finite], b[finite]
    error = np.abs(a - b)
    absolute = float(error.max(initial=0.0))
    scale = float(np.abs(a).max(initial=0.0))
    relative = absolute / scale if scale else (0.0 if not absolute else float("inf"))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b / norms) if norms and not kind.is_bool else None
    exact = float((error == 0).mean()) if error.size else 1.0
    if kind.is_float or rtol is not None:
        passed = bool(relative <= tolerance)
        reason = "" if passed else f"error {relative:.2e}, tolerance {tolerance:.0e}"
    elif kind.is_integer and kind.bits <= 8:
        near = float((error <= 1).mean()) if error.size else 1.0
        passed = near >= LEVEL_SHARE
        reason = "" if passed else f"only {near:.2%} within one step, wanted {LEVEL_SHARE:.1%}"
    else:
        passed = absolute == 0
        reason = "" if passed else f"{1 - exact:.2%} of the elements differ"
    return Difference(name, kind.name, tuple(reference.shape), absolute, relative, cosine, exact,
                      tolerance, passed, reason)


def compare_all(reference: Arrays, actual: Arrays, rtol: float | None = None) -> list[Difference]:
    """The differences of all outputs that the reference has."""
    return [compare(name, np.asarray(array), np.asarray(actual[name]), rtol)
            for name, array in reference.items()]


# References --------------------------------------------------------------------------------------


def reference_named(name: str | None, request: Request) -> tuple[str, Callable[[Arrays], Arrays]]:
    """A reference by name ("ort", "interpreter"; None: ONNX Runtime where it is installed), and
    the function that runs it."""
    if name is None:
        from importlib.util import find_spec

        name = "ort" if find_spec("onnxruntime") else "interpreter"
    if name == "ort":
        return name, onnx_runtime(request)
    if name == "interpreter":
        return name, interpreter(request)
    raise UsageError(f"--against {name!r}: use ort, interpreter or data")


def interpreter(request: Request) -> Callable[[Arrays], Arrays]:
    """smelt's numpy interpreter on the model as imported, before any optimisation."""
    from .ir.graph.interpreter import interpret

    graph = request.graph()

    def run(inputs: Arrays) -> Arrays:
        wanted = {v.name: inputs[v.name] for v in graph.inputs}
        return dict(zip(output_names(graph), interpret(graph, wanted)))

    return run


def output_names(graph: Any) -> list[str]:
    """The names of a graph's outputs, as a caller knows them."""
    return list(graph.output_names) or [v.name for v in graph.outputs]


def onnx_runtime(request: Request, threads: int = 1) -> Callable[[Arrays], Arrays]:
    """ONNX Runtime on the CPU. Raises ModelError when it refuses the model."""
    session = onnx_runtime_session(request.model, threads, request.dims)
    if request.fixed:
        raise UsageError("fixed inputs cannot be given to ONNX Runtime: compare with "
                         "--against interpreter")
    taken = [i.name for i in session.get_inputs()]
    names = [o.name for o in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        try:
            found = session.run(None, {n: inputs[n] for n in taken if n in inputs})
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run the model: {_sentence(error)}") from error
        return {n: np.asarray(a) for n, a in zip(names, found)}

    return run


def onnx_runtime_session(model: Any, threads: int, dims: Mapping[str, int] | None = None) -> Any:
    """A session of ONNX Runtime; `dims` fixes named sizes. Raises UsageError, ModelError."""
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("ONNX Runtime is not installed: pip install 'smelt[verify]', or compare "
                         "with --against interpreter") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for name, value in (dims or {}).items():
        options.add_free_dimension_override_by_name(name, value)
    if hasattr(model, "SerializeToString"):
        model = model.SerializeToString()
    elif not isinstance(model, bytes):
        model = str(model)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime refuses the model: {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
