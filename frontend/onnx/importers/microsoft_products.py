"""com.microsoft: products with something fused in, products of packed low-bit weights."""

from __future__ import annotations

import numpy as np

from ....ir import dtype as dt
from ....ir.encoding.integer import Integers, unpack_bits
from ....ir.encoding.rounded import Rounded
from ....ir.graph.core import Value
from ....ir.graph.ops.shapes import same
from ..building import cast, is_zero, reshape, scalar, slice_axis, swap, transpose
from ..indices import checked_indices
from ..registry import Site, importer
from .convolution import biased, plain_conv
from .matmul import centred, gemm_of, left_zero, multiply, scaled
from .pooling import pool_window, sliding
from .quantization import dynamic_parameters

MICROSOFT = "com.microsoft"


def activated(c: Site, y: Value, params: tuple[float, ...]) -> Value:
    """The activation that the node's attribute names, with its parameters."""
    name = c.attr("activation", "")

    def param(k: int, default: float) -> float:
        return float(params[k]) if k < len(params) else default

    if not name:
        return y
    if name in ("Relu", "Sigmoid", "Tanh", "Softplus", "Gelu"):
        return c.add(name.lower(), [y])
    if name == "LeakyRelu":
        return c.add("leaky_relu", [y], alpha=param(0, 0.01))
    if name == "HardSigmoid":
        return c.add("hard_sigmoid", [y], alpha=param(0, 0.2), beta=param(1, 0.5))
    if name == "Clip":
        low, high = param(0, y.dtype.min), param(1, y.dtype.max)
        return c.add("min", [c.add("max", [y, scalar(c, low, y.dtype)]),
                             scalar(c, high, y.dtype)])
    if name == "Elu":
        return c.add("elu", [y], alpha=param(0, 1.0))
    raise c.error(f"unknown activation {name!r}")


@importer("FusedConv", domain=MICROSOFT)
def fused_conv(c: Site):
    y = biased(c, plain_conv(c, c.input(0), c.input(1)), c.inputs[2] if c.has(2) else None)
    if c.has(3):
        y = c.add("add", [y, c.input(3)])
    return activated(c, y, c.attr("activation_params") or ())


def channels_first(c: Site, x: Value) -> Value:
    return transpose(c, x, (0, x.rank - 1, *range(1, x.rank - 1)))


def channels_last(c: Site, x: Value) -> Value:
    return transpose(c, x, (0, *range(2, x.rank), 1))


