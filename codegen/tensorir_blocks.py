"""Prints a group of operators as block-structured TensorIR: what TVM's MetaSchedule tunes.

Every operator, and every reduction within one, is a block over its own index space, as
`te.create_prim_func` makes them (Feng et al. 2023, "TensorIR"); nothing is scheduled. Operations
have TVM's meaning, as in TVM's own front ends: where minima and maxima of NaN, integer division by
zero and casts out of range matter, results may differ from ours. Nothing here needs TVM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import ModelError
from ..ir import dtype as dt
from ..ir.dtype import DType
from ..ir.expr import (
    Cast,
    Const,
    Expr,
    Op,
    Reduce,
    Var,
    evaluate,
    free_vars,
    identity_of,
    substitute,
    var,
    walk,
    wrap,
)
from ..ir.graph.clone import clone_node
from ..ir.graph.core import Graph, Node, Value
from ..ir.graph.definition import OpContext, lookup
from ..ir.kernel.nodes import Buffer, Load, load
from .tensorir_text import Inexpressible, literal, value_type

_BINARY = {"add": "({} + {})", "sub": "({} - {})", "mul": "({} * {})", "min": "T.min({}, {})",
           "max": "T.max({}, {})", "eq": "T.EQ({}, {})", "ne": "T.NE({}, {})",
           "lt": "({} < {})", "le": "({} <= {})", "gt": "({} > {})", "ge": "({} >= {})",
           "fma": "({} * {} + {})"}
_BOOLEAN = {"and": "T.And({}, {})", "or": "T.Or({}, {})", "not": "T.Not({})"}
_INTEGER = {"div": "T.truncdiv({}, {})", "floordiv": "T.floordiv({}, {})",
            "mod": "T.floormod({}, {})", "rem": "T.truncmod({}, {})",
            "and": "T.bitwise_and({}, {})", "or": "T.bitwise_or({}, {})",
            "xor": "T.bitwise_xor({}, {})"}
_FLOAT = {"div": "T.Div({}, {})", "pow": "T.pow({}, {})", "rsqrt": "T.rsqrt({})",
          "round": "T.nearbyint({})", "isnan": "T.isnan({})", "isinf": "T.isinf({})",
          **{name: f"T.{name}({{}})" for name in (
              "sqrt", "exp", "exp2", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
              "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "floor", "ceil", "trunc")}}
_COMBINE = {"sum": "{} + {}", "prod": "{} * {}", "max": "T.max({}, {})", "min": "T.min({}, {})",
            "any": "T.Or({}, {})", "all": "T.And({}, {})"}


@dataclass
class BlockModule:
    """A module of one function `name`, and the values that its parameters are, in order."""

    name: str
    text: str
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    @property
    def free_layouts(self) -> list[int]:
        """The parameters whose elements may be reordered ahead of time: constants of some rank."""
        return [k for k, v in enumerate(self.inputs) if v.constant is not None and v.rank > 1]


def print_blocks(graph: Graph, name: str = "group") -> BlockModule:
    """The module of a graph without open sizes, whose `fused` regions are opened.

    Inputs and constants of more than one element are parameters, then the outputs. Raises
    Inexpressible for operators without a loop form, open sizes, and types that TVM lacks here.
    """
    try:
        return _Printer(_opened(graph)).module(name)
    except ModelError as error:
        raise Inexpressible(f"the group has no TensorIR blocks: {error}") from error


# Preparing ---------------------------------------------------------------------------------------


def _opened(graph: Graph) -> Graph:
    """A copy without `fused` nodes, in which convolutions read padded operands: a block whose
    products are not under a condition is one that TVM can turn into vectors."""
    copy = Graph(graph.name)
    mapping: dict[Value, Value] = {}
    for value in graph.inputs:
        twin = mapping[value] = copy.add_input(value.name, value.type)
        twin.content = value.content
    for node in graph.ordered():
        if node.op != "fused":
            _copied(node, copy, mapping)
            continue
        region: Graph = node.regions[0]
        for inner, outer in zip(region.inputs, node.inputs, strict=True):
            assert outer is not None
            mapping[inner] = mapping[outer]
        for inner in region.ordered():
            _copied(inner, copy, mapping)
        for value, inner in zip(node.outputs, region.outputs, strict=True):
            mapping[value] = mapping[inner]
    copy.outputs = [mapping[v] for v in graph.outputs]
    return copy


def _copied(node: Node, copy: Graph, mapping: dict[Value, Value]) -> None:
    if node.op not in ("conv", "conv_last") or node.attrs["fill"] or not any(
            wrap(p) is not wrap(0) for p in (*node.attrs["low"], *node.attrs["high"])):
        clone_node(node, copy, mapping)
        return
    x, w, *rest = node.inputs
    assert x is not None and w is not None
    first = 1 if node.op == "conv_last" else 2
    spatial = len(node.attrs["low"])

    def along(amounts: Sequence) -> tuple:
        return (*(0,) * first, *amounts, *(0,) * (x.rank - first - spatial))

    padded = copy.add("pad", [mapping.get(x, x)], {
        "low": along(node.attrs["low"]), "high": along(node.attrs["high"])})
    others = [None if v is None else mapping.get(v, v) for v in (w, *rest)]
    none = (0,) * spatial
    mapping[node.output] = copy.add(node.op, [padded, *others],
                                    {**node.attrs, "low": none, "high": none})


# Printing ----------------------------------------------------------------------------------------


class _Printer:
    """Writes the blocks of a graph whose nodes all have bodies."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.lines: list[str] = []
        self.buffers: dict[Value, Buffer] = {}
        self.count = 0

    def module(self, name: str) -> BlockModule:
        nodes = self.graph.ordered()
        for value in [*self.graph.inputs, *(v for n in nodes for v in n.outputs)]:
            if any(not isinstance(d, int) for d in value.shape):
                raise Inexpressible(f"blocks of an open size ({value!r})")
            if 0 in value.shape:
                raise Inexpressible(f"blocks over no elements ({value!r})")
        used = {v for n in nodes for v in n.inputs if v is not None}
        inputs = [v for v in (*self.graph.inputs, *(n.output for n in nodes if n.op == "constant"))
                  if v in used and _literal_of(v) is None]
        for value in inputs:
            self.buffers[value] = self.buffer(value.dtype, memory_shape(value), "x")
        for value in self.graph.outputs:
            if value in self.buffers:
                raise Inexpressible("an output that is an input or given twice")
            self.buffers[value] = self.buffer(value.dtype, memory_shape(value), "y")
        params = [self.buffers[v] for v in (*inputs, *self.graph.outputs)]
        for node in nodes:
            if node.op != "constant":
                for value in node.outputs:
                    self.operator(value)
        header = ["@I.ir_module", "class Module:", "    @T.prim_func(s_tir=True)",
                  f"    def {name}({', '.join(f'{b.name}: {_type(b)}' for b in params)}):",
                  f"        T.func_attr({{\"global_symbol\": \"{name}\", \"tirx.noalias\": True}})"]
        text = "\n".join([*header, *(f"        {line}" for line in self.lines)]) + "\n"
        return BlockModule(name, text, inputs, list(self.graph.outputs))

    def buffer(self, dtype: DType, shape: Sequence[int], prefix: str) -> Buffer:
        self.count += 1
        _check_type(dtype)
        return Buffer(f"{prefix}{self.count}", dtype, tuple(shape) or (1,))

    def local(self, dtype: DType, shape: Sequence[int]) -> Buffer:
        made = self.buffer(dtype, shape, "t")
        self.lines.append(f"{made.name} = T.sblock_alloc_buffer({_shape(made)}, "
                          f"\"{value_type(dtype)}\")")
        return made

    def operator(self, value: Value) -> None:
        """The blocks that compute one output of an operator."""
        node = value.node
        assert node is not None
        body = lookup(node.op).body_of(value.index)
        if body is None:
            raise Inexpressible(f"operator {node.op} has no loop form")
        if value not in self.buffers:
            self.buffers[value] = self.local(value.dtype, memory_shape(value))
        index = tuple(var(f"i{k}", extent=d) for k, d in enumerate(value.shape))

        def read(i: int, at: tuple[Expr, ...]) -> Expr:
            source = node.inputs[i]
            assert source is not None
            known = _literal_of(source)
            if known is not None:
                return known
            if len(at) == len(index):
                # TVM inlines a block into readers that name its axes, those of one step as well.
                at = tuple(i if d == n == 1 else x for x, i, d, n in zip(
                    at, index, source.shape, value.shape, strict=True))
            return load(self.buffers[source], at or (wrap(0),))

        whole = self.reduced(body(OpContext(node, None, read), index), value, index)
        if whole is not None:
            self.block(self.buffers[value], index, whole)

    def reduced(self, body: Expr, value: Value, index: tuple[Var, ...]) -> Expr | None:
        """The body with a load in place of each reduction, which gets a block of its own; None
        when the body is a reduction itself, which then computes the value."""
        known: dict[Expr, Expr] = {}
        for e in walk(body):
            if not isinstance(e, Reduce):
                continue
            inner = substitute(e.body, dict(known))
            if e is body:
                self.block(self.buffers[value], index, inner, e)
                return None
            around = [v for v in free_vars(inner) if v not in e.vars]
            if any(v.extent is None for v in around):
                raise Inexpressible("a reduction that depends on an open size")
            partial = self.local(e.dtype, [evaluate(v.extent, {}) for v in around])
            self.block(partial, around, inner, e)
            known[e] = load(partial, around or (wrap(0),))
        return substitute(body, dict(known))

    def block(self, out: Buffer, index: Sequence[Var], value: Expr, over: Reduce | None = None,
              ) -> None:
        """One block: `value` to every element of `out`, combined over the variables of a
        reduction."""
        axes = [(v, "spatial") for v in index] + [
            (v, "reduce") for v in (over.vars if over is not None else ())]
        names = {v: f"v{k}" for k, (v, _) in enumerate(axes)}
        extents = [evaluate(v.extent, {}) for v, _ in axes]
        loops = [f"l{k}" for k in range(len(axes))]
        if min(extents, default=1) < 1:
            raise Inexpressible("blocks over no elements")
        put, depth = self.lines.append, ""
        if axes:
            put(f"for {', '.join(loops)} in " + (
                f"T.grid({', '.join(map(str, extents))}):" if len(axes) > 1 else
                f"range({extents[0]}):"))
            depth = "    "
        self.count += 1
        put(f"{depth}with T.sblock(\"b{self.count}\"):")
        depth += "    "
        for (v, kind), extent, loop in zip(axes, extents, loops, strict=True):
            put(f"{depth}{names[v]} = T.axis.{kind}({extent}, {loop})")
        place = f"{out.name}[{', '.join(names[v] for v in index) or '0'}]"
        spelled = _spell(value, names)
        if over is None:
            if not axes:  # a block needs an axis
                put(f"{depth}u0 = T.axis.spatial(1, 0)")
                place = f"{out.name}[u0]"
            put(f"{depth}{place} = {_stored(spelled, out.dtype)}")
            return
        zero = identity_of(over.op, over.dtype)
        if not index:
            put(f"{depth}u0 = T.axis.spatial(1, 0)")
            place = f"{out.name}[u0]"
        put(f"{depth}with T.init():")
        put(f"{depth}    {place} = {literal(zero.value, zero.dtype)}")
        put(f"{depth}{place} = " + _COMBINE[over.op].format(place, _stored(spelled, out.dtype)))


