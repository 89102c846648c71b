"""What is inside a model or a compiled model, as plain data: for `smelt inspect` and its page.

`describe_build` makes the report that lies in every artifact. Amounts that depend on open sizes
are kept as texts of expressions over the compiler's names of sizes; `at_sizes` puts numbers in, and
the model's own names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .compilation import REPORT
from .errors import ArtifactError
from .signature import Size, by_compiler_names, in_model_names, of_graph, size_value

if TYPE_CHECKING:
    from .ir.graph.core import Graph, Node, Value
    from .ir.program import Program
    from .targets.base import Build

MOST_NODES = 4000
"""Graphs of more nodes are cut in reports."""


# From a build to its report ----------------------------------------------------------------------


def describe_build(build: Build, name: str, target: str) -> dict[str, Any]:
    """The report of a compiled model: signature, kernels, fused graph, arena and sizes."""
    inputs, outputs = of_graph(build.graph)
    program = build.program
    kernels, index = _kernels(program)
    report: dict[str, Any] = {
        "name": name, "target": target, "smelt": __version__,
        "inputs": [_spec(s) for s in inputs], "outputs": [_spec(s) for s in outputs],
        "sizes": _size_names(build.graph),
        "kernels": kernels,
        "weights": _weight_bytes(build),
        "arena": _amount(program.arena_size) if _is_planned(program) else None,
        "storages": _storages(program, index),
        "steps": sum(1 for _ in program.walk()),
        "notes": list(program.notes),
    }
    sizes = build.reports.get("sizes") or {}
    report.update({k: sizes[k] for k in ("code", "flash", "stack", "ram")
                   if isinstance(sizes.get(k), int)})
    if "tuning" in build.reports:
        report["tuning"] = build.reports["tuning"]
    if "compression" in build.reports:
        report["compression"] = build.reports["compression"]
    if "precision" in build.reports:
        report["precision"] = build.reports["precision"]
    if "fpga" in build.reports:
        report["fpga"] = build.reports["fpga"]
    report.update(_describe_graph(build.graph, kernels))
    for node in report["nodes"]:
        if node.get("kernel") is not None:
            node["flops"] = kernels[node["kernel"]]["flops"]
    return report


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype.name, "shape": list(spec.dims)}


def _size_names(graph: Graph) -> dict[str, str]:
    """The model's names of open sizes by the names they have here."""
    origin = getattr(graph, "symbols_origin", {})
    return {name: origin.get(name) or name for name in graph.symbols}


