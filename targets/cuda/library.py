"""Building the C library of a CUDA model: host code and runtime, with the kernels inside as a cubin
or compiled for the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...codegen.cuda_host import CudaHostPrinter
from ...codegen.portable import identifier
from ...runtime import abi
from ..base import BuildOptions
from ..cpu.isa import native
from ..cpu.target import RUNTIME, make_archive, program_symbol, program_table
from ..cpu.toolchain import COMMON, Compiler, object_file, objects, run, target_flags

CUDA_RUNTIME = Path(abi.__file__).parent / "cuda"
SOURCE = "kernels.cu"
EMULATED_SOURCE = "kernels.cpp"
CPP = ("-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics",
       "-U_FORTIFY_SOURCE",  # whose longjmp() refuses to change stacks
       *(flag for flag in COMMON if not flag.startswith("-std=")))


def image_name(options: BuildOptions, architecture: str) -> str:
    """The C name of a model's kernels compiled for an architecture."""
    return f"{identifier(options.name)}_{architecture}"


def bytes_text(name: str, content: bytes) -> str:
    """C text of an array with these contents, aligned for the driver. As a string, because
    compilers take those a hundred times as fast as lists of numbers."""
    step = 4096
    rows = ["".join(f"\\{b:03o}" for b in content[at:at + step])
            for at in range(0, len(content), step)]
    return "\n".join([f"extern const unsigned char {name}[];",
                      f"__attribute__((aligned(64))) const unsigned char {name}[] =",
                      *(f'    "{row}"' for row in rows or [""]), "    ;", ""])


def build_library(compiler: Compiler, printer: CudaHostPrinter, cubins: dict[str, bytes],
                  options: BuildOptions) -> dict[str, bytes | Path]:
    """The files of the artifact but for weights: libraries, headers, sources. `cubins` are the
    compiled kernels by architecture; without any they are compiled for the CPU that this runs on.
    """
    symbol = program_symbol(options, 0)
    sources = {"model.c": printer.text(), SOURCE: printer.device_text()}
    name = identifier(options.name)
    helpers = {f"{table}.c": program_table(table, [symbol])
               for table in (f"{name}_programs", "smelt_programs")}
    if not cubins:
        helpers[EMULATED_SOURCE] = printer.emulation_text(SOURCE)
    helpers |= {f"{a}.c": bytes_text(image_name(options, a), c) for a, c in cubins.items()}
    with tempfile.TemporaryDirectory(prefix="smelt-") as temporary:
        folder = Path(temporary)
        for file, text in (*sources.items(), *helpers.items()):
            (folder / file).write_text(text)
        files = ["model.c", *helpers]
        built = _objects(compiler, [folder / file for file in files], not cubins,
                         options.optimize, folder)
        flags = target_flags(compiler, "")
        run([*compiler.command, *flags, "-shared", "-pthread", *map(str, built), "-lm", "-ldl",
             "-o", str(folder / "model.so")], "the shared library")
        make_archive(compiler, built, folder / "libmodel.a")
        result: dict[str, bytes | Path] = {
            file: (folder / file).read_bytes() for file in ("model.so", "libmodel.a")}
    result |= {file: text.encode() for file, text in sources.items()}
    for header, path in (("model.h", RUNTIME / "smelt.h"), ("program.h", RUNTIME / "program.h"),
                         ("device.h", CUDA_RUNTIME / "device.h")):
        result[header] = path.read_bytes()
    if not cubins:
        result["emulation.h"] = (CUDA_RUNTIME / "emulation.h").read_bytes()
    return result | {f"{a}.cubin": cubin for a, cubin in cubins.items()}


def _objects(compiler: Compiler, files: Sequence[Path], emulated: bool, optimize: int,
             folder: Path) -> list[Path]:
    """The objects of generated files and of the runtime."""
    include = (*target_flags(compiler, ""), f"-I{RUNTIME}", f"-I{CUDA_RUNTIME}")
    device = [CUDA_RUNTIME / "device.c",
              CUDA_RUNTIME / ("emulation.cpp" if emulated else "driver.c")]
    headers = sorted([*RUNTIME.glob("*.h"), *CUDA_RUNTIME.glob("*.h")])

    def job(path: Path) -> tuple[Path, tuple[str, ...]]:
        level = f"-O{optimize}" if path in files else "-O2"
        language = (*CPP, *native().flags) if path.suffix == ".cpp" else COMMON
        return path, (*include, *language, level)

    built = objects(compiler, [job(p) for p in (*files, *sorted(RUNTIME.glob("*.c")), *device)
                               if p != folder / EMULATED_SOURCE], folder, headers)
    if emulated:
        path = folder / EMULATED_SOURCE
        built.append(object_file(compiler, path, job(path)[1], folder / "kernels.o",
                                 [*headers, folder / SOURCE]))
    return built
