"""onnx's conformance suite, compiled for `cpu` and run; the suite's own outputs are the oracle.

Tolerances are the suite's, wider for results of 16 bits (see frontend.onnx_suite).
"""

import pytest
from conformance.compiled_suite import check, failure
from conformance.exclusions import EXCLUDED, listed
from frontend.exclusions import DIFFERENT, REFUSED
from frontend.onnx_suite import cases

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
ALL = {f"{kind}/{name}": case for kind in KINDS for name, case in cases(kind).items()}


def those(exclusions: dict[str, str]) -> list[str]:
    return [name for name in ALL if listed(name.split("/")[1], exclusions)]


PASSING = [name for name in ALL if name not in set(those(EXCLUDED))]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What compiling takes, for all children of this process."""
    check(ALL[PASSING[0]])


@pytest.mark.parametrize("name", PASSING)
def test_compiled_agrees_with_the_suite(name: str):
    found = failure(lambda: check(ALL[name]))
    if found:
        pytest.fail(found, pytrace=False)


@pytest.mark.parametrize("name", those(REFUSED))
def test_refused_cases_are_refused_in_words(name: str):
    found = failure(lambda: check(ALL[name]))
    assert found.startswith("ModelError: "), found or f"{name} passes: remove its exclusion"


@pytest.mark.parametrize("name", those(DIFFERENT))
def test_random_cases_run(name: str):
    """They may agree by chance, being a few coins."""
    found = failure(lambda: check(ALL[name]))
    assert not found or found.startswith("AssertionError: "), found


def test_every_exclusion_matches_a_case():
    names = [name.split("/")[1] for name in ALL]
    assert not [k for k in EXCLUDED if not any(listed(n, {k: "here"}) for n in names)]


def test_most_cases_are_not_excluded():
    assert sum(name.startswith("node/") for name in PASSING) >= 1790
    assert all(name.startswith(("node/", "simple/")) for name in those(EXCLUDED))
