"""Operators written out in primitive ones are recognised."""

import math

import numpy as np
import pytest
from graph_texts import assert_same_results, check, graph_of

from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.graph.clone import clone_graph
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.base import Pipeline


def unary(text: str) -> str:
    """A graph of %x: f32[N, 8]; `%y = op(%x)` lines get types, plain numbers become constants."""
    lines, numbers = [], {}
    for line in text.strip().splitlines():
        name, right = line.strip().split(" = ")
        op, rest = right.split("(")
        operands = []
        for operand in rest.rstrip(")").split(", "):
            if not operand.startswith("%"):
                numbers[operand] = f"%n{len(numbers)}" if operand not in numbers else (
                    numbers[operand])
                operand = numbers[operand]
            operands.append(operand)
        lines.append(f"{name}: f32[N, 8] = {op}({', '.join(operands)})")
    constants = [f"{name}: f32[] = constant {{value = {number}}}"
                 for number, name in numbers.items()]
    return "(%x: f32[N, 8]) {\n" + "\n".join([*constants, *lines, "return %y"]) + "\n}"


@pytest.mark.parametrize(("found", "text"), [
    ('gelu(%x)', """%a = div(%x, 1.41421354)
        %b = erf(%a)
        %c = add(%b, 1.0)
        %d = mul(%x, %c)
        %y = mul(%d, 0.5)"""),
    ('gelu(%x)', """%h = mul(%x, 0.5)
        %a = mul(%x, 0.707106769)
        %b = erf(%a)
        %c = add(%b, 1.0)
        %y = mul(%h, %c)"""),
    ('gelu(%x) {approximate = "tanh"}', """%s = mul(%x, %x)
        %t = mul(%s, %x)
        %a = mul(%t, 0.044715)
        %b = add(%x, %a)
        %c = mul(%b, 0.797884583)
        %d = tanh(%c)
        %e = add(%d, 1.0)
        %f = mul(%x, %e)
        %y = mul(%f, 0.5)"""),
    ('gelu(%x) {approximate = "tanh"}', """%s = mul(%x, %x)
        %a = mul(%s, 0.035677408)
        %b = add(%a, 0.797884583)
        %c = mul(%x, %b)
        %d = tanh(%c)
        %e = add(%d, 1.0)
        %g = mul(%x, 0.5)
        %y = mul(%g, %e)"""),
    ('silu(%x)', """%a = sigmoid(%x)
        %y = mul(%x, %a)"""),
    ('silu(%x)', """%a = neg(%x)
        %b = exp(%a)
        %c = add(%b, 1.0)
        %y = div(%x, %c)"""),
    ('mish(%x)', """%a = softplus(%x)
        %b = tanh(%a)
        %y = mul(%x, %b)"""),
    ('hard_swish(%x)', """%a = add(%x, 3.0)
        %b = relu(%a)
        %c = min(%b, 6.0)
        %d = mul(%x, %c)
        %y = div(%d, 6.0)"""),
    ('hard_sigmoid(%x) {alpha = 0.16666666666666666}', """%a = add(%x, 3.0)
        %b = max(%a, 0.0)
        %c = min(%b, 6.0)
        %y = div(%c, 6.0)"""),
])
def test_activation_functions(found, text):
    check("recognise", unary(text), f"(%x: f32[N, 8]) {{ %y: f32[N, 8] = {found} return %y }}")


@pytest.mark.parametrize("text", [
    # Another constant, another function.
    """%a = mul(%x, 0.7)
        %b = erf(%a)
        %c = add(%b, 1.0)
        %d = mul(%x, %c)
        %y = mul(%d, 0.5)""",
    # x * sigmoid(1.702 * x)
    """%a = mul(%x, 1.702)
        %b = sigmoid(%a)
        %y = mul(%x, %b)""",
    """%a = relu(%x)
        %y = min(%a, 6.0)""",
])
def test_other_functions_stay(text):
    check("recognise", unary(text))


def test_a_part_that_something_else_uses_stays():
    check("recognise", """(%x: f32[4]) {
        %a: f32[4] = sigmoid(%x)
        %y: f32[4] = mul(%x, %a)
        return %y, %a
    }""")


