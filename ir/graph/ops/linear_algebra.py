"""Determinants."""

from __future__ import annotations

import numpy as np

from ..definition import OpContext, OpDef, define
from .shapes import same, type_like


def _det_infer(ctx: OpContext):
    t = ctx.type(0)
    if t.rank < 2 or not t.dtype.is_float:
        raise ctx.error(f"det takes matrices of floats, not {t}")
    n, m = t.shape[-2:]
    if isinstance(n, int) and isinstance(m, int) and not same(n, m):
        raise ctx.error(f"det of matrices that are not square: {t}")
    return [type_like(t, t.shape[:-2])]


def _det_reference(ctx: OpContext, x):
    wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    return np.asarray(np.linalg.det(wide)).astype(x.dtype)


define(OpDef("det", "opaque", _det_infer, _det_reference,
             doc="Determinants of the matrices in the last two axes; 1 for 0 x 0."))
