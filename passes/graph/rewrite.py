"""Rewriting by small rules.

    @rule("neg")
    def double_negation(node: Node, graph: Graph) -> Value | None:
        inner = producer(node, 0, "neg")
        return inner.inputs[0] if inner else None

A rule looks at one node, guards first, and returns what replaces its outputs (one value, or one
per output) or None. It may add nodes to `graph` but changes nothing else. Returned values have
exactly the types of the outputs they replace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ... import config
from ...errors import ModelError, SmeltError
from ...ir import dtype as dt
from ...ir.graph.core import Graph, Node, TensorType, Value
from ...ir.graph.definition import infer

Replacement = Value | Sequence[Value] | None
RuleFunction = Callable[[Node, Graph], Replacement]


class Rule:
    """A rewrite rule for nodes of the operators `ops`."""

    def __init__(self, ops: tuple[str, ...], function: RuleFunction):
        self.ops = ops
        self.function = function
        self.name = function.__name__

    def __call__(self, node: Node, graph: Graph) -> Replacement:
        return self.function(node, graph)


def rule(*ops: str) -> Callable[[RuleFunction], Rule]:
    """Makes a function a rule for nodes of these operators."""
    return lambda function: Rule(ops, function)


def own_graphs(graph: Graph) -> list[Graph]:
    """The graph and its regions, except the insides of fused groups."""
    result: list[Graph] = []
    stack = [graph]
    while stack:
        current = stack.pop()
        result.append(current)
        stack.extend(r for n in current._with_regions if n.op != "fused" for r in n.regions)
    return result


def rewrite(graph: Graph, rules: Iterable[Rule], limit: int = 0) -> int:
    """Applies rules until none matches, in the graph and its regions; returns the replacements.

    Nodes that lose their last user are erased. `limit` (default: 50 per node) bounds the
    replacements; SmeltError names the rule that was at work when it was reached.
    """
    by_op: dict[str, list[Rule]] = {}
    for r in rules:
        for name in r.ops:
            by_op.setdefault(name, []).append(r)
    limit = limit or 50 * sum(len(g.nodes) for g in own_graphs(graph)) + 1000
    work = _Rewriting(graph, by_op, limit)
    # A rule may look further than at the neighbours of what changed: sweep until nothing does.
    while work.sweep():
        pass
    return work.count


class _Rewriting:
    def __init__(self, graph: Graph, by_op: dict[str, list[Rule]], limit: int):
        self.graph = graph
        self.by_op = by_op
        self.limit = limit
        self.count = 0
        self.returned = {v for g in graph.root.walk_graphs() for v in g.outputs}

    def sweep(self) -> bool:
        """Visits every node, and again those around changes; returns whether there were any."""
        before = self.count
        queue = deque(n for g in own_graphs(self.graph) for n in g.ordered())
        waiting = set(queue)
        while queue:
            node = queue.popleft()
            waiting.discard(node)
            home = node.graph
            if home is None or node not in home.nodes:
                continue
            touched = _erase(node, self.returned) if is_dead(node, self.returned) else (
                self.apply(node, home))
            for other in touched:
                if other not in waiting:
                    waiting.add(other)
                    queue.append(other)
        return self.count > before

    def apply(self, node: Node, home: Graph) -> list[Node]:
        """Tries the rules on a node; returns the nodes to look at again."""
        for r in self.by_op.get(node.op, ()):
            before = home.root._serial
            result = r(node, home)
            if result is None:
                continue
            values = (result,) if isinstance(result, Value) else tuple(result)
            if not _fits(node, values, r):
                continue
            self.count += 1
            if self.count > self.limit:
                raise SmeltError(f"rewriting does not end: rule {r.name} applied again at "
                                 f"{node.origin or node.op} after {self.limit} steps")
            touched = [u for v in node.outputs for u in v.users]
            for old, new in zip(node.outputs, values, strict=True):
                if old in self.returned:
                    self.returned.discard(old)
                    self.returned.add(new)
                home.replace(old, new)
            added = _added(values, before)
            for new in added:
                new.serial = node.serial  # keeps the order in which things are computed
            touched += added
            touched += [v.node for v in values if v.node is not None]
            touched += [u for v in values for u in v.users]
            return touched + _erase(node, self.returned)
        return []


def is_dead(node: Node, returned: set[Value]) -> bool:
    """Whether nothing uses the node's outputs (nodes without outputs are never dead)."""
    return bool(node.outputs) and not any(v.users or v in returned for v in node.outputs)


