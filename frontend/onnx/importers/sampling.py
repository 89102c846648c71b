"""Images read between their elements: GridSample, RoiAlign; and Col2Im."""

from __future__ import annotations

from ....ir import dtype as dt
from ....ir.graph.core import Value
from .. import vectors
from ..indices import checked_indices
from ..registry import Site, importer
from .elementwise import cast

_MODES = {"bilinear": "linear", "bicubic": "cubic", "linear": "linear", "cubic": "cubic",
          "nearest": "nearest"}


@importer("GridSample")
def grid_sample(c: Site) -> Value:
    mode = _MODES.get(c.attr("mode", "linear"))
    if mode is None:
        raise c.error(f"unknown mode {c.attr('mode')!r}")
    return c.add("grid_sample", [c.input(0), c.input(1)], mode=mode,
                 padding=c.attr("padding_mode", "zeros"),
                 align_corners=bool(c.attr("align_corners", 0)))


@importer("RoiAlign")
def roi_align(c: Site) -> Value:
    x = c.input(0)
    default = "half_pixel" if c.opset >= 16 else "output_half_pixel"
    frame = c.attr("coordinate_transformation_mode", default)
    if frame not in ("half_pixel", "output_half_pixel"):
        raise c.error(f"unknown coordinate_transformation_mode {frame!r}")
    images = checked_indices(c, cast(c, c.input(2), dt.i64), x.shape[:1], negative=False)
    return c.add("roi_align", [x, cast(c, c.input(1), x.dtype), images], {
        "height": c.attr("output_height", 1), "width": c.attr("output_width", 1),
        "ratio": c.attr("sampling_ratio", 0), "scale": c.attr("spatial_scale", 1.0),
        "mode": c.attr("mode", "avg"), "half_pixel": frame == "half_pixel"})


@importer("Col2Im")
def col2im(c: Site) -> Value:
    image = c.dims(vectors.integers(c, c.input(1)))
    window = c.dims(vectors.integers(c, c.input(2)))
    n = len(image)
    if len(window) != n:
        raise c.error(f"an image of rank {n} and a window of rank {len(window)}")
    pads = c.attr("pads") or [0] * (2 * n)
    return c.add("col2im", [c.input(0)], {
        "image": image, "window": window, "low": tuple(pads[:n]), "high": tuple(pads[n:]),
        "strides": tuple(c.attr("strides") or [1] * n),
        "dilations": tuple(c.attr("dilations") or [1] * n)})
