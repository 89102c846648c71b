"""Which machine a compiled model is for, and the sentence about one that is not for this."""

from __future__ import annotations

import platform
import struct

from .artifact import Artifact

LIBRARY = "model.so"
MODULE = "model.wasm"

LIBRARIES = ("cpu", "cuda", "fpga")
"""Families of targets whose models are libraries for this process to load."""

MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
"""Machines by their numbers in ELF files (e_machine), called as `platform.machine` does."""


def why_not_here(artifact: Artifact) -> str | None:
    """Why nothing in the artifact can be loaded into this process, as far as its target and files
    tell; None when they do not tell."""
    target = artifact.manifest.get("target", "")
    files = artifact.manifest["files"]
    path = str(artifact.path)
    if MODULE in files:
        return (f"{path!r} is WebAssembly ({target}): load it in a browser or Node.js by its "
                f"model.mjs, or compile the model for this machine with target cpu.")
    if target.split(":")[0] not in LIBRARIES:
        return f"{path!r} is made for {target or 'no target'}, not for a CPU."
    if artifact.manifest.get("library", LIBRARY) not in files:
        return (f"{path!r} is source code for {target}: build it into a program, or compile the "
                f"model for cpu to run it here.")
    made_for, here = _machine_of(artifact), _this_machine()
    if made_for and here in MACHINES.values() and made_for != here:
        return (f"{path!r} was compiled for {made_for} ({target}) and cannot be loaded on this "
                f"machine, which is {here}: compile the model for it with target cpu.")
    return None


def _this_machine() -> str:
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def _machine_of(artifact: Artifact) -> str | None:
    """The machine that the library's ELF header names."""
    with open(artifact.file(LIBRARY), "rb") as file:
        head = file.read(20)
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return None
    return MACHINES.get(struct.unpack("<H" if head[5] == 1 else ">H", head[18:])[0])
