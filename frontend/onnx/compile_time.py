"""ONNX values that are no tensors and exist while importing only: sequences, optionals, text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir.dtype import DType
from ...ir.graph.core import Value


@dataclass(frozen=True)
class TensorSequence:
    """A sequence of known length. `dtype` is that of an empty one, when it is known."""

    items: tuple[Any, ...] = ()
    dtype: DType | None = None


@dataclass(frozen=True)
class Optional:
    """An optional whose presence is known: `item` is a Value, a TensorSequence or None."""

    item: Any = None


@dataclass(frozen=True, eq=False)
class Text:
    """A constant tensor of strings (object array of str)."""

    array: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Unavailable:
    """An output that compiled models cannot give; `what` completes "it is ..."."""

    what: str


NotTensor = TensorSequence | Optional | Text | Unavailable
Item = Value | NotTensor


def describe(item: Any) -> str:
    """What a compile-time value is, for messages."""
    if isinstance(item, TensorSequence):
        return "a sequence"
    if isinstance(item, Optional):
        return "an optional"
    if isinstance(item, Text):
        return "a tensor of strings"
    if isinstance(item, Unavailable):
        return item.what
    return "a tensor"
