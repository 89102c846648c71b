"""The table's layers: products, convolutions, pools, normalisations, quantisation."""

from __future__ import annotations

import numpy as np
from fuzz.fuzz_graphs import Step, Tensor
from fuzz.fuzz_maker import Maker, rule

WIDE = (np.float32, np.float64)


def small(m: Maker, shape: tuple[int, ...], dtype) -> str:
    """A constant of weights: eighths below 1, so that sums stay in range."""
    return m.constant((m.rng.integers(-7, 8, shape) / 8).astype(dtype))


@rule(4, ("MatMul",))
def matmul(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and t.dtype in (*WIDE, np.float16, np.int32))
    if x is None:
        return None
    y = m.pick(lambda t: t.dtype == x.dtype and t.rank >= 1 and (
        t.shape[-2] if t.rank > 1 else t.shape[0]) == x.shape[-1])
    if y is not None and m.chance(0.5):
        return m.step("MatMul", [x, y])
    shape = (x.shape[-1], m.one_of([1, 3, 16, 17, 33]))
    weights = small(m, shape, x.dtype) if x.is_float else m.constant(m.values(shape, x.dtype))
    return m.step("MatMul", [x, weights])


@rule(2, ("Gemm",))
def gemm(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank == 2 and t.dtype in (*WIDE, np.float16))
    if x is None:
        return None
    flip, flip_b = m.chance(0.3), m.chance(0.5)
    k = x.shape[0 if flip else 1]
    rows, n = x.shape[1 if flip else 0], m.one_of([1, 4, 17, 33])
    inputs = [x, small(m, (n, k) if flip_b else (k, n), x.dtype)]
    if m.chance(0.7):
        inputs.append(small(m, m.one_of([(n,), (rows, n), (rows, 1), (1,), ()]), x.dtype))
    return m.step("Gemm", inputs, transA=int(flip), transB=int(flip_b),
                  alpha=float(m.one_of([1.0, 1.0, 0.5])), beta=float(m.one_of([1.0, 1.0, 2.0])))


@rule(1, ("Einsum",))
def einsum(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank == 2 and t.dtype in WIDE)
    if x is None:
        return None
    y = small(m, (x.shape[1], 5), x.dtype)
    equation = m.one_of(["ij,jk->ik", "ij,jk->ki", "ij,jk->k", "ij,jk->ikj", "ij,jk"])
    return m.step("Einsum", [x, y], equation=equation)


def image(m: Maker, channels: int | None = None) -> Tensor | str:
    """An (N, C, ...) tensor of the graph, or a constant one."""
    found = m.pick(lambda t: t.dtype == np.float32 and t.rank in (3, 4) and t.array.size > 0 and (
        channels is None or t.shape[1] == channels))
    if found is not None and m.chance(0.6):
        return found
    spatial = m.one_of([(7,), (17,), (5, 9), (8, 8), (3, 33), (4, 5, 3)])
    shape = (m.one_of([1, 2]), channels or m.one_of([1, 3, 4, 8, 16]), *spatial)
    return m.constant(m.values(shape, np.dtype(np.float32)))


def shape_of(m: Maker, x: Tensor | str) -> tuple[int, ...]:
    return (m.tensors[x] if isinstance(x, str) else x).shape


def window(m: Maker, spatial: tuple[int, ...]) -> dict:
    """Kernel, strides, dilations and pads that fit."""
    kernel = [int(m.rng.integers(1, min(n, 3) + 1)) for n in spatial]
    dilations = [m.one_of([1, 1, 2]) if (k - 1) * 2 < n else 1
                 for k, n in zip(kernel, spatial, strict=True)]
    attrs = {"kernel_shape": kernel, "strides": [m.one_of([1, 1, 2, 3]) for _ in spatial],
             "dilations": dilations}
    if m.chance(0.25):
        attrs["auto_pad"] = m.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
        attrs["dilations"] = [1] * len(kernel)
    else:
        attrs["pads"] = [int(m.rng.integers(0, k)) for k in (*kernel, *kernel)]
    return attrs


