"""What this machine can do at most, measured: `limits()` gives f32 flop/s and bytes/s of one
thread."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from smelt.targets.cpu.isa import native
from smelt.targets.cpu.toolchain import find_compiler, run


@cache
def limits() -> tuple[float, float]:
    """(flop/s, bytes/s) of one thread."""
    compiler, variant = find_compiler(), native()
    with tempfile.TemporaryDirectory(prefix="smelt-bench-") as folder:
        program = Path(folder) / "peak"
        run([*compiler.command, "-O2", *variant.flags, "-ffp-contract=fast",
             f"-DLANES={variant.vector.lanes}", str(Path(__file__).parent / "peak.c"), "-o",
             str(program)], "peak.c")
        text = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    flops, bandwidth = map(float, text.split())
    return flops, bandwidth
