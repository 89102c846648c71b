"""Channels-last forms of the spatial operators: x and the result are [N, spatial..., C].

Each is its [N, C, spatial...] operator seen through a permutation, so type rule, meaning and
reference exist once. Weights keep their layout; schedules pack them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...expr import Expr
from ..core import TensorType
from ..definition import OpContext, OpDef, define, find_definition

SUFFIX = "_last"
SPATIAL = ("conv", "conv_transpose", "pool_max", "pool_sum", "pool_mean")


def to_last(items: Sequence[Any]) -> tuple[Any, ...]:
    """(n, c, spatial...) as (n, spatial..., c)."""
    return (items[0], *items[2:], items[1])


def to_first(items: Sequence[Any]) -> tuple[Any, ...]:
    """(n, spatial..., c) as (n, c, spatial...)."""
    return (items[0], items[-1], *items[1:-1])


class _Permuted(OpContext):
    """A node's context in which operand 0 and the result read as channels-first."""

    def type(self, i: int) -> TensorType:
        t = super().type(i)
        return TensorType(t.dtype, to_first(t.shape)) if i == 0 else t

    def out(self, k: int = 0) -> TensorType:
        t = super().out(k)
        return TensorType(t.dtype, to_first(t.shape))

    def load(self, i: int, index: Sequence) -> Expr:
        return super().load(i, to_last(tuple(index)) if i == 0 else index)


def _permuted(ctx: OpContext) -> _Permuted:
    return _Permuted(ctx.node, ctx.graph, ctx._load, ctx.unroll)


def _define(name: str) -> None:
    base = find_definition(name)

    def infer(ctx: OpContext):
        if ctx.type(0).rank < 3:
            raise ctx.error(f"{name}{SUFFIX} needs [N, spatial..., C], got {ctx.type(0)}")
        (t,) = base.infer(_permuted(ctx))
        return [TensorType(t.dtype, to_last(t.shape))]

    def body(ctx: OpContext, index):
        assert base.body is not None
        return base.body(_permuted(ctx), to_first(index))

    def reference(ctx: OpContext, x, *rest):
        assert base.reference is not None
        y = base.reference(_permuted(ctx), np.moveaxis(x, -1, 1), *rest)
        return np.ascontiguousarray(np.moveaxis(y, 1, -1))

    define(OpDef(name + SUFFIX, base.kind, infer, reference, body, attrs=base.attrs,
                 doc=f"{name} with x and the result as [N, spatial..., C]."))


for _name in SPATIAL:
    _define(_name)

