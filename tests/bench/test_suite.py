"""The benchmark suite: what it makes of timings, and that it runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def engine(name: str, seconds: float, limited: bool = True) -> dict:
    return {"engine": name, "seconds": seconds, "load_seconds": 0.5, "compile_seconds": 0.0,
            "peak_memory": 30_000_000, "base_memory": 10_000_000, "threads_limited": limited,
            "cores": 1.0 if limited else 1.9}


def timed(ours: float, theirs: dict[str, float], precision: str = "f32") -> dict:
    from suite_report import best_peer

    ratios = {p: t / ours for p, t in theirs.items()}
    best = best_peer(ratios, precision)
    return {"engines": [engine("smelt", ours), *(engine(p, t) for p, t in theirs.items())],
            "failures": {}, "ratios": ratios,
            "best": {"peer": best[0], "ratio": best[1]} if best else None}


@pytest.fixture
def report() -> dict:
    from suite_report import scaling, summary

    built = {"compile": {"cold": 3.5, "cached": 0.002}, "code": 40_000, "weights": 2_000_000}
    first = {"1": timed(2e-3, {"ort": 4e-3, "openvino": 3e-3, "openvino-bf16": 1e-3}),
             "2": timed(1e-3, {"ort": 4e-3, "openvino": 1e-3})}
    second = {"1": timed(1e-3, {"ort": 8e-3}), "2": timed(1e-3, {})}
    second["1"]["failures"] = {"openvino": "OpenVINO: it refused"}
    models = {"first": {**built, "threads": first, "scaling": scaling(first)},
              "second": {**built, "threads": second, "scaling": scaling(second)},
              "third": {"error": "no such operator"}}
    report = {"machine": {"cpu": "some CPU"}, "precision": "f32", "threads": [1, 2],
              "peers": ["ort", "openvino", "openvino-bf16"], "models": models,
              "notes": ["the zoo: torch is not installed"]}
    return {**report, **summary(report)}


def test_means_are_geometric_and_the_best_peer_has_smelts_precision(report):
    assert report["models"]["first"]["threads"]["1"]["best"] == {
        "peer": "openvino", "ratio": pytest.approx(1.5)}  # bf16 was quicker
    means = report["geomean"]["1"]
    assert means["ort"] == pytest.approx(math.sqrt(2 * 8))
    assert means["openvino-bf16"] == pytest.approx(0.5)
    assert means["best"] == pytest.approx(math.sqrt(1.5 * 8))
    assert report["geomean"]["2"]["openvino-bf16"] is None
    assert report["models"]["first"]["scaling"] == {"2": pytest.approx(2)}
    assert report["scaling"]["2"] == pytest.approx(math.sqrt(2))
    assert json.loads(json.dumps(report, allow_nan=False))["geomean"]


def test_the_tables_hold_the_figures_and_what_is_left_out(report):
    from suite_report import markdown

    text = markdown(report)
    (row,) = (x for x in text.splitlines() if x.startswith("| first | 2.000"))
    assert row == ("| first | 2.000 | 4.000 | 3.000 | 1.000 | 2.00 | 1.50 | 0.50 | 1.50 OpenVINO |")
    assert "| first | 3.50 | 2.0 | 40 | 2.0 | 30 | 30 | 30 | 30 |" in text
    left_out = text.partition("Left out:")[2]
    assert "- second: OpenVINO: it refused\n" in left_out
    assert "- third: no such operator\n" in left_out
    assert "torch is not installed" in left_out
    columns = {line.count("|") for line in text.split("\n\n")[2].splitlines()}
    assert len(columns) == 1


def test_an_engine_that_takes_more_threads_is_named(report):
    from suite_report import markdown

    report["models"]["first"]["threads"]["1"]["engines"][1] = engine("ort", 4e-3, limited=False)
    assert "ONNX Runtime kept 1.9 processors busy" in markdown(report)


def test_the_plot_leaves_gaps_where_nothing_was_timed(report, tmp_path: Path):
    from suite_report import bars, plot

    names, groups = bars(report, "1")
    assert names == ["first", "second"] and list(groups) == ["ort", "openvino", "openvino-bf16"]
    assert groups["ort"] == [2, 8] and math.isnan(groups["openvino"][1])
    try:
        import matplotlib  # noqa: F401  (an extra; what it draws is checked above)
    except ImportError:
        return
    for name in ("ratios.png", "ratios.svg"):
        plot(report, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 2000


def test_errors_are_relative_to_the_largest_value():
    from suite import error_of

    want = [np.array([1.0, -4.0], np.float32), np.zeros(0, np.float32)]
    assert error_of(want, want) == 0
    assert error_of(want, [np.array([1.0, -3.0], np.float32), want[1]]) == pytest.approx(0.25)
    assert error_of(want, want[:1]) == math.inf
    assert error_of(want, [np.zeros(3, np.float32), want[1]]) == math.inf
    assert error_of(want, [np.array([np.nan, 0], np.float32), want[1]]) == math.inf


@pytest.mark.parametrize("written, told", [
    ("m.mlir:3:9: error: failed to legalize 'torch.operator'\nm.mlir:1:1: error: later\n",
     "failed to legalize 'torch.operator'"),
    ("Traceback (most recent call last):\n  an error here\nValueError: no such Error\n",
     "ValueError: no such Error"),
    ("a note\n", "a note"), ("", "it gave no reason"),
])
def test_a_compilers_reason_is_one_line(written, told):
    from engines import reason

    assert reason(written) == told


def test_compilers_end_in_time(tmp_path, monkeypatch):
    import engines

    monkeypatch.setattr(engines, "COMPILE_SECONDS", 1)
    settings = {"path": "model.onnx", "compiled": str(tmp_path)}

    def sleepers(*_: object) -> list[list[str]]:
        return [[sys.executable, "-c", "import time; time.sleep(60)"]]

    for _ in range(2):  # the second time from what was noted
        with pytest.raises(RuntimeError, match="still compiling after 1 s"):
            engines.ahead(".so", sleepers, settings, {})
    if hasattr(signal, "SIGALRM"):
        with pytest.raises(RuntimeError, match="still compiling after 1 s"), engines.within(1):
            time.sleep(60)


def test_an_unknown_model_is_named_with_where_it_was_looked_for(tmp_path, monkeypatch):
    from suite import unknown

    monkeypatch.delenv("SMELT_MODELS", raising=False)
    assert "mnist8: not in the zoo, and SMELT_MODELS" in unknown(["mnist8"])
    monkeypatch.setenv("SMELT_MODELS", str(tmp_path))
    assert unknown(["mnist8"]) == (
        f"there is no model mnist8 in the zoo or in {tmp_path} (SMELT_MODELS)")


@pytest.mark.slow
@pytest.mark.parametrize("engine", [e for e in ("tvm", "iree") if find_spec(e) is not None])
def test_compiled_peers_are_timed(engine: str, models: Path):
    run = run_suite(models, "suite.py", "--against", engine)
    assert run.returncode == 0, run.stderr
    row = json.loads((models / "out.json").read_text())["models"]["mlp"]["threads"]["1"]
    assert not row["failures"] and row["ratios"][engine] > 0
    timed = next(e for e in row["engines"] if e["engine"] == engine)
    assert timed["error"] < 1e-4 and timed["threads_limited"] and timed["compile_seconds"] > 0


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder as SMELT_MODELS, with a small model and data for it."""
    ort = pytest.importorskip("onnxruntime")
    (tmp_path / "data").mkdir()
    onnx.save(small_models.mlp(), tmp_path / "mlp.onnx")
    x = np.random.default_rng(0).standard_normal((3, 12), np.float32)
    (y,) = ort.InferenceSession(tmp_path / "mlp.onnx").run(None, {"x": x})
    np.savez(tmp_path / "data" / "mlp.npz", in_x=x, out_0=y)
    return tmp_path


