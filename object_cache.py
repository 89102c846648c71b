"""The size of the cache of compiled C files, which `targets` fills.

Builds hold a shared lock on the folder for as long as they may use its files; files are removed
under an exclusive one, so never below a build of another process.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from . import config

OBJECTS_LIMIT = 1_000_000_000
"""Bytes of compiled C files; beyond, the ones not used for longest are removed."""
STALE_SECONDS = 24 * 3600
"""Unfinished files older than this belong to processes that were killed."""


def folder() -> Path:
    """Where the compiled C files are."""
    return config.cache_dir() / "objects"


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Keeps every process from removing files meanwhile."""
    with _lock(exclusive=False):
        yield


def prune() -> None:
    """Removes what killed processes left, and the files beyond the limit, those not used for
    longest first. Does nothing while a build is going on anywhere; the next one will do it."""
    held = _held()
    if sum(size for _, size, _ in held) <= OBJECTS_LIMIT and not any(map(_is_stale, held)):
        return
    with _lock(exclusive=True) as locked:
        if not locked:
            return
        held = _held()
        total = sum(size for _, size, _ in held)
        for entry in sorted(held):
            if total > OBJECTS_LIMIT or _is_stale(entry):
                with contextlib.suppress(OSError):
                    entry[2].unlink()
                    total -= entry[1]


Entry = tuple[float, int, Path]
"""When a file was used or written last, its bytes, and where it is."""


def _held() -> list[Entry]:
    found: list[Entry] = []
    with contextlib.suppress(OSError), os.scandir(folder()) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat()
                # Many systems note accesses once a day only.
                last = max(status.st_atime, status.st_mtime)
                if entry.name != LOCK:
                    found.append((last, status.st_size, Path(entry.path)))
    return found


def _is_stale(entry: Entry) -> bool:
    """Whether it is a file that was never finished."""
    return entry[2].suffix != ".o" and time.time() - entry[0] > STALE_SECONDS


LOCK = ".lock"


@contextlib.contextmanager
def _lock(exclusive: bool) -> Iterator[bool]:
    """Holds the folder's lock, the exclusive one only if it is free; yields whether it is held.
    Where files cannot be locked there is none, and nothing is removed."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield False
        return
    try:
        folder().mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder() / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a cache that cannot be written
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
