"""onnx's node tests on the adapter: each agrees with the suite's outputs, or is refused for one of
the reasons below. Tolerances are the suite's, wider for results of 16 bits."""

import re

import pytest
from conformance.compiled_suite import check
from conformance.exclusions import EXCLUDED, listed
from frontend.onnx_suite import cases

from smelt.errors import ModelError

CASES = {name: case for name, case in cases("node").items()
         if not listed(name, EXCLUDED) and "expanded" not in name}
REASONS = re.compile(
    "WebGPU has no (f64|u64|f8|f4)"  # no such types in WGSL
    "|size of its result depends on data"  # the arena is planned before the run
    "|more than 32 bits")  # i64 arithmetic that is not shown to fit
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"),
              pytest.mark.usefixtures("adapter")]


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_suite_or_is_refused(name: str):
    try:
        check(CASES[name], "webgpu")
    except ModelError as refusal:
        assert REASONS.search(str(refusal)), refusal
