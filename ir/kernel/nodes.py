"""The grammar of kernels.

    kernel := Kernel(name, params: Buffer*, sizes: Var*, body: Block)
    buffer := Buffer(name, dtype, shape, space, lanes)          row-major unless strides are given;
                                                                `bits` and `banks` for hardware
    stmt   := Block(stmt*)
            | For(var, extent, body, kind)     0 <= var < extent
            | While(condition, body)
            | If(condition, then, orelse)
            | Let(var, value)                  names a value for the rest of the block
            | Alloc(buffer)                    storage for the rest of the block, contents undefined
            | Store(buffer, index, value, count)
            | Prefetch(buffer, index)        a hint: these elements are read soon, if they exist
            | Barrier(scope)
            | Do(call)                         an intrinsic called for its effect
    expr   := ir.expr, Load(buffer, index, lanes, count), Call(intrinsic, args)

Loop kinds: "serial", "parallel" (iterations independent, over threads), "vector" (to be turned
into lanes), "unroll", "grid.x|y|z", "block.x|y|z" (GPU axes), "pipeline" (HLS).
A "pipeline" loop starts an iteration every `ii` cycles.
Memory spaces: "global", "shared", "local" (per task, addressable), "register" (every index is
constant after unrolling), "constant", "stream" (a FIFO that the kernel only reads or only writes:
element 0 first, each once, in order; `ir.kernel.streams` checks it).

Vectors: a Load of L lanes reads L consecutive elements of the innermost dimension; with a vector
of indices in the last place it gathers. A Store mirrors it. `count`, when given, limits both to
the first `count` lanes: lanes beyond read as zero and are not written. A buffer with `lanes` > 1
has vector elements (register accumulators).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..dtype import DType
from ..expr import Expr, Var, const, intern_expr, simplify_dim, wrap

LOOP_KINDS = ("serial", "parallel", "vector", "unroll", "pipeline", "grid.x", "grid.y", "grid.z",
              "block.x", "block.y", "block.z")
SPACES = ("global", "shared", "local", "register", "constant", "stream")


@dataclass(frozen=True, eq=False)
class Buffer:
    """A named array in a memory space. `strides` are in elements; None is dense row-major.

    For hardware: `bits` is the width that all its elements fit in (0: that of the dtype); `banks`
    the number of memories, dimension by dimension, over which its elements lie cyclically, so that
    as many can be accessed at a time (empty: one memory)."""

    name: str
    dtype: DType
    shape: tuple[Any, ...]
    space: str = "global"
    lanes: int = 1
    strides: tuple[Any, ...] | None = None
    bits: int = 0
    banks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(simplify_dim(d) for d in self.shape))
        if self.space not in SPACES:
            raise ValueError(f"unknown memory space {self.space!r}")
        if self.bits and not (self.dtype.is_integer and 0 < self.bits <= self.dtype.bits):
            raise ValueError(f"{self.name} of {self.dtype} has no elements of {self.bits} bits")
        if self.banks and len(self.banks) != len(self.shape):
            raise ValueError(f"{self.name} has rank {len(self.shape)}, its banks {self.banks}")

    @property
    def rank(self) -> int:
        return len(self.shape)

    def element_strides(self) -> tuple[Any, ...]:
        """Strides in elements, outermost first."""
        if self.strides is not None:
            return self.strides
        strides: list[Any] = []
        step: Any = 1
        for extent in reversed(self.shape):
            strides.append(step)
            step = step * extent
        return tuple(reversed(strides))

    def offset(self, index) -> Expr:
        """The flat element offset of an index."""
        total: Expr = const(0)
        for i, stride in zip(index, self.element_strides(), strict=True):
            total = total + wrap(i) * wrap(stride)
        return total

    def __getitem__(self, index) -> Load:
        """Scalar (or, for vector buffers, whole-element) load."""
        return load(self, index if isinstance(index, tuple) else (index,))


class Load(Expr):
    """Reads a buffer; see the module's grammar."""

    __slots__ = ()

    @property
    def buffer(self) -> Buffer:
        return self.key[1]

    @property
    def index(self) -> tuple[Expr, ...]:
        return self.args[: self.buffer.rank]

    @property
    def count(self) -> Expr | None:
        rest = self.args[self.buffer.rank :]
        return rest[0] if rest else None

    def with_args(self, args: tuple[Expr, ...]) -> Load:
        rank = self.buffer.rank
        gathered = any(a.lanes > 1 for a in args[:rank])
        return load(self.buffer, args[:rank], 1 if gathered else self.key[2],
                    args[rank] if len(args) > rank else None)

    def format(self, a: list[str]) -> str:
        rank = self.buffer.rank
        lanes = f"<{self.key[2]}>" if self.key[2] > 1 else ""
        count = f", count={a[rank]}" if len(a) > rank else ""
        return f"{self.buffer.name}{lanes}[{', '.join(a[:rank])}{count}]"


