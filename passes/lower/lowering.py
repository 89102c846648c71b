"""From a fused graph to a program: one rule per kind of node, first match wins.

A rule is `rule(low, node) -> bool`; it emits kernels through the `Lowering` it is given and
returns True, or returns False to leave the node to the next rule. Targets put their own rules
before `GENERIC_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import ModelError
from ...ir.expr import Var, equal, size, wrap
from ...ir.graph.core import Graph, Node, TensorType, Value
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Kernel
from ...ir.program import (
    Assign,
    Bind,
    Branch,
    Copy,
    Launch,
    Program,
    Repeat,
    Require,
    Step,
    Storage,
)
from .choices import Choices, Plan, Question
from .loops import Machine

_TRUE = np.ones((), np.bool_)

Rule = Callable[["Lowering", Node], bool]


@dataclass(eq=False)
class Lowering:
    """The state of one lowering: where each value lives, and the steps so far."""

    program: Program
    machine: Machine
    rules: Sequence[Rule]
    choices: Choices = field(default_factory=Choices)
    storages: dict[Value, Storage] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    input_symbols: set[Var] = field(default_factory=set)
    _kernels: int = 0
    _sizes: int = 0

    # Storage ----------------------------------------------------------------------------------

    def storage(self, value: Value) -> Storage:
        """Where a value lives; made on first use for constants and results."""
        if value not in self.storages:
            if value.constant is not None:
                self.storages[value] = self.constant(value.constant, value.type)
            else:
                self.storages[value] = self.temporary(value.type, "t")
        return self.storages[value]

    def constant(self, array, type: TensorType) -> Storage:
        """A storage in the weights."""
        count = len(self.program.constants)
        result = Storage(f"w{count}", type, "constant", count, array)
        self.program.constants.append(result)
        return result

    def temporary(self, type: TensorType, name: str = "t") -> Storage:
        """Room in the arena, or of its own when only data tells the size."""
        known = all(s in self.input_symbols for s in type.symbols)
        count = len(self.program.temporaries)
        result = Storage(f"{name}{count}", type, "temporary" if known else "dynamic", count)
        self.program.temporaries.append(result)
        return result

    def view(self, value: Value, source: Storage) -> None:
        """Makes `value` the same memory as `source`."""
        existing = self.storages.get(value)
        if existing is None:
            self.storages[value] = Storage(f"{source.name}v", value.type, source.role,
                                           alias=source)
        elif existing.root() is not source.root():
            self.steps.append(Copy(source, existing))

    def program_symbol(self) -> Var:
        """A size that no graph has, for a number that the program itself counts."""
        self._sizes += 1
        return size(f"round{self._sizes}")

    def choose(self, kind: str, problem: str, candidates: Iterable[Plan]) -> Plan:
        """One of a template's plans for a problem: the first unless another was measured to be
        quicker; see `choices`."""
        return self.choices.choose(Question(kind, problem), candidates)

    # Steps ------------------------------------------------------------------------------------

    def kernel_name(self, op: str) -> str:
        self._kernels += 1
        return f"k{self._kernels}_{op}"

    def launch(self, kernel: Kernel, args: Sequence[Storage]) -> None:
        """Appends a launch; the kernel's sizes are passed by their own values."""
        self.steps.append(Launch(kernel, tuple(args), tuple(kernel.sizes)))

    def append_slice(self, piece: Storage, stack: Storage, position: Var) -> None:
        """stack[position] = piece."""
        b = Builder(self.kernel_name("stack"))
        count = piece.type.numel
        source = b.param("x", piece.type.dtype, (count,))
        target = b.param("y", piece.type.dtype, (stack.type.numel,))
        with b.loop("i", count) as i:
            b.store(target, position * wrap(count) + i, source[i])
        self.launch(b.kernel(), [piece, stack])

    def node(self, node: Node) -> None:
        """Lowers one node by the first rule that takes it."""
        for rule in self.rules:
            if rule(self, node):
                return
        raise ModelError(f"{node.origin or node.op}: no kernel for operator {node.op}")

    def body(self, graph: Graph) -> list[Step]:
        """Lowers a region into steps of its own."""
        outer, self.steps = self.steps, []
        for node in graph.ordered():
            self.node(node)
        steps, self.steps = self.steps, outer
        return steps


