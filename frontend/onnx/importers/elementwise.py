"""Arithmetic, comparison, logic and conversion, element by element."""

from __future__ import annotations

import functools

import numpy as np

from ....ir import dtype as dt
from ....ir.dtype import DType
from ....ir.graph.core import Value
from ..compile_time import NotTensor, Text, describe
from ..registry import Site, importer
from ..tensors import element_type

_UNARY = {
    "Abs": "abs", "Neg": "neg", "Sign": "sign", "Sqrt": "sqrt", "Exp": "exp", "Log": "log",
    "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan",
    "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh", "Acosh": "acosh",
    "Atanh": "atanh", "Erf": "erf", "Floor": "floor", "Ceil": "ceil", "Round": "round",
    "Not": "not", "BitwiseNot": "not", "IsNaN": "isnan",
}
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "And": "and", "Or": "or",
    "Xor": "xor", "BitwiseAnd": "and", "BitwiseOr": "or", "BitwiseXor": "xor", "Equal": "eq",
    "Greater": "gt", "Less": "lt", "GreaterOrEqual": "ge", "LessOrEqual": "le",
}


def scalar(c: Site, value, dtype: DType) -> Value:
    """A constant of rank 0."""
    return c.constant(np.asarray(value, dtype.numpy))


def cast(c: Site, x: Value, to: DType, mode: str = "value") -> Value:
    """`x` as type `to`; itself when it has it."""
    return x if x.dtype is to else c.add("cast", [x], to=to, mode=mode)


def operands(c: Site) -> tuple[Value, Value]:
    """The two operands; until opset 6 attributes say at which axis the second one is aligned."""
    x, y = c.input(0), c.input(1)
    if c.opset < 7 and c.attr("broadcast") and "axis" in c.attrs:
        after = x.rank - c.attrs["axis"] % max(x.rank, 1) - y.rank
        if after < 0:
            raise c.error(f"axis {c.attrs['axis']} does not align {y.type} with {x.type}")
        y = c.add("reshape", [y], shape=(*y.shape, *[1] * after))
    return x, y


@importer(*_UNARY)
def unary(c: Site) -> Value:
    return c.add(_UNARY[c.op_type], [c.input(0)])


@importer(*_BINARY)
def binary(c: Site) -> Value:
    return c.add(_BINARY[c.op_type], operands(c))


@importer("Identity")
def identity(c: Site):
    return [c.inputs[0]]


@importer("Reciprocal")
def reciprocal(c: Site) -> Value:
    return c.add("div", [scalar(c, 1, c.input(0).dtype), c.input(0)])


@importer("Pow")
def power(c: Site) -> Value:
    x, y = operands(c)
    if x.dtype.is_integer and y.dtype.is_float:
        return cast(c, c.add("pow", [cast(c, x, y.dtype), y]), x.dtype)
    return c.add("pow", [x, cast(c, y, x.dtype)])


@importer("Mod")
def modulo(c: Site) -> Value:
    return c.add("rem" if c.attr("fmod", 0) else "mod", [c.input(0), c.input(1)])


@importer("BitShift")
def bit_shift(c: Site) -> Value:
    ops = {"LEFT": "shl", "RIGHT": "shr"}
    direction = c.attr("direction")
    if direction not in ops:
        raise c.error(f"direction {direction!r} is neither LEFT nor RIGHT")
    return c.add(ops[direction], [c.input(0), c.input(1)])


@importer("Where")
def where(c: Site) -> Value:
    return c.add("select", [c.input(0), c.input(1), c.input(2)])


_VARIADIC = {"Sum": "add", "Mean": "add", "Max": "max", "Min": "min"}


@importer(*_VARIADIC)
def variadic(c: Site) -> Value:
    operands = [c.input(i) for i in range(len(c.inputs))]
    op = _VARIADIC[c.op_type]
    total = functools.reduce(lambda a, b: c.add(op, [a, b]), operands)
    if c.op_type == "Mean" and len(operands) > 1:
        total = c.add("div", [total, scalar(c, len(operands), total.dtype)])
    return total


@importer("Clip", since=1)
def clip_attributes(c: Site) -> Value:
    x = c.input(0)
    for name, op in (("min", "max"), ("max", "min")):
        if name in c.attrs:
            x = c.add(op, [x, scalar(c, c.attrs[name], x.dtype)])
    return x


@importer("Clip", since=11)
def clip(c: Site) -> Value:
    x = c.input(0)
    for i, op in ((1, "max"), (2, "min")):
        if c.has(i):
            x = c.add(op, [x, as_scalar(c, c.input(i))])
    return x


def as_scalar(c: Site, x: Value) -> Value:
    """A tensor of one element as rank 0."""
    return c.add("reshape", [x], shape=()) if x.rank else x


