"""Index notation against numpy references, on the operators and operands of onnx's suite."""

import pytest
from frontend.onnx_suite import Case, compare
from frontend.test_onnx_suite import ALL, interpreted, reason

from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.definition import lookup


def definitions_differ(case: Case) -> bool:
    """Whether some operator of the case has both a body and a reference."""
    try:
        graph = load_model(case.model)
    except Exception:  # for the test to report
        return True
    found = [lookup(op) for op in {n.op for g in graph.walk_graphs() for n in g.nodes}]
    return any(d.reference is not None and (d.body is not None or d.bodies) for d in found)


TWICE_DEFINED = [name for name, case in ALL.items()
                 if reason(name) is None and definitions_differ(case)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TWICE_DEFINED)
def test_bodies_agree_with_the_suite(name: str):
    case = ALL[name]
    for found, wanted in interpreted(case, bodies=True):
        for mine, theirs in zip(found, wanted, strict=True):
            compare(mine, theirs, case.source.rtol, case.source.atol)
