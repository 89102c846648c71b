"""PyTorch programs in: exported to ONNX by torch itself. Needs the extra `torch`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import ModelError, UsageError


def export(program: Any, example: Any = ()) -> Any:
    """The ONNX model (ModelProto) of a torch program.

    program: an nn.Module, which is traced with `example` (one argument, a tuple of arguments, or
    a dict of keyword arguments; numpy arrays count as tensors), a torch.export.ExportedProgram, or
    the path of a .pt2 file that torch.export.save wrote. Sizes are fixed unless the program was
    exported with dynamic shapes. Raises ModelError when torch cannot export it.
    """
    try:
        torch: Any = import_module("torch")
        import_module("onnxscript")  # torch's exporter needs it
    except ImportError as error:
        raise UsageError(f"torch programs need {error.name or 'torch'}: "
                         f"pip install 'smelt[torch]'") from None
    if isinstance(program, (str, os.PathLike)):
        path = Path(program)
        if not path.is_file():
            raise ModelError(f"there is no model file at {str(path)!r}")
        try:
            program = torch.export.load(path)
        except Exception as error:
            raise ModelError(f"{str(path)!r} cannot be loaded as a torch program: "
                             f"{_sentence(error)}") from error
    args, kwargs = _arguments(torch, example)
    if isinstance(program, torch.nn.Module) and not args and not kwargs:
        raise UsageError("a torch module needs example arguments: pass (module, arguments) as the "
                         "source")
    if isinstance(program, torch.nn.Module) and program.training:
        raise UsageError("the torch module is in training mode: call its eval() first")
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(program, args, kwargs=kwargs, dynamo=True, verbose=False)
    except Exception as error:
        raise ModelError(f"torch cannot export the program to ONNX: {_sentence(error)}") from error
    finally:
        log.setLevel(level)
    assert exported is not None
    return exported.model_proto


def _arguments(torch: Any, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def tensor(value: Any) -> Any:
        plain = hasattr(value, "__array__") and not isinstance(value, torch.Tensor)
        return torch.as_tensor(value) if plain else value

    if isinstance(example, Mapping):
        return (), {name: tensor(value) for name, value in example.items()}
    if not isinstance(example, (tuple, list)):
        example = (example,)
    return tuple(tensor(value) for value in example), {}


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
