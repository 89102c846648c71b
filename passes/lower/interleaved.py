"""Elements whose last axis is too short for vectors, such as the channels of a picture, and whose
operands run along the axis before it: one vector along that axis for each place of the last, which
are interleaved in registers."""

from __future__ import annotations

from contextlib import ExitStack

from ...ir.expr import Expr, Var, broadcast, cast, const, substitute, wrap
from ...ir.kernel.intrinsics import shuffle
from ...ir.kernel.nodes import Buffer
from .loops import LoopWriter, has_reduce, linear_in, vectorisable
from .transposed import MOVED

MOST = 4
"""Places of the last axis, at most."""


def interleaves(variables: list[Var], out: Buffer, position: Expr, value: Expr,
                lanes: int) -> bool:
    """Whether the value can be computed so."""
    if lanes == 1 or len(variables) < 2 or out.dtype not in MOVED or has_reduce(value):
        return False
    across, inner = variables[-2:]
    count = inner.extent
    if not isinstance(count, int) or not 2 <= count <= MOST \
            or isinstance(across.extent, int) and across.extent < lanes:
        return False
    near, far = linear_in(position, inner), linear_in(position, across)
    return near is not None and far is not None and near[0] is const(1) \
        and far[0] is const(count) and all(
            vectorisable(substitute(value, {inner: const(k)}), across) for k in range(count))


def write_interleaved(writer: LoopWriter, variables: list[Var], out: Buffer, position: Expr,
                      value: Expr, parallel: bool) -> None:
    """Stores the value of every element."""
    b, lanes = writer.b, writer.machine.lanes
    *outside, across, inner = variables
    count = inner.extent
    assert isinstance(count, int)
    chunks = wrap(across.extent) // lanes
    with ExitStack() as nest:
        place: dict[Expr, Expr] = {}
        for k, v in enumerate(outside):
            kind = "parallel" if parallel and not k else "serial"
            place[v] = nest.enter_context(b.loop("i", v.extent, kind))
        with b.loop("c", chunks, "parallel" if parallel and not outside else "serial") as c:
            start = c * lanes
            vectors = []
            for k in range(count):
                e = substitute(value, {**place, inner: const(k)})
                vectors.append(b.let("v", broadcast(cast(writer.value(
                    e, across, lanes, start), out.dtype), lanes)))
            target = substitute(position, {**place, across: start, inner: const(0)})
            for k in range(count):
                b.store(out, (target + k * lanes,), _interleaved(vectors, k * lanes))
        rest = wrap(across.extent) - chunks * lanes
        if rest is not const(0):
            with b.loop("c", rest) as c, b.loop("i", count) as i:
                here = {**place, across: chunks * lanes + c, inner: i}
                b.store(out, (substitute(position, here),),
                        cast(writer.value(substitute(value, here)), out.dtype))


def _interleaved(vectors: list[Expr], first: int) -> Expr:
    """One vector of v[0][0], v[1][0], ... v[0][1], v[1][1], ... from element `first` on."""
    count, lanes = len(vectors), vectors[0].lanes
    result = vectors[0]
    for k, vector in enumerate(vectors[1:], 1):
        # What is in place stays; places of later vectors hold anything.
        picks = [lanes + (first + i) // count if (first + i) % count == k
                 else ((first + i) // count if k == 1 else i) for i in range(lanes)]
        result = shuffle(result, vector, picks)
    return result