class Call(Expr):
    """An intrinsic: `intrinsic` is an `ir.kernel.intrinsics.Intrinsic` with a semantic body."""

    __slots__ = ()

    @property
    def intrinsic(self):
        return self.key[1]

    def with_args(self, args: tuple[Expr, ...]) -> Call:
        return call(self.intrinsic, args, self.dtype, self.lanes)

    def format(self, a: list[str]) -> str:
        return f"@{self.intrinsic.name}({', '.join(a)})"


def load(buffer: Buffer, index, lanes: int = 1, count=None) -> Load:
    """A load of `lanes` consecutive elements at `index`; see `Load`."""
    index = tuple(wrap(i) for i in index)
    if len(index) != buffer.rank:
        raise ValueError(f"{buffer.name} has rank {buffer.rank}, indexed by {len(index)}")
    if any(i.lanes > 1 for i in index[:-1]) or (lanes > 1 and index and index[-1].lanes > 1):
        raise ValueError(f"{buffer.name}: only the last index of a gather may be a vector")
    wide = index[-1].lanes if index else 1
    total = max(lanes, wide) * buffer.lanes
    args = index if count is None else (*index, wrap(count))
    return intern_expr(Load, (buffer, lanes), args, buffer.dtype, total)


def call(intrinsic, args, dtype: DType, lanes: int = 1) -> Call:
    """A call of an intrinsic; its result type is the caller's to state, checked by the verifier."""
    return intern_expr(Call, (intrinsic,), tuple(wrap(a) for a in args), dtype, lanes)


class Stmt:
    """Base of statements. They are immutable; rewriting builds new ones."""

    __slots__ = ()


@dataclass(frozen=True, eq=False)
class Block(Stmt):
    body: tuple[Stmt, ...]

    def __init__(self, *body: Stmt):
        flat: list[Stmt] = []
        for s in body:
            flat.extend(s.body if isinstance(s, Block) else (s,))
        object.__setattr__(self, "body", tuple(flat))


@dataclass(frozen=True, eq=False)
class For(Stmt):
    """`grain` is the number of iterations of a parallel loop that are worth handing over, `ii` the
    cycles between the starts of iterations of a pipelined one."""

    var: Var
    extent: Any
    body: Block
    kind: str = "serial"
    grain: int = 1
    ii: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "extent", simplify_dim(self.extent))
        if self.kind not in LOOP_KINDS:
            raise ValueError(f"unknown loop kind {self.kind!r}")
        if self.ii < 1 or self.ii > 1 and self.kind != "pipeline":
            raise ValueError(f"a {self.kind} loop with an iteration every {self.ii} cycles")


@dataclass(frozen=True, eq=False)
class While(Stmt):
    condition: Expr
    body: Block


@dataclass(frozen=True, eq=False)
class If(Stmt):
    condition: Expr
    then: Block
    orelse: Block = field(default_factory=lambda: Block())


@dataclass(frozen=True, eq=False)
class Let(Stmt):
    var: Var
    value: Expr


@dataclass(frozen=True, eq=False)
class Alloc(Stmt):
    buffer: Buffer


@dataclass(frozen=True, eq=False)
class Store(Stmt):
    buffer: Buffer
    index: tuple[Expr, ...]
    value: Expr
    count: Expr | None = None


@dataclass(frozen=True, eq=False)
class Prefetch(Stmt):
    """Means nothing: tells a processor with caches what will be read. The index may lie outside."""

    buffer: Buffer
    index: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Barrier(Stmt):
    scope: str = "shared"


@dataclass(frozen=True, eq=False)
class Do(Stmt):
    call: Call


@dataclass(frozen=True, eq=False)
class Kernel:
    """A function over buffers. `params` are ordered outputs last; `outputs` counts them. `sizes`
    are the symbolic sizes it takes. `flops` and `bytes` (ints or expressions of the sizes) state
    the work for rooflines; `origin` names the source nodes."""

    name: str
    params: tuple[Buffer, ...]
    sizes: tuple[Var, ...]
    body: Block
    outputs: int = 1
    flops: Any = 0
    bytes: Any = 0
    origin: str = ""

    def __str__(self) -> str:
        from .text import print_kernel

        return print_kernel(self)


def statements(root: Stmt) -> Iterator[Stmt]:
    """Every statement below `root`, outer before inner, in program order."""
    stack = [root]
    while stack:
        s = stack.pop()
        yield s
        stack.extend(reversed(children(s)))


def children(s: Stmt) -> tuple[Stmt, ...]:
    if isinstance(s, Block):
        return s.body
    if isinstance(s, (For, While)):
        return (s.body,)
    if isinstance(s, If):
        return (s.then, s.orelse)
    return ()


def expressions(s: Stmt) -> tuple[Expr, ...]:
    """The expressions that the statement itself holds."""
    if isinstance(s, For):
        return (wrap(s.extent),)
    if isinstance(s, (While, If)):
        return (s.condition,)
    if isinstance(s, Let):
        return (s.value,)
    if isinstance(s, Store):
        return (*s.index, s.value) if s.count is None else (*s.index, s.value, s.count)
    if isinstance(s, Prefetch):
        return s.index
    if isinstance(s, Do):
        return (s.call,)
    if isinstance(s, Alloc):
        return tuple(wrap(d) for d in s.buffer.shape)
    return ()


