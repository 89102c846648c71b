"""Choosing the plans of schedules by measuring them, on one thread.

A model's optimised graph is lowered once to hear what the templates ask. For each problem, the
dearest first, the group that asks becomes a program of its own for every candidate plan. They run
in turns and as they would in a model: before each run other data goes through the caches, as much
as the rest of the model touches; then the inputs are written, as the kernel before does, and the
place of the results, as an earlier user of the arena did. All candidates run for a short time, then
the best ones once more next to the usual plan, so that none wins by chance.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SmeltError
from ...ir.expr import evaluate
from ...ir.graph.core import Graph, Node
from ...ir.program import Launch
from ...passes.lower.choices import Choices, Plan, Question, described
from ...passes.lower.lowering import Lowering, lower
from ..base import BuildOptions
from .isa import Variant
from .target import RULES, machine_of
from .trial import Source, Trial, inputs_of

GAIN = 0.97
"""Share of the usual plan's time below which another takes its place."""

MOST_PLANS = 12
"""Candidates of a problem that are measured; the templates list the likely ones first."""

FIRST_SECONDS, LAST_SECONDS = 0.8, 0.6
"""Of this thread's time for measuring all candidates of a problem, then the finalists."""

LEAST_ROUNDS, MOST_ROUNDS = 9, 101
FINALISTS = 2

SWEPT_BYTES = 16 << 20
"""Other data, at most, that goes through the caches between two runs: more than any level-2 cache.
"""

FLOPS, BYTES = 1e11, 1e10
"""What a core does in a second, roughly: the order of problems depends on it, nothing else."""


@dataclass
class Problem:
    """A question with its candidate plans, the usual one first; a group of operators that asks it;
    the number and the guessed seconds of all groups of the model that do."""

    question: Question
    plans: list[Any]
    node: Node
    groups: int = 0
    seconds: float = 0.0


@dataclass
class Survey:
    """What the templates ask about a model: problems that have several plans, dearest first. Groups
    with open sizes (`open_groups` of them) cannot be measured. `touched`: bytes of a whole run."""

    problems: list[Problem] = field(default_factory=list)
    open_groups: int = 0
    touched: int = 0


class _Asking(Choices):
    """Takes the usual plans, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[Question, dict[Any, None]] = {}

    def choose(self, question: Question, candidates: Iterable[Plan]) -> Plan:
        plans = list(candidates)
        self.asked.setdefault(question, {}).update(dict.fromkeys(plans))
        return plans[0]


def survey(graph: Graph, variant: Variant, exact: bool) -> Survey:
    """Lowers an optimised graph and listens."""
    asking, found = _Asking(), Survey()
    problems: dict[Question, Problem] = {}

    def listen(low: Lowering, node: Node) -> bool:
        asking.asked.clear()
        start = len(low.steps)
        if not any(rule(low, node) for rule in RULES):
            return False
        launches = [s.kernel for s in low.steps[start:] if isinstance(s, Launch)]
        asked = {q: list(plans) for q, plans in asking.asked.items() if len(plans) > 1}
        if any(v is not None and v.type.symbols for v in (*node.inputs, *node.outputs)):
            found.open_groups += bool(asked)
            return True
        flops = sum(evaluate(k.flops, {}) for k in launches)
        moved = sum(evaluate(k.bytes, {}) for k in launches)
        found.touched += moved
        for question, plans in asked.items():
            problem = problems.setdefault(question, Problem(question, plans, node))
            problem.groups += 1
            problem.seconds += flops / FLOPS + moved / BYTES
        return True

    lower(graph, (listen,), machine_of(variant, exact), asking)
    found.problems = sorted(problems.values(), key=lambda p: (-p.seconds, p.question))
    return found


@dataclass
class Verdict:
    """The usual plan and the best one (which may be the same), and seconds of a run of each;
    `failed` says why plans could not be measured."""

    usual: Any
    best: Any
    usual_seconds: float
    best_seconds: float
    failed: dict[Any, str] = field(default_factory=dict)


def measure(problem: Problem, variant: Variant, options: BuildOptions, touched: int,
            deadline: float) -> Verdict:
    """Measures the plans of a problem, of which none is begun after `deadline` (as of
    time.monotonic) beside the usual one. `touched`: bytes that a run of the whole model touches.
    Raises TargetError when the usual plan cannot be compiled or run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smelt-tune-")))
        sources, libraries, failed = _compiled(problem, variant, options, folder, deadline)
        first = sources[problem.plans[0]].program
        inputs = inputs_of(first)
        trials: dict[Any, Trial] = {}
        for plan, library in libraries.items():
            trials[plan] = Trial(library, sources[plan].program, inputs)
            stack.callback(trials[plan].close)
        between = _Between(inputs, touched)
        usual, *others = trials
        rounds = _rounds(trials, between, FIRST_SECONDS)
        ratios = _ratios(rounds, usual)
        finalists = sorted(others, key=lambda p: ratios[p])[:FINALISTS]
        finalists = [p for p in finalists if ratios[p] < 1]
        best = usual
        if finalists:
            rounds = _rounds({p: trials[p] for p in (usual, *finalists)}, between, LAST_SECONDS)
            ratios = _ratios(rounds, usual)
            winner = min(finalists, key=lambda p: ratios[p])
            best = winner if ratios[winner] < GAIN else usual
        seconds = statistics.median(rounds[usual])
        return Verdict(usual, best, seconds, seconds * ratios[best], failed)


