"""`smelt opt`: graph passes on the text form of a graph, or on an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ModelError
from .signature import Size


def run_passes(file: Path, passes: str, shapes: Mapping[str, Sequence[Size]],
               dims: Mapping[str, int], elide: int | None = None) -> tuple[str, list[Any]]:
    """The text form after the passes, and a report of each pass.

    `file` is the text form (UTF-8, beginning with "graph") or else an ONNX model; constants of
    more than `elide` elements are left out of the result. Raises ModelError and UsageError.
    """
    from .ir.graph.text import parse_graph, print_graph
    from .passes.graph.base import Pipeline

    pipeline = Pipeline.parse(passes)
    text = _text_form(file)
    if text is not None:
        graph = parse_graph(text)
    else:
        from .frontend.onnx.loader import load_model

        graph = load_model(file, shapes=shapes, dims=dims)
    reports = pipeline.run(graph) if pipeline.passes else []
    return print_graph(graph, elide or 0), reports


def _text_form(file: Path) -> str | None:
    """The file's text when it is the text form of a graph, else None."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {str(file)!r}: {error.strerror or error}") from None
    for line in data[:4096].splitlines():
        if line.strip() and not line.lstrip().startswith((b"#", b"//")):
            if not line.lstrip().startswith(b"graph"):
                return None
            break
    else:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
