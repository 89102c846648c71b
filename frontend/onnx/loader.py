"""`load_model`: reads an ONNX model and gives the graph."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from ...errors import ModelError, SmeltError, UsageError
from ...ir.graph.core import Graph
from . import functions
from .external import ExternalData
from .fixed import with_fixed
from .model import ModelImport
from .symbols import sentence


def load_model(source: str | Path | bytes | ModelProto, *,
               shapes: Mapping[str, Sequence[int | str]] | None = None,
               dims: Mapping[str, int] | None = None,
               fixed: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph of an ONNX model.

    source: a path, the bytes of a model, or a ModelProto. External data is found next to the
    path. `shapes` gives inputs (by name) other dimensions, ints or names of sizes; `dims` fixes
    named sizes; `fixed` turns inputs into constants. Input and output names are kept
    (`Value.name`, `Graph.output_names`); sizes are renamed, `Graph.symbols_origin` has the
    model's names for them.

    Raises ModelError for what is malformed or unsupported, UsageError for a bad argument.
    """
    proto, folder = _read(source)
    if fixed:
        proto = with_fixed(proto, fixed)
    try:
        external = None if folder is None else ExternalData(folder)
        return ModelImport(proto, external, _opsets(proto), shapes or {}, dims or {}).run()
    except SmeltError:
        raise
    except RecursionError as error:
        raise ModelError("the model nests graphs or functions too deeply") from error
    except MemoryError as error:
        raise ModelError("the model needs more memory than there is") from error
    except Exception as error:
        # Protobuf hands out malformed text and absent fields only when they are read, and its
        # exceptions have no base that onnx exports.
        raise ModelError(f"the model is malformed: {sentence(error)}") from error


def _read(source) -> tuple[ModelProto, Path | None]:
    if isinstance(source, ModelProto):
        return source, None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _parse(bytes(source), "the model"), None
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"a model is a path, bytes or a ModelProto, not {type(source).__name__}")
    path = Path(source)
    try:
        if not path.is_file():
            raise ModelError(f"there is no model file at {str(path)!r}")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {str(path)!r}: {sentence(error)}") from error
    return _parse(data, repr(str(path))), path.parent


def _parse(data: bytes, what: str) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, which onnx does not export
        raise ModelError(f"{what} is no ONNX model or is cut off ({len(data)} bytes)") from error
    if not proto.HasField("graph"):
        raise ModelError(f"{what} is no ONNX model: it holds no graph")
    return proto


def _opsets(proto: ModelProto) -> dict[str, int]:
    opsets = functions.known_opsets(proto.opset_import, "the model")
    if not opsets and proto.ir_version < 3:
        opsets[""] = 1
    return opsets
