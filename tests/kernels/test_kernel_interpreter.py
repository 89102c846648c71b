"""The kernel interpreter: arithmetic, vectors, divergence of parallel iterations, faults."""

import numpy as np
import pytest

from smelt.ir import dtype as dt
from smelt.ir.expr import (
    broadcast,
    cast,
    const,
    equal,
    op,
    ramp,
    select,
    size,
    var,
)
from smelt.ir.kernel import translation
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import KernelFault, run_kernel
from smelt.ir.kernel.intrinsics import dot4, horizontal, scale, shuffle
from smelt.ir.kernel.nodes import Block, Buffer, For, Kernel, Store, load

N = size("n")


@pytest.fixture(params=["one by one", "side by side"])
def mode(request, monkeypatch):
    """Parallel iterations run one by one (Python scalars) or side by side (numpy rows)."""
    monkeypatch.setattr(translation, "FEW", 1 << 30 if request.param == "one by one" else 0)
    return request.param


def unary(name: str, dtype: dt.DType, result: dt.DType | None = None):
    b = Builder("k")
    x, y = b.param("x", dtype, (N,)), b.param("y", result or dtype, (N,))
    with b.loop("i", N, "parallel") as i:
        b.store(y, i, op(name, x[i]))
    return b.kernel()


def binary(name: str, dtype: dt.DType, result: dt.DType | None = None):
    b = Builder("k")
    x, z, y = (b.param(s, t, (N,)) for s, t in (("x", dtype), ("z", dtype), ("y", result or dtype)))
    with b.loop("i", N, "parallel") as i:
        b.store(y, i, op(name, x[i], z[i]))
    return b.kernel()


def run_binary(name: str, dtype: dt.DType, x, z, result: dt.DType | None = None):
    x, z = (np.asarray(v).astype(dtype.numpy) for v in (x, z))
    y = np.zeros(len(x), (result or dtype).numpy)
    run_kernel(binary(name, dtype, result), [x, z, y], {"n": len(x)})
    return y


@pytest.mark.parametrize("dtype", [dt.i8, dt.u8, dt.i32, dt.u32, dt.i64, dt.u64, dt.i16],
                         ids=str)
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_integers_wrap(mode, name: str, dtype: dt.DType):
    rng = np.random.default_rng(1)
    x, z = (rng.integers(dtype.min, dtype.max, 17, dtype.numpy, endpoint=True) for _ in range(2))
    exact = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}
    want = [(exact[name](int(a), int(b)) - dtype.min) % (1 << dtype.bits) + dtype.min
            for a, b in zip(x, z, strict=True)]
    assert run_binary(name, dtype, x, z).tolist() == want


@pytest.mark.parametrize("dtype", [dt.i2, dt.u2, dt.i4, dt.u4], ids=str)
def test_integers_below_a_byte_wrap_to_their_width(mode, dtype: dt.DType):
    pairs = [(a, b) for a in range(dtype.min, dtype.max + 1)
             for b in range(dtype.min, dtype.max + 1)]
    for name, exact in (("add", lambda a, b: a + b), ("mul", lambda a, b: a * b),
                        ("sub", lambda a, b: a - b), ("xor", lambda a, b: a ^ b)):
        got = run_binary(name, dtype, *zip(*pairs, strict=True))
        want = [(exact(a, b) - dtype.min) % (1 << dtype.bits) + dtype.min for a, b in pairs]
        assert got.astype(int).tolist() == want, name


