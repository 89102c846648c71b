"""The decisions of schedules that may also be made by measuring.

Where a template has several plans for a problem, it lists them, the cost model's own choice first,
and asks. Without a record of what was measured the first is taken, and the others are not even
made, so that a compile depends on nothing but its inputs. Plans change how a kernel computes, never
what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from .loops import Machine

Plan = TypeVar("Plan")


@dataclass(frozen=True, order=True)
class Question:
    """A decision to take. `kind` says which template asks, and `problem` is all that the answer
    depends on beside the machine: sizes, types and what else costs time, without a model's names.
    """

    kind: str
    problem: str

    def __str__(self) -> str:
        return f"{self.kind} {self.problem}"


def described(plan: Any) -> dict[str, Any]:
    """A plan, a frozen dataclass of numbers and booleans, as an object of JSON."""
    return {"plan": type(plan).__name__, **asdict(plan)}


def machine_text(machine: Machine) -> str:
    """The machine as far as the plans of templates depend on it."""
    return " ".join(f"{f.name}={getattr(machine, f.name):d}" for f in fields(machine))


@dataclass
class Choices:
    """What was decided beforehand, as `described` gives it, for one machine. `applied` and
    `unknown` become the questions whose recorded plan was, or was not, among the candidates."""

    recorded: Mapping[Question, Mapping[str, Any]] = field(default_factory=dict)
    applied: set[Question] = field(default_factory=set)
    unknown: set[Question] = field(default_factory=set)

    def choose(self, question: Question, candidates: Iterable[Plan]) -> Plan:
        """The plan that was recorded, if it is one of the candidates, else the first of them."""
        wanted = self.recorded.get(question)
        remaining = iter(candidates)
        first = next(remaining)
        if wanted is None:
            return first
        for plan in (first, *remaining):
            if described(plan) == wanted:
                self.applied.add(question)
                return plan
        self.unknown.add(question)
        return first
