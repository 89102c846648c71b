"""Which products of a model need more than bf16 for the accuracy that is asked for.

Rounding the operands of a product adds noise to its result that has nothing to do with the noise of
others, so the squares of what they do to the model's outputs add up, and 1 - cosine is half such a
square. What each product does is measured: a probe of the model, in which every product can be
switched between exact and rounded operands while it runs, computes random inputs with one product
rounded at a time. The products that cost the most accuracy for their work are kept exact until the
rest is within the budget, and the choice is run as a whole. (Measuring the sensitivity of layers to
choose bit widths for them: Dong et al. 2019, "HAWQ: Hessian aware quantization of neural networks
with mixed precision".)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, SmeltError, UsageError
from .ir import dtype as dt
from .ir.expr import Const, wrap
from .probe import runner

if TYPE_CHECKING:
    from .ir.graph.core import Graph, Node, Value

Progress = Callable[[str, int, int], None]

IN_HAND = 4
"""Part of the loss allowed that random inputs may use: those of the model's own data may be a few
times as sensitive."""

SEED = 0


@dataclass(frozen=True)
class Choice:
    """The names of products that keep the bits of their operands, and what was found: cosines on
    random inputs with all products in bf16 and with those left, or a note why none were run."""

    keep: tuple[str, ...] = ()
    products: int = 0
    plain: float | None = None
    reached: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"kept": list(self.keep), "products": self.products, "cosine_all_bf16": self.plain,
                "cosine": self.reached, "note": self.note}


def choose_products(graph: Graph, options: Any, accuracy: float,
                    progress: Progress = lambda *_: None) -> Choice:
    """The products of an imported graph to keep so that the cosine of every output to that of f32
    is `accuracy` or more. `options` are those of the graph passes. Does not change the graph."""
    from .ir.graph.clone import clone_graph
    from .passes.graph.pipeline import until
    from .passes.graph.reduce_precision import ReducePrecision, reducible
    from .signature import of_graph, random_inputs

    probe = clone_graph(graph)
    until(ReducePrecision, options).run(probe)
    specs, _ = of_graph(probe)
    products = reducible(probe)
    if not products:
        return Choice()
    try:
        inputs = random_inputs(specs, {}, SEED, probe.symbols_origin)
    except UsageError as error:
        return Choice(products=len(products), note=f"accuracy was not measured: {error}")
    names, work = [n.origin for n in products], [work_of(n) for n in products]
    switches = [_with_switch(probe, node, f"rounded{k}") for k, node in enumerate(products)]
    progress("building the probe of precision", 0, 1)
    with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
        run = runner(probe, Path(folder))

        def outputs(rounded: np.ndarray) -> list[np.ndarray]:
            shares = (np.asarray(r, np.float32) for r in rounded)
            return run({**inputs, **dict(zip(switches, shares, strict=True))})

        try:
            exact = outputs(np.zeros(len(products)))
        except (InputError, SmeltError) as error:
            return Choice(products=len(products), note=f"accuracy was not measured: {error}")
        return _choose(names, work, (1 - accuracy) / IN_HAND,
                       lambda rounded: loss(exact, outputs(rounded)), progress)


def _choose(names: Sequence[str], work: Sequence[float], allowed: float, measured: Measured,
            progress: Progress) -> Choice:
    """Keeps the products with the highest measured loss for their work until what is left loses
    no more than `allowed`."""
    count = len(names)
    plain = measured(np.ones(count))
    if plain <= allowed:
        return Choice((), count, 1 - plain, 1 - plain)
    kept, reached = to_keep(losses_of(count, measured, progress), work, allowed, measured)
    return Choice(tuple(sorted({names[k] for k in kept})), count, 1 - plain, 1 - reached)


Measured = Callable[[np.ndarray], float]
"""The loss with these shares (0 or 1) of the products rounded."""


def losses_of(count: int, measured: Measured, progress: Progress) -> np.ndarray:
    """What each of so many products loses when it alone is rounded."""
    losses = np.zeros(count)
    for k in range(count):
        progress("measuring the products' precision", k, count)
        losses[k] = measured(np.arange(count) == k)
    return losses


def to_keep(losses: np.ndarray, work: Sequence[float], allowed: float,
            measured: Measured) -> tuple[list[int], float]:
    """The products with the highest loss for their work without which the rest loses no more than
    `allowed`, and what the rest loses."""
    count = len(losses)
    order = np.argsort(-losses / np.asarray(work), kind="stable")
    left = losses[order][::-1].cumsum()[::-1]  # left[k]: the loss of order[k:]
    kept = int((left > allowed).sum())
    while True:
        rounded = np.ones(count)
        rounded[order[:kept]] = 0
        reached = measured(rounded)
        if reached <= allowed or kept == count:
            return [int(k) for k in order[:kept]], reached
        kept = min(count, kept + max(1, count // 32))


def loss(exact: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """The largest 1 - cosine between outputs; exact ones that are zero or not finite numbers do not
    count, zeros in place of something else have a cosine of 0."""
    worst = 0.0
    for a, b in zip(exact, actual, strict=True):
        if a.shape != b.shape or a.dtype.kind not in "fV":
            continue
        x, y = (v.astype(np.float64).reshape(-1) for v in (a, b))
        if not (np.isfinite(x).all() and x.any()):
            continue
        if not (np.isfinite(y).all() and y.any()):
            return 1.0
        worst = max(worst, 1 - float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y)))
    return worst


def work_of(node: Node) -> float:
    """Multiplications of a product, 1 at least; an unknown number of results counts as 1."""
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    if node.op == "attention":
        both = wrap(x.type.numel) * wrap(w.shape[2]) * 2
        return max(both.value, 1) if isinstance(both, Const) else 1
    assert w.constant is not None
    results = node.output.type.numel
    features = w.constant.shape[-1 if node.op == "matmul" else 0]
    return max((results if isinstance(results, int) else 1) * w.constant.size / features, 1)


def _with_switch(probe: Graph, node: Node, name: str) -> str:
    """The switch of a node's rounding to bf16."""
    if node.op == "attention":
        return _attention_with_switch(probe, node, name)
    x, w = node.inputs[:2]
    assert x is not None and w is not None and w.constant is not None
    return with_switch(probe, node, name, _through_bf16(node, x),
                       w.constant.astype(dt.bf16.numpy).astype(np.float32))


