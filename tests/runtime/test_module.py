"""Compiled models in Python: calls, errors, threads, sessions, leaks."""

import ctypes
import gc
import os
import platform
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import smelt
import smelt.runtime
from smelt.errors import ArtifactError, InputError, SmeltError, UsageError
from smelt.runtime import Module, abi

W = np.array([1, -2, 0.5, 8], np.float32)


@pytest.fixture
def scale(artifact) -> Module:
    return smelt.runtime.load(artifact("scale"), threads=1)


def expected(x: np.ndarray, a: float) -> tuple[np.ndarray, np.ndarray]:
    sums = np.zeros(len(x), np.float32)
    for column in range(4):  # in the program's order
        sums += x[:, column]
    return np.float32(a) * x + W, np.flatnonzero(sums > 0)


def check(got, x: np.ndarray, a: float) -> None:
    y, rows = expected(x, a)
    # One multiplication and one addition, perhaps fused.
    np.testing.assert_allclose(got[0], y, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got[1], rows)
    assert got[0].dtype == np.float32 and got[1].dtype == np.int64


# --- calls -------------------------------------------------------------------------------------


def test_signature(scale: Module):
    assert [str(s) for s in scale.inputs] == ["x: f32[N, 4]", "a: f32[]"]
    assert [str(s) for s in scale.outputs] == ["y: f32[N, 4]", "rows: i64[M]"]
    assert (scale.name, scale.isa, scale.threads) == ("scale", "native", 1)
    assert scale.manifest["target"] == "cpu"


def test_calls_by_position_name_and_mapping(scale: Module, rng):
    x, a = rng.standard_normal((7, 4), np.float32), np.float32(0.5)
    check(scale(x, a), x, a)
    check(scale(a=a, x=x), x, a)
    check(scale(x, a=a), x, a)
    by_name = scale.run({"a": a, "x": x})
    assert list(by_name) == ["y", "rows"]
    check(tuple(by_name.values()), x, a)


def test_sizes_may_change_at_every_call(scale: Module, rng):
    for n in [3, 3, 1, 0, 1000, 3, 17, 17, 0, 0, 2]:
        x = rng.standard_normal((n, 4), np.float32)
        check(scale(x, np.float32(n)), x, n)


def test_results_are_the_callers_own(scale: Module, rng):
    x = rng.standard_normal((5, 4), np.float32)
    first = scale(x, np.float32(1))
    kept = [r.copy() for r in first]
    second = scale(-x, np.float32(3))
    np.testing.assert_array_equal(first[0], kept[0])
    np.testing.assert_array_equal(first[1], kept[1])
    assert not np.shares_memory(first[0], second[0])
    first[0][...] = 0  # writable


class Subclass(np.ndarray):
    pass


def test_strided_swapped_unaligned_and_readonly_inputs(scale: Module, rng):
    x, a = rng.standard_normal((6, 4), np.float32), np.array(0.25, np.float32)
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = buffer[1:].view(np.float32).reshape(6, 4)
    unaligned[...] = x
    assert not unaligned.flags.aligned
    locked = x.copy()
    locked.setflags(write=False)
    twice = np.zeros((12, 4), np.float32)
    twice[::2] = x
    for given in (np.asfortranarray(x), x[:, ::-1].copy()[:, ::-1], twice[::2], x.astype(">f4"),
                  unaligned, locked, x.view(Subclass)):
        for _ in range(2):
            check(scale(given, a), x, a)


def test_tensors_that_grow_within_a_run(artifact):
    model = smelt.runtime.load(artifact("append"))
    for n in (1, 1000, 3, 50000):
        np.testing.assert_array_equal(model(n), np.arange(n))
    with pytest.raises(SmeltError, match="No memory for a tensor of 1152921504606846976 bytes."):
        model(-60)
    with pytest.raises(InputError, match="The model cannot run on this data."):
        model(0)
    np.testing.assert_array_equal(model(5), np.arange(5))


def test_lists_and_numbers(scale: Module):
    check(scale([[1, 2, 3, 4]], 2), np.array([[1, 2, 3, 4]], np.float32), 2)
    check(scale([[0.5, 2, 3, 4]], 2.5), np.array([[0.5, 2, 3, 4]], np.float32), 2.5)


