"""AttributeProto to Python values, checked against the operator's schema where onnx has one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
from onnx import AttributeProto

from ...errors import ModelError

_FIELDS = {
    AttributeProto.FLOAT: "f", AttributeProto.INT: "i", AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t", AttributeProto.GRAPH: "g", AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor", AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints", AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors", AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors", AttributeProto.TYPE_PROTOS: "type_protos",
}


@dataclass(frozen=True)
class Signature:
    """What onnx's schema says of an operator version: operand counts and attributes.

    `attributes` maps a name to (type, required); `variadic` output counts are unbounded.
    """

    schema: Any
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    attributes: Mapping[str, tuple[int, bool]]
    deprecated: bool


@cache
def signature(domain: str, name: str, opset: int) -> Signature | None:
    """The signature of an operator at an opset version; None when onnx does not know it."""
    try:
        schema: Any = onnx.defs.get_schema(name, opset, domain)
    except onnx.defs.SchemaError:
        return None
    attributes = {k: (int(a.type.value), a.required) for k, a in schema.attributes.items()}
    return Signature(schema, (schema.min_input, schema.max_input),
                     (schema.min_output, schema.max_output), attributes, schema.deprecated)


def resolve(protos: Iterable[AttributeProto], environment: Mapping[str, AttributeProto] | None,
            what: str) -> dict[str, AttributeProto]:
    """Attributes by name. References to attributes of the enclosing function are followed
    through `environment` (absent there: the attribute is absent)."""
    found: dict[str, AttributeProto] = {}
    for proto in protos:
        name = proto.name
        if name in found:
            raise ModelError(f"{what}: attribute {name!r} is given twice")
        if proto.ref_attr_name:
            if environment is None:
                raise ModelError(f"{what}: attribute {name!r} refers to a function's attribute "
                                 "outside of a function")
            outer = environment.get(proto.ref_attr_name)
            if outer is None:
                continue
            proto = outer
        found[name] = proto
    return found


def check(found: Mapping[str, AttributeProto], known: Signature, what: str) -> None:
    """Raises ModelError on unknown, missing and wrongly typed attributes."""
    for name, proto in found.items():
        if name not in known.attributes:
            raise ModelError(f"{what}: there is no attribute {_shown(name)}")
        wanted = known.attributes[name][0]
        if proto.type != wanted:
            raise ModelError(f"{what}: attribute {name!r} must be {_type_name(wanted)}, "
                             f"found {_type_name(proto.type)}")
    for name, (_, required) in known.attributes.items():
        if required and name not in found:
            raise ModelError(f"{what}: attribute {name!r} is missing")


def value(proto: AttributeProto, what: str, tensor: Callable, sparse: Callable) -> Any:
    """The Python value: numbers, str, tuples of them, arrays by `tensor` and `sparse`,
    GraphProto and TypeProto as they are."""
    field = _FIELDS.get(proto.type)
    if field is None:
        raise ModelError(f"{what}: attribute {_shown(proto.name)} has no type")
    item = getattr(proto, field)
    if field == "s":
        return item.decode("utf-8", "replace")
    if field == "t":
        return tensor(item)
    if field == "sparse_tensor":
        return sparse(item)
    if field in ("floats", "ints"):
        return tuple(item)
    if field == "strings":
        return tuple(s.decode("utf-8", "replace") for s in item)
    if field == "tensors":
        return tuple(tensor(t) for t in item)
    if field == "sparse_tensors":
        return tuple(sparse(t) for t in item)
    if field in ("graphs", "type_protos"):
        return tuple(item)
    return item


def _type_name(number: int) -> str:
    try:
        return AttributeProto.AttributeType.Name(number)
    except ValueError:
        return f"type {number}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
