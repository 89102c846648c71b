"""How long each kernel of a model takes: measured in a build of it that counts, next to how long
it would have to take on this machine."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .compilation import Request, compile_to_cache
from .errors import TargetError
from .inspect_model import at_sizes, read_report
from .roofline import roofline, touched_bytes, with_limits
from .running import Runnable, open_artifact_at
from .signature import random_inputs

Progress = Callable[[str, int, int], None]


def profile_kernels(request: Request, inputs: Mapping[str, np.ndarray], *, threads: int = 1,
                    seconds: float = 1.0,
                    progress: Progress = lambda what, done, total: None) -> list[dict[str, Any]]:
    """The kernels in program order, each with its seconds per run, its share of the time, and how
    near it is to its limit (`roofline.with_limits`).

    Compiles the model once more, with clocks around every kernel. Raises TargetError when the
    target cannot do that.
    """
    counting = replace(request, extra={**(request.extra or {}), "profile": "true"})
    compiled = compile_to_cache(counting, progress=progress)
    ready = open_artifact_at(compiled.path, threads)
    sizes = sizes_of(ready, inputs)
    report = at_sizes(read_report(compiled.path), sizes)
    counters = _counters(ready.module, len(report["kernels"]))
    ready.run(inputs)
    ctypes.memset(counters, 0, ctypes.sizeof(counters))
    runs, start = 0, time.perf_counter()
    while not runs or time.perf_counter() - start < seconds:
        ready.run(inputs)
        runs += 1
        progress("profiling", min(int(time.perf_counter() - start), int(seconds)), int(seconds))
    each = [value / runs for value in counters]
    ready.module.close()
    if each and not any(each):
        raise TargetError("another variant of the program ran here: profile a single one")
    total = sum(each) or 1.0
    timed = [{**kernel, "seconds": value, "share": value / total}
             for kernel, value in zip(report["kernels"], each)]
    progress("measuring the machine's limits", 0, 1)
    return with_limits(timed, roofline(threads), touched_bytes(report))


def _counters(module: Any, kernels: int) -> Any:
    array = ctypes.c_double * kernels
    try:
        return array.in_dll(module._library.c, "smelt_seconds")
    except ValueError:
        raise TargetError("this target cannot count the time of kernels") from None


def sizes_of(ready: Runnable, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Numbers for the open sizes, from the shapes of inputs."""
    known: dict[str, int] = {}
    for spec in ready.inputs:
        for size, actual in zip(spec.dims, inputs[spec.name].shape):
            if isinstance(size, str):
                known.setdefault(size, actual)
    return known


def add_profile(report: Mapping[str, Any], request: Request, dims: Mapping[str, int],
                progress: Progress) -> dict[str, Any]:
    """The report of a model with seconds, shares and limits of its kernels, on random inputs; and
    `limits`, this machine's for one thread."""
    plain = open_artifact_at(compile_to_cache(request, progress=progress).path, 1)
    inputs = random_inputs(plain.inputs, plain.dims(dims), 0, plain.sizes)
    plain.module.close()
    kernels = profile_kernels(request, inputs, progress=progress)
    shares = [k["share"] for k in kernels]
    nodes = [{**n, "share": shares[n["kernel"]]} if n.get("kernel") is not None else n
             for n in report["nodes"]]
    return {**report, "kernels": kernels, "nodes": nodes,
            "seconds": sum(k["seconds"] for k in kernels), "limits": roofline(1).as_dict()}
