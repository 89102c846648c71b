"""The report of a compiled model, and the page drawn from it."""

import html.parser
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models

from smelt import api
from smelt.inspect_model import at_sizes, describe_build, open_sizes, read_report
from smelt.report_html import page


@pytest.fixture(scope="module")
def report() -> dict:
    return describe_build(api.build(small_models.mlp()), "mlp.onnx", "cpu")


def test_a_report_is_json_and_says_what_is_inside(report):
    assert json.loads(json.dumps(report)) == report
    assert report["inputs"][0]["shape"] == ["n", 12] and report["sizes"] == {"n": "N"}
    boxes = [n for n in report["nodes"] if n["kind"] not in ("input", "output")]
    ops = [op for n in boxes for op in n["ops"]]
    assert ops.count("matmul") == 2
    assert all(n["kernel"] is not None for n in boxes if "matmul" in n["ops"])
    reached = {b for _, b in report["edges"]}
    assert len(report["nodes"]) - 1 in reached  # the output


def test_open_sizes_become_numbers(report):
    assert open_sizes(report, {}) == ["N"] and open_sizes(report, {"N": 2}) == []
    assert "arena_plan" not in at_sizes(report, {})
    for n in (1, 7):
        there = at_sizes(report, {"N": n})
        products = 2 * n * (12 * 16 + 16 * 5)
        assert sum(k["flops"] for k in there["kernels"]) >= products
        plan = there["arena_plan"]
        assert there["arena"] == max(p["offset"] + -(-p["bytes"] // 64) * 64 for p in plan)
        for i, a in enumerate(plan):
            for b in plan[:i]:
                apart = a["last"] < b["first"] or b["last"] < a["first"]
                disjoint = (a["offset"] + a["bytes"] <= b["offset"]
                            or b["offset"] + b["bytes"] <= a["offset"])
                assert apart or disjoint


def test_an_artifact_holds_its_report(tmp_path: Path, mlp: Path):
    api.compile(mlp, output=tmp_path / "m.zip")
    assert read_report(tmp_path / "m.zip")["name"] == "mlp.onnx"


class Checker(html.parser.HTMLParser):
    """Elements balance, and nothing is fetched from anywhere."""

    VOID = {"meta", "line", "rect", "path", "br"}
    LOOSE = {"html", "tr", "td", "th", "thead", "tbody", "p"}  # their end may be left out

    def __init__(self):
        super().__init__()
        self.stack: list[str] = []
        self.texts: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        for name, value in attrs:
            assert name not in ("src", "href") and "http" not in (value or "")
        closed = tag in self.VOID and tag != "path" and tag != "rect"
        if not closed and tag not in self.LOOSE:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag not in self.LOOSE:
            assert self.stack.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.stack == []
    return checker


def test_the_page_is_whole_and_by_itself(report):
    checker = checked(page(at_sizes(report, {"N": 4})))
    text = " ".join(checker.texts)
    assert "mlp.onnx" in text and "f32[N, 12]" in text
    assert checker.count["svg"] == 2 and checker.count["table"] == 2


def test_names_from_a_model_are_only_text():
    nasty = "<script>alert(1)</script>'\"&\n\x1b"
    proto = small_models.mlp(x=nasty, y=nasty + "y")
    for node in proto.graph.node:
        node.name = nasty + node.name
    built = api.build(proto, dims={"N": 2})
    text = page(at_sizes(describe_build(built, nasty, "cpu"), {}))
    assert "<script>alert" not in text and "\x1b" not in text
    assert checked(text).count["script"] == 1


def test_large_graphs_are_cut(monkeypatch):
    monkeypatch.setattr("smelt.inspect_model.MOST_NODES", 1)
    built = api.build(small_models.picture_net(), passes="fold")
    report = describe_build(built, "m", "cpu")
    assert report["nodes_left_out"] > 0
    checked(page(at_sizes(report, {})))


def test_a_model_with_branches_and_loops_has_a_report(tmp_path: Path):
    from onnx import TensorProto, helper

    branch = [helper.make_graph([helper.make_node(op, ["x"], [f"{op}_y"])], op, [], [
        helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, [3])]) for op in ("Neg", "Exp")]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1])
    proto = small_models.model_of(
        [node], {"c": (TensorProto.BOOL, []), "x": (TensorProto.FLOAT, [3])},
        {"y": (TensorProto.FLOAT, [3])})
    onnx.save(proto, tmp_path / "m.onnx")
    model = api.compile(tmp_path / "m.onnx", output=tmp_path / "m.smelt")
    x = np.array([1, 2, 3], np.float32)
    assert model(np.array(True), x).tolist() == [-1, -2, -3]
    report = at_sizes(read_report(tmp_path / "m.smelt"), {})
    assert len(report["kernels"]) >= 1
    checked(page(report))
