"""Compiles the digits example, checks its accuracy and times it next to ONNX Runtime.

    python examples/digits/demo.py

Every time is the median of interleaved rounds on one thread: what disturbs the machine for a while
then disturbs both programs.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import smelt

HERE = Path(__file__).parent
MODEL = HERE / "digits.onnx"
ROUNDS = 41
ROUND_SECONDS = 0.005  # calls in a round repeat for about this long, well above the clock's grain

Run = Callable[[np.ndarray], np.ndarray]


def compiled() -> tuple[Run, float]:
    """The model compiled for this CPU, and the seconds that took."""
    start = time.perf_counter()
    model = smelt.compile(MODEL, target="cpu")
    return model, time.perf_counter() - start


def onnx_runtime() -> Run | None:
    """The same model in ONNX Runtime, one thread; None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def microseconds(runs: list[Run], images: np.ndarray) -> list[float]:
    """Median microseconds of one call of each program, measured in turns."""
    repeats = []
    for run in runs:
        run(images)  # the first call may allocate
        start = time.perf_counter()
        run(images)
        repeats.append(max(1, int(ROUND_SECONDS / (time.perf_counter() - start))))
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, count, found in zip(runs, repeats, times, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                run(images)
            found.append((time.perf_counter() - start) / count * 1e6)
    return [statistics.median(found) for found in times]


def main() -> int:
    os.environ["SMELT_NUM_THREADS"] = "1"
    console = Console()
    with np.load(HERE / "digits_test.npz") as data:
        images, labels = data["images"], data["labels"]

    model, seconds = compiled()
    console.print(f"compiled {MODEL.name} for this CPU in {seconds:.2f} s")
    programs: dict[str, Run] = {"smelt": model}
    peer = onnx_runtime()
    if peer:
        programs["ONNX Runtime"] = peer

    single = microseconds(list(programs.values()), images[:1])
    whole = microseconds(list(programs.values()), images)
    table = Table(title=f"{len(images)} test images, one thread")
    table.add_column("")
    for heading in ("accuracy", "µs per image, batch 1", f"µs per image, batch {len(images)}"):
        table.add_column(heading, justify="right")
    results = {name: run(images) for name, run in programs.items()}
    for name, one, many in zip(programs, single, whole, strict=True):
        accuracy = float((results[name].argmax(1) == labels).mean())
        table.add_row(name, f"{accuracy:.2%}", f"{one:.2f}", f"{many / len(images):.2f}")
    console.print(table)

    if peer:
        difference = float(np.abs(results["smelt"] - results["ONNX Runtime"]).max())
        console.print(f"largest difference between the two: {difference:.1e}")
        if not difference < 1e-4:  # also catches NaN
            console.print("[red]The outputs differ: this is a bug, please report it.[/red]")
            return 1
    else:
        console.print("(pip install onnxruntime to see it next to ONNX Runtime)")

    console.print("\nWith a model of your own:")
    for command in (
        "smelt compile model.onnx --target cpu -o model.smelt",
        "smelt verify model.onnx --target cpu",
        "smelt bench model.onnx --target cpu",
    ):
        console.print(f"  {command}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
