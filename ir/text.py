"""The textual form of expressions, and the reader that the graph and kernel forms share.

    expr  := number | number:dtype | true | false | name | `any name`
           | (expr + expr)                      also - * // %, with the usual precedence
           | op(expr, ...)                      an operation of ir.operations
           | dtype(expr) | dtype.mode(expr)     a cast
           | broadcast<lanes>(expr) | ramp<lanes, stride>(expr)
           | sum[name < extent, ...](expr)      a reduction; also prod, max, min, any, all
           | buffer[index, ...] | buffer<lanes>[index, ..., count=expr] | @intrinsic(expr, ...)

A number without a dtype is an i64. The last line belongs to kernels, which give the reader hooks
for it. `#` starts a comment that ends with the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from ..errors import ModelError
from . import dtype as dt
from .expr import (
    Broadcast,
    Cast,
    Const,
    Expr,
    Op,
    Ramp,
    Reduce,
    Var,
    broadcast,
    cast,
    const,
    floordiv,
    mod,
    op,
    ramp,
    reduce,
    size,
    var,
    walk,
)
from .operations import OPS, REDUCTIONS

_INFIX = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}
_BY_SIGN = {sign: name for name, sign in _INFIX.items()}
_STRENGTH = {"+": 1, "-": 1, "*": 2, "//": 2, "%": 2}
_RESERVED = {"true", "false", "none", "nan", "inf", "broadcast", "ramp"}

# Printing ---------------------------------------------------------------------------------------


def print_name(name: str, reserved: Container[str] = ()) -> str:
    """A variable's name, in backquotes when it is no plain identifier or means something else."""
    if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and name not in _RESERVED \
            and name not in reserved:
        return name
    return "`" + json.dumps(name)[1:-1].replace("`", "\\u0060") + "`"


def print_expr(e) -> str:
    """The text of an expression or int; `parse_expr` gives back the identical expression."""
    if not isinstance(e, Expr):
        return str(e)
    done: dict[Expr, str] = {}
    for node in walk(e):
        a = [done[x] for x in node.args]
        if isinstance(node, Const):
            done[node] = print_const(node)
        elif isinstance(node, Var):
            done[node] = print_name(node.name)
        elif isinstance(node, Op) and node.name in _INFIX and node.dtype is dt.i64:
            done[node] = f"({a[0]} {_INFIX[node.name]} {a[1]})"
        elif isinstance(node, Op):
            done[node] = f"{node.name}({', '.join(a)})"
        elif isinstance(node, Cast):
            suffix = "" if node.mode == "value" else f".{node.mode}"
            done[node] = f"{node.dtype.name}{suffix}({a[0]})"
        elif isinstance(node, Broadcast):
            done[node] = f"broadcast<{node.lanes}>({a[0]})"
        elif isinstance(node, Ramp):
            done[node] = f"ramp<{node.lanes}, {node.stride}>({a[0]})"
        elif isinstance(node, Reduce):
            over = ", ".join(f"{print_name(v.name)} < {print_expr(v.extent)}" for v in node.vars)
            done[node] = f"{node.op}[{over}]({a[0]})"
        else:
            done[node] = node.format(a)  # type: ignore[attr-defined]
    return done[e]


def print_const(node: Const) -> str:
    """A literal; anything but i64 and bool carries its dtype."""
    if node.dtype is dt.i64:
        return str(node.value)
    if node.dtype.is_bool:
        return "true" if node.value else "false"
    return f"{node.value!r}:{node.dtype.name}"


# Reading ----------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"(?P<space>(?:\s|#[^\n]*)+)"
    r"|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)"
    r"|(?P<value>%\w+)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<quoted>`[^`\n]*`)"
    r'|(?P<string>"(?:[^"\\\n]|\\.)*")'
    r"|(?P<sign>//|->|[^\w\s])",
    re.ASCII,
)


@dataclass(frozen=True)
class Token:
    """`kind` is number, value (`%name`), name, quoted, string, sign, or end."""

    kind: str
    text: str
    position: int


