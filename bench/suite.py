"""The benchmark suite: smelt next to its peers on the zoo's models and those of SMELT_MODELS. Each
engine runs in a process of its own, in turns; an engine whose outputs are wrong is not timed.

    python bench/suite.py [--against ort,openvino,openvino-bf16,torch-compile,tvm,iree]
                          [--threads 1,2] [--seconds 2] [--only resnet18,mnist8] [--zoo FOLDER]
                          [--json out.json] [--markdown out.md] [--plot out.svg]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
import zoo as model_zoo
from engines import ENGINES
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from suite_report import best_peer, markdown, plot, precision_of, scaling, summary

from smelt import config, data
from smelt.compilation import PRECISIONS, Request, compile_to_cache
from smelt.errors import SmeltError
from smelt.inspect_model import read_report
from smelt.measure import PROGRAM, SPARE_CORES, machine, measure, ratios

PEERS = [name for name in ENGINES if name not in ("smelt", "torch")]
TOLERANCE = {"f32": 1e-3, "int8": 0.1, "bf16": 0.3}
"""Largest error over the largest value; wrong results are off by about 1. bf16 has 8 bits, which
random weights make worse from layer to layer (0.14 in OpenVINO's mobilenet_v2); 8-bit models round
differently where a value falls between two steps."""
QUANTISED = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger",
             "ConvInteger")


@dataclass
class Model:
    """A model's file, inputs by name and expected outputs in order; `zoo` is its name there."""

    name: str
    path: Path
    inputs: dict[str, np.ndarray]
    expected: list[np.ndarray]
    zoo: str = ""

    @property
    def tolerance(self) -> float:
        graph = onnx.load(self.path, load_external_data=False).graph
        is_quantised = any(n.op_type in QUANTISED for n in graph.node)
        return TOLERANCE["int8" if is_quantised else "f32"]


def read_model(name: str, path: Path, arrays: Path, zoo: str = "") -> Model:
    with np.load(arrays) as held:
        return Model(name, path, {k[3:]: held[k] for k in held.files if k.startswith("in_")},
                     [held[k] for k in held.files if k.startswith("out_")], zoo)


def real_models(chosen: Sequence[str]) -> list[Model]:
    """The models of SMELT_MODELS; all when none is chosen."""
    folder = config.models_dir()
    if folder is None or not (folder / "data").is_dir():
        return []
    return [read_model(p.stem, p, folder / "data" / f"{p.stem}.npz")
            for p in sorted(folder.glob("*.onnx"))
            if (folder / "data" / f"{p.stem}.npz").exists() and (not chosen or p.stem in chosen)]


def unknown(names: Sequence[str]) -> str:
    """Why there are no models of these names."""
    folder = config.models_dir()
    if folder is None:
        return (f"{', '.join(names)}: not in the zoo, and SMELT_MODELS, the folder of other "
                "models, is not set")
    return f"there is no model {', '.join(names)} in the zoo or in {folder} (SMELT_MODELS)"


def zoo_models(folder: Path, chosen: Sequence[str], notes: list[str]) -> list[Model]:
    """The zoo's models, exported where they are not in the folder yet."""
    names = [n for n in model_zoo.MODELS if not chosen or n in chosen]
    if not names:
        return []
    try:
        found = model_zoo.export_all(folder, names)
    except ImportError as error:
        notes.append(f"the zoo: {error.name} is not installed (pip install 'smelt[zoo]')")
        return []
    return [read_model(name, path, folder / f"{name}.npz", name) for name, path, _ in found]


def error_of(expected: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    """The largest error of an output over the largest value of it; infinite when shapes differ."""
    worst = 0.0 if len(expected) == len(outputs) else np.inf
    for want, got in zip(expected, outputs):
        if want.shape != got.shape:
            return float("inf")
        if want.size:
            far = np.abs(want.astype(np.float64) - got.astype(np.float64)).max()
            error = float(far / max(1e-30, float(np.abs(want).max())))
            worst = max(worst, error if np.isfinite(error) else np.inf)
    return float(worst)


# Running -----------------------------------------------------------------------------------------


class Suite:
    """What all models are run with. `folder` holds compiled files until the end."""

    def __init__(self, peers: Sequence[str], threads: Sequence[int], seconds: float,
                 precision: str, folder: Path, show: Any):
        self.peers, self.threads, self.seconds = list(peers), list(threads), seconds
        self.precision, self.folder, self.show = precision, folder, show
        (folder / "compiled").mkdir()
        self.programs = {p: PROGRAM if p == "smelt" else
                         (sys.executable, str(Path(__file__).parent / "engines.py"))
                         for p in ("smelt", *peers)}

    def run(self, model: Model) -> dict[str, Any]:
        """Compiles the model, into an empty cache, and times the engines on it."""
        row = self.compiled(model)
        artifact = row.pop("path")
        for threads in self.threads:
            row["threads"][str(threads)] = self.timed(model, artifact, threads)
        return {**row, "scaling": scaling(row["threads"])}

    def compiled(self, model: Model) -> dict[str, Any]:
        """smelt's build: seconds without and with the cache, and sizes in bytes."""
        request = Request(model.path, precision=self.precision)
        cold = compile_to_cache(request, progress=self.show)
        cached = compile_to_cache(Request(model.path, precision=self.precision))
        if cold.cached or not cached.cached:
            raise SmeltError("the cache was not empty, or did not keep the model")
        report = read_report(cold.path)
        held = sum(p.stat().st_size for p in cold.path.rglob("*") if p.is_file())
        return {"path": cold.path, "compile": {"cold": cold.seconds, "cached": cached.seconds},
                "code": report.get("code"), "weights": report["weights"], "artifact": held,
                "threads": {}}

    def timed(self, model: Model, artifact: Path, threads: int) -> dict[str, Any]:
        peers = [p for p in self.peers if model.zoo or p != "torch-compile"]
        errors: dict[str, float] = {}
        usual = model.tolerance

        def check(engine: str, outputs: Any) -> str:
            errors[engine] = error_of(model.expected, list(outputs.values()))
            kind = self.precision if engine == "smelt" else precision_of(engine)
            allowed = max(usual, TOLERANCE[kind])
            return "" if errors[engine] <= allowed else (
                f"its outputs are off by {errors[engine]:.1e}, {allowed:.0e} is allowed")

        timings, failures, _ = measure(
            {"smelt": str(artifact), **{p: str(model.path) for p in peers}}, model.inputs,
            threads=threads, seconds=self.seconds, progress=self.show, check=check,
            programs=self.programs,
            settings={"zoo": model.zoo, "compiled": str(self.folder / "compiled")})
        held = bool(timings) and timings[0].engine == "smelt"
        limited = [t for t in timings if t.is_limited or t.engine == "smelt"]
        found = ratios(limited) if held else {}
        best = best_peer(found, self.precision)
        return {"engines": [{**t.as_dict(), "error": errors[t.engine]} for t in timings],
                "failures": failures, "ratios": found,
                "best": {"peer": best[0], "ratio": best[1]} if best else None}


@contextmanager
def empty_cache(folder: Path) -> Iterator[None]:
    """Compiles into a cache of this run, so that times to compile are of compiling."""
    kept = {name: os.environ.get(name) for name in ("SMELT_CACHE", "TORCHINDUCTOR_CACHE_DIR")}
    os.environ.update(SMELT_CACHE=str(folder / "smelt"),
                      TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"))
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def numbers(text: str) -> list[int]:
    """Numbers of threads from "1,2"."""
    if not all(part.isdigit() and int(part) for part in text.split(",")):
        raise typer.BadParameter(f"--threads {text!r}: write numbers, such as 1,2")
    return [int(part) for part in text.split(",")]


def main(
    against: Annotated[str, typer.Option(help="Peers, separated by commas, of "
                                         + ", ".join(PEERS))] = "ort",
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1",
    seconds: Annotated[float, typer.Option(min=0.05, help="For each engine and model.")] = 2.0,
    precision: Annotated[str, typer.Option(help="What smelt computes in: " + ", ".join(PRECISIONS)
                                           )] = "f32",
    only: Annotated[str, typer.Option(help="Names of models; all when empty.")] = "",
    zoo: Annotated[Path | None, typer.Option(
        help="Where the zoo's models are, or are exported to; by default zoo in smelt's cache."
        )] = None,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="A PNG or SVG file.")] = None,
) -> None:
    """Runs the suite and prints Markdown tables."""
    peers = list(dict.fromkeys(n for n in against.split(",") if n))
    for peer in peers:
        if peer not in PEERS:
            raise typer.BadParameter(f"--against {peer!r}: use {', '.join(PEERS)}")
    if precision not in PRECISIONS:
        raise typer.BadParameter(f"--precision {precision!r}: smelt has {', '.join(PRECISIONS)}")
    counts, chosen = numbers(threads), [n for n in only.split(",") if n]
    console = Console(stderr=True)
    report: dict[str, Any] = {
        "machine": machine(), "started": time.strftime("%Y-%m-%dT%H:%M:%S"), "threads": counts,
        "peers": peers, "precision": precision, "seconds": seconds, "models": {},
        "spare_cores": SPARE_CORES, "notes": []}
    models = [*zoo_models(zoo or config.cache_dir() / "zoo", chosen, report["notes"]),
              *real_models(chosen)]
    known = {m.name for m in models}
    missing = [n for n in chosen if n not in known]
    if missing and not report["notes"]:
        raise typer.BadParameter(f"--only: {unknown(missing)}")

    def save() -> None:
        report.update(summary(report))
        if json_file is not None:
            data.write_text(json_file, json.dumps(report, indent=1) + "\n")

    bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(),
                   TextColumn("{task.completed:.0f}/{task.total:.0f}"), TimeElapsedColumn(),
                   console=console)
    with tempfile.TemporaryDirectory(prefix="smelt-bench-") as name, bar, \
            empty_cache(Path(name)):
        folder = Path(name)
        whole = bar.add_task("models", total=len(models))
        inner = bar.add_task("", total=1)

        def show(what: str, done: int, total: int) -> None:
            bar.update(inner, description=what[:40], completed=done, total=max(total, 1))

        suite = Suite(peers, counts, seconds, precision, folder, show)
        for model in models:
            bar.update(whole, description=model.name)
            try:
                report["models"][model.name] = suite.run(model)
            except Exception as error:  # whatever it is, the other models' times are wanted
                report["models"][model.name] = {"error": f"{type(error).__name__}: {error}"}
            bar.advance(whole)
            save()
    save()
    tables = markdown(report)
    if markdown_file is not None:
        data.write_text(markdown_file, tables)
    if plot_file is not None:
        plot(report, plot_file)
    print(tables)


if __name__ == "__main__":
    typer.run(main)
