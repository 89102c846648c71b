"""Products with weights of a few bits against numpy on the decoded weights.

Tolerance: sums of n products in another order differ by at most about n units in the last place of
their largest term; weights are scaled so that results are near 1.
"""

from __future__ import annotations

import numpy as np
import pytest
from cpu.foreign_machines import build, run
from cpu.native_graphs import VARIANTS, Cases, check, interpreted
from cpu.test_foreign_machines import MACHINES

from smelt.ir import dtype as dt
from smelt.ir.encoding.base import Encoding, parse
from smelt.ir.graph.core import Value
from smelt.passes.graph.decode_ahead import DecodeAhead
from smelt.passes.schedule.low_bit_panels import pack_panels, words_of

TEXTS = ["int{group=32}", "int{group=32,zeros=true}", "int{group=32,bits=8}", "int{bits=3}",
         "int{group=64,bits=2,zeros=true,scale=f16}", "ternary{group=32}"]
SHAPES = [(1, 64, 64), (1, 172, 33), (3, 37, 5), (16, 100, 130), (7, 128, 1), (1, 11, 1)]
"""Rows, inner size, columns."""


def weights(c: Cases, k: int, n: int, encoding: Encoding) -> Value:
    """[k, n] stored in columns."""
    w = (c.rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)
    parts = [c.graph.constant(p) for p in encoding.pack(w)]
    return c.graph.add("decode", parts, {"encoding": str(encoding), "shape": (k, n), "axis": 0})


def rounded(c: Cases, x: Value, group: int) -> Value:
    """x as 8-bit integers."""
    text = str(parse("rounded" if not group else f"rounded{{group={group}}}"))
    parts = c.graph.add_node("encode", [x], {"encoding": text}).outputs
    return c.graph.add("decode", parts, {"encoding": text, "shape": x.shape, "axis": x.rank - 1})


def check_close(c: Cases, target: str, launches: int) -> list[str]:
    program = check(c, target, 0, 2e-5, ["low_bit"])
    names = [k.name for k in program.kernels()]
    assert sum("low_bit" in n for n in names) == launches
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 0, 2e-5)
    return names


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("integers", [False, True])
def test_products(integers, target, rng):
    c = Cases(int(rng.integers(1 << 31)))
    count = 0
    for turn, text in enumerate(TEXTS):
        encoding = parse(text)
        for m, k, n in SHAPES[turn % 2::2]:
            x = c.input(m, k)
            if integers:
                x = rounded(c, x, encoding.group)  # type: ignore[attr-defined]
            c.output(c.graph.add("matmul", [x, weights(c, k, n, encoding)]))
            count += 1
    names = check_close(c, target, count)
    # Where there is a product of bytes the rounded activations are not decoded.
    assert not (integers and target == "cpu") or not any("operand" in n for n in names)


@pytest.mark.parametrize("target", VARIANTS)
def test_rounded_activations(target, rng):
    """The parts as numpy packs them; sums of integers below 2^24 are exact in f32."""
    c = Cases(int(rng.integers(1 << 31)))
    arrays = []
    for text, m, k in (("rounded{group=32}", 3, 64), ("rounded{group=32}", 1, 75),
                       ("rounded", 2, 1), ("rounded", 2, 61), ("rounded{group=8}", 2, 20),
                       ("rounded", 1, 400)):
        x = c.input(m, k)
        arrays += parse(text).pack(c.arrays[-1])
        c.graph.outputs += c.graph.add_node("encode", [x], {"encoding": text}).outputs
    program = check(c, target, 1e-6, 0)
    assert len(list(program.kernels())) == 6
    for got, want in zip(interpreted(c, program), arrays, strict=True):
        np.testing.assert_allclose(got, want, 1e-6)


@pytest.mark.parametrize("target", VARIANTS)
def test_epilogues_and_batches(target, rng):
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    for text in ("int{group=32,zeros=true}", "int{group=32,bits=8}"):
        w = weights(c, 96, 40, parse(text))
        y = g.add("add", [g.add("matmul", [c.input(2, 3, 96), w]), c.input(40)])
        y = g.add("mul", [y, g.add("sigmoid", [y])])
        c.output(g.add("add", [y, c.input(2, 3, 40)]))
        c.output(g.add("add", [g.add("matmul", [c.input(2, 3, 96), w]), c.input(2, 1, 1)]))
    check_close(c, target, 4)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_other_machines(machine, tmp_path, rng):
    """NEON under qemu and WebAssembly in node, which have no product of bytes: rounded activations
    are decoded before."""
    c = Cases(int(rng.integers(1 << 31)))
    for turn, text in enumerate(TEXTS):
        encoding = parse(text)
        m, k, n = SHAPES[turn]
        c.output(c.graph.add("matmul", [c.input(m, k), weights(c, k, n, encoding)]))
        x = rounded(c, c.input(m, k), encoding.group)  # type: ignore[attr-defined]
        c.output(c.graph.add("matmul", [x, weights(c, k, n, encoding)]))
    wanted = c.expected()
    built = build(c.graph, machine, tmp_path)
    assert sum("low_bit" in k.name for k in built.program.kernels()) == 2 * len(TEXTS)
    for got, want in zip(run(machine, tmp_path, c.arrays), wanted, strict=True):
        np.testing.assert_allclose(got, want, 0, 2e-5)


