"""The vocabulary of quantisation: schemes such as w4 or w4a8, and the encodings they stand for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ...errors import UsageError
from ...ir.encoding.base import Affine
from ...ir.encoding.integer import Integers
from ...ir.encoding.ternary import Ternary
from .ranges import RANGES

WEIGHTS: dict[str, tuple[str, int]] = {
    "w8": ("integers of 8 bits", 32), "w4": ("integers of 4 bits with zero points", 32),
    "w3": ("integers of 3 bits with zero points", 32),
    "w2": ("integers of 2 bits with zero points", 32),
    "ternary": ("-1, 0 and 1 (Ternary Weight Networks)", 32),
}
"""What weights become, and the group that shares a scale where none is asked for."""

ROUNDED = "a8"
"""Behind the name of weights: activations are rounded to 8 bits on the way into a product."""

STATIC = "int8"
"""Weights and activations of 8 bits, by ranges that are known before the model runs."""

STATIC_METHODS = ("rtn", "smoothquant")
"""What may be done to activations and weights first."""

DEFAULT_RANGES = "mse"
"""How ranges are chosen where nothing is said."""

METHODS = ("rtn", "gptq", "awq", "descent", "outliers")
"""How weights are rounded, all but the first by calibration data; the last rounds to the nearest
and keeps large channels of activations in floats."""


@dataclass(frozen=True)
class Scheme:
    """What becomes of weights and of the activations that they are multiplied with."""

    name: str
    weights: Affine
    rounded: bool

    @property
    def kept(self) -> Affine:
        """8 bits for layers that are too sensitive, in the same groups."""
        return Integers(self.weights.group, 8)


def parse_scheme(text: str, group: int | None = None) -> Scheme:
    """The scheme called `text`, with `group` elements to a scale (0: a whole column; None: as the
    scheme likes). Raises UsageError offering the nearest names."""
    name = text.removesuffix(ROUNDED)
    if name not in WEIGHTS:
        names = [*(f"{w}{a}" for w in WEIGHTS for a in ("", ROUNDED)), STATIC]
        near = difflib.get_close_matches(text, names, 3, 0.4)
        raise UsageError(f"there is no scheme {text!r} to quantise by: "
                         f"{'did you mean' if near else 'use one of'} "
                         f"{', '.join(near or names)}{'?' if near else ''}")
    size = WEIGHTS[name][1] if group is None else group
    if size % 16 or size < 0:  # words of 2-bit fields hold 16
        raise UsageError(f"groups of {size} elements are not supported: use a multiple of 16, or "
                         f"0 for whole columns")
    if name == "ternary":
        return Scheme(text, Ternary(size), text != name)
    bits = int(name[1:])
    return Scheme(text, Integers(size, bits, zeros=bits < 8), text != name)


def check_method(name: str, scheme: Scheme) -> str:
    """The method's name. Raises UsageError when there is none, or not for the scheme."""
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}: use one of {', '.join(METHODS)}")
    if name == "outliers" and not scheme.rounded:
        raise UsageError(f"method outliers is for activations of 8 bits: use "
                         f"{scheme.name}{ROUNDED} in place of {scheme.name}")
    return name


def check_static(group: int | None, method: str | None, ranges: str | None,
                 has_data: bool) -> None:
    """Raises UsageError for what static quantisation does not know, or without samples."""
    if group is not None:
        raise UsageError(f"{STATIC} has a scale for each feature: leave the group out")
    if method is not None and method not in STATIC_METHODS:
        raise UsageError(f"there is no method {method!r} for {STATIC}: use "
                         f"{' or '.join(STATIC_METHODS)}")
    if ranges is not None and ranges not in RANGES:
        raise UsageError(f"there are no ranges {ranges!r}: use one of {', '.join(RANGES)}")
    if not has_data:
        raise UsageError(f"{STATIC} needs samples of the model's inputs: give data, a folder of "
                         f"npz files")
