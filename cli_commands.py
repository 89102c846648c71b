"""The commands that make and run something, compile, run, opt and targets, and the application that
holds all commands. Every command takes --json (one object on standard output, all else on standard
error) and --debug (tracebacks).

Commands import what they need when they run: `smelt --help` must be quick.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, cli_compare
from .errors import UsageError
from .options import (
    Accuracy,
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
    Target,
    Threads,
)
from .screen import Screen, Stopwatch, duration, printable

app = typer.Typer(
    name="smelt", add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    help="Compiles ONNX models ahead of time into small, self-contained programs.")

def _version(wanted: bool) -> None:
    if wanted:
        print(f"smelt {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def compile(
    model: Model,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", help="A folder, or a file ending in .zip; by default MODEL.smelt "
        "in this folder.")] = None,
    target: Target = "cpu",
    shape: Shapes = None,
    dim: Dims = None,
    fixed: Annotated[list[str] | None, typer.Option(
        "--fixed", metavar="NAME=FILE", help="An input that never changes, from an npy file.")
    ] = None,
    state: Annotated[list[str] | None, typer.Option(
        "--state", metavar="OUT:IN", help="An output that is kept and fed to an input.")] = None,
    threads: Annotated[bool, typer.Option("--threads/--no-threads",
                                          help="Whether the program may use threads; without, it "
                                          "has no locks and no atomics either.")] = True,
    optimize: Optimize = 2,
    exact: Annotated[bool, typer.Option("--exact", help="No approximate algorithm.")] = False,
    precision: Precision = "f32",
    accuracy: Accuracy = None,
    passes: Annotated[str | None, typer.Option("--passes", help="Graph passes in place of the "
                                               "target's own, such as fold,cse,dce.")] = None,
    name: Annotated[str, typer.Option("--name", help="Prefix of the C names.")] = "model",
    option: Annotated[list[str] | None, typer.Option(
        "--option", metavar="KEY=VALUE", help="An option of the target alone, such as "
        "weights=blob of cpu:generic.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="A web page beside the model that shows it: "
                                       "with target webgpu.")] = False,
    clock: Annotated[str | None, typer.Option(
        "--clock", metavar="FREQUENCY", help="The clock of an fpga, such as 200MHz.")] = None,
    target_fps: Annotated[str | None, typer.Option(
        "--target-fps", metavar="RATE", help="Frames per second that an fpga has to take; without, "
        "as many as fit.")] = None,
    quantize: Annotated[str | None, typer.Option("--quantize", metavar="SCHEME", help="Weights of "
                                                 "fewer bits: w8, w4, w3, w2 or ternary; with a8 "
                                                 "behind, activations of 8 bits too. int8: both by "
                                                 "ranges from data, convolutions too.")] = None,
    group: Annotated[int | None, typer.Option("--group", help="Weights that share a scale; 0 for "
                                              "whole columns.")] = None,
    method: Annotated[str | None, typer.Option(
        "--method", metavar="rtn|gptq|awq|descent|outliers|smoothquant", help="How weights are "
        "rounded; gptq by default where there is data, else rtn. outliers: large channels of "
        "activations stay floats (with a8). For int8 rtn or smoothquant.")] = None,
    ranges: Annotated[str | None, typer.Option(
        "--ranges", metavar="mse|minmax|percentile|entropy|nonzero", help="How int8 chooses the "
        "ranges of activations.")] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help="Samples of the "
                                              "inputs, one npz file each.")] = None,
    keep: Annotated[list[str] | None, typer.Option(
        "--keep", metavar="PATTERN", help="Layers that stay at 8 bits, or in floats for int8: a "
        "part of their names, with * and ? for any letters.")] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache",
                                        help="Whether to look in the cache first.")] = True,
    tune: Annotated[bool, typer.Option("--tune", help="Measure on this machine which plans of "
                                       "kernels are quickest; results are kept.")] = False,
    tune_seconds: Annotated[float, typer.Option(
        "--tune-seconds", min=0, help="How long --tune may measure.")] = 60.0,
    tuning: Annotated[Path | None, typer.Option(
        "--tuning", metavar="FILE", help="Records of measured plans to use; with --tune the file "
        "is written.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a model into a folder (or .zip) with everything that is needed to run it."""
    from .api import compression_of
    from .compilation import Request, check_writable, compile_into
    from .inspect_model import read_report, with_model_names
    from .signature import parse_dims, parse_shapes, parse_states
    from .tuning import with_records

    screen = Screen(json)
    if demo and target != "webgpu":
        raise UsageError("--demo: pages are made with --target webgpu")
    output = output or Path(model.name).with_suffix(".smelt")
    request = Request(model, target, shapes=parse_shapes(shape or ()), dims=parse_dims(dim or ()),
                      fixed=_fixed(fixed or ()), threads=threads, optimize=optimize, exact=exact,
                      precision=precision, accuracy=accuracy, passes=passes,
                      states=parse_states(state or ()), name=name,
                      extra=_extra(option or (), clock, target_fps, demo),
                      compression=compression_of(quantize, group, method, data, keep or (),
                                                 ranges, accuracy))
    if tuning is not None and tune:
        check_writable(tuning)
    with screen.progress() as progress:
        request, tuned = with_records(request, tune=tune, seconds=tune_seconds, file=tuning,
                                      progress=progress)
        done = compile_into(request, output, cache=cache, progress=progress)
    if done.note:
        screen.note(printable(done.note, 400))
    report = read_report(output)
    report = with_model_names(report, report["sizes"])
    facts = _size_facts(output, report)
    how = "from the cache, " if done.cached else ""
    screen.say(f"wrote {printable(output, 400)} for {target} ({how}{duration(done.seconds)})")
    if demo:
        screen.say(f"to see it: python -m http.server -b 127.0.0.1 -d {printable(output, 400)}, "
                   f"then open http://127.0.0.1:8000")
    if tuned is not None:
        screen.say(printable(tuned.sentence, 600))
    if "tuning" in report:
        screen.say(_applied(report["tuning"]))
    if "precision" in report:
        screen.say(printable(_accuracy(report["precision"]), 600))
    screen.table(("", "bytes"), [(k, v) for k, v in (
        ("weights", facts["weights"]), ("code", facts.get("code")),
        ("arena", facts.get("arena")), ("stack", facts.get("stack")),
        ("flash", facts.get("flash")), ("RAM", facts.get("ram")),
        ("all files", facts["bytes"])) if v is not None], right=[1])
    compressed = report.get("compression")
    if compressed is not None:
        _show_layers(screen, compressed)
        facts["compression"] = compressed
    screen.result({"artifact": str(output), "target": target, "seconds": done.seconds,
                   "note": done.note, "cached": done.cached, "inputs": report["inputs"],
                   "outputs": report["outputs"], **facts,
                   **({} if tuned is None else {"tuned": tuned.as_dict()}),
                   **{k: report[k] for k in ("tuning", "precision") if k in report}})


