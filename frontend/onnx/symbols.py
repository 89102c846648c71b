"""Names of sizes: dimension names of the model mapped to identifiers that the compiler makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ValueInfoProto

from ...errors import ModelError, UsageError
from ...ir.expr import size
from ...ir.graph.core import Dim, Graph, TensorType
from .tensors import element_type

Shapes = Mapping[str, Sequence[int | str]]


class SizeNames:
    """Gives each dimension name of the model a size `n`, `n2`, ... of the graph."""

    def __init__(self, graph: Graph, dims: Mapping[str, int]):
        self.graph = graph
        self.fixed = dict(dims)
        for name, number in self.fixed.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise UsageError(f"dims: size {shown(name)} must be a whole number of 0 or more, "
                                 f"not {number!r}")
        self.used: set[str] = set()
        self.overridden = False
        self._by_name: dict[str, Dim] = {}
        self._count = 0

    def named(self, name: str) -> Dim:
        """The dimension called `name` in the model."""
        if name in self.fixed:
            self.used.add(name)
            return self.fixed[name]
        if name not in self._by_name:
            self._by_name[name] = self._new(name)
        return self._by_name[name]

    def unnamed(self) -> Dim:
        return self._new("")

    def _new(self, origin: str) -> Dim:
        self._count += 1
        name = "n" if self._count == 1 else f"n{self._count}"
        self.graph.symbols[name] = (0, None)
        self.graph.symbols_origin[name] = origin
        return size(name)

    def input_type(self, info: ValueInfoProto, shape: Sequence[int | str] | None) -> TensorType:
        """The type of graph input `info`; `shape` overrides its dimensions."""
        what = f"input {shown(info.name)}"
        kind = info.type.WhichOneof("value")
        if kind != "tensor_type":
            raise ModelError(f"{what} is {article(kind)}: only dense tensors are supported as "
                             "inputs and outputs")
        tensor = info.type.tensor_type
        dtype = element_type(tensor.elem_type, what)
        declared = list(tensor.shape.dim) if tensor.HasField("shape") else None
        if shape is not None:
            self.overridden = self.overridden or declared is not None
            return TensorType(dtype, self._override(what, shape, declared))
        if declared is not None and len(declared) > 64:
            raise ModelError(f"{what} has {len(declared)} dimensions; 64 is the most")
        if declared is None:
            raise ModelError(f"{what} has an unknown rank; state its shape with "
                             f"`shapes={{{shown(info.name)}: [...]}}`")
        return TensorType(dtype, tuple(self._declared(d, what) for d in declared))

    def _declared(self, dim, what: str) -> Dim:
        kind = dim.WhichOneof("value")
        if kind == "dim_value":
            if dim.dim_value < 0:
                raise ModelError(f"{what} has a negative size, {dim.dim_value}")
            return int(dim.dim_value)
        if kind == "dim_param" and not isinstance(dim.dim_param, str):
            raise ModelError(f"{what} has a size whose name is no valid UTF-8")
        if kind == "dim_param" and dim.dim_param:
            return self.named(dim.dim_param)
        return self.unnamed()

    def _override(self, what: str, shape: Sequence[int | str], declared) -> tuple[Dim, ...]:
        if isinstance(shape, str) or (declared is not None and len(shape) != len(declared)):
            raise UsageError(f"shapes: {what} has {len(declared or ())} dimensions, "
                             f"not {shape!r}")
        result: list[Dim] = []
        for d in shape:
            if isinstance(d, str) and d:
                result.append(self.named(d))
            elif isinstance(d, int) and not isinstance(d, bool) and d >= 0:
                result.append(d)
            else:
                raise UsageError(f"shapes: {what} cannot have size {d!r}; use a whole number or "
                                 "a name")
        return tuple(result)


def article(kind: str | None) -> str:
    return {None: "of no type", "sequence_type": "a sequence", "optional_type": "an optional",
            "sparse_tensor_type": "a sparse tensor", "map_type": "a map"}.get(kind, f"a {kind}")


def shown(text: str) -> str:
    """A name of the model in a message, shortened."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def sentence(error: BaseException) -> str:
    """The first line of an exception's text."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