def test_softmax():
    check("recognise", """(%x: f32[N, 8]) {
        %m: f32[N, 1] = reduce_max(%x) {axes = (1,), keepdims = true}
        %d: f32[N, 8] = sub(%x, %m)
        %e: f32[N, 8] = exp(%d)
        %s: f32[N, 1] = reduce_sum(%e) {axes = (1,), keepdims = true}
        %y: f32[N, 8] = div(%e, %s)
        %z: f32[N, 8] = log(%y)
        return %y, %z
    }""", """(%x: f32[N, 8]) {
        %y: f32[N, 8] = softmax(%x) {axis = 1}
        %z: f32[N, 8] = log_softmax(%x) {axis = 1}
        return %y, %z
    }""")


@pytest.mark.parametrize("last", [
    "%r: f32[N, 1] = sqrt(%v)\n %n: f32[N, 8] = div(%d, %r)",
    "%r: f32[N, 1] = rsqrt(%v)\n %n: f32[N, 8] = mul(%r, %d)",
])
def test_layer_norm(last):
    check("recognise", f"""(%x: f32[N, 8], %w: f32[8], %b: f32[8]) {{
        %eps: f32[] = constant {{value = 0.001}}
        %m: f32[N, 1] = reduce_mean(%x) {{axes = (1,), keepdims = true}}
        %d: f32[N, 8] = sub(%x, %m)
        %q: f32[N, 8] = mul(%d, %d)
        %a: f32[N, 1] = reduce_mean(%q) {{axes = (1,), keepdims = true}}
        %v: f32[N, 1] = add(%a, %eps)
        {last}
        %s: f32[N, 8] = mul(%w, %n)
        %y: f32[N, 8] = add(%s, %b)
        return %y
    }}""", """(%x: f32[N, 8], %w: f32[8], %b: f32[8]) {
        %y: f32[N, 8] = layer_norm(%x, %w, %b) {axis = 1, epsilon = 0.0010000000474974513}
        return %y
    }""")


def test_layer_norm_over_other_axes_stays():
    check("recognise", """(%x: f32[N, 8, 3]) {
        %eps: f32[] = constant {value = 0.001}
        %m: f32[N, 1, 3] = reduce_mean(%x) {axes = (1,), keepdims = true}
        %d: f32[N, 8, 3] = sub(%x, %m)
        %q: f32[N, 8, 3] = mul(%d, %d)
        %a: f32[N, 1, 3] = reduce_mean(%q) {axes = (1,), keepdims = true}
        %v: f32[N, 1, 3] = add(%a, %eps)
        %r: f32[N, 1, 3] = rsqrt(%v)
        %y: f32[N, 8, 3] = mul(%d, %r)
        return %y
    }""")


def test_rms_norm_of_f16_computed_in_f32():
    check("recognise", """(%h: f16[N, 8], %w: f16[8]) {
        %eps: f32[] = constant {value = 1e-05}
        %x: f32[N, 8] = cast(%h) {to = f32}
        %q: f32[N, 8] = mul(%x, %x)
        %a: f32[N, 1] = reduce_mean(%q) {axes = (1,), keepdims = true}
        %v: f32[N, 1] = add(%a, %eps)
        %r: f32[N, 1] = rsqrt(%v)
        %n: f32[N, 8] = mul(%x, %r)
        %c: f16[N, 8] = cast(%n) {to = f16}
        %y: f16[N, 8] = mul(%w, %c)
        return %y
    }""", """(%h: f16[N, 8], %w: f16[8]) {
        %y: f16[N, 8] = rms_norm(%h, %w) {axis = 1, epsilon = 9.999999747378752e-06}
        return %y
    }""", rtol=2e-3, atol=2e-3)


# Attention ----------------------------------------------------------------------------------------

PIPELINE = Pipeline.parse("fold,canonicalise,fold,cse,dce,recognise{attention=true},"
                          "canonicalise,dce")


