"""Removal of nodes that import leaves unused: shape arithmetic that folded, tried loop bodies."""

from __future__ import annotations

from collections.abc import Iterable

from ...ir.graph.core import Graph, Node
from ...ir.graph.liveness import live_nodes


def remove_unused(graph: Graph) -> None:
    """Removes nodes, in regions too, that no output needs. What introduces a size stays while
    something that stays mentions it."""
    live = live_nodes(graph)
    for home in list(graph.walk_graphs()):
        detach(home, [n for n in home.nodes if n not in live])


def detach(home: Graph, nodes: Iterable[Node]) -> None:
    """Takes nodes that nothing needs out of `home`, and their uses of other values with them."""
    for node in nodes:
        del home.nodes[node]
        home._with_regions.pop(node, None)
        graphs = [g for region in node.regions for g in region.walk_graphs()]
        for user in (node, *(inner for g in graphs for inner in g.nodes)):
            for value in user.inputs:
                if value is not None:
                    value.users.pop(user, None)


def discard(region: Graph) -> None:
    """Forgets a region that no node has taken."""
    for graph in list(region.walk_graphs()):
        detach(graph, list(graph.nodes))
