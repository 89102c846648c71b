"""LSTM, GRU and RNN on the CPU against the operators' numpy references.

Tolerance: the state passes through activations with a slope of at most 1, so rounding differences
of some 1e-7 per step grow at most with the number of steps; 2e-5 leaves a margin for 9 steps.
"""

import numpy as np
import pytest
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir import dtype as dt
from smelt.ir.graph.core import Value
from smelt.ir.graph.ops.recurrent import BLOCK

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
DEFAULTS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}


def layer(c: Cases, op: str, steps: int, batch: int, hidden: int, reverse=(False,),
          names: tuple[str, ...] = (), lengths: list[int] | None = None, extra: bool = False,
          **attrs) -> None:
    """One recurrent layer with random operands; `extra` adds peepholes or the inner bias."""
    d, gates = len(reverse), GATES[op]
    blocks = -(-hidden // BLOCK)
    w = c.rng.standard_normal((d, blocks, hidden, gates, BLOCK)) / np.sqrt(hidden)
    w[:, -1, :, :, hidden - (blocks - 1) * BLOCK:] = 0
    operands: list[Value | None] = [
        c.input(steps, batch, d, gates * hidden),
        c.graph.constant(w.astype(np.float32)), c.input(d, batch, hidden)]
    if op == "lstm":
        operands.append(c.input(d, batch, hidden))
        operands.append(c.input(d, 3 * hidden) if extra else None)
    if op == "gru":
        operands.append(c.input(d, hidden) if extra else None)
    if lengths is not None:
        operands.append(c.input(array=np.array(lengths, np.int32), dtype=dt.i32))
    activations = tuple(tuple((n, 0.3, 0.6) for n in names or DEFAULTS[op]) for _ in reverse)
    node = c.graph.add_node(op, operands, {"reverse": reverse, "activations": activations,
                                           **attrs})
    for value in node.outputs:
        c.output(value)


def sizes(c: Cases) -> None:
    for op in GATES:
        for hidden in (1, 8, 16, 17, 33, 64):
            layer(c, op, 3, 1, hidden)
        layer(c, op, 0, 1, 16)
        layer(c, op, 5, 7, 24)
        layer(c, op, 9, 2, 127, (False, True))


def variations(c: Cases) -> None:
    layer(c, "lstm", 4, 3, 20, (True,), extra=True, clip=0.5)
    layer(c, "lstm", 4, 2, 20, input_forget=True, names=("hard_sigmoid", "softsign", "relu"))
    layer(c, "gru", 4, 3, 20, (False, True), extra=True, reset_after=True)
    layer(c, "gru", 4, 3, 40, reset_after=True)
    layer(c, "gru", 4, 3, 20, names=("sigmoid", "leaky_relu"), clip=0.7)
    layer(c, "rnn", 4, 3, 20, names=("affine",))
    layer(c, "rnn", 4, 5, 20, names=("elu",))
    layer(c, "lstm", 6, 4, 20, (False, True), lengths=[6, 0, 3, 9])
    layer(c, "gru", 6, 4, 20, (False, True), lengths=[1, 6, 5, 2])
    layer(c, "rnn", 6, 4, 20, (True,), lengths=[1, 6, 5, 2])


@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("make", [sizes, variations])
def test_recurrent_layers(make, target):
    c = Cases(int(np.random.default_rng().integers(1 << 31)))
    make(c)
    program = check(c, target, 2e-5, 2e-5, kernels=("lstm", "gru", "rnn"))
    if target != VARIANTS[0]:  # the same kernels with fewer lanes
        return
    for got, want in zip(interpreted(c, program), c.expected(), strict=True):
        np.testing.assert_allclose(got, want, 2e-5, 2e-5)


def test_symbolic_steps_and_batch():
    for steps, batch in ((4, 1), (3, 6), (0, 2)):
        c = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic=True)
        hidden, width = 24, 4 * 24
        blocks = -(-hidden // BLOCK)
        w = c.rng.standard_normal((1, blocks, hidden, 4, BLOCK)) / 5
        w[:, -1, :, :, hidden - (blocks - 1) * BLOCK:] = 0
        x = c.input(steps, batch, 1, width, fixed=(2, 3))
        states = [c.input(1, batch, hidden, fixed=(0, 2)) for _ in range(2)]
        node = c.graph.add_node("lstm", [x, c.graph.constant(w.astype(np.float32)), *states], {
            "reverse": (False,), "activations": (tuple((n, 0, 0) for n in DEFAULTS["lstm"]),)})
        for value in node.outputs:
            c.output(value)
        check(c, "cpu", 2e-5, 2e-5, kernels=("lstm",))
