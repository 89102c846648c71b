"""What a design is expected to do: cycles, intervals and resources, each with where it is from."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from ...passes.dataflow.assembly import Design, Placed
from .parts import Part
from .resources import Usage

PIPELINE_STAGES = 8
"""Cycles that a stage takes from a word in to a word out, about, besides its iterations."""
MODELLED = "modelled"


def describe_design(design: Design, part: Part, megahertz: float,
                    usage: Mapping[str, Usage]) -> dict[str, Any]:
    """The report of a design. Figures are `modelled`: cycles from the loops of the kernels,
    resources from their shapes. No vendor's tool was asked."""
    total = sum(usage.values(), Usage())
    slowest = design.bottleneck
    shares = total.shares(part)
    inner = [f for f in design.fifos if not f.outside]
    return {
        "part": part.name, "megahertz": megahertz, "source": MODELLED,
        "interval": design.interval,
        "frames_per_second": megahertz * 1e6 / design.interval,
        "latency": latency(design),
        "bottleneck": {"stage": slowest.name, "origin": _origin(slowest),
                       "cycles": slowest.cycles},
        "resources": {**total.as_dict(), "source": MODELLED,
                      "share": {k: round(v, 4) for k, v in shares.items()}},
        "fifo_bits": sum(f.bits * f.depth for f in inner),
        "stages": [{"name": p.name, "kind": p.kind, "origin": _origin(p), "cycles": p.cycles,
                    "ii": 1, "lanes_in": [f.lanes for f in p.fifos[:-p.stage.kernel.outputs]],
                    "lanes_out": p.fifos[-1].lanes, **usage[p.name].as_dict(),
                    "source": MODELLED} for p in design.stages],
        "fifos": [{"name": f.name, "bits": f.bits, "depth": f.depth, "words": f.words}
                  for f in inner],
    }


def latency(design: Design) -> int:
    """Cycles from the first word in to the last word out, at most: no stage waits for the whole
    frame of the one before it, so the slowest and the others' pipelines bound it from below; the
    sum of all stages bounds it from above. The path of most cycles is given."""
    until: dict = {}
    for p in design.stages:
        outputs = p.stage.kernel.outputs
        start = max((until.get(f, 0) for f in p.fifos[:-outputs]), default=0)
        for f in p.fifos[-outputs:]:
            until[f] = start + p.cycles + PIPELINE_STAGES
    return max(until.values(), default=0)


def _origin(placed: Placed) -> str:
    return placed.layer.origin if placed.layer is not None else ""


def page(report: Mapping[str, Any], name: str) -> str:
    """The report as one HTML page without scripts."""
    def row(cells, tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    resources = report["resources"]
    facts = [("part", report["part"]), ("clock", f"{report['megahertz']:g} MHz"),
             ("cycles from frame to frame", report["interval"]),
             ("frames per second", f"{report['frames_per_second']:,.0f}"),
             ("latency, at most (cycles)", report["latency"]),
             ("bottleneck", f"{report['bottleneck']['stage']}: {report['bottleneck']['origin']}"),
             ("bits in FIFOs", report["fifo_bits"]),
             *((k, f"{resources[k]:,} ({resources['share'][k]:.1%})")
               for k in ("LUT", "FF", "DSP", "BRAM")), ("figures are", report["source"])]
    heads = ("name", "origin", "cycles", "ii", "lanes_in", "lanes_out", "LUT", "FF", "DSP", "BRAM",
             "source")
    stages = "".join(row(s[h] for h in heads) for s in report["stages"])
    queues = "".join(row((f["name"], f["bits"], f["depth"], f["words"])) for f in report["fifos"])
    return (f"<!doctype html><meta charset=utf-8><title>{html.escape(name)}</title><style>"
            "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
            "td,th{border:1px solid #bbb;padding:2px 8px;text-align:left}</style>"
            f"<h1>{html.escape(name)}</h1><table>{''.join(map(row, facts))}</table>"
            f"<h2>Stages</h2><table>{row(heads, 'th')}{stages}</table>"
            f"<h2>FIFOs</h2><table>{row(('name', 'bits', 'depth', 'words'), 'th')}{queues}</table>")
