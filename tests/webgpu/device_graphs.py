"""Graphs compiled for a GPU-like target, run on the device (or its emulation) and in the kernel
interpreter, next to the graph interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cpu.native_graphs import Cases, interpreted

from smelt.ir.kernel.verifier import verify
from smelt.ir.program import Program


def fresh(make: Callable[[Cases], None], symbolic: bool = False) -> Cases:
    """The cases that `make` adds, with random inputs; the seed is printed."""
    cases = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic)
    make(cases)
    return cases


def compare(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], rtol: float,
            atol: float) -> None:
    """Integers are equal; floats are within tolerance of each other, in f64."""
    for y, want in zip(got, wanted, strict=True):
        assert y.dtype == want.dtype and y.shape == want.shape
        if y.dtype.kind in "biu":
            np.testing.assert_array_equal(y, want)
        else:
            np.testing.assert_allclose(y.astype(np.float64), want.astype(np.float64), rtol, atol)


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
    compare(run(1), wanted, rtol, atol)
    if by_kernels:
        compare(interpreted(cases, program), wanted, rtol, atol)
    return program
