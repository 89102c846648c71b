"""What the suite's timings come to: means, tables and a plot. Works on the suite's JSON alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines import PRECISIONS

from smelt.measure import NAMES

Report = Mapping[str, Any]


def precision_of(engine: str) -> str:
    """What an engine computes f32 models in."""
    return PRECISIONS.get(engine, "f32")


def geomean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def best_peer(ratios: Mapping[str, float], precision: str) -> tuple[str, float] | None:
    """The quickest of the peers that compute in this precision, and its time over smelt's."""
    same = {p: r for p, r in ratios.items() if precision_of(p) == precision}
    return min(same.items(), key=lambda item: item[1]) if same else None


def summary(report: Report) -> dict[str, Any]:
    """Geometric means by number of threads: of each peer's ratios, and of the best peers'. And
    smelt's time on the first number of threads over that on the others."""
    means: dict[str, dict[str, float | None]] = {}
    models = report["models"].values()
    for threads in map(str, report["threads"]):
        rows = [m["threads"][threads] for m in models if threads in m.get("threads", {})]
        means[threads] = {p: geomean([r["ratios"][p] for r in rows if p in r["ratios"]])
                          for p in report["peers"]}
        means[threads]["best"] = geomean([r["best"]["ratio"] for r in rows if r.get("best")])
    gains = {str(n): geomean([m["scaling"][str(n)] for m in models
                              if str(n) in m.get("scaling", {})]) for n in report["threads"][1:]}
    return {"geomean": means, "scaling": gains}


def scaling(row: Mapping[str, Any]) -> dict[str, float]:
    """smelt's time on the first number of threads over its time on each other."""
    times = {n: e["seconds"] for n, r in row.items() for e in r["engines"]
             if e["engine"] == "smelt"}
    first, *others = times or [""]
    return {n: times[first] / times[n] for n in others}


# Tables ------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
            *("| " + " | ".join(row) + " |" for row in rows)]


def number(value: float | None, form: str = ".2f", scale: float = 1.0) -> str:
    return "" if value is None or math.isnan(value) else format(value * scale, form)


def markdown(report: Report) -> str:
    """The whole report as tables."""
    lines = [f"{report['machine'].get('cpu')}; smelt compiles to {report['precision']}. Medians of "
             "interleaved rounds; ratios are a peer's time over smelt's, round by round. Best is "
             "the quickest peer of the same precision."]
    for threads in map(str, report["threads"]):
        lines += ["", f"{threads} thread{'s' if threads != '1' else ''}, milliseconds:", "",
                  *_times(report, threads)]
    lines += ["", "smelt's builds, and the most memory that each engine's process held while it "
              "loaded and ran, Python included (torch.compile: its compiler, too):", "",
              *_builds(report)]
    lines += ["", "Milliseconds to load; in brackets seconds to compile, for those that compile "
              "apart from loading:", "", *_loads(report)]
    notes = _notes(report)
    return "\n".join([*lines, *(["", "Left out:", "", *notes] if notes else [])]) + "\n"


def _notes(report: Report) -> list[str]:
    """What is missing in the tables, and why; said once for all numbers of threads."""
    notes = [f"- {name}: {why}" for name, m in report["models"].items()
             for row in m.get("threads", {}).values()
             for why in [*row["failures"].values(), *_unlimited(row)]]
    notes += [f"- {name}: {m['error']}" for name, m in report["models"].items() if "error" in m]
    notes += [f"- {note}" for note in report.get("notes", ())]
    if "torch-compile" in report["peers"]:
        notes.append("- torch.compile: runs the zoo's models only, which are torch modules")
    return list(dict.fromkeys(notes))


def _unlimited(row: Mapping[str, Any]) -> list[str]:
    return [f"{NAMES[e['engine']]} kept {e['cores']:.1f} processors busy: its ratio does not count"
            for e in row["engines"] if not e["threads_limited"]]


