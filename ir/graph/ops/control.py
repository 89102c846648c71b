"""Control flow: `if`, `loop` and `chain`, whose regions may use values of the graphs around them.

A size that only running tells is a fresh symbol: `sizes` lists those that the node's outputs
bring, in the order in which they occur. A symbol of a region never leaves the region.
"""

from __future__ import annotations

from collections.abc import Iterable

from ... import dtype as dt
from ...expr import Expr, Var, const, free_vars, op, wrap
from ..core import Dim, Graph, TensorType
from ..definition import OpContext, OpDef, define
from .shapes import same


class _Fresh:
    """Hands out the node's sizes in order, making them when the node is new."""

    def __init__(self, ctx: OpContext):
        self.ctx = ctx
        self.known: list[Var] | None = (
            None if ctx.attrs["sizes"] is None else list(ctx.attrs["sizes"]))
        self.given: list[Var] = []

    def take(self) -> Var:
        if self.known is None:
            assert self.ctx.graph is not None
            symbol = self.ctx.graph.fresh_symbol()
        elif len(self.given) < len(self.known):
            symbol = self.known[len(self.given)]
        else:
            raise self.ctx.error("attribute 'sizes' has too few entries")
        self.given.append(symbol)
        return symbol

    def close(self) -> None:
        self.ctx.attrs["sizes"] = tuple(self.given)


def bound_inside(regions: Iterable[Graph], extra: Iterable[Var] = ()) -> set[Var]:
    """Sizes that come to exist within regions."""
    found = set(extra)
    for region in regions:
        for graph in region.walk_graphs():
            for node in graph.nodes:
                found.update(node.bound)
                found.update(node.attrs.get("inner", ()))
    return found


def escapes(d: Dim, inside: set[Var]) -> bool:
    """Whether a dimension has a meaning within a region only."""
    return isinstance(d, Expr) and any(s in inside for s in free_vars(d))


def _if_infer(ctx: OpContext):
    if ctx.type(0) != TensorType(dt.bool_, ()):
        raise ctx.error(f"the condition must be one bool, not {ctx.type(0)}")
    then, orelse = ctx.node.regions
    if then.inputs or orelse.inputs or len(then.outputs) != len(orelse.outputs):
        raise ctx.error(f"the branches give {len(then.outputs)} and {len(orelse.outputs)} results")
    inside = bound_inside(ctx.node.regions)
    fresh = _Fresh(ctx)
    types = []
    for k, (a, b) in enumerate(zip(then.outputs, orelse.outputs, strict=True)):
        if a.dtype is not b.dtype or a.rank != b.rank:
            raise ctx.error(f"result {k} is {a.type} in one branch and {b.type} in the other")
        types.append(TensorType(a.dtype, tuple(
            d if same(d, e) and not escapes(d, inside) else fresh.take()
            for d, e in zip(a.shape, b.shape, strict=True))))
    fresh.close()
    return types


define(OpDef(
    "if", "control", _if_infer, attrs={"sizes": None},
    doc="Operand 0 (bool scalar) picks region 0, else region 1; neither has inputs. Dimensions in "
        "which the branches' results differ are `sizes`, known after the node has run.",
))


def _loop_infer(ctx: OpContext):
    node = ctx.node
    (body,) = node.regions
    count = len(node.inputs) - 2
    if count < 0 or len(body.inputs) != 2 + count or len(body.outputs) < 1 + count:
        raise ctx.error(f"a loop with {count} carried values has a body of {len(body.inputs)} "
                        f"inputs and {len(body.outputs)} outputs")
    if ctx.has(0) and ctx.type(0) != TensorType(dt.i64, ()):
        raise ctx.error(f"the trip count must be one i64, not {ctx.type(0)}")
    wanted = [TensorType(dt.i64, ()), TensorType(dt.bool_, ())]
    if [v.type for v in body.inputs[:2]] != wanted or body.outputs[0].type != wanted[1]:
        raise ctx.error("a loop's body takes an i64 counter and a bool, and gives a bool first")
    if ctx.has(1) and ctx.type(1) != wanted[1]:
        raise ctx.error(f"the initial condition must be one bool, not {ctx.type(1)}")
    inner = set(ctx.attrs["inner"])
    inside = bound_inside(node.regions, inner)
    fresh = _Fresh(ctx)
    types = []
    for k in range(count):
        start, formal = ctx.type(2 + k), body.inputs[2 + k].type
        for t in (start, body.outputs[1 + k].type):
            if t.dtype is not formal.dtype or t.rank != formal.rank or any(
                    not same(d, e) and e not in inner for d, e in zip(t.shape, formal.shape)):
                raise ctx.error(f"carried value {k} is {formal} in the body and becomes {t}")
        types.append(TensorType(formal.dtype, tuple(
            fresh.take() if escapes(d, inside) else d for d in formal.shape)))
    trips = _trips(ctx)
    for value in body.outputs[1 + count:]:
        lead = fresh.take() if trips is None else trips
        types.append(TensorType(value.dtype, (lead, *(
            fresh.take() if escapes(d, inside) else d for d in value.shape))))
    fresh.close()
    return types


def _trips(ctx: OpContext) -> Dim | None:
    """The number of iterations when the trip count alone decides and is known."""
    true = const(True, dt.bool_)
    body = ctx.node.regions[0]
    going = body.outputs[0]
    start = ctx.content(1) if ctx.has(1) else None
    stays = going is body.inputs[1] or (going.content is not None and going.content[()] is true)
    if not stays or not ctx.has(0) or (
            ctx.has(1) and (start is None or start[()] is not true)):
        return None
    limit = ctx.content(0)
    return None if limit is None else op("max", wrap(limit[()]), 0)


define(OpDef(
    "loop", "control", _loop_infer, attrs={"sizes": None, "inner": ()},
    doc="Operands: trip count (i64 scalar, or absent), initial condition (bool scalar, or "
        "absent: true), carried values. Region inputs: counter (i64 scalar), condition, carried "
        "values; its outputs: condition, carried values, then slices. Runs while the condition "
        "holds and the counter is below the trip count. Outputs: the carried values, then the "
        "slices of all iterations stacked along a new first axis. `inner` are sizes of the "
        "region's inputs that each iteration binds anew.",
))


def _chain_infer(ctx: OpContext):
    (region,) = ctx.node.regions
    if ctx.node.inputs or region.inputs:
        raise ctx.error("a chain and its region have no inputs: the region uses outer values")
    return [v.type for v in region.outputs]


define(OpDef(
    "chain", "control", _chain_infer, attrs={},
    doc="Computes its region, whose outputs are the node's. A target may make one kernel of the "
        "region's nodes, which keeps what they hand on in a cache; others run them in turn.",
))
