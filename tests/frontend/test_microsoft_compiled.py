"""Every operator of com.microsoft compiled for this machine, next to ONNX Runtime, or next to the
interpreter where ONNX Runtime has no kernel for the CPU. Sizes are numbers and then names.

Tolerances: f32 sums of up to a few hundred terms of order 1 (1e-4); quantised results may be one
step off where a sum of floats is rounded that was formed in another order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from frontend.ort_peer import by_runtime, by_smelt, close, model
from frontend.test_nn_quantization import UNIT, Draw
from onnx import TensorProto

from smelt import runtime
from smelt.frontend.onnx import importers  # noqa: F401  (fills the registry)
from smelt.frontend.onnx.loader import load_model
from smelt.frontend.onnx.registry import supported
from smelt.runtime.artifact import write_artifact
from smelt.targets.base import BuildOptions, find_target

pytestmark = pytest.mark.slow

B, S, H, D = 2, 5, 3, 8
HIDDEN = H * D
FLOAT, BYTE = TensorProto.FLOAT, TensorProto.UINT8


@dataclass
class Case:
    """A node; `given` are further arguments of `ort_peer.model`, among them `symbolic=False` for
    an operator that needs to know its sizes. `peer` is "runtime" or "interpreter"."""

    op: str
    inputs: Sequence[np.ndarray | None]
    attrs: dict[str, Any] = field(default_factory=dict)
    rtol: float = 1e-4
    atol: float = 1e-4
    peer: str = "runtime"
    domain: str = "com.microsoft"
    symbolic: bool = True
    given: dict[str, Any] = field(default_factory=dict)

    def proto(self, named: bool) -> onnx.ModelProto:
        return model(self.op, self.inputs, self.attrs, domain=self.domain, symbolic=named,
                     **self.given)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def compiled(proto: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the model gives when it is compiled, the same for one thread and for three."""
    built = find_target("cpu").build(load_model(proto), BuildOptions(optimize=1))
    with tempfile.TemporaryDirectory(prefix="smelt-test-") as folder:
        path = write_artifact(Path(folder) / "model", built.manifest, built.files)
        with runtime.load(path, threads=1) as one, one.session(threads=3) as three:
            given = {spec.name: arrays[spec.name] for spec in one.inputs}
            found = list(one.run(given).values())
            for mine, theirs in zip(found, three.run(given).values(), strict=True):
                np.testing.assert_array_equal(mine, theirs)
    return found


def check(case: Case) -> None:
    constants = case.given.get("constants", ())
    arrays = {f"x{i}": a for i, a in enumerate(case.inputs) if a is not None}
    if case.peer == "runtime":
        wanted = by_runtime(case.proto(False), case.inputs, constants)
    else:
        wanted = by_smelt(load_model(case.proto(False)), case.inputs, constants)
    for named in (False, True) if case.symbolic else (False,):
        found = compiled(case.proto(named), arrays)
        for mine, theirs in zip(found, wanted, strict=True):
            close(mine, theirs, case.rtol, case.atol)


# Products -----------------------------------------------------------------------------------------


