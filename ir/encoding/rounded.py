"""8-bit activations: signed integers with a scale and a sum for each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import UsageError
from .. import dtype as dt
from ..expr import Expr, cast, const, op, select
from .base import Encoding, Fetch, Part, in_groups, register

LARGEST = 127


@register
@dataclass(frozen=True)
class Rounded(Encoding):
    """x = field * scale, with fields of -127 to 127; a scale is the largest magnitude of its group
    over 127. What programs round to on the way into a product of integers.

    `group` consecutive elements (0: the whole row) share a scale; the last group is filled up
    with zeros. `sums` holds scale times the sum of the fields of each group, which is what a
    product with integers that have a zero point needs (the Q8_1 blocks of llama.cpp).
    """

    kind: ClassVar[str] = "rounded"
    dynamic: ClassVar[bool] = True
    group: int = 0

    def __post_init__(self) -> None:
        if self.group < 0 or self.group % 8:
            raise UsageError(f"groups of {self.group} elements are not supported: use a multiple "
                             f"of 8, or 0 for whole rows")

    def grouping(self, k: int) -> tuple[int, int]:
        """(groups, elements of one, a multiple of 4) of a row of `k` elements."""
        group = self.group or -(-max(k, 1) // 4) * 4
        return -(-k // group), group

    def parts(self, k: int) -> tuple[Part, ...]:
        groups, group = self.grouping(k)
        return (Part("fields", dt.i8, groups * group), Part("scales", dt.f32, groups),
                Part("sums", dt.f32, groups))

    def pack(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        split = in_groups(x.astype(np.float32), *self.grouping(x.shape[-1]))
        largest = np.abs(split).max(-1, initial=0)
        safe = np.where(largest == 0, np.float32(1), largest)
        factor = np.where(largest == 0, np.float32(0), np.float32(LARGEST) / safe)
        rounded = np.rint(split * factor[..., None])
        # Of NaN and infinities only the scale tells: their fields are any.
        fields = np.clip(np.nan_to_num(rounded, nan=0.0), -LARGEST, LARGEST).astype(np.int8)
        scale = (largest / np.float32(LARGEST)).astype(np.float32)
        sums = fields.sum(-1, dtype=np.int32).astype(np.float32) * scale
        return fields.reshape(*x.shape[:-1], -1), scale, sums

    def unpack(self, arrays: Sequence[np.ndarray], k: int) -> np.ndarray:
        fields, scale, _ = arrays
        spread = np.repeat(scale, self.grouping(k)[1], axis=-1)[..., :k]
        return fields[..., :k].astype(np.float32) * spread

    def element(self, fetch: Fetch, index: tuple[Expr, ...]) -> Expr:
        *row, k = index
        group = k // self.group if self.group else const(0)
        return cast(fetch(0, index), dt.f32) * fetch(1, (*row, group))

    def packed(self, part: int, load: Callable[[tuple[Expr, ...]], Expr], index: tuple[Expr, ...],
               k: int, reduce: Callable[..., Expr]) -> Expr:
        *row, last = index
        groups, group = self.grouping(k)
        which = last // group if part == 0 else last
        ragged = groups * group > k

        def member(j: Expr) -> Expr:
            at = which * group + j
            if not ragged:
                return load((*row, at))
            inside = op("lt", at, k)
            return select(inside, load((*row, select(inside, at, const(0)))), const(0.0, dt.f32))

        largest = reduce("max", [group], lambda j: op("abs", member(j)))
        scale = largest / const(float(LARGEST), dt.f32)
        if part == 1:
            return scale
        zero = op("eq", largest, const(0.0, dt.f32))
        safe = select(zero, const(1.0, dt.f32), largest)
        factor = select(zero, const(0.0, dt.f32), const(float(LARGEST), dt.f32) / safe)

        def field(x: Expr) -> Expr:
            # Against NaN, whose conversion C leaves open.
            whole = op("round", x * factor)
            return select(op("eq", whole, whole), whole, const(0.0, dt.f32))

        if part == 0:
            return cast(field(member(last - which * group)), dt.i8, "saturate")
        total = reduce("sum", [group], lambda j: field(member(j)))
        return total * scale
