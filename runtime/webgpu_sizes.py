"""Sizes of a plan: expressions over named sizes, and where they put what is in the arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ArtifactError

ALIGNMENT = 64

_OPERATIONS: dict[str, Any] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b if b else 0, "mod": lambda a, b: a % b if b else 0,
    "min": min, "max": max, "neg": lambda a: -a, "abs": abs,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "and": lambda a, b: a & b, "or": lambda a, b: a | b, "not": lambda a: not a,
    "select": lambda c, a, b: a if c else b,
}


def size_of(e: Any, sizes: Mapping[str, int]) -> int:
    """The value of a size: a number, a name, or [operation, size, ...]. Raises ArtifactError for
    what is none of these."""
    if isinstance(e, int):
        return e
    if isinstance(e, str):
        return sizes[e]
    operation = _OPERATIONS.get(e[0])
    if operation is None:
        raise ArtifactError(f"The plan computes a size by {e[0]!r}, which this version of smelt "
                            f"does not know: compile the model again.")
    return operation(*(size_of(a, sizes) for a in e[1:]))


def place(amounts: Sequence[int], spans: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """(first byte of each, bytes of the arena): blocks by descending size, each in the tightest
    gap between those that hold data at the same time (after Pisarchyk & Lee 2020)."""
    padded = [-(-n // ALIGNMENT) * ALIGNMENT for n in amounts]
    offsets, total = [0] * len(amounts), 0
    placed: list[int] = []
    for i in sorted((i for i, n in enumerate(padded) if n), key=lambda i: (-padded[i], i)):
        first, last = spans[i]
        busy = sorted((offsets[j], offsets[j] + padded[j]) for j in placed
                      if spans[j][0] <= last and first <= spans[j][1])
        gaps, end = [], 0
        for low, high in busy:
            if low - end >= padded[i]:
                gaps.append((low - end, end))
            end = max(end, high)
        offsets[i] = min(gaps)[1] if gaps else end
        total = max(total, offsets[i] + padded[i])
        placed.append(i)
    return offsets, total
