"""Copies of runs of contiguous elements, in vectors, and of whole tensors in another type."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.dtype import DType
from ...ir.expr import Expr, broadcast, cast, const, op, wrap
from ...ir.graph.core import TensorType
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ...ir.program import Storage
from ..lower.loops import PARALLEL_WORK
from ..lower.lowering import Lowering


def _runs(b: Builder, length: Expr, lanes: int,
          write: Callable[[Expr, int, Expr | None], None]) -> None:
    """Calls write(offset, lanes, count) over `length` elements."""
    if length is const(0):
        return
    whole = length // lanes
    if whole is not const(0):
        with b.loop("v", whole) as v:
            write(v * lanes, lanes, None)
    rest = length - whole * lanes
    if rest is not const(0):
        with b.when(op("gt", rest, 0)):
            write(whole * lanes, lanes, rest)


def copy(b: Builder, x: Buffer, source: Expr, y: Buffer, target: Expr, length: Expr,
         lanes: int) -> None:
    """y[target...] = x[source...] for `length` contiguous elements, in y's type."""
    _runs(b, length, lanes, lambda at, n, count: b.store(
        y, (target + at,), cast(load(x, (source + at,), n, count), y.dtype), count))


def fill(b: Builder, y: Buffer, target: Expr, length: Expr, lanes: int, value: float) -> None:
    """y[target...] = value for `length` contiguous elements."""
    zero = broadcast(const(value, y.dtype), lanes)
    _runs(b, length, lanes, lambda at, n, count: b.store(y, (target + at,), zero, count))


def widen(low: Lowering, source: Storage, dtype: DType) -> Storage:
    """Launches a copy of a tensor in another element type."""
    target = low.temporary(TensorType(dtype, source.type.shape), "wide")
    b = Builder(low.kernel_name("widen"))
    size = wrap(source.type.numel)
    x = b.param("x", source.type.dtype, (source.type.numel,))
    y = b.param("y", dtype, (source.type.numel,))
    with b.loop("t", (size + (PARALLEL_WORK - 1)) // PARALLEL_WORK, "parallel") as t:
        start = b.let("start", t * PARALLEL_WORK)
        copy(b, x, start, y, start, b.let("here", op("min", size - start, PARALLEL_WORK)),
             low.machine.lanes)
    low.launch(b.kernel(1, 0, size * (dtype.itemsize + source.type.dtype.itemsize)),
               [source, target])
    return target
