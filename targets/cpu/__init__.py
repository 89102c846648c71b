"""The CPU target: C compiled for this machine, for named instruction sets, or plain portable C."""

from ..base import register
from .target import make

register("cpu", make)
