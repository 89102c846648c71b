"""Names the first place where a compiled model and its reference part.

Two searches. `in_kernels` compares the compiled model with the interpreter on the unoptimised
import: it exposes the values that lie between kernels as further outputs, which leaves the kernels
as they are, and compares them in order. When exposing hides the fault (it changes which memory is
reused), it exposes one value at a time, by binary search. `in_import` compares the interpreter with
ONNX Runtime in the same way, tensor by tensor of the ONNX model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .compilation import Request
from .errors import ModelError, SmeltError
from .verification import Difference, compare, onnx_runtime, output_names

if TYPE_CHECKING:
    from .ir.graph.core import Graph, Value
    from .targets.base import Build

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[str, int, int], None]

MOST_BYTES = 1 << 30
"""Exposed values beyond this are thinned out: they are all in memory at once, twice."""


@dataclass(frozen=True)
class Finding:
    """Where the first difference is: `place` a kernel or an ONNX node, `origin` the nodes it comes
    from, `operators` what it computes; `before` the last place that agrees."""

    where: str
    place: str
    origin: str
    operators: tuple[str, ...]
    difference: Difference
    before: str
    checked: int

    @property
    def sentence(self) -> str:
        what = " + ".join(self.operators) or "?"
        return (f"{self.where}: {self.place} ({what}), from {self.origin}, is the first of "
                f"{self.checked} checked that differs: {self.difference.reason}")


def find(request: Request, inputs: Arrays, rtol: float | None = None,
         progress: Progress = lambda what, done, total: None) -> Finding | None:
    """The first difference of compiled model and interpreter, else of interpreter and ONNX
    Runtime (where it is installed); None when all agree."""
    found = in_kernels(request, inputs, rtol, progress)
    if found is None:
        from importlib.util import find_spec

        if find_spec("onnxruntime") and not request.fixed:
            found = in_import(request, inputs, rtol, progress)
    return found


# Kernels -----------------------------------------------------------------------------------------


def in_kernels(request: Request, inputs: Arrays, rtol: float | None,
               progress: Progress) -> Finding | None:
    """The first kernel whose result differs from the interpreter's."""
    from .ir.graph.clone import clone_graph

    original = request.graph()
    _number(original)
    progress("compiling the model", 0, 4)
    plain = _build(request, clone_graph(original))
    boundaries = _boundaries(plain.graph, original)
    outputs = {v.name: i for i, v in enumerate(original.outputs)}
    progress("interpreting the model", 1, 4)
    expected = _interpret(clone_graph(original), boundaries, inputs)
    progress("running the model with the values between kernels exposed", 2, 4)
    exposed, actual = _exposed(request, clone_graph(original), boundaries, inputs)
    for k, name in enumerate(boundaries):
        difference = compare(name, expected[name], actual[name], rtol)
        if not difference.passed:
            before = boundaries[k - 1] if k else "the inputs"
            return _kernel_finding(exposed, name, difference, before, k + 1)
    # Agreement with all exposed: is there a difference at all without?
    progress("looking again, one value at a time", 3, 4)
    _, results = _exposed(request, clone_graph(original), [], inputs)
    wrong = [compare(n, expected[n], results[n], rtol) for n in outputs if n in expected]
    failing = next((d for d in wrong if not d.passed), None)
    if failing is None:
        return None
    low, high, last = 0, len(boundaries), failing
    while low < high:
        middle = (low + high) // 2
        name = boundaries[middle]
        _, one = _exposed(request, clone_graph(original), [name], inputs)
        difference = compare(name, expected[name], one[name], rtol)
        if difference.passed:
            low = middle + 1
        else:
            high, last = middle, difference
    name = boundaries[low] if low < len(boundaries) else failing.name
    before = boundaries[low - 1] if low else "the inputs"
    return _kernel_finding(plain, name, last, before, len(boundaries))


def _number(graph: Graph) -> None:
    """Gives every value a name that survives optimisation, unless it has one."""
    taken = {v.name for n in graph.nodes for v in n.outputs} | {v.name for v in graph.inputs}
    count = 0
    for node in graph.ordered():
        for value in node.outputs:
            if not value.name:
                while f"v{count}" in taken:
                    count += 1
                value.name = f"v{count}"
                count += 1


def _build(request: Request, graph: Graph) -> Build:
    from .targets.base import find_target

    return find_target(request.target).build(graph, request.options())


