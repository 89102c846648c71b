"""Graphs compiled for a CPU variant, run natively and in the kernel interpreter, next to the
graph interpreter."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bits import assert_same_bits

from smelt.ir import dtype as dt
from smelt.ir.expr import evaluate, size
from smelt.ir.graph.core import Graph, TensorType, Value
from smelt.ir.graph.interpreter import interpret
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.program import Copy, Launch, Program, Storage
from smelt.runtime import load
from smelt.runtime.artifact import write_artifact
from smelt.targets.base import BuildOptions, find_target

VARIANTS = ("cpu", "cpu:x86-64-v3", "cpu:x86-64-v2", "cpu:generic")


class Cases:
    """One graph of many independent parts, so that one compilation checks them all."""

    def __init__(self, seed: int, symbolic: bool = False):
        print(f"seed {seed}")
        self.rng = np.random.default_rng(seed)
        self.graph = Graph()
        self.arrays: list[np.ndarray] = []
        self.symbolic = symbolic
        self.sizes: dict[str, int] = {}
        self.magnitudes: dict[int, np.ndarray] = {}

    def input(self, *shape: int, dtype: dt.DType = dt.f32, array: np.ndarray | None = None,
              fixed: Sequence[int] = ()) -> Value:
        """An input with random contents; with symbolic sizes only axes `fixed` are numbers."""
        if array is None:
            array = (self.rng.standard_normal(shape) * 2).astype(dtype.numpy)
        dims: list[Any] = list(array.shape)
        if self.symbolic:
            for axis, n in enumerate(array.shape):
                if axis not in fixed:
                    dims[axis] = size(f"n{n}")
                    self.sizes[f"n{n}"] = n
                    self.graph.symbols[f"n{n}"] = (0, None)
        self.arrays.append(array)
        return self.graph.add_input(f"x{len(self.arrays)}", TensorType(dtype, tuple(dims)))

    def array_of(self, value: Value) -> np.ndarray:
        """What an input is given."""
        return self.arrays[self.graph.inputs.index(value)]

    def output(self, value: Value, magnitude: np.ndarray | None = None) -> None:
        """`magnitude`, of the value's shape, says what its roundings are relative to where terms
        cancel: the sum of the terms' absolute values."""
        if magnitude is not None:
            self.magnitudes[len(self.graph.outputs)] = magnitude
        self.graph.outputs.append(value)

    def assert_close(self, found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], rtol: float,
                     atol: float) -> None:
        """Integers are equal; floats lie within `atol` and `rtol` of the output's magnitude, which
        is that of the wanted number where none was stated, in f64."""
        for k, (got, want) in enumerate(zip(found, wanted, strict=True)):
            assert got.dtype == want.dtype and got.shape == want.shape
            if got.dtype.kind in "biu":
                np.testing.assert_array_equal(got, want)
                continue
            got, want = got.astype(np.float64), want.astype(np.float64)
            if k not in self.magnitudes:
                np.testing.assert_allclose(got, want, rtol, atol)
            else:
                units = (got - want) / (rtol * self.magnitudes[k] + atol)
                np.testing.assert_allclose(units, 0, 0, 1, err_msg=f"output {k}")

    def expected(self) -> list[np.ndarray]:
        return list(interpret(self.graph, self.arrays))

    def compiled(self, target: str, **options: Any,
                 ) -> tuple[Program, Callable[[int], list[np.ndarray]]]:
        """The program, and what it gives natively with a number of threads; `options` are fields of
        BuildOptions."""
        folder = tempfile.TemporaryDirectory(prefix="smelt-test-")
        build = find_target(target).build(self.graph, BuildOptions(**options))
        path = Path(folder.name) / "model.smelt"
        write_artifact(path, build.manifest, build.files)

        def run(threads: int) -> list[np.ndarray]:
            module = load(path, threads=threads)
            outputs = module(*self.arrays)
            run.folder = folder  # type: ignore[attr-defined]
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return [np.array(y) for y in outputs]

        return build.program, run


def check(cases: Cases, target: str, rtol: float, atol: float,
          kernels: Sequence[str] = ()) -> Program:
    """Native results are within tolerance of the graph interpreter's and the same bits for 1 and
    3 threads; `kernels` are parts of names that kernels of the program must have."""
    wanted = cases.expected()
    program, run = cases.compiled(target)
    names = [k.name for k in program.kernels()]
    for name in kernels:
        assert any(name in n for n in names), f"no {name} kernel among {names}"
    alone = run(1)
    assert_same_bits(alone, run(3))
    cases.assert_close(alone, wanted, rtol, atol)
    return program


def interpreted(cases: Cases, program: Program) -> list[np.ndarray]:
    """The outputs by the kernel interpreter, which finds races and reads of unwritten memory."""
    memory: dict[Storage, np.ndarray] = {}

    def array(storage: Storage) -> np.ndarray:
        root = storage.root()
        if root not in memory:
            shape = [evaluate(d, cases.sizes) for d in root.type.shape]
            kind = root.type.dtype.numpy
            if root.role == "input":
                memory[root] = np.ascontiguousarray(cases.arrays[root.index]).copy()
            elif root.role == "constant":
                memory[root] = np.ascontiguousarray(root.array).astype(kind)
            else:
                memory[root] = np.full(shape, -77).astype(kind)
        return memory[root].reshape(-1)

    for step in program.walk():
        if isinstance(step, Launch):
            values = {v.name: evaluate(e, cases.sizes)
                      for v, e in zip(step.kernel.sizes, step.sizes, strict=True)}
            buffers = [array(s).reshape([evaluate(d, cases.sizes) for d in p.shape])
                       for s, p in zip(step.args, step.kernel.params, strict=True)]
            run_kernel(step.kernel, buffers, values)
        else:
            assert isinstance(step, Copy), step
            array(step.target)[:] = array(step.source)
    return [array(s).reshape([evaluate(d, cases.sizes) for d in s.type.shape])
            for s in program.outputs]
