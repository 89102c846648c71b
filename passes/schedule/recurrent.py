"""LSTM, GRU and RNN: a whole sequence in one kernel, lanes along the hidden axis.

The state stays in local memory. A step multiplies it with the packed recurrent weights, BLOCK
outputs of all gates at a time in enough accumulators to hide the latency of multiply-adds, and
applies the gates to the accumulators at once. Sequences and directions run in parallel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Expr, broadcast, cast, const, op, wrap
from ...ir.graph.core import Node, Value
from ...ir.graph.ops.recurrent import BLOCK, activate
from ...ir.graph.ops.shapes import flat_index
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ..lower.generic import Group
from ..lower.inline import Inliner
from ..lower.lowering import Lowering
from .gemm import Operands, finish, operands

GATES = {"lstm": 4, "gru": 3, "rnn": 1}

CHAINS = 8
"""Independent multiply-adds in flight: latency times throughput of one core."""

LOCAL_STATE = 1 << 16
"""Elements of state that a task may keep on its stack."""


@dataclass(frozen=True)
class _Blocking:
    """Accumulators of a step: `vectors` of a block of outputs at a time, for `rows` sequences."""

    lanes: int
    vectors: int
    rows: int


def _blocking(gates: int, lanes: int, registers: int, batch: Any) -> _Blocking:
    vectors = BLOCK // lanes
    limit = registers * 3 // 4
    while vectors > 1 and gates * vectors > limit:
        vectors //= 2
    rows = 1
    while 2 * rows * gates * vectors <= limit and rows < 4 and (
            not isinstance(batch, int) or 2 * rows <= batch):
        rows *= 2
    return _Blocking(lanes, vectors, rows)


def recurrent_rule(low: Lowering, node: Node) -> bool:
    """f32 recurrent layers with a known number of hidden units."""
    lanes = low.machine.lanes
    if node.op not in GATES or lanes == 1 or BLOCK % lanes:
        return False
    x, hidden = node.inputs[0], node.inputs[2].shape[2]  # type: ignore[union-attr]
    if x is None or x.dtype is not dt.f32 or not isinstance(hidden, int):
        return False
    if low.machine.halves and hidden <= lanes // 2:
        lanes //= 2
    blocking = _blocking(GATES[node.op], lanes, low.machine.vector_registers, x.shape[1])
    if 4 * blocking.rows * _padded(hidden) > LOCAL_STATE:
        return False
    layer = _Layer(low, node, hidden, blocking)
    layer.write()
    steps, batch, directions, width = x.shape
    flops = wrap(steps) * wrap(batch) * wrap(directions) * wrap(width) * (2 * hidden)
    finish(low, node, layer.ops, flops)
    return True


def _padded(hidden: int) -> int:
    return -(-hidden // BLOCK) * BLOCK


class _Layer:
    """Writes one recurrent layer."""

    def __init__(self, low: Lowering, node: Node, hidden: int, blocking: _Blocking):
        self.node = node
        self.hidden = hidden
        self.gates = GATES[node.op]
        self.blocking = blocking
        self.lanes = blocking.lanes
        group = Group(node)
        self.ops: Operands = operands(low, group, node.op, set(group.inputs))
        self.b: Builder = self.ops.b
        self.inliner = Inliner(self.ops.buffers)
        self.inliner.known.update(self.ops.known)
        self.steps, self.batch, directions, _ = node.inputs[0].shape  # type: ignore[union-attr]
        assert isinstance(directions, int)
        self.directions = directions
        lengths = {"lstm": 5, "gru": 4, "rnn": 3}[node.op]
        self.lengths = self.operand(lengths)
        self.clip = float(node.attrs["clip"])

    def operand(self, i: int) -> Value | None:
        inputs = self.node.inputs
        return inputs[i] if i < len(inputs) else None

    # Loops ------------------------------------------------------------------------------------

    def write(self) -> None:
        b, batch = self.b, wrap(self.batch)
        tile = 1 if self.lengths is not None else self.blocking.rows
        tiles = batch // tile
        rest = batch - tiles * tile
        per_direction = tiles + rest
        # Two directions of small layers run side by side: each step waits for the one before.
        together = self.directions == 2 and self.hidden <= BLOCK
        groups = [(0, 1)] if together else [(d,) for d in range(self.directions)]
        with b.loop("task", per_direction * len(groups), "parallel") as task:
            part = b.let("part", task % per_direction)
            group = b.let("d", task // per_direction)

            def rows(first: Expr, count: int) -> None:
                if len(groups) == 1:
                    self._sequences(groups[0], first, count)
                    return
                with b.when(op("eq", group, 0)):
                    self._sequences(groups[0], first, count)
                with b.otherwise():
                    self._sequences(groups[1], first, count)

            if rest is const(0) or tile == 1:
                rows(part * tile, tile)
            else:
                with b.when(op("lt", part, tiles)):
                    rows(part * tile, tile)
                with b.otherwise():
                    rows(tiles * tile + (part - tiles), 1)

    def _sequences(self, directions: Sequence[int], first: Expr, rows: int) -> None:
        """All steps of `rows` sequences from `first` on."""
        b = self.b
        places = [b.let("row", first + r) for r in range(rows)]
        cells = [self._cell(d, places) for d in directions]
        steps: Expr = wrap(self.steps)
        total = steps
        if self.lengths is not None:
            length = cast(self.inliner.at(self.lengths, (places[0],)), dt.i64)
            total = b.let("length", op("max", op("min", length, steps), 0))
        with b.loop("t", total) as t:
            for cell in cells:
                cell.step(total - 1 - t if self.node.attrs["reverse"][cell.d] else t)
            for cell in cells:
                self._copy(cell.next, cell.h, rows)
        zero = broadcast(const(0, dt.f32), self.lanes)
        if self.lengths is not None:
            with b.loop("t", steps - total) as t:
                for cell in cells:
                    self._vectors(lambda i, count, d=cell.d: self.store(
                        0, (total + t, d, places[0], i), zero, count))
        for cell in cells:
            for s, r in np.ndindex(len(cell.states), rows):
                self._vectors(lambda i, count, s=s, r=r, cell=cell: self.store(
                    1 + s, (cell.d, places[r], i), cell.state(cell.states[s], r, i), count))

    def _cell(self, d: int, places: list[Expr]) -> _Cell:
        """A cell with its initial state."""
        b, size = self.b, len(places) * _padded(self.hidden)
        cell = _Cell(self, d, places)
        cell.h = b.alloc("h", dt.f32, (size,), "local")
        # One block of outputs is computed at once, from a state that nobody needs afterwards.
        alone = self.blocking.vectors * self.lanes >= self.hidden
        cell.next = cell.h if alone and not cell.in_two_steps else b.alloc(
            "next", dt.f32, (size,), "local")
        if cell.in_two_steps:
            cell.reset = b.alloc("reset", dt.f32, (size,), "local")
        cell.states = [cell.h]
        if self.node.op == "lstm":
            cell.c = b.alloc("c", dt.f32, (size,), "local")
            cell.states.append(cell.c)
        for s, r in np.ndindex(len(cell.states), len(places)):
            start = self.operand(2 + s)
            assert start is not None
            self._vectors(lambda i, count, s=s, r=r, start=start: b.store(
                cell.states[s], (i + r * cell.size,), self.read(start, (d, places[r], i), count)))
        return cell

    def _copy(self, source: Buffer, target: Buffer, rows: int) -> None:
        """target = source, the states of some sequences."""
        size = _padded(self.hidden)
        for r in range(rows if source is not target else 0):
            self._vectors(lambda i, count, r=r: self.b.store(
                target, (i + r * size,), load(source, (i + r * size,), self.lanes)))

    def _vectors(self, body) -> None:
        """body(position, count) for all vectors along the hidden axis; count None: all lanes."""
        whole, rest = divmod(self.hidden, self.lanes)
        if whole:
            with self.b.loop("v", whole) as v:
                body(v * self.lanes, None)
        if rest:
            body(const(whole * self.lanes), const(rest))

    # Memory -----------------------------------------------------------------------------------

    def read(self, value: Value, index: Sequence, count: Expr | None) -> Expr:
        """Lanes of an operand from `index` on, along its last axis."""
        buffer = self.ops.buffers.get(value)
        if buffer is None:
            return broadcast(self.inliner.at(value, index), self.lanes)
        return load(buffer, (flat_index([wrap(i) for i in index], value.shape),), self.lanes,
                    count)

    def store(self, k: int, index: Sequence, value: Expr, count: Expr | None) -> None:
        """Lanes of output `k`."""
        shape = self.node.outputs[k].shape
        self.b.store(self.ops.outs[k], (flat_index([wrap(i) for i in index], shape),), value,
                     count)


class _Cell:
    """One step of a few sequences in one direction."""

    h: Buffer
    next: Buffer
    states: list[Buffer]
    c: Buffer | None = None
    reset: Buffer | None = None

    def __init__(self, layer: _Layer, d: int, rows: list[Expr]):
        self.layer = layer
        self.b = layer.b
        self.d = d
        self.rows = rows
        self.size = _padded(layer.hidden)
        self.activations = layer.node.attrs["activations"][d]

    def step(self, t: Expr) -> None:
        """h and c of step `t` from those before it; h goes to `next`."""
        layer = self.layer
        if self.reset is None:
            self._blocks(t, range(layer.gates), self.h, self._gates)
            return
        self._blocks(t, (0, 1), self.h, self._first_gates)
        self._blocks(t, (2,), self.reset, self._new_gate)

    def _blocks(self, t: Expr, gates: Sequence[int], state: Buffer, apply) -> None:
        """apply(row, t, position, count, {gate: pre-activation}) for every vector of outputs."""
        layer, b, blocking = self.layer, self.b, self.layer.blocking
        whole, rest = divmod(layer.hidden, BLOCK)
        per_pass = blocking.vectors

        def block(j: Expr, units: int) -> None:
            for v in range(0, -(-units // layer.lanes), per_pass):
                counts = []
                for k in range(v, min(v + per_pass, -(-units // layer.lanes))):
                    left = units - k * layer.lanes
                    counts.append(None if left >= layer.lanes else const(left))
                self._pass(t, gates, state, apply, j, v, counts)

        if whole:
            with b.loop("j", whole) as j:
                block(j, BLOCK)
        if rest:
            block(const(whole), rest)

    def _pass(self, t: Expr, gates: Sequence[int], state: Buffer, apply, j: Expr, first: int,
              counts: list[Expr | None]) -> None:
        """Accumulates some vectors of block j of all rows, then applies the gates."""
        layer, b, lanes = self.layer, self.b, self.layer.lanes
        unroll = 1  # partial sums over the state
        while 2 * unroll * len(self.rows) * len(gates) * len(counts) <= CHAINS:
            unroll *= 2
        shape = (len(self.rows), len(gates), len(counts), unroll)
        acc = b.alloc("acc", dt.f32, shape, "register", lanes)
        zero = broadcast(const(0, dt.f32), lanes)
        for r, g, v, u in np.ndindex(*shape):
            start = zero
            if u == 0 and not (gates[g] == 2 and self._reset_after):
                start = self._input(r, t, gates[g], j * BLOCK + (first + v) * lanes, counts[v])
            b.store(acc, (r, g, v, u), start)
        weights = layer.node.inputs[1]
        assert weights is not None
        packed = layer.ops.buffers[weights]

        def multiply(k: Expr, u: int) -> None:
            states = [broadcast(b.let("s", load(state, (k + r * self.size,))), lanes)
                      for r in range(len(self.rows))]
            for g, gate in enumerate(gates):
                for v in range(len(counts)):
                    where = flat_index([const(self.d), j, k, const(gate),
                                        const((first + v) * lanes)], weights.shape)
                    w = b.let("w", load(packed, (where,), lanes))
                    for r, s in enumerate(states):
                        b.store(acc, (r, g, v, u), op("fma", s, w, acc[r, g, v, u]))

        rounds, rest = divmod(layer.hidden, unroll)
        if rounds:
            with b.loop("k", rounds) as k:
                for u in range(unroll):
                    multiply(k * unroll + u, u)
        for u in range(rest):
            multiply(const(rounds * unroll + u), u)
        for r in range(len(self.rows)):
            for v, count in enumerate(counts):
                totals = {gate: b.let("g", self._total(acc, r, g, v, unroll))
                          for g, gate in enumerate(gates)}
                apply(r, t, j * BLOCK + (first + v) * lanes, count, totals)

    def _total(self, acc: Buffer, r: int, g: int, v: int, unroll: int) -> Expr:
        parts: list[Expr] = [acc[r, g, v, u] for u in range(unroll)]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [parts[i] + parts[i + half] for i in range(half)]
        return parts[0]

    def _input(self, r: int, t: Expr, gate: int, at: Expr, count: Expr | None) -> Expr:
        """The input's share of a gate."""
        x = self.layer.node.inputs[0]
        assert x is not None
        return self.layer.read(x, (t, self.rows[r], self.d, gate * self.layer.hidden + at), count)

    @property
    def _reset_after(self) -> bool:
        return self.layer.node.op == "gru" and self.layer.node.attrs["reset_after"]

    @property
    def in_two_steps(self) -> bool:
        """Whether the new gate needs all of the reset gate."""
        return self.layer.node.op == "gru" and not self.layer.node.attrs["reset_after"]

    # Gates ------------------------------------------------------------------------------------

    def _activate(self, k: int, x: Expr, clips: bool = True) -> Expr:
        if clips and self.layer.clip:
            limit = self.layer.clip
            x = op("max", op("min", x, limit), -limit)
        return self.b.let("a", activate(self.activations[k], x))

    def state(self, buffer: Buffer, r: int, at: Expr) -> Expr:
        return load(buffer, (at + r * self.size,), self.layer.lanes)

    def _put(self, r: int, t: Expr, at: Expr, count: Expr | None, value: Expr) -> None:
        """The new h of some units: kept for the next step, and an output."""
        value = self.b.let("y", value)
        self.b.store(self.next, (at + r * self.size,), value)
        self.layer.store(0, (t, self.d, self.rows[r], at), value, count)

    def _gates(self, r: int, t: Expr, at: Expr, count: Expr | None, g: dict[int, Expr]) -> None:
        apply = {"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}[self.layer.node.op]
        apply(r, t, at, count, g)

    def _rnn(self, r: int, t: Expr, at: Expr, count: Expr | None, g: dict[int, Expr]) -> None:
        self._put(r, t, at, count, self._activate(0, g[0]))

    def _lstm(self, r: int, t: Expr, at: Expr, count: Expr | None, g: dict[int, Expr]) -> None:
        layer, peepholes = self.layer, self.layer.operand(4)
        assert self.c is not None
        c = self.b.let("c", self.state(self.c, r, at))

        def peep(gate: int, k: int, state: Expr) -> Expr:
            if peepholes is None:
                return g[gate]
            weight = layer.read(peepholes, (self.d, k * layer.hidden + at), count)
            return g[gate] + weight * state

        i = self._activate(0, peep(0, 0, c))
        forget = 1.0 - i if layer.node.attrs["input_forget"] else self._activate(0, peep(2, 2, c))
        c = self.b.let("c", op("fma", forget, c, i * self._activate(1, g[3])))
        o = self._activate(0, peep(1, 1, c))
        self.b.store(self.c, (at + r * self.size,), c)
        self._put(r, t, at, count, o * self._activate(2, c, clips=False))

    def _gru(self, r: int, t: Expr, at: Expr, count: Expr | None, g: dict[int, Expr]) -> None:
        """With the reset after the product: the new gate's input must stay apart from it."""
        layer, bias = self.layer, self.layer.operand(3)
        z, reset = self._activate(0, g[0]), self._activate(0, g[1])
        inner = g[2]
        if bias is not None:
            inner = inner + layer.read(bias, (self.d, at), count)
        new = self._activate(1, op("fma", reset, inner, self._input(r, t, 2, at, count)))
        self._mix(r, t, at, count, z, new)

    def _first_gates(self, r: int, t: Expr, at: Expr, count: Expr | None,
                     g: dict[int, Expr]) -> None:
        assert self.reset is not None
        where = (at + r * self.size,)
        self.b.store(self.next, where, self._activate(0, g[0]))
        h = self.state(self.h, r, at)
        self.b.store(self.reset, where, self._activate(0, g[1]) * h)

    def _new_gate(self, r: int, t: Expr, at: Expr, count: Expr | None, g: dict[int, Expr]) -> None:
        # `next` holds the update gate until here.
        z = self.b.let("z", self.state(self.next, r, at))
        self._mix(r, t, at, count, z, self._activate(1, g[2]))

    def _mix(self, r: int, t: Expr, at: Expr, count: Expr | None, z: Expr, new: Expr) -> None:
        h = self.state(self.h, r, at)
        self._put(r, t, at, count, op("fma", z, h, (1.0 - z) * new))