@importer("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def nhwc_conv(c: Site):
    x = c.input(0)
    y = plain_conv(c, channels_first(c, x), c.input(1))
    y = channels_last(c, biased(c, y, c.inputs[2] if c.has(2) else None))
    if c.has(3):
        y = c.add("add", [y, c.input(3)])
    return activated(c, y, c.attr("activation_params") or ())


@importer("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(c: Site):
    x = channels_first(c, c.input(0))
    return channels_last(c, c.add("pool_max", [x], sliding(pool_window(c, x))))


@importer("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(c: Site):
    def operand(i: int, which: str) -> Value:
        x = c.input(i)
        if c.attr(f"transBatch{which}", 0) and x.rank > 2:
            # [M, batch..., K] to [batch..., M, K].
            x = transpose(c, x, (*range(1, x.rank - 1), 0, x.rank - 1))
        return swap(c, x) if c.attr(f"trans{which}", 0) and x.rank > 1 else x

    return scaled(c, multiply(c, operand(0, "A"), operand(1, "B")), c.attr("alpha", 1.0))


@importer("FusedGemm", domain=MICROSOFT)
def fused_gemm(c: Site):
    y = gemm_of(c, c.input(0), c.input(1), c.inputs[2] if c.has(2) else None)
    given = [c.attr(f"activation_{p}") for p in ("alpha", "beta", "gamma")]
    return activated(c, y, tuple(v for v in given if v is not None))


@importer("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(c: Site):
    y = multiply(c, c.input(0), c.input(1))
    if c.has(2):
        y = c.add("add", [y, c.input(2)])
    return c.add("gelu", [y], approximate="tanh")


# Integer products with float results --------------------------------------------------------------


def _with_bias(c: Site, y: Value, i: int) -> Value:
    return c.add("add", [y, c.input(i)]) if c.has(i) else y


@importer("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(c: Site):
    a = c.input(0)
    scale, zero = dynamic_parameters(c, a)
    quantised = cast(c, c.add("quantize", [a, scale, zero], to=dt.u8), dt.i32)
    left = c.add("sub", [quantised, cast(c, zero, dt.i32)])
    total = multiply(c, left, centred(c, c.input(1), 3), dtype=dt.i32)
    factor = c.add("mul", [scale, c.input(2)])
    return _with_bias(c, c.add("mul", [cast(c, total, dt.f32), factor]), 4)


@importer("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(c: Site):
    a, a_scale = c.input(0), c.input(2)
    if a_scale.rank == 1 and not same(a_scale.shape[0], 1):
        a_scale = reshape(c, a_scale, left_zero(a_scale))
    left, right = centred(c, a, 4, left_zero), centred(c, c.input(1), 5)
    total = multiply(c, left, right, dtype=dt.i32)
    factor = c.add("mul", [a_scale, c.input(3)])
    return _with_bias(c, c.add("mul", [cast(c, total, factor.dtype), factor]), 6)


# Packed low-bit weights ---------------------------------------------------------------------------


def unpacked(c: Site, packed: Value, bits: int) -> Value:
    """u8 [..., n] as the unsigned fields of `bits` bits it holds, lowest first."""
    if bits == 8:
        return packed
    if bits not in (2, 4):
        raise c.error(f"weights of {bits} bits are not supported; 2, 4 and 8 are")
    return c.add("unpack_bits", [packed], to=dt.u4 if bits == 4 else dt.u2)


@importer("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(c: Site):
    a, k, n = c.input(0), c.attr("K"), c.attr("N")
    bits, block = c.attr("bits", 4), c.attr("block_size")
    if c.attr("weight_prepacked", 0):
        raise c.error("weights packed for one machine are not supported; export the model without")
    if c.has(4) and not _in_order(c, 4, block):
        raise c.error("g_idx that reorders groups is not supported")
    blocks = -(-k // block)
    weights = _stored_weights(c, bits, block, k, n)
    if weights is not None:
        if c.attr("accuracy_level", 0) == 4 and a.dtype is dt.f32 and a.shape[-1] == k:
            a = _rounded(c, a, block)
        return _with_bias(c, multiply(c, a, weights), 5)
    fields = reshape(c, unpacked(c, c.input(1), bits), (n, blocks, block))
    scale = reshape(c, c.input(2), (n, blocks, 1))
    if c.has(3) and c.input(3).dtype is dt.u8:
        per_byte = 8 // bits
        rows = reshape(c, c.input(3), (n, -(-blocks // per_byte)))
        zero = slice_axis(c, unpacked(c, rows, bits), 1, 0, blocks)
        zero = reshape(c, zero, (n, blocks, 1))
    elif c.has(3):
        zero = reshape(c, c.input(3), (n, blocks, 1))
    else:
        zero = scalar(c, 1 << (bits - 1), fields.dtype)
    weights = reshape(c, c.add("dequantize", [fields, zero, scale]), (n, blocks * block))
    weights = slice_axis(c, weights, 1, 0, k)
    y = multiply(c, a, swap(c, cast(c, weights, a.dtype)))
    return _with_bias(c, y, 5)


def _stored_weights(c: Site, bits: int, block: int, k: int, n: int) -> Value | None:
    """The weights [K, N] as they are stored, where the model tells them and there is an encoding
    of their form."""
    packed, scale, zero = c.known(1), c.known(2), c.known(3)
    wide = c.has(3) and (zero is None or zero.dtype != np.uint8)
    scale_type = c.input(2).dtype
    if packed is None or scale is None or wide or bits not in (2, 4, 8) or block % 8 \
            or scale_type not in (dt.f16, dt.f32):
        return None
    encoding = Integers(block, bits, zero is not None, scale_type)
    blocks = -(-k // block)
    parts = [packed.reshape(n, -1), scale.reshape(n, blocks)]
    if zero is not None:
        rows = zero.reshape(n, -1)
        parts.append(np.stack([unpack_bits(row, bits, blocks) for row in rows]))
    return c.add("decode", [c.constant(p) for p in parts], encoding=str(encoding), shape=(k, n),
                 axis=0, to=c.input(0).dtype)


def _rounded(c: Site, a: Value, block: int) -> Value:
    """Activations of 8 bits, which accuracy level 4 lets a product compute with."""
    encoding = str(Rounded(block))
    parts = c.add_multi("encode", [a], encoding=encoding)
    return c.add("decode", parts, encoding=encoding, shape=a.shape, axis=a.rank - 1)


def _in_order(c: Site, i: int, block: int) -> bool:
    """Whether known group numbers are those of consecutive blocks."""
    known = c.known(i)
    return known is not None and all(int(g) == at // block for at, g in enumerate(known.flat))


@importer("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(c: Site):
    """Rows of a table quantised in blocks along its last axis, gathered before they are
    dequantised."""
    data, indices, scale = c.input(0), c.input(1), c.input(2)
    bits, block = c.attr("bits", 4), c.attr("block_size", 128)
    last = data.rank - 1
    if c.attr("gather_axis", 0) not in (0, -data.rank) or c.attr(
            "quantize_axis", 1) not in (last, -1) or last < 1:
        raise c.error("only rows of tables quantised along the last axis are supported")
    packed = data.dtype is dt.u8 and bits < 8
    indices = checked_indices(c, indices, data.shape[:1])

    def rows(x: Value) -> Value:
        return c.add("gather", [x, indices], axis=0)

    fields = rows(data)
    if packed:
        fields = unpacked(c, fields, bits)
    scale = rows(scale)
    shape, groups = fields.shape, scale.shape[-1]
    if isinstance(groups, int) and isinstance(shape[-1], int) and groups * block != shape[-1]:
        raise c.error(f"blocks of {block} do not divide rows of {shape[-1]}")
    operands = [reshape(c, fields, (*shape[:-1], groups, block))]
    if c.has(3) and not is_zero(c, 3):
        zero = rows(c.input(3))
        if packed:
            zero = slice_axis(c, unpacked(c, zero, bits), zero.rank - 1, 0, groups)
        operands.append(reshape(c, zero, (*shape[:-1], groups, 1)))
    elif packed:
        operands.append(scalar(c, 1 << (bits - 1), fields.dtype))
    operands.append(reshape(c, scale, (*shape[:-1], groups, 1)))
    return reshape(c, c.add("dequantize", operands), shape)
