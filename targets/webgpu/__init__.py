"""The WebGPU target: WGSL shaders and a plan that a runtime carries out."""

from ..base import register
from .target import make

register("webgpu", make)
