"""Artifacts: a compiled model as a folder or as one zip file.

    manifest.json   what the model is: see `write_artifact`
    weights.bin     constants, each aligned to 64 bytes
    ...             libraries, headers and sources

The same contents give the same bytes. An artifact appears under its name only when it is complete;
one that it replaces stays until then.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

from .. import __version__
from ..errors import ArtifactError, OutputError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
ALIGNMENT = 64

# Weights are checked at each load by the CRC-32 of whole blocks, spread over the file, as many as
# CHECKED_BYTES hold: 2 to 3 ms.
BLOCK = 1 << 20
CHECKED_BYTES = 8 << 20

_CHUNK = BLOCK
_WRITTEN_AT_ONCE = 8 << 20
"""Bytes of one write to a file. Linux keeps what is written by whole megabytes in huge pages of its
cache and maps it so, which spares address translations while weights are streamed: 1.1 times as
fast where they come from memory."""
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def weight_offsets(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where constants of these sizes in bytes go in weights.bin, and the size of the file."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _is_safe(name: str) -> bool:
    """Whether a file name stays inside the artifact, on any system."""
    parts = name.split("/")
    bad = any(part in ("", ".", "..") for part in parts)
    return not (bad or "\\" in name or ":" in name or "\0" in name or name == MANIFEST)


def _is_zip_name(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


# --- writing -------------------------------------------------------------------------------------


def write_artifact(
    path: str | Path, manifest: Mapping[str, Any], files: Mapping[str, bytes | Path]
) -> Path:
    """Writes an artifact: one zip file if `path` ends in ".zip", else a folder. Returns its path.

    `manifest` is JSON data with "name", "target", "isas", "signature", "states", "options",
    "kernels" and "source"; "schema_version", "smelt" and "files" (size and sha256 of each file, and
    "blocks" of the weights: the CRC-32 of each MiB in hexadecimal digits) are added. `files` maps
    names inside the artifact ("/" separates folders) to contents or to files to copy.

    An artifact that is there already is replaced, and so is an empty folder. Raises OutputError if
    something else is there, or if it cannot be written; nothing is left behind then.
    """
    unsafe = [name for name in files if not _is_safe(name)]
    if unsafe:
        raise ValueError(f"not a name for a file of an artifact: {unsafe[0]!r}")
    target = Path(os.path.realpath(path))
    try:
        with _parents(target):
            _check_replaceable(target)
            with _sibling(target, "tmp") as temporary:
                if _is_zip_name(target):
                    sink: _Sink = _ZipSink(temporary)
                else:
                    sink = _FolderSink(temporary)
                with sink:
                    written = {name: sink.add(name, files[name]) for name in sorted(files)}
                    sink.add(MANIFEST, _manifest_text(manifest, written))
                _put_in_place(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"Cannot write the artifact {path}: {reason}; {_advice(error)}."
        ) from error
    return Path(path)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or choose another place"
    return "choose a place where you may write"


def _manifest_text(manifest: Mapping[str, Any], written: dict[str, dict[str, Any]]) -> bytes:
    whole = {
        "smelt": __version__,
        **manifest,
        "schema_version": SCHEMA_VERSION,
        "files": written,
    }
    text = json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Makes the missing folders above `target`, and takes them away again after a failure."""
    missing = [folder for folder in target.parents if not folder.exists()]
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            made.append(folder)
        yield
    except BaseException:
        for folder in reversed(made):
            try:
                folder.rmdir()
            except OSError:
                break
        raise


