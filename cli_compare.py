"""The commands that look at a model from outside: bench, verify, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UsageError, VerifyError
from .options import (
    Debug,
    Dims,
    Either,
    Inputs,
    Json,
    Model,
    Optimize,
    Precision,
    Seed,
    Shapes,
    Sort,
    Target,
    Threads,
)
from .screen import Screen, amount, count, duration, printable

REFERENCES = ("ort", "interpreter", "data")
"""What `verify` compares with."""


def bench(
    model: Either,
    against: Annotated[str | None, typer.Option(
        "--against", metavar="ort,openvino,torch", help="Engines to time next to it; by default "
        "ONNX Runtime where it is installed. Empty for none.")] = None,
    source: Annotated[Path | None, typer.Option(
        "--model", metavar="FILE", help="The model that other engines run, when MODEL is a "
        "compiled one.")] = None,
    input: Inputs = None,
    target: Target = "cpu",
    shape: Shapes = None,
    dim: Dims = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of every engine.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Of measuring, for each "
                                           "engine.")] = 2.0,
    optimize: Optimize = 2,
    precision: Precision = "f32",
    profile: Annotated[bool, typer.Option("--profile", help="Time every kernel as well, next to "
                                          "what this machine can do.")] = False,
    sort: Sort = "time",
    trace: Annotated[Path | None, typer.Option(
        "--trace", metavar="FILE", help="Write the profile as a trace for chrome://tracing or "
        "Perfetto.")] = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="Instead of the model, time its "
                                          "dearest kernels, next to TVM's code for them.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="How many of them.")] = 5,
    tvm_trials: Annotated[int | None, typer.Option(
        "--tvm-trials", min=0, show_default="16", help="With --kernels: schedules that TVM's "
        "MetaSchedule tries for each; 0 leaves it out. Results are kept.")] = None,
    tuning: Annotated[Path | None, typer.Option(
        "--tuning", metavar="FILE", help="Use these records of measured plans (smelt compile "
        "--tune); with --kernels next to the usual plans.")] = None,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time a model, next to other engines: each in its own process, in turns, medians."""
    from .api import bench as measured
    from .compilation import Request, check_writable
    from .measure import NAMES, parse_against
    from .signature import parse_dims, parse_shapes
    from .tuning import read_records

    screen = Screen(json)
    _check_sort(sort)
    if trace is not None:
        if not profile:
            raise UsageError("--trace writes what --profile measures: add --profile")
        check_writable(trace)
    if tvm_trials is not None and not kernels:
        raise UsageError("--tvm-trials is of the comparison with TVM: add --kernels")
    if kernels:
        if profile or against is not None or threads > 1 or source is not None:
            raise UsageError("--kernels compares kernels with TVM's, on one thread: leave out "
                             "--profile, --against, --model and --threads")
        records = None if tuning is None else read_records(tuning)
        _compare_kernels(screen, Request(model, target, shapes=parse_shapes(shape or ()),
                                         dims=parse_dims(dim or ()), optimize=optimize,
                                         precision=precision, records=records),
                         input, top, seconds, seed, tvm_trials)
        return
    others = None if against is None else parse_against(against)
    with screen.progress() as progress:
        result = measured(model, input, target, against=others, model=source,
                          shapes=parse_shapes(shape or ()), dims=parse_dims(dim or ()),
                          threads=threads, seconds=seconds, optimize=optimize,
                          precision=precision, profile=profile, seed=seed, tuning=tuning,
                          progress=progress)
    screen.say(f"{result['machine']['cpu']}, {threads} thread{'s' if threads > 1 else ''}; inputs "
               + ", ".join(f"{printable(n, 30)} {_shape(a)}" for n, a in result["inputs"].items()))
    ratios, apart = result["ratios"], result["differences"]
    screen.table(("engine", "version", "median", "fastest", "times smelt", "peak memory",
                  "differs by"), [
        (NAMES[e["engine"]], e["version"], duration(e["seconds"]), duration(e["fastest"]),
         f"{ratios[e['engine']]:.2f}x" if e["engine"] in ratios else "", amount(e["peak_memory"]),
         f"{apart[e['engine']]:.1e}" if e["engine"] in apart else "") for e in result["engines"]],
        right=(2, 3, 4, 5, 6))
    for engine, why in result["failures"].items():
        screen.note(f"{NAMES[engine]} was not timed: {printable(why, 300)}")
    if "kernels" in result:
        from .roofline import roofline

        result["limits"] = roofline(threads).as_dict()
        _kernel_table(screen, result["kernels"], sort)
        _show_limits(screen, result["limits"])
    if trace is not None:
        from .chrome_trace import write_trace

        write_trace(trace, result["kernels"], model.name)
        screen.say(f"wrote {printable(trace, 400)}")
        result["trace"] = str(trace)
    screen.result(result)


