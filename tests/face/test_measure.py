"""Timing engines in processes of their own."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from smelt import engine_process, measure
from smelt.compilation import Request, compile_to_cache
from smelt.engine_process import timed_round
from smelt.errors import UsageError


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((2, 12), np.float32)}


def test_engines_run_in_turns(mlp: Path, inputs):
    pytest.importorskip("onnxruntime")
    path = compile_to_cache(Request(mlp)).path
    timings, failures, outputs = measure.measure(
        {"smelt": str(path), "ort": str(mlp)}, inputs, seconds=0.3)
    assert [t.engine for t in timings] == ["smelt", "ort"] and not failures
    assert all(len(t.rounds) >= measure.LEAST_ROUNDS and t.median > 0 for t in timings)
    assert all(t.memory > 1 << 20 and t.load_seconds > 0 for t in timings)
    np.testing.assert_allclose(outputs["smelt"]["y"], outputs["ort"]["y"], atol=1e-5)
    assert measure.ratios(timings)["ort"] > 0


def test_ratios_are_taken_round_by_round():
    # A disturbance that slows both engines in some rounds does not move the ratio.
    slow = [1, 1, 9, 9, 9]
    ours = measure.Timing("smelt", "", 0, 0, [1e-3 * s for s in slow])
    theirs = measure.Timing("ort", "", 0, 0, [2e-3 * s for s in [1, 1, 1, 9, 9]])
    assert measure.ratios([ours, theirs]) == {"ort": pytest.approx(2)}
    assert ours.as_dict()["seconds"] == pytest.approx(9e-3) and ours.as_dict()["fastest"] == 1e-3


def test_an_engine_that_fails_does_not_stop_the_others(tmp_path: Path, mlp: Path, inputs):
    pytest.importorskip("onnxruntime")
    path = compile_to_cache(Request(mlp)).path
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    timings, failures, _ = measure.measure(
        {"smelt": str(path), "ort": str(tmp_path / "bad.onnx")}, inputs, seconds=0.1)
    assert [t.engine for t in timings] == ["smelt"]
    assert "ONNX Runtime" in failures["ort"]


def test_a_process_that_dies_is_told(tmp_path: Path, mlp: Path, inputs, monkeypatch):
    path = compile_to_cache(Request(mlp)).path
    worker = measure._Worker("smelt", {"path": str(path), "inputs": str(tmp_path / "none.npz"),
                                       "outputs": "", "threads": 1, "dims": {}})
    with pytest.raises(measure.SmeltError, match="none.npz"):
        worker.answer()
    worker.close()
    worker = measure._Worker("smelt", {"threads": 1})
    worker.process.kill()
    with pytest.raises(measure.SmeltError, match="ended by itself"):
        worker.answer()
    worker.close()


def test_a_round_takes_its_time_and_at_least_one_run(monkeypatch):
    calls: list[float] = []
    # A clock that stands still but for the runs, whose seconds are powers of two: sums are exact.
    monkeypatch.setattr(engine_process, "time", SimpleNamespace(perf_counter=lambda: sum(calls)))

    def run() -> None:
        calls.append(2.0**-10)

    assert timed_round(run, 2.0**-4) == 2.0**-10 and len(calls) == 1 + 64
    calls.clear()
    assert timed_round(run, 0.0) == 2.0**-10 and len(calls) == 1


def test_engine_names():
    assert measure.parse_against("ort, torch,ort") == ["ort", "torch"]
    assert measure.parse_against("") == []
    with pytest.raises(UsageError, match="use ort, openvino, torch"):
        measure.parse_against("smelt")


def test_the_machine_is_described():
    facts = measure.machine()
    assert facts["cpu"] and facts["cpus"] >= 1
