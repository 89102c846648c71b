"""The text of kernels: how it looks, and that it reads back to the same kernel."""

import numpy as np
import pytest
from kernels.single_nodes import kernel_of, node_of

from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.expr import broadcast, cast, const, equal, evaluate, op, ramp, select, size, var
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.intrinsics import horizontal, shuffle
from smelt.ir.kernel.nodes import Block, Buffer, Do, For, Kernel, Let, Prefetch, Store, load
from smelt.ir.kernel.text import parse_kernel, print_kernel
from smelt.ir.kernel.verifier import verify

N, M = size("n"), size("m")

SCALE = """\
kernel scale(n; x1: f32[n], y2: f32[n]) outputs 1 {
  flops = n
  origin = "node \\"7\\""
  parallel i3 < n grain 64 {
    let v4: f32 = mul(x1[i3], 2.0:f32)
    if gt(v4, 1.0:f32) {
      y2[i3] = v4
    } else {
      alloc t5: f32[] register
      t5[] = 0.0:f32
      while lt(t5[], v4) {
        t5[] = add(t5[], 1.0:f32)
      }
      y2[i3] = t5[]
    }
  }
}
"""


def test_the_text_of_a_kernel():
    b = Builder("scale", 'node "7"')
    x, y = b.param("x", dt.f32, (N,)), b.param("y", dt.f32, (N,))
    with b.loop("i", N, "parallel", 64) as i:
        v = b.let("v", x[i] * 2.0)
        with b.when(v > 1.0):
            b.store(y, i, v)
        with b.otherwise():
            t = b.scalar("t", dt.f32, 0.0)
            with b.while_(t[()] < v):
                b.update(t, (), "add", 1.0)
            b.store(y, i, t[()])
    assert str(b.kernel(flops=N)) == SCALE
    assert print_kernel(parse_kernel(SCALE)) == SCALE


def round_trip(kernel: Kernel) -> Kernel:
    text = print_kernel(kernel)
    again = parse_kernel(text)
    assert print_kernel(again) == text
    return again


def test_everything_the_grammar_has_reads_back():
    b = Builder("all")
    x = b.param("x", dt.f32, (N, M, 8), "constant")
    at = b.param("at", dt.i64, (N,))
    y = b.param("y", dt.f32, (N, 8))
    with b.loop("g", N, "grid.x") as g:
        tile = b.alloc("tile", dt.bf16, (4, M), "shared")
        acc = b.alloc("acc", dt.f32, (2,), "register", 4)
        with b.loop("t", 4, "block.x") as t:
            b.store(tile, (t, 0), cast(x[g, 0, t], dt.bf16))
            b.barrier()
        with b.loop("u", 2, "unroll") as u:
            b.store(acc, u, load(x, (g, 0, u * 4), 4, count=M - u))
        with b.loop("p", M, "pipeline") as p, b.loop("v", 8, "vector") as v:
            b.store(y, (g, v), select(both_bits(g, v), x[g, p, v], const(float("nan"), dt.f32)))
        picked = load(at, (ramp(0, 4, 2),), count=M)
        total = b.let("total", horizontal("sum", acc[0] + broadcast(x[g, 0, 0], 4)))
        b.store(y, (g, ramp(0, 4)), broadcast(total, 4) * cast(picked, dt.f32), M)
        b.store(y, (g, 4), acc[1] * broadcast(const(-0.0, dt.f32), 4))
        b.store(acc, 1, shuffle(acc[0], acc[1], (7, 0, 3, 4)))
        b.do(horizontal("max", acc[0]))
    again = round_trip(b.kernel(1, bytes=N * 4))
    assert again.bytes is N * 4
    assert isinstance(again.body.body[0].body.body[-1], Do)


def both_bits(a, b):
    return equal(op("and", a, 1), op("xor", op("shr", b, 1), 1))


