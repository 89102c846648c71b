"""Runs kernels on numpy arrays, for tests and wherever no compiler is at hand.

Semantics are those of `ir.expr` and `ir.kernel.nodes`, every operation rounded in its dtype.
Beyond them: an index outside its buffer, two parallel iterations that touch an element in no
defined order, and a broken promise of a variable's range are faults that name the place; memory
that nobody wrote reads as a poison pattern; iterations of "parallel" and grid loops come in random
order; a load in a branch of `select` happens only where that branch is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..dtype import DType
from ..expr import evaluate
from . import arithmetic
from .nodes import Buffer, Kernel
from .shadow import PLACES, Race, Shadow
from .translation import Translator


class KernelFault(Exception):
    """A kernel did what its language forbids, or was given arrays that do not fit it."""


def run_kernel(kernel: Kernel, buffers: Sequence[np.ndarray], sizes: dict[str, int] | None = None,
               *, races: bool = True, seed: int = 0) -> None:
    """Executes `kernel` in place on one contiguous array per parameter.

    sizes: the value of every variable of `kernel.sizes`, by name. races: look for races between
    parallel iterations, about half of the running time. seed: of the order of parallel iterations.
    Raises KernelFault.
    """
    sizes = dict(sizes or {})
    missing = [v.name for v in kernel.sizes if v.name not in sizes]
    if missing:
        raise KernelFault(f"kernel {kernel.name}: no value for size {', '.join(missing)}")
    if len(buffers) != len(kernel.params):
        raise KernelFault(f"kernel {kernel.name}: {len(kernel.params)} arrays are needed, "
                          f"{len(buffers)} given")
    flat = [_flatten(kernel, b, a, sizes) for b, a in zip(kernel.params, buffers, strict=True)]
    function = _compiled(kernel, sizes, races)
    _check_bits(kernel, flat[:len(flat) - kernel.outputs], kernel.params)
    with np.errstate(all="ignore"):
        try:
            function(_Run(seed), *flat)
        except (KernelFault, Race) as e:
            raise KernelFault(f"kernel {kernel.name}: {e}") from None
        except ZeroDivisionError:
            raise KernelFault(f"kernel {kernel.name}: an index is divided by zero") from None
    _check_bits(kernel, flat, kernel.params)


def _check_bits(kernel: Kernel, arrays: Sequence[np.ndarray], buffers: Sequence[Buffer]) -> None:
    """Refuses elements of parameters that need more bits than their buffer has."""
    for array, buffer in zip(arrays, buffers):
        if not buffer.bits or not array.size:
            continue
        signed = buffer.dtype.kind == "int"
        low = -(1 << buffer.bits - 1) if signed else 0
        high = (1 << buffer.bits - signed) - 1
        least, most = int(array.min()), int(array.max())
        if least < low or most > high:
            raise KernelFault(f"kernel {kernel.name}: {buffer.name} of {buffer.bits} bits holds "
                              f"{least if least < low else most}")


def source(kernel: Kernel, sizes: dict[str, int] | None = None) -> str:
    """The Python text that runs the kernel, to look at."""
    return Translator(kernel, dict(sizes or {}), True).source()


_CACHE: WeakKeyDictionary[Kernel, dict] = WeakKeyDictionary()


def _compiled(kernel: Kernel, sizes: dict[str, int], races: bool):
    versions = _CACHE.setdefault(kernel, {})
    key = (tuple(sizes[v.name] for v in kernel.sizes), races)
    if key not in versions:
        translator = Translator(kernel, sizes, races)
        text = translator.source()
        code = compile(text, f"<kernel {kernel.name}>", "exec")

        def function(run: _Run, *arrays: np.ndarray) -> None:
            # A fresh namespace: the helpers that remember things belong to one run.
            names = {**_HELPERS, **run.helpers(), **translator.names}
            exec(code, names)
            names["run"](*arrays)

        versions[key] = function
    return versions[key]


def _flatten(kernel: Kernel, buffer: Buffer, array: np.ndarray, sizes: dict[str, int]):
    """The array as the flat memory of a parameter."""
    where = f"kernel {kernel.name}, {buffer.name}"
    if array.dtype != buffer.dtype.numpy:
        raise KernelFault(f"{where}: an array of {array.dtype} for a buffer of {buffer.dtype}")
    if not array.flags.c_contiguous:
        raise KernelFault(f"{where}: the array is not contiguous")
    shape = [evaluate(d, sizes) for d in buffer.shape]
    count = int(np.prod(shape, dtype=np.int64))
    if buffer.strides is not None and count:
        steps = [evaluate(d, sizes) for d in buffer.strides]
        count = 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    if array.size < count * buffer.lanes or (
            buffer.strides is None and array.size != count * buffer.lanes):
        raise KernelFault(f"{where}: an array of shape {array.shape} for a buffer of shape "
                          f"{tuple(shape)}")
    return array.reshape(-1) if buffer.lanes == 1 else array.reshape(-1, buffer.lanes)


# What translated kernels call. Shapes: a lone value is a Python or numpy scalar; varying values
# are [rows] for scalars and [rows, lanes] or [rows, 1] for vectors; uniform vectors are [lanes].
# Masks are [rows], [rows, lanes] or, uniform, [1, lanes].


class _Run:
    """State of one execution: the random order, epochs for the race detector."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.epochs = 0
        self.shadows: dict[int, tuple[np.ndarray, Shadow]] = {}

    def helpers(self) -> dict[str, Any]:
        return {"shuffled": self.shuffled, "chunks": self.chunks, "epoch": self.epoch,
                "shadow": self.shadow}

    def shuffled(self, count: int) -> list[int]:
        return self.random.permutation(max(count, 0)).tolist()

    def chunks(self, count: int, size: int, shuffle: bool) -> Iterator[np.ndarray]:
        """Iterations 0..count in groups that run side by side."""
        order = self.random.permutation(max(count, 0)) if shuffle else np.arange(max(count, 0))
        for start in range(0, len(order), size):
            yield order[start:start + size]

    def epoch(self) -> int:
        self.epochs += 1
        return self.epochs << PLACES

    def shadow(self, array: np.ndarray, name: str) -> Shadow:
        """The shadow of a buffer, kept between regions because epochs tell old stamps apart."""
        if len(self.shadows) > 64:
            self.shadows.clear()
        found = self.shadows.get(id(array))
        if found is None:
            found = self.shadows[id(array)] = (array, Shadow(name, len(array)))
        return found[1]


