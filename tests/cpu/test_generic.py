"""`cpu:generic`: models as portable C11, compiled by strict compilers and run.

Float results are within 1e-4 of the largest value of the expected data, the project's bound for
every target; most are within 1e-6. Integers are exact.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cpu.native_graphs import Cases
from cpu.portable_program import (
    STRICT,
    compiled,
    largest_error,
    portable,
    run,
    run_tool,
    write_sources,
)
from cpu.test_kernels_integers import BINARY, UNARY, operands, wrapped
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from small_models import model_of
from trained_models import models_folder

import smelt
from smelt.cli import main as smelt_main
from smelt.errors import ArtifactError, TargetError, UsageError
from smelt.frontend.onnx.loader import load_model
from smelt.ir import dtype as dt
from smelt.ir.kernel.nodes import Alloc, statements
from smelt.targets.base import BuildOptions, find_target
from smelt.targets.cpu.generic_size import deepest_stack

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"
DIGITS = EXAMPLE / "digits.onnx"
ERROR = 1e-4
GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="needs gcc")


@pytest.fixture(scope="module")
def digits():
    return portable(load_model(DIGITS, dims={"N": 1}), name="digits")


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    with np.load(EXAMPLE / "digits_test.npz") as data:
        return data["images"], data["labels"]


def graph_of(proto, **options):
    return load_model(proto.SerializeToString(), **options)


# Digits -------------------------------------------------------------------------------------------


@needs_gcc
@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3", "-Os"])
def test_digits_is_right_at_every_level(digits, pictures, tmp_path, level):
    program = compiled(write_sources(digits, tmp_path), "gcc", level)
    images, labels = pictures
    found = np.concatenate([out for out, in run(digits, program, [[x[None]] for x in images])])
    assert (found.argmax(1) == labels).mean() > 0.97
    want, = ReferenceEvaluator(str(DIGITS)).run(None, {"image": images})
    assert largest_error(found, want) <= 1e-5


@needs_gcc
def test_contraction_of_multiply_adds_changes_nothing_of_importance(digits, pictures, tmp_path):
    flags = ["-O3", "-ffp-contract=fast"]
    info = Path("/proc/cpuinfo")
    if info.is_file() and " fma " in info.read_text():
        flags.append("-mfma")
    sources = write_sources(digits, tmp_path)
    samples = [[x[None]] for x in pictures[0][:30]]
    plain = run(digits, compiled(sources, "gcc", "-O1", "-ffp-contract=off"), samples)
    fused = run(digits, compiled(sources, "gcc", *flags), samples)
    for (a,), (b,) in zip(plain, fused, strict=True):
        assert largest_error(a, b) <= 1e-5


@needs_gcc
def test_nothing_is_needed_but_mathematics(digits, tmp_path):
    _, model = write_sources(digits, tmp_path)
    run_tool(["gcc", *STRICT, "-Os", "-c", str(model), "-o", str(tmp_path / "m.o")])
    table = run_tool(["nm", str(tmp_path / "m.o")]).splitlines()
    wanted = {line.split()[-1] for line in table if " U " in line}
    assert wanted <= {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}
    assert {line.split()[-1] for line in table if " T " in line} == {"digits_run"}
    text = digits.files["digits.c"].decode()
    assert set(re.findall(r'#include (\S+)', text)) <= {'"digits.h"', "<math.h>", "<string.h>"}
    assert not re.search(r"\b(malloc|free|pthread|smelt)\w*", text)


def test_the_same_model_gives_the_same_bytes(digits):
    again = portable(load_model(DIGITS, dims={"N": 1}), name="digits")
    assert again.files["digits.c"] == digits.files["digits.c"]
    assert again.files["digits.h"] == digits.files["digits.h"]
    other = portable(load_model(DIGITS, dims={"N": 2}), name="digits")
    assert other.files["digits.c"] != digits.files["digits.c"]


def test_source_is_for_readers(digits):
    text = digits.files["digits.c"].decode()
    assert max(map(len, text.splitlines())) <= 100
    assert "int64_t" not in text  # every index of a small model fits 32 bits
    assert "= 0;\n        (void)" not in text
    # Constant addresses of working memory make GCC 12 drop calls of kernels.
    assert "memory_" not in text[text.index("int digits_run("):]


@needs_gcc
def test_sizes_are_reported(digits):
    sizes = digits.reports["sizes"]
    weights = sum(4 * int(n) for n in re.findall(r"^static const float weights_\d+\[(\d+)\];",
                                                 digits.files["digits.c"].decode(), re.M))
    assert sizes["weights"] == weights > 4 * 20000  # 22,618 parameters, some of them folded
    assert sizes["arena"] == 5120
    assert 1000 < sizes["code"] < 10000
    assert sizes["weights"] + sizes["code"] <= sizes["flash"] < weights + 12000
    assert sizes["ram"] == sizes["static"] + sizes["stack"]
    assert sizes["static"] >= sizes["arena"] and 0 < sizes["stack"] < 1024


def test_stack_is_the_deepest_chain_of_calls():
    graph = """graph: { title: "m.c"
node: { title: "m.c:leaf" label: "leaf\\nm.c:1:1\\n40 bytes (static)" }
node: { title: "m.c:wide" label: "wide\\nm.c:2:1\\n100 bytes (static)" }
node: { title: "m.c:middle" label: "middle\\nm.c:3:1\\n32 bytes (static)" }
node: { title: "m_run" label: "m_run\\nm.c:4:1\\n16 bytes (static)" }
node: { title: "expf" label: "expf\\n<built-in>" shape : ellipse }
edge: { sourcename: "m.c:middle" targetname: "m.c:leaf" label: "m.c:9:1" }
edge: { sourcename: "m.c:middle" targetname: "m.c:wide" label: "m.c:9:1" }
edge: { sourcename: "m_run" targetname: "m.c:middle" label: "m.c:9:1" }
edge: { sourcename: "m_run" targetname: "m.c:leaf" label: "m.c:9:1" }
edge: { sourcename: "m.c:leaf" targetname: "expf" label: "m.c:9:1" }
}"""
    assert deepest_stack(graph, "m_run") == 16 + 32 + 100
    assert deepest_stack(graph, "other") is None


@needs_gcc
def test_weights_may_come_from_elsewhere(digits, pictures, tmp_path):
    build = portable(load_model(DIGITS, dims={"N": 1}), extra={"weights": "blob"})
    assert len(build.files["model.c"]) < 40_000 < len(digits.files["digits.c"])
    assert build.reports["sizes"]["weights"] == len(build.files["weights.bin"])
    assert build.reports["sizes"]["flash"] > len(build.files["weights.bin"])
    samples = [[x[None]] for x in pictures[0][:5]]
    blob = run(build, compiled(write_sources(build, tmp_path / "a"), "gcc"), samples)
    arrays = run(digits, compiled(write_sources(digits, tmp_path / "b"), "gcc"), samples)
    for (a,), (b,) in zip(blob, arrays, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UsageError, match="use array or blob"):
        portable(load_model(DIGITS, dims={"N": 1}), extra={"weights": "elsewhere"})


@needs_gcc
def test_example_program_recognises_its_picture(digits, tmp_path):
    for name in ("digits.c", "digits.h"):
        (tmp_path / name).write_bytes(digits.files[name])
    shutil.copy(EXAMPLE / "embedded" / "main.c", tmp_path)
    run_tool(["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", str(tmp_path / "main.c"),
              str(tmp_path / "digits.c"), "-lm", "-o", str(tmp_path / "digits")])
    assert run_tool([str(tmp_path / "digits")]).startswith("This is a 4 (")


# From Python and the command line -----------------------------------------------------------------


@needs_gcc
def test_python_calls_the_portable_model(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path / "cache"))
    images, _ = pictures
    model = smelt.compile(DIGITS, target="cpu:generic", dims={"N": 1}, name="small")
    want, = ReferenceEvaluator(str(DIGITS)).run(None, {"image": images[:1]})
    assert largest_error(model(images[:1]), want) <= 1e-5
    folder = tmp_path / "digits.smelt"
    code = smelt_main(["compile", str(DIGITS), "--dim", "N=1", "--target", "cpu:generic",
                       "--name", "small", "-o", str(folder)])
    shown = capsys.readouterr()
    rows = dict(line.rsplit(None, 1) for line in (shown.out + shown.err).splitlines()
                if line.strip() and line.split()[-1].isdigit())
    assert code == 0
    # Beside the arena there is the pointer to it.
    assert 0 <= int(rows["RAM"]) - int(rows["arena"]) - int(rows["stack"]) <= 64
    assert int(rows["flash"]) > int(rows["weights"])
    assert {p.name for p in folder.iterdir()} == {
        "small.c", "small.h", "model.so", "manifest.json", "report.json"}


def test_without_a_compiler_the_sources_come_alone(pictures, tmp_path, monkeypatch):
    import smelt.targets.cpu.generic as generic

    def none():
        raise TargetError("no C compiler was found")

    monkeypatch.setattr(generic, "find_compiler", none)
    build = portable(load_model(DIGITS, dims={"N": 1}))
    assert set(build.files) == {"model.c", "model.h"}
    assert set(build.reports["sizes"]) == {"weights", "arena"}
    with pytest.raises(ArtifactError, match="is source code for cpu:generic"):
        smelt.compile(DIGITS, target="cpu:generic", dims={"N": 1}, output=tmp_path / "d.smelt",
                      cache=False)


def test_open_sizes_are_refused():
    with pytest.raises(UsageError, match=r"'image' has open ones: .* --dim N=1"):
        portable(load_model(DIGITS))
    proto = model_of([helper.make_node("NonZero", ["x"], ["y"])],
                     {"x": (TensorProto.FLOAT, [4])}, {"y": (TensorProto.INT64, [1, None])})
    with pytest.raises(TargetError, match="depends on data"):
        portable(graph_of(proto))
    with pytest.raises(TargetError, match="profile the cpu target"):
        portable(load_model(DIGITS, dims={"N": 1}), extra={"profile": "true"})


# Names, numbers, memory ---------------------------------------------------------------------------

NASTY = ("x */ int evil; /*", "a\n#include <evil.h>", "tail\\", "trigraph ??/", 'quote " // ü')


@needs_gcc
def test_names_of_the_model_cannot_become_code(tmp_path, rng):
    nodes = [helper.make_node("Add", [NASTY[0], NASTY[1]], [NASTY[2]], NASTY[4]),
             helper.make_node("Neg", [NASTY[2]], [NASTY[3]], NASTY[0])]
    f32 = TensorProto.FLOAT
    proto = model_of(nodes, {NASTY[0]: (f32, [3]), NASTY[1]: (f32, [3])}, {NASTY[3]: (f32, [3])})
    build = portable(graph_of(proto), states=((NASTY[3], NASTY[0]),))
    header, source = build.files["model.h"].decode(), build.files["model.c"].decode()
    assert "evil" not in source and header.count("*/") == header.count("/*")
    assert header.isascii() and "??" not in header and "\\" not in header
    a, b = rng.standard_normal((2, 3), np.float32)
    (found,), = run(build, compiled(write_sources(build, tmp_path), "gcc", "-trigraphs"), [[a, b]])
    np.testing.assert_array_equal(found, -(a + b))


@needs_gcc
@pytest.mark.parametrize("d", [dt.i8, dt.i16, dt.i32, dt.i64, dt.u16, dt.u32], ids=str)
def test_no_integer_operation_is_undefined(d, tmp_path):
    """Every operation on the values where something may go wrong, by code that stops at the first
    thing that C does not define."""
    cases = Cases(seed=d.bits)
    a, b = operands(d, cases.rng)
    x, y = cases.input(array=a, dtype=d), cases.input(array=b, dtype=d)
    wanted = []
    for name, meaning in BINARY.items():
        cases.output(cases.graph.add(name, [x, y]))
        wanted.append([wrapped(meaning(*p, d), d) for p in zip(a.tolist(), b.tolist())])
    for name, of_one in UNARY.items():
        cases.output(cases.graph.add(name, [x]))
        wanted.append([wrapped(of_one(p), d) for p in a.tolist()])
    cases.output(cases.graph.add("reduce_sum", [cases.graph.add("mul", [x, y])], {"axes": (0,)}))
    wanted.append(wrapped(sum(p * q for p, q in zip(a.tolist(), b.tolist())), d))
    build = portable(cases.graph)
    program = compiled(write_sources(build, tmp_path), "gcc", "-g", "-O1",
                       "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
    found, = run(build, program, [[a, b]])
    for name, got, want in zip([*BINARY, *UNARY, "sum"], found, wanted, strict=True):
        np.testing.assert_array_equal(got, np.array(want, d.numpy), err_msg=name)


@needs_gcc
def test_numbers_are_printed_exactly(tmp_path, rng):
    """Constants of every kind, among them what needs the most digits and what is no number."""
    cases = Cases(seed=3)
    tiny = np.array([1e-45, -1e-45, 1.17549435e-38, 3.4028235e38, -0.0, np.inf, -np.inf, np.nan,
                     0.1, 16777217.0], np.float32)
    constants = [tiny, tiny.astype(np.float64), rng.standard_normal(50).astype(np.float32),
                 rng.standard_normal(50) * 1e300, tiny.astype(np.float16)]
    for d in (dt.i8, dt.u8, dt.i16, dt.u16, dt.i32, dt.u32, dt.i64, dt.u64):
        constants.append(np.array([d.min, d.max, 0, 1], d.numpy))
    constants.append(np.array([True, False]))
    wanted = []
    where = cases.input(array=np.array([True]), dtype=dt.bool_)
    for array in constants:
        value = cases.graph.constant(array)
        other = cases.graph.constant(np.zeros_like(array))
        cases.output(cases.graph.add("select", [where, value, other]))
        wanted.append(array)
    build = portable(cases.graph)
    found, = run(build, compiled(write_sources(build, tmp_path), "gcc"), [cases.arrays])
    for got, want in zip(found, wanted, strict=True):
        assert got.tobytes() == want.tobytes() or np.isnan(want.astype(np.float64)).any()
        np.testing.assert_array_equal(got, want)


@needs_gcc
def test_memory_has_one_type(tmp_path, rng):
    """Tensors of several types that live one after the other get arenas of their own, and results
    do not depend on what compilers conclude from types. All numbers are whole and small."""
    cases = Cases(seed=int(rng.integers(1 << 31)))
    g = cases.graph
    value = cases.input(array=rng.integers(-4, 5, (64, 33)).astype(np.float32))
    for kind, axis in ((dt.f32, 1), (dt.i32, 0), (dt.f32, 1), (dt.i64, 0)):
        value = g.add("cumsum", [g.add("cast", [value], {"to": kind})],
                      {"axis": axis, "exclusive": False, "reverse": False})
    cases.output(g.add("cumsum", [g.add("cast", [value], {"to": dt.f64})],
                       {"axis": 1, "exclusive": True, "reverse": True}))
    build = portable(g)
    arenas = re.findall(r"^static (\w+) memory_(\w+)\[", build.files["model.c"].decode(), re.M)
    assert {("float", "f32"), ("int32_t", "i32"), ("int64_t", "i64")} <= set(arenas)
    want, = cases.expected()
    for level in ("-O0", "-O3"):
        program = compiled(write_sources(build, tmp_path), "gcc", level)
        (found,), = run(build, program, [cases.arrays])
        np.testing.assert_array_equal(found, want)


@needs_gcc
def test_control_flow(tmp_path):
    """A loop with a carried value and a slice of every round, inside a branch."""
    info = helper.make_tensor_value_info
    f32, i64, boolean = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    body = helper.make_graph(
        [helper.make_node("Cast", ["i"], ["f"], to=f32),
         helper.make_node("Mul", ["a", "f"], ["p"]),
         helper.make_node("Add", ["p", "x"], ["b"]),
         helper.make_node("ReduceSum", ["b"], ["s"], keepdims=0),
         helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [info("i", i64, []), info("c", boolean, []),
         info("a", f32, [4])],
        [info("d", boolean, []), info("b", f32, [4]),
         info("s", f32, [])])
    then = helper.make_graph([helper.make_node("Loop", ["n", "", "x"], ["u", "v"], body=body)],
                             "then", [], [info("u", f32, [4]),
                                          info("v", f32, [5])])
    orelse = helper.make_graph([helper.make_node("Neg", ["x"], ["w"]),
                                helper.make_node("Identity", ["five"], ["t"])],
                               "orelse", [], [info("w", f32, [4]),
                                              info("t", f32, [5])])
    proto = model_of([helper.make_node("If", ["choice"], ["y", "z"], then_branch=then,
                                       else_branch=orelse)],
                     {"x": (f32, [4]), "choice": (boolean, [])},
                     {"y": (f32, [4]), "z": (f32, [5])},
                     {"n": np.array(5, np.int64), "five": np.full(5, 7, np.float32)})
    build = portable(graph_of(proto))
    program = compiled(write_sources(build, tmp_path), "gcc", "-O2")
    x = np.array([1, 2, 3, 4], np.float32)
    samples = [[x, np.array(True)], [x, np.array(False)], [x * 2, np.array(True)]]
    for found, (given, choice) in zip(run(build, program, samples), samples, strict=True):
        y, z = -given, [7.0] * 5
        if choice:
            y, z = given, []
            for i in range(5):
                y = y * i + given
                z.append(y.sum())
        np.testing.assert_allclose(found[0], y, rtol=1e-6)
        np.testing.assert_allclose(found[1], z, rtol=1e-6)


def local_bytes(build) -> int:
    """The most local array bytes of a kernel."""
    most = 0
    for kernel in build.program.kernels():
        arrays = [s.buffer for s in statements(kernel.body)
                  if isinstance(s, Alloc) and s.buffer.space == "local"]
        most = max(most, sum(int(np.prod(b.shape)) * b.dtype.itemsize for b in arrays))
    return most


def test_local_arrays_are_small(digits):
    assert local_bytes(digits) <= 4096


# Other compilers and processors -------------------------------------------------------------------

CROSS = {"arm": ("arm-linux-musleabihf", "qemu-arm-static"),
         "aarch64": ("aarch64-linux-musl", "qemu-aarch64-static")}
BARE = {"cortex-m0": ("-target", "thumb-freestanding-eabi", "-mcpu=cortex_m0"),
        "cortex-m4": ("-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4"),
        "riscv32": ("-target", "riscv32-freestanding-none")}


def zig(*flags: str) -> tuple[str, ...]:
    pytest.importorskip("ziglang")
    return (sys.executable, "-m", "ziglang", "cc", *flags)


def model(name: str, **dims: int):
    """A trained model, its inputs and expected outputs in order."""
    folder = models_folder()
    graph = load_model(folder / f"{name}.onnx", dims=dims or None)
    names = [v.name for v in graph.inputs]
    with np.load(folder / "data" / f"{name}.npz") as data:
        inputs = {k[3:]: data[k] for k in data.files if k.startswith("in_")}
        outputs = [data[k] for k in data.files if k.startswith("out_")]
    return graph, [inputs[n] for n in names], outputs


def example(digits, pictures, name: str):
    """A build, inputs and expected outputs of a small model."""
    if name == "digits":
        x = pictures[0][:1]
        return digits, [x], ReferenceEvaluator(str(DIGITS)).run(None, {"image": x})
    graph, inputs, outputs = model(name)
    return portable(graph), inputs, outputs


SMALL = ("digits", "mnist8", "resnet8", "ad01_fp32")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_models_under_every_compiler_and_processor(digits, pictures, tmp_path, name):
    build, inputs, outputs = example(digits, pictures, name)
    sources = write_sources(build, tmp_path)
    compilers: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {"clang": (zig("-O2"), ())}
    if GCC:
        compilers["gcc"] = (("gcc", "-O2"), ())
    for processor, (target, emulator) in CROSS.items():
        found_here = shutil.which(emulator)
        assert found_here or not os.environ.get("CI"), f"{emulator} is missing"
        if found_here:
            compilers[processor] = (zig("-target", target, "-Os", "-static"), (emulator,))
    for processor, (command, emulator) in compilers.items():
        found, = run(build, compiled(sources, *command), [inputs], *emulator)
        for got, want in zip(found, outputs, strict=True):
            assert largest_error(got, want) <= ERROR, processor
    for flags in BARE.values():
        run_tool([*zig(*flags), *STRICT, "-Os", "-c", str(sources[1]), "-o",
                  str(tmp_path / "bare.o")])


LARGE = {"shufflenet_v2_int8": {}, "gtcrn_stream": {}, "stories260k_kv": {"T": 4, "P": 16},
         "silero_vad_16k_op15": {"batch": 1, "sequence": 576}}


@needs_gcc
def test_weights_larger_than_a_cache_leave_no_unused_names():
    """Names of what only prefetching reads, which portable C has not: the build is strict."""
    c = Cases(1)
    w = c.rng.standard_normal((512, 300)).astype(np.float32)
    c.output(c.graph.add("matmul", [c.input(45, 512), c.graph.constant(w)]))
    assert portable(c.graph).reports["sizes"]


@pytest.mark.slow
@needs_gcc
@pytest.mark.parametrize("name", LARGE)
def test_models_with_integers_states_and_branches(tmp_path, name):
    graph, inputs, outputs = model(name, **LARGE[name])
    build = portable(graph)
    for level in ("-O1", "-O2", "-O3", "-Os"):
        found, = run(build, compiled(write_sources(build, tmp_path), "gcc", level), [inputs])
        for got, want in zip(found, outputs, strict=True):
            assert largest_error(got, want) <= ERROR, level
    assert local_bytes(build) <= 4096
    assert build.reports["sizes"]["stack"] <= 4096


@pytest.mark.slow
@needs_gcc
def test_no_model_does_what_c_does_not_define(tmp_path):
    for name in ("resnet8", "gtcrn_stream"):
        graph, inputs, outputs = model(name)
        build = portable(graph)
        program = compiled(write_sources(build, tmp_path / name), "gcc", "-O1",
                           "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
        found, = run(build, program, [inputs])
        for got, want in zip(found, outputs, strict=True):
            assert largest_error(got, want) <= ERROR


@pytest.mark.slow
@needs_gcc
def test_register_tiles_are_faster_than_plain_loops(tmp_path, monkeypatch):
    """The same model by loops over every output alone; the tiles took a quarter of the time."""
    import smelt.targets.cpu.target as rules
    from smelt.passes.lower.generic import GENERIC_RULES

    graph, inputs, _ = model("resnet8")
    tiled = portable(graph)
    monkeypatch.setattr(rules, "RULES", tuple(GENERIC_RULES))
    plain = portable(model("resnet8")[0])
    seconds = {}
    for kind, build in (("tiled", tiled), ("plain", plain)):
        program = compiled(write_sources(build, tmp_path / kind), "gcc", "-O2")
        given = b"".join(a.tobytes() for a in inputs) * 20
        timer = "import resource,subprocess,sys; subprocess.run(sys.argv[1], stdin=sys.stdin, " \
                "stdout=subprocess.DEVNULL); " \
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime)"
        times = [float(subprocess.run([sys.executable, "-c", timer, str(program)], input=given,
                                      capture_output=True, check=True).stdout) for _ in range(3)]
        seconds[kind] = min(times)
    assert seconds["tiled"] * 1.5 < seconds["plain"], seconds


def test_target_is_listed():
    facts = find_target("cpu:generic").describe()
    assert facts["name"] == "cpu:generic" and "C11" in facts["doc"]
    with pytest.raises(TargetError, match="generic"):
        find_target("cpu:z80")
    assert BuildOptions().extra == {}