def _times(report: Report, threads: str) -> list[str]:
    peers, rows = report["peers"], []
    for name, model in report["models"].items():
        row = model.get("threads", {}).get(threads)
        if row is None:
            continue
        times = {e["engine"]: e["seconds"] for e in row["engines"]}
        best = row.get("best")
        cells = [name, *(number(times.get(e), ".3f", 1e3) for e in ("smelt", *peers)),
                 *(number(row["ratios"].get(p)) for p in peers),
                 f"{best['ratio']:.2f} {NAMES[best['peer']]}" if best else ""]
        if threads != str(report["threads"][0]):
            cells.append(number(model.get("scaling", {}).get(threads)))
        rows.append(cells)
    means = report["geomean"][threads]
    last = ["geometric mean", *[""] * (1 + len(peers)), *(number(means[p]) for p in peers),
            number(means["best"])]
    head = ["model", *(NAMES[e] for e in ("smelt", *peers)),
            *(f"{NAMES[p]} / smelt" for p in peers), "best"]
    if threads != str(report["threads"][0]):
        head.append(f"smelt: {report['threads'][0]} to {threads} threads")
        last.append(number(report["scaling"].get(threads)))
    return table(head, [*rows, last])


def _builds(report: Report) -> list[str]:
    first, rows = str(report["threads"][0]), []
    for name, model in report["models"].items():
        if "compile" not in model:
            continue
        engines = model["threads"].get(first, {"engines": []})["engines"]
        used = {e["engine"]: e["peak_memory"] for e in engines}
        rows.append([name, number(model["compile"]["cold"], ".2f"),
                     number(model["compile"]["cached"], ".1f", 1e3),
                     number(model["code"], ".0f", 1e-3), number(model["weights"], ".1f", 1e-6),
                     *(number(used.get(e), ".0f", 1e-6) for e in ("smelt", *report["peers"]))])
    return table(["model", "compile s", "from cache ms", "code kB", "weights MB",
                  *(f"{NAMES[e]} MB" for e in ("smelt", *report["peers"]))], rows)


def _loads(report: Report) -> list[str]:
    first, rows = str(report["threads"][0]), []
    for name, model in report["models"].items():
        if first not in model.get("threads", {}):
            continue
        held = {e["engine"]: e for e in model["threads"][first]["engines"]}
        cells = [name]
        for engine in ("smelt", *report["peers"]):
            facts = held.get(engine)
            compiled = model["compile"]["cold"] if engine == "smelt" else (
                facts and facts["compile_seconds"])
            text = number(facts and facts["load_seconds"], ".1f", 1e3)
            if facts and compiled:
                text += f" ({compiled:.1f})"
            cells.append(text)
        rows.append(cells)
    return table(["model", *(NAMES[e] for e in ("smelt", *report["peers"]))], rows)


# The plot ----------------------------------------------------------------------------------------


def bars(report: Report, threads: str) -> tuple[list[str], dict[str, list[float]]]:
    """What the plot shows: the models, and for every peer its ratio on each, NaN where none."""
    rows = {n: m["threads"][threads]["ratios"] for n, m in report["models"].items()
            if threads in m.get("threads", {})}
    return list(rows), {p: [r.get(p, math.nan) for r in rows.values()] for p in report["peers"]
                        if any(p in r for r in rows.values())}


def plot(report: Report, path: Path) -> None:
    """Draws the ratios as bars, one group a model, to a PNG or SVG file. Needs matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    counts = [str(n) for n in report["threads"]]
    most = max([len(bars(report, n)[0]) for n in counts] + [1])
    figure, axes = pyplot.subplots(
        len(counts), 1, squeeze=False, layout="constrained",
        figsize=(max(7.0, 2.0 + 0.55 * most), 3.6 * len(counts)))
    held: tuple[list[Any], list[Any]] = ([], [])
    for axis, threads in zip(axes[:, 0], counts):
        names, groups = bars(report, threads)
        width = 0.8 / max(len(groups), 1)
        for k, (peer, values) in enumerate(groups.items()):
            # From 1, where smelt is: bars down are peers that are quicker.
            axis.bar([i - 0.4 + width * (k + 0.5) for i in range(len(names))],
                     [v - 1 for v in values], width, 1, label=NAMES[peer],
                     color=f"C{report['peers'].index(peer)}")
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set_yscale("log")
        ticks = [t for t in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 30, 100)]
        seen = [v for values in groups.values() for v in values if not math.isnan(v)] or [1.0]
        axis.set_ylim(min(0.7, 0.9 * min(seen)), max(2.0, 1.15 * max(seen)))
        axis.set_yticks([t for t in ticks if axis.get_ylim()[0] <= t <= axis.get_ylim()[1]])
        axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        axis.set_ylabel("time / smelt's time")
        axis.set_title(f"{threads} thread{'s' if threads != '1' else ''}: bars up are slower than "
                       "smelt", fontsize=9)
        held = axis.get_legend_handles_labels()
    if held[0]:
        figure.legend(*held, loc="outside upper center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
