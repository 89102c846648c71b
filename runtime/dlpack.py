"""Arrays of other libraries, taken over without a copy through DLPack.

numpy reads the element types that it has itself; the capsule of others (bfloat16, float8) is read
here. Structures as in dlpack.h, version 1.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .abi import numpy_dtype


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


# DLDataTypeCode of types of which numpy has none; all others are numpy's own business.
_CODES = {
    (4, 16): "bf16",
    (10, 8): "f8e4m3fn",
    (11, 8): "f8e4m3fnuz",
    (12, 8): "f8e5m2",
    (13, 8): "f8e5m2fnuz",
    (14, 8): "f8e8m0",
}

_CPU = 1

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Holder:
    """Owns the capsule, whose destructor frees the tensor; numpy keeps it as the array's base."""

    def __init__(self, capsule: Any, interface: dict[str, Any]):
        self.capsule = capsule
        self.__array_interface__ = interface


def from_dlpack(value: Any) -> np.ndarray:
    """A view of `value`, which has `__dlpack__`, as an array.

    Raises BufferError, TypeError, RuntimeError or ValueError if it has none: memory of another
    device, an element type that numpy and ml_dtypes lack, a tensor that records gradients.
    """
    if value.__dlpack_device__()[0] != _CPU:
        raise BufferError("its memory is not the CPU's")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        capsule = value.__dlpack__()
        tensor = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
        name = _CODES.get((tensor.code, tensor.bits))
        if name is None or tensor.lanes != 1:
            raise error
    size = tensor.bits // 8
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(s * size for s in tensor.strides[: tensor.ndim]) if tensor.strides else None
    interface = {
        "version": 3,
        "shape": shape,
        "typestr": f"<u{size}",
        "data": ((tensor.data or 0) + tensor.byte_offset, False),
        "strides": strides,
    }
    return np.asarray(_Holder(capsule, interface)).view(numpy_dtype(name))
