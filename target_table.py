"""The table of `smelt targets`: every target with its state and the tools found for it."""

from __future__ import annotations

from typing import Any

from .errors import SmeltError


def target_rows() -> list[dict[str, Any]]:
    """One row a target: name, state ("ready" or "needs tools"), what, toolchain."""
    from .targets.base import families, find_target

    rows = []
    for family in families():
        for spec in _specs(family):
            try:
                facts = find_target(spec).describe()
            except SmeltError as error:
                facts = {"doc": "", "toolchain": f"no: {error}"}
            tool = facts.get("toolchain", "")
            state = "needs tools" if tool.startswith("no") else "ready"
            rows.append({"name": spec, "state": state, "what": facts.get("doc", ""),
                         "toolchain": tool})
    return rows


def _specs(family: str) -> list[str]:
    if family == "fpga":
        from .targets.fpga.parts import PARTS

        return [f"fpga:{part}" for part in PARTS]
    if family == "cuda":
        from .targets.cuda.target import EMULATED, SUGGESTED

        return [f"cuda:{name}" for name in (*SUGGESTED, EMULATED)]
    if family != "cpu":
        return [family]
    from .targets.cpu.isa import VARIANTS

    return ["cpu", *(f"cpu:{name}" for name in VARIANTS), "cpu:generic"]
