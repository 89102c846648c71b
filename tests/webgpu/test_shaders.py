"""Grid kernels and their text, without a device."""

import re

import numpy as np
import pytest
from small_models import mlp

from smelt.api import build
from smelt.codegen.host import Weights
from smelt.codegen.wgsl import print_shader
from smelt.codegen.wgsl_program import parts_of, size_json
from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.expr import cast, evaluate, op, size
from smelt.ir.graph.core import TensorType
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import KernelFault, run_kernel
from smelt.ir.kernel.nodes import For, statements
from smelt.ir.kernel.verifier import verify
from smelt.ir.program import Storage
from smelt.passes.kernel.narrow import check_narrow
from smelt.passes.plan import best_fit
from smelt.passes.schedule.gpu import GpuLimits, check_limits, grid_kernels
from smelt.runtime.webgpu_sizes import place, size_of

LIMITS = GpuLimits(threads=8, grid=5)


def run_grid(kernel, arrays, limits=LIMITS, sizes=None):
    for piece, chosen in grid_kernels(kernel, limits):
        verify(piece)
        for s in statements(piece.body):
            if isinstance(s, For) and s.kind.startswith("grid"):
                assert evaluate(s.extent, sizes or {}) <= limits.grid
        run_kernel(piece, [arrays[k] for k in chosen], sizes)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 40, 41, 193, 200])
@pytest.mark.parametrize("symbolic", [False, True])
def test_loops_become_grids_within_the_limits(count, symbolic, rng):
    n = size("n") if symbolic else count
    b = Builder("twice")
    x, y = b.param("x", dt.f32, (n,)), b.param("y", dt.f32, (n,))
    with b.loop("i", n, "parallel") as i:
        b.store(y, i, x[i] * 2.0)
    given, result = rng.standard_normal(count).astype(np.float32), np.zeros(count, np.float32)
    run_grid(b.kernel(), [given, result], sizes={"n": count})
    np.testing.assert_array_equal(result, given * 2)


def test_independent_loops_join_the_grid_and_others_stay(rng):
    b = Builder("sums")
    x, y = b.param("x", dt.f32, (6, 5, 4)), b.param("y", dt.f32, (6, 5))
    with b.loop("i", 6) as i, b.loop("j", 5) as j:
        total = b.scalar("total", dt.f32, 0.0)
        with b.loop("k", 4) as k:
            b.update(total, (), "add", x[i, j, k])
        b.store(y, (i, j), total[()])
    kernel = b.kernel()
    (piece, _), = grid_kernels(kernel, GpuLimits(threads=32))
    loops = {s.kind: s.extent for s in statements(piece.body) if isinstance(s, For)}
    assert loops == {"grid.x": 1, "block.x": 32, "serial": 4}
    given, result = rng.standard_normal((6, 5, 4)).astype("f4"), np.zeros((6, 5), "f4")
    run_grid(kernel, [given, result])
    np.testing.assert_allclose(result, given.sum(2), 1e-6, 1e-6)


def test_loops_one_after_another_are_kernels_of_their_own(rng):
    b = Builder("two")
    x, t, y = (b.param(n, dt.f32, (37,)) for n in "xty")
    shift = b.let("shift", op("add", x[0], 1.0))
    with b.loop("i", 37, "parallel") as i:
        b.store(t, i, x[i] + shift)
    with b.loop("i", 37, "parallel") as i:
        b.store(y, i, t[36 - i] + shift)
    kernel = b.kernel(outputs=2)
    assert len(grid_kernels(kernel, LIMITS)) == 2
    given = rng.standard_normal(37).astype(np.float32)
    arrays = [given, np.zeros(37, np.float32), np.zeros(37, np.float32)]
    run_grid(kernel, arrays)
    first = given + (given[0] + np.float32(1))
    np.testing.assert_array_equal(arrays[2], first[::-1] + (given[0] + np.float32(1)))


def test_a_carried_value_keeps_a_loop_in_one_thread(rng):
    b = Builder("running")
    x, y = b.param("x", dt.f32, (21,)), b.param("y", dt.f32, (21,))
    total = b.scalar("total", dt.f32, 0.0)
    with b.loop("i", 21) as i:
        b.update(total, (), "add", x[i])
        b.store(y, i, total[()])
    given, result = rng.standard_normal(21).astype(np.float32), np.zeros(21, np.float32)
    run_grid(b.kernel(), [given, result])
    np.testing.assert_array_equal(result, np.cumsum(given, dtype=np.float32))


def test_a_missing_barrier_is_a_race():
    def turned(barrier: bool):
        b = Builder("turn")
        x, y = b.param("x", dt.f32, (8,)), b.param("y", dt.f32, (8,))
        with b.loop("g", 1, "grid.x"):
            held = b.alloc("held", dt.f32, (8,), "shared")
            with b.loop("t", 8, "block.x") as t:
                b.store(held, t, x[t])
                if barrier:
                    b.barrier()
                b.store(y, t, held[7 - t])
        return b.kernel()

    given, result = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    run_kernel(turned(True), [given, result])
    np.testing.assert_array_equal(result, given[::-1])
    with pytest.raises(KernelFault, match="held"):
        run_kernel(turned(False), [given, result])


def test_too_much_memory_names_the_node():
    b = Builder("large", "layer7/Sum")
    y = b.param("y", dt.f32, (1,))
    with b.loop("g", 1, "grid.x"):
        held = b.alloc("held", dt.f32, (5000,), "shared")
        with b.loop("t", 1, "block.x"):
            b.store(held, 0, 1.0)
            b.store(y, 0, held[0])
    with pytest.raises(ModelError, match=r"layer7/Sum.*16384 bytes"):
        check_limits(b.kernel(), GpuLimits())


