"""Elements whose operands run along different axes: square tiles turned in registers.

A tile has one vector of lanes on each side. Operands that are contiguous along the output are read
as they are; those contiguous along another axis are read as rows of that axis, transposed, and
then take part in vector arithmetic like the others. Large operands are turned in blocks of tiles
whose sides are whole lines of the cache: what memory delivers at once is used at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod

from ...ir import dtype as dt
from ...ir.expr import Const, Expr, Op, Var, broadcast, cast, const, op, substitute, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import shuffle
from ...ir.kernel.nodes import Buffer, Kernel, Load, load
from ..kernel.simplify import simplify
from ..schedule.fragment import Fragment
from ..schedule.primitives import ScheduleError, fuse, tile
from .loops import LoopWriter, has_reduce, linear_in, value_nodes, vectorisable

MOVED = (dt.f32, dt.i32, dt.u32, dt.f16, dt.bf16, dt.i16, dt.u16, dt.i8, dt.u8, dt.i64, dt.u64,
         dt.f64)
"""Element types that can be turned in registers."""

LINE = 64
"""Bytes that memory delivers together."""

PAGE = 4096
"""Bytes up to which memory delivers the next line as well, before it is asked for."""

LARGE = 1 << 21
"""Bytes that no longer stay in a core's own caches."""


@dataclass(frozen=True, eq=False)
class Crossing:
    """`turned` loads are contiguous along `across`, the rest and the output along `inner`."""

    inner: Var
    across: Var
    turned: tuple[Load, ...]


def crossing(variables: list[Var], position: Expr, value: Expr, lanes: int) -> Crossing | None:
    """How tiles can compute `value`, if they can and are worth it."""
    if lanes == 1 or len(variables) < 2 or has_reduce(value):
        return None
    inner = variables[-1]
    split = linear_in(position, inner)
    if split is None or split[0] is not const(1) or _short(inner, lanes):
        return None
    loads = [x for x in value_nodes(value) if isinstance(x, Load)]
    turned = []
    for x in loads:
        slope = linear_in(x.index[-1], inner)
        if slope is None:
            return None
        if slope[0] is not const(1) and slope[0] is not const(0):
            turned.append(x)
    if not turned or any(x.dtype not in MOVED for x in turned) or _guarded(value, turned):
        return None
    for across in variables[:-1]:
        slopes = [linear_in(x.index[-1], across) for x in turned]
        if any(s is None or s[0] is not const(1) for s in slopes) or _short(across, lanes):
            continue
        if value in turned or _computes(value, turned, inner):
            return Crossing(inner, across, tuple(turned))
    return None


def _guarded(value: Expr, loads: list[Load]) -> bool:
    """Whether an arm of a select holds one of the loads: tiles read before they select."""
    return any(isinstance(x, Op) and x.name == "select" and any(
        y in loads for arm in x.args[1:] for y in value_nodes(arm)) for x in value_nodes(value))


def _short(v: Var, lanes: int) -> bool:
    return isinstance(v.extent, int) and v.extent < lanes // 2


def _computes(value: Expr, turned: list[Load], inner: Var) -> bool:
    """Whether the value vectorises once the turned loads are contiguous along `inner`."""
    probes: dict[Expr, Expr] = {
        x: load(Buffer(f"probe{k}", x.dtype, (1 << 30,)), (inner,)) for k, x in enumerate(turned)}
    return vectorisable(substitute(value, probes), inner)


