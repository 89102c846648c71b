"""Prints grid kernels as CUDA C++. Legalisation has run; this file chooses spelling.

The text is C++17 that nvcc and NVRTC take, and so does a C++ compiler for the CPU with
runtime/cuda/emulation.h, which checks accesses. For that, memory is declared by macros, which mean
plain pointers and arrays to a compiler for a GPU (`PRELUDE`). Scalar code is spelled as in portable
C, with indices of 32 bits wherever their bounds allow: a GPU has no others in hardware.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from ..ir.expr import Expr, wrap
from ..ir.kernel.nodes import Barrier, Buffer, For, Kernel, Stmt, statements
from . import c_prelude
from .c import RESERVED, Needs
from .c_types import storage_type
from .portable_kernel import PortableKernelPrinter, wrapped

AXES = {"grid.x": "blockIdx.x", "grid.y": "blockIdx.y", "grid.z": "blockIdx.z",
        "block.x": "threadIdx.x", "block.y": "threadIdx.y", "block.z": "threadIdx.z"}

CPP_RESERVED = RESERVED | {
    "and", "and_eq", "bitand", "bitor", "bool", "catch", "class", "compl", "constexpr",
    "const_cast", "decltype", "delete", "dynamic_cast", "explicit", "export", "false", "friend",
    "mutable", "namespace", "new", "noexcept", "not", "not_eq", "nullptr", "operator", "or",
    "or_eq", "private", "protected", "public", "reinterpret_cast", "static_assert", "static_cast",
    "template", "this", "throw", "true", "try", "typeid", "typename", "using", "virtual", "xor",
    "xor_eq", "blockIdx", "threadIdx", "blockDim", "gridDim", "warpSize", "smelt"}

PRELUDE = """#ifdef SMELT_EMULATION
#include "emulation.h"
#else
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define INT64_C(x) x##LL
#define UINT64_C(x) x##ULL
#define INT32_MIN (-2147483647 - 1)
#define INT64_MIN (-9223372036854775807LL - 1)
#define INT64_MAX 9223372036854775807LL
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif
#define SMELT_GLOBAL(type) type *
#define SMELT_RESTRICT(type) type *__restrict__
#define SMELT_EXTENT(buffer, elements)
#define SMELT_SHARED(type, name, elements) __shared__ type name[elements]
#define SMELT_PRIVATE(type, name, elements) type name[elements]
#endif
"""


@dataclass(frozen=True)
class CudaKernel:
    """A printed kernel: its text with `symbol` as its name, and how it is launched: `threads` of a
    block along x, y and z, and `grid`, blocks along them, expressions of the kernel's sizes."""

    symbol: str
    text: str
    threads: tuple[int, int, int]
    grid: tuple[Any, Any, Any]
    barriers: bool


def print_kernel(kernel: Kernel, needs: Needs, symbol: str | None = None) -> CudaKernel:
    """The CUDA C++ of a legalised kernel with grid and block loops. Raises ModelError for what a
    kernel on a GPU cannot do."""
    return CudaKernelPrinter(kernel, needs, symbol).printed()


def translation_unit(kernels: Sequence[CudaKernel], needs: Needs) -> str:
    """A whole .cu file."""
    helpers = [c_prelude.HELPERS[name].replace("static inline", "static __device__ inline")
               for name in c_prelude.closure(needs.helpers)]
    return "\n".join([PRELUDE, *helpers, "", *(k.text for k in kernels)])


def emulated_table(kernels: Sequence[CudaKernel], source: str, table: str) -> str:
    """C++ text that makes the kernels of the file `source` known to the emulated driver, as the
    array `table`."""
    entries = [f'    {{"{k.symbol}", smelt::Entry<{k.symbol}>::call, '
               f'smelt::Entry<{k.symbol}>::arguments, {int(k.barriers)}}},' for k in kernels]
    return "\n".join([
        "#define SMELT_EMULATION", '#include "emulation.h"', "", "namespace {",
        f'#include "{source}"', "}", "", f'extern "C" const smelt::Kernel {table}[];',
        f'extern "C" const smelt::Kernel {table}[] = {{', *entries, "    {0, 0, 0, 0},", "};", ""])


