"""Times engines next to each other: each in a process of its own, in turns, medians of rounds.

What disturbs the machine for a while then disturbs all of them; ratios are taken round by round.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import data
from .compilation import as_onnx
from .errors import SmeltError, UsageError

ENGINES = ("smelt", "ort", "openvino", "torch")
NAMES = {"smelt": "smelt", "ort": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch",
         "openvino-bf16": "OpenVINO bf16", "torch-compile": "torch.compile", "tvm": "TVM",
         "iree": "IREE"}
"""What engines are called, those of bench/engines.py included."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 41
ROUND_SECONDS = 0.05
PATIENCE = 4
"""An engine that used so many times its seconds takes part in LEAST_ROUNDS rounds only, and one
that used ten times as much in no more."""
SPARE_CORES = 0.2
"""Processors beyond its threads that an engine may keep busy: clocks are not exact."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                    "TVM_NUM_THREADS")
PROGRAM = (sys.executable, "-m", "smelt.engine_process")

Progress = Callable[[str, int, int], None]
Check = Callable[[str, Mapping[str, np.ndarray]], str]
"""What is wrong with an engine's outputs, as the end of a sentence; empty when they are right."""


@dataclass
class Timing:
    """One engine's rounds: seconds per run and processors kept busy in each, and what else it
    told. `memory` is the most that its process held while it loaded and ran, `base_memory` what it
    held before: Python, the inputs and the engine's library."""

    engine: str
    version: str
    load_seconds: float
    first_seconds: float
    rounds: list[float] = field(default_factory=list)
    memory: int = 0
    base_memory: int = 0
    compile_seconds: float = 0.0
    threads: int = 1
    cores: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def is_limited(self) -> bool:
        """Whether it kept to its threads."""
        # Not the median: on a busy machine an engine with more threads seldom gets to run them all.
        return len(self.cores) < 2 or (
            statistics.quantiles(self.cores, n=4)[2] <= self.threads + SPARE_CORES)

    def as_dict(self) -> dict[str, Any]:
        spread = statistics.quantiles(self.rounds, n=4) if len(self.rounds) > 1 else None
        return {"engine": self.engine, "version": self.version, "seconds": self.median,
                "fastest": min(self.rounds), "rounds": len(self.rounds),
                "quartiles": [spread[0], spread[2]] if spread else None,
                "load_seconds": self.load_seconds, "first_seconds": self.first_seconds,
                "compile_seconds": self.compile_seconds, "peak_memory": self.memory,
                "base_memory": self.base_memory, "threads_limited": self.is_limited,
                "cores": statistics.median(self.cores) if self.cores else None}


