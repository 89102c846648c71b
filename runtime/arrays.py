"""How CPython and numpy lay out tuples and arrays, so that C reads them where they lie.

C structures of numpy's and CPython's public headers: `PyArrayObject_fields` of numpy/ndarraytypes.h
has kept its fields since numpy 1.0, `PyTupleObject` its items at the end. What is assumed is tried
out on objects at hand before it is relied on; where it does not hold (PyPy, say), `layout()` is
None and calls take the general way.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np


class Layout(ctypes.Structure):
    """smelt_array_layout."""

    _fields_ = [
        ("array_type", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("items", ctypes.c_int32),
        ("data", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int32),
        ("element", ctypes.c_int32),
        ("flags", ctypes.c_int32),
    ]


class Call(ctypes.Structure):
    """smelt_array_call."""

    _fields_ = [
        ("layout", ctypes.c_void_p),
        ("session", ctypes.c_void_p),
        ("inputs", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("given", ctypes.POINTER(ctypes.c_int32)),
        ("returned", ctypes.POINTER(ctypes.c_int32)),
        ("elements", ctypes.POINTER(ctypes.c_void_p)),
        ("given_count", ctypes.c_int32),
        ("returned_count", ctypes.c_int32),
    ]


OTHER_ARRAYS, OTHER_OUTPUTS = -1, -2
"""Results of smelt_run_arrays beside those of smelt_run."""


class _Array(ctypes.Structure):
    """PyArrayObject_fields."""

    _fields_ = [
        ("head", ctypes.c_char * object.__basicsize__),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("element", ctypes.c_void_p),
        ("flags", ctypes.c_int),
    ]


_POINTER = ctypes.sizeof(ctypes.c_void_p)
_CONTIGUOUS = 1  # NPY_ARRAY_C_CONTIGUOUS


@cache
def layout() -> Layout | None:
    """Where the fields lie in this interpreter; None where that is not known."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_ssize_t) != 8:
        return None
    # A type's basic size holds what a probe reads.
    if np.ndarray.__basicsize__ < ctypes.sizeof(_Array):
        return None
    found = Layout(
        array_type=id(np.ndarray),
        type=object.__basicsize__ - _POINTER,
        count=object.__basicsize__,
        items=tuple.__basicsize__,
        data=_Array.data.offset,
        rank=_Array.rank.offset,
        shape=_Array.shape.offset,
        element=_Array.element.offset,
        flags=_Array.flags.offset,
    )
    plain = np.zeros((2, 3), np.float32)
    probes = (plain, plain[:, 1:], plain.T, np.zeros((), np.int64), np.zeros((0, 5), np.uint8))
    fits = all(_is_array(found, a) for a in probes) and _is_tuple(found, probes)
    return found if fits else None


def _at(kind: Any, item: object, offset: int) -> int | None:
    return kind.from_address(id(item) + offset).value


def _is_array(found: Layout, array: np.ndarray) -> bool:
    interface = array.__array_interface__
    read = _Array.from_address(id(array))
    if (_at(ctypes.c_void_p, array, found.type) != id(np.ndarray) or read.rank != array.ndim
            or read.data != interface["data"][0] or read.element != id(array.dtype)
            or bool(read.flags & _CONTIGUOUS) != array.flags.c_contiguous):
        return False
    return not array.ndim or tuple(
        (ctypes.c_int64 * array.ndim).from_address(read.shape)) == array.shape


def _is_tuple(found: Layout, items: tuple[object, ...]) -> bool:
    return _at(ctypes.c_ssize_t, items, found.count) == len(items) and all(
        _at(ctypes.c_void_p, items, found.items + k * _POINTER) == id(item)
        for k, item in enumerate(items))
