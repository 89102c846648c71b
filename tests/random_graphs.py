"""Random graphs of core operators with random inputs, for tests of passes."""

from __future__ import annotations

import numpy as np

from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.graph.core import Graph, TensorType, Value

UNARY = ("neg", "abs", "relu", "sigmoid", "tanh", "exp", "silu", "hard_swish", "sqrt")
BINARY = ("add", "sub", "mul", "max", "min")


class Maker:
    """Grows a graph; every value has a shape made of the sizes `dims`."""

    def __init__(self, rng: np.random.Generator, symbolic: bool):
        self.rng = rng
        self.graph = Graph()
        self.numbers = {"N": int(rng.integers(1, 4)), "M": int(rng.integers(1, 6))}
        self.dims = [size("N"), size("M"), 4] if symbolic else [self.numbers["N"], 5, 4]
        if symbolic:
            self.graph.symbols = {"N": (1, None), "M": (1, 64)}
        self.values: list[Value] = []
        for k in range(int(rng.integers(1, 4))):
            rank = int(rng.integers(1, 4))
            shape = [self.dims[i] for i in rng.permutation(3)[:rank]]
            self.values.append(self.graph.add_input(f"x{k}", TensorType(dt.f32, tuple(shape))))

    def pick(self) -> Value:
        """A value, recent ones more often."""
        n = len(self.values)
        return self.values[max(0, n - 1 - int(self.rng.exponential(n / 3 + 1)))]

    def constant(self, shape) -> Value:
        return self.graph.constant(self.rng.normal(size=shape), dtype=dt.f32)

    def step(self) -> None:
        """Adds one random operation."""
        g, rng, x = self.graph, self.rng, self.pick()
        choice = int(rng.integers(0, 15))
        if choice < 3:
            self.values.append(g.add(str(rng.choice(UNARY)), [x]))
        elif choice < 5:
            self.values.append(g.add(str(rng.choice(BINARY)), [x, self.constant(())]))
        elif choice < 8:
            others = [v for v in self.values if v.shape == x.shape]
            other = others[int(rng.integers(len(others)))]
            self.values.append(g.add(str(rng.choice(BINARY)), [x, other]))
        elif choice == 8:
            perm = tuple(int(p) for p in rng.permutation(x.rank))
            self.values.append(g.add("transpose", [x], {"perm": perm}))
        elif choice == 9 and x.rank < 4:
            axis = int(rng.integers(0, x.rank + 1))
            shape = (*x.shape[:axis], 1, *x.shape[axis:])
            y = g.add("reshape", [x], {"shape": shape})
            if rng.integers(2):
                wide = (*x.shape[:axis], self.dims[2], *x.shape[axis:])
                y = g.add("expand", [y], {"shape": wide})
            self.values.append(y)
        elif choice == 10 and x.rank >= 2:
            shape = (x.shape[0] * x.shape[1], *x.shape[2:])
            self.values.append(g.add("reshape", [x], {"shape": shape}))
        elif choice == 11 and x.rank >= 1:
            axis = int(rng.integers(0, x.rank))
            keep = bool(rng.integers(2))
            op = str(rng.choice(("reduce_sum", "reduce_max", "reduce_mean")))
            y = g.add(op, [x], {"axes": (axis,), "keepdims": keep})
            self.values.append(y)
            if keep:
                self.values.append(g.add("sub", [x, y]))
        elif choice == 12 and x.rank >= 2 and isinstance(x.shape[-1], int):
            self.values.append(g.add("matmul", [x, self.constant((x.shape[-1], 3))]))
        elif choice == 13 and x.rank >= 1:
            self.movement(x)
        elif choice == 14 and x.rank >= 1:
            self.values.append(g.add("softmax", [x], {"axis": x.rank - 1}))

    def movement(self, x: Value) -> None:
        """A slice, pad, concat or gather along one axis."""
        g, rng = self.graph, self.rng
        axis = int(rng.integers(0, x.rank))
        zeros, d = [0] * x.rank, x.shape[axis]
        kind = int(rng.integers(0, 4))
        if kind == 0 and isinstance(d, int) and d > 1:
            starts, steps, sizes = list(zeros), [1] * x.rank, list(x.shape)
            starts[axis], sizes[axis] = d - 1, d // 2
            steps[axis] = -2 if d // 2 * 2 <= d else -1
            y = g.add("slice", [x], {"starts": tuple(starts), "sizes": tuple(sizes),
                                     "steps": tuple(steps)})
        elif kind == 1:
            low, high = list(zeros), list(zeros)
            low[axis], high[axis] = 1, int(rng.integers(0, 3))
            y = g.add("pad", [x], {"low": tuple(low), "high": tuple(high)})
        elif kind == 2:
            other = g.add("neg", [x]) if rng.integers(2) else x
            y = g.add("concat", [x, other], {"axis": axis})
        else:
            rows = g.constant(np.array([0, -1, 0], np.int64))
            y = g.add("gather", [x, rows], {"axis": axis})
        self.values.append(y)

    def finish(self) -> None:
        """Returns some of the values."""
        count = int(self.rng.integers(1, 4))
        ends = [v for v in self.values if not v.users and v.node is not None] or self.values
        chosen = [ends[int(i)] for i in self.rng.permutation(len(ends))[:count]]
        self.graph.outputs = chosen + [self.pick() for _ in range(int(self.rng.integers(0, 2)))]

    def inputs(self) -> list[np.ndarray]:
        """Random arrays for the graph's inputs."""
        def number(d) -> int:
            return d if isinstance(d, int) else self.numbers[d.name]

        return [self.rng.normal(size=[number(d) for d in v.shape]).astype(np.float32)
                for v in self.graph.inputs]


def random_graph(seed: int, steps: int = 25) -> tuple[Graph, list[np.ndarray]]:
    """A graph and inputs for it; every second seed has symbolic sizes."""
    maker = Maker(np.random.default_rng(seed), symbolic=bool(seed % 2))
    for _ in range(steps):
        maker.step()
    maker.finish()
    return maker.graph, maker.inputs()
