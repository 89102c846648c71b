"""onnx's conformance suite, imported and interpreted; the suite's own outputs are the oracle."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from frontend.exclusions import DIFFERENT, REFUSED
from frontend.onnx_suite import Case, cases, compare

from smelt.errors import ModelError
from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret
from smelt.ir.graph.verifier import verify

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
ALL = {f"{kind}/{name}": case for kind in KINDS for name, case in cases(kind).items()}


def reason(name: str, table: dict[str, str] = REFUSED | DIFFERENT) -> str | None:
    """Why a case is left out, or None."""
    name = name.split("/")[1]
    stems = (k for k in table if k.endswith("*") and name.startswith(k[:-1]))
    return table.get(name) or next((table[k] for k in stems), None)


def interpreted(case: Case, **options: bool) -> Iterator[tuple[list[np.ndarray], list[Any]]]:
    """What the interpreter gives and what the suite expects, for each data set."""
    graph = load_model(case.model)
    verify(graph)
    for inputs, outputs in case.data_sets():
        names = [info.name for info in case.model.graph.input]
        given = {n: np.asarray(a) for n, a in zip(names, inputs, strict=False)}
        yield interpret(graph, {v.name: given[v.name] for v in graph.inputs}, **options), outputs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in ALL if reason(name) is None])
def test_agrees_with_the_suite(name: str):
    for found, wanted in interpreted(ALL[name]):
        for mine, theirs in zip(found, wanted, strict=True):
            compare(mine, theirs, ALL[name].source.rtol, ALL[name].source.atol)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in ALL if reason(name, REFUSED)])
def test_refused_cases_are_refused_in_words(name: str):
    with pytest.raises(ModelError, match=r"\w+ \w+"):
        load_model(ALL[name].model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in ALL if reason(name, DIFFERENT)])
def test_different_cases_have_the_right_types(name: str):
    for found, wanted in interpreted(ALL[name]):
        for mine, theirs in zip(found, wanted, strict=True):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)


def test_every_exclusion_matches_a_case():
    names = {name.split("/")[1] for name in ALL}
    unused = [k for k in REFUSED | DIFFERENT
              if not any(n == k or (k.endswith("*") and n.startswith(k[:-1])) for n in names)]
    assert not unused