def _accuracy(facts: dict[str, Any]) -> str:
    """What bf16 costs, and which products do without it."""
    if facts["cosine"] is None:
        return facts["note"] or "no product takes bf16"
    kept = f"; {len(facts['kept'])} of {facts['products']} products keep more bits, with all in " \
           f"bf16 it were {facts['cosine_all_bf16']:.5f}" if facts["kept"] else ""
    return f"bf16: cosine to f32 {facts['cosine']:.5f} on random inputs{kept}"


def _applied(facts: dict[str, int]) -> str:
    """How far records of measured plans could be used."""
    unknown = facts["unknown"]
    return f"{facts['applied']} decisions come from tuning records" + (
        f", {unknown} records name a plan that this smelt does not have: tune again"
        if unknown else "")


MOST_LAYERS = 24
"""Rows of the table of layers; of more, those with the largest errors."""


def _show_layers(screen: Screen, compressed: dict[str, Any]) -> None:
    layers = compressed["layers"]
    by = next((key for key in ("output_error", "loss") if any(
        layer.get(key) is not None for layer in layers)), "weight_error")
    shown = sorted(layers, key=lambda x: x[by] or 0, reverse=True)[:MOST_LAYERS]
    kept = set(map(id, shown))
    digits = ".6f" if by == "loss" else ".4f"
    rows = [(x["name"], "x".join(map(str, x["shape"])), x["dense"], x["encoded"],
             f"{x['weight_error']:.4f}",
             "" if by == "weight_error" or x[by] is None else f"{x[by]:{digits}}")
            for x in layers if id(x) in kept]
    rows.append(("all" if len(rows) == len(layers) else f"all {len(layers)}", "",
                 compressed["dense"], compressed["encoded"], "", ""))
    last = "lost alone" if by == "loss" else "of its results"
    screen.table(("layer", "weights", "bytes", "quantised", "error", last), rows,
                 title=f"{compressed['scheme']} by {compressed['method']}: "
                       f"{compressed['encoding']}", right=[2, 3, 4, 5])
    if "cosine" in compressed:
        floats = sum(x["encoding"] == "f32" for x in layers)
        screen.say(f"cosine to f32 {compressed['cosine']:.5f} for the data; {floats} of "
                   f"{len(layers)} layers stay f32")


