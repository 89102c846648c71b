"""Names the first place where a compiled model and its reference part.

Three searches, from the compiled code back to the model. `in_kernels` compares every kernel of the
compiled model with the interpreter on the same optimised graph, which has the same layouts and
groups: each on the inputs that the kernel was given, so that an error is seen where it is made.
`in_passes` interprets the optimised graph and the import, compares the values that both have, up to
a transposition, and finds the pass after which they differ. `in_import` compares the interpreter
with ONNX Runtime, tensor by tensor of the ONNX model.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .compilation import Request
from .errors import ModelError
from .verification import Difference, compare, onnx_runtime, output_names

if TYPE_CHECKING:
    from .ir.graph.core import Graph, Node, Value
    from .ir.kernel.nodes import Kernel
    from .ir.program import Program, Storage
    from .targets.base import Build

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[str, int, int], None]

MOST_BYTES = 1 << 30
"""Exposed values beyond this are thinned out: they are all in memory at once, twice."""
MOST_AXES = 6
"""Beyond, values are compared in the order of axes that they have: there are too many orders."""


@dataclass(frozen=True)
class Finding:
    """Where the first difference is: `place` a kernel or an ONNX node, `origin` the nodes it comes
    from, `operators` what it computes; `before` the last place that agrees. `checked` of `total`
    kernels (or tensors, of an import) were compared."""

    where: str
    place: str
    origin: str
    operators: tuple[str, ...]
    difference: Difference
    before: str
    checked: int
    total: int
    unit: str = "kernels"

    @property
    def sentence(self) -> str:
        what = " + ".join(self.operators) or "?"
        return (f"{self.where}: {self.place} ({what}), from {self.origin}, is the first of "
                f"{self.checked} checked that differs, of {self.total} {self.unit}: "
                f"{self.difference.reason}")


def find(request: Request, inputs: Arrays, rtol: float | None = None,
         progress: Progress = lambda what, done, total: None) -> Finding | None:
    """The first difference of compiled model and optimised graph, else of optimised graph and
    import, else of import and ONNX Runtime (where it is installed); None when all agree."""
    from importlib.util import find_spec

    model = compiled(request, inputs, progress)
    found = in_kernels(model, rtol, progress) or in_passes(model, rtol, progress)
    if found is None and find_spec("onnxruntime") and not request.fixed:
        found = in_import(request, inputs, rtol, progress)
    return found


# The model at every stage ------------------------------------------------------------------------


@dataclass
class Compiled:
    """A model as imported (every value named) and as optimised (before lowering), and the `values`
    of the optimised graph that are looked at, in order: what kernels give, then outputs that are
    no kernel's. `arrays` are theirs, as computed with all of them exposed, and `kernels` the
    kernels that compute each from the others."""

    request: Request
    inputs: Arrays
    original: Graph
    graph: Graph
    passes: list[str]
    values: list[Value]
    arrays: list[np.ndarray]
    kernels: dict[Value, list[Kernel]]
    program: Program
    _meaning: dict[Value, np.ndarray] = field(default_factory=dict)

    def meaning(self) -> dict[Value, np.ndarray]:
        """The interpreter's arrays for the values (and the views of them) of the whole graph."""
        if not self._meaning:
            wanted = [*self.values, *(w for v in self.values for w in _views(v))]
            self._meaning = dict(zip(wanted, _interpret(self.graph, wanted, self.inputs)))
        return self._meaning

    def finding(self, where: str, value: Value, difference: Difference, before: Value | None,
                values: Iterable[Value], unseen: Sequence[Value] = ()) -> Finding:
        """`value` is the first that differs, after `before`; `values` were compared, and those in
        `unseen`, which it is computed from, were not."""
        node = value.node
        what = node.op if node is not None else "input"
        names = [", ".join(k.name for k in self.kernels[v]) for v in (*unseen, value)]
        place = f"kernel {' or '.join(filter(None, names))}" if any(names) else f"operator {what}"
        origins = [v.node.origin for v in (*unseen, value) if v.node is not None]
        origin = " or ".join(dict.fromkeys(filter(None, origins)))
        return Finding(where, place, origin or value.name or what, _operators(node), difference,
                       "the inputs" if before is None else self._called(before),
                       len(self.checked(values)), len(self.program.kernels()))

    def checked(self, values: Iterable[Value]) -> set[Kernel]:
        """The kernels that a comparison of these values checks. Those of branches and loops are
        not counted: data decides whether they run."""
        from .ir.program import Launch

        always = {s.kernel for s in self.program.steps if isinstance(s, Launch)}
        return {k for v in values for k in self.kernels[v] if k in always}

    def _called(self, value: Value) -> str:
        origin = value.node.origin if value.node is not None else ""
        return value.name or origin or ", ".join(k.name for k in self.kernels[value])


