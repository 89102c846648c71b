"""What follows a sum of products, or stands alone between narrow integers, as integer arithmetic
that gives the very numbers that the graph's floating point gives.

`solve` is handed the function itself, and asks for its values only. It is monotone in the sum, so
a form of integer arithmetic, which is monotone too, agrees with it everywhere if it does on both
sides of each of its own steps: that is checked, not assumed. The steps themselves serve as a form
where no other fits (Umuroglu et al. 2017, "FINN", section 4.2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
"""From sums [channels, n] to results [channels, n], both i64, monotone along n."""

LINE_SHIFTS = (0, 4, 8, 10, 12, 14, 16, 18, 20)
"""Shifts that are tried for a line, fewest bits first: with more, `Scaled` is no dearer."""
MOST_LEVELS = 256
"""Results up to which lines and thresholds are tried."""
MOST_CHECKED = 256
BITS = 62
"""Bits that products and sums on the way may take."""
SINGLE = 24
"""Significant bits of f32."""


@dataclass(frozen=True, eq=False)
class Line:
    """clip((sum * factor + offset) >> shift, low, high); `factor` and `offset` i64 [channels]."""

    factor: np.ndarray
    offset: np.ndarray
    shift: int
    low: int
    high: int

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Results for sums [channels, n]."""
        product = sums * self.factor[:, None] + self.offset[:, None]
        return np.clip(product >> self.shift, self.low, self.high)

    def shifted(self, by: np.ndarray) -> Line:
        """The same function of sums that lack `by` [channels]."""
        return replace(self, offset=self.offset + self.factor * by)

    def permuted(self, order: np.ndarray) -> Line:
        """The same with the channels in another order."""
        return replace(self, factor=self.factor[order], offset=self.offset[order])


@dataclass(frozen=True, eq=False)
class Scaled:
    """clip(zero + rint(f32(f32(sum + bias) * factor / 2**shift)), low, high) as f32 computes it.

    `factor` and `bias` are i64 [channels], `reach` the size of sums with their bias. With `narrow`
    the rounding to f32 before the last one cannot change a result, because the product has no more
    bits, and is left out.
    """

    factor: np.ndarray
    bias: np.ndarray
    shift: int
    zero: int
    low: int
    high: int
    reach: int
    narrow: bool = False

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Results for sums [channels, n]."""
        total = sums + self.bias[:, None]
        if self.narrow:
            product = total * self.factor[:, None]
            dropped: np.ndarray | int = 0
        else:
            product = self.clipped(_to_single(total)[0] * self.factor[:, None])
            product, dropped = _to_single(product, shifted=True)
        return np.clip(_half_even(product, self.shift - dropped) + self.zero, self.low, self.high)

    @property
    def limit(self) -> int:
        """Products beyond this in size give the lowest or the highest result."""
        return (max(self.high - self.zero, self.zero - self.low, 1) + 2) << self.shift

    def wide_bits(self) -> int:
        """Bits beyond those of f32 that sums may have, as far as it matters."""
        matters = self.limit // int(self.factor[self.factor > 0].min(initial=self.limit))
        return max(min(self.reach, 2 * matters).bit_length() - SINGLE, 0)

    def clipped(self, product: np.ndarray) -> np.ndarray:
        """Products limited to those that matter."""
        return np.clip(product, -self.limit, self.limit)

    def shifted(self, by: np.ndarray) -> Scaled:
        """The same function of sums that lack `by` [channels]."""
        return replace(self, bias=self.bias + by)

    def permuted(self, order: np.ndarray) -> Scaled:
        """The same with the channels in another order."""
        return replace(self, factor=self.factor[order], bias=self.bias[order])


@dataclass(frozen=True, eq=False)
class Thresholds:
    """low + the number of `steps` [channels, levels], ascending i64, that the sum reaches."""

    steps: np.ndarray
    low: int

    @property
    def high(self) -> int:
        return self.low + self.steps.shape[1]

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Results for sums [channels, n]."""
        return self.low + np.stack([np.searchsorted(t, s, side="right")
                                    for t, s in zip(self.steps, sums, strict=True)])

    def shifted(self, by: np.ndarray) -> Thresholds:
        """The same function of sums that lack `by` [channels]."""
        return Thresholds(self.steps - by[:, None], self.low)

    def permuted(self, order: np.ndarray) -> Thresholds:
        """The same with the channels in another order."""
        return Thresholds(self.steps[order], self.low)


Epilogue = Line | Scaled | Thresholds


