"""The textual form of graphs: `parse_graph(print_graph(g))` is the same graph.

    graph main(%0 "x": f32[N, 3], %1: i64[2]) sizes {N: 1..64 "batch", M: 0..} {
      %2: f32[3] = constant {value = [1.0, 2.0, 3.0]}
      %3 "sum": f32[N, 3] = add(%0, %2) from "node 'a' (Add)"
      %4: f32[N, 3], %5: i64[N, 3] = topk(%3) {k = 3}
      bind(%1) {symbols = (d1, d2)}
      %6: f32[N, 3] = fused(%3) {kind = "elementwise"} region fused(%7: f32[N, 3]) {
        %8: f32[N, 3] = relu(%7)
        return %8
      }
      return %6 as "y"
    }

An absent input is `_`. Attributes that have their default value are left out. Attribute values:
integers, floats (with point or exponent), true, false, none, "text", a dtype, an expression over
sizes (`i64(5)` for a constant one), tuples (a, b), lists [a, b]. The array of a constant is a
number, a flat list, `splat` number, or `base64 "..."` of its bytes in little-endian order.
`from` gives the node's origin, `as` the name of an output. Values are numbered in order.
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Any

import numpy as np

from ...errors import ModelError
from .. import dtype as dt
from ..dtype import DType
from ..expr import Const, Expr, Var, simplify_dim
from ..text import Reader, print_const, print_expr, print_name
from .core import Graph, Node, TensorType, Value
from .definition import lookup

_INLINE = 16
"""Constants of more elements are printed as base64."""


# Printing -----------------------------------------------------------------------------------------


def print_graph(graph: Graph, elide: int = 0) -> str:
    """The text of a graph. With `elide`, constants of more elements print as `elided`, which is
    for people: it does not parse back."""
    return _Printer(elide).graph("graph", graph, "")


class _Printer:
    def __init__(self, elide: int):
        self.elide = elide
        self.names: dict[Value, str] = {}

    def define(self, value: Value) -> str:
        self.names[value] = f"%{len(self.names)}"
        return self.names[value] + (f" {json.dumps(value.name)}" if value.name else "")

    def use(self, value: Value | None) -> str:
        return "_" if value is None else self.names.get(value, "%undefined")

    def graph(self, word: str, graph: Graph, indent: str) -> str:
        given = ", ".join(f"{self.define(v)}: {print_type(v.type)}" for v in graph.inputs)
        lines = [f"{word} {print_name(graph.name)}({given}){self.sizes(graph)}"
                 f"{self.conditions(graph)} {{"]
        inner = indent + "  "
        lines += [inner + self.node(n, inner) for n in graph.ordered()]
        results = [self.use(v) for v in graph.outputs]
        for k, name in enumerate(graph.output_names[:len(results)]):
            results[k] += f" as {json.dumps(name)}"
        lines.append(f"{inner}return {', '.join(results)}".rstrip())
        return "\n".join([*lines, indent + "}"])

    def sizes(self, graph: Graph) -> str:
        if not graph.symbols and not graph.symbols_origin:
            return ""
        items = []
        for name in dict.fromkeys([*graph.symbols, *graph.symbols_origin]):
            item = print_name(name)
            if name in graph.symbols:
                low, high = graph.symbols[name]
                item += f": {low}.." + ("" if high is None else str(high))
            if name in graph.symbols_origin:
                item += f" {json.dumps(graph.symbols_origin[name])}"
            items.append(item)
        return f" sizes {{{', '.join(items)}}}"

    def conditions(self, graph: Graph) -> str:
        return f" where {', '.join(map(print_expr, graph.conditions))}" if graph.conditions else ""

    def node(self, node: Node, indent: str) -> str:
        operands = ", ".join(self.use(v) for v in node.inputs)
        line = node.op + (f"({operands})" if node.inputs or node.op != "constant" else "")
        defaults = lookup(node.op).attrs
        attributes = [f"{k} = {self.attribute(node, k, v)}" for k, v in node.attrs.items()
                      if k not in defaults or not _identical(v, defaults[k])]
        if attributes:
            line += f" {{{', '.join(attributes)}}}"
        if node.origin:
            line += f" from {json.dumps(node.origin)}"
        results = ", ".join(f"{self.define(v)}: {print_type(v.type)}" for v in node.outputs)
        for region in node.regions:
            line += " " + self.graph("region", region, indent)
        return f"{results} = {line}" if results else line

    def attribute(self, node: Node, key: str, value: Any) -> str:
        if node.op == "constant" and key == "value":
            return print_array(value, self.elide)
        return print_attribute(value)


def print_type(type: TensorType) -> str:
    """As in `f32[N, 64]`."""
    return f"{type.dtype}[{', '.join(map(print_expr, type.shape))}]"


def print_attribute(value: Any) -> str:
    """The text of an attribute's value, which keeps its type."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, DType):
        return value.name
    if isinstance(value, Const):
        text = print_const(value)
        return f"i64({text})" if value.dtype is dt.i64 else text
    if isinstance(value, Var):
        return print_name(value.name, reserved=dt.ALL)
    if isinstance(value, Expr):
        return print_expr(value)
    if isinstance(value, (tuple, list)):
        items = ", ".join(map(print_attribute, value))
        if isinstance(value, list):
            return f"[{items}]"
        return f"({items},)" if len(value) == 1 else f"({items})"
    raise TypeError(f"an attribute cannot be a {type(value).__name__}")


