"""Matrix products: MatMul, Gemm, MatMulInteger."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.graph.core import Value
from ..building import cast, is_zero, reshape, scalar, swap
from ..registry import Site, importer


def multiply(c: Site, a: Value, b: Value, **attrs) -> Value:
    """numpy.matmul: operands of rank 1 are a row on the left and a column on the right."""
    if not a.rank or not b.rank:
        raise c.error(f"a matrix product needs operands of rank 1 or more, got {a.type} and "
                      f"{b.type}")
    row, column = a.rank == 1, b.rank == 1
    if row:
        a = reshape(c, a, (1, *a.shape))
    if column:
        b = reshape(c, b, (*b.shape, 1))
    y = c.add("matmul", [a, b], **attrs)
    if row or column:
        shape = list(y.shape)
        if column:
            del shape[-1]
        if row:
            del shape[-1 if column else -2]
        y = reshape(c, y, shape)
    return y


@importer("MatMul")
def matmul(c: Site):
    return multiply(c, c.input(0), c.input(1))


def scaled(c: Site, x: Value, factor: float) -> Value:
    """x * factor in the type of x."""
    return x if factor == 1 else c.add("mul", [x, scalar(c, factor, x.dtype)])


def gemm_of(c: Site, a: Value, b: Value, bias: Value | None) -> Value:
    """alpha * a' * b' + beta * bias with the attributes of Gemm."""
    if a.rank != 2 or b.rank != 2:
        raise c.error(f"Gemm needs matrices, got {a.type} and {b.type}")
    a = swap(c, a) if c.attr("transA", 0) else a
    b = swap(c, b) if c.attr("transB", 0) else b
    y = scaled(c, c.add("matmul", [a, b]), c.attr("alpha", 1.0))
    beta = c.attr("beta", 1.0)
    if bias is None or beta == 0:
        return y
    return c.add("add", [y, scaled(c, bias, beta)])


@importer("Gemm")
def gemm(c: Site):
    return gemm_of(c, c.input(0), c.input(1), c.inputs[2] if c.has(2) else None)


def centred(c: Site, x: Value, i: int, zero_shape=None) -> Value:
    """Quantised `x` less its zero point, input `i`: as it is when that is zero, else i32."""
    if is_zero(c, i):
        return x
    zero = c.input(i)
    if zero.rank == 1 and zero.shape[0] == 1:
        zero = reshape(c, zero, ())
    elif zero_shape is not None and zero.rank:
        zero = reshape(c, zero, zero_shape(zero))
    return c.add("sub", [cast(c, x, dt.i32), cast(c, zero, dt.i32)])


def left_zero(zero: Value):
    """Shape of a zero point per row (or of a full one) of a left operand."""
    return (*zero.shape, 1) if zero.rank == 1 else zero.shape


def integer_product(c: Site, a: Value, b: Value, a_zero: int, b_zero: int) -> Value:
    """(a - a_zero) * (b - b_zero) accumulated in i32; zero points are inputs of the node."""
    return multiply(c, centred(c, a, a_zero, left_zero), centred(c, b, b_zero), dtype=dt.i32)


@importer("MatMulInteger")
def matmul_integer(c: Site):
    return integer_product(c, c.input(0), c.input(1), 2, 3)
