"""The rules that lower any node: loops from operator bodies, and procedural kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...ir.expr import Expr, Op, cast, free_vars, substitute, walk, wrap
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.definition import lookup
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, For, Kernel, Let, Load, Store, children
from ...ir.program import Storage
from . import procedural
from .inline import Inliner
from .loops import write_elements
from .lowering import Lowering, Rule


class Group:
    """A node seen as a group: external values, inner outputs, and how they are read.

    A `fused` node's region is opened; any other node is a group of itself.
    """

    def __init__(self, node: Node):
        self.node = node
        if node.op == "fused":
            region: Graph = node.regions[0]
            self.inputs: list[Value] = list(region.inputs)
            self.outputs: list[Value] = list(region.outputs)
            self.nodes: list[Node] = region.ordered()
            self.outer = [v for v in node.inputs if v is not None]
        else:
            self.inputs = list(dict.fromkeys(v for v in node.inputs if v is not None))
            self.outputs = list(node.outputs)
            self.nodes = [node]
            self.outer = self.inputs

    def find(self, op: str) -> Node | None:
        """The group's only node of operator `op`, else None."""
        found = [n for n in self.nodes if n.op == op]
        return found[0] if len(found) == 1 else None


def flat_param(b: Builder, value: Value, name: str) -> Buffer:
    """A parameter that holds all elements of a value in row-major order."""
    return b.param(name, value.dtype, (value.type.numel,))


def by_bodies(low: Lowering, node: Node) -> bool:
    """Loops over every output element, all operators inlined."""
    group = Group(node)
    for inner in group.nodes:
        if inner.op != "constant" and any(
                lookup(inner.op).body_of(v.index) is None for v in inner.outputs):
            return False
    b = Builder(low.kernel_name(group.nodes[-1].op if node.op != "fused" else "fused"),
                node.origin)
    inliner = Inliner({})
    args: list[Storage] = []
    for inner, outer in zip(group.inputs, group.outer, strict=True):
        if inner in inliner.buffers:
            continue
        if outer.content is not None and outer.type.numel == 1 \
                and not outer.content.reshape(-1)[0].args:
            inliner.known[inner] = outer.content.reshape(-1)[0]
        elif (formula := _formula(outer)) is not None:
            inliner.hooks[inner] = formula
        else:
            inliner.buffers[inner] = flat_param(b, inner, "x")
            args.append(low.storage(outer))
    outs = [b.param("y", v.dtype, (v.type.numel,)) for v in group.outputs]
    for value, out in zip(group.outputs, outs, strict=True):
        write_value(b, low, inliner, value, out)
    args += [low.storage(v) for v in node.outputs]
    low.launch(work_of(b, group, len(outs)), args)
    return True


def _formula(value: Value) -> Callable[[tuple[Expr, ...]], Expr] | None:
    """The elements of a constant of integers in even steps along every axis, such as positions of
    a gather, as a function of their index."""
    array = value.constant
    if array is None or not value.dtype.is_integer or array.size < 2 or value.dtype.bits < 8:
        return None
    if int(array.max()) >= 1 << 31 or int(array.min()) < -(1 << 31):  # sums stay within 64 bits
        return None
    wide = np.asarray(array).astype(np.int64)
    first = int(wide.reshape(-1)[0])
    origin = (0,) * wide.ndim
    steps = [int(wide[(*origin[:k], 1, *origin[k + 1:])]) - first if n > 1 else 0
             for k, n in enumerate(wide.shape)]
    grids = np.ogrid[tuple(slice(n) for n in wide.shape)]
    if not np.array_equal(wide, first + sum(s * g for s, g in zip(steps, grids, strict=True))):
        return None

    def element(index: tuple[Expr, ...]) -> Expr:
        total: Expr = wrap(first)
        for i, step in zip(index, steps, strict=True):
            total = total + i * step
        return cast(total, value.dtype)

    return element


