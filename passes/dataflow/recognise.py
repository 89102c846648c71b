"""An integer graph as a network of layers, between what the host does before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from ...errors import ModelError
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.definition import lookup
from .epilogue import Epilogue, solve
from .network import (
    ArgMax,
    Concatenate,
    FrameSum,
    Join,
    Keep,
    Layer,
    Lookup,
    MatrixVector,
    Network,
    Window,
    WindowMaximum,
    WindowSum,
    Wire,
)
from .regions import Region, blend, bounds, centred, is_narrow, requantisation
from .templates import Element, Sliding, element_between

ANCHORS = ("conv", "matmul", "reduce_sum", "pool_sum")
MOVEMENT = ("reshape", "transpose")
DIRECT = (*MOVEMENT, "pool_max", "argmax", "slice", "concat")
PAIR_BITS = 24
"""Bits of two tensors whose elements are combined: all pairs of elements are tabulated."""
"""Operators that take narrow integers as they are."""


@dataclass(eq=False)
class Recognised:
    """A network, and the values of the graph that its inputs and outputs are."""

    network: Network
    inputs: list[Value]
    outputs: list[Value]


def recognise(graph: Graph) -> Recognised:
    """The network of an integer graph. Raises ModelError naming a node that is no layer."""
    return _Recogniser(graph).run()


@dataclass(eq=False)
class _Recogniser:
    graph: Graph
    wires: dict[Value, Wire] = field(default_factory=dict)
    network: Network = field(default_factory=Network)
    regions: dict[Value, Region] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    aliases: dict[Value, Value] = field(default_factory=dict)

    def run(self) -> Recognised:
        outputs = self.roots()
        if not outputs:
            raise ModelError("the model has no integer tensors that could become layers: its "
                             "products need constant weights, and floats of f32")
        needed = self.needed(outputs)
        for value in self.inputs:
            self.wires[value] = self.input_wire(value)
        for node in self.graph.ordered():
            for value in node.outputs:
                if value in needed and value not in self.wires:
                    self.wires[value] = self.layer(value)
        self.network.inputs = [self.wires[v] for v in self.inputs]
        self.network.outputs = [self.wires[v] for v in outputs]
        if not self.network.layers:
            raise ModelError("the model has no layers that the fpga target knows")
        return Recognised(self.network, self.inputs, outputs)

    def roots(self) -> list[Value]:
        """Where the host takes over: device values that the graph's outputs are computed from."""
        found: dict[Value, None] = {}
        stack = list(self.graph.outputs)
        seen: set[Value] = set()
        while stack:
            value = stack.pop()
            if value in seen or value.constant is not None or value.node is None:
                continue
            seen.add(value)
            if self.on_device(value):
                found[value] = None
            else:
                stack.extend(v for v in value.node.inputs if v is not None)
        order = {v: k for k, n in enumerate(self.graph.ordered()) for v in n.outputs}
        return sorted(found, key=order.__getitem__)

    def on_device(self, value: Value) -> bool:
        """Whether a layer gives a value: it is narrow, and computed from narrow ones alone."""
        node = value.node
        if node is None or value.constant is not None:
            return False
        if node.op == "argmax":
            return node.inputs[0] is not None and self.available(node.inputs[0])
        if not is_narrow(value):
            return False
        if node.op in DIRECT:
            return all(v is not None and self.on_device(v) for v in node.inputs)
        region = self.region(value)
        return region.closed and bool(region.inputs)

    def available(self, value: Value) -> bool:
        return is_narrow(value) and value.constant is None

    def region(self, value: Value) -> Region:
        if value not in self.regions:
            self.regions[value] = Region.behind(value)
        return self.regions[value]

    def needed(self, outputs: Sequence[Value]) -> set[Value]:
        """All device values behind these; fills `inputs` with those that the host provides."""
        found: set[Value] = set()
        stack = list(outputs)
        while stack:
            value = stack.pop()
            if value in found:
                continue
            found.add(value)
            if not self.on_device(value):
                self.check_host(value)
                self.inputs.append(value)
                continue
            assert value.node is not None
            before = value.node.inputs if value.node.op in DIRECT else self.region(value).inputs
            stack.extend(v for v in before if v is not None)
        self.inputs.reverse()
        return found

    def check_host(self, value: Value) -> None:
        """Refuses an input of the layers that the host would compute from what layers give."""
        stack, seen = [value], set()
        while stack:
            v = stack.pop()
            if v in seen or v.node is None:
                continue
            seen.add(v)
            if self.on_device(v):
                assert value.node is not None
                refuse(value.node, "of what layers give and other tensors")
            stack.extend(x for x in v.node.inputs if x is not None)

    # Wires --------------------------------------------------------------------------------------

    def frame(self, value: Value) -> tuple[int, ...]:
        """The shape of one frame: all axes but the first, which counts frames."""
        if not value.rank or not all(isinstance(d, int) for d in value.shape[1:]) \
                or value.shape[0] != self.inputs[0].shape[0]:
            raise ModelError(f"{_origin(value)}: a tensor of {value.type} does not have the frames "
                             f"as its first axis, as the fpga target needs, and constant sizes "
                             f"behind it")
        return tuple(int(d) for d in value.shape[1:])  # type: ignore[arg-type]

    def input_wire(self, value: Value) -> Wire:
        """An input in the order in which the first layer that uses it takes it."""
        shape = self.frame(value)
        count = int(np.prod(shape))
        positions, current, taken = np.arange(count), value, None
        while taken is None:
            users = list(current.users)
            user = users[0] if users else None
            if user is not None and user.op in MOVEMENT and len(users) == 1:
                positions = _moved(positions, user, self.frame(current))
                current = user.output
            elif user is not None and lookup(user.op).kind == "elementwise" and len(users) == 1 \
                    and user.output.shape == current.shape:
                current = user.output
            else:
                taken = self.frame(current)
        # positions[e] is where element e of the input lies in the tensor that is taken.
        where = np.argsort(positions)
        if len(taken) >= 2 and any(u.op in ("conv", "pool_max", "reduce_sum", "pool_sum")
                                   or u.op in ("cast", "add") for u in current.users):
            order = where[_channels_last(taken)]
            channels = taken[0]
        else:
            order, channels = where, taken[-1] if taken else 1
        element = element_between(*bounds(value))
        return Wire(f"input {value.name!r}" if value.node is None else _origin(value), element,
                    count // channels, channels, order)

    def wire(self, value: Value | None) -> Wire:
        assert value is not None
        return self.wires[value]

    def emit(self, layer: Layer) -> Wire:
        layer.output.source = layer
        self.network.layers.append(layer)
        return layer.output

    # Layers -------------------------------------------------------------------------------------

    def layer(self, value: Value) -> Wire:
        node = value.node
        assert node is not None
        if node.op in MOVEMENT:
            return self.moved(value, node)
        if node.op == "pool_max":
            return self.maximum(value, node)
        if node.op == "argmax":
            return self.argmax(value, node)
        if node.op == "slice":
            return self.kept(value, node)
        if node.op == "concat":
            return self.concatenated(value, node)
        region = self.region(value)
        anchors = [n for n in region.nodes if n.op in ANCHORS]
        others = [n for n in region.nodes if n.op not in ANCHORS and not region.is_elementwise(n)
                  and n.op not in MOVEMENT]
        if others or len(anchors) > 1:
            refuse((others or anchors)[0])
        if anchors:
            return self.product(value, region, anchors[0])
        if any(n.op in MOVEMENT for n in region.nodes) or len(region.inputs) > 2:
            refuse(node)
        return self.unary(value, region) if len(region.inputs) == 1 else self.join(value, region)

    def moved(self, value: Value, node: Node) -> Wire:
        source = node.inputs[0]
        assert source is not None
        wire, shape = self.wire(source), self.frame(source)
        self.frame(value)
        order = _moved(np.arange(wire.elements), node, shape)[wire.order]
        return wire.view(wire.pixels, wire.channels, order)

    def image(self, value: Value, wire: Wire, node: Node,
              order: np.ndarray) -> tuple[int, int, int, np.ndarray]:
        """Height, width and channels of a tensor [channels, spatial...], and which channel comes
        when. Raises ModelError when it does not come pixel by pixel."""
        shape = self.frame(value)
        if len(shape) not in (2, 3):
            refuse(node, f"of {len(shape) - 1} spatial axes")
        channels, width = shape[0], shape[-1]
        height = shape[1] if len(shape) == 3 else 1
        plane = height * width
        grid = order.reshape(plane, channels) if order.size == plane * channels else order[:, None]
        numbers = grid[0] // max(plane, 1)
        if not np.array_equal(grid, numbers[None, :] * plane + np.arange(plane)[:, None]):
            raise ModelError(f"{node.origin or node.op}: its input does not come pixel by pixel: "
                             f"what lies before it reorders the image, for which the fpga target "
                             f"has no layer")
        return height, width, channels, numbers

    def sliding(self, node: Node, image: tuple[int, int, int, np.ndarray], kernel, sizes, low,
                fill: int, by_channel: bool) -> Sliding:
        def two(values, missing: int) -> tuple[int, int]:
            """Height and width; an image of one axis is one row."""
            first, second = (*(missing,) * (2 - len(values)), *map(int, values))
            return first, second

        a = node.attrs
        return Sliding(*image[:3], two(kernel, 1), two(a["strides"], 1), two(a["dilations"], 1),
                       two(low, 0), two(sizes, 1), fill, by_channel)

    def window(self, node: Node, x: Wire, sliding: Sliding) -> Wire:
        """The wire of windows; the image itself where a window is a pixel."""
        if sliding.kernel == (1, 1) and sliding.strides == (1, 1) and sliding.low == (0, 0) \
                and sliding.sizes == (sliding.height, sliding.width):
            return x
        pixels = sliding.sizes[0] * sliding.sizes[1]
        taps = sliding.kernel[0] * sliding.kernel[1]
        low, high = min(x.element.low, sliding.fill), max(x.element.high, sliding.fill)
        if (low, high) != (x.element.low, x.element.high):
            raise ModelError(f"{node.origin or node.op}: it pads by {sliding.fill}, which is no "
                             f"element of its input")
        output = Wire(node.origin, x.element, pixels, taps * sliding.channels,
                      np.arange(pixels * taps * sliding.channels))
        return self.emit(Window(node.origin, [x], output, sliding))

    def maximum(self, value: Value, node: Node) -> Wire:
        source = node.inputs[0]
        assert source is not None
        x = self.wire(source)
        image = self.image(source, x, node, x.order)
        if x.channels != image[2]:  # with one channel its words may have been lines
            x = x.view(image[0] * image[1], image[2], x.order)
        a = node.attrs
        sliding = self.sliding(node, image, a["kernel"], a["sizes"], a["low"], x.element.low, True)
        windows = self.window(node, x, sliding)
        if windows is x:
            return x
        pixels = windows.pixels
        output = Wire(node.origin, x.element, pixels, x.channels,
                      _image_order(pixels, image[3]))
        return self.emit(WindowMaximum(node.origin, [windows], output,
                                       windows.channels // x.channels))

    def argmax(self, value: Value, node: Node) -> Wire:
        source = node.inputs[0]
        assert source is not None
        x, shape = self.wire(source), self.frame(source)
        axis = node.attrs["axis"] - 1
        if axis < 0 or node.attrs["last"]:
            refuse(node)
        inner = int(np.prod(shape[axis + 1:]))
        count = shape[axis]
        grid = x.order.reshape(-1, count) if x.order.size % count == 0 else x.order[None]
        numbers = grid[0] // inner % count
        rest = grid // (inner * count) * inner + grid % inner
        if not np.all(rest == rest[:, :1]) or not np.all(grid // inner % count == numbers):
            refuse(node, "whose elements do not come one after another")
        if x.channels != count:
            x = x.view(len(grid), count, x.order)
        output = Wire(node.origin, element_between(0, count - 1), len(grid), 1, rest[:, 0])
        return self.emit(ArgMax(node.origin, [x], output, numbers))

    def unary(self, value: Value, region: Region) -> Wire:
        x = self.wire(region.inputs[0])
        table = region.table([x.element])
        if table is None:
            return self.each_channel(value, region, x)
        low, high = int(table.min()), int(table.max())
        if np.array_equal(table, np.arange(x.element.low, x.element.high + 1)):
            return x
        output = Wire(_origin(value), element_between(low, high), x.pixels, x.channels, x.order)
        return self.emit(Lookup(_origin(value), [x], output, table))

    def each_channel(self, value: Value, region: Region, x: Wire) -> Wire:
        """Monotone arithmetic with constants of each channel, as products by one."""
        node, axis = region.nodes[-1], region.channel_axis()
        if axis is None or axis == 0:
            refuse(node, "with constants that differ from place to place")
        shape = self.frame(value)
        inner, count = int(np.prod(shape[axis:])), shape[axis - 1]
        grid = (x.order // inner % count).reshape(x.pixels, x.channels)
        if not np.all(grid == grid[0]):
            refuse(node, "with constants that differ from place to place")
        function = region.function(region.inputs[0], axis)
        low, high = (np.full(count, n, np.int64) for n in (x.element.low, x.element.high))
        found = None if function is None else solve(function, low, high)
        if found is None:
            refuse(node, "of each channel, which is not monotone or has too many levels")
        output = Wire(_origin(value), _element(found), x.pixels, x.channels, x.order)
        return self.emit(WindowSum(_origin(value), [x], output, np.ones((x.channels, 1), np.int64),
                                   found.permuted(grid[0]), x.element))

    def kept(self, value: Value, node: Node) -> Wire:
        """A slice: some channels of each pixel."""
        source = node.inputs[0]
        assert source is not None
        x, shape = self.wire(source), self.frame(source)
        self.frame(value)
        if node.attrs["starts"][0] != 0 or node.attrs["steps"][0] != 1:
            refuse(node, "along the first axis")
        picks = [int(s) + np.arange(int(n)) * int(k) for s, n, k in zip(
            *(node.attrs[key][1:] for key in ("starts", "sizes", "steps")), strict=True)]
        chosen = np.arange(x.elements).reshape(shape)[np.ix_(*picks)].reshape(-1)
        places = np.full(x.elements, -1)
        places[chosen] = np.arange(chosen.size)
        grid = places[x.order].reshape(x.pixels, x.channels)
        inside = grid[0] >= 0
        if not np.array_equal(grid >= 0, np.broadcast_to(inside, grid.shape)) or not inside.any():
            refuse(node, "of other elements than the same channels of each pixel")
        if inside.all():
            return x.view(x.pixels, x.channels, grid.reshape(-1))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
        runs = tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))
        output = Wire(node.origin, x.element, x.pixels, int(inside.sum()),
                      grid[:, inside].reshape(-1))
        return self.emit(Keep(node.origin, [x], output, runs))

    def concatenated(self, value: Value, node: Node) -> Wire:
        """Tensors side by side: pixel by pixel, the channels of each."""
        shape, axis = self.frame(value), node.attrs["axis"] - 1
        if axis < 0:
            refuse(node, "along the first axis")
        elements, start, parts = np.arange(int(np.prod(shape))).reshape(shape), 0, []
        for source in node.inputs:
            assert source is not None
            x, size = self.wire(source), self.frame(source)[axis]
            inside = elements.take(np.arange(start, start + size), axis).reshape(-1)
            parts.append((x, inside[x.order].reshape(x.pixels, x.channels)))
            start += size
        low = min(x.element.low for x, _ in parts)
        element = element_between(low, max(x.element.high for x, _ in parts))
        whole, grid = self.widened(parts[0][0], element), parts[0][1]
        for x, more in parts[1:]:
            if x.pixels != whole.pixels:
                refuse(node, "of tensors of other numbers of pixels")
            grid = np.concatenate([grid, more], 1)
            output = Wire(node.origin, element, whole.pixels, grid.shape[1], grid.reshape(-1))
            whole = self.emit(Concatenate(node.origin, [whole, self.widened(x, element)], output))
        return whole

    def widened(self, x: Wire, element: Element) -> Wire:
        """A wire as one of elements that hold more."""
        if x.element == element:
            return x
        every = np.arange(x.element.low, x.element.high + 1)
        output = Wire(x.name, element, x.pixels, x.channels, x.order)
        return self.emit(Lookup(x.name, [x], output, every))

    def join(self, value: Value, region: Region) -> Wire:
        a, b = (self.wire(v) for v in region.inputs)
        if region.inputs[0].shape != region.inputs[1].shape or not np.array_equal(a.order, b.order):
            refuse(region.nodes[-1], "of tensors that do not come in the same order")
        if a.element.bits + b.element.bits > PAIR_BITS:
            refuse(region.nodes[-1], f"of two tensors with more than {PAIR_BITS} bits together: "
                                     f"give fewer by --option activations")
        table = region.table([a.element, b.element])
        if table is None:
            refuse(region.nodes[-1], "with constants that differ from channel to channel")
        how = blend(region, a.element, b.element, table)
        output = Wire(_origin(value), element_between(int(table.min()), int(table.max())),
                      a.pixels, a.channels, a.order)
        return self.emit(Join(_origin(value), [a, b], output, table if how is None else how))

    def product(self, value: Value, region: Region, anchor: Node) -> Wire:
        """A layer around a convolution, product or sum."""
        found = centred(anchor.inputs[0], region)
        if found is None:
            refuse(anchor, "of an operand that is not a tensor of integers less a number")
        x, zero, movement = found
        wire = self.wire(x)
        order, current = wire.order, x
        for node in movement:
            order = _moved(np.arange(wire.elements), node, self.frame(current))[order]
            current = node.output
        source = anchor.inputs[0]
        assert source is not None
        if anchor.op == "matmul":
            return self.dense(value, region, anchor, wire, source, order, zero)
        image = self.image(source, wire, anchor, order)
        if wire.channels != image[2]:
            wire = wire.view(image[0] * image[1], image[2], order)
        if anchor.op == "reduce_sum":
            return self.frame_sum(value, region, anchor, wire, image, zero)
        return self.convolution(value, region, anchor, wire, image, zero)

    def epilogue(self, region: Region, anchor: Node, axis: int, weights: np.ndarray, x: Wire,
                 zero: int) -> tuple[Epilogue, Element]:
        """What follows sums of weights [channels, taps] times elements, and what they fit in."""
        w = weights.astype(np.int64)
        ends = np.stack([w * x.element.low, w * x.element.high])
        low, high = ends.min(0).sum(1), ends.max(0).sum(1)
        part_low = np.minimum(ends.min(0), 0).sum(1).min(initial=0)
        part_high = np.maximum(ends.max(0), 0).sum(1).max(initial=0)
        correction = -zero * w.sum(1)
        low, high = low + correction, high + correction
        reach = int(np.maximum(np.abs(low), np.abs(high)).max(initial=1))
        function = region.function(anchor.output, axis)
        if function is None:
            refuse(anchor, "followed, before it is rounded, by more than monotone arithmetic with "
                           "constants of each channel")
        found = solve(function, low, high, requantisation(region, anchor, len(w), reach))
        if found is None:
            refuse(anchor, "whose result has too many levels, or takes products of too many bits")
        return found.shifted(correction), element_between(int(part_low), int(part_high))

    def dense(self, value: Value, region: Region, anchor: Node, x: Wire, source: Value,
              order: np.ndarray, zero: int) -> Wire:
        weights = anchor.inputs[1]
        if weights is None or weights.constant is None or weights.rank != 2:
            refuse(anchor, "whose right operand is no constant matrix")
        w = np.asarray(weights.constant).astype(np.int64).T  # [outputs, inputs]
        shape = self.frame(source)
        inputs = w.shape[1]
        pixels = int(np.prod(shape[:-1]))
        grid = order.reshape(pixels, inputs)
        numbers = grid[0] % inputs
        rows = grid[:, 0] // inputs
        if not np.array_equal(grid, rows[:, None] * inputs + numbers[None, :]):
            refuse(anchor, "whose operand does not come row by row")
        w = w[:, numbers]
        epilogue, total = self.epilogue(region, anchor, value.rank - 1, w, x, zero)
        taken = x if x.channels == inputs else x.view(pixels, inputs, x.order)
        result = (rows[:, None] * len(w) + np.arange(len(w))).reshape(-1)
        output = Wire(_origin(value), _element(epilogue), pixels, len(w), result)
        return self.emit(MatrixVector(anchor.origin, [taken], output, w, epilogue, total))

    def frame_sum(self, value: Value, region: Region, anchor: Node, x: Wire,
                  image: tuple[int, int, int, np.ndarray], zero: int) -> Wire:
        rank = anchor.inputs[0].rank  # type: ignore[union-attr]
        if anchor.attrs["axes"] != tuple(range(2, rank)):
            refuse(anchor, "over other axes than all spatial ones")
        height, width, channels, numbers = image
        ones = np.ones((channels, height * width), np.int64)
        epilogue, total = self.epilogue(region, anchor, 1, ones, x, zero)
        output = Wire(_origin(value), _element(epilogue), 1, channels, numbers)
        return self.emit(FrameSum(anchor.origin, [x], output, epilogue.permuted(numbers), total))

    def convolution(self, value: Value, region: Region, anchor: Node, x: Wire,
                    image: tuple[int, int, int, np.ndarray], zero: int) -> Wire:
        channels, numbers, a = image[2], image[3], anchor.attrs
        sizes = self.frame(anchor.output)[1:]
        if anchor.op == "pool_sum":
            kernel, depthwise, fill = tuple(a["kernel"]), True, zero
            w = np.ones((channels, 1, *kernel), np.int64)
        else:
            weights = anchor.inputs[1]
            if weights is None or weights.constant is None:
                refuse(anchor, "whose weights are no constants")
            w = np.asarray(weights.constant).astype(np.int64)
            kernel, groups, fill = w.shape[2:], a["groups"], int(a["fill"]) + zero
            depthwise = groups == channels == len(w) and channels > 1
            if not depthwise and groups > 1:
                w = _ungrouped(w, groups)
        sliding = self.sliding(anchor, image, kernel, sizes, a["low"], fill, depthwise)
        windows = self.window(anchor, x, sliding)
        pixels, origin = sliding.sizes[0] * sliding.sizes[1], _origin(value)
        if depthwise:
            w = w.reshape(channels, -1)
            epilogue, total = self.epilogue(region, anchor, 1, w, x, zero)
            output = Wire(origin, _element(epilogue), pixels, channels,
                          _image_order(pixels, numbers))
            return self.emit(WindowSum(anchor.origin, [windows], output, w[numbers],
                                       epilogue.permuted(numbers), total))
        w = np.moveaxis(w[:, numbers], 1, -1).reshape(len(w), -1)
        epilogue, total = self.epilogue(region, anchor, 1, w, x, zero)
        output = Wire(origin, _element(epilogue), pixels, len(w),
                      _image_order(pixels, np.arange(len(w))))
        return self.emit(MatrixVector(anchor.origin, [windows], output, w, epilogue, total))


def refuse(node: Node, why: str = "") -> NoReturn:
    """Raises the ModelError for a node that is no layer."""
    raise ModelError(f"{node.origin or node.op}: the fpga target has no layer for operator "
                     f"{node.op}{' ' + why if why else ''}")


def _origin(value: Value) -> str:
    if value.node is None:
        return f"input {value.name!r}"
    return value.node.origin or value.node.op


def _element(epilogue: Epilogue) -> Element:
    return element_between(epilogue.low, epilogue.high)


def _channels_last(shape: tuple[int, ...]) -> np.ndarray:
    """For each position pixel by pixel, the element of a tensor [channels, spatial...]."""
    return np.moveaxis(np.arange(int(np.prod(shape))).reshape(shape), 0, -1).reshape(-1)


def _image_order(pixels: int, numbers: np.ndarray) -> np.ndarray:
    return (numbers[None, :] * pixels + np.arange(pixels)[:, None]).reshape(-1)


def _moved(positions: np.ndarray, node: Node, shape: tuple[int, ...]) -> np.ndarray:
    """Where elements at `positions` of a frame of this shape come to lie by a movement."""
    if node.op == "reshape":
        return positions
    perm = node.attrs["perm"]
    if perm[0] != 0:
        refuse(node, "that moves the first axis")
    source = np.arange(int(np.prod(shape))).reshape(shape).transpose(
        [p - 1 for p in perm[1:]]).reshape(-1)
    return np.argsort(source)[positions]


def _ungrouped(w: np.ndarray, groups: int) -> np.ndarray:
    """Weights of a grouped convolution as those of one group, with zeros."""
    features, inputs = w.shape[0] // groups, w.shape[1]
    whole = np.zeros((len(w), inputs * groups, *w.shape[2:]), w.dtype)
    for g in range(groups):
        rows = slice(g * features, (g + 1) * features)
        whole[rows, g * inputs:(g + 1) * inputs] = w[rows]
    return whole
