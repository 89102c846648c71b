"""Tuning a model: what is known of its problems, measuring the others, and where records are kept.

Each decision is a file of its own in the cache folder, under the processor's hash and its own, so
that several processes may tune at once and an interrupted one loses only the problem it was at.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config, data, object_cache
from .errors import SmeltError, UsageError
from .targets.records import NO_RECORDS, Record, Records, parse_records

if TYPE_CHECKING:
    from .compilation import Request
    from .passes.lower.choices import Question
    from .targets.cpu.isa import Variant

Progress = Callable[[str, int, int], None]

SECONDS = 60.0
"""How long a model is tuned unless told otherwise. What was begun is finished."""


@dataclass
class Tuned:
    """What came of tuning. `records` are those of the model's problems, of which there are
    `problems`; `measured` were new, and `left` not measured for lack of time; `open_groups` groups
    of operators have open sizes and cannot be; `failed` says why others could not."""

    records: Records = NO_RECORDS
    problems: int = 0
    measured: int = 0
    left: int = 0
    open_groups: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sentence(self) -> str:
        if not self.problems and not self.open_groups:
            return "the model has no problem with more than one plan"
        known = len(self.records.entries) - self.measured
        changed = [r for r in self.records.entries if r.changes]
        parts = [f"{len(changed)} of {self.problems} problems got another plan than the cost "
                 f"model's", f"{self.measured} were measured in {self.seconds:.0f} s"]
        parts += [f"{known} were known"] if known else []
        parts += [f"{self.left} are left for another run with --tune"] if self.left else []
        parts += [f"{self.open_groups} groups of operators have open sizes (give --dim)"] \
            if self.open_groups else []
        parts += [f"{len(self.failed)} could not be measured ({self.failed[0]})"] \
            if self.failed else []
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        return {"problems": self.problems, "measured": self.measured, "left": self.left,
                "open_groups": self.open_groups, "failed": self.failed, "seconds": self.seconds,
                "records": [r.as_dict() for r in self.records.entries]}


def with_records(request: Request, *, tune: bool, seconds: float = SECONDS,
                 file: Path | None = None, progress: Progress) -> tuple[Request, Tuned | None]:
    """The request with records: those of `file`, and with `tune` those of this machine, of which
    the missing ones are measured. Then `file` becomes what the model uses, if it is given. Raises
    UsageError for a file that holds no records or a target that cannot be tuned here."""
    if not tune:
        return (request if file is None else replace(request, records=read_records(file))), None
    known = read_records(file) if file is not None and file.exists() else NO_RECORDS
    tuned = _tuned(request, seconds, file, known, progress)
    return replace(request, records=tuned.records), tuned


def read_records(file: Path) -> Records:
    """The records of a file. Raises UsageError."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"tuning records {str(file)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{str(file)!r} holds no tuning records: it is not text") from None
    return parse_records(text, str(file))


def _tuned(request: Request, seconds: float, file: Path | None, known: Records,
           progress: Progress) -> Tuned:
    from .passes.lower.choices import described, machine_text
    from .targets.base import find_target
    from .targets.cpu.target import CpuTarget, machine_of
    from .targets.cpu.tuner import measure, survey

    target = find_target(request.target)
    if not isinstance(target, CpuTarget) or len(target.variants) > 1 \
            or not _runs_here(target.variants[0]):
        raise UsageError(f"--tune measures kernels on this machine, for one cpu variant that it "
                         f"has, not for {request.target!r}: give the records of --tuning FILE")
    variant, options, start = target.variants[0], request.options(), time.monotonic()
    progress("reading the model", 0, 1)
    graph = request.graph()
    if request.compression is not None:
        request.compression.apply(graph, progress)
    progress("optimising the graph", 0, 1)
    target.optimise(graph, options)
    progress("looking for decisions to measure", 0, 1)
    found = survey(graph, variant, request.exact)
    machine = machine_text(machine_of(variant, request.exact))
    recorded = {r.question: r for r in known.entries if r.machine == machine}
    store, cpu = Store(machine), _cpu()
    deadline = time.monotonic() + seconds
    tuned = Tuned(problems=len(found.problems), open_groups=found.open_groups)
    with object_cache.in_use():
        for k, problem in enumerate(found.problems):
            progress(f"tuning: {problem.question}", k, len(found.problems))
            record = recorded.get(problem.question) or store.get(problem.question)
            if record is None and time.monotonic() > deadline:
                tuned.left += 1
            elif record is None:
                try:
                    verdict = measure(problem, variant, options, found.touched, deadline)
                except SmeltError as error:
                    tuned.failed.append(f"{problem.question}: {error}")
                    continue
                tuned.failed += [f"{problem.question}, {described(p)}: {why}"
                                 for p, why in verdict.failed.items()]
                record = Record(cpu, machine, problem.question, described(verdict.best),
                                verdict.best_seconds, described(verdict.usual),
                                verdict.usual_seconds)
                store.put(record)
                tuned.measured += 1
            if record is not None:
                tuned.records = tuned.records.with_records([record])
                known = known.with_records([record])
                if file is not None:
                    data.write_text(file, known.text())
    object_cache.prune()
    if file is not None:
        data.write_text(file, known.text())
    tuned.seconds = time.monotonic() - start
    return tuned


def _runs_here(variant: Variant) -> bool:
    """Whether the code of a variant can be loaded by this process; what instructions it takes is
    checked when it is."""
    from .targets.cpu.toolchain import is_host

    return not variant.zig or is_host(variant.zig)


class Store:
    """The decisions for a machine that this processor made, one file each."""

    def __init__(self, machine: str):
        self.machine = machine
        self.folder = config.cache_dir() / "tuning" / _hash(_cpu(), machine)

    def _path(self, question: Question) -> Path:
        return self.folder / f"{_hash(question.kind, question.problem)}.json"

    def get(self, question: Question) -> Record | None:
        """The decision, or None; a damaged file is as good as none, and will be written again."""
        path = self._path(question)
        try:
            held = parse_records(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError, UsageError):
            return None
        return next((r for r in held.entries
                     if r.question == question and r.machine == self.machine), None)

    def put(self, record: Record) -> None:
        """Keeps a decision. Raises OutputError where the cache cannot be written."""
        os.makedirs(self.folder, exist_ok=True)
        data.write_text(self._path(record.question), NO_RECORDS.with_records([record]).text())


def _cpu() -> str:
    from .measure import machine

    return str(machine()["cpu"])


def _hash(*parts: str) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
