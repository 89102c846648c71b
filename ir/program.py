"""A scheduled model: kernel launches over planned storage, with structured control flow.

Passes build it, the memory planner fills in offsets, emitters print it, `runtime` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .expr import Expr, Var
from .graph.core import TensorType
from .kernel.nodes import Buffer, Kernel


@dataclass(eq=False)
class Storage:
    """One tensor of the program.

    role: "input", "output", "constant", "temporary" (in the arena) or "dynamic" (its size depends
    on data, so it is allocated when the size is known). `alias` makes it a view of another
    storage (same lifetime root). `index` is the position among the inputs, outputs or constants.
    `offset` is the arena offset in bytes, once planned.
    """

    name: str
    type: TensorType
    role: str
    index: int = 0
    array: np.ndarray | None = None
    alias: Storage | None = None
    offset: Any = None

    def root(self) -> Storage:
        """The storage that owns the memory."""
        storage = self
        while storage.alias is not None:
            storage = storage.alias
        return storage


class Step:
    """Base of program steps."""

    __slots__ = ()


@dataclass(eq=False)
class Launch(Step):
    """Runs a kernel: `args` match `kernel.params`, `sizes` match `kernel.sizes`."""

    kernel: Kernel
    args: tuple[Storage, ...]
    sizes: tuple[Any, ...] = ()


@dataclass(eq=False)
class Bind(Step):
    """Reads sizes from the elements of an i64 storage (any integer dtype). Negative ones end the
    run; `origin` names the source node for that."""

    symbols: tuple[Var, ...]
    source: Storage
    origin: str = ""


@dataclass(eq=False)
class Require(Step):
    """Ends the run with `message` unless a bool expression holds, of sizes or (not `of_sizes`) of
    a number that the program has counted."""

    condition: Expr
    message: str
    of_sizes: bool = True


@dataclass(eq=False)
class Copy(Step):
    """Copies `source` to `target` (same type; needed where a view cannot do)."""

    source: Storage
    target: Storage


@dataclass(eq=False)
class Branch(Step):
    """Runs `then` when the bool storage `condition` holds, else `orelse`."""

    condition: Storage
    then: list[Step]
    orelse: list[Step]


@dataclass(eq=False)
class Repeat(Step):
    """Runs `body` for counter = 0, 1, ... while counter < limit (when given) and `condition`
    (a bool storage, read before each round, when given) holds. `counter` is written before each
    round. Carried values are copied by the body itself."""

    body: list[Step]
    counter: Storage | None = None
    limit: Storage | Any = None
    condition: Storage | None = None


@dataclass(eq=False)
class Program:
    """A whole model. `symbols`: name -> (low, high) of sizes bound by input shapes; `conditions`:
    what must hold of them, and the message that refuses others. `notes`: what passes over the
    program decided."""

    name: str
    inputs: list[Storage] = field(default_factory=list)
    outputs: list[Storage] = field(default_factory=list)
    constants: list[Storage] = field(default_factory=list)
    temporaries: list[Storage] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    symbols: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    conditions: dict[Expr, str] = field(default_factory=dict)
    arena_size: Any = 0
    notes: list[str] = field(default_factory=list)

    def walk(self) -> Iterator[Step]:
        """Every step, in program order, control flow before its contents."""
        stack: list[Step] = list(reversed(self.steps))
        while stack:
            step = stack.pop()
            yield step
            if isinstance(step, Branch):
                stack.extend(reversed(step.then + step.orelse))
            elif isinstance(step, Repeat):
                stack.extend(reversed(step.body))

    def kernels(self) -> list[Kernel]:
        """The distinct kernels in order of first launch."""
        return list(dict.fromkeys(s.kernel for s in self.walk() if isinstance(s, Launch)))


@dataclass(eq=False)
class Assign(Step):
    """Gives sizes new values, all computed before any is set."""

    symbols: tuple[Var, ...]
    values: tuple[Any, ...]


def aliased(program: Program) -> dict[Kernel, set[Buffer]]:
    """The parameters of each kernel that some launch gives memory of one storage, one of them an
    output: the kernel reads other elements there than it writes."""
    found: dict[Kernel, set[Buffer]] = {}
    for step in program.walk():
        if isinstance(step, Launch):
            roots = [s.root() for s in step.args]
            written = roots[len(roots) - step.kernel.outputs:]
            found.setdefault(step.kernel, set()).update(
                b for b, root in zip(step.kernel.params, roots, strict=True)
                if root in written and roots.count(root) > 1)
    return found
