"""Preparation of features by ai.onnx.ml: scaling, filling in, encoding, picking, joining."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dtype as dt
from ....ir.graph.core import Value
from .. import vectors
from ..building import cast, scalar
from ..compile_time import Unavailable
from ..indices import checked_indices
from ..registry import Site, importer
from .movement import product


def _floats(c: Site, name: str, default: float) -> np.ndarray:
    values = np.asarray(c.attr(name, ()), np.float32).reshape(-1)
    return values if values.size else np.array([default], np.float32)


@importer("Scaler", domain="ai.onnx.ml")
def scaler(c: Site) -> Value:
    x = c.input(0)
    wide = dt.f64 if x.dtype is dt.f64 else dt.f32
    offset, scale = (c.constant(_floats(c, n, d).astype(wide.numpy))
                     for n, d in (("offset", 0.0), ("scale", 1.0)))
    return cast(c, c.add("mul", [c.add("sub", [cast(c, x, wide), offset]), scale]), dt.f32)


@importer("Normalizer", domain="ai.onnx.ml")
def normalizer(c: Site) -> Value:
    x, kind = c.input(0), c.attr("norm", "MAX")
    wide = dt.f64 if x.dtype is dt.f64 else dt.f32
    x = cast(c, x, wide)
    axes = (x.rank - 1,)
    if kind == "MAX":
        size = c.add("reduce_max", [x], axes=axes, keepdims=True)
    elif kind == "L1":
        size = c.add("reduce_sum", [c.add("abs", [x])], axes=axes, keepdims=True)
    elif kind == "L2":
        total = c.add("reduce_sum", [c.add("mul", [x, x])], axes=axes, keepdims=True)
        size = c.add("sqrt", [total])
    else:
        raise c.error(f"unknown norm {kind!r}")
    nothing = c.add("eq", [size, scalar(c, 0, wide)])
    safe = c.add("select", [nothing, scalar(c, 1, wide), size])
    return cast(c, c.add("div", [x, safe]), dt.f32)


@importer("Binarizer", domain="ai.onnx.ml")
def binarizer(c: Site) -> Value:
    x = c.input(0)
    wide = dt.f32 if x.dtype.is_integer else x.dtype
    threshold = scalar(c, c.attr("threshold", 0.0), wide)
    return cast(c, c.add("gt", [cast(c, x, wide), threshold]), x.dtype)


@importer("Imputer", domain="ai.onnx.ml")
def imputer(c: Site) -> Value:
    x = c.input(0)
    if x.dtype.is_float:
        values, bad = c.attr("imputed_value_floats", ()), c.attr("replaced_value_float", 0.0)
    else:
        values, bad = c.attr("imputed_value_int64s", ()), c.attr("replaced_value_int64", 0)
    width = x.shape[-1] if x.rank else 1
    if not len(values) or (isinstance(width, int) and len(values) not in (1, width)):
        raise c.error(f"{len(values)} imputed values for features of {x.type}")
    fill = c.constant(np.asarray(values).astype(x.dtype.numpy))
    if x.dtype.is_float and np.isnan(bad):
        missing = c.add("isnan", [x])
    else:
        missing = c.add("eq", [x, scalar(c, bad, x.dtype)])
    return c.add("select", [missing, fill, x])


def _places(c: Site, x: Value, keys: np.ndarray) -> Value:
    """i64 like `x`: the position of each element among `keys` (the last of equal keys; NaN
    matches NaN), or -1."""
    n = len(keys)
    table = c.constant(keys.astype(x.dtype.numpy))
    one = c.add("reshape", [x], shape=(*x.shape, 1))
    found = c.add("eq", [one, table])
    if x.dtype.is_float and np.isnan(keys.astype(np.float64)).any():
        both = c.add("and", [c.add("isnan", [one]), c.add("isnan", [table])])
        found = c.add("or", [found, both])
    numbers = c.constant(np.arange(n, dtype=np.int64))
    missing = c.constant(np.array(-1, np.int64))
    chosen = c.add("select", [found, numbers, missing])
    return c.add("reduce_max", [chosen], axes=(x.rank,))


def _given(c: Site, name: str) -> tuple[str, np.ndarray]:
    """The one attribute of `name`_floats, _int64s, _strings or _tensor that is set."""
    for suffix in ("int64s", "floats", "strings", "tensor"):
        value = c.attr(f"{name}_{suffix}")
        if value is not None and np.size(value):
            kind = {"int64s": np.int64, "floats": np.float32, "strings": object}.get(suffix)
            array = np.asarray(value, kind) if kind else np.asarray(value)
            return ("strings" if array.dtype == object else suffix), array.reshape(-1)
    raise c.error(f"attribute {name}_* is missing")


@importer("LabelEncoder", domain="ai.onnx.ml", since=2)
def label_encoder(c: Site) -> Any:
    x = c.input(0)
    _, keys = _given(c, "keys")
    suffix, values = _given(c, "values")
    if keys.dtype == object:
        raise c.error("the keys are strings, which compiled models cannot hold; encode them "
                      "before the model")
    if suffix == "strings":
        return [Unavailable("a tensor of strings (label values): take the input of this node "
                            "instead")]
    if len(keys) != len(values):
        raise c.error(f"{len(keys)} keys and {len(values)} values")
    default: Any = {"int64s": c.attr("default_int64", -1),
                    "floats": c.attr("default_float", -0.0)}.get(suffix)
    if default is None:
        given = c.attr("default_tensor")
        default = (-0.0 if values.dtype.kind == "f" else -1) if given is None else \
            np.asarray(given).reshape(-1)[0]
    # Entry -1 + 1 of the table is the default.
    table = np.concatenate([[default], values]).astype(values.dtype)
    place = c.add("add", [_places(c, x, keys), c.constant(np.array(1, np.int64))])
    return c.add("gather", [c.constant(table), place], axis=0)


@importer("OneHotEncoder", domain="ai.onnx.ml")
def one_hot_encoder(c: Site) -> Value:
    x = c.input(0)
    categories = np.asarray(c.attr("cats_int64s", ()), np.int64)
    if not categories.size:
        raise c.error("the categories are strings, which compiled models cannot hold; encode them "
                      "before the model")
    if x.dtype is not dt.i64:
        x = cast(c, x, dt.i64)
    one = c.add("reshape", [x], shape=(*x.shape, 1))
    return cast(c, c.add("eq", [one, c.constant(categories)]), dt.f32)


@importer("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(c: Site) -> Value:
    x, places = c.input(0), vectors.integers(c, c.input(1))
    places = checked_indices(c, places, x.shape[-1:], negative=False)
    picked = c.add("gather", [x, places], axis=x.rank - 1)
    return c.add("reshape", [picked], shape=(1, places.shape[0])) if x.rank == 1 else picked


@importer("FeatureVectorizer", domain="ai.onnx.ml")
def feature_vectorizer(c: Site) -> Value:
    sizes = [int(v) for v in c.attr("inputdimensions") or ()]
    if len(sizes) != len(c.inputs):
        raise c.error(f"{len(sizes)} inputdimensions for {len(c.inputs)} inputs")
    parts = []
    for k, size in enumerate(sizes):
        x = cast(c, c.input(k), dt.f32)
        shape = (1, x.shape[0]) if x.rank == 1 else (x.shape[0], product(x.shape[1:]))
        x = c.add("reshape", [x], shape=shape)
        width = x.shape[1]
        if not isinstance(width, int):
            raise c.error(f"input {k} has rows of unknown size")
        if size < width:
            x = c.add("slice", [x], starts=(0, 0), sizes=(x.shape[0], size), steps=(1, 1))
        elif size > width:
            x = c.add("pad", [x, scalar(c, 0, dt.f32)], low=(0, 0), high=(0, size - width))
        parts.append(x)
    return c.add("concat", parts, axis=1)
