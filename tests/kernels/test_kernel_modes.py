"""Random kernels give the same bits however their parallel iterations are run, read back from their
text, and pass the verifier."""

import numpy as np
import pytest

from smelt.ir import dtype as dt
from smelt.ir.expr import Expr, broadcast, cast, const, op, select, size
from smelt.ir.kernel import interpreter, translation
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.nodes import Buffer, Kernel, load
from smelt.ir.kernel.text import parse_kernel, print_kernel
from smelt.ir.kernel.verifier import verify

N, WIDTH = size("n"), 8
INTS = ("add", "sub", "mul", "min", "max", "xor", "div", "rem", "shl", "shr")
FLOATS = ("add", "sub", "mul", "div", "min", "max")


class Writer:
    """Writes random statements on private scalars and a private array of one iteration."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.b = Builder(f"random{seed}")
        self.x = self.b.param("x", dt.i64, (N, WIDTH))
        self.f = self.b.param("f", dt.f32, (N, WIDTH))
        self.y = self.b.param("y", dt.i64, (N, WIDTH))
        self.z = self.b.param("z", dt.f32, (N, WIDTH))
        self.names: list[Expr] = []
        self.scalars: list[Buffer] = []

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def integer(self, depth: int = 2) -> Expr:
        kind = int(self.rng.integers(6)) if depth else int(self.rng.integers(2))
        if kind == 0:
            return const(int(self.rng.integers(-9, 10)))
        if kind == 1:
            choices = [*self.names, *(s[()] for s in self.scalars if s.dtype is dt.i64)]
            return self.pick(choices)
        if kind == 2:
            return self.x[self.row, self.place(depth - 1)]
        if kind == 3:
            return cast(self.number(depth - 1), dt.i64)
        if kind == 4:
            # The load happens only where the place is inside.
            at = self.integer(depth - 1)
            inside = op("and", at >= 0, at < WIDTH)
            return select(inside, self.x[self.row, at], self.integer(0))
        return op(self.pick(INTS), self.integer(depth - 1), self.integer(depth - 1))

    def place(self, depth: int) -> Expr:
        return self.integer(depth) % WIDTH

    def number(self, depth: int = 2) -> Expr:
        if not depth or self.rng.random() < 0.3:
            return self.f[self.row, self.place(0)]
        if self.rng.random() < 0.2:
            return cast(self.integer(depth - 1), dt.f32)
        return op(self.pick(FLOATS), self.number(depth - 1), self.number(depth - 1))

    def condition(self) -> Expr:
        if self.rng.random() < 0.3:
            return op(self.pick(("lt", "ge", "eq")), self.number(1), self.number(1))
        return op(self.pick(("lt", "le", "ne", "eq")), self.integer(1), self.integer(1))

    def statements(self, depth: int) -> None:
        for _ in range(int(self.rng.integers(1, 5))):
            names, scalars = list(self.names), list(self.scalars)
            kind = int(self.rng.integers(9 if depth else 5))
            if kind == 0:
                self.names.append(self.b.let("v", self.integer()))
                continue
            if kind == 1:
                self.scalars.append(self.b.scalar("s", dt.i64, self.integer()))
                continue
            if kind == 2:
                self.b.store(self.pick([s for s in self.scalars]), (), self.integer())
            elif kind == 3:
                self.b.store(self.table, self.place(1), self.number())
            elif kind == 4:
                self.b.store(self.table, 0, load(self.f, (self.row, 0), WIDTH, self.integer(1))
                             + load(self.table, (0,), WIDTH)
                             * broadcast(self.number(1), WIDTH), self.integer(1))
            elif kind == 5:
                with self.b.when(self.condition()):
                    self.statements(depth - 1)
                if self.rng.random() < 0.5:
                    self.names, self.scalars = list(names), list(scalars)
                    with self.b.otherwise():
                        self.statements(depth - 1)
            elif kind == 6:
                with self.b.loop("k", self.b.let("times", self.place(1))) as k:
                    self.names.append(k)
                    self.statements(depth - 1)
            elif kind == 7:
                left = self.b.scalar("left", dt.i64, self.place(1))
                with self.b.while_(op("and", left[()] > 0, self.condition())):
                    self.b.update(left, (), "sub", 1)
                    self.statements(depth - 1)
            else:
                with self.b.loop("m", self.b.let("many", self.place(1)), "vector") as m:
                    self.b.store(self.table, m, self.f[self.row, m])
            self.names, self.scalars = names, scalars

    def kernel(self) -> Kernel:
        with self.b.loop("i", N, "parallel") as self.row:
            self.names.append(self.row)
            self.scalars.append(self.b.scalar("s", dt.i64, 1))
            self.table = self.b.alloc("table", dt.f32, (WIDTH,))
            self.b.store(self.table, 0, broadcast(const(0.5, dt.f32), WIDTH))
            self.statements(2)
            for j in range(WIDTH):
                self.b.store(self.y, (self.row, j), self.integer())
            self.b.store(self.z, (self.row, 0), load(self.table, (0,), WIDTH))
        return self.b.kernel(2)


def outputs(kernel: Kernel, n: int, few: int, monkeypatch) -> list[np.ndarray]:
    monkeypatch.setattr(translation, "FEW", few)
    interpreter._CACHE.clear()
    rng = np.random.default_rng(n)
    x = rng.integers(-20, 20, (n, WIDTH))
    f = rng.standard_normal((n, WIDTH)).astype(np.float32)
    y, z = np.zeros((n, WIDTH), np.int64), np.zeros((n, WIDTH), np.float32)
    run_kernel(kernel, [x, f, y, z], {"n": n})
    return [y, z]


@pytest.mark.parametrize("seed", range(60))
def test_random_kernels(seed: int, monkeypatch):
    kernel = Writer(seed).kernel()
    verify(kernel)
    again = parse_kernel(print_kernel(kernel))
    assert print_kernel(again) == print_kernel(kernel)
    for n in (1, 13):
        alone = outputs(kernel, n, 1 << 30, monkeypatch)
        beside = outputs(kernel, n, 0, monkeypatch)
        read = outputs(again, n, 0, monkeypatch)
        for a, b, c in zip(alone, beside, read, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(b, c)
