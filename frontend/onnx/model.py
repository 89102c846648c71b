"""One model import: scopes of names, nodes one after another, regions and function bodies."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from ...errors import ModelError, UsageError
from ...ir.graph.core import Graph, TensorType, Value
from . import attributes, functions, registry, tensors
from .compile_time import Item, NotTensor, Text, describe
from .external import ExternalData
from .pruning import remove_unused
from .registry import Site
from .symbols import Shapes, SizeNames, article, sentence, shown

MAX_DEPTH = 60  # of functions and graphs within one another
MAX_NODES = 500_000  # of functions expanded; one may call another many times

# Operators that take or give sequences, optionals or text while importing.
TAKES_ANY = {
    "SequenceConstruct", "SequenceEmpty", "SequenceAt", "SequenceInsert", "SequenceErase",
    "SequenceLength", "SequenceMap", "ConcatFromSequence", "SplitToSequence", "Optional",
    "OptionalGetElement", "OptionalHasElement", "If", "Loop", "Identity", "Cast", "Size",
    "Shape",
}


class Scope:
    """The names of one ONNX graph or function body, which builds into `graph`.

    `pending` holds constants that nothing has asked for yet, `absent` the optional inputs that a
    function is called without. A function body has no parent.
    """

    def __init__(self, graph: Graph, opsets: dict[str, int], parent: Scope | None = None,
                 environment: Mapping[str, AttributeProto] | None = None, prefix: str = ""):
        self.graph = graph
        self.opsets = opsets
        self.parent = parent
        self.environment = environment
        self.prefix = prefix
        self.values: dict[str, Item] = {}
        self.pending: dict[str, Callable[[], Item]] = {}
        self.absent: set[str] = set()

    def holds(self, name: str) -> bool:
        return name in self.values or name in self.pending

    def find(self, name: str) -> Item | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            if name in scope.pending:
                scope.values[name] = scope.pending.pop(name)()
                return scope.values[name]
            scope = scope.parent
        return None

    def define(self, name: str, item: Item, what: str) -> None:
        if self.holds(name):
            raise ModelError(f"{what}: the name {shown(name)} is defined twice")
        self.values[name] = item


class ModelImport:
    """The import of one model: importers reach it as `Site.importer`."""

    def __init__(self, model: ModelProto, external: ExternalData | None, opsets: dict[str, int],
                 shapes: Shapes, dims: Mapping[str, int]):
        from . import importers  # noqa: F401  (fills the registry)

        self.model = model
        self.external = external
        self.shapes = dict(shapes)
        self.graph = Graph(importing=True)
        self.names = SizeNames(self.graph, dims)
        self.functions = functions.local(model)
        self.scope = Scope(self.graph, opsets)
        self.depth = 0
        self.count = 0

    # The whole model --------------------------------------------------------------------------

    def run(self) -> Graph:
        proto, scope, graph = self.model.graph, self.scope, self.graph
        initial = {t.name for t in proto.initializer}
        initial |= {s.values.name for s in proto.sparse_initializer}
        for info in proto.input:
            if info.name in initial:
                continue
            if not info.name or not isinstance(info.name, str):
                raise ModelError("a graph input has no name, or one that is no valid UTF-8")
            type = self.names.input_type(info, self.shapes.pop(info.name, None))
            scope.define(info.name, graph.add_input(info.name, type), "graph inputs")
        if self.shapes:
            raise UsageError(f"shapes: the model has no input {shown(next(iter(self.shapes)))}; "
                             f"it has {', '.join(shown(v.name) for v in graph.inputs) or 'none'}")
        unknown = set(self.names.fixed) - self.names.used
        if unknown:
            known = ", ".join(shown(n) for n in self.graph.symbols_origin.values() if n)
            raise UsageError(f"dims: no input has a size named {shown(sorted(unknown)[0])}; "
                             f"named sizes are: {known or 'none'}")
        self._initializers(proto)
        self._nodes(proto.node)
        for info in proto.output:
            value = self.tensor(info.name, "the graph's outputs")
            self._check_output(info, value)
            graph.outputs.append(value)
            graph.output_names.append(info.name)
            if not value.name:
                value.name = info.name
        if not graph.outputs:
            raise ModelError("the graph has no outputs")
        if len(set(graph.output_names)) != len(graph.output_names):
            raise ModelError("two graph outputs have the same name")
        remove_unused(graph)
        graph.importing = False
        return graph

    def _check_output(self, info, value: Value) -> None:
        what = f"output {shown(info.name)}"
        kind = info.type.WhichOneof("value")
        if kind is None:
            return
        if kind != "tensor_type":
            raise ModelError(f"{what} is declared as {article(kind)}: only dense tensors are "
                             "supported as inputs and outputs")
        declared = info.type.tensor_type
        if declared.elem_type:
            dtype = tensors.element_type(declared.elem_type, what)
            if dtype is not value.dtype:
                raise ModelError(f"{what} is declared as {dtype}, but the nodes give {value.type}")
        if not declared.HasField("shape") or self.names.fixed or self.names.overridden:
            return
        dims = declared.shape.dim
        pairs = zip(dims, value.shape, strict=False)
        if len(dims) != value.rank or any(
                d.HasField("dim_value") and isinstance(n, int) and d.dim_value != n
                for d, n in pairs):
            shape = [d.dim_value if d.HasField("dim_value") else shown(d.dim_param) if d.dim_param
                     else "?" for d in dims]
            text = ", ".join(map(str, shape))
            raise ModelError(f"{what} is declared with shape [{text}], but the nodes give "
                             f"{value.type}")

    def _initializers(self, proto: GraphProto) -> None:
        scope = self.scope
        for tensor in proto.initializer:
            self._pending(tensor.name, lambda t=tensor: self._constant(t, scope))
        for sparse in proto.sparse_initializer:
            self._pending(sparse.values.name, lambda s=sparse: scope.graph.constant(
                self.sparse(s, f"initializer {shown(s.values.name)}")))

    def _pending(self, name: str, make: Callable[[], Item]) -> None:
        if not name or not isinstance(name, str):
            raise ModelError("an initializer has no name, or one that is no valid UTF-8")
        if self.scope.holds(name):
            raise ModelError(f"initializers: the name {shown(name)} is defined twice")
        self.scope.pending[name] = make

    def _constant(self, tensor: TensorProto, scope: Scope) -> Item:
        array = self.array(tensor, f"initializer {shown(tensor.name)}")
        return Text(array) if array.dtype == object else scope.graph.constant(array)

    def array(self, tensor: TensorProto, what: str) -> np.ndarray:
        """The array of a TensorProto (object array of str for text)."""
        return tensors.to_array(tensor, what, self.external)

    def sparse(self, sparse, what: str) -> np.ndarray:
        return tensors.from_sparse(sparse, what, self.external)

    # Nodes ------------------------------------------------------------------------------------

    def tensor(self, name: str, what: str) -> Value:
        """The tensor of that name in the current scope."""
        item = self.scope.find(name)
        if item is None:
            raise ModelError(f"{what}: nothing gives the tensor {shown(name)}")
        if not isinstance(item, Value):
            raise ModelError(f"{what}: {shown(name)} is {describe(item)}, which is supported only "
                             "where it folds away at compile time")
        return item

    def _nodes(self, nodes: Sequence[NodeProto]) -> None:
        for node in self._in_order(nodes):
            self._node(node)

    def _in_order(self, nodes: Sequence[NodeProto]) -> Iterable[NodeProto]:
        """The nodes as they are, or sorted when one uses what a later one gives."""
        producer: dict[str, int] = {}
        for k, node in enumerate(nodes):
            _check_text(node)
            for name in node.output:
                if name and producer.setdefault(name, k) != k:
                    raise ModelError(f"{_title(node)}: the name {shown(name)} is defined twice")
        before: list[set[int]] = []
        for node in nodes:
            used = set(node.input)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    used |= _names_used(attribute.g)
                for body in attribute.graphs:
                    used |= _names_used(body)
            before.append({producer[n] for n in used if n in producer})
        if all(all(p < k for p in needed) for k, needed in enumerate(before)):
            return nodes
        users: dict[int, list[int]] = {}
        for k, needed in enumerate(before):
            for p in needed:
                users.setdefault(p, []).append(k)
        ready = [k for k, needed in enumerate(before) if not needed]
        missing = [len(needed) for needed in before]
        order: list[int] = []
        while ready:
            k = heapq.heappop(ready)
            order.append(k)
            for user in users.get(k, ()):
                missing[user] -= 1
                if not missing[user]:
                    heapq.heappush(ready, user)
        if len(order) != len(nodes):
            stuck = next(k for k, count in enumerate(missing) if count)
            raise ModelError(f"{_title(nodes[stuck])}: it depends on its own output; the graph "
                             "has a cycle")
        return [nodes[k] for k in order]

    def _node(self, node: NodeProto) -> None:
        scope = self.scope
        origin = scope.prefix + _title(node)
        self.count += 1
        if self.count > MAX_NODES:
            raise ModelError(f"the model has more than {MAX_NODES} nodes, functions expanded")
        domain = "" if node.domain == "ai.onnx" else node.domain
        attrs = attributes.resolve(node.attribute, scope.environment, origin)
        inputs = [self._operand(name, origin, node.op_type) for name in node.input]
        function = self.functions.get((domain, node.op_type, node.overload))
        if function is not None:
            results: Sequence[Any] = self.call(function, inputs, attrs, origin)
        else:
            results = self._operator(node, domain, inputs, attrs, origin)
        if len(results) < len(node.output):
            raise ModelError(f"{origin}: it has {len(node.output)} outputs, but {node.op_type} "
                             f"gives {len(results)}")
        for name, item in zip(node.output, results, strict=False):
            if not name:
                continue
            if item is None:
                raise ModelError(f"{origin}: output {shown(name)} is not supported")
            scope.define(name, item, origin)

    def _operand(self, name: str, origin: str, op_type: str) -> Any:
        if not name:
            return None
        item = self.scope.find(name)
        if item is None:
            if self._is_absent(name):
                return None
            raise ModelError(f"{origin}: nothing gives the tensor {shown(name)}")
        if isinstance(item, NotTensor) and op_type not in TAKES_ANY and (
                not any(f[1] == op_type for f in self.functions)):
            raise ModelError(f"{origin}: input {shown(name)} is {describe(item)}, which "
                             f"{op_type} cannot take; it is supported only where it folds away "
                             "at compile time")
        return item

    def _is_absent(self, name: str) -> bool:
        scope: Scope | None = self.scope
        while scope is not None:
            if name in scope.absent:
                return True
            scope = scope.parent
        return False

    def _operator(self, node: NodeProto, domain: str, inputs: list, protos: dict,
                  origin: str) -> Sequence[Any]:
        opset = self._version(domain, node.op_type, origin)
        known = attributes.signature(domain, node.op_type, opset)
        found = registry.find(domain, node.op_type, opset)
        if known is not None:
            # Exporters kept writing GroupNormalization 18 and Upsample after their deprecation.
            if known.deprecated and found is None:
                raise ModelError(f"{origin}: {node.op_type} no longer exists in opset {opset}")
            attributes.check(protos, known, origin)
            _check_count(len(inputs), known.inputs, "inputs", origin)
            _check_count(len(node.output), known.outputs, "outputs", origin)
        if found is None:
            return self._expand(node, known, domain, opset, inputs, protos, origin)
        attrs = {name: attributes.value(
            p, origin, lambda t: self.array(t, origin), lambda s: self.sparse(s, origin))
            for name, p in protos.items()}
        site = Site(self.scope.graph, node.op_type, domain, opset, origin, inputs, attrs,
                    len(node.output), self)
        try:
            results = found(site)
        except ModelError:
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError,
                ValueError) as error:
            # An importer met something no valid model has: say which node it was.
            raise ModelError(f"{origin}: cannot import {node.op_type}: "
                             f"{sentence(error)}") from error
        return list(results) if isinstance(results, (list, tuple)) else [results]

    def _version(self, domain: str, op_type: str, origin: str) -> int:
        opset = self.scope.opsets.get(domain)
        if opset is not None:
            return opset
        if domain == "com.microsoft":
            return 1  # optimisers often leave the entry out, and there is one version
        if domain in ("ai.onnx.ml", ""):
            raise ModelError(f"{origin}: the model states no opset version of "
                             f"{domain or 'ai.onnx'}")
        raise ModelError(f"{origin}: operator {shown(op_type)} is of the unknown domain "
                         f"{shown(domain)}")

    # Functions and regions ----------------------------------------------------------------------

    def _expand(self, node: NodeProto, known, domain: str, opset: int, inputs: list,
                protos: dict, origin: str) -> Sequence[Any]:
        """The function body that onnx defines for an operator without importer."""
        body = None if known is None else functions.of_schema(
            known.schema, node, opset, inputs, protos, origin)
        if known is None or body is None:
            where = f"domain {shown(domain)}" if domain else "ai.onnx"
            raise ModelError(f"{origin}: operator {shown(node.op_type)} of {where} (opset "
                             f"{opset}) is " + ("not supported" if known else "unknown"))
        defaults = {n: a.default_value for n, a in known.schema.attributes.items()
                    if a.default_value.name}
        return self.call(body, inputs, {**defaults, **protos}, origin)

    def call(self, function: FunctionProto, inputs: Sequence[Any],
             attrs: Mapping[str, AttributeProto], origin: str) -> list[Any]:
        """The outputs of a function's body, imported in the place of the call."""
        environment = dict(attrs)
        for proto in function.attribute_proto:
            environment.setdefault(proto.name, proto)
        if len(inputs) > len(function.input):
            raise ModelError(f"{origin}: function {shown(function.name)} takes "
                             f"{len(function.input)} inputs, found {len(inputs)}")
        opsets = {**self.scope.opsets, **functions.opsets(function)}
        scope = Scope(self.scope.graph, opsets, None, environment, f"{origin}: ")
        given = [*inputs, *[None] * (len(function.input) - len(inputs))]
        for name, item in zip(function.input, given):
            if item is None:
                scope.absent.add(name)
            else:
                scope.define(name, item, origin)

        def body() -> list[Any]:
            self._nodes(function.node)
            return [scope.find(name) for name in function.output]

        return self._inside(scope, body)

    def body(self, proto: GraphProto, graph: Graph, inputs: Sequence[Item],
             origin: str) -> list[Any]:
        """Imports the nodes of `proto` into `graph` with its inputs bound to `inputs`; gives its
        outputs. Names not found inside are those around the node being imported."""
        if len(proto.input) != len(inputs):
            raise ModelError(f"{origin}: its body takes {len(proto.input)} inputs, and "
                             f"{len(inputs)} are given")
        outer = self.scope
        scope = Scope(graph, outer.opsets, outer, outer.environment, f"{origin}: ")
        for info, item in zip(proto.input, inputs):
            scope.define(info.name, item, origin)

        def build() -> list[Any]:
            self._initializers(proto)
            self._nodes(proto.node)
            results = [scope.find(info.name) for info in proto.output]
            for info, item in zip(proto.output, results):
                if item is None:
                    raise ModelError(f"{origin}: nothing gives the tensor {shown(info.name)}")
            return results

        return self._inside(scope, build)

    def region(self, proto: GraphProto, types: Sequence[TensorType], origin: str) -> Graph:
        """A region with inputs of these types that computes the outputs of `proto`."""
        graph = Graph("region", parent=self.scope.graph)
        inputs = [graph.add_input("", t) for t in types]
        for item in self.body(proto, graph, inputs, origin):
            if not isinstance(item, Value):
                raise ModelError(f"{origin}: its body gives {describe(item)}, which is supported "
                                 "only where it folds away at compile time")
            graph.outputs.append(item)
        return graph

    def _inside(self, scope: Scope, build: Callable[[], list[Any]]) -> list[Any]:
        outer, self.scope = self.scope, scope
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ModelError(f"{scope.prefix}graphs and functions nest deeper than {MAX_DEPTH}; "
                             "does a function call itself?")
        try:
            return build()
        finally:
            self.scope = outer
            self.depth -= 1


