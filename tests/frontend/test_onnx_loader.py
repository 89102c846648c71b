"""Reading models: what is refused and in which words, sizes and names, data, functions."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np
import onnx
import pytest
from conformance.compiled_suite import failure
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper, parser

from smelt.errors import ModelError, SmeltError, UsageError
from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret
from smelt.targets.base import BuildOptions, find_target
from smelt.targets.cpu import target as cpu
from smelt.targets.cpu.toolchain import Compiler

T = TypeVar("T")

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def model(text: str, head: str = HEAD) -> onnx.ModelProto:
    return parser.parse_model(head + text)


ADD = model("m (float[n, 3] x, float[3] w) => (float[n, 3] y) { y = Add(x, w) }")


# What is no model --------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"# Title\nsome text\n",
                                  np.random.default_rng(0).bytes(256)])
def test_garbage_is_refused(data: bytes):
    with pytest.raises(ModelError, match="no ONNX model"):
        load_model(data)


def test_every_truncation_is_refused_or_loads():
    data = ADD.SerializeToString()
    for end in range(len(data)):
        with pytest.raises(ModelError):
            load_model(data[:end])


def test_paths(tmp_path: Path):
    with pytest.raises(ModelError, match="no model file"):
        load_model(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="no model file"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError):
        load_model("nul\0byte.onnx")
    with pytest.raises(UsageError, match="int"):
        load_model(3)  # type: ignore[arg-type]
    path = tmp_path / "add.onnx"
    path.write_bytes(ADD.SerializeToString())
    assert [v.name for v in load_model(str(path)).inputs] == ["x", "w"]


INT8 = helper.make_tensor("k", TensorProto.INT8, [2, 2, 3, 3], [(7 * i) % 23 - 11
                                                                for i in range(36)])
FLOATS = helper.make_tensor("k", TensorProto.FLOAT, [4, 2, 3, 3], [i / 72 for i in range(72)])
QUANTISED = """m (float[1, 2, 8, 8] x) => (float[1, 2, 4, 4] y) {
    s = Constant <value_float = 0.05> ()
    z = Constant <value: tensor = uint8 {128}> ()
    kz = Constant <value: tensor = int8 {0}> ()
    b = Constant <value: tensor = int32[2] {40, -7}> ()
    q = QuantizeLinear(x, s, z)
    c = QLinearConv <pads = [1, 1, 1, 1]> (q, s, z, k, s, kz, s, z, b)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
    d = DequantizeLinear(p, s, z)
    y = HardSigmoid <alpha = 0.2> (d)
}"""
BASES = {
    "shapes": ("""m (float[n, 4] x, int64[2] s) => (float[a, b] y) {
        k = Constant <value: tensor = int64[1] {1}> ()
        t = Transpose <perm = [1, 0]> (x)
        m = MatMul(x, t)
        r = ReduceSum <keepdims = 1> (m, k)
        c = Concat <axis = 1> (r, m)
        p = Reshape(c, s)
        y = Slice(p, s, s)
    }""", None),
    "control": ("""m (bool c, int64 n, float[3, 4] x) => (float[3, 4] y, float[r, 3] z) {
        d = If(c) <
            then_branch = one () => (float[3, 4] p) { p = Exp(x) },
            else_branch = two () => (float[3, 4] p) { p = Neg(x) }
        >
        y, z = Loop(n, c, d) <
            body = round (int64 i, bool on, float[3, 4] v) => (bool go, float[3, 4] w, float[3] s) {
                f = Cast <to = 1> (i)
                w = Mul(v, f)
                a = Constant <value_ints = [1]> ()
                s = ReduceMax <keepdims = 0> (w, a)
                go = Identity(on)
            }
        >
    }""", None),
    "convolution": ("""m (float[n, 2, h, 8] x) => (float[n, 4, a, b] y) {
        c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, k)
        r = Relu(c)
        p = MaxPool <kernel_shape = [2, 2]> (r)
        g = GlobalAveragePool(p)
        m = Mul(p, g)
        f = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
        y = Resize <mode = "nearest"> (m, , f)
    }""", FLOATS),
    "quantised": (QUANTISED, INT8),
}


def base_bytes(name: str) -> bytes:
    text, weights = BASES[name]
    proto = model(text)
    if weights is not None:
        proto.graph.initializer.append(weights)
    return proto.SerializeToString()


def mutant(base: bytes, seed: int) -> bytes:
    """The model with one to eight of its bytes changed (few such still parse), or of its fields."""
    rng = np.random.default_rng(seed)
    if seed % 8 == 0:
        data = bytearray(base)
        for _ in range(int(rng.integers(1, 9))):
            data[rng.integers(len(data))] = rng.integers(256)
        return bytes(data)
    proto = onnx.ModelProto.FromString(base)
    for _ in range(int(rng.integers(1, 4))):
        held = list(fields(proto.graph))
        if rng.integers(4):  # numbers and texts change less than what holds them
            held = [(m, f) for m, f in held if f.message_type is None] or held
        change_field(*held[rng.integers(len(held))], held, rng)
    return proto.SerializeToString()


def fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field that is set, with the message that has it."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for inner in value if isinstance(value, Sequence) else [value]:
                yield from fields(inner)


NUMBERS = (0, 1, -1, 2, 3, 7, 16, 127, 255, 1 << 20, 1 << 31, 1 << 40, -(1 << 63), (1 << 63) - 1)


def change_field(message: Message, field: FieldDescriptor, held: list, rng: np.random.Generator):
    """Another value, or for fields of several another order or number of them."""
    old = getattr(message, field.name)
    if isinstance(old, Sequence) and not isinstance(old, (str, bytes)):
        keep = [old[i] for i in rng.integers(len(old), size=int(rng.integers(len(old) + 2)))]
        if field.message_type is not None or rng.integers(2):
            message.ClearField(field.name)
            getattr(message, field.name).extend(keep)
            return
        old[int(rng.integers(len(old)))] = changed(old[0], field, held, rng)
    elif field.message_type is not None:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, changed(old, field, held, rng))


def changed(old, field: FieldDescriptor, held: list, rng: np.random.Generator):
    if isinstance(old, bytes):
        return old[:int(rng.integers(len(old) + 1))] + rng.bytes(int(rng.integers(5)))
    if isinstance(old, str):  # a text of the same kind from elsewhere in the model, or none
        texts = [t for m, f in held if f.type == field.type and f.name[:2] == field.name[:2]
                 for v in [getattr(m, f.name)] for t in ([v] if isinstance(v, str) else v)]
        return str(rng.choice([*texts, ""]))
    if isinstance(old, float):
        return float(rng.choice([0, -1, 0.5, 1e30, np.nan, np.inf, -np.inf]))
    if field.enum_type is not None:
        return int(rng.choice(list(field.enum_type.values_by_number)))
    number = int(NUMBERS[rng.integers(len(NUMBERS))]) if rng.integers(3) else old + 1
    return number if field.type == field.TYPE_INT64 else number & 0x7FFFFFFF


def refused_in_words(function: Callable[[], T]) -> T | None:
    """What the function gives, or None when it refuses; the refusal must be a sentence."""
    try:
        return function()
    except SmeltError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)[:2000]
        return None


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_mutated_models_never_crash_or_hang(name: str, monkeypatch):
    """Those that load go on until their C is written. Each has a process and seconds of the
    processor of its own."""
    monkeypatch.setattr(cpu, "find_compiler", lambda *_: Compiler(("cc",), "gcc", ""))
    monkeypatch.setattr(cpu, "compile_library", lambda *_: ({}, 0))
    base = base_bytes(name)
    assert find_target("cpu:x86-64-v3").build(load_model(base), BuildOptions()).program.kernels()

    def take(seed: int) -> None:
        signal.setitimer(signal.ITIMER_PROF, 20)
        graph = refused_in_words(lambda: load_model(mutant(base, seed)))
        if graph is not None:
            refused_in_words(lambda: find_target("cpu:x86-64-v3").build(graph, BuildOptions()))

    wrong = {seed: text for seed in range(500) if (text := failure(partial(take, seed)))}
    assert not wrong, "\n\n".join(f"{name}, seed {k}: {text}" for k, text in wrong.items())[:20_000]


# Structure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "message"), [
    ("m (float[2] x) => (float[2] y) { y = Add(x, z) z = Relu(y) }", "cycle"),
    ("m (float[2] x) => (float[2] y) { y = Add(x, z) }", "nothing gives the tensor 'z'"),
    ("m (float[2] x) => (float[2] z) { y = Relu(x) }", "nothing gives the tensor 'z'"),
    ("m (float[2] x) => (float[2] y) { y = Relu(x) y = Abs(x) }", "defined twice"),
    ("m (float[2] x) => (float[2] y) { x = Relu(x) y = Abs(x) }", "defined twice|cycle"),
    ("m (float[2] x, float[2] x) => (float[2] y) { y = Relu(x) }", "defined twice"),
    ("m (float[2] x) => (float[2] y, float[2] y) { y = Relu(x) }", "same name"),
    ("m (float[2] x) => (float[2] y) { y = Nonsense(x) }", "'Nonsense'.*unknown"),
    ("m (float[2] x) => (float[2] y) { y = acme.Relu(x) }", "unknown domain 'acme'"),
    ("m (float[2] x) => (float[2] y) { y = Relu(x, x) }", "takes 1 inputs, found 2"),
    ("m (float[2] x) => (float[2] y) { y, z = Relu(x) }", "takes 1 outputs, found 2"),
    ("m (float[2] x) => (float[2] y) { y = Elu<alpha = 1>(x) }", "'alpha' must be FLOAT"),
    ("m (float[2] x) => (float[2] y) { y = Elu<beta = 1.0>(x) }", "no attribute 'beta'"),
    ("m (float[2] x) => (float[2] y) { y = Cast(x) }", "'to' is missing"),
    ("m (float[2] x) => (float[3] y) { y = Relu(x) }", r"declared with shape \[3\]"),
    ("m (float[2] x) => (float[1, 2] y) { y = Relu(x) }", r"declared with shape \[1, 2\]"),
    ("m (float[2] x) => (int64[2] y) { y = Relu(x) }", "declared as i64"),
    ("m (float[2, 3] x) => (float[2] y) { y = Transpose<perm = [0]>(x) }", "Transpose"),
    ("m (float[2] x, float[3] w) => (float[2] y) { y = Add(x, w) }", "do not broadcast"),
    ("m (float[2] x, int64[2] w) => (float[2] y) { y = Add(x, w) }", "different types"),
    ("m (string[2] x) => (string[2] y) { y = Identity(x) }", "STRING is not supported"),
    ("m (seq(float[2]) x) => (float[2] y) { y = SequenceAt(x, x) }", "is a sequence"),
])
def test_malformed_graphs(text: str, message: str):
    with pytest.raises(ModelError, match=message):
        load_model(model(text))


def test_unsorted_nodes_are_sorted():
    graph = load_model(model("m (float[2] x) => (float[2] y) { y = Abs(z) z = Neg(x) }"))
    np.testing.assert_array_equal(interpret(graph, [np.float32([1, -2])])[0], [1, 2])


@pytest.mark.parametrize(("head", "message"), [
    ('<ir_version: 10, opset_import: ["" : 99]>', "opset 99.*newest"),
    ('<ir_version: 10, opset_import: ["" : 0]>', "opset 0"),
    ('<ir_version: 10, opset_import: ["ai.onnx.ml" : 3]>', "no opset version"),
])
def test_opset_versions(head: str, message: str):
    with pytest.raises(ModelError, match=message):
        load_model(model("m (float[2] x) => (float[2] y) { y = Relu(x) }", head))


def test_unknown_rank_needs_shapes():
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    proto = helper.make_model(helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "m", [info],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]))
    with pytest.raises(ModelError, match="unknown rank.*shapes"):
        load_model(proto)
    assert load_model(proto, shapes={"x": ["b", 3]}).outputs[0].shape[1] == 3


def test_long_chains_are_quick():
    n = 20_000
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(n)]
    info = [helper.make_tensor_value_info(v, TensorProto.FLOAT, [2]) for v in ("v0", f"v{n}")]
    proto = helper.make_model(helper.make_graph(nodes, "m", info[:1], info[1:]))
    began = time.thread_time()
    graph = load_model(proto)
    assert time.thread_time() - began < 10  # takes about 0.7 s
    assert len(graph.nodes) == n
    np.testing.assert_array_equal(interpret(graph, [np.float32([-1, 2])])[0], [0, 2])


# Names and sizes ---------------------------------------------------------------------------------


ODD = ["batch", 'a"; DROP', "日本", "x" * 10_000, "n", "1", "a b\n", "*/", "u1", ""]


def test_names_of_sizes_are_made_here():
    infos = [helper.make_tensor_value_info(f"x{k}", TensorProto.FLOAT, [name, 2])
             for k, name in enumerate(ODD)]
    nodes = [helper.make_node("Relu", [f"x{k}"], [f"y{k}"], name=name or "node")
             for k, name in enumerate(ODD)]
    outs = [helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, ["?", 2])
            for k in range(len(ODD))]
    graph = load_model(helper.make_model(helper.make_graph(nodes, "m", infos, outs)))
    assert list(graph.symbols) == ["n", *(f"n{k}" for k in range(2, len(ODD) + 1))]
    assert list(graph.symbols_origin.values()) == ODD
    for node in graph.nodes:
        assert len(node.origin) < 120 and "\n" not in node.origin


def test_names_of_inputs_and_outputs_stay():
    name = 'in "quoted" \N{SNOWMAN}' + "x" * 10_000
    proto = helper.make_model(helper.make_graph(
        [helper.make_node("Identity", [name], ["out/0"]), helper.make_node("Relu", [name], ["b"])],
        "m", [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info(v, TensorProto.FLOAT, [2]) for v in ("out/0", "b", name)]))
    graph = load_model(proto)
    assert graph.inputs[0].name == name
    assert graph.output_names == ["out/0", "b", name]
    x = np.float32([-1, 2])
    for found, wanted in zip(interpret(graph, {name: x}), (x, [0, 2], x), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_shapes_and_dims_override():
    assert load_model(ADD, dims={"n": 7}).outputs[0].shape == (7, 3)
    assert load_model(ADD, shapes={"x": [5, 3]}).outputs[0].shape == (5, 3)
    named = load_model(ADD, shapes={"x": ["rows", 3]})
    assert named.symbols_origin == {"n": "rows"}
    with pytest.raises(UsageError, match="no input 'q'"):
        load_model(ADD, shapes={"q": [1]})
    with pytest.raises(UsageError, match="no input has a size named 'k'.*'n'"):
        load_model(ADD, dims={"k": 1})
    with pytest.raises(UsageError, match="2 dimensions"):
        load_model(ADD, shapes={"x": [1]})
    with pytest.raises(UsageError, match="-1"):
        load_model(ADD, shapes={"x": [-1, 3]})
    with pytest.raises(UsageError, match="True"):
        load_model(ADD, dims={"n": True})


def test_equal_names_are_one_size():
    graph = load_model(model("m (float[n, k] x, float[k, n] y) => (float[n, n] z) "
                             "{ z = MatMul(x, y) }"))
    a, b = graph.inputs
    assert a.shape[0] is b.shape[1] and a.shape[1] is b.shape[0]
    assert graph.outputs[0].shape == (a.shape[0], a.shape[0])


def test_shape_arithmetic_folds():
    graph = load_model(model("""m (float[n, 6, 4] x) => (float[n, 3, 8] y) {
        s = Shape(x)
        zero = Constant <value_int = 0> ()
        b = Gather <axis = 0> (s, zero)
        axis = Constant <value_ints = [0]> ()
        b1 = Unsqueeze(b, axis)
        three = Constant <value_ints = [3]> ()
        rest = Constant <value_ints = [-1]> ()
        shape = Concat <axis = 0> (b1, three, rest)
        y = Reshape(x, shape)
    }"""))
    assert [n.op for n in graph.nodes] == ["reshape"]
    assert graph.outputs[0].shape == (graph.inputs[0].shape[0], 3, 8)


# Constants ---------------------------------------------------------------------------------------


def constant_model(tensor: TensorProto, inputs=()) -> onnx.ModelProto:
    tensor.name = "w"
    out = helper.make_tensor_value_info("y", tensor.data_type, list(tensor.dims))
    return helper.make_model(helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "m", list(inputs), [out], [tensor]),
        opset_imports=[helper.make_opsetid("", 25)], ir_version=11)


TYPES = sorted(set(helper.get_all_tensor_dtypes()) - {
    TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128,
    TensorProto.FLOAT6E2M3, TensorProto.FLOAT6E3M2})


@pytest.mark.parametrize("number", TYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("raw", [False, True])
def test_constants_of_every_type(number: int, raw: bool):
    dtype = helper.tensor_dtype_to_np_dtype(number)
    wanted = np.arange(-6, 9).astype(np.int8).astype(dtype).reshape(3, 5)
    tensor = numpy_helper.from_array(wanted, "w")
    if not raw:
        tensor = typed(tensor.raw_data, number, wanted)
    (found,) = interpret(load_model(constant_model(tensor)), [])
    assert found.dtype == dtype
    for array in (found, numpy_helper.to_array(tensor)):
        np.testing.assert_array_equal(array.astype(np.float64), wanted.astype(np.float64))


def typed(raw: bytes, number: int, array: np.ndarray) -> TensorProto:
    """The tensor with its elements in the typed field instead of raw bytes."""
    tensor = TensorProto(data_type=number, dims=array.shape)
    field = helper.tensor_dtype_to_field(number)
    if field in ("float_data", "double_data", "int64_data", "uint64_data"):
        getattr(tensor, field).extend(array.reshape(-1).tolist())
    elif array.dtype.kind in "biu":
        getattr(tensor, field).extend(array.reshape(-1).astype(int).tolist())
    else:
        width = np.uint16 if array.dtype in (np.float16, ml_dtypes.bfloat16) else np.uint8
        getattr(tensor, field).extend(np.frombuffer(raw, width).tolist())
    return tensor


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.dims.append(2), "takes"),
    (lambda t: t.dims.append(-1), "negative size"),
    (lambda t: t.dims.append(1 << 62), "takes"),
    (lambda t: setattr(t, "raw_data", b"123"), "takes 16 bytes, found 3"),
    (lambda t: setattr(t, "data_type", 77), "number 77"),
    (lambda t: setattr(t, "data_type", TensorProto.COMPLEX64), "COMPLEX64"),
])
def test_malformed_constants(change, message: str):
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    change(tensor)
    with pytest.raises(ModelError, match=message):
        load_model(constant_model(tensor))


def test_sparse_constants_become_dense():
    values = numpy_helper.from_array(np.float32([1, 2]), "w")
    for indices in (np.int64([1, 5]), np.int64([[0, 1], [1, 2]])):
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices), [2, 3])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
        proto = helper.make_model(helper.make_graph(
            [helper.make_node("Neg", ["w"], ["y"])], "m", [], [out], sparse_initializer=[sparse]))
        (found,) = interpret(load_model(proto), [])
        np.testing.assert_array_equal(found, [[0, -1, 0], [0, 0, -2]])
    bad = helper.make_sparse_tensor(values, numpy_helper.from_array(np.int64([1, 6])), [2, 3])
    proto.graph.sparse_initializer[0].CopyFrom(bad)
    with pytest.raises(ModelError, match="outside"):
        load_model(proto)


def test_an_initializer_hides_the_input():
    tensor = numpy_helper.from_array(np.float32([1, 2]), "w")
    proto = constant_model(tensor, [helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])])
    assert load_model(proto).inputs == []


# External data -----------------------------------------------------------------------------------


def external(tmp_path: Path, location: str, shape=(4,), **entries) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape,
                         data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = tmp_path / "model.onnx"
    path.write_bytes(constant_model(tensor).SerializeToString())
    return path


def test_external_data_is_mapped(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    data = np.arange(10, dtype=np.float32)
    (tmp_path / "sub/w.bin").write_bytes(b"abc" + data.tobytes())
    graph = load_model(external(tmp_path, "sub/w.bin", offset=11, length=16))
    array = graph.outputs[0].constant
    assert array is not None
    owner = array
    while not isinstance(owner, np.memmap):
        owner = owner.base
    np.testing.assert_array_equal(array, data[2:6])


def test_external_data_stays_in_the_folder(tmp_path: Path):
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inside / "folder").symlink_to(tmp_path)
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin",
                     "a/../../secret.bin", "folder/secret.bin", "..\\secret.bin",
                     "C:\\secret.bin", "", "a\0b", "."):
        with pytest.raises(ModelError, match="refused|missing"):
            load_model(external(inside, location))


def test_external_data_that_is_not_there(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(bytes(15))
    for location, entries, message in (
            ("none.bin", {}, "'none.bin'.*missing"), ("w.bin", {}, "beyond the end"),
            ("w.bin", {"offset": 8}, "beyond the end"), ("w.bin", {"length": 4}, "takes 16 bytes"),
            ("w.bin", {"offset": -1}, "not a byte count"), ("w.bin", {"offset": "x"}, "byte count"),
            ("w.bin", {"offset": 10**18}, "beyond the end")):
        with pytest.raises(ModelError, match=message):
            load_model(external(tmp_path, location, **entries))
    with pytest.raises(ModelError, match="loaded from a path"):
        load_model(external(tmp_path, "w.bin").read_bytes())


def test_a_huge_constant_nobody_uses_is_not_read(tmp_path: Path):
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(4 << 30)  # sparse: takes no space on disk
    path = external(tmp_path, "w.bin", shape=(1 << 30,))
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer.add(name="small", data_type=TensorProto.FLOAT, dims=[1],
                                float_data=[3])
    proto.graph.node[0].input[0] = "small"
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    path.write_bytes(proto.SerializeToString())
    began = time.thread_time()
    graph = load_model(path)
    assert time.thread_time() - began < 0.5  # 4 GiB take more than a second to read
    np.testing.assert_array_equal(interpret(graph, [])[0], [3])


# Functions ---------------------------------------------------------------------------------------


FUNCTIONS = '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>\n'


def test_local_functions_are_inlined():
    proto = model("""m (float[3] x) => (float[3] y, float[3] z) {
        y = local.leak <slope = 0.5> (x)
        z = local.twice (x)
    }
    <domain: "local", opset_import: ["" : 21]>
    leak <slope, floor: float = -1.0> (a) => (b) {
        c = LeakyRelu <alpha: float = @slope> (a)
        low = Constant <value_float: float = @floor> ()
        b = Max(c, low)
    }
    <domain: "local", opset_import: ["" : 21, "local" : 1]>
    twice (a, extra) => (b) {
        c = local.leak <slope = 0.25> (a)
        d = Clip(c, extra)
        b = Add(d, d)
    }""", FUNCTIONS)
    x = np.float32([-8, -1, 3])
    y, z = interpret(load_model(proto), [x])
    np.testing.assert_array_equal(y, [-1, -0.5, 3])
    np.testing.assert_array_equal(z, [-2, -0.5, 6])


def test_functions_that_call_themselves_are_refused():
    proto = model("""m (float[3] x) => (float[3] y) { y = local.f(x) }
    <domain: "local", opset_import: ["" : 21, "local" : 1]>
    f (a) => (b) { b = local.g(a) }
    <domain: "local", opset_import: ["" : 21, "local" : 1]>
    g (a) => (b) { b = local.f(a) }""", FUNCTIONS)
    with pytest.raises(ModelError, match="call itself"):
        load_model(proto)


def test_function_errors_name_the_node():
    proto = model("""m (float[3] x) => (float[3] y) { y = local.f(x) }
    <domain: "local", opset_import: ["" : 21]>
    f (a) => (b) { b = Gemm(a, a) }""", FUNCTIONS)
    with pytest.raises(ModelError, match=r"node 'y' \(f\): node 'b' \(Gemm\)"):
        load_model(proto)


# Text --------------------------------------------------------------------------------------------


def test_constant_text_folds():
    (found,) = interpret(load_model(model("""m () => (float[2] y) {
        s = Constant <value_strings = ["1.5", "-inf"]> ()
        y = Cast <to = 1> (s)
    }""")), [])
    np.testing.assert_array_equal(found, np.float32([1.5, -np.inf]))


@pytest.mark.parametrize(("nodes", "message"), [
    ('s = Constant <value_strings = ["a", "b"]> () y = Cast <to = 1> (s)', "no number of type f32"),
    ('s = Constant <value_strings = ["1", "2"]> () y = Relu(s)', "'s' is a tensor of strings"),
    ("y = Cast <to = 8> (x)", "STRING is not supported"),
])
def test_text_that_cannot_fold_is_refused(nodes: str, message: str):
    with pytest.raises(ModelError, match=message):
        load_model(model(f"m (float[2] x) => (float[2] y) {{ {nodes} }}"))
