"""Expressions print and parse back to the identical object."""

import numpy as np
import pytest

from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.expr import broadcast, cast, const, op, ramp, reduce, size, var
from smelt.ir.text import parse_expr, print_expr

N, M, x = size("N"), size("M"), var("x", dt.f32)
k = var("r0", extent=N)


@pytest.mark.parametrize(("expression", "text"), [
    (N + 1, "(N + 1)"),
    ((N - 1) // 2 + 1, "(((N - 1) // 2) + 1)"),
    (N * M * 3 - 7, None),
    ((N * M - 3) % 7, None),
    (op("max", N - M, 0), "max((N - M), 0)"),
    (op("select", op("lt", N, M), N, M), "select(lt(N, M), N, M)"),
    (size("seq-len") + size("f32"), "(f32 + `seq-len`)"),
    (size("a`b\n"), None),
    (x * 0.5 + op("exp", x), "add(mul(x, 0.5:f32), exp(x))"),
    (cast(N, dt.f32), "f32(N)"),
    (cast(x, dt.i32, "bits"), "i32.bits(x)"),
    (reduce("sum", [k], cast(k, dt.f32) * x), "sum[r0 < N](mul(f32(r0), x))"),
    (const(float("nan"), dt.f32), "nan:f32"),
    (const(float("-inf"), dt.bf16), "-inf:bf16"),
    (const(-0.0, dt.f32), "-0.0:f32"),
    (const(-3, dt.i8), "-3:i8"),
    (const(True, dt.bool_), "true"),
    (const(-5), "-5"),
    (ramp(N, 8, 2), "ramp<8, 2>(N)"),
    (broadcast(x, 4), "broadcast<4>(x)"),
])
def test_round_trip(expression, text):
    printed = print_expr(expression)
    assert text is None or printed == text
    assert parse_expr(printed, lambda n: x if n == "x" else size(n)) is expression


@pytest.mark.parametrize(("text", "expression"), [
    ("2*N + 1", N * 2 + 1),
    ("N - 1 - M", N - 1 - M),
    ("N // 2 % 3", (N // 2) % 3),
    ("(N + 1) * (M - 1)  # a comment", (N + 1) * (M - 1)),
    ("add(N, 1)", N + 1),
    ("-2 * N", N * -2),
])
def test_written_by_hand(text, expression):
    assert parse_expr(text) is expression


@pytest.mark.parametrize(("text", "message"), [
    ("max(N,\n foo(3))", "line 2, column 5: unknown operation 'foo'"),
    ("max(N)", "max takes 2 arguments, got 1"),
    ("(N + 1", "expected '\\)', found 'the end'"),
    ("N N", "expected the end"),
    ("1.5", "expected a dtype after 1.5"),
    ("x + N", "mixed dtypes"),
    ("", "expected an expression"),
])
def test_errors_say_where(text, message):
    with pytest.raises(ModelError, match=message):
        parse_expr(text, lambda n: x if n == "x" else size(n))


def test_nesting_may_be_deep():
    e = x
    for _ in range(5000):
        e = op("exp", e)
    assert parse_expr(print_expr(e), lambda n: x) is e


def test_random_expressions_round_trip():
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    pool = [N, M, size("K"), const(1), const(2), const(-3)]
    for _ in range(300):
        a, b = (pool[int(rng.integers(len(pool)))] for _ in range(2))
        choice = int(rng.integers(7))
        positive = const(int(rng.integers(1, 5)))
        e = (a + b, a - b, a * positive, a // positive, a % positive, op("max", a, b),
             op("min", a, b))[choice]
        if len(print_expr(e)) < 200:
            pool.append(e)
        assert parse_expr(print_expr(e)) is e
