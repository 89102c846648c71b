"""The registry of procedural kernels: operators whose algorithm is no index formula.

    @procedural("argmax")
    def argmax(c: Site) -> None:
        x, y = c.input(0), c.output(0)
        with c.nest("i", y.shape, work=x.shape[0]) as index:
            ...

The function writes exactly one kernel through `c.b` (an `ir.kernel.builder.Builder`). Larger work
space is asked for with `c.scratch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...ir.dtype import DType
from ...ir.expr import Const, Expr, const, evaluate, free_vars, simplify_dim, wrap
from ...ir.graph.core import Node, TensorType
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, Kernel
from .loops import PARALLEL_WORK


class Site:
    """One node being lowered. Absent optional inputs are None."""

    def __init__(self, node: Node, name: str):
        self.node = node
        self.attrs = node.attrs
        self.b = Builder(name, node.origin)
        self._inputs = [None if v is None else self.b.param(f"x{i}_", v.dtype, v.shape)
                        for i, v in enumerate(node.inputs)]
        self.scratches: list[TensorType] = []
        self._scratch_buffers: list[Buffer] = []
        self._outputs = [Buffer(f"y{k}_0", v.dtype, v.shape) for k, v in enumerate(node.outputs)]
        self.flops: Any = 0

    def has(self, i: int) -> bool:
        return i < len(self._inputs) and self._inputs[i] is not None

    def input(self, i: int) -> Buffer:
        buffer = self._inputs[i]
        assert buffer is not None
        return buffer

    def output(self, k: int = 0) -> Buffer:
        return self._outputs[k]

    def scratch(self, name: str, dtype: DType, shape) -> Buffer:
        """Uninitialised memory of the whole launch, shared by all iterations."""
        buffer = Buffer(f"{name}_{len(self.scratches)}s", dtype, tuple(shape))
        self.scratches.append(TensorType(dtype, tuple(shape)))
        self._scratch_buffers.append(buffer)
        return buffer

    @contextmanager
    def nest(self, name: str, extents: Sequence[Any], work: Any = 1) -> Iterator[tuple[Expr, ...]]:
        """Loops over independent iterations of about `work` operations each; yields the index.

        The outermost loop of more than one iteration runs on threads, unless all the work is
        known to be little.
        """
        kept = [e for e in extents if simplify_dim(e) != 1]
        total = wrap(work)
        for e in kept:
            total = total * wrap(e)
        serial = isinstance(total, Const) and total.value < PARALLEL_WORK
        inner = wrap(work)
        for e in kept[1:]:
            inner = inner * wrap(e)
        # An unknown size counts as 64.
        cost = evaluate(inner, {v.name: 64 for v in free_vars(inner)})
        grain = max(1, PARALLEL_WORK // max(1, cost))
        kind = "serial" if serial else "parallel"
        with self.b.loops(name, kept, kind, 1 if serial else grain) as variables:
            rest = iter(variables)
            yield tuple(const(0) if simplify_dim(e) == 1 else next(rest) for e in extents)

    def kernel(self) -> Kernel:
        """Parameters: present inputs, scratches, outputs."""
        self.b.params += [*self._scratch_buffers, *self._outputs]
        return self.b.kernel(outputs=len(self._outputs), flops=self.flops)


_REGISTRY: dict[str, Callable[[Site], None]] = {}


def procedural(name: str) -> Callable[[Callable[[Site], None]], Callable[[Site], None]]:
    """Registers the kernel of operator `name`."""

    def register(function: Callable[[Site], None]) -> Callable[[Site], None]:
        if name in _REGISTRY:
            raise ValueError(f"two kernels for operator {name!r}")
        _REGISTRY[name] = function
        return function

    return register


def find(name: str) -> Callable[[Site], None] | None:
    """The kernel of an operator, or None."""
    from . import kernels  # noqa: F401  (fills the registry)

    return _REGISTRY.get(name)
