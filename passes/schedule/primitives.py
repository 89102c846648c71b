"""Checked changes of a kernel's loops, of which schedules are made.

    kernel = tile(kernel, "i", "j", 16, 4)
    kernel = reorder(kernel, "j_i", "i_i")
    kernel = bind(vectorise(kernel, "i_i"), "i_o", "parallel")

Each takes a kernel and names loops by their variables (or the names of these), and returns a new
kernel that computes the same; a loop that `split` cuts gives loops named with `_o` (outer), `_i`
(inner) and `_t` (tail). What would change the result, or cannot be shown not to, raises a
ScheduleError that shows the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir.expr import Var, const, floordiv, free_vars, mod, op, var, walk, wrap
from ...ir.kernel.nodes import (
    LOOP_KINDS,
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
    statements,
)
from .dependence import conflicts, effects, scope_of
from .lanes import NoLanes, in_lanes
from .refusal import ScheduleError, refusal
from .rewriting import Copier, Names, exchange
from .staging import NoBox, staged

MOST_COPIES = 64
"""Rounds up to which a loop is unrolled."""

IN_ORDER = ("serial", "unroll", "pipeline")
"""Kinds of loops whose iterations follow each other."""


def find_loop(kernel: Kernel, loop: str | Var) -> For:
    """The loop of a variable. Raises ScheduleError when there is none, or several."""
    name = loop if isinstance(loop, str) else loop.name
    loops = [s for s in statements(kernel.body) if isinstance(s, For)]
    found = [s for s in loops if s.var.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise refusal(kernel, name, "several loops have this variable", found)
    names = ", ".join(s.var.name for s in loops) or "none"
    raise ScheduleError(f"kernel {kernel.name}: it has no loop {name}, only: {names}")


# Cutting and joining ------------------------------------------------------------------------------


def split(kernel: Kernel, loop: str | Var, factor: int, tail: str = "guard",
          names: Sequence[str] | None = None) -> Kernel:
    """A loop as one over blocks of `factor` iterations and one inside a block. What is left over
    is kept out by a condition in the last block (`tail` "guard"), or a loop of its own behind the
    others ("cut"). The outer loop keeps the kind. `names` replace _o, _i and _t."""
    s = find_loop(kernel, loop)
    what = f"split({s.var.name}, {factor})"
    if factor < 1 or tail not in ("guard", "cut"):
        raise refusal(kernel, what, f"a factor of {factor} with tail {tail!r} means nothing", [s])
    if tail == "cut" and "." in s.kind:
        raise refusal(kernel, what, f"what is cut off would not be on {s.kind}", [s])
    _steady(kernel, what, s)
    taken = Names(kernel)
    suffixes = [f"{s.var.name}_{x}" for x in "oit"]
    chosen = [taken.fresh(n) for n in (*(names or ()), *suffixes[len(names or ()):])]
    extent = wrap(s.extent)
    whole, rest = extent // factor, extent % factor
    exact = rest is const(0)
    blocks = whole if exact or tail == "cut" else (extent + (factor - 1)) // factor
    outer, inner = var(chosen[0], extent=blocks), var(chosen[1], extent=factor)
    index = outer * factor + inner
    body = Copier({s.var: index}).block(s.body)
    if not exact and tail == "guard":
        body = Block(If(op("lt", index, extent), body))
    grain = max(1, s.grain // factor)
    new: list[Stmt] = [For(outer, blocks, Block(For(inner, factor, body)), s.kind, grain, s.ii)]
    if not exact and tail == "cut":
        last = var(chosen[2], extent=rest)
        taken = Names(exchange(kernel, s, new))
        end = Copier({s.var: whole * factor + last}, names=taken).block(s.body)
        new.append(For(last, rest, end, s.kind, ii=s.ii))
    return exchange(kernel, s, [n for n in new if not (isinstance(n, For) and n.extent == 0)])


def fuse(kernel: Kernel, outer: str | Var, inner: str | Var, name: str | None = None) -> Kernel:
    """Two loops, one directly in the other but for names of index expressions, as one over all
    pairs of their iterations."""
    first, second = find_loop(kernel, outer), find_loop(kernel, inner)
    what = f"fuse({first.var.name}, {second.var.name})"
    *lets, last = first.body.body or (None,)
    if last is not second or not _names(lets):
        raise _more(kernel, what, first, second, first.body.body)
    _rectangular(kernel, what, first, lets, second)
    _steady(kernel, what, first)
    _steady(kernel, what, second)
    if first.kind != second.kind:
        raise refusal(kernel, what, f"one is {first.kind}, the other {second.kind}",
                      [first, second])
    extent = wrap(second.extent)
    total = wrap(first.extent) * extent
    both = var(Names(kernel).fresh(name or f"{first.var.name}_{second.var.name}"), extent=total)
    body = Block(Let(first.var, floordiv(both, extent)), *lets,
                 Let(second.var, mod(both, extent)), *second.body.body)
    return exchange(kernel, first, [For(both, total, body, first.kind, second.grain)])


def unroll(kernel: Kernel, loop: str | Var) -> Kernel:
    """The iterations of a loop of constant extent, one after another."""
    s = find_loop(kernel, loop)
    what = f"unroll({s.var.name})"
    if not isinstance(s.extent, int):
        raise refusal(kernel, what, f"how often it runs is known at run time only: {s.extent!r}",
                      [s])
    if s.extent > MOST_COPIES:
        raise refusal(kernel, what, f"{s.extent} copies are more than {MOST_COPIES}", [s])
    if s.kind not in IN_ORDER:
        raise refusal(kernel, what, f"it is bound to {s.kind}", [s])
    names = Names(kernel)
    # The first copy keeps its names, unless the block around the loop has them as well.
    clash = not names.defined(s.body).isdisjoint(names.defined(exchange(kernel, s, ()).body))
    copies = [Copier({s.var: const(k)}, names=names if k or clash else None).block(s.body)
              for k in range(s.extent)]
    return exchange(kernel, s, copies)


# Order --------------------------------------------------------------------------------------------


def reorder(kernel: Kernel, outer: str | Var, inner: str | Var,
            associative: bool = False) -> Kernel:
    """Two nested loops in the other order. Conditions and names of index expressions between them
    go into both. With `associative`, sums and products of floats may be taken in another order,
    which rounds differently; exact reductions always may."""
    first, second = find_loop(kernel, outer), find_loop(kernel, inner)
    what = f"reorder({first.var.name}, {second.var.name})"
    between: list[Stmt] = []
    body = first.body.body
    while second not in body:
        *lets, last = body or (None,)
        if not isinstance(last, If) or last.orelse.body or not (_pure(last) and _names(lets)):
            raise _more(kernel, what, first, second, body)
        between += body
        body = last.then.body
    if body[-1] is not second or not _names(body[:-1]):
        raise _more(kernel, what, first, second, body)
    between += body[:-1]
    _rectangular(kernel, what, first, between, second)
    _without_effects(kernel, what, first)
    for c in conflicts(first, scope_of(kernel, first)):
        if first.var in c.equal or second.var in c.equal or c.exact() or (
                associative and c.reduction is not None):
            continue
        hint = "; with associative=True it may be rounded differently" if c.reduction else ""
        raise refusal(kernel, what, f"iterations may meet in {c.buffer.name} in another order"
                      f"{hint}", c.statements, [first, second])
    block = second.body
    for s in reversed(between):
        block = Block(If(s.condition, block)) if isinstance(s, If) else Block(s, *block.body)
    return exchange(kernel, first, [replace(second, body=Block(replace(first, body=block)))])


def tile(kernel: Kernel, outer: str | Var, inner: str | Var, outer_factor: int,
         inner_factor: int, associative: bool = False) -> Kernel:
    """Two nested loops as two over blocks and two inside a block: a_o, b_o, a_i, b_i."""
    a, b = find_loop(kernel, outer).var.name, find_loop(kernel, inner).var.name
    names = [[f"{v}_o", f"{v}_i"] for v in (a, b)]
    kernel = split(kernel, a, outer_factor, names=names[0])
    kernel = split(kernel, b, inner_factor, names=names[1])
    return reorder(kernel, names[0][1], names[1][0], associative)


def _pure(s: Stmt | None) -> bool:
    """Whether a statement only names or asks for what no memory decides."""
    e = s.value if isinstance(s, Let) else s.condition if isinstance(s, If) else None
    return e is not None and not any(isinstance(x, Load) for x in walk(e))


def _names(body: Sequence[Stmt | None]) -> bool:
    """Whether statements only name index expressions."""
    return all(isinstance(s, Let) and _pure(s) for s in body)


def _more(kernel: Kernel, what: str, first: For, second: For, body: Sequence[Stmt]
          ) -> ScheduleError:
    """The refusal of a nest that is not perfect."""
    others = [s for s in body if s is not second and not _names([s])]
    return refusal(kernel, what, f"{second.var.name} is not all that {first.var.name} repeats",
                   others, [first, second])


def _rectangular(kernel: Kernel, what: str, first: For, between: Sequence[Stmt | None],
                 second: For) -> None:
    defined = {first.var, *(s.var for s in between if isinstance(s, Let))}
    if any(v in defined for v in free_vars(wrap(second.extent))):
        raise refusal(kernel, what, f"the iterations of {second.var.name} depend on "
                      f"{first.var.name}", [second], [first])


def _steady(kernel: Kernel, what: str, loop: For) -> None:
    """Refuses a loop that writes what it asked memory for its extent."""
    read = {x.buffer for x in walk(wrap(loop.extent)) if isinstance(x, Load)}
    written = [x for x in statements(loop.body) if isinstance(x, Store) and x.buffer in read]
    if written:
        raise refusal(kernel, what, f"{loop.var.name} changes what its extent was read from",
                      written, [loop])


def _without_effects(kernel: Kernel, what: str, loop: For) -> None:
    unknown = effects(loop)
    if unknown:
        raise refusal(kernel, what, "its effect is not known", unknown, [loop])


# Binding ------------------------------------------------------------------------------------------


def bind(kernel: Kernel, loop: str | Var, kind: str, grain: int = 1) -> Kernel:
    """Gives a loop a kind: an axis of a GPU, "parallel" (`grain` iterations are worth handing
    over), "pipeline" and so on. Iterations that run side by side may not meet in memory."""
    s = find_loop(kernel, loop)
    what = f"bind({s.var.name}, {kind})"
    if kind not in LOOP_KINDS:
        raise refusal(kernel, what, f"loops are {', '.join(LOOP_KINDS)}", [s])
    if kind not in IN_ORDER:
        independent(kernel, what, s)
    if "." in kind:
        _free_axis(kernel, what, s, kind)
    return exchange(kernel, s, [replace(s, kind=kind, grain=grain)])


def independent(kernel: Kernel, what: str, s: For) -> None:
    """Raises ScheduleError unless no two iterations of a loop meet in memory that one writes."""
    _without_effects(kernel, what, s)
    for c in conflicts(s, scope_of(kernel, s)):
        if s.var not in c.equal:
            raise refusal(kernel, what, f"iterations of {s.var.name} may meet in "
                          f"{c.buffer.name}", c.statements, [s])


def _free_axis(kernel: Kernel, what: str, s: For, axis: str) -> None:
    """Axes nest once, those of the grid outside those of a block; threads of one block share
    what is allocated outside it."""
    for other in statements(kernel.body):
        if not isinstance(other, For) or other is s or "." not in other.kind:
            continue
        outside, inside = _below(other, s), _below(s, other)
        if other.kind == axis and (outside or inside):
            raise refusal(kernel, what, f"{other.var.name} is on that axis", [other], [s])
        if (outside and other.kind.startswith("block") and axis.startswith("grid")) or (
                inside and other.kind.startswith("grid") and axis.startswith("block")):
            raise refusal(kernel, what, "a grid loop would lie inside a block loop", [other], [s])
    for inner in statements(s.body):
        if axis.startswith("block") and isinstance(inner, Alloc) and inner.buffer.space == "shared":
            raise refusal(kernel, what, "shared memory would belong to one thread", [inner], [s])


def _below(s: For, other: Stmt) -> bool:
    return any(x is other for x in statements(s.body))


# Lanes and memory ---------------------------------------------------------------------------------


def vectorise(kernel: Kernel, loop: str | Var) -> Kernel:
    """A loop of constant extent as statements on lanes: loads and stores that are contiguous along
    it become those of vectors, others with a constant stride gather and scatter, scalars of its
    body become registers of lanes, and a condition on its variable limits the lanes."""
    s = find_loop(kernel, loop)
    what = f"vectorise({s.var.name})"
    if not isinstance(s.extent, int) or s.extent < 2 or s.extent & (s.extent - 1):
        raise refusal(kernel, what, f"{s.extent!r} is no number of lanes: a power of two is", [s])
    if s.kind not in (*IN_ORDER, "vector"):
        raise refusal(kernel, what, f"it is bound to {s.kind}", [s])
    independent(kernel, what, s)
    try:
        return exchange(kernel, s, in_lanes(s, Names(kernel), scope_of(kernel, s)))
    except NoLanes as error:
        raise refusal(kernel, what, error.why, [error.statement], [s]) from None


def stage(kernel: Kernel, buffer: str | Buffer, loop: str | Var, space: str = "local",
          name: str | None = None, along: str | Var | None = None) -> Kernel:
    """Copies what a loop reads of a buffer, before it starts, into one of its own, which it then
    reads. The copy is a box with one axis for each stride of the accesses, so a tile of a matrix
    that lies in memory as one axis has two; the one that `along` moves on comes last. Loops
    `<name>_c`, `<name>_c_2`, ... copy it, in the order of the buffer."""
    s = find_loop(kernel, loop)
    wanted = buffer if isinstance(buffer, str) else buffer.name
    what = f"stage({wanted}, {s.var.name})"
    if space not in ("local", "shared"):
        raise refusal(kernel, what, f"a box cannot lie in {space} memory", [s])
    around = [f for f in statements(kernel.body) if isinstance(f, For) and _below(f, s)]
    if space == "shared" and any(f.kind.startswith("block") for f in around):
        raise refusal(kernel, what, "shared memory would belong to one thread", [s])
    written = [x for x in statements(s.body) if isinstance(x, Store) and x.buffer.name == wanted]
    if written:
        raise refusal(kernel, what, f"the loop writes {wanted}", written, [s])
    _without_effects(kernel, what, s)
    try:
        last = along.name if isinstance(along, Var) else along
        return exchange(kernel, s, staged(s, wanted, (name or f"{wanted}_tile", space),
                                          Names(kernel), scope_of(kernel, s), last))
    except NoBox as error:
        raise refusal(kernel, what, error.why, [error.statement], [s]) from None
