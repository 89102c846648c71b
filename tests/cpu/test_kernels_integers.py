"""Compiled integer and boolean operations against Python's unbounded integers."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import pytest
from cpu.native_graphs import Cases

from smelt.ir import dtype as dt

INTEGERS = [dt.i8, dt.i16, dt.i32, dt.i64, dt.u8, dt.u16, dt.u32, dt.u64]


def wrapped(value: int, d: dt.DType) -> int:
    low = value & ((1 << d.bits) - 1)
    return low - (1 << d.bits) if d.kind == "int" and low > d.max else low


def quotient(a: int, b: int) -> int:
    """Truncated toward zero; 0 for a zero divisor."""
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def power(a: int, b: int, d: dt.DType) -> int:
    if b < 0:
        return (a if b % 2 else 1) if abs(a) == 1 else 0
    return pow(a, b, 1 << d.bits)


def shifted(a: int, b: int, d: dt.DType, left: bool) -> int:
    if not 0 <= b < d.bits:
        return -1 if a < 0 and not left else 0
    return a << b if left else a >> b


BINARY: dict[str, Callable[[int, int, dt.DType], int]] = {
    "add": lambda a, b, d: a + b,
    "sub": lambda a, b, d: a - b,
    "mul": lambda a, b, d: a * b,
    "div": lambda a, b, d: quotient(a, b),
    "rem": lambda a, b, d: a - quotient(a, b) * b if b else 0,
    "mod": lambda a, b, d: a % b if b else 0,
    "pow": power,
    "min": lambda a, b, d: min(a, b),
    "max": lambda a, b, d: max(a, b),
    "and": lambda a, b, d: a & b,
    "or": lambda a, b, d: a | b,
    "xor": lambda a, b, d: a ^ b,
    "shl": lambda a, b, d: shifted(a, b, d, True),
    "shr": lambda a, b, d: shifted(a, b, d, False),
}
UNARY: dict[str, Callable[[int], int]] = {
    "neg": operator.neg, "abs": abs, "not": operator.invert, "sign": lambda a: (a > 0) - (a < 0),
}
COMPARISONS = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
               "gt": operator.gt, "ge": operator.ge}


def operands(d: dt.DType, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of values where something may go wrong, and random pairs."""
    edges = {d.min, d.min + 1, d.max, d.max - 1, 0, 1, 2, 3, 7, d.bits - 1, d.bits, d.bits + 1}
    if d.kind == "int":
        edges |= {-1, -2, -3, -d.bits}
    pairs = [(a, b) for a in sorted(edges) for b in sorted(edges)]
    extra = rng.integers(d.min, d.max, (64, 2), d.numpy, True)
    array = np.concatenate([np.array(pairs, d.numpy), extra])
    return array[:, 0].copy(), array[:, 1].copy()


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v2", "cpu:generic"])
@pytest.mark.parametrize("d", INTEGERS, ids=str)
def test_integer_operations(d: dt.DType, target: str):
    cases = Cases(seed=d.bits)
    a, b = operands(d, cases.rng)
    x, y = cases.input(array=a, dtype=d), cases.input(array=b, dtype=d)
    wanted = []
    for name, meaning in BINARY.items():
        cases.output(cases.graph.add(name, [x, y]))
        wanted.append((name, [wrapped(meaning(*p, d), d)
                              for p in zip(a.tolist(), b.tolist(), strict=True)]))
    for name, of_one in UNARY.items():
        cases.output(cases.graph.add(name, [x]))
        wanted.append((name, [wrapped(of_one(p), d) for p in a.tolist()]))
    for name, truth in COMPARISONS.items():
        cases.output(cases.graph.add(name, [x, y]))
        wanted.append((name, [truth(*p) for p in zip(a.tolist(), b.tolist(), strict=True)]))
    for (name, expected), found in zip(wanted, cases.compiled(target)[1](1), strict=True):
        np.testing.assert_array_equal(found, np.array(expected, found.dtype), err_msg=name)


@pytest.mark.parametrize("d", [dt.i32, dt.i64, dt.u8], ids=str)
def test_constant_divisors_and_shifts(d: dt.DType):
    """Constants are spelled in ways of their own."""
    cases = Cases(seed=d.bits)
    a, _ = operands(d, cases.rng)
    x = cases.input(array=a, dtype=d)
    wanted = []
    for c in [0, 1, 3, 8, d.max] + ([-1, -3] if d.kind == "int" else []):
        value = cases.graph.constant(np.array(c, d.numpy))
        for name in ("div", "rem", "mod", "shl", "shr"):
            cases.output(cases.graph.add(name, [x, value]))
            wanted.append((name, c, [wrapped(BINARY[name](p, c, d), d) for p in a.tolist()]))
    for (name, c, expected), found in zip(wanted, cases.compiled("cpu")[1](1), strict=True):
        np.testing.assert_array_equal(found, np.array(expected, d.numpy), err_msg=f"{name} {c}")


@pytest.mark.parametrize("size", [1, 15, 16, 17, 33])
def test_boolean_operations(size: int):
    cases = Cases(seed=size)
    a, b = cases.rng.random(size) < 0.5, cases.rng.random(size) < 0.5
    x, y = cases.input(array=a, dtype=dt.bool_), cases.input(array=b, dtype=dt.bool_)
    wanted = []
    for name, function in [("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor),
                           ("min", np.logical_and), ("max", np.logical_or),
                           *COMPARISONS.items()]:
        cases.output(cases.graph.add(name, [x, y]))
        wanted.append((name, function(a, b)))
    cases.output(cases.graph.add("not", [x]))
    wanted.append(("not", ~a))
    cases.output(cases.graph.add("select", [x, y, cases.graph.add("not", [y])]))
    wanted.append(("select", np.where(a, b, ~b)))
    for (name, expected), found in zip(wanted, cases.compiled("cpu")[1](1), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=name)
        assert set(found.view(np.uint8).tolist()) <= {0, 1}, name
