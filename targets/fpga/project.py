"""The files of a design: firmware, its emulation, a testbench with golden vectors, and Tcl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...codegen.hls import HlsKernelPrinter, stream_type, word_type
from ...ir.dtype import DType
from ...ir.kernel.nodes import Buffer
from ...passes.dataflow.assembly import Design, Fifo, Placed, stream_parameters
from .parts import Part

HEADER = "smelt_fpga.hpp"


@dataclass(frozen=True, eq=False)
class Port:
    """An input or output of the network: its FIFO, the type of its elements on the host, and which
    element of a frame comes when."""

    fifo: Fifo
    dtype: DType
    order: np.ndarray


@dataclass(frozen=True, eq=False)
class Golden:
    """Frames of inputs and the outputs that they must give: for each port [frames, elements]."""

    inputs: Sequence[np.ndarray]
    outputs: Sequence[np.ndarray]


class Project:
    """Prints a design whose top function is called `name`."""

    def __init__(self, name: str, design: Design, inputs: Sequence[Port], outputs: Sequence[Port]):
        self.name, self.design = name, design
        self.inputs, self.outputs = inputs, outputs
        self.types = {f: _parameter(p, k) for p in design.stages for k, f in enumerate(p.fifos)}

    def firmware(self) -> dict[str, str]:
        """The files of firmware/: each stage with its tables, and the top function."""
        files, includes = {}, []
        for placed in self.design.stages:
            printer = HlsKernelPrinter(placed.stage.kernel)
            tables = printer.tables(placed.stage.constants)
            origin = placed.layer.origin if placed.layer is not None else placed.kind
            includes.append(f'#include "layers/{placed.name}.hpp"')
            function = printer.text()
            files[f"layers/{placed.name}.hpp"] = (
                f"/* {_comment(origin)}: {placed.cycles} cycles a frame. */\n"
                f'#include "../{HEADER}"\n\n{tables}\nstatic {function}')
        files[f"{self.name}.hpp"] = self._header()
        files[f"{self.name}.cpp"] = "\n".join(
            [f'#include "{self.name}.hpp"', *includes, "", self._top(), ""])
        return files

    @property
    def ports(self) -> list[tuple[str, Port]]:
        return [*((f"in{k}", p) for k, p in enumerate(self.inputs)),
                *((f"out{k}", p) for k, p in enumerate(self.outputs))]

    def _prototype(self) -> str:
        streams = ", ".join(f"{stream_type(self.types[p.fifo])} &{n}" for n, p in self.ports)
        return f"void {self.name}({streams})"

    def _header(self) -> str:
        guard = f"SMELT_{self.name.upper()}_HPP"
        return (f"#ifndef {guard}\n#define {guard}\n\n#include \"{HEADER}\"\n\n"
                f"/* One frame: words of all inputs in, words of all outputs out. */\n"
                f"{self._prototype()};\n\n#endif\n")

    def _top(self) -> str:
        names = {p.fifo: n for n, p in self.ports}
        lines = [f"{self._prototype()} {{"]
        lines += [f"#pragma HLS interface axis port={n}" for n in names.values()]
        lines.append("#pragma HLS dataflow")
        for fifo in self.design.fifos:
            if fifo not in names:
                names[fifo] = fifo.name
                lines.append(f"    {stream_type(self.types[fifo])} "
                             f"SMELT_FIFO({fifo.name}, {fifo.depth});")
                lines.append(f"#pragma HLS stream variable={fifo.name} depth={fifo.depth}")
        lines.append("    SMELT_NETWORK;")
        for placed in self.design.stages:
            streams = ", ".join(names[f] for f in placed.fifos)
            lines.append(f"    SMELT_LAYER({placed.name}({streams}));")
        return "\n".join([*lines, "    SMELT_JOIN;", "}"])

    # Around it ----------------------------------------------------------------------------------

    def emulation(self, symbol: str) -> str:
        """C++ of `int symbol(inputs, outputs, frames, error)`: runs frames on the emulated design;
        1 and a text of at most 255 bytes when it cannot go on."""
        before, after, tables = [], [], []
        for k, p in enumerate(self.inputs):
            table, place = _positions(p.order, f"in{k}")
            tables.append(table)
            array = f"((const {_host_type(p.dtype)} *)inputs[{k}] + frame * {p.order.size})"
            before += [self._stream(f"in{k}", p), *self._words(f"in{k}", p, True, (
                "word.element[l] = (int64_t)" + f"{array}[{place}];"))]
        for k, p in enumerate(self.outputs):
            table, place = _positions(p.order, f"out{k}")
            tables.append(table)
            array = f"(({_host_type(p.dtype)} *)outputs[{k}] + frame * {p.order.size})"
            before.append(self._stream(f"out{k}", p))
            after += self._words(f"out{k}", p, False, (
                f"{array}[{place}] = ({_host_type(p.dtype)})word.element[l];"))
        call = ", ".join(n for n, _ in self.ports)
        return "\n".join([
            f'#include "{self.name}.hpp"', "#include <cstdio>", "#include <exception>", "",
            *tables,
            f'extern "C" int {symbol}(const void *const *inputs, void *const *outputs, '
            f"int64_t frames, char *error) {{",
            "    try {", "        for (int64_t frame = 0; frame < frames; ++frame) {",
            *before, f"            {self.name}({call});", *after,
            "        }", "        return 0;", "    } catch (const std::exception &e) {",
            '        snprintf(error, 256, "%s", e.what());', "        return 1;", "    }", "}", ""])

    def _stream(self, name: str, p: Port) -> str:
        """The declaration of a port's stream, which holds a whole frame."""
        return (f"            {stream_type(self.types[p.fifo])} {name}(\"{p.fifo.name}\", "
                f"{p.fifo.words});")

    def _words(self, name: str, p: Port, writes: bool, move: str) -> list[str]:
        """A loop over the words of a port and the elements of each, l, at position `at`."""
        word = word_type(self.types[p.fifo])
        first = f"{word} word;" if writes else f"const {word} word = {name}.read();"
        return [f"            for (int64_t w = 0; w < {p.fifo.words}; ++w) {{",
                f"                {first}",
                f"                for (int64_t l = 0; l < {p.fifo.lanes}; ++l) {{",
                f"                    const int64_t at = w * {p.fifo.lanes} + l;",
                f"                    {move}", "                }",
                *([f"                {name}.write(word);"] if writes else []), "            }"]

    def testbench(self, golden: Golden) -> dict[str, str]:
        """testbench.cpp and its golden vectors, in the order of the streams."""
        frames = len(golden.inputs[0]) if golden.inputs else 0
        header = ["/* Inputs and outputs of the integer model, word by word. */",
                  "#include <stdint.h>", f"static const int frames = {frames};"]
        body = [f'#include "firmware/{self.name}.hpp"', '#include "golden.hpp"',
                "#include <cstdio>", "", "int main() {", "    int wrong = 0;",
                "    for (int frame = 0; frame < frames; ++frame) {"]
        after = []
        arrays = [*golden.inputs, *golden.outputs]
        for (name, p), array in zip(self.ports, arrays, strict=True):
            kind, n = stream_type(self.types[p.fifo]), p.order.size
            ordered = np.asarray(array).reshape(frames, n)[:, p.order]
            rows = ",\n    ".join("{" + ", ".join(map(str, row.tolist())) + "}" for row in ordered)
            header.append(f"static const int64_t golden_{name}[{max(frames, 1)}][{n}] = {{\n    "
                          f"{rows}}};")
            body += ["#ifdef SMELT_VENDOR", f"            {kind} {name}(\"{name}\");", "#else",
                     self._stream(name, p), "#endif"]
            if name.startswith("in"):
                body += self._words(name, p, True,
                                    f"word.element[l] = golden_{name}[frame][at];")
            else:
                after += self._words(name, p, False, (
                    f"wrong += (int64_t)word.element[l] != golden_{name}[frame][at];"))
        call = ", ".join(n for n, _ in self.ports)
        body += [f"            {self.name}({call});", *after, "    }",
                 '    printf(wrong ? "%d elements differ\\n" : "all elements agree\\n", wrong);',
                 "    return wrong != 0;", "}", ""]
        return {"testbench.cpp": "\n".join(body), "golden.hpp": "\n".join([*header, ""])}

    def tcl(self, part: Part, megahertz: float) -> str:
        """Tcl for Vitis HLS: C simulation, synthesis, co-simulation, export."""
        return f"""# vitis_hls -f build.tcl   (or: vitis-run --mode hls --tcl build.tcl)
# Written by smelt; not yet run with the vendor's tools.
open_project -reset {self.name}_project
set_top {self.name}
add_files firmware/{self.name}.cpp -cflags "-std=c++17 -DSMELT_VENDOR"
add_files -tb {{testbench.cpp golden.hpp}} -cflags "-std=c++17 -DSMELT_VENDOR"
open_solution -reset solution -flow_target vivado
set_part {part.order}
create_clock -period {1000 / megahertz:.3f}
csim_design
csynth_design
cosim_design
export_design -format ip_catalog
exit
"""


