"""One self-contained page about a model: its graph with the fusion groups, the arena over time, and
the kernels. Inline SVG, no other file; drawn from the report that `inspect_model` makes."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .layout import place
from .screen import amount, count, duration, printable

MOST_BOXES = 1500
"""Larger graphs are drawn up to this many boxes."""

KINDS = {
    "contraction": ("#c2541b", "matmul, convolution"),
    "row": ("#a5327d", "softmax, normalisation"),
    "reduction": ("#6d4fc2", "reduction, pooling"),
    "elementwise": ("#2468b4", "elementwise"),
    "injective": ("#2f7f79", "data movement"),
    "opaque": ("#7a6a2c", "written-out kernel"),
    "control": ("#a32f2f", "control flow"),
    "source": ("#667085", "constant, range"),
    "other": ("#667085", "other"),
}

STYLE = """
:root { --paper: #fbfbfa; --card: #fff; --ink: #1d2430; --soft: #667085; --line: #d9dde3;
  --edge: #9aa3b2; --hot: #ffb000; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181d; --card: #1d2127; --ink: #e6e8ec;
  --soft: #98a2b3; --line: #363c46; --edge: #667085; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 24px 32px 64px; background: var(--paper);
  color: var(--ink); font: 14px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 34px 0 8px; }
p { margin: 4px 0 10px; color: var(--soft); max-width: 90ch; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 16px 0 0; }
.facts div { min-width: 84px; } .facts b { display: block; font-size: 19px; font-weight: 600; }
.facts span { color: var(--soft); font-size: 12px; }
.frame { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: auto; padding: 14px; }
.graph { max-height: 82vh; resize: vertical; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 6px 0 8px; font-size: 12px;
  color: var(--soft); align-items: center; }
.keys i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; }
.keys button { font: inherit; background: var(--card); color: var(--ink); cursor: pointer;
  border: 1px solid var(--line); border-radius: 5px; padding: 1px 9px; }
svg { display: block; margin: 0 auto; } svg text { fill: var(--ink);
  font: 11px ui-monospace, "DejaVu Sans Mono", monospace; }
svg .soft { fill: var(--soft); font-size: 10px; } svg .head { font-weight: 600; }
svg .edge { fill: none; stroke: var(--edge); stroke-width: 1.2; }
svg .box { fill: var(--card); stroke-width: 1.4; } svg .end { fill: none; stroke: var(--edge);
  stroke-dasharray: 4 3; }
svg .axis { stroke: var(--line); } svg .live { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.hot .box, rect.hot { stroke: var(--hot) !important; stroke-width: 3; }
tr.hot td { background: color-mix(in srgb, var(--hot) 22%, transparent); }
table { border-collapse: collapse; width: 100%; font-size: 12.5px; } th { text-align: left;
  color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); cursor: pointer;
  position: sticky; top: -14px; background: var(--card); white-space: nowrap; }
