"""Prints a program as the C functions that runtime/c/program.h asks for.

Model names (inputs, outputs, sizes) appear only inside escaped string literals.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ..ir.expr import Const, Expr, Op, Var, text, walk, wrap
from ..ir.kernel.nodes import Kernel
from ..ir.program import (
    Assign,
    Bind,
    Branch,
    Copy,
    Launch,
    Program,
    Repeat,
    Require,
    Step,
    Storage,
)
from .c import SCRATCH_STRIDE, KernelPrinter, Needs
from .c_expr import ExpressionPrinter
from .c_types import storage_type
from .c_vector import VectorIsa


def c_string(value: str) -> str:
    """A C string literal of any text."""
    safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.:/-+*()[],<>="
    return '"' + "".join(chr(b) if chr(b) in safe else f"\\{b:03o}"
                         for b in value.encode("utf-8", "surrogatepass")) + '"'


_ANONYMOUS = "kernel_symbol"


@dataclass
class Weights:
    """The constants in one block, each at a 64-byte aligned offset; equal ones are stored once."""

    offsets: dict[Storage, int]
    size: int
    order: list[tuple[int, np.ndarray]]

    def blob(self) -> bytes:
        """The block's bytes."""
        data = bytearray(self.size)
        for offset, array in self.order:
            data[offset:offset + array.nbytes] = array.tobytes()
        return bytes(data)


def _sentence(message: str) -> str:
    """A message as the start of a sentence, of at most 200 bytes."""
    whole = (message[:1].upper() + message[1:]).encode()
    return whole.decode() if len(whole) <= 200 else whole[:197].decode(errors="ignore") + "..."


def _compared(condition: Expr) -> list[Expr]:
    """The sizes that a condition compares first."""
    while isinstance(condition, Op) and condition.name in ("and", "or"):
        condition = condition.args[0]
    if isinstance(condition, Op) and condition.name in ("eq", "le", "lt", "ge", "gt"):
        return [e for e in condition.args if not isinstance(e, Const)]
    return []