def _check_count(count: int, bounds: tuple[int, int], noun: str, origin: str) -> None:
    low, high = bounds
    if not low <= count <= high:
        wanted = str(low) if low == high else f"{low} to {high}" if high < 1 << 30 else (
            f"{low} or more")
        raise ModelError(f"{origin}: it takes {wanted} {noun}, found {count}")


def _check_text(node: NodeProto) -> None:
    # Protobuf gives text that is not UTF-8 as bytes.
    for name in (node.op_type, node.domain, node.name, node.overload, *node.input, *node.output,
                 *(a.name for a in node.attribute), *(a.ref_attr_name for a in node.attribute)):
        if not isinstance(name, str):
            raise ModelError(f"the model is malformed: {name!r:.80} is no valid UTF-8")


def _title(node: NodeProto) -> str:
    """How messages name a node."""
    name = node.name or next((n for n in node.output if n), "")
    return f"node {shown(name)} ({shown(node.op_type)[1:-1]})"


def _names_used(body: GraphProto) -> set[str]:
    """Names that a graph's nodes and outputs read, its own included."""
    used: set[str] = set()
    stack = [body]
    while stack:
        graph = stack.pop()
        used.update(info.name for info in graph.output)
        for node in graph.node:
            used.update(node.input)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)
    return used
