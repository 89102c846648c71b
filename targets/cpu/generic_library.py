"""A shared library around a portable model, with the runtime that Python and the command line use:
the very file that a device would run, so that what is checked here is what goes there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ...codegen.c_vector import SCALAR
from ...codegen.host import HostPrinter, Weights
from ...codegen.portable import PortablePrinter
from ...ir.kernel.nodes import Kernel
from ...runtime import abi
from ..base import BuildOptions
from .generic_size import STRICT
from .toolchain import COMMON, Compiler, objects, run

RUNTIME = Path(abi.__file__).parent / "c"
SYMBOL = "smelt_program_0"


class _Adapter(HostPrinter):
    """The program's table for the runtime; its run calls the portable model."""

    def __init__(self, printer: PortablePrinter):
        blob = printer.blob
        super().__init__(printer.program, Weights({}, blob.size if blob else 0, []), SCALAR,
                         symbol=SYMBOL, isa_name="generic", threads=False,
                         dtype_numbers=abi.DTYPES, lifetimes=[])
        self.printer = printer
        self.static = 0  # the model has its own memory

    def _kernel(self, kernel: Kernel) -> str:
        return ""

    def _run(self) -> str:
        self.output_slots = {}
        p, name = self.program, self.printer.name
        arguments = [f"frame->inputs[{k}]" for k in range(len(p.inputs))]
        arguments += [f"frame->outputs[{k}]" for k in range(len(p.outputs))]
        weights = f"    {name}_weights(frame->weights);\n" if self.printer.blob else ""
        return f"""#include "{name}.h"
#include <pthread.h>
static int run(smelt_frame *frame) {{
    /* Sessions may run at the same time, the model's memory is one. */
    static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&turn);
{weights}    const int failed = {name}_run({', '.join(arguments)});
    pthread_mutex_unlock(&turn);
    return failed ? SMELT_DATA_ERROR : SMELT_OK;
}}
"""


def shared_library(compiler: Compiler, printer: PortablePrinter, source: str, header: str,
                   options: BuildOptions) -> bytes:
    """The bytes of the library. Raises TargetError when a file does not compile."""
    adapter = _Adapter(printer).text()
    adapter += f"const smelt_program *const smelt_programs[] = {{&{SYMBOL}, 0}};\n"
    flags = (*COMMON, "-DSMELT_NO_THREADS", f"-I{RUNTIME}")
    with tempfile.TemporaryDirectory(prefix="smelt-") as text:
        folder = Path(text)
        model = folder / f"{printer.name}.c"
        model.write_text(source)
        (folder / f"{printer.name}.h").write_text(header)
        table = folder / "adapter.c"
        table.write_text(adapter)
        jobs = [(model, (*STRICT, "-fPIC", "-fvisibility=hidden", f"-O{options.optimize}")),
                (table, (*flags, "-O1"))]
        jobs += [(path, (*flags, "-O2")) for path in sorted(RUNTIME.glob("*.c"))]
        keys = [*sorted(RUNTIME.glob("*.h")), folder / f"{printer.name}.h"]
        built = objects(compiler, jobs, folder, keys)
        library = folder / "model.so"
        run([*compiler.command, "-shared", "-pthread", *map(str, built), "-lm", "-o",
             str(library)], "the shared library")
        return library.read_bytes()
