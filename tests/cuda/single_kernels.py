"""One grid kernel as a whole program for the emulated CUDA device."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from smelt.codegen.cuda_host import CudaHostPrinter
from smelt.codegen.host import pack_weights, used_storages
from smelt.ir.graph.core import TensorType
from smelt.ir.kernel.nodes import Block, For, If, Kernel, Stmt, While
from smelt.ir.program import Launch, Program, Storage
from smelt.passes.plan import plan
from smelt.runtime import abi, load
from smelt.runtime.artifact import write_artifact
from smelt.targets.base import BuildOptions, describe_program
from smelt.targets.cpu.target import program_symbol
from smelt.targets.cpu.toolchain import find_compiler
from smelt.targets.cuda.library import build_library, image_name

OPTIONS = BuildOptions(optimize=0)


def program_of(kernel: Kernel) -> Program:
    """A program that runs the kernel: parameters are its inputs and outputs. Sizes are constant."""
    program = Program("one")
    args = []
    first = len(kernel.params) - kernel.outputs
    for k, p in enumerate(kernel.params):
        role, items = ("input", program.inputs) if k < first else ("output", program.outputs)
        items.append(Storage(f"{role}{len(items)}", TensorType(p.dtype, p.shape), role, len(items)))
        args.append(items[-1])
    program.steps = [Launch(kernel, tuple(args))]
    return program


def compiled(kernel: Kernel) -> Callable[..., np.ndarray]:
    """A legalised grid kernel as a function from its input arrays to its output."""
    program = program_of(kernel)
    lifetimes = plan(program)
    weights = pack_weights(program, used_storages(program))
    printer = CudaHostPrinter(program, weights, symbol=program_symbol(OPTIONS, 0),
                              architectures="emulated", dtype_numbers=abi.DTYPES,
                              images=[image_name(OPTIONS, "emulated")],
                              lifetimes=[(x.storage, x.first, x.last) for x in lifetimes])
    files = build_library(find_compiler(), printer, {}, OPTIONS)
    files["weights.bin"] = weights.blob()
    folder = tempfile.TemporaryDirectory(prefix="smelt-test-")
    path = Path(folder.name) / "model"
    manifest = {**describe_program(program, "cuda:emulated", OPTIONS), "library": "model.so"}
    write_artifact(path, manifest, files)
    module = load(path)

    def run(*arrays: np.ndarray) -> np.ndarray:
        assert folder  # which goes with the function
        return module(*arrays)

    return run


def rewritten(kernel: Kernel, change: Callable[[Stmt], Stmt | None]) -> Kernel:
    """The kernel with `change` applied to every statement, inner ones first; None drops one."""
    def block(b: Block) -> Block:
        return Block(*(x for s in b.body if (x := one(s)) is not None))

    def one(s: Stmt) -> Stmt | None:
        if isinstance(s, (For, While)):
            s = replace(s, body=block(s.body))
        elif isinstance(s, If):
            s = If(s.condition, block(s.then), block(s.orelse))
        return change(s)

    return replace(kernel, body=block(kernel.body))


def without(kernel: Kernel, kind: type[Stmt], which: int) -> Kernel:
    """The kernel without its statement number `which` of a kind, counted in program order."""
    count = -1

    def change(s: Stmt) -> Stmt | None:
        nonlocal count
        count += isinstance(s, kind)
        return None if isinstance(s, kind) and count == which else s

    return rewritten(kernel, change)


def arrays_for(kernel: Kernel, rng: np.random.Generator) -> Sequence[np.ndarray]:
    """Random f32 arrays for the kernel's inputs."""
    return [rng.standard_normal([int(d) for d in p.shape]).astype(np.float32)
            for p in kernel.params[:len(kernel.params) - kernel.outputs]]
