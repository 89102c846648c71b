"""Weights -1, 0 and 1 with a scale for each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import UsageError
from .. import dtype as dt
from ..dtype import DType
from ..expr import Expr, cast, const, op
from .base import Affine, Fetch, Part, in_groups, over_groups, register

PER_BYTE = 5  # 3^5 = 243 fit a byte: 1.6 bits an element
WORTH = np.array([81, 27, 9, 3, 1], np.uint8)


@register
@dataclass(frozen=True)
class Ternary(Affine):
    """x = (digit - 1) * scale, with five digits 0, 1, 2 to a byte, the first worth most.

    Every group begins at a byte and is filled up with ones, which mean 0. `pack` chooses as
    Ternary Weight Networks do (Li et al. 2016): elements below 0.7 times the mean magnitude become
    0, and the scale is the mean magnitude of the others; with `absmean` as BitNet b1.58 (Ma et al.
    2024): the scale is the mean magnitude of all, and elements are rounded to the nearest multiple.
    """

    kind: ClassVar[str] = "ternary"
    absmean: bool = False
    scale: DType = dt.f32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in (dt.f16, dt.f32):
            raise UsageError(f"scales of type {self.scale} are not supported: use f16 or f32")

    @property
    def width(self) -> int:
        return 2

    @property
    def zero(self) -> int | None:
        return 1

    @property
    def highest(self) -> int:
        return 2

    def parts(self, k: int) -> tuple[Part, ...]:
        groups, group = self.grouping(k)
        return (Part("digits", dt.u8, groups * -(-group // PER_BYTE)),
                Part("scales", self.scale, groups))

    def digits(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(digits u8 [..., K], scale f32 [..., groups]) of f32 [..., K]."""
        k = x.shape[-1]
        groups, group = self.grouping(k)
        split = in_groups(x, groups, group)
        magnitude = np.abs(split)
        count = np.full(groups, group, np.float32)
        count[-1:] = k - (groups - 1) * group
        mean = magnitude.sum(-1) / count
        if self.absmean:
            scale = self.stored(mean)
            safe = np.where(scale == 0, np.float32(1), scale)[..., None]
            signs = np.where(scale[..., None] == 0, 0, np.clip(np.rint(split / safe), -1, 1))
        else:
            large = magnitude > np.float32(0.7) * mean[..., None]
            kept = np.maximum(large.sum(-1), 1).astype(np.float32)
            scale = self.stored((magnitude * large).sum(-1) / kept)
            signs = np.sign(split) * large
        return over_groups((signs + 1).astype(np.uint8), k), scale

    def parameters(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, scale = self.digits(x)
        return scale, np.ones_like(scale)

    def stored(self, scale: np.ndarray) -> np.ndarray:
        return scale.astype(self.scale.numpy).astype(np.float32)

    def store(self, fields: np.ndarray, scale: np.ndarray,
              zero: np.ndarray) -> tuple[np.ndarray, ...]:
        groups, group = self.grouping(fields.shape[-1])
        split = in_groups(fields, groups, group, fill=1)
        split = in_groups(split, -(-group // PER_BYTE), PER_BYTE, fill=1)
        packed = (split * WORTH).sum(-1, dtype=np.uint8)
        return packed.reshape(*fields.shape[:-1], -1), scale.astype(self.scale.numpy)

    def split(self, arrays: Sequence[np.ndarray],
              k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        packed, scales = arrays
        groups, group = self.grouping(k)
        digits = packed[..., None] // WORTH % np.uint8(3)
        digits = digits.reshape(*packed.shape[:-1], groups, -1)[..., :group]
        scale = scales.astype(np.float32)
        return over_groups(digits, k), scale, np.ones_like(scale)

    def pack(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        digits, scale = self.digits(x.astype(np.float32))
        return self.store(digits, scale, np.ones_like(scale))

    def element(self, fetch: Fetch, index: tuple[Expr, ...]) -> Expr:
        *row, k = index
        group = k // self.group if self.group else const(0)
        at = k - group * self.group
        start = group * -(-self.group // PER_BYTE) if self.group else const(0)
        byte = cast(fetch(0, (*row, start + at // PER_BYTE)), dt.i32)
        place = at % PER_BYTE
        digit: Expr = const(0, dt.i32)
        for p in reversed(range(PER_BYTE)):
            value = op("rem", op("div", byte, const(int(WORTH[p]), dt.i32)),
                       const(3, dt.i32))
            digit = value if p == PER_BYTE - 1 else op("select", op("eq", place, p), value, digit)
        scale = cast(fetch(1, (*row, group)), dt.f32)
        return (cast(digit, dt.f32) - const(1.0, dt.f32)) * scale