def _compare_kernels(screen: Screen, request: Any, given: list[str] | None, top: int,
                     seconds: float, seed: int, trials: int | None) -> None:
    """`smelt bench --kernels`."""
    from .kernel_peers import TRIALS, WAYS, compare_kernels
    from .running import is_artifact

    if is_artifact(request.source):
        raise UsageError("a compiled model does not tell its operators: give the model itself")
    trials = TRIALS if trials is None else trials
    with screen.progress() as progress:
        found = compare_kernels(request, given, top=top, seconds=seconds, seed=seed,
                                trials=trials, progress=progress)
    heads = {"smelt": "smelt", "tuned": "tuned", "scheduled": "our schedule, TVM",
             "plain": "no schedule, TVM", "metaschedule": "MetaSchedule, TVM"}
    left_out = {"tuned": request.records is None, "metaschedule": trials == 0}
    ways = [w for w in WAYS if not left_out.get(w)]
    screen.table(("kernel", "share", *(heads[w] for w in ways), "from"), [
        (k["name"] + (f" +{k['kernels'] - 1}" if k["kernels"] > 1 else ""), f"{k['share']:.1%}",
         *("" if k[w] is None else duration(k[w]) + (
             f" {k[w] / k['smelt']:.2f}x" if w != "smelt" else "") for w in ways),
         printable(k["origin"], 70)) for k in found], right=range(1, 2 + len(ways)))
    for k in found:
        for way, why in k["notes"].items():
            screen.note(f"{k['name']}, {way}: {printable(why, 300)}")
    screen.result({"kernels": found})


def _shape(facts: dict[str, Any]) -> str:
    return "x".join(map(str, facts["shape"])) or "scalar"


def _check_sort(by: str) -> None:
    from .roofline import SORTS

    if by not in SORTS:
        raise UsageError(f"--sort {by!r}: use {', '.join(SORTS)}")


def _kernel_table(screen: Screen, kernels: list[dict[str, Any]], by: str) -> None:
    from .roofline import in_order
    from .signature import size_text

    timed = any("seconds" in k for k in kernels)
    heads = ("kernel", *(("share", "time", "limit", "of limit", "lost") if timed else ()), "FLOP",
             *(("GFLOP/s",) if timed else ()), "bytes", "from")
    screen.table(heads, [
        (k["name"], *(_times(k) if timed else ()),
         count(k["flops"]) if isinstance(k["flops"], int) else size_text(k["flops"]),
         *((_rate(k),) if timed else ()),
         amount(k["bytes"]) if isinstance(k["bytes"], int) else size_text(k["bytes"]),
         printable(k["origin"], 70)) for k in in_order(kernels, by)],
        right=range(1, len(heads) - 1))


def _times(kernel: dict[str, Any]) -> tuple[str, ...]:
    """Share, time, limit, of limit, lost."""
    near = kernel.get("of_limit")
    return (f"{kernel['share']:.1%}", duration(kernel["seconds"]),
            duration(kernel["limit"]) if "limit" in kernel else "",
            "" if near is None else f"{near:.0%}",
            duration(kernel["lost"]) if "lost" in kernel else "")


def _show_limits(screen: Screen, limits: dict[str, Any]) -> None:
    """What the limits of kernels are from."""
    screen.say(f"limits: {limits['flops'] / 1e9:.0f} GFLOP/s in f32; " + ", ".join(
        f"{rate / 1e9:.0f} GB/s over {amount(size)}" for size, rate in limits["bandwidths"])
        + "; measured once for this processor")


def _rate(kernel: dict[str, Any]) -> str:
    if not kernel.get("seconds") or not isinstance(kernel["flops"], int):
        return ""
    return f"{kernel['flops'] * kernel['launches'] / kernel['seconds'] / 1e9:.1f}"


