"""The benchmark suite: smelt next to its peers on the models of SMELT_MODELS, and matrix products
next to the machine's measured peak. Each engine runs in a process of its own, in turns.

    python bench/suite.py [--against ort,openvino] [--threads 1] [--seconds 2] [--json out.json]
                          [--markdown out.md] [--only name,name]
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from limits import limits
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import track

from smelt import api, config
from smelt.measure import machine, measure, parse_against, ratios

MATMULS = (256, 512, 768, 1024)


def real_models() -> list[tuple[str, Path, dict[str, np.ndarray]]]:
    """(name, file, inputs) of every model in SMELT_MODELS."""
    folder = config.models_dir()
    if folder is None or not (folder / "data").is_dir():
        return []
    found = []
    for path in sorted(folder.glob("*.onnx")):
        data = folder / "data" / f"{path.stem}.npz"
        if data.exists():
            with np.load(data) as arrays:
                inputs = {k[3:]: arrays[k] for k in arrays.files if k.startswith("in_")}
            found.append((path.stem, path, inputs))
    return found


def matmul_model(n: int, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """x @ w for a constant w, n x n x n."""
    rng = np.random.default_rng(n)
    w = numpy_helper.from_array(rng.standard_normal((n, n), np.float32), "w")
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "matmul",
        [helper.make_tensor_value_info("x", kind, [n, n])],
        [helper.make_tensor_value_info("y", kind, [n, n])], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / f"matmul{n}.onnx"
    onnx.save(model, path)
    return path, {"x": rng.standard_normal((n, n), np.float32)}


def compare(path: Path, inputs: dict[str, np.ndarray], peers: list[str], threads: int,
            seconds: float, folder: Path) -> dict[str, Any]:
    """Times smelt and the peers on one model; ratios are peer / smelt."""
    artifact = folder / f"{path.stem}.smelt"
    api.compile(path, output=artifact, threads=threads)
    engines = {"smelt": str(artifact), **{p: str(path) for p in peers}}
    timings, failures, _ = measure(engines, inputs, threads=threads, seconds=seconds)
    return {"engines": [t.as_dict() for t in timings], "failures": failures,
            "ratios": ratios(timings) if len(timings) > 1 else {}}


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    peers = report["peers"]
    head = ["model", "smelt", *(f"{p}" for p in peers), *(f"{p} / smelt" for p in peers)]
    lines = [f"{report['machine'].get('cpu')}, {report['threads']} thread(s), milliseconds, median "
             "of interleaved rounds", "", "| " + " | ".join(head) + " |",
             "|" + "---|" * len(head)]
    for name, row in report["models"].items():
        times = {e["engine"]: e["seconds"] for e in row["engines"]}
        cells = [name, *(f"{1e3 * times[e]:.3f}" if e in times else "" for e in ("smelt", *peers)),
                 *(f"{row['ratios'][p]:.2f}" if p in row["ratios"] else "" for p in peers)]
        lines.append("| " + " | ".join(cells) + " |")
    means = [f"{report['geomean'][p]:.2f}" for p in peers]
    lines.append("| " + " | ".join(["geometric mean", *[""] * (1 + len(peers)), *means]) + " |")
    if report["matmul"]:
        lines += ["", f"Peak {report['peak_flops'] / 1e9:.1f} GFLOP/s, memory "
                      f"{report['bandwidth'] / 1e9:.1f} GB/s (one thread, measured).", "",
                  "| matmul | GFLOP/s | of peak |", "|---|---|---|"]
        lines += [f"| {n} x {n} x {n} | {r['flops'] / 1e9:.1f} | {100 * r['of_peak']:.0f} % |"
                  for n, r in report["matmul"].items()]
    return "\n".join(lines) + "\n"


def main(
    against: Annotated[str, typer.Option(help="Peers, separated by commas.")] = "ort",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each engine and model.")] = 2.0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown")] = None,
    only: Annotated[str, typer.Option(help="Names of models; all when empty.")] = "",
) -> None:
    """Runs the suite and prints Markdown tables."""
    peers = parse_against(against)
    console = Console(stderr=True)
    chosen = [n for n in only.split(",") if n]
    report: dict[str, Any] = {"machine": machine(), "threads": threads, "peers": peers,
                              "models": {}, "matmul": {}}
    with tempfile.TemporaryDirectory(prefix="smelt-bench-") as name:
        folder = Path(name)
        models = [m for m in real_models() if not chosen or m[0] in chosen]
        for stem, path, inputs in track(models, "models", console=console):
            report["models"][stem] = compare(path, inputs, peers, threads, seconds, folder)
        if not chosen:
            report["peak_flops"], report["bandwidth"] = limits()
            for n in track(MATMULS, "matrix products", console=console):
                path, inputs = matmul_model(n, folder)
                row = compare(path, inputs, peers, threads, seconds, folder)
                rate = 2 * n**3 / row["engines"][0]["fastest"]
                report["matmul"][n] = {"flops": rate,
                                       "of_peak": rate / (report["peak_flops"] * threads), **row}
    report["geomean"] = {p: geomean([r["ratios"][p] for r in report["models"].values()
                                     if p in r["ratios"]]) for p in peers}
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    tables = markdown(report)
    if markdown_file is not None:
        markdown_file.write_text(tables)
    print(tables)


if __name__ == "__main__":
    typer.run(main)
