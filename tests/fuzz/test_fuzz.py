"""Random graphs, compiled with and without graph passes, against onnx.reference.

Every run takes fresh seeds. A failure prints the graph's seed and a small graph that still fails.
"""

import os

import pytest
from fuzz.fuzz_compiled import UNOPTIMISED, Setting, first_problem
from fuzz.fuzz_maker import make_graph

BATCHES, PER_BATCH = 10, 20
SETTINGS = {"optimised": Setting(), "unoptimised": Setting(passes=UNOPTIMISED)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_graphs_agree_with_the_reference(batch: int):
    first = int.from_bytes(os.urandom(4), "little")
    print(f"seeds {first}..{first + PER_BATCH - 1}, symbolic where seed % 4 == 0")
    graphs = [make_graph(seed, seed % 4 == 0) for seed in range(first, first + PER_BATCH)]
    for name, setting in SETTINGS.items():
        found = first_problem(graphs, setting)
        if found:
            graph, text = found
            pytest.fail(f"{name}:\n{graph.text()}\n\n{text}", pytrace=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["cpu:x86-64-v2", "cpu:x86-64-v3"])
def test_random_graphs_on_other_variants(target: str):
    first = int.from_bytes(os.urandom(4), "little")
    print(f"seeds {first}..{first + PER_BATCH - 1}")
    graphs = [make_graph(seed) for seed in range(first, first + PER_BATCH)]
    found = first_problem(graphs, Setting(target=target))
    if found:
        graph, text = found
        pytest.fail(f"{graph.text()}\n\n{text}", pytrace=False)
