"""The shared library of a design: its firmware as threads, between kernels of the host, behind the
interface that libraries of the CPU target have."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ...codegen.c_vector import SCALAR
from ...codegen.host import HostPrinter, Weights
from ...errors import TargetError
from ...ir.graph.core import Node
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Kernel
from ...ir.program import Launch, Program
from ...passes.lower.lowering import Lowering
from ...passes.plan import Lifetime
from ...runtime import abi
from ..cpu.toolchain import COMMON, Compiler, find_compiler, objects, run

RUNTIME = Path(abi.__file__).parent / "c"
HEADERS = Path(abi.__file__).parent / "fpga"
SYMBOL = "smelt_program_0"
FIRMWARE = "smelt_firmware"
DIALECT = ("-std=c++17", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-pthread", "-w",
           "-fvisibility=hidden")


def find_cxx() -> Compiler:
    """A C++ compiler for this machine. Raises TargetError with what to install."""
    for name in ("g++", "clang++", "c++"):
        path = shutil.which(name)
        if path:
            return Compiler((path,), name, name)
    compiler = find_compiler()
    if compiler.kind == "zig":
        return Compiler((*compiler.command[:-1], "c++"), "zig", compiler.version)
    raise TargetError("no C++ compiler was found, which the fpga target emulates its firmware "
                      "with: install g++ or clang, or run pip install 'smelt[zig]'")


def dataflow_rule(low: Lowering, node: Node) -> bool:
    """A `dataflow` node as a launch of the firmware: a kernel without a body."""
    if node.op != "dataflow":
        return False
    b = Builder(low.kernel_name("dataflow"), node.origin)
    for v in (*node.inputs, *node.outputs):
        assert v is not None
        b.param("x", v.dtype, (v.type.numel,))
    low.launch(b.kernel(len(node.outputs)),
               [low.storage(v) for v in (*node.inputs, *node.outputs) if v is not None])
    return True


class EmulationPrinter(HostPrinter):
    """The host's part of the program; its dataflow kernel calls the firmware."""

    def __init__(self, program: Program, weights: Weights, lifetimes: list[Lifetime]):
        super().__init__(program, weights, SCALAR, symbol=SYMBOL, isa_name="emulation",
                         threads=False, dtype_numbers=abi.DTYPES,
                         lifetimes=[(x.storage, x.first, x.last) for x in lifetimes])

    def _kernel(self, kernel: Kernel) -> str:
        if kernel.body.body:
            return super()._kernel(kernel)
        return (f"int {FIRMWARE}(const void *const *inputs, void *const *outputs, int64_t frames, "
                f"char *error);\n")

    def _launch(self, step: Launch) -> None:
        kernel = step.kernel
        if kernel.body.body:
            super()._launch(step)
            return
        cut = len(step.args) - kernel.outputs
        inputs, outputs = (", ".join(map(self.pointer, part))
                           for part in (step.args[:cut], step.args[cut:]))
        self.line("{")
        self.line(f"    const void *const from[] = {{{inputs}}};")
        self.line(f"    void *const to[] = {{{outputs}}};")
        frames = self.size(step.args[0].type.shape[0])
        self.line(f"    if ({FIRMWARE}(from, to, {frames}, frame->error))")
        self.line("        return SMELT_DATA_ERROR;")
        self.line("}")


def shared_library(printer: EmulationPrinter, name: str, firmware: dict[str, str], adapter: str,
                   level: int) -> bytes:
    """The bytes of the library. Raises TargetError when a file does not compile."""
    compiler, cxx = find_compiler(), find_cxx()
    table = printer.text() + f"const smelt_program *const smelt_programs[] = {{&{SYMBOL}, 0}};\n"
    flags = (*COMMON, "-DSMELT_NO_THREADS", f"-I{RUNTIME}")
    with tempfile.TemporaryDirectory(prefix="smelt-") as text:
        folder = Path(text)
        parts = []
        for file, content in firmware.items():
            path = folder / "firmware" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            parts.append(path)
        host, design = folder / "host.c", folder / "firmware" / "emulation.cpp"
        host.write_text(table)
        design.write_text(f'#include "{name}.cpp"\n{adapter}')
        shutil.copy(HEADERS / "smelt_fpga.hpp", folder / "firmware")
        jobs = [(host, (*flags, "-O1")),
                *((path, (*flags, "-O2")) for path in sorted(RUNTIME.glob("*.c")))]
        built = objects(compiler, jobs, folder, sorted(RUNTIME.glob("*.h")))
        keys = [*parts, HEADERS / "smelt_fpga.hpp"]
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            built += objects(cxx, [(design, (*DIALECT, f"-O{min(level, 2)}"))], Path(inner), keys)
            library = folder / "model.so"
            run([*cxx.command, "-shared", "-pthread", *map(str, built), "-lm", "-o",
                 str(library)], "the shared library")
        return library.read_bytes()


