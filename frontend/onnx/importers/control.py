"""If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....ir import dtype as dt
from ....ir.expr import Const, Expr, Op, Var, equal
from ....ir.graph.core import Dim, Graph, TensorType, Value
from ....ir.graph.ops.shapes import same
from .. import vectors
from ..compile_time import NotTensor, describe
from ..pruning import discard
from ..registry import Site, importer
from .elementwise import as_scalar, cast
from .movement import axis_of

UNROLL_LIMIT = 4096
"""Iterations of a loop that carries sequences, which has to be unrolled."""

Build = Callable[[Graph, list[Value]], Sequence[Any]]


def condition_of(c: Site, x: Value) -> Value:
    """A condition as one bool of rank 0."""
    if x.type.numel != 1:
        raise c.error(f"a condition must be one element, not {x.type}")
    return as_scalar(c, cast(c, x, dt.bool_))


def known_bool(x: Value) -> bool | None:
    if x.constant is not None:
        return bool(x.constant)
    found = None if x.content is None else getattr(x.content[()], "value", None)
    return None if found is None else bool(found)


def _decides_by_equality(test: Expr) -> bool:
    """Whether a condition compares one size with a number."""
    return isinstance(test, Op) and test.name in ("eq", "ne") and any(
        isinstance(a, Const) for a in test.args)


@importer("If")
def if_(c: Site) -> Sequence[Any]:
    condition = condition_of(c, c.input(0))
    branches = [c.attrs["then_branch"], c.attrs["else_branch"]]
    known = known_bool(condition)
    if known is not None:
        return c.importer.body(branches[0 if known else 1], c.graph, [], c.origin)
    regions = [c.importer.region(b, [], c.origin) for b in branches]
    if any(a.rank != b.rank for a, b in zip(regions[0].outputs, regions[1].outputs)):
        test = None if condition.content is None else condition.content.item()
        if test is None or not _decides_by_equality(test):
            raise c.error("its branches give results of different ranks, so the condition must be "
                          "known: fix the sizes that decide with `dims` or `shapes`")
        # Exporters write a squeeze of an unknown dimension as "if the size is 1, squeeze". The
        # branch for one size is what the model is made for; others are refused at run time.
        taken = test.name == "eq"
        for region in regions:
            discard(region)
        c.graph.require(test if taken else equal(*test.args), c.origin)
        return c.importer.body(branches[0 if taken else 1], c.graph, [], c.origin)
    return c.graph.add_node("if", [condition], {}, regions=regions, origin=c.origin).outputs


@importer("Loop")
def loop(c: Site) -> Sequence[Any]:
    body = c.attrs["body"]
    trips = None if not c.has(0) else as_scalar(c, cast(c, c.input(0), dt.i64))
    going = None if not c.has(1) else condition_of(c, c.input(1))
    carried: list[Any] = list(c.inputs[2:])
    if any(x is None for x in carried):
        raise c.error("an initial value is missing")
    if any(isinstance(x, NotTensor) for x in carried):
        return _unrolled(c, trips, going, carried)

    def build(region: Graph, inputs: list[Value]) -> Sequence[Any]:
        return c.importer.body(body, region, inputs, c.origin)

    if len(body.output) != 1 + c.outputs:
        raise c.error(f"its body gives {len(body.output)} values; a condition and the loop's "
                      f"{c.outputs} outputs are expected")
    return add_loop(c, trips, going, carried, build)


def add_loop(c: Site, trips: Value | None, going: Value | None, carried: Sequence[Value],
             build: Build) -> list[Value]:
    """A `loop` whose body `build(region, [counter, condition, *carried])` gives. Dimensions of
    carried values that the body changes become sizes of their own."""
    types = [v.type for v in carried]
    inner: list[Var] = []
    while True:
        region = Graph("region", parent=c.graph)
        inputs = [region.add_input("", t) for t in (
            TensorType(dt.i64, ()), TensorType(dt.bool_, ()), *types)]
        results = build(region, inputs)
        if len(results) < 1 + len(carried):
            raise c.error(f"its body gives {len(results)} values for {len(carried)} carried ones")
        for item in results:
            if not isinstance(item, Value):
                raise c.error(f"its body gives {describe(item)}, which is supported only where "
                              "it folds away at compile time")
        changed = False
        for k, (formal, value) in enumerate(zip(types, results[1:])):
            wider = _widened(c, formal, value.type, inner, k)
            changed |= wider is not formal
            types[k] = wider
        if not changed:
            break
        discard(region)
    sub = Site(region, c.op_type, c.domain, c.opset, c.origin, [], {}, 0, c.importer)
    region.outputs = [condition_of(sub, results[0]), *results[1:]]
    return c.graph.add_node("loop", [trips, going, *carried], {"inner": tuple(inner)},
                            regions=[region], origin=c.origin).outputs


def _widened(c: Site, formal: TensorType, result: TensorType, inner: list[Var],
             k: int) -> TensorType:
    if formal.dtype is not result.dtype or formal.rank != result.rank:
        raise c.error(f"carried value {k} is {formal} at first and {result} after an iteration")
    dims: list[Dim] = []
    for d, e in zip(formal.shape, result.shape):
        if d not in inner and not same(d, e):
            d = c.graph.fresh_symbol()
            inner.append(d)
        dims.append(d)
    shape = tuple(dims)
    return formal if shape == formal.shape else TensorType(formal.dtype, shape)


def _unrolled(c: Site, trips: Value | None, going: Value | None, carried: list[Any]) -> list[Any]:
    """A loop over sequences, which exist while importing only."""
    count = None if trips is None else vectors.numbers(trips)
    if trips is not None and (count is None or count[0] > UNROLL_LIMIT):
        raise c.error("a loop that carries sequences needs a trip count known at compile time "
                      f"and of at most {UNROLL_LIMIT}")
    running = True if going is None else known_bool(going)
    stacks: list[list[Value]] = [[] for _ in range(c.outputs - len(carried))]
    iteration = 0
    while running and (count is None or iteration < count[0]):
        if iteration >= UNROLL_LIMIT:
            raise c.error(f"a loop that carries sequences runs over {UNROLL_LIMIT} iterations")
        results = c.importer.body(c.attrs["body"], c.graph, [
            c.constant(np.array(iteration, np.int64)), c.constant(np.array(True)), *carried],
            c.origin)
        if len(results) != 1 + len(carried) + len(stacks):
            raise c.error(f"its body gives {len(results)} values")
        running, carried = known_bool(results[0]), results[1:1 + len(carried)]
        for stack, item in zip(stacks, results[1 + len(carried):]):
            stack.append(c.add("reshape", [item], shape=(1, *item.shape)))
        iteration += 1
    if running is None:
        raise c.error("a loop that carries sequences needs a condition known at compile time")
    if any(not stack for stack in stacks):
        raise c.error("a loop that carries sequences never runs, so its slices have no type")
    return [*carried, *(c.add("concat", stack, axis=0) for stack in stacks)]


@importer("Scan", since=9)
def scan(c: Site) -> list[Value]:
    count = c.attrs["num_scan_inputs"]
    states = [c.input(i) for i in range(len(c.inputs) - count)]
    slices = [c.input(i) for i in range(len(states), len(c.inputs))]
    if not slices or count < 1:
        raise c.error("num_scan_inputs must be from 1 to the number of inputs")
    outputs = c.outputs - len(states)
    axes = [axis_of(c, a, x.rank) for a, x in zip(
        _entries(c, "scan_input_axes", len(slices)), slices)]
    backwards = _entries(c, "scan_input_directions", len(slices))
    results = add_scan(c, states, slices, axes, backwards)
    if len(results) != c.outputs:
        raise c.error(f"its body gives {len(results)} values for {c.outputs} outputs")
    final = results[:len(states)]
    flips = _entries(c, "scan_output_directions", outputs)
    for value, axis, flip in zip(results[len(states):],
                                 _entries(c, "scan_output_axes", outputs), flips):
        if flip:
            value = reversed_first(c, value)
        axis = axis_of(c, axis, value.rank)
        if axis:
            order = list(range(1, value.rank))
            order.insert(axis, 0)
            value = c.add("transpose", [value], perm=tuple(order))
        final.append(value)
    return final


def _entries(c: Site, name: str, count: int) -> Sequence[int]:
    found = c.attr(name) or (0,) * count
    if len(found) != count:
        raise c.error(f"{name} needs {count} entries, found {len(found)}")
    return found


def reversed_first(c: Site, x: Value) -> Value:
    """`x` backwards along axis 0."""
    last = vectors.vector(c, [x.shape[0]])
    one = c.constant(np.array(1, np.int64))
    steps = c.add("iota", size=x.shape[0], dtype=dt.i64)
    order = c.add("sub", [c.add("sub", [c.add("reshape", [last], shape=()), one]), steps])
    return c.add("gather", [x, order], axis=0)


def add_scan(c: Site, states: Sequence[Value], slices: Sequence[Value], axes: Sequence[int],
             backwards: Sequence[int]) -> list[Value]:
    """A loop over the slices of `slices` along `axes`; its body is attribute `body`."""
    extent = slices[0].shape[axes[0]]
    for x, axis in zip(slices, axes):
        other = x.shape[axis]
        if isinstance(other, int) and isinstance(extent, int) and other != extent:
            raise c.error(f"scan inputs have {extent} and {other} slices")
    length = c.add("reshape", [vectors.vector(c, [extent])], shape=())

    def build(region: Graph, inputs: list[Value]) -> Sequence[Any]:
        sub = Site(region, c.op_type, c.domain, c.opset, c.origin, [], {}, 0, c.importer)
        items = []
        for x, axis, back in zip(slices, axes, backwards):
            at = inputs[0]
            if back:
                last = sub.add("sub", [length, sub.constant(np.array(1, np.int64))])
                at = sub.add("sub", [last, at])
            items.append(sub.add("gather", [x, at], axis=axis))
        results = c.importer.body(c.attrs["body"], region, [*inputs[2:], *items], c.origin)
        return [inputs[1], *results]

    return add_loop(c, length, None, states, build)


@importer("Scan", since=8)
def scan_batched(c: Site) -> list[Value]:
    """Opset 8: every operand has a leading batch axis; each example is scanned on its own."""
    if c.has(0):
        raise c.error("sequence_lens of Scan in opset 8 is not supported; export the model with "
                      "opset 9 or later")
    count = c.attrs["num_scan_inputs"]
    operands = [c.input(i) for i in range(1, len(c.inputs))]
    states = len(operands) - count
    batch = c.add("reshape", [vectors.vector(c, [operands[0].shape[0]])], shape=())

    def build(region: Graph, inputs: list[Value]) -> Sequence[Any]:
        sub = Site(region, c.op_type, c.domain, c.opset, c.origin, [], c.attrs, c.outputs,
                   c.importer)
        rows = [sub.add("gather", [x, inputs[0]], axis=0) for x in operands]
        return [inputs[1], *add_scan(sub, rows[:states], rows[states:], [0] * count,
                                     _entries(c, "directions", count))]

    return add_loop(c, batch, None, [], build)
