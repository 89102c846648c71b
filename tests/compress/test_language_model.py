"""A trained language model with weights of a few bits, on text of its own.

Texts are sampled from the f32 model, so that its mean negative log likelihood is the entropy of
what it says, and what a quantised model adds to it is the divergence from it. Calibration texts are
others than those that it is measured on. The model is tiny (64 channels), which makes it far more
sensitive to rounding than large ones.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from trained_models import models_folder

from smelt.compression import Compression
from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.core import Graph
from smelt.ir.graph.interpreter import interpret

pytestmark = pytest.mark.slow

LENGTH = 200


def feeds(tokens: list[int]) -> dict[str, np.ndarray]:
    """The inputs for a whole text at once."""
    caches = {f"past_{c}{k}": np.zeros((1, 4, 0, 8), np.float32) for k in range(5) for c in "kv"}
    return {"input_ids": np.array([tokens]), "position_ids": np.arange(len(tokens))[None],
            **caches}


def sampled(module, rng: np.random.Generator) -> list[int]:
    """A text from the model itself."""
    tokens, state = [1], feeds([1])
    while len(tokens) < LENGTH:
        found = module.run(state)
        logits = found["logits"][0, -1].astype(np.float64)
        odds = np.exp(logits - logits.max())
        tokens.append(int(rng.choice(len(odds), p=odds / odds.sum())))
        state = {"input_ids": np.array([tokens[-1:]]),
                 "position_ids": np.array([[len(tokens) - 1]]),
                 **{f"past_{c}{k}": found[f"present_{c}{k}"] for k in range(5) for c in "kv"}}
    return tokens


@cache
def texts() -> tuple[list[list[int]], list[list[int]]]:
    """(measured on, calibrated with)."""
    import smelt

    rng = np.random.default_rng(20)
    module = smelt.compile(models_folder() / "stories260k_kv.onnx", threads=1)
    return ([sampled(module, rng) for _ in range(5)], [sampled(module, rng) for _ in range(12)])


def imported() -> Graph:
    return load_model(models_folder() / "stories260k_kv.onnx")


def likelihood(graph: Graph) -> float:
    """The mean negative log likelihood of a token."""
    total = 0.0
    for tokens in texts()[0]:
        logits = interpret(graph, feeds(tokens[:-1]))[0][0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = logits[np.arange(len(tokens) - 1), tokens[1:]]
        total += float((np.log(np.exp(logits).sum(-1)) - chosen).mean())
    return total / len(texts()[0])


@cache
def added(scheme: str, method: str, keep: tuple[str, ...] = ()) -> float:
    """What quantisation adds to the negative log likelihood, as a share of it."""
    graph = imported()
    data = [feeds(tokens) for tokens in texts()[1]]
    Compression(scheme, None, method, data, keep).apply(graph, lambda *_: None)
    return likelihood(graph) / likelihood(imported()) - 1


def test_eight_bits_change_next_to_nothing():
    assert abs(added("w8", "rtn")) < 0.005
    assert abs(added("w8a8", "rtn")) < 0.01


@pytest.mark.parametrize("scheme", ["w4", "w3", "w2"])
def test_methods_in_their_order(scheme):
    rounding = added(scheme, "rtn")
    assert 0 < added(scheme, "descent") < added(scheme, "gptq") < rounding
    assert added(scheme, "awq") < rounding


def test_rounded_activations_add_little():
    assert abs(added("w4a8", "gptq") - added("w4", "gptq")) < 0.01


def test_sensitive_layers_at_eight_bits():
    """Attention, the second half of the MLPs and the output layer: what is left at 4 bits is more
    than a third of the weights."""
    numbers = (12, 15, 18, 70, 83, 91, 94, 97, 142, 155, 163, 166, 169, 214, 227, 235, 238, 241,
               286, 299, 307, 310, 313, 358, 371, 379)
    keep = tuple(f"'n{k}_" for k in numbers)
    assert added("w4", "descent", keep) < 0.02
