"""Groups of operators as blocks that TVM schedules, next to the graph interpreter (numpy).

Sums of up to 600 terms in another order and with fused products: a few hundred units in the last
place of the sum of magnitudes at most, so 2e-5 of the largest value leaves a margin. Integers agree
to the bit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from cpu.native_graphs import Cases

pytest.importorskip("tvm")

from smelt import tvm_tuning
from smelt.codegen.tensorir_blocks import BlockModule, print_blocks
from smelt.codegen.tensorir_text import Inexpressible
from smelt.errors import TargetError
from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.interpreter import interpret
from smelt.passes.graph.pipeline import Options, optimise
from smelt.targets import tvm_bridge
from smelt.targets.tvm_blocks import BlockFunction, Space


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path))
    return tmp_path


def product(m: int, k: int, n: int) -> Callable[[Cases], None]:
    """A matrix product with a bias, an activation and a residual."""
    def make(c: Cases) -> None:
        g = c.graph
        w = g.constant((c.rng.standard_normal((k, n)) / np.sqrt(k)).astype(np.float32))
        bias = g.constant(c.rng.standard_normal(n).astype(np.float32))
        y = g.add("add", [g.add("matmul", [c.input(m, k), w]), bias])
        c.output(g.add("add", [g.add("relu", [y]), c.input(m, n)]))
    return make


def convolution(channels: int, features: int, *, height: int = 9, width: int = 11, window: int = 3,
                stride: int = 1, groups: int = 1, pad: int = 1) -> Callable[[Cases], None]:
    """A convolution with a bias and an activation."""
    def make(c: Cases) -> None:
        g = c.graph
        shape = (features, channels // groups, window, window)
        w = (c.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        y = g.add("conv", [c.input(1, channels, height, width), g.constant(w)], {
            "strides": (stride, stride), "dilations": (1, 1), "low": (pad, pad),
            "high": (pad, 0), "groups": groups})
        bias = c.rng.standard_normal((features, 1, 1)).astype(np.float32)
        c.output(g.add("sigmoid", [g.add("add", [y, g.constant(bias)])]))
    return make


def rows(c: Cases) -> None:
    """Reductions within operators, and of several axes, of one and of all elements."""
    g = c.graph
    c.output(g.add("softmax", [c.input(3, 17)], {"axis": 1}))
    c.output(g.add("reduce_mean", [c.input(2, 5, 7)], {"axes": (0, 2), "keepdims": False}))
    c.output(g.add("reduce_max", [c.input(13, 1)], {"axes": (0, 1), "keepdims": False}))


def integers(c: Cases) -> None:
    g = c.graph
    a, b = (c.input(dtype=dt.i8, array=c.rng.integers(-128, 128, s).astype(np.int8))
            for s in ((5, 23), (23, 17)))
    c.output(g.add("matmul", [a, b], {"dtype": dt.i32}))


CASES = {
    "one": product(1, 1, 1), "primes": product(7, 31, 13), "past a tile": product(17, 65, 33),
    "deep": product(4, 600, 16), "conv": convolution(5, 17),
    "conv of one": convolution(1, 1, height=1, width=1, window=1, pad=0),
    "conv in steps": convolution(3, 16, stride=2), "depthwise": convolution(19, 19, groups=19),
    "pointwise": convolution(16, 33, window=1, pad=0), "rows": rows, "integers": integers,
}


def made(name: str, rng: np.random.Generator, fused: bool,
         ) -> tuple[BlockModule, list[np.ndarray], list[np.ndarray]]:
    """The blocks of a case, the contents of their inputs, and what they have to give."""
    c = Cases(int(rng.integers(1 << 31)))
    CASES[name](c)
    wanted = [np.asarray(a) for a in interpret(c.graph, c.arrays)]
    if fused:
        optimise(c.graph, Options(channels_last=True))
        assert any(n.op == "fused" for n in c.graph.ordered()) or name in ("rows", "integers")
    blocks = print_blocks(c.graph)
    by_name = dict(zip((v.name for v in c.graph.inputs), c.arrays, strict=True))
    return blocks, [by_name[v.name] if v.constant is None else v.constant
                    for v in blocks.inputs], wanted


def assert_close(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        if want.dtype.kind == "f":
            np.testing.assert_allclose(got, want, 0, 2e-5 * float(np.abs(want).max()))
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("fused", [False, True], ids=["operators", "fused"])
@pytest.mark.parametrize("name", CASES)
def test_blocks_mean_what_the_operators_mean(name, fused, rng):
    blocks, inputs, wanted = made(name, rng, fused)
    assert_close(BlockFunction(blocks)(inputs), wanted)


@pytest.mark.parametrize("name", CASES)
def test_schedules_keep_the_meaning(name, rng):
    """Decisions at random, constants in the layouts that these ask for, and the same schedule
    from its trace in JSON."""
    blocks, inputs, wanted = made(name, rng, True)
    space = Space(blocks, int(rng.integers(1 << 20)))
    tried = [space.sampled(k % len(space.sketches), int(rng.integers(1 << 30))) for k in range(6)]
    schedules = [t for t in tried if t is not None][:2]
    assert schedules
    for schedule, trace in schedules:
        assert_close(BlockFunction(blocks, schedule)(inputs), wanted)
        again = space.recorded(trace.as_json(remove_postproc=True))
        assert again is not None and again[0].mod.script() == schedule.mod.script()


def test_constants_are_laid_out_ahead(rng):
    blocks, inputs, wanted = made("past a tile", rng, True)
    packed = [k for k, v in enumerate(blocks.inputs) if v.constant is not None and v.rank > 1]
    assert packed and blocks.free_layouts == packed
    space = Space(blocks, 0)
    found = [space.sampled(k % len(space.sketches), k) for k in range(8)]
    functions = [BlockFunction(blocks, s[0]) for s in found if s is not None]
    assert any(set(f.packing) & set(packed) for f in functions)
    assert_close(functions[0](inputs), wanted)


def test_search_measures_and_improves(rng):
    blocks, _, _ = made("primes", rng, True)
    messages = list(tvm_tuning.search(blocks, 6, seed=3))
    assert [m["done"] for m in messages] == sorted({m["done"] for m in messages})
    assert messages[-1]["done"] <= 6
    times = [m["seconds"] for m in messages if "seconds" in m]
    assert times and times == sorted(times, reverse=True) and times[-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["past a tile", "conv", "rows"])
def test_tuned_function_agrees_and_is_kept(name, rng, cache, monkeypatch):
    blocks, inputs, wanted = made(name, rng, True)
    seen: list[tuple[int, int]] = []
    function, record = tvm_tuning.tune(blocks, 4, lambda *at: seen.append(at))
    assert_close(function(inputs), wanted)
    assert record["trials"] == 4 and record["seconds"] > 0
    assert seen and all(1 <= done <= total == 4 for done, total in seen)
    assert len(list((cache / "tvm").glob("*.json"))) == 1

    def never(*_: object) -> None:
        raise AssertionError("a second search")

    monkeypatch.setattr(tvm_tuning, "_search", never)
    again, same = tvm_tuning.tune(blocks, 4)
    assert same == record
    assert_close(again(inputs), wanted)


@pytest.mark.parametrize("program, sentence", [
    ("import time; time.sleep(60)", "no schedule was finished within 1 s"),
    ("import sys; sys.exit('it fell over')", "without a schedule: it fell over"),
    ("print('{\"error\": \"no such thing\"}')", "no such thing"),
])
def test_a_search_that_fails_says_so_in_time(program, sentence, rng, tmp_path, monkeypatch):
    blocks, _, _ = made("primes", rng, True)
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nexec {sys.executable} -c \"$PROGRAM\"\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PROGRAM", program)
    monkeypatch.setattr(tvm_tuning.sys, "executable", str(fake))
    start = time.monotonic()
    with pytest.raises(TargetError, match=sentence):
        tvm_tuning.tune(blocks, 2, limit=1)
    assert time.monotonic() - start < 30


def graph_of(make: Callable[[Graph], Value]) -> Graph:
    graph = Graph("g")
    graph.outputs = [make(graph)]
    return graph


@pytest.mark.parametrize("make, sentence", [
    (lambda g: g.add("relu", [g.add_input("x", TensorType(dt.f32, (size("n"), 4)))]), "open size"),
    (lambda g: g.add("relu", [g.add_input("x", TensorType(dt.f32, (0, 4)))]), "no elements"),
    (lambda g: g.add("relu", [g.add_input("x", TensorType(dt.f16, (3, 4)))]), "blocks of f16"),
])
def test_what_has_no_blocks_is_refused_with_a_sentence(make, sentence):
    with pytest.raises(Inexpressible, match=sentence):
        print_blocks(graph_of(make))


def test_text_is_a_function_of_the_graph(rng):
    texts = {made("conv", np.random.default_rng(1), True)[0].text for _ in range(2)}
    (text,) = texts
    assert "T.axis.reduce(5, " in text and "with T.init():" in text and "if_then_else" in text


def test_a_compiler_error_is_a_sentence(rng, monkeypatch):
    blocks, _, _ = made("primes", rng, True)
    monkeypatch.setattr("smelt.targets.tvm_blocks.host_target", lambda: {"kind": "nothing"})
    with pytest.raises(TargetError, match="TVM cannot compile the group"):
        BlockFunction(blocks)
    with pytest.raises(TargetError, match="MetaSchedule cannot take the group"):
        Space(blocks, 0)
    assert tvm_bridge.host_target()["kind"] == "llvm"
