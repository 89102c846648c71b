"""Comparison of results that must be the very same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def assert_same_bits(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    """Types, shapes and bits agree; any NaN equals any other, since IEEE 754 leaves open which of
    two a sum passes on. (numpy's own comparison holds NaN of bfloat16 unequal.)"""
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        bits = [np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}") for x in (a, b)]
        numbers = (a == a) | (b == b)
        different = np.flatnonzero((bits[0] != bits[1]) & numbers.reshape(-1))
        first = different[:5]
        assert not different.size, (f"{different.size} of {a.size} elements differ, at {first}: "
                                    f"{a.reshape(-1)[first]} and {b.reshape(-1)[first]}")