@importer("IsInf")
def is_inf(c: Site) -> Value:
    x = c.input(0)
    both = c.attr("detect_negative", 1), c.attr("detect_positive", 1)
    if all(both):
        return c.add("isinf", [x])
    if not any(both):
        return c.add("and", [c.add("isinf", [x]), scalar(c, False, dt.bool_)])
    limit = np.inf if both[1] else -np.inf
    return c.add("eq", [x, scalar(c, limit, x.dtype)])


@importer("Dropout")
def dropout(c: Site):
    """Inference: the input, and a mask that keeps everything."""
    x = c.input(0)
    if c.has(2):
        training, ratio = c.known(2), c.known(1) if c.has(1) else np.array(0.5)
        if (training is None or training.item()) and (ratio is None or ratio.item()):
            raise c.error("dropout in training mode is random; export the model for inference")
    if c.outputs < 2:
        return [x]
    mask = dt.bool_ if c.opset >= 10 else x.dtype
    return [x, c.add("expand", [scalar(c, 1, mask)], shape=x.shape)]


# Conversion -----------------------------------------------------------------------------------


def convert(c: Site, x: Value, to: DType, saturate: bool, rounding: str = "up") -> Value:
    """ONNX Cast: floats of 8 bits saturate (infinities too) unless told not to."""
    if to.is_float and to.bits <= 8 and x.dtype is not to:
        if x.dtype.is_integer or x.dtype.is_bool:
            x = cast(c, x, dt.f32)
        if to is dt.f8e8m0:
            return _to_power_of_two(c, x, saturate, rounding)
        if saturate and to is not dt.f4e2m1:
            wide = x if x.dtype.bits >= 32 else cast(c, x, dt.f32)
            low, high = scalar(c, to.min, wide.dtype), scalar(c, to.max, wide.dtype)
            x = c.add("min", [c.add("max", [wide, low]), high])
        return cast(c, x, to, "saturate" if to is dt.f4e2m1 else "value")
    if to.is_integer and to.bits < 8 and x.dtype.is_float:
        return cast(c, cast(c, x, dt.i32), to)
    return cast(c, x, to)


def _to_power_of_two(c: Site, x: Value, saturate: bool, rounding: str) -> Value:
    """f32 to the exponent-only type: the sign goes, the exponent is rounded as asked."""
    bits = cast(c, c.add("abs", [cast(c, x, dt.f32)]), dt.u32, "bits")
    exponent = c.add("shr", [bits, scalar(c, 23, dt.u32)])
    fraction = c.add("and", [bits, scalar(c, (1 << 23) - 1, dt.u32)])
    zero = scalar(c, 0, dt.u32)
    if rounding == "up":
        more = c.add("ne", [fraction, zero])
    elif rounding == "nearest":
        more = c.add("ge", [fraction, scalar(c, 1 << 22, dt.u32)])
    elif rounding == "down":
        more = None
    else:
        raise c.error(f"round_mode {rounding!r} is none of up, down, nearest")
    special = c.add("eq", [exponent, scalar(c, 255, dt.u32)])
    result = exponent
    if more is not None:
        result = c.add("add", [exponent, cast(c, more, dt.u32)])
    top = scalar(c, 254 if saturate else 255, dt.u32)
    result = c.add("min", [result, top])
    nan = c.add("isnan", [cast(c, x, dt.f32)])
    kept = c.add("select", [special, c.add("select", [nan, scalar(c, 255, dt.u32), top]), result])
    return cast(c, cast(c, kept, dt.u8), dt.f8e8m0, "bits")


def _numbers(c: Site, item: NotTensor, to: DType) -> Value:
    """Constant strings read as numbers."""
    if not isinstance(item, Text):
        raise c.error(f"cannot cast {describe(item)}")
    read = float if to.is_float or to.is_bool else int
    try:
        return c.constant(np.array([read(s) for s in item.array.flat]).astype(
            to.numpy).reshape(item.array.shape))
    except ValueError as error:
        raise c.error(f"a string is no number of type {to}: {error}") from error


@importer("Cast")
def cast_to(c: Site) -> Value:
    to = element_type(c.attr("to", 0), c.origin)
    if isinstance(c.inputs[0], NotTensor):
        return _numbers(c, c.inputs[0], to)
    return convert(c, c.input(0), to, bool(c.attr("saturate", 1)), c.attr("round_mode", "up"))


@importer("CastLike")
def cast_like(c: Site) -> Value:
    return convert(c, c.input(0), c.input(1).dtype, bool(c.attr("saturate", 1)),
                   c.attr("round_mode", "up"))


@importer("BitCast")
def bit_cast(c: Site) -> Value:
    to = element_type(c.attr("to", 0), c.origin)
    x = c.input(0)
    if to.bits != x.dtype.bits:
        raise c.error(f"cannot reinterpret {x.dtype} as {to}, which has another width")
    return cast(c, x, to, "bits")
