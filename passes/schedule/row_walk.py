"""What row kernels do on their visits of a row: read the operand, keep values for the next visit,
write the results with the elementwise operators around."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...ir.dtype import DType
from ...ir.expr import Const, Expr, Var, broadcast, cast, ramp, substitute
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ..lower.loops import LoopWriter, linear_in
from ..lower.visits import Part, Statistic, Visits, nested

IN_REGISTERS = 8
"""Vectors up to which a row stays in registers between visits."""


@dataclass(eq=False)
class RowSpace:
    """What a row kernel computes, over index variables.

    x: the element of the operand, in the type of the statistics. result: the row operator's own
    result, a variable that a template gives a value. outputs: (buffer, expression of its element).
    position: where an element is in any buffer of the output's shape. row: variables of the row,
    innermost last. variable: the one that lanes stand for.
    """

    x: Expr
    result: Var
    outputs: list[tuple[Buffer, Expr]]
    position: Expr
    row: list[Var]
    variable: Var

    def at(self, mapping: dict[Expr, Expr]) -> RowSpace:
        """The space with some variables given."""
        return RowSpace(substitute(self.x, mapping), self.result,
                        [(y, substitute(e, mapping)) for y, e in self.outputs],
                        substitute(self.position, mapping), self.row, self.variable)


@dataclass(eq=False)
class Walk:
    """A row (or several side by side) being computed. `spill` is a buffer of the output's shape
    for what does not stay in registers."""

    b: Builder
    writer: LoopWriter
    space: RowSpace
    visits: Visits
    dtype: DType
    spill: Buffer | None
    _kept: dict[tuple, Expr] = field(default_factory=dict)

    def x(self, part: Part) -> Expr:
        """The operand's elements."""
        e = substitute(self.space.x, part.mapping)
        value = self.writer.value(e, self.space.variable, part.lanes, part.base, part.count)
        return broadcast(value, part.lanes)

    def keep(self, part: Part, value: Expr) -> Expr:
        """Remembers elements for later visits, in registers or in memory."""
        value = self.b.let("e", value)
        if part.key is not None:
            self._kept[part.key] = value
        else:
            self._spill(part, value)
        return value

    def kept(self, part: Part) -> Expr:
        if part.key is not None:
            return self._kept[part.key]
        assert self.spill is not None
        where = self._where(part)
        return load(self.spill, where, 1 if where[0].lanes > 1 else part.lanes, self._count(part))

    def reduce(self, kind: str, value: Callable[[Part], Expr]) -> Statistic:
        """The reduction "sum" or "max" of value(part) over the row."""
        return self.visits.reduce(kind, self.dtype, value)

    def map(self, function: Callable[..., Expr], *statistics: Statistic) -> Statistic:
        """A function of statistics, computed once."""
        values = zip(*(s.values for s in statistics), strict=True)
        return Statistic(tuple(self.b.let("s", function(*v)) for v in values))

    def write(self, value: Callable[[Part], Expr], vectors: bool = True) -> None:
        """Stores the outputs, value(part) being the row operator's result. Without `vectors` the
        elementwise operators after it run element by element."""
        if vectors:
            self.visits.visit(lambda part: self._outputs(part, value(part)))
        else:
            self.visits.visit(lambda part: self._spill(part, value(part)))
            self._elements(self._scalar_outputs)

    def stage(self) -> None:
        """Computes the operand element by element into the spill buffer, to be read from there."""
        spill = self.spill
        assert spill is not None

        def body(where: Expr, mapping: dict[Expr, Expr]) -> None:
            self.b.store(spill, where, self.writer.value(substitute(self.space.x, mapping)))

        self._elements(body)
        self.space = RowSpace(load(spill, (self.space.position,)), self.space.result,
                              self.space.outputs, self.space.position, self.space.row,
                              self.space.variable)

    # Inside -----------------------------------------------------------------------------------

    def _elements(self, body: Callable[[Expr, dict[Expr, Expr]], None]) -> None:
        """Runs body(position, mapping) for single elements of the row."""
        def one(mapping: dict[Expr, Expr]) -> None:
            body(substitute(self.space.position, mapping), mapping)

        nested(self.b, self.space.row, {}, one)

    def _where(self, part: Part) -> tuple[Expr]:
        return (address(substitute(self.space.position, part.mapping), self.space.variable,
                        part.base, part.lanes),)

    def _count(self, part: Part) -> Expr | None:
        return part.count if part.lanes > 1 else None

    def _spill(self, part: Part, value: Expr) -> None:
        assert self.spill is not None
        self.b.store(self.spill, self._where(part), value, self._count(part))

    def _outputs(self, part: Part, value: Expr) -> None:
        value = self.b.let("y", value)
        results = []
        for _, e in self.space.outputs:
            e = substitute(e, part.mapping)
            result = self.writer.value(e, self.space.variable, part.lanes, part.base, part.count,
                                       {self.space.result: value})
            results.append(self.b.let("y", result) if len(self.space.outputs) > 1 else result)
        where = self._where(part)
        for (y, _), result in zip(self.space.outputs, results, strict=True):
            stored = broadcast(cast(result, y.dtype), part.lanes)
            self.b.store(y, where, stored, self._count(part))

    def _scalar_outputs(self, where: Expr, mapping: dict[Expr, Expr]) -> None:
        assert self.spill is not None
        value = self.b.let("y", self.spill[where])
        results = [self.b.let("y", self.writer.value(substitute(e, mapping),
                                                     bound={self.space.result: value}))
                   for _, e in self.space.outputs]
        for (y, _), result in zip(self.space.outputs, results, strict=True):
            self.b.store(y, where, cast(result, y.dtype))


def address(position: Expr, variable: Var, base: Expr, lanes: int) -> Expr:
    """The index of `lanes` elements where `variable` is base, base + 1, ..."""
    start = substitute(position, {variable: base})
    split = linear_in(position, variable) if lanes > 1 else None
    if split is None or not isinstance(split[0], Const) or split[0].value == 1:
        return start
    return ramp(start, lanes, split[0].value)
