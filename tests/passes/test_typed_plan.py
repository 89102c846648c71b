"""Arenas by element type: nothing that lives at the same time overlaps, and no memory is used as
two types of which neither is a byte."""

import numpy as np

from smelt.ir import dtype as dt
from smelt.ir.graph.core import TensorType
from smelt.ir.program import Copy, Program, Storage
from smelt.passes.plan import plan_by_type

KINDS = (dt.f32, dt.i32, dt.u32, dt.i64, dt.u8, dt.i8, dt.bool_, dt.f16, dt.f64)


def random_program(rng: np.random.Generator, count: int) -> Program:
    """Copies between temporaries of random types; every one is read some steps after it is
    written."""
    program = Program("random")
    made: list[Storage] = []
    for k in range(count):
        kind = KINDS[rng.integers(len(KINDS))]
        storage = Storage(f"t{k}", TensorType(kind, (int(rng.integers(0, 50)),)), "temporary", k)
        made.append(storage)
        program.temporaries.append(storage)
        program.steps.append(Copy(made[rng.integers(max(0, k - 6), k + 1)], storage))
    return program


def bytes_of(storage: Storage) -> int:
    return int(storage.type.numel) * storage.type.dtype.itemsize


def test_plans_hold(rng):
    for count in (1, 2, 7, 40, 90):
        program = random_program(rng, count)
        plan = plan_by_type(program)
        assert program.arena_size == sum(plan.sizes.values())
        spans = {x.storage: (x.first, x.last) for x in plan.lifetimes}
        assert set(plan.places) == set(program.temporaries) == set(spans)
        for a, (arena, offset) in plan.places.items():
            assert offset % 8 == 0 and offset + bytes_of(a) <= plan.sizes[arena]
            kind = a.type.dtype
            assert kind.itemsize == 1 or (
                kind.itemsize == arena.itemsize
                and (arena in (dt.f32, dt.f64)) == (kind in (dt.f32, dt.f64)))
            for b, (other, at) in plan.places.items():
                together = spans[a][0] <= spans[b][1] and spans[b][0] <= spans[a][1]
                if a is not b and arena is other and together:
                    assert offset + bytes_of(a) <= at or at + bytes_of(b) <= offset \
                        or not bytes_of(a) or not bytes_of(b)
        assert program.arena_size >= max(
            sum(bytes_of(s) for s, (first, last) in spans.items() if first <= t <= last)
            for t in range(1, count + 1))


def test_reuse_over_an_input_of_another_type_is_undone():
    program = Program("cast")
    a, b, c = (Storage(n, TensorType(d, (8,)), "temporary") for n, d in (
        ("a", dt.f32), ("b", dt.i32), ("c", dt.u32)))
    b.alias, c.alias = a, b  # the first changes from float to integer, the second does not
    program.temporaries = [a, b, c]
    program.steps = [Copy(a, b), Copy(b, c)]
    plan = plan_by_type(program)
    assert b.alias is None and c.alias is b
    assert {s: arena for s, (arena, _) in plan.places.items()} == {a: dt.f32, b: dt.i32}