class Heads:
    """Builds q, k, v and attention in one of the ways of exporters."""

    def __init__(self, symbolic: bool, shared: int = 0, dtype=dt.f32):
        self.g = Graph()
        self.dtype = dtype
        self.rows, self.keys = (size("S"), size("T")) if symbolic else (5, 7)
        if symbolic:
            self.g.symbols = {"S": (2, 6), "T": (6, 9)}
        heads = 4
        self.q = self.g.add_input("q", TensorType(dtype, (2, heads, self.rows, 8)))
        self.k = self.g.add_input("k", TensorType(dtype, (2, shared or heads, self.keys, 8)))
        self.v = self.g.add_input("v", TensorType(dtype, (2, shared or heads, self.keys, 6)))

    def number(self, x) -> Value:
        return self.g.constant(x, dtype=self.dtype)

    def swapped(self, k: Value) -> Value:
        return self.g.add("transpose", [k], {"perm": (0, 1, 3, 2)})

    def finish(self, value: Value) -> list:
        """Runs the pipeline; returns the nodes that are left but for constants."""
        self.g.outputs = [value]
        before = clone_graph(self.g)
        PIPELINE.run(self.g)
        verify(self.g)
        seed = int(np.random.default_rng().integers(1 << 31))
        loose = {} if self.dtype is dt.f32 else {"rtol": 5e-3, "atol": 5e-3}
        assert_same_results(before, self.g, seed, **loose)
        return [n for n in self.g.ordered() if n.op != "constant"]


@pytest.mark.parametrize("symbolic", [False, True])
def test_plain_attention(symbolic):
    h = Heads(symbolic)
    s = h.g.add("matmul", [h.q, h.swapped(h.k)])
    s = h.g.add("div", [s, h.number(math.sqrt(8))])
    y = h.g.add("matmul", [h.g.add("softmax", [s], {"axis": -1}), h.v])
    (node,) = h.finish(y)
    assert node.op == "attention" and node.inputs == [h.q, h.k, h.v]
    assert node.attrs["scale"] == pytest.approx(8 ** -0.5)


def test_scales_on_the_operands_and_a_bias():
    h = Heads(True)
    bias = h.g.add_input("bias", TensorType(dt.f32, (2, 1, 1, h.keys)))
    root = h.number(8 ** -0.25)
    k = h.g.add("mul", [h.swapped(h.k), root])
    s = h.g.add("matmul", [h.g.add("mul", [h.q, root]), k])
    p = h.g.add("softmax", [h.g.add("add", [s, bias])], {"axis": 3})
    (node,) = h.finish(h.g.add("matmul", [p, h.v]))
    assert node.op == "attention" and node.inputs[3] is bias
    assert node.attrs["scale"] == pytest.approx(8 ** -0.5)


def test_constant_causal_mask():
    h = Heads(False)
    mask = np.where(np.tri(5, 7, 2, dtype=bool), 0, -np.inf).astype(np.float32)
    s = h.g.add("add", [h.g.add("matmul", [h.q, h.swapped(h.k)]), h.number(mask)])
    (node,) = h.finish(h.g.add("matmul", [h.g.add("softmax", [s], {"axis": 3}), h.v]))
    assert node.attrs["causal"] and node.attrs["offset"] == 2 and len(node.inputs) == 3


def test_causal_mask_of_ones_and_zeros():
    """As exporters write it: a triangle of ones, turned into a bias."""
    h = Heads(True)
    g = h.g
    rows = g.add("reshape", [g.add("iota", (), {"size": h.rows})], {"shape": (h.rows, 1)})
    ones = g.add("select", [g.add("le", [g.add("iota", (), {"size": h.keys}), rows]),
                            h.number(1), h.number(0)])
    bias = g.add("select", [g.add("eq", [ones, h.number(0)]), h.number(-np.inf), h.number(0)])
    s = g.add("add", [g.add("matmul", [h.q, h.swapped(h.k)]), bias])
    (node,) = h.finish(g.add("matmul", [g.add("softmax", [s], {"axis": 3}), h.v]))
    assert node.attrs["causal"] and node.attrs["offset"] == 0 and len(node.inputs) == 3


