"""The table's operators that move data: shapes, slices, gathers, scatters."""

from __future__ import annotations

import numpy as np
from fuzz.fuzz_graphs import Step
from fuzz.fuzz_maker import FLOATS, Maker, rule


@rule(3, ("Transpose",))
def transpose(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1)
    if x is None:
        return None
    return m.step("Transpose", [x], perm=[int(p) for p in m.rng.permutation(x.rank)])


@rule(3, ("Reshape",))
def reshape(m: Maker) -> Step | None:
    x = m.pick()
    if x is None:
        return None
    left, shape = list(x.shape), []
    while left:  # adjacent sizes merge, some split
        size = left.pop(0)
        while left and m.chance(0.4):
            size *= left.pop(0)
        divisor = m.one_of([2, 3, 4])
        shape += [divisor, size // divisor] if size and size % divisor == 0 and m.chance(
            0.3) else [size]
    if m.chance(0.2):
        shape.insert(int(m.rng.integers(len(shape) + 1)), 1)
    if shape and m.chance(0.5) and x.array.size:
        shape[int(m.rng.integers(len(shape)))] = -1
    if 0 in shape and not x.array.size:
        return m.step("Reshape", [x, m.indices(shape)], allowzero=1)
    return m.step("Reshape", [x, m.indices(shape)])


@rule(1.5, ("Unsqueeze", "Squeeze", "Flatten"))
def ranks(m: Maker) -> Step | None:
    x = m.pick()
    if x is None:
        return None
    op = m.one_of(["Unsqueeze", "Squeeze", "Flatten"])
    if op == "Flatten":
        return m.step(op, [x], axis=int(m.rng.integers(0, x.rank + 1)))
    if op == "Unsqueeze":
        return m.step(op, [x, m.indices([int(m.rng.integers(-x.rank - 1, x.rank + 1))])])
    ones = [a for a, d in enumerate(x.shape) if d == 1]
    return m.step(op, [x, m.indices([m.one_of(ones)])]) if ones else None


@rule(2.5, ("Concat",))
def concat(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1)
    if x is None:
        return None
    axis = int(m.rng.integers(x.rank))
    rest = x.shape[:axis] + x.shape[axis + 1:]
    parts = [x.name]
    for _ in range(int(m.rng.integers(1, 4))):
        y = m.pick(lambda t: t.dtype == x.dtype and t.rank == x.rank and (
            t.shape[:axis] + t.shape[axis + 1:]) == rest)
        if y is None:
            return None
        parts.append(y.name)
    m.rng.shuffle(parts)
    return m.step("Concat", parts, axis=axis if m.chance(0.7) else axis - x.rank)


@rule(2, ("Split",))
def split(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1)
    if x is None:
        return None
    axis = int(m.rng.integers(x.rank))
    size = x.shape[axis]
    first = int(m.rng.integers(0, size + 1))
    return m.step("Split", [x, m.indices([first, size - first])], 2, axis=axis)


@rule(3, ("Slice",))
def slices(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1)
    if x is None:
        return None
    axes = sorted(int(a) for a in m.rng.permutation(x.rank)[:int(m.rng.integers(1, x.rank + 1))])
    starts, ends, steps = [], [], []
    for a in axes:
        n = x.shape[a]
        step = m.one_of([1, 1, 1, 2, 3, -1, -2])
        # Going down from before the first element: ONNX begins at it, the reference is empty.
        starts.append(int(m.rng.integers(-n - 1 if step > 0 else -n, n + 2)))
        ends.append(m.one_of([int(m.rng.integers(-n - 1, n + 2)),
                              2**31 if step > 0 else -2**31]))
        steps.append(step)
    return m.step("Slice", [x, *map(m.indices, (starts, ends, axes, steps))])


@rule(2, ("Pad",))
def pad(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and t.array.size > 0)
    if x is None:
        return None
    mode = m.one_of(["constant", "constant", "edge", "reflect", "wrap"])
    pads = []
    for n in (*x.shape, *x.shape):
        most = {"reflect": n - 1, "wrap": n}.get(mode, 3)
        pads.append(int(m.rng.integers(0, min(most, 3) + 1)))
        if mode == "constant" and n > 2 and m.chance(0.1):
            pads[-1] = -1
    inputs = [x, m.indices(pads)]
    if mode == "constant" and m.chance(0.6):
        inputs.append(m.constant(m.values((), x.dtype)))
    return m.step("Pad", inputs, mode=mode)


