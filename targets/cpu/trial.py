"""A group of operators as a program of its own, compiled, loaded and timed in this process."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...codegen.host import pack_weights, used_storages
from ...errors import TargetError
from ...ir.expr import evaluate
from ...ir.graph.clone import clone_node
from ...ir.graph.core import Graph, Node, Value
from ...ir.program import Program
from ...passes.lower.choices import Choices
from ...passes.plan import plan
from ...runtime import abi
from ..base import BuildOptions
from .isa import Variant
from .target import host_printer, link_library, lower_for, program_symbol
from .toolchain import find_compiler


def alone(node: Node) -> Graph:
    """A graph of a copy of one node; constants stay constants."""
    graph, mapping = Graph("group"), {}
    for k, value in enumerate(node.dependencies()):
        if value not in mapping:
            mapping[value] = _outside(graph, value, f"x{k}")
    graph.outputs = list(clone_node(node, graph, mapping).outputs)
    return graph


def _outside(graph: Graph, value: Value, name: str) -> Value:
    if value.constant is not None:
        return graph.constant(value.constant)
    twin = graph.add_input(name, value.type)
    twin.content = value.content
    return twin


def random_contents(kind: np.dtype, shape: Sequence[int]) -> np.ndarray:
    """Random floats; zeros for integers, which may be indices."""
    if np.issubdtype(kind, np.floating):
        return np.random.default_rng(0).standard_normal(shape).astype(kind)
    return np.zeros(shape, kind)


class Source:
    """A group lowered with some choices: the C text and the weights of its program."""

    def __init__(self, node: Node, variant: Variant, options: BuildOptions, choices: Choices):
        self.variant, self.options = variant, options
        self.program = lower_for(alone(node), variant, options.exact, choices)
        lifetimes = plan(self.program)
        packed = pack_weights(self.program, used_storages(self.program))
        self.text = host_printer(self.program, packed, variant, options, lifetimes,
                                 program_symbol(options, 0)).text()
        self.weights = packed.blob()

    def compile(self, folder: Path) -> Path:
        """Makes a library in `folder` and returns it. Raises TargetError."""
        folder.mkdir()
        link_library(find_compiler(self.variant.zig), [self.text], [self.variant], self.options,
                     folder)
        (folder / "weights.bin").write_bytes(self.weights)
        return folder / self.variant.library


class Trial:
    """A compiled `Source`, run by one thread. Results stay in its own memory, as those between
    the kernels of a model do. Close it after use."""

    def __init__(self, library: Path, program: Program, inputs: Sequence[np.ndarray]):
        """Loads the library, beside which its weights are. Raises TargetError where it cannot run
        on this machine, SmeltError where the weights are missing."""
        self._c = c = ctypes.CDLL(str(library))
        abi.declare(c)
        self._model, self._session = ctypes.c_void_p(), ctypes.c_void_p()
        programs = c.smelt_linked_programs()
        if not programs:
            raise TargetError("this machine cannot run the target's code")
        weights = os.fsencode(library.parent / "weights.bin")
        abi.check(c, c.smelt_open_program(programs, weights, ctypes.byref(self._model)))
        abi.check(c, c.smelt_session_open(self._model, 1, ctypes.byref(self._session)))
        self._arrays = list(inputs)  # alive as long as their addresses are in use
        self._inputs = (abi.Tensor * max(len(inputs), 1))(
            *(_tensor(a, s.type.dtype.name) for a, s in zip(inputs, program.inputs, strict=True)))
        self._outputs = (abi.Tensor * len(program.outputs))()

    def run(self) -> float:
        """Runs once; returns the seconds that this thread worked, whatever else the machine does.
        """
        start = time.thread_time()
        code = self._c.smelt_run(
            self._session, self._inputs, len(self._arrays), self._outputs, len(self._outputs))
        seconds = time.thread_time() - start
        abi.check(self._c, code)
        return seconds

    def results(self) -> list[bytes]:
        """The bytes of the last run's results."""
        return [ctypes.string_at(data, size) for data, size in self._places()]

    def touch(self) -> None:
        """Writes where the last run's results are, as earlier users of an arena do."""
        for data, size in self._places():
            ctypes.memset(data, 0, size)

    def _places(self) -> Iterator[tuple[int, int]]:
        """Address and bytes of each result."""
        for tensor in self._outputs:
            shape = [tensor.shape[k] for k in range(tensor.rank)]
            size = abi.numpy_dtype(abi.DTYPE_NAMES[tensor.dtype]).itemsize
            if tensor.data:
                yield tensor.data, int(np.prod(shape, dtype=int)) * size

    def close(self) -> None:
        """Frees the program and unloads its library."""
        self._c.smelt_session_close(self._session)
        self._c.smelt_close(self._model)
        try:
            from _ctypes import dlclose  # not on Windows
        except ImportError:
            return
        dlclose(self._c._handle)


def _tensor(array: np.ndarray, dtype: str) -> abi.Tensor:
    shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
    return abi.Tensor(array.ctypes.data, shape, abi.DTYPES[dtype], array.ndim)


def inputs_of(program: Program) -> list[np.ndarray]:
    """Contents for a program's inputs, whose sizes are known."""
    return [random_contents(s.type.dtype.numpy, [evaluate(d, {}) for d in s.type.shape])
            for s in program.inputs]
