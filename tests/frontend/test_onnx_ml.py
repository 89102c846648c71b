"""Operators of ai.onnx.ml through import and interpretation, against ONNX Runtime."""

import numpy as np
import onnx
import onnx.helper as oh
import onnx.shape_inference
import onnxruntime as ort
import pytest
from onnx import TensorProto

from smelt.errors import ModelError
from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret

ML = "ai.onnx.ml"
POST = ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"]
# f32 sums in another order, and exp: a few units of the last place.
RTOL, ATOL = 1e-4, 1e-5


def model_of(op: str, x: np.ndarray, outputs: int, version: int = 3, second=None, **attrs):
    inputs = [oh.make_tensor_value_info("x", oh.np_dtype_to_tensor_dtype(x.dtype),
                                        ["N", *x.shape[1:]])]
    names = ["x"]
    if second is not None:
        inputs.append(oh.make_tensor_value_info("i", oh.np_dtype_to_tensor_dtype(second.dtype),
                                                second.shape))
        names.append("i")
    node = oh.make_node(op, names, [f"y{k}" for k in range(outputs)], domain=ML, **attrs)
    outs = [onnx.ValueInfoProto(name=f"y{k}") for k in range(outputs)]
    graph = oh.make_graph([node], "g", inputs, outs)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18),
                                               oh.make_opsetid(ML, version)], ir_version=8)


def by_ort(model, *inputs):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    typed = onnx.shape_inference.infer_shapes(model)
    session = ort.InferenceSession(typed.SerializeToString(), options)
    return session.run(None, dict(zip(("x", "i"), inputs, strict=False)))


def check(model, *inputs, outputs=None) -> None:
    got = interpret(load_model(model), list(inputs))
    want = by_ort(model, *inputs)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        if outputs is not None and k not in outputs:
            continue
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, RTOL, ATOL)


def data(shape, seed: int, dtype=np.float32) -> np.ndarray:
    print("seed", seed)
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "i":
        return rng.integers(-4, 5, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


# Trees ------------------------------------------------------------------------------------------


def forest(seed: int, trees: int, features: int, ids: int, kind: str, depth: int = 3,
           signs: bool = True, modes=("BRANCH_LEQ",), votes: int = 1):
    """Attributes of random complete trees."""
    rng = np.random.default_rng(seed)
    columns = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids",
               "falsenodeids", "missing_value_tracks_true")
    a: dict[str, list] = {f"nodes_{n}": [] for n in columns}
    a |= {f"{kind}_{n}": [] for n in ("treeids", "nodeids", "ids", "weights")}
    inner = 2 ** depth - 1
    for tree in range(trees):
        for node in range(2 * inner + 1):
            leaf = node >= inner
            for name, value in (
                    ("treeids", tree), ("nodeids", node),
                    ("featureids", 0 if leaf else int(rng.integers(features))),
                    ("values", 0.0 if leaf else round(float(rng.standard_normal()), 1)),
                    ("modes", "LEAF" if leaf else str(rng.choice(list(modes)))),
                    ("truenodeids", 0 if leaf else 2 * node + 1),
                    ("falsenodeids", 0 if leaf else 2 * node + 2),
                    ("missing_value_tracks_true", int(rng.integers(2)))):
                a[f"nodes_{name}"].append(value)
            if leaf:
                for target in rng.permutation(ids)[:votes]:
                    weight = float(rng.standard_normal()) if signs else float(rng.random()) / trees
                    for name, value in (("treeids", tree), ("nodeids", node),
                                        ("ids", int(target)), ("weights", weight)):
                        a[f"{kind}_{name}"].append(value)
    return a


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("targets, post", [(1, "NONE"), (1, "LOGISTIC"), (3, "NONE"),
                                           (3, "SOFTMAX"), (3, "LOGISTIC")])