def _size_facts(output: Path, report: dict[str, Any]) -> dict[str, Any]:
    if output.is_dir():
        files = {p.relative_to(output).as_posix(): p.stat().st_size
                 for p in sorted(output.rglob("*")) if p.is_file()}
    else:
        files = {output.name: output.stat().st_size}
    facts = {key: report[key] for key in ("weights", "code", "arena", "flash", "stack", "ram")
             if key in report}
    work = [k["flops"] * k["launches"] for k in report["kernels"] if isinstance(k["flops"], int)]
    return {**facts, "kernels": len(report["kernels"]), "flops": sum(work),
            "bytes": sum(files.values()), "files": files}


def _extra(texts: Iterable[str], clock: str | None, target_fps: str | None,
           demo: bool) -> dict[str, str]:
    """The options that one target alone knows."""
    named = {"clock": clock, "target-fps": target_fps, "demo": "true" if demo else None}
    return _options(texts) | {k: v for k, v in named.items() if v is not None}


def _options(texts: Iterable[str]) -> dict[str, str]:
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {text!r}: write a key and a value, such as weights=blob")
        options[key] = value
    return options


def _fixed(texts: Iterable[str]) -> dict[str, Any]:
    import numpy as np

    arrays = {}
    for text in texts:
        name, equals, path = text.rpartition("=")
        if not equals or not name:
            raise UsageError(f"--fixed {text!r}: write an input's name and an npy file")
        try:
            arrays[name] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"--fixed {text!r}: the file cannot be read ({error})") from None
    return arrays


