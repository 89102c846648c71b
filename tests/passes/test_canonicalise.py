"""Local simplifications, each as text before and after."""

import pytest
from graph_texts import check

# name: (body before, body after or None); %x: f32[N, 4], %k: i64[4], %c: bool[N, 4]
CASES = {
    "neutral elements": ("""
        %one: f32[1, 1] = constant {value = [1.0]}
        %zero: f32[] = constant {value = 0.0}
        %a: f32[N, 4] = mul(%one, %x)
        %b: f32[N, 4] = add(%a, %zero)
        %y: f32[N, 4] = div(%b, %one)""", "", "%x"),
    "a neutral element that broadcasts": ("""
        %one: f32[3, 1, 1] = constant {value = splat 1.0}
        %y: f32[3, N, 4] = mul(%x, %one)""", """
        %y: f32[3, N, 4] = expand(%x) {shape = (3, N, 4)}""", "%y"),
    "subtraction of a constant": ("""
        %two: f32[4] = constant {value = [2.0, 1.0, 0.0, -1.0]}
        %y: f32[N, 4] = sub(%x, %two)""", """
        %two: f32[4] = constant {value = [-2.0, -1.0, -0.0, 1.0]}
        %y: f32[N, 4] = add(%x, %two)""", "%y"),
    "division by a power of two": ("""
        %eight: f32[] = constant {value = 8.0}
        %y: f32[N, 4] = div(%x, %eight)""", """
        %eight: f32[] = constant {value = 0.125}
        %y: f32[N, 4] = mul(%x, %eight)""", "%y"),
    "division by three stays": ("""
        %three: f32[] = constant {value = 3.0}
        %y: f32[N, 4] = div(%x, %three)""", None, "%y"),
    "square and root": ("""
        %two: f32[] = constant {value = 2.0}
        %half: f32[] = constant {value = -0.5}
        %a: f32[N, 4] = pow(%x, %two)
        %y: f32[N, 4] = pow(%a, %half)""", """
        %a: f32[N, 4] = mul(%x, %x)
        %y: f32[N, 4] = rsqrt(%a)""", "%y"),
    "reciprocal of a root": ("""
        %one: f32[] = constant {value = 1.0}
        %a: f32[N, 4] = exp(%x)
        %b: f32[N, 4] = sqrt(%a)
        %y: f32[N, 4] = div(%one, %b)""", """
        %a: f32[N, 4] = exp(%x)
        %y: f32[N, 4] = rsqrt(%a)""", "%y"),
    "negations": ("""
        %a: f32[N, 4] = neg(%x)
        %b: f32[N, 4] = neg(%a)
        %m: f32[] = constant {value = -1.0}
        %d: f32[N, 4] = mul(%b, %m)
        %y: f32[N, 4] = add(%x, %d)""", """
        %y: f32[N, 4] = sub(%x, %x)""", "%y"),
    "comparison turned round": ("""
        %one: f32[] = constant {value = 1.0}
        %y: bool[N, 4] = lt(%one, %x)""", """
        %one: f32[] = constant {value = 1.0}
        %y: bool[N, 4] = gt(%x, %one)""", "%y"),
    "clip": ("""
        %six: f32[] = constant {value = 6.0}
        %five: f32[] = constant {value = 5.0}
        %zero: f32[] = constant {value = 0.0}
        %a: f32[N, 4] = max(%x, %zero)
        %b: f32[N, 4] = min(%a, %six)
        %y: f32[N, 4] = min(%b, %five)""", """
        %five: f32[] = constant {value = 5.0}
        %a: f32[N, 4] = relu(%x)
        %y: f32[N, 4] = min(%a, %five)""", "%y"),
    "sums of integers, not of floats": ("""
        %one: i64[] = constant {value = 1}
        %two: i64[] = constant {value = 2}
        %three: f32[] = constant {value = 3.0}
        %a: i64[4] = add(%k, %one)
        %y: i64[4] = add(%a, %two)
        %b: f32[N, 4] = add(%x, %three)
        %z: f32[N, 4] = add(%b, %three)""", """
        %three: i64[] = constant {value = 3}
        %y: i64[4] = add(%k, %three)
        %s: f32[] = constant {value = 3.0}
        %b: f32[N, 4] = add(%x, %s)
        %z: f32[N, 4] = add(%b, %s)""", "%y, %z"),
    "selection": ("""
        %yes: bool[] = constant {value = true}
        %a: f32[N, 4] = neg(%x)
        %b: f32[N, 4] = select(%yes, %a, %x)
        %n: bool[N, 4] = not(%c)
        %y: f32[N, 4] = select(%n, %b, %x)""", """
        %a: f32[N, 4] = neg(%x)
        %y: f32[N, 4] = select(%c, %x, %a)""", "%y"),
    "which was selected": ("""
        %one: f32[] = constant {value = 1.0}
        %zero: f32[] = constant {value = 0.0}
        %a: f32[N, 4] = select(%c, %one, %zero)
        %b: bool[N, 4] = eq(%a, %zero)
        %y: f32[N, 4] = select(%b, %zero, %x)
        %z: bool[N, 4] = cast(%a) {to = bool}""", """
        %zero: f32[] = constant {value = 0.0}
        %y: f32[N, 4] = select(%c, %x, %zero)""", "%y, %c"),
    "casts that lose nothing": ("""
        %a: f64[N, 4] = cast(%x) {to = f64}
        %y: f16[N, 4] = cast(%a) {to = f16}
        %z: f32[N, 4] = cast(%a) {to = f32}""", """
        %y: f16[N, 4] = cast(%x) {to = f16}""", "%y, %x"),
    "casts that lose stay": ("""
        %a: f16[N, 4] = cast(%x) {to = f16}
        %y: f32[N, 4] = cast(%a) {to = f32}
        %b: f64[4] = cast(%k) {to = f64}
        %z: i32[4] = cast(%b) {to = i32}""", None, "%y, %z"),
    "reshapes": ("""
        %a: f32[N, 1, 4] = reshape(%x) {shape = (N, 1, 4)}
        %b: f32[1, N, 4] = reshape(%a) {shape = (1, N, 4)}
        %y: f32[N, 4] = reshape(%b) {shape = (N, 4)}""", "", "%x"),
    "transposes": ("""
        %a: f32[4, N] = transpose(%x) {perm = (1, 0)}
        %b: f32[N, 4] = transpose(%a) {perm = (1, 0)}
        %d: f32[N, 1, 4] = reshape(%b) {shape = (N, 1, 4)}
        %y: f32[1, N, 4] = transpose(%d) {perm = (1, 0, 2)}""", """
        %y: f32[1, N, 4] = reshape(%x) {shape = (1, N, 4)}""", "%y"),
    "expands": ("""
        %a: f32[2, N, 4] = expand(%x) {shape = (2, N, 4)}
        %b: f32[3, 2, N, 4] = expand(%a) {shape = (3, 2, N, 4)}
        %one: f32[1, 4] = reshape(%k4) {shape = (1, 4)}
        %w: f32[N, 4] = expand(%one) {shape = (N, 4)}
        %z: f32[N, 4] = add(%x, %w)""", """
        %b: f32[3, 2, N, 4] = expand(%x) {shape = (3, 2, N, 4)}
        %z: f32[N, 4] = add(%x, %k4)""", "%b, %z"),
    "an expand sinks": ("""
        %a: f32[2, N, 4] = expand(%x) {shape = (2, N, 4)}
        %y: f32[2, N, 4] = exp(%a)""", """
        %a: f32[N, 4] = exp(%x)
        %y: f32[2, N, 4] = expand(%a) {shape = (2, N, 4)}""", "%y"),
    "slices": ("""
        %a: f32[N, 3] = slice(%x) {starts = (0, 1), sizes = (N, 3), steps = (1, 1)}
        %y: f32[N, 2] = slice(%a) {starts = (0, 2), sizes = (N, 2), steps = (1, -2)}
        %z: f32[N, 4] = slice(%x) {starts = (0, 0), sizes = (N, 4), steps = (1, 1)}""", """
        %y: f32[N, 2] = slice(%x) {starts = (0, 3), sizes = (N, 2), steps = (1, -2)}""", "%y, %x"),
    "a slice of one operand of a concat": ("""
        %e: f32[N, 4] = exp(%x)
        %a: f32[N, 8] = concat(%x, %e) {axis = 1}
        %y: f32[N, 2] = slice(%a) {starts = (0, 5), sizes = (N, 2), steps = (1, 1)}
        %z: f32[N, 4] = slice(%a) {starts = (0, 2), sizes = (N, 4), steps = (1, 1)}""", """
        %e: f32[N, 4] = exp(%x)
        %y: f32[N, 2] = slice(%e) {starts = (0, 1), sizes = (N, 2), steps = (1, 1)}
        %a: f32[N, 8] = concat(%x, %e) {axis = 1}
        %z: f32[N, 4] = slice(%a) {starts = (0, 2), sizes = (N, 4), steps = (1, 1)}""", "%y, %z"),
    "split and joined again": ("""
        %a: f32[N, 1] = slice(%x) {starts = (0, 0), sizes = (N, 1), steps = (1, 1)}
        %b: f32[N, 3] = slice(%x) {starts = (0, 1), sizes = (N, 3), steps = (1, 1)}
        %y: f32[N, 4] = concat(%a, %b) {axis = 1}""", "", "%x"),
    "concats": ("""
        %e: f32[N, 4] = exp(%x)
        %a: f32[N, 8] = concat(%x, %e) {axis = 1}
        %b: f32[N, 8] = concat(%a) {axis = 1}
        %y: f32[N, 12] = concat(%b, %x) {axis = 1}""", """
        %e: f32[N, 4] = exp(%x)
        %y: f32[N, 12] = concat(%x, %e, %x) {axis = 1}""", "%y"),
    "pads": ("""
        %a: f32[(N + 1), 4] = pad(%x) {low = (1, 0), high = (0, 0)}
        %y: f32[(N + 1), 6] = pad(%a) {low = (0, 0), high = (0, 2)}
        %z: f32[N, 4] = pad(%x) {low = (0, 0), high = (0, 0), mode = "edge"}""", """
        %y: f32[(N + 1), 6] = pad(%x) {low = (1, 0), high = (0, 2)}""", "%y, %x"),
    "gather of known rows": ("""
        %r: i64[2] = constant {value = [-1, 1]}
        %a: f32[N, 2] = gather(%x, %r) {axis = 1}
        %i: i64[] = constant {value = -1}
        %y: f32[4] = gather(%x, %i) {axis = 0}""", """
        %a: f32[N, 2] = slice(%x) {starts = (0, 3), sizes = (N, 2), steps = (1, -2)}
        %b: f32[1, 4] = slice(%x) {starts = ((N - 1), 0), sizes = (1, 4), steps = (1, 1)}
        %y: f32[4] = reshape(%b) {shape = (4,)}""", "%a, %y"),
    "scatter of known rows": ("""
        %i: i64[2, 1] = constant {value = [1, 2]}
        %u: f32[4, 4] = expand(%k4) {shape = (4, 4)}
        %v: f32[2, 4] = expand(%k4) {shape = (2, 4)}
        %j: i64[2, 1] = constant {value = [2, 1]}
        %y: f32[4, 4] = scatter_nd(%u, %i, %v)
        %z: f32[4, 4] = scatter_nd(%u, %j, %v)""", """
        %i: i64[2, 1] = constant {value = [2, 1]}
        %u: f32[4, 4] = expand(%k4) {shape = (4, 4)}
        %v: f32[2, 4] = expand(%k4) {shape = (2, 4)}
        %a: f32[1, 4] = slice(%u) {starts = (0, 0), sizes = (1, 4), steps = (1, 1)}
        %b: f32[1, 4] = slice(%u) {starts = (3, 0), sizes = (1, 4), steps = (1, 1)}
        %y: f32[4, 4] = concat(%a, %v, %b) {axis = 0}
        %z: f32[4, 4] = scatter_nd(%u, %i, %v)""", "%y, %z"),
    "a reduction keeps its axes": ("""
        %a: f32[N] = reduce_max(%x) {axes = (1,)}
        %y: f32[N, 1] = reshape(%a) {shape = (N, 1)}""", """
        %y: f32[N, 1] = reduce_max(%x) {axes = (1,), keepdims = true}""", "%y"),
    "reductions": ("""
        %a: f32[N] = reduce_sum(%x) {axes = (1,)}
        %y: f32[] = reduce_sum(%a) {axes = (0,)}
        %b: f32[N, 1, 4] = reshape(%x) {shape = (N, 1, 4)}
        %z: f32[N, 4] = reduce_mean(%b) {axes = (1,)}""", """
        %y: f32[] = reduce_sum(%x) {axes = (0, 1)}""", "%y, %x"),
    "reduction of a transpose": ("""
        %a: f32[4, N] = transpose(%x) {perm = (1, 0)}
        %y: f32[4] = reduce_sum(%a) {axes = (1,)}""", """
        %y: f32[4] = reduce_sum(%x) {axes = (0,)}""", "%y"),
}


