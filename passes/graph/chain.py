"""Chains: products and depthwise convolutions in a row that one kernel computes band by band.

Between a matrix product and a depthwise convolution lies the largest tensor of a mobile network
(the expanded channels of an inverted residual, Sandler et al. 2018, "MobileNetV2"), and between
the two products of a perceptron its hidden layer. Where such a tensor is larger than a cache it
goes to memory and comes back. A chain holds a band of its lines at a time, and hands the band on
while it is in the cache. A depthwise window needs lines of the bands above and below, which are
computed again: a chain is made where that costs less than the memory's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod

import numpy as np

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import Expr, wrap
from ...ir.graph.clone import clone_node
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.ops.shapes import same
from .base import Pass, register
from .cost import Sizes
from .rewrite import own_graphs

PATTERNS = ("product depthwise product", "product depthwise", "depthwise product",
            "product product")
"""What chains there are."""

BAND_BYTES = 512 * 1024
"""Bytes of a band: what a task keeps of the tensor between two stages, in the level-2 cache."""

LEAST_BANDS = 4
"""Bands of an image that many threads share, where it has so many lines."""

LEAST_ROWS = 56
"""Rows of a band between two products, which share the weights read for them."""


@register
@dataclass(frozen=True)
class Chain(Pass):
    """Makes `chain` nodes of stages (`stage_of`) that follow each other.

    cache: bytes of a tensor that stay in a near cache between two kernels.
    flops_per_byte: operations that take as long as a byte's way from beyond that cache.
    """

    name = "chain"
    cache: int = 3 << 19
    flops_per_byte: int = 6

    def run(self, graph: Graph) -> bool:
        modified = False
        for home in own_graphs(graph):
            for stages in _rows(home):
                for chosen in self._choose(stages, Sizes(home)):
                    _build(home, chosen)
                    modified = True
        return modified

    def _choose(self, stages: list[Stage], sizes: Sizes) -> list[list[Stage]]:
        """The chains of a row of stages that together save the most; of equal ones the longer."""
        best: list[tuple[float, int, list[list[Stage]]]] = [(0.0, 0, [])]
        for end in range(1, len(stages) + 1):
            options = [best[end - 1]]
            for pattern in PATTERNS:
                part = stages[max(0, end - len(pattern.split())):end]
                if " ".join(s.kind for s in part) == pattern:
                    saved, count, chains = best[end - len(part)]
                    gain = self._gain(part, sizes)
                    if gain > 0:
                        options.append((saved + gain, count + len(part), [*chains, part]))
            best.append(max(options, key=lambda o: o[:2]))
        return best[-1][2]

    def _gain(self, stages: list[Stage], sizes: Sizes) -> float:
        """Bytes that a chain spares the memory, less what is computed again for them."""
        names = " -> ".join(s.node.origin or s.node.op for s in stages)
        lines = band_lines(stages)
        if lines is None:
            self.notes.append(f"{names}: no chain, because a band of lines is too large")
            return 0.0
        bands = ceil(stages[-1].shape[0] / lines)
        saved = streamed = again = 0.0
        for stage in stages[:-1]:
            size = sizes.numel(stage.node.output.type) * 4
            saved += 2 * max(0.0, size - self.cache)
        weights = sum(s.weights.size for s in stages) * 4
        if 2 * weights > self.cache:  # each band reads them from beyond the cache again
            streamed = weights * (sizes.dim(stages[-1].node.output.shape[0]) * bands - 1)
        if stages[0].kind == "product" and stages[1].kind == "depthwise":
            window = stages[1].window
            lost = (bands - 1) * max(0, window.span - window.stride)
            again = stages[0].operations(sizes) * lost / stages[0].shape[0]
        gain = saved - streamed - again / self.flops_per_byte
        said = "a chain" if gain > 0 else "no chain"
        self.notes.append(f"{names}: {said} of bands of {lines} lines, which spares "
                          f"{saved / 1e6:.3g} MB, reads {streamed / 1e6:.3g} MB of weights again "
                          f"and repeats {again / 1e6:.3g} MFLOP")
        return gain


@dataclass(frozen=True)
class Lines:
    """How a stage's output lines need lines of its operand: output line y those from
    y * stride - before on, `span` of them."""

    stride: int = 1
    span: int = 1
    before: int = 0


@dataclass(frozen=True, eq=False)
class Stage:
    """A node that may be in a chain: a group around a `product` with a constant matrix of a value's
    last axis, or around a `depthwise` convolution. Both map `x`, [N, *operand], to [N, *shape];
    shapes are (height, width, channels). `root` is the group's contraction, `weights` its other
    operand, and `plain` says whether all else that the group reads is constant along the lines."""

    node: Node
    root: Node
    x: Value
    weights: np.ndarray
    kind: str
    operand: tuple[int, int, int]
    shape: tuple[int, int, int]
    window: Lines
    plain: bool

    @property
    def kept(self) -> DType:
        """The type of the weights."""
        weights = self.root.inputs[1]
        assert weights is not None
        return weights.dtype

    @property
    def flops(self) -> Expr:
        """Multiplications and additions."""
        each = self.weights.size // self.shape[2]
        return wrap(self.node.output.type.numel) * (2 * each)

    def operations(self, sizes: Sizes) -> float:
        """Those and what follows on each element, which takes a multiply-add's time or more."""
        inside = self.node.regions[0].nodes if self.node.op == "fused" else ()
        after = sum(sizes.profile(n).flops for n in inside
                    if n.op not in ("constant", self.root.op))
        return sizes.dim(self.flops) + 2 * after * sizes.numel(self.node.output.type)


