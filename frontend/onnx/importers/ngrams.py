"""TfIdfVectorizer: how often known n-grams of integers occur in each row."""

from __future__ import annotations

import numpy as np

from ....ir import dtype as dt
from ....ir.expr import op, simplify_dim, wrap
from ....ir.graph.core import Value
from ..building import cast, scalar
from ..registry import Site, importer

MODES = ("TF", "IDF", "TFIDF")


def _pools(c: Site) -> list[tuple[int, np.ndarray]]:
    """(n, the pool's n-grams [count, n]) for every n."""
    pool = np.asarray(c.attr("pool_int64s", ()), np.int64)
    starts = [int(v) for v in c.attr("ngram_counts", ())]
    bounds = [*starts, len(pool)]
    found = []
    for n, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False), 1):
        if not 0 <= begin <= end <= len(pool) or (end - begin) % n:
            raise c.error(f"entries {begin} to {end} of the pool are no {n}-grams")
        found.append((n, pool[begin:end].reshape(-1, n)))
    return found


def _counts(c: Site, x: Value, pool: np.ndarray, skips: int) -> Value:
    """i64 [rows, n-grams]: occurrences with 0 to `skips` elements left out between neighbours."""
    count, n = pool.shape
    length = wrap(x.shape[1])
    total: Value | None = None
    for stride in range(1, (skips if n > 1 else 0) + 2):
        starts = simplify_dim(op("max", length - (n - 1) * stride, 0))
        if isinstance(starts, int) and not starts:
            continue
        same: Value | None = None
        for k in range(n):
            part = c.add("slice", [x], starts=(0, k * stride), sizes=(x.shape[0], starts),
                         steps=(1, 1))
            part = c.add("reshape", [part], shape=(x.shape[0], starts, 1))
            equal = c.add("eq", [part, c.constant(pool[:, k])])
            same = equal if same is None else c.add("and", [same, equal])
        assert same is not None
        found = c.add("reduce_sum", [cast(c, same, dt.i64)], axes=(1,))
        total = found if total is None else c.add("add", [total, found])
    if total is None:
        zero = c.constant(np.zeros((1, 1), np.int64))
        return c.add("expand", [zero], shape=(x.shape[0], count))
    return total


@importer("TfIdfVectorizer")
def tf_idf_vectorizer(c: Site) -> Value:
    if c.attr("pool_strings"):
        raise c.error("its n-grams are of strings, which compiled models cannot hold; give the "
                      "model token numbers")
    x, mode = c.input(0), c.attr("mode")
    low, high = int(c.attr("min_gram_length", 1)), int(c.attr("max_gram_length", 1))
    if mode not in MODES or x.rank not in (1, 2) or not x.dtype.is_integer:
        raise c.error(f"mode {mode!r} of {x.type}")
    rows = c.add("reshape", [x], shape=(1, *x.shape)) if x.rank == 1 else x
    rows = cast(c, rows, dt.i64)
    pools = _pools(c)
    parts, columns, number = [], [], 0
    for n, pool in pools:
        if low <= n <= high and len(pool):
            parts.append(_counts(c, rows, pool, int(c.attr("max_skip_count", 0))))
            columns.extend(range(number, number + len(pool)))
        number += len(pool)
    places = [int(v) for v in c.attr("ngram_indexes", ())]
    weights = np.asarray(c.attr("weights") or np.ones(number), np.float32)
    if len(places) != number or len(weights) != number or min(places, default=0) < 0:
        raise c.error(f"{len(places)} ngram_indexes and {len(weights)} weights for {number} "
                      "n-grams")
    # A column of zeros stands for results that no n-gram gives.
    nothing = c.add("expand", [c.constant(np.zeros((1, 1), np.int64))], shape=(rows.shape[0], 1))
    table = c.add("concat", [*parts, nothing], axis=1)
    size = max(places, default=-1) + 1
    source, scale = np.full(size, len(columns), np.int64), np.ones(size, np.float32)
    for k, column in enumerate(columns):
        source[places[column]], scale[places[column]] = k, weights[column]
    counts = cast(c, c.add("gather", [table, c.constant(source)], axis=1), dt.f32)
    if mode != "TF":
        if mode == "IDF":
            counts = cast(c, c.add("gt", [counts, scalar(c, 0, dt.f32)]), dt.f32)
        counts = c.add("mul", [counts, c.constant(scale)])
    return c.add("reshape", [counts], shape=(size,)) if x.rank == 1 else counts
