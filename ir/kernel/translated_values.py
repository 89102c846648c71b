"""Kernels as Python source over numpy, many iterations of parallel loops at once: the values.

The iterations of parallel loops run side by side as the elements of numpy arrays ("rows"), in lock
step as the threads of a GPU block do. A value is uniform (the same for all rows, a Python or numpy
scalar) or varying (an array with one element per row; vectors have their lanes in a second axis).
Where control flow diverges, the block is run by the rows concerned alone: all mutable state is in
buffers, so the values that a block uses are simply picked for its rows at its entry. Storage
allocated in a parallel iteration is one flat array for all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import dtype as dt
from ..algebra import at_least
from ..expr import Broadcast, Cast, Const, Expr, Op, Ramp, Var, wrap
from . import arithmetic
from .nodes import Buffer, Call, Kernel, Load, Store

_RING = {"add": "+", "sub": "-", "mul": "*"}
_SIGNS = {**_RING, "and": "&", "or": "|", "eq": "==", "ne": "!=", "lt": "<", "le": "<=",
          "gt": ">", "ge": ">="}


@dataclass
class Rows:
    """A set of iterations that run side by side. Rows of a nested set come from the rows `via` of
    the set around it; `count` names the number of rows."""

    parent: Rows | None
    via: str | None
    count: str
    entry: list[str] = field(default_factory=list)
    picked: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """A computed value: its Python atom; the rows it has one element for (None: uniform); how
    large a lone i64 may be (0: of the size of an index, 1: any i64, 2: a Python int that is not
    wrapped yet); whether it shares memory with a buffer."""

    code: str
    rows: Rows | None = None
    loose: int = 0
    view: bool = False


@dataclass
class Place:
    """Where a buffer lives: `code` is a flat array, or a Python variable for a `lone` scalar.
    `base` is the offset of each row's part (varying over `rows`)."""

    buffer: Buffer
    code: str
    size: str
    rows: Rows | None = None
    base: str = ""
    lone: bool = False
    shadow: str = ""


