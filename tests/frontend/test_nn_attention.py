"""Attention and rotary embedding of com.microsoft against ONNX Runtime (those of ai.onnx are in
onnx's suite). Tolerance 1e-5 on values of order 1."""

import numpy as np
import pytest
from frontend.ort_peer import by_runtime, by_smelt, check, close, model, seeded
from onnx import TensorProto

from smelt.frontend.onnx.loader import load_model

B, S, H, D = 2, 5, 3, 8
HIDDEN = H * D
M = {"domain": "com.microsoft"}


@pytest.fixture
def random(request):
    return seeded(request.node.name)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def bits(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(0, 2, shape, dtype=np.int32)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", ["none", "ends", "both", "keys", "rows"])
def test_attention(random, causal, mask):
    x, w, b = normal(random, B, S, HIDDEN), normal(random, HIDDEN, 3 * HIDDEN) / 4, normal(
        random, 3 * HIDDEN)
    given = {"none": None, "ends": i32(3, 5), "both": i32(3, 5, 1, 0),
             "keys": bits(random, B, S), "rows": bits(random, B, S, S)}[mask]
    names = {0: "BS-", 3: {"ends": "B", "keys": "BS", "rows": "BSS"}.get(mask, "-")}
    check("Attention", [x, w, b, given], {"num_heads": H, "unidirectional": causal,
                                          "mask_filter_value": -500.0},
          symbolic=mask != "both", names=names, **M)


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_with_past(random, causal):
    x, w, b = normal(random, B, S, HIDDEN), normal(random, HIDDEN, 3 * HIDDEN) / 4, normal(
        random, 3 * HIDDEN)
    past = normal(random, 2, B, H, 4, D)
    attrs = {"num_heads": H, "unidirectional": causal, "scale": 0.2}
    names = {0: "BS-", 4: "-B-P-"}
    check("Attention", [x, w, b, None, past], attrs, outputs=2, names=names, **M)
    check("Attention", [x, w, b, bits(random, B, S + 4), past], attrs, outputs=2, names=names,
          **M)
    check("Attention", [x, w, b, None, None, normal(random, 1, H, S, S)], attrs,
          names={0: "BS-", 5: "--SS"}, **M)


def test_attention_with_its_own_sizes(random):
    check("Attention", [normal(random, B, S, HIDDEN), normal(random, HIDDEN, 2 * HIDDEN + 12),
                        normal(random, 2 * HIDDEN + 12)],
          {"num_heads": H, "qkv_hidden_sizes": [HIDDEN, HIDDEN, 12]}, names={0: "BS-"}, **M)


@pytest.mark.parametrize("causal", [0, 1])
def test_quantized_attention(random, causal):
    x = random.integers(0, 256, (B, S, HIDDEN), dtype=np.uint8)
    w = random.integers(-128, 128, (HIDDEN, 3 * HIDDEN), dtype=np.int8)
    scales = [np.array(0.02, np.float32), random.uniform(0.001, 0.01, 3 * HIDDEN)]
    points = [np.array(120, np.uint8), random.integers(-9, 9, 3 * HIDDEN, dtype=np.int8)]
    inputs = [x, w, normal(random, 3 * HIDDEN), scales[0], scales[1].astype(np.float32),
              i32(3, 5), *points]
    check("QAttention", inputs, {"num_heads": H, "unidirectional": causal},
          names={0: "BS-", 5: "B"}, rtol=1e-4, atol=1e-4, **M)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", ["none", "ends", "keys", "rows", "bias"])
def test_multi_head_attention(random, causal, mask):
    length = S if causal else 7
    q, k, v = normal(random, B, S, HIDDEN), normal(random, B, length, HIDDEN), normal(
        random, B, length, HIDDEN)
    given = {"ends": i32(3, length), "keys": bits(random, B, length),
             "rows": bits(random, B, S, length)}.get(mask)
    score_bias = normal(random, B, 1, S, length) if mask == "bias" else None
    t = "S" if causal else "T"
    names = {0: "BS-", 1: f"B{t}-", 2: f"B{t}-", 5: f"B-S{t}",
             4: {"ends": "B", "keys": f"B{t}", "rows": f"BS{t}"}.get(mask, "")}
    check("MultiHeadAttention", [q, k, v, normal(random, 3 * HIDDEN), given, score_bias],
          {"num_heads": H, "unidirectional": causal}, names=names, **M)


@pytest.mark.parametrize("causal", [0, 1])
def test_multi_head_attention_with_past(random, causal):
    parts = [normal(random, B, S, HIDDEN) for _ in range(3)]
    past = [normal(random, B, H, 4, D) for _ in range(2)]
    check("MultiHeadAttention", [*parts, None, None, None, *past],
          {"num_heads": H, "unidirectional": causal}, outputs=3,
          names={0: "BS-", 1: "BS-", 2: "BS-", 6: "B-P-", 7: "B-P-"}, **M)


def test_multi_head_attention_of_heads_and_its_scores(random):
    q, k, v = normal(random, B, S, HIDDEN), normal(random, B, H, 7, D), normal(random, B, H, 7, D)
    check("MultiHeadAttention", [q, k, v], {"num_heads": H},
          names={0: "BS-", 1: "B-T-", 2: "B-T-"}, **M)
    flat = [x.transpose(0, 2, 1, 3).reshape(B, 7, HIDDEN) for x in (k, v)]
    check("MultiHeadAttention", [q, *flat, None, bits(random, B, 7)], {"num_heads": H}, outputs=4,
          symbolic=False, types=[TensorProto.FLOAT] * 4, rtol=1e-4, **M)


def test_packed_operands_are_the_parts(random):
    """ONNX Runtime has no packed operands on the CPU: compared with the parts given apart."""
    qkv = normal(random, B, S, H, 3, D)
    parts = [np.ascontiguousarray(qkv[:, :, :, n]).reshape(B, S, HIDDEN) for n in range(3)]
    proto = model("MultiHeadAttention", parts, {"num_heads": H}, **M)
    (wanted,) = by_runtime(proto, parts)
    for inputs in ([qkv], [parts[0], np.ascontiguousarray(qkv[:, :, :, 1:])]):
        packed = model("MultiHeadAttention", inputs, {"num_heads": H},
                       types=[TensorProto.FLOAT], **M)
        (found,) = by_smelt(load_model(packed), inputs)
        close(found, wanted, 1e-5, 1e-5)


# Grouped queries ----------------------------------------------------------------------------------

Q_HEADS, KV_HEADS, DEPTH = 4, 2, 16


def group_query(random, new: int, past: int | None, lengths: tuple[int, ...], total: int,
                attrs: dict | None = None, *, packed: bool = False, extra: dict | None = None,
                outputs: int = 3, valid: bool = False) -> None:
    """Compares with ONNX Runtime, the total length known and given as data. With `valid`, only
    what the lengths make valid."""
    batch, attrs = len(lengths), {"num_heads": Q_HEADS, "kv_num_heads": KV_HEADS, **(attrs or {})}
    wide = (Q_HEADS, KV_HEADS, KV_HEADS)
    inputs: list = [normal(random, batch, new, n * DEPTH) for n in wide]
    if packed:
        inputs = [np.concatenate(inputs, axis=2), None, None]
    inputs += [None if past is None else normal(random, batch, KV_HEADS, past, DEPTH)
               for _ in range(2)]
    inputs += [i32(*lengths), i32(total)]
    if attrs.get("do_rotary"):
        inputs += [normal(random, 16, DEPTH // 2) for _ in range(2)]
    for i, array in (extra or {}).items():
        inputs += [None] * (i + 1 - len(inputs))
        inputs[i] = array
    names = {0: "BS-", 1: "BS-", 2: "BS-", 3: "B-P-", 4: "B-P-", 5: "B", 9: "BS"}
    for constants in ([6], []):
        options = {"outputs": outputs, "constants": constants, **M}
        proto = model("GroupQueryAttention", inputs, attrs, **options)
        wanted = by_runtime(proto, inputs, constants)
        for symbolic in (False, True):
            graph = load_model(model("GroupQueryAttention", inputs, attrs, symbolic=symbolic,
                                     names=names, **options))
            found = by_smelt(graph, inputs, constants)
            for k, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
                for b, last in enumerate(lengths if valid else ()):
                    rows = min(new, last + 1) if new == total else new
                    part = np.s_[b, :rows] if k == 0 else np.s_[b, :, :last + 1]
                    close(mine[part], theirs[part], 1e-5, 1e-5)
                if not valid:
                    close(mine, theirs, 1e-5, 1e-5)


@pytest.mark.parametrize("past", [None, 0])
@pytest.mark.parametrize("attrs", [
    {}, {"do_rotary": 1, "rotary_interleaved": 1}, {"local_window_size": 2},
], ids=["plain", "rotary", "window"])
def test_group_query_prompt(random, past, attrs):
    group_query(random, 5, past, (4, 4), 5, attrs)


@pytest.mark.parametrize("attrs", [
    {}, {"do_rotary": 1}, {"local_window_size": 3}, {"smooth_softmax": 1}, {"softcap": 3.0},
], ids=["plain", "rotary", "window", "smooth", "softcap"])
def test_group_query_step(random, attrs):
    group_query(random, 1, 6, (6, 6), 7, attrs)


def test_group_query_forms(random):
    group_query(random, 1, 6, (6, 6), 7, {"do_rotary": 1}, packed=True)
    group_query(random, 1, 6, (6, 6), 7, extra={11: normal(random, Q_HEADS)})
    group_query(random, 3, 6, (8,), 9, {"do_rotary": 1, "softcap": 3.0})
    group_query(random, 3, 6, (8,), 9, extra={10: normal(random, 1, Q_HEADS, 3, 9)})
    group_query(random, 3, 6, (8,), 9, {"do_rotary": 1},
                extra={9: np.array([[6, 7, 8]], np.int64)})
    group_query(random, 3, 6, (8,), 9, {"causal": 0})
    for stage in (1, 2):
        group_query(random, 3, 6, (8,), 9, {"qk_output": stage}, outputs=4)


def test_group_query_ragged(random):
    group_query(random, 5, 0, (4, 2), 5, valid=True)
    group_query(random, 1, 6, (6, 4), 7, {"do_rotary": 1}, valid=True)
    group_query(random, 1, 12, (6, 3), 7, {"do_rotary": 1}, valid=True)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(random, interleaved):
    cos, sin = normal(random, 16, D // 2), normal(random, 16, D // 2)
    at, attrs = random.integers(0, 16, (B, S)), {"interleaved": interleaved}
    check("RotaryEmbedding", [normal(random, B, S, HIDDEN), at, cos, sin], attrs,
          names={0: "BS-", 1: "BS"}, **M)
    check("RotaryEmbedding", [normal(random, B, S, HIDDEN), np.array([3]), cos, sin], attrs,
          names={0: "BS-"}, **M)
    check("RotaryEmbedding", [normal(random, B, H, S, D), at, cos, sin], attrs,
          names={0: "B-S-", 1: "BS"}, **M)
    check("RotaryEmbedding", [normal(random, B, S, HIDDEN), at, cos[:, :2].copy(),
                              sin[:, :2].copy()],
          {**attrs, "num_heads": H, "rotary_embedding_dim": 4}, names={0: "BS-", 1: "BS"}, **M)
