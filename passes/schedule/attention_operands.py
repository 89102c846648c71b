"""How the operands of an attention node are read: in place through their strides, or from memory
into which a kernel of its own computes them first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...ir.algebra import at_least
from ...ir.expr import Const, Expr, Var, const, wrap
from ...ir.graph.core import Node, Value
from ...ir.graph.ops.shapes import broadcast_index, same
from ...ir.kernel.nodes import Buffer, Load
from ..lower.generic import Group
from ..lower.inline import Inliner
from ..lower.loops import depends, linear_in, placeholder, vectorisable
from ..lower.lowering import Lowering
from .attention_panels import Element, Strided
from .attention_rows import few_rows

SETS_BYTES = 4096
"""Keys this many bytes apart fall into one set of the first-level cache and few of the second."""

MANY_ROWS = 256
"""Rows of queries from which on a copy of such keys is worth it (measured: 20 to 35 % of the time
from 512 rows on, even at 128)."""



@dataclass(eq=False)
class Elements:
    """The operands, each as it is read."""

    q: Element
    k: Strided
    v: Strided
    bias: Element | None
    mask: Element | None


class Reading:
    """Which operands of an attention node are read in place, and which have to be `stored`. With
    `packed`, keys and values are read by kernels that lay them out anew."""

    def __init__(self, low: Lowering, group: Group, root: Node, packed: bool = False):
        self.group, self.root, self.packed = group, root, packed
        self.stored: list[Value] = []
        probe = probe_of(group)
        for i, value in enumerate(root.inputs):
            if value is None or value in self.stored:
                continue
            found = element(probe, root, i)
            fits = self._in_place(found, i, low.machine.lanes) if i in (1, 2) and not packed \
                else along(found, 3)
            if not fits and value not in group.inputs:
                self.stored.append(value)

    def _in_place(self, x: Element, i: int, lanes: int) -> bool:
        """Whether keys or values can be read through their strides, and should."""
        found, q = strided_of(x), self.root.inputs[0]
        assert q is not None
        rows = q.shape[2]
        if found is None:
            return False
        if isinstance(found.step, Const) and found.step.value * 4 % SETS_BYTES == 0 \
                and isinstance(rows, int) and rows >= MANY_ROWS:
            return False
        if at_least(wrap(rows), few_rows(lanes) + 1) or found.inner is const(1):
            return True
        return i == 1 and found.step is const(1)

    def operands(self) -> list[Value]:
        """Those that the kernel itself reads."""
        return [v for i, v in enumerate(self.root.inputs)
                if v is not None and not (self.packed and i in (1, 2))]

    def kept(self, operands: Iterable[Value]) -> set[Value]:
        """The inputs of the group that are read for operands that are not stored."""
        found: set[Value] = set()
        stack = [v for v in operands if v not in self.stored]
        while stack:
            value = stack.pop()
            if value in self.group.inputs:
                found.add(value)
            elif value.node is not None and value not in self.stored:
                stack += [v for v in value.node.inputs if v is not None]
        return found

    def element(self, inliner: Inliner, i: int) -> Element | None:
        """Operand i; None where the node has none."""
        inputs = self.root.inputs
        return element(inliner, self.root, i) if i < len(inputs) and inputs[i] is not None else None

    def elements(self, inliner: Inliner, packed: Sequence[Strided] = ()) -> Elements:
        """All of them, with keys and values where they are `packed`."""
        q, bias, mask = (self.element(inliner, i) for i in (0, 3, 4))
        k, v = packed or (strided_of(element(inliner, self.root, i)) for i in (1, 2))
        assert q is not None and k is not None and v is not None
        return Elements(q, k, v, bias, mask)


def probe_of(group: Group) -> Inliner:
    """An inliner to look at how the group's values read its inputs."""
    return Inliner({x: Buffer(f"probe{k}", x.dtype, (x.type.numel,))
                    for k, x in enumerate(group.inputs)})


def element(inliner: Inliner, root: Node, i: int) -> Element:
    """Operand i at an index of variables: of its own for q, k and v, of the scores for others."""
    value, q, k = root.inputs[i], root.inputs[0], root.inputs[1]
    assert value is not None and q is not None and k is not None
    shape = value.shape if i < 3 else (*q.shape[:3], k.shape[2])
    index = _variables(shape)
    at: Sequence[Expr] = index if i < 3 else broadcast_index(index, value.shape, shape)
    return Element(inliner.at(value, at), index)


def _variables(shape) -> tuple[Expr, ...]:
    return tuple(const(0) if same(d, 1) else placeholder(wrap(d)) for d in shape)


def along(x: Element, axis: int) -> bool:
    """Whether lanes can stand for an axis, or the element does not depend on it."""
    variable = x.index[axis]
    if not isinstance(variable, Var) or not depends(x.value, variable):
        return True
    return vectorisable(x.value, variable)


def by_row(x: Element) -> bool:
    return along(x, 2)


def strided_of(x: Element) -> Strided | None:
    e = x.value
    if not isinstance(e, Load):
        return None
    base, slopes = e.index[-1], []
    for variable in x.index[2:]:
        if not isinstance(variable, Var):
            slopes.append(const(1))
            continue
        split = linear_in(base, variable)
        if split is None or any(depends(split[0], v) for v in x.index if isinstance(v, Var)):
            return None
        slopes.append(split[0])
        base = split[1]
    return Strided(e.buffer, base, slopes[0], slopes[1], x.index[0], x.index[1])
