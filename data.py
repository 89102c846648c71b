"""Tensors from files and to files: npy, npz, JSON and pictures in, npz out."""

from __future__ import annotations

import json
import os
import secrets
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, OutputError, UsageError
from .ir import dtype as dt
from .signature import Size, Spec

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class Picture:
    """How a picture becomes a tensor: value = (pixel * scale - mean) / std, one mean and std for
    all channels or one each. `layout` NCHW or NHWC; None is told by the input's shape. `scale`
    None is 1/255 for float inputs and 1 for integers."""

    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str | None = None
    bgr: bool = False


def read_inputs(files: Sequence[str], specs: Sequence[Spec], picture: Picture = Picture(),
                ) -> dict[str, np.ndarray]:
    """The inputs named by `name=file` or by files that hold several (npz, JSON object).

    A file without a name is taken for the only input. In an npz, `in_NAME` stands for NAME too,
    and arrays that are no inputs are passed over. Raises InputError naming the file, also for an
    input that two files give.
    """
    by_name = {s.name: s for s in specs}
    arrays: dict[str, np.ndarray] = {}
    givers: dict[str, str] = {}
    for text in files:
        name, path = _split(text, by_name)
        if not path.is_file():
            raise InputError(f"there is no file {str(path)!r}")
        if name is not None:
            found = {name: _read_one(path, by_name[name], picture)}
        elif path.suffix == ".npz":
            found = _read_npz(path, by_name)
        elif path.suffix == ".json" and isinstance(held := _load_json(path), dict):
            found = _from_object(path, held, by_name)
        elif len(specs) == 1:
            found = {specs[0].name: _read_one(path, specs[0], picture)}
        else:
            names = ", ".join(repr(s.name) for s in specs)
            raise InputError(f"say which input {path.name!r} is for, as NAME={path.name} (the "
                             f"model takes {names})")
        for input in found:
            if input in givers:
                raise InputError(f"input {input!r} is given twice, by {givers[input]!r} and by "
                                 f"{path.name!r}")
            givers[input] = path.name
        arrays.update(found)
    return arrays


def _split(text: str, by_name: Mapping[str, Spec]) -> tuple[str | None, Path]:
    # The longest name that fits: names and paths may both contain "=".
    for name in sorted(by_name, key=len, reverse=True):
        if text.startswith(name + "="):
            return name, Path(text[len(name) + 1:])
    if "=" in text and not Path(text).exists():
        name = text.partition("=")[0]
        raise InputError(f"the model has no input {name!r}: it takes "
                         f"{', '.join(map(repr, by_name)) or 'none'}")
    return None, Path(text)


def _read_one(path: Path, spec: Spec, picture: Picture) -> np.ndarray:
    if path.suffix == ".npy":
        return _typed(_load_numpy(path), spec)
    if path.suffix == ".npz":
        held = _load_numpy(path)
        if len(held) == 1:
            return _typed(next(iter(held.values())), spec)
        if spec.name in held:
            return _typed(held[spec.name], spec)
        raise InputError(f"{path.name} holds {', '.join(held)}: none of them is the input "
                         f"{spec.name!r}")
    if path.suffix == ".json":
        return from_json(_load_json(path), spec, path.name)
    if path.suffix.lower() in PICTURES:
        return read_picture(path, spec, picture)
    raise InputError(f"{path.name}: give tensors as .npy, .npz or .json, pictures as .png or .jpg")


def _load_numpy(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{path.name} cannot be read as {path.suffix[1:]}: {error}") from None


def _read_npz(path: Path, by_name: Mapping[str, Spec]) -> dict[str, np.ndarray]:
    held = _load_numpy(path)
    found = {}
    for name, spec in by_name.items():
        for key in (name, f"in_{name}"):
            if key in held:
                found[name] = _typed(held[key], spec)
                break
    if not found and by_name:
        raise InputError(f"{path.name} holds {', '.join(map(repr, held)) or 'nothing'}, and the "
                         f"model takes {', '.join(map(repr, by_name))}")
    return found


def expected_outputs(path: Path, specs: Sequence[Spec]) -> dict[str, np.ndarray]:
    """The outputs that an npz holds beside the inputs, as NAME, `out_NAME` or `out_0`, `out_1`."""
    held = _load_numpy(path)
    found = {}
    for i, spec in enumerate(specs):
        for key in (spec.name, f"out_{spec.name}", f"out_{i}"):
            if key in held:
                found[spec.name] = _typed(held[key], spec)
                break
    return found


def _typed(array: np.ndarray, spec: Spec) -> np.ndarray:
    # npy files keep ml_dtypes types (bf16, f8) as raw bytes of the same width.
    if array.dtype.kind == "V" and array.dtype.itemsize == spec.dtype.itemsize:
        return array.view(spec.dtype.numpy)
    return array


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} cannot be read as JSON: {error}") from None


def _from_object(path: Path, found: dict, by_name: Mapping[str, Spec]) -> dict[str, np.ndarray]:
    for name in found:
        if name not in by_name:
            raise InputError(f"{path.name}: the model has no input {name!r}: it takes "
                             f"{', '.join(map(repr, by_name)) or 'none'}")
    return {n: from_json(v, by_name[n], f"{path.name}, {n!r}") for n, v in found.items()}


