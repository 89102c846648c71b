"""Prints dataflow kernels as C++ for high-level synthesis: a function for each, streams for what it
reads and writes. This file chooses spelling only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import ModelError
from ..ir import dtype as dt
from ..ir.expr import Cast, Expr, Op, Var, wrap
from ..ir.kernel.nodes import (
    Alloc,
    Block,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
)
from .c import Names
from .c_expr import ExpressionPrinter
from .c_types import c_type

PER_LINE = 24
"""Numbers of a line of a table."""


@dataclass
class HlsNeeds:
    """Helpers that printed C would call; there are none for what dataflow kernels compute."""

    helpers: set[str] = field(default_factory=set)


def element_type(buffer: Buffer, rom: bool = False) -> str:
    """The C++ type of a buffer's elements."""
    kind = "sint" if buffer.dtype.kind == "int" else "uint"
    return f"smelt::{kind}{'_rom' if rom else ''}<{buffer.bits or buffer.dtype.bits}>"


def stream_type(buffer: Buffer) -> str:
    """The C++ type of a stream."""
    return f"smelt::stream<{word_type(buffer)}>"


def word_type(buffer: Buffer) -> str:
    """The C++ type of a stream's words."""
    return f"smelt::word<{element_type(buffer)}, {buffer.lanes}>"


class HlsKernelPrinter:
    """Prints one kernel. Its constant parameters become tables of the file, named after it."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.names = Names()
        self.needs = HlsNeeds()
        self.lines: list[str] = []
        self.depth = 1
        self._temporaries = 0
        self.expr = _Expressions(self)
        for b in kernel.params:
            if b.space not in ("stream", "constant"):
                raise ModelError(f"kernel {kernel.name}: parameter {b.name} in {b.space} memory "
                                 f"is neither a stream nor a constant")

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def temporary(self) -> str:
        """A name that nothing else in the function has."""
        self._temporaries += 1
        return self.names.get(("temporary", self._temporaries), "e")

    def buffer_name(self, buffer: Buffer) -> str:
        if buffer.space == "constant":
            return self.names.get(buffer, f"{self.kernel.name}_{buffer.name}")
        return self.names.get(buffer, buffer.name)

    def var_name(self, v: Var) -> str:
        return self.names.get(v, v.name)

    # Text ---------------------------------------------------------------------------------------

    def prototype(self) -> str:
        """The function's head."""
        streams = ", ".join(f"{stream_type(b)} &{self.buffer_name(b)}"
                            for b in self.kernel.params if b.space == "stream")
        return f"void {self.kernel.name}({streams})"

    def text(self) -> str:
        """The whole function."""
        head = self.prototype()
        for b in self.kernel.params:
            if b.space == "constant":
                self._partition(b)
        self._block(self.kernel.body)
        if self.needs.helpers:
            raise ModelError(f"kernel {self.kernel.name}: no hardware for "
                             f"{', '.join(sorted(self.needs.helpers))}")
        return "\n".join([f"{head} {{", *self.lines, "}", ""])

    def tables(self, constants: Mapping[Buffer, np.ndarray]) -> str:
        """The definitions of the constant parameters."""
        parts = []
        for b in self.kernel.params:
            if b.space != "constant":
                continue
            flat = [str(int(v)) for v in constants[b].reshape(-1)]
            rows = [", ".join(flat[k:k + PER_LINE]) for k in range(0, len(flat), PER_LINE)]
            sizes = "".join(f"[{d}]" for d in b.shape)
            parts.append(f"static const {element_type(b, rom=True)} {self.buffer_name(b)}{sizes} = "
                         "{\n    " + ",\n    ".join(rows) + "};\n")
        return "\n".join(parts)

    # Statements ---------------------------------------------------------------------------------

    def _block(self, block: Block) -> None:
        for s in block.body:
            self._statement(s)

    def _nested(self, block: Block) -> None:
        self.depth += 1
        self._block(block)
        self.depth -= 1

    def _statement(self, s: Stmt) -> None:
        if isinstance(s, Block):
            self._block(s)
        elif isinstance(s, For):
            self._for(s)
        elif isinstance(s, If):
            self.line(f"if ({self.expr.statement_value(s.condition)}) {{")
            self._nested(s.then)
            if s.orelse.body:
                self.line("} else {")
                self._nested(s.orelse)
            self.line("}")
        elif isinstance(s, Let):
            value = self.expr.statement_value(s.value)
            self.line(f"const {c_type(s.var.dtype)} {self.var_name(s.var)} = {value};")
        elif isinstance(s, Alloc):
            sizes = "".join(f"[{d}]" for d in s.buffer.shape)
            self.line(f"{element_type(s.buffer)} {self.buffer_name(s.buffer)}{sizes};")
            self._partition(s.buffer)
        elif isinstance(s, Store):
            self._store(s)
        else:
            raise TypeError(f"HLS has no spelling for {type(s).__name__}")

    def _for(self, s: For) -> None:
        i = self.var_name(s.var)
        count = self.expr.statement_value(wrap(s.extent))
        self.line(f"for (int {i} = 0; {i} < {count}; ++{i}) {{")
        if s.kind == "pipeline":
            self.lines.append(f"#pragma HLS pipeline II={s.ii}")
        elif s.kind == "unroll":
            self.lines.append("#pragma HLS unroll")
        elif s.kind != "serial":
            raise TypeError(f"HLS has no {s.kind} loops")
        self._nested(s.body)
        self.line("}")

    def _partition(self, buffer: Buffer) -> None:
        for k, banks in enumerate(buffer.banks):
            if banks > 1:
                how = "complete" if banks == buffer.shape[k] else f"cyclic factor={banks}"
                self.lines.append(f"#pragma HLS array_partition variable="
                                  f"{self.buffer_name(buffer)} {how} dim={k + 1}")

    def _store(self, s: Store) -> None:
        if isinstance(s.value, Load) and s.value.buffer.space == "stream":
            self._read(s.value.buffer, s.buffer, s.index)
        elif s.buffer.space == "stream":
            if not isinstance(s.value, Load):
                raise TypeError("a word is written from memory")
            self._write(s.buffer, s.value.buffer, s.value.index)
        else:
            value = self.expr.statement_value(s.value)
            self.expr.begin(*s.index)
            self.line(f"{self.expr.place(s.buffer, s.index)} = {value};")

    def _read(self, source: Buffer, into: Buffer, index: tuple[Expr, ...]) -> None:
        self.line("{")
        self.depth += 1
        word = self.names.get("a word", "next")
        self.line(f"const {word_type(source)} {word} = {self.buffer_name(source)}.read();")
        self._lanes(into, index, source.lanes, f"{{place}} = {word}.element[{{lane}}];")
        self.depth -= 1
        self.line("}")

    def _write(self, target: Buffer, source: Buffer, index: tuple[Expr, ...]) -> None:
        self.line("{")
        self.depth += 1
        word = self.names.get("a word", "next")
        self.line(f"{word_type(target)} {word};")
        self._lanes(source, index, target.lanes, f"{word}.element[{{lane}}] = {{place}};")
        self.line(f"{self.buffer_name(target)}.write({word});")
        self.depth -= 1
        self.line("}")

    def _lanes(self, buffer: Buffer, index: tuple[Expr, ...], lanes: int, text: str) -> None:
        """One statement for each element of a word."""
        self.expr.begin(*index)
        if lanes == 1:
            self.line(text.format(place=self.expr.place(buffer, index), lane=0))
            return
        lane = self.names.get("a lane", "lane")
        row, start = self.expr.place(buffer, index[:-1]), self.expr.value(index[-1])
        self.line(f"for (int {lane} = 0; {lane} < {lanes}; ++{lane}) {{")
        self.lines.append("#pragma HLS unroll")
        self.line("    " + text.format(place=f"{row}[{start} + {lane}]", lane=lane))
        self.line("}")


