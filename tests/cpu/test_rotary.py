"""Rotary embedding compiled for the CPU, alone and fused, against numpy in f64.

Two products and a sum of f32 numbers of size 2, each rounded: 1e-6 absolute and relative.
"""

import numpy as np
import pytest
from cpu.native_graphs import VARIANTS, Cases, check, interpreted

from smelt.ir import dtype as dt
from smelt.ir.expr import walk
from smelt.ir.graph.core import Graph, TensorType
from smelt.ir.graph.definition import lookup
from smelt.ir.graph.evaluate import evaluate_body
from smelt.ir.graph.interpreter import interpret
from smelt.ir.kernel.nodes import Load, Store, expressions, statements

SHAPES = [(2, 3, 5, 8, 8), (1, 2, 7, 64, 64), (1, 1, 3, 80, 32), (2, 1, 3, 2, 2), (1, 3, 1, 10, 6),
          (1, 2, 3, 41, 24), (1, 2, 3, 34, 32), (1, 2, 5, 128, 128), (3, 1, 2, 24, 24)]


def expected(x, cos, sin, size, interleaved):
    """Complex numbers turned one by one."""
    x, cos, sin = (a.astype(np.float64) for a in (x, cos, sin))
    y = x.copy()
    cos, sin = (np.broadcast_to(a, (*x.shape[:-1], a.shape[-1])) for a in (cos, sin))
    for p in range(size // 2):
        i, j = (2 * p, 2 * p + 1) if interleaved else (p, p + size // 2)
        m, n = (i, j) if cos.shape[-1] == size else (p, p)
        y[..., i] = x[..., i] * cos[..., m] - x[..., j] * sin[..., m]
        y[..., j] = x[..., j] * cos[..., n] + x[..., i] * sin[..., n]
    return y


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [dt.f32, dt.f16, dt.bf16], ids=repr)
def test_body_and_reference(dtype, interleaved):
    rng = np.random.default_rng(7)
    for *shape, size in SHAPES:
        for width in (size, size // 2):
            arrays = [rng.standard_normal(s).astype(dtype.numpy)
                      for s in (shape, (shape[2], width), (1, 1, shape[2], width))]
            g = Graph()
            inputs = [g.add_input(f"x{k}", TensorType(dtype, a.shape))
                      for k, a in enumerate(arrays)]
            y = g.add("rotary", inputs, {"size": size, "interleaved": interleaved})
            g.outputs = [y]
            x, cos, sin = arrays
            want = expected(x, cos, sin, size, interleaved)
            # Half a unit of the last place for the result, f32 arithmetic before.
            tolerance = {dt.f32: 1e-6, dt.f16: 1e-3, dt.bf16: 8e-3}[dtype]
            (reference,) = interpret(g, arrays)
            body = evaluate_body(y.node, 0, lookup("rotary").body, arrays)  # type: ignore
            for got in (reference, body):
                np.testing.assert_allclose(got.astype(np.float64), want, tolerance, tolerance)


def plain(c: Cases, interleaved: bool) -> None:
    for *shape, size in SHAPES:
        for width in (size, size // 2):
            angles = [c.input(shape[2], width, fixed=(1,)),
                      c.input(shape[0], 1, shape[2], width, fixed=(1, 3))]
            x = c.input(*shape, fixed=(3,))
            c.output(c.graph.add("rotary", [x, *angles],
                                 {"size": size, "interleaved": interleaved}))


def fused(c: Cases, interleaved: bool) -> None:
    """Behind a transpose, in front of a scale, and as new rows of a cache."""
    g = c.graph
    for heads, steps, depth, size in ((3, 5, 16, 16), (2, 1, 40, 24), (4, 7, 32, 32), (1, 3, 6, 6)):
        x, cache = c.input(2, steps, heads, depth), c.input(2, heads, 4, depth)
        angles = [c.input(1, 1, steps, size // 2) for _ in range(2)]
        turned = g.add("transpose", [x], {"perm": (0, 2, 1, 3)})
        attrs = {"size": size, "interleaved": interleaved}
        y = g.add("rotary", [turned, *angles], attrs)
        c.output(g.add("concat", [cache, y], {"axis": 2}))
        half = g.constant(np.full((), 0.5, np.float32))
        z = g.add("rotary", [g.add("mul", [x, half]), *(
            g.add("reshape", [a], {"shape": (1, steps, 1, size // 2)}) for a in angles)], attrs)
        c.output(g.add("tanh", [z]))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("make", [plain, fused])
def test_compiled(make, target, interleaved):
    c = Cases(int(np.random.default_rng().integers(1 << 31)))
    make(c, interleaved)
    program = check(c, target, 1e-6, 1e-6)
    if target == VARIANTS[0]:
        for got, want in zip(interpreted(c, program), c.expected(), strict=True):
            np.testing.assert_allclose(got, want, 1e-6, 1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_symbolic_sizes(interleaved):
    c = Cases(int(np.random.default_rng().integers(1 << 31)), symbolic=True)
    plain(c, interleaved)
    check(c, "cpu", 1e-6, 1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [16, 32])
def test_whole_vectors_only(interleaved, width):
    c = Cases(3)
    x, cos, sin = c.input(2, 4, 9, 48), c.input(9, width), c.input(9, width)
    c.output(c.graph.add("rotary", [x, cos, sin], {"size": 32, "interleaved": interleaved}))
    (kernel,) = check(c, "cpu:x86-64-v3", 1e-6, 1e-6).kernels()
    found = list(statements(kernel.body))
    moved = [e.lanes for s in found for x in expressions(s) for e in walk(x)
             if isinstance(e, Load) and e.buffer.space == "global"]
    moved += [s.value.lanes for s in found
              if isinstance(s, Store) and s.buffer.space == "global"]
    assert moved and all(n == 8 for n in moved)
