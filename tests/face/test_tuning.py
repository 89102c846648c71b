"""`--tune` and `--tuning`: records of measured plans, from the command line and from Python."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from command_line import refused
from small_models import mlp_reference

from smelt import compile, load
from smelt.compilation import Request
from smelt.errors import UsageError
from smelt.passes.lower.choices import Question, described, machine_text
from smelt.targets.base import BuildOptions, find_target
from smelt.targets.cpu import tuner
from smelt.targets.cpu.target import CpuTarget, machine_of
from smelt.targets.cpu.tuner import survey
from smelt.targets.records import NO_RECORDS, Record, Records, parse_records
from smelt.tuning import Store, read_records, with_records

PLAN = {"plan": "Product", "rows": 2, "vectors": 1, "chunk": 1, "blocks": 0}
USUAL = {**PLAN, "rows": 4}


def record(problem: str = "p", machine: str = "m", rows: int = 2, seconds: float = 1e-3) -> Record:
    return Record("some processor", machine, Question("matrix product", problem),
                  {**PLAN, "rows": rows}, seconds, USUAL, 2e-3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The mlp for 30 rows."""
    path = tmp_path / "mlp30.onnx"
    onnx.save(small_models.mlp(batch=30), path)
    return path


# Records ------------------------------------------------------------------------------------------


def test_records_come_back_from_their_text():
    records = NO_RECORDS.with_records([record("b"), record("a"), record("a", "other")])
    assert parse_records(records.text(), "f") == records
    assert [(r.machine, r.question.problem) for r in records.entries] == [
        ("m", "a"), ("m", "b"), ("other", "a")]


def test_the_later_of_two_decisions_counts():
    records = NO_RECORDS.with_records([record(rows=2), record(rows=3)])
    assert [r.plan["rows"] for r in records.entries] == [3]


def test_the_digest_is_of_decisions_and_not_of_times():
    one, again, other = (NO_RECORDS.with_records([r]) for r in (
        record(), record(seconds=7e-3), record(rows=5)))
    assert one.digest() == again.digest() != other.digest()
    assert NO_RECORDS.digest() == ""


DAMAGED = [
    ("{", "it is not JSON"), ("[]", "holds no tuning records"), ('{"format": "x"}', "--tuning"),
    (json.dumps({"format": "smelt tuning records", "version": 2}), "version 2"),
    (json.dumps({"format": "smelt tuning records", "version": 1}), "no list of records"),
    *((json.dumps({"format": "smelt tuning records", "version": 1,
                   "records": [{**record().as_dict(), **wrong}]}), f"no proper {field}")
      for field, wrong in {
          "plan": {"plan": {"rows": []}}, "seconds": {"seconds": -1.0}, "cpu": {"cpu": 3},
          "usual": {"usual": "x"}, "problem": {"problem": None},
          "usual_seconds": {"usual_seconds": float("nan")}}.items()),
    (json.dumps({"format": "smelt tuning records", "version": 1, "records": [7]}), "is damaged"),
]


@pytest.mark.parametrize("text, sentence", DAMAGED, ids=range(len(DAMAGED)))
def test_a_file_without_proper_records_gets_one_sentence(text, sentence, model, tmp_path, smelt):
    file = tmp_path / "records.json"
    file.write_text(text)
    out = tmp_path / "out"
    refused(smelt("compile", model, "-o", out, "--tuning", file), UsageError.exit_code, sentence)
    assert not out.exists()


def test_a_missing_or_binary_file_gets_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_records(tmp_path / "none.json")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not text"):
        read_records(tmp_path / "bytes")


def test_a_damaged_entry_of_the_cache_is_measured_again():
    store = Store("m")
    assert store.get(record("fresh").question) is None
    store.put(record("fresh"))
    assert store.get(record("fresh").question) == record("fresh")
    (path,) = store.folder.glob("*.json")
    path.write_text(path.read_text()[:40])
    assert store.get(record("fresh").question) is None


# Compiling ----------------------------------------------------------------------------------------


def tuned(model: Path, **options) -> tuple[Request, Records]:
    request, found = with_records(Request(model), tune=True, progress=lambda *_: None, **options)
    assert found is not None
    return request, found.records


def compiled(smelt, model: Path, out: Path, *options: object) -> dict[str, Any]:
    result = smelt("compile", model, "-o", out, *options, "--json")
    assert result.code == 0, result.err
    return result.json