def test_tree_regressor(aggregate: str, targets: int, post: str):
    a = forest(1, 5, 4, targets, "target", votes=targets)
    x = data((17, 4), 2)
    x[3, 1] = np.nan
    base = [0.25, -0.5, 0.125][:targets]
    check(model_of("TreeEnsembleRegressor", x, 1, n_targets=targets, post_transform=post,
                   aggregate_function=aggregate, base_values=base, **a), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tree_regressor_compares_in_every_way(dtype):
    a = forest(3, 4, 3, 2, "target", modes=("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT",
                                            "BRANCH_EQ", "BRANCH_NEQ"), votes=2)
    a["nodes_values"] = [float(np.round(v)) for v in a["nodes_values"]]
    x = data((31, 3), 4, dtype)
    x[::3] = np.round(x[::3])
    check(model_of("TreeEnsembleRegressor", x, 1, n_targets=2, **a), x)


def test_trees_take_integers_as_floats():
    a = forest(3, 4, 3, 2, "target", votes=2)
    x = data((31, 3), 4, np.int64)
    (got,) = interpret(load_model(model_of("TreeEnsembleRegressor", x, 1, n_targets=2, **a)), [x])
    floats = x.astype(np.float32)
    (want,) = by_ort(model_of("TreeEnsembleRegressor", floats, 1, n_targets=2, **a), floats)
    np.testing.assert_allclose(got, want, RTOL, ATOL)


@pytest.mark.parametrize("post", POST)
@pytest.mark.parametrize("signs", [False, True])
def test_tree_classifier_of_many_classes(post: str, signs: bool):
    a = forest(5, 4, 4, 3, "class", votes=3, signs=signs)
    x = data((13, 4), 6)
    check(model_of("TreeEnsembleClassifier", x, 2, post_transform=post,
                   classlabels_int64s=[7, -1, 4], **a), x)


@pytest.mark.parametrize("post", POST[:4])
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize(("base", "voted"), [
    ([], 0), ([0.0625], 0), ([], 1)])  # ONNX Runtime ignores the base value where class 1 is voted
def test_tree_classifier_of_two_classes_with_one_score(post: str, signs: bool, base, voted: int):
    a = forest(7, 3, 4, 1, "class", signs=signs)
    a["class_ids"] = [voted] * len(a["class_ids"])
    if base:
        a["base_values"] = base
    x = data((13, 4), 8)
    check(model_of("TreeEnsembleClassifier", x, 2, post_transform=post,
                   classlabels_int64s=[7, 9], **a), x)


def test_a_single_class_is_a_yes_or_no():
    a = forest(9, 3, 4, 1, "class")
    x = data((13, 4), 10)
    check(model_of("TreeEnsembleClassifier", x, 2, classlabels_int64s=[5], **a), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("aggregate", [0, 1, 2, 3])
def test_tree_ensemble(dtype, aggregate: int):
    """Two trees, one of them a single leaf, with a set membership node."""
    kind = oh.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def tensor(name, values, t=kind):
        return oh.make_tensor(name, t, (len(values),), values)

    x = np.round(data((19, 3), 11), 0).astype(dtype)
    model = model_of(
        "TreeEnsemble", x, 1, 5, n_targets=2, aggregate_function=aggregate, post_transform=0,
        nodes_featureids=[0, 1, 2, 0], nodes_modes=tensor("m", [0, 6, 3, 4], TensorProto.UINT8),
        nodes_splits=tensor("s", [0.0, 0.0, -0.5, 1.0]), nodes_truenodeids=[1, 0, 2, 4],
        nodes_trueleafs=[0, 1, 1, 1], nodes_falsenodeids=[2, 1, 3, 4],
        nodes_falseleafs=[0, 1, 1, 1], leaf_targetids=[0, 1, 0, 1, 0],
        leaf_weights=tensor("w", [1.5, -2.0, 0.25, 3.0, 0.5]), tree_roots=[0, 3],
        membership_values=tensor("v", [-1.0, 2.0, 1.0, float("nan")]))
    got, = interpret(load_model(model), [x])
    rows = []
    for r in x:
        votes = [(1, -2.0), (0, 1.5)][r[1] in (-1, 2, 1)] if r[0] <= 0 else (
            (0, 0.25) if r[2] > -0.5 else (1, 3.0))
        both = [votes, (0, 0.5)]
        row = []
        for t in range(2):
            own = [w for k, w in both if k == t]
            row.append({0: sum(own) / 2, 1: sum(own), 2: min(own, default=0),
                        3: max(own, default=0)}[aggregate])
        rows.append(row)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.array(rows, dtype))


@pytest.mark.parametrize("change, message", [
    ({"nodes_truenodeids": 0}, "form a cycle"), ({"nodes_truenodeids": 99}, "does not exist"),
    ({"nodes_featureids": 4}, "feature 4 is used, the rows have 4"),
    ({"target_ids": 2}, "a target that is not among 2")])
def test_malformed_trees_are_refused(change: dict[str, int], message: str):
    a = forest(12, 1, 4, 2, "target")
    for name, value in change.items():
        a[name][0] = value
    x = data((3, 4), 13)
    with pytest.raises(ModelError, match=message):
        load_model(model_of("TreeEnsembleRegressor", x, 1, n_targets=2, **a))


# Linear models and support vectors --------------------------------------------------------------


@pytest.mark.parametrize("post", POST[:4])
@pytest.mark.parametrize("targets", [1, 3])
def test_linear_regressor(post: str, targets: int):
    x = data((7, 4), 14)
    w = data((targets, 4), 15)
    check(model_of("LinearRegressor", x, 1, targets=targets, coefficients=w.ravel().tolist(),
                   intercepts=[0.5, -0.25, 0.125][:targets], post_transform=post), x)


@pytest.mark.parametrize("post", POST[:4])
@pytest.mark.parametrize("classes, targets", [(2, 1), (2, 2), (4, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_linear_classifier(post: str, classes: int, targets: int, dtype):
    x = data((7, 3), 16, dtype)
    w = data((targets, 3), 17)
    check(model_of("LinearClassifier", x, 2, coefficients=w.ravel().tolist(), multi_class=0,
                   intercepts=data(targets, 18).tolist(), post_transform=post,
                   classlabels_ints=list(range(10, 10 + classes))), x)


KERNELS = [("LINEAR", [0.0, 0.0, 0.0]), ("POLY", [0.5, 0.25, 2.0]), ("RBF", [0.5, 0.0, 0.0]),
           ("SIGMOID", [0.25, 0.5, 0.0])]


@pytest.mark.parametrize("kernel, params", KERNELS)
@pytest.mark.parametrize("one_class", [0, 1])
def test_svm_regressor(kernel: str, params: list[float], one_class: int):
    x = data((9, 3), 19)
    check(model_of("SVMRegressor", x, 1, kernel_type=kernel, kernel_params=params, n_supports=4,
                   coefficients=data(4, 20).tolist(), rho=[0.125], one_class=one_class,
                   support_vectors=data(12, 21).tolist()), x)
    if kernel == "LINEAR":
        check(model_of("SVMRegressor", x, 1, kernel_type=kernel, kernel_params=params,
                       coefficients=data(3, 20).tolist(), rho=[0.125], n_supports=0), x)


@pytest.mark.parametrize("kernel, params", KERNELS)
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("post", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_svm_classifier(kernel: str, params, classes: int, probabilities: bool, post: str):
    x = data((9, 3), 22)
    per_class = [3, 2, 4, 1][:classes]
    total, pairs = sum(per_class), classes * (classes - 1) // 2
    a = {"kernel_type": kernel, "kernel_params": params, "vectors_per_class": per_class,
         "coefficients": data((classes - 1) * total, 23).tolist(),
         "support_vectors": data(total * 3, 24).tolist(), "rho": data(pairs, 25).tolist(),
         "classlabels_ints": list(range(5, 5 + classes)), "post_transform": post}
    if probabilities:
        a |= {"prob_a": (-abs(data(pairs, 26))).tolist(), "prob_b": data(pairs, 27).tolist()}
    check(model_of("SVMClassifier", x, 2, **a), x)


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_svm_classifier(classes: int):
    x = data((9, 3), 28)
    model = model_of("SVMClassifier", x, 2, kernel_type="LINEAR", kernel_params=[0.0, 0.0, 0.0],
                     coefficients=data(classes * 3, 29).tolist(), rho=[0.25], prob_a=[1.0],
                     prob_b=[1.0], classlabels_ints=list(range(5, 5 + classes)))
    check(model, x)


# Features ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
def test_scaler_and_binarizer(dtype):
    x = data((7, 3), 30, dtype)
    check(model_of("Scaler", x, 1, offset=[0.5, 0.25, -1.0], scale=[2.0, 0.5, 3.0]), x)
    check(model_of("Scaler", x, 1, offset=[0.5], scale=[2.0]), x)
    if dtype == np.float32:
        check(model_of("Binarizer", x, 1, threshold=0.25), x)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(norm: str):
    x = data((7, 3), 31)
    x[2] = 0
    check(model_of("Normalizer", x, 1, norm=norm), x)


def test_imputer():
    x = data((7, 3), 32)
    x[1, 2] = x[4, 0] = np.nan
    for values in ([0.5], [0.5, 1.5, 2.5]):
        check(model_of("Imputer", x, 1, imputed_value_floats=values,
                       replaced_value_float=float("nan")), x)
    z = data((7, 3), 33, np.int64)
    check(model_of("Imputer", z, 1, imputed_value_int64s=[9, 8, 7], replaced_value_int64=-1), z)


@pytest.mark.parametrize("keys, values, default", [
    ({"keys_int64s": [3, -1, 2]}, {"values_floats": [0.5, 1.5, 2.5]}, {"default_float": 9.0}),
    ({"keys_int64s": [3, -1, 2]}, {"values_int64s": [5, 6, 7]}, {}),
    ({"keys_floats": [1.0, float("nan"), 0.5]}, {"values_int64s": [5, 6, 7]},
     {"default_int64": 3})])
def test_label_encoder(keys, values, default):
    if "keys_floats" in keys:
        x = np.array([[1, np.nan, 0.5], [0, 2, 1]], np.float32)
    else:
        x = data((4, 5), 34, np.int64)
    # From version 4 on, NaN matches NaN in ONNX Runtime as well.
    check(model_of("LabelEncoder", x, 1, 4, **keys, **values, **default), x)


def test_label_encoder_takes_the_last_of_equal_keys():
    x = np.array([1, 2, 3])
    model = model_of("LabelEncoder", x, 1, 4, keys_int64s=[1, 2, 1], values_int64s=[5, 6, 7])
    assert interpret(load_model(model), [x])[0].tolist() == [7, 6, -1]


def test_one_hot_encoder():
    x = data((4, 5), 35, np.int64)
    check(model_of("OneHotEncoder", x, 1, 1, cats_int64s=[-4, 0, 2, 3], zeros=1), x)


def test_array_feature_extractor():
    x, i = data((4, 5), 36), np.array([[3, 0, 3]])
    check(model_of("ArrayFeatureExtractor", x, 1, 1, i), x, i)


def test_feature_vectorizer():
    a, b = data((4, 2), 37), data((4, 3), 38)
    inputs = [oh.make_tensor_value_info(n, TensorProto.FLOAT, v.shape)
              for n, v in (("x", a), ("i", b))]
    node = oh.make_node("FeatureVectorizer", ["x", "i"], ["y"], domain=ML, inputdimensions=[2, 3])
    model = oh.make_model(oh.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name="y")]),
                          opset_imports=[oh.make_opsetid(ML, 1), oh.make_opsetid("", 18)],
                          ir_version=8)
    check(model, a, b)


# What compiled models cannot hold ---------------------------------------------------------------


def test_string_labels_are_refused_only_where_they_are_used():
    a = forest(39, 2, 4, 3, "class", votes=3)
    x = data((5, 4), 40)
    model = model_of("TreeEnsembleClassifier", x, 2, classlabels_strings=["p", "q", "r"], **a)
    with pytest.raises(ModelError, match="'y0' is a tensor of strings .class labels.: take the "
                                         "scores instead"):
        load_model(model)
    del model.graph.output[0]
    (scores,) = interpret(load_model(model), [x])
    np.testing.assert_allclose(scores, by_ort(model, x)[0], RTOL, ATOL)


@pytest.mark.parametrize("op, attrs, message", [
    ("ZipMap", {"classlabels_int64s": [0, 1]}, "export the model without it"),
    ("CategoryMapper", {"cats_int64s": [1], "cats_strings": ["a"]}, "works on strings"),
    ("OneHotEncoder", {"cats_strings": ["a"]}, "the categories are strings"),
    ("LabelEncoder", {"keys_strings": ["a"], "values_int64s": [1]}, "the keys are strings")])
def test_strings_and_maps_are_refused_with_a_reason(op: str, attrs, message: str):
    x = data((5, 4), 41, np.int64 if op == "CategoryMapper" else np.float32)
    with pytest.raises(ModelError, match=message):
        load_model(model_of(op, x, 1, 4 if op == "LabelEncoder" else 1, **attrs))