class CudaKernelPrinter(PortableKernelPrinter):
    """Prints one legalised kernel as a `__global__` function."""

    reserved = CPP_RESERVED

    def __init__(self, kernel: Kernel, needs: Needs, symbol: str | None = None):
        super().__init__(kernel, needs, symbol)
        self.grid: list[Any] = [1, 1, 1]
        self.block_threads: list[int] = [1, 1, 1]

    def printed(self) -> CudaKernel:
        """The complete kernel."""
        self._extents()
        self._used_parameters()
        self._top(self.kernel.body)
        bound = math.prod(self.block_threads)
        head = wrapped(f'extern "C" __global__ void __launch_bounds__({bound}) {self.symbol}(',
                       self._parameters(), ") {", "        ")
        x, y, z = self.block_threads
        barriers = any(isinstance(s, Barrier) for s in statements(self.kernel.body))
        return CudaKernel(self.symbol, "\n".join([head, *self.lines, "}"]) + "\n", (x, y, z),
                          (self.grid[0], self.grid[1], self.grid[2]), barriers)

    def _parameters(self) -> list[str]:
        parts = []
        for buffer in self.kernel.params:
            const = "" if buffer in self.stored else "const "
            kind = "SMELT_GLOBAL" if buffer in self.shared else "SMELT_RESTRICT"
            parts.append(f"{kind}({const}{storage_type(buffer.dtype)}) {self.buffer_name(buffer)}")
        return parts + [f"int64_t {self.var_name(v)}" for v in self.kernel.sizes]

    def _extents(self) -> None:
        """States how many elements each parameter has."""
        for buffer in self.kernel.params:
            if buffer.strides is None:
                count: Expr = wrap(1)
                for d in buffer.shape:
                    count = count * wrap(d)
            else:
                count = wrap(1)
                for d, step in zip(buffer.shape, buffer.strides, strict=True):
                    count = count + (wrap(d) - 1) * wrap(step)
            self.line(f"SMELT_EXTENT({self.buffer_name(buffer)}, "
                      f"{self.expr.statement_value(count)});")

    # Statements -------------------------------------------------------------------------------

    def statement(self, s: Stmt) -> None:
        if isinstance(s, Barrier):
            self.line("__syncthreads();")
        elif isinstance(s, For) and s.kind in AXES:
            self._axis(s)
        elif isinstance(s, For) and s.kind == "unroll":
            self.line("#pragma unroll")
            self._for(For(s.var, s.extent, s.body))
        else:
            super().statement(s)

    def _axis(self, s: For) -> None:
        """A loop whose iterations are blocks or threads: its body is what each does."""
        axis = "xyz".index(s.kind[-1])
        if s.kind.startswith("grid"):
            self.grid[axis] = s.extent
        elif isinstance(s.extent, int):
            if self.block_threads[axis] not in (1, s.extent):
                raise ValueError(f"{self.kernel.name}: blocks of two sizes along {s.kind}")
            self.block_threads[axis] = s.extent
        else:
            raise ValueError(f"{self.kernel.name}: a block needs a constant size")
        self.expr.ranges.count(s.var, s.extent)
        kind = self.expr.scalar_type(s.var)
        self.line(f"const {kind} {self.var_name(s.var)} = ({kind}){AXES[s.kind]};")
        for inner in s.body.body:
            self.statement(inner)

    def _alloc(self, buffer: Buffer) -> None:
        if buffer.lanes > 1:
            raise ValueError(f"{buffer.name}: CUDA kernels hold no vectors")
        if any(isinstance(d, Expr) for d in buffer.shape):
            origin = self.kernel.origin or self.kernel.name
            raise ModelError(f"{origin}: its kernel needs memory of a size that is not constant, "
                             f"so this does not run on cuda")
        if buffer.space == "register":
            super()._alloc(buffer)
            return
        macro = "SMELT_SHARED" if buffer.space == "shared" else "SMELT_PRIVATE"
        count = max(1, math.prod(int(d) for d in buffer.shape))
        self.line(f"{macro}({storage_type(buffer.dtype)}, {self.buffer_name(buffer)}, {count});")
