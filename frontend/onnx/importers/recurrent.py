"""Recurrent layers: LSTM, GRU, RNN. The input's share of the gates is one matrix product."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from ....ir.graph.ops.recurrent import BLOCK
from ..building import cast, reshape, scalar, slice_axis, swap, transpose
from ..registry import Site, importer

# ONNX name -> (core name, default alpha, default beta); None where it takes none.
_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "affine": ("affine", 1.0, 0.0), "relu": ("relu", None, None),
    "leakyrelu": ("leaky_relu", 0.01, None), "tanh": ("tanh", None, None),
    "thresholdedrelu": ("thresholded_relu", 1.0, None), "elu": ("elu", 1.0, None),
    "scaledtanh": ("scaled_tanh", 1.0, 1.0), "hardsigmoid": ("hard_sigmoid", 0.2, 0.5),
    "sigmoid": ("sigmoid", None, None), "softsign": ("softsign", None, None),
    "softplus": ("softplus", None, None),
}


def _activations(c: Site, defaults: tuple[str, ...], directions: int) -> tuple:
    """Per direction, the (name, alpha, beta) of each function; parameters are handed out in
    order to the functions that take them."""
    names = c.attr("activations") or defaults * directions
    if len(names) != len(defaults) * directions:
        raise c.error(f"{len(names)} activations for {directions} directions of {c.op_type}")
    alphas, betas = iter(c.attr("activation_alpha") or ()), iter(c.attr("activation_beta") or ())
    found = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise c.error(f"unknown activation {name!r}")
        core, alpha, beta = _ACTIVATIONS[name.lower()]
        found.append((core, 0.0 if alpha is None else float(next(alphas, alpha)),
                      0.0 if beta is None else float(next(betas, beta))))
    n = len(defaults)
    return tuple(tuple(found[d * n:(d + 1) * n]) for d in range(directions))


class _Layer:
    """The operands that all three operators share, checked and in the core operators' layout."""

    def __init__(self, c: Site, gates: int):
        self.c, self.gates = c, gates
        self.batch_first = bool(c.attr("layout", 0))
        x = c.input(0)
        if x.rank != 3 or c.input(1).rank != 3 or c.input(2).rank != 3:
            raise c.error(f"{c.op_type} needs operands of rank 3, got {x.type}, "
                          f"{c.input(1).type} and {c.input(2).type}")
        self.x = transpose(c, x, (1, 0, 2)) if self.batch_first else x
        direction = c.attr("direction", "forward")
        known = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
        if direction not in known:
            raise c.error(f"unknown direction {direction!r}")
        self.reverse = known[direction]
        self.hidden: Dim = c.input(2).shape[2]
        for i in (1, 2):
            shape = c.input(i).shape
            if any(isinstance(have, int) and isinstance(want, int) and have != want for have, want
                   in zip(shape, (len(self.reverse), self._of(gates)))):
                raise c.error(f"weights {c.input(i).type} do not fit {len(self.reverse)} "
                              f"directions of {gates} gates of {self.hidden}")

    def _of(self, count: int) -> Dim:
        return count * self.hidden  # type: ignore[operator]

    @property
    def directions(self) -> int:
        return len(self.reverse)

    def bias(self, part: int, first: int, count: int) -> Value | None:
        """Gates first..first + count of the input's (0) or the state's (1) bias: [D, count * H]."""
        c = self.c
        if not c.has(3):
            return None
        return slice_axis(c, c.input(3), 1, self._of(part * self.gates + first), self._of(count))

    def gate_inputs(self, bias: Value | None) -> Value:
        """x W^T + bias: [steps, batch, D, G * H]."""
        c, x = self.c, self.x
        steps, batch, width = x.shape
        every = wrap(self._of(self.gates)) * self.directions
        rows = reshape(c, x, (wrap(steps) * wrap(batch), width))
        y = c.add("matmul", [rows, swap(c, reshape(c, c.input(1), (every, width)))])
        if bias is not None:
            y = c.add("add", [y, reshape(c, bias, (every,))])
        return reshape(c, y, (steps, batch, self.directions, self._of(self.gates)))

    def weights(self) -> Value:
        """Recurrent weights in the packed order of `ir.graph.ops.recurrent`."""
        c, h = self.c, wrap(self.hidden)
        r = reshape(c, c.input(2), (self.directions, self.gates, h, h))
        blocks = (h + (BLOCK - 1)) // BLOCK
        r = c.add("pad", [r], low=(0, 0, 0, 0), high=(0, 0, simplify_dim(blocks * BLOCK - h), 0))
        r = reshape(c, r, (self.directions, self.gates, blocks, BLOCK, h))
        return transpose(c, r, (0, 2, 4, 1, 3))

    def state(self, i: int) -> Value:
        """Initial state, input `i`, or zeros: [D, batch, H]."""
        c, shape = self.c, (self.directions, self.x.shape[1], self.hidden)
        if not c.has(i):
            return c.add("expand", [scalar(c, 0, self.x.dtype)], shape=shape)
        given = c.input(i)
        if given.rank != 3:
            raise c.error(f"the initial state {given.type} must have rank 3")
        given = transpose(c, given, (1, 0, 2)) if self.batch_first else given
        return reshape(c, given, shape)  # sizes that the other operands know better

    def lengths(self) -> Value | None:
        return cast(self.c, self.c.input(4), dt.i32) if self.c.has(4) else None

    def run(self, op: str, operands: list[Value | None], activations: tuple[str, ...],
            **attrs) -> list[Value]:
        c = self.c
        while operands[-1] is None:
            operands.pop()
        y, *states = c.add_multi(
            op, operands, reverse=self.reverse, clip=float(c.attr("clip", 0.0) or 0.0),
            activations=_activations(c, activations, self.directions), **attrs)
        if self.batch_first:
            y = transpose(c, y, (2, 0, 1, 3))
            states = [transpose(c, s, (1, 0, 2)) for s in states]
        return [y, *states]


