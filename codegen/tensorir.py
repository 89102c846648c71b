"""Prints legalised kernels as TensorIR: TVMScript of TVM's low-level dialect (`tvm.tirx`).

The loops, buffers and vectors of the schedule stay as they are; buffers are flat. The text is what
`targets.tvm_bridge` builds, and nothing here needs TVM. Parameters may not be the same memory.
"""

from __future__ import annotations

import math
import re

from ..ir import dtype as dt
from ..ir.expr import Expr, Ramp, Var, walk, wrap
from ..ir.kernel.nodes import (
    Alloc,
    Block,
    Buffer,
    Call,
    For,
    If,
    Kernel,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    While,
)
from .tensorir_expr import ExpressionPrinter
from .tensorir_text import Inexpressible, memory_type, value_type

STACK_BYTES = 32 * 1024
"""Bytes up to which a local buffer lies on the stack."""

_LOOPS = {"serial": "T.serial", "vector": "T.serial", "pipeline": "T.serial",
          "parallel": "T.parallel", "unroll": "T.unroll"}

__all__ = ["Inexpressible", "print_tensorir"]


def print_tensorir(kernel: Kernel, threads: bool = True) -> str:
    """The TVMScript of a module with one function, named as the kernel: buffers as handles in
    order, then the sizes. `threads` False prints parallel loops as serial ones.

    Raises Inexpressible, whose text is a sentence that names what is missing.
    """
    try:
        return _KernelPrinter(kernel, threads).text()
    except Inexpressible as missing:
        raise Inexpressible(f"kernel {kernel.name} has no TensorIR form: {missing} is "
                            "missing") from None


