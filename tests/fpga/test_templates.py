"""Layer templates against numpy: in the kernel interpreter and as compiled C++, for random sizes
and foldings. All are integers, so all comparisons are for equality."""

from __future__ import annotations

import numpy as np
import pytest
from fpga.stages import compiled_stages, run_compiled, run_stage

from smelt.errors import ModelError
from smelt.ir import dtype as dt
from smelt.ir.expr import select
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.interpreter import KernelFault, run_kernel
from smelt.ir.kernel.nodes import load
from smelt.ir.kernel.streams import stream_accesses
from smelt.ir.kernel.text import parse_kernel, print_kernel
from smelt.passes.dataflow import templates as t
from smelt.passes.dataflow.epilogue import Line, Thresholds, scaled

U8, I8, TOTAL = t.Element(dt.u8, 8), t.Element(dt.i8, 8), t.Element(dt.i32, 24)


def divisor(random, n: int) -> int:
    return int(random.choice([d for d in range(1, n + 1) if n % d == 0]))


def epilogue(random, kind: str, channels: int):
    """An epilogue of a form, for sums within 30,000."""
    if kind == "line":
        return Line(random.integers(1, 60, channels), random.integers(-900, 900, channels), 8,
                    -128, 127)
    if kind == "thresholds":
        return Thresholds(np.sort(random.integers(-9000, 9000, (channels, 13)), 1), -3)
    factor = np.full(channels, 2.0**-6) if kind == "power" else random.uniform(1e-4, 2e-2, channels)
    return scaled(factor.astype(np.float32), random.integers(-99, 99, channels),
                  int(random.integers(-9, 9)), -128, 127, 30_000)


