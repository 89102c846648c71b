"""What the fpga target does not take, in a sentence each."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import onnx
import pytest
from fpga.networks import small_cnn
from fpga.stages import FLAGS, HEADER
from onnx import TensorProto, helper, numpy_helper

import smelt
import smelt.api
from smelt.cli import main
from smelt.errors import ModelError, TargetError, UsageError
from smelt.targets.base import find_target


def model(nodes, shape, out, **weights: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(w if w.dtype == np.int64 else w.astype(np.float32), n)
         for n, w in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dense(k: int, n: int) -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [1, k], [1, n],
                 w=np.ones((k, n)))


def not_monotone() -> onnx.ModelProto:
    """A quantised product whose absolute value is rounded."""
    def quantised(x: str, name: str) -> list:
        return [helper.make_node("QuantizeLinear", [x, "s", "z"], [f"{name}q"]),
                helper.make_node("DequantizeLinear", [f"{name}q", "s", "z"], [name])]

    nodes = [*quantised("x", "a"), helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]),
             helper.make_node("MatMul", ["a", "v"], ["b"], name="product"),
             helper.make_node("Abs", ["b"], ["c"]), *quantised("c", "y")]
    made = model(nodes, [1, 4], [1, 4], s=np.array(0.25))
    made.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.int8), "w"))
    made.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "z"))
    return made


CASES = {
    "no part": (lambda: dense(4, 4), "fpga", {}, TargetError, "needs a part that it knows"),
    "other part": (lambda: dense(4, 4), "fpga:xc9", {}, TargetError, "not 'xc9': use one of fpga:"),
    "option": (lambda: dense(4, 4), "fpga:xcu280", {"speed": "9"}, UsageError,
               "has no option 'speed'"),
    "clock": (lambda: dense(4, 4), "fpga:xcu280", {"clock": "fast"}, UsageError,
              "a frequency such as 200MHz"),
    "rate": (lambda: dense(4, 4), "fpga:xcu280", {"target-fps": "-3"}, UsageError,
             "use a number above 0"),
    "bits": (lambda: dense(4, 4), "fpga:xcu280", {"activations": "40"}, UsageError, "use 2 to 16"),
    "samples": (lambda: dense(4, 4), "fpga:xcu280", {"samples": "none.npz"}, UsageError,
                "no npz file of inputs by name"),
    "too quick": (lambda: small_cnn(np.random.default_rng(0)), "fpga:xcu280",
                  {"target-fps": "1e8"}, TargetError, "'.*' .Conv.*takes at least .* cycles"),
    "too large": (lambda: dense(1024, 1024), "fpga:xc7z010", {"target-fps": "1e6"}, TargetError,
                  "of the (LUT|DSP|BRAM)s of xc7z010.*node 'product' .MatMul. takes most"),
    "no layers": (lambda: model([helper.make_node("Relu", ["x"], ["y"])], [1, 4], [1, 4]),
                  "fpga:xcu280", {}, ModelError, "no integer tensors that could become layers"),
    "data products": (lambda: model([helper.make_node("MatMul", ["x", "x"], ["y"], name="square")],
                                    [4, 4], [4, 4]), "fpga:xcu280", {}, ModelError,
                      "node 'square' .MatMul.: the fpga target has no layer for operator matmul"),
    "quantised and not monotone": (lambda: not_monotone(), "fpga:xcu280", {}, ModelError,
                                   "node 'product' .MatMul.*more than monotone arithmetic"),
    "reversed frames": (lambda: model([
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Slice", ["a", "from", "to", "axis", "step"], ["b"], name="reverse"),
        helper.make_node("MatMul", ["b", "w"], ["y"])], [2, 4], [2, 4], w=np.eye(4),
        **{"from": np.array([1]), "to": np.array([-9]), "axis": np.array([0]),
           "step": np.array([-1])}), "fpga:xcu280", {}, ModelError,
        "node 'reverse' .Slice.: .* along the first axis"),
    "constants of each frame": (lambda: model([
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Mul", ["a", "v"], ["y"])], [2, 4], [2, 4], w=np.eye(4),
        v=np.array([[1.0], [2.0]])), "fpga:xcu280", {}, ModelError,
        "node 'product' .MatMul.*constants of each channel"),
    "pairs of many bits": (lambda: small_cnn(np.random.default_rng(0)), "fpga:xcu280",
                           {"activations": "16"}, ModelError, "more than 24 bits together"),
    "softmax inside": (lambda: model([
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"], name="inside"),
        helper.make_node("MatMul", ["b", "w"], ["y"])], [1, 4], [1, 4], w=np.eye(4)),
        "fpga:xcu280", {}, ModelError, "node 'inside' .Softmax.: the fpga target has no layer"),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals(case):
    make, target, options, error, message = CASES[case]
    with pytest.raises(error, match=message) as found:
        smelt.api.build(make(), target=target, options=options)
    assert "\n" not in str(found.value)


def test_missing_compiler(monkeypatch):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *a, **k: None if name in (
        "g++", "clang++", "c++") else which(name, *a, **k))
    with pytest.raises(TargetError, match="no C\\+\\+ compiler was found.*install g\\+\\+"):
        smelt.api.build(dense(4, 4), target="fpga:xcu280")
    assert "no C++ compiler" in find_target("fpga:xcu280").describe()["toolchain"]


def test_command_line(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(dense(4, 4), path)
    assert main(["compile", str(path), "--target", "fpga:xc7z020", "--clock", "100MHz",
                 "--target-fps", "1000", "-o", str(tmp_path / "m.smelt")]) == 0
    module = smelt.load(tmp_path / "m.smelt")
    assert module(np.ones((1, 4), np.float32)).shape == (1, 4)
    assert "100 MHz" in (tmp_path / "m.smelt" / "design.html").read_text()


def test_deadlocks_of_every_shape_end(tmp_path):
    """Two layers that wait for each other, one that nobody feeds, and one that nobody empties."""
    source = tmp_path / "deadlock.cpp"
    source.write_text(f"""#include "{HEADER}"
