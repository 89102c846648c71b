"""Runs graphs made to observe what happens in a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import TargetError

if TYPE_CHECKING:
    from .ir.graph.core import Graph

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
"""The outputs of a graph, in order, for inputs by name."""


def runner(graph: Graph, folder: Path) -> Run:
    """Runs a graph compiled for this machine (the artifact goes to `folder`), or interpreted where
    there is no compiler."""
    from .ir.graph.clone import clone_graph
    from .ir.graph.interpreter import interpret
    from .runtime import load
    from .runtime.artifact import write_artifact
    from .targets.base import BuildOptions, find_target

    try:
        options = BuildOptions(name="probe", optimize=1)  # compiling takes longer than running
        built = find_target("cpu").build(clone_graph(graph), options)
    except TargetError:
        return lambda inputs: interpret(graph, inputs)
    write_artifact(folder / "probe.smelt", built.manifest, built.files)
    module = load(folder / "probe.smelt")
    return lambda inputs: [np.array(y) for y in module.run(dict(inputs)).values()]
