"""Kernels write over inputs that nobody needs afterwards: their output is a view of the input."""

from __future__ import annotations

from ..ir.kernel.aliasing import reusable
from ..ir.kernel.nodes import Kernel
from ..ir.program import Branch, Launch, Program, Repeat, Storage
from .plan import touched


def share(program: Program) -> int:
    """Makes temporaries views of dead inputs where kernels allow; returns how many."""
    last: dict[Storage, int] = {}
    first: dict[Storage, int] = {}
    pinned: set[Storage] = set()
    for time, step in enumerate(program.steps):
        inside = [step]
        while inside:
            inner = inside.pop()
            for storage in touched(inner):
                first.setdefault(storage, time)
                last[storage] = time
                if inner is not step:
                    pinned.add(storage)
            if isinstance(inner, Branch):
                inside += inner.then + inner.orelse
            elif isinstance(inner, Repeat):
                inside += inner.body
    count = 0
    memo: dict[Kernel, list[int]] = {}
    for time, step in enumerate(program.steps):
        if not isinstance(step, Launch):
            continue
        target = step.args[-1].root()
        if target.role != "temporary" or first[target] != time or target in pinned:
            continue
        if step.kernel not in memo:
            memo[step.kernel] = reusable(step.kernel)
        for k in memo[step.kernel]:
            source = step.args[k].root()
            if source.role == "temporary" and source not in pinned and last[source] == time \
                    and source is not target and sum(a.root() is source for a in step.args) == 1:
                target.alias = source
                last[source] = max(last[source], last[target])
                count += 1
                break
    return count
