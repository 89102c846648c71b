"""Encodings: what `pack` and `unpack` promise, and that operators say the same.

Tolerances: rounding to the nearest errs by half a step at most; `decode` and `encode` by their
bodies and by numpy differ by nothing but the order of sums.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from smelt.errors import ModelError, UsageError
from smelt.ir import dtype as dt
from smelt.ir.encoding.base import Affine, kinds, parse
from smelt.ir.encoding.codebook import NF4
from smelt.ir.encoding.integer import pack_bits, unpack_bits
from smelt.ir.graph.core import Graph, tensor
from smelt.ir.graph.interpreter import interpret
from smelt.ir.graph.text import parse_graph, print_graph

TEXTS = ["int", "int{group=32,bits=8}", "int{group=32,bits=3,zeros=true}", "int{bits=3}",
         "int{group=64,bits=2,scale=f16}", "int{group=8,zeros=true,scale=f16}", "ternary{group=32}",
         "ternary{absmean=true}", "codebook{group=32}", "codebook{values=-1.0+-0.3+0.3+1.0}",
         "rounded{group=32}", "rounded"]
LENGTHS = [1, 7, 32, 37, 64, 100]


def matrix(rng, rows: int, k: int) -> np.ndarray:
    return rng.standard_normal((rows, k)).astype(np.float32)


def test_every_kind_is_tested():
    assert {t.partition("{")[0] for t in TEXTS} == set(kinds())


@pytest.mark.parametrize("text", TEXTS)
def test_text_form_and_sizes(text, rng):
    encoding = parse(text)
    assert str(encoding) == text and parse(str(encoding)) is encoding
    for k in LENGTHS:
        x = matrix(rng, 3, k)
        arrays = encoding.pack(x)
        parts = encoding.parts(k)
        assert [a.shape for a in arrays] == [p.shape(x.shape) for p in parts]
        assert [a.dtype for a in arrays] == [p.dtype.numpy for p in parts]
        assert encoding.size(x.shape) == sum(a.nbytes for a in arrays)


@pytest.mark.parametrize("text", TEXTS)
def test_what_can_be_said_exactly_is_kept(text, rng):
    """Decoded values encode to themselves, up to the rounding of their scale."""
    encoding = parse(text)
    for k in LENGTHS:
        once = encoding.unpack(encoding.pack(matrix(rng, 4, k)), k)
        again = encoding.unpack(encoding.pack(once), k)
        if isinstance(encoding, Affine) and encoding.width == 2 or "zeros" in text:
            continue  # their scale comes from a range, or a mean, that rounding changes
        np.testing.assert_allclose(again, once, rtol=2e-3 if "f16" in text else 1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_integers_round_to_the_nearest(bits, zeros, rng):
    """Written out for one group: half a step of (range / levels), and one for the zero point."""
    encoding = parse(f"int{{bits={bits},zeros={'true' if zeros else 'false'}}}")
    x = matrix(rng, 50, 24) + (1 if zeros else 0)
    got = encoding.unpack(encoding.pack(x), 24)
    if zeros:
        step = (np.maximum(x.max(-1), 0) - np.minimum(x.min(-1), 0)) / (2 ** bits - 1)
        assert (np.abs(got - x) <= step[:, None] * 1.0001).all()
    else:
        step = np.abs(x).max(-1) / (2 ** (bits - 1) - 1)
        assert (np.abs(got - x) <= step[:, None] * 0.5001).all()
        np.testing.assert_allclose(np.abs(got).max(-1), np.abs(x).max(-1), rtol=1e-6)


def test_ternary_by_its_papers(rng):
    x = matrix(rng, 5, 40).astype(np.float64)
    magnitude = np.abs(x)
    large = magnitude > 0.7 * magnitude.mean(-1, keepdims=True)
    alpha = (magnitude * large).sum(-1) / large.sum(-1)
    encoding = parse("ternary")
    got = encoding.unpack(encoding.pack(x), 40)
    np.testing.assert_allclose(got, np.sign(x) * large * alpha[:, None], rtol=1e-5)
    gamma = magnitude.mean(-1, keepdims=True)
    encoding = parse("ternary{absmean=true}")
    got = encoding.unpack(encoding.pack(x), 40)
    np.testing.assert_allclose(got, np.clip(np.rint(x / gamma), -1, 1) * gamma, rtol=1e-5)


def test_codebook_takes_the_nearest_value(rng):
    x = matrix(rng, 6, 64)
    scale = np.abs(x).max(-1, keepdims=True)
    table = np.array(NF4)
    nearest = table[np.abs(x[..., None] / scale[..., None] - table).argmin(-1)] * scale
    encoding = parse("codebook")
    np.testing.assert_allclose(encoding.unpack(encoding.pack(x), 64), nearest, rtol=1e-6)


def test_streams_of_bits_against_integers_of_any_size(rng):
    for bits in (2, 3, 4, 8):
        fields = rng.integers(0, 1 << bits, (3, 41)).astype(np.uint8)
        stream = pack_bits(fields, bits)
        for row, packed in zip(fields, stream, strict=True):
            number = sum(int(f) << (bits * k) for k, f in enumerate(row))
            assert packed.tobytes() == number.to_bytes(len(packed), "little")
        np.testing.assert_array_equal(unpack_bits(stream, bits, 41), fields)


def test_four_bits_are_laid_out_as_ml_dtypes_orders_them(rng):
    """int{} without zero points is uint4 - 8, lowest nibble first."""
    encoding = parse("int{group=8}")
    x = matrix(rng, 2, 16)
    fields, scales = encoding.pack(x)
    nibbles = np.stack([fields & 15, fields >> 4], -1).reshape(2, 16).astype(ml_dtypes.uint4)
    values = (nibbles.astype(np.float32) - 8) * np.repeat(scales, 8, -1)
    np.testing.assert_array_equal(encoding.unpack((fields, scales), 16), values)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("axis", [0, 1])
def test_operators_say_the_same_by_body_and_by_numpy(text, axis, rng):
    encoding = parse(text)
    for k in LENGTHS:
        x = matrix(rng, 3, k)
        g = Graph()
        shape = (k, 3) if axis == 0 else (3, k)
        g.outputs.append(g.add("decode", [g.constant(p) for p in encoding.pack(x)],
                               {"encoding": text, "shape": shape, "axis": axis}))
        if encoding.dynamic:
            given = g.add_input("x", tensor(dt.f32, 3, k))
            g.outputs += g.add_node("encode", [given], {"encoding": text}).outputs
        given = [x] if encoding.dynamic else []
        wanted = [np.moveaxis(encoding.unpack(encoding.pack(x), k), -1, axis),
                  *(encoding.pack(x) if encoding.dynamic else ())]
        printed = print_graph(g)
        assert print_graph(parse_graph(printed)) == printed
        for bodies in (False, True):
            for got, want in zip(interpret(g, given, bodies=bodies), wanted, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_zeros_and_what_is_not_finite():
    """A group of zeros is kept; of infinities and NaN in activations the scale tells."""
    for text in TEXTS:
        encoding = parse(text)
        zeros = np.zeros((2, 40), np.float32)
        assert not encoding.unpack(encoding.pack(zeros), 40).any()
    x = np.zeros((1, 64), np.float32)
    x[0, 3], x[0, 40] = np.nan, 1
    encoding = parse("rounded{group=32}")
    got = encoding.unpack(encoding.pack(x), 64)
    assert np.isnan(got[0, :32]).all() and got[0, 40] == 1 and not got[0, 41:].any()


@pytest.mark.parametrize(("text", "sentence"), [
    ("integer", "did you mean int"), ("int{bits=5}", "use 2, 3, 4 or 8"),
    ("int{group=9}", "multiple of 8"), ("int{depth=3}", "no parameter"),
    ("int{bits=x}", "no value of bits"), ("int{bits=4", "closing brace"),
    ("int{scale=bf16}", "use f16 or f32"), ("codebook{values=1.0+0.0}", "4 or 16 values"),
])
def test_bad_texts_get_one_sentence(text, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse(text)


def test_operators_refuse_what_does_not_fit(rng):
    g = Graph()
    parts = [g.constant(p) for p in parse("int").pack(matrix(rng, 2, 8))]
    with pytest.raises(ModelError, match="is held by"):
        g.add("decode", parts, {"encoding": "int", "shape": (9, 3), "axis": 0})
    x = g.add_input("x", tensor(dt.f32, 2, 8))
    with pytest.raises(ModelError, match="cannot encode in it"):
        g.add("encode", [x], {"encoding": "int"})
