"""Concatenations and slices as views: which copies vanish, and that results stay the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from bits import assert_same_bits
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir import dtype as dt
from smelt.ir.expr import minimum, wrap
from smelt.ir.graph import Graph, TensorType
from smelt.ir.graph.core import Value
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.nodes import Buffer, Kernel, load
from smelt.passes import views
from smelt.passes.schedule.placement import Unplaceable, Window, placed
from smelt.targets.base import BuildOptions
from smelt.targets.cpu import target as cpu_target
from smelt.targets.cpu.isa import native
from smelt.targets.cpu.target import lower_for

# Windows ------------------------------------------------------------------------------------------


def elements(w: Window) -> set[int]:
    return {w.offset + row * w.whole + k for row in range(w.rows) for k in range(w.block)}


def test_windows_that_are_apart_or_held_really_are(rng):
    for _ in range(3000):
        pace = int(rng.integers(1, 8))
        a, b = (Window(int(rng.integers(1, 5)), int(rng.integers(1, pace + 1)),
                       pace if rng.random() < 0.7 else int(rng.integers(8, 11)),
                       int(rng.integers(0, 30))) for _ in range(2))
        if a.apart(b):
            assert not elements(a) & elements(b)
        if a.holds(b):
            assert elements(b) <= elements(a)


def test_columns_of_the_same_rows_are_apart():
    a, b = Window(9, 3, 8), Window(9, 5, 8, 3)
    assert a.apart(b) and b.apart(a) and not a.apart(Window(9, 5, 8, 2))
    assert Window(9, 5, 8, 3).holds(Window(9, 2, 8, 4)) and not a.holds(b)


# Kernels ------------------------------------------------------------------------------------------


def rows_kernel(rows: int, block: int, lanes: int, counted: bool) -> Kernel:
    """y = 2 x of `rows` rows of `block` elements in vectors, the last one counted or not."""
    b = Builder("k")
    x, y = (b.param(n, dt.f32, (rows * block,)) for n in "xy")
    with b.loop("row", rows) as row:
        start = b.let("start", row * block)
        with b.loop("v", -(-block // lanes)) as v:
            at = start + v * lanes
            count = minimum(wrap(block) - v * lanes, lanes) if counted else None
            b.store(y, at, load(x, (at,), lanes, count) * 2.0, count)
    return b.kernel()


@pytest.mark.parametrize(("block", "lanes", "counted"), [
    (16, 16, False), (32, 16, False), (8, 8, True), (7, 4, True), (1, 1, False), (37, 16, True)])
def test_a_kernel_writes_and_reads_columns(rng, block, lanes, counted):
    rows, whole, offset = 5, block + 11, 3
    kernel = rows_kernel(rows, block, lanes, counted)
    x, y = kernel.params
    window = Window(rows, block, whole, offset)
    larger = {b: Buffer(b.name, b.dtype, (rows * whole,)) for b in (x, y)}
    source = rng.standard_normal((rows, whole)).astype(np.float32)
    wide = np.full((rows, whole), -7, np.float32)
    run_kernel(placed(kernel, larger, window), [source.reshape(-1), wide.reshape(-1)], {})
    expected = np.full((rows, whole), -7, np.float32)
    expected[:, offset:offset + block] = source[:, offset:offset + block] * 2
    assert_same_bits([wide], [expected])
    narrow = np.zeros((rows, block), np.float32)
    run_kernel(placed(kernel, {x: larger[x]}, window), [source.reshape(-1), narrow.reshape(-1)], {})
    assert_same_bits([narrow], [expected[:, offset:offset + block]])


def flat_kernel(count: int, lanes: int) -> Kernel:
    b = Builder("k")
    x, y = (b.param(n, dt.f32, (count * lanes,)) for n in "xy")
    with b.loop("i", count) as i:
        b.store(y, i * lanes, load(x, (i * lanes,), lanes) + 1.0)
    return b.kernel()


def test_flat_vectors_find_their_row_by_division(rng):
    kernel, window = flat_kernel(15, 4), Window(5, 12, 20, 8)
    wide = np.zeros((5, 20), np.float32)
    x = rng.standard_normal((5, 12)).astype(np.float32)
    new = placed(kernel, {kernel.params[1]: Buffer("y", dt.f32, (100,))}, window)
    run_kernel(new, [x.reshape(-1), wide.reshape(-1)], {})
    assert_same_bits([wide[:, 8:]], [x + np.float32(1)])
    assert not wide[:, :8].any()


def test_vectors_that_cross_rows_are_refused():
    kernel = flat_kernel(15, 4)
    with pytest.raises(Unplaceable, match="4 elements at once"):
        placed(kernel, {kernel.params[1]: Buffer("y", dt.f32, (120,))}, Window(6, 10, 20))


# Programs -----------------------------------------------------------------------------------------


@pytest.fixture
def without_views(monkeypatch):
    """Runs something with the pass off."""
    def run(action: Callable):
        with monkeypatch.context() as patch:
            patch.setattr(cpu_target, "place_views", lambda program: [])
            return action()
    return run


def conv(c: Cases, x: Value, features: int, window: int = 1, groups: int = 1) -> Value:
    """A convolution of the same size, channels first; the pipeline turns it."""
    shape = (features, int(x.shape[1]) // groups, window, window)
    w = c.rng.standard_normal(shape).astype(np.float32) / np.float32(np.prod(shape[1:])) ** 0.5
    pad = (window // 2,) * 2
    return c.graph.add("conv", [x, c.graph.constant(w)],
                       {"low": pad, "high": pad, "groups": groups})


def cut(c: Cases, x: Value, start: int, size: int, axis: int = 1) -> Value:
    starts = tuple(start if k == axis else 0 for k in range(x.rank))
    sizes = tuple(size if k == axis else d for k, d in enumerate(x.shape))
    return c.graph.add("slice", [x], {"starts": starts, "steps": (1,) * x.rank, "sizes": sizes})


def joined(c: Cases, *values: Value, axis: int = 1) -> Value:
    return c.graph.add("concat", list(values), {"axis": axis})


def image(c: Cases, channels: int, n: int = 1) -> Value:
    return c.input(n, channels, 9, 11, fixed=(1, 2, 3))


def branches(c: Cases) -> None:
    """Branches that meet (GoogLeNet), of channels that fill vectors and that do not."""
    for widths in ((16, 32, 16), (5, 7), (1, 16, 1), (48, 20)):
        x = c.graph.add("relu", [conv(c, image(c, 16), 24)])
        parts = [c.graph.add("relu", [conv(c, x, n, 1 if k % 2 else 3)])
                 for k, n in enumerate(widths)]
        c.output(conv(c, joined(c, *parts), 16))


def readers(c: Cases) -> None:
    """Parts that others read, too, that are joined twice, and that are results themselves."""
    x = conv(c, image(c, 16), 16, 3)
    y = conv(c, x, 32)
    both = joined(c, x, y)
    c.output(conv(c, both, 8, 3))
    c.output(conv(c, conv(c, x, 16, 3, groups=16), 16))
    c.output(conv(c, joined(c, y, y, x), 16))
    z = conv(c, y, 16)
    c.output(z)
    c.output(conv(c, joined(c, z, conv(c, y, 16)), 16))
    c.output(joined(c, conv(c, z, 32, 3), conv(c, y, 16)))


def growing(c: Cases) -> None:
    """A chain of concatenations (DenseNet)."""
    for features in (16, 12):
        found = [conv(c, image(c, 32), 32)]
        for _ in range(3):
            found.append(conv(c, joined(c, *found) if len(found) > 1 else found[0], features, 3))
        c.output(conv(c, joined(c, *found), 16))


def nested(c: Cases) -> None:
    """Concatenations of concatenations, and slices of them."""
    x = image(c, 16)
    inner = joined(c, conv(c, x, 16), conv(c, x, 32, 3))
    outer = joined(c, conv(c, x, 16), inner)
    c.output(conv(c, outer, 16))
    c.output(conv(c, inner, 16))
    c.output(conv(c, cut(c, outer, 16, 32), 16, 3))
    c.output(conv(c, cut(c, outer, 8, 24), 16))


def slices(c: Cases) -> None:
    """Branches that part (ShuffleNet), where only one kernel or many read a slice."""
    for width, start, size in ((64, 32, 32), (40, 20, 20), (24, 5, 7), (33, 32, 1)):
        x = conv(c, image(c, 16), width)
        half = cut(c, x, start, size)
        c.output(conv(c, half, 16))
        c.output(conv(c, conv(c, half, size, 3, groups=size), 8))
        c.output(conv(c, cut(c, x, 0, width - size), 16, 3))


def outermost(c: Cases) -> None:
    """Along the outermost axis a part is contiguous: any kernel can read and write it there."""
    x, y = c.input(3, 40), c.input(5, 40)
    rows = [c.graph.add("softmax", [v], {"axis": 1}) for v in (x, y)]
    whole = joined(c, *rows, axis=0)
    c.output(c.graph.add("cumsum", [whole], {"axis": 1}))
    c.output(c.graph.add("softmax", [cut(c, whole, 2, 4, axis=0)], {"axis": 1}))
    c.output(c.graph.add("cumsum", [cut(c, y, 1, 3, axis=0)], {"axis": 0}))


SHAPES = (branches, readers, growing, nested, slices, outermost)


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("build", SHAPES)
def test_results_are_the_same_bits(rng, target, build, without_views):
    """Also as without views, and the interpreter finds no race and nothing unwritten."""
    c = Cases(int(rng.integers(1 << 31)))
    build(c)
    wanted = c.expected()
    program, run = c.compiled(target)
    _, plain = without_views(lambda: c.compiled(target))
    got = run(1)
    assert_same_bits(got, plain(1))
    assert_same_bits(got, run(3))
    for one, other, want in zip(got, interpreted(c, program), wanted, strict=True):
        np.testing.assert_allclose(one, want, 1e-4, 1e-4)
        np.testing.assert_allclose(other, want, 1e-4, 1e-4)
    assert any(note.endswith("in place") for note in program.notes)


def count(build: Callable[[Cases], None], *kinds: str) -> int:
    """How many kernels of some kinds the program for this machine has."""
    c = Cases(1)
    build(c)
    return sum(k.name.endswith(kinds) for k in lower_for(optimised(c.graph), native()).kernels())


def optimised(graph: Graph) -> Graph:
    cpu_target.make("").optimise(graph, BuildOptions())
    return graph


@pytest.mark.parametrize(("build", "left"), [
    (branches, 2), (readers, 2), (growing, 0), (nested, 0), (slices, 0), (outermost, 1)])
def test_copies_are_gone(build, left, without_views, monkeypatch):
    """But those of a tensor that is joined twice, those for kernels that see no rows, and those of
    convolutions to fewer features than lanes, whose vectors hold several pixels (branches to 5 and
    to 1 features)."""
    monkeypatch.setattr(views, "GROWTH", 9.0)
    before = without_views(lambda: count(build, "concat", "slice"))
    assert count(build, "concat", "slice") <= left < before


def test_open_batch(rng):
    c = Cases(int(rng.integers(1 << 31)), symbolic=True)
    x = image(c, 16, n=3)
    both = joined(c, conv(c, x, 16, 3), conv(c, x, 32))
    c.output(conv(c, both, 16))
    c.output(conv(c, cut(c, both, 16, 32), 16, 3))
    program = check(c, "cpu", 1e-4, 1e-4)
    assert not any(k.name.endswith(("concat", "slice")) for k in program.kernels())
    wanted = c.expected()
    for got, want in zip(interpreted(c, program), wanted, strict=True):
        np.testing.assert_allclose(got, want, 1e-4, 1e-4)


@pytest.mark.parametrize("symbolic", [False, True])
def test_random_graphs(rng, symbolic, without_views):
    for _ in range(2):
        c = Cases(int(rng.integers(1 << 31)), symbolic)
        values = [image(c, int(c.rng.choice([16, 32, 5, 12])), n=2)]
        for _ in range(10):
            x = values[int(c.rng.integers(max(0, len(values) - 5), len(values)))]
            kind, wide = int(c.rng.integers(0, 8)), int(x.shape[1])
            if kind < 2:
                values.append(conv(c, x, int(c.rng.choice([16, 32, 7, 1])), kind * 2 + 1))
            elif kind == 2:
                values.append(conv(c, x, wide, 3, groups=wide))
            elif kind == 3 and wide > 1:
                start = int(c.rng.integers(0, wide - 1))
                values.append(cut(c, x, start, int(c.rng.integers(1, wide - start + 1))))
            elif kind == 4:
                values.append(c.graph.add("softmax", [x], {"axis": 1}))
            elif kind == 5:
                values.append(c.graph.add("silu", [x]))
            elif wide < 200:
                others = [values[int(k)] for k in c.rng.integers(0, len(values), 2)]
                values.append(joined(c, x, *others))
        for value in values[-3:]:
            c.output(value)
        _, run = c.compiled("cpu")
        _, plain = without_views(lambda c=c: c.compiled("cpu"))
        assert_same_bits(run(1), plain(1))


def test_memory_does_not_grow():
    """A first part that is written early would keep the whole alive behind all that follows."""
    g = Graph()
    x = g.add_input("x", TensorType(dt.f32, (64, 64)))
    first = g.add("cumsum", [x], {"axis": 1})
    large = g.add("cumsum", [g.add("expand", [first], {"shape": (64, 64)})], {"axis": 0})
    for _ in range(2):
        large = g.add("cumsum", [g.add("concat", [large] * 4, {"axis": 0})], {"axis": 0})
    total = g.add("reduce_sum", [large], {"axes": (0,), "keepdims": True})
    wide = g.add("cumsum", [g.add("concat", [total] * 512, {"axis": 0})], {"axis": 0})
    g.outputs = [g.add("softmax", [g.add("concat", [first, wide], {"axis": 0})], {"axis": 1})]
    program = lower_for(optimised(g), native())
    assert any("memory would grow" in note for note in program.notes)
