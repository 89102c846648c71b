"""One engine in a process of its own, driven by `measure` through lines of JSON.

The first line says what to run; each `{"round": seconds}` after it times runs for about that long.
Standard output carries answers only: what libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], Mapping[str, np.ndarray]]


def smelt_engine(settings: Mapping[str, Any], inputs: dict[str, np.ndarray]) -> tuple[str, Run]:
    from . import __version__
    from .runtime import abi, load

    module = load(settings["path"], threads=settings["threads"])
    # npz files keep the types that numpy lacks as raw bytes of the same width.
    arrays = [a.view(abi.numpy_dtype(s.dtype)) if a.dtype.kind == "V" else a
              for s in module.inputs for a in (inputs[s.name],)]
    names = [s.name for s in module.outputs]

    def run() -> Mapping[str, np.ndarray]:
        found = module(*arrays)
        return dict(zip(names, found if isinstance(found, tuple) else (found,)))

    return f"{__version__} ({module.isa})", run


def ort_engine(settings: Mapping[str, Any], inputs: dict[str, np.ndarray]) -> tuple[str, Run]:
    import onnxruntime

    from .verification import onnx_runtime_session

    session = onnx_runtime_session(settings["path"], settings["threads"], settings["dims"])
    taken = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    given = {n: a for n, a in inputs.items() if n in taken}
    return onnxruntime.__version__, lambda: dict(zip(names, session.run(None, given)))


def openvino_engine(settings: Mapping[str, Any], inputs: dict[str, np.ndarray],
                    ) -> tuple[str, Run]:
    import openvino

    core = openvino.Core()
    model = core.read_model(settings["path"])
    by_name = {name: port for port in model.inputs for name in port.get_names()}
    model.reshape({by_name[n].get_any_name(): list(a.shape) for n, a in inputs.items()
                   if n in by_name})
    # bf16 would be quicker and less exact than everyone else.
    compiled = core.compile_model(model, "CPU", {
        "INFERENCE_NUM_THREADS": settings["threads"], "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1})
    request = compiled.create_infer_request()
    for name, array in inputs.items():
        if name in by_name:
            request.set_tensor(name, openvino.Tensor(np.ascontiguousarray(array),
                                                     shared_memory=True))
    names = [port.get_any_name() for port in compiled.outputs]

    def run() -> Mapping[str, np.ndarray]:
        request.infer()
        return {n: request.get_output_tensor(i).data for i, n in enumerate(names)}

    return openvino.__version__.split("-")[0], run


def torch_engine(settings: Mapping[str, Any], inputs: dict[str, np.ndarray]) -> tuple[str, Run]:
    from importlib import import_module

    torch: Any = import_module("torch")
    torch.set_num_threads(settings["threads"])
    module = torch.export.load(settings["path"]).module()
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in inputs.values()]

    def run() -> Mapping[str, np.ndarray]:
        with torch.inference_mode():
            found = module(*tensors)
        found = found if isinstance(found, (tuple, list)) else (found,)
        return {str(i): t.numpy() for i, t in enumerate(found)}

    return torch.__version__.split("+")[0], run


ENGINES = {"smelt": smelt_engine, "ort": ort_engine, "openvino": openvino_engine,
           "torch": torch_engine}


def timed_round(run: Run, seconds: float) -> float:
    """Seconds per run, over as many runs as fit; at least one."""
    clock = time.perf_counter
    start = clock()
    run()
    once = clock() - start
    if once >= seconds:
        return once
    count = max(1, int(seconds / max(once, 1e-7)))
    start = clock()
    for _ in range(count):
        run()
    return (clock() - start) / count


def _peak_memory() -> int:
    """The most bytes of memory that this process held so far; 0 where that is unknown."""
    try:
        # getrusage would count the process that started this one, too.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def main() -> None:
    # Libraries may print to descriptor 1; answers go to a copy of it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    settings = json.loads(sys.stdin.readline())
    try:
        inputs = _inputs(settings)
        start = time.perf_counter()
        version, run = ENGINES[settings["engine"]](settings, inputs)
        load = time.perf_counter() - start
        start = time.perf_counter()
        outputs = run()
        first = time.perf_counter() - start
        from . import data

        data.write_npz(Path(settings["outputs"]), outputs)
        answer(version=version, load=load, first=first)
        for line in sys.stdin:
            answer(seconds=timed_round(run, json.loads(line)["round"]), memory=_peak_memory())
    except KeyboardInterrupt:
        pass
    except ImportError as error:
        answer(error=f"{error.name} is not installed")
    except Exception as error:
        lines = str(error).strip().splitlines()
        answer(error=(lines[0] if lines else type(error).__name__)[:300])


def _inputs(settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    with np.load(settings["inputs"]) as held:
        return {name: held[name] for name in held.files}


if __name__ == "__main__":
    main()