def memory_shape(value: Value) -> tuple[int, ...]:
    """The shape of a value's buffer: that of the value, but one element has an axis."""
    return tuple(evaluate(d, {}) for d in value.shape) or (1,)


def _literal_of(value: Value) -> Expr | None:
    """The element of a value of one element that is known."""
    if value.content is None or value.type.numel != 1:
        return None
    element = value.content.reshape(-1)[0]
    return element if isinstance(element, Const) else None


def _check_type(d: DType) -> None:
    if not d.is_bool and (d.bits < 8 or (d.is_float and d not in (dt.f32, dt.f64))):
        raise Inexpressible(f"blocks of {d}")


def _shape(b: Buffer) -> str:
    return "(" + ", ".join(map(str, b.shape)) + ",)"


def _type(b: Buffer) -> str:
    return f"T.Buffer({_shape(b)}, \"{value_type(b.dtype)}\")"


def _stored(text: str, d: DType) -> str:
    """Indices are 32-bit in TVM, and numbers among them bare."""
    return f"T.Cast(\"int64\", {text})" if d is dt.i64 else text


def _spell(e: Expr, names: dict[Var, str]) -> str:
    """The text of a scalar expression."""
    memo: dict[Expr, str] = {}
    for x in walk(e):
        memo[x] = _spelled(x, names, memo.__getitem__)
    return memo[e]


