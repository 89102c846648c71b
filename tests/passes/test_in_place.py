"""Kernels that write over dead inputs: which ones may, and what the arena gains."""

import numpy as np
from cpu.native_graphs import Cases, check

from smelt.ir import dtype as dt
from smelt.ir.graph import Graph, TensorType
from smelt.ir.kernel.aliasing import reusable
from smelt.ir.kernel.builder import Builder
from smelt.passes.plan import plan
from smelt.targets.cpu.isa import native
from smelt.targets.cpu.target import lower_for


def elementwise_kernel(read):
    b = Builder("k")
    x, y = b.param("x", dt.f32, (8,)), b.param("y", dt.f32, (8,))
    with b.loop("i", 8) as i:
        b.store(y, i, read(x, i))
    return b.kernel()


def test_same_position_may_be_overwritten():
    assert reusable(elementwise_kernel(lambda x, i: x[i] * 2.0)) == [0]


def test_other_position_may_not():
    assert reusable(elementwise_kernel(lambda x, i: x[7 - i])) == []


def test_input_that_is_read_twice_may_not():
    b = Builder("k")
    x, y = b.param("x", dt.f32, (8,)), b.param("y", dt.f32, (8,))
    total = b.scalar("s", dt.f32, 0.0)
    with b.loop("i", 8) as i:
        b.update(total, (), "add", x[i])
    with b.loop("i", 8) as i:
        b.store(y, i, x[i] / total[()])
    assert reusable(b.kernel()) == []


def test_other_size_may_not():
    b = Builder("k")
    x, y = b.param("x", dt.f32, (9,)), b.param("y", dt.f32, (8,))
    with b.loop("i", 8) as i:
        b.store(y, i, x[i])
    assert reusable(b.kernel()) == []


def chain(length: int) -> Graph:
    g = Graph()
    x = g.add_input("x", TensorType(dt.f32, (64, 64)))
    for _ in range(length):
        x = g.add("cumsum", [g.add("tanh", [x])], {"axis": 0})
    g.outputs = [x]
    return g


def test_a_chain_needs_no_second_buffer_for_elementwise_steps():
    program = lower_for(chain(6), native())
    plan(program)
    # cumsum cannot run in place and keeps a row of running sums: two buffers, not three.
    assert 2 * 64 * 64 * 4 <= program.arena_size < 3 * 64 * 64 * 4


def test_results_stay_the_same(rng):
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    x, y = c.input(5, 37), c.input(5, 37)
    a = g.add("cumsum", [x], {"axis": 1})
    b = g.add("cumsum", [y], {"axis": 0})
    s = g.add("add", [g.add("mul", [a, b]), a])
    c.output(g.add("cumsum", [s], {"axis": 0}))
    c.output(b)
    w = g.constant(c.rng.standard_normal((37, 37)).astype(np.float32))
    c.output(g.add("reshape", [g.add("relu", [g.add("add", [g.add("matmul", [s, w]), a])])],
                   {"shape": (37, 5)}))
    check(c, "cpu", 1e-5, 1e-4)
