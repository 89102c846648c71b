"""Rules that decide control flow at compile time."""

from __future__ import annotations

from ...errors import ModelError
from ...ir.graph.clone import clone_node
from ...ir.graph.core import Graph, Node, Value
from .rewrite import Replacement, rule, scalar


@rule("if")
def known_branch(node: Node, graph: Graph) -> Replacement:
    """An `if` with a constant condition is its branch. (Not when its results have sizes that
    only the node defines.)"""
    taken = scalar(node.inputs[0])
    if taken is None or node.attrs["sizes"] or not node.outputs:
        return None
    region = node.regions[0 if taken else 1]
    if [v.type for v in region.outputs] != [v.type for v in node.outputs]:
        return None
    mapping: dict[Value, Value] = {}
    for inner in region.ordered():
        clone_node(inner, graph, mapping)
    return [mapping.get(v, v) for v in region.outputs]


@rule("checked")
def known_check(node: Node, graph: Graph) -> Replacement:
    """What is known to be right needs no check."""
    wrong = scalar(node.inputs[1])
    if wrong is None:
        return None
    if wrong:
        raise ModelError(node.attrs["message"])
    source = node.inputs[0]
    assert source is not None
    return [source]


RULES = [known_branch, known_check]
