"""The machine's limits, what they say of kernels, and profiles as traces."""

import json
from pathlib import Path

import pytest

from smelt import roofline
from smelt.chrome_trace import events, write_trace
from smelt.errors import OutputError
from smelt.report_html import page
from smelt.roofline import Roofline, in_order, with_limits

LIMITS = Roofline(1, 100e9, ((1_000_000, 200e9), (1_000_000_000, 10e9)))


def kernel(name: str, flops: int | str, moved: int, seconds: float, launches: int = 1) -> dict:
    return {"name": name, "origin": f"node '{name}'", "flops": flops, "bytes": moved,
            "launches": launches, "seconds": seconds, "share": 0.5}


KERNELS = [
    kernel("product", 2_000_000, 1000, 30e-6),              # 20 us of multiply-adds
    kernel("copy", 0, 1_000_000, 25e-6, launches=2),        # 10 us of bytes in the cache
    kernel("unknown", "2*N", 8, 1e-6),
    kernel("quick", 1_000_000, 8, 5e-6),                    # below its limit: 8-bit instructions
]


def test_the_limit_is_the_longer_of_work_and_traffic():
    product, copy, unknown, quick = with_limits(KERNELS, LIMITS, 500_000)
    assert product["limit"] == pytest.approx(20e-6) and product["lost"] == pytest.approx(10e-6)
    assert product["of_limit"] == pytest.approx(2 / 3)
    assert copy["limit"] == pytest.approx(10e-6)  # of both launches
    assert "limit" not in unknown
    assert quick["of_limit"] == pytest.approx(2) and quick["lost"] == 0


def test_bandwidth_is_of_what_holds_all_that_a_run_touches():
    assert LIMITS.bandwidth(1_000_000) == 200e9 and LIMITS.bandwidth(1_000_001) == 10e9
    assert LIMITS.bandwidth(1 << 50) == LIMITS.memory == 10e9
    assert with_limits(KERNELS, LIMITS, 2_000_000)[1]["limit"] == pytest.approx(200e-6)


def test_the_worst_offender_comes_first_when_sorted_by_lost_time():
    found = with_limits(KERNELS, LIMITS, 500_000)
    assert [k["name"] for k in in_order(found, "lost")][:2] == ["copy", "product"]
    assert [k["name"] for k in in_order(found, "time")][:2] == ["product", "copy"]
    assert in_order(found, "program") == found


def test_limits_are_measured_once_for_a_machine(cache: Path, monkeypatch):
    calls = []

    def measured(threads: int) -> Roofline:
        calls.append(threads)
        return LIMITS

    monkeypatch.setattr(roofline, "measured", measured)
    monkeypatch.setattr(roofline, "_key", lambda threads: f"test-{threads}")
    assert roofline.roofline(3) == LIMITS == roofline.roofline(3)
    assert calls == [3]
    (cache / "roofline" / "test-3.json").write_text('{"threads": 3}')  # damaged: measured again
    assert roofline.roofline(3) == LIMITS and calls == [3, 3]
    monkeypatch.undo()
    assert roofline._key(1) != roofline._key(2)


@pytest.mark.slow
def test_this_machine_has_limits():
    found = roofline.measured(1)
    assert found.flops > 1e8 and found.memory > 1e7
    sizes = [size for size, _ in found.bandwidths]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_a_trace_has_an_event_for_every_kernel_end_to_end():
    found = events(with_limits(KERNELS, LIMITS, 500_000), "m.onnx")
    assert [e["ph"] for e in found] == ["M", "M", "X", "X", "X", "X"]
    product, copy, unknown, _ = found[2:]
    assert product["name"] == "product" and product["dur"] == pytest.approx(30)
    assert copy["ts"] == pytest.approx(product["ts"] + product["dur"])
    assert product["args"] == {
        "source node": "node 'product'", "launches": 1, "flops": 2_000_000, "bytes": 1000,
        "GFLOP/s": 66.667, "GB/s": 0.033, "limit (us)": 20, "above limit (us)": 10,
        "of limit": "67%"}
    assert copy["args"]["bytes"] == 2_000_000
    assert unknown["args"]["flops"] == "2*N" and "of limit" not in unknown["args"]
    assert all(e["pid"] == 1 and e["tid"] == 1 for e in found)


def test_a_trace_is_written_whole_or_not_at_all(tmp_path: Path):
    write_trace(tmp_path / "t.json", KERNELS, "m.onnx")
    held = json.loads((tmp_path / "t.json").read_text())
    assert len(held["traceEvents"]) == 6 and list(tmp_path.iterdir()) == [tmp_path / "t.json"]
    with pytest.raises(OutputError, match="cannot be written"):
        write_trace(tmp_path / "none" / "t.json", KERNELS, "m.onnx")


def test_the_page_shows_limits():
    report = {"name": "m", "smelt": "0", "kernels": with_limits(KERNELS, LIMITS, 500_000),
              "seconds": 1e-3, "limits": LIMITS.as_dict()}
    text = page(report)
    for piece in ("<th class=n>limit", ">of limit", ">lost", ">67%", "100 GFLOP/s", ">20 µs"):
        assert piece in text


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("smelt.kernel_times.roofline", "smelt.roofline.roofline"):
        monkeypatch.setattr(module, lambda threads=1: LIMITS)


def test_bench_profiles_next_to_limits_and_writes_a_trace(smelt, tmp_path, mlp, limits):
    trace = tmp_path / "trace.json"
    result = smelt("bench", mlp, "--dim", "N=4", "--against", "", "--seconds", "0.05", "--profile",
                   "--sort", "lost", "--trace", trace, "--json").json
    assert result["limits"]["flops"] == LIMITS.flops and result["trace"] == str(trace)
    assert all(k["limit"] > 0 and k["lost"] >= 0 for k in result["kernels"])
    drawn = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    assert [e["name"] for e in drawn] == [k["name"] for k in result["kernels"]]
    found = smelt("bench", mlp, "--against", "", "--trace", trace)
    assert found.code == 2 and "--profile" in found.err
    found = smelt("bench", mlp, "--profile", "--sort", "name")
    assert found.code == 2 and "time, lost, program" in found.err


def test_inspect_shows_limits(smelt, mlp, limits):
    found = smelt("inspect", mlp, "--dim", "N=4", "--profile", "--sort", "lost")
    assert found.code == 0
    assert "of limit" in found.out and "limits: 100 GFLOP/s" in found.out
