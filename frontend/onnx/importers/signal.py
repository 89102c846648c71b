"""Fourier transforms, the windows that go with them, and mel filters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ....ir import dtype as dt
from ....ir.expr import simplify_dim, wrap
from ....ir.graph.core import Dim, Value
from .. import vectors
from ..registry import Site, importer
from ..tensors import element_type
from .elementwise import as_scalar, cast, scalar
from .movement import axis_of

DIRECT = 256
"""The longest transform that is one matrix product; longer ones are split into factors."""

LARGEST = 2048
"""The longest prime transform whose matrix is kept as a constant."""


def _matrix(n: int, rows: int, columns: int, parts: int, sign: int, dtype) -> np.ndarray:
    """[rows * parts, columns * 2]: the transform of `rows` entries (re) or (re, im) as a real
    matrix."""
    t, k = np.arange(rows)[:, None], np.arange(columns)[None, :]
    angle = sign * 2 * np.pi * ((t * k) % n) / n
    cos, sin = np.cos(angle), np.sin(angle)
    blocks = np.empty((rows, parts, columns, 2))
    blocks[:, 0, :, 0], blocks[:, 0, :, 1] = cos, sin
    if parts == 2:
        blocks[:, 1, :, 0], blocks[:, 1, :, 1] = -sin, cos
    return blocks.reshape(rows * parts, columns * 2).astype(dtype.numpy)


def _product(c: Site, x: Value, matrix: np.ndarray, out: tuple[Dim, ...]) -> Value:
    """The last two axes of `x` as one, times a matrix, in the shape `out`."""
    rows, columns = matrix.shape
    if x.rank == 2:
        flat = c.add("reshape", [x], shape=(1, rows))
    else:
        flat = c.add("reshape", [x], shape=(*x.shape[:-2], rows))
    return c.add("reshape", [c.add("matmul", [flat, c.constant(matrix)])], shape=out)


def _factor(n: int) -> int:
    """The largest factor of `n` up to its square root."""
    return max(f for f in range(1, math.isqrt(n) + 1) if n % f == 0)


def _resized(c: Site, x: Value, axis: int, size: int) -> Value:
    """`x` cut or padded with zeros at the end of an axis of known size."""
    extent = x.shape[axis]
    assert isinstance(extent, int)
    if size < extent:
        sizes = tuple(size if a == axis else d for a, d in enumerate(x.shape))
        return c.add("slice", [x], starts=(0,) * x.rank, sizes=sizes, steps=(1,) * x.rank)
    if size > extent:
        high = tuple(size - extent if a == axis else 0 for a in range(x.rank))
        return c.add("pad", [x, scalar(c, 0, x.dtype)], low=(0,) * x.rank, high=high)
    return x


def _complex_product(c: Site, x: Value, factors: np.ndarray) -> Value:
    """(re, im) entries times complex constants."""
    starts, sizes = (*(0,) * (x.rank - 1), 1), x.shape
    swapped = c.add("slice", [x], starts=starts, sizes=sizes, steps=(*(1,) * (x.rank - 1), -1))
    straight = np.repeat(np.real(factors)[..., None], 2, -1)
    crossed = np.stack([-np.imag(factors), np.imag(factors)], -1)
    return c.add("add", [
        c.add("mul", [x, c.constant(straight.astype(x.dtype.numpy))]),
        c.add("mul", [swapped, c.constant(crossed.astype(x.dtype.numpy))])])


def _swap(c: Site, x: Value) -> Value:
    """Exchanges the second and third axis from the end."""
    perm = (*range(x.rank - 3), x.rank - 2, x.rank - 3, x.rank - 1)
    return c.add("transpose", [x], perm=perm)


def transform(c: Site, x: Value, n: int, sign: int) -> Value:
    """[..., n, 1 or 2] to [..., n, 2] by factors (Cooley & Tukey 1965), without scaling."""
    lead, parts = x.shape[:-2], x.shape[-1]
    a = _factor(n)
    if n <= DIRECT or a == 1:
        assert isinstance(parts, int)
        return _product(c, x, _matrix(n, n, n, parts, sign, x.dtype), (*lead, n, 2))
    b = n // a
    # Entry t = b * t1 + t2, frequency k = k1 + a * k2.
    y = _swap(c, c.add("reshape", [x], shape=(*lead, a, b, parts)))
    y = transform(c, y, a, sign)
    turn = sign * 2j * np.pi * np.outer(np.arange(b), np.arange(a)) / n
    y = _swap(c, _complex_product(c, y, np.exp(turn)))
    y = _swap(c, transform(c, y, b, sign))
    return c.add("reshape", [y], shape=(*lead, n, 2))


def dft(c: Site, x: Value, length: Dim, inverse: bool, onesided: bool) -> Value:
    """The transform over the axis before the last; see operator dft."""
    extent, n = x.shape[-2], length
    attrs = {"length": n, "inverse": inverse, "onesided": onesided}
    if not isinstance(n, int) or not isinstance(extent, int) or n < 1 or not extent:
        return c.add("dft", [x], attrs)
    a = _factor(n)
    if n > LARGEST and a == 1:
        return c.add("dft", [x], attrs)
    lead, parts = x.shape[:-2], x.shape[-1]
    assert isinstance(parts, int)
    half = n // 2 + 1
    if inverse and onesided:
        # The other half is the conjugate mirror image of the frequencies given.
        x = _resized(c, x, x.rank - 2, min(extent, half))
        rows = min(extent, half)
        weights = np.full((rows, 1), 2.0)
        weights[0] = 1
        if n % 2 == 0 and rows == half:
            weights[-1] = 1
        matrix = _matrix(n, rows, n, parts, 1, dt.f64).reshape(rows, parts, n, 2)[..., 0]
        matrix = (matrix * weights[:, :, None] / n).reshape(rows * parts, n)
        return _product(c, x, matrix.astype(x.dtype.numpy), (*lead, n, 1))
    columns = half if onesided else n
    if n <= DIRECT or a == 1:
        rows = min(extent, n)
        matrix = _matrix(n, rows, columns, parts, 1 if inverse else -1, dt.f64)
        if inverse:
            matrix = matrix / n
        x = _resized(c, x, x.rank - 2, rows)
        return _product(c, x, matrix.astype(x.dtype.numpy), (*lead, columns, 2))
    y = transform(c, _resized(c, x, x.rank - 2, n), n, 1 if inverse else -1)
    if inverse:
        y = c.add("mul", [y, scalar(c, 1 / n, y.dtype)])
    return _resized(c, y, y.rank - 2, columns)


def _one(c: Site, i: int) -> Dim:
    """An operand that is one integer, as a dimension."""
    v = vectors.integers(c, c.input(i))
    if vectors.count(c, v, "elements") != 1:
        raise c.error(f"input {i} must be one number, not {v.type}")
    return c.dims(v)[0]


@importer("DFT", since=17)
def dft_axis_attribute(c: Site) -> Value:
    return _along(c, c.attr("axis", 1))


@importer("DFT", since=20)
def dft_axis_operand(c: Site) -> Value:
    if not c.has(2):
        return _along(c, -2)
    known = vectors.numbers(c.input(2))
    return _along_data(c) if known is None else _along(c, known[0])


def _along(c: Site, axis: int) -> Value:
    x = c.input(0)
    axis = axis_of(c, axis, x.rank)
    if axis == x.rank - 1:
        raise c.error("the axis of real and imaginary parts cannot be transformed")
    last = x.rank - 2
    perm = [*(a for a in range(last + 1) if a != axis), axis, x.rank - 1]
    if axis == last:
        return _as_asked(c, x)
    y = _as_asked(c, c.add("transpose", [x], perm=tuple(perm)))
    return c.add("transpose", [y], perm=tuple(int(p) for p in np.argsort(perm)))


def _along_data(c: Site) -> Value:
    """The axis is known when the model runs: the data gives the order of the axes."""
    x = c.input(0)
    n = x.rank - 1
    axis = c.add("reshape", [as_scalar(c, vectors.integers(c, c.input(2)))], shape=(1,))
    # Negative axes count the one of real and imaginary parts.
    axis = vectors.wrap_negative(c, axis, c.constant(np.array(x.rank, np.int64)))
    mask = vectors.axis_mask(c, axis, n)
    others = c.add("not", [mask])
    end = c.constant(np.array([n]))
    order = c.add("concat", [vectors.positions(c, others, n, n - 1), axis, end], axis=0)
    shape = c.dims(vectors.take(c, vectors.vector(c, x.shape), order))
    shape = (*shape[:-1], x.shape[-1])
    y = _as_asked(c, c.add("transpose_by", [x, order], shape=shape))
    place = c.add("select", [mask, c.constant(np.array(n - 1)), vectors.rank_among(c, others, n)])
    back = c.add("concat", [place, end], axis=0)
    shape = c.dims(vectors.take(c, vectors.vector(c, y.shape), back))
    return c.add("transpose_by", [y, back], shape=(*shape[:-1], y.shape[-1]))


def _as_asked(c: Site, x: Value) -> Value:
    """The transform that the node's attributes describe, over the axis before the last."""
    inverse, onesided = bool(c.attr("inverse", 0)), bool(c.attr("onesided", 0))
    if c.has(1):
        length = _one(c, 1)
    else:
        length = x.shape[-2]
        if inverse and onesided:
            length = simplify_dim((wrap(length) - 1) * 2)
    return dft(c, x, length, inverse, onesided)