def test_strides_sizes_and_ranges_read_back():
    x = Buffer("x", dt.u4, (3, N), strides=(1, 3))
    y = Buffer("y", dt.u4, (3, N))
    i, j, k = var("i", extent=3), var("j", extent=N), var("k", extent=5)
    body = Block(For(i, 3, Block(For(j, N - 1, Block(
        Let(k, j % 5), Store(y, (i, j), x[i, k]))))), For(var("q"), 2, Block()))
    sizes = (N, var("free"), var("s", low=4), var("t", extent=9))
    again = round_trip(Kernel("k", (x, y), sizes, body, 1))
    assert again.sizes == sizes
    assert again.params[0].strides == (1, 3)
    assert again.body.body[0].body.body[0].var is j
    assert again.body.body[1].var is var("q")


@pytest.mark.parametrize("op_name, shapes, attrs", [
    ("topk", [(5, 7)], {"k": 3}), ("nms", [(2, 9, 4), (2, 3, 9), (), ()], {"limit": 4}),
    ("scatter_elements", [(5, 7), (5, 3), (5, 3)], {"axis": 1, "reduction": "add"}),
    ("unique", [(9, 2)], {"sorted": False}), ("argmax", [(4, 5)], {"axis": 1})])
def test_procedural_kernels_read_back_and_run_alike(op_name: str, shapes, attrs):
    print("seed 7")
    rng = np.random.default_rng(7)
    arrays = [rng.random(s).astype(np.float32) for s in shapes]
    if op_name == "scatter_elements":
        arrays[1] = rng.integers(0, 7, shapes[1])
    node, sizes = node_of(op_name, arrays, attrs, symbolic=True)
    kernel, scratches = kernel_of(node)
    again = round_trip(kernel)
    results = []
    for k in (kernel, again):
        spare = [np.zeros([evaluate(d, sizes) for d in b.shape], b.dtype.numpy)
                 for b in k.params[len(arrays):]]
        run_kernel(k, [*arrays, *spare], sizes)
        results.append(spare[len(scratches):])
    for a, c in zip(*results, strict=True):
        np.testing.assert_array_equal(a, c)


def test_a_prefetch_is_printed_means_nothing_and_may_lie_outside():
    b = Builder("k")
    x, y = b.param("x", dt.f32, (N,)), b.param("y", dt.f32, (N,))
    with b.loop("i", N) as i:
        b.prefetch(x, i + 4096)
        b.store(y, i, x[i])
    kernel = b.kernel(1)
    assert "prefetch x1[(i3 + 4096)]" in print_kernel(kernel)
    verify(kernel)
    again, given, found = round_trip(kernel), np.arange(5, dtype=np.float32), np.zeros(5, "f4")
    run_kernel(again, [given, found], {"n": 5})
    np.testing.assert_array_equal(found, given)
    with pytest.raises(ModelError, match="prefetch of x9"):
        verify(Kernel("k", (y,), (N,), Block(Prefetch(Buffer("x9", dt.f32, (4,)), (const(0),)))))


@pytest.mark.parametrize("text, message", [
    ("kernel k(; y: f32[4]) outputs 1 { z[0] = 1.0:f32 }", "starts no statement"),
    ("kernel k(; y: f32[4]) outputs 1 { y[0, 1] = 1.0:f32 }", "has rank 1, indexed by 2"),
    ("kernel k(; y: f32[4]) outputs 1 { y[0] = z[1] }", "unknown buffer 'z'"),
    ("kernel k(; y: f32[4]) outputs 1 { y[0] = v }", "expected a known variable"),
    ("kernel k(; y: f99[4]) outputs 1 { }", "expected a dtype"),
    ("kernel k(; y: f32[4]) outputs 1 { sometimes i < 4 { } }", "'sometimes' starts no statement"),
    ("kernel k(; y: f32[4]) outputs 1 { y[0] = @nothing(1) }", "unknown intrinsic 'nothing'"),
    ("kernel k(; y: f32[4]) outputs 1 { for i < 4 { } y[i] = 1.0:f32 }", "known variable"),
    ("kernel k(; y: f32[4]) outputs 1 { for i < 4 {", "starts no statement|expected a name"),
])
def test_mistakes_are_reported_with_their_place(text: str, message: str):
    with pytest.raises(ModelError, match=rf"line 1, column \d+: .*({message})"):
        parse_kernel(text)
