"""Pools whose only window covers the whole input are reductions."""

from __future__ import annotations

from math import prod

import numpy as np

from ...ir import dtype as dt
from ...ir.graph.core import Graph, Node
from .rewrite import Replacement, rule


@rule("pool_max", "pool_sum", "pool_mean")
def pool_of_everything(node: Node, graph: Graph) -> Replacement:
    """One window that reaches beyond the input on all sides, however far, is a reduction over the
    spatial axes."""
    x, a = node.inputs[0], node.attrs
    assert x is not None
    extents = x.shape[2:]
    numbers = (*extents, *a["sizes"], *a["kernel"], *a["low"], *a.get("high", ()))
    if not all(isinstance(d, int) for d in numbers) or any(d != 1 for d in a["sizes"]):
        return None
    if any(d != 1 for d in a["dilations"]) or not all(
            p >= 0 and 0 < n <= k - p for n, k, p in zip(extents, a["kernel"], a["low"])):
        return None
    keep = {"axes": tuple(range(2, x.rank)), "keepdims": True}
    if node.op != "pool_mean":
        return graph.add(node.op.replace("pool", "reduce"), [x], keep, origin=node.origin)
    count = prod(extents)
    if a["include_pad"]:
        count = prod(min(k, n + p + q) for n, k, p, q in zip(extents, a["kernel"], a["low"],
                                                             a["high"]))
    if count == prod(extents):
        return graph.add("reduce_mean", [x], keep, origin=node.origin)
    if x.dtype not in (dt.f32, dt.f64):
        return None  # the sum might overflow
    total = graph.add("reduce_sum", [x], keep, origin=node.origin)
    number = graph.constant(np.array(count, x.dtype.numpy))
    return graph.add("div", [total, number], origin=node.origin)


RULES = [pool_of_everything]