def lower(graph: Graph, rules: Sequence[Rule], machine: Machine,
          choices: Choices | None = None) -> Program:
    """The program of a graph. Raises ModelError naming the node that no rule takes."""
    program = Program(graph.name, symbols=dict(graph.symbols),
                      conditions=dict(graph.conditions))
    low = Lowering(program, machine, [*CONTROL_RULES, *rules], choices or Choices())
    for k, value in enumerate(graph.inputs):
        low.input_symbols.update(value.type.symbols)
        low.storages[value] = Storage(value.name or f"input{k}", value.type, "input", k)
        program.inputs.append(low.storages[value])
    copies = _claim_outputs(low, graph)
    for node in graph.ordered():
        low.node(node)
    for value, target in copies:
        low.steps.append(Copy(low.storage(value), target))
    program.steps = low.steps
    return program


def _claim_outputs(low: Lowering, graph: Graph) -> list[tuple[Value, Storage]]:
    """Lets producers write model outputs in place where they can; returns the copies needed."""
    copies = []
    for k, value in enumerate(graph.outputs):
        name = graph.output_names[k] if graph.output_names else value.name or f"output{k}"
        target = Storage(name, value.type, "output", k)
        low.program.outputs.append(target)
        base = value
        while base.node is not None and base.node.op == "reshape":
            source = base.node.inputs[0]
            assert source is not None
            base = source
        direct = (base not in low.storages and base.node is not None
                  and base.node.graph is graph and base.node.op not in ("constant", "if", "loop"))
        if not direct:
            copies.append((value, target))
        elif base is value:
            low.storages[value] = target
        else:
            low.storages[base] = Storage(f"{target.name}b", base.type, "output", k, alias=target)
            low.storages[value] = target
    return copies


def _constant(low: Lowering, node: Node) -> bool:
    return node.op == "constant"


def _reshape(low: Lowering, node: Node) -> bool:
    if node.op != "reshape":
        return False
    source = node.inputs[0]
    assert source is not None
    low.view(node.output, low.storage(source))
    return True


def _bind(low: Lowering, node: Node) -> bool:
    if node.op != "bind":
        return False
    source = node.inputs[0]
    assert source is not None
    low.steps.append(Bind(tuple(node.attrs["symbols"]), low.storage(source), node.origin))
    return True


def _require(low: Lowering, node: Node) -> bool:
    if node.op != "require":
        return False
    low.steps.append(Require(node.attrs["condition"], node.attrs["message"]))
    return True


def _checked(low: Lowering, node: Node) -> bool:
    if node.op != "checked":
        return False
    source, wrong = node.inputs
    assert source is not None and wrong is not None
    count = low.program_symbol()
    low.steps.append(Bind((count,), low.storage(wrong)))
    low.steps.append(Require(equal(count, 0), node.attrs["message"], of_sizes=False))
    low.view(node.output, low.storage(source))
    return True


def _if(low: Lowering, node: Node) -> bool:
    if node.op != "if":
        return False
    condition = node.inputs[0]
    assert condition is not None
    targets = [low.storage(v) for v in node.outputs]
    arms = []
    for region in node.regions:
        steps = low.body(region)
        steps += _resize(node.outputs, [v.type for v in region.outputs], node.attrs["sizes"])
        steps += [Copy(low.storage(v), t) for v, t in zip(region.outputs, targets, strict=True)]
        arms.append(steps)
    low.steps.append(Branch(low.storage(condition), arms[0], arms[1]))
    return True


