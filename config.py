"""The environment variables: read here and nowhere else, documented in docs/debugging.md.

Each accessor reads its variable on every call, so a test may change it at any time. An empty
variable counts as unset. Values that are not understood raise UsageError.
"""

import os
from pathlib import Path

from .errors import UsageError


def dump_dir() -> Path | None:
    """SMELT_DUMP: folder for the IR after every pass that changed something, or None."""
    text = os.environ.get("SMELT_DUMP")
    return Path(text).expanduser() if text else None


def verify_level() -> int:
    """SMELT_VERIFY: 0 checks the imported model only, 1 (default) after every phase, 2 every pass.
    """
    text = os.environ.get("SMELT_VERIFY") or "1"
    if text not in ("0", "1", "2"):
        raise UsageError(f"SMELT_VERIFY is {text!r}: use 0, 1 or 2.")
    return int(text)


def cache_dir() -> Path:
    """SMELT_CACHE: folder for tuning results and built kernels; by default the user's cache."""
    text = os.environ.get("SMELT_CACHE")
    if text:
        return Path(text).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "smelt"


def num_threads() -> int:
    """SMELT_NUM_THREADS: threads that a CPU model uses; by default the CPUs open to the process."""
    text = os.environ.get("SMELT_NUM_THREADS")
    if not text:
        if hasattr(os, "sched_getaffinity"):  # honours taskset and container limits; Linux only
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UsageError(f"SMELT_NUM_THREADS is {text!r}: use a whole number of 1 or more.")
    return int(text)


def models_dir() -> Path | None:
    """SMELT_MODELS: folder of trained ONNX models for the slow tests and the benchmarks, or None.
    """
    text = os.environ.get("SMELT_MODELS")
    return Path(text).expanduser() if text else None