@app.command()
def run(
    model: Either,
    files: Annotated[list[str] | None, typer.Argument(
        metavar="[INPUT]...", help="Input files, as with --input.")] = None,
    input: Inputs = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file for the outputs, "
                                                "ending in .npz.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Random values for inputs that are not "
                                         "given.")] = False,
    target: Target = "cpu",
    precision: Precision = "f32",
    shape: Shapes = None,
    dim: Dims = None,
    scale: Annotated[float | None, typer.Option("--scale", help="Pictures: factor of the pixels "
                                                "(1/255 for float inputs).")] = None,
    mean: Annotated[str, typer.Option("--mean", help="Pictures: subtracted after scaling; one "
                                      "number or one per channel.")] = "0",
    std: Annotated[str, typer.Option("--std", help="Pictures: divided by at last.")] = "1",
    layout: Annotated[str | None, typer.Option("--layout", help="Pictures: NCHW or NHWC.")] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="Pictures: blue first.")] = False,
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a model once on inputs from files, and say what came out."""
    from . import data
    from .compilation import Request, check_writable
    from .running import open_runnable
    from .signature import parse_dims, parse_shapes, random_inputs

    screen = Screen(json)
    how = data.Picture(scale, data.join_floats(mean, "--mean"), data.join_floats(std, "--std"),
                       layout, bgr)
    if output is not None:
        if output.suffix != ".npz":
            raise UsageError(f"--output {str(output)!r}: outputs are written as npz, so the name "
                             f"must end in .npz")
        check_writable(output)
    sizes = parse_dims(dim or ())
    request = Request(model, target, shapes=parse_shapes(shape or ()), dims=sizes,
                      precision=precision)
    with screen.progress() as progress:
        ready = open_runnable(model, request, threads, progress)
    arrays = data.read_inputs([*(files or ()), *(input or ())], ready.inputs, how)
    if random:
        left = [s for s in ready.inputs if s.name not in arrays]
        arrays.update(random_inputs(left, ready.dims(sizes), seed, ready.sizes))
    watch = Stopwatch()
    outputs = ready.run(arrays)
    seconds = watch.seconds
    if output is not None:
        data.write_npz(output, outputs)
    summaries = [data.summary(n, a) for n, a in outputs.items()]
    screen.table(("output", "type", "shape", "min", "mean", "max", "largest"), [
        (s["name"], s["dtype"], "x".join(map(str, s["shape"])) or "scalar",
         *(f"{s[k]:.5g}" if k in s else "" for k in ("min", "mean", "max")),
         " ".join(f"{i}:{v:.4g}" for i, v in s.get("top", ())) or _not_finite(s))
        for s in summaries], right=(3, 4, 5))
    if output is not None:
        screen.say(f"wrote {printable(output, 400)}")
    screen.result({"outputs": summaries, "seconds": seconds,
                   "written": None if output is None else str(output)})


def _not_finite(facts: dict[str, Any]) -> str:
    bad = facts.get("not_finite")
    return f"{bad} NaN or infinite" if bad else ""


@app.command()
def opt(
    file: Annotated[Path, typer.Argument(help="The text form of a graph, or an ONNX model.")],
    passes: Annotated[str, typer.Option("--passes", "-p", help="Such as fold,cse,fuse{max_nodes="
                                        "8}; none prints the graph as it is.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the text; "
                                                "by default standard output.")] = None,
    elide: Annotated[int | None, typer.Option(
        "--elide", min=0, help="Leave out constants of more elements; such text does not parse "
        "back. By default 16 on a terminal, else none.")] = None,
    notes: Annotated[bool, typer.Option("--notes", help="Say what each pass decided, and why, on "
                                        "standard error.")] = False,
    shape: Shapes = None,
    dim: Dims = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run graph passes and print the text form of the result."""
    from . import data
    from .optimise import run_passes
    from .signature import parse_dims, parse_shapes

    screen = Screen(json)
    if elide is None and output is None and not json and sys.stdout.isatty():
        elide = 16
    text, reports = run_passes(file, passes, parse_shapes(shape or ()), parse_dims(dim or ()),
                               elide)
    for report in reports if notes else ():
        screen.note(f"{report.name}: {'changed' if report.modified else 'no change'}, "
                    f"{duration(report.seconds)}")
        for line in report.notes:
            screen.note(f"  {printable(line, 2000)}")
    if output is not None:
        data.write_text(output, text)
    elif not json:
        screen.say(text.removesuffix("\n"))
    screen.result({"text": text, "passes": [
        {"name": r.name, "modified": r.modified, "seconds": r.seconds, "notes": r.notes}
        for r in reports]})


@app.command()
def targets(json: Json = False, debug: Debug = False) -> None:
    """List what models can be compiled for, and the tools found for it."""
    from .target_table import target_rows

    screen = Screen(json)
    rows = target_rows()
    screen.table(("target", "state", "what", "toolchain"),
                 [(r["name"], r["state"], r["what"], r["toolchain"]) for r in rows])
    screen.result({"targets": rows})


for _command in (cli_compare.bench, cli_compare.verify, cli_compare.inspect):
    app.command()(_command)
