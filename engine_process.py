"""One engine in a process of its own, driven by `measure` through lines of JSON.

The first line says what to run; each `{"round": seconds}` after it times runs for about that long.
Standard output carries answers only: what libraries print goes to standard error. Other programs
serve engines of their own the same way: `serve`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], Mapping[str, np.ndarray]]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Engine:
    """`load` gives a version and what runs the model once, on inputs by name; its time is the load
    time, after the modules that it `needs` are imported. What compiles first does so in `compile`,
    which returns settings to add. Outputs that are no mapping are not looked at."""

    load: Callable[[Settings, dict[str, np.ndarray]], tuple[str, Callable[[], Any]]]
    needs: tuple[str, ...] = ()
    compile: Callable[[Settings, dict[str, np.ndarray]], Settings] | None = None


def smelt_engine(settings: Settings, inputs: dict[str, np.ndarray]) -> tuple[str, Run]:
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


def ort_engine(settings: Settings, inputs: dict[str, np.ndarray]) -> tuple[str, Run]:
    import onnxruntime

    from .verification import onnx_runtime_session

    session = onnx_runtime_session(settings["path"], settings["threads"], settings["dims"])
    taken = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    given = {n: a for n, a in inputs.items() if n in taken}
    return onnxruntime.__version__, lambda: dict(zip(names, session.run(None, given)))


def openvino_engine(settings: Settings, inputs: dict[str, np.ndarray],
                    precision: str = "f32") -> tuple[str, Run]:
    """OpenVINO, which would choose bf16 by itself: quicker and less exact than everyone else."""
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this processor has no bf16 arithmetic")
    model = core.read_model(settings["path"])
    by_name = {name: port for port in model.inputs for name in port.get_names()}
    model.reshape({by_name[n].get_any_name(): list(a.shape) for n, a in inputs.items()
                   if n in by_name})
    compiled = core.compile_model(model, "CPU", {
        "INFERENCE_NUM_THREADS": settings["threads"], "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1})
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


def torch_engine(settings: Settings, inputs: dict[str, np.ndarray]) -> tuple[str, Run]:
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


ENGINES = {
    "smelt": Engine(smelt_engine, ("smelt.runtime",)),
    "ort": Engine(ort_engine, ("onnxruntime", "smelt.verification")),
    "openvino": Engine(openvino_engine, ("openvino",)),
    "torch": Engine(torch_engine, ("torch",)),
}


def timed_round(run: Callable[[], Any], seconds: float) -> float:
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


def _memory(entry: str) -> int:
    """Bytes that this process holds (VmRSS) or held at most (VmHWM); 0 where that is unknown."""
    try:
        # getrusage would count the process that started this one, too.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _forget_peak() -> None:
    """Makes the peak of memory what is held now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def serve(engines: Mapping[str, Engine]) -> None:
    """Runs one of the engines as standard input says, until it ends."""
    # Libraries may print to descriptor 1; answers go to a copy of it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    settings = json.loads(sys.stdin.readline())
    try:
        inputs = _inputs(settings)  # held here: engines may read them in place in every run
        ready, run = _start(engines[settings["engine"]], settings, inputs)
        answer(**ready)
        for line in sys.stdin:
            start, busy = time.perf_counter(), time.process_time()
            seconds = timed_round(run, json.loads(line)["round"])
            cores = (time.process_time() - busy) / (time.perf_counter() - start)
            answer(seconds=seconds, memory=_memory("VmHWM"), cores=cores)
    except KeyboardInterrupt:
        pass
    except ImportError as error:
        answer(error=f"{error.name} is not installed" if error.name else str(error)[:300])
    except Exception as error:
        answer(error=" ".join(str(error).split())[:300] or type(error).__name__)


def _start(engine: Engine, settings: Settings, inputs: dict[str, np.ndarray],
           ) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Compiles and loads, runs once and writes the outputs; what to tell, and the run."""
    from . import data

    for name in engine.needs:
        import_module(name)
    clock, base = time.perf_counter, _memory("VmRSS")
    start = clock()
    if engine.compile is not None:
        settings = {**settings, **engine.compile(settings, inputs)}
    compiled = clock()
    _forget_peak()
    version, run = engine.load(settings, inputs)
    loaded = clock()
    outputs = run()
    first = clock()
    if isinstance(outputs, Mapping):
        data.write_npz(Path(settings["outputs"]), outputs)
    seconds = settings.get("compile_seconds", compiled - start)
    return {"version": version, "compile": seconds if engine.compile else 0.0,
            "load": loaded - compiled, "first": first - loaded, "base": base}, run


def _inputs(settings: Settings) -> dict[str, np.ndarray]:
    with np.load(settings["inputs"]) as held:
        return {name: held[name] for name in held.files}


if __name__ == "__main__":
    serve(ENGINES)
