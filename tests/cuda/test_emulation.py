"""The emulation finds what would go wrong on a GPU: shown by kernels that do it."""

import re
from itertools import count

import numpy as np
import pytest
from cuda.single_kernels import arrays_for, compiled, rewritten, without
from webgpu.device_graphs import fresh

from smelt.errors import TargetError
from smelt.ir import dtype as dt
from smelt.ir.expr import Op, op
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.nodes import Barrier, For, If, Kernel, Store, statements
from smelt.ir.kernel.verifier import verify
from smelt.targets.cuda.target import lower_for


def turned(n: int = 37, blocks: int = 3) -> Kernel:
    """Each block turns its n elements around, through shared memory."""
    b = Builder("turn")
    x, y = b.param("x", dt.f32, (blocks * n,)), b.param("y", dt.f32, (blocks * n,))
    with b.loop("g", blocks, "grid.x") as g:
        held = b.alloc("held", dt.f32, (n,), "shared")
        with b.loop("t", n, "block.x") as t:
            b.store(held, t, x[g * n + t])
            b.barrier()
            b.store(y, g * n + t, held[n - 1 - t])
    return b.kernel()


@pytest.mark.parametrize(("n", "blocks"), [(1, 1), (2, 5), (31, 3), (256, 2), (1024, 1)])
def test_barriers_and_shared_memory(n, blocks, rng):
    kernel = turned(n, blocks)
    verify(kernel)
    x = rng.standard_normal(n * blocks).astype(np.float32)
    run = compiled(kernel)
    for _ in range(3):
        np.testing.assert_array_equal(run(x), x.reshape(blocks, n)[:, ::-1].reshape(-1))


def test_a_missing_barrier(rng):
    kernel = without(turned(), Barrier, 0)
    with pytest.raises(TargetError, match=(
            r"The kernel turn failed: block \(0, 0, 0\), thread \(0, 0, 0\): element 36 of shared "
            r"held is read before the block has written it")):
        compiled(kernel)(*arrays_for(kernel, rng))


