"""Checks that a graph is well formed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from ...errors import ModelError
from ..expr import Var
from .core import Graph, Node, Value
from .definition import REQUIRED, OpContext, lookup


def verify(graph: Graph, when: str = "") -> None:
    """Raises ModelError naming the node when the graph breaks a rule of the IR.

    Checked: every value has one producer and is used where it is in scope; use lists agree with
    the inputs; there is no cycle; attributes are complete; types are what the operators infer;
    sizes are bound before they are mentioned; fused groups are closed and have bodies. `when`
    is added to the message.
    """
    _Verifier(f" ({when})" if when else "").graph(graph, set(), set())


class _Verifier:
    def __init__(self, when: str):
        self.when = when

    def fail(self, node: Node | None, message: str) -> NoReturn:
        where = "the graph" if node is None else node.origin or node.op
        raise ModelError(f"{where}: {message}{self.when}")

    def graph(self, graph: Graph, outer: set[Value], sizes: set[Var]) -> None:
        """Checks a graph that may use the values `outer` and mention `sizes`."""
        scope, sizes = set(outer), set(sizes)
        uses: dict[Value, dict[Node, int]] = {}
        for position, value in enumerate(graph.inputs):
            if value.node is not None or value.index != position or value in scope:
                self.fail(None, f"input {position} is {value!r}, which something else makes")
            scope.add(value)
            sizes.update(value.type.symbols)
        try:
            order = graph.ordered()
        except ModelError as e:
            raise ModelError(f"{e}{self.when}") from None
        for node in order:
            if node.graph is not graph:
                self.fail(node, f"{node.op} thinks that it is in another graph")
            for value in node.inputs:
                if value is None:
                    continue
                if value not in scope:
                    self.fail(node, f"{node.op} uses {value!r}, which is not in scope")
                uses.setdefault(value, {})[node] = uses.get(value, {}).get(node, 0) + 1
            own = {*node.bound, *(node.attrs.get("inner") or ())}
            self.mentioned(node, (s for s in node.symbols() if s not in own), sizes)
            self.regions(node, scope, sizes)
            self.types(node)
            for k, value in enumerate(node.outputs):
                if value.node is not node or value.index != k or value in scope:
                    self.fail(node, f"output {k} of {node.op} has another producer")
                scope.add(value)
            sizes.update(node.bound)
        for k, value in enumerate(graph.outputs):
            if value not in scope:
                self.fail(value.node, f"output {k} of graph {graph.name} is {value!r}, which is "
                                      "not in scope")
            self.mentioned(value.node, value.type.symbols, sizes)
        if graph.output_names and len(graph.output_names) != len(graph.outputs):
            self.fail(None, f"graph {graph.name} has {len(graph.outputs)} outputs and "
                            f"{len(graph.output_names)} names for them")
        self.users(graph, order, uses)

    def mentioned(self, node: Node | None, symbols: Iterable[Var], sizes: set[Var]) -> None:
        for symbol in symbols:
            if symbol not in sizes:
                self.fail(node, f"size {symbol.name} is used before something binds it")

    def regions(self, node: Node, scope: set[Value], sizes: set[Var]) -> None:
        inside = sizes | set(node.attrs.get("inner") or ()) if node.regions else sizes
        for region in node.regions:
            if region.parent is not node.graph:
                self.fail(node, f"a region of {node.op} has another parent")
            if node.op == "fused":
                self.group(node, region)
                self.graph(region, set(), inside)
            else:
                self.graph(region, scope, inside)

    def group(self, node: Node, region: Graph) -> None:
        for inner in region.nodes:
            scalar = inner.op == "constant" and inner.output.type.numel == 1
            if not scalar and (len(inner.outputs) != 1 or inner.regions
                               or lookup(inner.op).body_of(0) is None):
                self.fail(inner, f"{inner.op} cannot be part of a fused group")
        if len(set(node.inputs)) != len(node.inputs):
            self.fail(node, "a fused group has an input twice")

    def types(self, node: Node) -> None:
        definition = lookup(node.op)
        for key, default in definition.attrs.items():
            if key not in node.attrs:
                if default is REQUIRED:
                    self.fail(node, f"attribute {key!r} of {node.op} is missing")
                node.attrs[key] = default
        for key in node.attrs:
            if key not in definition.attrs:
                self.fail(node, f"{node.op} has no attribute {key!r}")
        twin = Node(node.op, node.inputs, dict(node.attrs), node.regions, node.origin)
        try:
            inferred = list(definition.infer(OpContext(twin, node.graph)))
        except ModelError as e:
            raise ModelError(f"{e}{self.when}") from None
        stated = [v.type for v in node.outputs]
        if inferred != stated:
            self.fail(node, f"{node.op} gives {inferred}, not {stated}")

    def users(self, graph: Graph, order: list[Node], uses: dict[Value, dict[Node, int]]) -> None:
        own = [*graph.inputs, *(v for n in order for v in n.outputs)]
        for value in own:
            found = {n: c for n, c in value.users.items() if n.graph is graph}
            if found != uses.get(value, {}):
                self.fail(value.node, f"the use list of {value!r} is wrong")
            for user in value.users:
                home = user.graph
                if home is None or user not in home.nodes or not any(v is value for v in
                                                                     user.inputs):
                    self.fail(value.node, f"the use list of {value!r} names {user.op}, which does "
                                          "not use it")

