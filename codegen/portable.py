"""Prints a program as one portable C11 file and its header: no heap, no threads, no system.

Sizes are constants, working memory is static arrays with the types of their contents, and weights
are typed constant arrays, so that any C11 compiler for any byte order builds it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from ..errors import TargetError
from ..ir.dtype import DType
from ..ir.expr import Expr, Var, text, wrap
from ..ir.kernel.nodes import Kernel
from ..ir.program import (
    Assign,
    Bind,
    Branch,
    Copy,
    Launch,
    Program,
    Repeat,
    Require,
    Step,
    Storage,
    aliased,
)
from . import c_prelude
from .c import Needs
from .c_types import MATH, literal, storage_type
from .host import used_storages
from .portable_kernel import COLUMNS, PortableExpressions, PortableKernelPrinter, wrapped

_ANONYMOUS = "kernel_symbol"
_FUNCTIONS = frozenset({"memcpy", "copysign", "copysignf", *MATH.values(),
                        *(f"{name}f" for name in MATH.values())})

Place = tuple[DType, int]
"""An arena, named by the type of its elements, and a byte offset in it."""


@dataclass(frozen=True)
class Arenas:
    """Working memory: bytes of each arena, and where each temporary lies."""

    sizes: dict[DType, int]
    places: dict[Storage, Place]


@dataclass(frozen=True)
class Blob:
    """Weights that the caller provides in one block: byte offsets, and the size."""

    offsets: dict[Storage, int]
    size: int


def identifier(name: str) -> str:
    """A C identifier for a model: lower case letters, digits and underscores."""
    clean = re.sub(r"[^a-z0-9_]", "_", name.lower())[:40].strip("_")
    return clean if clean and not clean[0].isdigit() else f"model_{clean}".rstrip("_")


def comment_text(name: str) -> str:
    """A name from a model as it may stand inside a comment: nothing in it ends the comment, starts
    another, or continues a line."""
    return re.sub(r"[^A-Za-z0-9_.:/ -]", "_", name)[:80]


class PortablePrinter:
    """Prints `<name>.c` and `<name>.h`. With `blob` the weights come from memory that the caller
    names instead of being printed. Raises TargetError for sizes that are not constant."""

    def __init__(self, program: Program, name: str, arenas: Arenas, blob: Blob | None = None,
                 states: tuple[tuple[str, str], ...] = ()):
        self.program = program
        self.name = identifier(name)
        self.arenas = arenas
        self.blob = blob
        self.states = states
        self.needs = Needs()
        self.lines: list[str] = []
        self.depth = 1
        self._count = 0
        self._function: dict[Kernel, str] = {}
        self._texts: dict[str, str] = {}
        self._sizes = {v: f"size{k}" for k, v in enumerate(bound_sizes(program))}
        self._weights = _distinct_weights(program)
        self._aliased = aliased(program)
        self._expressions = PortableExpressions(self)  # type: ignore[arg-type]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that the program reads, equal ones counted once."""
        return sum(a.nbytes for s, (_, a) in self._weights.items() if self._is_printed(s))

    # The header -------------------------------------------------------------------------------

    def header(self) -> str:
        """The interface: what goes in and out, and one function."""
        upper = self.name.upper()
        arena = sum(self.arenas.sizes.values())
        lines = [*self._introduction(), f"#ifndef {upper}_H", f"#define {upper}_H", "",
                 "#include <stdint.h>", "", "#ifdef __cplusplus", 'extern "C" {', "#endif", ""]
        for kind, items in (("in", self.program.inputs), ("out", self.program.outputs)):
            for k, s in enumerate(items):
                lines += [f"/* {kind}{k}: {self._describe(kind, s)} */",
                          f"#define {upper}_{kind.upper()}{k}_COUNT {self._elements(s)}"]
        lines += ["", f"/* Bytes of working memory, static in {self.name}.c. */",
                  f"#define {upper}_ARENA_BYTES {arena}", ""]
        if self.blob is not None:
            lines += ["/* Names the weights, the contents of weights.bin (little-endian), before "
                      "the first run.", " * They must be aligned to 8 bytes and stay where they "
                      "are. */", f"#define {upper}_WEIGHT_BYTES {self.blob.size}",
                      f"void {self.name}_weights(const void *weights);", ""]
        failure = ", or 1 when the data asks for the impossible" if self._sizes else ""
        lines += [f"/* Runs the model once. Returns 0{failure}. */", self._prototype() + ";", "",
                  "#ifdef __cplusplus", "}", "#endif", "", "#endif", ""]
        return "\n".join(lines)

    def _introduction(self) -> list[str]:
        arrays = [f"static {storage_type(s.type.dtype)} {kind}{k}"
                  f"[{self.name.upper()}_{kind.upper()}{k}_COUNT];"
                  for kind, items in (("in", self.program.inputs), ("out", self.program.outputs))
                  for k, s in enumerate(items)]
        names = [f"in{k}" for k in range(len(self.program.inputs))]
        names += [f"out{k}" for k in range(len(self.program.outputs))]
        return ["/* A neural network compiled by smelt to portable C11.", " *",
                *(f" *     {line}" for line in arrays),
                f" *     {self.name}_run({', '.join(names)});", " *",
                " * Tensors are dense, the last axis contiguous. Those of one call must not "
                "overlap. Working",
                " * memory is shared by all calls, so only one may run at a time. */"]

    def _describe(self, kind: str, s: Storage) -> str:
        shape = ", ".join(text(d) for d in s.type.shape)
        words = f'"{comment_text(s.name)}", {s.type.dtype}[{shape}]'
        for out, into in self.states:
            if kind == "in" and s.name == into:
                words += f'; give it what "{comment_text(out)}" held after the last run'
        return words

    def _elements(self, s: Storage) -> int:
        """How many; the target refuses models with symbolic sizes before anything is printed."""
        count = s.type.numel
        assert isinstance(count, int), s
        return count

    def _prototype(self) -> str:
        parts = [f"const {storage_type(s.type.dtype)} *in{k}"
                 for k, s in enumerate(self.program.inputs)]
        parts += [f"{storage_type(s.type.dtype)} *out{k}"
                  for k, s in enumerate(self.program.outputs)]
        head = f"int {self.name}_run("
        return wrapped(head, parts or ["void"], ")", " " * len(head))

    # The source -------------------------------------------------------------------------------

    def source(self) -> str:
        """The whole model."""
        kernels = [t for k in self.program.kernels() if (t := self._kernel(k))]
        self.lines, self.depth = [], 1
        for d in self._used_arenas():
            self.line(f"{storage_type(d)} *const {_arena(d)} = place_{d.name};")
        for name in self._sizes.values():
            self.line(f"int64_t {name} = 0;")
        unused = [s for s in self.program.inputs if s not in used_storages(self.program)]
        for s in unused:
            self.line(f"(void)in{s.index};")
        for step in self.program.steps:
            self._step(step)
        body = [self._prototype() + " {", *self.lines, "    return 0;", "}"]
        helpers = [c_prelude.HELPERS[name] for name in c_prelude.closure(self.needs.helpers)]
        code = "\n\n".join([*helpers, *(k.rstrip("\n") for k in kernels), "\n".join(body)])
        declared, defined = self._weight_arrays()
        parts = [f'#include "{self.name}.h"', *_library(code, defined), "\n".join(declared),
                 "\n".join(self._arena_arrays()), code, *defined]
        return "\n\n".join(p for p in parts if p) + "\n"

    def _kernel(self, kernel: Kernel) -> str:
        """The kernel's text; nothing when an equal one is there already, which then serves both."""
        # Compilers warn of one address behind two restricted pointers, also where a kernel reads
        # other elements of it than it writes.
        anonymous = PortableKernelPrinter(kernel, self.needs, _ANONYMOUS,
                                          self._aliased.get(kernel, ())).text()
        name = self._texts.setdefault(anonymous, kernel.name)
        self._function[kernel] = name
        return anonymous.replace(_ANONYMOUS, name) if name == kernel.name else ""

    def _weight_arrays(self) -> tuple[list[str], list[str]]:
        """Declarations, which come before the code, and definitions, which come after it."""
        if self.blob is not None:
            head = f"void {self.name}_weights(const void *weights) {{"
            return (["static const unsigned char *blob;"],
                    [f"{head}\n    blob = (const unsigned char *)weights;\n}}"])
        declared, defined = [], []
        for s, (name, array) in self._weights.items():
            if self._is_printed(s):
                head = f"static const {storage_type(s.type.dtype)} {name}[{max(1, array.size)}]"
                declared.append(f"{head};")
                defined.append(f"{head} = {{\n{array_text(array, s.type.dtype)}\n}};")
        return declared, defined

    def _is_printed(self, s: Storage) -> bool:
        """Whether a constant has an array of its own rather than that of an equal one."""
        return self._weights[s][0] == f"weights_{s.index}"

    def _arena_arrays(self) -> list[str]:
        lines = []
        for d in self._used_arenas():
            kind, count = storage_type(d), self.arenas.sizes[d] // d.itemsize
            lines += [f"static {kind} memory_{d.name}[{count}];",
                      f"static {kind} *const volatile place_{d.name} = memory_{d.name};"]
        # GCC 12 takes a function that moves elements within an array whose address it knows for
        # one without effect (-O2, after ivopts), and drops its calls.
        return ["/* Addresses come from volatile objects, so that compilers conclude nothing from "
                "them. */", *lines] if lines else []

    def _used_arenas(self) -> list[DType]:
        return [d for d, size in self.arenas.sizes.items() if size]

    # Steps ------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def temporary(self) -> str:
        """A name that nothing else in the function has."""
        self._count += 1
        return f"e{self._count}"

    def var_name(self, v: Var) -> str:
        """The local that holds a size."""
        return self._sizes[v]

    def size(self, e: Expr | int) -> str:
        return self._expressions.statement_value(wrap(e))

    def pointer(self, s: Storage) -> str:
        """An expression for the address of a storage."""
        root, kind = s.root(), storage_type(s.type.dtype)
        if root.role == "input":
            return f"in{root.index}"
        if root.role == "output":
            return f"out{root.index}"
        if root.role == "constant":
            if self.blob is not None:
                return f"(const {kind} *)(const void *)(blob + {self.blob.offsets[root]})"
            return self._weights[root][0]
        arena, offset = self.arenas.places[root]
        if not self.arenas.sizes[arena]:
            return f"({kind} *)0"  # an empty tensor
        where = f"{_arena(arena)} + {offset // arena.itemsize}" if offset else _arena(arena)
        if kind == storage_type(arena):
            return where
        return f"({kind} *)({where})" if offset else f"({kind} *){where}"

    def _step(self, step: Step) -> None:
        if isinstance(step, Launch):
            args = [self.pointer(s) for s in step.args] + [self.size(e) for e in step.sizes]
            head = f"    {self._function[step.kernel]}("
            self.line(wrapped(head, args, ");", "    " * (self.depth + 2)).strip())
        elif isinstance(step, Copy):
            size = self._elements(step.source) * step.source.type.dtype.itemsize
            if size and step.source.root() is not step.target.root():
                self.line(f"memcpy({self.pointer(step.target)}, {self.pointer(step.source)}, "
                          f"{size});")
        elif isinstance(step, Bind):
            for k, v in enumerate(step.symbols):
                name = self._sizes[v]
                self.line(f"{name} = (int64_t)({self.pointer(step.source)})[{k}];")
                self.line(f"if ({name} < 0) return 1;")
        elif isinstance(step, Require):
            self.line(f"if (!({self.size(step.condition)})) return 1;")
        elif isinstance(step, Assign):
            self._assign(step)
        elif isinstance(step, Branch):
            self.line(f"if (*({self.pointer(step.condition)})) {{")
            self._block(step.then)
            self.line("} else {")
            self._block(step.orelse)
            self.line("}")
        else:
            assert isinstance(step, Repeat)
            self._repeat(step)

    def _block(self, steps: list[Step]) -> None:
        self.depth += 1
        for step in steps:
            self._step(step)
        self.depth -= 1

    def _assign(self, step: Assign) -> None:
        fresh = []
        for value in step.values:
            fresh.append(self.temporary())
            self.line(f"const int64_t {fresh[-1]} = {self.size(value)};")
        for v, name in zip(step.symbols, fresh, strict=True):
            self.line(f"{self._sizes[v]} = {name};")

    def _repeat(self, step: Repeat) -> None:
        self._count += 1
        i, end = f"round{self._count}", f"end{self._count}"
        limit = "INT64_MAX"
        if isinstance(step.limit, Storage):
            limit = f"*({self.pointer(step.limit)})"
        elif step.limit is not None:
            limit = self.size(step.limit)
        self.line(f"const int64_t {end} = {limit};")
        self.line(f"for (int64_t {i} = 0; {i} < {end}; ++{i}) {{")
        self.depth += 1
        if step.condition is not None:
            self.line(f"if (!*({self.pointer(step.condition)})) break;")
        if step.counter is not None:
            self.line(f"*({self.pointer(step.counter)}) = {i};")
        self.depth -= 1
        self._block(step.body)
        self.line("}")


