"""Scheduled kernels as TVM compiles them, next to the kernel interpreter, on the same inputs.

Integers and movement agree to the bit. Floats may differ where TVM lets LLVM fuse a product with a
sum, which the interpreter rounds in between: over a reduction of n terms that is at most n units
in the last place of the sum of magnitudes, so 1e-5 of the largest value leaves a margin for these
sizes; elementary functions are some units in the last place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cpu.native_graphs import Cases

pytest.importorskip("tvm")

from smelt.codegen.tensorir import Inexpressible, print_tensorir
from smelt.errors import TargetError
from smelt.ir import dtype as dt
from smelt.ir.expr import cast, evaluate
from smelt.ir.expr import op as operation
from smelt.ir.graph.core import Value
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.nodes import Kernel, load
from smelt.ir.operations import OPS
from smelt.ir.program import Copy, Launch, Program, Storage
from smelt.passes.graph.pipeline import Options, optimise
from smelt.passes.schedule import deep_gemm
from smelt.targets import tvm_bridge
from smelt.targets.cpu.generic import PORTABLE
from smelt.targets.cpu.isa import find_variants
from smelt.targets.cpu.target import lower_for
from smelt.targets.tvm_bridge import build

pytestmark = pytest.mark.slow

MACHINES = {"16": lambda: find_variants("x86-64-v4")[0], "8": lambda: find_variants("x86-64-v3")[0],
            "1": lambda: PORTABLE}
"""Machines by their lanes."""


def elementwise(c: Cases) -> None:
    g = c.graph
    x, y = c.input(3, 37), c.input(37)
    z = g.add("mul", [g.add("add", [x, y]), g.add("sigmoid", [x])])
    c.output(z)
    c.output(g.add("transpose", [g.add("tanh", [z])], {"perm": (1, 0)}))
    c.output(g.add("erf", [x]))
    c.output(g.add("log", [g.add("abs", [x])]))
    c.output(g.add("sin", [y]))


def reductions(c: Cases) -> None:
    g = c.graph
    x = c.input(5, 41)
    for kind in ("sum", "max", "min"):
        c.output(g.add(f"reduce_{kind}", [x], {"axes": (1,)}))
        c.output(g.add(f"reduce_{kind}", [x], {"axes": (0,)}))


def rows(c: Cases) -> None:
    g = c.graph
    for n in (7, 33, 64):
        x = c.input(4, n)
        c.output(g.add("softmax", [x], {"axis": 1}))
        c.output(g.add("layer_norm", [g.add("add", [x, c.input(n)]), c.input(n), c.input(n)],
                       {"axis": 1}))
    c.output(g.add("softmax", [c.input(3, 9, 17)], {"axis": 1}))


def products(c: Cases) -> None:
    g = c.graph
    for m, k, n in ((1, 16, 33), (15, 20, 48), (7, 9, 20)):
        w = g.constant(c.rng.standard_normal((k, n)).astype(np.float32))
        y = g.add("add", [g.add("matmul", [c.input(m, k), w]), c.input(n)])
        c.output(g.add("mul", [y, g.add("sigmoid", [y])]))
    c.output(g.add("matmul", [c.input(2, 5, 7), c.input(2, 7, 19)]))


def deep_products(c: Cases) -> None:
    w = c.graph.constant((c.rng.standard_normal((300, 33)) / 17).astype(np.float32))
    y = c.graph.add("add", [c.graph.add("matmul", [c.input(42, 300), w]), c.input(33)])
    c.output(c.graph.add("relu", [y]))


def convolution(c: Cases, channels: int, features: int, groups: int = 1, stride: int = 1) -> Value:
    g = c.graph
    w = c.rng.standard_normal((features, channels // groups, 3, 3)) / np.sqrt(9 * channels)
    y = g.add("conv", [c.input(1, channels, 9, 11), g.constant(w.astype(np.float32))], {
        "strides": (stride, stride), "dilations": (1, 1), "low": (1, 1), "high": (1, 1),
        "groups": groups})
    bias = c.rng.standard_normal((features, 1, 1)).astype(np.float32)
    return g.add("relu", [g.add("add", [y, g.constant(bias)])])


def convolutions(c: Cases) -> None:
    c.output(convolution(c, 3, 16, stride=2))
    c.output(convolution(c, 5, 33))
    c.output(convolution(c, 20, 20, groups=20))


def winograd(c: Cases) -> None:
    c.output(convolution(c, 16, 32))


def pooling(c: Cases) -> None:
    x, attrs = c.input(1, 5, 9, 8), {"kernel": (3, 2), "low": (1, 0), "sizes": (5, 8)}
    for name in ("pool_max", "pool_mean"):
        c.output(c.graph.add(name, [x], {**attrs, "strides": (2, 1)}))


def movement(c: Cases) -> None:
    g = c.graph
    rows = c.input(dtype=dt.i64, array=c.rng.integers(-9, 9, 20))
    c.output(g.add("gather", [c.input(9, 21), rows], {"axis": 0}))
    x = c.input(2, 3, 17)
    c.output(g.add("transpose", [x], {"perm": (2, 0, 1)}))
    c.output(g.add("concat", [x, c.input(2, 2, 17)], {"axis": 1}))
    c.output(g.add("slice", [x], {"starts": (0, 1, 16), "steps": (1, 1, -2), "sizes": (2, 2, 8)}))


def resizing(c: Cases) -> None:
    for kernel in ("nearest", "linear"):
        c.output(c.graph.add("resize", [c.input(1, 3, 5, 6)], {
            "axes": (2, 3), "sizes": (9, 13), "kernel": kernel}))


def integer_products(c: Cases) -> None:
    g = c.graph
    for m, k, n in ((3, 7, 17), (20, 64, 33)):
        array = c.rng.integers(0, 256, (m, k)).astype(np.uint8)
        wide = g.add("sub", [g.add("cast", [c.input(dtype=dt.u8, array=array)], {"to": dt.i32}),
                             g.constant(np.int32(113))])
        w = g.constant(c.rng.integers(-128, 128, (k, n)).astype(np.int8))
        y = g.add("matmul", [wide, w], {"dtype": dt.i32})
        scale = g.constant(c.rng.uniform(1e-4, 1e-2, (n,)).astype(np.float32))
        c.output(g.add("requantize", [y, scale, g.constant(np.float32(7))], {"to": dt.u8}))
        c.output(y)


CASTS = (dt.bool_, dt.i4, dt.u4, dt.i8, dt.u8, dt.i16, dt.i32, dt.i64, dt.u32, dt.u64, dt.f16,
         dt.bf16, dt.f32, dt.f64)


def casts(c: Cases) -> None:
    far = c.rng.standard_normal(40) * 10.0 ** c.rng.integers(-3, 12, 40)
    far[:7] = 0.5, -0.0, np.inf, -np.inf, np.nan, 255.5, -129
    whole = c.rng.integers(-(1 << 63), 1 << 63, 40) >> c.rng.integers(0, 63, 40)
    sources = [c.input(dtype=dt.f32, array=far.astype(np.float32)),
               c.input(dtype=dt.f64, array=far), c.input(dtype=dt.i64, array=whole),
               c.input(dtype=dt.i32, array=whole.astype(np.int32)),
               c.input(dtype=dt.f16, array=(far / 1e6).astype(np.float16)),
               c.input(dtype=dt.bf16, array=far.astype(dt.bf16.numpy))]
    for x in sources:
        for to in CASTS:
            unknown = (to in (dt.f16, dt.bf16) and x.dtype is dt.f64) or (
                to is dt.bf16 and x.dtype in (dt.i32, dt.i64))
            if to is not x.dtype and not unknown:
                c.output(c.graph.add("cast", [x], {"to": to}))


GRAPHS = (elementwise, reductions, rows, products, deep_products, convolutions, winograd, pooling,
          movement, resizing, integer_products, casts)


@pytest.mark.parametrize("lanes", ["16", *(pytest.param(n, marks=pytest.mark.slow)
                                           for n in ("8", "1"))])
@pytest.mark.parametrize("make", GRAPHS)
def test_kernels_agree_with_the_interpreter(make: Callable, lanes: str, monkeypatch, rng):
    monkeypatch.setattr(deep_gemm, "PANEL_BYTES", 10_000)
    c = Cases(int(rng.integers(1 << 31)))
    make(c)
    optimise(c.graph, Options(channels_last=True))
    program = lower_for(c.graph, MACHINES[lanes]())
    assert_agree(program, c)


def assert_agree(program: Program, c: Cases) -> None:
    """Every kernel of the program gives the same by both, on what the ones before it gave."""
    memory: dict[Storage, np.ndarray] = {}

    def array(storage: Storage) -> np.ndarray:
        root = storage.root()
        if root not in memory:
            kind = root.type.dtype.numpy
            if root.role == "input":
                memory[root] = np.ascontiguousarray(c.arrays[root.index]).copy()
            elif root.role == "constant":
                memory[root] = np.ascontiguousarray(root.array).astype(kind)
            else:
                shape = [evaluate(d, c.sizes) for d in root.type.shape]
                memory[root] = np.full(shape, 1).astype(kind)
        return memory[root].reshape(-1)

    for step in program.walk():
        if isinstance(step, Copy):
            array(step.target)[:] = array(step.source)
            continue
        assert isinstance(step, Launch), step
        sizes = {v.name: evaluate(e, c.sizes)
                 for v, e in zip(step.kernel.sizes, step.sizes, strict=True)}
        buffers = [array(s).reshape([evaluate(d, c.sizes) for d in p.shape])
                   for s, p in zip(step.args, step.kernel.params, strict=True)]
        # An output that is in place of a dead input has memory of its own in TVM.
        given = [b.copy() for b in buffers]
        run_kernel(step.kernel, buffers, sizes)
        build(step.kernel)(given, sizes)
        for k in range(len(buffers) - step.kernel.outputs, len(buffers)):
            assert_close(given[k], buffers[k], step.kernel)


def assert_close(found: np.ndarray, wanted: np.ndarray, kernel: Kernel) -> None:
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    if found.dtype.kind in "biu" or found.dtype.itemsize < 4:
        bits = [np.where(x == x, x, np.zeros_like(x)) for x in (found, wanted)]
        np.testing.assert_array_equal(*bits, err_msg=kernel.name)
        return
    numbers = wanted[np.isfinite(wanted)]
    largest = float(np.abs(numbers).max(initial=1e-30))
    np.testing.assert_allclose(found, wanted, 1e-5, 1e-5 * min(largest, 1e6), err_msg=kernel.name)


FLOATS = [n for n in OPS if n not in ("and", "or", "xor", "shl", "shr", "not", "select")]
INTEGERS = ["add", "sub", "mul", "div", "floordiv", "mod", "rem", "pow", "min", "max", "fma", "and",
            "or", "xor", "shl", "shr", "eq", "ne", "lt", "le", "gt", "ge", "select", "neg", "abs",
            "sign", "not"]
BOOLEANS = ["and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge", "select", "not", "min", "max"]
KINDS = {dt.f32: FLOATS, dt.f64: FLOATS, dt.bool_: BOOLEANS,
         **dict.fromkeys((dt.i8, dt.i32, dt.i64, dt.u8, dt.u32, dt.u64), INTEGERS)}


@pytest.mark.parametrize("lanes", [1, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_every_operation_has_its_meaning(dtype, lanes, rng):
    """Wrapping integers, division by zero and by -1, shifts by too much, NaN, infinities, zeros of
    both signs; values to the bit but for the elementary functions of floats."""
    b = Builder("operations")
    operands = [b.param("x", dtype, (64,)) for _ in range(3)]
    chosen = b.param("c", dt.bool_, (64,))
    at = [(name, b.param("y", dt.bool_ if OPS[name].result == "bool" else dtype, (64,)))
          for name in KINDS[dtype]]
    with b.loop("i", 64 // lanes) as i:
        for name, y in at:
            args = [load(x, (i * lanes,), lanes) for x in operands[:OPS[name].arity]]
            if name == "select":
                args[0] = load(chosen, (i * lanes,), lanes)
            b.store(y, i * lanes, operation(name, *args))
    kernel = b.kernel(outputs=len(at))
    inputs = [values(dtype, rng) for _ in operands] + [rng.integers(0, 2, 64).astype(bool)]
    if dtype.is_integer:
        inputs[1][:20] = rng.integers(-3 if dtype.kind == "int" else 0, dtype.bits + 3, 20)
    if dtype is dt.i64:
        # A lone index divided by zero, or a quotient beyond 64 bits, is a fault of the kernel.
        inputs[1][inputs[1] == 0] = 3
        inputs[0][(inputs[0] == dtype.min) & (inputs[1] == -1)] = 5
    wanted = [np.zeros(64, y.dtype.numpy) for _, y in at]
    found = [a.copy() for a in wanted]
    run_kernel(kernel, [*inputs, *wanted])
    build(kernel)([*inputs, *found])
    for (name, _), got, want in zip(at, found, wanted, strict=True):
        if dtype.is_float and got.dtype.kind == "f":
            # The product of fma is rounded by the interpreter for f64 only.
            atol = 1e-5 if name in ("fma", "sin", "cos", "tan") else 0
            np.testing.assert_allclose(got, want, 2e-6, atol, err_msg=name)
            some = want == 0 if name != "fma" else np.zeros(64, bool)
            np.testing.assert_array_equal(np.signbit(got[some]), np.signbit(want[some]), name)
        else:
            np.testing.assert_array_equal(got, want, err_msg=name)


def values(dtype: dt.DType, rng: np.random.Generator) -> np.ndarray:
    if dtype.is_bool:
        return rng.integers(0, 2, 64).astype(bool)
    if dtype.is_float:
        x = rng.standard_normal(64) * 3
        x[:8] = 0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2.5
        return rng.permutation(x).astype(dtype.numpy)
    x = rng.integers(dtype.min, dtype.max, 64, endpoint=True, dtype=dtype.numpy)
    special = [v for v in (0, 1, -1, 2, 7, dtype.min, dtype.max) if dtype.min <= v <= dtype.max]
    x[20:50] = rng.choice(np.array(special, dtype.numpy), 30)
    return x


def test_what_has_no_form_is_refused_with_a_sentence():
    b = Builder("narrow")
    x, y = b.param("x", dt.f8e4m3fn, (4,)), b.param("y", dt.f32, (4,))
    with b.loop("i", 4) as i:
        b.store(y, i, cast(x[i], dt.f32))
    with pytest.raises(Inexpressible, match="kernel narrow has no TensorIR form: arithmetic of "
                                            "f8e4m3fn is missing"):
        print_tensorir(b.kernel())


def test_text_is_a_function_of_the_kernel():
    def made() -> Kernel:
        b = Builder("twice")
        x, y = b.param("x", dt.f32, (32,)), b.param("y", dt.f32, (32,))
        with b.loop("i", 2, "parallel") as i:
            b.store(y, i * 16, load(x, (i * 16,), 16) * 2.0)
        return b.kernel()

    text = print_tensorir(made())
    assert text == print_tensorir(made())
    assert "in T.parallel(T.int64(0), T.int64(2))" in text
    assert "T.int64(1), 16)] = (x_1[T.Ramp(" in text


def test_a_compiler_error_names_the_kernel(monkeypatch):
    monkeypatch.setattr(tvm_bridge, "host_target", lambda: {"kind": "nothing"})
    b = Builder("one")
    b.store(b.param("y", dt.f32, (1,)), 0, 1.0)
    with pytest.raises(TargetError, match="TVM cannot compile kernel one"):
        build(b.kernel())