#include <cstdio>
using word = smelt::word<smelt::sint<8>, 1>;
using queue = smelt::stream<word>;
static void copy(queue &a, queue &b, int n) {{ for (int i = 0; i < n; ++i) b.write(a.read()); }}
static void source(queue &a, int n) {{ for (int i = 0; i < n; ++i) a.write(word{{}}); }}
static void attempt(int which) {{
    try {{
        queue SMELT_FIFO(one, 2), SMELT_FIFO(two, 3);
        SMELT_NETWORK;
        if (which == 0) {{ SMELT_LAYER(copy(one, two, 9)); SMELT_LAYER(copy(two, one, 9)); }}
        if (which == 1) {{ SMELT_LAYER(copy(one, two, 1)); }}
        if (which == 2) {{ SMELT_LAYER(source(one, 9)); SMELT_LAYER(copy(one, two, 9)); }}
        if (which == 3) {{ SMELT_LAYER(source(one, 3)); SMELT_LAYER(copy(one, two, 3)); }}
        SMELT_JOIN;
        puts("done");
    }} catch (const smelt::deadlock &e) {{ puts(e.what()); }}
}}
int main() {{ for (int k = 0; k < 400; ++k) attempt(k % 4); }}
""")
    subprocess.run(["g++", *FLAGS, str(source), "-o", str(tmp_path / "d")], check=True)
    lines = subprocess.run([tmp_path / "d"], capture_output=True, text=True, timeout=60,
                           check=True).stdout.splitlines()
    head = "deadlock: no layer can go on; "
    for k, line in enumerate(lines):
        if k % 4 == 0:
            assert line in (f"{head}empty: one (depth 2), two (depth 3)",
                            f"{head}empty: two (depth 3), one (depth 2)")
        elif k % 4 == 2:
            assert set(line.removeprefix(f"{head}full: ").split(", ")) == {
                "one (depth 2)", "two (depth 3)"}
        else:
            assert line == (f"{head}empty: one (depth 2)" if k % 4 == 1 else "done")
    assert len(lines) == 400