def test_two_threads_write_one_element(rng):
    b = Builder("crowd")
    x, y = b.param("x", dt.f32, (8,)), b.param("y", dt.f32, (8,))
    with b.loop("g", 1, "grid.x"):
        held = b.alloc("held", dt.f32, (4,), "shared")
        with b.loop("t", 8, "block.x") as t:
            b.store(held, t // 2, x[t])
            b.barrier()
            b.store(y, t, held[t // 2])
    kernel = b.kernel()
    with pytest.raises(TargetError, match=(
            r"thread \(1, 0, 0\): a race on element 0 of shared held: thread 0 wrote it too")):
        compiled(kernel)(*arrays_for(kernel, rng))


def test_a_write_to_what_others_read(rng):
    b = Builder("late")
    x, y = b.param("x", dt.f32, (8,)), b.param("y", dt.f32, (8,))
    with b.loop("g", 1, "grid.x"):
        held = b.alloc("held", dt.f32, (8,), "shared")
        with b.loop("t", 8, "block.x") as t:
            b.store(held, t, x[t])
            b.barrier()
            b.store(y, t, held[(t + 1) % 8])
            b.store(held, t, 0.0)
    kernel = b.kernel()
    with pytest.raises(TargetError, match=(
            r"thread \(1, 0, 0\): a race on element 1 of shared held: thread 0 read what this one "
            r"writes")):
        compiled(kernel)(*arrays_for(kernel, rng))


@pytest.mark.parametrize("space", ["shared", "local", "input", "output"])
def test_an_index_outside_a_buffer(space, rng):
    """Of 10 elements, number 10; the model runs again afterwards with inputs that stay inside."""
    b = Builder("beyond")
    x, i, y = b.param("x", dt.f32, (10,)), b.param("i", dt.i64, (10,)), b.param("y", dt.f32, (10,))
    with b.loop("g", 1, "grid.x"):
        shared = b.alloc("held", dt.f32, (10,), "shared")
        with b.loop("t", 10, "block.x") as t:
            local = b.alloc("mine", dt.f32, (10,), "local")
            with b.loop("k", 10) as k:
                b.store(local, k, 1.0)
            b.store(shared, t, x[t])
            b.barrier()
            if space == "output":
                b.store(y, i[t], x[t])
            else:
                place = {"shared": shared, "local": local, "input": x}[space]
                b.store(y, t, place[i[t]])
    run = compiled(b.kernel())
    x, i = rng.standard_normal(10).astype(np.float32), rng.permutation(10)
    expected = {"local": np.ones(10, "f4"), "output": x[np.argsort(i)]}.get(space, x[i])
    np.testing.assert_array_equal(run(x, i), expected)
    name = {"shared": "held", "local": "mine", "input": "x", "output": "y"}[space]
    bad = i.copy()
    bad[7] = 10
    for wrong in (10, -1, 1 << 40):
        bad[7] = wrong
        with pytest.raises(TargetError, match=(
                rf"beyond failed: block \(0, 0, 0\), thread \(7, 0, 0\): index {wrong} of {name} "
                rf"is outside its 10 elements")):
            run(x, bad)
        np.testing.assert_array_equal(run(x, i), expected)


def test_a_barrier_that_some_threads_miss(rng):
    b = Builder("split")
    x, y = b.param("x", dt.f32, (8,)), b.param("y", dt.f32, (8,))
    with b.loop("g", 1, "grid.x"), b.loop("t", 8, "block.x") as t:
        with b.when(t < 5):
            b.barrier()
        b.store(y, t, x[t])
    kernel = b.kernel()
    with pytest.raises(TargetError, match=r"thread \(0, 0, 0\): waits at the barrier of line \d+, "
                                          r"which thread 5 never reaches"):
        compiled(kernel)(*arrays_for(kernel, rng))


# Templates ----------------------------------------------------------------------------------------


def template(make, name: str) -> Kernel:
    cases = fresh(make)
    return next(k for k in lower_for(cases.graph).kernels() if name in k.name)


def softmax(c) -> None:
    c.output(c.graph.add("softmax", [c.input(3, 67)], {"axis": 1}))


def product(c) -> None:
    c.output(c.graph.add("matmul", [c.input(19, 37), c.input(37, 21)]))


def total(c) -> None:
    c.output(c.graph.add("reduce_sum", [c.input(3, 300)], {"axes": (1,), "keepdims": False}))


@pytest.mark.parametrize(("make", "name", "spare"), [
    (softmax, "softmax", 1), (product, "matmul", 0), (total, "reduce", 1)])
def test_every_barrier_of_a_template_is_needed(make, name, spare, rng):
    """All but the last one after a tree of sums, which guards the memory for a next tree."""
    kernel = template(make, name)
    barriers = sum(isinstance(s, Barrier) for s in statements(kernel.body))
    arrays = arrays_for(kernel, rng)
    compiled(kernel)(*arrays)
    for which in {0, 1, barriers - spare - 1}:
        with pytest.raises(TargetError, match="held|left|right|partial"):
            compiled(without(kernel, Barrier, which))(*arrays)


def test_bounds_that_are_off_by_one_are_found(rng):
    def make(c) -> None:
        c.output(c.graph.add("tanh", [c.input(300)]))
    kernel = template(make, "tanh")
    numbers = count()

    def change(s):
        if isinstance(s, If) and isinstance(s.condition, Op) and s.condition.name == "lt":
            next(numbers)
            return If(op("le", *s.condition.args), s.then, s.orelse)
        return s

    wrong = rewritten(kernel, change)
    assert next(numbers) == 1
    with pytest.raises(TargetError, match=r"block \(1, 0, 0\), thread \(44, 0, 0\): index 300 of "
                                          r"\w+ is outside its 300 elements"):
        compiled(wrong)(*arrays_for(kernel, rng))


def test_loops_of_products_that_are_off_by_one_are_found(rng):
    kernel = template(product, "matmul")

    def change(s):
        longer = isinstance(s, For) and s.kind == "serial" and s.extent == 16
        return For(s.var, 17, s.body) if longer else s

    wrong = rewritten(kernel, change)
    with pytest.raises(TargetError, match=re.compile(r"of (left|right) is outside")):
        compiled(wrong)(*arrays_for(kernel, rng))
    assert any(isinstance(s, Store) for s in statements(wrong.body))
