"""Looks for a good schedule of a group in MetaSchedule's space, by measuring: a process of its own.

Half of the trials draw decisions anew, the others change one decision of the best so far by
MetaSchedule's mutators: its evolutionary search with measured times in place of a cost model, which
learns nothing from the few trials of a benchmark. TVM may crash and a schedule may take for ever,
so the search runs in a process (`python -m smelt.tvm_tuning`) that tells every improvement
on a line of JSON and is ended when its time is over; what was found until then counts.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import config, data
from .codegen.tensorir_blocks import BlockModule, memory_shape
from .errors import SmeltError, TargetError
from .targets.tvm_blocks import BlockFunction, Space
from .targets.tvm_bridge import host_target, import_tvm, one_thread

START_SECONDS, TRIAL_SECONDS = 60, 5
"""What a search may take at most: to start, and for each trial. A usual trial takes 0.3 s."""
ROUND_SECONDS = 0.01
PARENTS = 4
"""How many of the best schedules are changed."""
SLOW = 8
"""A schedule that takes so many times the best is run no further."""

Progress = Callable[[int, int], None]


def tune(blocks: BlockModule, trials: int, progress: Progress = lambda done, total: None,
         limit: float | None = None) -> tuple[BlockFunction, dict[str, Any]]:
    """The quickest function of `trials` schedules, and its record: "trials", "seconds", "trace".

    Records are kept in the cache folder: a module that had as many trials on this processor is not
    tuned again. `limit`: seconds that the search may take. Raises TargetError when TVM is missing,
    has no schedule for the module, or none was finished in time.
    """
    space = Space(blocks, 0)
    path = _record_path(blocks)
    known = _read(path)
    if known is None or known["trials"] < trials:
        seconds = START_SECONDS + TRIAL_SECONDS * trials if limit is None else limit
        found = _search(blocks, trials, 0 if known is None else known["trials"], seconds, progress)
        if known is None or found["seconds"] < known["seconds"]:
            known = found
        known = {**known, "trials": trials}
        path.parent.mkdir(parents=True, exist_ok=True)
        data.write_text(path, json.dumps(known))
    made = space.recorded(known["trace"])
    if made is None:
        raise TargetError(f"TVM does not take its own record {path}: remove it")
    return BlockFunction(blocks, made[0]), known


def _record_path(blocks: BlockModule) -> Path:
    facts = [import_tvm().__version__, str(host_target()), blocks.text, str(blocks.free_layouts)]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    return config.cache_dir() / "tvm" / f"{name}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if {"trials", "seconds", "trace"} <= set(record) else None
    except (OSError, ValueError, TypeError):  # absent, or half written by another program
        return None


# The process that started it ---------------------------------------------------------------------


def _search(blocks: BlockModule, trials: int, seed: int, seconds: float, progress: Progress,
            ) -> dict[str, Any]:
    request = {"name": blocks.name, "text": blocks.text, "trials": trials, "seed": seed,
               "seconds": seconds,
               "inputs": [[v.dtype.name, list(v.shape), v.constant is not None]
                          for v in blocks.inputs],
               "outputs": [[v.dtype.name, list(v.shape), False] for v in blocks.outputs]}
    best: dict[str, Any] | None = None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "smelt.tvm_tuning"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8")
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            assert process.stdin and process.stdout
            try:
                process.stdin.write(json.dumps(request))
                process.stdin.close()
            except BrokenPipeError:
                pass  # its last words tell why
            for line in process.stdout:
                message = json.loads(line)
                if "error" in message:
                    raise TargetError(message["error"])
                if "trace" in message:
                    best = message
                progress(min(message["done"], trials), trials)
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        errors.seek(0)
        lines = [x for x in errors.read().splitlines() if x.strip()]
    if best is None:
        why = lines[0][:200] if lines else f"no schedule was finished within {seconds:.0f} s"
        raise TargetError(f"MetaSchedule's search ended without a schedule: {why}")
    return {"trials": trials, "seconds": best["seconds"], "trace": best["trace"]}


# The process that searches -----------------------------------------------------------------------


def search(blocks: BlockModule, trials: int, seed: int) -> Iterator[dict[str, Any]]:
    """Measures schedules; after each says {"done": how many}, for a better one with its "seconds"
    and "trace" as well."""
    space = Space(blocks, seed)
    draw = random.Random(seed)
    arrays = _contents(blocks)
    measured: list[tuple[float, int, Any]] = []  # seconds, trial, trace
    seen: set[str] = set()
    done = 0
    for attempt in range(20 * trials):
        if done == trials:
            return
        candidate = _candidate(space, measured, done, trials, attempt, draw)
        if candidate is None:
            continue
        schedule, trace = candidate
        text = schedule.mod.script()
        if text in seen:
            continue
        seen.add(text)
        done += 1
        best = measured[0][0] if measured else float("inf")
        try:
            seconds = _timed(BlockFunction(blocks, schedule), arrays, best)
        except TargetError:  # a schedule that LLVM does not take
            yield {"done": done}
            continue
        measured.append((seconds, done, trace))
        measured.sort(key=lambda m: m[:2])
        improved = {"seconds": seconds, "trace": trace.as_json(remove_postproc=True)}
        yield {"done": done, **(improved if seconds < best else {})}


def _candidate(space: Space, measured: list[tuple[float, int, Any]], done: int, trials: int,
               attempt: int, draw: random.Random) -> tuple[Any, Any] | None:
    if not measured or done < (trials + 1) // 2:
        return space.sampled(attempt % len(space.sketches), draw.randrange(1 << 30))
    _, _, trace = draw.choice(measured[:PARENTS])
    (mutator,) = draw.choices(space.mutators, space.chances)
    changed = mutator.apply(trace)
    return None if changed is None else space.scheduled(changed, draw.randrange(1 << 30))


def _timed(function: BlockFunction, arrays: list[np.ndarray], best: float) -> float:
    arguments = function.arguments(arrays)
    function.function(*arguments)
    start = time.perf_counter()
    function.function(*arguments)
    once = time.perf_counter() - start
    return once if once > SLOW * best else function.timer(arrays, ROUND_SECONDS, repeat=3)()


def _contents(blocks: BlockModule) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(memory_shape(v)).astype(v.dtype.numpy) if v.dtype.is_float else
            np.zeros(memory_shape(v), v.dtype.numpy) for v in blocks.inputs]


def _blocks_of(request: dict[str, Any]) -> BlockModule:
    """The module of a request; constants are contents of the right shape."""
    from .ir.dtype import dtype
    from .ir.graph.core import Graph, TensorType, Value

    graph = Graph("group")

    def value(kind: str, shape: list[int], is_constant: bool) -> Value:
        if is_constant:
            return graph.constant(np.zeros(shape, dtype(kind).numpy))
        return graph.add_input(f"x{len(graph.inputs)}", TensorType(dtype(kind), tuple(shape)))

    return BlockModule(request["name"], request["text"], [value(*v) for v in request["inputs"]],
                       [value(*v) for v in request["outputs"]])


def main() -> None:
    """Searches as standard input says."""
    request = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # what TVM prints is no answer

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message, default=_plain) + "\n")
        answers.flush()

    try:
        one_thread()
        for message in search(_blocks_of(request), request["trials"], request["seed"]):
            answer(message)
    except SmeltError as error:
        answer({"error": str(error)})


def _plain(value: Any) -> Any:
    """Numbers and sequences of TVM's as Python's."""
    if hasattr(value, "value"):
        return value.value
    if hasattr(value, "items"):
        return dict(value.items())
    return list(value)


if __name__ == "__main__":
    main()
