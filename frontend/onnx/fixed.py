"""Changes to a model before import: inputs that are always the same become constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from ...errors import UsageError


def with_fixed(proto: ModelProto, fixed: Mapping[str, np.ndarray]) -> ModelProto:
    """A copy of the model in which the inputs named in `fixed` are constants.

    Raises UsageError when there is no such input or the array is not of its type and shape.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    inputs = {i.name: i for i in graph.input}
    for name, value in fixed.items():
        if name not in inputs:
            known = ", ".join(map(repr, inputs)) or "none"
            raise UsageError(f"fixed: the model has no input {name!r}; it has {known}")
        array = np.asarray(value)
        declared = inputs[name].type.tensor_type
        try:
            tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        except (NotImplementedError, TypeError, ValueError, KeyError) as error:
            raise UsageError(f"fixed: input {name!r} cannot be {array.dtype}: {error}") from None
        if tensor.data_type != declared.elem_type:
            kind = helper.tensor_dtype_to_np_dtype(declared.elem_type)
            raise UsageError(f"fixed: input {name!r} is {kind}, not {array.dtype}")
        if declared.HasField("shape"):
            sizes = [d.dim_value if d.HasField("dim_value") else None for d in declared.shape.dim]
            if len(sizes) != array.ndim or any(
                    n is not None and n != m for n, m in zip(sizes, array.shape)):
                raise UsageError(f"fixed: input {name!r} has shape {sizes}, not "
                                 f"{list(array.shape)}")
        graph.input.remove(inputs[name])
        for default in [t for t in graph.initializer if t.name == name]:
            graph.initializer.remove(default)
        graph.initializer.append(tensor)
    return copy


def locations(data: bytes) -> list[str]:
    """The files of external data that a model's bytes name, sorted; none if it is no model."""
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:  # protobuf's DecodeError, which onnx does not export
        return []
    found = set()
    for tensor in _tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            found.update(e.value for e in tensor.external_data if e.key == "location")
    return sorted(found)


def _tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model, those in attributes, regions and functions included."""
    graphs: list[GraphProto] = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from (*attribute.tensors, attribute.t)
            graphs.extend(attribute.graphs)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
