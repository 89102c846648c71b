"""Attention with products of bf16 in tile registers, against softmax in f64 of rounded operands.

Scaled queries, keys and values are rounded to bf16 by both; only the kernel rounds exponentials,
each by at most u = 2^-9 of itself. So a result is within u times the average, weighted by
probabilities p, of values v of at most 1, and sums in f32 add some 6e-6 (see
test_attention_kernels). Roundings that are independent and at most evenly spread make an error of
u / sqrt(3) times the root of the sum of p^2 v^2; the mean of squared errors over squared bounds of
this kind is below 1, and with the few hundred roundings of a small case below 2.

The kernels run in the interpreter on every machine, and natively, with the same bits, where the
processor has tile registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from bits import assert_same_bits
from cpu.native_graphs import Cases, check, interpreted

from smelt.codegen.c_vector import AVX512, with_dot2, with_tiles
from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.kernel.verifier import verify
from smelt.passes.graph.pipeline import Options, optimise
from smelt.passes.graph.reduce_precision import ReducePrecision
from smelt.targets.cpu.isa import Variant, native
from smelt.targets.cpu.target import lower_for

pytestmark = pytest.mark.slow

TILES = Variant("tiles", with_tiles(with_dot2(AVX512)))
UNIT = 2.0 ** -9
SUMS = 6e-6


@dataclass
class Attention:
    """Operands of one attention node, and what it does to scores."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    alter: Callable[[np.ndarray], np.ndarray] = lambda scores: scores
    perm: Sequence[int] = (0, 1, 2, 3)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """The result in f64, and u / sqrt(3) sqrt(sum p^2 v^2)."""
        scale = np.float32(self.q.shape[3] ** -0.5)
        group = self.q.shape[1] // self.k.shape[1]
        q, k, v = (x.astype(ml_dtypes.bfloat16).astype(np.float64)
                   for x in (self.q * scale, np.repeat(self.k, group, 1),
                             np.repeat(self.v, group, 1)))
        scores = self.alter(q @ k.swapaxes(2, 3))
        e = np.exp(scores - np.maximum(scores.max(axis=3, keepdims=True, initial=-np.inf), -1e30))
        p = e / np.maximum(e.sum(axis=3, keepdims=True), 1e-300)
        spread = np.sqrt(p ** 2 @ v ** 2) * (UNIT / 3 ** 0.5)
        return (p @ v).transpose(self.perm), spread.transpose(self.perm)


class Tiles:
    """A graph of attention nodes that may round, and what each should give."""

    def __init__(self, seed: int, symbolic: bool = False):
        self.c = Cases(seed, symbolic)
        self.wanted: list[Attention] = []

    def operands(self, s: int, t: int, d: int, dv: int = 0, h: int = 2, hk: int = 0,
                 b: int = 1) -> list[np.ndarray]:
        rng, hk = self.c.rng, hk or h
        q, k = (rng.standard_normal(x).astype(np.float32) for x in ((b, h, s, d), (b, hk, t, d)))
        return [q, k, rng.uniform(-1, 1, (b, hk, t, dv or d)).astype(np.float32)]

    def attend(self, arrays: Sequence[np.ndarray], bias: np.ndarray | None = None,
               mask: np.ndarray | None = None, alter=lambda scores: scores, inputs=None,
               perm=(0, 1, 2, 3), **attrs) -> None:
        fixed = ((0, 1, 2, 3), (0, 1, 3), (0, 1, 3))
        inputs = inputs or [self.c.input(array=x, fixed=f)
                            for x, f in zip(arrays, fixed, strict=True)]
        inputs = [*inputs, *(None if x is None else self.c.input(
            array=x, dtype=dt.bool_ if x.dtype == bool else dt.f32) for x in (bias, mask))]
        scale = float(np.float32(arrays[0].shape[3] ** -0.5))
        self.c.output(self.c.graph.add("attention", inputs, {
            "scale": scale, "rounded": True, "perm": perm, **attrs}))
        self.wanted.append(Attention(*arrays, alter=alter, perm=perm))


def sizes(t: Tiles) -> None:
    for rows, keys in ((17, 1), (32, 32), (49, 33)):
        t.attend(t.operands(rows, keys, 16))
    for d, dv in ((1, 1), (7, 70), (31, 17), (33, 48)):
        t.attend(t.operands(35, 45, d, dv, h=1))
    for keys in (255, 256, 257, 515):  # around blocks of keys
        t.attend(t.operands(33, keys, 24, h=1))


