"""The numpy reference interpreter: what a graph means, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import InputError, ModelError
from ..expr import Expr, Var, evaluate
from .core import Graph, Node, TensorType, Value
from .definition import OpContext, lookup
from .evaluate import evaluate_body

Sizes = dict[str, int]


def interpret(graph: Graph, inputs: Mapping[str, Any] | Sequence[Any], *,
              bodies: bool = False) -> list[np.ndarray]:
    """The outputs of `graph` for `inputs` (arrays in order, or by input name). `bodies` evaluates
    operators by their index notation also where they have a numpy reference.

    Raises InputError when an input is missing or does not have the declared type, and when sizes
    that data determines turn out impossible.
    """
    if isinstance(inputs, Mapping):
        missing = [v.name for v in graph.inputs if v.name not in inputs]
        if missing or len(inputs) != len(graph.inputs):
            unknown = set(inputs) - {v.name for v in graph.inputs}
            raise InputError(f"inputs do not match: missing {missing}, unknown {sorted(unknown)}")
        given = [inputs[v.name] for v in graph.inputs]
    else:
        given = list(inputs)
        if len(given) != len(graph.inputs):
            raise InputError(f"the graph has {len(graph.inputs)} inputs, {len(given)} were given")
    arrays = [np.asarray(a) for a in given]
    for value, array in zip(graph.inputs, arrays, strict=True):
        if array.dtype != value.dtype.numpy:
            raise InputError(f"input {value.name!r} must be {value.type}, not {array.dtype}")
    return _Run(bodies).graph(graph, arrays, {}, {})


class _Run:
    """One interpretation: orders of graphs are computed once, also for bodies that repeat."""

    def __init__(self, bodies: bool) -> None:
        self.bodies = bodies
        self.plans: dict[Graph, list[tuple[Node, list[Value]]]] = {}

    def plan(self, graph: Graph) -> list[tuple[Node, list[Value]]]:
        """The nodes in order, each with the values that nothing needs after it."""
        if graph not in self.plans:
            order = graph.ordered()
            last: dict[Value, Node] = {}
            own = set(graph.inputs)
            for node in order:
                own.update(node.outputs)
                last.update(dict.fromkeys(node.outputs, node))
                last.update(dict.fromkeys(node.dependencies(), node))
            dead: dict[Node, list[Value]] = {}
            keep = set(graph.outputs)
            for value, node in last.items():
                if value in own and value not in keep:
                    dead.setdefault(node, []).append(value)
            self.plans[graph] = [(node, dead.get(node, [])) for node in order]
        return self.plans[graph]

    def graph(self, graph: Graph, inputs: Sequence[np.ndarray | None],
              outer: Mapping[Value, np.ndarray], sizes: Sizes) -> list[np.ndarray]:
        """Runs a graph or region; `sizes` receives the sizes that it binds."""
        values = _Values(outer)
        for value, array in zip(graph.inputs, inputs, strict=True):
            if array is not None:
                bind_shape(value.type, array, sizes, f"input {value.name!r}")
                values[value] = array
        for condition in graph.conditions:
            if not concrete(condition, sizes):
                raise InputError(graph.conditions[condition])
        for node, dead in self.plan(graph):
            for value, array in zip(node.outputs, self.node(node, values, sizes), strict=True):
                self._check(node, value, array, sizes)
                values[value] = array
            for value in dead:
                values.pop(value, None)
        return [values[v] for v in graph.outputs]

    @staticmethod
    def _check(node: Node, value: Value, array: np.ndarray, sizes: Sizes) -> None:
        shape = tuple(concrete(d, sizes) for d in value.shape)
        if array.shape != shape or array.dtype != value.dtype.numpy:
            raise ModelError(f"{node.origin or node.op}: {node.op} gave {array.dtype}"
                             f"{list(array.shape)} where {value.dtype}{list(shape)} was inferred")

    def node(self, node: Node, values: _Values, sizes: Sizes) -> list[np.ndarray]:
        arrays = [None if v is None else values[v] for v in node.inputs]
        if node.op == "bind":
            self._bind(node, arrays[0], sizes)
            return []
        if node.op == "require":
            if not concrete(node.attrs["condition"], sizes):
                raise InputError(node.attrs["message"])
            return []
        if node.op == "if":
            return self._if(node, arrays, values, sizes)
        if node.op == "loop":
            return self._loop(node, arrays, values, sizes)
        if node.regions:  # a fused group: its region is the meaning
            return self.graph(node.regions[0], arrays, values, sizes)
        return run_node(resolved(node, sizes), arrays, self.bodies)

    @staticmethod
    def _bind(node: Node, array: np.ndarray | None, sizes: Sizes) -> None:
        assert array is not None
        for symbol, number in zip(node.attrs["symbols"], array.reshape(-1), strict=True):
            if number < 0:
                raise InputError(f"{node.origin or 'bind'}: the data asks for a negative size, "
                                 f"{int(number)}")
            sizes[symbol.name] = int(number)

    def _if(self, node: Node, arrays, values: _Values, sizes: Sizes) -> list[np.ndarray]:
        branch = node.regions[0 if bool(arrays[0]) else 1]
        results = self.graph(branch, [], values, dict(sizes))
        bind_fresh(node, results, sizes)
        return results

    def _loop(self, node: Node, arrays, values: _Values, sizes: Sizes) -> list[np.ndarray]:
        body = node.regions[0]
        trips = None if arrays[0] is None else int(arrays[0])
        going = arrays[1] is None or bool(arrays[1])
        carried: list[np.ndarray] = list(arrays[2:])
        stacks: list[list[np.ndarray]] = [[] for _ in body.outputs[1 + len(carried):]]
        iteration = 0
        while going and (trips is None or iteration < trips):
            inner = {k: v for k, v in sizes.items() if k not in _names(node.attrs["inner"])}
            results = self.graph(
                body, [np.array(iteration, np.int64), np.array(going), *carried], values, inner)
            going, carried = bool(results[0]), results[1:1 + len(carried)]
            for stack, item in zip(stacks, results[1 + len(carried):], strict=True):
                if stack and stack[0].shape != item.shape:
                    raise InputError(f"{node.origin or 'loop'}: iterations give slices of "
                                     f"different shapes, {stack[0].shape} and {item.shape}")
                stack.append(item)
            iteration += 1
        scans = []
        for stack, out in zip(stacks, node.outputs[len(carried):], strict=True):
            if stack:
                scans.append(np.stack(stack))
            else:  # no iteration tells the sizes of a slice: those that are unknown are 0
                scans.append(np.empty((0, *(concrete(d, sizes, 0) for d in out.shape[1:])),
                                      out.dtype.numpy))
        results = [*carried, *scans]
        bind_fresh(node, results, sizes)
        return results


class _Values(dict):
    """Arrays by value; what is not found is of the graphs around."""

    def __init__(self, outer: Mapping[Value, np.ndarray]):
        super().__init__()
        self.outer = outer

    def __missing__(self, value: Value) -> np.ndarray:
        return self.outer[value]


def _names(symbols: Sequence[Var]) -> set[str]:
    return {s.name for s in symbols}


def concrete(d, sizes: Sizes, default: int | None = None) -> int:
    """A dimension as a number; `default` where a size is not known."""
    if not isinstance(d, Expr):
        return int(d)
    try:
        return int(evaluate(d, sizes))
    except KeyError:
        if default is not None:
            return default
        raise


def bind_shape(type: TensorType, array: np.ndarray, sizes: Sizes, what: str) -> None:
    """Checks an array against a type, giving values to sizes seen for the first time."""
    if array.ndim != type.rank:
        raise InputError(f"{what} must have {type.rank} dimensions ({type}), "
                         f"not shape {list(array.shape)}")
    for d, n in zip(type.shape, array.shape, strict=True):
        if isinstance(d, Var) and d.name not in sizes:
            sizes[d.name] = int(n)
    for d, n in zip(type.shape, array.shape, strict=True):
        if concrete(d, sizes) != n:
            raise InputError(f"{what} must be {type}, not shape {list(array.shape)}")


def bind_fresh(node: Node, results: Sequence[np.ndarray], sizes: Sizes) -> None:
    """Gives values to the sizes that a control-flow node's results bring."""
    fresh = set(node.bound)
    for value, array in zip(node.outputs, results, strict=True):
        for d, n in zip(value.shape, array.shape, strict=True):
            if d in fresh and isinstance(d, Var):
                sizes[d.name] = int(n)