@pytest.mark.parametrize("integers", [False, True])
def test_symbolic_rows(integers, rng):
    c = Cases(int(rng.integers(1 << 31)), symbolic=True)
    for m in (1, 5, 33):
        for text in ("int{group=32}", "int{group=64,zeros=true}"):
            x = c.input(2, m, 96, fixed=(2,))
            if integers:
                x = rounded(c, x, parse(text).group)  # type: ignore[attr-defined]
            c.output(c.graph.add("matmul", [x, weights(c, 96, 50, parse(text))]))
    check_close(c, "cpu", 6)


def test_what_kernels_do_not_read_is_decoded_while_compiling(rng):
    """Codebooks, many rows of floats, left operands, and what is returned; one user of several may
    still read the encoded weights."""
    c = Cases(int(rng.integers(1 << 31)))
    g = c.graph
    c.output(g.add("matmul", [c.input(2, 64), weights(c, 64, 8, parse("codebook{group=32}"))]))
    c.output(g.add("matmul", [c.input(40, 64), weights(c, 64, 8, parse("int"))]))
    c.output(g.add("matmul", [weights(c, 5, 64, parse("int")), c.input(64, 3)]))
    both = weights(c, 64, 8, parse("int"))
    c.output(g.add("matmul", [c.input(2, 64), both]))
    c.output(g.add("add", [both, c.input(64, 8)]))
    rows = g.add("gather", [weights(c, 9, 16, parse("int{bits=8}")),
                            c.input(dtype=dt.i64, array=np.array([3, 0, 8]))], {"axis": 0})
    c.output(rows)
    program = check(c, "cpu", 0, 2e-5, ["low_bit"])
    assert sum("low_bit" in k.name for k in program.kernels()) == 1


def test_decode_ahead_says_where(rng):
    c = Cases(int(rng.integers(1 << 31)))
    y = c.graph.add("matmul", [c.input(1, 32), weights(c, 32, 8, parse("int"))])
    c.output(y)
    place = DecodeAhead(kernels=True)
    assert place.run(c.graph)
    assert place.notes == ["decode: int is decoded in the kernel of matmul"]
    place = DecodeAhead()
    assert place.run(c.graph) and place.notes == ["decode: int is decoded while compiling"]
    assert c.graph.outputs[0].node.inputs[1].constant is not None  # type: ignore[union-attr]


def test_no_number_survives_a_nan(rng):
    c = Cases(int(rng.integers(1 << 31)))
    x = c.rng.standard_normal((2, 64)).astype(np.float32)
    x[1, 5] = np.nan
    c.output(c.graph.add("matmul", [rounded(c, c.input(array=x), 32),
                                    weights(c, 64, 20, parse("int{group=32}"))]))
    _, run = c.compiled("cpu")
    (y,) = run(1)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()


@pytest.mark.parametrize("text", TEXTS)
def test_panels_hold_every_field_once(text, rng):
    """Words taken apart by hand give the fields; what fills up is beyond them."""
    encoding = parse(text)
    for k, n, width in ((172, 5, 4), (64, 33, 16), (1, 1, 1)):
        x = rng.standard_normal((n, k)).astype(np.float32)
        arrays = list(encoding.pack(x))
        words = words_of(encoding, k)
        assert words is not None
        panels = pack_panels(encoding, arrays, words, width)  # type: ignore[arg-type]
        fields, scale, zero = encoding.split(arrays, k)  # type: ignore[attr-defined]
        mask = (1 << words.bits) - 1
        for column in range(n):
            panel, j = divmod(column, width)
            for i in range(k):
                group, inside = divmod(i, words.group)
                word, field = divmod(inside, words.fields)
                stored = int(panels.words[panel, group * words.per_group + word, j])
                assert stored >> words.position(field) & mask == fields[column, i]
            np.testing.assert_array_equal(panels.scales[panel, :, j], scale[column])
            if panels.zeros is not None:
                np.testing.assert_array_equal(panels.zeros[panel, :, j], zero[column])
    assert dt.i32.numpy == panels.words.dtype