def _sibling_name(target: Path, purpose: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.{purpose}")


@contextmanager
def _sibling(target: Path, purpose: str) -> Iterator[Path]:
    """A free name in the same folder; what is under it at the end is removed."""
    path = _sibling_name(target, purpose)
    try:
        yield path
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _check_replaceable(target: Path) -> None:
    """Raises OutputError if something other than an artifact of the same form is at `target`."""
    if not target.exists():
        return
    if _is_zip_name(target):
        fine = target.is_file() and _zip_holds_manifest(target)
        kind = "an artifact in one file"
    else:
        fine = target.is_dir() and (_folder_holds_manifest(target) or not any(target.iterdir()))
        kind = "an artifact's folder"
    if not fine:
        raise OutputError(f"{target} is there already and is not {kind}: choose another name.")


def _is_manifest(text: bytes) -> bool:
    try:
        return "schema_version" in json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False


def _folder_holds_manifest(folder: Path) -> bool:
    file = folder / MANIFEST
    return file.is_file() and _is_manifest(file.read_bytes())


def _zip_holds_manifest(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return _is_manifest(archive.read(MANIFEST))
    except (zipfile.BadZipFile, KeyError):
        return False


def _put_in_place(temporary: Path, target: Path) -> None:
    if not target.is_dir():
        os.replace(temporary, target)  # one step
        return
    # A folder with files cannot be replaced in one step: the old one steps aside.
    old = _sibling_name(target, "old")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(old, target)
        raise
    _remove(old)


def _chunks(content: bytes | Path) -> Iterator[bytes | memoryview]:
    if isinstance(content, bytes):
        view = memoryview(content)
        yield from (view[at : at + _CHUNK] for at in range(0, len(content), _CHUNK))
        return
    with open(content, "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


class _Sink:
    """Takes the files of an artifact one by one."""

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def open(self, name: str, size: int) -> IO[bytes]:
        raise NotImplementedError

    def add(self, name: str, content: bytes | Path) -> dict[str, Any]:
        """Writes one file; returns its manifest entry."""
        size = len(content) if isinstance(content, bytes) else os.path.getsize(content)
        digest = hashlib.sha256()
        written = 0
        blocks = []
        with self.open(name, size) as file:
            for chunk in _chunks(content):
                digest.update(chunk)
                blocks.append(f"{zlib.crc32(chunk):08x}")
                file.write(chunk)
                written += len(chunk)
        entry = {"sha256": digest.hexdigest(), "size": written}
        return {**entry, "blocks": "".join(blocks)} if name == WEIGHTS else entry


class _FolderSink(_Sink):
    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def open(self, name: str, size: int) -> IO[bytes]:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "xb", buffering=_WRITTEN_AT_ONCE)


class _ZipSink(_Sink):
    """Stores without compression: weights hardly shrink, and zlib's bytes differ by version."""

    def __init__(self, path: Path):
        self.archive = zipfile.ZipFile(path, "x", zipfile.ZIP_STORED)

    def __exit__(self, *exception: object) -> None:
        self.archive.close()

    def open(self, name: str, size: int) -> IO[bytes]:
        entry = zipfile.ZipInfo(name, _ZIP_TIME)
        entry.create_system = 3  # Unix, wherever it is written
        entry.external_attr = (stat.S_IFREG | 0o644) << 16
        entry.file_size = size
        return self.archive.open(entry, "w")


# --- reading -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Artifact:
    """An artifact that was opened: its files lie in `folder`.

    For a zip file that is a private temporary folder, removed by `close`, when the object goes or
    when the interpreter ends.
    """

    path: Path
    folder: Path
    manifest: dict[str, Any]

    def __post_init__(self) -> None:
        self._temporary: weakref.finalize | None = None

    def file(self, name: str) -> Path:
        """The path of one of the artifact's files; raises ArtifactError if it has none so called.
        """
        if name not in self.manifest["files"]:
            raise ArtifactError(f"The artifact {self.path} has no file {name}: compile it again.")
        return self.folder / name

    def save(self, path: str | Path) -> Path:
        """Writes a copy, as `write_artifact` does. Raises ArtifactError if a file is damaged."""
        _check_files(self, True)  # the copy gets checksums of its own
        names = self.manifest["files"]
        return write_artifact(path, self.manifest, {n: self.folder / n for n in names})

    def close(self) -> None:
        if self._temporary is not None:
            self._temporary()


def open_artifact(path: str | Path, verify: bool | None = None) -> Artifact:
    """Opens an artifact, folder or zip file, and checks its files.

    Sizes are always compared with the manifest. By default the checksums of all files but the
    weights are too, and of the weights up to 8 MiB, one MiB here and one there: that finds files
    cut off, mixed up or overwritten, but in larger ones not each wrong bit. `verify` True checks
    everything, False sizes only. Raises ArtifactError if the artifact is damaged or of a newer
    schema. Loading an artifact runs the code in it: checksums find damage, they do not tell whom
    it comes from.
    """
    path = Path(path)
    if path.is_dir():
        artifact = Artifact(path, path.absolute(), _read_folder_manifest(path))
    elif path.is_file():
        artifact = _unpack(path)
    else:
        raise ArtifactError(f"There is no artifact at {path}.")
    try:
        _check_files(artifact, verify)
    except BaseException:
        artifact.close()
        raise
    return artifact


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"The artifact {path} is damaged: {what}; compile or copy it again.")


def _read_folder_manifest(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}.") from None
    except OSError as error:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {error.strerror}.") from error
    return _parse_manifest(folder, text)


def _parse_manifest(path: Path, text: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(path, f"{MANIFEST} is no JSON") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version < 1:
        raise _damaged(path, f"{MANIFEST} has no schema version")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"The artifact {path} was made by a newer smelt ({manifest.get('smelt', 'unknown')}, "
            f"schema {version}): upgrade smelt, which is {__version__} and reads schemas up to "
            f"{SCHEMA_VERSION}."
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise _damaged(path, f"{MANIFEST} lists no files")
    for name, entry in files.items():
        if not _is_safe(name):
            raise ArtifactError(f"The artifact {path} is refused: its file {name!r} is outside it.")
        if not (
            isinstance(entry, dict)
            and type(entry.get("size")) is int
            and isinstance(entry.get("sha256"), str)
            and isinstance(entry.get("blocks", ""), str)
        ):
            raise _damaged(path, f"{MANIFEST} says too little of {name}")
    return manifest


def _unpack(path: Path) -> Artifact:
    try:
        with zipfile.ZipFile(path) as archive:
            try:
                text = archive.read(MANIFEST)
            except KeyError:
                raise ArtifactError(f"{path} is not an artifact: it has no {MANIFEST}.") from None
            manifest = _parse_manifest(path, text)
            sizes = _entry_sizes(path, archive)
            for name, entry in manifest["files"].items():
                if sizes.get(name) != entry["size"]:
                    raise _damaged(path, f"{name} is missing or has another size")
            folder = Path(tempfile.mkdtemp(prefix="smelt-"))
            artifact = Artifact(path, folder, manifest)
            artifact._temporary = weakref.finalize(artifact, shutil.rmtree, folder, True)
            try:
                _extract(archive, folder, manifest)
            except BaseException:
                artifact.close()
                raise
            return artifact
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, f"it is no readable zip file ({error})") from error
    except OSError as error:
        raise ArtifactError(f"Cannot unpack {path}: {error.strerror or error}.") from error


def _entry_sizes(path: Path, archive: zipfile.ZipFile) -> dict[str, int]:
    sizes = {}
    for entry in archive.infolist():
        name = entry.filename
        if name != MANIFEST and not _is_safe(name.removesuffix("/")):
            raise ArtifactError(f"The artifact {path} is refused: its file {name!r} is outside it.")
        sizes[name] = entry.file_size
    return sizes


def _extract(archive: zipfile.ZipFile, folder: Path, manifest: dict[str, Any]) -> None:
    for name in (MANIFEST, *manifest["files"]):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, \
                open(target, "xb", buffering=_WRITTEN_AT_ONCE) as file:
            shutil.copyfileobj(source, file, _CHUNK)


def _check_files(artifact: Artifact, verify: bool | None) -> None:
    for name, entry in artifact.manifest["files"].items():
        file = artifact.folder / name
        if not file.is_file():
            raise _damaged(artifact.path, f"{name} is missing")
        size = entry["size"]
        if file.stat().st_size != size:
            raise _damaged(artifact.path, f"{name} has another size")
        if verify is False:
            continue
        with open(file, "rb", buffering=0) as opened:
            if verify is None and name == WEIGHTS and "blocks" in entry:
                right = _blocks_fit(opened, size, entry["blocks"])
            else:
                right = hashlib.file_digest(opened, "sha256").hexdigest() == entry["sha256"]
        if not right:
            raise _damaged(artifact.path, f"{name} does not have the checksum of {MANIFEST}")


def _blocks_fit(file: RawIOBase, size: int, expected: str) -> bool:
    """Whether the blocks that are looked at, first and last always among them, have their CRC-32.
    """
    count = -(-size // BLOCK)
    if len(expected) != 8 * count:
        return False
    most = max(CHECKED_BYTES // BLOCK, 2)
    looked_at = range(count) if count <= most else [
        k * (count - 1) // (most - 1) for k in range(most)
    ]
    buffer = memoryview(bytearray(min(BLOCK, size)))
    for block in looked_at:
        file.seek(block * BLOCK)
        read = file.readinto(buffer) or 0
        if f"{zlib.crc32(buffer[:read]):08x}" != expected[8 * block : 8 * block + 8]:
            return False
    return True