def _spelled(e: Expr, names: dict[Var, str], text: Callable[[Expr], str]) -> str:
    if isinstance(e, Const):
        return str(e.value) if e.dtype is dt.i64 else literal(e.value, e.dtype)
    if isinstance(e, Var):
        if e not in names:
            raise Inexpressible(f"a value that depends on {e.name}")
        return names[e]
    if isinstance(e, Load):
        return f"{e.buffer.name}[{', '.join(map(text, e.index))}]"
    if isinstance(e, Cast):
        _check_type(e.dtype)
        if e.mode == "bits":
            return f"T.reinterpret(\"{value_type(e.dtype)}\", {text(e.args[0])})"
        return f"T.Cast(\"{value_type(e.dtype)}\", {text(e.args[0])})"
    if not isinstance(e, Op):
        raise Inexpressible(f"a {type(e).__name__.lower()} within blocks")
    d, a = e.args[-1].dtype, [text(x) for x in e.args]
    _check_type(d)
    if e.name == "select":
        lazy = any(isinstance(x, Load) for x in walk(*e.args[1:]))
        return f"T.{'if_then_else' if lazy else 'Select'}({', '.join(a)})"
    if e.name == "neg":
        return f"(-{a[0]})"
    if e.name == "abs":
        return f"T.abs({a[0]})"
    if e.name == "expm1":
        return f"(T.exp({a[0]}) - {literal(1, d)})"
    if e.name == "sign":
        zero, one = literal(0, d), literal(1, d)
        below = f"T.Select({a[0]} < {zero}, {literal(-1, d)}, {zero})"
        return f"T.Select({a[0]} > {zero}, {one}, {below})"
    table = _BOOLEAN if d.is_bool else _FLOAT if d.is_float else _INTEGER
    form = table.get(e.name) or _BINARY.get(e.name)
    if form is None:
        raise Inexpressible(f"{e.name} of {d}")
    return form.format(*a)