@importer("STFT")
def stft(c: Site) -> Value:
    x = c.input(0)
    if x.rank == 2:
        x = c.add("reshape", [x], shape=(*x.shape, 1))
    window = c.input(2) if c.has(2) else None
    step = _one(c, 1)
    if c.has(3):
        length = _one(c, 3)
    else:
        length = x.shape[1] if window is None else window.shape[0]
    frames = simplify_dim((wrap(x.shape[1]) - wrap(length)) // wrap(step) + 1)
    starts = c.add("mul", [c.add("iota", size=frames), vectors.vector(c, [step])])
    places = c.add("add", [c.add("reshape", [starts], shape=(frames, 1)),
                           c.add("iota", size=length)])
    y = c.add("gather", [x, places], axis=1)
    if window is not None:
        shape = (window.shape[0], 1)
        y = c.add("mul", [y, c.add("reshape", [cast(c, window, x.dtype)], shape=shape)])
    return dft(c, y, length, False, bool(c.attr("onesided", 1)))


# Windows ----------------------------------------------------------------------------------------

_COSINES: dict[str, Sequence[float]] = {
    "HannWindow": (0.5, -0.5), "HammingWindow": (25 / 46, -21 / 46),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}


@importer(*_COSINES)
def window(c: Site) -> Value:
    size, periodic = _one(c, 0), bool(c.attr("periodic", 1))
    dtype = element_type(c.attr("output_datatype", 1), c.origin)
    terms = _COSINES[c.op_type]
    if isinstance(size, int):
        span = max(size if periodic else size - 1, 1)
        angle = 2 * np.pi * np.arange(size) / span
        return c.constant(sum(f * np.cos(k * angle) for k, f in enumerate(terms)), dtype)
    wide = dt.f64 if dtype is dt.f64 else dt.f32
    span = vectors.maximum(c, vectors.vector(c, [wrap(size) - (0 if periodic else 1)]), 1)
    position = c.add("div", [c.add("iota", size=size, dtype=wide), cast(c, span, wide)])
    total = scalar(c, terms[0], wide)
    for k, factor in enumerate(terms[1:], 1):
        angle = c.add("mul", [position, scalar(c, 2 * math.pi * k, wide)])
        total = c.add("add", [total, c.add("mul", [c.add("cos", [angle]),
                                                   scalar(c, factor, wide)])])
    return cast(c, total, dtype)


@importer("MelWeightMatrix")
def mel_weight_matrix(c: Site) -> Value:
    """Triangular filters, evenly spaced in mels."""
    dtype = element_type(c.attr("output_datatype", 1), c.origin)
    filters, length = _one(c, 0), _one(c, 1)
    spectrum = simplify_dim(wrap(length) // 2 + 1)

    def number(i: int) -> Value:
        return cast(c, as_scalar(c, c.input(i)), dt.f64)

    def f64(value: float) -> Value:
        return scalar(c, value, dt.f64)

    def mel(hertz: Value) -> Value:
        ratio = c.add("add", [c.add("div", [hertz, f64(700.0)]), f64(1.0)])
        return c.add("mul", [c.add("log", [ratio]), f64(2595 / math.log(10))])

    low, high = mel(number(3)), mel(number(4))
    corners = simplify_dim(wrap(filters) + 2)
    count = cast(c, vectors.vector(c, [corners]), dt.f64)
    step = c.add("div", [c.add("sub", [high, low]), count])
    place = c.add("iota", size=corners, dtype=dt.f64)
    mels = c.add("add", [c.add("mul", [place, step]), low])
    power = c.add("exp", [c.add("mul", [mels, f64(math.log(10) / 2595)])])
    hertz = c.add("mul", [c.add("sub", [power, f64(1.0)]), f64(700.0)])
    scale = cast(c, vectors.vector(c, [wrap(length) + 1]), dt.f64)
    bins = c.add("floor", [c.add("div", [c.add("mul", [hertz, scale]), number(2)])])

    def corner(k: int) -> Value:
        return c.add("slice", [bins], starts=(k,), sizes=(filters,), steps=(1,))

    start, centre, end = corner(0), corner(1), corner(2)
    at = c.add("reshape", [c.add("iota", size=spectrum, dtype=dt.f64)], shape=(spectrum, 1))
    zero, one = f64(0.0), f64(1.0)
    width, fall = c.add("sub", [centre, start]), c.add("sub", [end, centre])
    rising = c.add("select", [
        c.add("eq", [width, zero]), c.add("select", [c.add("eq", [at, centre]), one, zero]),
        c.add("div", [c.add("sub", [at, start]), c.add("max", [width, one])])])
    falling = c.add("div", [c.add("sub", [end, at]), c.add("max", [fall, one])])
    inside = c.add("and", [c.add("ge", [at, start]), c.add("lt", [at, end])])
    left = c.add("or", [c.add("lt", [at, centre]), c.add("eq", [fall, zero])])
    peak = c.add("eq", [at, centre])
    value = c.add("select", [left, rising, falling])
    value = c.add("select", [c.add("or", [inside, peak]), value, zero])
    return cast(c, value, dtype)


