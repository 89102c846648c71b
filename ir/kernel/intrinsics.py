"""Intrinsics: operations of some targets that the scalar language lacks, each with its meaning.

`semantics(*arrays)` gives the result on numpy arrays whose last axis is the lanes; a target that
lacks an intrinsic runs its `decomposition` (an expression) or refuses the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .. import dtype as dt
from ..expr import Expr
from .nodes import Call, Load, call


@dataclass(frozen=True)
class Intrinsic:
    """A named operation. Emitters map `name` to a spelling."""

    name: str
    semantics: Callable[..., Any]
    doc: str = ""


def _fold(kind: str):
    def semantics(x):
        # Lanes combine in halves: lane i with lane i + n/2, as the emitters do.
        ufunc = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[kind]
        x = np.asarray(x)
        while x.shape[-1] > 1:
            half = x.shape[-1] // 2
            x = ufunc(x[..., :half], x[..., half:])
        return x[..., 0]

    return semantics


HORIZONTAL = {kind: Intrinsic(f"horizontal_{kind}", _fold(kind), f"{kind} of all lanes")
              for kind in ("sum", "prod", "max", "min")}


def horizontal(kind: str, x: Expr) -> Expr:
    """The reduction of a vector's lanes to a scalar."""
    return x if x.lanes == 1 else call(HORIZONTAL[kind], (x,), x.dtype, 1)


def _dot4(accumulator, a, b):
    a = np.ascontiguousarray(np.asarray(a, np.int32)).view(np.uint8).astype(np.int32)
    b = np.ascontiguousarray(np.asarray(b, np.int32)).view(np.int8).astype(np.int32)
    products = (a * b).reshape(*a.shape[:-1], -1, 4).sum(-1, dtype=np.int32)
    return np.asarray(accumulator) + products


DOT4 = Intrinsic("dot4_u8i8", _dot4, "acc[i] + sum_j u8(a[i], j) * i8(b[i], j) over the four bytes "
                                     "of i32 lanes (vpdpbusd); wraps")


def dot4(accumulator: Expr, a: Expr, b: Expr) -> Call:
    """i32 lanes plus the sums of four u8 x i8 products each."""
    return call(DOT4, (accumulator, a, b), dt.i32, accumulator.lanes)


def _fma32(a, b, c):
    # The product of two bf16 is exact in f64. Its sum with an f32 is nearly always: where it is
    # not, the result may be the other neighbour of a tie.
    with np.errstate(all="ignore"):
        return (a.astype(np.float64) * b.astype(np.float64) + c).astype(np.float32)


def _halves(pairs):
    """The lower and the upper bf16 of i32 lanes, as f32."""
    bits = np.asarray(pairs, np.int32).view(np.uint32)
    return (bits << np.uint32(16)).view(np.float32), (
        bits & np.uint32(0xffff0000)).view(np.float32)


def _dot2(accumulator, a, b):
    (a0, a1), (b0, b1) = _halves(a), _halves(b)
    return _fma32(a0, b0, _fma32(a1, b1, np.asarray(accumulator, np.float32)))


DOT2 = Intrinsic("dot2_bf16", _dot2, "acc[i] + a[i, 1] * b[i, 1], then + a[i, 0] * b[i, 0], over "
                                     "the two bf16 of i32 lanes, each sum rounded once "
                                     "(vdpbf16ps, which takes denormals for zeros)")


def dot2(accumulator: Expr, a: Expr, b: Expr) -> Call:
    """f32 lanes plus the sums of two bf16 products each."""
    return call(DOT2, (accumulator, a, b), dt.f32, accumulator.lanes)


def _dot2_i16(accumulator, a, b):
    a, b = (np.ascontiguousarray(np.asarray(x, np.int32)).view(np.int16).astype(np.int32)
            for x in (a, b))
    products = (a * b).reshape(*a.shape[:-1], -1, 2).sum(-1, dtype=np.int32)
    return np.asarray(accumulator) + products


DOT2_I16 = Intrinsic("dot2_i16", _dot2_i16, "acc[i] + sum_j a[i, j] * b[i, j] over the two i16 of "
                                            "i32 lanes (vpmaddwd, vpaddd); wraps")