def compiled(request: Request, inputs: Arrays, progress: Progress) -> Compiled:
    """Compiles a model twice: as it is, and with what its kernels give as further outputs."""
    from .ir.graph.clone import clone_graph

    original = request.graph()
    _number(original)
    progress("compiling the model", 0, 4)
    plain = _build(request, clone_graph(original))
    values = _results(plain.graph)
    progress("running the model with the values between kernels exposed", 1, 4)
    built, arrays = _exposed(request, plain.graph, values, inputs)
    by_storage = _writers(built.program)
    outputs = built.program.outputs[len(plain.graph.outputs):]
    kernels = {v: _behind(s, by_storage) for v, s in zip(values, outputs, strict=True)}
    return Compiled(request, inputs, original, plain.graph,
                    [p.name for p in plain.reports["passes"]], values, arrays, kernels,
                    built.program)


def _number(graph: Graph) -> None:
    """Gives every value a name that survives optimisation, unless it has one."""
    taken = {v.name for g in graph.walk_graphs() for n in g.nodes for v in n.outputs}
    taken |= {v.name for g in graph.walk_graphs() for v in g.inputs}
    count = 0
    for node in graph.ordered():
        for value in node.outputs:
            if not value.name:
                while f"v{count}" in taken:
                    count += 1
                value.name = f"v{count}"
                count += 1


def _build(request: Request, graph: Graph, passes: str | None = None) -> Build:
    from .targets.base import find_target

    options = request.options()
    if passes is not None:
        options = replace(options, passes=passes, states=())
    return find_target(request.target).build(graph, options)


