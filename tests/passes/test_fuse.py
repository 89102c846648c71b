"""Which nodes become one kernel."""

import numpy as np
import pytest
from graph_texts import check, graph_of
from random_graphs import random_graph

from smelt.ir.graph.core import Graph
from smelt.ir.graph.interpreter import interpret
from smelt.ir.graph.text import print_graph
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.fuse import Fuse


def groups(text: str, **options) -> tuple[list[str], Fuse]:
    """The nodes after fusion, in order: groups as "kind: op op ...", without constants."""
    graph = graph_of(text)
    fuse = Fuse(**options)
    fuse.run(graph)
    verify(graph)
    return described(graph), fuse


def described(graph: Graph) -> list[str]:
    found = []
    for node in graph.ordered():
        if node.op == "fused":
            inner = " ".join(n.op for n in node.regions[0].ordered() if n.op != "constant")
            found.append(f"{node.attrs['kind']}: {inner}")
        elif node.op != "constant":
            found.append(node.op)
    return found


def test_elementwise_chain_with_scalars():
    check("fuse", """(%x: f32[N, 4], %b: f32[4]) {
        %half: f32[] = constant {value = 0.5}
        %a: f32[N, 4] = mul(%x, %half)
        %c: f32[N, 4] = add(%a, %b)
        %y: f32[N, 4] = relu(%c)
        return %y
    }""", """(%x: f32[N, 4], %b: f32[4]) {
        %y: f32[N, 4] = fused(%x, %b) {kind = "elementwise"}
        region fused(%p: f32[N, 4], %q: f32[4]) {
          %half: f32[] = constant {value = 0.5}
          %a: f32[N, 4] = mul(%p, %half)
          %c: f32[N, 4] = add(%a, %q)
          %y: f32[N, 4] = relu(%c)
          return %y
        }
        return %y
    }""")


def test_a_lone_node_stays_unless_constants_go_with_it():
    check("fuse", """(%x: f32[4], %z: f32[4]) {
        %a: f32[4] = add(%x, %z)
        return %a
    }""")
    assert groups("""(%x: f32[4]) {
        %two: f32[1] = constant {value = [2.0]}
        %a: f32[4] = mul(%x, %two)
        return %a
    }""")[0] == ["elementwise: mul"]


CONVOLUTION = """(%x: f32[1, 3, 8, 8], %w: f32[4, 3, 3, 3], %b: f32[1, 4, 1, 1],
                  %r: f32[1, 4, 6, 6]) {
    %c: f32[1, 4, 6, 6] = conv(%x, %w)
    %d: f32[1, 4, 6, 6] = add(%c, %b)
"""


def test_an_epilogue():
    found, fuse = groups(CONVOLUTION + """
        %e: f32[1, 4, 6, 6] = add(%d, %r)
        %f: f32[1, 4, 6, 6] = sigmoid(%e)
        %y: f32[1, 4, 6, 6] = mul(%e, %f)
        return %y
    }""")
    assert found == ["contraction: conv add add sigmoid mul"]
    assert "conv takes add, add, sigmoid, mul" in fuse.report


def test_an_epilogue_ends_where_a_second_result_is_needed():
    found, fuse = groups(CONVOLUTION + """
        %e: f32[1, 4, 6, 6] = relu(%d)
        %f: f32[1, 4, 6, 6] = add(%d, %r)
        return %e, %f
    }""")
    assert found[0] == "contraction: conv add"
    assert sorted(found[1:]) == ["add", "relu"]
    assert "conv leaves" in fuse.report


def test_a_contraction_takes_no_prologue_unless_told():
    text = """(%x: f16[2, 4], %w: f32[4, 3]) {
        %c: f32[2, 4] = cast(%x) {to = f32}
        %y: f32[2, 3] = matmul(%c, %w)
        return %y
    }"""
    assert groups(text)[0] == ["cast", "matmul"]
    assert groups(text, prologue=True)[0] == ["contraction: cast matmul"]


def test_operands_of_an_epilogue_are_computed_in_it():
    assert groups("""(%x: f32[2, 4], %w: f32[4, 3], %r: f32[2, 3], %t: f32[3, 2]) {
        %m: f32[2, 3] = matmul(%x, %w)
        %g: f32[2, 3] = tanh(%r)
        %u: f32[2, 3] = transpose(%t) {perm = (1, 0)}
        %a: f32[2, 3] = mul(%m, %g)
        %y: f32[2, 3] = add(%a, %u)
        return %y
    }""")[0] == ["transpose", "contraction: matmul tanh mul add"]