class _Expressions(ExpressionPrinter):
    """Expressions over arrays with an index for each dimension, whose elements know their width."""

    p: HlsKernelPrinter  # type: ignore[assignment]

    def __init__(self, printer: HlsKernelPrinter):
        super().__init__(printer)  # type: ignore[arg-type]

    def place(self, buffer: Buffer, index: tuple[Expr, ...]) -> str:
        """An element, or the row of elements for an index that lacks the last dimension."""
        return self.p.buffer_name(buffer) + "".join(f"[{self.value(i)}]" for i in index)

    def _operands(self, e: Expr) -> tuple[Expr, ...]:
        return e.args

    def _load(self, e: Load) -> str:
        if e.buffer.space == "stream" or e.lanes > 1:
            raise TypeError(f"{e.buffer.name}: a word is read into memory")
        return f"({c_type(e.dtype)}){self.place(e.buffer, e.index)}"

    def _scalar_op(self, e: Op) -> str:
        # Sums fit their types: the width of each is known. Casts to unsigned would hide it.
        if e.name in ("add", "sub", "mul") and e.dtype in (dt.i32, dt.i64, dt.u32, dt.u64):
            a, b = (self.value(x) for x in e.args)
            return f"({a} {dict(add='+', sub='-', mul='*')[e.name]} {b})"
        if e.name == "neg" and e.dtype in (dt.i32, dt.i64):
            return f"(-{self.value(e.args[0])})"
        return super()._scalar_op(e)

    def _cast(self, e: Cast) -> str:
        if e.mode != "value" or not (e.dtype.is_integer and e.args[0].dtype.is_integer):
            raise TypeError(f"HLS has no cast of {e.args[0].dtype} to {e.dtype}")
        return f"({c_type(e.dtype)}){self.value(e.args[0])}"
