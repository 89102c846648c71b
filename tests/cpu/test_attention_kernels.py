"""Attention in one kernel on the CPU against the operator's numpy reference.

Tolerance: values are within [-1, 1] and results are averages of them, so an error of a result is
at most the relative error of its probabilities, which is the error of scores of a few units in
size, and that of their sums. Sums of up to 144 products, in the kernel and the reference alike,
are good to some 1e-6. Blocks of at most 256 exponentials are summed one after the other; where
many are equal (a finite `fill`) roundings do not cancel and come to some 3e-6. Results therefore
agree within 6e-6 of the largest value (seen: 2e-6, without a finite fill 5e-7).
"""

import math

import numpy as np
import pytest
from cpu.native_graphs import Cases, check, interpreted

from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.graph.core import Value
from smelt.ir.graph.interpreter import interpret

pytestmark = pytest.mark.slow

VARIANTS = ("cpu", "cpu:x86-64-v3", "cpu:x86-64-v2")
TOLERANCE = 6e-6


def fresh(symbolic: bool = False) -> Cases:
    return Cases(int(np.random.default_rng().integers(1 << 31)), symbolic)


def normal(c: Cases, *shape: int, fixed=()) -> Value:
    return c.input(array=c.rng.standard_normal(shape).astype(np.float32), fixed=fixed)


def values(c: Cases, *shape: int, fixed=()) -> Value:
    return c.input(array=c.rng.uniform(-1, 1, shape).astype(np.float32), fixed=fixed)


def mask(c: Cases, *shape: int, shown: float = 0.5, fixed=()) -> Value:
    return c.input(array=c.rng.random(shape) < shown, dtype=dt.bool_, fixed=fixed)


def heads(c: Cases, s: int, t: int, d: int = 16, dv: int = 0, h: int = 2, hk: int = 0,
          b: int = 1) -> list[Value]:
    """q, k and v; only the numbers of rows and keys may be symbolic."""
    fixed = (0, 1, 3)
    return [normal(c, b, h, s, d, fixed=fixed), normal(c, b, hk or h, t, d, fixed=fixed),
            values(c, b, hk or h, t, dv or d, fixed=fixed)]


def attend(c: Cases, operands, **attrs) -> Value:
    q = operands[0]
    attrs = {"scale": q.shape[3] ** -0.5, **attrs}
    y = c.graph.add("attention", operands, attrs)
    c.output(y)
    return y


def same(c: Cases, target: str, kernels=("attention",)):
    return check(c, target, 0.0, TOLERANCE, kernels)


def sizes(c: Cases) -> None:
    for s, t in ((1, 1), (1, 2), (1, 17), (2, 1), (5, 7), (16, 16), (17, 1), (33, 2), (49, 17)):
        attend(c, heads(c, s, t))
    for d, dv in ((1, 1), (1, 17), (3, 5), (8, 20), (31, 7), (64, 64), (144, 130)):
        for s in (1, 19):
            attend(c, heads(c, s, 13, d, dv))
    for t in (127, 128, 129, 255, 256, 257, 307, 515):  # around blocks of keys
        for s in (3, 35) if t % 2 else (1, 13):
            attend(c, heads(c, s, t, 12))


def shared_heads(c: Cases) -> None:
    for h, hk in ((4, 1), (6, 3)):
        for s in (1, 3, 21):
            attend(c, heads(c, s, 37, 24, 20, h, hk, b=2), causal=s > 1, offset=37 - s)


def masks_and_biases(c: Cases) -> None:
    b, h, t = 2, 3, 41
    for s in (3, 23):
        q, k, v = heads(c, s, t, 16, b=b, h=h)
        attrs = ({"masked": True}, {"guarded": True}, {"fill": -3.0})
        for i, shape in enumerate(((b, h, s, t), (1, 1, s, t), (b, 1, 1, t), (1, h, 1, t), (s, t),
                                   (t,), (1,), (1, h, 1, 1), (b, 1, s, 1))):
            m = mask(c, *shape)
            attend(c, [q, k, v, None, m], **attrs[i % 3])
            attend(c, [q, k, v, normal(c, *shape)], softcap=1.5 * (i % 2))
        for shape in ((b, h, s, t), (t,)):
            m = mask(c, *shape)
            attend(c, [q, k, v, normal(c, *shape), m], softcap=1.5, masked=True)
            attend(c, [q, k, v, normal(c, *shape), m], fill=-1e4, causal=True, offset=5)
        # Without a guard a row that sees no key is NaN.
        attend(c, [*heads(c, s, t, b=b, h=h), None, mask(c, b, 1, s, 1)])


