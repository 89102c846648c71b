"""What a schedule may not do, shown at the place in the kernel's text that forbids it."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import SmeltError
from ...ir.kernel.nodes import Block, For, If, Kernel, Stmt, While
from ...ir.kernel.text import print_kernel

CONTEXT = 2
"""Lines shown before and behind those that matter."""

MOST_PLACES = 4
"""Statements underlined."""


class ScheduleError(SmeltError):
    """A primitive of a schedule would change what the kernel computes, or does not apply to it."""


def refusal(kernel: Kernel, what: str, why: str, places: Sequence[Stmt],
            around: Sequence[Stmt] = ()) -> ScheduleError:
    """The error that shows statements: the first lines of `places` underlined, those of `around`
    as they are."""
    lines = print_kernel(kernel).splitlines()
    at = _positions(kernel, len(lines))
    marked = sorted({at[s] for s in places if s in at})[:MOST_PLACES]
    shown = {k for m in (*marked, *(at[s] for s in around if s in at))
             for k in range(m - CONTEXT, m + CONTEXT + 1) if 0 <= k < len(lines)}
    text: list[str] = []
    previous = -1
    for k in sorted(shown):
        if k != previous + 1:
            text.append("...")
        text.append(lines[k])
        if k in marked:
            depth = len(lines[k]) - len(lines[k].lstrip())
            text.append(" " * depth + "~" * len(lines[k].strip().removesuffix(" {")))
        previous = k
    if previous not in (-1, len(lines) - 1):
        text.append("...")
    body = "".join(f"\n    {line}" for line in text)
    return ScheduleError(f"kernel {kernel.name}: {what}: {why}{body}")


def _positions(kernel: Kernel, total: int) -> dict[Stmt, int]:
    """The line of the text on which each statement starts."""
    found: dict[Stmt, int] = {}

    def place(s: Stmt, line: int) -> int:
        """The line behind a statement that starts at `line`."""
        if isinstance(s, Block):
            for inner in s.body:
                line = place(inner, line)
            return line
        found[s] = line
        if isinstance(s, (For, While)):
            return place(s.body, line + 1) + 1
        if isinstance(s, If):
            line = place(s.then, line + 1) + 1
            return place(s.orelse, line) + 1 if s.orelse.body else line
        return line + 1

    # The body ends on the line before the kernel's closing brace.
    length = place(kernel.body, 0)
    first = total - 1 - length
    return {s: first + line for s, line in found.items()}
