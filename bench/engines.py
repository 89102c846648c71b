"""The suite's engines beyond smelt's own table, in processes driven by `measure`:
`python bench/engines.py`. OpenVINO in bf16, torch.compile of the zoo's modules, TVM, IREE.

What TVM and IREE compile goes to the folder `settings["compiled"]`, by a process of its own, so
that the memory told is that of loading and running.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from smelt.engine_process import ENGINES as OWN
from smelt.engine_process import Engine, Run, Settings, openvino_engine, serve

Inputs = dict[str, np.ndarray]
COMPILE_SECONDS = 300
"""What an engine that compiles first may take for a model."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises RuntimeError in what takes longer; where the system has no alarm there is no limit."""
    def late(*_: object) -> None:
        raise RuntimeError(f"it was still compiling after {seconds} s")

    if not hasattr(signal, "SIGALRM"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# PyTorch -----------------------------------------------------------------------------------------


def torch_compile(settings: Settings, inputs: Inputs) -> Settings:
    """Compiles the module by inductor with frozen weights: at the first call, so in this process.
    """
    if not settings.get("zoo"):
        raise RuntimeError("only the zoo's models are torch modules")
    torch: Any = import_module("torch")
    import_module("torch._inductor.config").freezing = True
    torch.set_num_threads(settings["threads"])
    module, _ = import_module("zoo").build(settings["zoo"])
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in inputs.values()]
    start = time.perf_counter()
    compiled = torch.compile(module)
    with within(COMPILE_SECONDS), torch.no_grad():
        compiled(*tensors)
    return {"module": compiled, "tensors": tensors,
            "compile_seconds": time.perf_counter() - start}


def torch_load(settings: Settings, inputs: Inputs) -> tuple[str, Run]:
    torch: Any = import_module("torch")
    module, tensors = settings["module"], settings["tensors"]

    def run() -> Mapping[str, np.ndarray]:
        with torch.no_grad():
            found = module(*tensors)
        found = found if isinstance(found, (tuple, list)) else (found,)
        return {str(i): t.numpy() for i, t in enumerate(found)}

    return torch.__version__.split("+")[0], run


# Compiled ahead ----------------------------------------------------------------------------------


def ahead(suffix: str, commands: Callable[[Path, Path, Inputs], list[list[str]]],
          settings: Settings, inputs: Inputs) -> Settings:
    """Runs what compiles the model into a file ending in `suffix`, once for all threads."""
    output = Path(settings["compiled"]) / f"{Path(settings['path']).stem}{suffix}"
    told = output.with_suffix(".json")
    if not told.exists():
        start = time.perf_counter()
        error = ""
        for command in commands(Path(settings["path"]), output, inputs):
            left = COMPILE_SECONDS - (time.perf_counter() - start)
            try:
                run = subprocess.run(command, capture_output=True, text=True, timeout=max(left, 1))
            except subprocess.TimeoutExpired:
                error = f"it was still compiling after {COMPILE_SECONDS} s"
                break
            if run.returncode:
                error = reason(run.stderr)
                break
        told.write_text(json.dumps({"error": error, "seconds": time.perf_counter() - start}))
    result = json.loads(told.read_text())
    if result["error"]:
        raise RuntimeError(result["error"])
    return {"file": str(output), "compile_seconds": result["seconds"]}


def reason(text: str) -> str:
    """Why a compiler refused, of what it wrote: the first line that tells of an error, without the
    place in a file; of a traceback, which ends in its error, the last."""
    lines = [x.strip() for x in text.splitlines() if x.strip()] or ["it gave no reason"]
    told = [x for x in lines if "error" in x.lower()] or lines
    line = told[-1] if any(x.startswith("Traceback") for x in lines) else told[0]
    _, found, rest = line.partition(" error: ")
    return (rest if found else line)[:200]


def tvm_commands(model: Path, output: Path, inputs: Inputs) -> list[list[str]]:
    shapes = json.dumps({name: list(array.shape) for name, array in inputs.items()})
    return [[sys.executable, __file__, str(model), str(output), shapes]]


