"""How quick a kernel could be on this machine: the roofline (Williams, Waterman & Patterson 2009).

A kernel takes at least flops / peak and at least bytes / bandwidth. Both are measured, once for a
processor and a number of threads, and kept in the cache folder. The peak is of f32 multiply-adds:
8-bit and bf16 instructions do more. The bandwidth is that of the cache, or the memory, that holds
all of what a run of the model touches.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import config, data
from .errors import SmeltError, TargetError
from .measure import machine

SOURCE = Path(__file__).parent / "targets" / "cpu" / "peak.c"
MOST_SECONDS = 60


@dataclass(frozen=True)
class Roofline:
    """Limits of `threads` threads together: flop/s, and bytes/s by the bytes that are read over
    and over, in ascending order."""

    threads: int
    flops: float
    bandwidths: tuple[tuple[int, float], ...]

    @property
    def memory(self) -> float:
        """Bytes/s of what no cache holds."""
        return self.bandwidths[-1][1]

    def bandwidth(self, touched: int) -> float:
        """Bytes/s when a run touches so many bytes: of the smallest size measured that is no
        smaller."""
        return next((rate for size, rate in self.bandwidths if size >= touched), self.memory)

    def seconds(self, flops: int, moved: int, touched: int) -> float:
        """The least time for an amount of work, of a run that touches `touched` bytes."""
        return max(flops / self.flops, moved / self.bandwidth(touched))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "memory": self.memory}


def roofline(threads: int = 1) -> Roofline:
    """This machine's limits, measured on first use. Raises TargetError without a C compiler."""
    path = config.cache_dir() / "roofline" / f"{_key(threads)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        return _read(path.read_text())
    found = measured(threads)
    with contextlib.suppress(OSError, SmeltError):  # a cache that cannot be written
        path.parent.mkdir(parents=True, exist_ok=True)
        data.write_text(path, json.dumps(asdict(found)))
    return found


def _read(text: str) -> Roofline:
    held = json.loads(text)
    bandwidths = tuple((int(size), float(rate)) for size, rate in held["bandwidths"])
    found = Roofline(int(held["threads"]), float(held["flops"]), bandwidths)
    if not found.flops > 0 or not found.memory > 0:
        raise ValueError("rates are positive")
    return found


def _key(threads: int) -> str:
    facts = machine()
    text = repr((facts["cpu"], facts.get("features"), facts.get("cpus"), threads))
    return hashlib.blake2b(text.encode() + SOURCE.read_bytes(), digest_size=12).hexdigest()


def measured(threads: int = 1) -> Roofline:
    """Measures, which takes a second or two. Raises TargetError."""
    with tempfile.TemporaryDirectory(prefix="smelt-roofline-") as folder:
        program = Path(folder) / "peak"
        _build(program)
        try:
            text = subprocess.run([program, str(threads)], capture_output=True, text=True,
                                  check=True, timeout=MOST_SECONDS).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise TargetError(f"this machine's limits cannot be measured: {error}") from None
    flops, *lines = text.splitlines()
    bandwidths = tuple((int(size), float(rate)) for size, rate in map(str.split, lines))
    return Roofline(threads, float(flops), bandwidths)


def _build(output: Path, *flags: str) -> int:
    """Compiles SOURCE for this machine; returns its vectors' lanes."""
    from .targets.cpu.isa import native
    from .targets.cpu.toolchain import find_compiler, run

    variant = native()
    lanes = variant.vector.lanes
    run([*find_compiler().command, "-O2", *variant.flags, "-ffp-contract=fast", "-pthread",
         f"-DLANES={lanes}", *flags, str(SOURCE), "-o", str(output)], SOURCE.name)
    return lanes


def peak_work(flops: float) -> Callable[[], object]:
    """What does about so many f32 operations, multiply-adds in registers, on one thread: to be
    timed in turns with other work, because the clock of a busy processor changes. Raises
    TargetError."""
    with tempfile.TemporaryDirectory(prefix="smelt-roofline-") as folder:
        library = Path(folder) / "peak.so"
        lanes = _build(library, "-shared", "-fPIC")
        work = ctypes.CDLL(str(library)).smelt_multiply_add
    work.argtypes, work.restype = (ctypes.c_long, ctypes.c_float), ctypes.c_float
    rounds = max(1, round(flops / (24 * lanes)))
    return lambda: work(rounds, 1e-3)


def with_limits(kernels: Sequence[Mapping[str, Any]], limits: Roofline,
                touched: int) -> list[dict[str, Any]]:
    """Timed kernels with `limit`, the least seconds of all their launches, `of_limit`, that over
    the time it took, and `lost`, the seconds above the limit. Kernels whose amounts are not
    numbers stay as they are."""
    found = []
    for kernel in kernels:
        flops, moved, seconds = kernel["flops"], kernel["bytes"], kernel.get("seconds")
        if seconds is not None and isinstance(flops, int) and isinstance(moved, int):
            limit = kernel["launches"] * limits.seconds(flops, moved, touched)
            kernel = {**kernel, "limit": limit, "of_limit": limit / seconds if seconds else None,
                      "lost": max(seconds - limit, 0.0)}
        found.append(dict(kernel))
    return found


SORTS = ("time", "lost", "program")
"""What timed kernels can be sorted by; "program" is the order they run in."""


def in_order(kernels: Sequence[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """The kernels sorted, largest first; those without the number last."""
    key = {"time": "seconds", "lost": "lost"}.get(by)
    if key is None:
        return list(kernels)
    return sorted(kernels, key=lambda k: -(k.get(key) or 0.0))


def touched_bytes(report: Mapping[str, Any]) -> int:
    """Bytes that a run of a compiled model touches, from its report with numbers for all sizes: its
    weights and the memory of temporaries."""
    return sum(report[key] for key in ("weights", "arena") if isinstance(report.get(key), int))