def products(d: Draw) -> Iterator[Case]:
    image, weights, bias = d.f(2, 4, 9, 8), d.f(6, 4, 3, 3), d.f(6)
    fixed = {"constants": [1, 2]}
    yield Case("FusedConv", [image, weights, bias], {"activation": "Relu"}, given=fixed)
    yield Case("FusedConv", [image, weights, bias, d.f(2, 6, 9, 8)],
               {"activation": "HardSigmoid", "activation_params": [0.3, 0.4],
                "pads": [1, 1, 1, 1]}, given=fixed)
    last = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    yield Case("NhwcConv", [last, weights, bias], {"pads": [1, 1, 1, 1]}, peer="interpreter",
               given={**fixed, "types": [FLOAT]})
    yield Case("NhwcFusedConv", [last, weights, bias, d.f(2, 9, 8, 6)],
               {"activation": "Relu", "pads": [1, 1, 1, 1]}, peer="interpreter",
               given={**fixed, "types": [FLOAT]})
    yield Case("NhwcMaxPool", [d.u(2, 9, 8, 3)],
               {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, rtol=0, atol=0)
    yield Case("FusedMatMul", [d.f(2, 3, 4, 5), d.f(2, 3, 6, 5)], {"alpha": 0.3, "transB": 1})
    yield Case("FusedMatMul", [d.f(4, 3, 5), d.f(5, 3, 6)], {"transBatchA": 1, "transBatchB": 1})
    yield Case("TransposeMatMul", [d.f(3, 5, 4), d.f(3, 5, 6)], {"alpha": 0.3, "transA": 1})
    yield Case("FusedGemm", [d.f(5, 4), d.f(4, 6), bias],
               {"activation": "LeakyRelu", "activation_alpha": 0.3}, given={"constants": [1, 2]})
    yield Case("GemmFastGelu", [d.f(2, 5, 4), d.f(4, 6), bias], peer="interpreter",
               given={"constants": [1, 2], "types": [FLOAT]})


def integer_products(d: Draw) -> Iterator[Case]:
    yield Case("DynamicQuantizeMatMul", [d.f(2, 5, 7), d.i(7, 6), d.s(6), d.i(6), d.f(6)],
               given={"constants": [1, 2, 3, 4]})
    yield Case("DynamicQuantizeMatMul", [d.f(5, 7), d.u(7, 6), d.s(), d.u()])
    yield Case("MatMulIntegerToFloat",
               [d.u(5, 7), d.i(7, 6), d.s(), d.s(6), d.u(), d.i(6), d.f(6)],
               given={"constants": [1, 3, 5, 6]})
    for bits, k in ((4, 64), (4, 80), (8, 64), (2, 64)):
        blocks = -(-k // 32)
        yield Case("MatMulNBits", [d.f(2, 3, k), d.u(6, blocks, 4 * bits), d.s(6, blocks),
                                   d.u(6, -(-blocks * bits // 8)), None, d.f(6)],
                   {"K": k, "N": 6, "bits": bits, "block_size": 32},
                   given={"constants": [1, 2, 3], "fixed": [5]})
    for bits in (4, 8):
        yield Case("GatherBlockQuantized", [d.u(9, 8 * bits), d.ids(9, 2, 3, dtype=np.int64),
                                            d.s(9, 2), d.u(9, bits // 4)],
                   {"block_size": 32, "bits": bits, "quantize_axis": 1},
                   given={"constants": [0, 2, 3]})


# Elementwise operators and normalisation ----------------------------------------------------------


def activations(d: Draw) -> Iterator[Case]:
    x, b = d.f(2, 3, 10), d.f(10)
    yield Case("Gelu", [x])
    yield Case("BiasGelu", [x, b])
    yield Case("FastGelu", [x, b])
    yield Case("QuickGelu", [x], {"alpha": 1.5})
    yield Case("Trilu", [d.f(2, 6, 5), np.array(1)], {"upper": 0}, given={"constants": [1]})
    only = {"peer": "interpreter", "given": {"types": [FLOAT]}}
    yield Case("BiasAdd", [x, b, d.f(2, 3, 10)], **only)
    yield Case("BiasSplitGelu", [x, b], **only)
    yield Case("BiasSoftmax", [d.f(2, 3, 4, 5), d.f(2, 1, 1, 5)],
               {"axis": 3, "is_inner_broadcast": 1}, symbolic=False, **only)


def normalizations(d: Draw) -> Iterator[Case]:
    x, skip, gamma, beta, bias = d.f(2, 3, 8), d.f(2, 3, 8), d.f(8), d.f(8), d.f(8)
    four = {"outputs": 4, "types": [FLOAT] * 4}
    yield Case("SkipLayerNormalization", [x, skip, gamma, beta, bias], {"epsilon": 1e-3})
    yield Case("SkipLayerNormalization", [x, d.f(3, 8), gamma], {"epsilon": 1e-3})
    yield Case("SkipLayerNormalization", [x, skip, gamma, beta], {"epsilon": 1e-3},
               peer="interpreter", given=four)
    yield Case("SkipSimplifiedLayerNormalization", [x, skip, gamma, bias], {"epsilon": 1e-3})
    for domain in ("", "com.microsoft"):
        yield Case("SimplifiedLayerNormalization", [x, gamma],
                   {"epsilon": 1e-3, "axis": -1, "stash_type": 1}, domain=domain,
                   peer="interpreter" if domain else "runtime",
                   given={"types": [FLOAT]} if domain else {})
    ids, segments, mask = d.ids(9, 2, 5), d.ids(2, 2, 5), d.ids(2, 2, 5)
    yield Case("EmbedLayerNormalization", [ids, segments, d.f(9, 8), d.f(7, 8), d.f(2, 8), gamma,
                                           beta, mask], {"epsilon": 1e-4},
               given={"outputs": 2, "names": {0: "BS", 1: "BS", 7: "BS"},
                      "constants": [2, 3, 4, 5, 6]})
    yield Case("EmbedLayerNormalization", [ids, None, d.f(9, 8), d.f(7, 8), None, gamma, beta,
                                           None, d.ids(7, 2, 5)], {"epsilon": 1e-4},
               given={"outputs": 3, "names": {0: "BS", 8: "BS"}})
    for last in (0, 1):
        image = d.f(2, 5, 6, 4) if last else d.f(2, 4, 5, 6)
        attrs = {"groups": 2, "epsilon": 1e-3, "activation": 1, "channels_last": last}
        where = {0: "NHW-" if last else "N-HW"}
        yield Case("GroupNorm", [image, d.f(4), d.f(4)], attrs, peer="interpreter",
                   given={"types": [FLOAT], "names": where})
        yield Case("SkipGroupNorm", [image, d.f(4), d.f(4), d.f(2, 4), d.f(4)], attrs,
                   peer="interpreter",
                   given={"types": [FLOAT] * 2, "outputs": 2, "names": where | {3: "N-"}})


# Attention ----------------------------------------------------------------------------------------


def attentions(d: Draw) -> Iterator[Case]:
    x, w, b = d.f(B, S, HIDDEN), d.f(HIDDEN, 3 * HIDDEN) / 4, d.f(3 * HIDDEN)
    heads, held = {"num_heads": H}, [1, 2]
    bits = d.ids(2, B, S)
    yield Case("Attention", [x, w, b], heads, given={"constants": held, "names": {0: "BS-"}})
    yield Case("Attention", [x, w, b, bits], {**heads, "unidirectional": 1},
               given={"constants": held, "names": {0: "BS-", 3: "BS"}})
    yield Case("Attention", [x, w, b, i32(3, 5)], heads,
               given={"constants": held, "names": {0: "BS-", 3: "B"}})
    yield Case("Attention", [x, w, b, None, d.f(2, B, H, 4, D)], {**heads, "unidirectional": 1},
               given={"outputs": 2, "constants": held, "names": {0: "BS-", 4: "-B-P-"}})
    points = [np.array(120, np.uint8), d.i(3 * HIDDEN, bound=9)]
    scales = [np.array(0.02, np.float32), d.s(3 * HIDDEN, by=0.1)]
    yield Case("QAttention", [d.u(B, S, HIDDEN), d.i(HIDDEN, 3 * HIDDEN), b, *scales, i32(3, 5),
                              *points], heads, given={"names": {0: "BS-", 5: "B"}})
    q, k, v = d.f(B, S, HIDDEN), d.f(B, 7, HIDDEN), d.f(B, 7, HIDDEN)
    names = {0: "BS-", 1: "BT-", 2: "BT-"}
    yield Case("MultiHeadAttention", [q, k, v, b, d.ids(2, B, 7)], heads,
               given={"names": names | {4: "BT"}})
    yield Case("MultiHeadAttention", [q, k, v, None, None, d.f(B, 1, S, 7)], heads,
               given={"names": names | {5: "B-ST"}})
    parts, past = [d.f(B, S, HIDDEN) for _ in range(3)], [d.f(B, H, 4, D) for _ in range(2)]
    yield Case("MultiHeadAttention", [*parts, None, None, None, *past],
               {**heads, "unidirectional": 1},
               given={"outputs": 3, "names": {0: "BS-", 1: "BS-", 2: "BS-", 6: "B-P-",
                                              7: "B-P-"}})
    yield Case("MultiHeadAttention", [d.f(B, S, H, 3, D)], heads, peer="interpreter",
               given={"types": [FLOAT], "names": {0: "BS---"}})


def rotaries(d: Draw) -> Iterator[Case]:
    cos, sin, at = d.f(16, D // 2), d.f(16, D // 2), d.ids(16, B, S, dtype=np.int64)
    for interleaved in (0, 1):
        attrs = {"interleaved": interleaved}
        yield Case("RotaryEmbedding", [d.f(B, S, HIDDEN), at, cos, sin], attrs,
                   given={"names": {0: "BS-", 1: "BS"}, "constants": [2, 3]})
        yield Case("RotaryEmbedding", [d.f(B, H, S, D), np.array([3]), cos, sin], attrs,
                   given={"names": {0: "B-S-"}})
    yield Case("RotaryEmbedding", [d.f(B, S, HIDDEN), at, cos[:, :2].copy(), sin[:, :2].copy()],
               {"num_heads": H, "rotary_embedding_dim": 4},
               given={"names": {0: "BS-", 1: "BS"}})


def group_query(d: Draw, new: int, past: int | None, total: int, attrs: dict[str, Any], *,
                packed: bool = False, fixed: bool = False) -> Case:
    """Two sequences of one length, four heads on two; the total length is data or a constant."""
    heads, depth = (4, 2, 2), 16
    inputs: list[np.ndarray | None] = [d.f(B, new, n * depth) for n in heads]
    if packed:
        inputs = [np.concatenate([a for a in inputs if a is not None], axis=2), None, None]
    inputs += [None if past is None else d.f(B, 2, past, depth) for _ in range(2)]
    inputs += [i32(*[total - 1] * B), i32(total)]
    if attrs.get("do_rotary"):
        inputs += [d.f(16, depth // 2) for _ in range(2)]
    names = {0: "BS-", 1: "BS-", 2: "BS-", 3: "B-P-", 4: "B-P-", 5: "B"}
    return Case("GroupQueryAttention", inputs,
                {"num_heads": 4, "kv_num_heads": 2, **attrs},
                given={"outputs": 3, "names": names, "constants": [6] if fixed else []})


def grouped_queries(d: Draw) -> Iterator[Case]:
    yield group_query(d, 5, None, 5, {"do_rotary": 1, "rotary_interleaved": 1})
    yield group_query(d, 5, 0, 5, {"local_window_size": 2})
    yield group_query(d, 1, 6, 7, {"do_rotary": 1}, packed=True)
    yield group_query(d, 1, 6, 7, {"do_rotary": 1}, fixed=True)
    yield group_query(d, 1, 6, 7, {"softcap": 3.0, "smooth_softmax": 1})


# Quantised operators ------------------------------------------------------------------------------


def quantized(d: Draw) -> Iterator[Case]:
    step = {"rtol": 0, "atol": 1}
    exact = {"rtol": 0, "atol": 0}
    for op in ("QLinearAdd", "QLinearMul"):
        yield Case(op, [d.u(2, 3, 5), d.s(), d.u(), d.u(3, 1), d.s(), d.u(), d.s(), d.u()], **step,
                   given={"constants": [1, 2, 4, 5, 6, 7]})
    yield Case("QLinearAdd", [d.i(2, 3, 5), d.s(), d.i(), d.i(3, 1), d.s(), d.i(), d.s()], **step,
               given={"constants": [1, 2, 4, 5, 6]})
    yield Case("QLinearConv", [d.u(2, 9, 8, 4), d.s(), d.u(), d.u(6, 4, 3, 3), d.s(), d.u(),
                               d.s(by=20), d.u()], {"channels_last": 1, "pads": [1, 1, 1, 1]},
               **exact, given={"constants": range(1, 8)})
    yield Case("QLinearConv", [d.u(2, 4, 9, 8), d.s(), d.u(), d.i(6, 2, 3, 3), d.s(6),
                               np.zeros(6, np.int8), d.s(by=20), d.u(),
                               d.i(6, dtype=np.int32, bound=500)],
               {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1]}, domain="", **exact,
               given={"constants": range(1, 9)})
    yield Case("QGemm", [d.u(5, 7), d.s(), d.u(), d.i(6, 7), d.s(6), d.i(6),
                         d.i(6, dtype=np.int32, bound=500), d.s(by=20), d.u()], {"transB": 1},
               **exact, given={"constants": range(1, 9)})
    yield Case("QGemm", [d.u(5, 7), d.s(), d.u(), d.u(7, 6), d.s(), d.u(),
                         d.i(6, dtype=np.int32, bound=500)], {"alpha": 0.5})
    out, image = [d.s(), d.u()], d.u(2, 3, 9, 8)
    pool = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}
    for op, x, attrs, to in (
        ("QLinearSigmoid", d.u(2, 3, 5), {}, UNIT), ("QLinearLeakyRelu", d.u(2, 3, 5),
                                                     {"alpha": 0.2}, out),
        ("QLinearSoftmax", d.u(2, 3, 5), {"axis": -1, "opset": 13}, UNIT),
        ("QLinearGlobalAveragePool", image, {}, out), ("QLinearAveragePool", image, pool, out),
    ):
        yield Case(op, [x, d.s(), d.u(), *to], attrs, **step, given={"constants": [1, 2, 3, 4]})
    yield Case("QLinearReduceMean", [d.u(2, 3, 5), d.s(), d.u(), *out],
               {"axes": [1], "keepdims": 0}, peer="interpreter", **step, given={"types": [BYTE]})
    yield Case("QLinearConcat", [d.s(), d.u(), d.u(2, 3, 5), d.s(), d.u(), d.u(2, 4, 5), d.s(),
                                 d.u()], {"axis": 1}, **step,
               given={"constants": [0, 1, 3, 4, 6, 7]})
    yield Case("QLinearWhere", [d.random.random((3, 5)) > 0.5, d.u(2, 3, 5), d.s(), d.u(), d.u(5),
                                d.s(), d.u(), d.s(), d.u()], **step,
               given={"constants": [2, 3, 5, 6, 7, 8]})
    yield Case("QuantizeLinear", [5 * d.f(2, 4, 7), d.s(4, by=0.01), d.i(4, dtype=np.int16)],
               {"axis": 1}, **exact)
    yield Case("DequantizeLinear", [d.i(3, 4, dtype=np.int32, bound=9999), d.s(4)], {"axis": 1})


FAMILIES: tuple[Callable[[Draw], Iterator[Case]], ...] = (
    products, integer_products, activations, normalizations, attentions, rotaries,
    grouped_queries, quantized)
ALL = [(family, k, case.op) for family in FAMILIES
       for k, case in enumerate(family(Draw("the names of cases")))]


@pytest.mark.parametrize(("family", "number"), [pytest.param(f, k, id=f"{op}-{f.__name__}{k}")
                                                for f, k, op in ALL])
def test_compiled(family: Callable[[Draw], Iterator[Case]], number: int):
    check(list(family(Draw(f"{family.__name__} {number}")))[number])


def test_no_operator_is_left_out():
    wanted = {op for domain, op in supported() if domain == "com.microsoft"}
    assert wanted == wanted & {op for _, _, op in ALL}
