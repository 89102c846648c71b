"""External tensor data: memory-mapped, and confined to the folder of the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from ...errors import ModelError


class ExternalData:
    """Opens the files that tensors refer to. `folder` is where the model lies."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self._files: dict[str, np.ndarray] = {}

    def view(self, entries: Iterable, length: int, what: str) -> np.ndarray:
        """The `length` bytes (u8) that the key-value `entries` of a tensor describe.

        Raises ModelError when the file is missing, too short, or outside the model's folder.
        """
        keys = {e.key: e.value for e in entries}
        location = keys.get("location", "")
        offset = _number(keys.get("offset", "0"), "offset", what)
        stated = _number(keys.get("length", str(length)), "length", what)
        if stated != length:
            raise ModelError(f"{what}: its type takes {length} bytes, but the entry for external "
                             f"data says {stated}")
        if not length:
            return np.empty(0, np.uint8)
        data = self._open(location, what)
        if offset + length > data.size:
            raise ModelError(f"{what}: bytes {offset} to {offset + length} lie beyond the end of "
                             f"{_shown(location)} ({data.size} bytes)")
        return data[offset:offset + length]

    def _open(self, location: str, what: str) -> np.ndarray:
        if location in self._files:
            return self._files[location]
        pure = PurePosixPath(location)
        if (not location or "\0" in location or pure.is_absolute() or ".." in pure.parts
                or PureWindowsPath(location).drive or PureWindowsPath(location).root
                or ".." in PureWindowsPath(location).parts):
            raise ModelError(f"{what}: external data at {_shown(location)} is refused; it must be "
                             "a relative path below the model's folder")
        try:
            path = (self.folder / location).resolve()
            inside, present = path.is_relative_to(self.folder), path.is_file()
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{what}: cannot resolve {_shown(location)}: {error}") from error
        if not inside:
            raise ModelError(f"{what}: external data at {_shown(location)} is refused; the link "
                             "leads out of the model's folder")
        if not present:
            raise ModelError(f"{what}: file {_shown(location)} with its data is missing from the "
                             "model's folder")
        try:
            data = (np.memmap(path, np.uint8, "r") if path.stat().st_size
                    else np.empty(0, np.uint8))
        except OSError as error:
            raise ModelError(f"{what}: cannot read {_shown(location)}: {error}") from error
        self._files[location] = data
        return data


def _number(text: str, name: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{what}: {name} {_shown(text)} of external data is not a byte count")
    return int(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