class _Worker:
    """An engine's process. Messages are lines of JSON."""

    def __init__(self, engine: str, settings: Mapping[str, Any],
                 program: Sequence[str] = PROGRAM):
        self.engine = engine
        self.name = NAMES.get(engine, engine)
        threads = str(settings["threads"])
        environment = {**os.environ, **{name: threads for name in THREAD_VARIABLES}}
        self.errors = tempfile.TemporaryFile(  # noqa: SIM115  (closed with the process)
            "w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            list(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True, encoding="utf-8", env=environment)
        self.send({"engine": engine, **settings})

    def send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer tells why

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            lines = [x for x in self.errors.read().splitlines() if x.strip()]
            why = lines[-1][:200] if lines else f"exit code {self.process.wait()}"
            raise SmeltError(f"{self.name} ended by itself: {why}")
        message = json.loads(line)
        if "error" in message:
            raise SmeltError(f"{self.name}: {message['error']}")
        return message

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def measure(engines: Mapping[str, str], inputs: Mapping[str, np.ndarray], *, threads: int = 1,
            seconds: float = 2.0, dims: Mapping[str, int] | None = None,
            progress: Progress = lambda what, done, total: None,
            check: Check = lambda engine, outputs: "",
            programs: Mapping[str, Sequence[str]] | None = None,
            settings: Mapping[str, Any] | None = None,
            ) -> tuple[list[Timing], dict[str, str], dict[str, dict[str, np.ndarray]]]:
    """Times engines (name -> path of what it runs) for about `seconds` each.

    check: looks at an engine's outputs before it is timed. programs: the command lines of processes
    that serve engines, where it is not `engine_process`. settings: what these are told besides.
    Returns the timings, the engines that could not be timed with the reason, and the outputs.
    """
    workers: dict[str, _Worker] = {}
    timings: dict[str, Timing] = {}
    failures: dict[str, str] = {}
    outputs: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory(prefix="smelt-bench-") as folder:
        given = Path(folder) / "inputs.npz"
        data.write_npz(given, inputs)
        try:
            for i, (engine, path) in enumerate(engines.items()):
                progress(f"starting {NAMES.get(engine, engine)}", i, len(engines))
                result = Path(folder) / f"{engine}.npz"
                worker = workers[engine] = _Worker(engine, {
                    **(settings or {}), "path": str(path), "inputs": str(given),
                    "outputs": str(result), "threads": threads, "dims": dict(dims or {})},
                    (programs or {}).get(engine, PROGRAM))
                try:
                    ready = worker.answer()
                    if result.exists():
                        with np.load(result) as held:
                            outputs[engine] = dict(held)
                    wrong = check(engine, outputs.get(engine, {}))
                    if wrong:
                        raise SmeltError(f"{worker.name} was not timed: {wrong}")
                except SmeltError as error:
                    failures[engine] = str(error)
                    workers.pop(engine).close()
                    continue
                timings[engine] = Timing(
                    engine, ready["version"], ready["load"], ready["first"],
                    base_memory=ready["base"], compile_seconds=ready["compile"], threads=threads)
            _rounds(workers, timings, failures, seconds, progress)
        finally:
            for worker in workers.values():
                worker.close()
    done = [timings[e] for e in engines if e in timings and timings[e].rounds]
    return done, failures, outputs


def _rounds(workers: Mapping[str, _Worker], timings: dict[str, Timing], failures: dict[str, str],
            seconds: float, progress: Progress) -> None:
    rounds = int(min(max(seconds / ROUND_SECONDS, LEAST_ROUNDS), MOST_ROUNDS))
    each = seconds / rounds
    live = dict(workers)
    spent = dict.fromkeys(live, 0.0)
    for k in range(rounds + 1):  # the first warms up
        progress("measuring", k, rounds + 1)
        for engine, worker in list(live.items()):
            start = time.perf_counter()
            worker.send({"round": each})
            try:
                answer = worker.answer()
            except SmeltError as error:
                failures[engine] = str(error)
                del live[engine]
                continue
            spent[engine] += time.perf_counter() - start
            if k:
                timings[engine].rounds.append(answer["seconds"])
                timings[engine].cores.append(answer["cores"])
                timings[engine].memory = answer["memory"]
            # Only the others' rounds may end early: ratios pair rounds with the first engine's.
            patience = PATIENCE if k >= LEAST_ROUNDS else 10 * PATIENCE
            if k and spent[engine] > patience * seconds and engine != next(iter(workers)):
                del live[engine]


def ratios(timings: Sequence[Timing]) -> dict[str, float]:
    """How many times longer each other engine takes than the first: median over rounds."""
    first, *others = timings
    return {t.engine: statistics.median(b / a for a, b in zip(first.rounds, t.rounds))
            for t in others}


@contextmanager
def engine_files(engines: Sequence[str], model: Path | None) -> Iterator[dict[str, str]]:
    """The file that each engine runs; torch programs are exported for the others."""
    files = {engine: str(model) for engine in engines}
    foreign = [e for e in engines if e != "torch"]
    if not foreign or model is None or model.suffix != ".pt2":
        yield files
        return
    with tempfile.TemporaryDirectory(prefix="smelt-bench-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(as_onnx(model).SerializeToString())
        yield {**files, **{e: str(path) for e in foreign}}


def parse_against(text: str) -> list[str]:
    """Engine names from "ort,openvino". Raises UsageError."""
    names = [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in ENGINES[1:]:
            raise UsageError(f"--against {name!r}: use {', '.join(ENGINES[1:])}")
    return list(dict.fromkeys(names))


def machine() -> dict[str, Any]:
    """The CPU, as far as it matters to timings."""
    facts: dict[str, Any] = {"cpu": platform.processor() or platform.machine(),
                             "system": f"{platform.system()} {platform.release()}",
                             "python": platform.python_version()}
    if hasattr(os, "sched_getaffinity"):
        facts["cpus"] = len(os.sched_getaffinity(0))
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return facts
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            facts["cpu"] = value.strip()
        elif key.strip() in ("flags", "Features"):
            held = set(value.split())
            known = ("sse4_2", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8",
                     "asimd", "asimddp", "i8mm", "sve")
            facts["features"] = [f for f in known if f in held]
            break
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 2)
    return facts
