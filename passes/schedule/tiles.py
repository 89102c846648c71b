"""Register tiles: how many rows and vectors of accumulators a kernel keeps, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Registers:
    """A machine's vectors: `lanes` of 32 bits each, `count` architectural registers, `latency` and
    `throughput` of a fused multiply-add in cycles and per cycle."""

    lanes: int
    count: int
    latency: int = 4
    throughput: int = 2


@dataclass(frozen=True)
class Tile:
    """`rows` x `vectors` accumulators."""

    rows: int
    vectors: int


def step_cycles(tile: Tile, registers: Registers) -> float:
    """Cycles of one step of the reduction: multiply-adds, loads (two a cycle), or latency."""
    fmas = tile.rows * tile.vectors / registers.throughput
    loads = (tile.rows + tile.vectors) / 2
    return max(fmas, loads, registers.latency)


def candidates(registers: Registers) -> list[Tile]:
    """All tiles whose accumulators, operand vectors and one broadcast fit the registers."""
    result = []
    for vectors in (1, 2, 3, 4, 6, 8):
        rows = (registers.count - vectors - 1) // vectors
        result += [Tile(r, vectors) for r in range(1, min(rows, 16) + 1)]
    return result


LOAD = 0.05
"""Cycles that a vector of the packed operand costs beside the multiply-adds it feeds."""

PIECE = 4.0
"""Cycles that it costs to begin storing the results of a row, however many vectors of them a tile
has: those of the next row are lines apart."""


def cycles(tile: Tile, rows: int | None, columns: int, registers: Registers,
           steps: int | None = None) -> float:
    """Modelled cycles of one step of the reduction for rows x columns results; rows None when they
    are known only at run time. Of a reduction of so many `steps`, the loads of the packed operand
    and the stores count too, each step with its share of them."""
    panels = ceil(columns / (tile.vectors * registers.lanes))
    blocks = split_rows(_typical(rows), tile.rows)
    total = sum((count * step_cycles(Tile(height, tile.vectors), registers)
                 for height, count in blocks), 0.0)
    if steps:
        total += sum(count for _, count in blocks) * tile.vectors * LOAD
        total += _typical(rows) * PIECE / steps
    return panels * total


def _typical(rows: int | None) -> int:
    return rows if rows is not None else 64


def choose(rows: int | None, columns: int, registers: Registers, steps: int | None = None) -> Tile:
    """The tile with the fewest modelled `cycles` for rows x columns results; rows None when they
    are known only at run time."""
    def cost(tile: Tile) -> tuple[float, int, int]:
        return (cycles(tile, rows, columns, registers, steps), -tile.rows * tile.vectors,
                tile.vectors)

    return min(candidates(registers), key=cost)


SLOWEST = 1.5
"""Modelled cycles, over those of the best tile, up to which a tile may be the quickest in truth."""


def distinct_tiles(rows: int | None, columns: int, registers: Registers,
                   steps: int | None = None) -> list[Tile]:
    """Tiles that cut rows x columns results differently and may be the quickest: the best of every
    number of vectors, then the others, by modelled cycles."""
    cost = {t: cycles(t, rows, columns, registers, steps) for t in candidates(registers)}
    ranked = sorted(cost, key=lambda t: (cost[t], -t.rows * t.vectors, t.vectors))
    cuts: dict[tuple, Tile] = {}
    for tile in ranked:
        if cost[tile] <= SLOWEST * cost[ranked[0]]:
            cuts.setdefault((tile.vectors, *split_rows(_typical(rows), tile.rows)), tile)
    best = {t.vectors: t for t in reversed(cuts.values())}
    return sorted(cuts.values(), key=lambda t: best[t.vectors] is not t)


def split_rows(rows: int, limit: int) -> list[tuple[int, int]]:
    """(height, how many) blocks that cover `rows` with heights of at most `limit`, as even as
    possible: 100 by 14 is 7 blocks of 13 and one of 9."""
    if rows <= 0:
        return []
    blocks = ceil(rows / limit)
    height = ceil(rows / blocks)
    whole = rows // height
    rest = rows - whole * height
    return [(height, whole)] + ([(rest, 1)] if rest else [])
