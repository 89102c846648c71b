"""The order in which a kernel reads and writes its streams, which no data can change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import ModelError
from ..expr import Cast, Const, Expr, Op, Var, walk, wrap
from ..operations import OPS
from .nodes import Block, Buffer, For, If, Kernel, Let, Load, Stmt, Store, children, expressions

Rows = dict[Var, np.ndarray]
"""The values of variables in each of a number of iterations."""


@dataclass(frozen=True)
class Accesses:
    """What one run of a kernel does with its streams: `stream` [events] numbers `streams`, in the
    order of the events; `position` [events] is the element."""

    streams: tuple[Buffer, ...]
    stream: np.ndarray
    position: np.ndarray


def stream_accesses(kernel: Kernel) -> Accesses:
    """The accesses of a kernel of constant sizes to its streams, in order.

    Raises ModelError where a stream is both read and written, or not from its first element to its
    last, each once and in order, or where data would decide about it.
    """
    streams = tuple(b for b in kernel.params if b.space == "stream")
    walker = _Walker(kernel, {b: k for k, b in enumerate(streams)})
    _, stream, position = walker.block(kernel.body, {}, 1)
    for k, buffer in enumerate(streams):
        if walker.kinds.get(buffer) not in ({"load"}, {"store"}):
            raise ModelError(f"kernel {kernel.name}: stream {buffer.name} must be either read or "
                             f"written")
        found, count = position[stream == k], int(buffer.shape[0])
        if len(found) != count or not np.array_equal(found, np.arange(count)):
            raise ModelError(f"kernel {kernel.name}: the {count} elements of stream {buffer.name} "
                             f"are not accessed in order, each once")
    return Accesses(streams, stream, position)


Events = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row, stream and position of each event, by row and then in program order."""


class _Walker:
    def __init__(self, kernel: Kernel, numbers: dict[Buffer, int]):
        self.kernel, self.numbers = kernel, numbers
        self.kinds: dict[Buffer, set[str]] = {}
        self._touching: dict[Stmt, bool] = {}

    def touches(self, s: Stmt) -> bool:
        """Whether a statement, or one in it, accesses a stream."""
        if s not in self._touching:
            own = isinstance(s, Store) and s.buffer in self.numbers or any(
                isinstance(x, Load) and x.buffer in self.numbers
                for e in expressions(s) for x in walk(e))
            self._touching[s] = own or any([self.touches(c) for c in children(s)])
        return self._touching[s]

    def block(self, block: Block, rows: Rows, count: int) -> Events:
        rows, parts = dict(rows), []
        for s in block.body:
            if isinstance(s, Let):
                if not any(isinstance(x, Load) for x in walk(s.value)):
                    rows[s.var] = self.value(s.value, rows, count)
            if self.touches(s):
                parts.append(self.statement(s, rows, count))
        if len(parts) == 1:
            return parts[0]
        row, stream, position = (np.concatenate([p[k] for p in parts] or [np.zeros(0, np.int64)])
                                 for k in range(3))
        order = np.argsort(row, kind="stable")
        return row[order], stream[order], position[order]

    def statement(self, s: Stmt, rows: Rows, count: int) -> Events:
        if isinstance(s, Block):
            return self.block(s, rows, count)
        if isinstance(s, For):
            trips = np.maximum(self.value(wrap(s.extent), rows, count), 0)
            outer = np.repeat(np.arange(count), trips)
            inner = np.arange(len(outer)) - np.repeat(np.cumsum(trips) - trips, trips)
            return self.within(s.body, outer, {**self.chosen(rows, outer), s.var: inner})
        if isinstance(s, If):
            test = self.value(s.condition, rows, count).astype(bool)
            parts = [self.within(body, chosen, self.chosen(rows, chosen)) for body, chosen in (
                (s.then, np.flatnonzero(test)), (s.orelse, np.flatnonzero(~test)))]
            row, stream, position = (np.concatenate([p[k] for p in parts]) for k in range(3))
            order = np.argsort(row, kind="stable")
            return row[order], stream[order], position[order]
        if isinstance(s, Store):
            found = [(x.buffer, x.index[0], "load") for x in walk(s.value)
                     if isinstance(x, Load) and x.buffer in self.numbers]
            if s.buffer in self.numbers:
                found.append((s.buffer, s.index[0], "store"))
            if len(found) == 1:
                buffer, index, kind = found[0]
                self.kinds.setdefault(buffer, set()).add(kind)
                return (np.arange(count), np.full(count, self.numbers[buffer]),
                        self.value(index, rows, count))
        raise ModelError(f"kernel {self.kernel.name}: a stream is accessed other than by one load "
                         f"or store of a whole element in a statement")

    def within(self, body: Block, outer: np.ndarray, rows: Rows) -> Events:
        row, stream, position = self.block(body, rows, len(outer))
        return outer[row], stream, position

    @staticmethod
    def chosen(rows: Rows, which: np.ndarray) -> Rows:
        return {v: x[which] for v, x in rows.items()}

    def value(self, e: Expr, rows: Rows, count: int) -> np.ndarray:
        if isinstance(e, Const):
            return np.full(count, e.value)
        if isinstance(e, Var) and e in rows:
            return rows[e]
        if isinstance(e, Cast):
            return self.value(e.args[0], rows, count).astype(e.dtype.numpy)
        if isinstance(e, Op):
            return np.asarray(OPS[e.name].function(*(self.value(x, rows, count) for x in e.args)))
        raise ModelError(f"kernel {self.kernel.name}: data decides when a stream is accessed "
                         f"({e!r})")
