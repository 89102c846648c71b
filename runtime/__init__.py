"""What a compiled model needs to run, and nothing of the compiler: artifacts, and the C runtime.

May import numpy only (and `smelt.errors`, `smelt.config`).
"""

from pathlib import Path

from .module import Module, Session, load

__all__ = ["Module", "Session", "load", "sources"]


def sources() -> dict[str, Path]:
    """The C files of the runtime by file name: `.h` to include, `.c` to compile with the model.

    They need C11, libc and pthreads, and -fvisibility=hidden in a shared library; with
    -DSMELT_NO_THREADS no pthreads.
    """
    folder = Path(__file__).parent / "c"
    return {path.name: path for path in sorted(folder.iterdir()) if path.suffix in (".c", ".h")}
