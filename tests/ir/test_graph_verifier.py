"""The verifier names the node that breaks a rule."""

import pytest
from graph_texts import graph_of

from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.graph.core import Graph, Node, TensorType, Value
from smelt.ir.graph.verifier import verify


def chain() -> Graph:
    return graph_of("""(%x: f32[N, 4]) {
        %a: f32[N, 4] = relu(%x) from "node 'a'"
        %b: f32[N, 4] = neg(%a) from "node 'b'"
        return %b
    }""")


def node_of(graph: Graph, op: str) -> Node:
    return next(n for n in graph.nodes if n.op == op)


def test_a_sound_graph_passes():
    verify(chain())


def wrong_type(graph: Graph) -> None:
    node_of(graph, "neg").output.type = TensorType(dt.f32, (4, 4))


def wrong_users(graph: Graph) -> None:
    node_of(graph, "relu").output.users.clear()


def missing_attribute(graph: Graph) -> None:
    node_of(graph, "neg").attrs["to"] = dt.f32


def out_of_scope(graph: Graph) -> None:
    stray = Value(TensorType(dt.f32, (size("N"), 4)), None, 0)
    node = node_of(graph, "neg")
    node.inputs[0].users.clear()
    node.inputs[0] = stray
    stray.users[node] = 1


def cycle(graph: Graph) -> None:
    first, second = node_of(graph, "relu"), node_of(graph, "neg")
    first.inputs[0].users.clear()
    first.inputs[0] = second.output
    second.output.users[first] = 1


def unbound_size(graph: Graph) -> None:
    graph.outputs = [graph.add("expand", [graph.inputs[0]], {"shape": (size("Q"), size("N"), 4)},
                               origin="node 'c'")]


def stolen_output(graph: Graph) -> None:
    node_of(graph, "neg").output.node = node_of(graph, "relu")


@pytest.mark.parametrize(("damage", "message"), [
    (wrong_type, "node 'b': neg gives .*f32\\[N, 4\\]"),
    (wrong_users, "node 'a': the use list"),
    (missing_attribute, "node 'b': neg has no attribute 'to'"),
    (out_of_scope, "node 'b': neg uses .* not in scope"),
    (cycle, "cycle through node"),
    (unbound_size, "node 'c': size Q is used before something binds it"),
    (stolen_output, "node 'b': output 0 of neg has another producer"),
])
def test_damage_is_found(damage, message):
    graph = chain()
    damage(graph)
    with pytest.raises(ModelError, match=f"{message}.*\\(after tests\\)"):
        verify(graph, "after tests")


def test_fused_groups_are_closed():
    graph = graph_of("""(%x: f32[4]) {
        %a: f32[4] = relu(%x)
        %b: f32[4] = fused(%x) {kind = "elementwise"} region fused(%y: f32[4]) {
          %c: f32[4] = neg(%y) from "node 'c'"
          return %c
        }
        return %a, %b
    }""")
    inner = node_of(node_of(graph, "fused").regions[0], "neg")
    inner.inputs[0].users.clear()
    inner.inputs[0] = node_of(graph, "relu").output
    inner.inputs[0].users[inner] = 1
    with pytest.raises(ModelError, match="node 'c': neg uses .* not in scope"):
        verify(graph)


def test_values_of_a_region_stay_in_it():
    graph = graph_of("""(%c: bool[], %x: f32[4]) {
        %r: f32[4] = if(%c) {sizes = ()} region then() {
          %a: f32[4] = relu(%x)
          return %a
        } region orelse() {
          return %x
        }
        return %r
    }""")
    verify(graph)
    inside = node_of(node_of(graph, "if").regions[0], "relu").output
    graph.outputs = [inside]
    with pytest.raises(ModelError, match="not in scope"):
        verify(graph)
