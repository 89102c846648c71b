"""Products with matrices that only a run knows, against numpy: read in place by a few rows, packed
for more.

Tolerance: sums of n products in another order differ by at most about n units in the last place of
the sum of magnitudes; 2e-4 leaves a margin for n up to a thousand.
"""

import numpy as np
import pytest
from bits import assert_same_bits
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir.expr import simplify_dim
from smelt.passes.schedule import flat_gemm


def names(program) -> list[str]:
    return [k.name.split("_", 1)[1] for k in program.kernels()]


def products(c: Cases) -> None:
    """Every number of rows; reductions and columns of one, of primes, and one past a block."""
    for m in range(1, flat_gemm.MOST_ROWS + 1):
        k, n = int(c.rng.integers(1, 40)), int(c.rng.integers(1, 90))
        c.output(c.graph.add("matmul", [c.input(m, k), c.input(k, n)]))
    for m, k, n in ((1, 1, 1), (1, 9, 257), (2, 127, 31), (3, 8, 1031), (16, 17, 33), (5, 0, 7)):
        y = c.graph.add("matmul", [c.input(m, k), c.input(k, n)])
        c.output(c.graph.add("relu", [c.graph.add("add", [y, c.input(n)])]))
    for lead_a, lead_b in (((3,), (3,)), ((2, 3), (1, 3)), ((1, 3), (2, 1)), ((2,), ()),
                           ((), (2,))):
        y = c.graph.add("matmul", [c.input(*lead_a, 2, 11), c.input(*lead_b, 11, 35)])
        c.output(c.graph.add("sigmoid", [y]))


@pytest.mark.parametrize("target", VARIANTS)
def test_products(target, rng):
    c = Cases(int(rng.integers(1 << 31)))
    products(c)
    program = check(c, target, 0, 2e-4)
    if target != "cpu:generic":  # Loops of scalars read packed operands.
        assert "pack" not in names(program)
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 2e-4)


@pytest.mark.parametrize("target", VARIANTS)
def test_packed_matrices(target, rng):
    """Blocks of rows and panels that end early, of one matrix and of several."""
    m = flat_gemm.MOST_ROWS + 1
    c = Cases(int(rng.integers(1 << 31)))
    for k, n in ((1, 1), (7, 16), (8, 33), (17, 97), (64, 128)):
        c.output(c.graph.add("matmul", [c.input(m, k), c.input(k, n)]))
    for lead_a, lead_b in (((3,), (3,)), ((2, 3), (1, 3)), ((2,), ())):
        c.output(c.graph.add("matmul", [c.input(*lead_a, m, 11), c.input(*lead_b, 11, 35)]))
    program = check(c, target, 0, 2e-4, ["pack"])
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 2e-4)


def test_columns_of_many_tasks(rng, monkeypatch):
    """Tasks by few columns and by many give the same bits: each sum has its order."""
    results = []
    seed = int(rng.integers(1 << 31))
    for near, far, near_bytes in ((32, 64, 0), (32, 64, 1 << 30), (1 << 20, 1 << 20, 0)):
        monkeypatch.setattr(flat_gemm, "NEAR_COLUMNS", near)
        monkeypatch.setattr(flat_gemm, "FAR_COLUMNS", far)
        monkeypatch.setattr(flat_gemm, "NEAR_BYTES", near_bytes)
        c = Cases(seed)
        for m, k, n in ((1, 41, 701), (2, 64, 500), (7, 33, 650)):
            c.output(c.graph.add("matmul", [c.input(m, k), c.input(k, n)]))
        check(c, "cpu", 0, 2e-4)
        results.append(c.compiled("cpu")[1](2))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("target", VARIANTS[:2])
def test_open_sizes(target, rng):
    """A row of queries with keys and values whose number is open."""
    c = Cases(int(rng.integers(1 << 31)), symbolic=True)
    for m in (1, 6):
        for k, n in ((13, 67), (64, 1), (1, 300)):
            x = c.input(3, m, k, fixed=(0, 1))
            y = c.graph.add("matmul", [x, c.input(3, k, n, fixed=(0,))])
            assert not isinstance(simplify_dim(y.shape[-1]), int)
            c.output(y)
    assert "pack" not in names(check(c, target, 0, 2e-4))
