"""Local simplification to a fixed point."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph.core import Graph
from ...ir.graph.definition import registry
from . import (
    simplify_arithmetic,
    simplify_control,
    simplify_movement,
    simplify_pooling,
    simplify_precision,
)
from .base import Pass, register
from .rewrite import Rule, rewrite


@register
@dataclass(frozen=True)
class Canonicalise(Pass):
    """Applies the rules of the simplify modules.

    interleave: whether shuffles of what a concat joined become concats of columns. Layouts are
    easier to assign before.
    """

    name = "canonicalise"
    interleave: bool = False

    def run(self, graph: Graph) -> bool:
        late = [simplify_movement.transpose_of_stack] if self.interleave else []
        return rewrite(graph, [*late, *all_rules()]) > 0


def all_rules() -> list[Rule]:
    """The rules for every time, in the order in which they are tried."""
    elementwise = tuple(n for n, d in registry().items() if d.kind == "elementwise")
    return [
        *simplify_arithmetic.RULES,
        *simplify_movement.RULES,
        Rule(elementwise, simplify_movement.elementwise_without_expand),
        Rule(elementwise, simplify_movement.elementwise_before_reshape),
        *simplify_precision.RULES,
        *simplify_control.RULES,
        *simplify_pooling.RULES,
    ]