def scaled(factor: np.ndarray, bias: np.ndarray, zero: int, low: int, high: int,
           reach: int) -> Scaled | None:
    """The integer form of a requantisation by f32 factors [channels], for sums with their biases
    that stay within `reach`; None when a factor is not positive or too many bits are needed."""
    if not np.all(np.isfinite(factor) & (factor > 0)):
        return None
    # Less than a half whatever the sum is: any small factor does, and 0 needs no bits.
    flat = factor.astype(np.float64) * reach < 0.499
    factor = np.where(flat, 1.0, factor.astype(np.float64))
    mantissa, exponent = np.frexp(factor)
    whole = (mantissa * (1 << SINGLE)).astype(np.int64)
    power = exponent.astype(np.int64) - SINGLE
    odd = whole & -whole  # the lowest bit that is set
    whole, power = whole // odd, power + np.log2(odd).astype(np.int64)
    shift = max(0, int(-power.min()))
    if shift + int(power.max()) > BITS - SINGLE or shift > BITS - 12:
        return None
    whole = np.where(flat, 0, whole << (power + shift))
    bits = (reach * int(whole.max())).bit_length()
    if bits > BITS:
        return None
    top = reach * int((whole // np.maximum(whole & -whole, 1)).max())
    narrow = top < 1 << SINGLE and reach < 1 << SINGLE
    return Scaled(whole, bias.astype(np.int64), shift, zero, low, high, reach,
                  narrow)


def solve(function: Function, low: np.ndarray, high: np.ndarray,
          guess: Scaled | None = None) -> Epilogue | None:
    """Integer arithmetic equal to a monotone function for all sums from `low` to `high`, i64
    [channels]; None where there is none in these forms. `guess` is tried, and checked like the
    others."""
    ends = function(np.stack([low, high], 1))
    if np.any(ends[:, 0] > ends[:, 1]):
        return None
    guessed = guess is not None and _equal(guess, function, low, high)
    if guessed and guess.narrow:  # type: ignore[union-attr]
        return guess
    bottom, top = int(ends.min()), int(ends.max())
    if top - bottom >= MOST_LEVELS:
        return guess if guessed else None
    levels = np.arange(bottom + 1, top + 1)
    steps = first_reaching(function, levels, low, high)
    line = _line(steps, levels, low, high, bottom, top)
    if line is not None and _equal(line, function, low, high):
        return line
    if guessed:
        return guess
    table = Thresholds(steps, bottom)
    return table if _equal(table, function, low, high) else None


def first_reaching(function: Function, levels: np.ndarray, low: np.ndarray,
                   high: np.ndarray) -> np.ndarray:
    """The least sums [channels, levels] at which a monotone function reaches its results `levels`
    [levels]; high + 1 where no sum does."""
    shape = len(low), len(levels)
    below = np.broadcast_to(low[:, None] - 1, shape)
    above = np.broadcast_to(high[:, None] + 1, shape)
    while np.any(above - below > 1):
        middle = (below + above) >> 1
        inside = np.clip(middle, low[:, None], high[:, None])
        reached = (function(inside) >= levels[None, :]) & (middle >= low[:, None]) \
            | (middle > high[:, None])
        above, below = np.where(reached, middle, above), np.where(reached, below, middle)
    return above


def _line(steps: np.ndarray, levels: np.ndarray, low: np.ndarray, high: np.ndarray, bottom: int,
          top: int) -> Line | None:
    """A line whose floor has these steps [channels, levels], by the fewest bits: for a factor m the
    offsets that fit are an interval, whose length is concave in m."""
    channels = len(steps)
    if not len(levels):
        return Line(np.zeros(channels, np.int64), np.full(channels, bottom), 0, bottom, top)
    always, never = steps <= low[:, None], steps > high[:, None]
    most = int(np.maximum(np.abs(low), np.abs(high)).max()) + 1
    for shift in LINE_SHIFTS:
        steepest = (top - bottom + 1) << shift
        if steepest * most >= 1 << BITS:
            return None
        goal = levels[None, :] << shift

        def room(m: np.ndarray, goal=goal) -> tuple[np.ndarray, np.ndarray]:
            """The least offset that fits, and how many do, or how many are missing."""
            m = m[:, None]
            least = np.where(never, -(1 << BITS), goal - m * np.where(
                always, low[:, None], steps)).max(1)
            largest = np.where(always, 1 << BITS, goal - 1 - m * np.where(
                never, high[:, None], steps - 1)).min(1)
            return least, largest - least

        a, b = np.zeros(channels, np.int64), np.full(channels, steepest)
        while np.any(b - a > 2):
            third = np.maximum((b - a) // 3, 1)
            rising = room(a + third)[1] < room(b - third)[1]
            a, b = np.where(rising, a + third, a), np.where(rising, b, b - third)
        best, space = a, room(a)[1]
        for m in (a + 1, b):
            length = room(m)[1]
            best, space = np.where(length > space, m, best), np.maximum(length, space)
        if np.all(space >= 0):
            least, length = room(best)
            return Line(best, least + length // 2, shift, bottom, top)
    return None


def _equal(candidate: Epilogue, function: Function, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether a monotone candidate agrees with a monotone function on all sums. Of more than
    `MOST_CHECKED` results, which only `Scaled` has, as many are looked at."""
    most = int(np.maximum(np.abs(low), np.abs(high)).max())
    if isinstance(candidate, Line) and most * int(candidate.factor.max(initial=0)) \
            + int(np.abs(candidate.offset).max(initial=0)) >= 1 << BITS:
        return False
    places = [np.stack([low, high], 1)]
    levels = np.arange(candidate.low + 1, candidate.high + 1)
    levels = levels[::-(-len(levels) // MOST_CHECKED) or 1]
    for part in np.array_split(levels, max(1, len(levels) * len(low) // (1 << 20))):
        steps = first_reaching(candidate, part, low, high)
        places += [np.clip(steps, low[:, None], high[:, None]),
                   np.clip(steps - 1, low[:, None], high[:, None])]
    return all(np.array_equal(candidate(p), function(p)) for p in places)


def _to_single(value: np.ndarray, shifted: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Integers rounded, half to even, to the significant bits of f32, and how many bits below them
    were dropped; with `shifted` those bits are left out of the numbers."""
    drop = np.maximum(_bit_length(np.abs(value)) - SINGLE, 0)
    rounded = _half_even(value, drop)
    return (rounded if shifted else rounded << drop), drop


def _bit_length(value: np.ndarray) -> np.ndarray:
    """The bits of non-negative integers below 2**62."""
    exponent = np.frexp(value.astype(np.float64))[1].astype(np.int64)
    # The conversion may have rounded up to a power of two.
    return exponent - ((np.int64(1) << np.maximum(exponent - 1, 0)) > value)


def _half_even(value: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """value / 2**shift, rounded half to even."""
    half = (np.int64(1) << np.maximum(np.asarray(shift) - 1, 0)) - 1
    rounded = (value + half + ((value >> shift) & 1)) >> shift
    return np.where(np.asarray(shift) > 0, rounded, value)
