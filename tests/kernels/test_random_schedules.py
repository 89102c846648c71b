"""Random kernels compute the same after random primitives of schedules."""

from collections import Counter

import numpy as np
from kernels.test_kernel_modes import Writer
from kernels.test_primitives import Program, results

from smelt.ir import dtype as dt
from smelt.ir.expr import Expr, const, op, size
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.nodes import For, Kernel, load, statements
from smelt.ir.kernel.text import parse_kernel, print_kernel
from smelt.ir.kernel.verifier import verify
from smelt.passes.schedule.primitives import (
    ScheduleError,
    bind,
    fuse,
    reorder,
    split,
    stage,
    tile,
    unroll,
    vectorise,
)

WIDE = 96


class Nests:
    """Writes random loops whose indices are linear in their variables."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.b = b = Builder(f"nest{seed}")
        self.inputs = [b.param("x", dt.i32, (WIDE,)), b.param("w", dt.i32, (WIDE, WIDE))]
        self.outputs = [b.param("y", dt.i32, (WIDE,)), b.param("z", dt.i32, (WIDE, WIDE))]
        self.variables: list[Expr] = []
        self.scalars: list = []

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def index(self) -> Expr:
        """Below 2 * 8 + 4 * 8 + 8 + 3 < WIDE: every variable is below 9."""
        chosen = list(dict.fromkeys(self.pick(self.variables) for _ in range(2)))
        total: Expr = const(int(self.rng.integers(0, 3)) if self.chance(0.3) else 0)
        for k, v in enumerate(chosen[:1 if self.chance(0.4) else 2]):
            total = total + v * (self.pick((1, 1, 1, 2, 3)) if k == 0 else self.pick((1, 4)))
        return total

    def place(self, buffers):
        buffer = self.pick(buffers)
        return buffer, tuple(self.index() for _ in buffer.shape)

    def value(self, depth: int = 2) -> Expr:
        if depth and self.chance(0.6):
            kind = self.pick(("add", "mul", "sub", "min", "max", "xor"))
            return op(kind, self.value(depth - 1), self.value(depth - 1))
        if self.scalars and self.chance(0.3):
            return self.pick(self.scalars)[()]
        if self.chance(0.1):
            return const(int(self.rng.integers(-5, 6)), dt.i32)
        buffer, where = self.place(self.inputs if self.chance(0.85) else self.outputs)
        return load(buffer, where)

    def store(self) -> None:
        if self.scalars and self.chance(0.3):
            self.b.update(self.pick(self.scalars), (), self.pick(("add", "max")), self.value(1))
            return
        buffer, where = self.place(self.outputs)
        if self.chance(0.4):
            self.b.update(buffer, where, self.pick(("add", "min", "xor")), self.value(1))
        else:
            self.b.store(buffer, where, self.value())

    def loop(self, depth: int) -> None:
        extents = [size("n"), size("m"), 2, 4, 4, 8, 5]
        extent = self.pick(extents)
        if self.variables and self.chance(0.1):
            extent = self.variables[-1] + 1
        variables, scalars = list(self.variables), list(self.scalars)
        with self.b.loop("i", extent) as v:
            self.variables.append(v)
            if self.chance(0.15):
                self.scalars.append(self.b.scalar("s", dt.i32, 0))
            if depth and self.chance(0.9):
                if self.chance(0.15):
                    self.store()
                self.loop(depth - 1)
            if not depth or self.chance(0.2) or len(self.scalars) > len(scalars):
                if self.chance(0.15):
                    with self.b.when(self.pick(self.variables) < self.pick((3, size("n")))):
                        self.store()
                else:
                    self.store()
        self.variables, self.scalars = variables, scalars

    def kernel(self) -> Kernel:
        for buffer in self.outputs:
            self.b.store(buffer, tuple(0 for _ in buffer.shape), const(7, dt.i32))
        self.loop(2)
        return self.b.kernel(2)


def step(kernel: Kernel, rng: np.random.Generator) -> tuple[str, Program]:
    """A random primitive on random loops of a kernel."""
    loops = [s for s in statements(kernel.body) if isinstance(s, For)]

    def pick(items):
        return items[int(rng.integers(len(items)))]

    one = pick(loops)
    inside = [s for s in statements(one.body) if isinstance(s, For)]
    two = inside[0] if inside and rng.random() < 0.9 else pick(loops)
    a, b, factor = one.var.name, two.var.name, int(rng.integers(1, 6))
    buffer = pick(kernel.params).name
    kind = pick(("parallel", "grid.x", "block.x", "unroll"))
    return pick([
        ("split", lambda k: split(k, a, factor)),
        ("cut", lambda k: split(k, a, factor, "cut")),
        ("fuse", lambda k: fuse(k, a, b)),
        ("reorder", lambda k: reorder(k, a, b)),
        ("tile", lambda k: tile(k, a, b, factor, 2)),
        ("unroll", lambda k: unroll(k, a)),
        ("vectorise", lambda k: vectorise(k, a)),
        ("bind", lambda k: bind(k, a, kind)),
        ("stage", lambda k: stage(k, buffer, a)),
        ("stage along", lambda k: stage(k, buffer, a, along=b)),
    ])


def schedule_at_random(kernel: Kernel, seed: int, sizes: list[dict[str, int]]) -> Counter:
    """Applies random primitives, and compares results after each that is not refused."""
    rng = np.random.default_rng(seed)
    taken: Counter = Counter()
    expected = [results(kernel, s) for s in sizes]
    for _ in range(12):
        if not any(isinstance(s, For) for s in statements(kernel.body)):
            break
        name, program = step(kernel, rng)
        try:
            after = program(kernel)
        except ScheduleError:
            taken["refused"] += 1
            continue
        taken[name] += 1
        verify(after, f"after {name}")
        assert print_kernel(parse_kernel(str(after))) == str(after)
        for s, wanted in zip(sizes, expected, strict=True):
            for a, b in zip(wanted, results(after, s, 1), strict=True):
                np.testing.assert_array_equal(a, b, f"{name}: {kernel} -> {after}")
        if len(str(after)) < 6000:
            kernel = after
    return taken


def test_random_nests_compute_the_same_after_random_primitives():
    taken: Counter = Counter()
    for seed in range(40):
        kernel = Nests(seed).kernel()
        verify(kernel)
        taken += schedule_at_random(kernel, seed, [{"n": 3, "m": 5}, {"n": 8, "m": 1}])
    print(taken)
    assert all(taken[name] >= 3 for name in (
        "split", "cut", "fuse", "reorder", "tile", "unroll", "vectorise", "bind", "stage"))


def test_random_statements_compute_the_same_after_random_primitives():
    """Kernels of branches, while loops, gathers and vectors: most is refused, nothing is wrong."""
    taken: Counter = Counter()
    for seed in range(6):
        kernel = Writer(seed).kernel()
        taken += schedule_at_random(kernel, seed, [{"n": 5}])
    print(taken)
    assert taken["refused"] and taken["split"]