def text(body: str, outputs: str) -> str:
    return ("(%x: f32[N, 4], %k: i64[4], %c: bool[N, 4], %k4: f32[4])"
            f" {{ {body}\n return {outputs} }}")


@pytest.mark.parametrize("name", CASES)
def test_simplification(name):
    before, after, outputs = CASES[name]
    results = {"%x": "%y"} if outputs == "%x" else {}
    wanted = ", ".join(results.get(o, o) for o in outputs.split(", "))
    if outputs.endswith((", %x", ", %c")):
        wanted = outputs[:-2] + "%z"
    # N is at least 1: a row that is picked exists.
    sized = "graph main" + text(before, wanted).replace(") {", ") sizes {N: 1..6} {", 1)
    then = None if after is None else "graph main" + text(after, outputs).replace(
        ") {", ") sizes {N: 1..6} {", 1)
    check("canonicalise", sized, then)


QUANTISED = {
    "quantised before it is moved": ("""
        %t: f32[4, N] = transpose(%x) {perm = (1, 0)}
        %c: f32[8, N] = concat(%t, %w) {axis = 0}
        %y: i8[8, N] = quantize(%c, %s, %z) {to = i8}""", """
        %a: i8[N, 4] = quantize(%x, %s, %z) {to = i8}
        %t: i8[4, N] = transpose(%a) {perm = (1, 0)}
        %b: i8[4, N] = quantize(%w, %s, %z) {to = i8}
        %y: i8[8, N] = concat(%t, %b) {axis = 0}"""),
    "dequantised after it is moved": ("""
        %d: f32[N, 4] = dequantize(%q, %s)
        %y: f32[N, 2] = slice(%d) {starts = (0, 1), sizes = (N, 2), steps = (1, 1)}""", """
        %m: i8[N, 2] = slice(%q) {starts = (0, 1), sizes = (N, 2), steps = (1, 1)}
        %y: f32[N, 2] = dequantize(%m, %s)"""),
    "dequantised and quantised again": ("""
        %d: f32[N, 4] = dequantize(%q, %s)
        %r: f32[N, 2, 2] = reshape(%d) {shape = (N, 2, 2)}
        %y: i8[N, 2, 2] = quantize(%r, %s, %z) {to = i8}""", """
        %y: i8[N, 2, 2] = reshape(%q) {shape = (N, 2, 2)}"""),
    "quantised with another scale": ("""
        %d: f32[N, 4] = dequantize(%q, %s)
        %y: i8[N, 4] = quantize(%d, %s2, %z) {to = i8}""", None),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_data_moves_in_its_narrowest_type(name):
    def text(body: str) -> str:
        return f"""(%x: f32[N, 4], %w: f32[4, N], %q: i8[N, 4]) {{
            %s: f32[] = constant {{value = 0.1}}
            %s2: f32[] = constant {{value = 0.2}}
            %z: f32[] = constant {{value = 0.0}}
            {body}
            return %y, %s, %s2, %z
        }}"""

    before, after = QUANTISED[name]
    check("canonicalise", text(before), None if after is None else text(after))


@pytest.mark.parametrize(("shape", "perm", "target", "view", "after"), [
    # [N, C, H, W] as [N, C, H * W]: pixels are neighbours in [N, H, W, C] too.
    ("2, 4, 5, 3", (0, 3, 1, 2), "2, 3, 20", "2, 20, 3", (0, 2, 1)),
    ("2, 20, 3", (0, 2, 1), "2, 3, 4, 5", "2, 4, 5, 3", (0, 3, 1, 2)),
    ("N, 4, 1, 3", (0, 3, 1, 2), "N, 3, 4", "N, 4, 3", (0, 2, 1)),
    ("N, 6, 4", (2, 0, 1), "4, N * 6", "N * 6, 4", (1, 0)),
    # The heads of a row are no neighbours.
    ("2, 4, 5, 3", (0, 2, 1, 3), "2, 5, 12", None, None),
    ("2, 3, 4", (1, 0, 2), "4, 6", None, None),
])
def test_transposes_sink_below_reshapes(shape, perm, target, view, after):
    dims = shape.split(", ")
    turned = ", ".join(dims[p] for p in perm)
    before = f"""(%x: f32[{shape}]) {{
        %t: f32[{turned}] = transpose(%x) {{perm = {perm}}}
        %y: f32[{target}] = reshape(%t) {{shape = ({target})}}
        return %y
    }}"""
    then = None if view is None else f"""(%x: f32[{shape}]) {{
        %r: f32[{view}] = reshape(%x) {{shape = ({view})}}
        %y: f32[{target}] = transpose(%r) {{perm = {after}}}
        return %y
    }}"""
    check("canonicalise", before, then)


def test_shuffled_channels_are_a_concat_of_columns():
    before = """(%a: f32[N, 3], %b: f32[N, 3]) {
        %c: f32[N, 6] = concat(%a, %b) {axis = 1}
        %r: f32[N, 2, 3] = reshape(%c) {shape = (N, 2, 3)}
        %t: f32[N, 3, 2] = transpose(%r) {perm = (0, 2, 1)}
        %y: f32[N, 6] = reshape(%t) {shape = (N, 6)}
        return %y
    }"""
    check("canonicalise", before)
    check("canonicalise{interleave=true}", before, """(%a: f32[N, 3], %b: f32[N, 3]) {
        %p: f32[N, 3, 1] = reshape(%a) {shape = (N, 3, 1)}
        %q: f32[N, 3, 1] = reshape(%b) {shape = (N, 3, 1)}
        %c: f32[N, 3, 2] = concat(%p, %q) {axis = 2}
        %y: f32[N, 6] = reshape(%c) {shape = (N, 6)}
        return %y
    }""")


def test_padding_joins_a_convolution():
    check("canonicalise", """(%x: f32[N, 2, 5, 5], %w: f32[3, 2, 3, 3]) {
        %a: f32[N, 2, 7, 6] = pad(%x) {low = (0, 0, 1, 0), high = (0, 0, 1, 1)}
        %y: f32[N, 3, 6, 5] = conv(%a, %w) {low = (0, 1), high = (1, 0)}
        return %y
    }""", """(%x: f32[N, 2, 5, 5], %w: f32[3, 2, 3, 3]) {
        %y: f32[N, 3, 6, 5] = conv(%x, %w) {low = (1, 1), high = (2, 1)}
        return %y
    }""")


def test_a_reshape_after_a_product_moves_behind_elementwise_nodes():
    check("canonicalise", """(%x: f32[6, 4], %w: f32[4, 8], %b: f32[8]) {
        %m: f32[6, 8] = matmul(%x, %w)
        %r: f32[2, 3, 8] = reshape(%m) {shape = (2, 3, 8)}
        %a: f32[2, 3, 8] = add(%r, %b)
        %y: f32[2, 3, 8] = gelu(%a)
        return %y
    }""", """(%x: f32[6, 4], %w: f32[4, 8], %b: f32[8]) {
        %m: f32[6, 8] = matmul(%x, %w)
        %a: f32[6, 8] = add(%m, %b)
        %r: f32[6, 8] = gelu(%a)
        %y: f32[2, 3, 8] = reshape(%r) {shape = (2, 3, 8)}
        return %y
    }""")


def test_a_known_branch_is_taken():
    check("canonicalise", """(%x: f32[4]) {
        %c: bool[] = constant {value = false}
        %r: f32[4] = if(%c) {sizes = ()} region then() {
          return %x
        } region orelse() {
          %a: f32[4] = exp(%x)
          %b: f32[4] = relu(%a)
          return %b
        }
        return %r
    }""", """(%x: f32[4]) {
        %a: f32[4] = exp(%x)
        %b: f32[4] = relu(%a)
        return %b
    }""")