def _boundaries(fused: Graph, original: Graph) -> list[str]:
    """The values that kernels hand to each other, in order, which the import has too."""
    known = {v.name: v for n in original.nodes for v in n.outputs}
    names: dict[str, int] = {}
    for node in fused.ordered():
        if node.op in ("constant", "reshape"):
            continue
        for value in node.outputs:
            twin = known.get(value.name)
            if twin is not None and repr(twin.type) == repr(value.type):
                size = value.type.numel
                names[value.name] = (size if isinstance(size, int) else 0) * value.dtype.itemsize
    total = sum(names.values())
    step = -(-total // MOST_BYTES) if total else 1
    picked = list(names)[::step]
    return picked + [v.name for v in original.outputs if v.name in known and v.name not in picked]


def _expose(graph: Graph, names: Sequence[str]) -> list[str]:
    """Adds values as outputs; returns what all outputs are called, those of the model first."""
    values: dict[str, Value] = {}
    for node in graph.ordered():
        for value in node.outputs:
            values.setdefault(value.name, value)
    present = {v.name for v in graph.outputs}
    extra = [n for n in names if n not in present]
    called = [v.name for v in graph.outputs] + extra
    graph.outputs = [*graph.outputs, *(values[n] for n in extra)]
    graph.output_names = [f"y{i}" for i in range(len(graph.outputs))]
    return called


def _interpret(graph: Graph, names: Sequence[str], inputs: Arrays) -> dict[str, np.ndarray]:
    from .ir.graph.interpreter import interpret

    called = _expose(graph, names)
    wanted = {v.name: inputs[v.name] for v in graph.inputs}
    return dict(zip(called, interpret(graph, wanted)))


def _exposed(request: Request, graph: Graph, names: Sequence[str], inputs: Arrays,
             ) -> tuple[Build, dict[str, np.ndarray]]:
    """The model compiled with these values as outputs too, and what it computes."""
    from .runtime import load
    from .runtime.artifact import write_artifact

    called = _expose(graph, names)
    built = _build(request, graph)
    with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
        path = write_artifact(Path(folder) / "model", built.manifest, built.files)
        module = load(path, threads=1)
        found = module(*(inputs[s.name] for s in module.inputs))
        module.close()
    arrays = found if isinstance(found, tuple) else (found,)
    return built, dict(zip(called, arrays))


def _kernel_finding(built: Build, name: str, difference: Difference, before: str,
                    checked: int) -> Finding:
    value = next((v for n in built.graph.nodes for v in n.outputs if v.name == name), None)
    node = value.node if value is not None else None
    if node is None:
        raise SmeltError(f"the value {name!r} is not in the compiled graph")
    kernels = [k.name for k in built.program.kernels() if k.origin == node.origin]
    ops = (node.op,)
    if node.op == "fused":
        ops = tuple(n.op for n in node.regions[0].ordered() if n.op != "constant")
    place = f"kernel {', '.join(kernels)}" if kernels else f"operator {node.op}"
    return Finding("in the compiled code", place, node.origin or name, ops, difference, before,
                   checked)


# Import ------------------------------------------------------------------------------------------


def in_import(request: Request, inputs: Arrays, rtol: float | None,
              progress: Progress) -> Finding | None:
    """The first ONNX tensor on which the interpreter and ONNX Runtime differ."""
    import onnx

    from .ir.graph.interpreter import interpret

    progress("comparing the import with ONNX Runtime", 0, 1)
    proto = _with_every_output(request.model)
    whole = Request(proto, shapes=request.shapes, dims=request.dims)
    graph = whole.graph()
    wanted = {v.name: inputs[v.name] for v in graph.inputs}
    found = dict(zip(output_names(graph), interpret(graph, wanted)))
    reference = onnx_runtime(whole)(inputs)
    before = "the inputs"
    checked = 0
    for node in proto.graph.node:
        assert isinstance(node, onnx.NodeProto)
        for name in node.output:
            if name not in found or name not in reference:
                continue
            checked += 1
            difference = compare(name, np.asarray(reference[name]), found[name], rtol)
            if not difference.passed:
                return Finding("in the import", f"node {node.name or name}", name,
                               (node.op_type,), difference, before, checked)
            before = node.name or name
    return None


def _with_every_output(model: Any) -> Any:
    """A copy of the model in which every tensor of the main graph is an output."""
    import onnx

    if isinstance(model, bytes):
        proto = onnx.load_from_string(model)
    elif isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    else:
        proto = onnx.load(str(model))  # external data too: the copy has no folder
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception as error:
        raise ModelError(f"shape inference refuses the model: {error}") from error
    types = {i.name: i for i in inferred.graph.value_info}
    present = {o.name for o in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in present and name in types:
                if types[name].type.HasField("tensor_type"):
                    proto.graph.output.append(types[name])
                    present.add(name)
    return proto
