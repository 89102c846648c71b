"""Memory planning: when each temporary is alive, and where in the arena it goes.

The same best-fit runs here for constant sizes and in runtime/c/plan.c for symbolic ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import dtype as dt
from ..ir.dtype import DType
from ..ir.program import Assign, Bind, Branch, Copy, Launch, Program, Repeat, Require, Step, Storage

ALIGNMENT = 64


@dataclass
class Lifetime:
    """Steps (inclusive) between which a temporary holds data."""

    storage: Storage
    first: int
    last: int


def touched(step: Step) -> list[Storage]:
    """The storages that a step itself reads or writes, as owners."""
    if isinstance(step, Launch):
        items = list(step.args)
    elif isinstance(step, Bind):
        items = [step.source]
    elif isinstance(step, Copy):
        items = [step.source, step.target]
    elif isinstance(step, Branch):
        items = [step.condition]
    elif isinstance(step, Repeat):
        items = [s for s in (step.counter, step.limit, step.condition) if isinstance(s, Storage)]
    else:
        assert isinstance(step, (Assign, Require))
        items = []
    return [s.root() for s in items]


def lifetimes(program: Program) -> list[Lifetime]:
    """Lifetimes of the arena's temporaries in program order. What a loop reads from outside lives
    until the loop ends; what is read after a loop that writes it (the slices of its rounds) lives
    from the loop's start."""
    alive: dict[Storage, Lifetime] = {}
    loops: list[tuple[int, int]] = []
    clock = 0

    def mark(storage: Storage, time: int) -> None:
        if storage.role != "temporary":
            return
        known = alive.get(storage)
        if known is None:
            alive[storage] = Lifetime(storage, time, time)
        else:
            known.last = max(known.last, time)
            for start, end in loops:
                if start < known.first <= end < time:
                    known.first = start

    def visit(steps: list[Step]) -> None:
        nonlocal clock
        for step in steps:
            clock += 1
            start = clock
            for storage in touched(step):
                mark(storage, clock)
            if isinstance(step, Branch):
                visit(step.then)
                visit(step.orelse)
                clock += 1
            elif isinstance(step, Repeat):
                visit(step.body)
                clock += 1
                for storage in touched(step):
                    mark(storage, clock)
                for known in alive.values():
                    if known.first <= start <= known.last:
                        known.last = clock
                loops.append((start, clock))

    visit(program.steps)
    return list(alive.values())


def best_fit(sizes: list[int], spans: list[tuple[int, int]],
             alignment: int = ALIGNMENT) -> tuple[list[int], int]:
    """(offsets, arena size): blocks by descending size, each in the tightest gap left by the
    placed blocks whose spans overlap its own (after Pisarchyk & Lee 2020, greedy by size). Empty
    blocks get offset 0."""
    padded = [-(-s // alignment) * alignment for s in sizes]
    order = sorted((i for i in range(len(sizes)) if padded[i]), key=lambda i: (-padded[i], i))
    offsets = [0] * len(sizes)
    placed: list[int] = []
    total = 0
    for i in order:
        first, last = spans[i]
        busy = sorted((offsets[j], offsets[j] + padded[j]) for j in placed
                      if spans[j][0] <= last and first <= spans[j][1])
        best, best_gap, end = None, None, 0
        for low, high in busy:
            gap = low - end
            if gap >= padded[i] and (best_gap is None or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, high)
        offsets[i] = end if best is None else best
        total = max(total, offsets[i] + padded[i])
        placed.append(i)
    return offsets, total


def plan(program: Program) -> list[Lifetime]:
    """Sets the offsets of temporaries when all sizes are constant (and `arena_size`), else leaves
    them to the run-time planner; returns the lifetimes either way."""
    program.temporaries = [s for s in program.temporaries if s.alias is None]
    spans = lifetimes(program)
    program.temporaries = [x.storage for x in spans] + [
        s for s in program.temporaries if s.role == "dynamic"]
    for k, lifetime in enumerate(spans):
        lifetime.storage.index = k
    if all(x.storage.type.is_static for x in spans):
        sizes = [int(x.storage.type.numel) * x.storage.type.dtype.itemsize  # type: ignore[arg-type]
                 for x in spans]
        offsets, total = best_fit(sizes, [(x.first, x.last) for x in spans])
        for lifetime, offset in zip(spans, offsets, strict=True):
            lifetime.storage.offset = offset
        program.arena_size = total
    return spans


@dataclass
class TypedPlan:
    """Arenas that hold elements of one type each. `sizes`: bytes by that type; `places`: the
    arena and the byte offset of every temporary."""

    sizes: dict[DType, int]
    places: dict[Storage, tuple[DType, int]]
    lifetimes: list[Lifetime]


def plan_by_type(program: Program, alignment: int = 8) -> TypedPlan:
    """Places temporaries of constant size in one arena for each kind of element, so that no
    memory is ever accessed as two types that C lets alias each other only as bytes (C11 6.5p7).
    Single bytes may lie anywhere: they go into the largest arena. Sets `offset` to where a
    temporary would be if the arenas followed each other, and `arena_size`."""
    for s in program.temporaries:  # written over an input of another type
        if s.alias is not None and _arena_of(s.type.dtype) is not _arena_of(s.alias.type.dtype):
            s.alias = None
    program.temporaries = [s for s in program.temporaries if s.alias is None]
    spans = lifetimes(program)
    program.temporaries = [x.storage for x in spans] + [
        s for s in program.temporaries if s.role == "dynamic"]
    bytes_of: dict[Storage, int] = {}
    for k, span in enumerate(spans):
        span.storage.index = k
        type = span.storage.type
        bytes_of[span.storage] = int(type.numel) * type.dtype.itemsize  # type: ignore[arg-type]
    groups: dict[DType, list[Lifetime]] = {}
    for span in spans:
        groups.setdefault(_arena_of(span.storage.type.dtype), []).append(span)
    narrow = groups.pop(dt.u8, [])
    largest = max(groups, key=lambda d: sum(bytes_of[x.storage] for x in groups[d]), default=dt.u8)
    if narrow:
        groups.setdefault(largest, []).extend(narrow)
    result = TypedPlan({}, {}, spans)
    base = 0
    for kind, members in sorted(groups.items(), key=lambda item: item[0].name):
        offsets, size = best_fit([bytes_of[x.storage] for x in members],
                                 [(x.first, x.last) for x in members], alignment)
        for member, offset in zip(members, offsets, strict=True):
            result.places[member.storage] = kind, offset
            member.storage.offset = base + offset
        result.sizes[kind] = size
        base += size
    program.arena_size = base
    return result


def _arena_of(dtype: DType) -> DType:
    """The element type of the arena for a type: the same size, and float or not."""
    if dtype in (dt.f32, dt.f64):
        return dtype
    return {1: dt.u8, 2: dt.u16, 4: dt.i32, 8: dt.i64}[dtype.itemsize]
