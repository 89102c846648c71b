"""Placing a graph in layers: nothing overlaps, every line points down and ends at its boxes."""

import random

import pytest

from smelt.layout import place


def random_dag(seed: int, count: int, edges: int) -> tuple[list, list]:
    draw = random.Random(seed)
    sizes = [(draw.uniform(20, 160), draw.uniform(15, 60)) for _ in range(count)]
    pairs = {tuple(sorted(draw.sample(range(count), 2))) for _ in range(edges)}
    return sizes, sorted(pairs)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_do_not_overlap_and_edges_point_down(seed: int):
    sizes, edges = random_dag(seed, 10 + 12 * seed, 15 + 20 * seed)
    placed = place(sizes, edges)
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
             for (w, h), (x, y) in zip(sizes, placed.centers)]
    for i, a in enumerate(boxes):
        assert a[0] >= -1e-6 and a[1] >= -1e-6, f"seed {seed}: box {i} lies outside"
        assert a[2] <= placed.width + 1e-6 and a[3] <= placed.height + 1e-6
        for j, b in enumerate(boxes[:i]):
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, f"seed {seed}: boxes {i} and {j} overlap"
    for (a, b), route in zip(edges, placed.routes):
        assert route is not None
        assert all(p[1] <= q[1] for p, q in zip(route, route[1:])), f"seed {seed}: goes up"
        assert route[0] == pytest.approx((placed.centers[a][0], boxes[a][3]))
        assert route[-1] == pytest.approx((placed.centers[b][0], boxes[b][1]))


def test_a_chain_is_straight_and_a_source_sits_next_to_its_use():
    placed = place([(50, 20)] * 5, [(0, 1), (1, 2), (2, 3), (4, 3)])
    x = [c[0] for c in placed.centers]
    assert max(x[:3]) - min(x[:3]) < 1
    assert placed.centers[4][1] == placed.centers[2][1]


def test_very_long_edges_are_left_out():
    chain = [(i, i + 1) for i in range(60)]
    placed = place([(30, 10)] * 61, [*chain, (0, 60)], longest=40)
    assert placed.routes[-1] is None and all(placed.routes[:-1])


def test_a_long_chain_needs_no_recursion():
    count = 20_000
    placed = place([(10, 10)] * count, [(i, i + 1) for i in range(count - 1)], sweeps=2)
    assert len(placed.centers) == count


def test_a_cycle_is_refused():
    with pytest.raises(ValueError, match="cycle"):
        place([(1, 1)] * 2, [(0, 1), (1, 0)])


def test_nothing_is_placed_for_an_empty_graph():
    assert place([], []).centers == []
