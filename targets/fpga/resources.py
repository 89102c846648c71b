"""What stages and FIFOs take of a device: estimates from their shapes.

The logic of the matrix-vector unit is fitted to what yosys makes of its SystemVerilog twin
(`docs/fpga.md` has the figures); the vendor's tools were not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ...passes.dataflow.assembly import Fifo
from ...passes.dataflow.epilogue import Epilogue, Thresholds
from ...passes.dataflow.network import (
    Choice,
    FrameSum,
    Join,
    Layer,
    Lookup,
    MatrixVector,
    Window,
    WindowMaximum,
    WindowSum,
)
from ...passes.dataflow.templates import Blend, element_of
from .parts import Part

CONTROL = 60
"""LUTs of a stage's counters and handshakes."""
MULTIPLIER_BITS = 5
"""Factors of at least as many bits, both, are multiplied by a DSP; smaller ones by LUTs."""
FITTED = 1.38
"""LUTs that yosys takes for the logic of a matrix-vector unit, over what its operators count."""
DISTRIBUTED_WORDS = 64
"""Words up to which a memory lies in LUTs."""


@dataclass(frozen=True)
class Usage:
    """Look-up tables, flip-flops, DSPs and block memories of 36 Kib (halves count)."""

    lut: float = 0
    ff: float = 0
    dsp: int = 0
    bram: float = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.lut + other.lut, self.ff + other.ff, self.dsp + other.dsp,
                     self.bram + other.bram)

    def shares(self, part: Part) -> dict[str, float]:
        """Which part of what the device has is taken."""
        return {"LUT": self.lut / part.lut, "FF": self.ff / part.ff, "DSP": self.dsp / part.dsp,
                "BRAM": self.bram / part.bram}

    def as_dict(self) -> dict[str, float]:
        return {"LUT": round(self.lut), "FF": round(self.ff), "DSP": self.dsp, "BRAM": self.bram}


def memory(width: int, words: int) -> Usage:
    """A memory of so many words of `width` bits."""
    if words <= 1 or width == 0:
        return Usage(ff=width * words)
    if words <= DISTRIBUTED_WORDS:
        return Usage(lut=width * ceil(words / 64))
    narrow = min(ceil(width / 36) * ceil(words / 512), ceil(width / 18) * ceil(words / 1024),
                 ceil(width / 9) * ceil(words / 2048))
    return Usage(bram=narrow / 2)


def multiplier(a: int, b: int) -> Usage:
    """A product of factors of so many bits."""
    a, b = max(a, b), min(a, b)
    if b <= 1:
        return Usage(lut=a)
    if b < MULTIPLIER_BITS:
        return Usage(lut=1.1 * a * b)
    return Usage(dsp=ceil(a / 26) * ceil(b / 17), ff=a + b)


def adders(count: int, bits: int) -> Usage:
    """Sums of two numbers of so many bits, each with a register."""
    return Usage(lut=count * bits, ff=count * bits)


def finishing(epilogue: Epilogue, total: int, out: int, lanes: int, channels: int) -> Usage:
    """What follows the sums, for so many channels at a time."""
    groups = channels // lanes
    if isinstance(epilogue, Thresholds):
        levels = epilogue.steps.shape[1]
        steps = levels.bit_length()
        one = adders(steps, total) + memory(total * levels, groups)
        return _times(one, lanes)
    factor = element_of(epilogue.factor).bits
    powers = all(int(f) & (int(f) - 1) == 0 for f in set(epilogue.factor.tolist()))
    one = adders(2, total + 8) + adders(2, out + 2)
    one = one + (Usage(lut=total * 2) if powers else multiplier(total, factor))
    if not getattr(epilogue, "narrow", True):
        one = one + Usage(lut=total * 6 + 9 * factor)  # rounding to f32 first
    tables = 0 if len(set(epilogue.factor.tolist())) == 1 else factor
    one = one + memory(tables + total, groups)
    return _times(one, lanes)


