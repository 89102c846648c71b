"""The whole pipeline against the interpreter: random graphs and onnx's conformance suite."""

import numpy as np
import pytest
from frontend.onnx_suite import Case, compare
from frontend.test_onnx_suite import ALL, reason
from random_graphs import random_graph

from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret
from smelt.ir.graph.verifier import verify
from smelt.passes.graph.base import known_passes, parse_pass
from smelt.passes.graph.pipeline import Options, default_pipeline, optimise

RUNNABLE = [name for name in ALL if reason(name) is None]
# Scales that moved into weights change the rounding of values near zero.
ROUNDING = 1e-6


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed, monkeypatch):
    monkeypatch.setenv("SMELT_VERIFY", "2")
    graph, inputs = random_graph(seed, steps=40)
    wanted = interpret(graph, inputs)
    for item in default_pipeline().passes:
        item.run(graph)
        verify(graph, f"after {item}")
        for a, b in zip(wanted, interpret(graph, inputs), strict=True):
            # exp of sums: errors of f32 sums grow with the exponent.
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4, err_msg=str(item))


@pytest.mark.parametrize("name", known_passes())
@pytest.mark.parametrize("seed", range(5))
def test_each_pass_alone(name, seed):
    if name == "recognise":
        item = parse_pass("recognise{attention=true}")
    else:
        item = parse_pass(name)
    graph, inputs = random_graph(1000 + seed, steps=40)
    wanted = interpret(graph, inputs)
    item.run(graph)
    verify(graph)
    for a, b in zip(wanted, interpret(graph, inputs), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)


def run(case: Case, options: Options) -> None:
    graph = load_model(case.model)
    optimise(graph, options)
    for inputs, outputs in case.data_sets():
        names = [info.name for info in case.model.graph.input]
        given = {n: np.asarray(a) for n, a in zip(names, inputs, strict=False)}
        found = interpret(graph, {v.name: given[v.name] for v in graph.inputs})
        for mine, theirs in zip(found, outputs, strict=True):
            compare(mine, theirs, case.source.rtol, max(case.source.atol, ROUNDING))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNNABLE[::25])
def test_a_part_of_the_conformance_suite(name, monkeypatch):
    monkeypatch.setenv("SMELT_VERIFY", "2")
    run(ALL[name], Options(channels_last=True, attention=True, chains=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [
    Options(), Options(channels_last=True, attention=True, chains=True)], ids=["plain", "cpu"])
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_conformance_suite(name, options):
    run(ALL[name], options)