def stage_of(node: Node) -> Stage | None:
    """The stage that a node of a fused graph is, if it is one."""
    group = node.regions[0] if node.op == "fused" else None
    roots = [n for n in (group.nodes if group else [node]) if n.op in ("matmul", "conv_last")]
    if len(roots) != 1 or len(node.outputs) != 1:
        return None
    (root,) = roots
    inner, inner_weights = root.inputs
    outer = dict(zip(group.inputs if group else node.inputs, node.inputs, strict=True))
    x, w, out = outer.get(inner), outer.get(inner_weights), node.output
    if inner is None or x is None or w is None or w.constant is None:
        return None
    if group is not None and len(inner.users) != 1:  # what follows reads the operand as well
        return None
    if not x.dtype is root.output.dtype is out.dtype is dt.f32 \
            or w.dtype not in (dt.f32, dt.bf16, dt.f16):
        return None
    kind, operand, shape = _kind(root, x, w), _known(x), _known(out)
    if not kind or operand is None or shape is None or root.output.shape != out.shape:
        return None
    a, window = root.attrs, Lines()
    if kind == "depthwise":
        window = Lines(a["strides"][0], (w.constant.shape[2] - 1) * a["dilations"][0] + 1,
                       a["low"][0])
    others = [v for v in node.inputs if v is not None and v is not x and v is not w]
    plain = all(same(d, 1) for v in others for d in v.shape[:-1])
    return Stage(node, root, x, w.constant, kind, operand, shape, window, plain)


def stages_of(chain: Node) -> list[Stage] | None:
    """The stages of a `chain` node, if its nodes are stages in one of the patterns."""
    nodes = chain.regions[0].ordered()
    stages = [s for n in nodes if (s := stage_of(n)) is not None]
    linked = all(b.x is a.node.output and a.plain for a, b in pairwise(stages))
    if len(stages) < len(nodes) or not linked \
            or " ".join(s.kind for s in stages) not in PATTERNS \
            or chain.regions[0].outputs != [stages[-1].node.output]:
        return None
    return stages


def _known(value: Value) -> tuple[int, int, int] | None:
    """Height, width and channels of [N, H, W, C] where they are known and not 0."""
    found = tuple(d for d in value.shape[1:] if isinstance(d, int) and d)
    return found if value.rank == 4 and len(found) == 3 else None


def _kind(root: Node, x: Value, w: Value) -> str:
    if root.op == "matmul":
        return "product" if w.rank == 2 else ""
    a = root.attrs
    depthwise = same(a["groups"], x.shape[-1]) and same(w.shape[0], x.shape[-1]) \
        and same(w.shape[1], 1) and a["fill"] == 0 and all(isinstance(p, int) for p in a["low"])
    return "depthwise" if depthwise else ""


def band_lines(stages: Sequence[Stage]) -> int | None:
    """Lines of the last output that a task computes; None where not even one fits."""
    height, width, _ = stages[-1].shape
    if stages[0].kind == "depthwise":
        return 1  # Only one line is kept.
    line = 4 * prod(stages[0].shape[1:])
    if stages[1].kind == "product":
        return min(height, max(1, BAND_BYTES // line), ceil(LEAST_ROWS / width))
    window = stages[1].window
    most = (BAND_BYTES // line - window.span) // window.stride + 1
    if most < 1:
        return None
    most = min(most, max(1, height // LEAST_BANDS))
    return ceil(height / ceil(height / most))


def _rows(home: Graph) -> list[list[Stage]]:
    """All stages, in rows in which each is all that reads the one before."""
    returned = {v for g in home.walk_graphs() for v in g.outputs}
    stages = {n: s for n in home.ordered() if (s := stage_of(n)) is not None}
    following: dict[Node, Stage] = {}
    for stage in stages.values():
        before = stages.get(stage.x.node) if stage.x.node is not None else None
        if before is not None and before.plain and list(stage.x.users) == [stage.node] \
                and stage.x not in returned:
            following[before.node] = stage
    heads = [s for n, s in stages.items() if s not in following.values()]
    rows = []
    for stage in heads:
        row = [stage]
        while row[-1].node in following:
            row.append(following[row[-1].node])
        rows.append(row)
    return rows


def _build(home: Graph, stages: list[Stage]) -> None:
    """Moves the stages into a chain."""
    region = Graph("chain", parent=home)
    mapping: dict[Value, Value] = {}
    last = stages[-1].node
    for stage in stages:
        clone_node(stage.node, region, mapping)
    region.outputs = [mapping[last.output]]
    chain = home.add_node("chain", (), {}, regions=[region], origin=last.origin)
    chain.serial = last.serial
    home.replace(last.output, chain.output)
    home.erase_all([s.node for s in stages])