@rule(3, ("Conv",))
def convolution(m: Maker) -> Step | None:
    x = image(m)
    _, c, *spatial = shape_of(m, x)
    group = m.one_of([g for g in (1, 1, 2, 4, c) if c % g == 0])
    out = group * m.one_of([1, 2, 3, 8, 17] if group < 3 else [1, 2])
    attrs = window(m, tuple(spatial))
    inputs = [x, small(m, (out, c // group, *attrs["kernel_shape"]), np.float32)]
    if m.chance(0.6):
        inputs.append(small(m, (out,), np.float32))
    return m.step("Conv", inputs, group=group, **attrs)


@rule(1, ("ConvTranspose",))
def transposed_convolution(m: Maker) -> Step | None:
    x = image(m)
    _, c, *spatial = shape_of(m, x)
    group = m.one_of([g for g in (1, 1, 2) if c % g == 0])
    kernel = [m.one_of([1, 2, 3]) for _ in spatial]
    strides = [m.one_of([1, 2]) for _ in spatial]
    inputs = [x, small(m, (c, m.one_of([1, 2, 5]), *kernel), np.float32)]
    return m.step("ConvTranspose", inputs, group=group, strides=strides, kernel_shape=kernel,
                  pads=[int(m.rng.integers(0, k)) for k in (*kernel, *kernel)])


@rule(2, ("MaxPool", "AveragePool", "GlobalMaxPool"))
def pooling(m: Maker) -> Step | None:
    x = image(m)
    op = m.one_of(["MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"])
    if op.startswith("Global"):
        return m.step(op, [x])
    attrs = window(m, tuple(shape_of(m, x)[2:]))
    attrs["dilations"] = [1] * len(attrs["kernel_shape"])
    if op == "AveragePool":
        attrs["count_include_pad"] = int(m.chance(0.5))
    return m.step(op, [x], **attrs)


@rule(2)
def normalisation(m: Maker) -> Step | None:
    x = image(m)
    c = shape_of(m, x)[1]
    scale, bias = small(m, (c,), np.float32), small(m, (c,), np.float32)
    op = m.one_of(["BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN"])
    if op == "LRN":
        return m.step(op, [x], size=m.one_of([1, 3, 5])) if len(shape_of(m, x)) == 4 else None
    if op == "GroupNormalization":
        return m.step(op, [x, scale, bias], num_groups=m.one_of(
            [g for g in (1, 2, c) if c % g == 0]))
    if op == "InstanceNormalization":
        return m.step(op, [x, scale, bias])
    mean, variance = small(m, (c,), np.float32), m.constant(
        (m.rng.integers(2, 16, (c,)) / 8).astype(np.float32))
    return m.step(op, [x, scale, bias, mean, variance])


@rule(3)
def rows(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and t.array.size > 0 and t.dtype in (*WIDE, np.float16))
    if x is None:
        return None
    axis = int(m.rng.integers(-x.rank, x.rank))
    op = m.one_of(["Softmax", "LogSoftmax", "LayerNormalization"])
    if op != "LayerNormalization":
        return m.step(op, [x], axis=axis)
    tail = x.shape[axis:]
    inputs = [x, small(m, tail, x.dtype)]
    if m.chance(0.7):
        inputs.append(small(m, tail, x.dtype))
    return m.step(op, inputs, axis=axis)


@rule(0.7)
def hard_rows(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and t.array.size > 0 and t.exact and t.dtype in WIDE)
    return m.step("Hardmax", [x], axis=int(m.rng.integers(-x.rank, x.rank))) if x else None


@rule(1)
def resize(m: Maker) -> Step | None:
    x = image(m)
    rank = len(shape_of(m, x))
    scales = [1.0, 1.0] + [float(m.one_of([0.5, 1.0, 2.0, 1.5])) for _ in range(rank - 2)]
    mode = m.one_of(["nearest", "linear"])
    how = m.one_of(["asymmetric", "half_pixel", "align_corners"])
    attrs = {"nearest_mode": "floor"} if mode == "nearest" else {}
    if mode == "nearest":
        how = "asymmetric"  # positions that rounding cannot move
    return m.step("Resize", [x, "", m.constant(np.array(scales, np.float32))], mode=mode,
                  coordinate_transformation_mode=how, **attrs)


@rule(1.5)
def quantised(m: Maker) -> Step | None:
    """Scales are powers of two, so that rounding is where everyone has it."""
    x = m.pick(lambda t: t.dtype == np.float32 and t.exact)
    kind = m.one_of([np.uint8, np.int8])
    scale = m.constant(np.array(m.one_of([0.25, 0.5, 0.125]), np.float32))
    zero = m.constant(np.array(m.one_of([0, 3, 100]), kind))
    if x is not None and m.chance(0.5):
        return m.step("QuantizeLinear", [x, scale, zero])
    y = m.pick(lambda t: t.dtype == kind)
    return m.step("DequantizeLinear", [y, scale, zero]) if y else None


@rule(1)
def integer_product(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 2 and t.dtype in (np.uint8, np.int8))
    if x is None:
        return None
    weights = m.constant(m.rng.integers(-9, 9, (x.shape[-1], m.one_of([1, 5, 17]))).astype(np.int8))
    inputs = [x, weights]
    if m.chance(0.5):
        inputs.append(m.constant(np.array(3, x.dtype)))
    return m.step("MatMulInteger", inputs)


@rule(1)
def recurrence(m: Maker) -> Step | None:
    """Forward only: that is what the reference runs."""
    op = m.one_of(["RNN", "GRU", "LSTM"])
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    steps, batch, width, hidden = (m.one_of(s) for s in ([1, 3, 5], [1, 2], [1, 4, 17], [3, 8]))
    x = m.constant(m.values((steps, batch, width), np.dtype(np.float32)))
    inputs = [x, small(m, (1, gates * hidden, width), np.float32),
              small(m, (1, gates * hidden, hidden), np.float32)]
    if m.chance(0.5):
        inputs.append(small(m, (1, 2 * gates * hidden), np.float32))
    attrs = {"linear_before_reset": 1} if op == "GRU" and m.chance(0.5) else {}
    return m.step(op, inputs, 2, hidden_size=hidden, **attrs)


@rule(1)
def quantised_layers(m: Maker) -> Step | None:
    op = m.one_of(["DynamicQuantizeLinear", "QLinearMatMul", "ConvInteger"])
    if op == "DynamicQuantizeLinear":
        # The scale of nothing but zeros is not specified.
        x = m.pick(lambda t: t.dtype == np.float32 and t.exact and t.array.any())
        return m.step(op, [x], 3) if x else None
    x = m.pick(lambda t: t.dtype == np.uint8 and t.rank >= 2)
    if op == "ConvInteger":
        image_x = m.constant(m.values((1, 3, 5, 6), np.dtype(np.uint8)))
        weights = m.constant(m.rng.integers(-9, 9, (4, 3, 3, 3)).astype(np.int8))
        zero = m.constant(np.array(2, np.uint8))
        return m.step(op, [image_x, weights, zero], pads=[1, 0, 1, 1])
    if x is None:
        return None
    half, zero = m.constant(np.array(0.5, np.float32)), m.constant(np.array(3, np.uint8))
    weights = m.constant(m.rng.integers(0, 9, (x.shape[-1], 6)).astype(np.uint8))
    return m.step(op, [x, half, zero, weights, half, zero, m.constant(np.array(4, np.float32)),
                       zero])
