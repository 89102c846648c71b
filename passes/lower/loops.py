"""The generic lowering: any group of operators with bodies becomes loops over its outputs.

The innermost loop is turned into vector lanes when every access allows it; reductions become
accumulators, vectorised over the output's or the reduction's innermost axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ...ir import dtype as dt
from ...ir.algebra import at_least, from_poly, poly
from ...ir.dtype import DType
from ...ir.expr import (
    REDUCTIONS,
    Cast,
    Const,
    Expr,
    Op,
    Reduce,
    Var,
    broadcast,
    cast,
    const,
    identity_of,
    op,
    ramp,
    rebuild,
    substitute,
    var,
    walk,
    wrap,
)
from ...ir.graph.ops.shapes import unflatten
from ...ir.kernel.builder import Builder
from ...ir.kernel.intrinsics import horizontal
from ...ir.kernel.nodes import Buffer, Load, load

VECTOR_DTYPES = (dt.f32, dt.bf16, dt.i32, dt.u32, dt.bool_, dt.u8, dt.i8, dt.i64)
"""Element types that vectors compute with (bf16 in f32), as many lanes as there are of 32 bits.
f16 they read only, to widen it at once."""

PARALLEL_WORK = 16384
"""Elements of work below which a loop is not worth a fork-join."""


@dataclass(frozen=True)
class Machine:
    """What schedules need to know: `lanes` is the number of 32-bit lanes of a vector register (1:
    no vectors), `vector_registers` how many there are, `dot4` whether it has four-way u8 x i8 dot
    products, `halves` whether half a register is as quick (divisions are quicker), `exact` that no
    algorithm may round more than the definition of an operator does, `dot2` whether it has two-way
    bf16 dot products, `tiles` whether it has tile registers for them (AMX), `parts` that products
    of f32 may be sums of products of bf16 in these, which err by 2^-16 of the terms, `flat` that
    every element of a result is worth a task of its own (GPUs)."""

    lanes: int = 16
    vector_registers: int = 32
    dot4: bool = False
    halves: bool = False
    exact: bool = False
    dot2: bool = False
    tiles: bool = False
    flat: bool = False
    parts: bool = False


def linear_in(e: Expr, variable: Var) -> tuple[Expr, Expr] | None:
    """(a, b) with e = a * variable + b, both free of the variable; None if e is not linear."""
    slope: dict = {}
    rest: dict = {}
    for monomial, coefficient in poly(e).items():
        if variable in monomial:
            others = list(monomial)
            others.remove(variable)
            slope[tuple(others)] = coefficient
        else:
            rest[monomial] = coefficient
    a, b = from_poly(slope), from_poly(rest)
    if depends(a, variable) or depends(b, variable):
        return None
    return a, b


def depends(e: Expr, variable: Var) -> bool:
    return any(x is variable for x in walk(e))


def vectorisable(e: Expr, variable: Var, strided: bool = False) -> bool:
    """Whether lanes may take the place of `variable` in a value: unit-stride or uniform loads
    (with `strided`, any constant stride), arithmetic that vectors have, no lane-dependent guard
    around a load that may be out of bounds, and something that depends on the variable."""
    memo: dict[Expr, bool] = {}
    touched = False
    for x in walk(e):
        memo[x] = x is variable or any(memo[a] for a in x.args)
    for x in value_nodes(e):
        if not memo[x]:
            continue
        if x.dtype not in VECTOR_DTYPES and not (x.dtype is dt.f16 and isinstance(x, Load)):
            return False
        if isinstance(x, Load):
            split = linear_in(x.index[-1], variable)
            if split is None or not (split[0] is const(1) or (
                    strided and isinstance(split[0], Const) and x.dtype in (dt.f32, dt.i32))):
                return False
            touched = True
        elif x.dtype is dt.i64 and as_ramp(x, variable, const(0), 2) is not None:
            touched = True
        elif isinstance(x, Reduce):
            if any(depends(wrap(v.extent), variable) for v in x.vars):
                return False
        elif isinstance(x, Op):
            if x.name not in VECTOR_OPS or (x.name == "div" and x.dtype.is_integer):
                return False
        elif isinstance(x, Cast):
            source = x.args[0].dtype
            widened = source is dt.f16 and x.dtype is dt.f32
            if x.mode == "saturate" or not (widened or source in VECTOR_DTYPES) or (
                    source.is_float and x.dtype is dt.i64) or (
                    x.dtype is dt.bf16 and source.is_integer and source.bits > 8):
                return False
        else:
            return False
    return touched and not _guards(e, memo)


def _guards(e: Expr, varies: dict[Expr, bool]) -> bool:
    """Whether a condition that varies between lanes keeps a load from running out of bounds:
    vectors compute both arms."""
    always: set[Expr] = set()
    stack = [e]
    while stack:
        x = stack.pop()
        if x not in always:
            always.add(x)
            chosen = isinstance(x, Op) and x.name == "select" and varies[x.args[0]]
            stack.extend(x.args[:1] if chosen else x.args)
    return any(isinstance(x, Load) and x not in always and not _inside(x) for x in varies)


def _inside(x: Load) -> bool:
    """Whether a load provably stays in its buffer."""
    return all(at_least(i, 0) and at_least(wrap(d) - i, 1)
               for i, d in zip(x.index, x.buffer.shape, strict=True))


VECTOR_OPS = frozenset([
    "abs", "add", "and", "ceil", "div", "eq", "erf", "exp", "expm1", "floor", "fma", "ge", "gt",
    "isinf", "isnan", "le", "log", "log1p", "lt", "max", "min", "mul", "ne", "neg", "not", "or",
    "round", "rsqrt", "select", "sign", "sqrt", "sub", "tanh", "trunc", "xor",
])


def as_ramp(e: Expr, variable: Var, base: Expr, lanes: int) -> Expr | None:
    """An index expression with lanes in the place of `variable`, if its steps are constant."""
    if e.dtype is not dt.i64 or e.lanes != 1:
        return None
    split = linear_in(e, variable)
    if split is None or not isinstance(split[0], Const) or split[0].value == 0:
        return None
    return ramp(substitute(e, {variable: base}), lanes, split[0].value)


def value_nodes(e: Expr) -> list[Expr]:
    """Sub-expressions that are values, not addresses: walk stops at load indices."""
    seen: dict[Expr, None] = {}
    stack = [e]
    while stack:
        x = stack.pop()
        if x in seen:
            continue
        seen[x] = None
        if isinstance(x, Load):
            continue
        stack.extend(x.args[:1] if isinstance(x, Reduce) else x.args)
    return list(seen)


class LoopWriter:
    """Writes expressions with reductions into a builder, scalar or with lanes for one variable."""

    def __init__(self, b: Builder, machine: Machine):
        self.b = b
        self.machine = machine

    def value(self, e: Expr, variable: Var | None = None, lanes: int = 1,
              base: Expr | None = None, count: Expr | None = None,
              bound: dict[Expr, Expr] | None = None) -> Expr:
        """`e` without reductions. With lanes > 1, `variable` stands for base, base + 1, ...;
        `count` limits the lanes of a tail. `bound` gives sub-expressions that are already
        computed, in as many lanes as the result."""
        memo: dict[Expr, Expr] = dict(bound or {})
        if variable is not None and base is not None:
            memo[variable] = base if lanes == 1 else ramp(base, lanes)
        return self._rewrite(e, variable, lanes, base, count, memo)

    def _rewrite(self, e, variable, lanes, base, count, memo) -> Expr:
        # Groups hold at most a few hundred expressions, nested less than the recursion limit
        # because operators are bounded per group; still, work bottom-up.
        order = list(walk_outside_reductions(e))
        dependent: dict[Expr, bool] = {}
        for x in order:
            if x in memo:
                dependent[x] = lanes > 1 and (x is variable or memo[x].lanes == lanes)
                continue
            if isinstance(x, Reduce):
                wide = lanes > 1 and variable is not None and depends(x, variable)
                dependent[x] = wide
                memo[x] = self._reduction(x, variable, lanes if wide else 1, base,
                                          count if wide else None)
                continue
            wide = any(dependent.get(a, False) for a in x.args)
            dependent[x] = wide
            steps = as_ramp(x, variable, base, lanes) if wide and variable is not None else None
            if isinstance(x, Load) and wide:
                assert variable is not None, x
                memo[x] = lane_load(x, variable, base, lanes, count)
            elif steps is not None:
                memo[x] = steps
            elif wide and not isinstance(x, Var):
                args = tuple(memo[a] for a in x.args)
                if isinstance(x, Op):
                    args = tuple(broadcast(a, lanes) for a in args)
                    memo[x] = op(x.name, *args)
                else:
                    memo[x] = rebuild(x, args)
            elif x.args:
                memo[x] = rebuild(x, tuple(memo[a] for a in x.args))
            else:
                memo[x] = x
        return memo[e]

    def _reduction(self, e: Reduce, variable, lanes, base, count) -> Expr:
        """Writes the loops of a reduction and returns the register holding its result."""
        b = self.b
        accumulator_type = accumulator_of(e.dtype, e.op)
        combine = REDUCTIONS[e.op]
        inner = e.vars[-1]
        fresh = {v: placeholder(v.extent) for v in e.vars}
        body = substitute(e.body, {**fresh})
        inner = fresh[inner]
        width = self.machine.lanes
        across = (lanes == 1 and width > 1 and accumulator_type in (dt.f32, dt.i32)
                  and e.op in ("sum", "max", "min", "prod") and not has_reduce(body)
                  and not (isinstance(inner.extent, int) and inner.extent < width)
                  and vectorisable(body, inner))
        acc = b.alloc("acc", accumulator_type, (), "register", lanes)
        b.store(acc, (), broadcast(identity_of(e.op, accumulator_type), lanes))
        wide = b.alloc("wide", accumulator_type, (), "register", width) if across else None
        if wide is not None:
            b.store(wide, (), broadcast(identity_of(e.op, accumulator_type), width))
        self._nest([fresh[v] for v in e.vars], body, e.op, combine, acc, wide, variable, lanes,
                   base, count)
        if wide is not None:
            b.store(acc, (), op(combine, acc[()], horizontal(e.op, wide[()])))
        return cast(acc[()], e.dtype)

    def _nest(self, variables, body, kind, combine, acc, wide, variable, lanes, base, count):
        b = self.b
        if len(variables) > 1 or wide is None:
            first, rest = variables[0], variables[1:]
            with b.loop("k", first.extent) as k:
                inner_body = substitute(body, {first: k})
                if rest:
                    self._nest(rest, inner_body, kind, combine, acc, wide, variable, lanes,
                               base, count)
                else:
                    value = self.value(inner_body, variable, lanes, base, count)
                    value = broadcast(cast(value, acc.dtype), lanes)
                    b.store(acc, (), op(combine, acc[()], value))
            return
        (k,), width = variables, self.machine.lanes
        chunks = wrap(k.extent) // width
        with b.loop("k", chunks) as outer:
            value = self.value(body, k, width, outer * width, None)
            b.store(wide, (), op(combine, wide[()], broadcast(cast(value, acc.dtype), width)))
        rest = wrap(k.extent) - chunks * width
        if rest is not const(0):
            with b.loop("k", rest) as tail:
                value = self.value(substitute(body, {k: chunks * width + tail}))
                b.store(acc, (), op(combine, acc[()], cast(value, acc.dtype)))


def lane_load(x: Load, variable: Var, base: Expr, lanes: int, count: Expr | None) -> Expr:
    """The load with lanes in the place of `variable`: consecutive elements, or a gather with a
    constant stride (of all lanes)."""
    where = tuple(substitute(i, {variable: base}) for i in x.index)
    split = linear_in(x.index[-1], variable)
    if split is None or not isinstance(split[0], Const) or split[0].value == 1:
        return load(x.buffer, where, lanes, count)
    return load(x.buffer, (*where[:-1], ramp(where[-1], lanes, split[0].value)))


def walk_outside_reductions(e: Expr):
    """Sub-expressions bottom-up, not entering reductions."""
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(e, False)]
    while stack:
        current, ready = stack.pop()
        if ready:
            yield current
        elif current not in seen:
            seen.add(current)
            stack.append((current, True))
            if not isinstance(current, Reduce):
                stack.extend((a, False) for a in reversed(current.args) if a not in seen)


def has_reduce(e: Expr) -> bool:
    """Whether a reduction is part of the expression."""
    return any(isinstance(x, Reduce) for x in walk(e))


def accumulator_of(dtype: DType, kind: str) -> DType:
    """Sums and products of narrow floats accumulate in f32."""
    return dt.f32 if dtype.is_float and dtype.bits < 32 and kind in ("sum", "prod") else dtype


def _counter():
    n = 0
    while True:
        n += 1
        yield n


_numbers = _counter()


def placeholder(extent) -> Var:
    """A loop variable that a builder's own takes the place of: no builder makes such a name."""
    return var(f"i.{next(_numbers)}", extent=extent)