def pack_weights(program: Program, used: set[Storage], shared: Weights | None = None) -> Weights:
    """Places the constants that the program reads, behind those of `shared` if given (the block
    of both is then one)."""
    offsets: dict[Storage, int] = {}
    order: list[tuple[int, np.ndarray]] = shared.order if shared else []
    seen = {_key(array): k for k, (_, array) in enumerate(order)}
    size = shared.size if shared else 0
    for storage in program.constants:
        if storage not in used:
            continue
        array = np.ascontiguousarray(storage.array)
        key = _key(array)
        found = seen.get(key)
        if found is not None:
            offsets[storage] = order[found][0]
            continue
        offsets[storage] = size
        seen[key] = len(order)
        order.append((size, array))
        size += -(-array.nbytes // 64) * 64
    if shared:
        shared.size = size
    return Weights(offsets, size, order)


def _key(array: np.ndarray) -> tuple:
    return array.nbytes, hashlib.blake2b(array.reshape(-1).view(np.uint8).data).digest()


def used_storages(program: Program) -> set[Storage]:
    """Owners that some step touches, and outputs."""
    used: set[Storage] = {s.root() for s in program.outputs}
    for step in program.walk():
        for value in vars(step).values():
            items = value if isinstance(value, tuple) else (value,)
            used.update(s.root() for s in items if isinstance(s, Storage))
    return used


class _SizePrinter:
    """Prints expressions of sizes; stands in for a kernel printer."""

    def __init__(self, names: dict[Var, str], host: HostPrinter):
        self.names = names
        self.needs = host.needs
        self.isa = host.isa
        self.lines = host.lines
        self.host = host
        self.depth = 1

    def var_name(self, v: Var) -> str:
        return self.names[v]

    def temporary(self) -> str:
        self.host.count += 1
        return f"s{self.host.count}"

    def line(self, text: str) -> None:
        self.host.line(text)


class HostPrinter:
    """Prints one variant of a program for one instruction set."""

    def __init__(self, program: Program, weights: Weights, isa: VectorIsa, *, symbol: str,
                 isa_name: str, threads: bool = True, supported: str | None = None,
                 supported_condition: str = "", profile: bool = False,
                 dtype_numbers: dict[str, int], lifetimes: list[tuple[Storage, int, int]]):
        self.program = program
        self.weights = weights
        self.isa = isa
        self.symbol = symbol
        self.isa_name = isa_name
        self.threads = threads
        self.timed = {k: i for i, k in enumerate(program.kernels())} if profile else {}
        self.supported = supported
        self.supported_condition = supported_condition
        self.numbers = dtype_numbers
        self.lifetimes = lifetimes
        self.symbols_of: dict[str, str] = {}
        self.function: dict[Kernel, str] = {}
        self.scratched: set[Kernel] = set()
        self.scratch_bytes = 0
        self.needs = Needs()
        self.lines: list[str] = []
        self.depth = 1
        self.count = 0
        self.static = program.arena_size if all(
            s.offset is not None for s, _, _ in lifetimes) else None
        self.symbols = self._symbols()
        self.names = {v: f"d{i}" for i, v in enumerate(self.symbols)}
        self.sizes = ExpressionPrinter(_SizePrinter(self.names, self))  # type: ignore[arg-type]
        self.slots = {s: i for i, s in enumerate(
            x for x in program.temporaries if x.role == "dynamic")}

    # Sizes ------------------------------------------------------------------------------------

    def _symbols(self) -> list[Var]:
        """All sizes: those of inputs first, then those that data binds."""
        bound: dict[Var, None] = {}
        for storage in self.program.inputs:
            bound.update(dict.fromkeys(storage.type.symbols))
        self.bound = len(bound)
        every = dict(bound)
        for step in self.program.walk():
            if isinstance(step, (Bind, Assign)):
                every.update(dict.fromkeys(step.symbols))
        for storage in [*self.program.outputs, *self.program.temporaries]:
            every.update(dict.fromkeys(storage.type.symbols))
        return list(every)

    def size(self, e) -> str:
        return self.sizes.statement_value(wrap(e))

    def bytes_of(self, storage: Storage) -> str:
        return self.size(wrap(storage.type.numel) * storage.type.dtype.itemsize)

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    # The whole text ---------------------------------------------------------------------------

    def text(self) -> str:
        """The complete C file."""
        kernels = [text for k in self.program.kernels() if (text := self._kernel(k))]
        run = self._run()
        parts = [
            self._signature(), self._function(
                "int", "bind", "const smelt_tensor *inputs, int64_t *dims, char *error",
                self._bind),
            self._function("int64_t", "plan", "const int64_t *dims, int64_t *offsets", self._plan),
            self._function("void", "output_shapes", "const int64_t *dims, int64_t *shapes",
                           self._output_shapes),
            run, self._table(),
        ]
        head = '#include "program.h"\n#include <stdio.h>\n' + self.needs.prelude(self.isa)
        if self.scratch_bytes:
            head += f"#define {SCRATCH_STRIDE} {self.scratch_bytes}\n"
        clock = [self._clock(len(kernels))] if self.timed else []
        return "\n".join([head, *clock, *kernels, *parts])

    def _clock(self, kernels: int) -> str:
        """The seconds that each kernel took so far, in all sessions, for who loads the library."""
        return f"""#include <time.h>
__attribute__((visibility("default"))) double smelt_seconds[{kernels}];
static double clock_now(void) {{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}}
"""

    def _kernel(self, kernel: Kernel) -> str:
        """The kernel's text; nothing when an equal one is there already, which then serves both."""
        printer = KernelPrinter(kernel, self.isa, self.needs, threads=self.threads,
                                symbol=_ANONYMOUS)
        anonymous = printer.text()
        if printer.scratch:
            self.scratched.add(kernel)
            self.scratch_bytes = max(self.scratch_bytes, printer.scratch_bytes)
        name = self.symbols_of.setdefault(anonymous, kernel.name)
        self.function[kernel] = name
        return anonymous.replace(_ANONYMOUS, name) if name == kernel.name else ""

    def _function(self, result: str, name: str, parameters: str, write) -> str:
        self.lines, self.depth = [], 1
        write()
        return f"static {result} {name}({parameters}) {{\n" + "\n".join(self.lines) + "\n}\n"

    def _load_dims(self, count: int) -> None:
        for i, v in enumerate(self.symbols[:count]):
            self.line(f"const int64_t {self.names[v]} = dims[{i}]; (void){self.names[v]};")

    def _signature(self) -> str:
        lines = []
        for kind, items in (("input", self.program.inputs), ("output", self.program.outputs)):
            rows = []
            for k, s in enumerate(items):
                dims = ", ".join(c_string(text(d)) for d in s.type.shape)
                lines.append(f"static const char *const {kind}{k}_dims[] = {{{dims or '0'}}};")
                rows.append(f"    {{{c_string(s.name)}, {self.numbers[s.type.dtype.name]}, "
                            f"{s.type.rank}, {kind}{k}_dims}},")
            lines.append(f"static const smelt_tensor_info {kind}s_info[] = {{")
            lines += [*(rows or ["    {0, 0, 0, 0},"]), "};"]
        names = ", ".join(c_string(v.name) for v in self.symbols)
        lines.append(f"static const char *const dim_names[] = {{{names or '0'}}};")
        return "\n".join(lines) + "\n"

    def _bind(self) -> None:
        self.line("(void)inputs; (void)dims; (void)error;")
        seen: set[Var] = set()
        later: list[tuple[int, int, Expr]] = []
        for k, s in enumerate(self.program.inputs):
            for axis, d in enumerate(s.type.shape):
                actual = f"inputs[{k}].shape[{axis}]"
                if isinstance(d, int):
                    self.line(f"if ({actual} != {d}) return 1;")
                elif isinstance(d, Var) and d not in seen:
                    seen.add(d)
                    name = self.names[d]
                    self.line(f"const int64_t {name} = {actual}; (void){name};")
                    self.line(f"dims[{self.symbols.index(d)}] = {name};")
                    self._range(d, k, axis)
                else:
                    later.append((k, axis, d))
        for k, axis, d in later:
            if any(v not in seen for v in walk(d) if isinstance(v, Var)):
                continue
            self.line(f"if (inputs[{k}].shape[{axis}] != {self.size(d)}) {{")
            self._refuse(k, axis, f"must be {text(d)}", self.size(d))
            self.line("}")
        for condition, message in self.program.conditions.items():
            if all(v in seen for v in walk(condition) if isinstance(v, Var)):
                self._demand(condition, message, "error", "1")
        self.line("return 0;")

    def _demand(self, condition: Expr, message: str, error: str, code: str,
                shown: bool = True) -> None:
        """Ends the function with a sentence unless a condition on sizes holds; with `shown` it
        tells the sizes."""
        sentence, sizes = c_string(_sentence(message)), _compared(condition) if shown else []
        self.line(f"if (!({self.size(condition)})) {{")
        self.depth += 1
        here = "".join(f", (long long)({self.size(e)})" for e in sizes)
        words = " (here %lld)" if len(sizes) == 1 else " (here %lld and %lld)" if sizes else ""
        self.line(f'snprintf({error}, 256, "%s{words}.", {sentence}{here});')
        self.line(f"return {code};")
        self.depth -= 1
        self.line("}")

    def _range(self, d: Var, k: int, axis: int) -> None:
        low, high = self.program.symbols.get(d.name, (0, None))
        test = f"{self.names[d]} < {low}" + (
            "" if high is None else f" || {self.names[d]} > {high}")
        span = f"at least {low}" if high is None else f"in {low}..{high}"
        self.line(f"if ({test}) {{")
        self._refuse(k, axis, f"must be {span}", None)
        self.line("}")

    def _refuse(self, k: int, axis: int, rule: str, expected: str | None) -> None:
        tail = ", which is %lld" if expected else ""
        more = f", (long long)({expected})" if expected else ""
        self.line(f'    snprintf(error, 256, "Input \\"%.80s\\": axis {axis} is %lld but '
                  f'%s{tail}.", inputs_info[{k}].name, (long long)inputs[{k}].shape[{axis}], '
                  f"{c_string(rule[:80])}{more});")
        self.line("    return 1;")

    def _plan(self) -> None:
        self._load_dims(self.bound)
        self.line("(void)dims; (void)offsets;")
        if self.static is not None:
            self.line(f"return {int(self.static)};")
            return
        count = len(self.lifetimes)
        sizes = [self.bytes_of(s) for s, _, _ in self.lifetimes]
        self.line(f"const int64_t bytes[{count}] = {{{', '.join(sizes)}}};")
        for name, at in (("first", 1), ("last", 2)):
            numbers = ", ".join(str(x[at]) for x in self.lifetimes)
            self.line(f"static const int32_t {name}[{count}] = {{{numbers}}};")
        self.line(f"return smelt_plan_arena({count}, bytes, first, last, offsets);")

    def _output_shapes(self) -> None:
        self._load_dims(len(self.symbols))
        self.line("(void)dims; (void)shapes;")
        late = set(self.symbols[self.bound:])
        at = 0
        for s in self.program.outputs:
            for d in s.type.shape:
                unknown = [v for v in walk(wrap(d)) if isinstance(v, Var) and v in late]
                value = self.size(d)
                if unknown:
                    test = " || ".join(f"{self.names[v]} < 0" for v in unknown)
                    value = f"({test}) ? -1 : {value}"
                self.line(f"shapes[{at}] = {value};")
                at += 1

    # Running ----------------------------------------------------------------------------------

    def _run(self) -> str:
        self.lines, self.depth = [], 1
        for i, v in enumerate(self.symbols):
            kind = "const int64_t" if i < self.bound else "int64_t"
            self.line(f"{kind} {self.names[v]} = frame->dims[{i}]; (void){self.names[v]};")
        if self.threads:
            self.line("smelt_pool *pool = frame->pool;")
        for i in range(len(self.slots)):
            self.line(f"void *dyn{i} = 0; (void)dyn{i};")
        self._own_empty_outputs()
        for step in self.program.steps:
            self._step(step)
        self.line("return 0;")
        return ("static int run(smelt_frame *frame) {\n" + "\n".join(self.lines) + "\n}\n")

    def _own_empty_outputs(self) -> None:
        self.output_slots: dict[Storage, int] = {}
        late = set(self.symbols[self.bound:])
        for s in self.program.outputs:
            if any(v in late for v in s.type.symbols):
                slot = len(self.slots) + len(self.output_slots)
                self.output_slots[s] = slot

    def pointer(self, s: Storage) -> str:
        """An expression for the address of a storage."""
        root = s.root()
        if root.role == "input":
            return f"frame->inputs[{root.index}]"
        if root.role == "output":
            return f"frame->outputs[{root.index}]"
        if root.role == "constant":
            return f"(frame->weights + {self.weights.offsets[root]})"
        if root.role == "dynamic":
            return f"dyn{self.slots[root]}"
        offset = f"frame->offsets[{root.index}]" if self.static is None else str(root.offset)
        return f"(frame->arena + {offset})"

    def acquire(self, s: Storage) -> None:
        """Before a step writes `s`: memory for it when its size was not known before. The sizes of
        `s` are known by then, those of the storage that it is a view of perhaps not."""
        root = s.root()
        if root in self.slots:
            target = f"dyn{self.slots[root]}"
            self.line(f"{target} = smelt_dynamic(frame, {self.slots[root]}, "
                      f"{self.bytes_of(s)});")
        elif root in self.output_slots:
            target = f"frame->outputs[{root.index}]"
            self.line(f"{target} = smelt_dynamic(frame, {self.output_slots[root]}, "
                      f"{self.bytes_of(s)});")
        else:
            return
        self.line(f"if (!{target}) return SMELT_OUT_OF_MEMORY;")

    def _step(self, step: Step) -> None:
        if isinstance(step, Launch):
            self._launch(step)
        elif isinstance(step, Bind):
            self._bind_sizes(step)
        elif isinstance(step, Assign):
            self._assign(step)
        elif isinstance(step, Require):
            self._demand(step.condition, step.message, "frame->error", "SMELT_DATA_ERROR",
                         step.of_sizes)
        elif isinstance(step, Copy):
            self.acquire(step.target)
            self._copy(step)
        elif isinstance(step, Branch):
            self.line(f"if ({self.element(step.condition)}) {{")
            self._steps(step.then)
            self.line("} else {")
            self._steps(step.orelse)
            self.line("}")
        else:
            assert isinstance(step, Repeat)
            self._repeat(step)

    def _copy(self, step: Copy) -> None:
        self.line(f"memcpy({self.pointer(step.target)}, {self.pointer(step.source)}, "
                  f"(size_t)({self.bytes_of(step.source)}));")

    def element(self, s: Storage, k: int = 0) -> str:
        """An expression for the value of element `k` at this point of the run."""
        return f"((const {storage_type(s.type.dtype)} *){self.pointer(s)})[{k}]"

    def set_element(self, s: Storage, value: str) -> None:
        """Sets the only element."""
        self.line(f"*({storage_type(s.type.dtype)} *){self.pointer(s)} = {value};")

    def _steps(self, steps: list[Step]) -> None:
        self.depth += 1
        for step in steps:
            self._step(step)
        self.depth -= 1

    def _launch(self, step: Launch) -> None:
        kernel = step.kernel
        for s in step.args[len(step.args) - kernel.outputs:]:
            self.acquire(s)
        for s in step.args[:len(step.args) - kernel.outputs]:
            if s.role == "dynamic" and s.name.startswith("scratch"):
                self.acquire(s)
        args = ["pool"] if self.threads else []
        if kernel in self.scratched:
            args.append("frame->scratch")
        for s, buffer in zip(step.args, kernel.params, strict=True):
            args.append(f"({storage_type(buffer.dtype)} *){self.pointer(s)}")
        args += [self.size(e) for e in step.sizes]
        call = f"{self.function[kernel]}({', '.join(args)});"
        if kernel in self.timed:
            place = f"smelt_seconds[{self.timed[kernel]}]"
            call = f"{place} -= clock_now(); {call} {place} += clock_now();"
        self.line(call)

    def _bind_sizes(self, step: Bind) -> None:
        for k, v in enumerate(step.symbols):
            self.line(f"{self.names[v]} = (int64_t){self.element(step.source, k)};")
            sentence = c_string(_sentence(f"{step.origin or 'the model'}: the data asks for a "
                                          "negative size"))
            self.line(f"if ({self.names[v]} < 0) {{")  # as an expression, a size is never negative
            self.line(f'    snprintf(frame->error, 256, "%s.", {sentence});')
            self.line("    return SMELT_DATA_ERROR;")
            self.line("}")
            self.line(f"frame->dims[{self.symbols.index(v)}] = {self.names[v]};")

    def _assign(self, step: Assign) -> None:
        self.line("{")
        self.depth += 1
        fresh = []
        for value in step.values:
            self.count += 1
            fresh.append(f"n{self.count}")
            self.line(f"const int64_t n{self.count} = {self.size(value)};")
        for v, name in zip(step.symbols, fresh, strict=True):
            self.line(f"{self.names[v]} = {name};")
            self.line(f"frame->dims[{self.symbols.index(v)}] = {name};")
        self.depth -= 1
        self.line("}")

    def _repeat(self, step: Repeat) -> None:
        self.count += 1
        i = f"r{self.count}"
        limit = "INT64_MAX"
        if isinstance(step.limit, Storage):
            limit = self.element(step.limit)
        elif step.limit is not None:
            limit = self.size(step.limit)
        self.line(f"for (int64_t {i} = 0, {i}_end = {limit}; {i} < {i}_end; ++{i}) {{")
        self.depth += 1
        if step.condition is not None:
            self.line(f"if (!{self.element(step.condition)}) break;")
        if step.counter is not None:
            self.set_element(step.counter, i)
        for inner in step.body:
            self._step(inner)
        self.depth -= 1
        self.line("}")

    def _table(self) -> str:
        supported = self.supported or "0"
        tiles = " && smelt_allow_tiles()" if self.needs.tiles else ""
        test = (f"static int {supported}(void) {{ return {self.supported_condition}{tiles}; }}\n"
                if self.supported else "")
        p = self.program
        slots = len(self.slots) + len(self.output_slots)
        return f"""{test}extern const smelt_program {self.symbol};
const smelt_program {self.symbol} = {{
    .abi = SMELT_PROGRAM_ABI,
    .name = {c_string(p.name)},
    .isa = {c_string(self.isa_name)},
    .supported = {supported},
    .inputs = {len(p.inputs)},
    .outputs = {len(p.outputs)},
    .input_info = inputs_info,
    .output_info = outputs_info,
    .bound_dims = {self.bound},
    .all_dims = {len(self.symbols)},
    .dim_names = dim_names,
    .temporaries = {0 if self.static is not None else len(self.lifetimes)},
    .dynamic_slots = {slots},
    .weight_bytes = {self.weights.size},
    .bind = bind,
    .plan = plan,
    .output_shapes = output_shapes,
    .run = run,
    .scratch_bytes = {self.scratch_bytes},
{self._device()}}};
"""

    def _device(self) -> str:
        """The fields of the table that tell which device runs the program."""
        return ""