def test_tuning_a_small_model(model, tmp_path, smelt, rng):
    file, out, again = (tmp_path / name for name in ("records.json", "out", "again"))
    facts = compiled(smelt, model, out, "--tune", "--tuning", file)
    problems = facts["tuned"]["problems"]
    assert facts["tuned"]["measured"] + facts["tuned"]["left"] == problems > 0
    known = read_records(file).entries
    assert facts["tuning"] == {"applied": len(known), "unknown": 0}
    x = rng.standard_normal((30, 12)).astype(np.float32)
    np.testing.assert_allclose(load(out)(x), mlp_reference(onnx.load(model), x), 1e-5, 1e-6)
    # What was measured is known now; the same records give the same files.
    facts = compiled(smelt, model, again, "--tune", "--tune-seconds", "0", "--no-cache")
    assert facts["tuned"]["measured"] == 0 and not facts["tuned"]["failed"]
    assert len(facts["tuned"]["records"]) == len(known)
    for name in ("model.c", "weights.bin", "manifest.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def other_plans(model: Path) -> Records:
    """For each problem of the model the last candidate, as if it had been measured."""
    target = find_target("cpu")
    assert isinstance(target, CpuTarget)
    graph, variant = Request(model).graph(), target.variants[0]
    target.optimise(graph, BuildOptions())
    return NO_RECORDS.with_records(
        Record("another processor", machine_text(machine_of(variant)), p.question,
               described(p.plans[-1]), 1e-4, described(p.plans[0]), 2e-4)
        for p in survey(graph, variant, False).problems)


def test_a_planted_record_changes_the_program_and_its_key(model, tmp_path, smelt):
    """Records of another processor count when their file is given; without it nothing changes."""
    file = tmp_path / "records.json"
    file.write_text(other_plans(model).text())
    before = compiled(smelt, model, tmp_path / "before")
    facts = compiled(smelt, model, tmp_path / "planted", "--tuning", file)
    assert "tuning" not in before and not facts["cached"]
    assert facts["tuning"]["applied"] == len(read_records(file).entries) > 0
    compiled(smelt, model, tmp_path / "after", "--no-cache")
    sources = {name: (tmp_path / name / "model.c").read_bytes()
               for name in ("before", "planted", "after")}
    assert sources["before"] == sources["after"] != sources["planted"]
    assert compiled(smelt, model, tmp_path / "planted", "--tuning", file)["cached"]


def test_records_of_plans_that_no_longer_exist_are_told(model, tmp_path, smelt):
    records = other_plans(model)
    gone = [replace(r, plan={**r.plan, "rows": 999}) for r in records.entries]
    file = tmp_path / "records.json"
    file.write_text(NO_RECORDS.with_records(gone).text())
    result = smelt("compile", model, "-o", tmp_path / "out", "--tuning", file)
    assert result.code == 0 and "that this smelt does not have" in result.out


def test_an_interruption_keeps_what_was_measured(model, tmp_path, monkeypatch):
    graph_problems = len(other_plans(model).entries)
    assert graph_problems > 1
    honest, calls = tuner.measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(tuner, "measure", interrupted)
    monkeypatch.setenv("SMELT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "records.json"
    with pytest.raises(KeyboardInterrupt):
        with_records(Request(model), tune=True, file=file, progress=lambda *_: None)
    (kept,) = read_records(file).entries
    _, tuned = with_records(Request(model), tune=True, seconds=0, progress=lambda *_: None)
    assert tuned is not None and tuned.records.entries == (kept,)
    assert tuned.measured == 0 and tuned.left == graph_problems - 1


def test_python_tunes_too(model, tmp_path, rng):
    file = tmp_path / "records.json"
    x = rng.standard_normal((30, 12)).astype(np.float32)
    found = compile(model, tune=True, tune_seconds=1, tuning=file)(x)
    assert read_records(file).entries
    np.testing.assert_array_equal(found, compile(model)(x))  # these plans keep the order of sums


@pytest.mark.parametrize("target", ["cpu:generic", "cpu:x86-64-v3+x86-64-v4", "cpu:wasm32"])
def test_targets_that_cannot_be_measured_here_are_refused(target, model, tmp_path, smelt):
    refused(smelt("compile", model, "-o", tmp_path / "out", "--target", target, "--tune"),
            UsageError.exit_code, "measures kernels on this machine", repr(target))