def collapse(variables: list[Var], accesses: list[Expr]) -> list[tuple[list[Var], Expr]]:
    """Groups of adjacent loop variables that every access walks as one: (variables, extent).

    Adjacent a, b merge when in each access the slope of a is the slope of b times b's extent.
    """
    groups: list[tuple[list[Var], Expr]] = []
    for variable in variables:
        extent = wrap(variable.extent)
        if groups:
            members, total = groups[-1]
            last = members[-1]
            if all(_merges(access, last, variable, extent) for access in accesses):
                groups[-1] = ([*members, variable], total * extent)
                continue
        groups.append(([variable], extent))
    return groups


def merged(groups: list[tuple[list[Var], Expr]]) -> tuple[list[Var], dict[Expr, Expr]]:
    """One variable for each group, and what stands for the members then."""
    found: list[Var] = []
    mapping: dict[Expr, Expr] = {}
    for members, extent in groups:
        whole = members[0] if len(members) == 1 else placeholder(extent)
        found.append(whole)
        if len(members) > 1:
            mapping.update({v: const(0) for v in members[:-1]})
            mapping[members[-1]] = whole
    return found, mapping


def _merges(access: Expr, outer: Var, inner: Var, extent: Expr) -> bool:
    a, b = linear_in(access, outer), linear_in(access, inner)
    return a is not None and b is not None and a[0] is b[0] * extent


