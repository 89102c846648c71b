"""CUDA: kernels in CUDA C++ with a C library that launches them, on a GPU or emulated on the CPU.
May import ir, passes, codegen and runtime.abi."""

from ..base import register
from .target import make

register("cuda", make)
