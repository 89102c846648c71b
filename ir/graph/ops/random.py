"""Random bits from a counter: the same numbers on every target and in every run."""

from __future__ import annotations

import numpy as np

from ... import dtype as dt
from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define

# Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": Threefry-2x32 with 20 rounds.
ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA
ROUNDS = 20


def keys(seed: int) -> tuple[int, int, int]:
    """The key words of a 64-bit seed, with their parity."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return low, high, low ^ high ^ PARITY


def threefry(seed: int, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two u32 words for each counter (low, high), arrays of u32."""
    k = [np.uint32(v) for v in keys(seed)]
    with np.errstate(over="ignore"):
        a, b = low + k[0], high + k[1]
        for r in range(ROUNDS):
            s = np.uint32(ROTATIONS[r % 8])
            a = a + b
            b = (b << s | b >> (np.uint32(32) - s)) ^ a
            if r % 4 == 3:
                step = r // 4 + 1
                a = a + k[step % 3]
                b = b + k[(step + 1) % 3] + np.uint32(step)
    return a, b


def _reference(ctx: OpContext):
    shape = [int(d) for d in ctx.out().shape]  # type: ignore[arg-type]
    position = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
    low = (position & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    high = (position >> np.uint64(32)).astype(np.uint32) + np.uint32(ctx.attrs["stream"] << 16)
    return threefry(ctx.attrs["seed"], low, high)[0].reshape(shape)


define(OpDef(
    "random_bits", "opaque",
    infer=lambda ctx: [TensorType(dt.u32, ctx.attrs["shape"])],
    reference=_reference, attrs={"shape": REQUIRED, "seed": REQUIRED, "stream": 0},
    doc="Uniform u32: the first word of Threefry-2x32-20 with the key `seed` (64 bits) at counter "
        "(element number, stream * 2^16).",
))
