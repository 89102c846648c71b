"""Prints kernels as C. Legalisation has run; this file chooses spelling only.

Expressions used more than once become `const` temporaries. A scalar select whose arms read
memory prints as if/else, because the arm not taken may be out of bounds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from ..ir.expr import Expr, Var, walk, wrap
from ..ir.kernel.aliasing import reusable
from ..ir.kernel.nodes import (
    Alloc,
    Block,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    While,
    expressions,
    statements,
)
from . import c_prelude, c_tiles
from .c_expr import ExpressionPrinter
from .c_types import c_type, storage_type
from .c_vector import VectorIsa, helper, typedef

RESERVED = frozenset([
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else",
    "enum", "extern", "float", "for", "goto", "if", "inline", "int", "long", "register",
    "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch", "typedef",
    "union", "unsigned", "void", "volatile", "while", "pool", "begin", "end", "c", "p", "frame",
    "asm", "main", "log", "exp", "sin", "cos", "tan", "pow", "erf", "y0", "y1", "yn", "j0", "j1",
    "jn", "div", "abs", "ceil", "floor", "round", "trunc", "fma", "dims", "index", "args",
    "scratch", "worker",
])


STACK_BYTES = 32 * 1024
"""Bytes up to which a local buffer is an automatic array; larger ones lie in the thread's scratch
memory, because stacks may be small."""

SCRATCH_STRIDE = "SMELT_SCRATCH_BYTES"
"""The macro for the scratch memory of one thread, defined in front of the kernels."""


@dataclass
class Needs:
    """What the printed kernels rely on, gathered while printing."""

    helpers: set[str] = field(default_factory=set)
    vector_helpers: set[str] = field(default_factory=set)
    vector_types: set[str] = field(default_factory=set)
    isa_header: bool = False
    tiles: bool = False

    def prelude(self, isa: VectorIsa) -> str:
        """Includes, types and helper functions for everything needed."""
        bodies: list[str] = []
        types = set(self.vector_types)
        header = self.isa_header or self.tiles
        for name in sorted(self.vector_helpers):
            text, more, special = helper(name, isa)
            types |= more
            header |= special
            bodies.append(text)
        lines = ["#include <math.h>", "#include <stdint.h>", "#include <string.h>"]
        if header and isa.header:
            lines.append(f"#include <{isa.header}>")
        lines += [typedef(t) for t in sorted(types)]
        lines += [c_prelude.HELPERS[name] for name in c_prelude.closure(self.helpers)]
        if self.tiles:
            lines.append(c_tiles.PRELUDE)
        return "\n".join(lines + bodies) + "\n"


class Names:
    """C identifiers for compiler-made names, unique within a function and none of `reserved`."""

    def __init__(self, reserved: frozenset[str] = RESERVED) -> None:
        self._reserved = reserved
        self._of: dict[object, str] = {}
        self._used: set[str] = set()
        self._next: dict[str, int] = {}

    def get(self, item: object, name: str) -> str:
        if item not in self._of:
            # Numbers are given in the order of use, so that equal kernels print equally.
            base = re.sub(r"[^a-zA-Z0-9_]", "", name)[:24].rstrip("0123456789_")
            if not base or base[0].isdigit() or base[0] == "_":
                base = f"v{base}"
            n = self._next.get(base, 0)
            candidate = base
            while candidate in self._used or candidate in self._reserved:
                n += 1
                candidate = f"{base}{n}"
            self._next[base] = n
            self._used.add(candidate)
            self._of[item] = candidate
        return self._of[item]


class KernelPrinter:
    """Prints one legalised kernel as a C function (and its parallel tasks)."""

    stack_bytes: float = STACK_BYTES
    reserved = RESERVED

    def __init__(self, kernel: Kernel, isa: VectorIsa, needs: Needs, *, threads: bool = True,
                 symbol: str | None = None, aliased: Collection[Buffer] = ()):
        self.kernel = kernel
        self.isa = isa
        self.needs = needs
        self.threads = threads
        self.symbol = symbol or kernel.name
        self.names = Names(self.reserved)
        self.lines: list[str] = []
        self.depth = 1
        self.tasks: list[str] = []
        self.expr = ExpressionPrinter(self)
        self.tiles = c_tiles.TilePrinter(self)
        # Parameters that may be the same memory: an output over a dead input, and `aliased` ones.
        reused = reusable(kernel)
        self.shared = {kernel.params[k] for k in (*reused, -1)} if reused else set()
        self.shared.update(aliased)
        self.stored = {s.buffer for s in statements(kernel.body) if isinstance(s, Store)}
        self._temporaries = 0
        self.scratch: dict[Buffer, int] = {}
        self.scratch_bytes = 0
        for s in statements(kernel.body):
            if isinstance(s, Alloc) and s.buffer.space == "local" \
                    and _bytes(s.buffer) > self.stack_bytes:
                self.scratch[s.buffer] = self.scratch_bytes
                self.scratch_bytes += -(-_bytes(s.buffer) // 64) * 64

    # Text -------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def temporary(self) -> str:
        """A name that nothing else in the function has."""
        self._temporaries += 1
        return self.names.get(("temporary", self._temporaries), "e")

    def buffer_name(self, buffer: Buffer) -> str:
        return self.names.get(buffer, buffer.name)

    def var_name(self, v: Var) -> str:
        return self.names.get(v, v.name)

    def prototype(self) -> str:
        """The function's parameter list."""
        parts = ["smelt_pool *pool"] if self.threads else []
        if self.scratch:
            parts.append("unsigned char *scratch")
        for buffer in self.kernel.params:
            const = "" if buffer in self.stored else "const "
            restrict = "" if buffer in self.shared else "restrict "
            parts.append(f"{const}{storage_type(buffer.dtype)} *{restrict}"
                         f"{self.buffer_name(buffer)}")
        parts += [f"int64_t {self.var_name(v)}" for v in self.kernel.sizes]
        return ", ".join(parts) or "void"

    def text(self) -> str:
        """The complete C text of the kernel."""
        head = f"static void {self.symbol}({self.prototype()}) {{"
        if self.threads:
            self.line("(void)pool;")
        self._used_parameters()
        alone = any(c_tiles.uses_tiles(s) for s in self.kernel.body.body
                    if not self._is_shared(s))
        if alone:
            self.line(c_tiles.BEGIN)
        self._top(self.kernel.body)
        if alone:
            self.line(c_tiles.END)
        return "\n".join([*self.tasks, head, *self.lines, "}"]) + "\n"

    def _used_parameters(self) -> None:
        used = {x for s in statements(self.kernel.body) for e in expressions(s) for x in walk(e)}
        read = {x.buffer for x in used if isinstance(x, Load)} | self.stored
        for buffer in self.kernel.params:
            if buffer not in read:
                self.line(f"(void){self.buffer_name(buffer)};")
        for v in self.kernel.sizes:
            if v not in used:
                self.line(f"(void){self.var_name(v)};")

    # Statements -------------------------------------------------------------------------------

    def _is_shared(self, s: Stmt) -> bool:
        """Whether threads share a statement of the kernel's body."""
        return isinstance(s, For) and s.kind == "parallel" and self.threads

    def _top(self, block: Block) -> None:
        captured: list[tuple[str, str]] = []
        for s in block.body:
            if isinstance(s, For) and self._is_shared(s):
                self._parallel(s, captured)
                continue
            self.statement(s)
            if isinstance(s, Let):
                captured.append((self.expr.scalar_type(s.value), self.var_name(s.var)))
            elif isinstance(s, Alloc) and s.buffer.space != "register":
                captured.append((f"{storage_type(s.buffer.dtype)} *", self.buffer_name(s.buffer)))

    def _parallel(self, loop: For, captured: list[tuple[str, str]]) -> None:
        name = f"{self.symbol}_task{len(self.tasks)}"
        fields: list[tuple[str, str]] = []
        for buffer in self.kernel.params:
            const = "" if buffer in self.stored else "const "
            fields.append((f"{const}{storage_type(buffer.dtype)} *", self.buffer_name(buffer)))
        fields += [("int64_t ", self.var_name(v)) for v in self.kernel.sizes]
        fields += [(t if t.endswith("*") else f"{t} ", n) for t, n in captured]
        used = _names_used(loop, self)
        fields = [(t, n) for t, n in fields if n in used]
        shared = {self.buffer_name(x) for x in self.shared}
        private = any(isinstance(s, Alloc) and s.buffer in self.scratch for s in statements(loop))
        if private:
            fields.append(("unsigned char *", "scratch"))
        struct = f"struct {name}"
        members = " ".join(f"{t}{n};" for t, n in fields) or "int none;"
        outer, self.lines, depth, self.depth = self.lines, [], self.depth, 1
        self.line(f"const {struct} *c = args;")
        for t, n in fields:
            restrict = "restrict " if t.endswith("*") and n not in shared else ""
            offset = f" + worker * (int64_t){SCRATCH_STRIDE}" if n == "scratch" else ""
            self.line(f"{t}{restrict}{n} = c->{n}{offset};")
        self.line("(void)c, (void)worker;")
        i = self.var_name(loop.var)
        tiles = c_tiles.uses_tiles(loop)
        if tiles:
            self.line(c_tiles.BEGIN)
        self.line(f"for (int64_t {i} = begin; {i} < end; ++{i}) {{")
        self.block(loop.body)
        self.line("}")
        if tiles:
            self.line(c_tiles.END)
        body, self.lines, self.depth = self.lines, outer, depth
        self.tasks.append("\n".join([
            f"{struct} {{ {members} }};",
            f"static void {name}(void *args, int64_t begin, int64_t end, int32_t worker) {{",
            *body, "}"]))
        self.line("{")
        self.depth += 1
        count = self.expr.statement_value(wrap(loop.extent))
        values = ", ".join(n for _, n in fields) or "0"
        self.line(f"{struct} a = {{{values}}};")
        self.line(f"smelt_parallel(pool, {count}, {loop.grain}, {name}, &a);")
        self.depth -= 1
        self.line("}")

    def block(self, block: Block) -> None:
        self.depth += 1
        tiles = self.tiles.used
        for s in block.body:
            self.statement(s)
        self.tiles.used = tiles
        self.depth -= 1

    def statement(self, s: Stmt) -> None:
        if isinstance(s, Block):
            for inner in s.body:
                self.statement(inner)
        elif isinstance(s, For):
            self._for(s)
        elif isinstance(s, While):
            self.line("for (;;) {")
            self.depth += 1
            self.line(f"if (!({self.expr.statement_value(s.condition)})) break;")
            self.depth -= 1
            self.block(s.body)
            self.line("}")
        elif isinstance(s, If):
            self._if(s)
        elif isinstance(s, Let):
            value = self.expr.statement_value(s.value)
            self.line(f"const {self.expr.scalar_type(s.value)} {self.var_name(s.var)} = {value};")
        elif isinstance(s, Alloc):
            self._alloc(s.buffer)
        elif isinstance(s, Store):
            self._store(s)
        elif isinstance(s, Prefetch):
            if self.isa.lanes > 1:
                offset = self.expr.statement_value(s.buffer.offset(s.index))
                self.line(f"__builtin_prefetch({self.buffer_name(s.buffer)} + {offset}, 0, 2);")
        else:
            raise TypeError(f"C has no spelling for {type(s).__name__}")

    def _for(self, s: For) -> None:
        i = self.var_name(s.var)
        if s.extent == 1 and isinstance(s.extent, int):
            self.line("{")
            self.depth += 1
            self.line(f"const int64_t {i} = 0;")
            self.line(f"(void){i};")
            self.depth -= 1
            self.block(s.body)
            self.line("}")
            return
        count = self.expr.statement_value(wrap(s.extent))
        if s.kind == "unroll":
            self.line("_Pragma(\"GCC unroll 64\")")
        kind = self.expr.scalar_type(s.var)
        self.line(f"for ({kind} {i} = 0; {i} < {count}; ++{i}) {{")
        self.block(s.body)
        self.line("}")

    def _if(self, s: If) -> None:
        self.line(f"if ({self.expr.statement_value(s.condition)}) {{")
        self.block(s.then)
        if s.orelse.body:
            self.line("} else {")
            self.block(s.orelse)
        self.line("}")

    def _alloc(self, buffer: Buffer) -> None:
        if c_tiles.is_tile(buffer):
            self.tiles.alloc(buffer)
            return
        name = self.buffer_name(buffer)
        if buffer.lanes > 1:
            kind = self.expr.vector_type(buffer.dtype, buffer.lanes)
        elif buffer.space == "register" and not buffer.shape:
            kind = c_type(buffer.dtype)
        else:
            kind = storage_type(buffer.dtype)
        if buffer.shape and any(isinstance(d, Expr) for d in buffer.shape):
            raise ValueError(f"{buffer.name}: automatic storage needs a constant size")
        count = math.prod(int(d) for d in buffer.shape)
        if buffer in self.scratch:
            at = self.scratch[buffer]
            self.line(f"{kind} *const restrict {name} = ({kind} *)(scratch + {at});")
        elif not buffer.shape:
            self.line(f"{kind} {name};")
        elif buffer.space == "register":
            # One named local per element: arrays of vectors would live in memory.
            names = ", ".join(f"{name}_{i}" for i in range(count))
            self.line(f"{kind} {names};")
        else:
            # Vectors that lie across two lines of a cache take twice as long.
            aligned = "_Alignas(64) " if self.isa.lanes > 1 and _bytes(buffer) >= 64 else ""
            self.line(f"{aligned}{kind} {name}[{max(count, 1)}];")

    def _store(self, s: Store) -> None:
        buffer = s.buffer
        if c_tiles.is_tile(buffer):
            self.tiles.assign(s)
            return
        if self.tiles.spill(s):
            return
        if buffer.space == "register":
            value = self.expr.statement_value(s.value)
            self.line(f"{self.expr.register(buffer, s.index)} = {value};")
            return
        count = None if s.count is None else s.count
        if s.index and s.index[-1].lanes > 1:
            limit = () if count is None else (count,)
            self.expr.begin(s.value, *s.index[:-1], *s.index[-1].args, *limit)
            self.expr.scatter(s.value, buffer, s.index, self.expr.value(s.value), count)
            return
        self.expr.begin(*(x for x in (buffer.offset(s.index), s.value, count) if x is not None))
        value = self.expr.value(s.value)
        offset = self.expr.value(buffer.offset(s.index))
        where = f"{self.buffer_name(buffer)} + {offset}"
        if s.value.lanes == 1:
            stored = self.expr.to_storage(value, buffer.dtype)
            self.line(f"{self.buffer_name(buffer)}[{offset}] = {stored};")
            return
        self.expr.store_vector(s.value, buffer, where, value,
                               None if count is None else self.expr.value(count))


def _bytes(buffer: Buffer) -> int:
    sizes = [int(d) for d in buffer.shape if not isinstance(d, Expr)]
    return math.prod(sizes) * buffer.lanes * buffer.dtype.itemsize


def _names_used(loop: For, printer: KernelPrinter) -> set[str]:
    used: set[str] = set()
    buffers: set[Buffer] = set()
    for s in statements(loop):
        if isinstance(s, Store):
            used.add(printer.buffer_name(s.buffer))
        for e in expressions(s):
            if s is loop:
                continue
            for x in walk(e):
                if isinstance(x, Var):
                    used.add(printer.var_name(x))
                elif isinstance(x, Load):
                    used.add(printer.buffer_name(x.buffer))
                    buffers.add(x.buffer)
        if isinstance(s, (Store, Prefetch)):
            buffers.add(s.buffer)
            used.add(printer.buffer_name(s.buffer))
    for buffer in buffers:
        for x in walk(*(wrap(d) for d in buffer.element_strides())):
            if isinstance(x, Var):
                used.add(printer.var_name(x))
    return used
