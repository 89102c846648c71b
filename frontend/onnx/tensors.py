"""TensorProto to numpy: every numeric element type, raw, typed, packed or external data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto

from ...errors import ModelError
from ...ir import dtype as dt
from ...ir.dtype import DType
from .external import ExternalData

DTYPES: dict[int, DType] = {
    TensorProto.FLOAT: dt.f32, TensorProto.UINT8: dt.u8, TensorProto.INT8: dt.i8,
    TensorProto.UINT16: dt.u16, TensorProto.INT16: dt.i16, TensorProto.INT32: dt.i32,
    TensorProto.INT64: dt.i64, TensorProto.BOOL: dt.bool_, TensorProto.FLOAT16: dt.f16,
    TensorProto.DOUBLE: dt.f64, TensorProto.UINT32: dt.u32, TensorProto.UINT64: dt.u64,
    TensorProto.BFLOAT16: dt.bf16, TensorProto.FLOAT8E4M3FN: dt.f8e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: dt.f8e4m3fnuz, TensorProto.FLOAT8E5M2: dt.f8e5m2,
    TensorProto.FLOAT8E5M2FNUZ: dt.f8e5m2fnuz, TensorProto.UINT4: dt.u4, TensorProto.INT4: dt.i4,
    TensorProto.FLOAT4E2M1: dt.f4e2m1, TensorProto.FLOAT8E8M0: dt.f8e8m0,
    TensorProto.UINT2: dt.u2, TensorProto.INT2: dt.i2,
}
ELEMENT_TYPES: dict[DType, int] = {v: k for k, v in DTYPES.items()}

_TYPED_FIELDS = {dt.f32: "float_data", dt.f64: "double_data", dt.i64: "int64_data",
                 dt.u32: "uint64_data", dt.u64: "uint64_data"}


def element_type(number: int, what: str) -> DType:
    """The dtype of an ONNX element type; raises ModelError for text, complex and unknown ones."""
    found = DTYPES.get(number)
    if found is None:
        try:
            name = TensorProto.DataType.Name(number)
        except ValueError:
            name = f"number {number}"
        raise ModelError(f"{what}: element type {name} is not supported")
    return found


def dimensions(tensor: TensorProto, what: str) -> tuple[int, ...]:
    """The static shape of a tensor, checked."""
    shape = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"{what}: negative size in shape {list(shape)}")
    return shape


def to_array(tensor: TensorProto, what: str, external: ExternalData | None = None) -> np.ndarray:
    """The array a TensorProto holds (a view of its bytes or of the mapped file where possible).

    Text gives an object array of str. `external` opens external data; without it there is none.
    Raises ModelError naming `what` when data and shape disagree.
    """
    shape = dimensions(tensor, what)
    count = math.prod(shape)
    if tensor.data_type == TensorProto.STRING:
        return _strings(tensor, shape, count, what)
    dtype = element_type(tensor.data_type, what)
    stored = (count * dtype.bits + 7) // 8
    if tensor.data_location == TensorProto.EXTERNAL:
        if external is None:
            raise ModelError(f"{what}: its data lies in another file, which needs the model to be "
                             "loaded from a path")
        data = external.view(tensor.external_data, stored, what)
    elif tensor.HasField("raw_data"):
        data = np.frombuffer(tensor.raw_data, np.uint8)
    else:
        return _typed(tensor, dtype, shape, count, stored, what)
    if data.size != stored:
        raise ModelError(f"{what}: {dtype}{list(shape)} takes {stored} bytes, found {data.size}")
    return _from_bytes(data, dtype, count).reshape(shape)


def _from_bytes(data: np.ndarray, dtype: DType, count: int) -> np.ndarray:
    if dtype.bits < 8:
        return unpack(data, dtype, count)
    if dtype.is_bool:
        return data != 0 if data.size and data.max() > 1 else data.view(np.bool_)
    return data.view(dtype.numpy)


def unpack(data: np.ndarray, dtype: DType, count: int) -> np.ndarray:
    """`count` elements of a 2- or 4-bit type from packed bytes, lowest bits first."""
    per_byte = 8 // dtype.bits
    fields = np.empty((data.size, per_byte), np.uint8)
    for k in range(per_byte):
        np.right_shift(data, k * dtype.bits, out=fields[:, k])
    fields &= (1 << dtype.bits) - 1
    flat = fields.reshape(-1)[:count]
    if dtype.kind == "int":
        sign = 1 << (dtype.bits - 1)
        return ((flat ^ sign).astype(np.int8) - np.int8(sign)).astype(dtype.numpy)
    if dtype.kind == "uint":
        return flat.astype(dtype.numpy)
    return flat.view(dtype.numpy)


def _typed(tensor: TensorProto, dtype: DType, shape, count: int, stored: int, what: str):
    field = _TYPED_FIELDS.get(dtype, "int32_data")
    values = getattr(tensor, field)
    expected = stored if dtype.bits < 8 else count
    if len(values) != expected:
        raise ModelError(f"{what}: {dtype}{list(shape)} needs {expected} entries in {field}, "
                         f"found {len(values)}")
    if field != "int32_data":
        return np.array(values, dtype.numpy).reshape(shape)
    numbers = np.array(values, np.int32)
    if dtype.bits < 8:
        return unpack(numbers.astype(np.uint8), dtype, count).reshape(shape)
    if dtype.is_float:  # the bits of the number
        bits = np.uint16 if dtype.bits == 16 else np.uint8
        return numbers.astype(bits).view(dtype.numpy).reshape(shape)
    return numbers.astype(dtype.numpy).reshape(shape)


def _strings(tensor: TensorProto, shape, count: int, what: str) -> np.ndarray:
    if len(tensor.string_data) != count:
        raise ModelError(f"{what}: {list(shape)} needs {count} strings, "
                         f"found {len(tensor.string_data)}")
    array = np.empty(count, object)
    array[:] = [s.decode("utf-8", "replace") for s in tensor.string_data]
    return array.reshape(shape)


def from_sparse(sparse: onnx.SparseTensorProto, what: str,
                external: ExternalData | None = None, limit: int = 1 << 28) -> np.ndarray:
    """The dense array of a sparse tensor (indices flat, or one row per element)."""
    shape = tuple(int(d) for d in sparse.dims)
    if any(d < 0 for d in shape) or math.prod(shape) > limit:
        raise ModelError(f"{what}: cannot make a sparse tensor of shape {list(shape)} dense")
    values = to_array(sparse.values, what, external).reshape(-1)
    indices = to_array(sparse.indices, what, external)
    if indices.dtype != np.int64 or indices.shape not in (
            (values.size,), (values.size, len(shape))):
        raise ModelError(f"{what}: indices of {values.size} sparse elements have shape "
                         f"{list(indices.shape)}")
    dense = np.zeros(shape, values.dtype)
    flat = _flat_positions(indices, shape, what)
    dense.reshape(-1)[flat] = values
    return dense


def _flat_positions(indices: np.ndarray, shape: Sequence[int], what: str) -> np.ndarray:
    bounds = np.array([math.prod(shape)] if indices.ndim == 1 else shape, np.int64)
    rows = indices.reshape(len(indices), -1)
    if rows.size and ((rows < 0) | (rows >= bounds)).any():
        raise ModelError(f"{what}: an index of a sparse tensor is outside {list(shape)}")
    if indices.ndim == 1:
        return indices
    return np.ravel_multi_index(tuple(rows.T), tuple(shape)) if rows.size else indices.reshape(-1)
