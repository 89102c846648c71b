"""Recurrent layers: the part that runs step by step.

The input's share of the gates is a matrix product that the frontend does for all steps at once:
operand 0, `gates`, is [steps, batch, directions, G * H]. Recurrent weights are packed so that a
step reads them front to back, BLOCK outputs at a time:
`weights[d, J, k, g, l]` weighs state k in gate g of output J * BLOCK + l; beyond H they are zero.

Shared attributes: `reverse` and `activations`, per direction; an activation is (name, alpha,
beta); `clip` (0: none) bounds what goes into activations. Optional `lengths` [batch] stop rows
early: later outputs are zero and the state stays; a reversed row starts at its own last step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...expr import Expr, op
from ...operations import OPS
from ..core import TensorType
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import require_equal, same

BLOCK = 16

# Activations of `f` = the applier of operations, so that expressions and arrays share them.
ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "affine": lambda f, x, a, b: f("add", f("mul", x, a), b),
    "relu": lambda f, x, a, b: f("max", x, 0.0),
    "leaky_relu": lambda f, x, a, b: f("select", f("lt", x, 0.0), f("mul", x, a), x),
    "thresholded_relu": lambda f, x, a, b: f("select", f("gt", x, a), x, f("mul", x, 0.0)),
    "tanh": lambda f, x, a, b: f("tanh", x),
    "scaled_tanh": lambda f, x, a, b: f("mul", f("tanh", f("mul", x, b)), a),
    "sigmoid": lambda f, x, a, b: f("div", 1.0, f("add", f("exp", f("neg", x)), 1.0)),
    "hard_sigmoid": lambda f, x, a, b: f(
        "max", f("min", f("add", f("mul", x, a), b), 1.0), 0.0),
    "elu": lambda f, x, a, b: f("select", f("lt", x, 0.0), f("mul", f("expm1", x), a), x),
    "softsign": lambda f, x, a, b: f("div", x, f("add", f("abs", x), 1.0)),
    "softplus": lambda f, x, a, b: f(
        "add", f("max", x, 0.0), f("log1p", f("exp", f("neg", f("abs", x))))),
}


def activate(activation: tuple, x: Expr) -> Expr:
    """The activation (name, alpha, beta) of an expression, which may be a vector."""
    name, alpha, beta = activation
    return ACTIVATIONS[name](op, x, alpha, beta)


def _apply(name: str, *args):
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    typed = [np.asarray(a, arrays[-1].dtype) if isinstance(a, float) else a for a in args]
    return OPS[name].function(*typed)


def _activate_array(activation: tuple, x: np.ndarray) -> np.ndarray:
    name, alpha, beta = activation
    with np.errstate(all="ignore"):
        return ACTIVATIONS[name](_apply, x, float(alpha), float(beta))


def _unpacked(weights: np.ndarray, hidden: int) -> np.ndarray:
    """[D, G, H (output), H (state)] from packed weights."""
    d, blocks, states, gates, lanes = weights.shape
    return weights.transpose(0, 3, 1, 4, 2).reshape(d, gates, blocks * lanes, states)[:, :, :hidden]


def _check(ctx: OpContext, gates: int, functions: int, states: tuple[int, ...]):
    x, w, h = ctx.type(0), ctx.type(1), ctx.type(2)
    if x.rank != 4 or w.rank != 5 or h.rank != 3:
        raise ctx.error(f"{ctx.node.op} of {x} with weights {w} and state {h}")
    directions, hidden = x.shape[2], h.shape[2]
    if not isinstance(directions, int) or not same(w.shape[3], gates) or not same(
            w.shape[4], BLOCK):
        raise ctx.error(f"weights {w} do not fit {ctx.node.op}")
    for i in states:
        t, otherwise = ctx.type(i), f"state {ctx.type(i)} does not fit {x}"
        if t.dtype is not x.dtype or t.rank != 3:
            raise ctx.error(otherwise)
        for d1, d2 in zip(t.shape, (directions, x.shape[1], hidden), strict=True):
            require_equal(ctx, d1, d2, otherwise)
    a = ctx.attrs
    a["reverse"] = tuple(bool(r) for r in a["reverse"])
    if len(a["reverse"]) != directions or len(a["activations"]) != directions or any(
            len(row) != functions for row in a["activations"]):
        raise ctx.error(f"{directions} directions need as many directions and {functions} "
                        "activations each")
    for row in a["activations"]:
        for name, _, _ in row:
            if name not in ACTIVATIONS:
                raise ctx.error(f"unknown activation {name!r}")
    state = (directions, x.shape[1], hidden)
    return [TensorType(x.dtype, (x.shape[0], *state)), *(TensorType(x.dtype, state)
                                                         for _ in states)]


def _run(ctx: OpContext, gates, states, lengths, step):
    """Runs `step(d, gates [B, G * H], states, activations) -> states` over every direction."""
    steps, batch, directions, _ = gates.shape
    wide = np.float32 if gates.dtype.itemsize < 4 else gates.dtype
    hidden = states[0].shape[2]
    y = np.zeros((steps, directions, batch, hidden), gates.dtype)
    finals = [np.array(s) for s in states]
    counts = np.full(batch, steps) if lengths is None else np.minimum(lengths, steps)
    rows = np.arange(batch)
    for d in range(directions):
        current = [s[d].astype(wide) for s in states]
        for t in range(steps):
            active = t < counts
            at = np.where(active, counts - 1 - t, t) if ctx.attrs["reverse"][d] else np.full(
                batch, t)
            found = step(d, gates[at, rows, d].astype(wide), current,
                         ctx.attrs["activations"][d])
            # The state is kept in the tensors' type.
            found = [f.astype(gates.dtype).astype(wide) for f in found]
            current = [np.where(active[:, None], f, c)
                       for f, c in zip(found, current, strict=True)]
            y[at, d, rows] = np.where(active[:, None], found[0], 0).astype(gates.dtype)
        for final, c in zip(finals, current, strict=True):
            final[d] = c.astype(gates.dtype)
    return (y, *finals)


def _clipper(ctx: OpContext):
    limit = ctx.attrs["clip"]
    return (lambda x: np.clip(x, -limit, limit).astype(x.dtype)) if limit else (lambda x: x)


_ATTRS = {"reverse": REQUIRED, "activations": REQUIRED, "clip": 0.0}


# LSTM ---------------------------------------------------------------------------------------------


def _lstm_reference(ctx: OpContext, gates, weights, h0, c0, peepholes=None, lengths=None):
    hidden = h0.shape[2]
    r, clip = _unpacked(weights, hidden).astype(np.result_type(gates, np.float32)), _clipper(ctx)

    def step(d, x, states, activations):
        h, c = states
        f, g, out = activations
        i, o, forget, new = (x[:, k * hidden:(k + 1) * hidden] + h @ r[d, k].T for k in range(4))
        p = np.zeros((3, hidden), x.dtype) if peepholes is None else peepholes[d].astype(
            x.dtype).reshape(3, hidden)
        i = _activate_array(f, clip(i + p[0] * c))
        if ctx.attrs["input_forget"]:
            forget = 1 - i
        else:
            forget = _activate_array(f, clip(forget + p[2] * c))
        c = forget * c + i * _activate_array(g, clip(new))
        o = _activate_array(f, clip(o + p[1] * c))
        return [o * _activate_array(out, c), c]

    return _run(ctx, gates, [h0, c0], lengths, step)


define(OpDef(
    "lstm", "opaque", lambda ctx: _check(ctx, 4, 3, (2, 3)), _lstm_reference,
    attrs={**_ATTRS, "input_forget": False},
    doc="gates (input, output, forget, cell), weights, h and c [D, batch, H], optional peepholes "
        "[D, 3 * H] (input, output, forget), optional lengths -> y [steps, D, batch, H], h, c.",
))


# GRU ----------------------------------------------------------------------------------------------


def _gru_reference(ctx: OpContext, gates, weights, h0, bias=None, lengths=None):
    hidden = h0.shape[2]
    r, clip = _unpacked(weights, hidden).astype(np.result_type(gates, np.float32)), _clipper(ctx)

    def step(d, x, states, activations):
        (h,), (f, g) = states, activations
        z, reset, new = (x[:, k * hidden:(k + 1) * hidden] for k in range(3))
        z = _activate_array(f, clip(z + h @ r[d, 0].T))
        reset = _activate_array(f, clip(reset + h @ r[d, 1].T))
        if ctx.attrs["reset_after"]:
            extra = 0 if bias is None else bias[d].astype(x.dtype)
            new = new + reset * (h @ r[d, 2].T + extra)
        else:
            new = new + (reset * h) @ r[d, 2].T
        new = _activate_array(g, clip(new))
        return [(1 - z) * new + z * h]

    return _run(ctx, gates, [h0], lengths, step)


define(OpDef(
    "gru", "opaque", lambda ctx: _check(ctx, 3, 2, (2,)), _gru_reference,
    attrs={**_ATTRS, "reset_after": False},
    doc="gates (update, reset, new), weights, h [D, batch, H], optional bias [D, H] inside the "
        "reset (only with reset_after: new + reset * (h R + bias)), optional lengths -> "
        "y [steps, D, batch, H], h.",
))


# Plain RNN ----------------------------------------------------------------------------------------


def _rnn_reference(ctx: OpContext, gates, weights, h0, lengths=None):
    r = _unpacked(weights, h0.shape[2]).astype(np.result_type(gates, np.float32))
    clip = _clipper(ctx)

    def step(d, x, states, activations):
        return [_activate_array(activations[0], clip(x + states[0] @ r[d, 0].T))]

    return _run(ctx, gates, [h0], lengths, step)


define(OpDef(
    "rnn", "opaque", lambda ctx: _check(ctx, 1, 1, (2,)), _rnn_reference, attrs=_ATTRS,
    doc="h = f(gates + h R): gates, weights, h [D, batch, H], optional lengths -> "
        "y [steps, D, batch, H], h.",
))
