"""Passes by name and option, pipelines, dumps, verification, the rewrite driver."""

from dataclasses import dataclass

import pytest
from graph_texts import graph_of

from smelt.errors import ModelError, SmeltError, UsageError
from smelt.ir import dtype as dt
from smelt.ir.graph.core import Graph, TensorType
from smelt.ir.graph.text import parse_graph
from smelt.ir.kernel.text import parse_kernel, print_kernel
from smelt.passes.graph.base import Pass, Pipeline, known_passes, parse_pass
from smelt.passes.graph.fuse import Fuse
from smelt.passes.graph.pipeline import Options, default_pipeline, optimise
from smelt.passes.graph.rewrite import rewrite, rule
from smelt.targets.base import BuildOptions, find_target
from smelt.targets.cpu import generic as portable
from smelt.targets.cpu import target as cpu
from smelt.targets.cpu.toolchain import Compiler

TEXT = """(%x: f32[4]) {
    %a: f32[4] = neg(%x)
    %b: f32[4] = neg(%a)
    %c: f32[4] = relu(%b)
    return %c as "y"
}"""


def test_pipelines_have_a_text_form():
    text = "fold,fuse{max_inputs=8,prologue=true},cse"
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == text
    assert pipeline.passes[1] == Fuse(max_inputs=8, prologue=True)
    assert str(default_pipeline()) == str(Pipeline.parse(str(default_pipeline())))
    assert Pipeline.parse("").passes == ()


@pytest.mark.parametrize("name", known_passes())
def test_every_pass_is_known_by_name_and_documented(name):
    cls = known_passes()[name]
    assert str(parse_pass(name)) == name
    assert cls.__doc__ and "Pass(" not in cls.__doc__


@pytest.mark.parametrize(("text", "message"), [
    ("folt", "There is no pass 'folt'; there are .*fold"),
    ("fold{", "closing brace"),
    ("fold{colour=red}", "has no option 'colour=red'; its options: growth, limit"),
    ("fold{limit=much}", "is 'much': use an integer"),
    ("fuse{prologue=maybe}", "use true or false"),
])
def test_mistakes_are_named(text, message):
    with pytest.raises(UsageError, match=message):
        Pipeline.parse(text)


def test_reports_say_what_changed():
    graph = graph_of(TEXT)
    reports = Pipeline.parse("canonicalise,cse").run(graph)
    assert [(r.name, r.modified) for r in reports] == [("canonicalise", True), ("cse", False)]
    assert [n.op for n in graph.nodes] == ["relu"]


def test_dumps_are_numbered_and_parse(tmp_path, monkeypatch):
    monkeypatch.setenv("SMELT_DUMP", str(tmp_path / "dump"))
    graph = graph_of(TEXT)
    Pipeline.parse("canonicalise,cse,fuse").run(graph)
    Pipeline.parse("dce").run(graph)
    assert [p.name for p in sorted((tmp_path / "dump").iterdir())] == ["000-canonicalise.ir"]
    text = (tmp_path / "dump" / "000-canonicalise.ir").read_text()
    assert [n.op for n in parse_graph(text).nodes] == ["relu"]
    Pipeline.parse("canonicalise").run(graph_of(TEXT))
    assert (tmp_path / "dump" / "001-canonicalise.ir").exists()


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3+x86-64-v2", "cpu:aarch64", "cpu:wasm32",
                                    "cpu:generic"])