@rule(1.5, ("Expand", "Tile"))
def repeated(m: Maker) -> Step | None:
    x = m.pick()
    if x is None:
        return None
    if m.chance(0.5):
        shape = [m.one_of(m.sizes) if d == 1 and m.chance(0.7) else d for d in x.shape]
        if m.chance(0.3):
            shape.insert(0, m.one_of([1, 2, 3]))
        return m.step("Expand", [x, m.indices(shape)])
    return m.step("Tile", [x, m.indices([m.one_of([1, 1, 2, 3]) for _ in x.shape])])


@rule(2, ("Gather",))
def gather(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and min(t.shape) > 0)
    if x is None:
        return None
    axis = int(m.rng.integers(x.rank))
    n = x.shape[axis]
    index = m.rng.integers(-n, n, m.shape(int(m.rng.integers(0, 3))))
    return m.step("Gather", [x, m.indices(index)], axis=axis)


@rule(1.5, ("GatherElements", "GatherND"))
def gather_others(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and min(t.shape) > 0)
    if x is None:
        return None
    if m.chance(0.5):
        axis = int(m.rng.integers(x.rank))
        shape = list(x.shape)
        shape[axis] = int(m.rng.integers(1, 6))
        index = m.rng.integers(-x.shape[axis], x.shape[axis], shape)
        return m.step("GatherElements", [x, m.indices(index)], axis=axis)
    depth = int(m.rng.integers(1, x.rank + 1))
    lead = m.shape(int(m.rng.integers(1, 3)))
    index = np.stack([m.rng.integers(0, n, lead) for n in x.shape[:depth]], -1)
    return m.step("GatherND", [x, m.indices(index)])


@rule(1.5, ("ScatterElements", "ScatterND"))
def scatter(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and min(t.shape) > 0 and t.dtype in (
        np.float32, np.int32, np.int64, np.float64))
    if x is None:
        return None
    if m.chance(0.5):
        axis = int(m.rng.integers(x.rank))
        n = x.shape[axis]
        shape = list(x.shape)
        shape[axis] = int(m.rng.integers(1, n + 1))
        order = np.argsort(m.rng.random(x.shape), axis=axis)  # no element twice
        index = np.take(order, np.arange(shape[axis]), axis)
        updates = m.constant(m.values(tuple(shape), x.dtype))
        return m.step("ScatterElements", [x, m.indices(index), updates], axis=axis)
    count = int(m.rng.integers(1, x.shape[0] + 1))
    index = m.rng.permutation(x.shape[0])[:count][:, None]
    updates = m.constant(m.values((count, *x.shape[1:]), x.dtype))
    return m.step("ScatterND", [x, m.indices(index), updates])


@rule(1, ("Trilu",))
def triangle(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 2)
    if x is None:
        return None
    k = m.constant(np.array(int(m.rng.integers(-3, 4)), np.int64))
    return m.step("Trilu", [x, k], upper=int(m.chance(0.5)))


@rule(1, ("DepthToSpace", "SpaceToDepth"))
def depth_and_space(m: Maker) -> Step | None:
    c, h, w = 4 * int(m.rng.integers(1, 3)), 2 * m.one_of([1, 2, 3]), 2 * m.one_of([1, 4])
    x = m.constant(m.values((1, c, h, w), m.main))
    if m.chance(0.5):
        return m.step("DepthToSpace", [x], blocksize=2, mode=m.one_of(["DCR", "CRD"]))
    return m.step("SpaceToDepth", [x], blocksize=2)


@rule(1)
def sorted_top(m: Maker) -> Step | None:
    x = m.pick(lambda t: t.rank >= 1 and t.exact and t.array.size > 0 and t.dtype in (
        np.float32, np.int64, np.int32))
    if x is None:
        return None
    axis = int(m.rng.integers(x.rank))
    k = int(m.rng.integers(1, x.shape[axis] + 1))
    return m.step("TopK", [x, m.indices([k])], 2, axis=axis, largest=int(m.chance(0.5)))


@rule(0.7)
def one_hot(m: Maker) -> Step | None:
    depth = m.one_of([2, 5, 17])
    index = m.indices(m.rng.integers(-depth, depth, m.shape(int(m.rng.integers(1, 3)))))
    values = m.constant(np.array([0, m.one_of([1, 2.5])], m.one_of(FLOATS[:2])))
    return m.step("OneHot", [index, m.constant(np.array(depth, np.int64)), values],
                  axis=m.one_of([-1, 0, 1]))


@rule(0.7)
def chosen(m: Maker) -> Step | None:
    """Operators whose result's size depends on data."""
    x = m.pick(lambda t: t.rank >= 1 and t.exact and t.array.size > 0)
    if x is None:
        return None
    if m.chance(0.5):
        return m.step("NonZero", [x])
    axis = int(m.rng.integers(x.rank))
    keep = m.rng.random(x.shape[axis]) < 0.6
    return m.step("Compress", [x, m.constant(keep)], axis=axis)
