"""Values, nodes and graphs.

A graph is in SSA form: every `Value` has one producer (a node output or a graph input). Nodes are
kept in an insertion-ordered set; `Graph.ordered()` gives a deterministic topological order, so a
rewrite may add nodes anywhere. Regions of control-flow nodes are graphs that may use values of
the graphs around them.

Sizes: a dimension is an int or an i64 `Expr` over named sizes. Sizes of graph inputs are bound
by the caller's arrays. A size that depends on data is introduced by a `bind` node, which reads it
from an integer tensor; nodes that mention such a size come after its `bind` node.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..dtype import DType
from ..expr import Expr, Op, Var, const, free_vars, simplify_dim, size, text

Dim = int | Expr


@dataclass(frozen=True)
class TensorType:
    """Element type and shape; dimensions are ints or canonical i64 expressions."""

    dtype: DType
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(simplify_dim(d) for d in self.shape))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def numel(self) -> Dim:
        """Number of elements, an expression when a dimension is symbolic."""
        total: Any = 1
        for d in self.shape:
            total = total * d
        return simplify_dim(total)

    @property
    def symbols(self) -> list[Var]:
        return free_vars(*(d for d in self.shape if isinstance(d, Expr)))

    def __repr__(self) -> str:
        return f"{self.dtype}[{', '.join(text(d) for d in self.shape)}]"


class Value:
    """One tensor. `content`, when not None, is an object array with the shape of the value whose
    elements are expressions: what is known of a small tensor's elements at compile time."""

    __slots__ = ("content", "index", "name", "node", "type", "users")

    def __init__(self, type: TensorType, node: Node | None, index: int, name: str = ""):
        self.type = type
        self.node = node
        self.index = index
        self.name = name
        self.users: dict[Node, int] = {}
        self.content: np.ndarray | None = None

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    @property
    def constant(self) -> np.ndarray | None:
        """The array of a constant value, else None."""
        node = self.node
        return node.attrs["value"] if node is not None and node.op == "constant" else None

    def __repr__(self) -> str:
        return f"%{self.name or hex(id(self))}: {self.type}"


class Node:
    """One operation. `inputs` may hold None for an absent optional input; `origin` names the
    source node for messages. `attrs` values are ints, floats, bools, strings, dtypes, dimensions
    and tuples of them; `constant` alone holds an array."""

    __slots__ = ("attrs", "graph", "inputs", "op", "origin", "outputs", "regions", "serial")

    def __init__(self, op: str, inputs: Sequence[Value | None], attrs: dict[str, Any],
                 regions: Sequence[Graph] = (), origin: str = ""):
        self.op = op
        self.inputs: list[Value | None] = list(inputs)
        self.attrs = attrs
        self.regions: list[Graph] = list(regions)
        self.outputs: list[Value] = []
        self.origin = origin
        self.graph: Graph | None = None
        self.serial = 0

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def symbols(self) -> set[Var]:
        """Sizes that the attributes and output types mention."""
        found: set[Var] = set()
        for value in self.outputs:
            found.update(value.type.symbols)
        stack = [v for k, v in self.attrs.items() if k != "value"]
        while stack:
            item = stack.pop()
            if isinstance(item, Expr):
                found.update(free_vars(item))
            elif isinstance(item, (tuple, list)):
                stack.extend(item)
        return found

    @property
    def bound(self) -> tuple[Var, ...]:
        """Sizes that come to exist by running the node (`bind`, `if`, `loop`)."""
        return tuple(self.attrs.get("symbols" if self.op == "bind" else "sizes") or ()) \
            if self.op in ("bind", "if", "loop") else ()

    def captured(self) -> list[Value]:
        """Outer values that the regions use (nested regions included)."""
        result: dict[Value, None] = {}
        for region in self.regions:
            result.update(dict.fromkeys(region.free_values()))
        return list(result)

    def dependencies(self) -> list[Value]:
        """Every value the node needs: inputs that are present, then captures of its regions."""
        direct = [v for v in self.inputs if v is not None]
        return direct + self.captured() if self.regions else direct

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(map(repr, self.inputs))})"


