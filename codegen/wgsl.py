"""Prints grid kernels as WGSL compute shaders. Legalisation has run; this file chooses spelling.

All memory of a model is a few buffers of 32-bit words that every shader sees under the same
bindings of group 0:

    0       uniform: where each parameter of the kernel begins, in words, and the kernel's sizes
    1       the arena: inputs, outputs and temporaries, written and read
    2, ...  the weights, in parts as large as a binding may be, only read

Elements of four bytes are words, those of i64 two words (the upper one extends the sign), smaller
ones share words as they do in a numpy array. A store of a smaller one is two atomic operations that
change its bits alone, so threads may write neighbours; a shader with such stores uses the arena
atomically throughout.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..ir import dtype as dt
from ..ir.dtype import DType
from ..ir.expr import Const, Expr, Var, free_vars, walk, wrap
from ..ir.kernel.nodes import (
    Alloc,
    Barrier,
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
    children,
    statements,
)
from .wgsl_expr import HALVES, WgslExpressions
from .wgsl_prelude import HELPERS, closure

ARENA = "arena"
AXES = {"grid.x": "group.x", "grid.y": "group.y", "grid.z": "group.z",
        "block.x": "thread.x", "block.y": "thread.y", "block.z": "thread.z"}


@dataclass(frozen=True)
class Shader:
    """A shader and how it is launched: `groups` are the workgroups along x, y and z, `rounds` the
    loop iterations of an invocation as far as they are known before the run, both expressions of
    the kernel's sizes. `key` is the same for equal texts."""

    text: str
    groups: tuple[Any, ...]
    rounds: Any = 0

    @property
    def key(self) -> str:
        return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()


def print_shader(kernel: Kernel, places: Sequence[str]) -> Shader:
    """The shader of a legalised kernel with grid and block loops; `places` names the buffer that
    each parameter lies in: "arena", or "w0", "w1", ... for weights. Raises ModelError for element
    types that WGSL lacks."""
    return ShaderPrinter(kernel, places).shader()


