"""The libraries of compiled models: loaded, asked for their signature, and let go."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArtifactError
from . import abi
from .artifact import WEIGHTS, Artifact
from .machines import LIBRARY, why_not_here


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: sizes are numbers or expressions of named sizes, such as "N"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


# Names of loaded libraries: which file, and how often.
_loaded: dict[str, tuple[tuple[int, int], int]] = {}
_loading = threading.RLock()


def _load(path: Path) -> tuple[ctypes.CDLL, str]:
    """Loads a library; returns the name that it went by.

    The dynamic linker takes two files of one name for one, also when an artifact was replaced while
    its library is loaded: the second then goes by another spelling of its path.
    """
    with _loading:
        status = os.stat(path)
        file = status.st_dev, status.st_ino
        name = str(path)
        while name in _loaded and _loaded[name][0] != file:
            name = os.path.join(os.path.dirname(name), ".", path.name)
        library = ctypes.CDLL(name)
        _loaded[name] = file, _loaded[name][1] + 1 if name in _loaded else 1
        return library, name


def _unload(library: ctypes.CDLL, name: str) -> None:
    with _loading:
        file, times = _loaded.pop(name)
        if times > 1:
            _loaded[name] = file, times - 1
        try:
            from _ctypes import dlclose  # not on Windows
        except ImportError:
            pass
        else:
            dlclose(library._handle)


def _close_library(library: ctypes.CDLL, name: str, model: int, artifact: Artifact) -> None:
    library.smelt_close(model)
    _unload(library, name)
    artifact.close()


class Library:
    """An open model: the library of an artifact, with the weights. Goes with its last user."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        # A library built without threads does not count its sessions atomically. Reentrant: the
        # garbage collector may close one session while this thread opens another.
        self.counting = threading.RLock()
        refusal = why_not_here(artifact)
        if refusal:
            raise ArtifactError(refusal)
        path = artifact.file(LIBRARY)
        try:
            self.c, name = _load(path)
        except OSError as error:
            target = artifact.manifest.get("target", "another target")
            raise ArtifactError(
                f"The artifact {artifact.path}, made for {target}, cannot be loaded on this "
                f"machine ({error}): compile the model for it."
            ) from error
        try:
            self.model = self._open()
        except BaseException:
            _unload(self.c, name)
            raise
        # Not when the interpreter ends: sessions may still run in other threads then.
        weakref.finalize(self, _close_library, self.c, name, self.model, artifact).atexit = False
        self.inputs = [
            _spec(self.c.smelt_input_info(self.model, i).contents)
            for i in range(self.c.smelt_input_count(self.model))
        ]
        self.outputs = [
            _spec(self.c.smelt_output_info(self.model, i).contents)
            for i in range(self.c.smelt_output_count(self.model))
        ]

    def _open(self) -> int:
        artifact = self.artifact
        try:
            abi.declare(self.c)
        except AttributeError as error:
            made_by = artifact.manifest.get("smelt", "another version")
            raise ArtifactError(
                f"The artifact {artifact.path} was made by smelt {made_by}, whose libraries are "
                f"called otherwise than by this one ({error}): compile the model again."
            ) from error
        handle = ctypes.c_void_p()
        weights = os.fsencode(artifact.folder / WEIGHTS)
        programs = self.c.smelt_linked_programs()
        abi.check(self.c, self.c.smelt_open_program(programs, weights, ctypes.byref(handle)))
        assert handle.value
        return handle.value


# Names are any texts that Python can hold, lone surrogates included.
def encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def _spec(info: abi.TensorInfo) -> TensorSpec:
    texts = [decode(info.dims[i]) for i in range(info.rank)]
    shape = tuple(int(text) if text.isdecimal() else text for text in texts)
    return TensorSpec(decode(info.name), abi.DTYPE_NAMES[info.dtype], shape)
