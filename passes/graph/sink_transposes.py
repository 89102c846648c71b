"""Transposes cancel across whole regions of the graph.

Nodes that can compute on permuted tensors and are connected form a cluster. For every permutation
that a transpose at the border of a cluster suggests, a minimum cut decides which of its nodes
compute on permuted tensors: cut edges are transposes that stay, with the number of elements that
they move as capacity. A cluster is rewritten when less is moved than before.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np

from ...ir.graph.core import Graph, Node, Value
from .base import Pass, register
from .canonicalise import Canonicalise
from .cost import Sizes
from .permute import (
    Perm,
    compose,
    inverse,
    moves_nothing,
    operands,
    permutable,
    permuted_attrs,
    sink_below_reshape,
    split_before_reshape,
    spoils_rows,
)
from .rewrite import only_user, own_graphs, producer
from .simplify_movement import behind_anchor

_ROUNDS = 12
_CUT_LIMIT = 4000
"""Nodes up to which a cluster may be cut; larger ones are rewritten as a whole or not."""


@register
@dataclass(frozen=True)
class SinkTransposes(Pass):
    """Moves transposes through elementwise, concat, slice, pad, reduction, softmax and resize nodes
    to where they cancel."""

    name = "sink_transposes"

    def run(self, graph: Graph) -> bool:
        self.notes.clear()
        before: list[str] = []
        for _ in range(_ROUNDS):
            start = len(self.notes)
            for home in own_graphs(graph):
                if any(n.op == "transpose" for n in home.nodes):
                    self._graph(home)
            latest = self.notes[start:]
            if not latest or latest == before:
                break
            before = latest
            Canonicalise().run(graph)
        return bool(self.notes)

    def _graph(self, home: Graph) -> None:
        for cluster in _clusters(home):
            _Cluster(home, cluster, self.notes).improve()


def _clusters(home: Graph) -> list[list[Node]]:
    """Connected permutable nodes of one rank, each cluster in topological order."""
    parent: dict[Node, Node] = {}

    def find(node: Node) -> Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    order = [n for n in home.ordered() if permutable(n)]
    for node in order:
        parent[node] = node
        for i in operands(node):
            value = node.inputs[i]
            if value is not None and value.node in parent and value.rank == node.output.rank:
                parent[find(value.node)] = find(node)
    found: dict[Node, list[Node]] = {}
    for node in order:
        found.setdefault(find(node), []).append(node)
    return list(found.values())


class _Cluster:
    def __init__(self, home: Graph, nodes: list[Node], notes: list[str]):
        self.home = home
        self.nodes = nodes
        self.inside = set(nodes)
        self.rank = nodes[0].output.rank
        self.notes = notes
        self.sizes = Sizes(home)
        self.returned = {v for g in home.walk_graphs() for v in g.outputs}

    def improve(self) -> None:
        """Rewrites the part of the cluster for which a permutation saves most, if any does."""
        best: tuple[float, Perm, list[Node]] | None = None
        for perm in self._candidates():
            saved, chosen = self._cut(perm)
            if chosen and saved > 0 and (best is None or saved > best[0]):
                best = saved, perm, chosen
        if best is None:
            return
        saved, perm, chosen = best
        self._rewrite(perm, chosen)
        self.notes.append(f"{len(chosen)} nodes from {chosen[0].origin or chosen[0].op} on compute "
                          f"on tensors permuted by {perm}: {saved:.0f} fewer elements to transpose")

    def _candidates(self) -> list[Perm]:
        found: dict[Perm, None] = {}
        for node in self.nodes:
            for i in operands(node):
                value = node.inputs[i]
                made = value.node if value is not None else None
                if made is not None and made.op == "transpose" and value is not None \
                        and value.rank == self.rank:
                    found[tuple(made.attrs["perm"])] = None
            for user in node.output.users:
                if user.op == "transpose":
                    found[inverse(tuple(user.attrs["perm"]))] = None
        return [p for p in found if p != tuple(range(self.rank))]

    # Costs ------------------------------------------------------------------------------------

    def _outside(self, value: Value, perm: Perm) -> tuple[float, float]:
        """Elements moved to give an outside value to nodes as it is, and permuted."""
        if value.constant is not None or value.rank == 0 or value.type.numel == 1:
            return 0.0, 0.0
        size = self.sizes.numel(value.type)
        back = inverse(perm)
        lead = self.rank - value.rank
        shape = (1,) * lead + tuple(value.shape)
        moved = 0.0 if moves_nothing(shape, back) else size
        node = value.node
        if not lead and _split(value, perm) is not None:
            return 0.0, 0.0
        if node is None or node.op != "transpose" or lead:
            return 0.0, moved
        if any(u not in self.inside for u in value.users) or value in self.returned:
            return 0.0, 0.0 if tuple(node.attrs["perm"]) == perm else moved
        source = node.inputs[0]
        # What a contraction gives is best used in its own layout, where it computes the users too.
        direct = behind_anchor(source)
        whole = compose(tuple(node.attrs["perm"]), back)
        assert source is not None
        return size * (1.1 if direct else 1.0), (
            0.0 if moves_nothing(source.shape, whole) else size)

    def _users(self, value: Value, perm: Perm) -> tuple[float, float]:
        """Elements moved for the users outside if the value is as it is, and permuted."""
        size = self.sizes.numel(value.type)
        plain = permuted = 0.0
        materialised = value in self.returned
        for user in value.users:
            if user in self.inside and user.graph is self.home:
                continue
            if user.op == "transpose" and user.graph is self.home:
                q = tuple(user.attrs["perm"])
                plain += 0.0 if moves_nothing(value.shape, q) else size
                inner = [value.shape[k] for k in inverse(perm)]
                permuted += 0.0 if moves_nothing(inner, compose(perm, q)) else size
            elif user.op.startswith("reduce_") and user.graph is self.home:
                permuted += self.sizes.numel(user.output.type)
            elif user.op == "reshape" and user.graph is self.home and _sinks(value, perm, user):
                pass  # the transpose that follows does both
            else:
                materialised = True
        if materialised and not moves_nothing(
                [value.shape[k] for k in inverse(perm)], perm):
            permuted += size
        return plain, permuted

    def _cut(self, perm: Perm) -> tuple[float, list[Node]]:
        """The elements saved, and the nodes to permute."""
        plain: dict[Node, float] = dict.fromkeys(self.nodes, 0.0)
        permuted: dict[Node, float] = dict.fromkeys(self.nodes, 0.0)
        readers: dict[Value, list[Node]] = {}
        for node in self.nodes:
            a, b = self._users(node.output, perm)
            plain[node] += a
            permuted[node] += b + (self.sizes.numel(node.output.type)
                                   if spoils_rows(node, perm) else 0.0)
            for i in operands(node):
                value = node.inputs[i]
                if value is not None and node not in readers.setdefault(value, []):
                    readers[value].append(node)
        outside = {v: self._outside(v, perm) for v in readers if v.node not in self.inside}
        now = sum(plain.values()) + sum(a for a, _ in outside.values())
        whole = sum(permuted.values()) + sum(b for _, b in outside.values())
        if whole == 0 or len(self.nodes) > _CUT_LIMIT:
            return now - whole, self.nodes
        if now == 0:
            return 0.0, []
        graph = nx.DiGraph()
        graph.add_nodes_from(("plain", "permuted"))

        def connect(a, b, capacity: float) -> None:
            if capacity:
                before = graph.get_edge_data(a, b, {"capacity": 0.0})["capacity"]
                graph.add_edge(a, b, capacity=before + capacity)

        # A node on the source's side computes on plain tensors: it pays its edge to the sink.
        for node in self.nodes:
            connect("plain", node, permuted[node])
            connect(node, "permuted", plain[node])
        for value, users in readers.items():
            if value in outside:
                # Paid once when any reader is plain, and once when any is permuted.
                a, b = outside[value]
                for user in users:
                    connect(user, (value, 0), float("inf") if a else 0.0)
                    connect((value, 1), user, float("inf") if b else 0.0)
                connect((value, 0), "permuted", a)
                connect("plain", (value, 1), b)
            else:
                size = self.sizes.numel(value.type)
                made = value.node
                for user in users:
                    connect((value, 0), user, float("inf"))
                    connect(user, (value, 1), float("inf"))
                connect(made, (value, 0), size)
                connect((value, 1), made, size)
        cost, (_, side) = nx.minimum_cut(graph, "plain", "permuted")
        return now - cost, [n for n in self.nodes if n in side]

    # Rewriting --------------------------------------------------------------------------------

    def _rewrite(self, perm: Perm, chosen: list[Node]) -> None:
        """Makes the chosen nodes compute on permuted tensors."""
        back, picked = inverse(perm), set(chosen)
        here: dict[Value, Value] = {}
        for node in chosen:
            inputs = list(node.inputs)
            for i in operands(node):
                value = node.inputs[i]
                if value is None:
                    continue
                if value not in here:
                    here[value] = self._permuted(value, back, node.origin)
                inputs[i] = here[value]
            made = self.home.add_node(node.op, inputs, permuted_attrs(node, perm),
                                      origin=node.origin, name=node.output.name)
            made.serial = node.serial
            here[node.output] = made.output
        for node in reversed(chosen):
            users = [u for u in node.output.users if u not in picked]
            if users or node.output in self.returned:
                plain = self.home.add("transpose", [here[node.output]], {"perm": perm},
                                      origin=node.origin)
                assert plain.node is not None
                plain.node.serial = node.serial
                self.home.replace(node.output, plain)
        self.home.erase_all(chosen)

    def _permuted(self, value: Value, back: Perm, origin: str) -> Value:
        """An outside value for a permuted node."""
        home = self.home
        if value.rank == 0:
            return value
        lead = self.rank - value.rank
        array = value.constant
        if array is not None:
            wide = array.reshape((1,) * lead + array.shape)
            return home.constant(np.transpose(wide, back))
        split = _split(value, inverse(back)) if not lead else None
        if split is not None:
            x, inner, shape = split
            turned = home.add("transpose", [x], {"perm": inner}, origin=origin)
            return home.add("reshape", [turned], {"shape": shape}, origin=origin)
        if lead:
            value = home.add("reshape", [value], {"shape": (1,) * lead + tuple(value.shape)},
                             origin=origin)
        node = value.node
        if node is not None and node.op == "transpose":
            return home.add("transpose", [node.inputs[0]],
                            {"perm": compose(tuple(node.attrs["perm"]), back)}, origin=origin)
        return home.add("transpose", [value], {"perm": back}, origin=origin)


def _split(value: Value, perm: Perm) -> tuple[Value, Perm, tuple] | None:
    """For value = reshape(transpose(x)): (x, inner, shape) such that reshape(transpose(x, inner),
    shape) is the value permuted, so that the transpose does that as well."""
    node = value.node
    inner = producer(node, 0, "transpose") if node is not None and node.op == "reshape" else None
    x = inner.inputs[0] if inner is not None else None
    if inner is None or x is None or only_user(inner.output) is not node:
        return None
    found = split_before_reshape(x.shape, tuple(inner.attrs["perm"]), value.shape)
    if found is None or found[2] != perm:
        return None
    return x, found[0], found[1]


def _sinks(value: Value, perm: Perm, reshape: Node) -> bool:
    """Whether a transpose of the permuted value would sink below its reshape into a transpose."""
    after = only_user(reshape.output)
    shape = [value.shape[k] for k in inverse(perm)]
    return after is not None and after.op == "transpose" and sink_below_reshape(
        shape, perm, reshape.output.shape) is not None