@pytest.mark.parametrize("also", [False, True])
def test_symbolic_causal_mask(also):
    h = Heads(True)
    g = h.g
    rows = g.add("reshape", [g.add("iota", (), {"size": h.rows})], {"shape": (1, 1, h.rows, 1)})
    keys = g.add("reshape", [g.add("iota", (), {"size": h.keys})], {"shape": (1, 1, 1, h.keys)})
    mask = g.add("le", [keys, rows])
    if also:
        padding = g.add_input("padding", TensorType(dt.bool_, (2, 1, 1, h.keys)))
        mask = g.add("and", [mask, padding])
    s = g.add("matmul", [h.q, h.swapped(h.k)])
    s = g.add("select", [mask, s, h.number(-np.inf)])
    p = g.add("softmax", [s], {"axis": 3, "masked": True})
    (node,) = h.finish(g.add("matmul", [p, h.v]))
    assert node.attrs["causal"] and node.attrs["masked"] and node.attrs["offset"] == 0
    assert len(node.inputs) == (5 if also else 3)


@pytest.mark.parametrize("dtype", [dt.f32, dt.f16])
def test_heads_folded_into_rows(dtype):
    h = Heads(True, shared=2, dtype=dtype)
    g = h.g
    q = g.add("reshape", [h.q], {"shape": (2, 2, h.rows * 2, 8)})
    s = g.add("matmul", [q, h.swapped(h.k)], {"dtype": dt.f32})
    s = g.add("reshape", [s], {"shape": (2, 4, h.rows, h.keys)})
    s = g.add("mul", [s, g.constant(0.25, dtype=dt.f32)])
    s = g.add("mul", [g.add("tanh", [g.add("div", [s, g.constant(20, dtype=dt.f32)])]),
                      g.constant(20, dtype=dt.f32)])
    p = g.add("softmax", [s], {"axis": 3})
    if dtype is not dt.f32:
        p = g.add("cast", [p], {"to": dtype})
    p = g.add("reshape", [p], {"shape": (2, 2, h.rows * 2, h.keys)})
    y = g.add("reshape", [g.add("matmul", [p, h.v])], {"shape": (2, 4, h.rows, 6)})
    nodes = h.finish(y)
    if dtype is not dt.f32:
        assert "attention" not in {n.op for n in nodes}
        return
    (node,) = nodes
    assert node.op == "attention" and node.inputs == [h.q, h.k, h.v]
    assert node.attrs["softcap"] == 20