class ShaderPrinter:
    """Prints one kernel."""

    def __init__(self, kernel: Kernel, places: Sequence[str]):
        self.kernel = kernel
        self.places = dict(zip(kernel.params, places, strict=True))
        self.lines: list[str] = []
        self.shared: list[str] = []
        self.depth = 1
        self.helpers: set[str] = set()
        self.groups: list[Any] = [1, 1, 1]
        self.threads: list[int] = [1, 1, 1]
        self.atomic = any(isinstance(s, Store) and s.buffer in self.places
                          and s.buffer.dtype.itemsize < 4 for s in statements(kernel.body))
        self.expr = WgslExpressions(self)
        self._names: dict[object, str] = {}
        self._numbers: dict[str, int] = {}
        self._temporaries = 0

    # Text ---------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def name(self, item: object, stem: str) -> str:
        """An identifier of its own for an item. A number after _ keeps it clear of keywords."""
        if item not in self._names:
            stem = re.sub(r"[^a-z]", "", stem.lower())[:16] or "v"
            self._numbers[stem] = number = self._numbers.get(stem, 0) + 1
            self._names[item] = f"{stem}_{number}"
        return self._names[item]

    def temporary(self) -> str:
        self._temporaries += 1
        return self.name(("temporary", self._temporaries), "e")

    def var_name(self, v: Var) -> str:
        return self.name(v, v.name)

    def shader(self) -> Shader:
        """The complete text."""
        kernel = self.kernel
        fields = [(self.name(b, "at"), "i32") for b in kernel.params]
        fields += [(self.var_name(v), "i32") for v in kernel.sizes]
        self.block(kernel.body)
        word = "atomic<u32>" if self.atomic else "u32"
        members = ", ".join(f"{n}: {t}" for n, t in fields) or "unused: u32"
        text = [f"struct Launch {{ {members} }}",
                "@group(0) @binding(0) var<uniform> launch: Launch;",
                f"@group(0) @binding(1) var<storage, read_write> {ARENA}: array<{word}>;"]
        weights = sorted({p for p in self.places.values() if p != ARENA})
        text += [f"@group(0) @binding({2 + int(w[1:])}) var<storage, read> {w}: array<u32>;"
                 for w in weights]
        text += self.shared
        text += [HELPERS[h] for h in closure(self.helpers)]
        size = ", ".join(map(str, self.threads))
        text += [f"@compute @workgroup_size({size})",
                 "fn main(@builtin(workgroup_id) group: vec3<u32>,",
                 "        @builtin(local_invocation_id) thread: vec3<u32>) {",
                 *(f"    let {n} = launch.{n};" for n, _ in fields), *self.lines, "}", ""]
        return Shader("\n".join(text), tuple(self.groups), _rounds(kernel, kernel.body))

    # Statements ---------------------------------------------------------------------------------

    def block(self, block: Block) -> None:
        for s in block.body:
            self.statement(s)

    def nested(self, block: Block) -> None:
        self.depth += 1
        self.block(block)
        self.depth -= 1

    def statement(self, s: Stmt) -> None:
        if isinstance(s, Block):
            self.block(s)
        elif isinstance(s, For):
            self._for(s)
        elif isinstance(s, While):
            self.line("loop {")
            self.depth += 1
            self.line(f"if (!{self.expr.statement_value(s.condition)}) {{ break; }}")
            self.depth -= 1
            self.nested(s.body)
            self.line("}")
        elif isinstance(s, If):
            self.line(f"if ({self.expr.statement_value(s.condition)}) {{")
            self.nested(s.then)
            if s.orelse.body:
                self.line("} else {")
                self.nested(s.orelse)
            self.line("}")
        elif isinstance(s, Let):
            value = self.expr.statement_value(s.value)
            self.expr.define(s.var, s.value)
            self.line(self.expr.declaration(s.var, self.var_name(s.var), value))
        elif isinstance(s, Alloc):
            self._alloc(s.buffer)
        elif isinstance(s, Store):
            self._store(s)
        elif isinstance(s, Barrier):
            self.line("workgroupBarrier();" if s.scope == "shared" else "storageBarrier();")
        elif not isinstance(s, Prefetch):
            raise TypeError(f"WGSL has no spelling for {type(s).__name__}")

    def _for(self, s: For) -> None:
        if s.kind in AXES:
            self._axis(s)
            return
        count = self.expr.statement_value(wrap(s.extent))
        i = self.var_name(s.var)
        self.line(f"for (var {i} = 0i; {i} < {count}; {i}++) {{")
        self.nested(s.body)
        self.line("}")

    def _axis(self, s: For) -> None:
        """A loop whose iterations are workgroups or invocations: its body is what each does."""
        axis = "xyz".index(s.kind[-1])
        if s.kind.startswith("grid"):
            self.groups[axis] = s.extent
        elif isinstance(s.extent, int):
            if self.threads[axis] not in (1, s.extent):
                raise ValueError(f"{self.kernel.name}: blocks of two sizes along {s.kind}")
            self.threads[axis] = s.extent
        else:
            raise ValueError(f"{self.kernel.name}: a block needs a constant size")
        self.line(f"let {self.var_name(s.var)}: i32 = i32({AXES[s.kind]});")
        self.block(s.body)

    def _alloc(self, buffer: Buffer) -> None:
        kind, name = self.expr.type_of(buffer.dtype), self.name(buffer, buffer.name)
        if any(isinstance(d, Expr) for d in buffer.shape):
            raise self.expr.refusal("a kernel needs memory of a size that is not constant")
        count = math.prod(int(d) for d in buffer.shape)
        if buffer.space == "shared":
            self.shared.append(f"var<workgroup> {name}: array<{kind}, {max(count, 1)}>;")
        elif buffer.space == "register":
            for i in range(count):
                self.line(f"var {self.register(buffer, i)}: {kind};")
        else:
            self.line(f"var {name}: array<{kind}, {max(count, 1)}>;")

    def register(self, buffer: Buffer, offset: int) -> str:
        """The local that holds an element of a register buffer."""
        name = self.name(buffer, buffer.name)
        return f"{name}_{offset}" if buffer.shape else name

    def _element(self, buffer: Buffer, index: Sequence[Expr]) -> str:
        """The variable of an element that is no part of a parameter."""
        offset = buffer.offset(index)
        if buffer.space == "register":
            if not isinstance(offset, Const):
                raise ValueError(f"{buffer.name}: register index {offset} is not constant")
            return self.register(buffer, offset.value)
        return f"{self.name(buffer, buffer.name)}[{self.expr.value(offset)}]"

    # Memory -------------------------------------------------------------------------------------

    def load(self, e: Load) -> str:
        """The value of an element."""
        if e.buffer not in self.places:
            return self._element(e.buffer, e.index)
        d = e.dtype
        place, offset = self.places[e.buffer], self.expr.value(e.buffer.offset(e.index))
        start = self.name(e.buffer, "at")
        if d.itemsize == 4:
            return _as_type(self._read(place, f"{start} + {offset}"), self.expr.type_of(d))
        if d is dt.i64:
            return _as_type(self._read(place, f"{start} + ({offset} << 1u)"), "i32")
        word, shift = self._part(e.buffer, e.index, offset)
        kind, bits = self.expr.type_of(d), min(d.bits, d.itemsize * 8)
        text = _as_type(self._read(place, word), "i32" if kind == "i32" else "u32")
        text = f"extractBits({text}, {shift}, {bits}u)"
        return f"({text} != 0u)" if d.is_bool else text

    def _part(self, buffer: Buffer, index: Sequence[Expr], offset: str) -> tuple[str, str]:
        """The word that holds an element smaller than a word, and its lowest bit there."""
        offset = self.expr.text_named(buffer.offset(index), offset)
        by = 2 if buffer.dtype.itemsize == 1 else 1
        start = self.name(buffer, "at")
        return (f"{start} + ({offset} >> {by}u)",
                f"(u32({offset}) & {(1 << by) - 1}u) << {5 - by}u")

    def _read(self, place: str, at: str) -> str:
        if place == ARENA and self.atomic:
            return f"atomicLoad(&{place}[{at}])"
        return f"{place}[{at}]"

    def _write(self, at: str, value: str) -> None:
        if self.atomic:
            self.line(f"atomicStore(&{ARENA}[{at}], {value});")
        else:
            self.line(f"{ARENA}[{at}] = {value};")

    def _store(self, s: Store) -> None:
        buffer, d = s.buffer, s.buffer.dtype
        offset = buffer.offset(s.index)
        self.expr.begin(offset, s.value)
        value = self.expr.value(s.value)
        if buffer not in self.places:
            self.line(f"{self._element(buffer, s.index)} = {value};")
            return
        self.expr.type_of(d)
        start, at = self.name(buffer, "at"), self.expr.value(offset)
        if d.itemsize == 4:
            self._write(f"{start} + {at}", _as_type(value, "u32", self.expr.type_of(d)))
        elif d is dt.i64:
            value = self.expr.text_named(s.value, value)
            at = self.expr.text_named(offset, at)
            self._write(f"{start} + ({at} << 1u)", _as_type(value, "u32", "i32"))
            self._write(f"{start} + ({at} << 1u) + 1i", _as_type(f"({value} >> 31u)", "u32", "i32"))
        else:
            self._store_part(s, at, value)

    def _store_part(self, s: Store, at: str, value: str) -> None:
        """An element smaller than a word: its bits are cleared, then set."""
        d = s.buffer.dtype
        word, shift = self._part(s.buffer, s.index, at)
        mask = f"{(1 << 8 * d.itemsize) - 1:#x}u"
        value = f"(u32({value}) & {mask})"
        place, low, bits = self.temporary(), self.temporary(), self.temporary()
        self.line(f"let {place} = {word};")
        self.line(f"let {low} = {shift};")
        self.line(f"let {bits} = {value};")
        self.line(f"atomicAnd(&{ARENA}[{place}], ~({mask} << {low}));")
        self.line(f"atomicOr(&{ARENA}[{place}], {bits} << {low});")


def _rounds(kernel: Kernel, block: Block) -> Expr:
    """Loop iterations of one invocation; loops whose number of iterations data or an outer loop
    decides count as one."""
    total: Expr = wrap(0)
    for s in block.body:
        inside = [_rounds(kernel, b) for b in children(s) if isinstance(b, Block)]
        if isinstance(s, For) and s.kind not in AXES:
            extent = wrap(s.extent)
            known = all(v in kernel.sizes for v in free_vars(extent)) and not any(
                isinstance(x, Load) for x in walk(extent))
            total = total + (extent if known else 1) * (inside[0] + 1)
        else:
            for rounds in inside:
                total = total + rounds
    return total


def _as_type(text: str, kind: str, source: str = "u32") -> str:
    """The bits of a value as another 32-bit type."""
    return text if kind == source else f"bitcast<{kind}>({text})"


def storable(dtype: DType) -> bool:
    """Whether tensors of this type can be kept in words."""
    return dtype is dt.i64 or dtype in HALVES or dtype is dt.f32 or dtype.is_bool or (
        dtype.is_integer and dtype.bits <= 32)
