"""Elementwise and movement kernels with conditions, indices as values and 64-bit integers, on the
CPU. All exact, or a handful of correctly rounded f32 operations."""

import numpy as np
import pytest
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir import dtype as dt
from smelt.ir.expr import walk
from smelt.ir.kernel.nodes import Load, Store, expressions, statements

SIZES = (1, 2, 15, 16, 17, 33, 127)


def pads(c: Cases) -> None:
    for n in (5, 16, 40):
        for mode in ("constant", "edge", "reflect", "wrap"):
            for low, high in (((0, 1), (0, 2)), ((2, 0), (1, 0)), ((3, 2), (1, 3)),
                              ((0, 4), (0, 0))):
                c.output(c.graph.add("pad", [c.input(4, n)], {
                    "low": low, "high": high, "mode": mode}))
    # Longer than the axis, and cutting.
    for mode, low, high in (("reflect", 7, 9), ("wrap", 8, 3), ("edge", 9, 0),
                            ("constant", -1, 3)):
        c.output(c.graph.add("pad", [c.input(2, 4)], {"low": (0, low), "high": (0, high),
                                                      "mode": mode}))


def choices(c: Cases) -> None:
    g = c.graph
    for n in SIZES:
        x, y, z = c.input(3, n), c.input(3, n), c.input(n)
        c.output(g.add("select", [g.add("lt", [x, y]), x, z]))
        c.output(g.add("select", [g.add("lt", [x, z]), g.add("mul", [x, y]), g.add("exp", [y])]))
        c.output(g.add("leaky_relu", [x], {"alpha": 0.1}))


def integers(c: Cases) -> None:
    g = c.graph
    for n in SIZES:
        a, b = (c.input(array=c.rng.integers(-(1 << 62), 1 << 62, (2, n)), dtype=dt.i64)
                for _ in range(2))
        for op in ("add", "sub", "mul", "min", "max"):
            c.output(g.add(op, [a, b]))
        less = g.add("lt", [a, b])
        c.output(g.add("select", [less, a, b]))
        c.output(g.add("cast", [less], {"to": dt.i64}))
        x = c.input(2, n)
        c.output(g.add("select", [less, x, g.add("neg", [x])]))


def moved(c: Cases) -> None:
    g = c.graph
    for n in (7, 16, 33):
        x = c.input(4, n, 3)
        c.output(g.add("slice", [x], {"starts": (0, n - 1, 0), "sizes": (4, n, 3),
                                      "steps": (1, -1, 1)}))
        c.output(g.add("slice", [c.input(3, 2 * n)], {"starts": (0, 1), "sizes": (3, n),
                                                      "steps": (1, 2)}))
        c.output(g.add("concat", [c.input(2, n), c.input(2, 3), c.input(2, 2 * n)], {"axis": 1}))
        rows = c.input(array=c.rng.integers(-9, 9, (5,)), dtype=dt.i64)
        c.output(g.add("gather", [c.input(9, n), rows], {"axis": 0}))


def parts_of_axes(c: Cases) -> None:
    """Operands one after another along an axis that is not the last, some of them transposed."""
    g = c.graph
    for n in (3, 16, 33):
        a, b = c.input(2, 5, n), c.input(2, n, 4)
        turned = g.add("transpose", [b], {"perm": (0, 2, 1)})
        both = g.add("concat", [a, turned], {"axis": 1})
        c.output(both)
        c.output(g.add("tanh", [both]))
        c.output(g.add("slice", [both], {"starts": (0, 2, 0), "sizes": (2, 6, n),
                                         "steps": (1, 1, 1)}))
        c.output(g.add("pad", [g.add("transpose", [a], {"perm": (0, 2, 1)})], {
            "low": (0, 2, 0), "high": (1, 1, 0)}))


def windows(c: Cases) -> None:
    """Gathers at constant positions, in even steps or not, of padded signals."""
    g = c.graph
    for n in (9, 33):
        x = c.input(2, n)
        padded = g.add("pad", [x], {"low": (0, 1), "high": (0, 1)})
        for positions in (np.arange(3)[:, None] + np.arange(n), 2 * np.arange(4),
                          -1 - np.arange(n), np.array([3, 1, 4, 1, 5]), np.full((2, 3), 2)):
            rows = g.constant(positions.astype(np.int64))
            c.output(g.add("gather", [padded, rows], {"axis": 1}))
            c.output(g.add("mul", [g.add("gather", [x, g.constant(positions % n)], {"axis": 1}),
                                   g.constant(np.float32(2))]))


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("make", [pads, choices, integers, moved, parts_of_axes, windows])
def test_guarded_loops(make, target):
    c = Cases(int(np.random.default_rng().integers(1 << 31)))
    make(c)
    program = check(c, target, 1e-6, 1e-6)
    if target == VARIANTS[0]:
        for got, want in zip(interpreted(c, program), c.expected(), strict=True):
            np.testing.assert_allclose(got, want, 1e-6, 1e-6)


@pytest.mark.parametrize("make", [choices, integers])
def test_symbolic_sizes(make):
    c = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic=True)
    make(c)
    check(c, "cpu", 1e-6, 1e-6)


def test_a_transposed_operand_of_a_concat_is_turned_in_registers():
    c = Cases(1)
    g = c.graph
    turned = g.add("transpose", [c.input(32, 16)], {"perm": (1, 0)})
    c.output(g.add("exp", [g.add("concat", [c.input(8, 32), turned], {"axis": 0})]))
    program = check(c, "cpu:x86-64-v3", 1e-6, 1e-6)
    (kernel,) = program.kernels()
    loads = [e for s in statements(kernel.body) for x in expressions(s) for e in walk(x)
             if isinstance(e, Load) and e.buffer.space == "global"]
    assert {e.lanes for e in loads} == {8}


def test_windows_of_a_padded_signal_are_read_as_vectors():
    c = Cases(2)
    positions = c.graph.constant(np.arange(3)[:, None] + np.arange(64))
    padded = c.graph.add("pad", [c.input(1, 64)], {"low": (0, 1), "high": (0, 1)})
    c.output(c.graph.add("gather", [padded, positions], {"axis": 1}))
    program = check(c, "cpu:x86-64-v3", 0, 0)
    (kernel,) = program.kernels()
    assert len(kernel.params) == 2  # the positions are a formula
    assert any(isinstance(e, Load) and e.lanes == 8 for s in statements(kernel.body)
               for x in expressions(s) for e in walk(x))


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap", "constant"])
def test_padding_reads_vectors(mode):
    c = Cases(1)
    c.output(c.graph.add("pad", [c.input(2, 64)], {"low": (0, 3), "high": (0, 3), "mode": mode}))
    program = check(c, "cpu:x86-64-v3", 0, 0)
    (kernel,) = program.kernels()
    lanes = {e.lanes for s in statements(kernel.body) if isinstance(s, Store)
             for x in expressions(s) for e in walk(x) if isinstance(e, Load)}
    assert 8 in lanes