def _compiled(problem: Problem, variant: Variant, options: BuildOptions, folder: Path,
              deadline: float) -> tuple[dict[Any, Source], dict[Any, Path], dict[Any, str]]:
    """Sources, and libraries of those that compile, by plan; and what went wrong with others. One
    plan is lowered while others compile."""
    options = replace(options, passes=None, states=(), name="group", extra={})
    sources: dict[Any, Source] = {}
    failed: dict[Any, str] = {}
    jobs: dict[Any, Future[Path]] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for k, plan in enumerate(problem.plans[:MOST_PLANS]):
                if k and time.monotonic() > deadline:
                    break
                choices = Choices({problem.question: described(plan)})
                sources[plan] = Source(problem.node, variant, options, choices)
                jobs[plan] = pool.submit(sources[plan].compile, folder / str(k))
            libraries = {}
            for plan, job in jobs.items():
                try:
                    libraries[plan] = job.result()
                except SmeltError as error:
                    if plan == problem.plans[0]:
                        raise
                    failed[plan] = str(error)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return sources, libraries, failed


class _Between:
    """What the rest of a model does to the caches between two runs of a kernel."""

    def __init__(self, inputs: Sequence[np.ndarray], touched: int):
        self.inputs = inputs
        self.written = [a.copy() for a in inputs]
        self.swept = np.zeros(min(touched, SWEPT_BYTES) // 8, np.int64)

    def __call__(self) -> None:
        self.swept.sum()
        for array, contents in zip(self.inputs, self.written, strict=True):
            np.copyto(array, contents)


def _rounds(trials: dict[Any, Trial], between: _Between, seconds: float) -> dict[Any, list[float]]:
    """Seconds of each trial in every round of all of them, for about so long."""
    for trial in trials.values():
        trial.run()  # pages of its memory are new
    found: dict[Any, list[float]] = {plan: [] for plan in trials}
    start = time.thread_time()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.thread_time() - start > seconds:
            break
        for plan, trial in trials.items():
            between()
            trial.touch()
            found[plan].append(trial.run())
    return found


def _ratios(rounds: dict[Any, list[float]], usual: Any) -> dict[Any, float]:
    """Times over those of the usual plan: the median of the ratios within a round, or the ratio of
    the lower quartiles if that is more. On a busy machine one of them alone is often by chance."""
    return {plan: max(statistics.median(t / u for t, u in zip(times, rounds[usual], strict=True)),
                      _quartile(times) / _quartile(rounds[usual]))
            for plan, times in rounds.items()}


def _quartile(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=4, method="inclusive")[0]