@pytest.mark.parametrize("shared", [1, 2])
def test_repeated_heads(shared):
    h = Heads(True, shared=shared)
    g = h.g

    def repeated(x: Value) -> Value:
        b, hk, t, d = x.shape
        y = g.add("reshape", [x], {"shape": (b, hk, 1, t, d)})
        y = g.add("expand", [y], {"shape": (b, hk, 4 // shared, t, d)})
        return g.add("reshape", [y], {"shape": (b, 4, t, d)})

    s = g.add("matmul", [h.q, h.swapped(repeated(h.k))])
    y = g.add("matmul", [g.add("softmax", [s], {"axis": 3}), repeated(h.v)])
    (node,) = h.finish(y)
    assert node.op == "attention" and node.inputs == [h.q, h.k, h.v]


def test_heads_in_the_batch():
    g = graph_of("""(%q: f32[8, 5, 4], %k: f32[8, 7, 4], %v: f32[8, 7, 3]) {
        %t: f32[8, 4, 7] = transpose(%k) {perm = (0, 2, 1)}
        %s: f32[8, 5, 7] = matmul(%q, %t)
        %p: f32[8, 5, 7] = softmax(%s) {axis = 2}
        %y: f32[8, 5, 3] = matmul(%p, %v)
        return %y
    }""")
    before = clone_graph(g)
    PIPELINE.run(g)
    assert_same_results(before, g, 1)
    assert [n.op for n in g.ordered()] == ["reshape"] * 3 + ["attention", "reshape"]


@pytest.mark.parametrize("hidden", [False, True])
def test_guard_against_rows_without_keys(hidden):
    """As torch exports it: probabilities that are NaN become 0."""
    h = Heads(True)
    g = h.g
    s = g.add("matmul", [h.q, h.swapped(h.k)])
    if hidden:
        mask = g.add_input("mask", TensorType(dt.bool_, (2, 1, h.rows, 1)))
        s = g.add("select", [mask, s, h.number(-np.inf)])
    p = g.add("softmax", [s], {"axis": 3})
    p = g.add("select", [g.add("isnan", [p]), h.number(0), p])
    (node,) = h.finish(g.add("matmul", [p, h.v]))
    assert node.op == "attention" and node.attrs["guarded"]


def test_split_heads_and_transposed_result():
    g = graph_of("""(%q: f32[2, 5, 12], %k: f32[2, 7, 12], %v: f32[2, 7, 12]) {
        %q4: f32[2, 5, 3, 4] = reshape(%q) {shape = (2, 5, 3, 4)}
        %k4: f32[2, 7, 3, 4] = reshape(%k) {shape = (2, 7, 3, 4)}
        %v4: f32[2, 7, 3, 4] = reshape(%v) {shape = (2, 7, 3, 4)}
        %qt: f32[2, 3, 5, 4] = transpose(%q4) {perm = (0, 2, 1, 3)}
        %kt: f32[2, 3, 4, 7] = transpose(%k4) {perm = (0, 2, 3, 1)}
        %vt: f32[2, 3, 7, 4] = transpose(%v4) {perm = (0, 2, 1, 3)}
        %s: f32[2, 3, 5, 7] = matmul(%qt, %kt)
        %p: f32[2, 3, 5, 7] = softmax(%s) {axis = 3}
        %y: f32[2, 3, 5, 4] = matmul(%p, %vt)
        %t: f32[2, 5, 3, 4] = transpose(%y) {perm = (0, 2, 1, 3)}
        %r: f32[2, 5, 12] = reshape(%t) {shape = (2, 5, 12)}
        return %r
    }""")
    before = clone_graph(g)
    PIPELINE.run(g)
    verify(g)
    assert_same_results(before, g, 1)
    (node,) = [n for n in g.nodes if n.op == "attention"]
    assert node.attrs["perm"] == (0, 2, 1, 3)
    assert [n.op for n in g.ordered()].count("transpose") == 3


def test_broadcast_batches_stay():
    g = graph_of("""(%q: f32[1, 3, 5, 4], %k: f32[2, 3, 4, 7], %v: f32[2, 3, 7, 4]) {
        %kt: f32[2, 3, 7, 4] = transpose(%k) {perm = (0, 1, 3, 2)}
        %kk: f32[2, 3, 4, 7] = transpose(%kt) {perm = (0, 1, 3, 2)}
        %s: f32[2, 3, 5, 7] = matmul(%q, %kk)
        %p: f32[2, 3, 5, 7] = softmax(%s) {axis = 3}
        %y: f32[2, 3, 5, 4] = matmul(%p, %v)
        return %y
    }""")
    before = clone_graph(g)
    Pipeline.parse("recognise{attention=true}").run(g)
    assert_same_results(before, g, 1)
    assert "attention" not in {n.op for n in g.nodes}


def test_scores_that_are_returned_stay():
    h = Heads(False)
    s = h.g.add("matmul", [h.q, h.swapped(h.k)])
    p = h.g.add("softmax", [s], {"axis": -1})
    h.g.outputs = [h.g.add("matmul", [p, h.v]), p]
    PIPELINE.run(h.g)
    assert "attention" not in {n.op for n in h.g.nodes}


def test_bytes_within_a_function_are_left_alone():
    """x * sigmoid of what x is after 8 bits: neither is a function of the other alone."""
    g = Graph()
    x = g.add_input("x", TensorType(dt.f32, (3, 5)))
    number = {n: g.constant(np.float32(n)) for n in (0.25, 4, 100)}
    small = g.add("requantize", [x, number[4], number[100]], {"to": dt.u8})
    wide = g.add("dequantize", [small, g.constant(np.uint8(100)), number[0.25]])
    g.outputs.append(g.add("mul", [wide, g.add("sigmoid", [g.add("mul", [wide, number[4]])])]))
    Pipeline.parse("recognise").run(g)
    assert [n.op for n in g.ordered() if n.op != "constant"] == [
        "requantize", "dequantize", "mul", "sigmoid", "mul"]
