"""Element types: one frozen `DType` per type, interned, so identity is equality."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np


@dataclass(frozen=True, eq=False)
class DType:
    """A scalar element type.

    `kind` is one of "bool", "int", "uint", "float"; `bits` is the width of the encoding.
    `numpy` is the array dtype that holds it in memory. Types narrower than a byte take one byte
    per element in tensors; packed storage is the business of encodings.
    """

    name: str
    kind: str
    bits: int
    numpy: np.dtype

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self):
        return (dtype, (self.name,))

    @property
    def itemsize(self) -> int:
        """Bytes per element in memory."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"

    @cached_property
    def min(self):
        """The lowest finite value (Python number)."""
        if self.is_float:
            return float(ml_dtypes.finfo(self.numpy).min)
        if self.is_bool:
            return False
        return int(ml_dtypes.iinfo(self.numpy).min)

    @cached_property
    def max(self):
        """The highest finite value (Python number)."""
        if self.is_float:
            return float(ml_dtypes.finfo(self.numpy).max)
        if self.is_bool:
            return True
        return int(ml_dtypes.iinfo(self.numpy).max)


def _define(name: str, kind: str, bits: int, numpy) -> DType:
    return DType(name, kind, bits, np.dtype(numpy))


bool_ = _define("bool", "bool", 8, np.bool_)
i2 = _define("i2", "int", 2, ml_dtypes.int2)
i4 = _define("i4", "int", 4, ml_dtypes.int4)
i8 = _define("i8", "int", 8, np.int8)
i16 = _define("i16", "int", 16, np.int16)
i32 = _define("i32", "int", 32, np.int32)
i64 = _define("i64", "int", 64, np.int64)
u2 = _define("u2", "uint", 2, ml_dtypes.uint2)
u4 = _define("u4", "uint", 4, ml_dtypes.uint4)
u8 = _define("u8", "uint", 8, np.uint8)
u16 = _define("u16", "uint", 16, np.uint16)
u32 = _define("u32", "uint", 32, np.uint32)
u64 = _define("u64", "uint", 64, np.uint64)
f16 = _define("f16", "float", 16, np.float16)
bf16 = _define("bf16", "float", 16, ml_dtypes.bfloat16)
f32 = _define("f32", "float", 32, np.float32)
f64 = _define("f64", "float", 64, np.float64)
f8e4m3fn = _define("f8e4m3fn", "float", 8, ml_dtypes.float8_e4m3fn)
f8e4m3fnuz = _define("f8e4m3fnuz", "float", 8, ml_dtypes.float8_e4m3fnuz)
f8e5m2 = _define("f8e5m2", "float", 8, ml_dtypes.float8_e5m2)
f8e5m2fnuz = _define("f8e5m2fnuz", "float", 8, ml_dtypes.float8_e5m2fnuz)
f8e8m0 = _define("f8e8m0", "float", 8, ml_dtypes.float8_e8m0fnu)
f4e2m1 = _define("f4e2m1", "float", 4, ml_dtypes.float4_e2m1fn)

ALL: dict[str, DType] = {v.name: v for v in list(globals().values()) if isinstance(v, DType)}
_BY_NUMPY: dict[np.dtype, DType] = {v.numpy: v for v in ALL.values()}


def dtype(name: str) -> DType:
    """The type called `name`; raises KeyError naming it."""
    if name not in ALL:
        raise KeyError(f"unknown dtype {name!r}")
    return ALL[name]


def from_numpy(value) -> DType:
    """The DType of a numpy array, scalar or dtype; raises TypeError for text and objects."""
    key = np.dtype(getattr(value, "dtype", value)).newbyteorder("=")
    if key not in _BY_NUMPY:
        raise TypeError(f"no smelt dtype for numpy {key}")
    return _BY_NUMPY[key]