def test_torch_tensors(scale: Module, rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((6, 4), np.float32))
    check(scale(x, torch.tensor(2.0)), x.numpy(), 2)
    check(scale(x.T.contiguous().T, 2), x.numpy(), 2)
    with pytest.raises(InputError, match='"x" cannot be read through DLPack'):
        scale(x.requires_grad_(), 2)


DTYPES = [
    ("bool", np.bool_), ("i8", np.int8), ("i16", np.int16), ("i32", np.int32), ("i64", np.int64),
    ("u8", np.uint8), ("u16", np.uint16), ("u32", np.uint32), ("u64", np.uint64),
    ("f16", np.float16), ("f32", np.float32), ("f64", np.float64), ("bf16", "bfloat16"),
    ("f8e4m3fn", "float8_e4m3fn"), ("f8e5m2", "float8_e5m2"), ("i4", "int4"), ("u2", "uint2"),
]


@pytest.mark.parametrize(("name", "scalar"), DTYPES, ids=[name for name, _ in DTYPES])
def test_element_types(name, scalar, artifact, rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, scalar) if isinstance(scalar, str) else scalar)
    number = smelt.runtime.abi.DTYPES[name]
    path = artifact("identity", f"-DDTYPE={number}", f"-DBYTES={dtype.itemsize}")
    model = smelt.runtime.load(path, threads=1)
    data = rng.integers(0, 2, (9, 2 * dtype.itemsize), np.uint8)
    x = np.ascontiguousarray(data[:, ::2]).reshape(-1).view(dtype)
    y = model(x)
    assert y.dtype == dtype
    assert y.tobytes() == x.tobytes()
    shifted = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(dtype)
    assert model(shifted).tobytes() == x.tobytes()
    with pytest.raises(InputError, match=f'"in" must be {name}\\[N\\], but is '):
        model(np.zeros(3, np.float64 if name != "f64" else np.float32))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_torch_types_that_numpy_lacks(name, artifact):
    torch = pytest.importorskip("torch")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name))
    number = smelt.runtime.abi.DTYPES[smelt.runtime.abi.dtype_name(dtype)]
    path = artifact("identity", f"-DDTYPE={number}", f"-DBYTES={dtype.itemsize}")
    model = smelt.runtime.load(path, threads=1)
    x = torch.linspace(-2, 2, 40).to(getattr(torch, name))
    y = model(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float32), x.float().numpy())
    np.testing.assert_array_equal(model(x[::2]).astype(np.float32), x[::2].float().numpy())


def test_without_ml_dtypes_encodings_come_as_integers(artifact):
    number = smelt.runtime.abi.DTYPES["bf16"]
    path = artifact("identity", f"-DDTYPE={number}", "-DBYTES=2")
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import smelt.runtime, numpy as np\n"
        "y = smelt.runtime.load(sys.argv[1])(np.arange(5, dtype=np.uint16))\n"
        "print(y.dtype, *y)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["uint16", "0", "1", "2", "3", "4"]


# --- errors ------------------------------------------------------------------------------------

X = np.zeros((2, 4), np.float32)
A = np.float32(1)


@pytest.mark.parametrize(
    ("args", "named", "sentence"),
    [
        ((X,), {}, 'Input "a" is missing: the model takes x: f32[N, 4], a: f32[].'),
        ((X, A, A), {}, "The model takes 2 inputs, but 3 were given"),
        ((X,), {"b": A}, 'The model has no input "b": it takes x: f32[N, 4], a: f32[].'),
        ((X, A), {"x": X}, 'Input "x" was given twice.'),
        ((X.astype(np.float64), A), {}, 'Input "x" must be f32[N, 4], but is f64[2, 4].'),
        ((X[0], A), {}, 'Input "x" must be f32[N, 4], but is f32[4].'),
        ((X[:, :3], A), {}, 'Input "x" must be f32[N, 4], but is f32[2, 3].'),
        ((X, X), {}, 'Input "a" must be f32[], but is f32[2, 4].'),
        ((X, [1, 2]), {}, 'Input "a" must be f32[], but is f32[2].'),
        ((np.zeros((1000001, 4), np.float32), A), {}, "N may be at most 1000000."),
        ((X.astype(complex), A), {}, 'Input "x" must be f32, but is an array of complex128.'),
        ((X.astype(str), A), {}, 'Input "x" must be f32, but is an array of <U32.'),
        ((None, A), {}, 'Input "x" must be a numpy array or have __dlpack__, but is NoneType.'),
        (([[1, 2], [3]], A), {}, 'Input "x" must be f32: '),
        ((np.float32([[-1234, 0, 0, 0]]), A), {}, "A row sums to -1234."),
    ],
)
def test_wrong_inputs(scale: Module, args, named, sentence):
    good = np.ones((3, 4), np.float32)
    for _ in range(2):  # also after a call that worked
        with pytest.raises(InputError) as error:
            scale(*args, **named)
        assert sentence in str(error.value)
        check(scale(good, A), good, 1)