def test_text_has_no_names_of_the_model():
    model = mlp(x="break;secret_input", y="secret_output")
    for name, text in build(model, "webgpu").files.items():
        if name.endswith(".wgsl"):
            assert b"secret" not in text


def test_shaders_stay_within_the_limits_of_every_adapter():
    for name, text in build(mlp(), "webgpu").files.items():
        if name.endswith(".wgsl"):
            source = text.decode()
            (size_of_group,) = re.findall(r"@workgroup_size\((.*)\)", source)
            assert np.prod([int(n) for n in size_of_group.split(",")]) <= 256
            shared = re.findall(r"var<workgroup> \w+: array<\w+, (\d+)>", source)
            assert 4 * sum(map(int, shared)) <= 16384
            assert len(re.findall(r"var<storage", source)) <= 8


def test_vectors_are_no_wgsl():
    b = Builder("wide")
    x, y = b.param("x", dt.f32, (8,)), b.param("y", dt.f32, (8,))
    with b.loop("g", 1, "grid.x"), b.loop("t", 1, "block.x"):
        b.store(y, 0, b.load(x, 0, 8))
    with pytest.raises(TypeError, match="vectors"):
        print_shader(b.kernel(), ["arena", "arena"])


# Integers of 64 bits ------------------------------------------------------------------------------


def narrow_kernel(value):
    b = Builder("narrow", "node3")
    x, f, y = (b.param("x", dt.i64, (9,)), b.param("f", dt.f32, (9,)),
               b.param("y", dt.i64, (9,)))
    with b.loop("i", 9) as i:
        b.store(y, i, value(x, f, i))
    return b.kernel()


@pytest.mark.parametrize("value", [
    lambda x, f, i: x[i], lambda x, f, i: i * 7 + 3, lambda x, f, i: op("max", x[i], 5),
    lambda x, f, i: op("select", x[i] < 0, i, x[i]),
    lambda x, f, i: x[op("select", x[i] < 0, x[i] + 9, x[i])],
    lambda x, f, i: x[i] % 100, lambda x, f, i: cast(f[i], dt.i64) + 1,
    lambda x, f, i: op("select", x[i] < 0, x[i] + 9, x[i]),
    lambda x, f, i: op("select", x[i] >= 0, x[i] - 5, i),
    lambda x, f, i: op("select", op("and", x[i] < 50, x[i] > -3), x[i] * 7, i),
])
def test_narrow_arithmetic_that_fits(value):
    check_narrow(narrow_kernel(value))


@pytest.mark.parametrize("value", [
    lambda x, f, i: x[i] + 1, lambda x, f, i: x[i] * x[i],
    lambda x, f, i: op("select", x[i] + x[i] < 0, 1, 2),
    lambda x, f, i: op("select", x[i] < 0, x[i] - 9, x[i]),
    lambda x, f, i: op("select", x[i] < 0, x[i], x[i] + 9),
    lambda x, f, i: cast(f[i], dt.i64) + 1000,
])
def test_narrow_arithmetic_that_may_not_fit(value):
    with pytest.raises(ModelError, match=r"node3: i64 arithmetic"):
        check_narrow(narrow_kernel(value))


# Plans --------------------------------------------------------------------------------------------


def test_places_are_those_of_the_planner(rng):
    for _ in range(50):
        count = int(rng.integers(0, 12))
        amounts = [int(n) for n in rng.integers(0, 1000, count)]
        firsts = rng.integers(0, 10, count)
        spans = [(int(a), int(a + rng.integers(0, 6))) for a in firsts]
        assert place(amounts, spans) == best_fit(amounts, spans)


def test_sizes_as_json(rng):
    h, w = size("h"), size("w")
    for e in (h, (h + 2) // 2 * w, op("max", h - w, 0), h % 7 + 1,
              op("select", op("lt", h, w), h, w * 3)):
        for _ in range(5):
            sizes = {"h": int(rng.integers(0, 50)), "w": int(rng.integers(0, 50))}
            assert size_of(size_json(e), sizes) == evaluate(e, sizes)


def test_weights_are_cut_between_constants():
    arrays = [np.zeros(n, np.uint8) for n in (100, 64, 300, 10)]
    order = list(zip((0, 128, 192, 512), arrays, strict=True))
    weights = Weights({}, 576, order)
    assert parts_of(weights, 192) == [(0, 192), (192, 320), (512, 64)]
    assert parts_of(weights, 1 << 20) == [(0, 576)]
    assert parts_of(Weights({}, 0, []), 100) == []
    empty = Storage("w0", TensorType(dt.f32, (0,)), "constant")
    assert parts_of(Weights({empty: 0}, 0, []), 100) == [(0, 0)]


# Tint ---------------------------------------------------------------------------------------------


def test_tint_finds_what_naga_lets_pass(tint):
    """A barrier that not all threads of a workgroup may reach, and a workgroup that is too large.
    """
    barrier = """@group(0) @binding(0) var<storage, read_write> x: array<u32>;
        var<workgroup> held: array<u32, 4>;
        @compute @workgroup_size(4) fn main(@builtin(local_invocation_id) id: vec3u) {
            if (x[id.x] > 3u) { workgroupBarrier(); }
            held[id.x] = 1u;
        }"""
    assert any("uniform" in error for error in tint(barrier))
    assert tint("@compute @workgroup_size(512) fn main() {}")
    assert not tint("@compute @workgroup_size(256) fn main() {}")
