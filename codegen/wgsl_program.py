"""Prints a program as shaders and a plan, which is JSON that a runtime carries out:

    {"version": 1,
     "weights": [[first byte, bytes], ...]       parts of weights.bin, a buffer each
     "memory": [{"bytes", "first", "last"}, ...] inputs, outputs and temporaries: amounts, and the
                                                 steps between which each holds data
     "offsets": [byte, ...] or null, "arena": bytes or null      known when all sizes are constant
     "inputs": [tensor, ...], "outputs": [tensor, ...]
     "conditions": [[condition, message], ...]   of the sizes of inputs
     "shaders": [name, ...]                      shaders/<name>.wgsl
     "steps": [step, ...]}

    tensor := {"place": its position in "memory", "shape": [size, ...]}
    step := {"do": "launch", "shader": k, "at": [argument, ...], "sizes": [size, ...],
             "groups": [size, size, size], "rounds": loop iterations of an invocation}
          | {"do": "assign", "names": [name, ...], "values": [size, ...]}
          | {"do": "bind", "names": [name, ...], "from": place, "dtype": dtype, "origin": node}
          | {"do": "require", "condition": condition, "message": text, "late": bool}
          | {"do": "branch", "condition": known, "then": [step, ...], "else": [step, ...]}
          | {"do": "repeat", "counter": place or null, "limit": known or null,
             "condition": known or null, "body": [step, ...]}
    known := {"place": where the arena holds it, "dtype": dtype} | {"size": size}
    argument := {"arena": place} | {"weights": byte of its part}
    size, condition := number | name | [operation, size, ...]

A step with "late" needs what the step before it has read, and both may wait until the end of the
run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ModelError
from ..ir.expr import Const, Expr, Op, Var, substitute, walk, wrap
from ..ir.kernel.nodes import Kernel
from ..ir.program import Assign, Bind, Branch, Launch, Program, Repeat, Require, Step, Storage
from .host import Weights
from .wgsl import ARENA, Shader, print_shader

VERSION = 1

MOST_WORDS = 64
"""Places and sizes of one launch: what lies between two offsets of a uniform buffer (256 bytes)."""


def size_json(e: Any) -> Any:
    """A size or condition as JSON. Raises ModelError for one that is no integer arithmetic."""
    done: dict[Expr, Any] = {}
    for x in walk(wrap(e)):
        if isinstance(x, Const) and not x.dtype.is_float:
            done[x] = x.value
        elif isinstance(x, Var):
            done[x] = x.name
        elif isinstance(x, Op) and not x.dtype.is_float:
            done[x] = [x.name, *(done[a] for a in x.args)]
        else:
            raise ModelError(f"the size {e!r} is no integer arithmetic, which a webgpu program "
                             f"needs: fix it, for example with --dim")
    return done[wrap(e)]


def parts_of(weights: Weights, limit: int) -> list[tuple[int, int]]:
    """(first byte, bytes) of the parts of the weights, each at most `limit` bytes unless it holds
    a single larger constant."""
    parts: list[tuple[int, int]] = []
    start = end = 0
    for offset, array in weights.order:
        last = offset + -(-array.nbytes // 64) * 64
        if last - start > limit and end > start:
            parts.append((start, end - start))
            start = offset
        end = last
    return [*parts, (start, end - start)] if end > start or weights.offsets else parts


@dataclass
class PlanPrinter:
    """Prints one program. `memory` are the storages of the arena with their lifetimes, in the
    order of their places; `static` says that all have offsets."""

    program: Program
    weights: Weights
    parts: list[tuple[int, int]]
    memory: Sequence[Any]
    static: bool
    shaders: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = {x.storage: k for k, x in enumerate(self.memory)}
        self.order: dict[str, int] = {}
        self._printed: dict[tuple[Kernel, tuple[str, ...]], Shader] = {}

    def plan(self) -> bytes:
        """The text of plan.json; `shaders` holds the shaders by name afterwards."""
        program = self.program
        steps = self._steps(program.steps, True)
        result = {
            "version": VERSION,
            "weights": [list(p) for p in self.parts],
            "memory": [{"bytes": size_json(wrap(x.storage.type.numel)
                                           * x.storage.type.dtype.itemsize),
                        "first": x.first, "last": x.last} for x in self.memory],
            "offsets": [x.storage.offset for x in self.memory] if self.static else None,
            "arena": program.arena_size if self.static else None,
            "inputs": [self._tensor(s) for s in program.inputs],
            "outputs": [self._tensor(s) for s in program.outputs],
            "conditions": [[size_json(c), m] for c, m in program.conditions.items()],
            "shaders": list(self.order),
            "steps": steps,
        }
        return json.dumps(result, indent=1, sort_keys=True).encode()

    def _place(self, storage: Storage) -> int:
        return self.places[storage.root()]

    def _tensor(self, storage: Storage) -> dict[str, Any]:
        return {"place": self._place(storage),
                "shape": [size_json(d) for d in storage.type.shape]}

    def _steps(self, steps: Sequence[Step], top: bool) -> list[dict[str, Any]]:
        return [self._step(s, top) for s in steps]

    def _step(self, step: Step, top: bool) -> dict[str, Any]:
        if isinstance(step, Launch):
            return self._launch(step)
        if isinstance(step, Assign):
            return {"do": "assign", "names": [v.name for v in step.symbols],
                    "values": [size_json(e) for e in step.values]}
        if isinstance(step, Bind):
            return {"do": "bind", "names": [v.name for v in step.symbols],
                    "from": self._place(step.source), "dtype": step.source.type.dtype.name,
                    "origin": step.origin}
        if isinstance(step, Require):
            return {"do": "require", "condition": size_json(step.condition),
                    "message": step.message, "late": top and not step.of_sizes}
        if isinstance(step, Branch):
            return {"do": "branch", "condition": self._known(step.condition),
                    "then": self._steps(step.then, False),
                    "else": self._steps(step.orelse, False)}
        assert isinstance(step, Repeat), step
        return {"do": "repeat",
                "counter": None if step.counter is None else self._place(step.counter),
                "limit": self._known(step.limit), "condition": self._known(step.condition),
                "body": self._steps(step.body, False)}

    def _known(self, value: Any) -> dict[str, Any] | None:
        """What the host has to know during the run: an element of memory, or a size."""
        if value is None:
            return None
        if not isinstance(value, Storage):
            return {"size": size_json(value)}
        root = value.root()
        if root.array is not None:
            return {"size": int(root.array.reshape(-1)[0])}
        return {"place": self.places[root], "dtype": value.type.dtype.name}

    def _launch(self, step: Launch) -> dict[str, Any]:
        if len(step.args) + len(step.sizes) > MOST_WORDS:
            raise ModelError(f"{step.kernel.origin or step.kernel.name}: a kernel of "
                             f"{len(step.args)} tensors and {len(step.sizes)} sizes is more than "
                             f"the {MOST_WORDS} that a launch passes")
        where = [self._argument(s) for s in step.args]
        names = tuple(ARENA if "arena" in a else f"w{a.pop('part')}" for a in where)
        key = step.kernel, names
        if key not in self._printed:
            self._printed[key] = print_shader(step.kernel, names)
        shader = self._printed[key]
        index = self.order.setdefault(shader.key, len(self.order))
        self.shaders[shader.key] = shader.text
        sizes: dict[Expr, Expr] = dict(zip(step.kernel.sizes, map(wrap, step.sizes), strict=True))

        def of_program(e: Any) -> Any:
            return size_json(substitute(wrap(e), sizes))

        return {"do": "launch", "shader": index, "at": where,
                "sizes": [size_json(e) for e in step.sizes],
                "groups": [of_program(g) for g in shader.groups],
                "rounds": of_program(shader.rounds)}

    def _argument(self, storage: Storage) -> dict[str, int]:
        root = storage.root()
        if root in self.places:
            return {"arena": self.places[root]}
        offset = self.weights.offsets[root]
        part = max(k for k, (start, _) in enumerate(self.parts) if start <= offset)
        return {"part": part, "weights": offset - self.parts[part][0]}