@pytest.mark.parametrize("dtype", [dt.i8, dt.i32, dt.i64, dt.u8, dt.u64], ids=str)
def test_division_truncates_and_remainders_follow_their_sign_rules(mode, dtype: dt.DType):
    low = 0 if dtype.kind == "uint" else -7
    pairs = [(a, b) for a in range(low, 8) for b in range(low, 8) if b]
    x, z = zip(*pairs, strict=True)
    trunc = [int(a / b) for a, b in pairs]
    assert run_binary("div", dtype, x, z).tolist() == trunc
    assert run_binary("rem", dtype, x, z).tolist() == [
        a - b * q for (a, b), q in zip(pairs, trunc, strict=True)]
    assert run_binary("floordiv", dtype, x, z).tolist() == [a // b for a, b in pairs]
    assert run_binary("mod", dtype, x, z).tolist() == [a % b for a, b in pairs]
    assert run_binary("div", dtype, [5], [0]).tolist() == [0]


@pytest.mark.parametrize("dtype", [dt.i32, dt.u8, dt.i64, dt.u32], ids=str)
def test_shifts_by_the_width_or_more_give_zero(mode, dtype: dt.DType):
    w = dtype.bits
    by = [0, 1, w - 1, w, w + 1]
    assert run_binary("shl", dtype, [3] * 5, by).tolist() == [
        (3 << s - 0) % (1 << w) - (1 << w) * (dtype.kind == "int" and s == w - 1)
        if s < w else 0 for s in by]
    top = dtype.max
    assert run_binary("shr", dtype, [top] * 5, by).tolist() == [top >> s if s < w else 0
                                                               for s in by]


def test_min_and_max_propagate_nan(mode):
    nan = float("nan")
    for name in ("min", "max"):
        got = run_binary(name, dt.f32, [1, nan, nan, 2], [nan, 1, nan, 3])
        assert np.isnan(got).tolist() == [True, True, True, False]


def test_comparisons_with_nan_are_false_but_ne(mode):
    nan = float("nan")
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        got = run_binary(name, dt.f32, [1, nan, nan], [nan, 1, nan], dt.bool_)
        assert got.tolist() == [name == "ne"] * 3


@pytest.mark.parametrize("dtype", [dt.f16, dt.bf16, dt.f32, dt.f64, dt.f8e4m3fn], ids=str)
def test_every_float_operation_rounds_to_its_type(mode, dtype: dt.DType):
    rng = np.random.default_rng(2)
    x = rng.uniform(0.5, 2.0, 33).astype(dtype.numpy)
    z = rng.uniform(0.5, 2.0, 33).astype(dtype.numpy)
    b = Builder("k")
    xb, zb, yb = (b.param(s, dtype, (N,)) for s in "xzy")
    with b.loop("i", N, "parallel") as i:
        b.store(yb, i, (xb[i] * zb[i] + xb[i]) / zb[i])
    y = np.zeros(33, dtype.numpy)
    run_kernel(b.kernel(), [x, z, y], {"n": 33})
    wide = np.float64

    def rounded(v):
        return v.astype(dtype.numpy)

    product = rounded(x.astype(wide) * z.astype(wide))
    total = rounded(product.astype(wide) + x.astype(wide))
    want = rounded(total.astype(wide) / z.astype(wide))
    np.testing.assert_array_equal(y.astype(wide), want.astype(wide))


@pytest.mark.parametrize("name, function", [
    ("exp", np.exp), ("log", np.log), ("tanh", np.tanh), ("sqrt", np.sqrt), ("sin", np.sin),
    ("rsqrt", lambda v: 1 / np.sqrt(v)), ("round", np.rint), ("floor", np.floor)])
@pytest.mark.parametrize("dtype, rtol", [(dt.f16, 1e-3), (dt.bf16, 8e-3), (dt.f32, 1e-6),
                                         (dt.f64, 1e-14)])
def test_functions(mode, name: str, function, dtype: dt.DType, rtol: float):
    x = np.random.default_rng(3).uniform(0.1, 3, 9).astype(dtype.numpy)
    y = np.zeros(9, dtype.numpy)
    run_kernel(unary(name, dtype), [x, y], {"n": 9})
    # Tolerance: one unit of the type's last place.
    np.testing.assert_allclose(y.astype(np.float64), function(x.astype(np.float64)), rtol)


def converted(source: dt.DType, target: dt.DType, values, cast_mode: str = "value"):
    b = Builder("k")
    x, y = b.param("x", source, (N,)), b.param("y", target, (N,))
    with b.loop("i", N, "parallel") as i:
        b.store(y, i, cast(x[i], target, cast_mode))
    out = np.zeros(len(values), target.numpy)
    array = np.array(values, source.numpy) if source.numpy.kind != "V" else np.array(
        values, np.float64).astype(source.numpy)
    run_kernel(b.kernel(), [array, out], {"n": len(values)})
    return out


def test_casts(mode):
    inf, nan = float("inf"), float("nan")
    assert converted(dt.f32, dt.i8, [1.9, -1.9, 300, -300, nan, inf]).tolist() == [
        1, -1, 127, -128, 0, 127]
    assert converted(dt.f64, dt.i64, [1e300, -1e300, nan, 2.5]).tolist() == [
        2**63 - 1, -(2**63), 0, 2]
    assert converted(dt.f32, dt.u64, [-1, 1e30]).tolist() == [0, 2**64 - 1]
    assert converted(dt.i64, dt.i8, [300, -129]).tolist() == [44, 127]
    assert converted(dt.i64, dt.u4, [17, -1]).astype(int).tolist() == [1, 15]
    assert converted(dt.f32, dt.bool_, [0, -0.0, 0.5, nan]).tolist() == [False, False, True, True]
    assert converted(dt.bool_, dt.f32, [True, False]).tolist() == [1, 0]
    assert converted(dt.f32, dt.i32, [1.0, -2.0], "bits").tolist() == [0x3F800000, -0x40000000]
    assert converted(dt.i64, dt.f64, [0x3FF0000000000000], "bits").tolist() == [1.0]
    assert converted(dt.f32, dt.f8e5m2, [1e9, inf, -1e9], "saturate").astype(float).tolist() == [
        57344, inf, -57344]
    assert converted(dt.f32, dt.bf16, [1 + 2**-8, 1 + 3 * 2**-8]).astype(float).tolist() == [
        1, 1 + 2**-6]


def test_loops_conditions_and_scalars_diverge_by_iteration(mode):
    """Collatz lengths: while loops of different lengths beside each other."""
    b = Builder("k")
    x, y = b.param("x", dt.i64, (N,)), b.param("y", dt.i64, (N,))
    with b.loop("i", N, "parallel") as i:
        v, steps = b.scalar("v", dt.i64, x[i]), b.scalar("steps", dt.i64, 0)
        with b.while_(v[()] > 1):
            with b.when(equal(v[()] % 2, 0)):
                b.store(v, (), v[()] // 2)
            with b.otherwise():
                b.store(v, (), v[()] * 3 + 1)
            b.update(steps, (), "add", 1)
        b.store(y, i, steps[()])
    x = np.arange(1, 40)
    y = np.zeros_like(x)
    run_kernel(b.kernel(), [x, y], {"n": len(x)})

    def length(v):
        return 0 if v == 1 else 1 + length(v // 2 if v % 2 == 0 else 3 * v + 1)

    assert y.tolist() == [length(int(v)) for v in x]


def test_nested_parallel_loops_with_different_extents_and_local_arrays(mode):
    b = Builder("k")
    m = b.param("m", dt.i64, (N,))
    y = b.param("y", dt.i64, (N, 8))
    with b.loop("i", N, "parallel") as i:
        table = b.alloc("table", dt.i64, (8,))
        count = b.let("count", m[i])
        with b.loop("j", 8) as j:
            b.store(table, j, -1)
        with b.loop("j", count, "vector") as j:
            b.store(table, j, i * 100 + j)
        with b.loop("j", count) as j:
            b.update(table, j, "add", j)
        with b.loop("j", 8) as j:
            b.store(y, (i, j), table[j])
    m = np.array([3, 0, 8, 1, 5, 2, 7, 4])
    y = np.zeros((8, 8), np.int64)
    run_kernel(b.kernel(), [m, y], {"n": 8})
    want = np.array([[i * 100 + 2 * j if j < m[i] else -1 for j in range(8)] for i in range(8)])
    np.testing.assert_array_equal(y, want)


def test_vectors_with_tails_gathers_and_broadcasts(mode):
    b = Builder("k")
    x, at = b.param("x", dt.f32, (N,)), b.param("at", dt.i64, (N,))
    y, z = b.param("y", dt.f32, (N,)), b.param("z", dt.f32, (N,))
    with b.loop("block", op("floordiv", N + 7, 8), "parallel") as block:
        base = block * 8
        left = N - base
        v = load(x, (base,), 8, left)
        b.store(y, base, v * broadcast(const(2.0, dt.f32), 8) + broadcast(x[0], 8), left)
        picked = load(x, (load(at, (base,), 8, left),))
        b.store(z, ramp(base, 8, 1), picked, left)
    for n in (1, 7, 8, 29, 64):
        rng = np.random.default_rng(n)
        x = rng.standard_normal(n).astype(np.float32)
        at = rng.integers(0, n, n)
        y, z = np.zeros(n, np.float32), np.zeros(n, np.float32)
        run_kernel(b.kernel(2), [x, at, y, z], {"n": n})
        np.testing.assert_array_equal(y, x * np.float32(2) + x[0])
        np.testing.assert_array_equal(z, x[at])


def test_vector_elements_and_vector_variables(mode):
    b = Builder("k")
    x, y = b.param("x", dt.f32, (N, 8)), b.param("y", dt.f32, (N, 8))
    with b.loop("i", N, "parallel") as i:
        total = b.alloc("total", dt.f32, (2,), "register", 4)
        whole = b.alloc("whole", dt.f32, (), "register", 4)
        for k in range(2):
            b.store(total, k, load(x, (i, k * 4), 4))
        b.store(whole, (), total[0] + total[1])
        b.store(total, 0, whole[()])
        for k in range(2):
            b.store(y, (i, k * 4), total[k] * whole[()])
    x = np.random.default_rng(5).standard_normal((11, 8)).astype(np.float32)
    y = np.zeros_like(x)
    run_kernel(b.kernel(), [x, y], {"n": 11})
    whole = x[:, :4] + x[:, 4:]
    np.testing.assert_array_equal(y, np.concatenate([whole * whole, x[:, 4:] * whole], 1))


def test_strided_buffers(mode):
    x = Buffer("x", dt.f32, (3, 4), strides=(1, 3))
    y = Buffer("y", dt.f32, (3, 4))
    i, j = var("i", extent=3), var("j", extent=4)
    body = Block(For(i, 3, Block(For(j, 4, Block(Store(y, (i, j), x[i, j])))), "parallel"))
    a = np.arange(12, dtype=np.float32)
    out = np.zeros((3, 4), np.float32)
    run_kernel(Kernel("k", (x, y), (), body), [a, out])
    np.testing.assert_array_equal(out, a.reshape(4, 3).T)


def test_select_loads_only_where_it_chooses(mode):
    b = Builder("k")
    x, y = b.param("x", dt.f32, (N,)), b.param("y", dt.f32, (N,))
    with b.loop("i", N, "parallel") as i:
        left = select(i > 0, x[i - 1], const(0.0, dt.f32))
        right = select(i < N - 1, x[i + 1], left)
        b.store(y, i, left + right)
    x = np.arange(1, 8, dtype=np.float32)
    y = np.zeros_like(x)
    run_kernel(b.kernel(), [x, y], {"n": 7})
    left = np.concatenate([[0], x[:-1]])
    right = np.concatenate([x[1:], left[-1:]])
    np.testing.assert_array_equal(y, left + right)


def test_select_of_vectors_loads_only_where_it_chooses(mode):
    """Concatenation: the same condition for all lanes, and one that differs between lanes."""
    b = Builder("k")
    x, z = b.param("x", dt.f32, (4,)), b.param("z", dt.f32, (12,))
    y, w = b.param("y", dt.f32, (16,)), b.param("w", dt.f32, (16,))
    with b.loop("i", 4, "parallel") as i:
        b.store(y, i * 4, select(broadcast(i < 1, 4), load(x, (i * 4,), 4),
                                 load(z, (i * 4 - 4,), 4)))
        inside = op("lt", ramp(i * 4, 4), broadcast(const(3), 4))
        b.store(w, i * 4, select(inside, load(x, (ramp(i * 4, 4),)),
                                 select(broadcast(i < 2, 4), broadcast(z[i + 10], 4),
                                        broadcast(const(5.0, dt.f32), 4))))
    x, z = np.arange(4, dtype=np.float32), np.arange(4, 16, dtype=np.float32)
    y, w = np.zeros(16, np.float32), np.zeros(16, np.float32)
    run_kernel(b.kernel(2), [x, z, y, w])
    np.testing.assert_array_equal(y, np.arange(16))
    np.testing.assert_array_equal(w, [0, 1, 2, 14, *[15] * 4, *[5] * 8])


def test_intrinsics_by_their_meaning(mode):
    """Four-byte dot products, a sum of lanes, a lane shuffle, a lone scaling."""
    b = Builder("k")
    acc, p, q = (b.param(n, dt.i32, (N, 4)) for n in ("acc", "p", "q"))
    y, s, z = b.param("y", dt.i32, (N, 4)), b.param("s", dt.i32, (N,)), b.param("z", dt.f32, (N,))
    with b.loop("i", N, "parallel") as i:
        got = dot4(load(acc, (i, 0), 4), load(p, (i, 0), 4), load(q, (i, 0), 4))
        b.store(y, (i, 0), shuffle(got, load(acc, (i, 0), 4), (3, 2, 4, 0)))
        b.store(s, i, horizontal("sum", got))
        b.store(z, i, scale(cast(horizontal("max", got), dt.f32), const(-2.0, dt.f32)))
    rng = np.random.default_rng(6)
    acc = rng.integers(-9, 9, (7, 4)).astype(np.int32)
    p = rng.integers(0, 256, (7, 16)).astype(np.uint8)
    q = rng.integers(-128, 128, (7, 16)).astype(np.int8)
    y, s, z = np.zeros((7, 4), np.int32), np.zeros(7, np.int32), np.zeros(7, np.float32)
    run_kernel(b.kernel(3), [acc, p.view(np.int32), q.view(np.int32), y, s, z], {"n": 7})
    want = acc + (p.astype(np.int32) * q).reshape(7, 4, 4).sum(-1)
    shuffled = np.stack([want[:, 3], want[:, 2], acc[:, 0], want[:, 0]], 1)
    np.testing.assert_array_equal(y, shuffled)
    np.testing.assert_array_equal(s, want.sum(-1))
    np.testing.assert_array_equal(z, want.max(-1) / np.float32(4))


# Faults -----------------------------------------------------------------------------------------


def fault(kernel: Kernel, arrays, match: str, **sizes: int) -> None:
    with pytest.raises(KernelFault, match=match):
        run_kernel(kernel, arrays, sizes)


def test_an_index_outside_is_named(mode):
    b = Builder("shifted")
    at, y = b.param("at", dt.i64, (N,)), b.param("y", dt.f32, (4, 3))
    with b.loop("i", N, "parallel") as i:
        b.store(y, (i, at[i]), 1.0)
    fault(b.kernel(), [np.array([0, 2, 3]), np.zeros((4, 3), np.float32)],
          r"kernel shifted: index 3 is outside dimension 1 \(size 3\) of y2", n=3)
    b = Builder("long")
    x, y = b.param("x", dt.f32, (N,)), b.param("y", dt.f32, (8,))
    with b.loop("i", 2, "parallel") as i:
        b.store(y, i * 4, load(x, (i * 4,), 4))
    fault(b.kernel(), [np.zeros(7, np.float32), np.zeros(8, np.float32)],
          r"index 4:\+4 is outside dimension 0 \(size 7\) of x1", n=7)


def test_unwritten_memory_is_poison(mode):
    b = Builder("k")
    x, y = b.param("x", dt.f32, (N,)), b.param("y", dt.f32, (N,))
    with b.loop("i", N, "parallel") as i:
        place = b.alloc("place", dt.i64, (), "register")
        b.store(y, i, x[place[()]])
    fault(b.kernel(), [np.zeros(7, np.float32), np.zeros(7, np.float32)], "is outside", n=7)
    b = Builder("k")
    y = b.param("y", dt.f32, (N,))
    with b.loop("i", N, "parallel") as i:
        b.store(y, i, b.scalar("s", dt.f32)[()])
    y = np.zeros(7, np.float32)
    run_kernel(b.kernel(), [y], {"n": 7})
    assert np.isnan(y).all()


def test_broken_promises_of_a_range_are_found(mode):
    y = Buffer("y", dt.f32, (16,))
    i = var("i", extent=4)
    kernel = Kernel("k", (y,), (N,), Block(For(i, N, Block(Store(y, (i,), const(0.0, dt.f32))))))
    run_kernel(kernel, [np.zeros(16, np.float32)], {"n": 4})
    fault(kernel, [np.zeros(16, np.float32)], "the loop of i runs to 5", n=5)


def test_arguments_must_fit():
    kernel = unary("neg", dt.f32)
    good = np.zeros(4, np.float32)
    fault(kernel, [good, good.copy()], "no value for size n")
    fault(kernel, [good], "2 arrays are needed", n=4)
    fault(kernel, [good, np.zeros(4)], "float64 for a buffer of f32", n=4)
    fault(kernel, [good, np.zeros(5, np.float32)], r"shape \(5,\) for a buffer", n=4)
    fault(kernel, [good, np.zeros((4, 2), np.float32)[:, 0]], "not contiguous", n=4)


# Races ------------------------------------------------------------------------------------------


def test_two_iterations_that_write_one_element_race(mode):
    b = Builder("k")
    x, y = b.param("x", dt.f32, (N,)), b.param("y", dt.f32, (N,))
    with b.loop("i", N, "parallel") as i:
        b.store(y, i // 2, x[i])
    arrays = [np.zeros(9, np.float32), np.zeros(9, np.float32)]
    fault(b.kernel(), arrays, "which another iteration has written", n=9)
    run_kernel(b.kernel(), arrays, {"n": 9}, races=False)


def test_reading_what_another_iteration_writes_races(mode):
    b = Builder("k")
    y = b.param("y", dt.f32, (N + 1,))
    with b.loop("i", N, "parallel") as i:
        b.store(y, i + 1, y[i] + 1.0)
    fault(b.kernel(), [np.zeros(10, np.float32)], "which another iteration has", n=9)


def test_serial_loops_and_separate_regions_do_not_race(mode):
    b = Builder("k")
    y, z = b.param("y", dt.f32, (N,)), b.param("z", dt.f32, (N,))
    with b.loop("t", 3):
        with b.loop("i", N, "parallel") as i:
            b.store(y, i, z[N - 1 - i] + 1.0)
        with b.loop("i", N, "parallel") as i:
            b.store(z, i, y[N - 1 - i])
    y, z = np.zeros(9, np.float32), np.arange(9, dtype=np.float32)
    run_kernel(b.kernel(2), [y, z], {"n": 9})
    np.testing.assert_array_equal(z, np.arange(9) + 3)


def block_sum(barrier: bool):
    """A tree reduction in shared memory: 8 threads per block."""
    b = Builder("k")
    x, y = b.param("x", dt.f32, (N, 8)), b.param("y", dt.f32, (N,))
    with b.loop("g", N, "grid.x") as g:
        tile = b.alloc("tile", dt.f32, (8,), "shared")
        with b.loop("t", 8, "block.x") as t:
            b.store(tile, t, x[g, t])
            b.barrier()
            for step in (4, 2, 1):
                with b.when(t < step):
                    b.store(tile, t, tile[t] + tile[t + step])
                if barrier:
                    b.barrier()
            with b.when(equal(t, 0)):
                b.store(y, g, tile[0])
    return b.kernel()


@pytest.mark.parametrize("n", [1, 3, 50])
def test_threads_of_a_block_meet_at_barriers(n: int):
    x = np.random.default_rng(n).integers(0, 9, (n, 8)).astype(np.float32)
    y = np.zeros(n, np.float32)
    run_kernel(block_sum(True), [x, y], {"n": n})
    np.testing.assert_array_equal(y, x.sum(1))
    fault(block_sum(False), [x, y], "a parallel iteration (reads|writes) element", n=n)


def test_a_barrier_does_not_order_two_blocks():
    b = Builder("k")
    y = b.param("y", dt.f32, (N + 1,))
    with b.loop("g", N, "grid.x") as g, b.loop("t", 1, "block.x"):
        b.store(y, g + 1, 1.0)
        b.barrier()
        b.store(y, g, 2.0)
    fault(b.kernel(), [np.zeros(9, np.float32)], "which another iteration has written", n=8)


def test_the_order_of_parallel_iterations_is_random():
    b = Builder("k")
    y = b.param("y", dt.f32, (N,))
    with b.loop("i", N, "parallel") as i:
        b.store(y, 0, cast(i, dt.f32))
    seen = set()
    for seed in range(8):
        y = np.zeros(4, np.float32)
        run_kernel(b.kernel(), [y], {"n": 4}, races=False, seed=seed)
        seen.add(float(y[0]))
    assert len(seen) > 1