def array_text(array: np.ndarray, dtype: DType) -> str:
    """The elements of a constant array as exact literals; narrow floats as their bits."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype.is_float and dtype.bits < 32:
        flat = flat.view(np.uint16 if dtype.itemsize == 2 else np.uint8)
        items = [str(v) for v in flat.tolist()]
    else:
        items = [literal(v, dtype) for v in flat.tolist()]
        items = [item.strip("()") if item[:2] == "(-" else item for item in items]
    rows, width = [[]], 3
    for item in items or ["0"]:
        width += len(item) + 2
        if width > COLUMNS and rows[-1]:
            rows.append([])
            width = 5 + len(item)
        rows[-1].append(item)
    return ",\n".join("    " + ", ".join(row) for row in rows)


def _arena(d: DType) -> str:
    return f"arena_{d.name}"


def _library(code: str, arrays: list[str]) -> list[str]:
    """How what code and arrays use of the C library becomes known. Compilers in the
    manner of GCC know them without a header, and use instructions for them if they are asked so,
    even where -ffreestanding says that there is no library."""
    words = set(re.findall(r"[A-Za-z_]\w*", code))
    numbers = {"INFINITY": "__builtin_inff()", "NAN": '__builtin_nanf("")'}
    lines = [f"#define {name} {value}" for name, value in numbers.items()
             if name in words or any(name in text for text in arrays)]
    lines += [f"#define {name} __builtin_{name}" for name in sorted(words & _FUNCTIONS)]
    if not lines:
        return []
    return ["\n".join(["#ifdef __GNUC__", *lines, "#else", "#include <math.h>",
                       "#include <string.h>", "#endif"])]


def _distinct_weights(program: Program) -> dict[Storage, tuple[str, np.ndarray]]:
    """The name and contents of each constant that the program reads; equal ones share a name."""
    used = used_storages(program)
    names: dict[tuple, str] = {}
    result = {}
    for s in program.constants:
        if s in used:
            array = np.ascontiguousarray(s.array)
            digest = hashlib.blake2b(array.reshape(-1).view(np.uint8).data).digest()
            name = names.setdefault((storage_type(s.type.dtype), digest), f"weights_{s.index}")
            result[s] = name, array
    return result


def bound_sizes(program: Program) -> list[Var]:
    """Sizes that the program sets while it runs. Raises TargetError when memory depends on them."""
    for s in [*program.inputs, *program.outputs, *program.temporaries]:
        if s.role == "dynamic" or not s.type.is_static:
            raise TargetError("cpu:generic needs constant sizes, but this model has a tensor "
                              f"{s.type} whose size depends on data: use the cpu target")
    sizes: dict[Var, None] = {}
    for step in program.walk():
        if isinstance(step, (Bind, Assign)):
            sizes.update(dict.fromkeys(step.symbols))
    return list(sizes)