def _spread(count, rows: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(outer row, iteration) of `count` iterations in each of `rows` rows."""
    if isinstance(count, np.ndarray):
        count = np.maximum(count, 0)
        outer = np.repeat(np.arange(rows), count)
        inner = np.arange(len(outer)) - np.repeat(np.cumsum(count) - count, count)
    else:
        outer = np.repeat(np.arange(rows), max(count, 0))
        inner = np.tile(np.arange(max(count, 0)), rows)
    for start in range(0, len(outer), size):
        yield outer[start:start + size], inner[start:start + size]


def _most(x) -> int:
    return int(np.max(x, initial=0))


def _promise(promised, count, name: str) -> None:
    if np.any(np.asarray(count) > np.asarray(promised)):
        raise KernelFault(f"the loop of {name} runs to {_most(count)}, beyond the extent that "
                          f"{name} promises")


def _outside(index, limit, note) -> None:
    buffer, axis = note
    raise KernelFault(f"index {index} is outside dimension {axis} (size {limit}) of {buffer}")


def _collide(name: str) -> None:
    raise KernelFault(f"several parallel iterations write the same element of {name}")


def _mask_like(mask, wide: bool, shape: tuple[int, ...]):
    """A mask for indices of `shape` ([rows], [lanes] or both)."""
    mask = np.asarray(mask)
    if len(shape) == 0:
        return mask.any()
    if wide:
        mask = mask[:, None] if mask.ndim == 1 else mask
        return mask.any(0) if len(shape) == 1 else mask
    return mask.any(1) if mask.ndim == 2 else mask


def _check(index, limit, mask, wide: bool, note) -> None:
    index, limit = np.asarray(index), np.asarray(limit)
    if wide and limit.ndim == 1:
        limit = limit[:, None]
    bad = (index < 0) | (index >= limit)
    if mask is not None:
        bad = bad & _mask_like(mask, wide, bad.shape)
    if bad.any():
        first = np.argmax(bad.reshape(-1))
        shown = np.broadcast_to(index, bad.shape).reshape(-1)[first]
        _outside(shown, np.broadcast_to(limit, bad.shape).reshape(-1)[first], note)


def _check_span(index, span, limit, mask, note) -> None:
    index, span, limit = np.broadcast_arrays(index, span, limit)
    bad = (span > 0) & ((index < 0) | (index + span > limit))
    if mask is not None:
        bad = bad & _mask_like(mask, False, bad.shape)
    if bad.any():
        first = np.argmax(bad.reshape(-1))
        _outside(f"{index.reshape(-1)[first]}:+{span.reshape(-1)[first]}",
                 limit.reshape(-1)[first], note)


def _limited(count, lanes: int):
    return np.clip(count, 0, lanes)


def _lane_mask(count, lanes: int, mask):
    """Lanes below `count`, as a mask."""
    own = np.arange(lanes) < np.asarray(count).reshape(-1, 1)
    return own if mask is None else _both_masks(own, mask)


def _uniform_mask(condition, lanes: int, negated: bool) -> np.ndarray:
    mask = np.broadcast_to(np.asarray(condition), (lanes,))[None]
    return ~mask if negated else mask


def _both_masks(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != b.ndim:
        a, b = (x[:, None] if x.ndim == 1 else x for x in (a, b))
    return a & b


def _lane_offsets(at, step: int, lanes: int):
    """Flat offsets of the lanes of accesses: [lanes] or [rows, lanes]; step 0: `at` has them."""
    at = np.asarray(at)
    if step == 0:
        return np.broadcast_to(at, (*at.shape[:-1], lanes)) if at.ndim else np.broadcast_to(
            at, (lanes,))
    return at[..., None] + np.arange(lanes) * step


def _vector_load(flat, at, step: int, lanes: int, count, mask, varying: bool):
    offsets = _lane_offsets(at, step, lanes)
    chosen = None
    if count is not None:
        chosen = _lane_mask(count, lanes, mask)
    elif mask is not None:
        chosen = _mask_like(mask, True, (1, lanes))
    if chosen is None:
        return flat[offsets]
    if not varying:
        chosen = chosen.reshape(-1)
    chosen = np.broadcast_to(chosen, np.broadcast_shapes(chosen.shape, offsets.shape))
    offsets = np.broadcast_to(offsets, chosen.shape)
    result = np.zeros((*chosen.shape, *flat.shape[1:]), flat.dtype)
    result[chosen] = flat[offsets[chosen]]
    return result


def _vector_store(flat, at, step: int, lanes: int, count, value, varying: bool, value_varies: bool,
                  width: int) -> None:
    offsets = _lane_offsets(at, step, lanes)
    value = np.asarray(value)
    if width > 1:
        # Vector elements: the value's lanes are (lane of the access, lane of the element).
        lead = value.shape[:1] if value_varies else ()
        value = np.broadcast_to(value, (*lead, lanes * width)).reshape(*lead, lanes, width)
    if count is None:
        flat[offsets] = value
        return
    chosen = _lane_mask(count, lanes, None)
    if not varying:
        chosen = chosen.reshape(-1)
    chosen = np.broadcast_to(chosen, offsets.shape)
    value = np.broadcast_to(value, (*offsets.shape, *flat.shape[1:]))
    flat[offsets[chosen]] = value[chosen]


def _masked(flat, at, mask):
    mask = _mask_like(mask, False, (1,))
    at = np.where(mask, at, 0)
    if len(flat) == 0:
        return np.zeros((*at.shape, *flat.shape[1:]), flat.dtype)
    return flat[at]


def _masked_one(flat, at, mask, dtype: DType):
    if np.asarray(mask).any():
        return flat[at]
    return np.zeros(flat.shape[1:], flat.dtype)[()]


def _where(condition, a, b, dtype: DType):
    result = np.where(condition, a, b)
    return arithmetic.lone(result, dtype) if result.ndim == 0 else result


def _full(rows: int, lanes: int, value, dtype: DType):
    value = np.asarray(value) if lanes == 1 else np.broadcast_to(value, (lanes,))
    return np.broadcast_to(value, (rows, *value.shape)).astype(arithmetic.computing(dtype))


def _call_argument(value, lanes: int, varying: bool, dtype: DType):
    value = np.asarray(value, arithmetic.computing(dtype))
    if lanes == 1:
        return value[..., None]
    return np.broadcast_to(value, (len(value), lanes) if varying else (lanes,))


def _call_result(value, lanes: int, varying: bool, dtype: DType, name: str):
    value = np.asarray(value)
    if value.dtype != arithmetic.computing(dtype):
        raise KernelFault(f"intrinsic {name} gave {value.dtype}, its call says {dtype}")
    if lanes == 1:
        return value.reshape(-1) if varying else arithmetic.lone(value.reshape(()), dtype)
    if value.shape[-1:] != (lanes,):
        raise KernelFault(f"intrinsic {name} gave {value.shape[-1:]} lanes, its call says {lanes}")
    return value


def _merge_lanes(old, new, count: int):
    """A vector variable of which the first `count` lanes are written."""
    return np.where(np.arange(len(old)) < count, new, old)


def _note(access, at: Any, step: int, lanes: int, count, mask, block, thread, wide: bool) -> None:
    """Passes the elements that an access touches to the race detector."""
    if wide or lanes > 1:
        total = np.shape(at)[-1] if wide else lanes
        at = _lane_offsets(at, 0 if wide else step, total)
        block, thread = (np.asarray(s)[..., None] for s in (block, thread))
        chosen = None if count is None else _lane_mask(count, total, None)
        if mask is not None:
            own = _mask_like(mask, True, (1, total))
            chosen = own if chosen is None else chosen & own
    else:
        chosen = None if mask is None else _mask_like(mask, False, (1,))
    if chosen is None and isinstance(at, int):
        access(at, block, thread)
        return
    places, block, thread = np.broadcast_arrays(at, block, thread)
    if chosen is not None:
        chosen = np.asarray(chosen)
        while chosen.ndim > places.ndim:
            chosen = chosen.any(0)
        chosen = np.broadcast_to(chosen, places.shape)
        places, block, thread = places[chosen], block[chosen], thread[chosen]
    access(places, block, thread)


def _to_memory(value, dtype: DType):
    return np.asarray(value).astype(dtype.numpy)


def _join_lanes(value):
    return value.reshape(*value.shape[:-2], -1)


_HELPERS: dict[str, Any] = {
    "arange": np.arange, "nonzero": np.nonzero, "invert": np.logical_not, "int64": np.int64,
    "poison": arithmetic.poison, "lone": arithmetic.lone, "wrap64": arithmetic.wrap64,
    "from_memory": arithmetic.from_memory, "to_memory": _to_memory, "spread": _spread,
    "most": _most, "promise": _promise, "outside": _outside, "collide": _collide,
    "check": _check, "check_span": _check_span, "limited": _limited, "lane_mask": _lane_mask,
    "uniform_mask": _uniform_mask, "both_masks": _both_masks, "vector_load": _vector_load,
    "vector_store": _vector_store, "masked": _masked, "masked_one": _masked_one,
    "where": _where, "full": _full, "call_argument": _call_argument,
    "call_result": _call_result, "merge_lanes": _merge_lanes, "note": _note,
    "join_lanes": _join_lanes,
}
