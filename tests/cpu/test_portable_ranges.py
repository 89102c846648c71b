"""Bounds of integer expressions hold for every value, and decide comparisons rightly."""

import numpy as np

from smelt.ir import dtype as dt
from smelt.ir.expr import Expr, Op, Var, cast, const, evaluate, op, select, var
from smelt.ir.kernel.ranges import INT32, Ranges, within

BINARY = ("add", "sub", "mul", "min", "max", "floordiv", "mod")


def random_index(rng: np.random.Generator, variables: list[Var], depth: int) -> Expr:
    if depth == 0 or rng.random() < 0.2:
        if rng.random() < 0.6:
            return variables[rng.integers(len(variables))]
        return const(int(rng.integers(-40, 100)))
    a = random_index(rng, variables, depth - 1)
    name = BINARY[rng.integers(len(BINARY))]
    if name in ("floordiv", "mod"):
        return op(name, a, const(int(rng.integers(1, 12))))
    b = random_index(rng, variables, depth - 1)
    if rng.random() < 0.1:
        return select(op("lt", a, b), a, b)
    return op(name, a, b)


def test_bounds_hold_for_every_index(rng):
    for _ in range(300):
        variables = [var(f"i{k}", extent=int(rng.integers(1, 9))) for k in range(3)]
        e = random_index(rng, variables, 4)
        ranges = Ranges()
        low, high = ranges.of(e)
        for i in np.ndindex(*(v.extent for v in variables)):
            value = evaluate(e, {v.name: int(x) for v, x in zip(variables, i, strict=True)})
            assert low <= value <= high, (e, i, value, low, high)


def test_bounds_of_names_and_counters():
    ranges = Ranges()
    i, name, data = var("i"), var("name"), var("data", dt.i64)
    ranges.count(i, op("min", const(10), const(7)))
    assert ranges.of(i) == (0, 6)
    ranges.define(name, i * 100 - 3)
    assert ranges.of(name) == (-3, 597)
    assert not within(ranges.of(data), INT32)
    assert ranges.of(cast(var("byte", dt.u8), dt.i64) + 1) == (1, 256)


def test_overflow_is_seen():
    ranges = Ranges()
    a, b = var("a", dt.i8), var("b", dt.i8)
    wide = cast(a, dt.i32) * cast(b, dt.i32)
    assert isinstance(wide, Op) and not ranges.overflows(wide)
    assert ranges.of(wide) == (-128 * 127, 128 * 128)
    narrow = a * b
    assert isinstance(narrow, Op) and ranges.overflows(narrow)
    assert ranges.of(narrow) == (-128, 127)
    big = var("x", dt.i64) + var("y", dt.i64)
    assert isinstance(big, Op) and ranges.overflows(big)


def test_comparisons_that_types_decide():
    ranges = Ranges()
    byte, whole = var("u", dt.u8), var("v", dt.i32)
    assert ranges.compare("ge", byte, const(0, dt.u8)) is True
    assert ranges.compare("lt", byte, const(0, dt.u8)) is False
    assert ranges.compare("le", byte, const(255, dt.u8)) is True
    assert ranges.compare("gt", byte, const(255, dt.u8)) is False
    assert ranges.compare("lt", byte, const(255, dt.u8)) is None
    assert ranges.compare("ge", whole, const(0, dt.i32)) is None
