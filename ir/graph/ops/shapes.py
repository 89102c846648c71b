"""Shape rules that operators share."""

from __future__ import annotations

from collections.abc import Sequence

from ...algebra import at_least
from ...expr import Expr, const, equal, op, select, simplify_dim, wrap
from ..core import Dim, TensorType
from ..definition import OpContext


def same(d1: Dim, d2: Dim) -> bool:
    """Whether two dimensions are provably equal."""
    return d1 is d2 or (isinstance(d1, int) and isinstance(d2, int) and d1 == d2)


def require_equal(ctx: OpContext, d1: Dim, d2: Dim, otherwise: str) -> None:
    """Refuses, with the sentence `otherwise`, sizes that are known to differ; those that may differ
    are compared at run time."""
    difference = simplify_dim(wrap(d1) - wrap(d2))
    if not isinstance(difference, int):
        ctx.require(equal(d1, d2))
    elif difference:
        raise ctx.error(otherwise)


def require_at_most(ctx: OpContext, d1: Dim, d2: Dim, otherwise: str) -> None:
    """Refuses a size d1 that is known to be above d2; one that may be is compared at run time."""
    if isinstance(d1, int) and isinstance(d2, int):
        if d1 > d2:
            raise ctx.error(otherwise)
    elif not at_least(wrap(d2) - wrap(d1), 0):
        ctx.require(op("le", d1, d2))


def require_one_of(ctx: OpContext, d: Dim, allowed: Sequence[Dim]) -> None:
    """States that a size is one of several, unless that is known."""
    if not any(same(d, other) for other in allowed):
        condition = equal(d, allowed[0])
        for other in allowed[1:]:
            condition = op("or", condition, equal(d, other))
        ctx.require(condition)


def broadcast_dim(ctx: OpContext, d1: Dim, d2: Dim) -> Dim:
    """The size of two broadcast dimensions. When neither is known to be 1 and they are not
    provably equal, the result is a run-time selection."""
    if same(d1, d2) or (isinstance(d2, int) and d2 == 1):
        return d1
    if isinstance(d1, int) and d1 == 1:
        return d2
    if isinstance(d1, int) and isinstance(d2, int):
        raise ctx.error(f"shapes do not broadcast: {d1} against {d2}")
    if isinstance(d1, int):
        require_one_of(ctx, d2, (d1, 1))
        return d1
    if isinstance(d2, int):
        require_one_of(ctx, d1, (d2, 1))
        return d2
    ctx.require(op("or", equal(d1, d2), op("or", equal(d1, 1), equal(d2, 1))))
    return select(equal(d1, 1), d2, d1)


def broadcast_shapes(ctx: OpContext, shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """The numpy broadcast of shapes."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = [1] * rank
    for shape in shapes:
        offset = rank - len(shape)
        for axis, d in enumerate(shape):
            result[offset + axis] = broadcast_dim(ctx, result[offset + axis], d)
    return tuple(result)


def broadcast_index(index: Sequence[Expr], shape: Sequence[Dim], out: Sequence[Dim]):
    """Where an operand of `shape` is read for element `index` of a result of shape `out`."""
    offset = len(out) - len(shape)
    result: list[Expr] = []
    for axis, d in enumerate(shape):
        i, extent = index[offset + axis], out[offset + axis]
        if isinstance(d, int) and d == 1:
            result.append(const(0))
        elif same(d, extent) or (isinstance(d, int) and d != 1):
            result.append(i)
        else:
            result.append(select(equal(d, 1), const(0), i))
    return tuple(result)


def normal_axis(ctx: OpContext, axis: int, rank: int) -> int:
    """`axis` in [0, rank), negative values counted from the end."""
    if not -rank <= axis < max(rank, 1):
        raise ctx.error(f"axis {axis} is outside a tensor of rank {rank}")
    return axis % rank if rank else 0


def require_positions(ctx: OpContext, indices: TensorType, t: TensorType, axis: int) -> None:
    """Refuses positions along `axis`, one for each element of a tensor, beyond the other axes."""
    otherwise = f"positions {indices} along axis {axis} do not fit {t}"
    if indices.rank != t.rank:
        raise ctx.error(otherwise)
    for a, (d1, d2) in enumerate(zip(indices.shape, t.shape, strict=True)):
        if a != axis:
            require_at_most(ctx, d1, d2, otherwise)


def flat_index(index: Sequence[Expr], shape: Sequence[Dim]) -> Expr:
    """The row-major position of an index."""
    total: Expr = const(0)
    for i, d in zip(index, shape, strict=True):
        total = total * wrap(d) + wrap(i)
    return total


def unflatten(position: Expr, shape: Sequence[Dim]) -> tuple[Expr, ...]:
    """The index of a row-major position."""
    result: list[Expr] = []
    for axis in reversed(range(len(shape))):
        if axis == 0:
            result.append(position)
        else:
            result.append(position % wrap(shape[axis]))
            position = position // wrap(shape[axis])
    return tuple(reversed(result))


def require_same_dtype(ctx: OpContext, inputs: Sequence[int]) -> None:
    """Refuses operands of different element types."""
    present = [ctx.type(i) for i in inputs if ctx.has(i)]
    for t in present[1:]:
        if t.dtype is not present[0].dtype:
            raise ctx.error(f"operands have different types, {present[0].dtype} and {t.dtype}")


def conv_extent(size: Dim, kernel: Dim, stride: int, dilation: int, low: Dim, high: Dim,
                ceil: bool = False) -> Dim:
    """Output size of a sliding window; not below 0."""
    span = wrap(size) + low + high - ((wrap(kernel) - 1) * dilation + 1)
    if ceil:
        span = span + (stride - 1)
    out = span // stride + 1
    return op("max", out, 0)


def type_like(t: TensorType, shape: Sequence[Dim]) -> TensorType:
    return TensorType(t.dtype, tuple(shape))
