"""Kernels of dataflow layers: they read words from streams, one after another, and write others.

A word holds `lanes` neighbouring channels of a pixel. All loops have constant extents, so that
nothing but the shapes decides when a stream is read or written. Constants are parameters in the
space "constant"; a `Stage` says what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...ir import dtype as dt
from ...ir.dtype import DType
from ...ir.expr import Expr, both, cast, const, maximum, minimum, op, select, wrap
from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Buffer, Kernel, load
from .epilogue import SINGLE, Epilogue, Line, Scaled, Thresholds


@dataclass(frozen=True)
class Element:
    """What a stream's elements are: integers of a type that fit in `bits`."""

    dtype: DType
    bits: int

    @property
    def low(self) -> int:
        return -(1 << self.bits - 1) if self.dtype.kind == "int" else 0

    @property
    def high(self) -> int:
        return (1 << self.bits - (self.dtype.kind == "int")) - 1


@dataclass(frozen=True, eq=False)
class Stage:
    """A kernel between streams, and the arrays of its constant parameters."""

    kernel: Kernel
    constants: dict[Buffer, np.ndarray] = field(default_factory=dict)


class Writer(Builder):
    """A builder of stages."""

    def __init__(self, name: str, origin: str = ""):
        super().__init__(name, origin)
        self.constants: dict[Buffer, np.ndarray] = {}

    def stream(self, name: str, element: Element, words: int, lanes: int) -> Buffer:
        """A stream parameter of so many words of so many elements."""
        return self.param(name, element.dtype, (words,), "stream", lanes, element.bits)

    def table(self, name: str, values: np.ndarray, banks: tuple[int, ...] = ()) -> Buffer:
        """A constant parameter, in the narrowest type that holds its values."""
        element = element_of(values)
        buffer = self.param(name, element.dtype, values.shape, "constant", bits=element.bits,
                            banks=banks)
        self.constants[buffer] = np.ascontiguousarray(values, element.dtype.numpy)
        return buffer

    def read(self, stream: Buffer, position, into: Buffer, index: tuple) -> None:
        """The next word of a stream into consecutive elements of the last dimension."""
        self.store(into, index, load(stream, (wrap(position),)))

    def write(self, stream: Buffer, position, source: Buffer, index: tuple) -> None:
        """Consecutive elements of the last dimension as the next word of a stream."""
        self.store(stream, (wrap(position),), load(source, index, stream.lanes))

    def stage(self, outputs: int = 1) -> Stage:
        """The finished stage. Streams that it writes come last."""
        constants = [p for p in self.params if p.space == "constant"]
        streams = [p for p in self.params if p.space == "stream"]
        self.params = [*streams[:len(streams) - outputs], *constants,
                       *streams[len(streams) - outputs:]]
        return Stage(self.kernel(outputs), self.constants)


