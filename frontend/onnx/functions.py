"""Function bodies: those of the model, and those that onnx defines for its own operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TypeProto,
)

from ...errors import ModelError
from ...ir.graph.core import Value
from .symbols import shown
from .tensors import ELEMENT_TYPES

Key = tuple[str, str, str]

# The newest versions that the importers were written for, or fewer with an older onnx.
NEWEST = {"": min(28, onnx.defs.onnx_opset_version()),
          "ai.onnx.ml": min(5, onnx.defs.onnx_ml_opset_version())}


def local(model: ModelProto) -> dict[Key, FunctionProto]:
    """The functions of a model by (domain, name, overload)."""
    found: dict[Key, FunctionProto] = {}
    for function in model.functions:
        domain = "" if function.domain == "ai.onnx" else function.domain
        key = (domain, function.name, function.overload)
        if key in found:
            raise ModelError(f"function {shown(function.name)} is defined twice")
        found[key] = function
    return found


def opsets(function: FunctionProto) -> dict[str, int]:
    """The opset versions that a function's body is written in."""
    return known_opsets(function.opset_import, f"function {shown(function.name)}")


def known_opsets(entries: Iterable[OperatorSetIdProto], what: str) -> dict[str, int]:
    """Version by domain, "" being ai.onnx; refuses versions that are not known here."""
    found: dict[str, int] = {}
    for entry in entries:
        if not isinstance(entry.domain, str):
            raise ModelError(f"{what} names a domain that is no valid UTF-8")
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        newest = NEWEST.get(domain, 1 << 30)
        if entry.version > newest:
            raise ModelError(f"{what} uses opset {entry.version} of "
                             f"{shown(domain or 'ai.onnx')}, and {newest} is the newest that is "
                             "known; export it with an older opset")
        if entry.version < 1:
            raise ModelError(f"{what} uses opset {entry.version} of "
                             f"{shown(domain or 'ai.onnx')}, which does not exist")
        found[domain] = max(found.get(domain, 0), entry.version)
    return found


def of_schema(schema: Any, node: NodeProto, opset: int, inputs: Sequence[Any],
              attrs: Mapping[str, AttributeProto], origin: str) -> FunctionProto | None:
    """onnx's body of an operator for these operands, or None when it has none."""
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    if versions:
        call = NodeProto()
        call.CopyFrom(node)
        del call.attribute[:]
        for name, proto in attrs.items():
            copy = call.attribute.add()
            copy.CopyFrom(proto)
            copy.name = name
            copy.ref_attr_name = ""
        types = [_type(item).SerializeToString() for item in inputs]
        data = schema.get_context_dependent_function_with_opset_version(
            max(versions), call.SerializeToString(), types)
    else:
        versions = [v for v in schema.function_opset_versions if v <= opset]
        if not versions:
            return None
        data = schema.get_function_with_opset_version(max(versions))
    if not data:
        return None
    body = FunctionProto()
    body.ParseFromString(data)
    return body


def _type(item: Any) -> TypeProto:
    proto = TypeProto()
    if not isinstance(item, Value):
        return proto
    proto.tensor_type.elem_type = ELEMENT_TYPES[item.dtype]
    dims = proto.tensor_type.shape.dim
    for size in item.shape:
        entry = dims.add()
        if isinstance(size, int):
            entry.dim_value = size
    return proto
