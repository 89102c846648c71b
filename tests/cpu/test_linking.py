"""Two models in one C program."""

import subprocess

import numpy as np

from smelt.ir import dtype as dt
from smelt.ir.graph import Graph, TensorType
from smelt.targets.base import BuildOptions, find_target
from smelt.targets.cpu.toolchain import find_compiler

MAIN = r"""
#include <stdio.h>
#include "first/model.h"

extern const smelt_program *const twice_programs[];
extern const smelt_program *const shifted_programs[];

static float run(const smelt_program *const *programs, const char *weights, float x)
{
    smelt_model *model;
    smelt_session *session;
    if (smelt_open_program(programs, weights, &model)) { puts(smelt_error()); return -1; }
    if (smelt_session_open(model, 1, &session)) { puts(smelt_error()); return -1; }
    int64_t shape[1] = {3};
    float data[3] = {x, x, x};
    smelt_tensor in = {data, shape, SMELT_F32, 1}, out = {0};
    if (smelt_run(session, &in, 1, &out, 1)) { puts(smelt_error()); return -1; }
    float result = ((const float *)out.data)[1];
    smelt_session_close(session);
    smelt_close(model);
    return result;
}

int main(void)
{
    printf("%g %g\n", run(twice_programs, "first/weights.bin", 4),
           run(shifted_programs, "second/weights.bin", 4));
    return 0;
}
"""


def model(op: str, number: float) -> Graph:
    g = Graph()
    x = g.add_input("x", TensorType(dt.f32, (3,)))
    g.outputs = [g.add(op, [x, g.constant(np.full(3, number, np.float32))])]
    return g


def test_two_static_libraries_link_into_one_program(tmp_path):
    for folder, name, graph in (("first", "twice", model("mul", 2)),
                                ("second", "shifted", model("add", 0.5))):
        build = find_target("cpu").build(graph, BuildOptions(name=name))
        (tmp_path / folder).mkdir()
        for file, content in build.files.items():
            assert isinstance(content, bytes)
            (tmp_path / folder / file).write_bytes(content)
    (tmp_path / "main.c").write_text(MAIN)
    subprocess.run([*find_compiler().command, "main.c", "first/libmodel.a", "second/libmodel.a",
                    "-pthread", "-lm", "-o", "main"], cwd=tmp_path, check=True)
    result = subprocess.run(["./main"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["8", "4.5"]
