"""Loop nests as launches of a GPU: parallel loops become a grid of blocks of threads.

What the generic lowering writes has parallel loops outermost, one after another. Each becomes a
kernel of its own, because the blocks of a grid cannot wait for each other; what lies between them
runs in a single thread. Loops that were left serial, though their iterations are independent, are
found by the schedule primitives and become part of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ...errors import ModelError
from ...ir.expr import Expr, Var, const, free_vars, op, simplify_dim, walk, wrap
from ...ir.kernel.builder import Builder, sizes_of
from ...ir.kernel.nodes import (
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
    While,
    expressions,
    statements,
)
from ...ir.program import Branch, Launch, Program, Repeat, Step
from ..lower.generic import operations
from .primitives import ScheduleError, bind, fuse


@dataclass(frozen=True)
class GpuLimits:
    """What a launch may ask for: `threads` of a block, blocks along one axis of the `grid`, bytes
    of memory `shared` by a block and of addressable memory `private` to a thread. With `words` an
    element takes four bytes of these whatever its type, else its own size. The defaults are those
    that every WebGPU adapter grants."""

    threads: int = 256
    grid: int = 65535
    shared: int = 16384
    private: int = 8192
    words: bool = True


def to_grid(program: Program, limits: GpuLimits) -> None:
    """Replaces every launch of the program by launches of grid kernels."""
    done: dict[Kernel, list[tuple[Kernel, list[int]]]] = {}

    def rewrite(steps: list[Step]) -> list[Step]:
        result: list[Step] = []
        for step in steps:
            if isinstance(step, Branch):
                step.then, step.orelse = rewrite(step.then), rewrite(step.orelse)
            elif isinstance(step, Repeat):
                step.body = rewrite(step.body)
            elif isinstance(step, Launch):
                if step.kernel not in done:
                    done[step.kernel] = grid_kernels(step.kernel, limits)
                values = dict(zip(step.kernel.sizes, step.sizes, strict=True))
                result += [Launch(k, tuple(step.args[i] for i in chosen),
                                  tuple(values[v] for v in k.sizes))
                           for k, chosen in done[step.kernel]]
                continue
            result.append(step)
        return result

    program.steps = rewrite(program.steps)


def grid_kernels(kernel: Kernel, limits: GpuLimits) -> list[tuple[Kernel, list[int]]]:
    """Grid kernels that, one after another, do what a kernel does, each with the positions of its
    parameters among those of the kernel. A kernel that has grid loops already stays as it is."""
    if any(isinstance(s, For) and s.kind.startswith("grid") for s in statements(kernel.body)):
        return [(kernel, list(range(len(kernel.params))))]
    kernel = replace(kernel, body=_with_parallel_loops(kernel))
    parts = _parts(kernel.body)
    found = []
    for k, (lets, part) in enumerate(parts):
        name = kernel.name if len(parts) == 1 else f"{kernel.name}_{k}"
        piece, chosen = _piece(kernel, name, Block(*lets, *part), len(parts) == 1)
        loop = part[0] if len(part) == 1 else None
        if isinstance(loop, For) and loop.kind == "parallel":
            piece = _widened(piece, loop.var)
            found.append((_over_grid(piece, limits), chosen))
        else:
            found.append((_single_thread(piece), chosen))
    return found


def check_limits(kernel: Kernel, limits: GpuLimits) -> None:
    """Raises ModelError naming the node when a kernel needs more memory than a launch may have."""
    for space, most in (("shared", limits.shared), ("local", limits.private)):
        held = [s.buffer for s in statements(kernel.body)
                if isinstance(s, Alloc) and s.buffer.space == space]
        size = sum(prod(d if isinstance(d, int) else most for d in b.shape)
                   * (4 if limits.words else b.dtype.itemsize) for b in held)
        if size > most:
            what = "a block of threads shares" if space == "shared" else "a thread has"
            raise ModelError(f"{kernel.origin or kernel.name}: its kernel {kernel.name} needs "
                             f"more than the {most} bytes of memory that {what}")


def _with_parallel_loops(kernel: Kernel) -> Block:
    """The body with those outermost loops parallel that may be."""
    for s in kernel.body.body:
        if isinstance(s, For) and s.kind == "serial" and s.extent != 1:
            try:
                kernel = bind(kernel, s.var, "parallel")
            except ScheduleError:
                continue
    return kernel.body


def _parts(body: Block) -> list[tuple[list[Let], list[Stmt]]]:
    """The body cut into parallel loops and what lies between them, each with the names that it
    uses; one part when something that a part leaves behind is used by another."""
    whole: list[tuple[list[Let], list[Stmt]]] = [([], list(body.body))]
    stored = {s.buffer for s in statements(body) if isinstance(s, Store)}
    lets: dict[Var, Let] = {}
    parts: list[list[Stmt]] = []
    for s in body.body:
        alone = isinstance(s, For) and s.kind == "parallel"
        if isinstance(s, Let):
            if any(isinstance(x, Load) and x.buffer in stored for x in walk(s.value)):
                return whole
            lets[s.var] = s
        elif not alone and parts and not _is_parallel(parts[-1]):
            parts[-1].append(s)
        else:
            parts.append([s])
    for k, part in enumerate(parts):
        own = {s.buffer for s in part if isinstance(s, Alloc)}
        elsewhere = [s for other in parts[:k] + parts[k + 1:] for s in other]
        if own and own & set(_buffers(Block(*elsewhere))):
            return whole
    return [(_used(lets, part), part) for part in parts]


def _is_parallel(part: list[Stmt]) -> bool:
    return isinstance(part[0], For) and part[0].kind == "parallel"


def _used(lets: dict[Var, Let], part: list[Stmt]) -> list[Let]:
    """The names that a part needs, in their order."""
    wanted = {v for s in part for x in statements(s) for e in expressions(x) for v in free_vars(e)}
    found = []
    for v, let in reversed(lets.items()):
        if v in wanted:
            found.append(let)
            wanted.update(free_vars(let.value))
    return found[::-1]


def _buffers(block: Block) -> Iterator[Buffer]:
    """Every buffer that is read or written."""
    for s in statements(block):
        if isinstance(s, Store):
            yield s.buffer
        for e in expressions(s):
            for x in walk(e):
                if isinstance(x, Load):
                    yield x.buffer


def _piece(kernel: Kernel, name: str, body: Block, whole: bool) -> tuple[Kernel, list[int]]:
    """A part of a kernel as a kernel, and the positions of its parameters: those that it writes
    last."""
    used = set(_buffers(body))
    stored = {s.buffer for s in statements(body) if isinstance(s, Store)}
    order = [k for k, p in enumerate(kernel.params) if p in used and p not in stored]
    outputs = [k for k, p in enumerate(kernel.params) if p in stored]
    params = tuple(kernel.params[k] for k in order + outputs)
    moved: Expr = wrap(0)
    for p in params:
        for d in p.shape or (1,):
            moved = moved + wrap(d) * p.dtype.itemsize
    piece = Kernel(name, params, sizes_of(params, body), body, len(outputs), kernel.flops,
                   kernel.bytes, kernel.origin)
    if not whole:
        piece = replace(piece, flops=operations(piece), bytes=moved)
    return piece, order + outputs


def _widened(kernel: Kernel, outermost: Var) -> Kernel:
    """The kernel with the loops directly inside its parallel one made part of it, where their
    iterations are independent."""
    while True:
        loop = next(s for s in kernel.body.body if isinstance(s, For))
        *names, inner = loop.body.body or (None,)
        if not isinstance(inner, For) or inner.kind != "serial" or not all(
                isinstance(s, Let) for s in names):
            return kernel
        try:
            kernel = fuse(bind(kernel, inner.var, "parallel"), loop.var, inner.var)
        except ScheduleError:
            return kernel


@contextmanager
def blocks(b: Builder, count: Any, limits: GpuLimits) -> Iterator[Expr]:
    """Grid loops over `count` blocks; yields the number of the block. More than one axis of the
    grid holds, or may hold, take two axes."""
    total = simplify_dim(wrap(count))
    if isinstance(total, int) and total <= limits.grid:
        with b.loop("grid", total, "grid.x") as g:
            yield g
        return
    total = wrap(total)
    lines = (total + (limits.grid - 1)) // limits.grid
    with b.loop("gridline", lines, "grid.y") as y, \
            b.loop("grid", op("min", total, const(limits.grid)), "grid.x") as x:
        g = b.let("grid", y * limits.grid + x)
        with b.when(g < total):
            yield g


def _over_grid(kernel: Kernel, limits: GpuLimits) -> Kernel:
    """The kernel whose last statement is a parallel loop, with one thread for each iteration."""
    *lets, loop = kernel.body.body
    assert isinstance(loop, For)
    extent, threads = wrap(loop.extent), limits.threads
    if isinstance(loop.extent, int):
        threads = min(threads, 1 << (max(1, loop.extent) - 1).bit_length())
    b = Builder(kernel.name)
    with blocks(b, (extent + (threads - 1)) // threads, limits) as g, \
            b.loop("thread", threads, "block.x") as t:
        index = g * threads + t
        body = Block(Let(loop.var, index), *_serial(loop.body).body)
        exact = isinstance(loop.extent, int) and loop.extent % threads == 0
        for s in body.body if exact else (If(op("lt", index, extent), body),):
            b.emit(s)
    return replace(kernel, body=Block(*lets, *b.kernel().body.body))


def _single_thread(kernel: Kernel) -> Kernel:
    """The kernel in one thread of one block."""
    b = Builder(kernel.name)
    with b.loop("grid", 1, "grid.x"), b.loop("thread", 1, "block.x"):
        for s in _serial(kernel.body).body:
            b.emit(s)
    return replace(kernel, body=b.kernel().body)


def _serial(block: Block) -> Block:
    """A block whose parallel loops run one iteration after another."""
    result: list[Stmt] = []
    for s in block.body:
        if isinstance(s, For):
            kind = "serial" if s.kind == "parallel" else s.kind
            s = replace(s, kind=kind, body=_serial(s.body))
        elif isinstance(s, If):
            s = If(s.condition, _serial(s.then), _serial(s.orelse))
        elif isinstance(s, While):
            s = While(s.condition, _serial(s.body))
        result.append(s)
    return Block(*result)
