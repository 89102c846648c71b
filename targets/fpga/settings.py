"""What is asked of a design: the options of the fpga target."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UsageError
from ...passes.dataflow.fixed_point import Widths

KNOWN = ("clock", "target-fps", "activations", "weights", "samples")
UNITS = {"khz": 1e-3, "mhz": 1.0, "ghz": 1e3}
MEGAHERTZ = 200.0


@dataclass(frozen=True)
class Settings:
    """`megahertz` of the clock; `fps`, frames per second that are asked for (None: as many as fit);
    `widths` of float models; `samples`, a file of inputs whose ranges decide about their binary
    points (None: random inputs)."""

    megahertz: float
    fps: float | None
    widths: Widths
    samples: Path | None

    @classmethod
    def parse(cls, extra: Mapping[str, str]) -> Settings:
        """The settings in a target's options. Raises UsageError."""
        for key in extra:
            if key not in KNOWN:
                raise UsageError(f"the fpga target has no option {key!r}; it has "
                                 f"{', '.join(KNOWN)}")
        clock = extra.get("clock")
        fps = extra.get("target-fps")
        return cls(MEGAHERTZ if clock is None else _megahertz(clock),
                   None if fps is None else _positive("target-fps", fps),
                   Widths(_whole("activations", extra.get("activations", "8")),
                          _whole("weights", extra.get("weights", "8"))),
                   Path(extra["samples"]) if "samples" in extra else None)

    @property
    def cycles(self) -> int | None:
        """Cycles from frame to frame that the frames per second leave."""
        return None if self.fps is None else int(min(self.megahertz * 1e6 / self.fps, 2.0**62))


def read_samples(path: Path) -> list[dict[str, np.ndarray]]:
    """The inputs in an npz file: one sample, arrays by the inputs' names. Raises UsageError."""
    try:
        with np.load(path, allow_pickle=False) as held:
            return [{name: held[name] for name in held.files}]
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"samples {str(path)!r}: no npz file of inputs by name ({error})"
                         ) from None


def _megahertz(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)\s*(k|m|g)hz", text.strip().lower())
    if not found:
        raise UsageError(f"clock is {text!r}: write a frequency such as 200MHz")
    return _positive("clock", found[1]) * UNITS[found[2] + "hz"]


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{name} is {text!r}: use a number above 0")
    return value


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name} is {text!r}: use a number of bits")
    return int(text)