def element_of(values: np.ndarray) -> Element:
    """The narrowest elements that hold these integers."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return element_between(low, high)


def element_between(low: int, high: int) -> Element:
    """The narrowest elements that hold the integers from `low` to `high`."""
    if low >= 0:
        bits = max(high.bit_length(), 1)
        return Element(next(t for t in (dt.u8, dt.u16, dt.u32, dt.u64) if t.bits >= bits), bits)
    bits = max((-low - 1).bit_length(), high.bit_length()) + 1
    return Element(next(t for t in (dt.i8, dt.i16, dt.i32, dt.i64) if t.bits >= bits), bits)


# Epilogues ----------------------------------------------------------------------------------------


class Finish:
    """An epilogue in a kernel: its constants, laid out as channels [groups, lanes]."""

    def __init__(self, b: Writer, epilogue: Epilogue, groups: int, lanes: int):
        self.b, self.epilogue = b, epilogue

        def per_channel(name: str, values: np.ndarray) -> Buffer | int:
            if np.all(values == values[0]):
                return int(values[0])
            return b.table(name, values.reshape(groups, lanes), (1, lanes))

        self.steps = None
        if isinstance(epilogue, Thresholds):
            levels = epilogue.steps.shape[1]
            self.halvings = levels.bit_length()
            never = max(int(epilogue.steps.max(initial=0)), 0) + 1
            steps = np.full((groups * lanes, (1 << self.halvings) - 1), never, np.int64)
            steps[:, :levels] = epilogue.steps
            self.never = never
            self.steps = b.table("steps", steps.reshape(groups, lanes, -1), (1, lanes, 1))
        else:
            offset = epilogue.offset if isinstance(epilogue, Line) else epilogue.bias
            self.factor = per_channel("factor", epilogue.factor)
            self.offset = per_channel("offset", offset)

    def __call__(self, total: Expr, group, lane, to: DType) -> Expr:
        """The result for a sum in channel group * lanes + lane."""
        b, e = self.b, self.epilogue
        wide = cast(total, dt.i64)

        def at(values: Buffer | int) -> Expr:
            return wrap(values, dt.i64) if isinstance(values, int) else cast(
                load(values, (group, lane)), dt.i64)

        if isinstance(e, Thresholds):
            assert self.steps is not None
            wide = b.let("total", minimum(wide, const(self.never - 1)))
            found: Expr = const(0)
            for k in reversed(range(self.halvings)):
                step = load(self.steps, (group, lane, found + ((1 << k) - 1)))
                reached = op("ge", wide, cast(step, dt.i64))
                found = b.let("found", found + select(reached, const(1 << k), const(0)))
            return cast(found + e.low, to)
        if isinstance(e, Line):
            result = op("shr", b.let("product", wide * at(self.factor) + at(self.offset)),
                        const(e.shift))
        else:
            result = self._scaled(e, wide + at(self.offset), at(self.factor)) + e.zero
        return cast(minimum(maximum(b.let("rounded", result), const(e.low)), const(e.high)), to)

    def _scaled(self, e: Scaled, total: Expr, factor: Expr) -> Expr:
        b = self.b
        if e.narrow:
            return self._half_even(total * factor, const(e.shift)) if e.shift else total * factor
        total, drop = self._single(b.let("total", total), 0, e.wide_bits())
        product = b.let("product", op("shl", total, drop) * factor)
        product = b.let("clipped", minimum(maximum(product, const(-e.limit)), const(e.limit)))
        first = max(e.shift - SINGLE, 0)
        product, drop = self._single(product, first, e.limit.bit_length() - SINGLE)
        return self._half_even(product, const(e.shift) - drop) if e.shift else product

    def _single(self, value: Expr, least: int, most: int) -> tuple[Expr, Expr]:
        """A number rounded to the bits of f32 without those it drops, and how many: from `least`,
        below which a number is less than a half of the result, to `most`."""
        if most <= 0:
            return value, const(0)
        size = self.b.let("size", op("abs", value))
        drop: Expr = const(least)
        for k in range(max(least, 0) + 1, most + 1):
            drop = drop + select(op("ge", size, const(1 << SINGLE + k - 1)), const(1), const(0))
        drop = self.b.let("drop", drop)
        rounded = self._half_even(value, drop)
        if least == 0:
            rounded = select(op("gt", drop, const(0)), rounded, value)
        return self.b.let("single", rounded), drop

    def _half_even(self, value: Expr, shift: Expr) -> Expr:
        value = self.b.let("value", value)
        odd = op("and", op("shr", value, shift), const(1))
        half = op("shl", const(1), shift - 1) - 1
        return op("shr", value + half + odd, shift)


# Layers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sliding:
    """Windows over an image [height, width, channels]; `low` and `sizes` are the padding before
    each axis and the outputs, `fill` the value outside. Words come pixel by pixel of a window; with
    `by_channel` all of a word's channels come before those of the next."""

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    low: tuple[int, int]
    sizes: tuple[int, int]
    fill: int = 0
    by_channel: bool = False

    @property
    def span(self) -> int:
        """Rows that a window covers."""
        return (self.kernel[0] - 1) * self.dilations[0] + 1

    def loaded(self, row: int) -> int:
        """Rows of the image that are in memory when output row `row` is emitted."""
        return min(max(row * self.strides[0] + self.span - self.low[0], 0), self.height)

    def emitted(self, lanes: int) -> int:
        """Words of a row of windows."""
        return self.sizes[1] * self.kernel[0] * self.kernel[1] * self.channels // lanes

    def words(self, lanes: int) -> int:
        """Words of a row of the image."""
        return self.width * self.channels // lanes

    def cycles(self, lanes: int) -> int:
        """Cycles of a frame: a row of windows is emitted while the rows that the next one needs in
        addition are loaded."""
        row = max(self.emitted(lanes), self.strides[0] * self.words(lanes))
        idle = self.loaded(0) + self.height - self.loaded(self.sizes[0])
        return self.sizes[0] * row + idle * self.words(lanes)

    @property
    def rows(self) -> int:
        """Rows of the line buffer: what a window covers and what is loaded meanwhile, rounded up to
        a power of two, for which addresses wrap by themselves."""
        return 1 << (self.span + self.strides[0] - 1).bit_length()


