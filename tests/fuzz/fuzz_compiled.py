"""Graphs compiled together, run, and compared; failures made small."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from conformance.compiled_suite import failure
from fuzz import fuzz_elementwise, fuzz_layers, fuzz_movement  # noqa: F401  (fill the table)
from fuzz.fuzz_graphs import (
    FuzzGraph,
    Refused,
    difference,
    evaluate_graph,
    model_of,
    noisy_values,
    restricted,
)
from fuzz.fuzz_maker import is_exact

from smelt import runtime
from smelt.errors import ModelError
from smelt.frontend.onnx.loader import load_model
from smelt.runtime.artifact import write_artifact
from smelt.targets.base import BuildOptions, find_target

UNOPTIMISED = "dce"
"""A pipeline that leaves every node as it was imported."""


@dataclass(frozen=True)
class Setting:
    """How graphs are compiled: `passes` None is the target's own pipeline."""

    target: str = "cpu"
    passes: str | None = None
    optimize: int = 1
    threads: int = 2


def run_compiled(graphs: Sequence[FuzzGraph], setting: Setting) -> list[dict[str, np.ndarray]]:
    """The outputs of each graph by name; the graphs are compiled as one model."""
    prefixes = [f"g{k}_" for k in range(len(graphs))]
    model = model_of(g.parts(p) for g, p in zip(graphs, prefixes, strict=True))
    options = BuildOptions(optimize=setting.optimize, passes=setting.passes)
    built = find_target(setting.target).build(load_model(model), options)
    given = {p + n: a for g, p in zip(graphs, prefixes, strict=True) for n, a in g.inputs.items()}
    with tempfile.TemporaryDirectory(prefix="smelt-fuzz-") as folder:
        path = Path(folder) / "model"
        write_artifact(path, built.manifest, built.files)
        with runtime.load(path, threads=setting.threads) as compiled:
            found = compiled.run({s.name: given[s.name] for s in compiled.inputs})
    return [{n: found[p + n] for n in g.outputs} for g, p in zip(graphs, prefixes, strict=True)]


def check(graphs: Sequence[FuzzGraph], setting: Setting) -> None:
    """Raises AssertionError naming the outputs that differ from the reference."""
    results = run_compiled(graphs, setting)
    wrong = []
    for k, (graph, found) in enumerate(zip(graphs, results, strict=True)):
        tensors = noisy_values(graph, is_exact, np.random.default_rng(0))
        for name in graph.outputs:
            text = difference(found[name], tensors[name])
            if text:
                wrong.append(f"graph {k}, {name}: {text}")
    assert not wrong, "\n".join(wrong)


def problem(graphs: Sequence[FuzzGraph], setting: Setting) -> str:
    """What goes wrong in a process of its own; "" when nothing does."""
    return failure(lambda: check(graphs, setting))


def first_problem(graphs: Sequence[FuzzGraph], setting: Setting) -> tuple[FuzzGraph, str] | None:
    """A graph that fails alone, made small, and how it fails."""
    if not problem(graphs, setting):
        return None
    for graph in graphs:
        found = problem([graph], setting)
        if found and not tolerated(graph, found):
            kind = found.split(":")[0]
            small = shrink(graph, lambda g, k=kind: problem([g], setting).startswith(k))
            return small, problem([small], setting)
    alone = [g for g in graphs if not problem([g], setting)]
    found = problem(alone, setting)
    return (alone[0], f"only together with the others of its batch:\n{found}") if found else None


def tolerated(graph: FuzzGraph, found: str) -> bool:
    """Models with named sizes may be refused: a node may need a number that is not known."""
    return bool(graph.symbolic) and found.startswith(ModelError.__name__)


def shrink(graph: FuzzGraph, fails: Callable[[FuzzGraph], bool], tries: int = 60) -> FuzzGraph:
    """A smaller graph that still fails: fewer outputs, fewer nodes, smaller sizes."""
    for _ in range(tries):
        for candidate in _smaller(graph):
            try:
                if fails(candidate):
                    graph = candidate
                    break
            except Refused:
                continue
        else:
            break
    return graph


def _smaller(graph: FuzzGraph):
    """Candidates, boldest first."""
    if graph.symbolic:
        yield replace(graph, symbolic=frozenset())
    if len(graph.outputs) > 1:
        half = len(graph.outputs) // 2
        for names in (graph.outputs[:half], graph.outputs[half:]):
            yield restricted(graph, names, {})
    values = evaluate_graph(graph)
    for step in reversed(graph.steps):
        if set(step.outputs) & set(graph.outputs):
            continue
        if len(graph.steps) > 1:  # the node's results become inputs
            smaller = restricted(graph, graph.outputs, {n: values[n] for n in step.outputs})
            if len(smaller.steps) < len(graph.steps):
                yield smaller
    for step in graph.steps[:-1]:  # stop at an earlier node
        yield restricted(graph, step.outputs, {})
    for size in sorted({d for a in graph.inputs.values() for d in a.shape if d > 1}, reverse=True):
        for other in (1, 2, size // 2, size - 1):
            if other < size:
                candidate = _resized(graph, size, other)
                if candidate is not None:
                    yield candidate


def _resized(graph: FuzzGraph, size: int, other: int) -> FuzzGraph | None:
    """The graph with inputs and constants cut from one size to another wherever it occurs."""
    def cut(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(
            array[tuple(slice(other) if d == size else slice(None) for d in array.shape)])

    changed = replace(graph, inputs={n: cut(a) for n, a in graph.inputs.items()},
                      constants={n: cut(a) for n, a in graph.constants.items()})
    try:
        evaluate_graph(changed)
    except Refused:
        return None
    return changed