def scores(t: Tiles) -> None:
    """Bias, masks, caps, causal order, and query heads that share keys."""
    rng = t.c.rng
    for rows, keys in ((40, 37), (17, 300)):
        arrays = t.operands(rows, keys, 24, 20, h=4, hk=2, b=2)
        bias = rng.standard_normal((4, rows, keys)).astype(np.float32)
        t.attend(arrays, bias, alter=lambda x, bias=bias: x + bias)
        seen = rng.random((2, 1, 1, keys)) < 0.5
        seen[..., 0] = True
        t.attend(arrays, mask=seen, alter=lambda x, seen=seen: np.where(seen, x, -np.inf))
        before = np.arange(keys) <= np.arange(rows)[:, None] + 2
        t.attend(arrays, causal=True, offset=2, softcap=3.0,
                 alter=lambda x, before=before: np.where(before, np.tanh(x / 3) * 3, -np.inf))
    arrays = t.operands(34, 40, 16)
    seen = np.arange(34)[:, None] > np.full(40, 3)
    t.attend(arrays, mask=seen, masked=True, alter=lambda x: np.where(seen, x, -np.inf))


def heads(t: Tiles) -> None:
    """Split and joined by transposes, read where they are, and an elementwise operator behind."""
    g, arrays = t.c.graph, t.operands(37, 50, 24, h=3)
    apart = [t.c.input(array=np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(
        1, x.shape[2], -1)) for x in arrays]
    split = [g.add("transpose", [g.add("reshape", [x], {"shape": (1, x.shape[1], 3, 24)})],
                   {"perm": (0, 2, 1, 3)}) for x in apart]
    t.attend(arrays, inputs=split, perm=(0, 2, 1, 3))
    # Along the keys these are contiguous.
    turned = [t.c.input(array=np.ascontiguousarray(x.swapaxes(2, 3))) for x in arrays]
    t.attend(arrays, inputs=[g.add("transpose", [x], {"perm": (0, 1, 3, 2)}) for x in turned])


def agree(t: Tiles, results: Sequence[np.ndarray]) -> None:
    for got, attention in zip(results, t.wanted, strict=True):
        want, spread = attention.expected()
        error = np.abs(got - want)
        assert error.max() <= UNIT + SUMS
        assert (np.maximum(error - SUMS, 0) ** 2).sum() <= 2 * (spread ** 2).sum()


@pytest.mark.parametrize("make", [sizes, scores, heads])
def test_kernels(rng, make):
    """In the interpreter, which finds races, reads of memory that nobody wrote and indices out of
    range, and as C."""
    t = Tiles(int(rng.integers(1 << 31)))
    make(t)
    optimise(t.c.graph, Options(channels_last=True, attention=True))
    program = lower_for(t.c.graph, TILES)
    for kernel in program.kernels():
        verify(kernel)
    assert sum("keys" in k.name for k in program.kernels()) == len(t.wanted)
    results = interpreted(t.c, program)
    agree(t, results)
    if native().vector.tiles:
        _, run = t.c.compiled("cpu")
        assert_same_bits(run(1), results)
        assert_same_bits(run(3), results)


@pytest.mark.parametrize("keys", [1, 32, 45, 300])
def test_open_number_of_keys(rng, keys):
    t = Tiles(int(rng.integers(1 << 31)), symbolic=True)
    t.attend(t.operands(40, keys, 24))
    program = lower_for(t.c.graph, TILES)
    assert any("values" in k.name for k in program.kernels())
    agree(t, interpreted(t.c, program))


@pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu:generic"])
def test_targets_without_tiles_do_not_round(rng, target):
    c = Cases(int(rng.integers(1 << 31)))
    operands = [c.input(1, 2, n, 16) for n in (33, 40, 40)]
    c.output(c.graph.add("attention", operands, {"scale": 0.25, "rounded": True}))
    check(c, target, 0, SUMS * float(np.abs(c.arrays[2]).max()))


def attention_node(s: int, t: int, dtype: dt.DType = dt.f32) -> tuple[Graph, Value]:
    graph = Graph()
    operands = [graph.add_input(n, TensorType(dtype, (1, 2, size, 16)))
                for n, size in (("q", s), ("k", t), ("v", t))]
    graph.outputs = [graph.add("attention", operands, {"scale": 0.25})]
    return graph, graph.outputs[0]


def test_which_nodes_may_round():
    for s, t, why in ((32, 32, ""), (31, 200, "31 positions are too few"),
                      (200, 8, "8 positions are too few")):
        graph, _ = attention_node(s, t)
        reduce = ReducePrecision()
        assert reduce.run(graph) is (why == "")
        node = graph.outputs[0].node
        assert node is not None and node.attrs["rounded"] is (why == "")
        assert why in reduce.notes[0]
    graph, _ = attention_node(64, 64, dt.f16)
    assert not ReducePrecision().run(graph)
