"""Fusion: groups of nodes that become one kernel each.

A group has at most one anchor (a reduction, contraction or row operator). First every anchor
takes the elementwise nodes after it, as long as the group keeps a single exit. Then, consumers
before producers, every elementwise and movement node joins the groups of its users, is
duplicated into several when that moves less data, becomes a further output of a group, or starts
a group of its own.

Convexity: a group with one exit stays convex when it takes a node all of whose users are in it,
or the one user of its exit. Only merges that give a group several exits need a search for paths
that leave and come back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...ir.expr import Var
from ...ir.graph.clone import clone_node
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.definition import lookup
from .base import Pass, register
from .cost import Sizes
from .rewrite import own_graphs

_NOT_MOVED = ("tensor_scatter",)  # updates a cache in place
_SEARCH_LIMIT = 4096
_ROW = 16  # elements of a row worth a choice
_SMALL = 1024  # elements of a tensor so small that only the number of kernels counts


@register
@dataclass(frozen=True)
class Fuse(Pass):
    """Groups nodes into `fused` nodes.

    max_inputs, max_nodes, max_outputs bound a group (single-element constants count nothing).
    max_concat: operands up to which a `concat` is computed inside another kernel.
    cheap: weighted operations per element that may be computed more than once.
    prologue: whether contractions take casts and pads of their operands. (Those that
    `decode_ahead` left to be decoded they take anyway.)
    """

    name = "fuse"
    max_inputs: int = 24
    max_nodes: int = 64
    max_outputs: int = 4
    max_concat: int = 4
    cheap: int = 8
    prologue: bool = False

    def run(self, graph: Graph) -> bool:
        modified = False
        for home in own_graphs(graph):
            planner = _Planner(home, self)
            planner.anchors()
            planner.producers()
            planner.release_views()
            modified |= planner.build()
        return modified


@dataclass(eq=False)
class Group:
    """Nodes of one kernel; `weight` is how often each is computed per element of its output, and
    `repeated` the operations of its users that are computed more than once."""

    kind: str
    shape: tuple
    anchor: Node | None = None
    members: dict[Node, None] = field(default_factory=dict)
    weight: dict[Node, float] = field(default_factory=dict)
    repeated: dict[Node, int] = field(default_factory=dict)

    def add(self, node: Node, weight: float = 1.0, repeated: int = 0) -> None:
        self.members[node] = None
        self.weight[node] = weight
        self.repeated[node] = repeated

    def inputs(self, extra: Node | None = None) -> int:
        """Number of values read from outside, single-element constants aside."""
        nodes = [*self.members, extra] if extra is not None else list(self.members)
        inside = set(nodes)
        return len({v for n in nodes for v in n.inputs if v is not None
                    and v.node not in inside and not is_scalar_constant(v)})


def is_scalar_constant(value: Value) -> bool:
    """A constant of one element."""
    return value.constant is not None and value.type.numel == 1


def _has_window(node: Node) -> bool:
    """Whether a convolution reads its input several times, once for each place in its window."""
    return node.op == "conv_last" and any(d != 1 for d in node.inputs[1].shape[2:])  # type: ignore


def _title(node: Node) -> str:
    return f"{node.op} ({node.origin})" if node.origin else node.op


class _Planner:
    """Plans the groups of one graph."""

    def __init__(self, home: Graph, options: Fuse):
        self.home = home
        self.options = options
        self.order = home.ordered()
        self.position = {n: k for k, n in enumerate(self.order)}
        self.sizes = Sizes(home)
        self.returned = {v for g in home.walk_graphs() for v in g.outputs}
        self.groups: list[Group] = []
        self.homes: dict[Node, list[Group]] = {}
        self.copied: dict[Node, int] = {}  # operations that duplication repeats
        self.written: dict[Value, Value] = {}  # what fused nodes give in the place of old values
        self.owner = {g: n for n in home._with_regions for r in n.regions
                      for g in r.walk_graphs()}
        self.mentions: dict[Var, list[Node]] = {}
        if any(n.bound for n in self.order):
            for n in self.order:
                for s in n.symbols():
                    self.mentions.setdefault(s, []).append(n)

    def note(self, text: str) -> None:
        self.options.notes.append(text)

    # What may be fused ------------------------------------------------------------------------

    def kind(self, node: Node) -> str:
        """The operator's kind when the node may be in a group, else ""."""
        definition = lookup(node.op)
        if node.regions or len(node.outputs) != 1 or definition.body_of(0) is None:
            return ""
        if node.op in _NOT_MOVED or definition.kind in ("opaque", "control", "source"):
            return ""
        return definition.kind

    def movable(self, node: Node) -> bool:
        """Whether an elementwise or movement node can be computed inside another kernel."""
        kind = self.kind(node)
        if kind == "elementwise":
            return True
        if kind != "injective":
            return False
        if node.op == "concat":
            return self._selects_rows(node)
        if node.op == "reshape":
            return not self.sizes.profile(node).divisions
        return True

    def _selects_rows(self, node: Node) -> bool:
        """Whether a concat inside another kernel chooses its operand per row, not per element.
        (As the last node of a group it writes part by part.)"""
        if len(node.inputs) > self.options.max_concat:
            return False
        size = self.sizes.numel(node.output.type)
        row = 1.0
        for d in node.output.shape[node.attrs["axis"] + 1:]:
            row *= self.sizes.dim(d)
        return row >= _ROW or size <= _SMALL

    def users(self, value: Value) -> Iterable[Node]:
        """The nodes of this graph that need the value; those with regions may capture it."""
        return dict.fromkeys(u if u.graph is self.home else self.owner[u.graph]
                             for u in value.users if u.graph is not None)

    # Anchors and what follows them ------------------------------------------------------------

    def anchors(self) -> None:
        """Starts the groups of contractions, row operators and reductions, in this order."""
        for wanted in ("contraction", "row", "reduction"):
            for node in self.order:
                if self.kind(node) == wanted:
                    self._anchor(node, wanted)

    def _anchor(self, node: Node, kind: str) -> None:
        group = Group(kind, node.output.shape, node)
        taken = [node, *self._followers(node)]
        count = self._closed_prefix(taken)
        while count > 1 and self._widens_for_readers(taken[count - 1]):
            count -= 1
        for member in taken[:count]:
            group.add(member)
            self.homes[member] = [group]
        self.groups.append(group)
        if count > 1:
            names = ", ".join(_title(n) for n in taken[1:count])
            self.note(f"{_title(node)} takes {names}: elementwise on its result, which nothing "
                      "else needs")
        if count < len(taken):
            self.note(f"{_title(node)} leaves {_title(taken[count])}: a second result would be "
                      "needed elsewhere, or the group is full")

    def _followers(self, anchor: Node) -> list[Node]:
        """Elementwise nodes of the anchor's shape that depend on it through such nodes only, in
        order."""
        shape = anchor.output.shape
        found: dict[Node, None] = {}
        waiting = [anchor]
        while waiting and len(found) < self.options.max_nodes:
            node = waiting.pop(0)
            for user in self.users(node.output):
                if user in found or user in self.homes or self.kind(user) != "elementwise":
                    continue
                if user.output.shape == shape:
                    found[user] = None
                    waiting.append(user)
        return sorted(found, key=self.position.__getitem__)

    def _closed_prefix(self, nodes: list[Node]) -> int:
        """The length of the longest prefix with a single exit, which may leave in a narrower type
        as well, and few inputs."""
        inside: dict[Node, None] = {}
        best = 1
        for k, node in enumerate(nodes[:self.options.max_nodes], 1):
            inside[node] = None
            exits = [n for n in inside if any(v in self.returned or any(
                u not in inside for u in self.users(v)) for v in n.outputs)]
            if (len(exits) == 1 or self._is_rounded(exits)) and Group(
                    "", (), members=inside).inputs() <= self.options.max_inputs:
                best = k
        return best

    def _widens_for_readers(self, node: Node) -> bool:
        """Whether a group's last node makes wider elements of its one operand for elementwise nodes
        and reductions, which can widen what they read just as well."""
        x = node.inputs[0]
        return node.op in ("dequantize", "cast") and x is not None \
            and x.dtype.itemsize < node.output.dtype.itemsize \
            and node.output not in self.returned and len(list(self.users(x))) == 1 \
            and all(self.kind(u) in ("elementwise", "reduction") for u in self.users(node.output))

    def _is_rounded(self, exits: list[Node]) -> bool:
        """Whether the second of two nodes casts the first's result to a narrower float, for
        kernels that read it several times; a kernel that reads it once rounds it by itself. (What
        depends on the cast depends on its operand: the group stays convex.)"""
        if len(exits) != 2:
            return False
        first, second = exits
        users = list(self.users(second.output))
        return second.op == "cast" and second.inputs[0] is first.output \
            and second.output.dtype.is_float \
            and second.output.dtype.bits < first.output.dtype.bits \
            and (len(users) > 1 or any(_has_window(u) for u in users))

    # Producers --------------------------------------------------------------------------------

    def producers(self) -> None:
        """Places every elementwise and movement node, consumers first."""
        for node in reversed(self.order):
            if node not in self.homes and self.kind(node) in ("elementwise", "injective"):
                self._place(node)

    def _place(self, node: Node) -> None:
        value = node.output
        users = list(self.users(value))
        targets = list(dict.fromkeys(g for u in users for g in self.homes.get(u, ())))
        external = value in self.returned or any(u not in self.homes for u in users)
        if not targets or not self.movable(node):
            return self._own(node)
        refusals = [self._refusal(node, g) for g in targets]
        for group, reason in zip(targets, refusals, strict=True):
            if reason:
                self.note(f"{_title(node)} stays out of the kernel of "
                          f"{_title(self._root(group))}: {reason}")
        if not external and not any(refusals):
            if len(targets) == 1:
                return self._join(node, targets[0], "nothing else needs it")
            if self._worth_copying(node, len(targets)):
                self.copied[node] = self._copied_cost(node)
                for group in targets:
                    self._join(node, group, f"copied into {len(targets)} kernels, which moves "
                                            "less data")
                return None
        return self._further_output(node, [g for g, r in zip(targets, refusals, strict=True)
                                           if not r])

    def _root(self, group: Group) -> Node:
        return group.anchor or next(iter(group.members))

    def _own(self, node: Node) -> None:
        if node.op == "reshape":
            return  # a view
        group = Group(self.kind(node), node.output.shape)
        group.add(node)
        self.groups.append(group)
        self.homes[node] = [group]

    def _join(self, node: Node, group: Group, reason: str) -> None:
        weight, repeated = self._repetition(node, group)
        group.add(node, weight, repeated)
        if group.kind == "injective" and self.kind(node) == "elementwise":
            group.kind = "elementwise"
        self.homes.setdefault(node, []).append(group)
        self.note(f"{_title(node)} joins the kernel of {_title(self._root(group))}: {reason}")

    def _refusal(self, node: Node, group: Group) -> str:
        """Why the node cannot be computed inside the group; "" when it can."""
        if len(group.members) >= self.options.max_nodes:
            return "the group is full"
        if group.inputs(node) > self.options.max_inputs:
            return "the group would have too many inputs"
        if node.op == "decode" and self._is_prologue(node, group):
            return ""  # its kernel takes a weight apart once for all rows
        kind = self.kind(node)
        if group.kind in ("contraction", "row") and kind == "injective" and node.op != "expand":
            if not self._is_prologue(node, group):
                return f"a {group.kind} reads its operands and epilogue in place"
        for user in self.users(node.output):
            if user is not group.anchor or user not in group.members:
                continue
            if group.kind == "contraction" and not self._is_prologue(node, group):
                return "a contraction reads its operands many times"
            if group.kind == "row" and not (kind == "elementwise" and user.inputs[0] is node.output
                                            and node.output.shape == user.output.shape):
                return "a row kernel computes only elementwise nodes of its own shape before it"
        weight, repeated = self._repetition(node, group)
        if repeated > self.options.cheap:
            return (f"it would be computed {weight:.3g} times per element, "
                    f"at {repeated} operations")
        return ""

    def _is_prologue(self, node: Node, group: Group) -> bool:
        allowed = ("decode", "cast", "pad") if self.options.prologue else ("decode",)
        return group.kind == "contraction" and node.op in allowed and all(
            u is group.anchor for u in self.users(node.output) if u in group.members)

    def _repetition(self, node: Node, group: Group) -> tuple[float, int]:
        """How often the group computes each element of the node, and the operations on the way
        that are computed more than once."""
        together, apart, repeated = 0.0, 0.0, 0
        value = node.output
        for user in self.users(value):
            if user not in group.members:
                continue
            for i, operand in enumerate(user.inputs):
                if operand is not value:
                    continue
                if self.kind(user) == "elementwise" and user.output.shape == value.shape:
                    together = max(together, group.weight[user])
                elif user is group.anchor and group.kind == "row":
                    apart += 1.0
                else:
                    apart += self.sizes.amplification(user, i) * group.weight[user]
            repeated = max(repeated, group.repeated[user])
        weight = together + apart
        if weight <= 1.25:
            return weight, 0
        return weight, repeated + self.sizes.profile(node).flops

    def _copied_cost(self, node: Node) -> int:
        users = self.users(node.output)
        return self.sizes.profile(node).flops + max(
            (self.copied.get(u, 0) for u in users), default=0)

    def _worth_copying(self, node: Node, count: int) -> bool:
        """Whether reading the operands in each of `count` kernels moves less than writing the
        node's value once and reading it in each."""
        if self._copied_cost(node) > self.options.cheap:
            return False
        size = self.sizes.numel(node.output.type)
        operands = sum(self.sizes.numel(v.type) / size for v in node.inputs
                       if v is not None and not is_scalar_constant(v))
        return count * operands <= operands + 1 + count

    # Groups with several outputs --------------------------------------------------------------

    def _further_output(self, node: Node, targets: list[Group]) -> None:
        """Makes the node part and output of elementwise groups of its shape, merging them."""
        chosen: list[Group] = []
        for group in targets:
            if self._shares_shape(node, group) and self._fits([*chosen, group], node) \
                    and not self._comes_back([*chosen, group], node):
                chosen.append(group)
        if not chosen:
            return self._own(node)
        first = chosen[0]
        for other in chosen[1:]:
            self._merge(first, other)
        return self._join(node, first, "its users there have its shape; it is an output as well"
                          if len(chosen) == 1 else "joins kernels of the same shape")

    def _shares_shape(self, node: Node, group: Group) -> bool:
        return group.anchor is None and group.shape == node.output.shape and all(
            self.kind(u) == "elementwise" and u.output.shape == node.output.shape
            for u in self.users(node.output) if u in group.members)

    def _fits(self, groups: list[Group], node: Node) -> bool:
        members = dict.fromkeys(n for g in groups for n in g.members)
        inside = {*members, node}
        outputs = sum(v in self.returned or any(u not in inside for u in self.users(v))
                      for n in inside for v in n.outputs)
        return len(inside) <= self.options.max_nodes and outputs <= self.options.max_outputs \
            and Group("", (), members=members).inputs(node) <= self.options.max_inputs

    def _comes_back(self, groups: list[Group], node: Node) -> bool:
        """Whether a path leaves the union of the groups with the node and enters it again."""
        union = {node}.union(*(g.members for g in groups))
        merged = set(groups)
        stack: list[Node] = [u for n in union for u in self._successors(n) if u not in union]
        seen = set(stack)
        while stack:
            if len(seen) > _SEARCH_LIMIT:
                return True
            current = stack.pop()
            together = [current] + [m for g in self.homes.get(current, ()) if g not in merged
                                    for m in g.members]
            for member in together:
                for user in self._successors(member):
                    if user in union:
                        return True
                    if user not in seen:
                        seen.add(user)
                        stack.append(user)
        return False

    def _successors(self, node: Node) -> list[Node]:
        found = [u for v in node.outputs for u in self.users(v)]
        found += [u for s in node.bound for u in self.mentions.get(s, ()) if u is not node]
        return found

    def _merge(self, first: Group, other: Group) -> None:
        for member in other.members:
            if member not in first.members:
                first.add(member, other.weight[member], other.repeated[member])
            here = self.homes[member]
            self.homes[member] = list(dict.fromkeys(first if g is other else g for g in here))
        if "elementwise" in (first.kind, other.kind):
            first.kind = "elementwise"
        self.groups.remove(other)

    # Views ------------------------------------------------------------------------------------

    def release_views(self) -> None:
        """Takes reshapes of values from outside out of their groups again: as views of what is
        in memory they cost nothing."""
        for group in self.groups:
            for node in sorted(group.members, key=self.position.__getitem__):
                source = node.inputs[0] if node.op == "reshape" else None
                if source is not None and source.node not in group.members:
                    del group.members[node]
                    self.homes[node].remove(group)
                    self.note(f"{_title(node)} leaves the kernel of {_title(self._root(group))}: "
                              "it is a view of a value in memory")

    # Building ---------------------------------------------------------------------------------

    def build(self) -> bool:
        """Replaces groups by `fused` nodes; a single node stays as it is, unless constants of one
        element can go with it."""
        plans = [(g, self._results(g)) for g in self.groups]
        inputs = {n: list(n.inputs) for g in self.groups for n in g.members}
        built = False
        for group, results in plans:
            constants = any(v is not None and is_scalar_constant(v)
                            for n in group.members for v in inputs[n])
            if results and (len(group.members) > 1 or constants):
                self._fused(group, results, inputs)
                built = True
        returned = {v for g in self.home.walk_graphs() for v in g.outputs}
        scalars = {v.node for vs in inputs.values() for v in vs
                   if v is not None and is_scalar_constant(v)}
        for node in reversed(self.order):
            unused = not any(v.users or v in returned for v in node.outputs)
            if unused and (node in inputs or node in scalars):
                self.home.erase(node)
        return built

    def _results(self, group: Group) -> list[Value]:
        """The values that this group computes for others. A node in several groups is written by
        the first."""
        found = []
        for node in sorted(group.members, key=self.position.__getitem__):
            if self.homes[node][0] is not group:
                continue
            for value in node.outputs:
                if value in self.returned or any(
                        not (mine := self.homes.get(u)) or any(node not in g.members for g in mine)
                        for u in self.users(value)):
                    found.append(value)
        return found

    def _fused(self, group: Group, results: list[Value],
               inputs: dict[Node, list[Value | None]]) -> None:
        home, region = self.home, Graph("fused", parent=self.home)
        members = _behind(results, group, inputs)
        members.sort(key=self.position.__getitem__)
        mapping: dict[Value, Value] = {}
        outer: list[Value] = []
        for node in members:
            for value in inputs[node]:
                if value is None or value in mapping:
                    continue
                if is_scalar_constant(value):
                    assert value.node is not None
                    clone_node(value.node, region, mapping)
                else:
                    mapping[value] = region.add_input("", value.type)
                    outer.append(value)
            clone_node(node, region, mapping, inputs[node])
        region.outputs = [mapping[v] for v in results]
        anchor = group.anchor or members[-1]
        serial = max(n.serial for n in members)
        fused = home.add_node("fused", [self.written.get(v, v) for v in outer],
                              {"kind": group.kind}, regions=[region], origin=anchor.origin)
        fused.serial = serial
        for old, new in zip(results, fused.outputs, strict=True):
            new.content = old.content
            self.written[old] = new
            home.replace(old, new)


def _behind(results: list[Value], group: Group,
            inputs: dict[Node, list[Value | None]]) -> list[Node]:
    """The members that the results need."""
    found: dict[Node, None] = {}
    stack = [v.node for v in results]
    while stack:
        node = stack.pop()
        if node is not None and node in group.members and node not in found:
            found[node] = None
            stack.extend(v.node for v in inputs[node] if v is not None)
    return list(found)
