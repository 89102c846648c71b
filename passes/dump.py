"""Numbered files with the state of the compilation, in the folder that SMELT_DUMP names."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from .. import config
from ..errors import OutputError
from ..ir.program import Program


def dump(label: str, suffix: str, text: Callable[[], str]) -> None:
    """Writes `text()` to NNN-label.suffix, numbered after the files that are there.

    Does nothing when SMELT_DUMP is unset. Raises OutputError when the folder cannot be written.
    """
    folder = config.dump_dir()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [int(m.group(1)) for p in folder.iterdir()
                 if (m := re.match(r"(\d+)-", p.name)) is not None]
        path = folder / f"{max(taken, default=-1) + 1:03d}-{label}.{suffix}"
        path.write_text(text())
    except OSError as e:
        raise OutputError(f"Cannot write the dump folder {folder}: {e.strerror}.") from None


def dump_kernels(program: Program, variant: str) -> None:
    """Writes every kernel to NNN-name.variant.kernel, in the order of their first launch."""
    from ..ir.kernel.text import print_kernel

    if config.dump_dir() is not None:
        for kernel in program.kernels():
            dump(f"{kernel.name}.{variant}", "kernel", partial(print_kernel, kernel))
