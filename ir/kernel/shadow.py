"""Finding races while a kernel is interpreted: who touched each element of a shared buffer last.

An access carries two stamps. The block stamp numbers the iteration of the outermost parallel
loops (on a GPU: the block), the thread stamp the iteration of all loops. Both hold an epoch above
`PLACES`: block stamps count regions (a region is one run of an outermost parallel loop), thread
stamps also count barriers, which order the threads of a block but never two blocks.
"""

from __future__ import annotations

import numpy as np

PLACES = 40
"""Bits of a stamp below its epoch."""

_MANY = (1 << PLACES) - 1


class Race(Exception):
    """Two iterations touched an element in no defined order; the text tells how."""


class Shadow:
    """The last writer and reader of each of `count` elements of `buffer`."""

    def __init__(self, buffer: str, count: int):
        self.buffer = buffer
        self.writer, self.writer_thread, self.reader, self.reader_thread = (
            np.full(count, -1, np.int64) for _ in range(4))

    def write(self, at, block, thread) -> None:
        """Elements `at` are written by the iterations with these stamps (all broadcast)."""
        if isinstance(at, int) and isinstance(block, int) and isinstance(thread, int):
            self._check_one("writes", at, block, thread, True)
            self.writer[at] = block
            self.writer_thread[at] = thread
            return
        at, block, thread = np.broadcast_arrays(at, block, thread)
        self._check("writes", "written", at, block, thread, self.writer, self.writer_thread)
        self._check("writes", "read", at, block, thread, self.reader, self.reader_thread)
        self.writer[at] = block
        self.writer_thread[at] = thread
        clash = (self.writer[at] != block) | (self.writer_thread[at] != thread)
        if clash.any():
            raise Race(self._report("writes", "written", at[clash]))

    def read(self, at, block, thread) -> None:
        """Elements `at` are read by the iterations with these stamps."""
        if isinstance(at, int) and isinstance(block, int) and isinstance(thread, int):
            self._check_one("reads", at, block, thread, False)
            for last, stamp in ((self.reader, block), (self.reader_thread, thread)):
                before = last.item(at)
                several = before >> PLACES == stamp >> PLACES and before != stamp
                last[at] = before | _MANY if several else stamp
            return
        at, block, thread = np.broadcast_arrays(at, block, thread)
        self._check("reads", "written", at, block, thread, self.writer, self.writer_thread)
        _merge(self.reader, at, block)
        _merge(self.reader_thread, at, thread)

    def _check_one(self, doing: str, at: int, block: int, thread: int, write: bool) -> None:
        """`_check` of one element, in Python."""
        pairs = [("written", self.writer, self.writer_thread)]
        if write:
            pairs.append(("read", self.reader, self.reader_thread))
        for done, blocks, threads in pairs:
            other, other_thread = blocks.item(at), threads.item(at)
            if other >> PLACES == block >> PLACES and (other != block or (
                    other_thread >> PLACES == thread >> PLACES and other_thread != thread)):
                raise Race(self._report(doing, done, np.array([at])))

    def _check(self, doing: str, done: str, at, block, thread, blocks, threads) -> None:
        other, other_thread = blocks[at], threads[at]
        clash = (other >> PLACES == block >> PLACES) & ((other != block) | (
            (other_thread >> PLACES == thread >> PLACES) & (other_thread != thread)))
        if clash.any():
            raise Race(self._report(doing, done, at[clash]))

    def _report(self, doing: str, done: str, at: np.ndarray) -> str:
        return (f"a parallel iteration {doing} element {int(at.flat[0])} (flat) of "
                f"{self.buffer}, which another iteration has {done}")


def _merge(last: np.ndarray, at: np.ndarray, stamp: np.ndarray) -> None:
    """Notes readers; elements with several readers in one epoch are marked as such."""
    before = last[at]
    epoch = stamp >> PLACES
    several = (before >> PLACES == epoch) & (before != stamp)
    note = np.where(several, (epoch << PLACES) | _MANY, stamp)
    last[at] = note
    late = last[at] != note
    if late.any():
        last[at[late]] = ((epoch << PLACES) | _MANY)[late]