def sliding_window(name: str, x: Element, s: Sliding, lanes: int) -> Stage:
    """Words of windows, from words of an image."""
    b = Writer(name)
    words, emitted, steps = s.words(lanes), s.emitted(lanes), s.channels // lanes
    source = b.stream("x", x, s.height * words, lanes)
    target = b.stream("y", x, s.sizes[0] * emitted, lanes)
    lines = b.alloc("lines", x.dtype, (s.rows, words, lanes), bits=x.bits, banks=(1, 1, lanes))
    word = b.alloc("word", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))

    def wrapped(row: Expr) -> Expr:
        return op("and", row, const(s.rows - 1))

    with b.loop("r", s.loaded(0)) as r, b.loop("u", words, "pipeline") as u:
        b.read(source, r * words + u, lines, (wrapped(r), u, wrap(0)))
    with b.loop("oy", s.sizes[0]) as oy:
        def loaded(row: Expr) -> Expr:
            need = row * s.strides[0] + (s.span - s.low[0])
            return minimum(maximum(need, const(0)), const(s.height))

        first = b.let("first", loaded(oy))
        more = b.let("more", (loaded(oy + 1) - first) * words)

        def fetch(t: Expr) -> None:
            """Loads word t of those that this step has to."""
            with b.when(op("lt", t, more)):
                row: Expr = const(0)
                for k in range(1, s.strides[0]):
                    row = row + select(op("ge", t, const(k * words)), const(1), const(0))
                row = b.let("row", row)
                b.read(source, first * words + t, lines,
                       (wrapped(first + row), t - row * words, wrap(0)))

        names, extents = ("ky", "kx", "c"), (*s.kernel, steps)
        order = (2, 0, 1) if s.by_channel else (0, 1, 2)
        with b.loop("ox", s.sizes[1]) as ox, b.loop(names[order[0]], extents[order[0]]) as p, \
                b.loop(names[order[1]], extents[order[1]]) as q, \
                b.loop(names[order[2]], extents[order[2]], "pipeline") as r:
            c, ky, kx = (p, q, r) if s.by_channel else (r, p, q)
            t = ((ox * extents[order[0]] + p) * extents[order[1]] + q) * extents[order[2]] + r
            fetch(t)
            y = oy * s.strides[0] + ky * s.dilations[0] - s.low[0]
            at = ox * s.strides[1] + kx * s.dilations[1] - s.low[1]
            inside = both(op("ge", y, 0), op("lt", y, s.height), op("ge", at, 0),
                          op("lt", at, s.width))
            with b.loop("l", lanes, "unroll") as l:
                value = load(lines, (wrapped(y), at * steps + c, l))
                b.store(word, l, select(inside, value, const(s.fill, x.dtype)))
            b.write(target, oy * emitted + t, word, (wrap(0),))
        rest = s.strides[0] * words - emitted
        if rest > 0:
            with b.loop("t", rest, "pipeline") as t:
                fetch(emitted + t)
    unused = s.height - s.loaded(s.sizes[0])
    if unused:
        with b.loop("t", unused * words, "pipeline") as t:
            b.read(source, s.loaded(s.sizes[0]) * words + t, word, (wrap(0),))
    return b.stage()


