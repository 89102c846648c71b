"""Operators that never fall where their one tensor rises, as computed: rounding keeps that too."""

from __future__ import annotations

import numpy as np

from ...ir.graph.core import Node, Value

ALWAYS = ("add", "min", "max", "relu", "round", "floor", "ceil", "trunc", "identity")


def is_monotone(node: Node) -> bool:
    """Whether an elementwise node is monotone in its operand that is no constant. Elementary
    functions are not: their f32 may fall by a bit."""
    varying = [k for k, v in enumerate(node.inputs) if v is not None and v.constant is None]
    if len(varying) != 1:
        return False
    if node.op == "cast":
        return node.attrs["mode"] == "value" and not node.output.dtype.is_bool
    if node.op in ALWAYS:
        return True
    if varying != [0] and node.op != "mul":
        return False
    if node.op == "sub":
        return True
    if node.op in ("mul", "div"):
        return _positive(node.inputs[1 - varying[0]])
    if node.op == "leaky_relu":
        return node.attrs["alpha"] >= 0
    if node.op in ("quantize", "requantize"):
        return _positive(node.inputs[1])
    if node.op == "dequantize":
        return _positive(node.inputs[-1])
    return False


def _positive(value: Value | None) -> bool:
    return value is not None and value.constant is not None and bool(
        np.all(np.asarray(value.constant) > 0))
