"""Chains of matrix products and depthwise convolutions, band by band.

A task computes some lines of the last stage's output. It keeps of each stage's result what the
next one needs of it, in the thread's own memory: a band of lines where the next is a depthwise
convolution, whose windows span several, or a product that reads packed weights for all of them;
one line of a depthwise result. No task reads what another wrote, and every sum has the order of
the kernels apart, so that the bits are theirs too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from ...ir import dtype as dt
from ...ir.expr import Expr, const, op, wrap
from ...ir.graph.core import Node, TensorType
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer
from ..graph.chain import Stage, band_lines, stages_of
from ..lower.generic import Group
from ..lower.loops import LoopWriter
from ..lower.lowering import Lowering
from .depthwise import DepthwiseLoops, pack_depthwise
from .dot import F32, STORED, Dot, ahead_of
from .gemm import (
    Operands,
    add_inputs,
    finish,
    needed,
    row_blocks,
    store_tile,
)
from .microkernel import Epilogue, accumulators
from .plans import depthwise_plans
from .tiles import Registers, Tile, choose
from .window import windows_of

Place = tuple[Expr, Expr]
"""An image and a line: where in a tensor a buffer starts."""

NEAR_WEIGHTS = 32 * 1024
"""Bytes of packed weights up to which they stay in a level-1 cache with a tile of rows."""

START: Place = (const(0), const(0))


def chain_rule(low: Lowering, node: Node) -> bool:
    """`chain` nodes whose epilogues are vector expressions."""
    if node.op != "chain" or low.machine.lanes == 1:
        return False
    stages = stages_of(node)
    lines = band_lines(stages) if stages else None
    if stages is None or lines is None:
        return False
    out = node.output
    b = Builder(low.kernel_name("chain"), node.origin)
    ops = Operands(b, {}, {}, [], [Buffer("out", out.dtype, (out.type.numel,))])
    steps = [_step(low, ops, stage, k == 0) for k, stage in enumerate(stages)]
    if not all(s.epilogue.vectorisable() for s in steps):
        return False
    flops = sum((s.flops for s in stages), start=wrap(0))
    registers = Registers(low.machine.lanes, low.machine.vector_registers)
    _Kernel(b, steps, lines, registers).write(ops.outs[0], out.shape[0])
    finish(low, node, ops, flops)
    return True


@dataclass
class _Step:
    """A stage in the kernel: its epilogue and packed weights, with the tile of a product, and what
    it reads, once that is known. Tasks widen weights that are kept in 16 bits."""

    stage: Stage
    epilogue: Epilogue
    dot: Dot
    packed: Buffer
    tile: Tile
    ahead: int
    source: Buffer | None = None


def _step(low: Lowering, ops: Operands, stage: Stage, first: bool) -> _Step:
    lanes = low.machine.lanes
    group = Group(stage.node)
    x = stage.root.inputs[0]
    assert x is not None
    add_inputs(low, group, ops, needed(group, stage.root, *([x] if first else [])))
    _, wide, features = stage.shape
    tile = choose(wide, features, Registers(lanes, low.machine.vector_registers))
    dot = F32
    if stage.kind == "product":
        dot = STORED.get(stage.kept, F32)
        array = dot.pack(stage.weights[None], tile.vectors * lanes)
    else:
        array = pack_depthwise(stage.weights, lanes, dt.f32)
    packed = ops.b.param("packed", dot.packed, (array.size,))
    ops.args.append(low.constant(array, TensorType(dot.packed, array.shape)))
    epilogue = Epilogue(stage.root.output, group.outputs, ops.buffers, ops.known, [],
                        LoopWriter(ops.b, low.machine))
    return _Step(stage, epilogue, dot, packed, tile, ahead_of(array),
                 ops.buffers[x] if first else None)


@dataclass
class _Kernel:
    """The loops of a chain, whose tasks compute `lines` lines each."""

    b: Builder
    steps: list[_Step]
    lines: int
    registers: Registers

    def __post_init__(self) -> None:
        self.lanes = self.registers.lanes

    def write(self, out: Buffer, images: Any) -> None:
        b, last = self.b, self.steps[-1]
        height = last.stage.shape[0]
        bands = -(-height // self.lines)
        last.epilogue.targets = [out]
        with b.loop("t", wrap(images) * bands, "parallel") as t:
            n, band = b.let("n", t // bands), t % bands
            first = b.let("first", band * self.lines)
            count: Expr = const(self.lines)
            if height % self.lines:
                count = b.let("count", op("min", count, height - first))
            for step in self.steps:
                self.widen(step)
            steps, origin = self.steps, START
            if steps[0].stage.kind == "product":
                origin = self.band(n, first, count)
                steps = steps[1:]
            if steps[0].stage.kind == "product":
                self.product(steps[0], n, first, count, origin, START)
                return
            if len(steps) > 1:
                self.keep(steps[0], 1)
            with b.loop("y", count) as y:
                at = b.let("line", first + y)
                place = (n, at) if len(steps) > 1 else START
                self.depthwise(steps[0], n, at, origin, place)
                if len(steps) > 1:
                    self.product(steps[1], n, at, const(1), place, START)

    def widen(self, step: _Step) -> None:
        """Weights that are kept in 16 bits, as f32 in memory of the task."""
        if step.dot.widens:
            near = self.b.alloc("near", dt.f32, step.packed.shape)
            width = step.tile.vectors * self.lanes
            step.dot.widen(self.b, step.packed, const(0), near, 0, step.packed.shape[0] // width,
                           width, self.lanes, step.ahead)
            step.dot, step.packed, step.ahead = F32, near, 0

    def keep(self, step: _Step, lines: int) -> Buffer:
        """Room for lines of a step's result, which the next one reads."""
        kept = self.b.alloc("band", dt.f32, (lines * prod(step.stage.shape[1:]),))
        step.epilogue.targets = [kept]
        self.steps[self.steps.index(step) + 1].source = kept
        return kept

    def band(self, n: Expr, first: Expr, count: Expr) -> Place:
        """The first product, for what the second step needs for lines first ... first + count;
        returns where its result starts."""
        b, step, window = self.b, self.steps[0], self.steps[1].stage.window
        height = step.stage.shape[0]
        self.keep(step, (self.lines - 1) * window.stride + window.span)
        top = b.let("top", first * window.stride - window.before)
        below = top + (count - 1) * window.stride + window.span
        if self.steps[1].stage.kind == "product":
            self.product(step, n, top, count, START, (n, top))
            return n, top
        low = b.let("low", op("max", top, 0))
        high = b.let("high", op("min", below, height))
        self.product(step, n, low, high - low, START, (n, top))
        return n, top

    def product(self, step: _Step, n: Expr, first: Expr, count: Expr, source: Place,
                target: Place) -> None:
        """A matrix product for `count` lines from `first` on. The buffers that it reads and writes
        start at the places given. Lines are outermost where the weights stay in the level-1 cache:
        a line is then written from end to end."""
        b, lanes, x = self.b, self.lanes, step.source
        assert x is not None
        height, wide, inner = step.stage.operand
        width, features = step.tile.vectors * lanes, step.stage.shape[2]
        panels = -(-features // width)
        near = 4 * step.packed.shape[0] <= NEAR_WEIGHTS
        extents = (count, panels) if near else (panels, count)
        with b.loops("y" if near else "p", extents) as where:
            y, panel = where if near else reversed(where)
            line = b.let("line", first + y)
            weight = b.let("wb", panel * (inner * width))
            base = b.let("ab", ((n - source[0]) * height + line - source[1]) * (wide * inner))
            for block in row_blocks(wide, step.tile.rows):
                with b.loop("q", block.count) as q:
                    start = b.let("row", block.start + q * block.height)
                    tile = Tile(block.height, step.tile.vectors)
                    acc = accumulators(b, tile, lanes)
                    origin = b.let("ao", base + start * inner)
                    F32.accumulate(b, acc, tile, lanes, inner,
                                   lambda r, o=origin: (x, o + r * inner), step.packed, weight,
                                   ahead=step.ahead)
                    store_tile(b, step.epilogue, tile, lanes, acc, panel, wrap(features), width,
                               lambda r, column, s=start, at=line: (
                                   n - target[0], at - target[1], s + r, column))

    def depthwise(self, step: _Step, n: Expr, line: Expr, source: Place, target: Place) -> None:
        """A line of a depthwise convolution."""
        assert step.source is not None
        windows = windows_of(step.stage.root, step.stage.weights.shape[2:])
        assert windows is not None
        height, wide, channels = step.stage.operand
        plan = next(depthwise_plans(4 * step.packed.shape[0], self.registers))
        loops = DepthwiseLoops(self.b, step.epilogue, windows[0], plan, self.lanes, step.source,
                               step.packed, channels, -(-channels // self.lanes), wrap(height),
                               wrap(wide), False, source, target)
        loops.row(n, line, step.stage.shape[1])
