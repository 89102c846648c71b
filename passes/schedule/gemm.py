"""Matrix products: packed right operand, register tiles over rows and column panels.

The right operand is packed to [batch, panels, K, panel width], padded with zero columns: at
compile time when it is constant, else by a kernel of its own; a few rows read it where it is
(`flat_gemm`). The left operand is read in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ir import dtype as dt
from ...ir.expr import Expr, const, op, var, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import broadcast_index, flat_index, same, unflatten
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ...ir.program import Storage
from ..lower.generic import Group, materialise
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering
from .copies import widen
from .deep_gemm import write_deep
from .dot import F32, Dot, Fetch, ahead_of, choose_dot, widened_first
from .flat_gemm import MOST_ROWS, chunk_of, write_flat
from .microkernel import Epilogue, accumulators
from .pack_operand import pack_at_run
from .plans import Product, others, sizes
from .product_plans import TASK_FLOPS, Shape, product_plans
from .tiles import Registers, Tile, split_rows

UNROLLED_EPILOGUE = 160
"""Operations of an epilogue, over all vectors of a tile, that are unrolled."""

@dataclass
class Operands:
    """What the templates need of a group: its parameters, and where results go."""

    b: Builder
    buffers: dict[Value, Buffer]
    known: dict[Value, Expr]
    args: list[Storage]
    outs: list[Buffer]


def needed(group: Group, root: Node, *operands: Value) -> set[Value]:
    """The inputs that the epilogue reads, and those of `operands` that are inputs."""
    found = set(operands)
    stack = list(group.outputs)
    seen: set[Value] = set()
    while stack:
        value = stack.pop()
        if value in seen or value is root.output:
            continue
        seen.add(value)
        if value.node is None or value in group.inputs:
            found.add(value)
        else:
            stack += [v for v in value.node.inputs if v is not None]
    return found


def add_operand(low: Lowering, group: Group, ops: Operands, value: Value) -> None:
    """Makes `value` a parameter: computed by a kernel of its own when the group computes it."""
    if value in ops.buffers:
        return
    storage = materialise(low, group, value)
    ops.buffers[value] = ops.b.param("x", value.dtype, (value.type.numel,))
    ops.args.append(storage)


def left_operand(low: Lowering, group: Group, ops: Operands, value: Value, dot: Dot) -> Buffer:
    """A parameter that holds `value` as the inner step reads it."""
    if dot.widened is None:
        add_operand(low, group, ops, value)
        return ops.buffers[value]
    storage = widen(low, materialise(low, group, value), dot.widened)
    ops.args.append(storage)
    return ops.b.param("x", dot.widened, (storage.type.numel,))


def operands(low: Lowering, group: Group, name: str, keep: set[Value]) -> Operands:
    """Parameters for the external values of a group in `keep`; outputs last (not yet added)."""
    b = Builder(low.kernel_name(name), group.node.origin)
    outs = [Buffer(f"out{k}", v.dtype, (v.type.numel,)) for k, v in enumerate(group.outputs)]
    ops = Operands(b, {}, {}, [], outs)
    add_inputs(low, group, ops, keep)
    return ops


def add_inputs(low: Lowering, group: Group, ops: Operands, keep: set[Value]) -> None:
    """Parameters for the external values of a group in `keep`."""
    for inner, outer in zip(group.inputs, group.outer, strict=True):
        if inner in ops.buffers or inner in ops.known or inner not in keep:
            continue
        if outer.content is not None and outer.type.numel == 1 \
                and not outer.content.reshape(-1)[0].args:
            ops.known[inner] = outer.content.reshape(-1)[0]
            continue
        ops.buffers[inner] = ops.b.param("x", inner.dtype, (inner.type.numel,))
        ops.args.append(low.storage(outer))


def finish(low: Lowering, node: Node, ops: Operands, flops: Any) -> None:
    """Adds the outputs, closes the kernel and launches it."""
    ops.b.params += ops.outs
    moved: Expr = wrap(0)
    for buffer in ops.b.params:
        moved = moved + wrap(buffer.shape[0]) * buffer.dtype.itemsize
    kernel = ops.b.kernel(len(ops.outs), flops, moved)
    low.launch(kernel, [*ops.args, *(low.storage(v) for v in node.outputs)])


def outer_value(group: Group, inner: Value) -> Value:
    """The value outside the group that region input `inner` stands for."""
    return group.outer[group.inputs.index(inner)]


def matmul_rule(low: Lowering, node: Node) -> bool:
    """Matrix products that the machine has an inner step for, with elementwise epilogue."""
    group = Group(node)
    root = group.find("matmul")
    if root is None:
        return False
    left, right = root.inputs
    assert left is not None and right is not None
    dot = choose_dot(low.machine, left, right, root.output)
    if dot is None:
        return False
    if right not in group.inputs or any(same(d, 0) for d in root.output.shape):
        return False
    if group.outputs != [root.output] and any(v.shape != root.output.shape
                                              for v in group.outputs):
        return False
    out = root.output
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    right_outer = outer_value(group, right)
    registers = Registers(low.machine.lanes, low.machine.vector_registers)
    lanes = low.machine.lanes
    flat = right.rank == 2 and walks_as_one(group, root)
    height = product(left.shape[:-1]) if flat else rows
    constant = right_outer.constant
    if constant is None and (dot.widens or dot.group > 1 and dot.accumulator is not dt.i32):
        return False
    ops = operands(low, group, "matmul", needed(group, root, *([] if dot.widened else [left])))
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    if lanes > 1 and not epilogue.vectorisable():
        return False
    batch = () if flat else out.shape[:-2]
    if constant is None and dot is F32 and lanes > 1 and isinstance(height, int) \
            and height <= MOST_ROWS:
        _write_unpacked(low, group, ops, epilogue, height, batch, left, right, registers)
        finish(low, node, ops, wrap(out.type.numel) * wrap(inner) * 2)
        return True
    shape = Shape(rows=height if flat else rows, inner=inner, columns=columns)
    plan = low.choose("matrix product", " ".join((
        f"{left.dtype.name}[{sizes((*batch, shape.rows, inner))}]",
        f"{right.dtype.name}[{sizes((*right.shape[:-2], inner, columns))}]",
        "given" if constant is None else "constant", others(group, root))),
        product_plans(shape, height, dot, not batch and dot.floats, registers,
                      left.dtype.itemsize))
    width = plan.vectors * lanes
    if constant is not None:
        array = dot.pack(constant[..., None, :, :], width)
        packed = low.constant(array, TensorType(dot.packed, array.shape))
    else:
        packed = pack_at_run(low, right_outer, dot, width)
    x = left_operand(low, group, ops, left, dot)
    panel_buffer = ops.b.param("packed", dot.packed, (packed.type.numel,))
    ops.args.append(packed)
    _write(ops, epilogue, dot, shape, batch, x, left, right, out, plan, lanes, panel_buffer,
           0 if constant is None else ahead_of(array))
    flops = wrap(out.type.numel) * wrap(inner) * 2
    finish(low, node, ops, flops)
    return True


def product(dims) -> Any:
    """The product of dimensions."""
    total: Any = 1
    for d in dims:
        total = total * d
    return total


def _loaded(group: Group, root: Node) -> list[Value]:
    return [v for n in group.nodes if n is not root for v in n.inputs if v is not None]


def walks_as_one(group: Group, root: Node) -> bool:
    """Whether batch and rows can be walked as one: every other operand has the output's shape or
    varies along the last axis only."""
    out = root.output
    for v in _loaded(group, root):
        if v in group.inputs and v.shape != out.shape and any(
                not same(d, 1) for d in v.shape[:-1]):
            return False
    return True


def _write(ops: Operands, epilogue: Epilogue, dot: Dot, shape: Shape, batch, x: Buffer,
           left: Value, right: Value, out: Value, plan: Product, lanes: int, packed: Buffer,
           ahead: int) -> None:
    b = ops.b
    tile, chunk = Tile(plan.rows, plan.vectors), plan.chunk
    width = tile.vectors * lanes
    inner, columns = wrap(shape.inner), wrap(shape.columns)
    panels = (columns + (width - 1)) // width
    count = product([wrap(d) for d in batch])
    blocks = row_blocks(shape.rows, tile.rows)
    tasks_per_panel = wrap(blocks[0].count + (chunk - 1)) // chunk if blocks else wrap(1)
    if len(blocks) > 1:  # Where all main tiles are missing, a task is there for the rest.
        tasks_per_panel = op("max", tasks_per_panel, 1)

    def place(m) -> tuple[Expr, Expr]:
        """(left offset, packed offset) of batch m."""
        if not batch:
            return const(0), const(0)
        index = unflatten(m, batch)
        a = flat_index(broadcast_index(index, left.shape[:-2], batch), left.shape[:-2])
        c = flat_index(broadcast_index(index, right.shape[:-2], batch), right.shape[:-2])
        return a * wrap(shape.rows) * inner, c * panels * dot.steps(inner) * width

    if plan.blocks:
        lead, between = places(out)

        def store(part: Tile, acc: Buffer, panel: Expr, row: Expr) -> None:
            store_tile(b, epilogue, part, lanes, acc, panel, columns, width,
                       lambda r, column: (*lead, row + r, *between, column))

        write_deep(b, store, dot, tile, lanes, plan.blocks, x, packed, shape.rows, shape.inner,
                   shape.columns)
        return
    pace = _fetch_pace(blocks[0].count, chunk, width) if ahead and blocks else 0
    near = widened_first(dot, lanes, shape.inner, width, blocks[0].count if blocks else 0)
    total = wrap(count) * panels * tasks_per_panel
    with b.loop("t", total, "parallel") as t:
        # Panels innermost: the rows of a task stay in the level-2 cache for all of them.
        panel, step_batch = t % panels, t // panels
        step, m = step_batch % tasks_per_panel, step_batch // tasks_per_panel
        panel, m, step = b.let("p", panel), b.let("m", m), b.let("s", step)
        a_base, b_base = place(m)
        a_base, b_base = b.let("ab", a_base), b.let("bb", b_base + panel * dot.steps(inner) * width)
        lead, between = (unflatten(m, batch), ()) if batch else places(out)
        read, weights, first = dot, packed, b_base
        if near:
            read, first = F32, const(0)
            weights = b.alloc("near", dt.f32, (shape.inner * width,))

        def rows_of(start: Expr, height: int, fetch: Fetch | None = None) -> None:
            _tile(b, epilogue, read, Tile(height, tile.vectors), lanes, x, weights, a_base, first,
                  start, inner, panel, columns, width, lead, between,
                  0 if fetch or near else ahead, fetch)

        def widening(start: Expr, height: int) -> None:
            _tile(b, epilogue, dot, Tile(height, tile.vectors), lanes, x, packed, a_base, b_base,
                  start, inner, panel, columns, width, lead, between, ahead, None, weights)

        def main() -> None:
            first = blocks[0]
            low = step * chunk
            count = op("min", wrap(chunk), wrap(first.count) - low)
            if near and isinstance(first.count, int):
                # Stores hide behind the products of the first tile.
                widening(b.let("row", first.start + low * first.height), first.height)
                low, count = low + 1, count - 1
            elif near:
                dot.widen(b, packed, b_base, weights, 0, inner, width, lanes, ahead)
            with b.loop("r", count) as r:
                fetch = None
                if pace:
                    following = b_base + dot.steps(inner) * (width + r * pace)
                    fetch = Fetch(packed, b.let("next", following), pace)
                rows_of(b.let("row", first.start + (low + r) * first.height), first.height, fetch)

        def rest() -> None:
            for block in blocks[1:]:
                if isinstance(block.count, int) and block.count == 1:
                    rows_of(wrap(block.start), block.height)
                    continue
                with b.loop("r", block.count) as r:
                    rows_of(b.let("row", block.start + r * block.height), block.height)

        main()
        if len(blocks) > 1:
            with b.when(op("eq", step, tasks_per_panel - 1)):
                rest()


def _write_unpacked(low: Lowering, group: Group, ops: Operands, epilogue: Epilogue, rows: int,
                    batch, left: Value, right: Value, registers: Registers) -> None:
    """The loops of a product of a few rows with a matrix that is read in place."""
    for value in (left, right):
        add_operand(low, group, ops, value)
    b, out, lanes = ops.b, epilogue.root, registers.lanes
    inner, columns = left.shape[-1], right.shape[-1]
    chunk = chunk_of(rows, inner, columns, lanes)
    chunks = (wrap(columns) + (chunk - 1)) // chunk
    work = 2 * rows * chunk * (inner if isinstance(inner, int) else 256)
    column = var("column", extent=wrap(columns))
    with b.loop("t", product([wrap(d) for d in batch]) * chunks, "parallel",
                grain=max(1, TASK_FLOPS // max(1, work))) as t:
        index = unflatten(b.let("m", t // chunks), batch) if batch else ()
        lead, between = (index, ()) if batch else places(out)
        offsets = [flat_index(broadcast_index(index, v.shape[:-2], batch), v.shape[:-2])
                   * wrap(v.shape[-2]) * wrap(v.shape[-1]) if batch else const(0)
                   for v in (left, right)]
        a_base, b_base = (b.let("base", offset) for offset in offsets)
        write_flat(b, ops.buffers[left], a_base, ops.buffers[right], b_base, rows, inner, columns,
                   b.let("first", t % chunks * chunk), chunk, registers,
                   lambda r, base, result, count: epilogue.store(
                       (*lead, r, *between, column), column, base, lanes, result, count))


def places(out: Value) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
    """The indices before and behind the row when the rows of all batches count as one: along the
    last axis that is more than one long."""
    axis = max((a for a in range(out.rank - 1) if not same(out.shape[a], 1)), default=0)
    return (const(0),) * axis, (const(0),) * (out.rank - 2 - axis)


def _fetch_pace(tiles: Any, chunk: int, width: int) -> int:
    """How many elements of the next panel to ask for in every step of a task, so that it arrives
    evenly while this one is multiplied; 0 where a task has too few tiles for that."""
    if not isinstance(tiles, int) or min(tiles, chunk) < 3:
        return 0
    return -(-width // min(tiles, chunk))


@dataclass
class RowBlock:
    """`count` tiles of `height` rows from row `start` on."""

    start: Expr
    height: int
    count: Any


def row_blocks(rows: Any, limit: int) -> list[RowBlock]:
    """Tiles that cover `rows`: even ones when it is known, else the largest and then single
    rows, by fours where that is fewer."""
    if isinstance(rows, int):
        result, first = [], 0
        for height, count in split_rows(rows, limit):
            result.append(RowBlock(const(first), height, count))
            first += height * count
        return result
    result = []
    start: Expr = const(0)
    rest = wrap(rows)
    for height in dict.fromkeys((limit, min(4, limit), 1)):
        count = rest // height
        result.append(RowBlock(start, height, count))
        start = start + count * height
        rest = wrap(rows) - start
    return result


def _tile(b: Builder, epilogue: Epilogue, dot: Dot, tile: Tile, lanes: int, x: Buffer,
          packed: Buffer, a_base: Expr, b_base: Expr, start: Expr, inner: Expr, panel: Expr,
          columns: Expr, width: int, lead, between, ahead: int, fetch: Fetch | None,
          keep: Buffer | None = None) -> None:
    acc = accumulators(b, tile, lanes, dot.accumulator)
    origin = b.let("ao", a_base + start * inner)
    dot.accumulate(b, acc, tile, lanes, inner, lambda r: (x, origin + r * inner), packed, b_base,
                   ahead=ahead, fetch=fetch, keep=keep)
    store_tile(b, epilogue, tile, lanes, acc, panel, columns, width,
               lambda r, column: (*lead, start + r, *between, column))


def store_tile(b: Builder, epilogue: Epilogue, tile: Tile, lanes: int, acc: Buffer, panel: Expr,
               columns: Expr, width: int, index, start: Expr | None = None) -> None:
    """Stores a register tile whose columns start at panel * width, cutting those beyond the end.
    The `columns` that may be stored are those from `start` on, when given.

    `index(r, column)` is the output index of row r. A long epilogue runs in a loop over the rows
    of the tile, spilled to the stack; a short one is unrolled over registers. Without vectors all
    elements take one loop, because the size of the code counts.
    """
    origin = const(0) if start is None else start
    column = var("column", extent=origin + columns)
    if lanes == 1 and tile.rows * tile.vectors > 1:
        _store_elements(b, epilogue, tile, acc, panel, columns, index, origin)
        return
    looped = tile.rows > 1 and epilogue.length() * tile.rows * tile.vectors > UNROLLED_EPILOGUE
    spill = None
    if looped:
        spill = b.alloc("tile", acc.dtype, (tile.rows * tile.vectors * lanes,))
        for r in range(tile.rows):
            for v in range(tile.vectors):
                b.store(spill, ((r * tile.vectors + v) * lanes,), acc[r, v])

    def rows(put) -> None:
        if spill is None:
            for r in range(tile.rows):
                put(r, lambda v, r=r: acc[r, v])
            return
        kept = spill
        with b.loop("r", tile.rows) as r:
            put(r, lambda v: load(kept, ((r * tile.vectors + v) * lanes,), lanes))

    def store(r, v: int, result: Expr, count: Expr | None) -> None:
        base = origin + panel * width + v * lanes
        epilogue.store(index(r, column), column, base, lanes, result, count)

    def whole() -> None:
        rows(lambda r, result: [store(r, v, result(v), None) for v in range(tile.vectors)])

    ragged = columns % width
    if ragged is const(0):
        whole()
        return
    with b.when(op("le", (panel + 1) * width, columns)):
        whole()
    with b.otherwise():
        for v in range(tile.vectors):
            left = b.let("left", op("min", columns - panel * width - v * lanes, lanes))
            with b.when(op("gt", left, 0)):
                rows(lambda r, result, v=v, count=None if lanes == 1 else left: store(
                    r, v, result(v), count))


def _store_elements(b: Builder, epilogue: Epilogue, tile: Tile, acc: Buffer, panel: Expr,
                    columns: Expr, index, origin: Expr) -> None:
    """Stores a tile of scalars, spilled to the stack, one element after the other."""
    column = var("column", extent=origin + columns)
    spill = b.alloc("tile", acc.dtype, (tile.rows * tile.vectors,))
    for r in range(tile.rows):
        for v in range(tile.vectors):
            b.store(spill, (r * tile.vectors + v,), acc[r, v])
    width: Expr = const(tile.vectors)
    if columns % width is not const(0):
        width = b.let("width", op("min", columns - panel * width, width))
    with b.loop("r", tile.rows) as r, b.loop("v", width) as v:
        result = load(spill, (r * tile.vectors + v,))
        epilogue.store(index(r, column), column, origin + panel * tile.vectors + v, 1, result,
                       None)