th, td { padding: 3px 14px 3px 0; } td { border-bottom: 1px solid
  color-mix(in srgb, var(--line) 45%, transparent); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.o { overflow-wrap: anywhere; color: var(--soft); max-width: 60ch; }
.bar { display: inline-block; height: 9px; border-radius: 2px; background: #c2541b;
  margin-right: 7px; }
.tall { max-height: 60vh; }
"""

SCRIPT = """
for (const e of document.querySelectorAll('[data-k]')) {
  const same = () => document.querySelectorAll(`[data-k="${e.dataset.k}"]`);
  e.addEventListener('mouseenter', () => same().forEach(x => x.classList.add('hot')));
  e.addEventListener('mouseleave', () => same().forEach(x => x.classList.remove('hot')));
}
for (const th of document.querySelectorAll('th')) th.addEventListener('click', () => {
  const body = th.closest('table').tBodies[0], column = th.cellIndex;
  const key = r => { const t = r.cells[column].dataset.v ?? r.cells[column].textContent;
    return isNaN(parseFloat(t)) ? t : parseFloat(t); };
  const down = th.dataset.down = th.dataset.down === '1' ? '0' : '1';
  [...body.rows].sort((a, b) => { const x = key(a), y = key(b);
    return (x < y ? 1 : x > y ? -1 : 0) * (down === '1' ? 1 : -1); })
    .forEach(r => body.appendChild(r)); });
const svg = document.querySelector('.graph svg');
if (svg) { const w = +svg.getAttribute('width'), h = +svg.getAttribute('height'); let z = 1;
  const zoom = f => { z = f ? Math.min(4, Math.max(0.05, z * f)) : 1;
    svg.setAttribute('width', w * z); svg.setAttribute('height', h * z); };
  const fit = () => { z = 1; zoom(Math.min(1, (svg.parentNode.clientWidth - 30) / w)); };
  document.querySelectorAll('[data-zoom]').forEach(b => b.addEventListener('click', () =>
    b.dataset.zoom === 'fit' ? fit() : zoom(+b.dataset.zoom))); }
"""


def page(report: Mapping[str, Any]) -> str:
    """The page as text; `report` as made by `inspect_model.report`."""
    name = _text(report["name"])
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{name} · smelt</title><style>{STYLE}</style>",
        f"<h1>{name}</h1><p>{_text(_subtitle(report))}</p>",
        _facts(report),
        _signature(report),
    ]
    if report.get("nodes"):
        parts.append(_graph(report))
    if report.get("arena_plan"):
        parts.append(_arena(report))
    if report.get("kernels"):
        parts.append(_kernels(report))
    if report.get("notes"):
        parts.append("<h2>Decisions</h2><ul>" + "".join(
            f"<li>{_text(note, 400)}" for note in report["notes"]) + "</ul>")
    parts.append(f"<script>{SCRIPT}</script></html>\n")
    return "".join(parts)


def _text(value: object, limit: int = 200) -> str:
    return html.escape(printable(value, limit))


def _subtitle(report: Mapping[str, Any]) -> str:
    parts = [f"compiled for {report['target']}"] if report.get("target") else []
    parts.append(f"smelt {report['smelt']}")
    if report.get("sizes"):
        parts.append("sizes " + ", ".join(f"{k} = {v}" for k, v in report["sizes"].items()))
    return " · ".join(parts)


def _facts(report: Mapping[str, Any]) -> str:
    facts: list[tuple[str, str]] = []
    kernels = report.get("kernels") or []
    boxes = [n for n in report.get("nodes") or [] if n["kind"] not in ("input", "output")]
    if boxes:
        facts += [(str(sum(len(n["ops"]) for n in boxes)), "operators"),
                  (str(sum(len(n["ops"]) > 1 for n in boxes)), "fusion groups")]
    if kernels:
        facts.append((str(len(kernels)), "kernels"))
        facts.append((str(sum(k["launches"] for k in kernels)), "launches"))
    work = [k["flops"] * k["launches"] for k in kernels if isinstance(k["flops"], int)]
    if work:
        facts.append((count(sum(work)), "floating-point operations"))
    for key, label in (("weights", "weights"), ("code", "code"), ("arena", "arena"),
                       ("flash", "flash"), ("ram", "RAM")):
        if isinstance(report.get(key), int):
            facts.append((amount(report[key]), label))
    if report.get("seconds"):
        facts.append((duration(report["seconds"]), "one run, measured"))
    cells = "".join(f"<div><b>{_text(v)}</b><span>{_text(k)}</span></div>" for v, k in facts)
    return f"<div class=facts>{cells}</div>"


def _signature(report: Mapping[str, Any]) -> str:
    rows = []
    for kind in ("inputs", "outputs"):
        for spec in report.get(kind) or []:
            shape = " × ".join(str(d) for d in spec["shape"]) or "scalar"
            rows.append(f"<tr><td>{kind[:-1]}<td>{_text(spec['name'])}<td>{_text(spec['dtype'])}"
                        f"<td>{_text(shape)}")
    return ("<h2>Signature</h2><div class=frame><table><thead><tr><th>role<th>name<th>type"
            f"<th>shape<tbody>{''.join(rows)}</table></div>") if rows else ""


# The graph ---------------------------------------------------------------------------------------

CHAR = 6.65  # width of a monospace character at 11 pixels


def _graph(report: Mapping[str, Any]) -> str:
    nodes: Sequence[Mapping[str, Any]] = report["nodes"][:MOST_BOXES]
    edges = [(a, b) for a, b in report["edges"] if a < len(nodes) and b < len(nodes)]
    lines = [_lines(node) for node in nodes]
    sizes = [(max(CHAR * max(len(t) for t, _ in rows), 46) + 18, 14.0 * len(rows) + 9)
             for rows in lines]
    placement = place(sizes, edges, sweeps=12 if len(nodes) < 400 else 6)
    drawn = []
    hidden: dict[int, list[int]] = {}
    for (a, b), route in zip(edges, placement.routes):
        if route is None:
            hidden.setdefault(b, []).append(a)
        else:
            title = _text(nodes[a].get("output", ""))
            drawn.append(f"<path class=edge d='{_curve(route)}' marker-end='url(#arrow)'>"
                         f"<title>{title}</title></path>")
    for i, (node, rows, size, at) in enumerate(zip(nodes, lines, sizes, placement.centers)):
        drawn.append(_box(node, rows, size, at, [nodes[a] for a in hidden.get(i, [])]))
    used = [k for k in KINDS if any(n["kind"] == k for n in nodes)]
    keys = "".join(f"<span><i style='background:{KINDS[k][0]}'></i>{KINDS[k][1]}</span>"
                   for k in used)
    zoom = ("<span><button data-zoom=0.8>−</button> <button data-zoom=1.25>+</button> "
            "<button data-zoom=0>1:1</button> <button data-zoom=fit>fit</button></span>")
    note = ("Each box is one fusion group: a filled title where several operators became one "
            "kernel. Hover to find a group's kernel and memory below.")
    if len(report["nodes"]) > len(nodes):
        note += f" Drawn are the first {len(nodes)} of {len(report['nodes'])} boxes."
    w, h = placement.width + 4, placement.height + 4
    return (f"<h2>Graph</h2><p>{note}</p><div class=keys>{keys}{zoom}</div>"
            f"<div class='frame graph'><svg width={w:.0f} height={h:.0f} "
            f"viewBox='-2 -2 {w:.0f} {h:.0f}'>"
            "<defs><marker id=arrow viewBox='0 0 8 8' refX=7 refY=4 markerWidth=7 markerHeight=7 "
            "orient=auto><path d='M0 1 8 4 0 7z' fill='var(--edge)'/></marker></defs>"
            f"{''.join(drawn)}</svg></div>")


def _lines(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The text of a box: (line, class)."""
    if node["kind"] in ("input", "output"):
        return [(printable(node["name"], 30), "head"), (printable(node["output"], 36), "soft")]
    first, *more = _wrapped(node["ops"], 34, 4)
    rows = [(first, "head"), *((line, "") for line in more)]
    if node.get("output"):
        rows.append((printable(node["output"], 40), "soft"))
    facts = []
    if isinstance(node.get("flops"), int) and node["flops"]:
        facts.append(count(node["flops"], "FLOP"))
    if node.get("weights"):
        facts.append(f"{amount(node['weights'])} weights")
    if node.get("share") is not None:
        facts.append(f"{node['share']:.1%} of time")
    if facts:
        rows.append((" · ".join(facts), "soft"))
    return rows


def _wrapped(ops: Sequence[str], columns: int, most: int) -> list[str]:
    runs: list[list[Any]] = []
    for op in ops:
        if runs and runs[-1][0] == op:
            runs[-1][1] += 1
        else:
            runs.append([op, 1])
    lines, line = [], ""
    words = [op if n == 1 else f"{op}×{n}" for op, n in runs]
    for i, word in enumerate(words):
        longer = f"{line} · {word}" if line else word
        if len(longer) <= columns or not line:
            line = longer
            continue
        if len(lines) + 1 == most:
            lines.append(f"{line} … {len(words) - i} more")
            return lines
        lines.append(line)
        line = word
    return [*lines, line]


def _box(node: Mapping[str, Any], rows: list[tuple[str, str]], size: tuple[float, float],
         at: tuple[float, float], hidden: list[Mapping[str, Any]]) -> str:
    (w, h), (x, y) = size, at
    left, top = x - w / 2, y - h / 2
    colour = KINDS.get(node["kind"], KINDS["other"])[0]
    end = node["kind"] in ("input", "output")
    group = not end and len(node["ops"]) > 1
    title = [node.get("origin") or node.get("name") or ""]
    if group:
        title.append("operators: " + ", ".join(node["ops"]))
    title += [f"also reads {n.get('origin') or n.get('name')} (far above)" for n in hidden]
    link = f" data-k='{node['kernel']}'" if node.get("kernel") is not None else ""
    out = [f"<g{link}><title>{html.escape(chr(10).join(printable(t, 400) for t in title))}</title>"]
    if end:
        out.append(f"<rect class='box end' x={left:.1f} y={top:.1f} width={w:.1f} height={h:.1f} "
                   f"rx={h / 2:.1f} />")
    else:
        out.append(f"<rect class=box x={left:.1f} y={top:.1f} width={w:.1f} height={h:.1f} rx=5 "
                   f"stroke='{colour}' />")
        band = 18 if group else 4
        out.append(f"<path d='M{left:.1f} {top + band:.1f}v{5 - band:.1f}a5 5 0 0 1 5 -5"
                   f"h{w - 10:.1f}a5 5 0 0 1 5 5v{band - 5:.1f}z' fill='{colour}' />")
    for i, (text, style) in enumerate(rows):
        fill = " style='fill:#fff'" if group and i == 0 else ""
        out.append(f"<text class='{style}'{fill} x={x:.1f} y={top + 14 + 14 * i:.1f} "
                   f"text-anchor=middle>{html.escape(text)}</text>")
    out.append("</g>")
    return "".join(out)


def _curve(points: list[tuple[float, float]]) -> str:
    """A path that leaves and enters every point vertically."""
    text = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if abs(x0 - x1) < 0.5:
            text += f"L{x1:.1f} {y1:.1f}"
        else:
            bend = (y1 - y0) * 0.5
            text += f"C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
    return text


# The arena ---------------------------------------------------------------------------------------


def _arena(report: Mapping[str, Any]) -> str:
    """Temporaries as rectangles: steps to the right, bytes upwards."""
    plan: Sequence[Mapping[str, Any]] = report["arena_plan"]
    steps = max(max(p["last"] for p in plan) + 1, 1)
    size = max(p["offset"] + p["bytes"] for p in plan) or 1
    left, height, bottom = 76, 380, 26
    scale = min(max(1100 / steps, 2.5), 90)
    width = steps * scale
    unit = _tick(size / 5)
    out = []
    for k in range(int(size / unit) + 1):
        y = 8 + height - k * unit / size * height
        out.append(f"<line class=axis x1={left} x2={left + width:.1f} y1={y:.1f} y2={y:.1f} />"
                   f"<text class=soft x={left - 8} y={y + 4:.1f} text-anchor=end>"
                   f"{amount(k * unit)}</text>")
    every = _tick(steps / 12)
    for step in range(0, steps + 1, max(int(every), 1)):
        x = left + step * scale
        out.append(f"<line class=axis x1={x:.1f} x2={x:.1f} y1={8 + height} y2={12 + height} />"
                   f"<text class=soft x={x:.1f} y={height + 24} text-anchor=middle>{step}</text>")
    live = [0] * steps
    for i, p in enumerate(plan):
        w = (p["last"] - p["first"] + 1) * scale
        h = p["bytes"] / size * height
        x, y = left + p["first"] * scale, 8 + height - p["offset"] / size * height - h
        hue = i * 137.508 % 360  # golden angle: neighbours in time differ
        what = (f"{p['name']}: {p['type']}, {amount(p['bytes'])} at {p['offset']}, "
                f"steps {p['first']} to {p['last']}")
        link = f" data-k='{p['kernel']}'" if p.get("kernel") is not None else ""
        out.append(f"<rect{link} x={x:.1f} y={y:.1f} width={max(w - 0.6, 0.8):.1f} "
                   f"height={max(h - 0.4, 0.6):.1f} fill='hsl({hue:.0f} 52% 58%)' "
                   f"fill-opacity=.82 stroke='hsl({hue:.0f} 52% 38%)' stroke-width=.6>"
                   f"<title>{_text(what, 400)}</title></rect>")
        if w > 70 and h > 13:
            label = printable(p["type"], max(int(w / CHAR) - 1, 1))
            out.append(f"<text x={x + 5:.1f} y={y + min(h / 2 + 4, 13):.1f} "
                       f"style='fill:#111;pointer-events:none'>{html.escape(label)}</text>")
        for step in range(p["first"], p["last"] + 1):
            live[step] += p["bytes"]
    path = ""
    for step, held in enumerate(live):
        y = 8 + height - held / size * height
        path += (f"{'L' if path else 'M'}{left + step * scale:.1f} {y:.1f}"
                 f"H{left + (step + 1) * scale:.1f}")
    out.append(f"<path class=live d='{path}'><title>bytes in use</title></path>")
    total = sum(p["bytes"] for p in plan)
    note = (f"{len(plan)} temporaries of {amount(total)} together share {amount(size)}; the most "
            f"in use at one step is {amount(max(live))} (the black line). Steps run to the right, "
            "addresses upwards.")
    return (f"<h2>Arena</h2><p>{note}</p><div class=frame><svg width={left + width + 20:.0f} "
            f"height={height + bottom + 10}>{''.join(out)}</svg></div>")


def _tick(about: float) -> float:
    """A round number (1, 2 or 5 times a power of ten) near `about`."""
    power = 10 ** math.floor(math.log10(max(about, 1)))
    return min((power * k for k in (1, 2, 5, 10)), key=lambda v: abs(v - about))


# The kernels -------------------------------------------------------------------------------------


def _kernels(report: Mapping[str, Any]) -> str:
    kernels = list(enumerate(report["kernels"]))
    timed = any(k.get("share") is not None for _, k in kernels)
    if timed:
        kernels.sort(key=lambda e: -(e[1].get("share") or 0))
    heads = "<th>kernel<th>from<th class=n>launches<th class=n>FLOP<th class=n>bytes"
    note = ""
    if timed:
        heads += "<th class=n>time<th>share<th class=n>limit<th class=n>of limit<th class=n>lost"
        note = _limits(report.get("limits"))
    rows = []
    for i, k in kernels:
        row = (f"<tr data-k='{i}'><td>{_text(k['name'])}<td class=o>{_text(k['origin'], 160)}"
               f"<td class=n>{k['launches']}{_cell(k['flops'], count)}{_cell(k['bytes'], amount)}")
        if timed:
            share, seconds = k.get("share") or 0.0, k.get("seconds") or 0.0
            row += (f"<td class=n data-v='{seconds:.9f}'>{duration(seconds)}"
                    f"<td data-v='{share:.6f}'><span class=bar style='width:{share * 160:.0f}px'>"
                    f"</span>{share:.1%}{_limit_cells(k)}")
        rows.append(row)
    return (f"<h2>Kernels</h2>{note}<div class='frame tall'><table><thead><tr>{heads}<tbody>"
            f"{''.join(rows)}</table></div>")


def _limits(limits: Mapping[str, Any] | None) -> str:
    """What the limits of kernels are from."""
    if not limits:
        return ""
    rates = ", ".join(f"{rate / 1e9:.0f} GB/s over {amount(size)}"
                      for size, rate in limits["bandwidths"])
    return (f"<p>A kernel's limit is its operations at {limits['flops'] / 1e9:.0f} GFLOP/s in f32, "
            f"or its bytes at the rate of what holds the whole model's: {rates}; what takes "
            "longer. Lost is the time above it: click a head to sort, for the worst offender "
            "by the last.")


def _limit_cells(kernel: Mapping[str, Any]) -> str:
    """Limit, of limit, lost; empty where the amount of work is not known."""
    if kernel.get("limit") is None:
        return "<td class=n data-v='-1'><td class=n data-v='-1'><td class=n data-v='-1'>"
    near, lost = kernel["of_limit"], kernel["lost"]
    part = ("<td class=n data-v='-1'>" if near is None else
            f"<td class=n data-v='{near:.4f}'>{near:.0%}")
    return (f"<td class=n data-v='{kernel['limit']:.9f}'>{duration(kernel['limit'])}{part}"
            f"<td class=n data-v='{lost:.9f}'>{duration(lost)}")


def _cell(value: Any, form: Any) -> str:
    if isinstance(value, int):
        return f"<td class=n data-v='{value}'>{form(value)}"
    return f"<td class=n>{_text(value)}"
