"""If, Loop, Scan and sequences against ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from smelt.errors import InputError, ModelError
from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(HEAD + text)


def agree(proto: onnx.ModelProto, *cases: dict[str, np.ndarray]):
    """Interprets and compares; gives the graph."""
    graph = load_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(),
                                           providers=["CPUExecutionProvider"])
    for inputs in cases:
        wanted = session.run(None, {k: np.asarray(v) for k, v in inputs.items()})
        for mine, theirs in zip(interpret(graph, inputs), wanted, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)  # a few f32 roundings
    return graph


def ops(graph) -> list[str]:
    return [n.op for g in graph.walk_graphs() for n in g.nodes]


X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)

BRANCHES = """m (bool c, float[3, 4] x) => (float[a, b] y, float[3, 4] z) {
    d = Abs(x)
    y, z = If(c) <
        then_branch = one () => (float[3, 8] p, float[3, 4] q) {
            p = Concat <axis = 1> (d, x)
            q = Neg(d)
        },
        else_branch = two () => (float[3, 4] p, float[3, 4] q) {
            p = Exp(d)
            q = If(c) <
                then_branch = three () => (float[3, 4] r) { r = Identity(p) },
                else_branch = four () => (float[3, 4] r) { r = Sub(p, x) }
            >
        }
    >
}"""


def test_branches_of_different_shapes():
    graph = agree(model(BRANCHES), {"c": np.array(True), "x": X}, {"c": np.array(False), "x": X})
    (node,) = (n for n in graph.nodes if n.op == "if")
    assert graph.outputs[0].shape == (3, node.attrs["sizes"][0])
    assert graph.outputs[1].shape == (3, 4)


def test_a_known_condition_leaves_one_branch():
    proto = model("""m (float[3, 4] x) => (float[a, b] y) {
        s = Shape(x)
        n = Size(s)
        two = Constant <value_int = 2> ()
        c = Equal(n, two)
        y = If(c) < then_branch = one () => (float[3, 4] p) { p = Neg(x) },
                    else_branch = two () => (float[12] p) { p = Acme(x) } >
    }""")
    assert ops(load_model(proto)) == ["neg"]


def test_sizes_that_come_from_a_branch():
    agree(model("""m (bool c, float[n, 4] x) => (float[b, 4] y, int64[2] s) {
        d = If(c) <
            then_branch = one () => (float[k, 4] p) { p = Concat <axis = 0> (x, x) },
            else_branch = two () => (float[n, 4] q) { q = Abs(x) } >
        s = Shape(d)
        one = Constant <value_float = 1.0> ()
        e = Expand(one, s)
        y = Add(d, e)
    }"""), {"c": np.array(True), "x": X}, {"c": np.array(False), "x": X})


@pytest.mark.parametrize(("then", "message"), [
    ("(float[3, 4] p) { p = Cast <to = 11> (x) }", "f64"),
    ("(float[12] p) { s = Constant <value_ints = [-1]> () p = Reshape(x, s) }", "different ranks"),
    ("(float[3, 4] p, float[3, 4] q) { p = Abs(x) q = Abs(x) }", "2 and 1 results"),
    ("(float[3, 4] p) { p = Abs(unknown) }", "nothing gives the tensor 'unknown'"),
])
def test_branches_that_do_not_match(then: str, message: str):
    with pytest.raises(ModelError, match=message):
        load_model(model(f"""m (bool c, float[3, 4] x) => (float[3, 4] y) {{
            y = If(c) < then_branch = one () => {then},
                        else_branch = two () => (float[3, 4] p) {{ p = Neg(x) }} > }}"""))


COUNTED = """m (int64 trips, bool go, float[4] x) => (float[4] last, float[k, 4] all, int64[k] at) {
    limit = Constant <value_float = 50.0> ()
    last, all, at = Loop(trips, go, x) < body = step (int64 i, bool c, float[4] v)
            => (bool more, float[4] w, float[4] seen, int64 where) {
        f = Cast <to = 1> (i)
        w = Add(v, f)
        sum = ReduceSum <keepdims = 0> (w)
        more = Less(sum, limit)
        seen = Mul(w, x)
        where = Identity(i)
    } >
}"""


def test_loops_that_count_and_stop():
    x = np.float32([1, 2, 3, 4])
    cases = [{"trips": np.int64(t), "go": np.array(g), "x": x}
             for t, g in ((3, True), (100, True), (1, True))]
    agree(model(COUNTED), *cases)
    graph = load_model(model(COUNTED))
    for trips, go in ((0, True), (5, False), (-2, True)):
        last, every, at = interpret(
            graph, {"trips": np.int64(trips), "go": np.array(go), "x": x})
        np.testing.assert_array_equal(last, x)
        assert every.shape == (0, 4) and at.shape == (0,)


def test_carried_shapes_that_grow():
    graph = agree(model("""m (int64 trips, float[2] x) => (float[k] y, float[m] z) {
        y = Loop(trips, , x) < body = step (int64 i, bool c, float[k] v)
                => (bool more, float[j] w) {
            more = Identity(c)
            w = Concat <axis = 0> (v, x)
        } >
        z = Neg(y)
    }"""), *({"trips": np.int64(t), "x": np.float32([1, 2])} for t in (0, 1, 4)))
    (node,) = (n for n in graph.nodes if n.op == "loop")
    assert graph.outputs[0].shape == node.attrs["sizes"]
    assert node.regions[0].inputs[2].shape == node.attrs["inner"]
    assert not set(node.attrs["sizes"]) & set(node.attrs["inner"])


def test_a_known_trip_count_gives_a_known_size():
    graph = agree(model("""m (float[2] x) => (float[2] y, float[5, 2] all) {
        five = Constant <value_int = 5> ()
        go = Constant <value: tensor = bool {1}> ()
        y, all = Loop(five, go, x) < body = step (int64 i, bool c, float[2] v)
                => (bool more, float[2] w, float[2] seen) {
            more = Identity(c)
            w = Add(v, x)
            seen = Identity(v)
        } >
    }"""), {"x": np.float32([1, -2])})
    assert graph.outputs[1].shape == (5, 2)


def test_nested_loops_see_the_values_around():
    agree(model("""m (int64 trips, float[3] x) => (float[3] y) {
        y = Loop(trips, , x) < body = outer (int64 i, bool c, float[3] v)
                => (bool more, float[3] w) {
            more = Identity(c)
            doubled = Add(v, x)
            inner = Loop(i, , doubled) < body = inner (int64 j, bool d, float[3] u)
                    => (bool again, float[3] t) {
                again = Identity(d)
                k = Add(i, j)
                f = Cast <to = 1> (k)
                e = Mul(f, x)
                t = Sub(u, e)
            } >
            w = Add(inner, doubled)
        } >
    }"""), *({"trips": np.int64(t), "x": np.float32([1, 0.5, -2])} for t in (0, 1, 3)))


def test_slices_of_different_shapes_are_refused_at_run_time():
    graph = load_model(model("""m (float[2] x) => (float[k] y, float[3, m] all) {
        n = Constant <value_int = 3> ()
        y, all = Loop(n, , x) < body = step (int64 i, bool c, float[k] v)
                => (bool more, float[j] w, float[j] seen) {
            more = Identity(c)
            w = Concat <axis = 0> (v, x)
            seen = Identity(w)
        } >
    }"""))
    with pytest.raises(InputError, match="different shapes"):
        interpret(graph, [np.float32([1, 2])])


@pytest.mark.parametrize("scan", [
    "", "scan_input_directions = [1, 0], ", "scan_output_directions = [1], ",
    "scan_input_axes = [0, 1], scan_output_axes = [1], "])
def test_scans(scan: str):
    second = "float[3, n]" if "axes = [0, 1]" in scan else "float[n, 3]"
    out = "float[3, n]" if "output_axes" in scan else "float[n, 3]"
    proto = model(f"""m (float[3] s, float[n, 3] x, {second} y) => (float[3] e, {out} z) {{
        e, z = Scan <{scan}num_scan_inputs = 2, body = step (float[3] v, float[3] a, float[3] b)
                => (float[3] w, float[3] o) {{
            t = Mul(a, b)
            w = Add(v, t)
            o = Sub(w, s)
        }}> (s, x, y)
    }}""")
    rng = np.random.default_rng(2)
    for n in (1, 5):
        y = rng.standard_normal((3, n) if second == "float[3, n]" else (n, 3))
        inputs = {"s": rng.standard_normal(3).astype(np.float32),
                  "x": rng.standard_normal((n, 3)).astype(np.float32),
                  "y": y.astype(np.float32)}
        agree(proto, inputs)


def test_sequences_fold_away():
    graph = agree(model("""m (float[6, 4] x) => (float[2, 4] a, float[3, 2, 4] b, int64 n) {
        two = Constant <value_int = 2> ()
        parts = SplitToSequence <axis = 0> (x, two)
        minus = Constant <value_int = -1> ()
        a = SequenceAt(parts, minus)
        n = SequenceLength(parts)
        b = ConcatFromSequence <axis = 0, new_axis = 1> (parts)
    }"""), {"x": np.arange(24, dtype=np.float32).reshape(6, 4)})
    assert set(ops(graph)) <= {"slice", "reshape", "concat", "constant"}


def test_a_loop_over_a_sequence_unrolls():
    graph = agree(model("""m (float[2, 4] x) => (float[6, 4] y) {
        empty = SequenceEmpty()
        three = Constant <value_int = 3> ()
        go = Constant <value: tensor = bool {1}> ()
        all = Loop(three, go, empty) < body = step (int64 i, bool c, seq(float[2, 4]) s)
                => (bool more, seq(float[2, 4]) t) {
            more = Identity(c)
            f = Cast <to = 1> (i)
            row = Add(x, f)
            t = SequenceInsert(s, row)
        } >
        y = ConcatFromSequence <axis = 0> (all)
    }"""), {"x": X[:2]})
    assert "loop" not in ops(graph)


def test_sequences_that_cannot_fold_are_refused():
    with pytest.raises(ModelError, match="known at compile time"):
        load_model(model("""m (int64 n, float[2] x) => (float[k] y) {
            empty = SequenceEmpty()
            all = Loop(n, , empty) < body = step (int64 i, bool c, seq(float[2]) s)
                    => (bool more, seq(float[2]) t) {
                more = Identity(c)
                t = SequenceInsert(s, x)
            } >
            y = ConcatFromSequence <axis = 0> (all)
        }"""))
    with pytest.raises(ModelError, match="'s'.*is a sequence"):
        load_model(model("m (float[2] x) => (float[2] y) { s = SequenceConstruct(x) y = Relu(s) }"))


def test_optionals_fold_away():
    graph = agree(model("""m (float[2] x) => (float[2] y, bool some) {
        o = Optional(x)
        some = OptionalHasElement(o)
        y = If(some) < then_branch = one () => (float[2] p) { p = OptionalGetElement(o) },
                       else_branch = two () => (float[2] p) { p = Neg(x) } >
    }"""), {"x": X[0, :2]})
    assert ops(graph) == ["constant"]
