"""Records of measured plans: which plan of a template was the quickest for a problem, on a machine.

Their file is JSON, sorted and with no time or place in it, so that it can be shipped and compared:

    {"format": "smelt tuning records", "version": 1, "records": [
      {"cpu": ..., "machine": ..., "kind": ..., "problem": ...,
       "plan": {...}, "seconds": ..., "usual": {...}, "usual_seconds": ...}]}

`machine` and `problem` are the texts of `passes.lower.choices`, `usual` is the cost model's plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..passes.lower.choices import Choices, Question, machine_text
from ..passes.lower.loops import Machine

FORMAT, VERSION = "smelt tuning records", 1


@dataclass(frozen=True)
class Record:
    """One decision: seconds of the best plan, and of the one that the cost model takes, on the
    processor called `cpu`."""

    cpu: str
    machine: str
    question: Question
    plan: Mapping[str, Any]
    seconds: float
    usual: Mapping[str, Any]
    usual_seconds: float

    @property
    def changes(self) -> bool:
        """Whether the plan is another than the cost model's."""
        return self.plan != self.usual

    def as_dict(self) -> dict[str, Any]:
        return {"cpu": self.cpu, "machine": self.machine, "kind": self.question.kind,
                "problem": self.question.problem, "plan": dict(self.plan),
                "seconds": self.seconds, "usual": dict(self.usual),
                "usual_seconds": self.usual_seconds}


@dataclass(frozen=True)
class Records:
    """Decisions, at most one for each machine and question."""

    entries: tuple[Record, ...] = ()

    def choices(self, machine: Machine) -> Choices:
        """What a lowering for this machine takes from them. The processor may be another one."""
        text = machine_text(machine)
        return Choices({r.question: r.plan for r in self.entries if r.machine == text})

    def with_records(self, others: Iterable[Record]) -> Records:
        """These and others, which replace what was decided before."""
        held = {(r.machine, r.question): r for r in (*self.entries, *others)}
        return Records(tuple(held[k] for k in sorted(held)))

    def digest(self) -> str:
        """A hash of the decisions, not of the times; empty without any."""
        if not self.entries:
            return ""
        text = json.dumps([(r.machine, r.question.kind, r.question.problem, r.plan)
                           for r in self.entries], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def text(self) -> str:
        """The records as the text of a file."""
        held = {"format": FORMAT, "version": VERSION,
                "records": [r.as_dict() for r in self.entries]}
        return json.dumps(held, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


NO_RECORDS = Records()


def parse_records(text: str, name: str) -> Records:
    """The records of a file's text; `name` is the file for messages. Raises UsageError when it is
    damaged or newer."""
    try:
        held = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{name!r} holds no tuning records: it is not JSON ({error})") from None
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise UsageError(f"{name!r} holds no tuning records: write them by smelt compile MODEL "
                         f"--tune --tuning {name}")
    version = held.get("version")
    if version != VERSION:
        raise UsageError(f"{name!r} holds tuning records of version {version!r}, and this smelt "
                         f"reads version {VERSION}: update smelt, or tune again into another file")
    entries = held.get("records")
    if not isinstance(entries, list):
        raise UsageError(f"{name!r} is damaged: it has no list of records")
    try:
        return NO_RECORDS.with_records(_record(entry) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{name!r} is damaged: a record has no proper {error}") from None


def _record(entry: Any) -> Record:
    """Raises KeyError, ValueError or TypeError, with the field that is wrong."""
    def field(name: str, kind: type | tuple[type, ...]) -> Any:
        value = entry[name]
        if not isinstance(value, kind):
            raise ValueError(name)
        return value

    def plan(name: str) -> dict[str, Any]:
        value = field(name, dict)
        if not isinstance(value.get("plan"), str) or not all(
                isinstance(v, (str, int)) for v in value.values()):
            raise ValueError(name)
        return value

    def seconds(name: str) -> float:
        value = float(field(name, (int, float)))
        if not 0 < value < float("inf"):
            raise ValueError(name)
        return value

    return Record(field("cpu", str), field("machine", str),
                  Question(field("kind", str), field("problem", str)), plan("plan"),
                  seconds("seconds"), plan("usual"), seconds("usual_seconds"))
