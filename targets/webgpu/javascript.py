"""What a webgpu artifact holds for browsers and node: the modules that run it, a package.json, the
program for WebAssembly that takes over where WebGPU is missing, and the demonstration page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ...errors import UsageError
from ...ir.graph.core import Graph
from ...runtime import abi
from ..base import BuildOptions, Progress, find_target

JS = Path(abi.__file__).parent / "js"
MODULES = ("session.mjs", "session.d.mts", "webgpu.mjs", "sizes.mjs", "files.mjs", "tensors.mjs",
           "model.d.mts")
FALLBACK_MODULES = ("model.mjs",)
FALLBACK_FOLDER = "wasm"
"""Where the other program's files lie: its weights are packed in another way."""
PIXELS = ("1", "16", "255")
PAGE = Path(__file__).parent / "page"


def wants_fallback(options: BuildOptions) -> bool:
    """Whether the artifact also runs without WebGPU. Raises UsageError."""
    choice = options.extra.get("fallback", "none")
    if choice not in ("none", "wasm"):
        raise UsageError(f"fallback is {choice!r}: use wasm, or none")
    return choice == "wasm"


def module_files(options: BuildOptions) -> dict[str, bytes | Path]:
    """The modules, with which the artifact's folder is a package that `npm pack` takes."""
    names = (*MODULES, *(FALLBACK_MODULES if wants_fallback(options) else ()))
    files: dict[str, bytes | Path] = {name: (JS / name).read_bytes() for name in names}
    package = json.loads((JS / "package.json").read_text())
    described = {
        **{key: package[key] for key in ("version", "type", "types", "sideEffects", "engines")},
        "name": options.name.lower().lstrip("_") or "model",
        "description": "A model that smelt compiled for WebGPU",
        "exports": {".": package["exports"]["."], "./*": "./*"},
    }
    files["package.json"] = json.dumps(described, indent=2, sort_keys=True).encode() + b"\n"
    return files


def pixel_range(options: BuildOptions) -> int:
    """The highest value of a pixel that the page gives the model. Raises UsageError."""
    choice = options.extra.get("pixels", "1")
    if choice not in PIXELS:
        raise UsageError(f"pixels is {choice!r}: use {', '.join(PIXELS[:-1])} or {PIXELS[-1]}, the "
                         f"highest value of a pixel")
    return int(choice)


def page_files(options: BuildOptions) -> dict[str, bytes | Path]:
    """The demonstration page, if it is wanted; it reads the manifest, and so is the same for all
    models."""
    if options.extra.get("demo") != "true":
        return {}
    return {path.name: path.read_bytes() for path in sorted(PAGE.iterdir())}


def fallback_files(graph: Graph, options: BuildOptions,
                   progress: Progress) -> dict[str, bytes | Path]:
    """The program for WebAssembly with its weights. Consumes the graph. Raises TargetError where
    no compiler for it is installed."""
    build = find_target("cpu:wasm32").build(graph, replace(options, extra={}), progress)
    return {f"{FALLBACK_FOLDER}/{name}": build.files[name]
            for name in ("model.wasm", "weights.bin")}
