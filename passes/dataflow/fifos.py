"""How deep FIFOs must be, so that a network never waits for itself.

A network of layers that read and write in an order fixed beforehand is determinate: if one order of
running it finishes a frame with FIFOs of some depths, every order does (Parks 1995, "Bounded
scheduling of process networks", chapter 4). So one order is found here, by running the layers'
accesses: whenever all wait, the smallest FIFO that a writer waits for is made deeper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.kernel.nodes import Buffer
from ...ir.kernel.streams import Accesses

SHALLOW = 32
"""Words that a FIFO has at least: shift registers of 32 stages cost what one of 2 words does."""
FURTHER = 16
"""Words by which a FIFO grows at a time."""


class _Process:
    """A layer that works through its accesses: runs of (FIFO, whether it writes, words left)."""

    def __init__(self, accesses: Accesses, fifos: Mapping[Buffer, int], written: set[Buffer]):
        changes = np.flatnonzero(np.diff(accesses.stream)) + 1
        starts = np.concatenate([[0], changes])
        lengths = np.diff(np.concatenate([starts, [len(accesses.stream)]]))
        self.runs: list[tuple[int, bool, int]] = []
        for k, n in zip(accesses.stream[starts].tolist(), lengths.tolist(), strict=True):
            buffer = accesses.streams[k]
            self.runs.append((fifos[buffer], buffer in written, n))
        self.at, self.done = 0, 0

    def advance(self, held: list[int], depth: list[int]) -> bool:
        """Goes on as far as it can; whether it went on at all."""
        moved = False
        while self.at < len(self.runs):
            fifo, writes, length = self.runs[self.at]
            room = depth[fifo] - held[fifo] if writes else held[fifo]
            step = min(room, length - self.done)
            if step <= 0:
                return moved
            moved = True
            held[fifo] += step if writes else -step
            self.done += step
            if self.done == length:
                self.at, self.done = self.at + 1, 0
        return moved

    def waits_to_write(self) -> int | None:
        """The FIFO that is too full for it to go on."""
        if self.at == len(self.runs):
            return None
        fifo, writes, _ = self.runs[self.at]
        return fifo if writes else None


def depths(processes: Sequence[tuple[Accesses, Mapping[Buffer, int], set[Buffer]]],
           words: Sequence[int], bits: Sequence[int], outside: Mapping[int, int]) -> list[int]:
    """The words that each FIFO needs.

    processes: the accesses of each layer, which FIFO each of its streams is, and the streams that
    it writes. words, bits: of each FIFO, those of a frame and those of a word. outside: FIFOs that
    the host fills beforehand, or empties afterwards, with the words that lie in them at the start.
    """
    found = [n if k in outside else min(SHALLOW, n) for k, n in enumerate(words)]
    held = [outside.get(k, 0) for k in range(len(words))]
    running = [_Process(*p) for p in processes]
    while any(p.at < len(p.runs) for p in running):
        moved = False
        for p in running:
            moved |= p.advance(held, found)
        if not moved:
            full = {f for p in running if (f := p.waits_to_write()) is not None}
            if not full:
                raise ValueError("a layer waits for words that nobody writes")
            least = min(full, key=lambda f: found[f] * bits[f])
            found[least] += FURTHER
    return found
