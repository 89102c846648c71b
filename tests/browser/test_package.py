"""The JavaScript runtime without a browser: sizes of plans, types, packages for npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from node_process import NODE, node_packages
from small_models import mlp

import smelt
from smelt.api import build
from smelt.codegen.wgsl_program import size_json
from smelt.ir.expr import op, size
from smelt.runtime import abi
from smelt.runtime.artifact import write_artifact
from smelt.runtime.webgpu_sizes import place, size_of

JS = Path(abi.__file__).parent / "js"


def node(code: str, *arguments: str) -> str:
    """What a module prints."""
    if NODE is None:
        pytest.skip("needs node")
    done = subprocess.run([NODE, "--input-type=module", "-e", code, *arguments],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sizes_and_places_are_those_of_python(tmp_path, rng):
    h, w = size("h"), size("w")
    expressions = [size_json(e) for e in (
        h, (h + 2) // 2 * w, (h - 40) // 7, (h - 40) % 7, op("max", h - w, 0), op("min", h, w),
        op("abs", h - w), op("neg", h), op("select", op("lt", h, w), h, w * 3),
        op("select", op("and", op("ge", h, 9), op("ne", h, w)), 1, 2),
        op("select", op("or", op("le", h, 9), op("not", op("eq", h, w))), 1, 2),
        op("select", op("gt", h, 3), 1, 2))]
    expressions += [["floordiv", "h", 0], ["mod", "h", 0], ["floordiv", ["neg", "h"], 3]]
    sizes = [{"h": int(a), "w": int(b)} for a, b in rng.integers(0, 50, (20, 2))]
    blocks = []
    for _ in range(60):
        count = int(rng.integers(0, 12))
        first = rng.integers(0, 10, count)
        spans = [(int(a), int(a + rng.integers(0, 6))) for a in first]
        blocks.append(([int(n) for n in rng.integers(0, 1000, count)], spans))
    (tmp_path / "given.json").write_text(json.dumps([expressions, sizes, blocks]))
    found = json.loads(node(f"""
        import {{ readFileSync }} from "node:fs";
        const {{ place, sizeOf }} = await import({json.dumps((JS / "sizes.mjs").as_uri())});
        const [expressions, sizes, blocks] = JSON.parse(readFileSync(process.argv[1]));
        console.log(JSON.stringify([
            sizes.map((named) => expressions.map((e) => sizeOf(e, new Map(Object.entries(named))))),
            blocks.map(([amounts, spans]) => place(amounts, spans)),
        ]));""", str(tmp_path / "given.json")))
    assert found[0] == [[int(size_of(e, named)) for e in expressions] for named in sizes]
    assert [(b["offsets"], b["total"]) for b in found[1]] == [place(*b) for b in blocks]


USER = """
import { createSession, SmeltError, arrayTypes } from "smelt-runtime";
import { load } from "smelt-runtime/model";
import type { Session, Tensor } from "smelt-runtime";

const session: Session = await createSession("digits.smelt", {
  backend: "webgpu", cache: false, onProgress: (loaded, total) => console.log(loaded / total),
});
const results: Record<string, Tensor> = await session.run({
  image: new Float32Array(64), sizes: { data: new BigInt64Array(1), shape: [1n] },
});
const scores: number = results["scores"]!.shape[0]!;
try {
  await session.restart();
} catch (error) {
  if (error instanceof SmeltError && error.code === "SMELT_DEVICE_LOST") console.log(error.message);
}
const length: number = new arrayTypes.f32(scores).length;
(await load(new Uint8Array(length))).close();
// @ts-expect-error no such backend
await createSession("digits.smelt", { backend: "cuda" });
// @ts-expect-error tensors are typed arrays
await session.run({ image: [1, 2] });
session.close();
"""


@pytest.mark.slow
def test_types_are_those_of_a_strict_project(tmp_path):
    packages = node_packages()
    package = tmp_path / "node_modules/smelt-runtime"
    shutil.copytree(JS, package)
    (tmp_path / "user.mts").write_text(USER)
    done = subprocess.run(
        [str(NODE), str(packages / "typescript/bin/tsc"), "--strict", "--noEmit", "--target",
         "es2022", "--module", "nodenext", "--lib", "es2022,dom", "--noUncheckedIndexedAccess",
         "user.mts"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def packed(folder: Path, cache: Path) -> tuple[str, set[str]]:
    """The name and files of the package that npm makes of a folder."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    done = subprocess.run([npm, "pack", "--dry-run", "--json", "--offline", f"--cache={cache}"],
                          cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    return entry["name"], {file["path"] for file in entry["files"]}


def test_npm_packs_the_runtime(tmp_path):
    package = json.loads((JS / "package.json").read_text())
    name, files = packed(JS, tmp_path)
    assert name == "smelt-runtime" and package["version"] == smelt.__version__
    assert files == {path.name for path in JS.iterdir()}
    for entry in package["exports"].values():
        assert {path.removeprefix("./") for path in entry.values()} <= files


def test_npm_packs_a_model(tmp_path):
    built = build(mlp(), "webgpu", name="Dense_net")
    write_artifact(tmp_path / "model", built.manifest, built.files)
    name, files = packed(tmp_path / "model", tmp_path / "npm")
    assert name == "dense_net"
    assert files == {*built.files, "manifest.json"}
    assert {"session.mjs", "session.d.mts", "plan.json", "weights.bin"} <= files


def test_a_page_without_webgpu_is_told_so_in_node(tmp_path):
    built = build(mlp(), "webgpu")
    write_artifact(tmp_path / "model", built.manifest, built.files)
    found = node("""
        const { createSession } = await import(`file://${process.argv[1]}/session.mjs`);
        await createSession().catch(({ code, message }) => console.log(code, message));
        """, str(tmp_path / "model"))
    assert found.startswith("SMELT_NO_WEBGPU There is no WebGPU here")


def test_an_unknown_fallback_is_refused():
    with pytest.raises(smelt.errors.UsageError, match="fallback is 'cuda': use wasm, or none"):
        build(mlp(), "webgpu", options={"fallback": "cuda"})


def test_results_hold_no_more_than_what_was_asked_for():
    """The fallback's module and program, and the page, come with their options alone."""
    names = set(build(mlp(), "webgpu").files)
    assert not names & {"model.mjs", "index.html"}
    assert not any(name.startswith("wasm/") for name in names)
