"""What an encoding is: how a tensor is stored, exactly.

An encoding works along the last axis of a tensor [..., K]. `pack` gives the arrays that hold it,
`unpack` what they mean, `element` the same as a scalar expression of the index, for kernels. The
text form, such as "int{bits=4,group=32}", is the encoding itself: it parses back, and is what the
graph's `decode` and `encode` operators carry.

Adding one is a module with one class under `register`, and the kernel that reads it; without such
a kernel it is decoded while compiling.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from math import prod
from typing import Any, ClassVar, TypeVar

import numpy as np

from ...errors import UsageError
from ..dtype import ALL, DType
from ..expr import Expr

Shape = tuple[int, ...]
Fetch = Callable[[int, tuple[Expr, ...]], Expr]
"""fetch(part, index): an element of one of the arrays."""


@dataclass(frozen=True)
class Part:
    """One array of an encoded tensor: what it is, and its type for a row of K elements. Its shape
    is that of the tensor with `width` in the place of K, or just `width` when it is `shared` by
    all rows."""

    name: str
    dtype: DType
    width: int
    shared: bool = False

    def shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        return (self.width,) if self.shared else (*shape[:-1], self.width)


@dataclass(frozen=True)
class Encoding:
    """Base of all encodings. The fields of a kind are its parameters. `dynamic` ones are what
    programs encode in while they run; others only hold constants."""

    kind: ClassVar[str] = ""
    dynamic: ClassVar[bool] = False

    def parts(self, k: int) -> tuple[Part, ...]:
        """The arrays that hold rows of `k` elements."""
        raise NotImplementedError

    def pack(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Floats [..., K] as the arrays of `parts`: the nearest that the encoding can say, each
        element rounded by itself."""
        raise NotImplementedError

    def unpack(self, arrays: Sequence[np.ndarray], k: int) -> np.ndarray:
        """The f32 [..., K] that the arrays mean."""
        raise NotImplementedError

    def element(self, fetch: Fetch, index: tuple[Expr, ...]) -> Expr:
        """One element of what `unpack` gives, bit for bit."""
        raise NotImplementedError

    def packed(self, part: int, load: Callable[[tuple[Expr, ...]], Expr], index: tuple[Expr, ...],
               k: int, reduce: Callable[..., Expr]) -> Expr:
        """One element of what `pack` of a tensor [..., k] gives in a part, for dynamic encodings.
        `reduce` as of `OpContext`."""
        raise NotImplementedError

    def size(self, shape: Shape) -> int:
        """Bytes of the arrays that hold a tensor."""
        return sum(prod(p.shape(shape)) * p.dtype.itemsize for p in self.parts(shape[-1]))

    def __str__(self) -> str:
        named = [f"{f.name}={_value_text(getattr(self, f.name))}" for f in fields(self)
                 if getattr(self, f.name) != f.default]
        return f"{self.kind}{{{','.join(named)}}}" if named else self.kind


