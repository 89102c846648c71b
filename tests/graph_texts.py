"""Passes specified in text: the graph before, the pass, the graph after."""

from __future__ import annotations

import textwrap

import numpy as np

from smelt.ir.expr import Var, evaluate
from smelt.ir.graph.clone import clone_graph
from smelt.ir.graph.core import Graph, Node
from smelt.ir.graph.interpreter import interpret
from smelt.ir.graph.text import parse_graph, print_graph
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.base import Pass, parse_pass


def graph_of(text: str) -> Graph:
    """The graph of a text, whose first and last line may be left out when there are no inputs'
    sizes to state: `(inputs) { ... }`."""
    text = textwrap.dedent(text).strip()
    return parse_graph(text if text.startswith("graph") else "graph main" + text)


def canonical(graph: Graph) -> str:
    """The text with the nodes in an order that does not depend on their age, without names."""
    for home in graph.walk_graphs():
        for value in [*home.inputs, *(v for n in home.nodes for v in n.outputs)]:
            value.name = ""
        for serial, node in enumerate(post_order(home)):
            node.serial = serial
            node.origin = ""
    graph.output_names = []
    return print_graph(graph)


def post_order(graph: Graph) -> list[Node]:
    """Nodes behind the outputs, operands first, then those that are left."""
    found: dict[Node, None] = {}
    for root in [*(v.node for v in graph.outputs), *graph.ordered()]:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if node is None or node in found or node.graph is not graph:
                continue
            if ready:
                found[node] = None
                continue
            stack.append((node, True))
            stack += [(v.node, False) for v in reversed(node.dependencies())]
    return list(found)


def random_inputs(graph: Graph, rng: np.random.Generator) -> list[np.ndarray]:
    """Arrays for the inputs; sizes are drawn from their ranges, at most 6 above the lowest."""
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        for symbol in value.type.symbols:
            low, high = graph.symbols.get(symbol.name, (1, None))
            top = low + 6 if high is None else min(high, low + 6)
            sizes.setdefault(symbol.name, int(rng.integers(low, top + 1)))
    arrays = []
    for value in graph.inputs:
        shape = [evaluate(d, sizes) if not isinstance(d, Var) else sizes[d.name]
                 for d in value.shape]
        if value.dtype.is_bool:
            arrays.append(rng.integers(0, 2, shape).astype(bool))
        elif value.dtype.is_integer:
            arrays.append(rng.integers(0, 3, shape).astype(value.dtype.numpy))
        else:
            arrays.append(rng.normal(size=shape).astype(value.dtype.numpy))
    return arrays


def assert_same_results(before: Graph, after: Graph, seed: int, rtol=1e-5, atol=1e-5) -> None:
    """Both graphs give the same for random inputs; the tolerance covers reassociated f32 sums."""
    rng = np.random.default_rng(seed)
    inputs = random_inputs(before, rng)
    for a, b in zip(interpret(before, inputs), interpret(after, inputs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=rtol,
                                   atol=atol, err_msg=f"seed {seed}")


def check(transform: Pass | str, before: str, after: str | None = None, *,
          rtol: float = 1e-5, atol: float = 1e-5) -> Pass:
    """Runs a pass on `before` and compares with `after` (None: nothing changes)."""
    item = parse_pass(transform) if isinstance(transform, str) else transform
    graph = graph_of(before)
    original = clone_graph(graph)
    modified = item.run(graph)
    verify(graph, f"after {item}")
    seed = int(np.random.default_rng().integers(1 << 31))
    assert_same_results(original, graph, seed, rtol, atol)
    wanted = canonical(graph_of(before if after is None else after))
    found = canonical(graph)
    assert found == wanted, f"expected\n{wanted}\nfound\n{found}"
    assert modified == (after is not None)
    assert not item.run(graph), "a second run changes something"
    return item
