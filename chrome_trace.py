"""A profile as a trace of complete events, for chrome://tracing and Perfetto.

The Trace Event Format (Google, "Trace Event Format", JSON object form). Clocks in the compiled
program add up each kernel's time; the trace lays the averages end to end in program order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import data

PROCESS, THREAD = 1, 1


def events(kernels: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """The events: names of process and thread, then one event a kernel. Times in microseconds."""
    found = [_metadata("process_name", f"{name} (smelt)"), _metadata("thread_name", "kernels")]
    at = 0.0
    for kernel in kernels:
        micros = 1e6 * (kernel.get("seconds") or 0.0)
        found.append({"name": kernel["name"], "cat": "kernel", "ph": "X", "pid": PROCESS,
                      "tid": THREAD, "ts": round(at, 4), "dur": round(micros, 4),
                      "args": _arguments(kernel)})
        at += micros
    return found


def _metadata(kind: str, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": PROCESS, "tid": THREAD, "args": {"name": name}}


def _arguments(kernel: Mapping[str, Any]) -> dict[str, Any]:
    """Of all launches in a run together: flops, bytes, rates, the limit and how near it is."""
    launches, seconds = kernel["launches"], kernel.get("seconds")
    found: dict[str, Any] = {"source node": kernel["origin"], "launches": launches}
    for key in ("flops", "bytes"):
        amount = kernel[key]
        found[key] = amount * launches if isinstance(amount, int) else amount
        if seconds and isinstance(amount, int):
            rate = "GFLOP/s" if key == "flops" else "GB/s"
            found[rate] = round(amount * launches / seconds / 1e9, 3)
    if kernel.get("limit") is not None:
        found["limit (us)"] = round(1e6 * kernel["limit"], 4)
        found["above limit (us)"] = round(1e6 * kernel["lost"], 4)
    if kernel.get("of_limit") is not None:
        found["of limit"] = f"{kernel['of_limit']:.0%}"
    return found


def write_trace(path: Path, kernels: Sequence[Mapping[str, Any]], name: str) -> None:
    """Writes a profile of `kernels`, in program order, as JSON. Raises OutputError."""
    data.write_text(path, json.dumps({
        "traceEvents": events(kernels, name), "displayTimeUnit": "ns",
        "otherData": {"what": "average seconds of each kernel in a run, end to end"}}) + "\n")