def _results(graph: Graph) -> list[Value]:
    """What the kernels of a graph give, in order, and outputs that are nothing of the kind."""
    sizes: dict[Value, int] = {}
    for node in graph.ordered():
        if node.op not in ("constant", "reshape"):
            for value in node.outputs:
                size = value.type.numel
                sizes[value] = (size if isinstance(size, int) else 0) * value.dtype.itemsize
    step = max(1, -(-sum(sizes.values()) // MOST_BYTES))
    return list(dict.fromkeys([*list(sizes)[::step], *graph.outputs]))


def _with_outputs(graph: Graph, values: Sequence[Value]) -> tuple[Graph, dict[Value, Value]]:
    """A copy with these values as further outputs, and the copy's values by the graph's."""
    from .ir.graph.clone import clone_graph

    twins: dict[Value, Value] = {}
    copy = clone_graph(graph, twins)
    copy.outputs = [*copy.outputs, *(twins[v] for v in values)]
    copy.output_names = [f"y{i}" for i in range(len(copy.outputs))]
    return copy, twins


def _exposed(request: Request, graph: Graph, values: Sequence[Value], inputs: Arrays,
             ) -> tuple[Build, list[np.ndarray]]:
    """An optimised graph compiled with these values as outputs too, and what it gives for them
    (for the model's own outputs when there are none). The kernels stay as they are."""
    from .runtime import load
    from .runtime.artifact import write_artifact

    built = _build(request, _with_outputs(graph, values)[0], "dce")
    with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
        path = write_artifact(Path(folder) / "model", built.manifest, built.files)
        module = load(path, threads=1)
        found = module(*(inputs[s.name] for s in module.inputs))
        module.close()
    arrays = list(found) if isinstance(found, tuple) else [found]
    return built, arrays[len(graph.outputs):] if values else arrays


def _interpret(graph: Graph, values: Sequence[Value], inputs: Arrays) -> list[np.ndarray]:
    from .ir.graph.interpreter import interpret

    wanted = {v.name: inputs[v.name] for v in graph.inputs}
    return interpret(_with_outputs(graph, values)[0], wanted)[len(graph.outputs):]


def _operators(node: Node | None) -> tuple[str, ...]:
    if node is None or node.op != "fused":
        return () if node is None else (node.op,)
    return tuple(n.op for n in node.regions[0].ordered() if n.op != "constant")


Writers = dict["Storage", list[tuple["Kernel | None", list["Storage"]]]]


def _writers(program: Program) -> Writers:
    """What writes each storage, as (kernel or None for a copy, the storages it reads)."""
    from .ir.program import Copy, Launch

    found: Writers = {}
    for step in program.walk():
        if isinstance(step, Launch):
            count = len(step.args) - step.kernel.outputs
            read, written = step.args[:count], step.args[count:]
            for storage in written:
                found.setdefault(storage.root(), []).append((step.kernel, list(read)))
        elif isinstance(step, Copy):
            found.setdefault(step.target.root(), []).append((None, [step.source]))
    return found


def _behind(output: Storage, writers: Writers) -> list[Kernel]:
    """The kernels that compute an output from what is in other outputs, in the program's order."""
    kernels: dict[Kernel, None] = {}
    stack, seen = [output.root()], {output.root()}
    while stack:
        for kernel, read in writers.get(stack.pop(), ()):
            if kernel is not None:
                kernels[kernel] = None
            # An output that is only copied is a kernel's own; any other is a value compared itself.
            roots = [s.root() for s in read if kernel is None or s.root().role != "output"]
            stack += [s for s in roots if s not in seen]
            seen.update(roots)
    return list(reversed(kernels))


# Kernels -----------------------------------------------------------------------------------------


def in_kernels(model: Compiled, rtol: float | None, progress: Progress) -> Finding | None:
    """The first kernel that gives something else than the interpreter for the same inputs."""
    where = "in the compiled code"
    progress("interpreting every kernel", 2, 4)
    expected = _kernel_by_kernel(model)
    found = _first(model, where, expected, model.arrays, rtol)
    if found is not None:
        return found
    # Each kernel is right by itself: is there a difference when nothing is exposed?
    outputs = model.graph.outputs
    meaning = model.meaning()
    _, results = _exposed(model.request, model.graph, [], model.inputs)
    wrong = [d for v, a in zip(outputs, results, strict=True)
             if not (d := compare(v.name, meaning[v], a, rtol)).passed]
    if not wrong:
        return None
    exposed = dict(zip(model.values, model.arrays, strict=True))
    if all(exposed[v].tobytes() == a.tobytes() for v, a in zip(outputs, results, strict=True)):
        return _first(model, f"{where}, where errors within the tolerance add up",
                      [meaning[v] for v in model.values], model.arrays, rtol)
    progress("looking again, one value at a time", 3, 4)
    last = wrong[0]

    def differs(value: Value) -> bool:
        nonlocal last
        _, (array,) = _exposed(model.request, model.graph, [value], model.inputs)
        difference = compare(value.name, meaning[value], array, rtol)
        if not difference.passed:
            last = difference
        return not difference.passed

    low = bisect_left(model.values, True, key=differs)
    if low == len(model.values):
        low = next(k for k, v in enumerate(model.values) if v in outputs)
    return model.finding(where, model.values[low], last, model.values[low - 1] if low else None,
                         model.values)


def _kernel_by_kernel(model: Compiled) -> list[np.ndarray]:
    """What the interpreter gives for every value from the values before it as they were computed
    by the compiled model. Values whose size only data tells are interpreted from where they come
    from."""
    from .ir.graph.interpreter import interpret

    graph, twins = _with_outputs(model.graph, model.values)
    results = graph.outputs[len(model.graph.outputs):]
    known = {s for v in graph.inputs for s in v.type.symbols}
    given = [model.inputs[v.name] for v in graph.inputs]
    for value, array in zip(model.values, model.arrays, strict=True):
        twin = twins[value]
        if twin.node is not None and twin.constant is None and known.issuperset(
                twin.type.symbols):
            graph.replace(twin, graph.add_input("", twin.type))
            given.append(array)
    graph.outputs = results
    return interpret(graph, given)


def _first(model: Compiled, where: str, expected: Sequence[np.ndarray],
           actual: Sequence[np.ndarray], rtol: float | None) -> Finding | None:
    """The first of all values that differs."""
    differences = [compare(v.name, e, a, rtol)
                   for v, e, a in zip(model.values, expected, actual, strict=True)]
    for k, (value, difference) in enumerate(zip(model.values, differences, strict=True)):
        if not difference.passed:
            before = model.values[k - 1] if k else None
            return model.finding(where, value, difference, before, model.values)
    return None


# Passes ------------------------------------------------------------------------------------------


def in_passes(model: Compiled, rtol: float | None, progress: Progress) -> Finding | None:
    """The first kernel whose meaning is not that of the import, and the pass that changed it."""
    progress("comparing the optimised graph with the import", 3, 4)
    meaning = model.meaning()
    compared = _against_import(model, _pairs(model.graph, model.values, model.original), meaning,
                               rtol)
    seen = {value for value, _ in compared}
    for k, (value, difference) in enumerate(compared):
        if not difference.passed:
            return model.finding(f"in the graph pass {_guilty_pass(model, rtol)}", value,
                                 difference, compared[k - 1][0] if k else None, seen,
                                 _unseen(value, set(model.values) - seen, seen))
    return None


@dataclass(frozen=True)
class Pair:
    """A value of the optimised graph, itself or the view of it that the import has too, and that
    value of the import."""

    value: Value
    seen: Value
    twin: Value


def _pairs(graph: Graph, values: Iterable[Value], original: Graph) -> list[Pair]:
    """The values that an import has too."""
    known = {v.name: v for n in original.nodes for v in n.outputs}
    returned = dict(zip(graph.outputs, original.outputs, strict=True))
    found = []
    for value in values:
        for seen in (value, *_views(value)):
            twin = returned.get(seen) or known.get(seen.name)
            if twin is not None and twin.dtype is seen.dtype and (
                    seen in returned or not _stops_inside(value, twin, original)):
                found.append(Pair(value, seen, twin))
                break
    return found


def _stops_inside(value: Value, twin: Value, original: Graph) -> bool:
    """Whether the import has this value in the middle of an ONNX node of which nothing follows in
    the optimised graph: what it stands for is then another value."""
    assert twin.node is not None
    origin = twin.node.origin
    if not twin.users or twin in original.outputs or any(u.origin != origin for u in twin.users):
        return False
    users = [u for v in (value, *_views(value)) for u in v.users if u.op != "reshape"]
    parts = [[u, *(n for r in u.regions for n in r.nodes)] for u in users]
    return any(all(n.origin != origin for n in nodes) for nodes in parts)


def _unseen(value: Value, unseen: set[Value], compared: set[Value]) -> list[Value]:
    """The values that were not compared and that `value` is computed from without any between
    that was."""
    found: dict[Value, None] = {}
    stack = [value]
    while stack:
        node = stack.pop().node
        for source in node.dependencies() if node is not None else ():
            if source not in compared and source not in found:
                found[source] = None
                stack.append(source)
    return [v for v in reversed(found) if v in unseen]


def _against_import(model: Compiled, pairs: Sequence[Pair], meaning: Mapping[Value, np.ndarray],
                    rtol: float | None) -> list[tuple[Value, Difference]]:
    """The differences of the pairs that can be compared."""
    expected = _interpret(model.original, [p.twin for p in pairs], model.inputs)
    compared = [(p.value, compare_transposed(p.twin.name, array, meaning[p.seen], rtol))
                for p, array in zip(pairs, expected, strict=True)]
    return [(value, d) for value, d in compared if d is not None]


def _views(value: Value) -> list[Value]:
    """The reshaped forms of a value."""
    found = [value]
    for seen in found:
        found += [u.output for u in seen.users if u.op == "reshape" and u.graph is not None
                  and value.node is not None and u.graph is value.node.graph]
    return found[1:]


def compare_transposed(name: str, reference: np.ndarray, actual: np.ndarray,
                       rtol: float | None = None) -> Difference | None:
    """The difference from the reference, whose axes may be in any order; None when no order
    gives the shape."""
    if sorted(reference.shape) != sorted(actual.shape):
        return None
    first = None
    rank = reference.ndim
    for perm in permutations(range(rank)) if rank <= MOST_AXES else (tuple(range(rank)),):
        turned = reference.transpose(perm)
        if turned.shape == actual.shape:
            difference = compare(name, turned, actual, rtol)
            if difference.passed:
                return difference
            first = first or difference
    return first


def _guilty_pass(model: Compiled, rtol: float | None) -> str:
    """The first pass after which the graph differs from the import."""
    from .ir.graph.clone import clone_graph
    from .passes.graph.base import Pipeline

    def differs(count: int) -> bool:
        graph = clone_graph(model.original)
        Pipeline.parse(",".join(model.passes[:count])).run(graph)
        pairs = _pairs(graph, _results(graph), model.original)
        seen = [p.seen for p in pairs]
        meaning = dict(zip(seen, _interpret(graph, seen, model.inputs)))
        return not all(d.passed for _, d in _against_import(model, pairs, meaning, rtol))

    passes = model.passes
    count = bisect_left(range(len(passes)), True, lo=1, key=differs)
    return f"{passes[count - 1]} ({count} of {len(passes)})"


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
    compared = []
    for node in proto.graph.node:
        assert isinstance(node, onnx.NodeProto)
        compared += [(node, name, compare(name, np.asarray(reference[name]), found[name], rtol))
                     for name in node.output if name in found and name in reference]
    total = sum(bool(name) for node in proto.graph.node for name in node.output)
    before = "the inputs"
    for node, name, difference in compared:
        if not difference.passed:
            return Finding("in the import", f"node {node.name or name}", name, (node.op_type,),
                           difference, before, len(compared), total, "tensors")
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
