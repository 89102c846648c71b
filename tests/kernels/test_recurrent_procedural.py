"""The portable recurrent kernels against the operators' numpy references.

Tolerance 1e-5: sums of at most 33 products in another order, through activations of slope 1. For
f16 the reference rounds the same way, so that a difference is a rounding step, 2**-10.
"""

import numpy as np
import pytest
from kernels.single_nodes import check

from smelt.ir.graph.ops.recurrent import BLOCK

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
FUNCTIONS = {"lstm": ("sigmoid", "tanh", "relu"), "gru": ("hard_sigmoid", "elu"),
             "rnn": ("softsign",)}


def layer(op: str, *, hidden: int = 5, reverse: tuple[bool, ...] = (False,), dtype=np.float32,
          lengths: list[int] | None = None, extra: bool = False, rtol: float = 1e-5,
          **attrs) -> None:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"{op}: seed {seed}")
    random = np.random.default_rng(seed)
    steps, batch, d, gates = 4, 3, len(reverse), GATES[op]
    blocks = -(-hidden // BLOCK)
    weights = random.standard_normal((d, blocks, hidden, gates, BLOCK)) / np.sqrt(hidden)
    weights[:, -1, ..., hidden - (blocks - 1) * BLOCK:] = 0

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(dtype)

    arrays = [normal(steps, batch, d, gates * hidden), weights.astype(dtype),
              normal(d, batch, hidden)]
    if op == "lstm":
        arrays += [normal(d, batch, hidden), normal(d, 3 * hidden) if extra else None]
    if op == "gru":
        arrays += [normal(d, hidden) if extra else None]
    if lengths is not None:
        arrays.append(np.array(lengths, np.int32))
    while arrays[-1] is None:
        arrays.pop()
    activations = tuple(tuple((name, 0.3, 0.6) for name in FUNCTIONS[op]) for _ in reverse)
    check(op, arrays, {"reverse": reverse, "activations": activations, **attrs}, rtol=rtol,
          atol=rtol)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("reverse", [(False,), (True,), (False, True)], ids=str)
def test_directions(op, reverse):
    layer(op, reverse=reverse)
    layer(op, reverse=reverse, lengths=[4, 0, 2])


@pytest.mark.parametrize("op", GATES)
def test_sizes_and_types(op):
    layer(op, hidden=33, clip=0.5)
    layer(op, dtype=np.float64)
    layer(op, dtype=np.float16, rtol=2.0**-9)


def test_variants():
    layer("lstm", extra=True, clip=0.4)
    layer("lstm", extra=True, input_forget=True, lengths=[1, 4, 3])
    layer("gru", reset_after=True)
    layer("gru", reset_after=True, extra=True, lengths=[1, 4, 3])