@dataclass(frozen=True)
class Affine(Encoding):
    """Encodings by unsigned fields in groups: x = (field - zero) * scale. `group` consecutive
    elements (0: the whole row) share a scale, and a zero point."""

    group: int = 0

    def __post_init__(self) -> None:
        if self.group < 0 or self.group % 8:
            raise UsageError(f"groups of {self.group} elements are not supported: use a multiple "
                             f"of 8, or 0 for whole rows")

    @property
    def width(self) -> int:
        """Bits that hold any field."""
        raise NotImplementedError

    @property
    def zero(self) -> int | None:
        """The zero point of all groups; None when each stores its own."""
        raise NotImplementedError

    @property
    def highest(self) -> int:
        """The largest field."""
        raise NotImplementedError

    def grouping(self, k: int) -> tuple[int, int]:
        """(groups, elements of one) of a row of `k` elements."""
        group = self.group or max(k, 1)
        return -(-k // group), group

    def parameters(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(scale, zero), each f32 [..., groups], that suit f32 [..., K]. Scales are those that will
        be stored."""
        raise NotImplementedError

    def stored(self, scale: np.ndarray) -> np.ndarray:
        """Scales, rounded to their type."""
        raise NotImplementedError

    def nearest(self, x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """The nearest fields, as f32, for a scale and a zero point of each element."""
        return np.clip(np.rint(ratio(x, scale)) + zero, 0, self.highest)

    def store(self, fields: np.ndarray, scale: np.ndarray,
              zero: np.ndarray) -> tuple[np.ndarray, ...]:
        """The arrays that hold fields u8 [..., K] with scales and zero points [..., groups]."""
        raise NotImplementedError

    def split(self, arrays: Sequence[np.ndarray],
              k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(fields u8 [..., K], scale f32 [..., groups], zero f32 [..., groups]) of what `pack`
        gives."""
        raise NotImplementedError

    def spread(self, per_group: np.ndarray, k: int) -> np.ndarray:
        """[..., groups] as [..., K]."""
        return np.repeat(per_group, self.grouping(k)[1], axis=-1)[..., :k]

    def unpack(self, arrays: Sequence[np.ndarray], k: int) -> np.ndarray:
        return self.values(*self.split(arrays, k))

    def values(self, fields: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """What fields [..., K] mean."""
        k = fields.shape[-1]
        return (fields.astype(np.float32) - self.spread(zero, k)) * self.spread(scale, k)


def ratio(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x / scale, 0 where the scale is 0."""
    safe = np.where(scale == 0, np.float32(1), scale)
    return np.where(scale == 0, np.float32(0), x / safe).astype(np.float32)


def in_groups(x: np.ndarray, groups: int, group: int, fill: int = 0) -> np.ndarray:
    """[..., K] as [..., groups, group], the last group filled up."""
    padded = np.full((*x.shape[:-1], groups * group), fill, x.dtype)
    padded[..., :x.shape[-1]] = x
    return padded.reshape(*x.shape[:-1], groups, group)


def over_groups(x: np.ndarray, k: int) -> np.ndarray:
    """[..., groups, group] as [..., k]; inverse of `in_groups`."""
    return x.reshape(*x.shape[:-2], -1)[..., :k]


_KINDS: dict[str, type[Encoding]] = {}
E = TypeVar("E", bound=type[Encoding])


def register(cls: E) -> E:
    """Makes a kind of encoding known to `parse` by its name."""
    if not cls.kind or cls.kind in _KINDS:
        raise ValueError(f"{cls.__name__} needs a kind of its own")
    _KINDS[cls.kind] = cls
    return cls


def kinds() -> dict[str, type[Encoding]]:
    """All kinds of encodings by name."""
    from . import codebook, integer, rounded, ternary  # noqa: F401  (they register themselves)

    return dict(sorted(_KINDS.items()))


@cache
def parse(text: str) -> Encoding:
    """The encoding of a text form. Raises UsageError saying what was expected."""
    name, brace, rest = text.partition("{")
    known = kinds()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise UsageError(f"there is no encoding {name!r}"
                         f"{f': did you mean {near[0]}?' if near else ''}; there are "
                         f"{', '.join(known)}")
    if brace and not rest.endswith("}"):
        raise UsageError(f"encoding {text!r} needs a closing brace")
    cls = known[name]
    defaults = {f.name: f.default for f in fields(cls)}
    chosen: dict[str, Any] = {}
    for item in rest[:-1].split(",") if brace else ():
        key, equals, value = item.partition("=")
        if key not in defaults or not equals:
            raise UsageError(f"encoding {name} has no parameter {item!r}; it has "
                             f"{', '.join(defaults) or 'none'}")
        chosen[key] = _value(text, key, value, defaults[key])
    return cls(**chosen)


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(repr, value)) if isinstance(value, tuple) else str(value)


def _value(text: str, key: str, value: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value]
        if isinstance(default, int):
            return int(value)
        if isinstance(default, DType):
            return ALL[value]
        return tuple(float(x) for x in value.split("+"))
    except (KeyError, ValueError):
        raise UsageError(f"encoding {text!r}: {value!r} is no value of {key}") from None
