"""The dearest kernels of a model in isolation, next to what TVM makes of them: of the same
schedule, of the same operators without one, as plain loops over their definition, and in the best
schedule that MetaSchedule finds for them."""

from __future__ import annotations

import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .compilation import Request
from .data import read_inputs
from .errors import SmeltError, TargetError, UsageError
from .ir.expr import evaluate
from .ir.graph.core import Graph, Node
from .ir.program import Launch, Program
from .kernel_times import profile_kernels
from .running import open_runnable
from .signature import random_inputs
from .targets.cpu.trial import alone, inputs_of, random_contents
from .targets.records import NO_RECORDS, Records

Progress = Callable[[str, int, int], None]
Rounds = Callable[[], float]
"""Runs for some time; gives the seconds of one run."""

WAYS = ("smelt", "tuned", "scheduled", "plain", "metaschedule")
"""What is timed, as `compare_kernels` says."""
TRIALS = 16
TOLERANCE = 1e-3
"""Error of TVM's floats over the largest value: sums in another order; wrong results are off by
about 1."""
ROUNDS = 7
ROUND_SECONDS = 0.05


def compare_kernels(request: Request, files: Sequence[str] | None = None, *, top: int = 5,
                    seconds: float = 1.0, seed: int = 0, trials: int = 0,
                    progress: Progress = lambda what, done, total: None) -> list[dict[str, Any]]:
    """The `top` groups of operators that take longest, dearest first, on one thread. The model runs
    on inputs from files (as `smelt run --input`), else random ones, to find them.

    Each has "name" (of its first kernel), "origin", "kernels" (how many), "share" of the model's
    time, and the seconds of one run, medians of rounds in turns: "smelt", our schedule in C;
    "tuned", the same with the request's records of measured plans (None without records);
    "scheduled", our schedule compiled by TVM; "plain", the operators as loops without a schedule,
    compiled by TVM; "metaschedule", the best of `trials` schedules of TVM's (None for 0 trials),
    whose results agree with ours. What TVM did not do is None, and "notes" says why. Raises
    UsageError for a model with open sizes or another target than one cpu variant, TargetError
    without TVM.
    """
    from .targets.base import find_target
    from .targets.cpu.target import CpuTarget
    from .targets.tvm_bridge import one_thread

    target = find_target(request.target)
    if not isinstance(target, CpuTarget) or len(target.variants) > 1:
        raise UsageError(f"--kernels compares kernels of one cpu variant, not of "
                         f"{request.target!r}")
    one_thread()
    usual = replace(request, records=None)
    build = usual.build(progress)
    if build.graph.symbols:
        raise UsageError("kernels are compared at one size: give --dim for " + ", ".join(
            build.graph.symbols_origin.get(s) or s for s in build.graph.symbols))
    timed = profile_kernels(usual, _inputs(usual, files or (), seed, progress),
                            seconds=seconds, progress=progress)
    dear = _dearest(build.graph, target, request.exact,
                    {k["name"]: k["share"] for k in timed})[:top]
    found = []
    for k, (node, names, share) in enumerate(dear):
        progress("comparing kernels", k, len(dear))
        found.append({"name": names[0], "origin": node.origin or node.op, "kernels": len(names),
                      "share": share, **_compared(node, target, request, trials, progress)})
    progress("comparing kernels", len(dear), len(dear))
    return found


def _inputs(request: Request, files: Sequence[str], seed: int,
            progress: Progress) -> dict[str, np.ndarray]:
    ready = open_runnable(request.source, request, 1, progress)
    arrays = read_inputs([str(f) for f in files], ready.inputs)
    left = [s for s in ready.inputs if s.name not in arrays]
    arrays.update(random_inputs(left, ready.dims(request.dims or {}), seed, ready.sizes))
    ready.module.close()
    return arrays


def _dearest(graph: Graph, target: Any, exact: bool,
             shares: Mapping[str, float]) -> list[tuple[Node, list[str], float]]:
    """(node of the optimised graph, names of its kernels, share of the time), dearest first."""
    from .passes.lower.lowering import Lowering, lower
    from .targets.cpu.target import RULES, machine_of

    marks: list[tuple[Node, int]] = []

    def mark(low: Lowering, node: Node) -> bool:
        marks.append((node, len(low.steps)))
        return False

    program = lower(graph, (mark, *RULES), machine_of(target.variants[0], exact))
    ends = [at for _, at in marks[1:]] + [len(program.steps)]
    found = []
    for (node, start), end in zip(marks, ends, strict=True):
        names = list(dict.fromkeys(s.kernel.name for s in program.steps[start:end]
                                   if isinstance(s, Launch)))
        if names and all(n in shares for n in names):
            found.append((node, names, sum(shares[n] for n in names)))
    return sorted(found, key=lambda x: -x[2])


@dataclass
class _Native:
    """A group as a compiled model that counts its kernels' time: its program, the contents of its
    inputs by name, what they give, and what times it."""

    program: Program
    inputs: dict[str, np.ndarray]
    outputs: list[np.ndarray]
    run: Rounds


