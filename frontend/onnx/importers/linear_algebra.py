"""Determinants."""

from __future__ import annotations

from ....ir.graph.core import Value
from ..registry import Site, importer


@importer("Det")
def det(c: Site) -> Value:
    return c.add("det", [c.input(0)])
