"""Indices into a table of values, with a scale for each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import UsageError
from .. import dtype as dt
from ..expr import Expr, cast, const, op
from .base import Encoding, Fetch, Part, in_groups, over_groups, register
from .integer import pack_bits, unpack_bits

NF4 = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
"""Quantiles of a normal distribution over [-1, 1] (QLoRA, Dettmers et al. 2023)."""


@register
@dataclass(frozen=True)
class Codebook(Encoding):
    """x = values[field] * scale. `values` are 4 or 16 numbers in rising order, at most 1 in
    magnitude; `group` consecutive elements (0: the whole row) share the scale, which is their
    largest magnitude. Fields are packed as those of `int`."""

    kind: ClassVar[str] = "codebook"
    group: int = 0
    values: tuple[float, ...] = NF4

    def __post_init__(self) -> None:
        if len(self.values) not in (4, 16) or list(self.values) != sorted(set(self.values)):
            raise UsageError("a codebook has 4 or 16 values in rising order")
        if self.group < 0 or self.group % 8:
            raise UsageError(f"groups of {self.group} elements are not supported: use a multiple "
                             f"of 8, or 0 for whole rows")

    @property
    def bits(self) -> int:
        return 2 if len(self.values) == 4 else 4

    def grouping(self, k: int) -> tuple[int, int]:
        """(groups, elements of one) of a row of `k` elements."""
        group = self.group or max(k, 1)
        return -(-k // group), group

    def parts(self, k: int) -> tuple[Part, ...]:
        groups, group = self.grouping(k)
        return (Part("fields", dt.u8, groups * -(-group * self.bits // 8)),
                Part("scales", dt.f32, groups),
                Part("values", dt.f32, len(self.values), shared=True))

    def pack(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        groups, group = self.grouping(x.shape[-1])
        split = in_groups(x.astype(np.float32), groups, group)
        scale = np.abs(split).max(-1, initial=0)
        table = np.array(self.values, np.float32)
        safe = np.where(scale == 0, np.float32(1), scale)[..., None]
        fields = np.searchsorted((table[1:] + table[:-1]) / 2, split / safe).astype(np.uint8)
        packed = pack_bits(fields, self.bits)
        return packed.reshape(*x.shape[:-1], -1), scale, table

    def unpack(self, arrays: Sequence[np.ndarray], k: int) -> np.ndarray:
        packed, scale, table = arrays
        groups, group = self.grouping(k)
        stream = packed.reshape(*packed.shape[:-1], groups, -1)
        values = table[unpack_bits(stream, self.bits, group)] * scale[..., None]
        return over_groups(values, k)

    def element(self, fetch: Fetch, index: tuple[Expr, ...]) -> Expr:
        *row, k = index
        group = k // self.group if self.group else const(0)
        at = (k - group * self.group) * self.bits
        start = group * -(-self.group * self.bits // 8) if self.group else const(0)
        byte = cast(fetch(0, (*row, start + at // 8)), dt.i32)
        field = op("and", op("shr", byte, cast(at % 8, dt.i32)),
                   const((1 << self.bits) - 1, dt.i32))
        return fetch(2, (cast(field, dt.i64),)) * fetch(1, (*row, group))
