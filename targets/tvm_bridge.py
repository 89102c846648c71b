"""Builds kernels with TVM's LLVM backend: our schedule through another compiler, and TVM's own.

TVM is a tool of development (`pip install apache-tvm`), imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..codegen.tensorir import print_tensorir
from ..errors import TargetError
from ..ir.kernel.nodes import Kernel


def host_target() -> dict[str, Any]:
    """TVM's target for this processor."""
    tvm = import_tvm()
    cpu = tvm.get_global_func("target.llvm_get_system_cpu")()
    return {"kind": "llvm", "mcpu": str(cpu)}


class TvmKernel:
    """One kernel as TVM compiled it. Called as the kernel interpreter is: with one contiguous
    array per parameter, of which the stored ones change, and the sizes by name."""

    def __init__(self, kernel: Kernel, function: Callable, executable: Any):
        self.kernel = kernel
        self.function = function
        self.executable = executable

    def __call__(self, buffers: Sequence[np.ndarray], sizes: Mapping[str, int] | None = None,
                 ) -> None:
        tensors = [tensor(a) for a in buffers]
        self.function(*tensors, *self.size_values(sizes))
        for array, result in zip(buffers, tensors, strict=True):
            flat = np.frombuffer(result.numpy().tobytes(), array.dtype)
            array[...] = flat.reshape(array.shape)

    def size_values(self, sizes: Mapping[str, int] | None) -> list[int]:
        return [int((sizes or {})[v.name]) for v in self.kernel.sizes]


def build(kernel: Kernel, *, threads: bool = True) -> TvmKernel:
    """Compiles a legalised kernel for this processor. `threads` False runs parallel loops in turn.

    Raises `codegen.tensorir.Inexpressible` for a kernel without a TensorIR form, TargetError when
    TVM is missing or refuses.
    """
    tvm = import_tvm()
    module = parse(print_tensorir(kernel, threads))
    try:
        executable = tvm.compile(module, target=host_target())
        return TvmKernel(kernel, executable[kernel.name], executable)
    except Exception as error:
        raise TargetError(f"TVM cannot compile kernel {kernel.name}: {first_lines(error)}"
                          ) from error


def one_thread() -> None:
    """Lets TVM's parallel loops run on one thread from now on. Raises TargetError without TVM."""
    import_tvm().get_global_func("runtime.config_threadpool")(1, 1)


def timer(built: TvmKernel, buffers: Sequence[np.ndarray], sizes: Mapping[str, int] | None,
          seconds: float) -> Callable[[], float]:
    """A function that runs the kernel for about so long and gives the seconds of one run."""
    tensors = [tensor(a) for a in buffers]
    arguments = [*tensors, *built.size_values(sizes)]
    evaluator = built.executable.jit().time_evaluator(
        built.kernel.name, import_tvm().cpu(), number=1, repeat=1,
        min_repeat_ms=int(seconds * 1000))
    return lambda: float(evaluator(*arguments).mean)


def parse(text: str) -> Any:
    """The module of a TVMScript text. Raises TargetError."""
    tvm = import_tvm()
    from tvm.script import ir, tirx

    try:
        return tvm.script.from_source(text, extra_vars={"I": ir, "T": tirx})
    except Exception as error:
        raise TargetError(f"TVM cannot read the kernel: {first_lines(error)}") from error


def tensor(array: np.ndarray) -> Any:
    """A flat TVM tensor with the bytes of an array: booleans are bytes, narrow floats their
    bits."""
    flat = np.ascontiguousarray(array).reshape(-1)
    kind = flat.dtype
    if kind.kind not in "iuf" or kind == np.float16:
        # ml_dtypes has integers of less than a byte and floats that numpy lacks.
        name = f"u{kind.itemsize}" if not kind.name.startswith("int") else f"i{kind.itemsize}"
        flat = flat.view(name)
    return import_tvm().runtime.tensor(flat)


def import_tvm() -> Any:
    """The module. Raises TargetError where it is not installed."""
    try:
        import tvm
    except ImportError:
        raise TargetError("apache-tvm is not installed: pip install apache-tvm") from None
    return tvm


def first_lines(error: BaseException) -> str:
    """The beginning of an error's text, on one line."""
    lines = [x for x in str(error).splitlines() if x.strip()]
    return " ".join(lines[:3])[:400] if lines else type(error).__name__
