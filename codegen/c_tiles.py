"""Spells tile registers in C: AMX intrinsics, whose registers are numbers in the text.

A register buffer whose elements fill a tile register (16 rows of 64 bytes) lives in tile registers.
Its stores are: zeros, a load of 1024 bytes or of 16 rows of 64 bytes that lie in even steps, and a
product added to the register itself; it is read by products and by stores to memory, row by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ir.expr import Broadcast, Const, Expr, Ramp
from ..ir.kernel.intrinsics import TILE_DOT, TILE_ROWS
from ..ir.kernel.nodes import Alloc, Buffer, Call, Load, Stmt, Store, statements

if TYPE_CHECKING:
    from .c import KernelPrinter

REGISTERS = 8
ROW_BYTES = 64

PRELUDE = """/* All tile registers have 16 rows of 64 bytes: palette 1, bytes of rows, rows. */
static const unsigned char smelt_tiles[64] = {
    1, [16] = 64, [18] = 64, [20] = 64, [22] = 64, [24] = 64, [26] = 64, [28] = 64, [30] = 64,
    [48] = 16, 16, 16, 16, 16, 16, 16, 16};
/* Compilers need to be told that a tile load reads memory. */
#define SMELT_TILE_LOAD(tile, from, step) do { \\
    __asm__ volatile("" ::: "memory"); _tile_loadd(tile, from, step); } while (0)"""

BEGIN, END = "_tile_loadconfig(smelt_tiles);", "_tile_release();"
"""Around code that uses tile registers."""


def is_tile(buffer: Buffer) -> bool:
    """Whether the buffer lives in tile registers."""
    return buffer.space == "register" and \
        buffer.lanes * buffer.dtype.itemsize == TILE_ROWS * ROW_BYTES


def uses_tiles(s: Stmt) -> bool:
    """Whether tile registers are needed below a statement."""
    return any(isinstance(x, Alloc) and is_tile(x.buffer) for x in statements(s))


class TilePrinter:
    """The part of a kernel's printer that knows tile registers."""

    def __init__(self, printer: KernelPrinter):
        self.p = printer
        self.first: dict[Buffer, int] = {}
        self.used = 0

    def alloc(self, buffer: Buffer) -> None:
        """Gives the buffer the next registers, until the end of the block."""
        count = 1
        for d in buffer.shape:
            count *= int(d)
        self.first[buffer] = self.used
        self.used += count
        if self.used > REGISTERS:
            raise ValueError(f"{buffer.name}: {self.used} tile registers are in use, there are "
                             f"{REGISTERS}")
        self.p.needs.tiles = True

    def number(self, buffer: Buffer, index: tuple[Expr, ...]) -> int:
        offset = buffer.offset(index)
        if not isinstance(offset, Const):
            raise ValueError(f"{buffer.name}: tile register {offset} is not constant")
        return self.first[buffer] + offset.value

    def held(self, e: Expr) -> int | None:
        """The register that an expression reads."""
        if isinstance(e, Load) and is_tile(e.buffer):
            return self.number(e.buffer, e.index)
        return None

    def assign(self, s: Store) -> None:
        """Prints the store of a value to a tile register."""
        target, value = self.number(s.buffer, s.index), s.value
        if isinstance(value, Broadcast) and isinstance(value.args[0], Const) \
                and value.args[0].value == 0:
            self.p.line(f"_tile_zero({target});")
        elif isinstance(value, Call) and value.intrinsic is TILE_DOT:
            total, a, b = map(self.held, value.args)
            if total != target or a is None or b is None:
                raise ValueError(f"{s.buffer.name}: a product of tiles is added to its own "
                                 f"register")
            self.p.line(f"_tile_dpbf16ps({target}, {a}, {b});")
        elif isinstance(value, Load) and value.count is None:
            address, step = self._source(value)
            self.p.line(f"SMELT_TILE_LOAD({target}, {address}, {step});")
        else:
            raise TypeError(f"{s.buffer.name}: a tile register cannot hold {value!r}")

    def _source(self, e: Load) -> tuple[str, int]:
        """The address of a tile in memory, and the bytes from one row to the next."""
        *lead, last = e.index
        step = ROW_BYTES
        if isinstance(last, Ramp) and isinstance(last.args[0], Ramp):
            inner = last.args[0]
            if inner.stride != 1 or inner.lanes * e.dtype.itemsize != ROW_BYTES:
                raise ValueError(f"{e.buffer.name}: rows of {inner.lanes} lanes do not fill a tile")
            step, last = last.stride * e.dtype.itemsize, inner.args[0]
        elif last.lanes > 1:
            raise ValueError(f"{e.buffer.name}: a tile of single elements")
        offset = self.p.expr.statement_value(e.buffer.offset((*lead, last)))
        return f"{self.p.buffer_name(e.buffer)} + {offset}", step

    def spill(self, s: Store) -> bool:
        """Prints the store of a tile register to memory; False when the value is none."""
        source = self.held(s.value)
        if source is None:
            return False
        offset = self.p.expr.statement_value(s.buffer.offset(s.index))
        where = f"{self.p.buffer_name(s.buffer)} + {offset}"
        self.p.line(f"_tile_stored({source}, {where}, {ROW_BYTES});")
        return True
