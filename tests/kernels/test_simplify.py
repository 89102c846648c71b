"""Kernels lose what their constants decide, and nothing else."""

import numpy as np

from smelt.ir import dtype as dt
from smelt.ir.expr import const, op
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.nodes import For, If, Let, Store, While, statements
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