def causal(c: Cases) -> None:
    every = ({"masked": True}, {"guarded": True}, {}, {"fill": -2.0})
    for s, t, offset in ((5, 5, 0), (1, 9, 8), (3, 9, 2), (40, 40, 0), (33, 300, 267), (50, 20, 3),
                         (50, 20, -7), (4, 20, -2), (300, 300, 0)):
        for attrs in every if offset < 0 else every[2:]:
            attend(c, heads(c, s, t, 8), causal=True, offset=offset, **attrs)


def numbers_beyond(c: Cases) -> None:
    """NaN and infinities among scores and values spread as in the definition."""
    for s in (2, 20):
        for bad in (np.inf, -np.inf, np.nan):
            bias = c.rng.standard_normal((s, 33)).astype(np.float32)
            bias[1, 5] = bad
            for attrs in ({}, {"masked": True}, {"guarded": True}):
                attend(c, [*heads(c, s, 33), c.input(array=bias)], **attrs)
            v = c.rng.uniform(-1, 1, (1, 2, 33, 16)).astype(np.float32)
            v[0, 1, 7, 3] = bad
            attend(c, [*heads(c, s, 33)[:2], c.input(array=v)])
        # Most probabilities vanish; scores of whole numbers are exact.
        q, k = (c.input(array=c.rng.integers(-9, 10, (1, 2, n, 16)).astype(np.float32))
                for n in (s, 200))
        attend(c, [q, k, values(c, 1, 2, 200, 16)], scale=0.25)


def movement(c: Cases) -> None:
    """Heads split from projections, transposed and joined, as exporters write it."""
    g = c.graph
    for s, t in ((1, 9), (3, 140), (21, 21)):
        split = [g.add("reshape", [make(c, 2, n, 36)], {"shape": (2, n, 3, 12)})
                 for make, n in ((normal, s), (normal, t), (values, t))]
        q, k, v = (g.add("transpose", [x], {"perm": (0, 2, 1, 3)}) for x in split)
        attend(c, [q, k, v], perm=(0, 2, 1, 3))
        attend(c, [g.add("mul", [q, g.constant(np.float32(2))]), k, g.add("tanh", [v])])
        # Keys that are contiguous along the positions, values along the positions too.
        kt = g.add("transpose", [normal(c, 2, 3, 12, t)], {"perm": (0, 1, 3, 2)})
        vt = g.add("transpose", [values(c, 2, 3, 12, t)], {"perm": (0, 1, 3, 2)})
        qt = g.add("transpose", [normal(c, 2, 3, 12, s)], {"perm": (0, 1, 3, 2)})
        attend(c, [q, kt, v])
        attend(c, [qt, kt, vt], perm=(1, 2, 0, 3))
        attend(c, [q, k, v], perm=(0, 1, 3, 2))
    joint = g.add("reshape", [values(c, 1, 19, 3 * 2 * 20)], {"shape": (1, 19, 3, 2, 20)})
    joint = g.add("transpose", [joint], {"perm": (2, 0, 3, 1, 4)})
    parts = [g.add("slice", [joint], {"starts": (i, 0, 0, 0, 0), "sizes": (1, 1, 2, 19, 20),
                                      "steps": (1, 1, 1, 1, 1)}) for i in range(3)]
    attend(c, [g.add("reshape", [x], {"shape": (1, 2, 19, 20)}) for x in parts])


def epilogues(c: Cases) -> None:
    g = c.graph
    for s in (2, 18):
        for perm in ((0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)):
            for op in ("tanh", "sin"):  # sin has no vector form
                q, k, v = heads(c, s, 11, 10, h=3)
                y = g.add("attention", [q, k, v], {"perm": perm})
                gate = values(c, *y.shape)
                c.output(g.add(op, [g.add("mul", [y, gate])]))


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("make", [sizes, shared_heads, masks_and_biases, causal, numbers_beyond,
                                  movement, epilogues])
def test_attention(make, target):
    c = fresh()
    make(c)
    same(c, target)


