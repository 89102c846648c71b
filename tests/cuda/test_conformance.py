"""onnx's node tests on the emulated device: each agrees with the suite's outputs. Tolerances are
the suite's, wider for results of 16 bits. One case for each set of operators: compiling takes most
of the time, and the others differ in attributes, which the tests of other targets cover."""

import pytest
from conformance.compiled_suite import check, failure
from conformance.exclusions import EXCLUDED, listed
from frontend.onnx_suite import cases

LISTED = {name: case for name, case in cases("node").items()
          if not listed(name, EXCLUDED) and "expanded" not in name}
FIRST = {frozenset(n.op_type for n in case.model.graph.node): name
         for name, case in reversed(LISTED.items())}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What compiling takes, for all children of this process."""
    check(LISTED[next(iter(FIRST.values()))], "cuda:emulated", 0)


@pytest.mark.parametrize("name", FIRST.values())
def test_agrees_with_the_suite(name: str):
    found = failure(lambda: check(LISTED[name], "cuda:emulated", 0))
    if found:
        pytest.fail(found, pytrace=False)


def test_most_operators_are_covered():
    assert len(FIRST) >= 150
