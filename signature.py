"""What goes into and comes out of a model: names, element types, sizes, and random inputs for it.

A size is a number, or the text of an expression over named sizes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import UsageError
from .ir.dtype import DType

Size = int | str


@dataclass(frozen=True)
class Spec:
    """One input or output: `dims` are numbers or texts of expressions over named sizes."""

    name: str
    dtype: DType
    dims: tuple[Size, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.dims))}]"


def of_graph(graph: Any) -> tuple[list[Spec], list[Spec]]:
    """The inputs and outputs of an imported graph."""
    return [_of_value(v) for v in graph.inputs], [_of_value(v) for v in graph.outputs]


def _of_value(value: Any) -> Spec:
    from .ir.expr import text

    dims = tuple(d if isinstance(d, int) else text(d) for d in value.shape)
    return Spec(value.name, value.dtype, dims)


FORMULA_LIMIT = 30
"""Longer formulas are cut in what people read; JSON keeps them whole."""


def shape_text(dims: Iterable[Size]) -> str:
    """A shape for people: long formulas are cut."""
    return " x ".join(size_text(d) for d in dims) or "scalar"


def size_text(size: Size) -> str:
    """A size or amount for people: a number, a name as it is, or a formula that is cut when long.
    """
    text = _unwrapped(str(size))
    if len(text) <= FORMULA_LIMIT or re.fullmatch(r"[\w.]+", text):
        return text
    return text[:FORMULA_LIMIT - 1].rstrip() + "…"


def _unwrapped(text: str) -> str:
    """Without the parentheses around the whole."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[1:-1] if i == len(text) - 1 and i else text
    return text


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[Size, ...]]:
    """Shapes from `name=1x3x224x224` or, with named sizes, `name=Nx3xHxW`; with commas instead,
    the names may contain an x: `name=N,3,max_len`. Raises UsageError for anything else."""
    shapes: dict[str, tuple[Size, ...]] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        if not equals or not name:
            raise UsageError(f"--shape {text!r}: write the input's name and its sizes, such as "
                             f"x=1x3x224x224")
        dims: list[Size] = []
        parts = sizes.rstrip(",").split("," if "," in sizes else "x") if sizes else []
        for size in parts:
            if size.isascii() and size.isdigit():
                dims.append(int(size))
            elif re.fullmatch(r"[A-Za-z_][\w.]*", size):
                dims.append(size)
            else:
                raise UsageError(f"--shape {text!r}: {size!r} is neither a number nor a name")
        shapes[name] = tuple(dims)
    return shapes


def parse_dims(texts: Iterable[str]) -> dict[str, int]:
    """Sizes from `N=1`; several may be given with commas. Raises UsageError."""
    dims: dict[str, int] = {}
    for text in texts:
        for part in text.split(","):
            name, equals, value = part.rpartition("=")
            if not equals or not name or not (value.isascii() and value.isdigit()):
                raise UsageError(f"--dim {part!r}: write a size's name and a whole number, such "
                                 f"as N=1")
            dims[name] = int(value)
    return dims