class ValueWriter:
    """Emits the expressions and memory accesses of a kernel as lines of Python."""

    def __init__(self, kernel: Kernel, sizes: dict[str, int], races: bool):
        self.kernel = kernel
        self.sizes = sizes
        self.races = races
        self.names: dict[str, Any] = {}
        self.lines: list[tuple[int, str | list[str]]] = []
        self.depth = 1
        self.rows: Rows | None = None
        self.places: dict[Buffer, Place] = {}
        self.vars: dict[Var, Term] = {}
        self.memos: list[dict[Expr, Term]] = [{}]
        self.guard: Term | None = None
        self.region: tuple[str, str] | None = None
        self.iteration: Term | None = None
        self.block: Term | None = None
        self.bound: dict[object, str] = {}
        self.counter = 0

    # Text ---------------------------------------------------------------------------------------

    def fresh(self, stem: str = "t") -> str:
        self.counter += 1
        return f"{stem}{self.counter}"

    def line(self, text: str) -> None:
        self.lines.append((self.depth, text))

    def assign(self, text: str, stem: str = "t") -> str:
        name = self.fresh(stem)
        self.line(f"{name} = {text}")
        return name

    def bind(self, value: Any, stem: str = "c") -> str:
        """A name of the Python function's globals for `value`."""
        name = self.bound.get(id(value))
        if name is None:
            name = self.bound[id(value)] = self.fresh(stem)
            self.names[name] = value
        return name

    # Rows ---------------------------------------------------------------------------------------

    def pick(self, name: str, home: Rows | None) -> str:
        """The Python name of a varying value of `home` for the current rows."""
        path: list[Rows] = []
        rows = self.rows
        while rows is not home:
            assert rows is not None
            path.append(rows)
            rows = rows.parent
        for rows in reversed(path):
            if rows.via is None:
                continue
            if name not in rows.picked:
                rows.picked[name] = self.fresh("p")
                rows.entry.append(f"{rows.picked[name]} = {name}[{rows.via}]")
            name = rows.picked[name]
        return name

    def here(self, term: Term) -> Term:
        """`term` for the current rows."""
        if term.rows is None or term.rows is self.rows:
            return term
        return Term(self.pick(term.code, term.rows), self.rows, term.loose)

    def enter(self, via: str | None, count: str) -> Rows:
        """Starts a nested set of rows; what it needs of the outer rows is picked here."""
        rows = Rows(self.rows, via, count)
        self.lines.append((self.depth, rows.entry))
        self.rows = rows
        return rows

    def leave(self, rows: Rows) -> None:
        self.rows = rows.parent

    # Memory -------------------------------------------------------------------------------------

    def address(self, place: Place, index: tuple[Expr, ...], lanes: int,
                count: Term | None) -> Term:
        """The checked flat offset of an access, the first lane's of a vector access."""
        buffer = place.buffer
        for axis, (i, extent) in enumerate(zip(index, buffer.shape, strict=True)):
            last = axis == len(index) - 1
            self.check(buffer, axis, i, extent, lanes if last else 1, count)
        total = buffer.offset([i if i.lanes == 1 else wrap(0) for i in index])
        term = self.tight(self.value(total))
        if index and index[-1].lanes > 1:
            step = self.tight(self.value(wrap(buffer.element_strides()[-1])))
            wide = self.value(index[-1])
            start = f"{term.code}[:, None]" if term.rows is not None else term.code
            term = Term(self.assign(f"{start} + {wide.code} * {step.code}"),
                        term.rows or wide.rows)
        if place.base:
            base = self.pick(place.base, place.rows)
            two = term.rows is not None and index and index[-1].lanes > 1
            text = f"{base}[:, None]" if two or (index and index[-1].lanes > 1) else base
            term = Term(self.assign(f"{text} + {term.code}"), self.rows)
        return term

    def check(self, buffer: Buffer, axis: int, i: Expr, extent: Any, lanes: int,
              count: Term | None) -> None:
        size = wrap(extent)
        if i.lanes == 1 and at_least(i, 0) and at_least(size - i, lanes):
            return
        index, limit = self.tight(self.value(i)), self.tight(self.value(size))
        note = self.bind((buffer.name, axis), "m")
        mask = "None" if self.guard is None else self.guard.code
        if i.lanes > 1 and count is not None:
            rows = index.rows or count.rows
            mask = self.assign(f"lane_mask({count.code}, {i.lanes}, {mask})")
            index = Term(index.code, rows)
        elif lanes > 1:
            # An empty access (count 0) may start anywhere.
            span = str(lanes) if count is None else f"limited({count.code}, {lanes})"
            self.line(f"check_span({index.code}, {span}, {limit.code}, {mask}, {note})")
            return
        if index.rows is None and mask == "None" and i.lanes == 1:
            self.line(f"if not 0 <= {index.code} < {limit.code}: "
                      f"outside({index.code}, {limit.code}, {note})")
        else:
            self.line(f"check({index.code}, {limit.code}, {mask}, {i.lanes > 1}, {note})")

    def lane_count(self, count: Expr | None) -> Term | None:
        return None if count is None else self.tight(self.value(count))

    def load(self, e: Load) -> Term:
        place, lanes = self.place(e.buffer), e.key[2]
        buffer = e.buffer
        if place.lone:
            return Term(place.code, loose=1)
        count = self.lane_count(e.count)
        gathered = bool(e.index) and e.index[-1].lanes > 1
        own = place.rows is not None and place.rows is self.rows
        if own and buffer.rank == 0 and lanes == 1 and not (
                buffer.dtype.is_integer and buffer.dtype.bits < 8):
            return Term(place.code, self.rows, view=True)
        at = self.address(place, e.index, lanes, count)
        self.note_access("read", place, at, e.index, lanes, count)
        rows = at.rows
        if lanes == 1 and not gathered:
            return self.load_one(place, at)
        step = self.tight(self.value(wrap(buffer.element_strides()[-1]))).code
        rows = rows or (count.rows if count is not None else None)
        mask = self.guard
        rows = rows or (mask.rows if mask is not None else None)
        if rows is None and not gathered and count is None and mask is None and step == "1":
            text = f"{place.code}[{at.code}:{at.code} + {lanes}]"
            view = True
        else:
            width = e.index[-1].lanes if gathered else lanes
            text = (f"vector_load({place.code}, {at.code}, {0 if gathered else step}, {width}, "
                    f"{'None' if count is None else count.code}, "
                    f"{'None' if mask is None else mask.code}, {rows is not None})")
            view = False
        if buffer.dtype.is_integer and buffer.dtype.bits < 8:
            text, view = f"from_memory({text}, {self.bind(buffer.dtype, 'd')})", False
        if buffer.lanes > 1:
            text = f"join_lanes({text})"
        return Term(self.assign(text), rows, view=view)

    def load_one(self, place: Place, at: Term) -> Term:
        dtype = place.buffer.dtype
        kind = self.bind(dtype, "d")
        mask = self.guard
        narrow = dtype.is_integer and dtype.bits < 8
        if at.rows is None and (mask is None or mask.rows is None):
            text = f"{place.code}[{at.code}]"
            if mask is not None:
                text = f"masked_one({place.code}, {at.code}, {mask.code}, {kind})"
            if place.buffer.lanes > 1:
                return Term(self.assign(text), view=True)
            if narrow:
                text = f"from_memory({text}, {kind})"
            if dtype is dt.i64:
                text = f"int({text})"
            return Term(self.assign(text), loose=int(dtype is dt.i64))
        rows = at.rows
        if mask is None:
            text = f"{place.code}[{at.code}]"
        else:
            text = f"masked({place.code}, {at.code}, {mask.code})"
            rows = rows or mask.rows
        if narrow:
            text = f"from_memory({text}, {kind})"
        return Term(self.assign(text), rows)

    def place(self, buffer: Buffer) -> Place:
        found = self.places.get(buffer)
        if found is None:
            raise KeyError(f"{self.kernel.name}: {buffer.name} is used but never defined")
        return found

    def store(self, s: Store) -> None:
        buffer, place = s.buffer, self.place(s.buffer)
        value = self.tight(self.value(s.value))
        count = self.lane_count(s.count)
        if place.lone:
            self.store_lone(place, value, count)
            return
        if buffer.dtype.is_integer and buffer.dtype.bits < 8:
            value = Term(self.assign(f"to_memory({value.code}, {self.bind(buffer.dtype, 'd')})"),
                         value.rows)
        own = place.rows is not None and place.rows is self.rows
        if own and buffer.rank == 0 and count is None:
            self.line(f"{place.code}[...] = {value.code}")
            return
        wide = s.index and s.index[-1].lanes > 1
        lanes = s.value.lanes // buffer.lanes
        at = self.address(place, s.index, 1 if wide else lanes, count)
        self.note_access("write", place, at, s.index, 1 if wide else lanes, count)
        if at.rows is None and self.rows is not None:
            self.line(f"if {self.rows.count} > 1: collide({buffer.name!r})")
            if value.rows is not None:
                value = Term(self.assign(f"{value.code}[0]"))
            if count is not None and count.rows is not None:
                count = Term(self.assign(f"int({count.code}[0])"))
        if lanes == 1 and not wide:
            self.line(f"{place.code}[{at.code}] = {value.code}")
            return
        step = self.tight(self.value(wrap(buffer.element_strides()[-1]))).code
        if at.rows is None and count is None and step == "1" and not wide and buffer.lanes == 1:
            self.line(f"{place.code}[{at.code}:{at.code} + {lanes}] = {value.code}")
            return
        self.line(f"vector_store({place.code}, {at.code}, {0 if wide else step}, {lanes}, "
                  f"{'None' if count is None else count.code}, {value.code}, "
                  f"{at.rows is not None}, {value.rows is not None}, {buffer.lanes})")

    def store_lone(self, place: Place, value: Term, count: Term | None) -> None:
        """Writes a scalar that lives in a Python variable."""
        text = f"{value.code}.copy()" if value.view else value.code
        if self.rows is not None:
            self.line(f"if {self.rows.count} > 1: collide({place.buffer.name!r})")
            if value.rows is not None:
                text = f"lone({value.code}[0], {self.bind(place.buffer.dtype, 'd')})" \
                    if place.buffer.lanes == 1 else f"{value.code}[0]"
        if count is not None:
            text = f"merge_lanes({place.code}, {text}, {count.code})"
        self.line(f"{place.code} = {text}")

    def note_access(self, doing: str, place: Place, at: Term, index: tuple[Expr, ...], lanes: int,
                    count: Term | None) -> None:
        """Tells the race detector of an access to a buffer that iterations share."""
        if not place.shadow or self.region is None or self.iteration is None or \
                self.block is None:
            return
        thread, block = self.here(self.iteration), self.here(self.block)
        step = "0"
        if lanes > 1:
            step = self.tight(self.value(wrap(place.buffer.element_strides()[-1]))).code
        wide = bool(index) and index[-1].lanes > 1
        mask = "None" if self.guard is None else self.guard.code
        self.line(f"note({place.shadow}.{doing}, {at.code}, {step}, {lanes}, "
                  f"{'None' if count is None else count.code}, {mask}, "
                  f"{self.region[0]} + {block.code}, {self.region[1]} + {thread.code}, {wide})")

    # Expressions --------------------------------------------------------------------------------

    def found(self, e: Expr) -> Term | None:
        for memo in reversed(self.memos):
            term = memo.get(e)
            if term is not None:
                return term
        return None

    def value(self, root: Expr) -> Term:
        """Emits `root` (no recursion but in guarded loads) and returns its term."""
        stack = [root]
        while stack:
            e = stack[-1]
            if self.found(e) is not None:
                stack.pop()
                continue
            needed = e.args
            if isinstance(e, Load):
                needed = ()
            lazy = e if isinstance(e, Op) and e.name == "select" and self.guarded(e) else None
            if lazy is not None:
                needed = e.args[:1]
            pending = [a for a in needed if self.found(a) is None]
            if pending:
                stack.extend(reversed(pending))
                continue
            stack.pop()
            self.memos[-1][e] = self.node(e) if lazy is None else self.lazy_select(lazy)
        term = self.found(root)
        assert term is not None
        return term

    def guarded(self, e: Op) -> bool:
        """Whether a branch of a select reads memory that nothing else has read: such loads happen
        only where the branch is chosen."""
        stack = list(e.args[1:])
        seen: set[Expr] = set()
        while stack:
            x = stack.pop()
            if x in seen or self.found(x) is not None:
                continue
            seen.add(x)
            if isinstance(x, Load):
                if not self.place(x.buffer).lone:
                    return True
            stack.extend(x.args)
        return False

    def lazy_select(self, e: Op) -> Term:
        condition = self.term(e.args[0])
        kind = self.bind(e.dtype, "d")
        if condition.rows is None and isinstance(e.args[0], Broadcast):
            condition = self.term(e.args[0].args[0])
        if condition.rows is None and (e.lanes == 1 or isinstance(e.args[0], Broadcast)):
            name = self.fresh()
            view, loose = False, 0
            rows: list[Rows | None] = []
            heads = []
            for head, x in ((f"if {condition.code}:", e.args[1]), ("else:", e.args[2])):
                self.line(head)
                self.depth += 1
                self.memos.append({})
                term = self.tight(self.value(x))
                self.memos.pop()
                self.line(f"{name} = {term.code}")
                view, loose = view or term.view, max(loose, term.loose)
                heads.append(len(self.lines) - 1)
                rows.append(term.rows)
                self.depth -= 1
            if any(r is not None for r in rows):
                assert self.rows is not None
                for at, r in zip(heads, rows, strict=True):
                    if r is None:
                        depth, text = self.lines[at]
                        self.lines[at] = (depth, f"{text}; {name} = full({self.rows.count}, "
                                                 f"{e.lanes}, {name}, {kind})")
            return Term(name, self.rows if any(r is not None for r in rows) else None, loose, view)
        sides = []
        outer = self.guard
        for negated, x in ((False, e.args[1]), (True, e.args[2])):
            mask = f"invert({condition.code})" if negated else condition.code
            self.memos.append({})
            if condition.rows is None:
                mask = f"uniform_mask({condition.code}, {e.lanes}, {negated})"
            if outer is not None:
                mask = f"both_masks({mask}, {outer.code})"
            own = condition.rows or (outer.rows if outer is not None else None)
            self.guard = Term(self.assign(mask), own)
            sides.append(self.tight(self.value(x)))
            self.memos.pop()
            self.guard = outer
        a, b = sides
        return Term(self.assign(f"where({condition.code}, {a.code}, {b.code}, {kind})"),
                    condition.rows or a.rows or b.rows)

    def term(self, e: Expr) -> Term:
        term = self.found(e)
        assert term is not None
        return term

    def tight(self, term: Term) -> Term:
        """The value wrapped to 64 bits where Python ints may have outgrown them."""
        if term.loose < 2 or term.rows is not None:
            return term
        return Term(self.assign(f"{term.code} if {-1 << 63} <= {term.code} < {1 << 63} "
                                f"else wrap64({term.code})"), loose=1)

    def node(self, e: Expr) -> Term:
        if isinstance(e, Const):
            return self.constant(e)
        if isinstance(e, Var):
            if e not in self.vars:
                raise KeyError(f"{self.kernel.name}: {e.name} is used but never defined")
            return self.here(self.vars[e])
        if isinstance(e, Load):
            return self.load(e)
        a = [self.term(x) for x in e.args]
        rows = self.rows if any(x.rows is not None for x in a) else None
        if isinstance(e, Op):
            return self.operation(e, a, rows)
        if isinstance(e, Cast):
            function = self.converter(e.args[0].dtype, e.dtype, e.mode)
            return Term(self.assign(f"{function}({self.tight(a[0]).code})"), rows, loose=1)
        if isinstance(e, Broadcast):
            x = self.tight(a[0])
            if rows is not None:
                return Term(self.assign(f"{x.code}[:, None]"), rows, view=True)
            return Term(self.assign(f"int64({x.code})"), None) if e.dtype is dt.i64 else x
        if isinstance(e, Ramp):
            x = self.tight(a[0])
            start = f"{x.code}[:, None]" if rows is not None else x.code
            inner = e.args[0].lanes
            steps = f"arange({e.lanes // inner})" + (f" * {e.stride}" if e.stride != 1 else "")
            if inner > 1:
                blocks = f"({x.code}[..., None, :] + ({steps})[:, None])"
                return Term(self.assign(f"join_lanes({blocks})"), rows)
            return Term(self.assign(f"{start} + {steps}"), rows)
        if isinstance(e, Call):
            function = self.bind(e.intrinsic.semantics, "f")
            texts = []
            for x, t in zip(e.args, a, strict=True):
                texts.append(f"call_argument({self.tight(t).code}, {x.lanes}, "
                             f"{t.rows is not None}, {self.bind(x.dtype, 'd')})")
            text = f"call_result({function}({', '.join(texts)}), {e.lanes}, {rows is not None}, " \
                   f"{self.bind(e.dtype, 'd')}, {self.bind(e.intrinsic.name, 'm')})"
            return Term(self.assign(text), rows)
        raise TypeError(f"{self.kernel.name}: {type(e).__name__} has no place in a kernel: {e!r}")

    def constant(self, e: Const) -> Term:
        value = arithmetic.literal(e.value, e.dtype)
        if e.dtype is dt.i64 or e.dtype.is_bool:
            return Term(repr(value))
        key = ("const", e)
        if key not in self.bound:
            self.bound[key] = self.fresh("c")
            self.names[self.bound[key]] = value
        return Term(self.bound[key])

    def converter(self, source, target, mode: str) -> str:
        key = ("cast", source.name, target.name, mode)
        if key not in self.bound:
            self.bound[key] = self.fresh("f")
            self.names[self.bound[key]] = arithmetic.converter(source, target, mode)
        return self.bound[key]

    def operation(self, e: Op, a: list[Term], rows: Rows | None) -> Term:
        dtype = e.args[-1].dtype
        lone = rows is None and e.lanes == 1
        if lone and dtype is dt.i64 and e.name in _RING:
            return Term(self.assign(f"{a[0].code} {_RING[e.name]} {a[1].code}"),
                        loose=2 if any(x.loose for x in a) else 0)
        a = [self.tight(x) for x in a]
        loose = max(x.loose for x in a)
        codes = [x.code for x in a]
        if e.name == "select":
            if lone:
                return Term(self.assign(f"{codes[1]} if {codes[0]} else {codes[2]}"), loose=loose)
            kind = self.bind(e.dtype, "d")
            return Term(self.assign(f"where({', '.join(codes)}, {kind})"), rows)
        if lone and dtype is dt.i64:
            if e.name in ("floordiv", "mod"):
                sign = "//" if e.name == "floordiv" else "%"
                return Term(self.assign(f"{codes[0]} {sign} {codes[1]}"),
                            loose=2 if loose and e.name == "floordiv" else loose)
            if e.name == "not":
                return Term(self.assign(f"~{codes[0]}"), loose=loose)
            if e.name in arithmetic.LONE_I64:
                function = self.bind(arithmetic.LONE_I64[e.name], "f")
                return Term(self.assign(f"{function}({', '.join(codes)})"), loose=loose or int(
                    e.name not in ("min", "max", "sign", "rem", "shr")))
        if lone and dtype.is_bool and e.name == "not":
            return Term(self.assign(f"not {codes[0]}"))
        plain = not dtype.is_bool or e.name in ("and", "or", "eq", "ne")
        narrow = dtype.is_integer and dtype.bits < 8 and e.name in _RING
        if e.name in _SIGNS and plain and not narrow:
            return Term(self.assign(f"{codes[0]} {_SIGNS[e.name]} {codes[1]}"), rows, loose)
        key = ("op", e.name, dtype.name)
        if key not in self.bound:
            self.bound[key] = self.fresh("f")
            self.names[self.bound[key]] = arithmetic.function(e.name, dtype)
        return Term(self.assign(f"{self.bound[key]}({', '.join(codes)})"), rows)