def _file_bytes(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _weight_bytes(build: Build) -> int:
    """The size of the weights as they are stored."""
    sizes = build.reports.get("sizes") or {}
    if isinstance(sizes.get("weights"), int):
        return sizes["weights"]
    if "weights.bin" in build.files:
        return _file_bytes(build.files["weights.bin"])
    return sum(int(s.array.nbytes) for s in build.program.constants
               if s.array is not None and s.alias is None)


def _amount(value: Any) -> Size:
    from .ir.expr import Expr, simplify_dim, text

    if value is None:
        return 0
    value = simplify_dim(value)
    return text(value) if isinstance(value, Expr) else int(value)


def _is_planned(program: Program) -> bool:
    return all(s.offset is not None for s in program.temporaries if s.role == "temporary")


def _kernels(program: Program) -> tuple[list[dict[str, Any]], dict[Any, int]]:
    from .ir.program import Launch

    launches = Counter(s.kernel for s in program.walk() if isinstance(s, Launch))
    index = {kernel: i for i, kernel in enumerate(launches)}
    found = [{"name": k.name, "origin": k.origin, "flops": _amount(k.flops),
              "bytes": _amount(k.bytes), "launches": n} for k, n in launches.items()]
    return found, index


def _storages(program: Program, index: Mapping[Any, int]) -> list[dict[str, Any]]:
    from .ir.expr import wrap
    from .ir.program import Launch
    from .passes.plan import lifetimes

    writer: dict[Any, int] = {}
    for step in program.walk():
        if isinstance(step, Launch):
            for storage in step.args[len(step.args) - step.kernel.outputs:]:
                writer.setdefault(storage.root(), index[step.kernel])
    found = []
    for life in lifetimes(program):
        type = life.storage.type
        found.append({
            "name": life.storage.name, "type": repr(type), "first": life.first,
            "last": life.last, "kernel": writer.get(life.storage),
            "bytes": _amount(wrap(type.numel) * type.dtype.itemsize),
            "offset": None if life.storage.offset is None else _amount(life.storage.offset)})
    return found


def _describe_graph(graph: Graph, kernels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Boxes and edges of a graph: its inputs, its nodes without constants, its outputs."""
    nodes: list[dict[str, Any]] = []
    made: dict[Value, int] = {}
    edges: set[tuple[int, int]] = set()
    for value in graph.inputs:
        made[value] = len(nodes)
        nodes.append({"kind": "input", "name": value.name, "ops": [], "output": repr(value.type)})
    order = [n for n in graph.ordered() if n.op != "constant"]
    kernel_of = _kernel_of(order, kernels)
    for node in order[:MOST_NODES]:
        here = len(nodes)
        nodes.append(_box(node, kernel_of))
        for value in node.dependencies():
            if value in made:
                edges.add((made[value], here))
        for value in node.outputs:
            made[value] = here
    names = getattr(graph, "output_names", None) or [v.name for v in graph.outputs]
    for value, name in zip(graph.outputs, names):
        if value in made:
            edges.add((made[value], len(nodes)))
        nodes.append({"kind": "output", "name": name, "ops": [], "output": repr(value.type)})
    report: dict[str, Any] = {"nodes": nodes, "edges": [list(e) for e in sorted(edges)]}
    if len(order) > MOST_NODES:
        report["nodes_left_out"] = len(order) - MOST_NODES
    return report


def _kernel_of(order: Sequence[Node], kernels: Sequence[Mapping[str, Any]]) -> dict[Node, int]:
    """Which kernel computes a node: one of the same origin, named after the operator if there are
    several, else in order. Views have none."""
    free: dict[str, list[int]] = {}
    for i, kernel in enumerate(kernels):
        if kernel["origin"]:
            free.setdefault(kernel["origin"], []).append(i)
    found: dict[Node, int] = {}
    waiting = []
    for node in order:
        candidates = free.get(node.origin, [])
        if node.op == "reshape" or not candidates:
            continue
        named = [i for i in candidates
                 if node.op.startswith(kernels[i]["name"].partition("_")[2] or "?")]
        if named:
            found[node] = named[0]
            candidates.remove(named[0])
        else:
            waiting.append(node)
    for node in waiting:
        candidates = free[node.origin]
        if candidates:
            found[node] = candidates.pop(0)
    return found


def _box(node: Node, kernel_of: Mapping[Node, int]) -> dict[str, Any]:
    from .ir.graph.definition import lookup

    ops = [node.op]
    kind = "contraction" if node.op == "chain" else \
        node.attrs.get("kind") if node.op == "fused" else lookup(node.op).kind
    if node.op in ("fused", "chain"):
        inner = [n.op for g in node.regions[0].walk_graphs() for n in g.ordered()
                 if n.op != "fused"]
        ops = [op for op in inner if op != "constant"] or inner
    box: dict[str, Any] = {
        "kind": kind or "other", "ops": ops, "origin": node.origin,
        "output": repr(node.outputs[0].type) if node.outputs else "",
        "kernel": kernel_of.get(node),
    }
    weights = sum(int(v.constant.nbytes) for v in dict.fromkeys(node.dependencies())
                  if v.constant is not None)
    if weights:
        box["weights"] = weights
    return box


# A model that is not compiled --------------------------------------------------------------------


def describe_model(graph: Graph, name: str) -> dict[str, Any]:
    """What an imported model holds: signature, operators by number, parameters."""
    inputs, outputs = of_graph(graph)
    ops: Counter[str] = Counter()
    values = size = 0
    for part in graph.walk_graphs():
        for node in part.nodes:
            if node.op == "constant":
                values += int(node.attrs["value"].size)
                size += int(node.attrs["value"].nbytes)
            else:
                ops[node.op] += 1
    names = _size_names(graph)
    return with_model_names({
        "name": name, "smelt": __version__, "inputs": [_spec(s) for s in inputs],
        "outputs": [_spec(s) for s in outputs], "sizes": {}, "open_sizes": list(names.values()),
        "operators": dict(sorted(ops.items(), key=lambda e: (-e[1], e[0]))),
        "nodes_total": sum(ops.values()), "parameters": values, "parameter_bytes": size}, names)


# A compiled model --------------------------------------------------------------------------------


def read_report(artifact: Path) -> dict[str, Any]:
    """The report in an artifact (folder or .zip). Raises ArtifactError."""
    from .runtime.artifact import open_artifact

    opened = open_artifact(artifact, verify=False)
    try:
        return json.loads(opened.file(REPORT).read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{str(artifact)!r} has no readable {REPORT} ({error}): compile the "
                            f"model again") from None
    finally:
        opened.close()


def at_sizes(report: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, Any]:
    """The report with numbers for amounts that depend on the sizes in `dims` (by the model's names
    or the compiler's), with the model's names in the others, and, when all are known, with the
    arena planned: `arena_plan`."""
    from .passes.plan import best_fit

    names = report.get("sizes") or {}
    known = by_compiler_names(dims, names)

    def number(size: Size) -> Size:
        value = size_value(size, known)
        return size if value is None else value

    result = dict(report)
    result["sizes"] = {origin: known[here] for here, origin in names.items() if here in known}
    for kind in ("inputs", "outputs"):
        result[kind] = [{**s, "shape": [number(d) for d in s["shape"]]} for s in report[kind]]
    result["kernels"] = [{**k, "flops": number(k["flops"]), "bytes": number(k["bytes"])}
                         for k in report.get("kernels") or []]
    result["nodes"] = [{**n, "flops": number(n["flops"])} if "flops" in n else n
                       for n in report.get("nodes") or []]
    plan = [{**s, "bytes": number(s["bytes"]), "offset": number(s["offset"] or 0)}
            for s in report.get("storages") or []]
    if plan and all(isinstance(s["bytes"], int) for s in plan):
        if any(s["offset"] is None for s in report["storages"]):
            offsets, total = best_fit([s["bytes"] for s in plan],
                                      [(s["first"], s["last"]) for s in plan])
            plan = [{**s, "offset": at} for s, at in zip(plan, offsets)]
            result["arena"] = total
        result["arena_plan"] = [s for s in plan if s["bytes"]]
    return with_model_names(result, names)


_SIZED = {"inputs": ("shape",), "outputs": ("shape",), "kernels": ("flops", "bytes"),
          "nodes": ("output", "flops"), "storages": ("type", "bytes", "offset"),
          "arena_plan": ("type",)}
"""The entries of reports that hold formulas, or types with formulas in them."""


def with_model_names(report: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The report with the model's names of open sizes, as --dim takes them, in all formulas;
    `names` maps the compiler's to them."""
    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(v) for v in value]
        return in_model_names(value, names) if isinstance(value, str) else value

    result = dict(report)
    for part, keys in _SIZED.items():
        if part in report:
            result[part] = [{k: named(v) if k in keys else v for k, v in entry.items()}
                            for entry in report[part]]
    if "arena" in report:
        result["arena"] = named(result["arena"])
    return result


def open_sizes(report: Mapping[str, Any], dims: Mapping[str, int]) -> list[str]:
    """The model's names of sizes that `dims` leaves open."""
    names = report.get("sizes") or {}
    known = by_compiler_names(dims, names)
    return [origin for here, origin in names.items() if here not in known]
