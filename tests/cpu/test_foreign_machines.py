"""The code for other machines gives what the native code gives: random graphs and elementary
functions on 64-bit Arm (under qemu-user) and WebAssembly (in node), and natively by zig's clang."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bits import assert_same_bits
from cpu.foreign_machines import NODE, QEMU, build, run
from cpu.native_graphs import Cases
from cpu.test_kernels_elementary import BOUNDS, EXACT, every_exponent, ulps
from fuzz.fuzz_compiled import Setting, difference, first_problem, is_exact, noisy_values
from fuzz.fuzz_graphs import model_of
from fuzz.fuzz_maker import make_graph

from smelt.frontend.onnx.loader import load_model
from smelt.ir.kernel.text import print_kernel
from smelt.runtime import abi
from smelt.targets.cpu import target as cpu_target
from smelt.targets.cpu.isa import cpu_features
from smelt.targets.cpu.target import RUNTIME
from smelt.targets.cpu.toolchain import Compiler

ZIG = importlib.util.find_spec("ziglang") is not None
MACHINES = [
    pytest.param("aarch64", marks=pytest.mark.skipif(
        not (ZIG and QEMU), reason="needs ziglang and qemu-aarch64-static")),
    pytest.param("wasm32", marks=pytest.mark.skipif(
        not (ZIG and NODE), reason="needs ziglang and node")),
]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("machine", MACHINES)
def test_random_graphs(machine: str, tmp_path: Path):
    first = int.from_bytes(os.urandom(4), "little")
    print(f"seeds {first}..{first + 11}")
    graphs = [make_graph(seed) for seed in range(first, first + 12)]
    model = model_of(g.parts(f"g{k}_") for k, g in enumerate(graphs))
    graph = load_model(model)
    names = [v.name for v in graph.inputs]
    built = build(graph, machine, tmp_path)
    given = {f"g{k}_{n}": a for k, g in enumerate(graphs) for n, a in g.inputs.items()}
    inputs = [given[n] for n in names]
    found = run(machine, tmp_path, inputs)
    if machine == "aarch64":
        assert_same_bits(found, run(machine, tmp_path, inputs, 3))
    named = dict(zip((o["name"] for o in built.manifest["signature"]["outputs"]), found,
                     strict=True))
    wrong = []
    for k, g in enumerate(graphs):
        tensors = noisy_values(g, is_exact, np.random.default_rng(0))
        for n in g.outputs:
            text = difference(named[f"g{k}_{n}"], tensors[n])
            if text:
                wrong.append(f"seed {first + k}, {n}: {text}\n{g.text()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("machine", MACHINES)
def test_templates(machine: str, tmp_path: Path, rng):
    """Attention, Winograd, deep products and convolutions, pixels that share a vector, lanes over
    channels; 2e-5 of values of about 8 allows for sums of up to 1,152 products in another order."""
    cases = Cases(seed=int(rng.integers(1 << 31)))
    g = cases.graph
    for rows, keys, depth in ((5, 33, 16), (1, 40, 24), (40, 41, 30)):
        q, k, v = (cases.input(1, 2, n, depth) for n in (rows, keys, keys))
        cases.output(g.add("attention", [q, k, v], {"scale": 0.2}))
    w = cases.rng.standard_normal((40, 32, 3, 3)) / 17
    x = cases.input(1, 29, 29, 32)
    cases.output(g.add("conv_last", [x, g.constant(w.astype(np.float32))],
                       {"low": (1, 1), "high": (1, 1)}))
    w = cases.rng.standard_normal((120, 128, 3, 3)) / 34
    cases.output(g.add("conv_last", [cases.input(1, 14, 13, 128),
                                     g.constant(w.astype(np.float32))],
                       {"low": (1, 1), "high": (1, 1), "strides": (2, 2)}))
    w = cases.rng.standard_normal((2, 1, 5, 3))
    cases.output(g.add("conv_last", [cases.input(1, 11, 31, 1), g.constant(w.astype(np.float32))],
                       {"low": (2, 1), "high": (2, 1)}))
    w = cases.rng.standard_normal((2, 43, 3, 3)) / 20
    cases.output(g.add("conv_last", [cases.input(1, 7, 11, 43), g.constant(w.astype(np.float32))],
                       {"low": (1, 1), "high": (1, 1)}))
    w = cases.rng.standard_normal((900, 40)) / 30
    cases.output(g.add("matmul", [cases.input(70, 900), g.constant(w.astype(np.float32))]))
    built = build(g, machine, tmp_path)
    names = " ".join(k["name"] for k in built.manifest["kernels"])
    assert all(name in names for name in ("attention", "winograd", "matmul"))
    assert any("partial" in print_kernel(k) for k in built.program.kernels() if "conv" in k.name)
    for found, wanted in zip(run(machine, tmp_path, cases.arrays), cases.expected(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * max(8, np.abs(wanted).max()))


@pytest.mark.parametrize("machine", MACHINES)
def test_elementary_functions(machine: str, tmp_path: Path):
    """The bounds of passes/kernel/elementary.py; Arm has a fused multiply-add, WebAssembly not."""
    cases = Cases(seed=21)
    values = every_exponent(cases.rng, 16)
    x = cases.input(array=values)
    for name in EXACT:
        cases.output(cases.graph.add(name, [x]))
    build(cases.graph, machine, tmp_path)
    with np.errstate(all="ignore"):
        for name, found in zip(EXACT, run(machine, tmp_path, [values]), strict=True):
            errors = ulps(found, EXACT[name](values.astype(np.float64)))
            assert errors.max() <= BOUNDS[name], (name, errors.max(), values[errors.argmax()])


@pytest.mark.skipif(not ZIG, reason="needs ziglang")
def test_random_graphs_by_clang(monkeypatch: pytest.MonkeyPatch):
    clang = Compiler((sys.executable, "-m", "ziglang", "cc"), "zig", "zig")
    monkeypatch.setattr(cpu_target, "find_compiler", lambda *_: clang)
    first = int.from_bytes(os.urandom(4), "little")
    print(f"seeds {first}..{first + 19}")
    graphs = [make_graph(seed) for seed in range(first, first + 20)]
    found = first_problem(graphs, Setting())
    if found:
        graph, text = found
        pytest.fail(f"{graph.text()}\n\n{text}", pytrace=False)


def test_features_of_this_cpu(tmp_path: Path):
    """What the runtime finds with cpuid is what the system lists."""
    source = tmp_path / "features.c"
    source.write_text('#include "program.h"\n#include <stdio.h>\n'
                      'int main(void) { printf("%u", smelt_cpu_features()); return 0; }\n')
    program = tmp_path / "features"
    subprocess.run(["gcc", f"-I{RUNTIME}", str(source), str(RUNTIME / "cpu.c"), "-o",
                    str(program)], check=True)
    found = int(subprocess.run([program], capture_output=True, check=True).stdout)
    listed = cpu_features()
    expected = {
        abi.CPU_X86_64_V2: {"sse4_1", "sse4_2", "ssse3", "popcnt", "cx16"},
        abi.CPU_X86_64_V3: {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"},
        abi.CPU_X86_64_V4: {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
        abi.CPU_AVX_VNNI: {"avx_vnni"},
        abi.CPU_AVX512_VNNI: {"avx512_vnni"},
    }
    for bit, names in expected.items():
        assert bool(found & bit) == (names <= listed), names