def _times(usage: Usage, count: int) -> Usage:
    return Usage(usage.lut * count, usage.ff * count, usage.dsp * count, usage.bram * count)


def product_usage(layer: MatrixVector, choice: Choice) -> Usage:
    """The sums of a matrix-vector unit, without its streams and what follows."""
    outputs, inputs = layer.weights.shape
    x, w = layer.inputs[0].element.bits, element_of(layer.weights).bits
    lanes, simd = choice.output, choice.inputs[0]
    words = outputs // lanes * (inputs // simd)
    ternary = abs(layer.weights).max(initial=0) <= 1
    one = Usage(lut=x) if ternary else multiplier(x, w)
    units = _times(one + adders(1, x + (0 if ternary else w) + 2), lanes * simd)
    held = memory(x * simd, inputs // simd) if outputs > lanes else Usage()
    logic = Usage(lut=CONTROL / 2, ff=CONTROL / 2) + units + adders(lanes, layer.total.bits)
    return (Usage(FITTED * logic.lut, logic.ff, logic.dsp) + held
            + memory(w * lanes * simd, words))


def layer_usage(layer: Layer, choice: Choice) -> Usage:
    """The estimate for a folded layer."""
    x = layer.inputs[0].element.bits
    lanes = choice.output
    control = Usage(lut=CONTROL + layer.output.element.bits * lanes,
                    ff=CONTROL + 2 * layer.output.element.bits * lanes + x * choice.inputs[0])
    if isinstance(layer, MatrixVector):
        return control + product_usage(layer, choice) + finishing(
            layer.epilogue, layer.total.bits, layer.output.element.bits, lanes,
            layer.output.channels)
    if isinstance(layer, Window):
        s = layer.sliding
        return control + Usage(lut=2 * CONTROL, ff=2 * CONTROL) + memory(
            x * lanes, s.rows * s.words(lanes))
    if isinstance(layer, WindowSum):
        w = element_of(layer.weights).bits
        channels, taps = layer.weights.shape
        units = _times(multiplier(x, w) + adders(1, layer.total.bits), lanes)
        return (control + units + memory(w * lanes, channels // lanes * taps)
                + finishing(layer.epilogue, layer.total.bits, layer.output.element.bits, lanes,
                            channels))
    if isinstance(layer, FrameSum):
        return (control + adders(lanes, layer.total.bits)
                + memory(layer.total.bits * lanes, layer.output.channels // lanes)
                + finishing(layer.epilogue, layer.total.bits, layer.output.element.bits, lanes,
                            layer.output.channels))
    if isinstance(layer, WindowMaximum):
        return control + adders(lanes, 2 * x)
    if isinstance(layer, Lookup):
        return control + _times(memory(layer.output.element.bits, len(layer.table)), lanes)
    if isinstance(layer, Join):
        how = layer.how
        if not isinstance(how, Blend):
            return control + _times(memory(layer.output.element.bits, how.size), lanes)
        products = multiplier(x, abs(how.left).bit_length()) + multiplier(
            layer.inputs[1].element.bits, abs(how.right).bit_length())
        return control + _times(products + adders(3, how.shift + 10), lanes)
    return control + adders(choice.inputs[0], 2 * x)


def fifo_usage(fifo: Fifo) -> Usage:
    """A queue: shift registers, or a memory where it is deep."""
    if fifo.depth <= DISTRIBUTED_WORDS:
        return Usage(lut=fifo.bits * ceil(fifo.depth / 32) + 12, ff=fifo.bits + 12)
    return memory(fifo.bits, fifo.depth) + Usage(lut=30, ff=30)


def plumbing_usage(fifos: list[Fifo]) -> Usage:
    """A fork or converter between these FIFOs."""
    return Usage(lut=CONTROL / 2 + max(f.bits for f in fifos), ff=sum(f.bits for f in fifos))