def verify(
    model: Model,
    files: Annotated[list[str] | None, typer.Option(
        "--data", metavar="FILE", help="Inputs, as --input of `smelt run`; by default random "
        "ones.")] = None,
    against: Annotated[str | None, typer.Option(
        "--against", help="ort or interpreter, or data: the outputs in the npz of --data. By "
        "default ONNX Runtime where it is installed.")] = None,
    artifact: Annotated[Path | None, typer.Option(
        "--artifact", help="A compiled model to check in place of compiling MODEL.")] = None,
    rtol: Annotated[float | None, typer.Option(
        "--rtol", help="Tolerance: the largest error over the reference's largest value; by "
        "default 1e-4 for f32, 1e-2 for f16.")] = None,
    bisect: Annotated[bool, typer.Option(
        "--bisect", help="Name the first kernel that differs.")] = False,
    target: Target = "cpu",
    shape: Shapes = None,
    dim: Dims = None,
    optimize: Optimize = 2,
    exact: Annotated[bool, typer.Option("--exact", help="No approximate algorithm.")] = False,
    precision: Precision = "f32",
    passes: Annotated[str | None, typer.Option("--passes", help="Graph passes in place of the "
                                               "target's own.")] = None,
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare a compiled model with a reference, output by output."""
    from .api import verify as verified
    from .running import is_artifact
    from .signature import parse_dims, parse_shapes

    screen = Screen(json)
    if against not in (None, *REFERENCES):
        raise UsageError(f"--against {against!r}: use {', '.join(REFERENCES)}")
    if against != "data" and is_artifact(model):
        raise UsageError(f"{str(model)!r} is a compiled model, and {against or 'the reference'} "
                         f"runs the model it was made from: smelt verify MODEL --artifact "
                         f"{str(model)!r}")
    with screen.progress() as progress:
        result = verified(model, files or None, target, against=against, artifact=artifact,
                          rtol=rtol, bisect=bisect, shapes=parse_shapes(shape or ()),
                          dims=parse_dims(dim or ()), optimize=optimize, exact=exact,
                          precision=precision, passes=passes, threads=threads, seed=seed,
                          progress=progress)
    outputs, name = result["outputs"], result["against"]
    screen.table(("output", "type", "shape", "max abs", "max rel", "cosine", "equal", ""), [
        (d["name"], d["dtype"], _shape(d), f"{d['absolute']:.2e}", f"{d['relative']:.2e}",
         "" if d["cosine"] is None else f"{d['cosine']:.7f}", f"{d['exact']:.2%}",
         "ok" if d["passed"] else d["reason"]) for d in outputs], right=(3, 4, 5, 6))
    if result.get("bisect"):
        screen.say(printable(result["bisect"]["sentence"], 2000))
    elif "bisect" in result:
        screen.say("no single value between kernels differs by itself")
    if not result["passed"]:
        wrong = [d for d in outputs if not d["passed"]]
        error = VerifyError(f"{len(wrong)} of {len(outputs)} outputs differ from {name}, first "
                            f"{wrong[0]['name']!r}: {wrong[0]['reason']}"
                            + ("" if bisect else " (--bisect names the kernel)"))
        error.details = result  # type: ignore[attr-defined]
        raise error
    screen.say(f"all {len(outputs)} outputs agree with {name}")
    screen.result(result)


def inspect(
    model: Either,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with the graph, the "
                                              "fusion groups and the arena drawn.")] = None,
    target: Annotated[str | None, typer.Option(
        "--target", "-t", help="Compile the model for this target and show the result too; cpu "
        "with --html or --profile.")] = None,
    shape: Shapes = None,
    dim: Dims = None,
    profile: Annotated[bool, typer.Option("--profile", help="Run the model and show each kernel's "
                                          "share of the time, and its limit here.")] = False,
    precision: Precision = "f32",
    sort: Sort = "time",
    passes: Annotated[str | None, typer.Option("--passes", help="Graph passes in place of the "
                                               "target's own.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is inside a model or a compiled model."""
    from .api import inspect as inspected
    from .compilation import check_writable
    from .signature import parse_dims, parse_shapes

    screen = Screen(json)
    _check_sort(sort)
    dims = parse_dims(dim or ())
    if html is not None:
        check_writable(html)
    if html or profile:
        target = target or "cpu"
    with screen.progress() as progress:
        result = inspected(model, target, shapes=parse_shapes(shape or ()), dims=dims,
                           profile=profile, precision=precision, passes=passes,
                           progress=progress)
    _show_signature(screen, result)
    if "operators" in result:
        _show_operators(screen, result)
    if "kernels" in result:
        _show_compiled(screen, result, sort)
    if html is not None:
        from . import data
        from .report_html import page

        data.write_text(html, page(result))
        screen.say(f"wrote {printable(html, 400)}")
    hidden = ("nodes", "edges", "storages")
    screen.result({**{k: v for k, v in result.items() if k not in hidden},
                   "html": None if html is None else str(html)})


def _show_signature(screen: Screen, facts: dict[str, Any]) -> None:
    from .signature import shape_text

    screen.say(printable(facts["name"]) + (f", for {facts['target']}" if "target" in facts else ""))
    rows = [(kind[:-1], s["name"], s["dtype"], shape_text(s["shape"]))
            for kind in ("inputs", "outputs") for s in facts[kind]]
    screen.table(("", "name", "type", "shape"), rows)
    if facts["open_sizes"]:
        screen.say("open sizes: " + ", ".join(map(printable, facts["open_sizes"])))


def _show_operators(screen: Screen, facts: dict[str, Any]) -> None:
    screen.say(f"{facts['nodes_total']} operators, {count(facts['parameters'])} parameters in "
               f"{amount(facts['parameter_bytes'])}")
    screen.say("  " + ", ".join(f"{op} {n}" for op, n in facts["operators"].items()))


def _show_compiled(screen: Screen, report: dict[str, Any], by: str) -> None:
    _kernel_table(screen, report["kernels"], by)
    if "limits" in report:
        _show_limits(screen, report["limits"])
    facts = [f"{key} {amount(report[key])}" for key in ("weights", "code", "arena", "flash", "ram")
             if isinstance(report.get(key), int)]
    screen.say(f"{len(report['kernels'])} kernels, {report['steps']} steps; " + ", ".join(facts))
    for note in report.get("notes", ()):
        screen.say(printable(note, 400))
    plan, missing = report.get("arena_plan"), report["open_sizes"]
    if plan:
        total = sum(s["bytes"] for s in plan)
        screen.say(f"{len(plan)} temporaries of {amount(total)} share the arena")
    elif missing:
        screen.say("amounts depend on sizes (--json has the whole formulas): give "
                   + " ".join(f"--dim '{printable(n)}=1'" for n in missing))
