"""Plans of schedules compute the same, and the tuner measures them.

Plans of products, direct and depthwise convolutions sum in one order: results are equal bit by bit.
Transforms round differently; their results are compared with the interpreter's, to 1e-5 of values
of about 5 and 3e-5 besides (as in test_winograd).
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu.native_graphs import Cases, interpreted

from smelt.ir.graph.core import Graph, Value
from smelt.ir.graph.interpreter import interpret
from smelt.ir.kernel.text import print_kernel
from smelt.ir.kernel.verifier import verify
from smelt.passes.lower.choices import Choices, Question, described
from smelt.passes.schedule.plans import Direct, Product, Winograd
from smelt.targets.base import BuildOptions
from smelt.targets.cpu import tuner
from smelt.targets.cpu.isa import VARIANTS, native
from smelt.targets.cpu.target import lower_for
from smelt.targets.cpu.trial import Source, Trial, alone
from smelt.targets.cpu.tuner import Problem, measure, survey


def product(c: Cases, rows: int, inner: int, columns: int) -> Value:
    w = c.graph.constant(c.rng.standard_normal((inner, columns)).astype(np.float32))
    return c.graph.add("matmul", [c.input(rows, inner), w])


def given_product(c: Cases, batch: int, rows: int, inner: int, columns: int) -> Value:
    return c.graph.add("matmul", [c.input(batch, rows, inner), c.input(batch, inner, columns)])


def convolution(c: Cases, height: int, width: int, channels: int, features: int, size: int = 3,
                stride: int = 1, groups: int = 1) -> Value:
    scale = np.sqrt(size * size * channels // groups)
    w = c.rng.standard_normal((features, channels // groups, size, size)) / scale
    border = (size // 2, size // 2)
    return c.graph.add("conv_last", [c.input(1, height, width, channels),
                                     c.graph.constant(w.astype(np.float32))],
                       {"low": border, "high": border, "strides": (stride, stride),
                        "groups": groups})


CASES = {
    "products": lambda c: [product(c, 61, 257, 67), product(c, 1, 40, 33), product(c, 15, 7, 129)],
    "long reductions": lambda c: [product(c, 43, 1031, 65)],
    "given operands": lambda c: [given_product(c, 2, 35, 40, 37)],
    "convolutions": lambda c: [convolution(c, 5, 17, 5, 33, 5, 2), convolution(c, 1, 1, 3, 70)],
    "depthwise": lambda c: [convolution(c, 9, 23, 19, 19, 3, 1, 19),
                            convolution(c, 6, 31, 37, 37, 5, 2, 37)],
    "transforms": lambda c: [convolution(c, 13, 15, 33, 37)],
}


def graph_of(name: str, rng: np.random.Generator) -> Graph:
    c = Cases(int(rng.integers(1 << 31)))
    for value in CASES[name](c):
        c.output(value)
    return c.graph


def run_plan(source: Source, folder: Path, arrays: list[np.ndarray]) -> np.ndarray:
    """The result natively, after the verifier and the kernel interpreter agreed to it."""
    cases = Cases(0)
    cases.arrays = arrays
    for kernel in source.program.kernels():
        verify(kernel)
    (simulated,) = interpreted(cases, source.program)
    trial = Trial(source.compile(folder), source.program, arrays)
    try:
        assert trial.run() >= 0
        (data,) = trial.results()
    finally:
        trial.close()
    result = np.frombuffer(data, np.float32)
    np.testing.assert_allclose(result, simulated.reshape(-1), 1e-5, 3e-5)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("variant", [native(), VARIANTS["x86-64-v3"]], ids=["native", "avx2"])
def test_every_plan_computes_the_same(name, variant, rng, tmp_path):
    found = survey(graph_of(name, rng), variant, exact=False)
    assert found.problems and not found.open_groups
    options = BuildOptions(name="group")
    for k, problem in enumerate(found.problems):
        graph = alone(problem.node)
        arrays = [rng.standard_normal([int(d) for d in v.shape]).astype(np.float32)
                  for v in graph.inputs]
        wanted = interpret(graph, arrays)[0].reshape(-1)
        first = None
        for number, plan in enumerate(problem.plans):
            choices = Choices({problem.question: described(plan)})
            source = Source(problem.node, variant, options, choices)
            assert choices.applied == {problem.question} and not choices.unknown, plan
            got = run_plan(source, tmp_path / f"{k}-{number}", arrays)
            if isinstance(plan, Winograd):
                np.testing.assert_allclose(got, wanted, 1e-5, 3e-5)
                continue
            np.testing.assert_allclose(got, wanted, 0, 2e-5 * float(np.abs(wanted).max()))
            first = got if first is None else first
            np.testing.assert_array_equal(got, first, err_msg=str(plan))


def test_plans_of_transforms_and_of_blocks_are_among_the_candidates(rng):
    kinds = {type(p) for q in survey(graph_of("transforms", rng), native(), False).problems
             for p in q.plans}
    assert kinds == {Winograd, Direct}
    exact = survey(graph_of("transforms", rng), native(), exact=True).problems
    assert {type(p) for q in exact for p in q.plans} == {Direct}
    (deep,) = survey(graph_of("long reductions", rng), native(), False).problems
    assert isinstance(deep.plans[0], Product) and len({p.blocks for p in deep.plans}) > 2


def test_a_survey_counts_groups_and_leaves_open_sizes_out(rng):
    c = Cases(int(rng.integers(1 << 31)))
    for _ in range(3):
        c.output(product(c, 30, 64, 48))
    found = survey(c.graph, native(), exact=False)
    (problem,) = found.problems
    assert problem.groups == 3 and "f32[30x64] f32[64x48]" in problem.question.problem
    c = Cases(int(rng.integers(1 << 31)), symbolic=True)
    c.output(c.graph.add("matmul", [c.input(5, 16, fixed=(1,)), c.graph.constant(
        c.rng.standard_normal((16, 40)).astype(np.float32))]))
    found = survey(c.graph, native(), exact=False)
    assert not found.problems and found.open_groups == 1


def test_a_recorded_plan_is_taken_and_an_unknown_one_is_not(rng):
    graph = graph_of("long reductions", rng)
    (problem,) = survey(graph, native(), exact=False).problems

    def texts(choices: Choices) -> list[str]:
        return [print_kernel(k) for k in lower_for(graph, native(), False, choices).kernels()]

    usual, other = texts(Choices()), problem.plans[-1]
    planted = Choices({problem.question: described(other)})
    assert texts(planted) != usual and planted.applied == {problem.question}
    assert texts(Choices({problem.question: described(problem.plans[0])})) == usual
    foreign = Choices({problem.question: {**described(other), "rows": 1000}})
    assert texts(foreign) == usual and foreign.unknown == {problem.question}


def test_only_the_usual_plan_is_made_without_records():
    def candidates():
        yield Direct(1, 1, True)
        raise AssertionError("the others cost time")

    assert Choices().choose(Question("k", "p"), candidates()) == Direct(1, 1, True)


class FakeTrial:
    """Takes a known time for its plan, and now and then, like on a busy machine, ten times that."""

    def __init__(self, library: Path, program, inputs):
        self.each, self.runs = library, 0

    def run(self) -> float:
        self.runs += 1
        return TIMES[self.each] * (10 if self.runs % 4 == 0 else 1)

    def touch(self) -> None:
        pass

    def close(self) -> None:
        pass


TIMES: dict[Any, float] = {}


@pytest.mark.parametrize("times, best", [((1.0, 0.9, 0.8), 2), ((1.0, 0.98, 1.5), 0),
                                         ((1.0, 1.2, 1.1), 0), ((1.0, 0.5, 0.6), 1)])
def test_the_quickest_plan_wins_by_three_per_cent_at_least(times, best, monkeypatch, rng):
    (problem,) = survey(graph_of("long reductions", rng), native(), exact=False).problems
    problem = Problem(problem.question, problem.plans[:3], problem.node)
    TIMES.update(zip(problem.plans, times, strict=True))
    source = Source(problem.node, native(), BuildOptions(name="group"), Choices())
    monkeypatch.setattr(tuner, "_compiled", lambda *_: (
        dict.fromkeys(problem.plans, source), {p: p for p in problem.plans}, {}))
    monkeypatch.setattr(tuner, "Trial", FakeTrial)
    monkeypatch.setattr(tuner, "FIRST_SECONDS", 0)
    monkeypatch.setattr(tuner, "LAST_SECONDS", 0)
    verdict = measure(problem, native(), BuildOptions(), 0, 0)
    assert verdict.usual == problem.plans[0] and verdict.best == problem.plans[best]
    assert verdict.best_seconds == pytest.approx(verdict.usual_seconds * times[best])


@pytest.mark.slow
def test_after_the_deadline_only_the_usual_plan_is_measured(rng):
    (problem,) = survey(graph_of("long reductions", rng), native(), exact=False).problems
    verdict = measure(problem, native(), BuildOptions(), 0, time.monotonic() - 1)
    assert verdict.best == verdict.usual == problem.plans[0]
    assert verdict.best_seconds == verdict.usual_seconds > 0