class _KernelPrinter(ExpressionPrinter):
    """Statements; see `print_tensorir`."""

    def __init__(self, kernel: Kernel, threads: bool):
        super().__init__()
        self.kernel = kernel
        self.threads = threads
        self.lines: list[str] = []
        self._names: dict[object, str] = {}
        self._count = 0

    # Text -------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def _name(self, item: object, name: str) -> str:
        if item not in self._names:
            self._count += 1
            base = re.sub(r"[^a-zA-Z0-9]", "", name)[:20].strip("0123456789") or "v"
            self._names[item] = f"{base}_{self._count}"
        return self._names[item]

    def fresh(self) -> str:
        self._count += 1
        return f"e_{self._count}"

    def buffer_name(self, buffer: Buffer) -> str:
        return self._name(buffer, buffer.name)

    def var_name(self, v: Var) -> str:
        return self._name(v, v.name)

    def text(self) -> str:
        kernel = self.kernel
        for buffer in kernel.params:
            name = self.buffer_name(buffer)
            self.line(f"{name}_n = T.int64()")
            self.line(f"{name} = T.match_buffer({name}_h, ({name}_n,), "
                      f"\"{memory_type(buffer.dtype)}\")")
        for s in kernel.body.body:
            if isinstance(s, For) and s.kind == "parallel" and self.threads:
                self._for(s, "T.parallel")
            else:
                self._statement(s)
        arguments = [f"{self.buffer_name(b)}_h: T.handle" for b in kernel.params]
        arguments += [f"{self.var_name(v)}: T.int64" for v in kernel.sizes]
        head = ["@I.ir_module", "class Module:", "    @T.prim_func",
                f"    def {kernel.name}({', '.join(arguments)}):",
                f"        T.func_attr({{\"global_symbol\": \"{kernel.name}\", "
                "\"tirx.noalias\": True})"]
        return "\n".join(head + self.lines) + "\n"

    # Statements -------------------------------------------------------------------------------

    def _block(self, block: Block) -> None:
        self.depth += 1
        before = len(self.lines)
        for s in block.body:
            self._statement(s)
        if len(self.lines) == before:
            self.line("T.evaluate(T.int64(0))")
        self.depth -= 1

    def _statement(self, s: Stmt) -> None:
        if isinstance(s, Block):
            for inner in s.body:
                self._statement(inner)
        elif isinstance(s, For):
            self._for(s, _LOOPS.get(s.kind, "") if s.kind != "parallel" else "T.serial")
        elif isinstance(s, While):
            self._while(s)
        elif isinstance(s, If):
            self.line(f"if {self.statement_value(s.condition)}:")
            self._block(s.then)
            if s.orelse.body:
                self.line("else:")
                self._block(s.orelse)
        elif isinstance(s, Let):
            self._let(s)
        elif isinstance(s, Alloc):
            self._alloc(s.buffer)
        elif isinstance(s, Store):
            self._store(s)
        elif not isinstance(s, Prefetch):
            raise Inexpressible(f"the statement {type(s).__name__}")

    def _let(self, s: Let) -> None:
        if any(isinstance(x, (Load, Call)) or x in self.data_vars for x in walk(s.value)):
            self.data_vars.add(s.var)
        self.begin(s.value)
        if s.var.dtype is dt.i64:
            value = self.value(s.value, s.var not in self.data_vars)
            self.line(f"{self.var_name(s.var)}: T.let = {value}")
            return
        self._names[s.var] = self.named(self.value(s.value), 1, value_type(s.var.dtype))

    def _for(self, s: For, kind: str) -> None:
        if not kind:
            raise Inexpressible(f"a {s.kind} loop")
        self.begin(wrap(s.extent))
        extent = self.value(wrap(s.extent), True)
        if s.kind == "unroll" and isinstance(s.extent, Expr):
            kind = "T.serial"
        self.line(f"for {self.var_name(s.var)} in {kind}(T.int64(0), {extent}):")
        self._block(s.body)

    def _while(self, s: While) -> None:
        """The condition may need statements of its own, so it is kept in a cell."""
        cell = self.fresh()
        self.line(f"{cell} = T.alloc_buffer((T.int64(1),), \"uint8\", scope=\"local\")")

        def test() -> None:
            self.line(f"{cell}[T.int64(0)] = "
                      f"{self.to_memory(self.statement_value(s.condition), s.condition)}")

        test()
        self.line(f"while {cell}[T.int64(0)] > T.uint8(0):")
        self._block(s.body)
        self.depth += 1
        test()
        self.depth -= 1

    def _alloc(self, buffer: Buffer) -> None:
        if any(isinstance(d, Expr) for d in buffer.shape):
            raise Inexpressible(f"local memory of an open size ({buffer.name})")
        count = max(1, math.prod(int(d) for d in buffer.shape) * buffer.lanes)
        scope = "local" if count * buffer.dtype.itemsize <= STACK_BYTES else "global"
        self.line(f"{self.buffer_name(buffer)} = T.alloc_buffer((T.int64({count}),), "
                  f"\"{memory_type(buffer.dtype)}\", scope=\"{scope}\")")

    def _store(self, s: Store) -> None:
        lanes = max(s.value.lanes, s.buffer.lanes)
        limit = () if s.count is None else (s.count,)
        self.begin(*_places(s), s.value, *limit)
        value = self.to_memory(self.value(s.value), s.value)
        name, at = self.place(s.buffer, s.index, lanes)
        if s.count is None or lanes == 1:
            if s.count is not None:
                raise Inexpressible("a counted store of a single lane")
            self.line(f"{name}[{at}] = {value}")
            return
        last = s.index[-1]
        if isinstance(last, Ramp) and last.stride != 1:
            base = self.value(s.buffer.offset((*s.index[:-1], last.args[0])), True)
            count, whole = self.value(s.count, True), self.named(
                value, lanes, memory_type(s.buffer.dtype))
            for k in range(lanes):
                self.line(f"if {count} > T.int64({k}):")
                self.line(f"    {name}[{base} + T.int64({k * last.stride})] = "
                          f"T.Shuffle([{whole}], [{k}])")
            return
        self.line(f"T.evaluate(T.masked_store({name}, {value}, {at}, "
                  f"{self.mask(s.count, lanes)}))")


def _places(s: Store) -> tuple[Expr, ...]:
    last = s.index[-1] if s.index else None
    index = s.index if not isinstance(last, Ramp) else (*s.index[:-1], last.args[0])
    offset = s.buffer.offset(index)
    return (offset * wrap(s.buffer.lanes) if s.buffer.lanes > 1 else offset,)