def from_json(value: Any, spec: Spec, where: str) -> np.ndarray:
    """Nested lists of numbers as an array of the input's type; a flat list takes the input's
    shape when that is fixed. Raises InputError when numbers do not fit the type."""
    try:
        wide = np.asarray(value)
    except ValueError:
        raise InputError(f"{where}: the lists have unequal lengths") from None
    if wide.size and wide.dtype.kind not in "biuf":
        raise InputError(f"{where}: there is something that is not a number")
    if spec.dtype.is_integer and wide.size:
        if wide.dtype.kind == "f" and not np.array_equal(wide, np.trunc(wide)):
            raise InputError(f"{where}: the model takes {spec.dtype}, the file has fractions")
        if wide.min() < spec.dtype.min or wide.max() > spec.dtype.max:
            raise InputError(f"{where}: {spec.dtype} holds {spec.dtype.min} to {spec.dtype.max}")
    array = wide.astype(spec.dtype.numpy)
    fixed = all(isinstance(d, int) for d in spec.dims)
    if array.ndim == 1 and len(spec.dims) > 1 and fixed:
        if array.size == int(np.prod(spec.dims)):  # type: ignore[arg-type]
            return array.reshape(spec.dims)  # type: ignore[arg-type]
    return array


# Pictures ----------------------------------------------------------------------------------------


def read_picture(path: Path, spec: Spec, how: Picture) -> np.ndarray:
    """A picture resized to the input's height and width, as one batch.

    Needs Pillow. Raises InputError when the input is not shaped like a picture.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("pictures need Pillow: pip install 'smelt[image]'") from None
    layout, channels, height, width = picture_layout(spec, how.layout)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    try:
        with Image.open(path) as opened:
            image = opened.convert(mode)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name} cannot be read as a picture: {error}") from None
    size = (width if isinstance(width, int) else image.width,
            height if isinstance(height, int) else image.height)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).reshape(size[1], size[0], channels)
    if how.bgr and channels >= 3:
        pixels = pixels[..., [2, 1, 0, *range(3, channels)]]
    scale = how.scale if how.scale is not None else (1 / 255 if spec.dtype.is_float else 1.0)
    for name, values in (("--mean", how.mean), ("--std", how.std)):
        if len(values) not in (1, channels):
            raise UsageError(f"{name} has {len(values)} numbers, the picture {channels} channels")
    if any(v == 0 for v in how.std):
        raise UsageError("--std must not be 0")
    values = (pixels * np.float32(scale) - np.array(how.mean, np.float32)) / np.array(
        how.std, np.float32)
    if spec.dtype.is_integer:
        values = np.clip(np.rint(values), spec.dtype.min, spec.dtype.max)
    values = values.astype(spec.dtype.numpy)
    if layout.endswith("CHW"):
        values = np.moveaxis(values, -1, 0)
    return np.ascontiguousarray(values[None] if len(spec.dims) == 4 else values)


def picture_layout(spec: Spec, wanted: str | None = None) -> tuple[str, int, Size, Size]:
    """(layout, channels, height, width) of an input that takes pictures; raises InputError."""
    dims, rank = spec.dims, len(spec.dims)
    if rank not in (3, 4):
        raise InputError(f"input {spec.name!r} ({spec}) takes no picture: it has {rank} "
                         f"dimensions, not 3 or 4")
    planes = dims[-3:]
    first, last = planes[0] in (1, 3, 4), planes[2] in (1, 3, 4)
    if wanted is None:
        if not first and not last:
            raise InputError(f"input {spec.name!r} ({spec}) takes no picture: no dimension has "
                             f"1, 3 or 4 channels")
        wanted = "NCHW" if first else "NHWC"
    layout = wanted.upper()
    if layout not in ("NCHW", "NHWC", "CHW", "HWC"):
        raise UsageError(f"--layout {wanted!r}: use NCHW or NHWC")
    channels, height, width = planes if layout.endswith("CHW") else (planes[2], *planes[:2])
    if channels not in (1, 3, 4):
        raise InputError(f"input {spec.name!r} ({spec}) has {channels} channels as {layout}: "
                         f"pictures have 1, 3 or 4")
    return layout, int(channels), height, width


# Writing -----------------------------------------------------------------------------------------


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz: complete, or not at all. Raises OutputError."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            # numpy.savez takes the names as keyword arguments, some of which it keeps for itself.
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asanyarray(array),
                                                  allow_pickle=False)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file: complete, or not at all. Raises OutputError."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None


def summary(name: str, array: np.ndarray) -> dict[str, Any]:
    """What a person wants to know of an output: shape, dtype, extremes, mean, and the five
    largest entries of a vector of at least two."""
    array = np.asarray(array)
    facts: dict[str, Any] = {"name": name, "dtype": dt.from_numpy(array).name,
                             "shape": list(array.shape)}
    if array.size:
        wide = array.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        if finite.size < wide.size:
            facts["not_finite"] = int(wide.size - finite.size)
        if finite.size:
            facts.update(min=float(finite.min()), mean=float(finite.mean()),
                         max=float(finite.max()))
        if sum(n > 1 for n in array.shape) == 1 and finite.size == wide.size:
            flat = wide.reshape(-1)
            order = np.argsort(-flat, kind="stable")[:5]
            facts["top"] = [[int(i), float(flat[i])] for i in order]
    return facts


def join_floats(text: str, option: str) -> tuple[float, ...]:
    """Numbers from "0.5" or "0.485,0.456,0.406". Raises UsageError naming the option."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: write numbers with commas between them") from None
