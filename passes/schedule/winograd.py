"""Convolutions of 3 x 3 windows with stride 1 by fewer multiplications.

Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks": a tile of m x m results of
F(m x m, 3 x 3) takes (m + 2)^2 products instead of 9 m^2. Tiles of the input are transformed, each
of the (m + 2)^2 components is a matrix product over the channels, and the products are transformed
back. Where a block of tiles is transformed by the task that multiplies it, the block stays in the
level-2 cache; where there are too few blocks for that, all tiles are transformed first.

Weights are transformed while compiling and kept as f32, also those that the graph has in 16 bits:
rounding them once more would err more than rounding the weights did.

The interpolation points are 0, infinity and pairs +-p. F(4 x 4) takes p = 5/8 and 3/2, whose
products are near 1: its rounding errors are 1.5 times those of the direct sum, against 8 times for
the usual 1 and 2 (measured; on the influence of points see Barabasz et al. 2020, "Error Analysis
and Improving the Accuracy of Winograd Convolution for Deep Neural Networks").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from math import ceil, prod
from typing import Any

import numpy as np

from ...ir import dtype as dt
from ...ir.expr import Expr, both, broadcast, const, op, var, wrap
from ...ir.graph.core import Node, TensorType, Value
from ...ir.graph.ops.shapes import same
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, load
from ..lower.generic import Group
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering
from .deep_conv import LINE, deep_plans
from .dot import F32, STORED, Fetch, ahead_of
from .gemm import add_operand, finish, needed, operands, outer_value, row_blocks
from .microkernel import Epilogue, accumulators
from .plans import DeepDirect, Direct, Winograd, convolution_text, direct_plans, tiles_for
from .tiles import Registers, Tile, choose, split_rows, step_cycles
from .window import windows_of

INPUT_BYTES = 768 * 1024
"""Transformed input of one block of tiles: it shares a level-2 cache with the weights' panels."""

LEAST_BLOCKS = 6
"""Blocks of tiles from which on each is a task; below, panels of columns are tasks as well."""

FEWEST_TILES, MOST_TILES = 4, 56
"""Tiles of a block, at least and at most."""

FULL_BLOCK = 14
"""Tiles of a block that fill a register tile."""

ENOUGH_VECTORS = 8
"""Vectors of results whose panels are enough tasks by themselves."""

LARGEST_ERROR = 1e-5
"""Estimated error, relative to the largest result, above which a transform is not used."""

WEIGHT_BYTES_PER_CYCLE = 4
"""How fast weights come from beyond the level-2 cache."""


@dataclass(frozen=True)
class Transform:
    """F(m x m, 3 x 3) with m = 2 * len(pairs): points 0, +-p for each pair, and infinity."""

    pairs: tuple[float, ...]

    @property
    def outputs(self) -> int:
        return 2 * len(self.pairs)

    @property
    def size(self) -> int:
        return self.outputs + 2

    @property
    def points(self) -> list[float]:
        """The finite points."""
        return [0.0, *(s for p in self.pairs for s in (p, -p))]

    def kernel(self) -> np.ndarray:
        """G [size, 3]: takes three weights to the points (Cook-Toom)."""
        rows = [[a**k / prod(a - b for b in self.points if b != a) for k in range(3)]
                for a in self.points]
        return np.array([*rows, [0.0, 0.0, 1.0]])

    def input(self, d: Sequence[Any], combine: Callable[..., Any]) -> list[Any]:
        """The `size` components of as many consecutive elements. `combine` sums (factor, term)."""
        whole = even_polynomial(self.pairs)
        result = [combine(*((c, d[2 * i]) for i, c in enumerate(whole)))]
        for p in self.pairs:
            others = even_polynomial([q for q in self.pairs if q != p])
            even = combine(*((c, d[2 * i + 2]) for i, c in enumerate(others)))
            odd = combine(*((c, d[2 * i + 1]) for i, c in enumerate(others)))
            result += [combine((1.0, even), (p, odd)), combine((1.0, even), (-p, odd))]
        return [*result, combine(*((c, d[2 * i + 1]) for i, c in enumerate(whole)))]

    def output(self, m: Sequence[Any], combine: Callable[..., Any]) -> list[Any]:
        """The `outputs` results of the products at the points."""
        sums, differences = [], []
        for k in range(len(self.pairs)):
            plus, minus = m[1 + 2 * k], m[2 + 2 * k]
            sums.append(combine((1.0, plus), (1.0, minus)))
            differences.append(combine((1.0, plus), (-1.0, minus)))
        result = []
        for i in range(self.outputs):
            terms = [(p**i, x) for p, x in zip(self.pairs, differences if i % 2 else sums)]
            if i == 0:
                terms.insert(0, (1.0, m[0]))
            if i == self.outputs - 1:
                terms.insert(0, (1.0, m[-1]))
            result.append(combine(*terms))
        return result