def _resize(outputs: Sequence[Value], types: Sequence[TensorType], symbols) -> list[Step]:
    """The assignment that gives `symbols`, where they are dimensions of `outputs`, the
    dimensions of `types`."""
    found: dict[Var, object] = {}
    for value, type in zip(outputs, types, strict=True):
        for d, actual in zip(value.shape, type.shape, strict=True):
            if isinstance(d, Var) and d in symbols and d is not actual:
                found.setdefault(d, actual)
    return [Assign(tuple(found), tuple(found.values()))] if found else []


def _loop(low: Lowering, node: Node) -> bool:
    if node.op != "loop":
        return False
    (body,) = node.regions
    counter, going, *formals = body.inputs
    carried = node.inputs[2:]
    slices = node.outputs[len(carried):]
    low.storages[counter] = low.temporary(counter.type, "n")
    condition = low.storages[going] = low.temporary(going.type, "go")
    first = node.inputs[1]
    true = low.constant(_TRUE, going.type)
    low.steps.append(Copy(low.storage(first) if first is not None else true, condition))
    starts = [v for v in carried if v is not None]
    low.steps += _resize(formals, [v.type for v in starts], node.attrs["inner"])
    for formal, start in zip(formals, starts, strict=True):
        low.storages[formal] = low.temporary(formal.type, "c")
        low.steps.append(Copy(low.storage(start), low.storages[formal]))
    stacks = [low.storage(v) for v in slices]
    rounds = low.program_symbol() if slices else None
    steps: list[Step] = []
    if rounds is not None:
        steps.append(Bind((rounds,), low.storages[counter]))
        leads = tuple(v.shape[0] for v in slices if isinstance(v.shape[0], Var)
                      and v.shape[0] in node.attrs["sizes"])
        if leads:
            low.steps.append(Assign(leads, tuple(0 for _ in leads)))
    steps += low.body(body)
    results = body.outputs[1:1 + len(formals)]
    pieces = body.outputs[1 + len(formals):]
    outer, low.steps = low.steps, steps
    for stack, value, piece in zip(stacks, slices, pieces, strict=True):
        lead = value.shape[0]
        sizes = _resize_slice(value, piece.type, node.attrs["sizes"])
        if isinstance(lead, Var) and lead in node.attrs["sizes"]:
            sizes.append((lead, rounds + 1))  # type: ignore[operator]
        if sizes:
            steps.append(Assign(tuple(s for s, _ in sizes), tuple(e for _, e in sizes)))
        assert rounds is not None
        low.append_slice(low.storage(piece), stack, rounds)
    low.steps = outer
    # Results may be other formals (a swap), so they all leave before any arrives.
    sources = [low.storage(v) for v in results]
    roots = {low.storages[f].root() for f in formals}
    staged = []
    for source, formal in zip(sources, formals, strict=True):
        if source.root() in roots and source.root() is not low.storages[formal].root():
            spare = low.temporary(source.type, "s")
            steps.append(Copy(source, spare))
            staged.append(spare)
        else:
            staged.append(source)
    steps.append(Copy(low.storage(body.outputs[0]), condition))
    steps += _resize(formals, [v.type for v in results], node.attrs["inner"])
    for source, formal in zip(staged, formals, strict=True):
        if source.root() is not low.storages[formal].root():
            steps.append(Copy(source, low.storages[formal]))
    limit = node.inputs[0]
    low.steps.append(Repeat(steps, low.storages[counter],
                            None if limit is None else low.storage(limit), condition))
    final = node.outputs[:len(carried)]
    low.steps += _resize(final, [f.type for f in formals], node.attrs["sizes"])
    for value, formal in zip(final, formals, strict=True):
        low.view(value, low.storages[formal])
    return True


def _resize_slice(value: Value, piece: TensorType, symbols) -> list[tuple[Var, object]]:
    return [(d, actual) for d, actual in zip(value.shape[1:], piece.shape, strict=True)
            if isinstance(d, Var) and d in symbols]


CONTROL_RULES: tuple[Rule, ...] = (_constant, _reshape, _bind, _require, _checked, _if, _loop)
