"""The binary interface of compiled models: element types, error codes and structures of runtime/c.

Element types are numbered as in c/smelt.h; the numbers are part of the interface and never change.
"""

import ctypes
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import ArtifactError, InputError, SmeltError, TargetError

PROGRAM_ABI = 3

OK, BAD_ARGUMENT, OUT_OF_MEMORY, BAD_ARTIFACT, UNSUPPORTED_CPU = range(5)
DATA_ERROR, DEVICE_ERROR = 5, 6
CPU_X86_64_V2, CPU_X86_64_V3, CPU_X86_64_V4 = 1, 2, 4
CPU_AVX_VNNI, CPU_AVX512_VNNI, CPU_AVX512_BF16 = 8, 16, 32

ERRORS: dict[int, type[SmeltError]] = {
    BAD_ARGUMENT: InputError,
    OUT_OF_MEMORY: SmeltError,
    BAD_ARTIFACT: ArtifactError,
    UNSUPPORTED_CPU: ArtifactError,
    DATA_ERROR: InputError,
    DEVICE_ERROR: TargetError,
}

# Name -> number.
DTYPES: dict[str, int] = {
    "bool": 1,
    "i8": 2,
    "i16": 3,
    "i32": 4,
    "i64": 5,
    "u8": 6,
    "u16": 7,
    "u32": 8,
    "u64": 9,
    "f16": 10,
    "bf16": 11,
    "f32": 12,
    "f64": 13,
    "f8e4m3fn": 14,
    "f8e4m3fnuz": 15,
    "f8e5m2": 16,
    "f8e5m2fnuz": 17,
    "f8e8m0": 18,
    "f4e2m1": 19,
    "i4": 20,
    "u4": 21,
    "i2": 22,
    "u2": 23,
}
DTYPE_NAMES: dict[int, str] = {number: name for name, number in DTYPES.items()}

_NUMPY: dict[str, Any] = {
    "bool": np.bool_,
    "i8": np.int8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
}

# Types that numpy lacks: the name in ml_dtypes, and the numpy type of the same size.
_ML_DTYPES: dict[str, tuple[str, Any]] = {
    "bf16": ("bfloat16", np.uint16),
    "f8e4m3fn": ("float8_e4m3fn", np.uint8),
    "f8e4m3fnuz": ("float8_e4m3fnuz", np.uint8),
    "f8e5m2": ("float8_e5m2", np.uint8),
    "f8e5m2fnuz": ("float8_e5m2fnuz", np.uint8),
    "f8e8m0": ("float8_e8m0fnu", np.uint8),
    "f4e2m1": ("float4_e2m1fn", np.uint8),
    "i4": ("int4", np.int8),
    "u4": ("uint4", np.uint8),
    "i2": ("int2", np.int8),
    "u2": ("uint2", np.uint8),
}


@cache
def numpy_dtype(name: str) -> np.dtype:
    """The numpy dtype of arrays of this element type.

    Types that numpy lacks come from ml_dtypes where it is installed; elsewhere they are the
    integers of the same size that hold the encoding. Raises KeyError for an unknown name.
    """
    if name in _NUMPY:
        return np.dtype(_NUMPY[name])
    attribute, substitute = _ML_DTYPES[name]
    try:
        return np.dtype(getattr(import_module("ml_dtypes"), attribute))
    except (ImportError, AttributeError):
        return np.dtype(substitute)


@cache
def dtype_name(dtype: np.dtype) -> str | None:
    """The element type's name of a numpy dtype, or None if there is none."""
    native = dtype.newbyteorder("=")
    for name, scalar in _NUMPY.items():
        if native == scalar:
            return name
    by_attribute = {attribute: name for name, (attribute, _) in _ML_DTYPES.items()}
    return by_attribute.get(native.name)


class Tensor(ctypes.Structure):
    """smelt_tensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
    ]


class TensorInfo(ctypes.Structure):
    """smelt_tensor_info."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.POINTER(ctypes.c_char_p)),
    ]


_POINTER = ctypes.c_void_p
_INT = ctypes.c_int32
_TEXT = ctypes.c_char_p
_INFO = ctypes.POINTER(TensorInfo)
_HANDLE = ctypes.POINTER(ctypes.c_void_p)

# Function -> (result, arguments).
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "smelt_version": (_TEXT, ()),
    "smelt_error": (_TEXT, ()),
    "smelt_linked_programs": (_POINTER, ()),
    "smelt_open_program": (ctypes.c_int, (_POINTER, _TEXT, _HANDLE)),
    "smelt_close": (None, (_POINTER,)),
    "smelt_model_name": (_TEXT, (_POINTER,)),
    "smelt_model_isa": (_TEXT, (_POINTER,)),
    "smelt_model_device": (_TEXT, (_POINTER,)),
    "smelt_input_count": (_INT, (_POINTER,)),
    "smelt_output_count": (_INT, (_POINTER,)),
    "smelt_input_info": (_INFO, (_POINTER, _INT)),
    "smelt_output_info": (_INFO, (_POINTER, _INT)),
    "smelt_size_count": (_INT, (_POINTER,)),
    "smelt_bound_size_count": (_INT, (_POINTER,)),
    "smelt_size_name": (_TEXT, (_POINTER, _INT)),
    "smelt_session_open": (ctypes.c_int, (_POINTER, _INT, _HANDLE)),
    "smelt_session_close": (None, (_POINTER,)),
    "smelt_set_threads": (ctypes.c_int, (_POINTER, _INT)),
    "smelt_threads": (_INT, (_POINTER,)),
    "smelt_run": (ctypes.c_int, (_POINTER, _POINTER, _INT, _POINTER, _INT)),
    "smelt_run_arrays": (ctypes.c_int, (_POINTER, _POINTER, _POINTER)),
    "smelt_set_shapes": (ctypes.c_int, (_POINTER, _POINTER, _INT)),
    "smelt_output_shape": (ctypes.POINTER(ctypes.c_int64), (_POINTER, _INT)),
    "smelt_size": (ctypes.c_int64, (_POINTER, _INT)),
    "smelt_arena_bytes": (ctypes.c_int64, (_POINTER,)),
    "smelt_link_state": (ctypes.c_int, (_POINTER, _TEXT, _TEXT, ctypes.POINTER(Tensor))),
    "smelt_unlink_state": (ctypes.c_int, (_POINTER, _TEXT)),
    "smelt_reset_states": (None, (_POINTER,)),
    "smelt_state": (ctypes.c_int, (_POINTER, _TEXT, ctypes.POINTER(Tensor))),
}


def declare(library: ctypes.CDLL) -> None:
    """Gives the functions of a model's library their types; AttributeError if one is missing."""
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments


def check(library: ctypes.CDLL, code: int) -> None:
    """Raises the error of a function's result, with the library's sentence."""
    if code:
        sentence = library.smelt_error().decode(errors="replace")
        raise ERRORS.get(code, SmeltError)(sentence)