@dataclass(frozen=True)
class Folding:
    """How a matrix-vector unit shares its multipliers: `outputs` channels (PE) and `inputs`
    elements (SIMD) at a time (Umuroglu et al. 2017, FINN)."""

    outputs: int = 1
    inputs: int = 1


def matrix_vector(name: str, x: Element, weights: np.ndarray, epilogue: Epilogue, y: Element,
                  total: Element, pixels: int, fold: Folding, zero: int = 0) -> Stage:
    """epilogue(weights [outputs, inputs] times each of `pixels` vectors); sums fit in `total`."""
    b = Writer(name)
    outputs, inputs = weights.shape
    groups, steps = outputs // fold.outputs, inputs // fold.inputs
    source = b.stream("x", x, pixels * steps, fold.inputs)
    target = b.stream("y", y, pixels * groups, fold.outputs)
    # [group, output of the group, step, input of the step] to [group, step, output, input]
    tiles = weights.reshape(groups, fold.outputs, steps, fold.inputs).transpose(0, 2, 1, 3)
    w = b.table("w", tiles, (1, 1, fold.outputs, fold.inputs))
    finish = Finish(b, epilogue, groups, fold.outputs)
    held = b.alloc("held", x.dtype, (steps, fold.inputs), bits=x.bits, banks=(1, fold.inputs))
    sums = b.alloc("sums", total.dtype, (fold.outputs,), bits=total.bits, banks=(fold.outputs,))
    word = b.alloc("word", y.dtype, (fold.outputs,), bits=y.bits, banks=(fold.outputs,))
    with b.loop("p", pixels) as p, b.loop("g", groups) as g, b.loop("s", steps, "pipeline") as s:
        with b.when(op("eq", g, 0)):
            b.read(source, p * steps + s, held, (s, wrap(0)))
        with b.loop("o", fold.outputs, "unroll") as o:
            part = b.scalar("part", total.dtype)
            b.store(part, (), select(op("eq", s, 0), const(0, total.dtype), sums[o]))
            with b.loop("i", fold.inputs, "unroll") as i:
                b.update(part, (), "add", product(load(w, (g, s, o, i)), load(held, (s, i)),
                                                  total.dtype, _ternary(weights)))
            b.store(sums, o, part[()])
        with b.when(op("eq", s, steps - 1)):
            with b.loop("o", fold.outputs, "unroll") as o:
                b.store(word, o, finish(sums[o], g, o, y.dtype))
            b.write(target, p * groups + g, word, (wrap(0),))
    return b.stage()


def _ternary(weights: np.ndarray) -> bool:
    return bool(np.all(np.abs(weights) <= 1))


def product(w: Expr, x: Expr, dtype: DType, ternary: bool) -> Expr:
    """w * x; for weights of -1, 0 and 1 a choice, which takes no multiplier."""
    wide = cast(x, dtype)
    if not ternary:
        return cast(w, dtype) * wide
    return select(op("eq", w, const(1, w.dtype)), wide,
                  select(op("eq", w, const(0, w.dtype)), const(0, dtype), op("neg", wide)))