def dot2_i16(accumulator: Expr, a: Expr, b: Expr) -> Call:
    """i32 lanes plus the sums of two i16 products each."""
    return call(DOT2_I16, (accumulator, a, b), dt.i32, accumulator.lanes)


TILE_ROWS, TILE_PAIRS, TILE_COLUMNS = 16, 16, 16
"""A tile register (AMX): 16 rows of 64 bytes, which are 16 f32 or 16 pairs of bf16."""

TILE_SUMS, TILE_FACTORS = TILE_ROWS * TILE_COLUMNS, 2 * TILE_ROWS * TILE_PAIRS
"""Lanes of a tile of f32 and of a tile of bf16."""


def _tile_dot(accumulator, a, b):
    a, b = (np.asarray(x).astype(np.float32) for x in (a, b))
    a = a.reshape(*a.shape[:-1], TILE_ROWS, TILE_PAIRS, 1, 2)
    b = b.reshape(*b.shape[:-1], 1, TILE_PAIRS, TILE_COLUMNS, 2)
    halves = np.zeros(np.broadcast_shapes(a[..., 0, :, :].shape, b[..., 0, :, :].shape),
                      np.float32)
    for k in range(TILE_PAIRS):
        halves = _fma32(a[..., k, :, :], b[..., k, :, :], halves)
    total = halves[..., 0] + halves[..., 1]
    return np.asarray(accumulator, np.float32) + total.reshape(*total.shape[:-2], -1)


TILE_DOT = Intrinsic(
    "tile_dot_bf16", _tile_dot, "acc[m, n] + sum over k of a[m, k, j] * b[k, n, j], for 16 x 16 "
    "sums and 16 pairs of bf16: the sums of j = 0 and of j = 1 by themselves in the order of k, "
    "each step rounded once, then their sum (tdpbf16ps, which takes denormals for zeros)")


def tile_dot(accumulator: Expr, a: Expr, b: Expr) -> Call:
    """16 x 16 f32 lanes, row by row, plus the product of 16 x 32 bf16 lanes with 32 x 16, whose
    rows lie in pairs."""
    return call(TILE_DOT, (accumulator, a, b), dt.f32, TILE_SUMS)


def _pack4(bytes_):
    return np.ascontiguousarray(bytes_).view(np.int32)[..., 0]


PACK4 = Intrinsic("pack4", _pack4, "four consecutive bytes as one i32, little-endian")


def pack4(x: Expr) -> Call:
    """A load of four 8-bit or two 16-bit lanes as one i32 scalar."""
    return call(PACK4, (x,), dt.i32, 1)


def _scale(x, n):
    return np.ldexp(x, np.asarray(n).astype(np.int32))


SCALE = Intrinsic("scale", _scale, "x * 2**n for a whole n in f32, rounded once (vscalefps)")


def scale(x: Expr, n: Expr) -> Call:
    """f32 x times 2 to the power of an f32 that is a whole number."""
    return call(SCALE, (x, n), dt.f32, x.lanes)


SHUFFLE = "shuffle"


@cache
def shuffling(*picks: int) -> Intrinsic:
    """The intrinsic that picks these lanes of two vectors; its name is shuffle_ and the picks."""
    def semantics(x, y):
        return np.concatenate([x, y], -1)[..., list(picks)]

    return Intrinsic("_".join([SHUFFLE, *map(str, picks)]), semantics, "lanes of two vectors")


def shuffle(x: Expr, y: Expr, picks: Sequence[int]) -> Call:
    """Lanes of x and y; those of y count from the lanes of x on."""
    return call(shuffling(*picks), (x, y), x.dtype, len(picks))


REPEAT = "repeat"


@cache
def repeating(lanes: int) -> Intrinsic:
    """The intrinsic that fills `lanes` with copies of a shorter vector."""
    def semantics(x):
        return np.tile(x, lanes // np.shape(x)[-1])

    return Intrinsic(f"{REPEAT}_{lanes}", semantics, "a loaded vector again and again")


def repeat(x: Load, lanes: int) -> Expr:
    """The elements of a load again and again in `lanes`, a power of two times as many: one
    broadcasting load where the machine has it (vbroadcastsd, vbroadcastf32x4)."""
    if x.lanes == lanes:
        return x
    return call(repeating(lanes), (x,), x.dtype, lanes)