def test_integers_out_of_range_are_refused(artifact):
    model = smelt.runtime.load(artifact("identity", "-DDTYPE=6", "-DBYTES=1"))
    assert model([1, 255]).tolist() == [1, 255]
    for wrong in ([256], [-1]):
        with pytest.raises(InputError, match='Input "in" must be u8: '):
            model(wrong)
    with pytest.raises(InputError, match='must be u8.N., but is f64.1.'):
        model([0.5])


def test_a_closed_session_says_so(scale: Module):
    session = scale.session(threads=1)
    session(X, A)
    session.close()
    session.close()
    for call in (lambda: session(X, A), lambda: session.threads, session.reset_states):
        with pytest.raises(UsageError, match="closed"):
            call()
    check(scale(X, A), X, 1)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", 2**40])
def test_wrong_numbers_of_threads(scale: Module, threads):
    with pytest.raises(UsageError, match="whole number of 1 or more"):
        scale.threads = threads


def test_the_cpu_must_run_a_variant(artifact):
    with pytest.raises(ArtifactError, match="needs a CPU with x86-64-v9, armv99"):
        smelt.runtime.load(artifact("scale", "-DNO_VARIANT"))


def test_another_machines_library(artifact, tmp_path):
    path = artifact("scale")
    files = {"model.so": b"\x7fELF of another kind" * 10}
    broken = smelt.runtime.artifact.write_artifact(
        tmp_path / "b", smelt.runtime.artifact.open_artifact(path).manifest, files
    )
    with pytest.raises(ArtifactError, match="made for cpu, cannot be loaded on this machine"):
        smelt.runtime.load(broken)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF files")
@pytest.mark.parametrize("form", ["m.smelt", "m.zip"])
@pytest.mark.parametrize("entrance", [smelt.load, smelt.runtime.load, Module])
def test_a_library_for_another_machine(artifact, tmp_path, form, entrance):
    opened = smelt.runtime.artifact.open_artifact(artifact("scale"))
    files = {name: opened.file(name).read_bytes() for name in opened.manifest["files"]}
    number, other = (62, "x86_64") if platform.machine() == "aarch64" else (183, "aarch64")
    library = bytearray(files["model.so"])
    library[18:20] = struct.pack("<H", number)  # e_machine
    files["model.so"] = bytes(library)
    path = smelt.runtime.artifact.write_artifact(tmp_path / form, opened.manifest, files)
    sentence = f"was compiled for {other} .*on this machine, which is {platform.machine()}: "
    with pytest.raises(ArtifactError, match=sentence):
        entrance(path)


@pytest.mark.parametrize(
    ("target", "files", "sentence"),
    [
        ("vliw:x", ["model.so"], "is made for vliw:x, not for a CPU"),
        ("cpu:wasm32", ["model.wasm", "model.mjs"], "is WebAssembly .cpu:wasm32.*model.mjs"),
        ("cpu:generic", ["model.c"], "is source code for cpu:generic: build it"),
    ],
)
def test_artifacts_that_this_process_cannot_load(artifact, tmp_path, target, files, sentence):
    description = {**smelt.runtime.artifact.open_artifact(artifact("scale")).manifest,
                   "target": target}
    path = smelt.runtime.artifact.write_artifact(
        tmp_path / "other", description, dict.fromkeys(files, b"x")
    )
    for entrance in (smelt.load, Module):
        with pytest.raises(ArtifactError, match=sentence):
            entrance(path)