def _compared(node: Node, target: Any, request: Request, trials: int,
              progress: Progress) -> dict[str, Any]:
    """Seconds of one group by each."""
    from .codegen.tensorir import Inexpressible

    with tempfile.TemporaryDirectory(prefix="smelt-kernels-") as folder:
        ours = _native(node, target, request, NO_RECORDS, Path(folder) / "usual")
        runs: dict[str, Rounds] = {"smelt": ours.run}
        if request.records is not None:
            runs["tuned"] = _native(node, target, request, request.records,
                                    Path(folder) / "tuned").run
        by_tvm: dict[str, Callable[[], Rounds]] = {
            "scheduled": lambda: _by_tvm(ours.program), "plain": lambda: _by_tvm(_plain(node))}
        if trials:
            by_tvm["metaschedule"] = lambda: _by_metaschedule(node, ours, trials, progress)
        notes: dict[str, str] = {}
        for name, make in by_tvm.items():
            try:
                runs[name] = make()
            except (Inexpressible, SmeltError) as error:
                notes[name] = str(error)
        rounds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                rounds[name].append(run())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    return {**{name: medians.get(name) for name in WAYS}, "notes": notes}


def _native(node: Node, target: Any, request: Request, records: Records,
            folder: Path) -> _Native:
    from .runtime import load
    from .runtime.artifact import write_artifact
    from .targets.base import BuildOptions

    options = BuildOptions(name="group", optimize=request.optimize, exact=request.exact,
                           precision=request.precision, passes="dce", records=records,
                           extra={"profile": "true"})
    graph = alone(node)
    build = target.build(graph, options)
    folder.mkdir()
    path = write_artifact(folder / "group.smelt", build.manifest, build.files)
    module = load(path, threads=1)
    arrays = inputs_of(build.program)
    count = len(build.program.kernels())
    counters = (ctypes.c_double * count).in_dll(module._library.c, "smelt_seconds")
    found = module(*arrays)

    def run() -> float:
        ctypes.memset(counters, 0, ctypes.sizeof(counters))
        runs, start = 0, time.perf_counter()
        while not runs or time.perf_counter() - start < ROUND_SECONDS:
            module(*arrays)
            runs += 1
        return sum(counters) / runs

    return _Native(build.program, dict(zip((s.name for s in module.inputs), arrays, strict=True)),
                   [np.array(a) for a in (found if isinstance(found, tuple) else (found,))], run)


def _plain(node: Node) -> Program:
    """The group by the generic rules for a machine without vectors: loops over the definition."""
    from .passes.kernel.legalise import Capabilities, legalise
    from .passes.lower.generic import GENERIC_RULES
    from .passes.lower.loops import Machine
    from .passes.lower.lowering import lower

    program = lower(alone(node), GENERIC_RULES, Machine(lanes=1))
    for step in program.walk():
        if isinstance(step, Launch):
            step.kernel = legalise(step.kernel, Capabilities(fma=True))
    return program


def _by_tvm(program: Program) -> Rounds:
    """All kernels of the program, compiled by TVM, each on memory of its own."""
    from .targets.tvm_bridge import build, timer

    timers = []
    for step in program.walk():
        if not isinstance(step, Launch):
            continue
        sizes = {v.name: evaluate(e, {}) for v, e in zip(step.kernel.sizes, step.sizes,
                                                         strict=True)}
        buffers = [np.asarray(s.root().array, p.dtype.numpy) if s.root().array is not None else
                   random_contents(p.dtype.numpy, [evaluate(d, sizes) for d in p.shape])
                   for s, p in zip(step.args, step.kernel.params, strict=True)]
        timers.append(timer(build(step.kernel, threads=False), buffers, sizes,
                            ROUND_SECONDS / 2))
    return lambda: sum(t() for t in timers)


def _by_metaschedule(node: Node, ours: _Native, trials: int, progress: Progress) -> Rounds:
    """The group in the best schedule that was found for it. Raises TargetError where its results
    are not ours."""
    from .codegen.tensorir_blocks import print_blocks
    from .tvm_tuning import tune

    blocks = print_blocks(alone(node))
    function, _ = tune(blocks, trials,
                       lambda done, total: progress("tuning by MetaSchedule", done, total))
    inputs = [ours.inputs[v.name] if v.constant is None else np.asarray(v.constant)
              for v in blocks.inputs]
    for want, got in zip(ours.outputs, function(inputs), strict=True):
        far = np.abs(want.astype(np.float64) - got.astype(np.float64)).max(initial=0)
        allowed = TOLERANCE * np.abs(want.astype(np.float64)).max(initial=0)
        # An 8-bit value may fall to either side between two steps.
        if not far <= (allowed if want.dtype.kind == "f" else 1):
            raise TargetError(f"the results of TVM's schedule are off by {far:.1e}")
    return function.timer(inputs, ROUND_SECONDS / 2)