def window_sum(name: str, x: Element, weights: np.ndarray, epilogue: Epilogue, y: Element,
               total: Element, pixels: int, lanes: int) -> Stage:
    """A depthwise convolution: epilogue(the sum over the taps of weights [channels, taps] times the
    words of windows that come by channel)."""
    b = Writer(name)
    channels, taps = weights.shape
    groups = channels // lanes
    source = b.stream("x", x, pixels * groups * taps, lanes)
    target = b.stream("y", y, pixels * groups, lanes)
    w = b.table("w", weights.reshape(groups, lanes, taps).transpose(0, 2, 1), (1, 1, lanes))
    finish = Finish(b, epilogue, groups, lanes)
    held = b.alloc("held", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))
    sums = b.alloc("sums", total.dtype, (lanes,), bits=total.bits, banks=(lanes,))
    word = b.alloc("word", y.dtype, (lanes,), bits=y.bits, banks=(lanes,))
    with b.loop("p", pixels) as p, b.loop("g", groups) as g, b.loop("t", taps, "pipeline") as t:
        b.read(source, (p * groups + g) * taps + t, held, (wrap(0),))
        with b.loop("l", lanes, "unroll") as l:
            before = select(op("eq", t, 0), const(0, total.dtype), sums[l])
            b.store(sums, l, before + product(load(w, (g, t, l)), held[l], total.dtype,
                                              _ternary(weights)))
        with b.when(op("eq", t, taps - 1)):
            with b.loop("l", lanes, "unroll") as l:
                b.store(word, l, finish(sums[l], g, l, y.dtype))
            b.write(target, p * groups + g, word, (wrap(0),))
    return b.stage()


def window_maximum(name: str, x: Element, pixels: int, channels: int, taps: int,
                   lanes: int) -> Stage:
    """The maximum of each window, whose words come by channel."""
    b = Writer(name)
    groups = channels // lanes
    source = b.stream("x", x, pixels * groups * taps, lanes)
    target = b.stream("y", x, pixels * groups, lanes)
    held = b.alloc("held", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))
    best = b.alloc("best", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))
    with b.loop("p", pixels * groups) as p, b.loop("t", taps, "pipeline") as t:
        b.read(source, p * taps + t, held, (wrap(0),))
        with b.loop("l", lanes, "unroll") as l:
            b.store(best, l, select(op("eq", t, 0), held[l], maximum(best[l], held[l])))
        with b.when(op("eq", t, taps - 1)):
            b.write(target, p, best, (wrap(0),))
    return b.stage()


def frame_sum(name: str, x: Element, epilogue: Epilogue, y: Element, total: Element, pixels: int,
              channels: int, lanes: int) -> Stage:
    """epilogue(the sum of each channel over all pixels): global average pooling."""
    b = Writer(name)
    groups = channels // lanes
    source = b.stream("x", x, pixels * groups, lanes)
    target = b.stream("y", y, groups, lanes)
    finish = Finish(b, epilogue, groups, lanes)
    held = b.alloc("held", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))
    sums = b.alloc("sums", total.dtype, (groups, lanes), bits=total.bits, banks=(1, lanes))
    word = b.alloc("word", y.dtype, (lanes,), bits=y.bits, banks=(lanes,))
    with b.loop("p", pixels) as p, b.loop("g", groups, "pipeline") as g:
        b.read(source, p * groups + g, held, (wrap(0),))
        with b.loop("l", lanes, "unroll") as l:
            before = select(op("eq", p, 0), const(0, total.dtype), sums[g, l])
            b.store(sums, (g, l), before + cast(held[l], total.dtype))
        with b.when(op("eq", p, pixels - 1)):
            with b.loop("l", lanes, "unroll") as l:
                b.store(word, l, finish(sums[g, l], g, l, y.dtype))
            b.write(target, g, word, (wrap(0),))
    return b.stage()


