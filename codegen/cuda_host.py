"""Prints a program as kernels in CUDA C++ and as host code in C, which launches them.

The host code is what `codegen.host` prints for a CPU, with another `run`: storages are addresses
on the device, and what the host needs to know of the data (sizes, conditions) is read back. It
calls runtime/cuda/device.h, and is the same whether a GPU or the emulation runs the kernels.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.expr import Expr, Var, substitute, walk, wrap
from ..ir.kernel.nodes import Kernel
from ..ir.program import Copy, Launch, Program, Require, Storage
from .c import Needs
from .c_types import storage_type
from .c_vector import SCALAR
from .cuda import CudaKernel, emulated_table, print_kernel, translation_unit
from .host import HostPrinter, Weights, c_string

_ANONYMOUS = "kernel_symbol"


def is_repeatable(program: Program) -> bool:
    """Whether runs with equal sizes launch the same kernels on the same memory, so that a CUDA
    graph can stand for them: the host reads nothing in between."""
    return all(isinstance(s, (Launch, Copy, Require)) for s in program.steps) and not any(
        s.role == "dynamic" for s in program.temporaries)


class CudaHostPrinter(HostPrinter):
    """Prints one program. `architectures` is "sm_80" and so on, several joined by +, or
    "emulated"; `images` name the arrays, defined elsewhere, that hold the kernels compiled for each
    of them. With `graphs` repeated runs launch a CUDA graph; see `is_repeatable`."""

    def __init__(self, program: Program, weights: Weights, *, symbol: str,
                 architectures: str, images: list[str], dtype_numbers: dict[str, int],
                 lifetimes: list[tuple[Storage, int, int]], graphs: bool = False):
        super().__init__(program, weights, SCALAR, symbol=symbol, isa_name=architectures,
                         threads=False, dtype_numbers=dtype_numbers, lifetimes=lifetimes)
        self.images = images
        self.graphs = graphs
        self.device_needs = Needs()
        self.kernels: list[CudaKernel] = []
        self.launched: dict[Kernel, tuple[int, CudaKernel]] = {}
        found: dict[tuple[str, tuple[int, int, int]], int] = {}
        for kernel in program.kernels():
            printed = print_kernel(kernel, self.device_needs, _ANONYMOUS)
            key = printed.text, printed.threads
            if key not in found:  # equal kernels are one
                found[key] = len(self.kernels)
                text = printed.text.replace(_ANONYMOUS, kernel.name)
                self.kernels.append(replace(printed, symbol=kernel.name, text=text))
            self.launched[kernel] = found[key], printed

    # The files --------------------------------------------------------------------------------

    def device_text(self) -> str:
        """The .cu file."""
        return translation_unit(self.kernels, self.device_needs)

    def emulation_text(self, source: str) -> str:
        """C++ that compiles the .cu file `source` for the CPU."""
        return emulated_table(self.kernels, source, self.images[0])

    def text(self) -> str:
        """The C file of the host."""
        run = self._run()
        parts = [
            self._signature(), self._function(
                "int", "bind", "const smelt_tensor *inputs, int64_t *dims, char *error",
                self._bind),
            self._function("int64_t", "plan", "const int64_t *dims, int64_t *offsets", self._plan),
            self._function("void", "output_shapes", "const int64_t *dims, int64_t *shapes",
                           self._output_shapes),
            self._code(), run, self._table(),
        ]
        head = '#include "device.h"\n#include <stdio.h>\n' + self.needs.prelude(self.isa)
        return "\n".join([head, *parts])

    def _code(self) -> str:
        rows = [f"    {{{c_string(k.symbol)}, {{{k.threads[0]}, {k.threads[1]}, {k.threads[2]}}}}},"
                for k in self.kernels]
        return "\n".join([
            *(f"extern const unsigned char {image}[];" for image in self.images),
            f"static const void *const images[] = {{{', '.join(self.images)}}};",
            "static const smelt_cuda_kernel kernels[] = {", *(rows or ["    {0, {0, 0, 0}},"]),
            "};", f"static const smelt_cuda_code code = {{images, {len(self.images)}, "
            f"{c_string(self.isa_name)}, {len(self.kernels)}, kernels}};", ""])

    def _device(self) -> str:
        return "    .device = &smelt_cuda_device,\n    .device_code = &code,\n"

    # Running ----------------------------------------------------------------------------------

    def _run(self) -> str:
        """`steps`, which does the work, and `results`, which copies the outputs, between beginning
        and ending the run on the device."""
        self.lines, self.depth = [], 1
        self._load_frame()
        self.line("int status = SMELT_OK; (void)status;")
        self._own_empty_outputs()
        for step in self.program.steps:
            self._step(step)
        self.line("return SMELT_OK;")
        steps, self.lines = self.lines, []
        self._load_frame()
        self.line("int status = SMELT_OK; (void)status;")
        for k, s in enumerate(self.program.outputs):
            slot = self.output_slots.get(s, -1)
            self._call(f"smelt_cuda_output(frame, {k}, {slot}, {self.pointer(s)}, "
                       f"{self.bytes_of(s)})")
        self.line("return SMELT_OK;")
        results, self.lines = self.lines, []
        self._load_frame()
        late = set(self.symbols[self.bound:])
        for name, items in (("inputs", self.program.inputs), ("outputs", self.program.outputs)):
            amounts = [("-1" if any(v in late for v in s.type.symbols) else self.bytes_of(s))
                       for s in items]
            self.line(f"const int64_t {name}[] = {{{', '.join(amounts) or '0'}}};")
        self.line("const smelt_cuda_memory *memory;")
        self.line("int status = smelt_cuda_begin(frame, inputs, outputs, &memory);")
        work = "smelt_cuda_replay(frame, steps)" if self.graphs else "steps(frame, memory)"
        self.line(f"if (!status) status = {work};")
        self.line("if (!status) status = results(frame, memory);")
        self.line("return smelt_cuda_end(frame, status);")
        return "\n".join([
            "static int steps(smelt_frame *frame, const smelt_cuda_memory *memory) {",
            "    (void)memory;", *steps, "}", "",
            "static int results(smelt_frame *frame, const smelt_cuda_memory *memory) {",
            "    (void)memory;", *results, "}", "",
            "static int run(smelt_frame *frame) {", *self.lines, "}", ""])

    def _load_frame(self) -> None:
        for i, v in enumerate(self.symbols):
            kind = "const int64_t" if i < self.bound else "int64_t"
            self.line(f"{kind} {self.names[v]} = frame->dims[{i}]; (void){self.names[v]};")

    def _call(self, call: str) -> None:
        self.line(f"if ((status = {call})) return status;")

    def pointer(self, s: Storage) -> str:
        """An expression for the address of a storage on the device."""
        root = s.root()
        if root in self.output_slots:
            return f"memory->slots[{self.output_slots[root]}]"
        if root.role in ("input", "output"):
            return f"memory->{root.role}s[{root.index}]"
        if root.role == "constant":
            return f"(memory->weights + {self.weights.offsets[root]})"
        if root.role == "dynamic":
            return f"memory->slots[{self.slots[root]}]"
        offset = f"(uint64_t)frame->offsets[{root.index}]" if self.static is None else root.offset
        return f"(memory->arena + {offset})"

    def acquire(self, s: Storage) -> None:
        slot = self.slots.get(s.root(), self.output_slots.get(s.root()))
        if slot is not None:
            self._call(f"smelt_cuda_dynamic(frame, {slot}, {self.bytes_of(s)})")

    def _copy(self, step: Copy) -> None:
        self._call(f"smelt_cuda_copy(frame, {self.pointer(step.target)}, "
                   f"{self.pointer(step.source)}, {self.bytes_of(step.source)})")

    def element(self, s: Storage, k: int = 0) -> str:
        """A local that holds the value; inputs and constants are read where the host has them."""
        kind = storage_type(s.type.dtype)
        if s.root().role in ("input", "constant"):
            return f"((const {kind} *){super().pointer(s)})[{k}]"
        self.count += 1
        name = f"v{self.count}"
        self.line(f"{kind} {name} = 0;")
        self._call(f"smelt_cuda_read(frame, &{name}, {self.pointer(s)} + "
                   f"{k * s.type.dtype.itemsize}, sizeof {name})")
        return name

    def set_element(self, s: Storage, value: str) -> None:
        self.count += 1
        name = f"v{self.count}"
        self.line(f"const {storage_type(s.type.dtype)} {name} = {value};")
        self._call(f"smelt_cuda_write(frame, {self.pointer(s)}, &{name}, sizeof {name})")

    def _launch(self, step: Launch) -> None:
        kernel = step.kernel
        for s in step.args[len(step.args) - kernel.outputs:]:
            self.acquire(s)
        for s in step.args[:len(step.args) - kernel.outputs]:
            if s.role == "dynamic" and s.name.startswith("scratch"):
                self.acquire(s)
        number, printed = self.launched[kernel]
        sizes: dict[Expr, Expr] = dict(zip(kernel.sizes, map(wrap, step.sizes), strict=True))
        grid = [substitute(wrap(g), sizes) for g in printed.grid]
        assert all(v in self.names for g in grid for v in walk(g) if isinstance(v, Var))
        self.line("{")
        self.depth += 1
        values = [self.size(e) for e in step.sizes]
        blocks = ", ".join(self.size(g) for g in grid)
        arguments = []
        for name, kind, items in (("address", "uint64_t", [self.pointer(s) for s in step.args]),
                                  ("size", "int64_t", values)):
            if items:
                self.line(f"{kind} {name}[] = {{{', '.join(items)}}};")
                arguments += [f"&{name}[{k}]" for k in range(len(items))]
        self.line(f"void *arguments[] = {{{', '.join(arguments)}}};")
        self._call(f"smelt_cuda_launch(frame, {number}, {blocks}, arguments)")
        self.depth -= 1
        self.line("}")
