"""Integers of 2, 3, 4 or 8 bits that share a scale, and may share a zero point, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import UsageError
from .. import dtype as dt
from ..dtype import DType
from ..expr import Expr, cast, const, op, select
from .base import Affine, Fetch, Part, in_groups, over_groups, ratio, register


@register
@dataclass(frozen=True)
class Integers(Affine):
    """x = (field - zero) * scale, with unsigned fields of `bits` bits.

    `zeros` stores a zero point for each group, an integer in the fields' range; without, it is
    2^(bits-1). Fields lie in a stream of bits, lowest first, and every group begins at a byte; the
    last group is filled up with zero points. So is the format of ONNX Runtime's MatMulNBits.
    """

    kind: ClassVar[str] = "int"
    bits: int = 4
    zeros: bool = False
    scale: DType = dt.f32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (2, 3, 4, 8):
            raise UsageError(f"integers of {self.bits} bits are not supported: use 2, 3, 4 or 8")
        if self.scale not in (dt.f16, dt.f32):
            raise UsageError(f"scales of type {self.scale} are not supported: use f16 or f32")

    @property
    def width(self) -> int:
        return self.bits

    @property
    def zero(self) -> int | None:
        return None if self.zeros else self.middle

    @property
    def middle(self) -> int:
        """The zero point of groups that store none."""
        return 1 << (self.bits - 1)

    @property
    def highest(self) -> int:
        """The largest field."""
        return (1 << self.bits) - 1

    def parts(self, k: int) -> tuple[Part, ...]:
        groups, group = self.grouping(k)
        fields = Part("fields", dt.u8, groups * _bytes(group, self.bits))
        scales = Part("scales", self.scale, groups)
        zeros = Part("zeros", dt.u8, groups)
        return (fields, scales, zeros) if self.zeros else (fields, scales)

    # Numbers -----------------------------------------------------------------------------------

    def parameters(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # The smallest range around 0 that holds a group's elements.
        split = in_groups(x, *self.grouping(x.shape[-1]))
        if not self.zeros:
            # Fields reach one further below the zero point than above it.
            largest = np.abs(split).max(-1, initial=0)
            scale = self.stored(largest / np.float32(self.middle - 1))
            return scale, np.full_like(scale, self.middle)
        return self.covering(split.min(-1, initial=0), split.max(-1, initial=0))

    def covering(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(scale, zero) of groups with stored zero points that reach from low <= 0 to high >= 0."""
        scale = self.stored((high - low) / np.float32(self.highest))
        zero = np.clip(np.rint(ratio(-low, scale)), 0, self.highest)
        return scale, zero.astype(np.float32)

    def stored(self, scale: np.ndarray) -> np.ndarray:
        return scale.astype(self.scale.numpy).astype(np.float32)

    def fields(self, x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """The nearest fields (u8) of f32 [..., K] for scales and zero points [..., groups]."""
        s, z = self.spread(scale, x.shape[-1]), self.spread(zero, x.shape[-1])
        return self.nearest(x, s, z).astype(np.uint8)

    def nearest(self, x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """The nearest fields, as f32, for a scale and a zero point of each element."""
        return np.clip(np.rint(ratio(x, scale)) + zero, 0, self.highest)

    def store(self, fields: np.ndarray, scale: np.ndarray,
              zero: np.ndarray) -> tuple[np.ndarray, ...]:
        k = fields.shape[-1]
        split = in_groups(fields, *self.grouping(k))
        rest = split.shape[-2] * split.shape[-1] - k
        if rest:
            split[..., -1, -rest:] = zero[..., -1:].astype(np.uint8)
        stream = pack_bits(split, self.bits)
        packed = stream.reshape(*stream.shape[:-2], -1)
        scales = scale.astype(self.scale.numpy)
        return (packed, scales, zero.astype(np.uint8)) if self.zeros else (packed, scales)

    def split(self, arrays: Sequence[np.ndarray],
              k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        groups, group = self.grouping(k)
        packed, scales, *zeros = arrays
        stream = packed.reshape(*packed.shape[:-1], groups, -1)
        scale = scales.astype(np.float32)
        zero = zeros[0].astype(np.float32) if zeros else np.full_like(scale, self.middle)
        return over_groups(unpack_bits(stream, self.bits, group), k), scale, zero

    def pack(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        x = x.astype(np.float32)
        scale, zero = self.parameters(x)
        return self.store(self.fields(x, scale, zero), scale, zero)

    # Kernels -----------------------------------------------------------------------------------

    def element(self, fetch: Fetch, index: tuple[Expr, ...]) -> Expr:
        *row, k = index
        group = k // self.group if self.group else const(0)
        at = (k - group * self.group) * self.bits
        start = group * _bytes(self.group, self.bits) if self.group else const(0)
        low = cast(fetch(0, (*row, start + at // 8)), dt.i32)
        field = op("shr", low, cast(at % 8, dt.i32))
        if 8 % self.bits:  # a field may go on in the next byte; at the end of a row it does not
            over = op("gt", at % 8 + self.bits, 8)
            following = select(over, start + at // 8 + 1, start + at // 8)
            high = cast(fetch(0, (*row, following)), dt.i32)
            field = op("or", field, select(over, op("shl", high, cast(8 - at % 8, dt.i32)),
                                           const(0, dt.i32)))
        field = op("and", field, const(self.highest, dt.i32))
        zero: Expr = const(float(self.middle), dt.f32)
        if self.zeros:
            zero = cast(fetch(2, (*row, group)), dt.f32)
        return (cast(field, dt.f32) - zero) * cast(fetch(1, (*row, group)), dt.f32)


def _bytes(group: int, bits: int) -> int:
    return -(-group * bits // 8)


def pack_bits(fields: np.ndarray, bits: int) -> np.ndarray:
    """u8 [..., n], each below 2^bits, as a stream of bits u8 [..., ceil(n * bits / 8)], lowest
    first."""
    if bits == 8:
        return fields
    streams = (fields[..., None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
    flat = streams.reshape(*fields.shape[:-1], -1)
    return np.packbits(flat, axis=-1, bitorder="little")


def unpack_bits(stream: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` fields (u8) of a stream of bits; inverse of `pack_bits`."""
    if bits == 8:
        return stream[..., :count]
    flat = np.unpackbits(stream, axis=-1, count=count * bits, bitorder="little")
    fields = flat.reshape(*stream.shape[:-1], count, bits)
    return np.packbits(fields, axis=-1, bitorder="little")[..., 0]
