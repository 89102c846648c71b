"""The attributes that convolutions and pools share: strides, dilations and ways to pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.expr import op, simplify_dim, wrap
from ...ir.graph.core import Dim
from ...ir.graph.ops.shapes import conv_extent
from .registry import Site


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes; `sizes` are those of the output."""

    kernel: tuple[Dim, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[Dim, ...]
    high: tuple[Dim, ...]
    sizes: tuple[Dim, ...]


def integers(c: Site, name: str, count: int, default: int) -> tuple[int, ...]:
    """Attribute `name` with `count` entries, all `default` when it is absent."""
    values = tuple(int(v) for v in c.attr(name) or (default,) * count)
    if len(values) != count:
        raise c.error(f"attribute {name!r} needs {count} entries, has {len(values)}")
    return values


def steps(c: Site, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and dilations, all at least 1."""
    strides, dilations = integers(c, "strides", count, 1), integers(c, "dilations", count, 1)
    if min(strides + dilations, default=1) < 1:
        raise c.error("strides and dilations must be 1 or more")
    return strides, dilations


def span(kernel: Dim, dilation: int) -> Dim:
    """How far a dilated window reaches."""
    return simplify_dim((wrap(kernel) - 1) * dilation + 1)


def halves(total: Dim, more_at_end: bool) -> tuple[Dim, Dim]:
    """Padding before and after; an odd element goes to the end or to the start."""
    less = simplify_dim(wrap(total) // 2)
    more = simplify_dim(wrap(total) - wrap(less))
    return (less, more) if more_at_end else (more, less)


def padding_mode(c: Site) -> str:
    mode = c.attr("auto_pad", "NOTSET") or "NOTSET"
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise c.error(f"unknown auto_pad {mode!r}")
    return mode


def window(c: Site, spatial: Sequence[Dim], kernel: Sequence[Dim], ceil: bool = False) -> Window:
    """The window that the node's attributes describe over axes of sizes `spatial`."""
    n = len(spatial)
    strides, dilations = steps(c, n)
    mode = padding_mode(c)
    pads = integers(c, "pads", 2 * n, 0) if mode == "NOTSET" else (0,) * (2 * n)
    low: list[Dim] = list(pads[:n])
    high: list[Dim] = list(pads[n:])
    sizes: list[Dim] = []
    for i, (extent, k) in enumerate(zip(spatial, kernel, strict=True)):
        step, reach = strides[i], span(k, dilations[i])
        if mode.startswith("SAME"):
            # (out - 1) * step + reach - extent with out = ceil(extent / step), so written that
            # windows of different reach give the same sizes.
            total = simplify_dim(op("max", wrap(reach) - step + (-wrap(extent)) % step, 0))
            low[i], high[i] = halves(total, mode == "SAME_UPPER")
            sizes.append(simplify_dim((wrap(extent) + (step - 1)) // step))
            continue
        size = conv_extent(extent, k, step, dilations[i], low[i], high[i], ceil)
        if ceil:  # windows that would start in the padding at the end are left out
            size = op("min", size, (wrap(extent) + low[i] - 1) // step + 1)
        sizes.append(simplify_dim(size))
    return Window(tuple(kernel), strides, dilations, tuple(low), tuple(high), tuple(sizes))
