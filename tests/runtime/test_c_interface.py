"""The C interface from C, with compilers, sanitizers and processors of every kind at hand."""

import ctypes
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import smelt
from smelt.ir import dtype
from smelt.runtime import abi, arrays, sources
from smelt.runtime.artifact import write_artifact

PROGRAMS = Path(__file__).parent / "programs"
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-fvisibility=hidden"]
INCLUDE = sources()["smelt.h"].parent
C_FILES = [str(path) for name, path in sources().items() if name.endswith(".c")]


def run(*command: str | Path, timeout: float = 300) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(output: Path, *arguments: str | Path, compiler: tuple[str, ...] = ("gcc",)) -> Path:
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"needs {compiler[0]}")
    run(*compiler, *STRICT, f"-I{INCLUDE}", *arguments, *C_FILES, "-o", output, "-lm")
    return output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the weights of scale.c."""
    weights = bytes.fromhex("0000803f000000c00000003f00000041").ljust(64, b"\0")
    return write_artifact(tmp_path / "scale", {"name": "scale"}, {"weights.bin": weights})


APPLICATION = [PROGRAMS / "application.c", PROGRAMS / "scale.c", "-lpthread"]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["-O0"],
        ["-DSMELT_NO_MMAP"],
        pytest.param(["-fsanitize=address,undefined", "-g"], id="address"),
        pytest.param(["-fsanitize=thread", "-g"], id="thread"),
    ],
    ids=" ".join,
)
def test_application(tmp_path, folder, flags):
    binary = build(tmp_path / "application", *flags, *APPLICATION)
    assert run(binary, folder) == "fine"


@pytest.mark.slow
def test_application_under_valgrind(tmp_path, folder):
    if shutil.which("valgrind") is None:
        pytest.skip("needs valgrind")
    binary = build(tmp_path / "application", "-g", *APPLICATION)
    valgrind = ("valgrind", "-q", "--leak-check=full", "--error-exitcode=9")
    assert run(*valgrind, binary, folder) == "fine"


@pytest.mark.parametrize("standard", ["c11", "c17", "gnu17"])
def test_headers_compile_alone(tmp_path, standard):
    for header in ("smelt.h", "program.h", "arrays.h"):
        run("gcc", f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only",
            "-x", "c", INCLUDE / header)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_header_serves_cpp(tmp_path):
    source = tmp_path / "use.cpp"
    source.write_text('#include "smelt.h"\nint main() { return smelt_error()[0]; }\n')
    run("g++", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}", "-c", source, "-o", tmp_path / "o")


def test_the_library_exports_the_interface_and_nothing_else(library):
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    table = run("nm", "-D", "--defined-only", library("scale"))
    exported = {line.split()[-1] for line in table.splitlines()}
    header = "".join((INCLUDE / name).read_text() for name in ("smelt.h", "arrays.h"))
    declared = set(re.findall(r"^SMELT_API [^;(]*?(smelt_\w+)\(", header, re.MULTILINE))
    assert exported == declared
    assert set(abi.FUNCTIONS) <= declared
    needed = run("nm", "-D", "--undefined-only", library("scale"))
    assert "GOMP" not in needed and "__cxa_throw" not in needed


def test_only_prefixed_symbols(tmp_path):
    for file in C_FILES:
        run("gcc", *STRICT, "-c", file, "-o", tmp_path / "one.o")
        table = run("nm", "-g", "--defined-only", tmp_path / "one.o")
        names = [line.split()[-1] for line in table.splitlines()]
        assert all(name.startswith("smelt_") for name in names), names


# --- other compilers and processors ------------------------------------------------------------


def zig(*target: str) -> tuple[str, ...]:
    pytest.importorskip("ziglang")
    return (sys.executable, "-m", "ziglang", "cc", *target)


@pytest.mark.slow
def test_clang(tmp_path, folder):
    binary = build(tmp_path / "application", *APPLICATION, compiler=zig())
    assert run(binary, folder) == "fine"


@pytest.mark.slow
def test_aarch64(tmp_path, folder):
    binary = build(
        tmp_path / "application", "-static", *APPLICATION,
        compiler=zig("-target", "aarch64-linux-musl"),
    )
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        pytest.skip("built, but running it needs qemu-aarch64")
    assert run(qemu, binary, folder) == "fine"


@pytest.mark.slow
def test_macos_builds(tmp_path):
    compiler = zig("-target", "aarch64-macos")
    for file in C_FILES:
        run(*compiler, *STRICT, "-c", file, "-o", tmp_path / "one.o")


@pytest.mark.slow
def test_wasm_without_threads(tmp_path, folder):
    # Threads are gone, so the application's checks of their number do not hold: only a build.
    build(
        tmp_path / "scale.wasm", "-DSMELT_NO_THREADS", "-mexec-model=reactor",
        PROGRAMS / "scale.c", compiler=zig("-target", "wasm32-wasi"),
    )


def test_without_threads_nothing_is_synchronised(tmp_path):
    for file in [*C_FILES, PROGRAMS / "scale.c"]:
        text = run("gcc", *STRICT, f"-I{INCLUDE}", "-DSMELT_NO_THREADS", "-E", "-P", file)
        found = re.findall(r"_Atomic\b|\batomic_\w+|__(?:atomic|sync)_\w+ *\(|_Thread_local", text)
        assert not found, (file, found)
    binary = build(tmp_path / "library.so", "-shared", "-DSMELT_NO_THREADS", PROGRAMS / "scale.c")
    assert_no_locked_instructions(binary)


def assert_no_locked_instructions(binary: Path) -> None:
    """On x86-64: no bus lock, no exchange with memory (which locks), no fence."""
    if platform.machine() != "x86_64" or shutil.which("objdump") is None:
        return
    code = run("objdump", "-d", "--no-show-raw-insn", binary)
    locked = re.findall(r"^.*(?:\block\b|\bxchg\b.*\(|\bmfence\b).*$", code, re.MULTILINE)
    assert "ret" in code and not locked


def test_a_model_compiled_without_threads_synchronises_nothing(tmp_path):
    f32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["h"]),
         onnx.helper.make_node("Softmax", ["h"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", f32, [700, 64])],
        [onnx.helper.make_tensor_value_info("y", f32, [700, 96])],
        [onnx.numpy_helper.from_array(np.full((64, 96), 0.5, np.float32), "w")])
    for threads in (True, False):
        model = smelt.compile(onnx.helper.make_model(graph), threads=threads,
                              output=tmp_path / "m.smelt")
        library = tmp_path / "m.smelt/model.so"
        needed = run("nm", "-D", "--undefined-only", library)
        assert ("pthread_create" in needed) is threads
        if not threads:
            assert_no_locked_instructions(library)
            module = model.session(threads=4)
            assert module.threads == 1
            x = np.ones((700, 64), np.float32)
            np.testing.assert_allclose(module(x), np.full((700, 96), 1 / 96), rtol=1e-6)


def test_without_threads(tmp_path, folder):
    binary = build(tmp_path / "library.so", "-shared", "-DSMELT_NO_THREADS", PROGRAMS / "scale.c")
    assert "pthread" not in run("nm", "-D", "--undefined-only", binary)
    library = ctypes.CDLL(str(binary))
    abi.declare(library)
    model, session = ctypes.c_void_p(), ctypes.c_void_p()
    weights = str(folder / "weights.bin").encode()
    programs = library.smelt_linked_programs()
    abi.check(library, library.smelt_open_program(programs, weights, ctypes.byref(model)))
    abi.check(library, library.smelt_session_open(model, 8, ctypes.byref(session)))
    assert library.smelt_threads(session) == 1
    shape = (ctypes.c_int64 * 2)(1, 4)
    x, a = (ctypes.c_float * 4)(1, 2, 3, 4), ctypes.c_float(2)
    f32 = abi.DTYPES["f32"]
    inputs = (abi.Tensor * 2)(
        abi.Tensor(ctypes.addressof(x), shape, f32, 2),
        abi.Tensor(ctypes.addressof(a), None, f32, 0),
    )
    outputs = (abi.Tensor * 2)()
    abi.check(library, library.smelt_run(session, inputs, 2, outputs, 2))
    y = (ctypes.c_float * 4).from_address(outputs[0].data)
    assert list(y) == [3, 2, 6.5, 16]
    library.smelt_session_close(session)
    library.smelt_close(model)


# --- numbers -----------------------------------------------------------------------------------


def test_python_and_c_agree_on_numbers():
    header = (INCLUDE / "smelt.h").read_text()
    block = re.search(r"enum \{\s*SMELT_BOOL.*?\}", header, re.DOTALL)
    assert block
    in_c = {name.lower(): int(n) for name, n in re.findall(r"SMELT_(\w+) = (\d+)", block[0])}
    assert in_c == abi.DTYPES
    program = (INCLUDE / "program.h").read_text()
    codes = {name: int(n) for name, n in re.findall(r"SMELT_([A-Z0-9_]+) = (\d+)", program)}
    assert codes == {name: getattr(abi, name) for name in codes} and len(codes) == 13
    assert f"#define SMELT_PROGRAM_ABI {abi.PROGRAM_ABI}\n" in program
    assert f'#define SMELT_VERSION "{smelt.__version__}"\n' in header


def test_every_element_type_of_the_compiler_has_a_number():
    assert set(abi.DTYPES) == set(dtype.ALL)
    for name, kind in dtype.ALL.items():
        assert abi.numpy_dtype(name) == kind.numpy
        assert abi.dtype_name(kind.numpy) == name
    assert abi.dtype_name(abi.numpy_dtype("f32").newbyteorder(">")) == "f32"


def test_element_sizes_agree(library):
    c = ctypes.CDLL(str(library("scale")))
    c.smelt_dtype_bytes.restype = ctypes.c_int64
    c.smelt_dtype_name.restype = ctypes.c_char_p
    for name, number in abi.DTYPES.items():
        assert c.smelt_dtype_bytes(number) == abi.numpy_dtype(name).itemsize
        assert c.smelt_dtype_name(number) == name.encode()


STRUCTURES = {
    "smelt_tensor": abi.Tensor,
    "smelt_tensor_info": abi.TensorInfo,
    "smelt_array_layout": arrays.Layout,
    "smelt_array_call": arrays.Call,
}


@pytest.mark.parametrize("c_name", STRUCTURES)
def test_structures_have_the_layout_of_c(tmp_path, c_name):
    structure = STRUCTURES[c_name]
    fields = [name for name, _ in structure._fields_]
    numbers = ", ".join([f"sizeof({c_name})", *(f"offsetof({c_name}, {f})" for f in fields)])
    source = tmp_path / "layout.c"
    source.write_text(
        '#include "arrays.h"\n#include <stddef.h>\n#include <stdio.h>\n'
        f"int main(void) {{ size_t all[] = {{{numbers}}};\n"
        "for (unsigned i = 0; i < sizeof all / sizeof *all; i++) printf(\"%zu \", all[i]); }\n"
    )
    run("gcc", f"-I{INCLUDE}", source, "-o", tmp_path / "layout")
    layout = [int(n) for n in run(tmp_path / "layout").split()]
    assert layout == [ctypes.sizeof(structure), *(getattr(structure, f).offset for f in fields)]