def write_elements(b: Builder, machine: Machine, out: Buffer, shape, element, *,
                   offset: Expr | int = 0, strides=None) -> None:
    """Loops over `shape` that store element(index) to out[offset + index . strides].

    `strides` default to row-major. Parallel over the outermost loop when the work is worth it.
    """
    extents = [wrap(d) for d in shape]
    if any(isinstance(e, Const) and e.value == 0 for e in extents):
        return
    variables = [placeholder(e) if e is not const(1) else None for e in extents]
    index = tuple(const(0) if v is None else v for v in variables)
    if strides is None:
        strides = Buffer("", out.dtype, tuple(shape)).element_strides()
    position: Expr = wrap(offset)
    for i, stride in zip(index, strides, strict=True):
        position = position + i * wrap(stride)
    value = element(index)
    live = [v for v in variables if v is not None]
    if machine.lanes > 1 and live and live[-1] is index[-1] and _write_parts(
            b, machine, out, shape, index, element, offset, strides, position, value):
        return
    accesses = [position] + [x.index[-1] for x in walk(value) if isinstance(x, Load)]
    nodes = value_nodes(value)
    nodes += [y for x in nodes if isinstance(x, Reduce) for v in x.vars
              for y in walk(wrap(v.extent))]
    plain = not any(x in live for x in nodes)
    writer = LoopWriter(b, machine)
    if plain:
        groups = collapse(live, accesses)
    else:
        groups = [([v], wrap(v.extent)) for v in live]
    variables, mapping = merged(groups)
    if mapping:
        position, value = substitute(position, mapping), substitute(value, mapping)
    _loops(writer, variables, out, position, value)


