"""The Python face of smelt: compile a model, load what was compiled.

    m = smelt.compile("model.onnx")
    y = m(x)
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compilation import Request, compile_into, compile_to_cache, through_cache
from .errors import ModelError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from .compression import Compression, Samples
    from .running import Runnable
    from .runtime import Module
    from .targets.base import Build

Progress = Callable[[str, int, int], None]
Inputs = Mapping[str, "np.ndarray"] | Sequence[str | Path] | None
"""Arrays by name, or files as the command line takes them; what is missing is random."""


def _silent(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


def compile(source: Any, target: str = "cpu", *,
            shapes: Mapping[str, Sequence[int | str]] | None = None,
            dims: Mapping[str, int] | None = None,
            fixed: Mapping[str, np.ndarray] | None = None,
            output: str | Path | None = None, threads: int | bool | None = None,
            optimize: int = 2, exact: bool = False, precision: str = "f32",
            accuracy: float | None = None, passes: str | None = None,
            states: Sequence[tuple[str, str]] = (),
            name: str = "model", options: Mapping[str, str] | None = None,
            quantize: str | None = None, group: int | None = None, method: str | None = None,
            data: Samples | None = None, keep: Sequence[str] = (), ranges: str | None = None,
            cache: bool = True, tune: bool = False, tune_seconds: float = 60.0,
            tuning: str | Path | None = None, progress: Progress | None = None) -> Module:
    """Compiles a model and loads it.

    source: the path of an ONNX file, its bytes, a ModelProto, a torch.export.ExportedProgram (or
    its .pt2 file), or a pair (torch module, example arguments). Equal sources and options are
    compiled once: the result is kept in the cache folder, unless `cache` is False or the result
    goes to `output`, a folder or a .zip file.

    target: as listed by `smelt targets`. shapes: other shapes of inputs, by name; texts are named
    sizes. dims: numbers for named sizes. fixed: arrays of inputs that never change. threads: how
    many the model uses; False leaves all synchronisation out of it. optimize: 0 (quick to compile)
    to 3. exact: no approximate algorithm. precision: "f32"; or "bf16": products of f32 matrices and
    convolutions with constant weights round their operands to bf16, sums and all else stay f32; or
    "bf16-storage" or "f16-storage": only those weights, and large tables of embeddings, are
    rounded, to take half the memory, and all arithmetic stays f32. accuracy: the least cosine to
    f32 of any output, with bf16 on random inputs (0.999 by default; 0 measures nothing), with
    quantize="int8" on the data (by default none); products that it takes more bits for are found
    and keep them. passes: graph passes in place of the target's own. states: pairs (output, input)
    that the model keeps between runs. name: prefix of the C names. options: what the target alone
    knows. quantize: a scheme for weights, such as "w4", or "int8" for weights and activations;
    group: how many of them share a scale; method: "rtn", "gptq", "awq", "descent" or, with
    activations of 8 bits, "outliers"; for int8 "rtn" or "smoothquant"; data: samples of inputs, a
    folder of npz files or mappings from names to arrays; keep: patterns of names of layers that
    stay at 8 bits, or in floats for int8; ranges: how int8 chooses those of activations, "mse",
    "minmax", "percentile", "entropy" or "nonzero".
    tune: measure the plans of kernels on this machine, for about `tune_seconds`; what was measured
    before, for any model, is used again. tuning: a file of records of such measurements, to be
    used, and with `tune` to be written. progress: called with (what, steps done, steps in all).

    Raises ModelError, TargetError, UsageError, OutputError, or InputError for bad samples.
    """
    from .runtime import load as load_artifact

    request = Request(source, target, shapes=shapes, dims=dims, fixed=fixed,
                      threads=threads is not False and threads != 0, optimize=optimize,
                      exact=exact, precision=precision, accuracy=accuracy, passes=passes,
                      states=tuple(states), name=name, extra=options,
                      compression=compression_of(quantize, group, method, data, keep, ranges,
                                                 accuracy))
    if tune or tuning is not None:
        from .tuning import with_records

        request, _ = with_records(request, tune=tune, seconds=tune_seconds,
                                  file=None if tuning is None else Path(tuning),
                                  progress=progress or _silent)
    count = None if threads is None or isinstance(threads, bool) else threads or None
    if output is not None:
        result = compile_into(request, Path(output), cache=cache, progress=progress)
        return load_artifact(result.path, threads=count)
    if cache:
        return through_cache(request, lambda path: load_artifact(path, threads=count),
                             progress=progress)[0]
    holder = tempfile.TemporaryDirectory(prefix="smelt-", ignore_cleanup_errors=True)
    result = compile_into(request, Path(holder.name) / "model", cache=False, progress=progress)
    module = load_artifact(result.path, threads=count)
    weakref.finalize(module, holder.cleanup)
    return module


def load(path: str | Path, threads: int | None = None) -> Module:
    """Loads a compiled model, a folder or a .zip file. Raises ArtifactError."""
    from .runtime import load as load_artifact

    return load_artifact(Path(path), threads=threads)


def build(source: Any, target: str = "cpu", *,
          shapes: Mapping[str, Sequence[int | str]] | None = None,
          dims: Mapping[str, int] | None = None,
          fixed: Mapping[str, np.ndarray] | None = None, threads: bool = True,
          optimize: int = 2, exact: bool = False, precision: str = "f32",
          accuracy: float | None = None, passes: str | None = None,
          states: Sequence[tuple[str, str]] = (), name: str = "model",
          options: Mapping[str, str] | None = None, quantize: str | None = None,
          group: int | None = None, method: str | None = None, data: Samples | None = None,
          keep: Sequence[str] = (), ranges: str | None = None,
          progress: Progress | None = None) -> Build:
    """Compiles a model without packing it: the program, the graph and the reports stay at hand.

    Parameters and errors as of `compile`.
    """
    request = Request(source, target, shapes=shapes, dims=dims, fixed=fixed, threads=threads,
                      optimize=optimize, exact=exact, precision=precision, accuracy=accuracy,
                      passes=passes, states=tuple(states), name=name, extra=options,
                      compression=compression_of(quantize, group, method, data, keep, ranges,
                                                 accuracy))
    return request.build(progress)


def compression_of(scheme: str | None, group: int | None, method: str | None,
                 data: Samples | None, keep: Sequence[str], ranges: str | None = None,
                 accuracy: float | None = None) -> Compression | None:
    """How to quantise; None when that is not asked for."""
    if scheme is None:
        if any(v is not None for v in (group, method, data, ranges)) or keep:
            raise UsageError("group, method, data, ranges and keep are options of quantisation: "
                             "say what to quantise to, such as w4 or int8")
        return None
    from .compression import Compression

    return Compression(scheme, group, method, data, tuple(keep), ranges, accuracy)


def verify(source: Any, inputs: Inputs = None, target: str = "cpu", *,
           against: str | None = None, artifact: str | Path | None = None,
           rtol: float | None = None, bisect: bool = False,
           shapes: Mapping[str, Sequence[int | str]] | None = None,
           dims: Mapping[str, int] | None = None, optimize: int = 2, exact: bool = False,
           precision: str = "f32", passes: str | None = None, threads: int | None = None,
           seed: int = 0, progress: Progress = _silent) -> dict[str, Any]:
    """Compares a compiled model with a reference, output by output.

    against: "ort", "interpreter" or "data" (outputs in the npz given as input); None is ONNX
    Runtime where it is installed. artifact: a compiled model in place of compiling `source`; every
    byte of it is checked first.
    rtol: largest error allowed, relative to the reference's largest value; None goes by type, and
    by `precision`.
    bisect: also find the first kernel that differs. Returns what `smelt verify --json` prints:
    "passed", "against", "outputs" with the errors of each, and "bisect".
    """
    from .bisection import find
    from .running import open_artifact_at, open_runnable
    from .verification import TOLERANCE, compare_all, reference_named

    request = Request(source, target, shapes=shapes, dims=None if artifact else dims,
                      optimize=optimize, exact=exact, precision=precision, passes=passes)
    if rtol is None and precision != "f32":
        rtol = TOLERANCE[precision.removesuffix("-storage")]
    if artifact is not None:
        ready = open_artifact_at(Path(artifact), threads, verify=True)
    else:
        ready = open_runnable(source, request, threads, progress)
    arrays = _given(inputs, ready, dims, seed)
    progress("running the compiled model", 0, 2)
    actual = ready.run(arrays)
    progress("running the reference", 1, 2)
    if against == "data":
        expected: Mapping[str, np.ndarray] = _stored(inputs, ready)
    else:
        against, reference = reference_named(against, request)
        expected = reference(arrays)
    differences = compare_all(expected, actual, rtol)
    result: dict[str, Any] = {
        "against": against, "passed": all(d.passed for d in differences), "seed": seed,
        "outputs": [d.as_dict() for d in differences]}
    if bisect and not result["passed"]:
        found = find(request, arrays, rtol, progress)
        result["bisect"] = None if found is None else {
            "where": found.where, "place": found.place, "origin": found.origin,
            "operators": list(found.operators), "before": found.before,
            "reason": found.difference.reason, "sentence": found.sentence}
    return result


def bench(source: str | Path, inputs: Inputs = None, target: str = "cpu", *,
          against: Sequence[str] | None = None, model: str | Path | None = None,
          shapes: Mapping[str, Sequence[int | str]] | None = None,
          dims: Mapping[str, int] | None = None, threads: int = 1, seconds: float = 2.0,
          optimize: int = 2, precision: str = "f32", profile: bool = False, seed: int = 0,
          tuning: str | Path | None = None, progress: Progress = _silent) -> dict[str, Any]:
    """Times a model next to other engines, each in a process of its own, in turns.

    source: the path of a model or a compiled model. against: names of engines ("ort",
    "openvino", "torch"); None is ONNX Runtime where it is installed. model: what the others run,
    when `source` is compiled. profile: time every kernel too. tuning: a file of records of measured
    plans, as of `compile`. Returns what `smelt bench --json`
    prints: "engines" with seconds per run, "ratios" to the first, "machine", "kernels".
    """
    from importlib.util import find_spec

    from . import measure
    from .kernel_times import profile_kernels
    from .running import is_artifact, open_runnable
    from .tuning import read_records
    from .verification import compare_all

    source, compiled = Path(source), is_artifact(Path(source))
    request = Request(source, target, shapes=shapes, dims=dims, optimize=optimize,
                      precision=precision,
                      records=None if tuning is None else read_records(Path(tuning)))
    given = (Path(model) if model else None) if compiled else source
    others = list(against) if against is not None else (
        ["ort"] if find_spec("onnxruntime") and given else [])
    if others and given is None:
        raise UsageError(f"{measure.NAMES[others[0]]} needs the model itself: add --model FILE")
    if "torch" in others and given is not None and given.suffix != ".pt2":
        raise UsageError("PyTorch runs .pt2 files of torch.export.save: give one as the model")
    ready = open_runnable(source, request, threads, progress)
    arrays = _given(inputs, ready, dims, seed)
    ready.module.close()
    with measure.engine_files(others, given) as engines:
        timings, failures, outputs = measure.measure(
            {"smelt": str(ready.path), **engines}, arrays, threads=threads, seconds=seconds,
            progress=progress, dims={} if compiled else dims)
    if not timings or timings[0].engine != "smelt":
        raise ModelError(failures.get("smelt", "nothing was measured"))
    ratios = measure.ratios(timings)
    ours = outputs["smelt"]
    result: dict[str, Any] = {
        "machine": measure.machine(), "threads": threads,
        "inputs": {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in arrays.items()},
        "engines": [t.as_dict() for t in timings], "ratios": ratios,
        "differences": {e: max((d.relative for d in compare_all(o, ours)), default=0.0)
                        for e, o in outputs.items() if e in ratios and set(o) == set(ours)},
        "failures": failures}
    if profile:
        if compiled:
            raise UsageError("a compiled model has no clocks in it: profile the model itself")
        result["kernels"] = profile_kernels(request, arrays, threads=threads, seconds=seconds,
                                            progress=progress)
    return result


def inspect(source: Any, target: str | None = None, *,
            shapes: Mapping[str, Sequence[int | str]] | None = None,
            dims: Mapping[str, int] | None = None, profile: bool = False,
            precision: str = "f32", passes: str | None = None,
            progress: Progress = _silent) -> dict[str, Any]:
    """What is inside a model, or a compiled model.

    Of a model: signature, operators, parameters; with a `target` it is compiled, and what came of
    it is added: "kernels", "arena", "nodes" and "edges" of the fused graph, "storages". dims:
    numbers for open sizes, without which amounts are texts. profile: run it, and give each kernel
    its share of the time. `smelt.report_html.page` draws the result.
    """
    from .inspect_model import at_sizes, describe_model, open_sizes, read_report
    from .kernel_times import add_profile
    from .running import is_artifact
    from .signature import check_sizes

    dims = dims or {}
    if isinstance(source, (str, Path)) and is_artifact(Path(source)):
        if profile:
            raise UsageError("a compiled model has no clocks in it: profile the model itself, "
                             "with smelt inspect MODEL.onnx --profile")
        raw = read_report(Path(source))
        check_sizes(dims, raw["sizes"])
        return {**at_sizes(raw, dims), "open_sizes": open_sizes(raw, dims)}
    request = Request(source, target or "cpu", shapes=shapes, dims=dims, precision=precision,
                      passes=passes)
    result = describe_model(request.graph(), request.label)
    if target is None and not profile:
        return result
    raw = read_report(compile_to_cache(request, progress=progress).path)
    report = at_sizes(raw, dims)
    if profile:
        report = add_profile(report, request, dims, progress)
    return {**result, **report, "open_sizes": open_sizes(raw, dims)}


def _given(inputs: Inputs, ready: Runnable, dims: Mapping[str, int] | None, seed: int,
           ) -> dict[str, np.ndarray]:
    """All inputs: those given, and random ones."""
    from .data import read_inputs
    from .signature import random_inputs

    if isinstance(inputs, Mapping):
        arrays = dict(inputs)
    else:
        arrays = read_inputs([str(f) for f in inputs or ()], ready.inputs)
    left = [s for s in ready.inputs if s.name not in arrays]
    arrays.update(random_inputs(left, ready.dims(dims or {}), seed, ready.sizes))
    return arrays


def _stored(inputs: Inputs, ready: Runnable) -> dict[str, np.ndarray]:
    """The outputs in npz files of inputs."""
    from .data import expected_outputs

    found: dict[str, np.ndarray] = {}
    if not isinstance(inputs, Mapping):
        for file in map(Path, inputs or ()):
            if file.suffix == ".npz" and file.is_file():
                found.update(expected_outputs(file, ready.outputs))
    if not found:
        raise UsageError("against data: give an npz that holds outputs beside the inputs")
    return found
