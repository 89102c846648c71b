"""Regions of a graph between narrow integers, and the functions that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir import dtype as dt
from ...ir.graph.core import Graph, Node, TensorType, Value
from ...ir.graph.definition import lookup
from ...ir.graph.interpreter import interpret
from .epilogue import Function, Scaled, scaled
from .monotone import is_monotone
from .templates import Blend, Element

NARROW_BITS = 16
"""Bits up to which integers pass between layers."""
BLEND_SHIFTS = range(25)


def is_narrow(value: Value) -> bool:
    """Whether a tensor may be a wire: integers of few bits."""
    return value.dtype.is_integer and value.dtype.bits <= NARROW_BITS


@dataclass(eq=False)
class Region:
    """The nodes, in order, that compute `output` from the narrow values `inputs` and constants;
    `closed` if from nothing else."""

    output: Value
    nodes: list[Node]
    inputs: list[Value]
    closed: bool

    @classmethod
    def behind(cls, output: Value) -> Region:
        """The region of a narrow value."""
        nodes: dict[Node, None] = {}
        inputs: dict[Value, None] = {}
        closed = True

        stack: list[tuple[Value, bool]] = [(output, False)]
        entered: set[Value] = set()
        while stack:
            value, done = stack.pop()
            node = value.node
            if done:
                assert node is not None
                nodes[node] = None
                continue
            if value in entered:
                continue
            entered.add(value)
            if value is not output and value.constant is None and is_narrow(value) \
                    and not _limited_next(value):
                inputs[value] = None
            elif node is None or node.regions or len(node.outputs) != 1:
                closed = False
            elif value.constant is None:
                stack.append((value, True))
                stack.extend((v, False) for v in reversed(node.inputs) if v is not None)
        return cls(output, list(nodes), list(inputs), closed)

    def is_elementwise(self, node: Node) -> bool:
        return lookup(node.op).kind == "elementwise"

    def evaluated(self, arrays: dict[Value, np.ndarray], result: Value) -> np.ndarray | None:
        """The value `result` for arrays in the place of values; None where constants of the region
        do not fit them."""
        graph = Graph()
        made: dict[Value, Value] = {}
        for value, array in arrays.items():
            made[value] = graph.add_input(f"x{len(made)}", TensorType(value.dtype, array.shape))
        shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
        for node in self.nodes:
            if any(v is not None and v not in made and v.constant is None for v in node.inputs) \
                    or node.output in made:
                continue
            for v in node.inputs:
                if v is not None and v not in made:
                    constant = np.asarray(v.constant)
                    if len(constant.shape) > len(shape) or any(
                            n not in (1, d) for n, d in zip(constant.shape[::-1], shape[::-1])):
                        return None
                    made[v] = graph.constant(constant)
            made[node.output] = graph.add(node.op, [None if v is None else made[v]
                                                    for v in node.inputs], dict(node.attrs))
        if result not in made:
            return None
        graph.outputs = [made[result]]
        return np.broadcast_to(interpret(graph, list(arrays.values()))[0], shape)

    def channel_axis(self) -> int | None:
        """The one axis of the output along which constants differ; None for several."""
        axes = set()
        for node in self.nodes:
            for v in node.inputs:
                if v is not None and v.constant is not None:
                    axes |= {self.output.rank - v.rank + k for k, n in enumerate(v.shape) if n != 1}
        return axes.pop() if len(axes) == 1 else None

    def function(self, total: Value, axis: int) -> Function | None:
        """The output as a function of a value in the region, or an input, such as the sums of a
        product: from its elements [channels, n], where it is monotone and constants differ at most
        along `axis`, that of the channels; None where it is not so."""
        if not all(self.is_elementwise(n) and is_monotone(n) for n in self.nodes
                   if n is not total.node and not self._before(n, total)):
            return None
        other = total.rank - 1 if axis != total.rank - 1 else 0
        channels = int(total.shape[axis])  # type: ignore[arg-type]

        def arranged(sums: np.ndarray) -> np.ndarray:
            shape = [1] * total.rank
            shape[axis], shape[other] = sums.shape
            return (sums if axis < other else sums.T).reshape(shape)

        def function(sums: np.ndarray) -> np.ndarray:
            found = self.evaluated({total: arranged(sums).astype(total.dtype.numpy)}, self.output)
            assert found is not None
            flat = found.reshape(sums.shape if axis < other else sums.shape[::-1])
            return (flat if axis < other else flat.T).astype(np.int64)

        # As many sums of each channel as no axis has elements show whether constants broadcast.
        count = next(n for n in range(2, 99) if n != channels and n not in total.shape)
        probe = arranged(np.zeros((channels, count), np.int64))
        if self.evaluated({total: probe.astype(total.dtype.numpy)}, self.output) is None:
            return None
        return function

    def _before(self, node: Node, total: Value) -> bool:
        """Whether a value is computed from a node's."""
        if total in self.inputs or total.node is None:
            return False
        stack, seen = [v for v in total.node.inputs if v is not None], set()
        while stack:
            value = stack.pop()
            if value.node is node:
                return True
            if value in seen or value.node is None or value in self.inputs:
                continue
            seen.add(value)
            stack.extend(v for v in value.node.inputs if v is not None)
        return False

    def grid(self, elements: Sequence[Element]) -> dict[Value, np.ndarray]:
        """All values of the inputs, each along an axis of its own."""
        rank = max(max(v.rank for v in self.inputs), len(elements))
        arrays = {}
        for k, (value, element) in enumerate(zip(self.inputs, elements, strict=True)):
            every = np.arange(element.low, element.high + 1)
            shape = [1] * rank
            shape[k] = len(every)
            # Values that the tensor's type does not have never come.
            every = np.clip(every, value.dtype.min, value.dtype.max)
            arrays[value] = every.astype(value.dtype.numpy).reshape(shape)
        return arrays

    def table(self, elements: Sequence[Element]) -> np.ndarray | None:
        """The output for all values of the inputs, i64 [values, ...]; None where constants differ
        from place to place."""
        for node in self.nodes:
            if any(v is not None and v.constant is not None and np.size(v.constant) != 1
                   for v in node.inputs):
                return None
        found = self.evaluated(self.grid(elements), self.output)
        if found is None:
            return None
        return found.reshape([e.high - e.low + 1 for e in elements]).astype(np.int64)


