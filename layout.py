"""Places a directed acyclic graph in layers, for drawing.

Sugiyama, Tagawa & Toda 1981: layers by longest path, order within layers by barycentres, then
positions. Positions minimise the squared distance to the neighbours in the layer before, which
with a fixed order is isotonic regression (pool adjacent violators).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Placement:
    """`centers`: x, y of every box. `routes`: points of every edge from box to box, ends on the
    boxes' rims; None for an edge that spans too many layers to be worth a line."""

    width: float
    height: float
    centers: list[Point]
    routes: list[list[Point] | None]


def place(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], *,
          gap: float = 24, layer_gap: float = 34, longest: int = 40, sweeps: int = 12) -> Placement:
    """Places boxes of `sizes` (width, height) so that every edge (from, to) points down.

    The edges must be free of cycles: from < to in some topological numbering. Edges over more than
    `longest` layers are left out of the drawing.
    """
    count = len(sizes)
    if not count:
        return Placement(0, 0, [], [])
    layer = _layers(count, edges)
    drawn = [layer[b] - layer[a] <= longest for a, b in edges]
    # One entry per box, then one per layer that an edge passes through.
    widths = [w for w, _ in sizes]
    level = list(layer)
    chains: list[list[int]] = []
    for (a, b), keep in zip(edges, drawn):
        chain = [a]
        if keep:
            for between in range(layer[a] + 1, layer[b]):
                chain.append(len(widths))
                widths.append(8.0)
                level.append(between)
        chain.append(b)
        chains.append(chain)
    above: list[list[int]] = [[] for _ in widths]
    below: list[list[int]] = [[] for _ in widths]
    for chain, keep in zip(chains, drawn):
        if keep:
            for a, b in zip(chain, chain[1:]):
                below[a].append(b)
                above[b].append(a)
    rows: list[list[int]] = [[] for _ in range(max(level) + 1)]
    for item, at in enumerate(level):
        rows[at].append(item)
    _order(rows, above, below, sweeps)
    x = _positions(rows, above, below, widths, gap, count, sweeps)

    y, top = [0.0] * len(rows), 0.0
    heights = [max((sizes[i][1] for i in row if i < count), default=0.0) for row in rows]
    for at, height in enumerate(heights):
        y[at] = top + height / 2
        top += height + layer_gap
    left = min(x[i] - widths[i] / 2 for i in range(len(x)))
    x = [value - left for value in x]
    routes: list[list[Point] | None] = []
    for chain, keep in zip(chains, drawn):
        if not keep:
            routes.append(None)
            continue
        a, b = chain[0], chain[-1]
        points = [(x[a], y[level[a]] + sizes[a][1] / 2)]
        for i in chain[1:-1]:
            half = heights[level[i]] / 2
            points += [(x[i], y[level[i]] - half), (x[i], y[level[i]] + half)]
        points.append((x[b], y[level[b]] - sizes[b][1] / 2))
        routes.append(points)
    width = max(x[i] + widths[i] / 2 for i in range(len(x)))
    centers = [(x[i], y[level[i]]) for i in range(count)]
    return Placement(width, top - layer_gap, centers, routes)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for a, b in edges:
        before[b].append(a)
        after[a].append(b)
        waiting[b] += 1
    ready = [i for i in range(count) if not waiting[i]]
    layer = [0] * count
    order: list[int] = []
    while ready:
        i = ready.pop()
        order.append(i)
        for j in after[i]:
            layer[j] = max(layer[j], layer[i] + 1)
            waiting[j] -= 1
            if not waiting[j]:
                ready.append(j)
    if len(order) != count:
        raise ValueError("the graph to place has a cycle")
    # What nothing precedes moves down next to what uses it.
    for i in reversed(order):
        if not before[i] and after[i]:
            layer[i] = max(0, min(layer[j] for j in after[i]) - 1)
    return layer


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]],
           sweeps: int) -> None:
    best, fewest = [list(r) for r in rows], _all_crossings(rows, below)
    for sweep in range(sweeps):
        if not fewest:
            break
        downward = sweep % 2 == 0
        indices = range(1, len(rows)) if downward else range(len(rows) - 2, -1, -1)
        neighbours, step = (above, -1) if downward else (below, 1)
        for at in indices:
            place_of = {item: k for k, item in enumerate(rows[at + step])}
            own = {item: k for k, item in enumerate(rows[at])}

            def key(item: int, place_of=place_of, own=own, neighbours=neighbours):
                near = [place_of[n] for n in neighbours[item]]
                return (sum(near) / len(near) if near else own[item], own[item])

            rows[at].sort(key=key)
        crossings = _all_crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(r) for r in rows], crossings
    rows[:] = best


def _all_crossings(rows: list[list[int]], below: list[list[int]]) -> int:
    total = 0
    for upper, lower in zip(rows, rows[1:]):
        place_of = {item: k for k, item in enumerate(lower)}
        seen: list[int] = []
        for item in upper:
            ends = sorted(place_of[n] for n in below[item])
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _positions(rows: list[list[int]], above: list[list[int]], below: list[list[int]],
               widths: list[float], gap: float, boxes: int, sweeps: int) -> list[float]:
    x = [0.0] * len(widths)
    for row in rows:
        at = 0.0
        for item in row:
            x[item] = at + widths[item] / 2
            at += widths[item] + gap
    for sweep in range(sweeps):
        downward = sweep % 2 == 0
        neighbours = above if downward else below
        for row in rows if downward else reversed(rows):
            wanted, weights = [], []
            for item in row:
                near = neighbours[item] or (above[item] if not downward else below[item])
                # A box follows boxes more than lines, so that skip connections go around a chain.
                pull = [0.15 if n >= boxes else 1.0 for n in near]
                wanted.append(sum(x[n] * p for n, p in zip(near, pull)) / sum(pull)
                              if near else x[item])
                line = item >= boxes
                straight = line and any(n >= boxes for n in near)
                weights.append(4.0 if straight else 0.2 if line else 1.0)
            for item, value in zip(row, _apart(wanted, weights, [widths[i] for i in row], gap)):
                x[item] = value
    return x


def _apart(wanted: list[float], weights: list[float], widths: list[float],
           gap: float) -> list[float]:
    """The nearest positions to `wanted` (weighted squares) with boxes `gap` apart, in order."""
    offsets, at = [], 0.0
    for i, width in enumerate(widths):
        if i:
            at += (widths[i - 1] + width) / 2 + gap
        offsets.append(at)
    blocks: list[list[float]] = []  # sum of weight * target, weight, number of items
    for target, offset, weight in zip(wanted, offsets, weights):
        block = [weight * (target - offset), weight, 1]
        while blocks and blocks[-1][0] / blocks[-1][1] >= block[0] / block[1]:
            last = blocks.pop()
            block = [last[0] + block[0], last[1] + block[1], last[2] + block[2]]
        blocks.append(block)
    result, i = [], 0
    for total, weight, number in blocks:
        for _ in range(int(number)):
            result.append(total / weight + offsets[i])
            i += 1
    return result
