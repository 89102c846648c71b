"""Grows random graphs node by node from a table of operators."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
from fuzz.fuzz_graphs import (
    FuzzGraph,
    Refused,
    Step,
    Tensor,
    run_step,
    tolerance,
)

SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 31, 32, 33)
LARGE_SIZES = (1, 2, 3, 16, 48, 63, 64, 65, 100, 128, 200, 257)
ELEMENTS, LARGE_ELEMENTS = 6000, 70000
"""Elements of a tensor, at most; of large graphs, whose loops are tiled and split over threads."""
Rule = Callable[["Maker"], "Step | None"]
RULES: list[tuple[float, Rule]] = []
EXACT_OPS: set[str] = set()
"""Operators that only move, add or multiply: dyadic operands give exact results."""
FLOATS = tuple(np.dtype(t) for t in (np.float32, np.float32, np.float32, np.float16, np.float64,
                                     ml_dtypes.bfloat16))
INTEGERS = tuple(np.dtype(t) for t in (np.int64, np.int32, np.int8, np.uint8, np.int16, np.uint16,
                                       np.uint32, np.uint64))


def rule(weight: float = 1.0, exact: tuple[str, ...] = ()) -> Callable[[Rule], Rule]:
    """Puts a function that makes a step (or None when nothing fits) into the table."""
    def add(function: Rule) -> Rule:
        RULES.append((weight, function))
        EXACT_OPS.update(exact)
        return function

    return add


def is_exact(op: str) -> bool:
    return op in EXACT_OPS


class Maker:
    """A graph being made. Symbolic graphs name some sizes of their inputs."""

    def __init__(self, rng: np.random.Generator, symbolic: bool = False):
        self.rng = rng
        self.steps: list[Step] = []
        self.tensors: dict[str, Tensor] = {}
        self.inputs: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        large = rng.random() < 0.12
        self.most = LARGE_ELEMENTS if large else ELEMENTS
        self.sizes = [int(s) for s in rng.choice(LARGE_SIZES if large else SIZES, 4)]
        if rng.random() < 0.06:
            self.sizes[int(rng.integers(4))] = 0
        self.main = FLOATS[int(rng.integers(len(FLOATS)))] if rng.random() < 0.35 else FLOATS[0]
        self.symbolic = frozenset(
            s for s in self.sizes if symbolic and s > 1 and rng.random() < 0.7)
        for _ in range(int(rng.integers(1, 4))):
            self.add_input(self.shape(int(rng.integers(0, 5))), self.main)
        if rng.random() < 0.4:
            kind = INTEGERS[int(rng.integers(len(INTEGERS)))]
            self.add_input(self.shape(int(rng.integers(0, 4))), kind)
        if rng.random() < 0.2:
            self.add_input(self.shape(int(rng.integers(0, 4))), np.dtype(np.bool_))

    # Choices ----------------------------------------------------------------------------------

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def one_of(self, items):
        return items[int(self.rng.integers(len(items)))]

    def shape(self, rank: int) -> tuple[int, ...]:
        """Sizes of this graph, often repeated so that shapes meet."""
        shape: list[int] = []
        for _ in range(rank):
            size = self.one_of(self.sizes)
            shape.append(size if np.prod([*shape, size]) <= self.most else 1)
        return tuple(shape)

    def pick(self, fits: Callable[[Tensor], bool] = lambda t: True) -> Tensor | None:
        """A tensor that fits, late ones more often; finite ones only."""
        found = [t for t in self.tensors.values() if t.is_finite and fits(t)]
        if not found:
            return None
        return found[max(0, len(found) - 1 - int(self.rng.exponential(len(found) / 3 + 0.5)))]

    def pick_float(self, rank: int = 0) -> Tensor | None:
        """A float tensor of at least this rank."""
        return self.pick(lambda t: t.is_float and t.rank >= rank)

    # Making -----------------------------------------------------------------------------------

    def values(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Random contents: floats on a grid of eighths, small integers with the odd extreme."""
        if dtype.kind == "b":
            return self.rng.random(shape) < 0.5
        if dtype in INTEGERS:
            low, high = (-9, 10) if dtype.kind == "i" else (0, 19)
            return self.rng.integers(low, high, shape).astype(dtype)
        grid = np.clip(np.rint(self.rng.standard_normal(shape) * 8), -31, 31) / 8
        return np.asarray(grid).astype(dtype)

    def add_input(self, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        name = f"x{len(self.inputs)}"
        array = self.values(shape, dtype)
        self.inputs[name] = array
        self.tensors[name] = Tensor(name, array, array, True)
        return self.tensors[name]

    def constant(self, array) -> str:
        """The name of a constant; some come as inputs of the model, unless they say sizes."""
        array = np.asarray(array)
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        self.tensors[name] = Tensor(name, array, array, True)
        return name

    def indices(self, values) -> str:
        return self.constant(np.asarray(values, np.int64))

    def operand_like(self, x: Tensor) -> str:
        """Another tensor of x's type that broadcasts against it, or a fresh constant."""
        def fits(t: Tensor) -> bool:
            if t.dtype != x.dtype:
                return False
            try:
                return int(np.prod(np.broadcast_shapes(t.shape, x.shape))) <= self.most
            except ValueError:
                return False

        other = self.pick(fits) if self.chance(0.6) else None
        if other is not None:
            return other.name
        keep = int(self.rng.integers(0, x.rank + 1))
        shape = tuple(d if self.chance(0.6) else 1 for d in x.shape[x.rank - keep:])
        return self.constant(self.values(shape, x.dtype))

    def step(self, op: str, inputs, outputs: int = 1, **attrs) -> Step:
        names = tuple(t.name if isinstance(t, Tensor) else t for t in inputs)
        base = len(self.steps)
        return Step(op, names, tuple(f"t{base}_{k}" for k in range(outputs)), attrs)

    def grow(self) -> bool:
        """Adds one node; False when the attempt came to nothing."""
        weights = np.array([w for w, _ in RULES])
        chosen = RULES[int(self.rng.choice(len(RULES), p=weights / weights.sum()))][1]
        before = dict(self.constants), dict(self.tensors)
        try:
            step = chosen(self)
            if step is None:
                raise Refused("nothing fits")
            results = run_step(step, self.tensors, is_exact(step.op), self.rng)
            if not all(useful(t, self.most) for t in results):
                raise Refused("of no use")
        except Refused:
            self.constants, self.tensors = before
            return False
        self.steps.append(step)
        self.tensors.update((t.name, t) for t in results)
        return True

    def graph(self) -> FuzzGraph:
        """The graph so far: every tensor that nothing reads is an output, and some others."""
        read = {n for s in self.steps for n in s.inputs}
        made = [n for s in self.steps for n in s.outputs if n]
        outputs = tuple(n for n in made if n not in read or self.chance(0.1))
        used = {n: a for n, a in self.inputs.items() if n in read}
        constants = {n: a for n, a in self.constants.items() if n in read}
        return FuzzGraph(tuple(self.steps), used, constants, outputs, self.symbolic)


def useful(t: Tensor, most: int) -> bool:
    """Small, in range, and not drowned in rounding."""
    if t.array.size > most or t.rank > 6:
        return False
    if not t.is_float:
        return True
    wide = t.array.astype(np.float64)
    finite = np.abs(wide[np.isfinite(wide)])
    if np.isinf(wide).any() and not t.exact:
        return False
    scale = finite.max(initial=0.0)
    limit = 60.0 if t.dtype.itemsize == 2 else 1e5
    slack = 0.2 if t.dtype.itemsize == 2 else 0.01
    return bool(scale <= limit and (scale == 0 or np.max(tolerance(t)) <= slack * scale))


def make_graph(seed: int, symbolic: bool = False) -> FuzzGraph:
    """A graph of 3 to 12 nodes."""
    rng = np.random.default_rng(seed)
    while True:
        maker = Maker(rng, symbolic)
        wanted = int(rng.integers(3, 13))
        for _ in range(wanted * 6):
            if len(maker.steps) == wanted:
                break
            maker.grow()
        if len(maker.steps) >= 3:
            return maker.graph()
