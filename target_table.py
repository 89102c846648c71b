"""The table of `smelt targets`: every target with its state and the tools found for it."""

from __future__ import annotations

from typing import Any

from .errors import SmeltError

PLANNED = {
    "webgpu": "browsers and WebGPU devices: WGSL and an ES module",
    "fpga": "FPGAs: an HLS dataflow project",
}
"""Families of the design that do not exist yet."""


def target_rows() -> list[dict[str, Any]]:
    """One row a target: name, state ("ready", "needs tools" or "planned"), what, toolchain."""
    from .targets.base import families, find_target

    rows = []
    made = families()
    for family in made:
        for spec in _specs(family):
            try:
                facts = find_target(spec).describe()
            except SmeltError as error:
                facts = {"doc": "", "toolchain": f"no: {error}"}
            tool = facts.get("toolchain", "")
            state = "needs tools" if tool.startswith("no") else "ready"
            rows.append({"name": spec, "state": state, "what": facts.get("doc", ""),
                         "toolchain": tool})
    rows += [{"name": name, "state": "planned", "what": what, "toolchain": ""}
             for name, what in PLANNED.items() if name not in made]
    return rows


def _specs(family: str) -> list[str]:
    if family == "cuda":
        from .targets.cuda.target import EMULATED, SUGGESTED

        return [f"cuda:{name}" for name in (*SUGGESTED, EMULATED)]
    if family != "cpu":
        return [family]
    from .targets.cpu.isa import VARIANTS

    return ["cpu", *(f"cpu:{name}" for name in VARIANTS), "cpu:generic"]