def windows(image: np.ndarray, s: t.Sliding, lanes: int) -> np.ndarray:
    """The stream of windows of an image [height, width, channels], by definition."""
    found = []
    for oy in range(s.sizes[0]):
        for ox in range(s.sizes[1]):
            window = np.full((*s.kernel, s.channels), s.fill)
            for ky in range(s.kernel[0]):
                for kx in range(s.kernel[1]):
                    y = oy * s.strides[0] + ky * s.dilations[0] - s.low[0]
                    x = ox * s.strides[1] + kx * s.dilations[1] - s.low[1]
                    if 0 <= y < s.height and 0 <= x < s.width:
                        window[ky, kx] = image[y, x]
            if s.by_channel:
                window = window.reshape(-1, s.channels // lanes, lanes).transpose(1, 0, 2)
            found.append(window.reshape(-1))
    return np.concatenate(found)


def sliding(random) -> t.Sliding:
    """Windows of random shape; some reach beyond the image, some leave rows of it unused."""
    height, width, channels = (int(n) for n in random.integers(1, 12, 3))
    kernel = int(random.integers(1, 5)), int(random.integers(1, 5))
    strides = int(random.integers(1, 4)), int(random.integers(1, 4))
    dilations = int(random.integers(1, 3)), int(random.integers(1, 3))
    low = tuple(int(random.integers(0, (k - 1) * d + 1)) for k, d in zip(kernel, dilations))
    sizes = tuple(int(max(1, (n + 2 * p - (k - 1) * d - 1) // st + 1)) for n, p, k, d, st in zip(
        (height, width), low, kernel, dilations, strides))
    return t.Sliding(height, width, channels, kernel, strides, dilations, low, sizes,
                     int(random.integers(0, 9)), bool(random.integers(2)))


@pytest.fixture(scope="module")
def cases():
    """(stage, inputs, expected outputs) of random sizes, and of size one."""
    random = np.random.default_rng(11)
    found = []
    for k in range(14):
        s = sliding(random)
        lanes = divisor(random, s.channels)
        image = random.integers(0, 256, (s.height, s.width, s.channels))
        found.append((t.sliding_window(f"window{k}", U8, s, lanes), [image],
                      [windows(image, s, lanes)]))
    for k, (kind, bits) in enumerate(
            (e, b) for e in ("line", "thresholds", "scaled", "power") for b in (8, 4, 2, 1)):
        outputs, inputs, pixels = (int(n) for n in random.integers(1, 14, 3))
        high = (1 << bits - 1) if bits > 1 else 2  # the last: -1, 0 and 1
        w = random.integers(-high + (bits == 1), high, (outputs, inputs))
        x = random.integers(0, 256, (pixels, inputs))
        e = epilogue(random, kind, outputs)
        fold = t.Folding(divisor(random, outputs), divisor(random, inputs))
        found.append((t.matrix_vector(f"product{k}", U8, w, e, I8, TOTAL, pixels, fold), [x],
                      [e((x @ w.T).T).T.reshape(-1)]))
    for k in range(3):
        channels, taps, pixels = (int(n) for n in random.integers(1, 10, 3))
        lanes = divisor(random, channels)
        x = random.integers(0, 256, (pixels, channels // lanes, taps, lanes))
        w, e = random.integers(-9, 9, (channels, taps)), epilogue(random, "scaled", channels)
        sums = np.einsum("pgtl,glt->pgl", x, w.reshape(-1, lanes, taps)).reshape(pixels, -1)
        found.append((t.window_sum(f"sum{k}", U8, w, e, I8, TOTAL, pixels, lanes), [x],
                      [e(sums.T).T.reshape(-1)]))
        found.append((t.window_maximum(f"maximum{k}", U8, pixels, channels, taps, lanes), [x],
                      [x.max(2).reshape(-1)]))
        x = random.integers(0, 256, (pixels, channels))
        found.append((t.frame_sum(f"frame{k}", U8, e, I8, TOTAL, pixels, channels, lanes), [x],
                      [e(x.sum(0)[:, None])[:, 0]]))
        order = random.permutation(channels)
        named = np.empty_like(x)
        named[:, order] = x % 4  # so that there are equal ones
        found.append((t.argmax(f"largest{k}", U8, pixels, channels, lanes, order,
                               t.element_between(0, channels - 1)), [x % 4], [named.argmax(1)]))
        table = random.integers(-9, 9, 256)
        found.append((t.lookup(f"table{k}", U8, table, I8, pixels * channels // lanes, lanes), [x],
                      [table[x].reshape(-1)]))
        y = random.integers(-128, 128, x.shape)
        how = t.Blend(3, 5, 77, 4, bool(k % 2), -1, -100, 100)
        found.append((t.join(f"blend{k}", U8, I8, how, I8, x.size // lanes, lanes), [x, y],
                      [how(x, y).reshape(-1)]))
        both = random.integers(-9, 9, (256, 256))
        if k == 0:
            found.append((t.join("pairs", U8, I8, both, I8, x.size // lanes, lanes), [x, y],
                          [both[x, y + 128].reshape(-1)]))
        found.append((t.fork(f"fork{k}", U8, x.size // lanes, lanes, k + 2), [x],
                      [x.reshape(-1)] * (k + 2)))
        more = random.integers(0, 256, (pixels, 2 * channels))
        found.append((t.concatenate(f"beside{k}", U8, pixels, (channels, 2 * channels), lanes),
                      [x, more], [np.concatenate([x, more], 1).reshape(-1)]))
        runs = (0, lanes), (2 * lanes, 3 * lanes), (channels + 2 * lanes, channels + 3 * lanes)
        wide = random.integers(0, 256, (pixels, channels + 4 * lanes))
        found.append((t.keep(f"kept{k}", U8, pixels, channels + 4 * lanes, runs, lanes), [wide],
                      [np.concatenate([wide[:, a:b] for a, b in runs], 1).reshape(-1)]))
    x = random.integers(0, 256, 30)
    for k, (a, b) in enumerate(((1, 3), (3, 1), (2, 6), (6, 2), (5, 5))):
        found.append((t.convert(f"convert{k}", U8, 30, a, b), [x], [x]))
    return found


def test_templates_in_the_interpreter(cases):
    for stage, inputs, expected in cases:
        for result, want in zip(run_stage(stage, *inputs), expected, strict=True):
            np.testing.assert_array_equal(result, want, err_msg=stage.kernel.name)


def test_templates_as_cpp(cases, tmp_path):
    program = compiled_stages([stage for stage, _, _ in cases], tmp_path)
    results = iter(run_compiled(program, [a for _, inputs, _ in cases for a in inputs]))
    for stage, _, expected in cases:
        for want in expected:
            np.testing.assert_array_equal(next(results), want, err_msg=stage.kernel.name)


def test_modelled_cycles_are_the_iterations(cases):
    """The cycles of a window unit are those of its loops, iteration by iteration."""
    for stage, _, _ in cases:
        if not stage.kernel.name.startswith("window"):
            continue
        events = stream_accesses(stage.kernel)
        assert len(events.position) == sum(int(b.shape[0]) for b in events.streams)
    s = t.Sliding(8, 8, 4, (3, 3), (1, 1), (1, 1), (1, 1), (8, 8))
    # 8 rows of 8 windows of 9 taps, 2 words each, and the two rows before the first.
    assert s.cycles(2) == 8 * 8 * 9 * 2 + 2 * 8 * 2


def test_text_keeps_widths_banks_and_intervals():
    b = Builder("k")
    x = b.param("x", dt.i8, (6,), "stream", 2, bits=5)
    y = b.param("y", dt.i8, (6,), "stream", 2, bits=5)
    word = b.alloc("word", dt.i8, (2,), bits=5, banks=(2,))
    with b.loop("i", 6, "pipeline", ii=3) as i:
        b.store(word, 0, load(x, (i,)))
        b.store(y, i, load(word, (0,), 2))
    text = print_kernel(b.kernel())
    assert "bits 5 banks(2)" in text and "ii 3" in text
    assert print_kernel(parse_kernel(text)) == text


def test_elements_that_need_more_bits_are_a_fault():
    b = Builder("k")
    x, y = b.param("x", dt.i8, (2,), bits=4), b.param("y", dt.i8, (2,), bits=4)
    with b.loop("i", 2) as i:
        b.store(y, i, x[i] + x[i])
    kernel = b.kernel()
    with pytest.raises(KernelFault, match="x1 of 4 bits holds 8"):
        run_kernel(kernel, [np.array([8, 0], np.int8), np.zeros(2, np.int8)])
    with pytest.raises(KernelFault, match="y2 of 4 bits holds 14"):
        run_kernel(kernel, [np.array([7, 0], np.int8), np.zeros(2, np.int8)])


@pytest.mark.parametrize("position, message", [
    (lambda i: 5 - i, "not accessed in order"),
    (lambda i: select(i < 3, i, i - 1), "not accessed in order"),
])
def test_streams_are_read_in_order(position, message):
    b = Builder("k")
    x, y = b.param("x", dt.i8, (6,), "stream"), b.param("y", dt.i8, (6,), "stream")
    word = b.alloc("word", dt.i8, (1,))
    with b.loop("i", 6) as i:
        b.store(word, 0, load(x, (position(i),)))
        b.store(y, i, load(word, (0,)))
    with pytest.raises(ModelError, match=message):
        stream_accesses(b.kernel())


def test_data_must_not_decide_about_streams():
    b = Builder("k")
    x, y = b.param("x", dt.i8, (6,), "stream"), b.param("y", dt.i8, (6,), "stream")
    word = b.alloc("word", dt.i8, (1,))
    with b.loop("i", 6) as i:
        b.store(word, 0, load(x, (i,)))
        with b.when(word[0] > 0):
            b.store(y, i, load(word, (0,)))
    with pytest.raises(ModelError, match="data decides when a stream is accessed"):
        stream_accesses(b.kernel())