@dataclass(eq=False)
class Graph:
    """A function from `inputs` to `outputs`. `symbols` gives the (low, high) range of the sizes
    that inputs introduce; high None is unbounded. `symbols_origin` gives the model's own name of
    a size ("" if it has none), for messages and the manifest only. `output_names` are the names
    of the outputs, which stay when values are replaced. `conditions` are bool expressions of the
    inputs' sizes that must hold for the graph to mean what the model means, checked at run time,
    each with the message that refuses others. While `importing`, nodes that are added state what
    their operands' sizes must satisfy; see `require`."""

    name: str = "main"
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: dict[Node, None] = field(default_factory=dict)
    symbols: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    symbols_origin: dict[str, str] = field(default_factory=dict)
    output_names: list[str] = field(default_factory=list)
    conditions: dict[Expr, str] = field(default_factory=dict)
    importing: bool = False
    parent: Graph | None = None
    _serial: int = 0
    _fresh: int = 0
    _with_regions: dict[Node, None] = field(default_factory=dict)
    _required: set[Expr] = field(default_factory=set)

    # Construction -----------------------------------------------------------------------------

    def add_input(self, name: str, type: TensorType) -> Value:
        value = Value(type, None, len(self.inputs), name)
        self.inputs.append(value)
        return value

    def add(self, op: str, inputs: Sequence[Value | None] = (), attrs: dict | None = None, *,
            regions: Sequence[Graph] = (), origin: str = "", name: str = "") -> Value:
        """Appends a node and returns its first output; see `add_node`."""
        return self.add_node(op, inputs, attrs, regions=regions, origin=origin, name=name).output

    def add_node(self, op: str, inputs: Sequence[Value | None] = (), attrs: dict | None = None,
                 *, regions: Sequence[Graph] = (), origin: str = "", name: str = "") -> Node:
        """Appends a node, inferring its output types from the operator's definition.

        Raises ModelError naming `origin` when the operator refuses the operands.
        """
        from .definition import infer

        node = Node(op, inputs, dict(attrs or {}), regions, origin)
        for region in node.regions:
            region.parent = self
        types, contents = infer(self, node)
        for k, type in enumerate(types):
            value = Value(type, node, k, name if len(types) == 1 else "")
            value.content = contents[k]
            node.outputs.append(value)
        self.insert(node)
        return node

    def insert(self, node: Node) -> None:
        """Puts a complete node (outputs set) into the graph."""
        root = self.root
        root._serial += 1
        node.serial = root._serial
        node.graph = self
        self.nodes[node] = None
        if node.regions:
            self._with_regions[node] = None
        for value in node.inputs:
            if value is not None:
                value.users[node] = value.users.get(node, 0) + 1

    def constant(self, array, name: str = "", dtype: DType | None = None) -> Value:
        """A constant node holding `array` (kept as given: views of mapped files stay lazy)."""
        array = np.asarray(array) if dtype is None else np.asarray(array, dtype.numpy)
        return self.add("constant", (), {"value": array}, name=name)

    @property
    def root(self) -> Graph:
        graph = self
        while graph.parent is not None:
            graph = graph.parent
        return graph

    def fresh_symbol(self, prefix: str = "d") -> Var:
        """A size with a name that nothing else in the whole model has."""
        root = self.root
        while True:
            root._fresh += 1
            name = f"{prefix}{root._fresh}"
            if name not in root.symbols:
                return size(name)

    def bind(self, value: Value, origin: str = "") -> tuple[Dim, ...]:
        """The elements of an integer tensor of rank 0 or 1 as dimensions.

        Known contents are returned as they are; otherwise a `bind` node introduces new sizes.
        """
        if value.content is not None:
            return tuple(simplify_dim(e) for e in value.content.reshape(-1))
        count = value.type.numel
        if not isinstance(count, int):
            from ...errors import ModelError

            raise ModelError(f"{origin or 'a node'}: a shape tensor has an unknown number of "
                             f"elements ({value.type}); give the rank by fixing its shape")
        if count > 128:
            from ...errors import ModelError

            raise ModelError(f"{origin or 'a node'}: {count} sizes from one tensor ({value.type})")
        names = tuple(self.fresh_symbol() for _ in range(count))
        if names:
            self.add_node("bind", [value], {"symbols": names}, origin=origin)
        return names

    def require(self, condition: Expr, origin: str = "") -> None:
        """States that a bool expression of sizes holds where control gets here.

        Of the sizes of inputs it becomes one of `conditions`; of sizes that data tells, or in a
        region, a `require` node, which refuses the run.
        """
        if condition is const(True, condition.dtype):
            return
        root = self.root
        message = f"{origin or 'the model'} needs {readable(condition, root.symbols_origin)}"
        if self is root and all(v.name in root.symbols for v in free_vars(condition)):
            root.conditions.setdefault(condition, message)
            return
        graph: Graph | None = self
        while graph is not None:
            if condition in graph.conditions or condition in graph._required:
                return
            graph = graph.parent
        self._required.add(condition)
        self.add_node("require", (), {"condition": condition, "message": message}, origin=origin)

    # Editing ----------------------------------------------------------------------------------

    def replace(self, old: Value, new: Value) -> None:
        """Makes every user of `old`, graph outputs included, use `new`."""
        if old is new:
            return
        for node in list(old.users):
            node.inputs = [new if v is old else v for v in node.inputs]
            new.users[node] = new.users.get(node, 0) + old.users[node]
        old.users.clear()
        for graph in self.root.walk_graphs():
            if any(v is old for v in graph.outputs):
                graph.outputs = [new if v is old else v for v in graph.outputs]
        if not new.name:
            new.name = old.name

    def erase(self, node: Node) -> None:
        """Removes a node whose outputs nobody uses."""
        for value in node.outputs:
            if value.users:
                raise ValueError(f"cannot erase {node.op}: {value!r} is still used")
        self._remove(node)

    def erase_all(self, nodes: Iterable[Node]) -> None:
        """Removes nodes of this graph that nothing but each other uses."""
        nodes = list(nodes)
        for node in nodes:
            self._remove(node)
        for node in nodes:
            for value in node.outputs:
                if value.users:
                    raise ValueError(f"cannot erase {node.op}: {value!r} is still used")

    def _remove(self, node: Node) -> None:
        for value in node.inputs:
            if value is not None:
                value.users.pop(node, None)
        del self.nodes[node]
        self._with_regions.pop(node, None)
        for region in node.regions:
            for graph in region.walk_graphs():
                for inner in graph.nodes:
                    for value in inner.inputs:
                        if value is not None:
                            value.users.pop(inner, None)

    # Queries ----------------------------------------------------------------------------------

    def walk_graphs(self) -> Iterator[Graph]:
        """This graph and all regions below it."""
        stack: list[Graph] = [self]
        while stack:
            graph = stack.pop()
            yield graph
            for node in graph._with_regions:
                stack.extend(node.regions)

    def free_values(self) -> list[Value]:
        """Values of outer graphs used here or in nested regions, in order of first use."""
        inside: set[Value] = set()
        used: dict[Value, None] = {}
        for graph in self.walk_graphs():
            inside.update(graph.inputs)
            for node in graph.nodes:
                inside.update(node.outputs)
                used.update(dict.fromkeys(v for v in node.inputs if v is not None))
            used.update(dict.fromkeys(graph.outputs))
        return [v for v in used if v not in inside]

    def ordered(self) -> list[Node]:
        """The nodes in topological order, ties by age. Raises ModelError on a cycle."""
        binder = {s: n for n in self.nodes for s in n.bound}
        waiting: dict[Node, int] = {}
        users: dict[Node, list[Node]] = {}
        ready: list[tuple[int, Node]] = []
        for node in self.nodes:
            before = {v.node for v in node.dependencies()
                      if v.node is not None and v.node in self.nodes}
            if binder:
                before.update(binder[s] for s in _mentioned(node) if s in binder)
                before.discard(node)
            waiting[node] = len(before)
            for other in before:
                users.setdefault(other, []).append(node)
            if not before:
                ready.append((node.serial, node))
        heap = [_Entry(s, n) for s, n in ready]
        heapq.heapify(heap)
        result: list[Node] = []
        while heap:
            node = heapq.heappop(heap).node
            result.append(node)
            for user in users.get(node, ()):
                waiting[user] -= 1
                if not waiting[user]:
                    heapq.heappush(heap, _Entry(user.serial, user))
        if len(result) != len(self.nodes):
            from ...errors import ModelError

            stuck = next(n for n, count in waiting.items() if count)
            raise ModelError(f"the graph has a cycle through {stuck.origin or stuck.op}")
        return result

    def __repr__(self) -> str:
        from .text import print_graph

        return print_graph(self, elide=16)


def _mentioned(node: Node) -> set[Var]:
    found = node.symbols()
    for region in node.regions:
        for graph in region.walk_graphs():
            for inner in graph.nodes:
                found |= inner.symbols()
    return found


@dataclass(order=True)
class _Entry:
    serial: int
    node: Node = field(compare=False)


_SIGNS = {"eq": "=", "ne": "!=", "le": "<=", "lt": "<", "ge": ">=", "gt": ">", "or": "or",
          "and": "and"}


def readable(condition: Expr, names: Mapping[str, str]) -> str:
    """A condition for people: "height // 2 = 4 or n = 1". `names` are those of the model."""
    if isinstance(condition, Op) and condition.name in _SIGNS:
        a, b = (readable(x, names) for x in condition.args)
        return f"{a} {_SIGNS[condition.name]} {b}"
    plain = text(condition)
    if plain.startswith("(") and plain.endswith(")") and plain.count("(") == 1:
        plain = plain[1:-1]
    return re.sub(r"\b[a-z]\w*\b", lambda m: names.get(m[0]) or m[0], plain)


def tensor(dtype: DType, *shape: Dim) -> TensorType:
    """Shorthand for TensorType."""
    return TensorType(dtype, tuple(shape))