def _tokens(text: str) -> list[Token]:
    result: list[Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None and match.lastgroup is not None
        if match.lastgroup != "space":
            result.append(Token(match.lastgroup, match.group(), position))
        position = match.end()
    result.append(Token("end", "", position))
    return result


@dataclass
class _Frame:
    """An open bracket: what it will build from the finished `items`, and the running infix
    expression."""

    build: Callable[[list[Expr]], Expr] | None
    close: str
    items: list[Expr] = field(default_factory=list)
    operands: list[Expr] = field(default_factory=list)
    signs: list[str] = field(default_factory=list)
    count: Expr | None = None


class Reader:
    """Tokens of a text with one place of reading; `error` gives a ModelError with that place.

    `variable(name)` resolves names in expressions; by default every name is a tensor size.
    `load(buffer, lanes, index, count)` and `call(intrinsic, args)` build the kernel expressions.
    """

    def __init__(self, text: str, variable: Callable[[str], Expr] = size,
                 load: Callable[[str, int, list[Expr], Expr | None], Expr] | None = None,
                 call: Callable[[str, list[Expr]], Expr] | None = None):
        self.text = text
        self.tokens = _tokens(text)
        self.at = 0
        self.variable = variable
        self.load = load
        self.call = call
        self._bound: dict[str, Expr] = {}

    @property
    def peek(self) -> Token:
        return self.tokens[self.at]

    def ahead(self, count: int = 1) -> str:
        """The text of a token further on."""
        return self.tokens[min(self.at + count, len(self.tokens) - 1)].text

    def next(self) -> Token:
        token = self.tokens[self.at]
        if token.kind != "end":
            self.at += 1
        return token

    def accept(self, text: str) -> bool:
        """Passes over `text` when it comes next."""
        if self.peek.text == text and self.peek.kind in ("sign", "name"):
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.error(f"expected {text!r}")

    def error(self, message: str) -> ModelError:
        token = self.peek
        line = self.text.count("\n", 0, token.position) + 1
        column = token.position - self.text.rfind("\n", 0, token.position)
        found = token.text or "the end"
        return ModelError(f"IR text, line {line}, column {column}: {message}, found {found!r}")

    def name(self) -> str:
        """A plain or backquoted name."""
        token = self.peek
        if token.kind not in ("name", "quoted"):
            raise self.error("expected a name")
        self.at += 1
        return token.text if token.kind == "name" else json.loads(f'"{token.text[1:-1]}"')

    def string(self) -> str:
        """A string literal in double quotes."""
        if self.peek.kind != "string":
            raise self.error("expected a string")
        return json.loads(self.next().text)

    def integer(self) -> int:
        negative = self.accept("-")
        if self.peek.kind != "number" or not self.peek.text.isdigit():
            raise self.error("expected an integer")
        value = int(self.next().text)
        return -value if negative else value

    def expr(self) -> Expr:
        """One expression; no recursion, so nesting may be deep."""
        frames = [_Frame(None, "")]
        while True:
            operand = self._operand(frames)
            if operand is None:
                continue
            frames[-1].operands.append(operand)
            while True:
                frame, token = frames[-1], self.peek
                if token.kind == "sign" and token.text in _STRENGTH:
                    self._reduce(frame, _STRENGTH[token.text])
                    frame.signs.append(self.next().text)
                    break
                self._reduce(frame, 0)
                if frame.build is None:
                    return frame.operands.pop()
                frame.items.append(frame.operands.pop())
                if self.accept(","):
                    if frame.close != "]" or self.peek.text != "count" or self.ahead() != "=":
                        break
                    self.at += 2
                    frame.count = self.expr()
                self.expect(frame.close)
                frames.pop()
                frames[-1].operands.append(self._checked(frame.build, frame.items))

    def _reduce(self, frame: _Frame, strength: int) -> None:
        """Applies the waiting infix operations that bind at least as strongly."""
        while frame.signs and _STRENGTH[frame.signs[-1]] >= strength:
            name = _BY_SIGN[frame.signs.pop()]
            b, a = frame.operands.pop(), frame.operands.pop()
            frame.operands.append(self._checked(lambda x, n=name: _infix(n, *x), [a, b]))

    def _checked(self, build: Callable[[list[Expr]], Expr], items: list[Expr]) -> Expr:
        try:
            return build(items)
        except (TypeError, ValueError) as e:
            raise self.error(str(e)) from None

    def _operand(self, frames: list[_Frame]) -> Expr | None:
        """A leaf, or None after opening a bracket."""
        token = self.peek
        if token.kind == "number" or token.text == "-" or token.text in ("nan", "inf"):
            return self.number()
        if token.kind == "quoted":
            return self._named(self.name())
        if self.accept("("):
            frames.append(_Frame(_only, ")"))
            return None
        if self.accept("@"):
            intrinsic, call = self.name(), self.call
            if call is None:
                raise self.error("calls stand in kernels only")
            return self._open(frames, lambda items: call(intrinsic, items))
        if token.kind != "name":
            raise self.error("expected an expression")
        if token.text in ("true", "false"):
            self.at += 1
            return const(token.text == "true", dt.bool_)
        after = self.ahead()
        if after == "(":
            return self._function(frames, self.next().text)
        if token.text in dt.ALL and after == ".":
            dtype, mode = dt.dtype(self.next().text), self._mode()
            return self._open(frames, lambda items: cast(_only(items), dtype, mode))
        if token.text in REDUCTIONS and after == "[":
            return self._reduction(frames, self.next().text)
        if token.text in ("broadcast", "ramp") and after == "<":
            return self._lanes(frames, self.next().text)
        name = self.next().text
        if self.load is not None and after in ("[", "<"):
            return self._load(frames, name)
        return self._named(name)

    def _mode(self) -> str:
        self.expect(".")
        return self.name()

    def _named(self, name: str) -> Expr:
        if name in self._bound:
            return self._bound[name]
        try:
            return self.variable(name)
        except KeyError:
            self.at -= 1
            raise self.error("expected a known variable") from None

    def number(self) -> Const:
        """A literal with its sign and dtype."""
        negative = self.accept("-")
        token = self.peek
        if token.kind != "number" and token.text not in ("nan", "inf"):
            raise self.error("expected a number")
        self.at += 1
        dtype = dt.i64
        if self.peek.text == ":" and self.ahead() in dt.ALL:
            self.at += 1
            dtype = dt.dtype(self.next().text)
        if dtype.is_integer and not token.text.isdigit():
            raise self.error(f"expected a dtype after {token.text}, as in {token.text}:f32")
        text = "-" + token.text if negative else token.text
        return const(int(text) if dtype.is_integer else float(text), dtype)

    def _open(self, frames: list[_Frame], build: Callable[[list[Expr]], Expr]) -> Expr | None:
        self.expect("(")
        if self.accept(")"):
            return self._checked(build, [])
        frames.append(_Frame(build, ")"))
        return None

    def _function(self, frames: list[_Frame], name: str) -> Expr | None:
        if name in dt.ALL:
            return self._open(frames, lambda items: cast(_only(items), dt.dtype(name)))
        if name not in OPS:
            raise self.error(f"unknown operation {name!r}")
        if name in _INFIX:
            return self._open(frames, lambda items: _infix(name, *items))
        return self._open(frames, lambda items: op(name, *items))

    def _reduction(self, frames: list[_Frame], kind: str) -> Expr | None:
        self.expect("[")
        variables: list[Var] = []
        before = dict(self._bound)
        while not self.accept("]"):
            name = self.name()
            self.expect("<")
            variables.append(var(name, extent=self.expr()))
            if not self.accept(","):
                self.expect("]")
                break
        self._bound.update({v.name: v for v in variables})

        def build(items: list[Expr]) -> Expr:
            self._bound = before
            return reduce(kind, variables, _only(items))

        return self._open(frames, build)

    def _lanes(self, frames: list[_Frame], name: str) -> Expr | None:
        self.expect("<")
        lanes = self.integer()
        stride = self.integer() if self.accept(",") else 1
        self.expect(">")
        if name == "broadcast":
            return self._open(frames, lambda items: broadcast(_only(items), lanes))
        return self._open(frames, lambda items: ramp(_only(items), lanes, stride))

    def _load(self, frames: list[_Frame], buffer: str) -> Expr | None:
        lanes, load = 1, self.load
        assert load is not None
        if self.accept("<"):
            lanes = self.integer()
            self.expect(">")
        self.expect("[")
        if self.accept("]"):
            return load(buffer, lanes, [], None)
        frame = _Frame(None, "]")
        frame.build = lambda items: load(buffer, lanes, items, frame.count)
        frames.append(frame)
        return None


def _only(items: list[Expr]) -> Expr:
    if len(items) != 1:
        raise ValueError(f"expected one expression, not {len(items)}")
    return items[0]


def _infix(name: str, a: Expr, b: Expr) -> Expr:
    return {"floordiv": floordiv, "mod": mod}[name](a, b) if name in ("floordiv", "mod") else op(
        name, a, b)


def parse_expr(text: str, variable: Callable[[str], Expr] = size) -> Expr:
    """Reads one expression; `variable` resolves names (default: tensor sizes).

    Raises ModelError with line and column.
    """
    reader = Reader(text, variable)
    result = reader.expr()
    if reader.peek.kind != "end":
        raise reader.error("expected the end")
    return result