def lookup(name: str, x: Element, table: np.ndarray, y: Element, words: int, lanes: int) -> Stage:
    """table[x - the lowest x] of each element."""
    b = Writer(name)
    source, target = b.stream("x", x, words, lanes), b.stream("y", y, words, lanes)
    values = b.table("values", table)
    held = b.alloc("held", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))
    word = b.alloc("word", y.dtype, (lanes,), bits=y.bits, banks=(lanes,))
    with b.loop("t", words, "pipeline") as t:
        b.read(source, t, held, (wrap(0),))
        with b.loop("l", lanes, "unroll") as l:
            at = b.let("at", cast(held[l], dt.i64) - x.low)
            b.store(word, l, cast(values[at], y.dtype))
        b.write(target, t, word, (wrap(0),))
    return b.stage()


@dataclass(frozen=True, eq=False)
class Blend:
    """clip(((left * a + right * b + offset) >> shift) + zero, low, high), where the shift rounds
    half to even if `even`, else down."""

    left: int
    right: int
    offset: int
    shift: int
    even: bool
    zero: int
    low: int
    high: int

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Results for elements a and b."""
        total = a * self.left + b * self.right + self.offset
        if self.even:
            total = total + ((1 << self.shift - 1) - 1) + ((total >> self.shift) & 1)
        return np.clip((total >> self.shift) + self.zero, self.low, self.high)


def join(name: str, a: Element, b_: Element, how: Blend | np.ndarray, y: Element, words: int,
         lanes: int) -> Stage:
    """Two streams element by element: blended, or by a table [values of a, values of b]."""
    b = Writer(name)
    left, right = b.stream("a", a, words, lanes), b.stream("b", b_, words, lanes)
    target = b.stream("y", y, words, lanes)
    table = b.table("values", how) if isinstance(how, np.ndarray) else None
    first = b.alloc("first", a.dtype, (lanes,), bits=a.bits, banks=(lanes,))
    second = b.alloc("second", b_.dtype, (lanes,), bits=b_.bits, banks=(lanes,))
    word = b.alloc("word", y.dtype, (lanes,), bits=y.bits, banks=(lanes,))
    with b.loop("t", words, "pipeline") as t:
        b.read(left, t, first, (wrap(0),))
        b.read(right, t, second, (wrap(0),))
        with b.loop("l", lanes, "unroll") as l:
            p, q = cast(first[l], dt.i64), cast(second[l], dt.i64)
            if table is not None:
                at = b.let("at", p - a.low), b.let("at", q - b_.low)
                result = load(table, at)
            else:
                assert isinstance(how, Blend)
                total = b.let("total", p * how.left + q * how.right + how.offset)
                if how.even:
                    odd = op("and", op("shr", total, const(how.shift)), const(1))
                    total = total + ((1 << how.shift - 1) - 1) + odd
                rounded = b.let("rounded", op("shr", total, const(how.shift)) + how.zero)
                result = minimum(maximum(rounded, const(how.low)), const(how.high))
            b.store(word, l, cast(result, y.dtype))
        b.write(target, t, word, (wrap(0),))
    return b.stage()


def fork(name: str, x: Element, words: int, lanes: int, count: int) -> Stage:
    """Every word to each of several streams."""
    b = Writer(name)
    source = b.stream("x", x, words, lanes)
    targets = [b.stream("y", x, words, lanes) for _ in range(count)]
    word = b.alloc("word", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))
    with b.loop("t", words, "pipeline") as t:
        b.read(source, t, word, (wrap(0),))
        for target in targets:
            b.write(target, t, word, (wrap(0),))
    return b.stage(count)


def convert(name: str, x: Element, elements: int, from_lanes: int, to_lanes: int) -> Stage:
    """The same elements in words of another width, of which one divides the other."""
    b = Writer(name)
    wide = max(from_lanes, to_lanes)
    source = b.stream("x", x, elements // from_lanes, from_lanes)
    target = b.stream("y", x, elements // to_lanes, to_lanes)
    word = b.alloc("word", x.dtype, (wide,), bits=x.bits, banks=(wide,))
    parts = wide // min(from_lanes, to_lanes)
    with b.loop("t", elements // wide) as t, b.loop("k", parts, "pipeline") as k:
        if from_lanes < to_lanes:
            b.read(source, t * parts + k, word, (k * from_lanes,))
            with b.when(op("eq", k, parts - 1)):
                b.write(target, t, word, (wrap(0),))
        else:
            with b.when(op("eq", k, 0)):
                b.read(source, t, word, (wrap(0),))
            b.write(target, t * parts + k, word, (k * to_lanes,))
    return b.stage()


def concatenate(name: str, x: Element, pixels: int, channels: tuple[int, int],
                lanes: int) -> Stage:
    """The channels of each pixel of one stream, then those of another."""
    b = Writer(name)
    first, second = (n // lanes for n in channels)
    left = b.stream("a", x, pixels * first, lanes)
    right = b.stream("b", x, pixels * second, lanes)
    target = b.stream("y", x, pixels * (first + second), lanes)
    word = b.alloc("word", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))
    with b.loop("p", pixels) as p, b.loop("g", first + second, "pipeline") as g:
        with b.when(op("lt", g, first)):
            b.read(left, p * first + g, word, (wrap(0),))
        with b.otherwise():
            b.read(right, p * second + (g - first), word, (wrap(0),))
        b.write(target, p * (first + second) + g, word, (wrap(0),))
    return b.stage()


def keep(name: str, x: Element, pixels: int, channels: int, runs: tuple[tuple[int, int], ...],
         lanes: int) -> Stage:
    """Some channels of each pixel: those of the runs (first, beyond), which words divide."""
    b = Writer(name)
    groups, kept = channels // lanes, sum(end - start for start, end in runs) // lanes
    source = b.stream("x", x, pixels * groups, lanes)
    target = b.stream("y", x, pixels * kept, lanes)
    word = b.alloc("word", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))
    with b.loop("p", pixels) as p, b.loop("g", groups, "pipeline") as g:
        b.read(source, p * groups + g, word, (wrap(0),))
        before: Expr = const(0)  # kept words of the pixel that came before this one
        inside: list[Expr] = []
        for start, end in ((s // lanes, e // lanes) for s, e in runs):
            before = before + minimum(maximum(g - start, const(0)), const(end - start))
            inside.append(both(op("ge", g, start), op("lt", g, end)))
        chosen = inside[0]
        for more in inside[1:]:
            chosen = op("or", chosen, more)
        with b.when(chosen):
            b.write(target, p * kept + before, word, (wrap(0),))
    return b.stage()


def argmax(name: str, x: Element, pixels: int, channels: int, lanes: int, order: np.ndarray,
           y: Element) -> Stage:
    """The number of the largest channel of each pixel, of equal ones the least; `order` [channels]
    numbers the channels as they come."""
    b = Writer(name)
    groups = channels // lanes
    source = b.stream("x", x, pixels * groups, lanes)
    target = b.stream("y", y, pixels, 1)
    numbers = b.table("numbers", order.reshape(groups, lanes), (1, lanes))
    held = b.alloc("held", x.dtype, (lanes,), bits=x.bits, banks=(lanes,))
    best = b.alloc("best", x.dtype, (1,), bits=x.bits)
    place = b.alloc("place", y.dtype, (1,), bits=y.bits)
    with b.loop("p", pixels) as p, b.loop("g", groups, "pipeline") as g:
        b.read(source, p * groups + g, held, (wrap(0),))
        for l in range(lanes):
            value, number = held[l], cast(load(numbers, (g, wrap(l))), y.dtype)
            better = op("or", op("gt", value, best[0]), op("and", op("eq", value, best[0]),
                                                           op("lt", number, place[0])))
            if l == 0:
                better = op("or", op("eq", g, 0), better)
            with b.when(better):
                b.store(best, 0, value)
                b.store(place, 0, number)
        with b.when(op("eq", g, groups - 1)):
            b.write(target, p, place, (wrap(0),))
    return b.stage()