def _parameter(placed: Placed, position: int) -> Buffer:
    return stream_parameters(placed.stage)[position]


def _comment(text: str) -> str:
    """A name of the model inside a C comment."""
    safe = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return safe.replace("*/", "* /").replace("??", "? ?").replace("\\", "/")


def _host_type(dtype: DType) -> str:
    return f"{'u' if dtype.kind == 'uint' else ''}int{max(dtype.bits, 8)}_t"


def _positions(order: np.ndarray, name: str) -> tuple[str, str]:
    """(a definition, an expression of `at`) for the element at position `at` of a stream: by
    strides where there are few, else by a table."""
    digits: list[tuple[int, int]] = []  # extents and strides, innermost first
    rest = order.astype(np.int64)
    start = int(rest[0]) if rest.size else 0
    while rest.size > 1:
        steps = np.diff(rest)
        breaks = np.flatnonzero(steps != steps[0])
        extent = int(breaks[0]) + 1 if breaks.size else rest.size
        if rest.size % extent or len(digits) == 4:
            break
        grid = rest.reshape(-1, extent)
        stride = int(steps[0])
        if not np.array_equal(grid, grid[:, :1] + stride * np.arange(extent)):
            break
        digits.append((extent, stride))
        rest = grid[:, 0]
    if rest.size > 1:
        numbers = ", ".join(map(str, order.tolist()))
        return f"static const int32_t order_{name}[] = {{{numbers}}};", f"order_{name}[at]"
    terms, below = [str(start)] if start else [], 1
    for extent, stride in digits:
        terms.append(f"at / {below} % {extent} * {stride}")
        below *= extent
    return "", " + ".join(terms) or "0"