def _erase(node: Node, returned: set[Value]) -> list[Node]:
    """Erases a node and what only it needed, if nothing uses it; returns the nodes for which this
    may matter: those that now are a value's only user."""
    touched: list[Node] = []
    stack = [node]
    while stack:
        dead = stack.pop()
        home = dead.graph
        if home is None or dead not in home.nodes or not is_dead(dead, returned):
            continue
        values = dead.dependencies()
        home.erase(dead)
        for value in values:
            if value.node is not None:
                stack.append(value.node)
            if len(value.users) == 1:
                touched += value.users
    return touched


def _fits(node: Node, values: tuple[Value, ...], r: Rule) -> bool:
    fits = len(values) == len(node.outputs) and all(
        new.type == old.type for old, new in zip(node.outputs, values, strict=True))
    if not fits and config.verify_level() >= 2:
        raise SmeltError(f"rule {r.name} replaces {node.outputs} by {values} at "
                         f"{node.origin or node.op}")
    return fits and any(new is not old for old, new in zip(node.outputs, values, strict=True))


def _added(values: Iterable[Value], before: int) -> list[Node]:
    """The nodes behind `values` that are younger than `before`, producers first."""
    found: dict[Node, None] = {}
    stack = [v.node for v in values if v.node is not None]
    while stack:
        node = stack.pop()
        if node.serial > before and node not in found:
            found[node] = None
            stack.extend(v.node for v in node.inputs if v is not None and v.node is not None)
    return sorted(found, key=lambda n: n.serial)


# What rules ask -----------------------------------------------------------------------------------


def producer(node: Node, i: int, *ops: str) -> Node | None:
    """The node behind input `i` when it is one of `ops` (any operator when none are given)."""
    value = node.inputs[i] if i < len(node.inputs) else None
    found = value.node if value is not None else None
    return found if found is not None and (not ops or found.op in ops) else None


def only_user(value: Value) -> Node | None:
    """The single node that uses the value, counting each use; None when it is also returned."""
    if len(value.users) != 1 or is_returned(value):
        return None
    (user, count), = value.users.items()
    return user if count == 1 else None


def is_returned(value: Value) -> bool:
    """Whether a graph returns the value."""
    home = value.node.graph if value.node is not None else None
    return home is None or any(v is value for g in home.walk_graphs() for v in g.outputs)


def scalar(value: Value | None) -> bool | int | float | None:
    """The number that all elements of a constant equal, else None (0.0 and -0.0 differ). Large
    constants are taken for uneven without a look."""
    array = value.constant if value is not None else None
    if array is None or not array.size:
        return None
    if array.size > 1:
        if array.size > 1 << 16 and any(
                s for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
            return None
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1)
        if (flat != flat[0]).any():
            return None
    first = array[(0,) * array.ndim]
    kind = dt.from_numpy(array).kind
    return float(first) if kind == "float" else bool(first) if kind == "bool" else int(first)


def is_constant(value: Value | None) -> bool:
    return value is not None and value.constant is not None


def shaped(graph: Graph, value: Value, node: Node) -> Value:
    """`value` broadcast to the shape of the node's output, which it replaces."""
    if value.shape == node.output.shape:
        return value
    return graph.add("expand", [value], {"shape": node.output.shape}, origin=node.origin)


def result_type(graph: Graph, op: str, inputs: Sequence[Value | None],
                attrs: dict | None = None) -> TensorType | None:
    """The type that a node would have, or None when the operator refuses the operands."""
    try:
        return infer(graph, Node(op, inputs, dict(attrs or {})))[0][0]
    except ModelError:
        return None