def _write_parts(b: Builder, machine: Machine, out: Buffer, shape, index, element, offset, strides,
                 position: Expr, value: Expr) -> bool:
    """`write_elements` for a value that is another one in parts of an axis."""
    from .pieces import alternates, parts, parts_of_axis, write_pairs

    *lead, inner = index

    def last(i: Expr) -> Expr:
        return element((*lead, i))

    found = parts(value, inner, last)
    for start, extent in found:
        write_elements(b, machine, out, (*shape[:-1], extent),
                       lambda at, start=start: element((*at[:-1], at[-1] + start)),
                       offset=wrap(offset) + start * wrap(strides[-1]), strides=strides)
    for axis in range(len(index) - 1):
        if found:
            return True
        found = parts_of_axis(value, index, axis, position, element, machine.lanes)
        for start, extent in found:
            write_elements(b, machine, out, (*shape[:axis], extent, *shape[axis + 1:]),
                           lambda at, axis=axis, start=start: element(
                               (*at[:axis], at[axis] + start, *at[axis + 1:])),
                           offset=wrap(offset) + start * wrap(strides[axis]), strides=strides)
    if found or not alternates(value, inner) or has_reduce(value):
        return bool(found)
    variables = [v for v in index if isinstance(v, Var)]
    return write_pairs(LoopWriter(b, machine), variables, out, position, last,
                       _worth_forking(variables, value))