def parse_states(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs (output, input) from `output:input`. Raises UsageError."""
    states = []
    for text in texts:
        out, colon, into = text.rpartition(":")
        if not colon or not out or not into:
            raise UsageError(f"--state {text!r}: write an output's and an input's name, such as "
                             f"present:past")
        states.append((out, into))
    return tuple(states)


def names_in(size: Size) -> list[str]:
    """The named sizes that a size mentions, in order."""
    if isinstance(size, int):
        return []
    try:
        tree = ast.parse(size, mode="eval")
    except SyntaxError:
        return [size]  # a name that is no Python identifier, such as "dim.0"
    if any(isinstance(n, ast.Attribute) for n in ast.walk(tree)):
        return [size]
    names = (n.id for n in ast.walk(tree) if isinstance(n, ast.Name))
    return list(dict.fromkeys(n for n in names if n not in _FUNCTIONS))


_FUNCTIONS = {
    "min": min, "max": max, "select": lambda c, a, b: a if c else b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}
_OPERATIONS = {
    ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b, ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b, ast.Mod: lambda a, b: a % b,
}


def size_value(size: Size, dims: Mapping[str, int]) -> int | None:
    """The number that a size stands for, or None when `dims` does not tell."""
    if isinstance(size, int):
        return size
    if size in dims:
        return dims[size]
    try:
        return _evaluate(ast.parse(size, mode="eval").body, dims)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None


def _evaluate(node: ast.expr, dims: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return dims[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_evaluate(node.left, dims), _evaluate(node.right, dims))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, dims)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        function = _FUNCTIONS.get(node.func.id)
        if function:
            return function(*(_evaluate(a, dims) for a in node.args))
    raise KeyError(ast.unparse(node))


def by_compiler_names(dims: Mapping[str, int], sizes: Mapping[str, str]) -> dict[str, int]:
    """Numbers by the names that the compiler gave to open sizes, from numbers by either name.
    `sizes` maps the compiler's names to the model's, which win where they are the same word."""
    own = set(sizes.values())
    known = {name: value for name, value in dims.items() if name not in own}
    known.update({here: dims[there] for here, there in sizes.items() if there in dims})
    return known


def in_model_names(text: str, sizes: Mapping[str, str]) -> str:
    """A size, formula or type with the model's names of open sizes in place of the compiler's.
    Names that are more than a word are quoted inside formulas."""
    if text in sizes:
        return sizes[text]

    def name(match: re.Match[str]) -> str:
        own = sizes.get(match[0], match[0])
        return own if re.fullmatch(r"[\w.]+", own) else repr(own)

    return re.sub(r"[A-Za-z_]\w*", name, text)


def check_sizes(dims: Mapping[str, int], sizes: Mapping[str, str]) -> None:
    """Raises UsageError when `dims` names a size that a compiled model does not have."""
    for name in dims:
        if name not in sizes and name not in sizes.values():
            have = ", ".join(map(repr, sizes.values())) or "none"
            raise UsageError(f"--dim {name!r}: the compiled model has no open size of that name; "
                             f"it has {have}")


def fill(specs: Sequence[Spec], dims: Mapping[str, int],
         names: Mapping[str, str] | None = None) -> dict[str, int]:
    """Numbers for every named size of the inputs: those given, and 1 for a first dimension, which
    is a batch. Raises UsageError naming a size that stays open, as `names` calls it."""
    known = dict(dims)
    open_sizes: dict[str, Spec] = {}
    for spec in specs:
        for axis, size in enumerate(spec.dims):
            for name in names_in(size):
                if name not in known:
                    if axis == 0 and size == name and len(spec.dims) > 1:
                        known[name] = 1
                    else:
                        open_sizes.setdefault(name, spec)
    missing = [n for n in open_sizes if n not in known]
    if missing:
        where = open_sizes[missing[0]].name
        name = (names or {}).get(missing[0], missing[0])
        raise UsageError(f"size {name!r} of input {where!r} is open: give it, for example "
                         f"--dim '{name}=64', or pass real inputs")
    return known


def random_inputs(specs: Sequence[Spec], dims: Mapping[str, int], seed: int,
                  names: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """Inputs of the right types and sizes: floats from a normal distribution, bytes over their
    whole range, wider integers in 0..7 (they are indices more often than not)."""
    known = fill(specs, dims, names)
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for spec in specs:
        shape = []
        for size in spec.dims:
            value = size_value(size, known)
            if value is None or value < 0:
                raise UsageError(f"size {size!r} of input {spec.name!r} cannot be worked out")
            shape.append(value)
        arrays[spec.name] = _random(spec.dtype, tuple(shape), random)
    return arrays


def _random(dtype: DType, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if dtype.is_float:
        values = np.asarray(random.standard_normal(shape))
        # f8e8m0 holds powers of two only.
        return (values if dtype.min < 0 else abs(values)).astype(dtype.numpy)
    if dtype.is_bool:
        return np.asarray(random.integers(0, 2, shape), bool)
    low, high = (int(dtype.min), int(dtype.max)) if dtype.bits <= 8 else (0, 7)
    return np.asarray(random.integers(low, high, shape, endpoint=True)).astype(dtype.numpy)
