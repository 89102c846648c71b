"""FPGAs, and what there is on them, by the public data sheets (AMD DS180, DS190, DS890, DS891,
DS962, DS987)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import TargetError


@dataclass(frozen=True)
class Part:
    """A device: look-up tables, flip-flops, multipliers (DSP), block memories of 36 Kib and of 288
    Kib (URAM). `order` is the whole name that the vendor's tools take."""

    name: str
    lut: int
    ff: int
    dsp: int
    bram: int
    uram: int
    order: str


PARTS = {p.name: p for p in (
    Part("xcu280", 1_303_680, 2_607_360, 9_024, 2_016, 960, "xcu280-fsvh2892-2L-e"),
    Part("xcu250", 1_728_000, 3_456_000, 12_288, 2_688, 1_280, "xcu250-figd2104-2L-e"),
    Part("xcu50", 871_680, 1_743_360, 5_952, 1_344, 640, "xcu50-fsvh2104-2-e"),
    Part("xczu9eg", 274_080, 548_160, 2_520, 912, 0, "xczu9eg-ffvb1156-2-e"),
    Part("xczu7ev", 230_400, 460_800, 1_728, 312, 96, "xczu7ev-ffvc1156-2-e"),
    Part("xczu3eg", 70_560, 141_120, 360, 216, 0, "xczu3eg-sbva484-1-e"),
    Part("xck26", 117_120, 234_240, 1_248, 144, 64, "xck26-sfvc784-2LV-c"),
    Part("xc7z020", 53_200, 106_400, 220, 140, 0, "xc7z020clg400-1"),
    Part("xc7z010", 17_600, 35_200, 80, 60, 0, "xc7z010clg400-1"),
    Part("xc7a200t", 134_600, 269_200, 740, 365, 0, "xc7a200tfbg484-1"),
    Part("xc7a100t", 63_400, 126_800, 240, 135, 0, "xc7a100tcsg324-1"),
    Part("xc7a35t", 20_800, 41_600, 90, 50, 0, "xc7a35tcpg236-1"),
)}


def find_part(name: str) -> Part:
    """The part of a name. Raises TargetError with those that are known."""
    if name not in PARTS:
        known = ", ".join(f"fpga:{p}" for p in PARTS)
        raise TargetError(f"the fpga target needs a part that it knows, not {name!r}: use one of "
                          f"{known}")
    return PARTS[name]