def test_reductions_take_what_is_before_and_after():
    assert groups("""(%x: f32[N, 4, 8], %m: f32[N, 1, 8]) {
        %eps: f32[] = constant {value = 0.5}
        %a: f32[N, 4, 8] = sub(%x, %m)
        %b: f32[N, 4, 8] = exp(%a)
        %t: f32[4, N, 8] = transpose(%b) {perm = (1, 0, 2)}
        %s: f32[4, N] = reduce_sum(%t) {axes = (2,)}
        %c: f32[4, N] = add(%s, %eps)
        %y: f32[4, N] = log(%c)
        return %y
    }""")[0] == ["reduction: sub exp transpose reduce_sum add log"]


def test_two_reductions_are_two_kernels():
    assert groups("""(%x: f32[4, 8]) {
        %a: f32[4, 8] = exp(%x)
        %r: f32[4] = reduce_sum(%a) {axes = (1,)}
        %s: f32[] = reduce_max(%r) {axes = (0,)}
        return %s
    }""")[0] == ["reduction: exp reduce_sum", "reduce_max"]


def test_rows_take_elementwise_nodes_of_their_shape():
    assert groups("""(%x: f32[2, 4, 8], %m: f32[1, 1, 8], %s: f32[], %v: f32[8, 4, 2]) {
        %t: f32[2, 4, 8] = transpose(%v) {perm = (2, 1, 0)}
        %a: f32[2, 4, 8] = mul(%x, %s)
        %b: f32[2, 4, 8] = add(%a, %m)
        %c: f32[2, 4, 8] = add(%b, %t)
        %p: f32[2, 4, 8] = softmax(%c) {axis = 2}
        %y: f32[2, 4, 8] = mul(%p, %x)
        return %y
    }""")[0] == ["transpose", "row: mul add add softmax mul"]


def test_work_is_not_repeated_for_every_row():
    found, fuse = groups("""(%x: f32[64, 64], %v: f32[64]) {
        %e: f32[64] = exp(%v)
        %n: f32[64] = neg(%v)
        %a: f32[64, 64] = mul(%x, %e)
        %y: f32[64, 64] = add(%a, %n)
        return %y
    }""")
    assert found == ["exp", "elementwise: neg mul add"]
    assert "exp stays out of the kernel of add: it would be computed 64 times" in fuse.report


def test_cheap_nodes_are_copied_into_their_users():
    text = """(%x: f16[8, 8]) {
        %c: f32[8, 8] = cast(%x) {to = f32}
        %r: f32[8] = reduce_sum(%c) {axes = (1,)}
        %s: f32[8] = reduce_max(%c) {axes = (0,)}
        return %r, %s
    }"""
    assert groups(text)[0] == ["reduction: cast reduce_sum", "reduction: cast reduce_max"]
    expensive = text.replace("cast(%x) {to = f32}", "tanh(%x)").replace("f16", "f32")
    assert groups(expensive)[0] == ["tanh", "reduce_sum", "reduce_max"]


def test_results_of_one_shape_share_a_kernel():
    assert groups("""(%x: f32[8, 8]) {
        %a: f32[8, 8] = exp(%x)
        %b: f32[8, 8] = neg(%a)
        %c: f32[8, 8] = relu(%a)
        return %a, %b, %c
    }""")[0] == ["elementwise: exp neg relu"]


def test_no_group_that_leaves_and_comes_back():
    """exp and add may not share a kernel: the product is between them."""
    found, _ = groups("""(%x: f32[8, 8], %w: f32[8, 8]) {
        %a: f32[8, 8] = exp(%x)
        %m: f32[8, 8] = matmul(%a, %w)
        %b: f32[8, 8] = tanh(%m)
        %s: f32[8] = reduce_sum(%b) {axes = (1,)}
        %y: f32[8, 8] = add(%a, %s)
        return %y, %b
    }""")
    assert found == ["exp", "contraction: matmul tanh", "reduce_sum", "add"]


def test_views_cost_nothing():
    found, fuse = groups("""(%x: f32[2, 3, 4], %w: f32[12, 5]) {
        %a: f32[2, 3, 4] = relu(%x)
        %b: f32[2, 3, 4] = exp(%a)
        %c: f32[2, 12] = reshape(%b) {shape = (2, 12)}
        %m: f32[2, 5] = matmul(%c, %w)
        %d: f32[2, 1, 5] = reshape(%m) {shape = (2, 1, 5)}
        %y: f32[2, 6, 5] = expand(%d) {shape = (2, 6, 5)}
        %z: f32[2, 6, 5] = exp(%y)
        return %z
    }""")
    assert found == ["elementwise: relu exp", "reshape", "matmul", "reshape",
                     "elementwise: expand exp"]
    assert "view" in fuse.report