@pytest.mark.parametrize("make", [shared_heads, movement, epilogues, causal])
def test_kernels_in_the_interpreter(make):
    """Which finds races, reads of memory that nobody wrote and indices out of range."""
    c = fresh()
    make(c)
    program, _ = c.compiled("cpu:x86-64-v3")
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, TOLERANCE)


def test_transposes_are_read_in_place():
    c = fresh()
    movement(c)
    program, _ = c.compiled("cpu")
    first = [k.name for k in program.kernels() if "attention" in k.name][0]
    names = [k.name for k in program.kernels()]
    assert names[0] == first  # the split heads of the first case


def test_keys_in_one_cache_set_are_copied():
    """Rows of 4096 bytes: the copy is worth it for many rows of queries only."""
    for rows, copies in ((20, 0), (256, 2)):
        c = fresh()
        q, k, v = (c.graph.add("transpose", [make(c, 1, n, 64, 16)], {"perm": (0, 2, 1, 3)})
                   for make, n in ((normal, rows), (normal, 150), (values, 150)))
        attend(c, [q, k, v], perm=(0, 2, 1, 3))
        program = same(c, "cpu")
        assert len([k for k in program.kernels() if "operand" in k.name]) == copies


SYMBOLIC = [(1, 1), (1, 129), (2, 0), (3, 33), (17, 0), (20, 20), (33, 129), (70, 300)]


@pytest.mark.parametrize("target", VARIANTS)
def test_symbolic_sizes(target):
    """One program for all numbers of rows and keys, none included."""
    c = fresh(symbolic=True)
    rows, keys = size("S"), size("T")
    c.graph.symbols = {"S": (0, None), "T": (0, None)}

    def tensor(name: str, *shape, dtype=dt.f32) -> Value:
        from smelt.ir.graph.core import TensorType

        return c.graph.add_input(name, TensorType(dtype, shape))

    q, k, v = tensor("q", 2, 4, rows, 20), tensor("k", 2, 2, keys, 20), tensor("v", 2, 2, keys, 12)
    bias, hidden = tensor("bias", rows, keys), tensor("m", 2, 1, rows, keys, dtype=dt.bool_)
    attend(c, [q, k, v])
    attend(c, [q, k, v, bias], perm=(0, 2, 1, 3))
    attend(c, [q, k, v, bias, hidden], masked=True, softcap=2.0)
    attend(c, [q, k, v], causal=True, offset=keys - rows, guarded=True)
    _, run = c.compiled(target)
    for s, t in SYMBOLIC:
        r = c.rng
        c.arrays = [r.standard_normal((2, 4, s, 20)), r.standard_normal((2, 2, t, 20)),
                    r.uniform(-1, 1, (2, 2, t, 12)), r.standard_normal((s, t))]
        c.arrays = [*(x.astype(np.float32) for x in c.arrays), r.random((2, 1, s, t)) < 0.5]
        alone = run(1)
        for got, again, want in zip(alone, run(3), interpret(c.graph, c.arrays), strict=True):
            np.testing.assert_array_equal(got, again)
            np.testing.assert_allclose(got, want, 0, TOLERANCE, err_msg=f"S={s}, T={t}")


def primitives(dtype: dt.DType) -> Cases:
    c = fresh()
    g = c.graph
    q, k, v = (c.input(1, 2, n, 8, dtype=dtype) for n in (6, 9, 9))
    s = g.add("matmul", [q, g.add("transpose", [k], {"perm": (0, 1, 3, 2)})])
    s = g.add("mul", [s, g.constant(math.sqrt(1 / 8), dtype=dtype)])
    c.output(g.add("matmul", [g.add("softmax", [s], {"axis": 3}), v]))
    return c


@pytest.mark.parametrize("target, dtype, one", [
    ("cpu", dt.f32, True), ("cpu:x86-64-v2", dt.f32, True), ("cpu", dt.f64, False),
    ("cpu", dt.f16, False), ("cpu:generic", dt.f32, False)])
def test_only_what_has_a_kernel_is_recognised(target, dtype, one):
    program, _ = primitives(dtype).compiled(target)
    names = [k.name for k in program.kernels()]
    assert any("attention" in n for n in names) == one, names
    assert any("softmax" in n for n in names) != one, names
