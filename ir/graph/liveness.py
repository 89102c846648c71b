"""Which nodes a graph needs."""

from __future__ import annotations

from collections.abc import Iterable

from ..expr import Var
from .core import Graph, Node, Value


def live_nodes(graph: Graph) -> set[Node]:
    """The nodes that the outputs of the graph need, those inside regions included. What introduces
    a size is live while something live mentions it, and a `require` while all its sizes are."""
    binder: dict[Var, Node] = {s: n for g in graph.walk_graphs() for n in g.nodes
                               for s in n.bound}
    live: set[Node] = set()
    stack: list[Node] = []

    def need(values: Iterable[Value | None], symbols: Iterable[Var]) -> None:
        stack.extend(v.node for v in values if v is not None and v.node is not None)
        if binder:
            stack.extend(binder[s] for s in symbols if s in binder)

    def drain() -> None:
        while stack:
            visit(stack.pop())

    def visit(node: Node) -> None:
        if node in live:
            return
        live.add(node)
        need(node.inputs, node.symbols() if binder else ())
        for region in node.regions:
            need(region.outputs, (s for v in region.outputs for s in v.type.symbols))
            demands.extend(n for n in region.nodes if n.op == "require")

    demands = [n for n in graph.nodes if n.op == "require"]
    need(graph.outputs, (s for v in graph.outputs for s in v.type.symbols))
    drain()
    while True:
        ready = [n for n in demands if n not in live
                 and all(binder[s] in live for s in n.symbols() if s in binder)]
        if not ready:
            return live
        stack.extend(ready)
        drain()
