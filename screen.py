"""What the command line shows: tables and progress for people, one JSON object for programs.

With `--json` standard output carries exactly one JSON object, and everything else goes to standard
error. Text that comes from a model or a file name passes through `printable` first.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

NAME_LIMIT = 120
"""Longer names are shortened in what people read; JSON keeps them whole."""
PIPE_WIDTH = 160
"""Columns of tables that do not go to a terminal."""


def printable(text: object, limit: int = NAME_LIMIT) -> str:
    """`text` on one line without control characters, shortened in the middle beyond `limit`."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode()
                    for c in str(text))
    if len(plain) <= limit:
        return plain
    half = (limit - 1) // 2
    return f"{plain[:half]}…{plain[-half:]}"


def amount(bytes_: float) -> str:
    """A number of bytes for people: "512 B", "1.4 MB" (powers of 1000)."""
    return _scaled(bytes_, "B")


def count(number: float, unit: str = "") -> str:
    """A large number for people: "35.6 M"."""
    return _scaled(number, unit)


def _scaled(number: float, unit: str) -> str:
    value = float(number)
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.95 or prefix == "T":
            digits = f"{value:.0f}" if value == int(value) and not prefix else f"{value:.1f}"
            return f"{digits} {prefix}{unit}".rstrip()
        value /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """A time for people: "12.3 µs", "4.56 ms", "1.2 s"."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.2f} s"


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy numbers become Python's, NaN and infinities text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)


def write(text: str, stream: TextIO | None) -> None:
    """Writes text at once. When the reader of a pipe is gone, the rest goes nowhere and the command
    goes on: what it makes is complete, and its exit code tells how it ended."""
    if stream is None:  # closed before the start
        return
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        silence(stream)


def silence(stream: TextIO | None) -> None:
    """Sends what a stream still holds, and all that follows, nowhere."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Screen:
    """Where a command writes. `json` sends tables to standard error and collects `result`."""

    def __init__(self, json: bool = False):
        self.json = json

    @property
    def people(self) -> TextIO:
        """Where people read."""
        return sys.stderr if self.json else sys.stdout

    def say(self, text: str) -> None:
        """One line for people, as it is."""
        write(text + "\n", self.people)

    def note(self, text: str) -> None:
        """One line on standard error: a remark that is no part of the result."""
        write(text + "\n", sys.stderr)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "",
              right: Iterable[int] = ()) -> None:
        """A table; `right` numbers the columns that are aligned to the right."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        right = set(right)
        table = Table(title=title or None, title_justify="left", title_style="bold",
                      header_style="bold", box=None, pad_edge=False)
        for i, column in enumerate(columns):
            table.add_column(Text(column), justify="right" if i in right else "left",
                             overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell, 200)) for cell in row))
        console = Console(file=self.people, highlight=False)
        if not console.is_terminal:
            console.width = PIPE_WIDTH
        with console.capture() as drawn:
            console.print(table)
        write(drawn.get(), self.people)

    def result(self, value: Mapping[str, Any]) -> None:
        """The command's result: printed as JSON when that was asked for."""
        if self.json:
            text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
            write(text + "\n", sys.stdout)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A callback (what, done, total) that draws a bar on standard error, if that is a
        terminal; the bar is gone afterwards."""
        if sys.stderr is None or not sys.stderr.isatty():
            yield lambda what, done, total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(),
                       TextColumn("{task.completed:.0f}/{task.total:.0f}"), TimeElapsedColumn(),
                       console=Console(stderr=True), transient=True)
        with bar:
            task = bar.add_task("starting", total=1)

            def show(what: str, done: int, total: int) -> None:
                bar.update(task, description=printable(what, 60), completed=done,
                           total=max(total, 1))

            yield show


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start
