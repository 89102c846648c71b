"""Writing at computed positions: Scatter, ScatterElements, ScatterND, TensorScatter."""

from __future__ import annotations

from ....ir.graph.core import Value
from ..indices import checked_indices
from ..registry import Site, importer
from .movement import axis_of, indexed_axes


def _reduction(c: Site) -> str:
    kind = c.attr("reduction", "none")
    if kind not in ("none", "add", "mul", "min", "max"):
        raise c.error(f"unknown reduction {kind!r}")
    return kind


@importer("Scatter", "ScatterElements")
def scatter_elements(c: Site) -> Value:
    x = c.input(0)
    axis = axis_of(c, c.attr("axis", 0), x.rank)
    at = checked_indices(c, c.input(1), [x.shape[axis]])
    return c.add("scatter_elements", [x, at, c.input(2)], reduction=_reduction(c), axis=axis)


@importer("ScatterND")
def scatter_nd(c: Site) -> Value:
    x, indices = c.input(0), c.input(1)
    at = checked_indices(c, indices, indexed_axes(c, x, indices))
    return c.add("scatter_nd", [x, at, c.input(2)], reduction=_reduction(c))


@importer("TensorScatter")
def tensor_scatter(c: Site) -> Value:
    x, mode = c.input(0), c.attr("mode", "linear")
    if mode not in ("linear", "circular"):
        raise c.error(f"unknown mode {mode!r}")
    operands = [x, c.input(1), c.input(2)] if c.has(2) else [x, c.input(1)]
    return c.add("tensor_scatter", operands, circular=mode == "circular",
                 axis=axis_of(c, c.attr("axis", -2), x.rank))
