"""Groups of nodes that become one kernel, or that another device computes."""

from __future__ import annotations

from ..definition import REQUIRED, OpContext, OpDef, define

KINDS = ("elementwise", "injective", "reduction", "contraction", "row")


def _fused_infer(ctx: OpContext):
    (region,) = ctx.node.regions
    if ctx.attrs["kind"] not in KINDS:
        raise ctx.error(f"unknown kind of group {ctx.attrs['kind']!r}")
    given = [ctx.type(i) for i in range(len(ctx.node.inputs))]
    if given != [v.type for v in region.inputs]:
        raise ctx.error(f"a group of inputs {[v.type for v in region.inputs]} is given {given}")
    return [v.type for v in region.outputs]


define(OpDef(
    "fused", "control", _fused_infer, attrs={"kind": REQUIRED},
    doc="Computes its region, whose inputs and outputs correspond to the node's one by one, as "
        "one kernel. `kind` is that of its one reduction, contraction or row operator, else "
        "elementwise, or injective when it only moves data. The region uses no outer values; "
        "every operator in it has a body; constants in it have one element.",
))


def _dataflow_infer(ctx: OpContext):
    (region,) = ctx.node.regions
    given = [ctx.type(i) for i in range(len(ctx.node.inputs))]
    if given != [v.type for v in region.inputs]:
        raise ctx.error(f"a region of inputs {[v.type for v in region.inputs]} is given {given}")
    return [v.type for v in region.outputs]


define(OpDef(
    "dataflow", "control", _dataflow_infer,
    doc="Computes its region, whose inputs and outputs correspond to the node's one by one, on "
        "another device, as layers that run at the same time. The region uses no outer values.",
))
