"""Writing at computed positions: Scatter, ScatterElements, ScatterND, TensorScatter."""

from __future__ import annotations

from ....ir.graph.core import Value
from ..registry import Site, importer
from .movement import axis_of


def _reduction(c: Site) -> str:
    kind = c.attr("reduction", "none")
    if kind not in ("none", "add", "mul", "min", "max"):
        raise c.error(f"unknown reduction {kind!r}")
    return kind


@importer("Scatter", "ScatterElements")
def scatter_elements(c: Site) -> Value:
    x = c.input(0)
    return c.add("scatter_elements", [x, c.input(1), c.input(2)], reduction=_reduction(c),
                 axis=axis_of(c, c.attr("axis", 0), x.rank))


@importer("ScatterND")
def scatter_nd(c: Site) -> Value:
    return c.add("scatter_nd", [c.input(0), c.input(1), c.input(2)], reduction=_reduction(c))


@importer("TensorScatter")
def tensor_scatter(c: Site) -> Value:
    x, mode = c.input(0), c.attr("mode", "linear")
    if mode not in ("linear", "circular"):
        raise c.error(f"unknown mode {mode!r}")
    operands = [x, c.input(1), c.input(2)] if c.has(2) else [x, c.input(1)]
    return c.add("tensor_scatter", operands, circular=mode == "circular",
                 axis=axis_of(c, c.attr("axis", -2), x.rank))