def limit(node: Node | None) -> int | None:
    """The constant that a node limits integers by; None for other nodes."""
    if node is None or node.op not in ("min", "max") or node.inputs[1] is None:
        return None
    found = node.inputs[1].constant
    return int(found.item()) if found is not None and found.size == 1 else None


def _limited_next(value: Value) -> bool:
    """Whether a value is limited right after it was rounded, and not used otherwise."""
    users = list(value.users)
    return len(users) == 1 and limit(users[0]) is not None and value.node is not None and (
        value.node.op in ("quantize", "requantize") or limit(value.node) is not None)


def bounds(value: Value) -> tuple[int, int]:
    """The least and the largest element of a narrow value, as its type and limits tell."""
    low, high = int(value.dtype.min), int(value.dtype.max)
    node = value.node
    while (found := limit(node)) is not None:
        assert node is not None and node.inputs[0] is not None
        low, high = (low, min(high, found)) if node.op == "min" else (max(low, found), high)
        node = node.inputs[0].node
    return low, high


def centred(value: Value | None, region: Region) -> tuple[Value, int, list[Node]] | None:
    """(x, z, movement) of a value that is x - z, moved, for a narrow x of the region."""
    zero, movement = 0, []
    while value is not None and value not in region.inputs:
        node = value.node
        if node is None:
            return None
        if node.op == "add" and node.inputs[1] is not None \
                and node.inputs[1].constant is not None and node.inputs[1].constant.size == 1:
            zero -= int(node.inputs[1].constant.item())
        elif node.op in ("reshape", "transpose"):
            movement.append(node)
        elif node.op != "cast" or not node.output.dtype.is_integer:
            return None
        value = node.inputs[0]
    return None if value is None else (value, zero, movement[::-1])


def requantisation(region: Region, anchor: Node, channels: int, reach: int) -> Scaled | None:
    """The integer form of a region that ends in one requantisation, and limits, of the anchor's
    sums with biases; None for any other."""
    low, high = bounds(region.output)
    bias = np.zeros(channels, np.int64)
    node = region.output.node
    while limit(node) is not None:
        assert node is not None and node.inputs[0] is not None
        node = node.inputs[0].node
    if node is None or node.op != "requantize":
        return None
    total, factor, zero = node.inputs
    while total is not anchor.output:
        inner = None if total is None else total.node
        if inner is None or inner.op != "add" or inner.inputs[1] is None \
                or inner.inputs[1].constant is None:
            return None
        added = np.asarray(inner.inputs[1].constant).astype(np.int64)
        if added.size not in (1, channels):
            return None
        bias = bias + added.reshape(-1)
        total = inner.inputs[0]
    if factor is None or factor.constant is None or zero is None or zero.constant is None \
            or zero.constant.size != 1 or factor.constant.size not in (1, channels) \
            or factor.dtype is not dt.f32:
        return None
    factors = np.broadcast_to(np.asarray(factor.constant).reshape(-1), (channels,))
    reach += int(np.abs(bias).max(initial=0))
    return scaled(factors, bias, int(zero.constant.item()), low, high, reach)


def blend(region: Region, a: Element, b: Element, table: np.ndarray) -> Blend | None:
    """Integer arithmetic equal to a table [values of a, values of b]; None if none is found. The
    slopes are those of what the region's last quantisation is given."""
    last = next((n for n in reversed(region.nodes) if n.op == "quantize"), None)
    if last is None or last.inputs[1] is None or last.inputs[1].constant is None \
            or last.inputs[2] is None or last.inputs[2].constant is None:
        return None
    source = last.inputs[0]
    if source is None:
        return None
    real = region.evaluated(region.grid([a, b]), source)
    if real is None:
        return None
    real = real.reshape(table.shape).astype(np.float64) / float(last.inputs[1].constant.item())
    zero = int(last.inputs[2].constant.item())
    slope_a = (real[-1, 0] - real[0, 0]) / max(table.shape[0] - 1, 1)
    slope_b = (real[0, -1] - real[0, 0]) / max(table.shape[1] - 1, 1)
    constant = real[0, 0] - slope_a * a.low - slope_b * b.low
    low, high = int(table.min()), int(table.max())
    x = np.arange(a.low, a.high + 1)[:, None]
    y = np.arange(b.low, b.high + 1)[None, :]
    for shift in BLEND_SHIFTS:
        left, right = (int(np.rint(s * (1 << shift))) for s in (slope_a, slope_b))
        total = x * left + y * right
        least = np.where(table > low, (table << shift) - total, np.iinfo(np.int64).min).max()
        most = np.where(table < high, (table + 1 << shift) - 1 - total,
                        np.iinfo(np.int64).max).min()
        if least <= most:
            least, most = max(int(least), -(1 << 60)), min(int(most), 1 << 60)
            how = Blend(left, right, (least + most) // 2, shift, False, 0, low, high)
            if np.array_equal(how(x, y), table):
                return how
        if shift:
            how = Blend(left, right, int(np.rint(constant * (1 << shift))), shift, True, zero, low,
                        high)
            if np.array_equal(how(x, y), table):
                return how
    return None