def resolved(node: Node, sizes: Sizes) -> Node:
    """A copy of `node` whose attributes and types hold numbers in place of sizes."""

    def number(item):
        if isinstance(item, Expr):
            return int(evaluate(item, sizes))
        if isinstance(item, tuple):
            return tuple(number(x) for x in item)
        return item

    def typed(value: Value, owner: Node | None) -> Value:
        shape = tuple(concrete(d, sizes) for d in value.shape)
        return Value(TensorType(value.dtype, shape), owner, value.index, value.name)

    attrs = {k: v if k == "value" else number(v) for k, v in node.attrs.items()}
    copy = Node(node.op, (), attrs, origin=node.origin)
    copy.inputs = [None if v is None else typed(v, None) for v in node.inputs]
    copy.outputs = [typed(v, copy) for v in node.outputs]
    return copy


def run_node(node: Node, arrays: Sequence[np.ndarray | None],
             bodies: bool = False) -> list[np.ndarray]:
    """The outputs of one node without regions, whose attributes and types are concrete. `bodies`
    prefers index notation to the numpy reference."""
    definition = lookup(node.op)
    written = all(definition.body_of(k) is not None for k in range(len(node.outputs)))
    if definition.reference is not None and not (bodies and written):
        with np.errstate(all="ignore"):
            results = definition.reference(OpContext(node), *arrays)
        found = list(results) if isinstance(results, (tuple, list)) else [results]
        return [np.asarray(r) for r in found]
    results = []
    for k in range(len(node.outputs)):
        body = definition.body_of(k)
        if body is None:
            raise ModelError(f"{node.origin or node.op}: {node.op} has neither a body nor a "
                             "reference")
        results.append(evaluate_body(node, k, body, arrays))
    return results
