"""Discrete Fourier transforms of any length."""

from __future__ import annotations

import math

import numpy as np

from ... import dtype as dt
from ...expr import Expr, cast, const, equal, minimum, op, select, simplify_dim, wrap
from ..definition import REQUIRED, OpContext, OpDef, define
from .shapes import type_like


def _dft_infer(ctx: OpContext):
    t, a = ctx.type(0), ctx.attrs
    if t.rank < 2 or t.shape[-1] not in (1, 2) or not t.dtype.is_float:
        raise ctx.error(f"dft takes [..., length, 1 or 2] floats, not {t}")
    n = wrap(a["length"])
    if a["inverse"] and a["onesided"]:
        return [type_like(t, (*t.shape[:-2], simplify_dim(n), 1))]
    rows = n // 2 + 1 if a["onesided"] else n
    return [type_like(t, (*t.shape[:-2], simplify_dim(rows), 2))]


def _dft_body(ctx: OpContext, index):
    t, a, out = ctx.type(0), ctx.attrs, ctx.out()
    n, half = wrap(a["length"]), a["inverse"] and a["onesided"]
    *lead, k, part = index
    sign = 1.0 if a["inverse"] else -1.0

    def element(i: Expr, c: int) -> Expr:
        return cast(ctx.load(0, (*lead, i, const(c))), dt.f64 if out.dtype is dt.f64 else dt.f32)

    def term(i: Expr) -> Expr:
        re = element(i, 0)
        wide = re.dtype
        # The product is reduced first, so that the angle is exact.
        angle = cast((k * i) % n, wide) * (sign * 2 * math.pi) / cast(n, wide)
        cos, sin = op("cos", angle), op("sin", angle)
        if t.shape[-1] == 1:
            real, imaginary = re * cos, re * sin
        else:
            im = element(i, 1)
            real, imaginary = re * cos - im * sin, re * sin + im * cos
        if half:
            # Each frequency but 0 and n / 2 stands for its conjugate as well.
            single = op("or", equal(i, 0), equal(i * 2, n))
            return select(single, real, real * 2)
        return select(equal(part, 0), real, imaginary)

    rows = n // 2 + 1 if half else n
    count = simplify_dim(minimum(wrap(t.shape[-2]), rows))
    total = ctx.reduce("sum", [count], term)
    if a["inverse"]:
        total = total / cast(n, total.dtype)
    return cast(total, out.dtype)


def _dft_reference(ctx: OpContext, x):
    a, n = ctx.attrs, int(ctx.attrs["length"])
    wide = x.astype(np.float64)
    signal = wide[..., 0] + (1j * wide[..., 1] if x.shape[-1] == 2 else 0)
    if a["inverse"] and a["onesided"]:
        return np.fft.irfft(signal, n)[..., None].astype(x.dtype)
    y = np.fft.ifft(signal, n) if a["inverse"] else np.fft.fft(signal, n)
    y = y[..., : n // 2 + 1] if a["onesided"] else y
    return np.stack([y.real, y.imag], -1).astype(x.dtype)


define(OpDef(
    "dft", "reduction", _dft_infer, _dft_reference, _dft_body,
    attrs={"length": REQUIRED, "inverse": False, "onesided": False},
    doc="Fourier transform over the axis before the last, whose entries are (re, im) or (re); cut "
        "or padded with zeros to `length`. `onesided` gives the first length // 2 + 1 "
        "frequencies, or with `inverse` takes them and gives real values. O(n^2).",
))
