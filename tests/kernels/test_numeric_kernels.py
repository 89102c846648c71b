"""Kernels of RoIAlign, determinants, random bits, decision trees and coupled probabilities."""

import numpy as np
import onnx.helper
import pytest
from kernels.single_nodes import by_kernel, by_reference, check
from onnx.reference import ReferenceEvaluator

from smelt.ir.graph.ops.ensembles import AGGREGATES, MODES
from smelt.ir.graph.ops.random import threefry


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("half_pixel", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(mode: str, half_pixel: bool, ratio: int):
    print("seed 1")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 7, 5)).astype(np.float32)
    rois = (rng.random((5, 4)) * 7 - 1).astype(np.float32)
    rois[:, 2:] += np.abs(rois[:, :2])
    images = rng.integers(0, 2, 5)
    attrs = {"height": 2, "width": 3, "ratio": ratio, "scale": 0.75, "mode": mode,
             "half_pixel": half_pixel}
    node = onnx.helper.make_node(
        "RoiAlign", ["x", "r", "i"], ["y"], output_height=2, output_width=3, mode=mode,
        sampling_ratio=ratio, spatial_scale=0.75,
        coordinate_transformation_mode="half_pixel" if half_pixel else "output_half_pixel")
    (want,) = ReferenceEvaluator(node).run(None, {"x": x, "r": rois, "i": images})
    # Coordinates in f32: positions differ by some 1e-6 of an element.
    check("roi_align", [x, rois, images], attrs, [want], 1e-4, 1e-5)
    np.testing.assert_allclose(by_reference("roi_align", [x, rois, images], attrs)[0], want,
                               1e-4, 1e-5)
    check("roi_align", [x, rois[:0], images[:0]], attrs)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 1, 1), (4, 7, 7), (2, 0, 0), (0, 2, 2), (2, 2)])
def test_determinants(shape):
    print("seed 2")
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape)
    check("det", [x], {}, [np.linalg.det(x)], 1e-9, 1e-12)
    # f32: n rounding errors of 2**-24 each, times the growth of elimination.
    check("det", [x.astype(np.float32)], {}, [np.linalg.det(x).astype(np.float32)], 1e-3, 1e-4)


def test_determinants_of_singular_and_permuted_matrices():
    x = np.array([[[0, 1, 0], [1, 0, 0], [0, 0, 1]], [[1, 2, 3], [2, 4, 6], [1, 0, 1]],
                  [[0, 0, 0], [0, 1, 0], [0, 0, 1]]], np.float32)
    check("det", [x], {}, [np.array([-1, 0, 0], np.float32)])


def test_random_bits_are_threefry():
    # Known answers of the Random123 library.
    for seed, counter, words in [
            (0, (0, 0), (0x6B200159, 0x99BA4EFE)),
            (0xFFFFFFFFFFFFFFFF, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
            (0x0370734413198A2E, (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0))]:
        low, high = (np.array([v], np.uint32) for v in counter)
        assert tuple(int(w[0]) for w in threefry(seed, low, high)) == words
    for shape in [(), (7,), (3, 5, 2), (0, 4)]:
        attrs = {"shape": shape, "seed": 0x123456789ABCDEF, "stream": 3}
        check("random_bits", [], attrs)
    (bits,) = by_kernel("random_bits", [], {"shape": (1,), "seed": 0})
    assert bits[0] == 0x6B200159


def grown(rng, trees: int, features: int, targets: int, modes) -> list[np.ndarray]:
    """Random trees with leaves of 0 to 3 votes."""
    table: dict[str, list] = {n: [] for n in ("feature", "threshold", "mode", "yes", "no")}
    roots, votes, weights = [], [], []

    def node(depth: int) -> int:
        k = len(table["feature"])
        for column in table.values():
            column.append(0)
        if depth == 0 or rng.random() < 0.2:
            count = int(rng.integers(0, 4))
            values = (-1, 0.0, 0, len(votes), len(votes) + count)
            votes.extend(rng.integers(0, targets, count).tolist())
            weights.extend(rng.integers(-8, 9, count).tolist())
        else:
            values = (int(rng.integers(features)), float(rng.integers(-2, 3)),
                      MODES.index(str(rng.choice(modes))), node(depth - 1), node(depth - 1))
        for column, value in zip(table.values(), values, strict=True):
            column[k] = value
        return k

    for _ in range(trees):
        roots.append(node(4))
    kinds = (np.int32, np.float32, np.uint8, np.int32, np.int32)
    return [*(np.array(c, t) for c, t in zip(table.values(), kinds, strict=True)),
            np.array(roots, np.int32), np.array(votes, np.int32), np.array(weights, np.float32)]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("modes", [["le"], ["gt"], list(MODES)])
def test_decision_trees(aggregate: str, modes):
    print("seed 3")
    rng = np.random.default_rng(3)
    arrays = grown(rng, 5, 3, 2, modes)
    x = rng.integers(-3, 4, (13, 3)).astype(np.float32)
    x[2, 1] = np.nan
    nodes = len(arrays[0])
    extra = []
    if len(modes) > 1:
        lengths = rng.integers(0, 3, nodes)
        first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        extra = [rng.integers(0, 2, nodes).astype(np.uint8),
                 rng.integers(-3, 4, first[-1]).astype(np.float32), first]
    attrs = {"targets": 2, "aggregate": aggregate}
    # Whole numbers: sums are exact; the average divides the same sum.
    check("tree_ensemble", [x, *arrays, *extra], attrs)
    check("tree_ensemble", [x[:0], *arrays, *extra], attrs)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_coupled_probabilities(k: int):
    print("seed", k)
    rng = np.random.default_rng(k)
    p = rng.dirichlet(np.ones(k) * 3, 7)
    upper = np.triu_indices(k, 1)
    # Consistent comparisons give back the probabilities they came from, to the stopping rule.
    pairs = np.stack([r[upper[0]] / (r[upper[0]] + r[upper[1]]) for r in p])
    (got,) = by_kernel("couple_probabilities", [pairs], {"classes": k})
    np.testing.assert_allclose(got.sum(1), 1, 1e-12)
    np.testing.assert_allclose(got, p, atol=0.02)
    rough = np.clip(pairs + rng.normal(0, 0.1, pairs.shape), 0.05, 0.95)
    check("couple_probabilities", [rough], {"classes": k}, rtol=1e-9)
    # The two may stop one round apart: within the stopping rule.
    check("couple_probabilities", [rough.astype(np.float32)], {"classes": k}, rtol=0.02)