def _sum(c: Site, a: Value | None, b: Value | None) -> Value | None:
    return None if a is None or b is None else c.add("add", [a, b])


@importer("LSTM")
def lstm(c: Site):
    layer = _Layer(c, 4)
    bias = _sum(c, layer.bias(0, 0, 4), layer.bias(1, 0, 4))
    peepholes = c.inputs[7] if c.has(7) else None
    return layer.run("lstm", [layer.gate_inputs(bias), layer.weights(), layer.state(5),
                              layer.state(6), peepholes, layer.lengths()],
                     ("Sigmoid", "Tanh", "Tanh"), input_forget=bool(c.attr("input_forget", 0)))


@importer("GRU")
def gru(c: Site):
    layer = _Layer(c, 3)
    after = bool(c.attr("linear_before_reset", 0))
    bias, inner = layer.bias(0, 0, 3), None
    if bias is not None and not after:
        bias = _sum(c, bias, layer.bias(1, 0, 3))
    elif bias is not None:
        # The state's share of the new gate is added inside the reset.
        gates, inner = layer.bias(1, 0, 2), layer.bias(1, 2, 1)
        assert gates is not None and inner is not None
        gates = c.add("pad", [gates], low=(0, 0), high=(0, layer.hidden))
        bias = c.add("add", [bias, gates])
    return layer.run("gru", [layer.gate_inputs(bias), layer.weights(), layer.state(5), inner,
                             layer.lengths()], ("Sigmoid", "Tanh"), reset_after=after)


@importer("RNN")
def rnn(c: Site):
    layer = _Layer(c, 1)
    bias = _sum(c, layer.bias(0, 0, 1), layer.bias(1, 0, 1))
    return layer.run("rnn", [layer.gate_inputs(bias), layer.weights(), layer.state(5),
                             layer.lengths()], ("Tanh",))