@contextmanager
def each(b: Builder, variables: Sequence[Var], parallel: bool) -> Iterator[dict[Expr, Expr]]:
    """One loop over all values of the variables; yields what each stands for."""
    live = [v for v in variables if wrap(v.extent) is not const(1)]
    single: dict[Expr, Expr] = {v: const(0) for v in variables if v not in live}
    if not live:
        yield single
        return
    total: Expr = const(1)
    for v in live:
        total = total * wrap(v.extent)
    with b.loop("i", total, "parallel" if parallel else "serial") as i:
        if len(live) == 1:
            yield {**single, live[0]: i}
            return
        parts = unflatten(i, [wrap(v.extent) for v in live])
        yield {**single, **{v: b.let("i", p) for v, p in zip(live, parts, strict=True)}}


def _worth_forking(variables: Sequence[Var], value: Expr) -> bool:
    work: Expr = const(1)
    for v in variables:
        work = work * wrap(v.extent)
    for x in walk(value):
        if isinstance(x, Reduce):
            for v in x.vars:
                work = work * wrap(v.extent)
    return not (isinstance(work, Const) and work.value < PARALLEL_WORK)


def _loops(writer: LoopWriter, variables: list[Var], out: Buffer, position: Expr,
           value: Expr) -> None:
    from .interleaved import interleaves, write_interleaved
    from .reduced import write_reduced
    from .transposed import crossing, write_tiles

    b, lanes = writer.b, writer.machine.lanes
    if writer.machine.flat:
        with each(b, variables, True) as mapping:
            b.store(out, (substitute(position, mapping),),
                    cast(writer.value(substitute(value, mapping)), out.dtype))
        return
    inner = variables[-1] if variables else None
    vector = False
    if inner is not None and lanes > 1 and out.dtype in VECTOR_DTYPES:
        split = linear_in(position, inner)
        small = isinstance(inner.extent, int) and inner.extent < lanes // 2
        vector = (split is not None and split[0] is const(1) and not small
                  and vectorisable(value, inner))
    parallel = _worth_forking(variables, value)
    if has_reduce(value) and write_reduced(writer, variables, out, position, value, parallel):
        return
    crossed = None if vector else crossing(variables, position, value, lanes)
    if crossed is not None:
        write_tiles(writer, variables, out, position, value, crossed, parallel)
        return
    if not vector and interleaves(variables, out, position, value, lanes):
        write_interleaved(writer, variables, out, position, value, parallel)
        return

    def nest(remaining: list[Var], mapping: dict[Expr, Expr], first: bool) -> None:
        kind = "parallel" if first and parallel else "serial"
        if not remaining:
            b.store(out, (substitute(position, mapping),),
                    cast(writer.value(substitute(value, mapping)), out.dtype))
            return
        v, rest = remaining[0], remaining[1:]
        if rest or not vector:
            with b.loop("i", v.extent, kind) as i:
                nest(rest, {**mapping, v: i}, False)
            return
        at, e = substitute(position, mapping), substitute(value, mapping)
        chunks = wrap(v.extent) // lanes
        with b.loop("i", chunks, kind) as i:
            base = i * lanes
            result = broadcast(cast(writer.value(e, v, lanes, base), out.dtype), lanes)
            b.store(out, (substitute(at, {v: base}),), result)
        tail = wrap(v.extent) - chunks * lanes
        if tail is not const(0):
            with b.when(op("gt", tail, 0)):
                base = chunks * lanes
                result = writer.value(e, v, lanes, base, tail)
                b.store(out, (substitute(at, {v: base}),),
                        broadcast(cast(result, out.dtype), lanes), tail)

    nest(variables, {}, True)