TRANSFORMS = (Transform((0.625, 1.5)), Transform((1.0,)))
"""F(4 x 4, 3 x 3) and F(2 x 2, 3 x 3)."""


def even_polynomial(pairs: Sequence[float]) -> list[float]:
    """The coefficients, lowest first, of the product of (x - p^2) over the pairs."""
    return np.poly([p * p for p in pairs])[::-1].tolist() if pairs else [1.0]


def transformed_weights(transform: Transform, weights: np.ndarray) -> np.ndarray:
    """[size * size, C, F] of weights [F, C, 3, 3]."""
    g = transform.kernel()
    wide = np.einsum("ia,fcab,jb->ijcf", g, weights.astype(np.float64), g, optimize=True)
    return wide.reshape(-1, *wide.shape[2:]).astype(np.float32)


def _sum(*terms) -> Any:
    """Arrays summed in their own precision."""
    (first, x), *rest = terms
    total = x if first == 1.0 else x * x.dtype.type(first)
    for factor, term in rest:
        total = total + term * term.dtype.type(factor)
    return total


def error_estimate(transform: Transform, weights: np.ndarray) -> float:
    """The largest error over the largest result, measured on a few tiles of rectified noise."""
    features, channels = weights.shape[:2]
    some = weights[:: max(1, features // 16)]
    n, m = transform.size, transform.outputs
    rng = np.random.default_rng(0)
    d = np.maximum(rng.standard_normal((n, n, 32, channels)), 0).astype(np.float32)
    u = transformed_weights(transform, some)
    rows = [transform.input(list(row), _sum) for row in transform.input(list(d), _sum)]
    products = np.stack([np.stack(row) for row in rows]).reshape(n * n, 32, channels) @ u
    columns = transform.output(list(products.reshape(n, n, 32, -1)), _sum)
    found = np.stack([np.stack(transform.output(list(c), _sum)) for c in columns])
    w = some.astype(np.float64)
    wanted = np.zeros(found.shape)
    for a, b in np.ndindex(3, 3):
        wanted += d[a:a + m, b:b + m].astype(np.float64) @ w[:, :, a, b].T
    largest = float(np.abs(wanted).max())
    return float(np.abs(found - wanted).max()) / largest if largest else 0.0


# The choice -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What the cost of a convolution depends on; unknown sizes are taken as 64."""

    batch: int
    height: int
    width: int
    channels: int
    features: int


def direct_cycles(shape: Shape, registers: Registers) -> float:
    """Modelled cycles of the direct form on one thread."""
    rows = shape.batch * shape.height
    tile = choose(shape.width, shape.features, registers)
    panels = ceil(shape.features / (tile.vectors * registers.lanes))
    steps = sum(count * step_cycles(Tile(height, tile.vectors), registers)
                for height, count in split_rows(shape.width, tile.rows))
    products = rows * panels * steps * 9 * shape.channels
    return max(products, 36 * shape.channels * shape.features / WEIGHT_BYTES_PER_CYCLE)


def winograd_cycles(shape: Shape, transform: Transform, registers: Registers) -> float:
    """Modelled cycles of a transform on one thread: products or their weights' way from memory,
    and the two transforms, which are bound by loads and stores."""
    m, n = transform.outputs, transform.size
    tiles = shape.batch * ceil(shape.height / m) * ceil(shape.width / m)
    block = block_of(tiles, transform, shape.channels, shape.features, registers.lanes)
    blocks = ceil(tiles / block)
    tile = choose(block, shape.features, registers)
    panels = ceil(shape.features / (tile.vectors * registers.lanes))
    steps = sum(count * step_cycles(Tile(height, tile.vectors), registers)
                for height, count in split_rows(block, tile.rows))
    products = blocks * panels * steps * n * n * shape.channels
    weights = 4 * n * n * shape.channels * shape.features / WEIGHT_BYTES_PER_CYCLE
    to_points = tiles * ceil(shape.channels / registers.lanes) * 4 * n * n
    back = tiles * ceil(shape.features / registers.lanes) * (2.5 * n * n + 3 * m * m)
    return max(products, weights) + to_points + back


def block_of(tiles: int | None, transform: Transform, channels: int, features: int, lanes: int,
             ) -> int:
    """Tiles that a task multiplies together; `tiles` None when unknown. Where there are panels of
    columns enough for tasks, it is all of few tiles, so that weights are read once."""
    each = 4 * transform.size**2 * ceil(channels / lanes) * lanes
    most = min(max(INPUT_BYTES // each, FEWEST_TILES), MOST_TILES)
    if tiles is None:
        return most
    if tiles >= LEAST_BLOCKS * FULL_BLOCK:
        most = min(most, tiles // LEAST_BLOCKS)
    elif features >= ENOUGH_VECTORS * lanes:
        return tiles
    return ceil(tiles / ceil(tiles / most))


@lru_cache(maxsize=256)
def _ranked(shape: Shape, registers: Registers) -> tuple[Transform, ...]:
    """The transforms that are expected to save a twelfth of the time at least, best first."""
    limit = direct_cycles(shape, registers) / 1.08
    costs = {t: winograd_cycles(shape, t, registers) for t in TRANSFORMS}
    return tuple(sorted((t for t in TRANSFORMS if costs[t] < limit), key=lambda t: costs[t]))


def choose_transform(out: Value, weights: np.ndarray, registers: Registers) -> Transform | None:
    """The fastest transform that is exact enough for these weights; None for the direct form."""
    n, h, w, _ = (d if isinstance(d, int) else 64 for d in out.shape)
    features, channels = weights.shape[:2]
    batch = n if isinstance(out.shape[0], int) else 1
    for transform in _ranked(Shape(batch, h, w, channels, features), registers):
        if error_estimate(transform, weights) <= LARGEST_ERROR:
            return transform
    return None


def tiles_of(out: Value, transform: Transform) -> Expr:
    """Tiles that cover the results."""
    n, height, width, _ = (wrap(d) for d in out.shape)
    m = transform.outputs
    return n * ((height + (m - 1)) // m) * ((width + (m - 1)) // m)


def plans(root: Node, weights: np.ndarray, registers: Registers,
          ) -> Iterator[Winograd | DeepDirect | Direct]:
    """The cost model's plan, then others: of its transform, of the other transforms that are exact
    enough, and of the direct form."""
    features, channels = weights.shape[:2]
    x, out = root.inputs[0], root.output
    windows = windows_of(root, weights.shape[2:])
    assert x is not None and windows is not None

    def modelled(transform: Transform, block: int | None = None) -> Winograd:
        count = getattr(tiles_of(out, transform), "value", None)
        block = block or block_of(count, transform, channels, features, registers.lanes)
        tile = choose(block, features, registers)
        return Winograd(transform.outputs, block, tile.rows, tile.vectors)

    width = out.shape[-2]
    direct = chain(deep_plans(windows[0], x.shape[1:-1], channels, features, registers),
                   direct_plans(width if isinstance(width, int) else None, features,
                                9 * channels, 4, registers))
    transform = choose_transform(out, weights, registers)
    if transform is None:
        yield next(direct)
    else:
        first = modelled(transform)
        yield first
        yield from (modelled(transform, n) for n in (first.block // 2, 2 * first.block)
                    if FEWEST_TILES <= n <= MOST_TILES)
        yield from (replace(first, rows=t.rows, vectors=t.vectors)
                    for t in tiles_for(first.block, features, registers)[1:3])
    yield from (modelled(t) for t in TRANSFORMS
                if t is not transform and error_estimate(t, weights) <= LARGEST_ERROR)
    yield from direct


# The kernel -----------------------------------------------------------------------------------


def suitable_weights(low: Lowering, group: Group, root: Node) -> np.ndarray | None:
    """The weights of a group's convolution if the algorithm can compute it."""
    if root.op != "conv_last" or low.machine.exact or low.machine.lanes == 1:
        return None
    x, w = root.inputs
    assert x is not None and w is not None
    out, a = root.output, root.attrs
    if w not in group.inputs or any(same(d, 0) for d in out.shape) \
            or any(v.shape != out.shape for v in group.outputs):
        return None
    weights = outer_value(group, w).constant
    plain = a["strides"] == (1, 1) and a["dilations"] == (1, 1) and a["groups"] == 1 \
        and a["fill"] == 0 and all(isinstance(p, int) for p in a["low"])
    if weights is None or weights.shape[2:] != (3, 3) or not plain \
            or not x.dtype is out.dtype is dt.f32 or w.dtype not in (dt.f32, *STORED):
        return None
    return weights


def winograd_rule(low: Lowering, node: Node) -> bool:
    """f32 conv_last, 3 x 3, stride 1, one group, constant weights, with elementwise epilogue."""
    group = Group(node)
    root = group.find("conv_last")
    weights = None if root is None else suitable_weights(low, group, root)
    if root is None or weights is None:
        return False
    out, a = root.output, root.attrs
    x = root.inputs[0]
    assert x is not None
    registers = Registers(low.machine.lanes, low.machine.vector_registers)
    plan = low.choose("convolution", convolution_text(group, root), plans(root, weights, registers))
    if not isinstance(plan, Winograd):
        return False
    ops = operands(low, group, "winograd", needed(group, root, x))
    writer = LoopWriter(ops.b, low.machine)
    epilogue = Epilogue(out, group.outputs, ops.buffers, ops.known, ops.outs, writer)
    if not epilogue.vectorisable():
        return False
    add_operand(low, group, ops, x)
    kernel = _Kernel(ops.b, epilogue, plan, registers, ops.buffers[x], x, out, weights,
                     tuple(a["low"]))
    storage = low.constant(kernel.array, TensorType(dt.f32, kernel.array.shape))
    kernel.packed = ops.b.param("packed", dt.f32, (kernel.array.size,))
    ops.args.append(storage)
    if isinstance(kernel.blocks, int) and kernel.blocks < LEAST_BLOCKS:
        type = TensorType(dt.f32, (kernel.blocks * kernel.block_elements,))
        ops.args.append(low.temporary(type, "points"))
        kernel.by_panels(ops.b.param("points", dt.f32, type.shape))
    else:
        kernel.by_blocks()
    finish(low, node, ops, kernel.flops)
    return True


class _Kernel:
    """What the loops of one convolution share. A block is `block` consecutive tiles; its
    transformed input is [tile, component, channel], a panel's products [tile, component, column]:
    what a tile writes lies in few pages, of which a processor knows few for stores at a time."""

    packed: Buffer

    def __init__(self, b: Builder, epilogue: Epilogue, plan: Winograd, registers: Registers,
                 image: Buffer, x: Value, out: Value, weights: np.ndarray, low: tuple[int, ...]):
        transform = next(t for t in TRANSFORMS if t.outputs == plan.outputs)
        self.b, self.epilogue, self.transform = b, epilogue, transform
        self.image, self.low, self.lanes = image, low, registers.lanes
        _, height, width, channels = x.shape
        self.height, self.width = wrap(height), wrap(width)
        self.channels, self.features = int(weights.shape[1]), int(weights.shape[0])
        assert same(channels, self.channels)
        self.out_height, self.out_width = wrap(out.shape[1]), wrap(out.shape[2])
        m = transform.outputs
        self.down = (self.out_height + (m - 1)) // m
        self.across = (self.out_width + (m - 1)) // m
        self.tiles = tiles_of(out, transform)
        known = getattr(self.tiles, "value", None)
        self.block = plan.block
        self.blocks: Any = (self.tiles + (self.block - 1)) // self.block if known is None \
            else ceil(known / self.block)
        self.tile = Tile(plan.rows, plan.vectors)
        self.columns = self.tile.vectors * self.lanes
        self.panels = ceil(self.features / self.columns)
        self.components = transform.size**2
        self.row = ceil(self.channels / self.lanes) * self.lanes
        if self.components * self.row % 1024 == 0:
            # Tiles whose distance is a multiple of 4096 bytes would share the sets of a cache.
            self.row += self.lanes
        self.pitch = self.components * self.row
        self.block_elements = self.block * self.pitch
        matrices = transformed_weights(transform, weights)[:, None]
        packed = F32.pack(matrices, self.columns)[:, :, 0]  # [component, panel, C, column]
        self.array = np.ascontiguousarray(packed.swapaxes(0, 1))
        self.flops = self.tiles * (2 * self.components * self.channels * self.features)

    def by_blocks(self) -> None:
        """A task transforms a block and multiplies it with all panels."""
        b = self.b
        with b.loop("t", self.blocks, "parallel") as t:
            points = b.alloc("points", dt.f32, (self.block_elements,))
            with b.loop("i", self.block) as i:
                self.to_points(points, const(0), t, i)
            with b.loop("p", self.panels) as panel:
                self.multiply(points, const(0), t, panel)

    def by_panels(self, points: Buffer) -> None:
        """All tiles are transformed, then a task multiplies one block with one panel."""
        b = self.b
        with b.loop("i", self.blocks * self.block, "parallel") as i:
            t = b.let("t", i // self.block)
            self.to_points(points, t * self.block_elements, t, i % self.block)
        with b.loop("t", self.blocks * self.panels, "parallel") as t:
            block = b.let("block", t % self.blocks)
            self.multiply(points, b.let("from", block * self.block_elements), block,
                          b.let("p", t // self.blocks))

    def place(self, index: Expr) -> tuple[Expr, Expr, Expr]:
        """(image, first row, first column) of the results of a tile."""
        b, m = self.b, self.transform.outputs
        column = b.let("tx", index % self.across)
        rest = b.let("rest", index // self.across)
        return (b.let("n", rest // self.down), b.let("y", rest % self.down * m),
                b.let("x", column * m))

    def combine(self, *terms: tuple[float, Expr]) -> Expr:
        """A sum of (factor, vector) with as few roundings as there are terms."""
        unit = next((k for k, (c, _) in enumerate(terms) if c == 1.0), 0)
        first, x = terms[unit]
        total = x if first == 1.0 else x * broadcast(const(first, dt.f32), self.lanes)
        for k, (c, term) in enumerate(terms):
            if k == unit:
                continue
            if c == 1.0:
                total = total + term
            elif c == -1.0:
                total = total - term
            else:
                total = op("fma", broadcast(const(c, dt.f32), self.lanes), term, total)
        return self.b.let("s", total)

    # Input --------------------------------------------------------------------------------------

    def to_points(self, points: Buffer, start: Expr, t: Expr, i: Expr) -> None:
        """Transforms the input of tile i of block t; tiles beyond the last repeat it."""
        b, n = self.b, self.transform.size
        index = b.let("index", op("min", t * self.block + i, self.tiles - 1))
        image, y, x = self.place(index)
        top, left = b.let("top", y - self.low[0]), b.let("left", x - self.low[1])
        inside = both(op("ge", top, 0), op("ge", left, 0), op("le", top + n, self.height),
                      op("le", left + n, self.width))
        corner = ((image * self.height + top) * self.width + left) * self.channels
        corner = b.let("corner", corner)

        def at(r: Expr, c: Expr) -> Expr:
            return corner + (r * self.width + c) * self.channels

        def chunk(c: Expr, count: Expr | None) -> None:
            target = start + i * self.pitch + c
            with b.when(inside):
                self._components(points, target, lambda r, k: load(
                    self.image, (at(r, k) + c,), self.lanes, count))
            with b.otherwise():
                patch = b.alloc("patch", dt.f32, (n * n * self.lanes,))
                zero = broadcast(const(0.0, dt.f32), self.lanes)
                with b.loops("r", (n, n)) as (r, k):
                    where = (r * n + k) * self.lanes
                    there = both(op("ge", top + r, 0), op("lt", top + r, self.height),
                                 op("ge", left + k, 0), op("lt", left + k, self.width))
                    with b.when(there):
                        b.store(patch, (where,),
                                load(self.image, (at(r, k) + c,), self.lanes, count))
                    with b.otherwise():
                        b.store(patch, (where,), zero)
                self._components(points, target, lambda r, k: load(
                    patch, ((r * n + k) * self.lanes,), self.lanes))

        whole, rest = divmod(self.channels, self.lanes)
        if whole:
            with b.loop("v", whole) as v:
                chunk(v * self.lanes, None)
        if rest:
            chunk(const(whole * self.lanes), const(rest))

    def _components(self, points: Buffer, target: Expr, read) -> None:
        """Both passes of the transform of one vector of channels."""
        b, n, lanes = self.b, self.transform.size, self.lanes
        half = b.alloc("half", dt.f32, (n * n * lanes,))
        with b.loop("k", n) as k:
            d = [b.let("e", read(const(r), k)) for r in range(n)]
            for r, value in enumerate(self.transform.input(d, self.combine)):
                b.store(half, ((r * n + k) * lanes,), value)
        with b.loop("r", n) as r:
            d = [b.let("e", load(half, ((r * n + k) * lanes,), lanes)) for k in range(n)]
            for k, value in enumerate(self.transform.input(d, self.combine)):
                b.store(points, (target + (r * n + k) * self.row,), value)

    # Products and results -----------------------------------------------------------------------

    def multiply(self, points: Buffer, start: Expr, t: Expr, panel: Expr) -> None:
        """One block times one panel of columns, and the results of that."""
        b, n, lanes = self.b, self.components, self.lanes
        products = b.alloc("products", dt.f32, (self.block * n * self.columns,))
        blocks, depth = row_blocks(self.block, self.tile.rows), self.channels * self.columns
        ahead = ahead_of(self.array)
        # The next component's weights arrive evenly while this one's meet all register tiles.
        pace = ceil(self.columns / sum(rows.count for rows in blocks))
        paced = ahead > 0 and pace <= LINE
        with b.loop("c", n) as component:
            weight = b.let("wb", (panel * n + component) * depth)
            base = b.let("base", start + component * self.row)
            before = 0
            for rows in blocks:
                with b.loop("q", rows.count) as q:
                    first = b.let("first", rows.start + q * rows.height)
                    tile = Tile(rows.height, self.tile.vectors)
                    acc = accumulators(b, tile, lanes)
                    origin = b.let("ao", base + first * self.pitch)
                    ask = weight + depth + (before + q) * (self.channels * pace)
                    fetch = Fetch(self.packed, b.let("ask", ask), pace) if paced else None
                    F32.accumulate(b, acc, tile, lanes, self.channels,
                                   lambda r, o=origin: (points, o + r * self.pitch),
                                   self.packed, weight, ahead=0 if paced else ahead, fetch=fetch)
                    for r in range(tile.rows):
                        for v in range(tile.vectors):
                            at = ((first + r) * n + component) * self.columns + v * lanes
                            b.store(products, (at,), acc[r, v])
                before += rows.count
        with b.loop("i", self.block) as i:
            index = b.let("index", t * self.block + i)
            with b.when(op("lt", index, self.tiles)):
                place = self.place(index)
                with b.loop("v", self.tile.vectors) as v:
                    self._results(products, i, v, panel, place)

    def _results(self, products: Buffer, i: Expr, v: Expr, panel: Expr,
                 place: tuple[Expr, Expr, Expr]) -> None:
        """Transforms one vector of columns of a tile back and stores it."""
        b, n, m, lanes = self.b, self.transform.size, self.transform.outputs, self.lanes
        base = b.let("column", panel * self.columns + v * lanes)
        column = var("column", extent=wrap(self.features))
        half = b.alloc("half", dt.f32, (m * n * lanes,))
        tile = b.alloc("tile", dt.f32, (m * m * lanes,))
        at = i * (self.components * self.columns) + v * lanes

        def transform() -> None:
            with b.loop("k", n) as k:
                d = [b.let("e", load(products, (at + (r * n + k) * self.columns,), lanes))
                     for r in range(n)]
                for r, value in enumerate(self.transform.output(d, self.combine)):
                    b.store(half, ((r * n + k) * lanes,), value)
            with b.loop("r", m) as r:
                d = [b.let("e", load(half, ((r * n + k) * lanes,), lanes)) for k in range(n)]
                for k, value in enumerate(self.transform.output(d, self.combine)):
                    b.store(tile, ((r * m + k) * lanes,), value)
            image, y, x = place
            rows = b.let("rows", op("min", self.out_height - y, m))
            columns = b.let("columns", op("min", self.out_width - x, m))
            ragged = self.features % lanes
            count = b.let("count", op("min", self.features - base, lanes)) if ragged else None
            with b.loop("r", rows) as r, b.loop("k", columns) as k:
                result = load(tile, ((r * m + k) * lanes,), lanes)
                self.epilogue.store((image, y + r, x + k, column), column, base, lanes, result,
                                    count)

        if self.features % self.columns:
            with b.when(op("lt", base, self.features)):
                transform()
        else:
            transform()