def test_a_library_of_another_interface(artifact, tmp_path):
    source = tmp_path / "other.c"
    source.write_text("int smelt_other(void) { return 0; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", tmp_path / "model.so"], check=True)
    description = smelt.runtime.artifact.open_artifact(artifact("scale")).manifest
    path = smelt.runtime.artifact.write_artifact(
        tmp_path / "old", {**description, "smelt": "0.0.7"}, {"model.so": tmp_path / "model.so"}
    )
    with pytest.raises(ArtifactError, match="was made by smelt 0.0.7, .*compile the model again"):
        smelt.runtime.load(path)


def test_an_artifact_that_replaces_one_in_use(artifact):
    path = artifact("scale")
    for turn in range(3):
        first = smelt.runtime.load(path, threads=1)
        check(first(X + turn, A), X + turn, 1)
        artifact("identity", "-DDTYPE=12", "-DBYTES=4")  # in the same place
        second = smelt.runtime.load(path, threads=1)
        np.testing.assert_array_equal(second(X[0] + turn), X[0] + turn)
        artifact("scale")
        third = smelt.runtime.load(path, threads=1)
        for _ in range(2):
            check(third(X, A), X, 1)
            check(first(X, A), X, 1)
            assert [m.name for m in (first, second, third)] == ["scale", "identity", "scale"]


# --- threads and sessions ----------------------------------------------------------------------


def test_results_do_not_depend_on_threads(scale: Module, rng):
    x = rng.standard_normal((20011, 4), np.float32)
    wanted = scale(x, np.float32(0.1))
    check(wanted, x, 0.1)
    for threads in (2, 3, 7):
        scale.threads = threads
        assert scale.threads == threads
        for _ in range(50):
            got = scale(x, np.float32(0.1))
            assert got[0].tobytes() == wanted[0].tobytes()
            assert got[1].tobytes() == wanted[1].tobytes()


def test_threads_come_from_the_environment(artifact, monkeypatch):
    path = artifact("scale")
    monkeypatch.setenv("SMELT_NUM_THREADS", "3")
    assert smelt.runtime.load(path).threads == 3
    assert smelt.runtime.load(path, threads=2).threads == 2


def test_sessions_run_at_the_same_time(scale: Module, rng):
    sessions = [scale.session(threads=t) for t in (1, 2, 1, 3)]
    xs = [rng.standard_normal((n, 4), np.float32) for n in (5, 3000, 999, 100)]

    def many(index: int) -> None:
        for turn in range(100):
            x = xs[(index + turn) % 4]
            check(sessions[index](x, np.float32(index)), x, index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, range(4)))


def test_one_session_called_from_many_threads(scale: Module, rng):
    xs = [rng.standard_normal((n, 4), np.float32) for n in (5, 5, 300, 7)]

    def many(index: int) -> None:
        for _ in range(200):
            check(scale(xs[index], np.float32(index)), xs[index], index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, range(4)))


def test_a_session_outlives_its_module(artifact):
    session = smelt.runtime.load(artifact("scale", to="m.zip")).session(threads=2)
    gc.collect()
    check(session(X, A), X, 1)


def test_sessions_in_garbage_cycles(artifact):
    path = artifact("scale")
    for _ in range(20):
        module = smelt.runtime.load(path, threads=2)
        session = module.session(threads=2)
        module.other, session.other = session, module  # type: ignore[attr-defined]
        session(X, A)
        del module, session
        gc.collect()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*")
