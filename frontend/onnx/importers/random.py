"""Random numbers. Without a seed in the model the node's name gives one: a compiled model draws
the same numbers in every run."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

from ....ir import dtype as dt
from ....ir.dtype import DType
from ....ir.expr import wrap
from ....ir.graph.core import Dim, Value
from ..registry import Site, importer
from ..tensors import element_type
from .elementwise import cast, scalar


def _seed(c: Site) -> int:
    if "seed" in c.attrs:
        return struct.unpack("<I", struct.pack("<f", c.attrs["seed"]))[0]
    return zlib.crc32(c.origin.encode()) | 1 << 32


def uniform(c: Site, shape: Sequence[Dim], dtype: DType = dt.f32, stream: int = 0,
            nonzero: bool = False) -> Value:
    """Floats in [0, 1), or with `nonzero` in (0, 1], multiples of 2^-24 (f64: of 2^-32)."""
    wide = dt.f64 if dtype is dt.f64 else dt.f32
    bits = c.add("random_bits", shape=tuple(shape), seed=_seed(c), stream=stream)
    if wide is dt.f32:
        bits = c.add("shr", [bits, scalar(c, 8, dt.u32)])
    steps = cast(c, bits, wide)
    if nonzero:
        steps = c.add("add", [steps, scalar(c, 1, wide)])
    return c.add("mul", [steps, scalar(c, 2.0 ** (-24 if wide is dt.f32 else -32), wide)])


def normal(c: Site, shape: Sequence[Dim], dtype: DType = dt.f32) -> Value:
    """Standard normal floats (Box & Muller 1958)."""
    radius, turn = uniform(c, shape, dtype, 0, nonzero=True), uniform(c, shape, dtype, 1)
    wide = radius.dtype
    length = c.add("sqrt", [c.add("mul", [c.add("log", [radius]), scalar(c, -2.0, wide)])])
    angle = c.add("mul", [turn, scalar(c, 2 * math.pi, wide)])
    return c.add("mul", [length, c.add("cos", [angle])])


def _like(c: Site) -> tuple[Sequence[Dim], DType]:
    """Shape and type of the result."""
    if c.op_type.endswith("Like") or c.op_type == "Bernoulli":
        x = c.input(0)
        shape, default = x.shape, x.dtype
    else:
        if "shape" not in c.attrs:
            raise c.error("attribute shape is missing")
        shape, default = tuple(c.attrs["shape"]), dt.f32
    number = c.attr("dtype")
    return shape, element_type(number, c.origin) if number else default


def _scaled(c: Site, x: Value, scale: float, offset: float, dtype: DType) -> Value:
    if scale != 1:
        x = c.add("mul", [x, scalar(c, scale, x.dtype)])
    if offset:
        x = c.add("add", [x, scalar(c, offset, x.dtype)])
    return cast(c, x, dtype)


@importer("RandomUniform", "RandomUniformLike")
def random_uniform(c: Site) -> Value:
    shape, dtype = _like(c)
    low, high = c.attr("low", 0.0), c.attr("high", 1.0)
    return _scaled(c, uniform(c, shape, dtype), high - low, low, dtype)


@importer("RandomNormal", "RandomNormalLike")
def random_normal(c: Site) -> Value:
    shape, dtype = _like(c)
    return _scaled(c, normal(c, shape, dtype), c.attr("scale", 1.0), c.attr("mean", 0.0), dtype)


@importer("Bernoulli")
def bernoulli(c: Site) -> Value:
    shape, dtype = _like(c)
    p = c.input(0)
    drawn = uniform(c, shape, p.dtype)
    return cast(c, c.add("lt", [drawn, cast(c, p, drawn.dtype)]), dtype)


@importer("Multinomial")
def multinomial(c: Site) -> Value:
    """Draws from rows of unnormalised log probabilities, by inverting the running sum."""
    x, draws = c.input(0), c.attr("sample_size", 1)
    if x.rank != 2:
        raise c.error(f"expected rows of log probabilities, found {x.type}")
    wide = dt.f64 if x.dtype is dt.f64 else dt.f32
    x = cast(c, x, wide)
    rows, classes = x.shape
    top = c.add("reduce_max", [x], axes=(1,), keepdims=True)
    weights = c.add("exp", [c.add("sub", [x, top])])
    running = c.add("cumsum", [weights], axis=1)
    total = c.add("reduce_sum", [weights], axes=(1,), keepdims=True)
    level = c.add("mul", [uniform(c, (rows, draws), wide), total])
    below = c.add("le", [c.add("reshape", [running], shape=(rows, 1, classes)),
                         c.add("reshape", [level], shape=(rows, draws, 1))])
    dtype = element_type(c.attr("dtype", 6), c.origin)
    drawn = c.add("reduce_sum", [cast(c, below, dt.i64)], axes=(2,))
    # Rounding may leave the level at the very end.
    (last,) = (c.add("sizes", dims=(wrap(classes) - 1,)) if not isinstance(classes, int)
               else scalar(c, classes - 1, dt.i64),)
    return cast(c, c.add("min", [drawn, last]), dtype)
