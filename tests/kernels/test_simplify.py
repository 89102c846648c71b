"""Kernels lose what their constants decide, and nothing else."""

import numpy as np
import pytest

from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.expr import Var, const, minimum, op, var
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.nodes import Alloc, Block, For, If, Let, Store, While, statements
from smelt.ir.kernel.verifier import verify
from smelt.passes.kernel.simplify import simplify


def kernel():
    """Loops of one and no rounds, known conditions, names of constants and names without use."""
    b = Builder("k")
    x, y = b.param("x", dt.f32, (12,)), b.param("y", dt.f32, (12,))
    with b.loop("one", 1) as one, b.loop("i", 12) as i:
        two = b.let("two", one * 5 + 2)
        step = b.let("step", (one + 1) * 3)
        b.let("unused", b.let("before", i * 7) + 1)
        with b.when(op("lt", step, 4)):
            b.store(y, i, x[i] * 2.0)
        with b.otherwise():
            b.store(y, i, x[i] * 100.0)
        with b.when(op("gt", two, 5)):
            b.store(y, i, const(-1, dt.f32))
        with b.loop("none", two - 2) as never:
            b.store(y, never, const(-2, dt.f32))
        with b.when(op("lt", i, 6)):
            b.let("nothing", i + 1)
        kept = b.let("kept", i // 2)
        with b.when(op("eq", kept, 3)):
            b.store(y, i, x[kept] + 1.0)
    count = b.scalar("count", dt.i64, 0)
    with b.while_(op("lt", count[()], 3)):
        b.store(count, (), count[()] + 1)
    return b.kernel()


def test_what_constants_decide_goes():
    before = kernel()
    after = simplify(before)
    found = list(statements(after.body))
    assert [s.extent for s in found if isinstance(s, For)] == [12]
    assert len([s for s in found if isinstance(s, If)]) == 1
    assert [s.var.name.rstrip("0123456789") for s in found if isinstance(s, Let)] == ["kept"]
    assert len([s for s in found if isinstance(s, Store)]) == 4
    assert len([s for s in found if isinstance(s, While)]) == 1
    assert simplify(after).body.body == after.body.body or str(simplify(after)) == str(after)


def test_effect_stays(rng):
    x = rng.standard_normal(12).astype(np.float32)
    results = []
    for k in (kernel(), simplify(kernel())):
        y = np.zeros(12, np.float32)
        run_kernel(k, [x, y], {})
        results.append(y)
    np.testing.assert_array_equal(*results)
    assert results[0][7] == x[3] + np.float32(1) and results[0][0] == 2 * x[0]


def tiled():
    """Tiles of 8 of 8 elements: one, whose loop and memory are as long as a name says."""
    b = Builder("k")
    x, y = b.param("x", dt.f32, (8,)), b.param("y", dt.f32, (8,))
    with b.loop("tile", 1) as tile:
        count = b.let("count", minimum(8 - tile * 8, 8))
        held = b.alloc("held", dt.f32, (count,))
        with b.loop("i", count) as i:
            b.store(held, i, x[tile * 8 + i] * 2.0)
        with b.loop("j", count) as j:
            b.store(y, tile * 8 + j, held[j] + held[count - 1 - j])
    return b.kernel()


def test_loops_and_memory_as_long_as_a_name_that_goes(rng):
    """What a variable of a loop promises names it, too, although no statement holds that."""
    x, y = rng.standard_normal(8).astype(np.float32), np.zeros(8, np.float32)
    after = simplify(tiled())
    verify(after)
    assert not any(isinstance(s, Let) for s in statements(after.body))
    assert [s.var.extent for s in statements(after.body) if isinstance(s, For)] == [8, 8]
    assert [s.buffer.shape for s in statements(after.body) if isinstance(s, Alloc)] == [(8,)]
    run_kernel(after, [x, y], {})
    np.testing.assert_array_equal(y, 2 * x + 2 * x[::-1])


def promising(bound: Var):
    """A loop of three rounds that promises to stay below a name, which nothing else uses."""
    b = Builder("k")
    x, y = b.param("x", dt.f32, (12,)), b.param("y", dt.f32, (12,))
    with b.loop("i", 4) as i:
        b.emit(Let(bound, i + 3))
        j = var("j", extent=bound)
        b.emit(For(j, 3, Block(Store(y, (i * 3 + j,), x[i * 3 + j] + 1.0, None))))
    return b.kernel()


def test_names_that_only_a_promise_uses_stay(rng):
    after = simplify(promising(var("bound", low=3)))
    verify(after)
    assert [s.var.name for s in statements(after.body) if isinstance(s, Let)] == ["bound"]
    x, y = rng.standard_normal(12).astype(np.float32), np.zeros(12, np.float32)
    run_kernel(after, [x, y], {})
    np.testing.assert_array_equal(y, x + 1)


def test_promises_of_unknown_names_are_refused():
    b = Builder("k")
    y = b.param("y", dt.f32, (12,))
    i = var("i", extent=12 + var("gone", low=0))
    b.emit(For(i, 12, Block(Store(y, (i,), const(1, dt.f32), None))))
    with pytest.raises(ModelError, match="gone is used where it is not defined"):
        verify(b.kernel())