def test_kernels_are_dumped_after_the_passes(target, tmp_path, monkeypatch):
    """As the code generator takes them, for every variant; the C compiler is not needed."""
    monkeypatch.setenv("SMELT_DUMP", str(tmp_path))
    for module in (cpu, portable):
        monkeypatch.setattr(module, "find_compiler", lambda *_: Compiler(("cc",), "gcc", ""))
    monkeypatch.setattr(cpu, "compile_library", lambda *_: ({}, 0))
    monkeypatch.setattr(portable, "_compiler", lambda: None)
    graph = graph_of("""(%x: f32[4, 8]) {
        %a: f32[4, 8] = neg(%x)
        %b: f32[4, 8] = neg(%a)
        %c: f32[4, 8] = exp(%b)
        %d: f32[8, 4] = transpose(%c) {perm = (1, 0)}
        %e: f32[4, 4] = matmul(%c, %d)
        return %e as "y"
    }""")
    built = find_target(target).build(graph, BuildOptions(passes="canonicalise"))
    names = [p.name for p in sorted(tmp_path.iterdir())]
    passes = [n for n in names if n.endswith(".ir")]
    assert passes == ["000-canonicalise.ir"] == names[:1]
    variants = {"cpu": ["native"], "cpu:x86-64-v3+x86-64-v2": ["x86-64-v3", "x86-64-v2"]}.get(
        target, [target[4:]])
    kernels = [k.name for k in built.program.kernels()]
    assert len(kernels) >= 2
    assert names[1:] == [f"{i + 1:03d}-{kernel}.{variant}.kernel" for i, (variant, kernel) in
                         enumerate((v, k) for v in variants for k in kernels)]
    first = [(tmp_path / n).read_text() for n in names if n.endswith(f".{variants[0]}.kernel")]
    assert first == [print_kernel(k) for k in built.program.kernels()]
    for text in first:
        assert print_kernel(parse_kernel(text)) == text


@dataclass(frozen=True)
class Spoil(Pass):
    """Breaks the graph."""

    name = "spoil"

    def run(self, graph: Graph) -> bool:
        next(iter(graph.nodes)).output.type = TensorType(dt.f32, (5,))
        return True


@pytest.mark.parametrize(("level", "message"), [("2", "after pass spoil"),
                                                ("1", "after passes spoil,cse"), ("0", None)])
def test_verification_follows_its_level(level, message, monkeypatch):
    monkeypatch.setenv("SMELT_VERIFY", level)
    from smelt.passes.graph.cse import CommonSubexpressions

    pipeline = Pipeline((Spoil(), CommonSubexpressions()))
    if message is None:
        pipeline.run(graph_of(TEXT))
        return
    with pytest.raises(ModelError, match=message):
        pipeline.run(graph_of(TEXT))


def test_a_rule_without_end_is_named():
    @rule("relu")
    def forever(node, graph):
        return graph.add("relu", [node.inputs[0]])

    with pytest.raises(SmeltError, match="rule forever applied again"):
        rewrite(graph_of(TEXT), [forever])


def test_a_rule_that_changes_the_type_is_refused(monkeypatch):
    @rule("relu")
    def wrong(node, graph):
        return graph.add("cast", [node.inputs[0]], {"to": dt.f16})

    monkeypatch.setenv("SMELT_VERIFY", "1")
    assert rewrite(graph_of(TEXT), [wrong]) == 0
    monkeypatch.setenv("SMELT_VERIFY", "2")
    with pytest.raises(SmeltError, match="rule wrong"):
        rewrite(graph_of(TEXT), [wrong])


def test_rules_reach_into_regions():
    graph = graph_of("""(%c: bool[], %x: f32[4]) {
        %r: f32[4] = if(%c) {sizes = ()} region then() {
          %a: f32[4] = neg(%x)
          %b: f32[4] = neg(%a)
          return %b
        } region orelse() {
          return %x
        }
        return %r
    }""")
    assert Pipeline.parse("canonicalise").run(graph)[0].modified
    (node,) = graph.nodes
    assert not node.regions[0].nodes and node.regions[0].outputs == graph.inputs[1:]


def test_output_names_outlive_their_values():
    graph = graph_of("""(%x: f32[4]) {
        %a: f32[4] = neg(%x)
        %b: f32[4] = neg(%a)
        return %b as "y", %x as "z"
    }""")
    optimise(graph)
    assert graph.outputs == [graph.inputs[0]] * 2 and graph.output_names == ["y", "z"]


@pytest.mark.parametrize("passes", ["", "canonicalise,dce", "fuse"])
def test_long_chains(passes):
    graph = Graph()
    value = graph.add_input("x", TensorType(dt.f32, (2,)))
    for k in range(20_000):
        value = graph.add(("exp", "neg", "tanh")[k % 3], [value])
    graph.outputs = [value]
    optimise(graph, Options(passes=passes))
    assert graph.nodes