def with_switch(probe: Graph, node: Node, name: str, rounded: Value, weights: np.ndarray) -> str:
    """Gives a product operands that are rounded by a share s, an f32 input of the graph called
    `name`: x W becomes (x + s (r - x)) W + s r (R - W), with r and R the roundings of x and W."""
    x, w = node.inputs[:2]
    graph = node.graph
    assert x is not None and w is not None and w.constant is not None and graph is not None
    share = _share(probe, name)
    first = _add(node, node.op, _mixed(node, x, rounded, share), w, **node.attrs)
    second = _add(node, node.op, _add(node, "mul", rounded, share),
                  graph.constant(weights - w.constant), **node.attrs)
    graph.replace(node.output, _add(node, "add", first, second))
    graph.erase(node)
    return name


def _attention_with_switch(probe: Graph, node: Node, name: str) -> str:
    """Gives attention queries, keys and values that are rounded by a share; the probabilities' own
    rounding, which is as large as that of the values, is not in it (see `IN_HAND`)."""
    graph = node.graph
    assert graph is not None
    share = _share(probe, name)
    operands = [_mixed(node, v, _through_bf16(node, v), share) if k < 3 and v is not None else v
                for k, v in enumerate(node.inputs)]
    graph.replace(node.output, graph.add("attention", operands, node.attrs, origin=node.origin))
    graph.erase(node)
    return name


def _share(probe: Graph, name: str) -> Value:
    from .ir.graph.core import TensorType

    return probe.add_input(name, TensorType(dt.f32, ()))


def _add(node: Node, op: str, *inputs: Value, **attrs: Any) -> Value:
    """Another node where this one is."""
    assert node.graph is not None
    return node.graph.add(op, list(inputs), attrs, origin=node.origin)


def _through_bf16(node: Node, x: Value) -> Value:
    return _add(node, "cast", _add(node, "cast", x, to=dt.bf16), to=dt.f32)


def _mixed(node: Node, x: Value, rounded: Value, share: Value) -> Value:
    """x + share (rounded - x)."""
    return _add(node, "add", x, _add(node, "mul", _add(node, "sub", rounded, x), share))
