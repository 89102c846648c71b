"""Contractions in bf16: operands are rounded, sums stay f32.

A matrix product or convolution with constant weights takes bf16 operands where that is quicker:
the left one through a cast, which fusion gives to the kernel that makes the value or to the one
that reads it; the weights are rounded here, to nearest even. Everything else stays as it is, and so
do the types of inputs and outputs (Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning
Training", section 2). Attention over many positions may round the operands of its two products; a
target that gains nothing from that leaves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ...ir import dtype as dt
from ...ir.algebra import at_least
from ...ir.expr import wrap
from ...ir.graph.core import Graph, Node, Value
from .base import Pass, register
from .rewrite import own_graphs

LEAST_REDUCTION = 16
"""Products in a sum from which on instructions that take them by 32 are not mostly empty."""

LEAST_COLUMNS = 8
"""Output features that fill half of such an instruction."""

LEAST_WORK = 500_000
"""Operations below which gathering the operands costs more than the products."""

LEAST_POSITIONS = 32
"""Rows of queries, and keys, from which on attention is quicker with packed keys and values: 32 of
each, 12 heads of 64, take 0.86 of the time, 17 take 1.18."""

CONTRACTIONS = ("matmul", "conv_last", "attention")


@register
@dataclass(frozen=True)
class ReducePrecision(Pass):
    """Gives matmul and conv_last of f32, with constant weights and one group, operands of bf16, and
    lets attention round its own; not those of the origins `keep`."""

    name = "reduce_precision"
    keep: tuple[str, ...] = ()

    def run(self, graph: Graph) -> bool:
        modified = False
        for home in own_graphs(graph):
            casts: dict[Value, Value] = {}
            for node in home.ordered():
                if node.op in CONTRACTIONS:
                    why = _refusal(node) or (
                        "accuracy asks for it" if node.origin in self.keep else "")
                    name = f"{node.op} ({node.origin})" if node.origin else node.op
                    self.notes.append(f"{name} {f'stays f32: {why}' if why else 'takes bf16'}")
                    if not why:
                        _reduce(home, node, casts)
                        modified = True
        return modified


def reducible(graph: Graph) -> list[Node]:
    """The contractions of a graph and its regions that can take bf16."""
    return [node for home in own_graphs(graph) for node in home.ordered()
            if node.op in CONTRACTIONS and not _refusal(node)]


def _refusal(node: Node) -> str:
    """Why a contraction is left alone; "" when it takes bf16."""
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    if not x.dtype is w.dtype is node.output.dtype is dt.f32:
        return "its types are others"
    if node.op == "attention":
        few = [n for n in (x.shape[2], w.shape[2]) if not at_least(wrap(n), LEAST_POSITIONS)]
        return f"{few[0]} positions are too few" if few else ""
    if w.constant is None:
        return "its right operand is no constant"
    if node.op == "conv_last":
        if node.attrs["groups"] != 1:
            return "it has groups"
        columns, reduction = w.constant.shape[0], prod(w.constant.shape[1:])
    else:
        reduction, columns = w.constant.shape[-2:]
    if reduction < LEAST_REDUCTION or columns < LEAST_COLUMNS:
        return f"{reduction} products for {columns} results are too few"
    results = node.output.type.numel
    work = results * 2 * reduction if isinstance(results, int) else LEAST_WORK
    if work < LEAST_WORK:
        return f"{work} operations are too few"
    return ""


def _reduce(graph: Graph, node: Node, casts: dict[Value, Value]) -> None:
    operands, attrs = list(node.inputs), {**node.attrs}
    if node.op == "attention":
        attrs["rounded"] = True
    else:
        x, w = node.inputs[:2]
        assert x is not None and w is not None and w.constant is not None
        if x not in casts:
            casts[x] = graph.add("cast", [x], {"to": dt.bf16}, origin=node.origin)
        operands = [casts[x], graph.constant(w.constant.astype(dt.bf16.numpy))]
        attrs["dtype"] = dt.f32
    product = graph.add(node.op, operands, attrs, origin=node.origin, name=node.output.name)
    graph.replace(node.output, product)
    graph.erase(node)