def run_suite(models: Path, script: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH / script), "--only", "mlp", "--seconds", "0.1",
         "--json", str(models / "out.json"), *options], capture_output=True, text=True, cwd=models,
        env={**os.environ, "SMELT_MODELS": str(models), "SMELT_CACHE": str(models / "cache")})


@pytest.mark.slow
def test_the_suite_runs(models: Path):
    run = run_suite(models, "suite.py", "--threads", "1,2", "--against", "ort", "--markdown",
                    str(models / "out.md"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == (models / "out.md").read_text().strip()
    report = json.loads((models / "out.json").read_text())
    model = report["models"]["mlp"]
    assert model["compile"]["cold"] > model["compile"]["cached"] > 0 and model["code"] > 0
    for threads in ("1", "2"):
        row = model["threads"][threads]
        assert [e["engine"] for e in row["engines"]] == ["smelt", "ort"] and not row["failures"]
        assert all(e["error"] < 1e-4 for e in row["engines"])
        assert row["engines"][0]["peak_memory"] > row["engines"][0]["base_memory"] > 0
    assert report["geomean"]["1"]["ort"] > 0 and model["scaling"]["2"] > 0
    assert not (models / "cache" / "models").exists()  # compiled in a cache of the run


@pytest.mark.slow
def test_wrong_results_are_not_timed(models: Path):
    with np.load(models / "data" / "mlp.npz") as held:
        np.savez(models / "data" / "mlp.npz", in_x=held["in_x"], out_0=held["out_0"] + 1)
    run = run_suite(models, "suite.py", "--against", "ort")
    assert run.returncode == 0, run.stderr
    row = json.loads((models / "out.json").read_text())["models"]["mlp"]["threads"]["1"]
    assert row["engines"] == [] and row["ratios"] == {}
    assert "outputs are off by" in row["failures"]["ort"]


@pytest.mark.slow
def test_calls_from_c_and_python_are_compared(models: Path):
    run = run_suite(models, "call.py")
    assert run.returncode == 0, run.stderr
    times = json.loads((models / "out.json").read_text())["models"]["mlp"]
    assert set(times) == {"c", "smelt-call", "smelt-run"} and min(times.values()) > 0
    assert run.stdout.startswith("| model | smelt_run")


def test_the_share_of_the_peak_is_the_median_over_pairs():
    from products import summary

    pairs = [(1.0, 2.0), (1.0, 1.25), (2.0, 2.5), (1.0, 1.25), (4.0, 4.0)]
    found = summary(100, pairs)
    assert found["of_peak"] == pytest.approx(0.8) and found["pairs"] == 5
    assert found["flops"] == pytest.approx(50) and found["peak"] == pytest.approx(100)


@pytest.mark.slow
def test_products_run_beside_the_peak(tmp_path: Path):
    def run(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(BENCH / "products.py"), "--seconds", "0.2", *options],
            capture_output=True, text=True,
            env={**os.environ, "SMELT_CACHE": str(tmp_path / "cache")})

    result = run("--sizes", "96,33x40x50", "--against", "ort", "--json", str(tmp_path / "out.json"))
    assert result.returncode == 0, result.stderr
    products = json.loads((tmp_path / "out.json").read_text())["products"]
    assert list(products) == ["96 x 96 x 96", "33 x 40 x 50"]
    for row in products.values():
        for engine in ("smelt", "ort"):
            assert 0 < row[engine]["of_peak"] < 1.5 and row[engine]["flops"] > 1e8
    assert "| 33 x 40 x 50 | " in result.stdout
    assert "--sizes '3x4'" in run("--sizes", "3x4").stderr
