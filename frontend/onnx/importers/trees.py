"""Decision trees of ai.onnx.ml: TreeEnsemble, TreeEnsembleRegressor, TreeEnsembleClassifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....ir import dtype as dt
from ....ir.graph.core import Value
from ....ir.graph.ops.ensembles import AGGREGATES, MODES
from ..building import cast
from ..registry import Site, importer
from ..scores import (
    TRANSFORMS,
    above,
    best,
    class_labels,
    labelled,
    post_transform,
    rows,
    transformed,
    two_columns,
)

_NAMES = {"BRANCH_LEQ": "le", "BRANCH_LT": "lt", "BRANCH_GTE": "ge", "BRANCH_GT": "gt",
          "BRANCH_EQ": "eq", "BRANCH_NEQ": "ne", "BRANCH_MEMBER": "member"}


@dataclass
class Forest:
    """The arrays of operator tree_ensemble."""

    features: np.ndarray
    thresholds: np.ndarray
    modes: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    roots: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    missing: np.ndarray
    members: np.ndarray | None = None
    first: np.ndarray | None = None

    def check(self, c: Site, count: int, width: Any) -> None:
        """Refuses trees that would read elsewhere or never end."""
        inner = self.features >= 0
        nodes, entries = len(self.features), len(self.targets)
        if ((self.yes < 0) | (self.no < 0)).any() or (self.yes[inner] >= nodes).any() or (
                self.no[inner] >= nodes).any() or (self.no[~inner] > entries).any() or (
                (self.roots < 0) | (self.roots >= nodes)).any():
            raise c.error("a node refers to a node that does not exist")
        if isinstance(width, int) and (self.features >= width).any():
            raise c.error(f"feature {int(self.features.max())} is used, the rows have {width}")
        if ((self.targets < 0) | (self.targets >= count)).any():
            raise c.error(f"a leaf votes for a target that is not among {count}")
        # Peel off nodes that nothing leads to: what is left lies on a cycle.
        waiting = np.bincount(np.concatenate([self.yes[inner], self.no[inner]]), minlength=nodes)
        ready = np.flatnonzero(waiting == 0).tolist()
        seen = 0
        while ready:
            node = ready.pop()
            seen += 1
            for child in (self.yes[node], self.no[node]) if inner[node] else ():
                waiting[child] -= 1
                if not waiting[child]:
                    ready.append(int(child))
        if seen != nodes:
            raise c.error("the tree's nodes form a cycle")

    def add(self, c: Site, x: Value, count: int, aggregate: str) -> Value:
        """[N, count]: the votes of the trees for rows `x`."""
        wide = dt.f64 if dt.f64 in (x.dtype, dt.from_numpy(self.thresholds)) else dt.f32
        x = cast(c, x, wide)
        self.check(c, count, x.shape[1])
        operands: list[Value | None] = [x]
        for array in (self.features, self.thresholds, self.modes, self.yes, self.no, self.roots,
                      self.targets, self.weights):
            kind = wide.numpy if array is self.thresholds or array is self.weights else (
                np.uint8 if array is self.modes else np.int32)
            operands.append(c.constant(array.astype(kind)))
        if self.missing.any() or self.members is not None:
            operands.append(c.constant(self.missing.astype(np.uint8)))
        if self.members is not None and self.first is not None:
            operands += [c.constant(self.members.astype(wide.numpy)),
                         c.constant(self.first.astype(np.int32))]
        return c.add("tree_ensemble", operands, targets=count, aggregate=aggregate)


def _values(c: Site, name: str, default: Any = ()) -> np.ndarray:
    """Float attribute `name`, or `name`_as_tensor."""
    tensor = c.attr(f"{name}_as_tensor")
    if tensor is not None and np.size(tensor):
        return np.asarray(tensor).reshape(-1)
    return np.asarray(c.attr(name, default), np.float32)


def _by_node(c: Site, kind: str) -> Forest:
    """The forest of the operators that list nodes by (tree, node) and votes by leaf."""
    trees = [int(v) for v in c.attr("nodes_treeids", ())]
    numbers = [int(v) for v in c.attr("nodes_nodeids", ())]
    place = {key: k for k, key in enumerate(zip(trees, numbers, strict=True))}
    n = len(trees)
    if not n or len(place) != n:
        raise c.error("nodes_treeids and nodes_nodeids do not name each node once")

    def ints(name: str) -> list[int]:
        values = [int(v) for v in c.attr(name, ())]
        if len(values) != n:
            raise c.error(f"{name} has {len(values)} entries for {n} nodes")
        return values

    names = list(c.attr("nodes_modes", ()))
    if len(names) != n or any(m != "LEAF" and m not in _NAMES for m in names):
        raise c.error(f"nodes_modes must have {n} known modes")
    leaf = np.array([m == "LEAF" for m in names])
    modes = np.array([MODES.index(_NAMES.get(m, "le")) for m in names])
    if leaf.any() and not leaf.all():
        # A leaf's mode is never read: let it not stand out.
        modes[leaf] = modes[~leaf][0]
    features = np.where(leaf, -1, ints("nodes_featureids"))
    yes, no = (np.array([0 if done else place.get((t, child), -1)
                         for done, t, child in zip(leaf, trees, ints(name), strict=True)])
               for name in ("nodes_truenodeids", "nodes_falsenodeids"))
    thresholds = _values(c, "nodes_values")
    missing = np.asarray(c.attr("nodes_missing_value_tracks_true") or np.zeros(n))
    if len(thresholds) != n or len(missing) != n:
        raise c.error(f"nodes_values or nodes_missing_value_tracks_true are not {n} entries")
    targets = np.array([int(v) for v in c.attr(f"{kind}_ids", ())], np.int64)
    weights = _values(c, f"{kind}_weights")
    owners = [place.get((int(t), int(k)), -1) for t, k in zip(
        c.attr(f"{kind}_treeids", ()), c.attr(f"{kind}_nodeids", ()), strict=True)]
    if not len(owners) == len(targets) == len(weights) or any(
            o < 0 or not leaf[o] for o in owners):
        raise c.error(f"the {kind} votes do not belong to leaves")
    order = np.argsort(np.array(owners, np.int64), kind="stable")
    votes = np.bincount(np.array(owners, np.int64), minlength=n)
    begin = np.cumsum(votes) - votes
    yes, no = np.where(leaf, begin, yes), np.where(leaf, begin + votes, no)
    first_of = dict(zip(reversed(trees), reversed(range(n)), strict=True))
    roots = np.array([first_of[t] for t in sorted(first_of)])
    return Forest(features, thresholds, modes, yes, no, roots, targets[order], weights[order],
                  missing)


def _with_base(c: Site, scores: Value, base: np.ndarray) -> Value:
    if not base.size:
        return scores
    return c.add("add", [scores, c.constant(base.reshape(1, -1).astype(scores.dtype.numpy))])


@importer("TreeEnsembleRegressor", domain="ai.onnx.ml")
def tree_regressor(c: Site) -> Value:
    kind = c.attr("aggregate_function", "SUM").lower()
    if kind not in AGGREGATES:
        raise c.error(f"unknown aggregate_function {kind!r}")
    count = int(c.attr("n_targets", 1))
    scores = _by_node(c, "target").add(c, rows(c), count, kind)
    scores = _with_base(c, scores, _values(c, "base_values"))
    return cast(c, transformed(c, scores, post_transform(c)), dt.f32)


@importer("TreeEnsembleClassifier", domain="ai.onnx.ml")
def tree_classifier(c: Site) -> Sequence[Any]:
    labels, count = class_labels(c, "classlabels_int64s", "classlabels_strings")
    kind, base, x = post_transform(c), _values(c, "base_values"), rows(c)
    forest = _by_node(c, "class")
    voted = np.unique(forest.targets)
    positive = bool((forest.weights >= 0).all())
    if count == 1 or (count == 2 and len(voted) == 1):
        # One score decides between two classes; ONNX Runtime's reading of the standard.
        forest.targets = np.zeros_like(forest.targets)
        score = _with_base(c, forest.add(c, x, 1, "sum"), base[:1])
        threshold = 0.5 if positive and count == 2 else 0.0
        place = above(c, score, threshold)
        if count == 1:
            return [place, cast(c, transformed(c, score, kind), dt.f32)]
        if voted[0] == 1:
            nothing = c.add("sub", [score, score])
            scores = transformed(c, c.add("concat", [nothing, score], axis=1), kind)
        else:
            scores = two_columns(c, score, kind, positive)
        return [labelled(c, labels, place), cast(c, scores, dt.f32)]
    scores = _with_base(c, forest.add(c, x, count, "sum"), base)
    return [labelled(c, labels, best(c, scores)), cast(c, transformed(c, scores, kind), dt.f32)]


@importer("TreeEnsemble", domain="ai.onnx.ml", since=5)
def tree_ensemble(c: Site) -> Value:
    x = c.input(0)
    own = x.dtype
    features = np.asarray(c.attr("nodes_featureids", ()), np.int64)
    n = len(features)
    numbers = np.asarray(c.attr("nodes_modes")).reshape(-1)
    thresholds = np.asarray(c.attr("nodes_splits")).reshape(-1)
    weights = np.asarray(c.attr("leaf_weights")).reshape(-1)
    targets = np.asarray(c.attr("leaf_targetids", ()), np.int64)
    leaves = len(targets)
    if not n == len(numbers) == len(thresholds) or leaves != len(weights):
        raise c.error("the node or leaf attributes have different lengths")
    if (numbers >= len(MODES)).any():
        raise c.error(f"unknown node mode {int(numbers.max())}")

    def child(name: str) -> np.ndarray:
        ids = np.asarray(c.attr(f"nodes_{name}nodeids", ()), np.int64)
        ends = np.asarray(c.attr(f"nodes_{name}leafs", ()), np.int64)
        if not len(ids) == len(ends) == n:
            raise c.error(f"the {name} branches are not {n} entries")
        if ((ids < 0) | (ids >= np.where(ends != 0, leaves, n))).any():
            raise c.error("a node refers to a node that does not exist")
        # Leaves come after the nodes.
        return np.where(ends != 0, n + ids, ids)

    yes, no = child("true"), child("false")
    roots = np.asarray(c.attr("tree_roots", ()), np.int64)
    if ((roots < 0) | (roots >= n)).any():
        raise c.error("a tree starts at a node that does not exist")
    # Both branches of a root being the same leaf stands for a tree of that leaf alone.
    roots = np.where((yes[roots] == no[roots]) & (yes[roots] >= n), yes[roots], roots)
    modes = numbers.astype(np.int64)
    missing = np.asarray(c.attr("nodes_missing_value_tracks_true") or np.zeros(n))
    filler = modes[:1] if n else np.zeros(1, np.int64)
    forest = Forest(
        np.concatenate([features, np.full(leaves, -1)]),
        np.concatenate([thresholds, np.zeros(leaves, thresholds.dtype)]),
        np.concatenate([modes, np.repeat(filler, leaves)]),
        np.concatenate([yes, np.arange(leaves)]), np.concatenate([no, np.arange(leaves) + 1]),
        roots, targets, weights, np.concatenate([missing, np.zeros(leaves)]))
    if (numbers == MODES.index("member")).any():
        _add_members(c, forest, n, numbers == MODES.index("member"))
    aggregate = int(c.attr("aggregate_function", 1))
    kind = int(c.attr("post_transform", 0))
    if not 0 <= aggregate < 4 or not 0 <= kind < 5:
        raise c.error("unknown aggregate_function or post_transform")
    if x.dtype not in (dt.f32, dt.f64):
        x = cast(c, x, dt.f32)
    scores = forest.add(c, x, int(c.attr("n_targets", 1)),
                        ("average", "sum", "min", "max")[aggregate])
    return cast(c, transformed(c, scores, TRANSFORMS[kind]), own)


def _add_members(c: Site, forest: Forest, n: int, is_member: np.ndarray) -> None:
    """The sets of membership nodes, which the model gives in their order, each ended by NaN."""
    values = np.asarray(c.attr("membership_values", ()), np.float64).reshape(-1)
    ends = np.flatnonzero(np.isnan(values))
    if len(ends) != int(is_member.sum()):
        raise c.error(f"membership_values has {len(ends)} sets for {int(is_member.sum())} nodes")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = np.zeros(len(forest.features), np.int64)
    lengths[:n][is_member] = ends - starts
    forest.first = np.concatenate([[0], np.cumsum(lengths)])
    forest.members = values[~np.isnan(values)]
