"""The kernel verifier: what it refuses, rule by rule, and that it lets sound kernels pass."""

import pytest

from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.expr import const, op, ramp, select, size, var
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.intrinsics import HORIZONTAL
from smelt.ir.kernel.nodes import (
    Alloc,
    Block,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Store,
    call,
    load,
)
from smelt.ir.kernel.verifier import verify

N = size("n")


def fresh():
    b = Builder("k")
    return b, b.param("x", dt.f32, (N,)), b.param("y", dt.f32, (N,))


def refuse(kernel: Kernel, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        verify(kernel)


def test_a_sound_kernel_passes():
    b, x, y = fresh()
    with b.loop("i", N, "parallel") as i:
        total = b.scalar("total", dt.f32, 0.0)
        with b.loop("j", i + 1) as j:
            b.update(total, (), "add", x[j])
        b.store(y, i, total[()])
    verify(b.kernel())


def test_buffers_and_variables_must_be_in_scope():
    b, x, y = fresh()
    b.store(y, 0, load(Buffer("elsewhere", dt.f32, (4,)), (0,)))
    refuse(b.kernel(), "buffer elsewhere is used where it is not defined")
    x, y = Buffer("x", dt.f32, (N,)), Buffer("y", dt.f32, (N,))
    store = Store(y, (var("i", extent=N),), x[0])
    refuse(Kernel("k", (x, y), (N,), Block(store)), "i is used where it is not defined")
    refuse(Kernel("k", (x, y), (), Block()), "n is used where it is not defined")


def test_a_let_ends_with_its_block():
    b, x, y = fresh()
    with b.when(x[0] > 0.0):
        v = b.let("v", x[0] * 2.0)
    b.store(y, 0, v)
    kernel = b.kernel()
    refuse(Kernel("k", kernel.params, (N,), kernel.body), "is used where it is not defined")


def test_names_are_unique_and_plain():
    y = Buffer("y", dt.f32, (4,))
    again = Block(Alloc(Buffer("y", dt.f32, (2,))), Store(y, (const(0),), const(1.0, dt.f32)))
    refuse(Kernel("k", (y,), (), again), "y is defined twice")
    refuse(Kernel("k", (Buffer("y; int z", dt.f32, (4,)),), (), Block()), "is no name")


def test_types_of_stores_and_lets():
    y = Buffer("y", dt.f32, (4,))
    refuse(Kernel("k", (y,), (), Block(Store(y, (const(0),), const(1, dt.i32)))),
           "i32 is stored to y of f32")
    v = var("v", dt.f32)
    refuse(Kernel("k", (y,), (), Block(Let(v, const(1)), Store(y, (const(0),), v))),
           "v of f32 names 1 lanes of i64")


def test_indices_are_i64():
    y = Buffer("y", dt.f32, (4,))
    refuse(Kernel("k", (y,), (), Block(Store(y, (const(0, dt.i32),), const(1.0, dt.f32)))),
           "indexed by i32")


def test_lanes_of_scatters():
    y = Buffer("y", dt.f32, (8,))
    value = call(HORIZONTAL["sum"], (load(y, (0,), 4),), dt.f32)
    refuse(Kernel("k", (y,), (), Block(Store(y, (ramp(0, 4),), value))), "1 lanes are stored")


def test_conditions_are_single_bools():
    y = Buffer("y", dt.f32, (8,))
    inner = Block(Store(y, (const(0),), const(1.0, dt.f32)))
    wide = op("gt", load(y, (0,), 4), 0.0)
    refuse(Kernel("k", (y,), (), Block(If(wide, inner))), "a condition of 4 lanes of bool")


def test_calls_state_their_result_type():
    y = Buffer("y", dt.f32, (8,))
    value = call(HORIZONTAL["sum"], (load(y, (0,), 4),), dt.f32, 4)
    refuse(Kernel("k", (y,), (), Block(Store(y, (const(0),), value))),
           "@horizontal_sum gives 1 lanes of float32, its call says 4")


def test_loops_keep_the_promise_of_their_variable():
    y = Buffer("y", dt.f32, (8,))
    i = var("i", extent=4)
    body = Block(Store(y, (i,), const(0.0, dt.f32)))
    verify(Kernel("k", (y,), (), Block(For(i, 3, body))))
    refuse(Kernel("k", (y,), (), Block(For(i, 5, body))), "promises to stay below 4")


@pytest.mark.parametrize("shift, fits", [(0, True), (1, False), (-1, False)])
def test_an_index_that_leaves_its_buffer_at_the_end_of_a_loop(shift: int, fits: bool):
    b, x, y = fresh()
    with b.loop("i", N) as i:
        b.store(y, i, x[i + shift])
    if fits:
        verify(b.kernel())
    else:
        refuse(b.kernel(), "is indexed by")


def test_bounds_follow_lets_and_nested_loops():
    b = Builder("k")
    y = b.param("y", dt.f32, (12,))
    with b.loops("i", (3, 4)) as (i, j):
        at = b.let("at", i * 4 + j)
        b.store(y, at, 0.0)
    verify(b.kernel())
    b = Builder("k")
    y = b.param("y", dt.f32, (11,))
    with b.loops("i", (3, 4)) as (i, j):
        at = b.let("at", i * 4 + j)
        b.store(y, at, 0.0)
    refuse(b.kernel(), "reaches 11 in dimension 0 of size 11")


def test_vectors_must_fit_unless_counted():
    b = Builder("k")
    x, y = b.param("x", dt.f32, (10,)), b.param("y", dt.f32, (10,))
    with b.loop("i", 3) as i:
        b.store(y, i * 4, load(x, (i * 4,), 4))
    refuse(b.kernel(), "reaches 11 in dimension 0 of size 10")
    b = Builder("k")
    x, y = b.param("x", dt.f32, (10,)), b.param("y", dt.f32, (10,))
    with b.loop("i", 3) as i:
        left = 10 - i * 4
        b.store(y, i * 4, load(x, (i * 4,), 4, left), left)
    verify(b.kernel())


def test_guarded_accesses_may_point_anywhere():
    b, x, y = fresh()
    with b.loop("i", N) as i:
        b.store(y, i, select(i > 0, x[i - 1], const(0.0, dt.f32)))
        with b.when(i + 1 < N):
            b.store(y, i + 1, 0.0)
    verify(b.kernel())


def test_parallel_iterations_may_not_share_a_target():
    b, x, y = fresh()
    with b.loop("i", N, "parallel") as i:
        b.store(y, 0, x[i])
    refuse(b.kernel(), "all iterations of the parallel loop i3 write the same element of y2")
    b, x, y = fresh()
    total = b.scalar("total", dt.f32, 0.0)
    with b.loop("i", N, "parallel") as i:
        b.update(total, (), "add", x[i])
    b.store(y, 0, total[()])
    refuse(b.kernel(), "write the same element of total3")


def test_parallel_stores_that_depend_on_the_iteration_through_memory_pass():
    b = Builder("k")
    at, y = b.param("at", dt.i64, (N,)), b.param("y", dt.f32, (N,))
    with b.loop("i", N, "parallel") as i:
        place = b.let("place", at[i])
        b.store(y, place, 1.0)
    verify(b.kernel())


def test_one_thread_may_write_for_all():
    b = Builder("k")
    y = b.param("y", dt.f32, (4,))
    with b.loop("g", 4, "grid.x") as g, b.loop("t", 32, "block.x") as t, b.when(op("eq", t, 0)):
        b.store(y, g, 1.0)
    verify(b.kernel())


def test_barriers_are_reached_by_all_threads():
    b = Builder("k")
    y = b.param("y", dt.f32, (32,))
    with b.loop("t", 32, "block.x") as t:
        with b.when(t < 16):
            b.barrier()
        b.store(y, t, 1.0)
    refuse(b.kernel(), "not every thread of t2 reaches a barrier")


def test_gpu_axes_nest_once_and_grid_outside_block():
    b = Builder("k")
    y = b.param("y", dt.f32, (4, 4))
    with b.loop("i", 4, "grid.x") as i, b.loop("j", 4, "grid.x") as j:
        b.store(y, (i, j), 0.0)
    refuse(b.kernel(), "is on grid.x inside another one")
    b = Builder("k")
    y = b.param("y", dt.f32, (4, 4))
    with b.loop("i", 4, "block.x") as i, b.loop("j", 4, "grid.x") as j:
        b.store(y, (i, j), 0.0)
    refuse(b.kernel(), "lies inside a block loop")


def test_outputs_are_written():
    b, x, y = fresh()
    refuse(b.kernel(), "output y2 is never written")
