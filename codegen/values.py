"""What the expression printers of C-like languages share.

Expressions used more than once become temporaries. A scalar select whose arms read memory prints
as if/else, because the arm not taken may be out of bounds.
"""

from __future__ import annotations

from typing import Protocol

from ..ir.expr import Broadcast, Const, Expr, Op, Var
from ..ir.kernel.nodes import Load


class StatementPrinter(Protocol):
    """What an expression printer needs of the printer of the statement around it."""

    depth: int

    def line(self, text: str) -> None: ...

    def temporary(self) -> str: ...


class ValuePrinter:
    """Turns expressions into text, adding temporaries through the statement printer `p`."""

    p: StatementPrinter

    def __init__(self) -> None:
        self._uses: dict[Expr, int] = {}
        self._scopes: list[dict[Expr, str]] = [{}]

    def _spell(self, e: Expr) -> str:
        """The text of an expression that has none yet."""
        raise NotImplementedError

    def declaration(self, e: Expr, name: str, text: str | None) -> str:
        """The statement that declares a local for the value of `e`: constant with its value, or
        assigned to later."""
        raise NotImplementedError

    # Statement-level entry points ---------------------------------------------------------------

    def begin(self, *roots: Expr) -> None:
        """Starts a statement: counts uses so that shared values get a name."""
        self._uses = {}
        self._scopes = [{}]
        seen: set[Expr] = set()
        stack = list(roots)
        for r in roots:
            self._uses[r] = self._uses.get(r, 0) + 1
        while stack:
            e = stack.pop()
            if e in seen:
                continue
            seen.add(e)
            for a in self._operands(e):
                self._uses[a] = self._uses.get(a, 0) + 1
                stack.append(a)

    def statement_value(self, e: Expr) -> str:
        """The text of a lone expression."""
        self.begin(e)
        return self.value(e)

    def _operands(self, e: Expr) -> tuple[Expr, ...]:
        if isinstance(e, Load) and e.buffer.space != "register":
            offset = e.buffer.offset(e.index)
            return (offset,) if e.count is None else (offset, e.count)
        return e.args

    # Values -------------------------------------------------------------------------------------

    def value(self, e: Expr) -> str:
        """The text of an expression, possibly a temporary's name."""
        for scope in reversed(self._scopes):
            if e in scope:
                return scope[e]
        self._shorten(e)
        if isinstance(e, Op) and e.name == "select" and self._lazy(e):
            return self._lazy_select(e)
        text = self._spell(e)
        trivial = isinstance(e, (Var, Const)) or (
            isinstance(e, Load) and e.buffer.space == "register")
        if not trivial and (self._uses.get(e, 0) > 1 or len(text) > 160):
            name = self.p.temporary()
            self.p.line(self.declaration(e, name, text))
            text = name
        self._scopes[-1][e] = text
        return text

    def _shorten(self, e: Expr) -> None:
        """Spells the far end of a long chain of first operands, so that recursion stays shallow:
        products of symbolic sizes have hundreds of terms."""
        chain: list[Expr] = []
        while isinstance(e, Op) and e.name != "select" and e not in self._scopes[-1]:
            chain.append(e)
            e = e.args[0]
        for link in reversed(chain[32::32]):
            self.value(link)

    def _lazy(self, e: Expr) -> bool:
        """Whether an arm reads memory or divides, so that only the taken arm may run."""
        condition = e.args[0]
        if condition.lanes > 1 and not isinstance(condition, Broadcast):
            return False
        stack = list(e.args[1:])
        seen: set[Expr] = set()
        while stack:
            x = stack.pop()
            if x in seen or any(x in s for s in self._scopes):
                continue
            seen.add(x)
            if isinstance(x, Load) and x.buffer.space != "register":
                return True
            stack.extend(self._operands(x))
        return False

    def _lazy_select(self, e: Expr) -> str:
        condition = e.args[0].args[0] if isinstance(e.args[0], Broadcast) else e.args[0]
        test = self.value(condition)
        name = self.p.temporary()
        self.p.line(self.declaration(e, name, None))
        for head, arm in ((f"if ({test}) {{", e.args[1]), ("} else {", e.args[2])):
            self.p.line(head)
            self.p.depth += 1
            self._scopes.append({})
            value = self.value(arm)
            self._scopes.pop()
            self.p.line(f"{name} = {value};")
            self.p.depth -= 1
        self.p.line("}")
        self._scopes[-1][e] = name
        return name
