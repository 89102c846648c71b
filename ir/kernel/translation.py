"""Kernels as Python source over numpy: the statements; see `translated_values` for the idea."""

from __future__ import annotations

from typing import Any

from ..expr import evaluate, wrap
from .nodes import (
    Alloc,
    Barrier,
    Block,
    Buffer,
    Do,
    For,
    If,
    Kernel,
    Let,
    Prefetch,
    Stmt,
    Store,
    While,
    children,
    statements,
)
from .translated_values import Place, Term, ValueWriter

SERIAL = ("serial", "unroll", "pipeline")

ROWS = 1 << 14
"""About how many iterations run side by side."""

FEW = 6
"""Parallel loops of fewer iterations than this run one by one, in a random order."""

class Translator(ValueWriter):
    """Translates one kernel for given sizes; `source` and `names` make the Python function."""

    def __init__(self, kernel: Kernel, sizes: dict[str, int], races: bool):
        super().__init__(kernel, sizes, races)
        self.prefix: list[For] = []
        self.shared = shared_buffers(kernel.body)

    def source(self) -> str:
        kernel = self.kernel
        arguments = [self.fresh("a") for _ in kernel.params]
        for v in kernel.sizes:
            self.vars[v] = Term(repr(int(self.sizes[v.name])))
        for buffer, name in zip(kernel.params, arguments, strict=True):
            self.places[buffer] = Place(buffer, name, f"len({name})")
        self.block_body(kernel.body)
        text = [f"def run({', '.join(arguments)}):"]
        for depth, item in self.lines:
            text += ["    " * depth + t for t in ([item] if isinstance(item, str) else item)]
        return "\n".join([*text, "    return"])

    # Statements ---------------------------------------------------------------------------------

    def block_body(self, block: Block) -> None:
        before = len(self.lines)
        for s in block.body:
            self.statement(s)
        if len(self.lines) == before:
            self.line("pass")

    def nested(self, block: Block) -> None:
        self.depth += 1
        self.block_body(block)
        self.depth -= 1

    def statement(self, s: Stmt) -> None:
        self.memos = [{}]
        if isinstance(s, Block):
            self.block_body(s)
        elif isinstance(s, Let):
            self.let(s)
        elif isinstance(s, Alloc):
            self.alloc(s.buffer)
        elif isinstance(s, Store):
            self.store(s)
        elif isinstance(s, For):
            self.loop(s)
        elif isinstance(s, If):
            self.branch(s)
        elif isinstance(s, While):
            self.repeat(s)
        elif isinstance(s, Do):
            self.value(s.call)
        elif isinstance(s, Prefetch):
            self.line("pass")
        elif isinstance(s, Barrier):
            if self.region is not None:
                self.line(f"{self.region[1]} = epoch()")
        else:
            raise TypeError(f"{self.kernel.name}: unknown statement {type(s).__name__}")

    def let(self, s: Let) -> None:
        term = self.tight(self.value(s.value))
        text = f"{term.code}.copy()" if term.view else term.code
        self.vars[s.var] = Term(self.assign(text, "v"), term.rows, term.loose)

    def alloc(self, buffer: Buffer) -> None:
        lanes, kind = buffer.lanes, self.bind(buffer.dtype, "d")
        if self.rows is None and buffer.rank == 0:
            name = self.assign(f"from_memory(poison(1, {lanes}, {kind})[0], {kind})", "s")
            if lanes == 1:
                self.line(f"{name} = lone({name}, {kind})")
            self.places[buffer] = Place(buffer, name, "1", lone=True)
            return
        total: Any = 1
        for d in buffer.shape:
            total = total * wrap(d)
        if buffer.strides is not None:
            total = buffer.offset([wrap(d) - 1 for d in buffer.shape]) + 1
        size = self.tight(self.value(wrap(total)))
        if size.rows is not None:
            # Rows need different amounts: all get the largest.
            size = Term(self.assign(f"int({size.code}.max())"))
        rows = self.rows
        if rows is None:
            name = self.assign(f"poison(max({size.code}, 0), {lanes}, {kind})", "b")
            place = Place(buffer, name, size.code)
        else:
            name = self.assign(f"poison({rows.count} * {size.code}, {lanes}, {kind})", "b")
            base = self.assign(f"arange({rows.count}) * {size.code}", "o")
            place = Place(buffer, name, f"{rows.count} * {size.code}", rows, base)
        self.places[buffer] = place
        if self.region is not None and self.races and buffer in self.shared:
            self.follow(place)

    def loop(self, s: For) -> None:
        count = self.tight(self.value(wrap(s.extent)))
        if s.var.extent is not None and s.var.extent is not s.extent:
            promised = self.tight(self.value(wrap(s.var.extent)))
            self.line(f"promise({promised.code}, {count.code}, {s.var.name!r})")
        if count.rows is not None:
            # The extent may be a scalar that the body changes.
            count = Term(self.assign(f"{count.code}.copy()"), count.rows)
        if s.kind not in SERIAL:
            self.parallel(s, count)
        elif count.rows is None:
            name = self.fresh("i")
            self.line(f"for {name} in range({count.code}):")
            self.vars[s.var] = Term(name)
            self.nested(s.body)
        else:
            name, via = self.fresh("i"), self.fresh("w")
            self.line(f"for {name} in range(most({count.code})):")
            self.depth += 1
            self.line(f"{via} = nonzero({count.code} > {name})[0]")
            rows = self.enter(via, self.assign(f"len({via})", "n"))
            self.vars[s.var] = Term(name)
            self.block_body(s.body)
            self.leave(rows)
            self.depth -= 1

    def parallel(self, s: For, count: Term) -> None:
        """Runs iterations side by side; the outermost such loop starts a region."""
        outer = (self.region, self.iteration, self.block)
        starts = self.region is None
        if starts:
            self.start_region(s)
        assert self.region is not None
        # The iterations of an inner loop come after what their outer iteration did before it.
        forks = s not in self.prefix
        if forks:
            self.line(f"{self.region[1]} = epoch()")
            self.block = self.block or self.iteration or Term("0")
        name = self.fresh("i")
        size = self.known(s.extent)
        alone = self.rows is None and size is not None and size < FEW and s.kind != "vector" and \
            not s.kind.startswith("block")
        if alone:
            self.line(f"for {name} in shuffled({count.code}):")
            self.depth += 1
            self.vars[s.var] = Term(name)
            self.number_iteration(s, Term(name), count)
            self.block_body(s.body)
        elif self.rows is None:
            ordered = s.kind == "vector" or s.kind.startswith("block")
            chunk = 1 << 62 if ordered else max(1, ROWS // self.width(s.body))
            self.line(f"for {name} in chunks({count.code}, {chunk}, {not ordered}):")
            self.depth += 1
            rows = self.enter(None, self.assign(f"len({name})", "n"))
            self.vars[s.var] = Term(name, rows)
            self.number_iteration(s, Term(name, rows), count)
            self.block_body(s.body)
            self.leave(rows)
        else:
            via = self.fresh("w")
            chunk = 1 << 62 if s.kind.startswith("block") else 4 * ROWS
            self.line(f"for {via}, {name} in spread({count.code}, {self.rows.count}, {chunk}):")
            self.depth += 1
            rows = self.enter(via, self.assign(f"len({via})", "n"))
            self.vars[s.var] = Term(name, rows)
            self.number_iteration(s, Term(name, rows), count)
            self.block_body(s.body)
            self.leave(rows)
        self.depth -= 1
        if forks:
            self.line(f"{self.region[1]} = epoch()")
        self.region, self.iteration, self.block = outer
        if starts:
            for place in self.places.values():
                place.shadow = ""

    def start_region(self, s: For) -> None:
        self.region = (self.assign("epoch()", "e"), self.assign("epoch()", "e"))
        self.prefix = outermost(s)
        if not self.races:
            return
        stored = {x.buffer for x in statements(s.body) if isinstance(x, Store)}
        for place in self.places.values():
            if place.buffer in stored and not place.lone:
                self.follow(place)

    def follow(self, place: Place) -> None:
        """Lets the race detector see accesses to a buffer that iterations share."""
        place.shadow = self.assign(f"shadow({place.code}, {place.buffer.name!r})", "h")

    def number_iteration(self, s: For, index: Term, count: Term) -> None:
        """Numbers the iterations of all loops of the region so far."""
        if self.iteration is None:
            self.iteration = index
        else:
            before, extent = self.here(self.iteration), count
            if count.rows is not None:
                extent = Term(self.assign(f"most({count.code})"))
            self.iteration = Term(
                self.assign(f"{before.code} * {extent.code} + {index.code}", "k"),
                before.rows or index.rows)
        if self.prefix and s is self.prefix[-1]:
            self.block = self.iteration

    def known(self, extent: Any) -> int | None:
        """The value of an extent that depends on the kernel's sizes only."""
        if isinstance(extent, int):
            return extent
        try:
            return evaluate(extent, self.sizes)
        except (KeyError, TypeError):
            return None

    def width(self, block: Block) -> int:
        """About how many rows each iteration of the block becomes."""
        widest = 1
        for s in block.body:
            for inner in children(s):
                wide = self.width(inner if isinstance(inner, Block) else Block(inner))
                if isinstance(s, For) and s.kind not in SERIAL:
                    wide *= self.known(s.extent) or 64
                widest = max(widest, wide)
        return widest

    def branch(self, s: If) -> None:
        condition = self.value(s.condition)
        if condition.rows is None:
            self.line(f"if {condition.code}:")
            self.nested(s.then)
            if s.orelse.body:
                self.line("else:")
                self.nested(s.orelse)
            return
        # The condition is read before either side runs.
        taken = self.assign(f"nonzero({condition.code})[0]", "w")
        other = self.assign(f"nonzero(invert({condition.code}))[0]", "w") if s.orelse.body else ""
        for via, block in ((taken, s.then), (other, s.orelse)):
            if via:
                count = self.assign(f"len({via})", "n")
                self.line(f"if {count}:")
                self.depth += 1
                rows = self.enter(via, count)
                self.block_body(block)
                self.leave(rows)
                self.depth -= 1

    def repeat(self, s: While) -> None:
        varying = self.rows is not None
        if varying:
            assert self.rows is not None
            active = self.assign(f"arange({self.rows.count})", "w")
        self.line("while True:")
        self.depth += 1
        if not varying:
            condition = self.value(s.condition)
            self.line(f"if not {condition.code}: break")
            self.block_body(s.body)
        else:
            rows = self.enter(active, self.assign(f"len({active})", "n"))
            condition = self.value(s.condition)
            self.leave(rows)
            if condition.rows is None:
                self.line(f"if not {condition.code}: break")
            else:
                self.line(f"{active} = {active}[{condition.code}]")
                self.line(f"if not len({active}): break")
            rows = self.enter(active, self.assign(f"len({active})", "n"))
            self.block_body(s.body)
            self.leave(rows)
        self.depth -= 1


def outermost(loop: For) -> list[For]:
    """The loops whose iterations nothing orders: grid or parallel loops with only the next such
    loop inside."""
    found: list[For] = []
    while not loop.kind.startswith("block") and loop.kind != "vector":
        found.append(loop)
        rest = [s for s in loop.body.body if not isinstance(s, (Let, Alloc))]
        if len(rest) != 1 or not isinstance(rest[0], For) or rest[0].kind in SERIAL:
            break
        loop = rest[0]
    return found


def shared_buffers(body: Block) -> set[Buffer]:
    """Buffers stored to in a parallel loop that does not hold their allocation."""
    found: set[Buffer] = set()
    level: dict[Buffer, int] = {}
    stack: list[tuple[Stmt, int]] = [(body, 0)]
    while stack:
        s, depth = stack.pop()
        if isinstance(s, Alloc):
            level[s.buffer] = depth
        elif isinstance(s, Store) and depth > level.get(s.buffer, 0):
            found.add(s.buffer)
        elif isinstance(s, For) and s.kind not in SERIAL:
            depth += 1
        stack.extend((c, depth) for c in reversed(children(s)))
    return found