def tvm_compile(model: Path, output: Path, shapes: dict[str, list[int]]) -> None:
    """Compiles by relax's zero pipeline, without tuning, for this processor."""
    import onnx

    tvm: Any = import_module("tvm")
    relax = import_module("tvm.relax")
    convert = import_module("tvm.relax.frontend.onnx").from_onnx
    module = convert(onnx.load(model), shapes)
    processor = tvm.get_global_func("target.llvm_get_system_cpu")()
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
    with target:
        module = relax.get_pipeline("zero")(module)
    tvm.compile(module, target=target).export_library(str(output))


def tvm_load(settings: Settings, inputs: Inputs) -> tuple[str, Run]:
    tvm: Any = import_module("tvm")
    relax = import_module("tvm.relax")
    machine = relax.VirtualMachine(tvm.runtime.load_module(settings["file"]), tvm.cpu())
    tensors = [tvm.runtime.tensor(a) for a in inputs.values()]
    main = machine["main"]

    def run() -> Mapping[str, np.ndarray]:
        found = main(*tensors)
        found = [found] if hasattr(found, "numpy") else list(found)
        return {str(i): t.numpy() for i, t in enumerate(found)}

    return tvm.__version__, run


def iree_commands(model: Path, output: Path, inputs: Inputs) -> list[list[str]]:
    text = output.with_suffix(".mlir")
    python = [sys.executable, "-m"]
    # The importer takes operators as of opset 17 and later.
    return [[*python, "iree.compiler.tools.import_onnx", str(model), "-o", str(text),
             "--opset-version", "17"],
            [*python, "iree.compiler.tools.scripts.iree_compile", str(text), "-o", str(output),
             "--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu",
             "--iree-llvmcpu-target-cpu=host"]]


def iree_load(settings: Settings, inputs: Inputs) -> tuple[str, Run]:
    iree: Any = import_module("iree.runtime")
    threads = settings["threads"]
    iree.flags.parse_flags(f"--task_topology_group_count={threads}")
    config = iree.Config("local-sync" if threads == 1 else "local-task")
    context = iree.SystemContext(config=config)
    module = iree.VmModule.mmap(config.vm_instance, settings["file"])
    context.add_vm_module(module)
    (name,) = (n for n in module.function_names if not n.startswith("_") and "$" not in n)
    function = context.modules[module.name][name]
    arrays = [iree.asdevicearray(config.device, np.ascontiguousarray(a)) for a in inputs.values()]

    def run() -> Mapping[str, np.ndarray]:
        found = function(*arrays)
        found = found if isinstance(found, (tuple, list)) else (found,)
        return {str(i): a.to_host() for i, a in enumerate(found)}

    return import_module("iree.runtime.version").VERSION, run


# smelt by its ways to be called -----------------------------------------------------------------


def smelt_call(settings: Settings, inputs: Inputs) -> tuple[str, Callable[[], Any]]:
    module = import_module("smelt").load(settings["path"], threads=settings["threads"])
    arrays = [inputs[s.name] for s in module.inputs]
    return "m(x)", lambda: module(*arrays)


def smelt_run(settings: Settings, inputs: Inputs) -> tuple[str, Callable[[], Any]]:
    module = import_module("smelt").load(settings["path"], threads=settings["threads"])
    named = {s.name: inputs[s.name] for s in module.inputs}
    return "m.run({name: x})", lambda: module.run(named)


CALLS = {"smelt-call": Engine(smelt_call), "smelt-run": Engine(smelt_run)}
ENGINES = {
    **OWN,
    "openvino-bf16": Engine(partial(openvino_engine, precision="bf16"), ("openvino",)),
    "torch-compile": Engine(torch_load, ("torch", "torch._inductor.config"), torch_compile),
    "tvm": Engine(tvm_load, ("tvm", "tvm.relax"), partial(ahead, ".tvm.so", tvm_commands)),
    "iree": Engine(iree_load, ("iree.runtime", "iree.compiler"),
                   partial(ahead, ".iree.vmfb", iree_commands)),
}
PRECISIONS = {"openvino-bf16": "bf16"}
"""What the others compute in is the model's own types."""

if __name__ == "__main__":
    if len(sys.argv) > 1:
        _, model, output, shapes = sys.argv
        tvm_compile(Path(model), Path(output), json.loads(shapes))
    else:
        serve({**ENGINES, **CALLS})