def test_a_reshape_between_fused_nodes_is_an_index():
    assert groups("""(%x: f32[2, 12], %s: f32[4]) {
        %a: f32[2, 12] = relu(%x)
        %b: f32[2, 3, 4] = reshape(%a) {shape = (2, 3, 4)}
        %y: f32[2, 3, 4] = add(%b, %s)
        return %y
    }""")[0] == ["elementwise: relu reshape add"]
    # Merging axes would divide indices: two kernels, and a view between them.
    assert groups("""(%x: f32[2, 3, 4], %s: f32[12]) {
        %a: f32[2, 3, 4] = relu(%x)
        %b: f32[2, 12] = reshape(%a) {shape = (2, 12)}
        %y: f32[2, 12] = add(%b, %s)
        return %y
    }""")[0] == ["relu", "reshape", "add"]


def test_concats_write_part_by_part():
    text = """(%x: f32[2, 4], %z: f32[2, 4]) {
        %a: f32[2, 4] = relu(%x)
        %b: f32[2, 4] = tanh(%z)
        %c: f32[2, 8] = concat(%a, %b) {axis = 1}
        return %c
    }"""
    assert groups(text)[0] == ["elementwise: relu tanh concat"]


@pytest.mark.parametrize(("shape", "axis", "inside"), [
    ("64, 64", 1, False),   # every element would choose
    ("64, 64", 0, True),    # a row chooses
    ("4, 4", 1, True),      # small
])
def test_concats_inside_a_kernel_choose_per_row(shape, axis, inside):
    rows, columns = map(int, shape.split(", "))
    wide = f"{2 * rows}, {columns}" if axis == 0 else f"{rows}, {2 * columns}"
    found, _ = groups(f"""(%x: f32[{shape}], %z: f32[{shape}]) {{
        %c: f32[{wide}] = concat(%x, %z) {{axis = {axis}}}
        %y: f32[{wide}] = relu(%c)
        return %y
    }}""")
    assert found == (["elementwise: concat relu"] if inside else ["concat", "relu"])


def test_control_and_sources_stay_outside():
    assert groups("""(%x: f32[N], %k: i64[1]) {
        bind(%k) {symbols = (d1,)}
        %i: i64[N] = iota() {size = N}
        %j: f32[N] = cast(%i) {to = f32}
        %a: f32[N] = add(%x, %j)
        %t: f32[2], %u: i64[2] = topk(%a) {k = 2, axis = 0}
        %e: f32[d1, 2] = expand(%t) {shape = (d1, 2)}
        %y: f32[d1, 2] = relu(%e)
        return %y
    }""")[0] == ["bind", "iota", "elementwise: cast add", "topk", "elementwise: expand relu"]


def test_regions_are_fused_on_their_own():
    graph = graph_of("""(%c: bool[], %x: f32[8, 8]) {
        %a: f32[8, 8] = exp(%x)
        %r: f32[8, 8] = if(%c) {sizes = ()} region then() {
          %p: f32[8, 8] = neg(%a)
          %q: f32[8, 8] = relu(%p)
          return %q
        } region orelse() {
          return %x
        }
        %y: f32[8, 8] = relu(%r)
        return %y
    }""")
    Fuse().run(graph)
    verify(graph)
    assert described(graph) == ["exp", "if", "relu"]
    inner = next(n for n in graph.nodes if n.op == "if").regions[0]
    assert described(inner) == ["elementwise: neg relu"]


def test_limits():
    lines = "\n".join(f"%a{k + 1}: f32[8] = add(%a{k}, %x{k + 1})" for k in range(9))
    inputs = ", ".join(f"%{'a' if k == 0 else 'x'}{k}: f32[8]" for k in range(10))
    text = f"({inputs}) {{ {lines}\n return %a9 }}"
    assert groups(text)[0] == ["elementwise: " + " ".join(["add"] * 9)]
    assert groups(text, max_inputs=4)[0] == ["elementwise: add add add"] * 3
    assert groups(text, max_nodes=5)[0] == ["elementwise: add add add add",
                                            "elementwise: add add add add add"]


def test_known_contents_stay_known():
    graph = graph_of("""(%x: i64[2]) {
        %s: i64[2] = sizes() {dims = (3, 4)}
        %one: i64[] = constant {value = 1}
        %a: i64[2] = add(%s, %one)
        %y: i64[2] = mul(%a, %one)
        return %y
    }""")
    Fuse().run(graph)
    assert [int(e.value) for e in graph.outputs[0].content] == [4, 5]


@pytest.mark.parametrize("seed", range(60))
def test_fusion_keeps_the_meaning(seed):
    graph, inputs = random_graph(seed, steps=40)
    wanted = interpret(graph, inputs)
    Fuse().run(graph)
    verify(graph)
    for a, b in zip(wanted, interpret(graph, inputs), strict=True):
        # Group by group the same f32 operations on the same values: only sums may be reordered.
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_fusion_is_deterministic():
    def text() -> str:
        graph, _ = random_graph(4, steps=60)
        Fuse().run(graph)
        return print_graph(graph)

    assert text() == text()
