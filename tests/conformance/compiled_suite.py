"""Cases of onnx's test suite compiled and run, each in a process of its own."""

import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from frontend.onnx_suite import Case, compare

from smelt import runtime
from smelt.frontend.onnx.loader import load_model
from smelt.runtime.artifact import write_artifact
from smelt.targets.base import BuildOptions, find_target

SECONDS = 120


def check(case: Case, target: str = "cpu", optimize: int = 1) -> None:
    """Compiles the case's model as a user would and compares what it computes from each data set.

    The C compiler's level is low because the time goes into it; two threads run the result.
    """
    built = find_target(target).build(load_model(case.model), BuildOptions(optimize=optimize))
    with tempfile.TemporaryDirectory(prefix="smelt-conformance-") as folder:
        path = Path(folder) / "model"
        write_artifact(path, built.manifest, built.files)
        with runtime.load(path, threads=2) as model:
            for inputs, outputs in case.data_sets():
                names = [info.name for info in case.model.graph.input]
                given = {n: np.asarray(a) for n, a in zip(names, inputs, strict=False)}
                found = model.run({spec.name: given[spec.name] for spec in model.inputs})
                assert len(found) == len(outputs)
                for mine, theirs in zip(found.values(), outputs, strict=True):
                    compare(mine, theirs, case.source.rtol, case.source.atol)


def failure(function: Callable[[], None]) -> str:
    """What goes wrong when a forked child calls `function`; "" when nothing does.

    A crash or an endless loop of compiled code ends the child alone. Where there are many children,
    `check` a case in this process first: what that imports need not be imported in each of them.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            signal.alarm(SECONDS)
            function()
            status = 0
        except BaseException as error:  # all of them end up in the parent's report
            text = f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
            with os.fdopen(write, "w", errors="replace") as pipe:
                pipe.write(text)
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, errors="replace") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"crashed: {signal.Signals(os.WTERMSIG(status)).name}"
    return text or ("" if os.WEXITSTATUS(status) == 0 else "ended without a word")