def _identical(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_identical, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return a is b or (not isinstance(a, Expr) and a == b)


def print_array(array: np.ndarray, elide: int = 0) -> str:
    """The elements of a constant; dtype and shape stand in its type."""
    if elide and array.size > elide:
        return "elided"
    if array.size <= _INLINE or _is_splat(array):
        splat = array.size > 1 and _is_splat(array)
        flat = array.reshape(-1)[:1] if splat and array.size else array.reshape(-1)
        texts = [_element(x) for x in flat]
        if "" not in texts:
            if splat:
                return f"splat {texts[0]}"
            return texts[0] if not array.shape else f"[{', '.join(texts)}]"
    data = np.ascontiguousarray(array)
    if data.dtype.byteorder == ">":
        data = data.astype(data.dtype.newbyteorder("<"))
    return f'base64 "{base64.b64encode(data.tobytes()).decode()}"'


def _is_splat(array: np.ndarray) -> bool:
    if not array.size or (array.size > 1 << 16 and any(
            s for s, n in zip(array.strides, array.shape, strict=True) if n > 1)):
        return False
    if not any(s for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        return True
    flat = array.reshape(-1)
    return len({x.tobytes() for x in flat}) == 1


def _element(x: Any) -> str:
    """A number's text that reads back to the same bits; "" when there is none (NaN)."""
    if x.dtype == np.bool_:
        return "true" if x else "false"
    if dt.from_numpy(x).is_integer:
        return str(int(x))
    value = float(x)
    if math.isnan(value):
        return ""
    short = str(x)
    exact = re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", short) is not None and \
        np.array(float(short), np.float64).astype(x.dtype).tobytes() == x.tobytes()
    return short if exact and re.search(r"[.e]", short) else repr(value)


# Parsing ------------------------------------------------------------------------------------------


def parse_graph(text: str) -> Graph:
    """Reads a graph. Value names after `%` may be any word. Types are inferred again, and those
    written must agree. Raises ModelError with line and column."""
    reader = Reader(text)
    reader.expect("graph")
    graph = Graph()
    _Parser(reader).graph(graph, {})
    if reader.peek.kind != "end":
        raise reader.error("expected the end")
    return graph


class _Literal:
    """The array of a constant before its type is known."""

    def __init__(self, kind: str, items: list | str):
        self.kind = kind
        self.items = items

    def array(self, type: TensorType) -> np.ndarray:
        numpy = type.dtype.numpy
        if not type.is_static:
            raise ValueError("a constant has a fixed shape")
        shape = [int(d) for d in type.shape]  # type: ignore[arg-type]
        if self.kind == "base64":
            data = base64.b64decode(self.items)  # type: ignore[arg-type]
            return np.frombuffer(data, numpy.newbyteorder("<")).astype(numpy).reshape(shape)
        flat = np.empty(len(self.items), numpy)
        for k, x in enumerate(self.items):
            if isinstance(x, float) and not type.dtype.is_float:
                raise ValueError(f"{x} is no {type.dtype}")
            flat[k] = np.array(x, np.float64).astype(numpy) if isinstance(x, float) else x
        if self.kind == "splat":
            return np.broadcast_to(flat[0], shape)
        return flat.reshape(shape)


class _Parser:
    def __init__(self, reader: Reader):
        self.r = reader
        self.fresh = 0

    def graph(self, graph: Graph, outer: dict[str, Value]) -> None:
        """A graph from its name on."""
        r = self.r
        names = dict(outer)
        graph.name = r.name()
        r.expect("(")
        while not r.accept(")"):
            label, name = self.label()
            r.expect(":")
            self.bind(names, label, graph.add_input(name, self.type()))
            if not r.accept(","):
                r.expect(")")
                break
        if r.accept("sizes"):
            self.sizes(graph)
        if r.accept("where"):
            graph.require(r.expr())
            while r.accept(","):
                graph.require(r.expr())
        r.expect("{")
        while not r.accept("return"):
            self.node(graph, names)
        while r.peek.kind == "value":
            graph.outputs.append(self.value(names))
            if r.accept("as"):
                graph.output_names.append(r.string())
            if not r.accept(","):
                break
        r.expect("}")
        graph.root._fresh = max(graph.root._fresh, self.fresh)

    def label(self) -> tuple[str, str]:
        if self.r.peek.kind != "value":
            raise self.r.error("expected a value such as %0")
        label = self.r.next().text
        return label, self.r.string() if self.r.peek.kind == "string" else ""

    def bind(self, names: dict[str, Value], label: str, value: Value) -> None:
        if label in names:
            self.r.at -= 1
            raise self.r.error(f"{label} is defined twice")
        names[label] = value

    def value(self, names: dict[str, Value]) -> Value:
        if self.r.peek.text not in names:
            raise self.r.error("expected a value that is in scope")
        return names[self.r.next().text]

    def sizes(self, graph: Graph) -> None:
        r = self.r
        r.expect("{")
        while not r.accept("}"):
            name = r.name()
            self.symbol(name)
            if r.accept(":"):
                low, high = self.range()
                graph.symbols[name] = (low, high)
            if r.peek.kind == "string":
                graph.symbols_origin[name] = r.string()
            if not r.accept(","):
                r.expect("}")
                break

    def range(self) -> tuple[int, int | None]:
        # The reader takes "1." of "1..64" for a number.
        r, text = self.r, ""
        while r.peek.kind == "number" or r.peek.text == ".":
            text += r.next().text
        match = re.fullmatch(r"(\d+)\.\.(\d*)", text)
        if match is None:
            raise r.error("expected a range such as 1..64 or 1..")
        return int(match.group(1)), int(match.group(2)) if match.group(2) else None

    def symbol(self, name: str) -> None:
        """Keeps fresh sizes of the graph apart from those in the text."""
        if re.fullmatch(r"d\d+", name):
            self.fresh = max(self.fresh, int(name[1:]))

    def type(self) -> TensorType:
        r = self.r
        if r.peek.text not in dt.ALL:
            raise r.error("expected a dtype")
        dtype = dt.dtype(r.next().text)
        r.expect("[")
        shape: list = []
        while not r.accept("]"):
            shape.append(simplify_dim(r.expr()))
            if not r.accept(","):
                r.expect("]")
                break
        type = TensorType(dtype, tuple(shape))
        for s in type.symbols:
            self.symbol(s.name)
        return type

    def node(self, graph: Graph, names: dict[str, Value]) -> None:
        r = self.r
        start = r.at
        results: list[tuple[str, str, TensorType]] = []
        while r.peek.kind == "value":
            label, name = self.label()
            r.expect(":")
            results.append((label, name, self.type()))
            if not r.accept(","):
                r.expect("=")
                break
        op = r.name()
        operands: list[Value | None] = []
        if r.accept("("):
            while not r.accept(")"):
                operands.append(None if r.accept("_") else self.value(names))
                if not r.accept(","):
                    r.expect(")")
                    break
        attrs = self.attributes() if r.accept("{") else {}
        origin = r.string() if r.accept("from") else ""
        regions: list[Graph] = []
        while r.accept("region"):
            region = Graph(parent=graph)
            self.graph(region, {} if op == "fused" else names)
            regions.append(region)
        node = self.made(graph, op, operands, attrs, regions, origin, results, start)
        for (label, name, _), value in zip(results, node.outputs, strict=True):
            value.name = name
            self.bind(names, label, value)
        for s in node.bound:
            self.symbol(s.name)

    def made(self, graph: Graph, op: str, operands: list[Value | None], attrs: dict,
             regions: list[Graph], origin: str, results: list, start: int) -> Node:
        """The node, with errors that point at its start."""
        end = self.r.at
        self.r.at = start
        try:
            for key, item in attrs.items():
                if isinstance(item, _Literal):
                    if len(results) != 1:
                        raise ValueError("a constant has one output")
                    attrs[key] = item.array(results[0][2])
            node = graph.add_node(op, operands, attrs, regions=regions, origin=origin)
        except (ModelError, ValueError) as e:
            raise self.r.error(str(e)) from None
        written = [t for _, _, t in results]
        inferred = [v.type for v in node.outputs]
        if written != inferred:
            raise self.r.error(f"{op} gives {inferred}, not {written}")
        self.r.at = end
        return node

    def attributes(self) -> dict[str, Any]:
        r = self.r
        found: dict[str, Any] = {}
        while not r.accept("}"):
            key = r.name()
            r.expect("=")
            found[key] = self.literal() if key == "value" else self.attribute()
            if not r.accept(","):
                r.expect("}")
                break
        return found

    def literal(self) -> _Literal:
        r = self.r
        if r.accept("base64"):
            return _Literal("base64", r.string())
        if r.accept("splat"):
            return _Literal("splat", [self.attribute()])
        if r.peek.text == "elided":
            raise r.error("expected the elements of a constant, which were elided when printing")
        value = self.attribute()
        return _Literal("list", value if isinstance(value, list) else [value])

    def attribute(self) -> Any:
        r = self.r
        if r.peek.kind == "string":
            return r.string()
        if r.accept("["):
            return self.items("]")
        if r.peek.text == "(" and self.is_tuple():
            r.expect("(")
            return tuple(self.items(")"))
        words = {"none": None, "true": True, "false": False}
        if r.peek.kind == "name" and r.peek.text in words:
            return words[r.next().text]
        if r.peek.text in dt.ALL and r.ahead() not in ("(", "."):
            return dt.dtype(r.next().text)
        sign = r.peek.text == "-"
        number, after = (r.tokens[r.at + sign], r.ahead(1 + sign))
        if after != ":" and (number.text in ("inf", "nan")
                             or number.kind == "number" and not number.text.isdigit()):
            r.at += 1 + sign
            return -float(number.text) if sign else float(number.text)
        wrapped = r.peek.text == "i64"
        value = r.expr()
        plain = isinstance(value, Const) and value.dtype is dt.i64 and not wrapped
        return simplify_dim(value) if plain else value

    def items(self, close: str) -> list:
        found: list = []
        while not self.r.accept(close):
            found.append(self.attribute())
            if not self.r.accept(","):
                self.r.expect(close)
                break
        return found

    def is_tuple(self) -> bool:
        """Whether the bracket that comes next is empty or holds a comma of its own."""
        depth = 0
        for k in range(self.r.at, len(self.r.tokens)):
            token = self.r.tokens[k]
            if token.kind == "sign":
                depth += (token.text in "([") - (token.text in ")]")
                if token.text == "," and depth == 1:
                    return True
            if depth == 0:
                break
        return self.r.ahead() == ")"