def write_tiles(writer: LoopWriter, variables: list[Var], out: Buffer, position: Expr, value: Expr,
                crossed: Crossing, parallel: bool) -> None:
    """Stores the value of every element, tile by tile."""
    lanes = writer.machine.lanes
    b = Fragment(writer.b)
    writer = LoopWriter(b, writer.machine)
    inner, across = crossed.inner, crossed.across
    others = [v for v in variables if v is not inner and v is not across]
    rows, columns = wrap(inner.extent), wrap(across.extent)

    # Tiles at the ends are cut by counts; without ends, everything is whole vectors.
    ragged_rows, ragged_columns = (n % lanes is not const(0) for n in (rows, columns))

    def write_tile(place: dict[Expr, Expr], row: Expr, column: Expr) -> None:
        height = b.let("height", op("min", rows - row, lanes)) if ragged_rows else None
        width = b.let("width", op("min", columns - column, lanes)) if ragged_columns else None
        turned = [turn(x, place, row, column, height, width) for x in crossed.turned]
        for c in range(lanes):
            here = {**place, across: column + c}

            def store(c: int = c, here: dict[Expr, Expr] = here) -> None:
                bound = {substitute(x, here): vectors[c]
                         for x, vectors in zip(crossed.turned, turned, strict=True)}
                result = writer.value(substitute(value, here), inner, lanes, row, height, bound)
                b.store(out, (substitute(position, {**here, inner: row}),),
                        broadcast(cast(result, out.dtype), lanes), height)

            if width is not None and c:
                with b.when(op("lt", c, width)):
                    store()
            else:
                store()

    def turn(x: Load, place: dict[Expr, Expr], row: Expr, column: Expr, height: Expr | None,
             width: Expr | None) -> list[Expr]:
        vectors = []
        for r in range(lanes):
            # Rows beyond the last read the last again: their lanes are never stored.
            at = row + (r if height is None else op("min", const(r), height - 1))
            index = substitute(x.index[-1], {**place, inner: at, across: column})
            vectors.append(b.let("r", load(x.buffer, (index,), lanes, width)))
        return transpose(b, vectors)

    with ExitStack() as nest:
        # Every element is stored once, so that all iterations are independent.
        kind = "parallel" if parallel else "serial"
        outside = [nest.enter_context(b.loop("i", v.extent, kind)) for v in others]
        c = nest.enter_context(b.loop("c", (columns + (lanes - 1)) // lanes, kind))
        r = nest.enter_context(b.loop("r", (rows + (lanes - 1)) // lanes))
        write_tile(dict(zip(others, outside, strict=True)), r * lanes, c * lanes)
    block = _block(variables, out, position, crossed, lanes)
    b.join(scheduled(b.kernel(), outside, c, r, block))


def _block(variables: list[Var], out: Buffer, position: Expr, crossed: Crossing,
           lanes: int) -> tuple[int, int] | None:
    """The columns and rows of tiles that are worth turning together; None when nothing is known
    to be gained: the operand is small, or rows of the output share lines."""
    itemsize = min(x.dtype.itemsize for x in crossed.turned)
    size = prod(v.extent if isinstance(v.extent, int) else 0 for v in variables)
    written = _pitch(position, crossed.across)
    if size * itemsize < LARGE or written is None or written * out.dtype.itemsize % LINE:
        return None
    read = [_pitch(x.index[-1], crossed.inner) for x in crossed.turned]
    near = all(r is not None and r * itemsize <= PAGE for r in read)
    line = max(1, LINE // (lanes * itemsize))
    columns = max(line, 2 if near else 1)
    return (columns, line) if columns > 1 else None


def _pitch(index: Expr, variable: Var) -> int | None:
    """Elements between neighbours along a variable."""
    parts = linear_in(index, variable)
    return parts[0].value if parts is not None and isinstance(parts[0], Const) else None


def scheduled(kernel: Kernel, outside: Sequence[Var], column: Var, row: Var,
              block: tuple[int, int] | None) -> Kernel:
    """Loops over tiles, scheduled: in blocks of so many columns and rows of tiles, and with one
    loop outside that over rows."""
    whole = column.name
    if block is not None:
        with suppress(ScheduleError):  # of which no proof is found, rows are walked to their ends
            kernel = tile(kernel, column, row, *block)
            whole = f"{column.name}_o"
    for outer in reversed(outside):
        kernel = fuse(kernel, outer, whole, name=f"{outer.name}_{column.name}")
        whole = f"{outer.name}_{column.name}"
    return simplify(kernel)


def transpose(b: Builder, vectors: list[Expr]) -> list[Expr]:
    """Columns of the square matrix with these rows (Eklundh 1972: exchange of off-diagonal blocks,
    log2 n times)."""
    n = len(vectors)
    distance = n // 2
    rows = list(vectors)
    while distance:
        for i in range(n):
            if i & distance:
                continue
            low, high = rows[i], rows[i + distance]
            first = [c if not c & distance else n + c - distance for c in range(n)]
            second = [c + distance if not c & distance else n + c for c in range(n)]
            rows[i] = b.let("s", shuffle(low, high, first))
            rows[i + distance] = b.let("s", shuffle(low, high, second))
        distance //= 2
    return rows