def materialise(low: Lowering, group: Group, value: Value) -> Storage:
    """Where a value that the group computes on the way is in memory: launches loops for it alone.
    An input of the group is where it is."""
    if value in group.inputs:
        return low.storage(group.outer[group.inputs.index(value)])
    b = Builder(low.kernel_name("operand"), group.node.origin)
    buffers: dict[Value, Buffer] = {}
    args: list[Storage] = []
    needed = _ancestors(value)
    for inner, outer in zip(group.inputs, group.outer, strict=True):
        if inner in needed and inner not in buffers:
            buffers[inner] = flat_param(b, inner, "x")
            args.append(low.storage(outer))
    out = b.param("y", value.dtype, (value.type.numel,))
    write_value(b, low, Inliner(buffers), value, out)
    target = low.temporary(value.type, "operand")
    low.launch(b.kernel(1, 0, wrap(value.type.numel) * (2 * value.dtype.itemsize)),
               [*args, target])
    return target


def _ancestors(value: Value) -> set[Value]:
    """The value and everything it is computed from."""
    found: set[Value] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if current in found:
            continue
        found.add(current)
        if current.node is not None:
            stack += [v for v in current.node.inputs if v is not None]
    return found


def write_value(b: Builder, low: Lowering, inliner: Inliner, value: Value, out: Buffer) -> None:
    """All elements of `value` into `out`; a concatenation writes part by part."""
    node = value.node
    if node is not None and node.op == "concat" and value not in inliner.buffers:
        axis = node.attrs["axis"]
        strides = Buffer("", out.dtype, value.shape).element_strides()
        start: Expr = wrap(0)
        for part in node.inputs:
            assert part is not None

            def element(index, part=part):
                return inliner.at(part, index)

            write_elements(b, low.machine, out, part.shape, element,
                           offset=start * wrap(strides[axis]), strides=strides)
            start = start + wrap(part.shape[axis])
        return
    write_elements(b, low.machine, out, value.shape, lambda index: inliner.at(value, index))


def work_of(b: Builder, group: Group, outputs: int) -> Kernel:
    """The kernel with its work: bytes of every parameter, operations of the stored values."""
    moved: Expr = wrap(0)
    for buffer in b.params:
        moved = moved + wrap(buffer.shape[0]) * buffer.dtype.itemsize
    kernel = b.kernel(outputs=outputs, bytes=moved)
    return Kernel(kernel.name, kernel.params, kernel.sizes, kernel.body, outputs,
                  operations(kernel), moved, kernel.origin)


def operations(kernel: Kernel) -> Expr:
    """Arithmetic operations of a kernel in terms of its sizes: floating-point value operations
    times loop extents. Extents that depend on where an outer loop is count as at its start; both
    arms of a branch count."""
    total: Expr = wrap(0)
    names: dict[Expr, Expr] = {}
    stack = [(s, wrap(1)) for s in reversed(kernel.body.body)]
    while stack:
        s, times = stack.pop()
        if isinstance(s, Let):
            names[s.var] = substitute(s.value, names)
        elif isinstance(s, Store):
            count = sum(x.lanes for x in walk(s.value) if isinstance(x, Op) and x.dtype.is_float)
            total = total + times * count
        if isinstance(s, For):
            extent = substitute(wrap(s.extent), names)
            known = all(v in kernel.sizes for v in free_vars(extent)) and not any(
                isinstance(x, Load) for x in walk(extent))
            times = times * (extent if known else 1)
            names[s.var] = wrap(0)
        stack += [(x, times) for x in reversed(children(s))]
    return total


def by_procedure(low: Lowering, node: Node) -> bool:
    """The operator's procedural kernel."""
    write = procedural.find(node.op)
    if write is None:
        return False
    site = procedural.Site(node, low.kernel_name(node.op))
    write(site)
    kernel = site.kernel()
    args = [low.storage(v) for v in node.inputs if v is not None]
    args += [low.temporary(t, "scratch") for t in site.scratches]
    args += [low.storage(v) for v in node.outputs]
    low.launch(kernel, args)
    return True


def in_turn(low: Lowering, node: Node) -> bool:
    """The nodes of a chain one after another."""
    if node.op != "chain":
        return False
    (region,) = node.regions
    for inner, outer in zip(region.outputs, node.outputs, strict=True):
        low.storages[inner] = low.storage(outer)
    for inner in region.ordered():
        low.node(inner)
    return True


GENERIC_RULES: tuple[Rule, ...] = (by_bodies, by_procedure, in_turn)