def test_a_forked_child_goes_on(scale: Module, rng):
    scale.threads = 3
    x = rng.standard_normal((5000, 4), np.float32)
    wanted = scale(x, A)[0].tobytes()
    child = os.fork()
    if child == 0:
        same = all(scale(x, A)[0].tobytes() == wanted for _ in range(20))
        os._exit(0 if same else 1)
    deadline = time.monotonic() + 300
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if not done:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done and status == 0
    assert scale(x, A)[0].tobytes() == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_after_models_are_gone(artifact):
    path = artifact("scale")
    for _ in range(3):
        module = smelt.runtime.load(path, threads=2)
        check(module(X, A), X, 1)
        module.close()
        del module
        gc.collect()
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_the_interpreter_ends_while_models_are_open(artifact):
    code = (
        "import sys, threading, numpy as np, smelt.runtime\n"
        "m = smelt.runtime.load(sys.argv[1], threads=3)\n"
        "x = np.ones((100000, 4), np.float32)\n"
        "def forever():\n"
        "    s = m.session(threads=2)\n"
        "    while True: s(x, 1)\n"
        "threading.Thread(target=forever, daemon=True).start()\n"
        "for _ in range(20): m(x, 1)\n"
        "print(m(x, 1)[0][0, 0])"
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code, str(artifact("scale", to="m.zip"))],
            capture_output=True, text=True, timeout=300,
        )
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "2.0", "")


# --- resources ---------------------------------------------------------------------------------


def resident_kilobytes() -> int:
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1])


def least_growth(function: Callable[[], object], times: int) -> int:
    """Kilobytes that `times` calls add, the least of three: a leak grows in each, what other
    threads of this process do comes and goes."""
    grown = []
    for _ in range(3):
        before = resident_kilobytes()
        for _ in range(times):
            function()
        gc.collect()
        grown.append(resident_kilobytes() - before)
    return min(grown)


def open_files_and_threads() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def mappings() -> int:
    with open("/proc/self/maps") as file:
        return len(file.readlines())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["m.smelt", "m.zip"])
def test_loading_running_and_closing_leaks_nothing(artifact, name):
    path = artifact("scale", to=name)
    x = np.ones((3000, 4), np.float32)

    def once() -> None:
        module = smelt.runtime.load(path, threads=2)
        module(x, 1)
        module(x[:7], 1)
        with module.session(threads=2) as other:
            other(x, 1)

    for _ in range(30):
        once()
    gc.collect()
    before = *open_files_and_threads(), mappings()
    assert least_growth(once, 100) < 1024  # one leaked arena of 100 would be 1,500
    # Not equal: the system still lists a thread for a moment after it was joined.
    after = *open_files_and_threads(), mappings()
    assert all(b - a < 10 for a, b in zip(before, after, strict=True)), (before, after)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_many_calls_leak_nothing(scale: Module):
    x = np.ones((3000, 4), np.float32)
    for _ in range(100):
        scale(x, A)
    assert least_growth(lambda: scale(x, A), 3000) < 1024


def test_a_copy_runs(scale: Module, tmp_path):
    for name in ("copy.smelt", "copy.zip"):
        copy = smelt.runtime.load(scale.save(tmp_path / name))
        check(copy(X, A), X, 1)
        assert copy.manifest == scale.manifest


def test_runtime_loads_numpy_and_nothing_else(artifact):
    code = (
        "import sys; before = set(sys.modules)\n"
        "import smelt.runtime, numpy as np\n"
        "m = smelt.runtime.load(sys.argv[1])\n"
        "m(np.ones((2, 4), np.float32), np.float32(1))\n"
        "print(*sorted({n.split('.')[0] for n in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifact("scale"))], capture_output=True, text=True,
        check=True,
    )
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) <= {"numpy", "smelt"}


@pytest.mark.slow
def test_a_call_adds_less_than_five_microseconds_to_c(artifact):
    model = smelt.runtime.load(artifact("identity", "-DDTYPE=12", "-DBYTES=4"), threads=1)
    x = np.ones(16, np.float32)
    model(x)
    shape = (ctypes.c_int64 * 1)(16)
    tensors = (abi.Tensor * 2)(abi.Tensor(x.ctypes.data, shape, abi.DTYPES["f32"], 1))
    size = ctypes.sizeof(abi.Tensor)
    given = ctypes.addressof(tensors)
    c = (model._handle, given, 1, given + size, 1)

    def seconds(call, *args) -> float:
        start = time.thread_time()
        for _ in range(50):
            call(*args)
        return (time.thread_time() - start) / 50

    turns = [(seconds(model, x), seconds(model._c.smelt_run, *c)) for _ in range(200)]
    ours, theirs = (min(column) for column in zip(*turns))
    print(f"{ours * 1e6:.2f} us, of them in C and on the way there {theirs * 1e6:.2f} us")
    assert ours - theirs < 5e-6  # about 1 us
