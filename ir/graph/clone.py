"""Copies of nodes and graphs."""

from __future__ import annotations

from collections.abc import Sequence

from .core import Graph, Node, Value


def clone_node(node: Node, into: Graph, mapping: dict[Value, Value],
               inputs: Sequence[Value | None] | None = None) -> Node:
    """A copy of `node` in graph `into` with its inputs (or those given) taken through `mapping`;
    values that are not in it stay.

    Types and known contents are copied, not inferred again. `mapping` gains the outputs.
    """
    taken = [None if v is None else mapping.get(v, v) for v in inputs or node.inputs]
    copy = Node(node.op, taken, dict(node.attrs), (), node.origin)
    for value in node.outputs:
        twin = Value(value.type, copy, value.index, value.name)
        twin.content = value.content
        copy.outputs.append(twin)
        mapping[value] = twin
    for region in node.regions:
        inner = clone_graph(region, mapping)
        inner.parent = into
        copy.regions.append(inner)
    into.insert(copy)
    return copy


def clone_graph(graph: Graph, mapping: dict[Value, Value] | None = None) -> Graph:
    """A copy of a graph and its regions; values from outside are taken through `mapping`."""
    mapping = {} if mapping is None else mapping
    copy = Graph(graph.name, symbols=dict(graph.symbols),
                 symbols_origin=dict(graph.symbols_origin),
                 output_names=list(graph.output_names), conditions=dict(graph.conditions))
    copy._fresh = graph._fresh
    for value in graph.inputs:
        twin = copy.add_input(value.name, value.type)
        twin.content = value.content
        mapping[value] = twin
    for node in graph.ordered():
        clone_node(node, copy, mapping)
    copy.outputs = [mapping.get(v, v) for v in graph.outputs]
    return copy
