"""The kernel of the random number generator."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.expr import Expr, cast, const, op
from ....ir.graph.ops.random import ROTATIONS, ROUNDS, keys
from ....ir.graph.ops.shapes import flat_index
from ..procedural import Site, procedural


def _word(value: int) -> Expr:
    return const(value, dt.u32)


@procedural("random_bits")
def random_bits(c: Site) -> None:
    b, y, stream = c.b, c.output(), c.attrs["stream"]
    k = keys(c.attrs["seed"])
    with c.nest("i", y.shape, 4 * ROUNDS) as index:
        position = b.let("position", flat_index(index, y.shape))
        x = b.let("x", cast(position, dt.u32) + _word(k[0]))
        high = cast(op("shr", position, 32), dt.u32) + _word(stream << 16)
        z = b.let("z", high + _word(k[1]))
        for r in range(ROUNDS):
            s = ROTATIONS[r % 8]
            x = b.let("x", x + z)
            turned = op("or", op("shl", z, s), op("shr", z, 32 - s))
            z = b.let("z", op("xor", turned, x))
            if r % 4 == 3:
                step = r // 4 + 1
                x = b.let("x", x + _word(k[step % 3]))
                z = b.let("z", z + _word(k[(step + 1) % 3] + step))
        b.store(y, index, x)
