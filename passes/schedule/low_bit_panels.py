"""Weights of a few bits as the kernels read them: column panels of 32-bit words.

A word holds 32 / bits consecutive fields of one column. Field 4 j + b lies in byte b, from bit
`bits * j` of it on, so that one shift and one mask make the j-th four fields the bytes of a
four-way dot product. A step of a panel is one word of each of its columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.encoding.base import Affine, Encoding


@dataclass(frozen=True)
class Words:
    """How a column of `k` fields in groups of `group` is cut into words. `bits` are those that the
    words use: 2, 4 or 8."""

    k: int
    group: int
    bits: int

    @property
    def fields(self) -> int:
        """Fields of a word."""
        return 32 // self.bits

    @property
    def groups(self) -> int:
        return -(-self.k // self.group)

    @property
    def last(self) -> int:
        """Fields of the last group."""
        return self.k - (self.groups - 1) * self.group

    @property
    def per_group(self) -> int:
        """Words of a group, the last aside."""
        return -(-self.group // self.fields)

    @property
    def total(self) -> int:
        """Words of a column."""
        return (self.groups - 1) * self.per_group - (-self.last // self.fields)

    def position(self, field: int) -> int:
        """The lowest bit of a field in its word."""
        return field % 4 * 8 + field // 4 * self.bits


def words_of(encoding: Encoding, k: int) -> Words | None:
    """The words for rows of `k` elements in this encoding; None when kernels do not read it."""
    if not isinstance(encoding, Affine) or k < 1:
        return None
    bits = next(b for b in (2, 4, 8) if b >= encoding.width)
    group = encoding.grouping(k)[1]
    words = Words(k, group, bits)
    return words if words.groups == 1 or group % words.fields == 0 else None


@dataclass(frozen=True)
class Panels:
    """Packed weights [K, N] in panels of `width` columns: words i32 [panels, words, width], scales
    and, where groups store them, zero points f32 [panels, groups, width]."""

    words: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None


def pack_panels(encoding: Affine, arrays: list[np.ndarray], words: Words, width: int) -> Panels:
    """The panels of weights whose columns are the rows [N, K] of encoded `arrays`."""
    fields, scale, zero = encoding.split(arrays, words.k)
    n = fields.shape[0]
    columns = -(-n // width) * width
    cut = np.zeros((columns, words.total, words.fields), np.uint8)
    for g in range(words.groups):
        part = fields[:, g * words.group:(g + 1) * words.group]
        count = -(-part.shape[1] // words.fields)
        whole = np.zeros((n, count * words.fields), np.uint8)
        whole[:, :part.shape[1]] = part
        first = g * words.per_group
        cut[:n, first:first + count] = whole.reshape(n, count, words.fields)
    # [columns, words, steps, 4 bytes] to bytes that hold a field of every step.
    steps = cut.reshape(columns, words.total, -1, 4)
    packed = np.zeros((columns, words.total, 4), np.uint8)
    for j in range(steps.shape[2]):
        packed |= steps[:, :, j] << np.uint8(words.bits * j)
    return Panels(_panels(packed.view("<i4")[..., 0], width), _panels(scale, width),
                  _panels(zero, width) if encoding.zero is None else None)


def _panels(x: np.ndarray, width: int) -> np.ndarray:
    """[N, m] as [panels, m, width], zero where there are no columns."""
    n = -(-x.shape[0] // width) * width
    padded = np.zeros((n, x.shape[1]), np.int32 if x.dtype.kind == "i" else np.float32)
    padded[:x.shape[0]] = x
    return np.ascontiguousarray(padded.reshape(-1, width, x.shape[1]).transpose(0, 2, 1))
