"""Dead code elimination."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph.core import Graph
from ...ir.graph.liveness import live_nodes
from .base import Pass, register


@register
@dataclass(frozen=True)
class DeadCode(Pass):
    """Removes nodes that no output needs, in regions too. What introduces a size stays while
    something that stays mentions it, and a `require` while its sizes do."""

    name = "dce"

    def run(self, graph: Graph) -> bool:
        live = live_nodes(graph)
        dead = [(home, [n for n in home.nodes if n not in live]) for home in graph.walk_graphs()]
        # Regions come after the graphs around them; their nodes go first.
        for home, nodes in reversed(dead):
            home.erase_all(nodes)
        return any(nodes for _, nodes in dead)
