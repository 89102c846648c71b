"""Graphs compiled for a GPU-like target, run on the device (or its emulation) and in the kernel
interpreter, next to the graph interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cpu.native_graphs import Cases, interpreted

from smelt.ir.graph.core import Value
from smelt.ir.kernel.verifier import verify
from smelt.ir.program import Program


def fresh(make: Callable[[Cases], None], symbolic: bool = False) -> Cases:
    """The cases that `make` adds, with random inputs; the seed is printed."""
    cases = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic)
    make(cases)
    return cases


def eighths(c: Cases, *shape: int) -> Value:
    """An input of multiples of 1/8 up to 8: sums of 2^17 of them, and of 2^11 products of two, are
    exact in f32 in every order, even where terms cancel."""
    return c.input(array=(c.rng.integers(-64, 65, shape) / 8).astype(np.float32))


def check(cases: Cases, rtol: float, atol: float, kernels: Sequence[str] = (),
          by_kernels: bool = True, target: str = "webgpu", **options: Any) -> Program:
    """Results on the device, and with `by_kernels` those of the kernel interpreter, which finds
    races between threads, are those of the graph interpreter; every kernel passes the verifier.
    `kernels` are parts of names that kernels of the program must have, `options` fields of
    BuildOptions."""
    wanted = cases.expected()
    program, run = cases.compiled(target, **options)
    names = [k.name for k in program.kernels()]
    for name in kernels:
        assert any(name in n for n in names), f"no {name} kernel among {names}"
    for kernel in program.kernels():
        verify(kernel)
    cases.assert_close(run(1), wanted, rtol, atol)
    if by_kernels:
        cases.assert_close(interpreted(cases, program), wanted, rtol, atol)
    return program
