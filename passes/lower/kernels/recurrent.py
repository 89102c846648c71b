"""LSTM, GRU and RNN for any element type and target: a task per sequence and direction.

The state lives in the outputs h and c; a step writes its h to y and copies it when all units are
done. Sums are formed in f32 at least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....ir import dtype as dt
from ....ir.expr import Expr, cast, const, op, wrap
from ....ir.graph.ops.recurrent import BLOCK, activate
from ....ir.kernel.nodes import Buffer
from ..procedural import Site, procedural


class _Task:
    """One sequence in one direction: `at` is (direction, row); `t` the step being computed."""

    t: Expr

    def __init__(self, c: Site, d: int, at: tuple[Expr, Expr]):
        self.c, self.b, self.at = c, c.b, at
        self.x, self.weights = c.input(0), c.input(1)
        self.h = c.output(1)
        self.hidden = wrap(self.h.shape[2])
        self.wide = dt.f32 if self.x.dtype.bits < 32 else self.x.dtype
        self.activations = c.attrs["activations"][d]

    def read(self, buffer: Buffer, *index: Expr) -> Expr:
        return cast(buffer[index], self.wide)

    def gate(self, g: int, j: Expr) -> Expr:
        """The input's share of gate `g` of unit `j`."""
        d, row = self.at
        return self.read(self.x, self.t, row, d, self.hidden * g + j)

    def product(self, gates: Sequence[int], j: Expr, state: Callable[[Expr], Expr]) -> list[Expr]:
        """The state's share of some gates of unit `j`."""
        b, d = self.b, self.at[0]
        sums = [b.scalar("sum", self.wide, const(0, self.wide)) for _ in gates]
        with b.loop("k", self.hidden) as k:
            s = b.let("s", state(k))
            for g, total in zip(gates, sums, strict=True):
                w = self.read(self.weights, d, j // BLOCK, k, const(g), j % BLOCK)
                b.store(total, (), total[()] + s * w)
        return [total[()] for total in sums]

    def own(self, k: Expr) -> Expr:
        """Unit `k` of the state before this step."""
        return self.read(self.h, *self.at, k)

    def activate(self, function: int, x: Expr, clips: bool = True) -> Expr:
        limit = self.c.attrs["clip"]
        if limit and clips:
            x = op("max", op("min", x, limit), -limit)
        return self.b.let("a", activate(self.activations[function], x))

    def put(self, j: Expr, value: Expr) -> None:
        """The new state of unit `j`."""
        d, row = self.at
        y = self.c.output(0)
        self.b.store(y, (self.t, d, row, j), cast(value, y.dtype))


def _layer(c: Site, gates: int, lengths: int, step: Callable[[_Task], None]) -> None:
    """Runs `step` for every step of every sequence; operand `lengths` may end them early."""
    b, y, finals = c.b, c.output(0), [c.output(k) for k in range(1, len(c.node.outputs))]
    steps, directions, batch, hidden = (wrap(n) for n in y.shape)
    c.flops = steps * batch * directions * hidden * hidden * (2 * gates)

    def sequence(d: int, at: tuple[Expr, Expr]) -> None:
        task = _Task(c, d, at)
        with b.loop("j", hidden) as j:
            for k, final in enumerate(finals):
                b.store(final, (*at, j), c.input(2 + k)[(*at, j)])
        count = steps
        if c.has(lengths):
            given = cast(c.input(lengths)[at[1]], dt.i64)
            count = b.let("count", op("max", op("min", given, steps), 0))
        with b.loop("t", count) as t:
            task.t = b.let("at", count - 1 - t) if c.attrs["reverse"][d] else t
            step(task)
            with b.loop("j", hidden) as j:
                b.store(finals[0], (*at, j), y[task.t, at[0], at[1], j])
        if c.has(lengths):
            with b.loop("t", steps - count) as t, b.loop("j", hidden) as j:
                b.store(y, (count + t, *at, j), const(0, y.dtype))

    with b.loops("task", (directions, batch), "parallel") as at:
        if directions is const(1):
            sequence(0, (const(0), at[1]))
            return
        with b.when(op("eq", at[0], 0)):
            sequence(0, (const(0), at[1]))
        with b.otherwise():
            sequence(1, (const(1), at[1]))


@procedural("rnn")
def rnn(c: Site) -> None:
    def step(task: _Task) -> None:
        with c.b.loop("j", task.hidden) as j:
            (total,) = task.product((0,), j, task.own)
            task.put(j, task.activate(0, task.gate(0, j) + total))

    _layer(c, 1, 3, step)


@procedural("lstm")
def lstm(c: Site) -> None:
    def step(task: _Task) -> None:
        state, d = c.output(2), task.at[0]
        with c.b.loop("j", task.hidden) as j:
            sums = task.product(range(4), j, task.own)
            before = c.b.let("c", task.read(state, *task.at, j))

            def gate(g: int, peephole: int, cell: Expr) -> Expr:
                value = task.gate(g, j) + sums[g]
                if c.has(4):
                    weight = task.read(c.input(4), d, task.hidden * peephole + j)
                    value = value + weight * cell
                return value

            i = task.activate(0, gate(0, 0, before))
            forget = 1 - i if c.attrs["input_forget"] else task.activate(0, gate(2, 2, before))
            new = task.activate(1, task.gate(3, j) + sums[3])
            cell = c.b.let("cell", forget * before + i * new)
            o = task.activate(0, gate(1, 1, cell))
            c.b.store(state, (*task.at, j), cast(cell, state.dtype))
            task.put(j, o * task.activate(2, cell, clips=False))

    _layer(c, 4, 5, step)


@procedural("gru")
def gru(c: Site) -> None:
    def mix(task: _Task, j: Expr, z: Expr, new: Expr) -> None:
        task.put(j, (1 - z) * new + z * task.own(j))

    def reset_after(task: _Task) -> None:
        with c.b.loop("j", task.hidden) as j:
            sums = task.product(range(3), j, task.own)
            z, reset = (task.activate(0, task.gate(g, j) + sums[g]) for g in (0, 1))
            inner = sums[2]
            if c.has(3):
                inner = inner + task.read(c.input(3), task.at[0], j)
            mix(task, j, z, task.activate(1, task.gate(2, j) + reset * inner))

    if c.attrs["reset_after"]:
        _layer(c, 3, 4, reset_after)
        return
    # The new gate sees the reset state, which needs all of the reset gate.
    h = c.output(1)
    wide = dt.f32 if h.dtype.bits < 32 else h.dtype
    update, kept = c.scratch("update", wide, h.shape), c.scratch("kept", wide, h.shape)

    def reset_before(task: _Task) -> None:
        with c.b.loop("j", task.hidden) as j:
            sums = task.product((0, 1), j, task.own)
            z, reset = (task.activate(0, task.gate(g, j) + sums[g]) for g in (0, 1))
            c.b.store(update, (*task.at, j), z)
            c.b.store(kept, (*task.at, j), reset * task.own(j))
        with c.b.loop("j", task.hidden) as j:
            (total,) = task.product((2,), j, lambda k: kept[(*task.at, k)])
            new = task.activate(1, task.gate(2, j) + total)
            mix(task, j, update[(*task.at, j)], new)

    _layer(c, 3, 4, reset_before)
