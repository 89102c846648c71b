"""The table's elementwise operators, casts, reductions and generators."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from fuzz.fuzz_graphs import Step
from fuzz.fuzz_maker import INTEGERS, Maker, rule
from onnx import TensorProto, helper

SMOOTH = ("Sigmoid", "Tanh", "Exp", "Erf", "Softplus", "Sin", "Cos", "Atan", "Softsign", "Mish",
          "HardSwish", "Elu", "Selu", "Celu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu",
          "Gelu", "Sinh", "Asinh")
PARTIAL = ("Sqrt", "Log", "Reciprocal", "Asin", "Acosh", "Atanh", "Tan")
MOVING = ("Neg", "Abs", "Relu", "Identity")
WHOLE = ("Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf")
BF16 = np.dtype(ml_dtypes.bfloat16)


@rule(5)
def smooth(m: Maker) -> Step | None:
    x = m.pick_float()
    op = m.one_of(SMOOTH)
    if x is not None and x.dtype == np.float64 and op in ("Erf", "Gelu", "HardSwish"):
        return None  # of f32 precision in the reference
    attrs = {}
    if op in ("Elu", "LeakyRelu", "Celu", "ThresholdedRelu", "HardSigmoid"):
        attrs["alpha"] = float(m.one_of([0.25, 0.5, 1.5]))
    if op == "Gelu" and m.chance(0.5):
        attrs["approximate"] = "tanh"
    return m.step(op, [x], **attrs) if x else None


@rule(1.5)
def partial(m: Maker) -> Step | None:
    """Outside their domain these give NaN, whose way onward is part of the test."""
    x = m.pick(lambda t: t.is_float and t.exact)
    return m.step(m.one_of(PARTIAL), [x]) if x else None


@rule(2, MOVING)
def moving(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.dtype.kind in "if" or t.dtype == BF16)
    return m.step(m.one_of(MOVING), [x]) if x else None


@rule(1.5, ("Floor", "Ceil", "Round", "Sign"))
def whole(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.is_float and t.exact)
    return m.step(m.one_of(WHOLE), [x]) if x else None


@rule(5, ("Add", "Sub", "Mul", "Min", "Max"))
def arithmetic(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.dtype.kind != "b")
    if x is None:
        return None
    operands = [x.name, m.operand_like(x)]
    if m.chance(0.3):
        operands.reverse()
    return m.step(m.one_of(["Add", "Sub", "Mul", "Min", "Max"]), operands)


@rule(2)
def division(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.dtype.kind != "b")
    if x is None:
        return None
    shape = x.shape if m.chance(0.5) else ()
    divisor = m.values(shape, x.dtype)
    divisor = np.where(divisor == 0, np.ones_like(divisor), divisor).astype(x.dtype)
    if x.is_float:
        return m.step("Div", [x, m.constant(divisor)])
    if m.chance(0.5):
        return m.step("Div", [x, m.constant(divisor)])
    return m.step("Mod", [x, m.constant(divisor)], fmod=int(m.chance(0.5)))


@rule(1)
def float_mod(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.is_float and t.exact)
    if x is None:
        return None
    divisor = np.array(m.one_of([0.5, 1.0, 2.0, -3.0]), x.dtype)
    return m.step("Mod", [x, m.constant(divisor)], fmod=1)


@rule(1)
def power(m: Maker) -> Step | None:
    x = m.pick_float()
    if x is None:
        return None
    exponent = np.array(m.one_of([0.0, 1.0, 2.0, 3.0, -1.0]), x.dtype)
    return m.step("Pow", [x, m.constant(exponent)])


@rule(1, ("PRelu",))
def prelu(m: Maker) -> Step | None:
    x = m.pick_float()
    if x is None:
        return None
    shape = tuple(d if m.chance(0.5) else 1 for d in x.shape)
    return m.step("PRelu", [x, m.constant(m.values(shape, x.dtype))])


@rule(2, ("Clip",))
def clip(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.dtype.kind != "b")
    if x is None:
        return None
    low = m.constant(np.array(-1 if x.dtype.kind != "u" else 2, x.dtype))
    high = m.constant(np.array(3, x.dtype))
    return m.step("Clip", m.one_of([[x, low, high], [x, low], [x, "", high]]))


@rule(2)
def compare(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.exact and t.dtype.kind != "b")
    if x is None:
        return None
    other = m.operand_like(x)
    if not m.tensors[other].exact:
        return None
    op = m.one_of(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
    return m.step(op, [x, other])


@rule(1.5)
def logic(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.dtype.kind == "b")
    if x is None:
        return None
    op = m.one_of(["And", "Or", "Xor", "Not"])
    return m.step(op, [x] if op == "Not" else [x, m.operand_like(x)])


@rule(1.5)
def bits(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.dtype.kind in "iu")
    if x is None:
        return None
    op = m.one_of(["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift"])
    if op == "BitwiseNot":
        return m.step(op, [x])
    if op == "BitShift":
        if x.dtype.kind == "i":
            return None
        amount = m.constant(np.array(m.one_of([0, 1, 3, 7]), x.dtype))
        return m.step(op, [x, amount], direction=m.one_of(["LEFT", "RIGHT"]))
    return m.step(op, [x, m.operand_like(x)])


@rule(2, ("Where",))
def where(m: Maker) -> Step | None:
    condition = m.pick(lambda t: t.dtype.kind == "b")
    x = m.pick()
    if condition is None or x is None:
        return None
    return m.step("Where", [condition, x, m.operand_like(x)])


@rule(2.5, ("Cast",))
def cast(m: Maker) -> Step | None:
    x = m.pick()
    if x is None:
        return None
    kinds = [np.float32, np.float16, np.float64, np.bool_, ml_dtypes.bfloat16, *INTEGERS]
    to = np.dtype(m.one_of(kinds))
    if x.is_float and (to in INTEGERS or to.kind == "b"):
        if not x.exact or (to.kind == "u" and (x.array.astype(np.float64) < 0).any()):
            return None
        if np.abs(x.array.astype(np.float64)).max(initial=0) > 100:
            return None
    return m.step("Cast", [x], to=helper.np_dtype_to_tensor_dtype(to))


REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1",
              "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare")


@rule(3, ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceSumSquare"))
def reduction(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and t.array.size > 0 and (
        t.is_float or t.dtype in (np.int32, np.int64)))
    if x is None:
        return None
    op = m.one_of(REDUCTIONS if x.is_float else ("ReduceSum", "ReduceMax", "ReduceMin"))
    count = int(m.rng.integers(1, x.rank + 1))
    axes = sorted(int(a) for a in m.rng.permutation(x.rank)[:count])
    axes = [a - x.rank if m.chance(0.3) else a for a in axes]
    inputs = [x] if m.chance(0.1) else [x, m.indices(axes)]
    return m.step(op, inputs, keepdims=int(m.chance(0.5)))


@rule(1)
def arg_reduction(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and t.exact and t.array.size > 0 and (
        t.is_float or t.dtype in (np.int32, np.int64)))
    if x is None:
        return None
    return m.step(m.one_of(["ArgMax", "ArgMin"]), [x], axis=int(m.rng.integers(x.rank)),
                  keepdims=int(m.chance(0.5)), select_last_index=int(m.chance(0.3)))


@rule(1, ("CumSum",))
def running_sum(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and (t.is_float or t.dtype in (np.int32, np.int64)))
    if x is None:
        return None
    axis = m.constant(np.array(int(m.rng.integers(x.rank)), np.int64))
    return m.step("CumSum", [x, axis], exclusive=int(m.chance(0.3)), reverse=int(m.chance(0.3)))


@rule(1)
def shape_of(m: Maker) -> Step | None:
    x = m.pick()
    return m.step(m.one_of(["Shape", "Size"]), [x]) if x else None


@rule(0.7, ("ConstantOfShape",))
def filled(m: Maker) -> Step | None:
    shape = m.indices(m.shape(int(m.rng.integers(0, 3))))
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [m.one_of([0.0, -1.5])])
    return m.step("ConstantOfShape", [shape], value=value)
