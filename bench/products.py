"""f32 matrix products beside the machine's peak.

    python bench/products.py [--sizes 768,197x384x1536] [--against ort,openvino] [--precision bf16]
                            [--json out.json]

The clock of a processor sinks with the load of its vector units and with that of its neighbours.
So every run of a product is paired with as many multiply-adds in registers right before it, in the
same process, and the share of the peak is the median over pairs. Engines have processes of their
own, in turns, and their results are checked.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from engines import ENGINES, PRECISIONS
from onnx import TensorProto, helper, numpy_helper
from rich.progress import track
from suite_report import table

from smelt import data
from smelt.compilation import Request, compile_to_cache
from smelt.measure import NAMES, machine
from smelt.roofline import peak_work

PEERS = ("ort", "openvino", "openvino-bf16", "tvm", "iree")
TURNS = 6
WARM_UP = 3
TOLERANCE = {"f32": 1e-5, "bf16": 2e-2}
"""Largest error over the largest value of a product."""


def product_model(m: int, k: int, n: int, folder: Path) -> Path:
    """x @ w for a constant w, m x k times k x n."""
    w = np.random.default_rng(k).standard_normal((k, n), np.float32)
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "product",
        [helper.make_tensor_value_info("x", kind, [m, k])],
        [helper.make_tensor_value_info("y", kind, [m, n])], [numpy_helper.from_array(w, "w")])
    path = folder / f"product{m}x{k}x{n}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
              path)
    x = np.random.default_rng(m).standard_normal((m, k), np.float32)
    np.savez(path.with_suffix(".npz"), x=x)
    return path


def pairs(engine: str, model: Path, path: str, seconds: float, folder: str) -> dict[str, Any]:
    """Runs of the engine with the peak's seconds before each, and the largest error."""
    with np.load(model.with_suffix(".npz")) as held:
        x = held["x"]
    (w,) = (numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer)
    settings: dict[str, Any] = {"path": path, "threads": 1, "dims": {}, "zoo": "",
                                "compiled": folder}
    chosen = ENGINES[engine]
    if chosen.compile is not None:
        settings |= chosen.compile(settings, {"x": x})
    _, run = chosen.load(settings, {"x": x})
    want = x.astype(np.float64) @ w
    (found,) = run().values()
    error = float(np.abs(found - want).max() / np.abs(want).max())
    peak, clock, found = peak_work(2 * x.size * w.shape[1]), time.perf_counter, []
    end = clock() + seconds
    while len(found) < WARM_UP + 2 or clock() < end:
        start = clock()
        peak()
        middle = clock()
        run()
        found.append((middle - start, clock() - middle))
    return {"error": error, "pairs": found[WARM_UP:]}


def summary(flops: int, taken: list[tuple[float, float]]) -> dict[str, float]:
    """Rates in flop/s, and the share of the peak with its quartiles."""
    shares = [peak / own for peak, own in taken]
    low, middle, high = statistics.quantiles(shares, n=4)
    return {"flops": flops / statistics.median(own for _, own in taken),
            "peak": flops / statistics.median(peak for peak, _ in taken),
            "of_peak": middle, "quartiles": [low, high], "pairs": len(taken)}


def cell(row: dict[str, Any]) -> str:
    rates = row.get("failed") or f"{row['flops'] / 1e9:.0f} of {row['peak'] / 1e9:.0f}"
    return rates if "failed" in row else f"{100 * row['of_peak']:.0f} % ({rates})"


def markdown(report: dict[str, Any]) -> str:
    engines = list(dict.fromkeys(e for row in report["products"].values() for e in row))
    rows = [(name, *(cell(row[e]) for e in engines)) for name, row in report["products"].items()]
    return "\n".join([f"{report['machine'].get('cpu')}, one thread: share of the peak, median of "
                      "pairs (median rates in GFLOP/s).", "",
                      *table(("product", *(NAMES[e] for e in engines)), rows)])


def turn(engine: str, model: Path, path: str, seconds: float, folder: str, tolerance: float,
         ) -> tuple[list[tuple[float, float]], str]:
    """Pairs of one process, and why there are none."""
    run = subprocess.run(
        [sys.executable, __file__, "--worker",
         json.dumps([engine, str(model), path, seconds, folder])], capture_output=True, text=True)
    if run.returncode:
        return [], (run.stderr.splitlines() or ["it failed"])[-1][:90]
    answer = json.loads(run.stdout.splitlines()[-1])
    if not answer["error"] <= tolerance:
        return [], f"off by {answer['error']:.0e}"
    return answer["pairs"], ""


def measured(sizes: list[tuple[int, int, int]], engines: list[str], seconds: float,
             precision: str) -> dict[str, Any]:
    """All engines on all products, turn by turn."""
    products: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="smelt-bench-") as name:
        for m, k, n in sizes:
            model = product_model(m, k, n, Path(name))
            paths = dict.fromkeys(engines, str(model))
            paths["smelt"] = str(compile_to_cache(
                Request(model, precision=precision)).path)
            taken: dict[str, list[tuple[float, float]]] = {e: [] for e in engines}
            row = products[f"{m} x {k} x {n}"] = {}
            for _ in track(range(TURNS), f"{m} x {k} x {n}", transient=True):
                for engine in engines:
                    if engine in row:
                        continue
                    kind = precision if engine == "smelt" else PRECISIONS.get(engine, "f32")
                    found, why = turn(engine, model, paths[engine], seconds / TURNS, name,
                                      TOLERANCE[kind])
                    taken[engine] += found
                    if why:
                        row[engine] = {"failed": why}
            for engine in engines:
                row.setdefault(engine, summary(2 * m * k * n, taken[engine]))
    return {"machine": machine(), "seconds": seconds, "products": products}


def main(
    sizes: Annotated[str, typer.Option(help="MxKxN, or one number for a cube; by commas.")]
    = "256,512,768,1024",
    against: Annotated[str, typer.Option(help="Of " + ", ".join(PEERS))] = "ort,openvino",
    seconds: Annotated[float, typer.Option(min=0.05, help="For each engine and product.")] = 3.0,
    precision: Annotated[str, typer.Option(help="What smelt computes in.")] = "f32",
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measures and prints a Markdown table."""
    if worker:
        engine, model, path, span, folder = json.loads(worker)
        print(json.dumps(pairs(engine, Path(model), path, span, folder)))
        return
    engines = ["smelt", *(e for e in against.split(",") if e)]
    if unknown := [e for e in engines if e not in ("smelt", *PEERS)]:
        raise typer.BadParameter(f"--against {unknown[0]}: use {', '.join(PEERS)}")
    cubes = []
    for text in sizes.split(","):
        parts = text.split("x")
        if len(parts) not in (1, 3) or not all(p.isdigit() and int(p) > 0 for p in parts):
            raise typer.BadParameter(f"--sizes {text!r}: write 768, or 197x384x1536")
        m, k, n = map(int, parts * (3 if len(parts) == 1 else 1))
        cubes.append((m, k, n))
    report = measured(cubes, engines, seconds, precision)
    if json_file is not None:
        data.write_text(json_file, json.dumps(report, indent=1) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    typer.run(main)
