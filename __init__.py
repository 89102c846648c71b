"""smelt compiles ONNX models ahead of time into small, self-contained programs.

The names below load on first use, so that `import smelt` is quick and `import smelt.runtime` never
loads the compiler.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import bench, compile, inspect, load, verify
    from .errors import SmeltError
    from .runtime import Module

__version__ = "0.1.0"
__all__ = ["Module", "SmeltError", "__version__", "bench", "compile", "inspect", "load", "verify"]

_HOME = {"bench": ".api", "compile": ".api", "inspect": ".api", "load": ".api", "verify": ".api",
         "Module": ".runtime", "SmeltError": ".errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'smelt' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
