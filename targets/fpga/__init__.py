"""FPGAs: C++ for high-level synthesis, as a network of layers, and its emulation on the host."""

from ..base import register
from .target import make

register("fpga", make)
