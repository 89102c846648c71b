"""The textual form of kernels: pseudo-code with typed buffers, which parses back.

    kernel scale(n; x: f32[n], y: f32[n]) outputs 1 {
      flops = n
      parallel i < n grain 64 {
        let v: f32 = mul(x[i], 2.0:f32)
        alloc t: f32<4>[2] register
        y[i] = v
      }
    }

    kernel    := kernel name(sizes; buffers) outputs number { property* stmt* }
    property  := flops = expr | bytes = expr | origin = "text"
    size      := name | any name | name >= integer           at least 0, unbounded, bounded
    buffer    := name: dtype<lanes>[shape] space strides(expr, ...) bits number banks(number, ...)
                 lanes 1, global, row-major, bits of the dtype, one bank
    stmt      := kind name < extent (grain number) (ii number) (promises range) { stmt* }
               | while expr { } | if expr { } else { }
               | let name: dtype = expr | let name: dtype in range = expr
               | alloc buffer | buffer[index, count=expr] = expr | barrier scope | do @call
    range     := any | >= integer | < expr
    kind      := for (serial) | parallel | vector | unroll | pipeline | grid.x | ... | block.z

Expressions are those of `ir.text`. `#` starts a comment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import dtype as dt
from ..expr import Expr, Var, simplify_dim, var, wrap
from ..text import Reader, print_expr, print_name
from . import arithmetic, intrinsics
from .intrinsics import Intrinsic
from .nodes import (
    LOOP_KINDS,
    SPACES,
    Alloc,
    Barrier,
    Block,
    Buffer,
    Call,
    Do,
    For,
    If,
    Kernel,
    Let,
    Prefetch,
    Stmt,
    Store,
    While,
    call,
    load,
)

# Printing ---------------------------------------------------------------------------------------


def print_kernel(kernel: Kernel) -> str:
    """The text of a kernel; `parse_kernel` reads it back."""
    sizes = ", ".join(_size(v) for v in kernel.sizes)
    params = ", ".join(map(print_buffer, kernel.params))
    lines = [f"kernel {print_name(kernel.name)}({sizes}; {params}) outputs {kernel.outputs} {{"]
    for name, value in (("flops", kernel.flops), ("bytes", kernel.bytes)):
        if simplify_dim(value) != 0:
            lines.append(f"  {name} = {print_expr(value)}")
    if kernel.origin:
        lines.append(f"  origin = {json.dumps(kernel.origin)}")
    _print_block(kernel.body, 1, lines)
    return "\n".join([*lines, "}", ""])


def print_buffer(buffer: Buffer) -> str:
    """The declaration of a buffer."""
    lanes = f"<{buffer.lanes}>" if buffer.lanes > 1 else ""
    text = f"{buffer.name}: {buffer.dtype}{lanes}[{', '.join(map(print_expr, buffer.shape))}]"
    if buffer.space != "global":
        text += f" {buffer.space}"
    if buffer.strides is not None:
        text += f" strides({', '.join(map(print_expr, buffer.strides))})"
    if buffer.bits:
        text += f" bits {buffer.bits}"
    if buffer.banks:
        text += f" banks({', '.join(map(str, buffer.banks))})"
    return text


def _size(v: Var) -> str:
    if v.extent is not None:
        return f"{print_name(v.name)} < {print_expr(v.extent)}"
    if v.low is None:
        return f"any {print_name(v.name)}"
    return print_name(v.name) if v.low == 0 else f"{print_name(v.name)} >= {v.low}"


def _range(v: Var) -> str:
    if v.extent is not None:
        return f"< {print_expr(v.extent)}"
    return "any" if v.low is None else f">= {v.low}"


def _print_block(block: Block, depth: int, lines: list[str]) -> None:
    pad = "  " * depth
    for s in block.body:
        if isinstance(s, For):
            kind = "for" if s.kind == "serial" else s.kind
            head = f"{kind} {print_name(s.var.name)} < {print_expr(s.extent)}"
            if s.grain != 1:
                head += f" grain {s.grain}"
            if s.ii != 1:
                head += f" ii {s.ii}"
            if s.var.extent is not s.extent and s.var.extent != s.extent:
                head += f" promises {_range(s.var)}"
            _print_braces(head, s.body, depth, lines)
        elif isinstance(s, While):
            _print_braces(f"while {print_expr(s.condition)}", s.body, depth, lines)
        elif isinstance(s, If):
            _print_braces(f"if {print_expr(s.condition)}", s.then, depth, lines)
            if s.orelse.body:
                lines[-1] += " else {"
                _print_block(s.orelse, depth + 1, lines)
                lines.append(f"{pad}}}")
        elif isinstance(s, Let):
            known = "" if s.var.extent is None and s.var.low is None else f" in {_range(s.var)}"
            lines.append(f"{pad}let {print_name(s.var.name)}: {s.var.dtype}{known} = "
                         f"{print_expr(s.value)}")
        elif isinstance(s, Alloc):
            lines.append(f"{pad}alloc {print_buffer(s.buffer)}")
        elif isinstance(s, Store):
            index = ", ".join(map(print_expr, s.index))
            if s.count is not None:
                index += f", count={print_expr(s.count)}"
            lines.append(f"{pad}{s.buffer.name}[{index}] = {print_expr(s.value)}")
        elif isinstance(s, Prefetch):
            lines.append(f"{pad}prefetch {s.buffer.name}[{', '.join(map(print_expr, s.index))}]")
        elif isinstance(s, Barrier):
            lines.append(f"{pad}barrier {s.scope}")
        elif isinstance(s, Do):
            lines.append(f"{pad}do {print_expr(s.call)}")
        else:
            raise TypeError(f"no text for {type(s).__name__}")


def _print_braces(head: str, body: Block, depth: int, lines: list[str]) -> None:
    pad = "  " * depth
    lines.append(f"{pad}{head} {{")
    _print_block(body, depth + 1, lines)
    lines.append(f"{pad}}}")


# Reading ----------------------------------------------------------------------------------------


def known_intrinsics() -> dict[str, Intrinsic]:
    """The intrinsics of `ir.kernel.intrinsics` by name."""
    found: dict[str, Intrinsic] = {}
    for value in vars(intrinsics).values():
        for one in value.values() if isinstance(value, dict) else (value,):
            if isinstance(one, Intrinsic):
                found[one.name] = one
    return found


def parse_kernel(text: str, intrinsics: Mapping[str, Intrinsic] | None = None) -> Kernel:
    """Reads a kernel; `intrinsics` (by name) adds to those of `ir.kernel.intrinsics`.

    Raises ModelError with line and column.
    """
    parser = _Parser(text, {**known_intrinsics(), **(intrinsics or {})})
    kernel = parser.kernel()
    if parser.reader.peek.kind != "end":
        raise parser.reader.error("expected the end")
    return kernel


class _Parser:
    def __init__(self, text: str, known: Mapping[str, Intrinsic]):
        self.intrinsics = known
        self.variables: dict[str, Var] = {}
        self.buffers: dict[str, Buffer] = {}
        self.reader = Reader(text, self.variables.__getitem__, self.load, self.call)

    # Hooks of the expression reader.

    def load(self, buffer: str, lanes: int, index: list[Expr], count: Expr | None) -> Expr:
        return load(self.buffer(buffer), index, lanes, count)

    def buffer(self, name: str) -> Buffer:
        if name not in self.buffers:
            raise self.reader.error(f"unknown buffer {name!r}")
        return self.buffers[name]

    def call(self, name: str, args: list[Expr]) -> Call:
        intrinsic = self.intrinsics.get(name)
        kind, *picks = name.split("_")
        if intrinsic is None and picks and all(p.isdigit() for p in picks):
            if kind == intrinsics.SHUFFLE:
                intrinsic = intrinsics.shuffling(*map(int, picks))
            elif kind == intrinsics.REPEAT and len(picks) == 1:
                intrinsic = intrinsics.repeating(int(picks[0]))
        if intrinsic is None:
            raise self.reader.error(f"unknown intrinsic {name!r}")
        operands = [np.ones(a.lanes, arithmetic.computing(a.dtype)) for a in args]
        with np.errstate(all="ignore"):
            result = np.asarray(intrinsic.semantics(*operands))
        return call(intrinsic, args, dt.from_numpy(result), result.shape[-1] if result.ndim else 1)

    # Declarations.

    def kernel(self) -> Kernel:
        r = self.reader
        r.expect("kernel")
        name = r.name()
        r.expect("(")
        sizes: list[Var] = []
        while not r.accept(";"):
            sizes.append(self.size())
            if not r.accept(","):
                r.expect(";")
                break
        params: list[Buffer] = []
        while not r.accept(")"):
            params.append(self.declare())
            if not r.accept(","):
                r.expect(")")
                break
        r.expect("outputs")
        outputs = r.integer()
        r.expect("{")
        properties: dict[str, Any] = {}
        while r.peek.text in ("flops", "bytes", "origin") and r.ahead() == "=":
            key = r.name()
            r.expect("=")
            properties[key] = r.string() if key == "origin" else simplify_dim(r.expr())
        body = self.block()
        return Kernel(name, tuple(params), tuple(sizes), body, outputs, **properties)

    def size(self) -> Var:
        r = self.reader
        if r.accept("any"):
            return self.define(var(r.name()))
        name = r.name()
        if r.accept("<"):
            return self.define(var(name, extent=r.expr()))
        low = 0
        if r.accept(">"):
            r.expect("=")
            low = r.integer()
        return self.define(var(name, low=low))

    def define(self, v: Var) -> Var:
        self.variables[v.name] = v
        return v

    def declare(self) -> Buffer:
        r = self.reader
        name = r.name()
        r.expect(":")
        dtype, lanes = self.dtype(), 1
        if r.accept("<"):
            lanes = r.integer()
            r.expect(">")
        shape = self.dims("[", "]")
        space = r.name() if r.peek.text in SPACES else "global"
        strides = self.dims("(", ")") if r.accept("strides") else None
        bits = r.integer() if r.accept("bits") else 0
        banks = tuple(int(n) for n in self.dims("(", ")")) if r.accept("banks") else ()
        buffer = Buffer(name, dtype, shape, space, lanes, strides, bits, banks)
        self.buffers[name] = buffer
        return buffer

    def dtype(self) -> dt.DType:
        if self.reader.peek.text not in dt.ALL:
            raise self.reader.error("expected a dtype")
        return dt.dtype(self.reader.next().text)

    def dims(self, start: str, end: str) -> tuple[Any, ...]:
        r = self.reader
        r.expect(start)
        found: list[Any] = []
        while not r.accept(end):
            found.append(simplify_dim(r.expr()))
            if not r.accept(","):
                r.expect(end)
                break
        return tuple(found)

    # Statements.

    @contextmanager
    def scope(self):
        """Names defined inside are forgotten afterwards."""
        variables, buffers = dict(self.variables), dict(self.buffers)
        yield
        for table, before in ((self.variables, variables), (self.buffers, buffers)):
            table.clear()
            table.update(before)  # type: ignore[arg-type]

    def block(self) -> Block:
        """Statements up to the closing brace, which is read."""
        body: list[Stmt] = []
        with self.scope():
            while not self.reader.accept("}"):
                body.append(self.statement())
        return Block(*body)

    def braces(self) -> Block:
        self.reader.expect("{")
        return self.block()

    def statement(self) -> Stmt:
        r = self.reader
        word, after = r.peek.text, r.ahead()
        if after in ("[", "<") and word in self.buffers:
            return self.store()
        if r.accept("let"):
            return self.let()
        if r.accept("alloc"):
            return Alloc(self.declare())
        if r.accept("while"):
            return While(r.expr(), self.braces())
        if r.accept("if"):
            condition, then = r.expr(), self.braces()
            return If(condition, then, self.braces() if r.accept("else") else Block())
        if r.accept("barrier"):
            return Barrier(r.name())
        if r.accept("prefetch"):
            buffer = self.buffer(r.name())
            r.expect("[")
            index = [r.expr()]
            while r.accept(","):
                index.append(r.expr())
            r.expect("]")
            return Prefetch(buffer, tuple(index))
        if r.accept("do"):
            effect = r.expr()
            if not isinstance(effect, Call):
                raise r.error("expected a call")
            return Do(effect)
        return self.loop()

    def store(self) -> Store:
        r = self.reader
        buffer = self.buffer(r.name())
        r.expect("[")
        index: list[Expr] = []
        count = None
        while not r.accept("]"):
            if r.peek.text == "count" and r.ahead() == "=":
                r.next()
                r.next()
                count = r.expr()
            else:
                index.append(r.expr())
            if not r.accept(","):
                r.expect("]")
                break
        if len(index) != buffer.rank:
            raise r.error(f"{buffer.name} has rank {buffer.rank}, indexed by {len(index)}")
        r.expect("=")
        return Store(buffer, tuple(index), r.expr(), count)

    def let(self) -> Let:
        r = self.reader
        name = r.name()
        r.expect(":")
        dtype = self.dtype()
        variable = self.ranged(name, dtype) if r.accept("in") else var(name, dtype)
        r.expect("=")
        value = r.expr()
        return Let(self.define(variable), value)

    def ranged(self, name: str, dtype: dt.DType = dt.i64) -> Var:
        r = self.reader
        if r.accept("any"):
            return var(name, dtype)
        if r.accept(">"):
            r.expect("=")
            return var(name, dtype, low=r.integer())
        r.expect("<")
        return var(name, dtype, extent=r.expr())

    def loop(self) -> For:
        r = self.reader
        kind = r.name()
        if r.accept("."):
            kind = f"{kind}.{r.name()}"
        kind = "serial" if kind == "for" else kind
        if kind not in LOOP_KINDS:
            raise r.error(f"{kind!r} starts no statement")
        name = r.name()
        r.expect("<")
        extent = simplify_dim(r.expr())
        grain = r.integer() if r.accept("grain") else 1
        ii = r.integer() if r.accept("ii") else 1
        variable = self.ranged(name) if r.accept("promises") else var(name, extent=wrap(extent))
        with self.scope():
            self.define(variable)
            body = self.braces()
        return For(variable, extent, body, kind, grain, ii)
