"""Operators that exporters write out in primitive ones are put together again."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph.core import Graph
from . import recognise_attention, recognise_functions, recognise_rotary, recognise_rows
from .base import Pass, register
from .rewrite import rewrite


@register
@dataclass(frozen=True)
class Recognise(Pass):
    """Finds activation functions, softmax, norms, rotary embedding and, with `attention`,
    attention.

    functions, rows, rotary, attention: which families to look for.
    """

    name = "recognise"
    functions: bool = True
    rows: bool = True
    rotary: bool = True
    attention: bool = False

    def run(self, graph: Graph) -> bool:
        rules = []
        if self.functions:
            rules += recognise_functions.RULES
        if self.rows:
            rules += recognise_rows.RULES
        if self.rotary:
            rules += recognise_rotary.RULES
        if self.attention:
            rules += recognise_attention.RULES
        return rewrite(graph, rules) > 0
