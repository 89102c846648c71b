"""model.mjs of target cpu:wasm32 in node: tensors in and out, sizes, states, errors, memory."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import mlp, mlp_reference, model_of

import smelt
from smelt.compilation import Request
from smelt.runtime.artifact import open_artifact, write_artifact

NODE = shutil.which("node")
DIGITS = Path(__file__).resolve().parents[2] / "examples/digits"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (NODE and importlib.util.find_spec("ziglang")),
                       reason="needs node and ziglang"),
]

PREAMBLE = """
import * as smelt from "./model.mjs";
const { load, SmeltError } = smelt;
const refusal = async (use) => {
  try {
    await use();
  } catch (error) {
    if (!(error instanceof SmeltError)) throw error;
    return [error.code, error.message];
  }
  return null;
};
const show = (value) => console.log(JSON.stringify(value, (_, x) =>
  typeof x === "bigint" ? String(x) : ArrayBuffer.isView(x) ? [...x] : x));
"""


def javascript(folder: Path, code: str) -> Any:
    """What code passes to `show`, run beside an artifact's model.mjs."""
    script = folder / "script.mjs"
    script.write_text(PREAMBLE + code)
    done = subprocess.run([str(NODE), str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """artifact(name, model, **options of Request): the folder of a compiled model."""
    built: dict[str, Path] = {}

    def compile(name: str, source: Any = None, **options: Any) -> Path:
        if name not in built:
            built[name] = tmp_path_factory.mktemp(name) / "model.smelt"
            build = Request(source, "cpu:wasm32", optimize=1, **options).build()
            write_artifact(built[name], build.manifest, build.files)
        return built[name]

    return compile


@pytest.fixture
def dense(artifact) -> Path:
    """x f32[n, 12] -> y f32[n, 5]."""
    return artifact("dense", mlp())


def kinds() -> onnx.ModelProto:
    """An input and an output of every kind of array, all of size N."""
    types = {"i64": TensorProto.INT64, "u64": TensorProto.UINT64, "u8": TensorProto.UINT8,
             "i8": TensorProto.INT8, "f64": TensorProto.DOUBLE, "f16": TensorProto.FLOAT16,
             "bf16": TensorProto.BFLOAT16}
    nodes = [helper.make_node("Add", [n, n], [f"{n}_twice"]) for n in types]
    nodes.append(helper.make_node("Not", ["flag"], ["flag_not"]))
    inputs = {n: (t, ["N"]) for n, t in types.items()} | {"flag": (TensorProto.BOOL, ["N"])}
    outputs = {f"{n}_twice": (t, ["N"]) for n, t in types.items()}
    return model_of(nodes, inputs, outputs | {"flag_not": (TensorProto.BOOL, ["N"])},
                    check=False)


def recurrent() -> onnx.ModelProto:
    """total_out = total + x, y = 2 total_out; past grows: present = past and then x."""
    one = [helper.make_node("Add", ["total", "x"], ["total_out"]),
           helper.make_node("Add", ["total_out", "total_out"], ["y"]),
           helper.make_node("Concat", ["past", "x"], ["present"], axis=0)]
    f32 = TensorProto.FLOAT
    return model_of(one, {"x": (f32, [1, 2]), "total": (f32, [1, 2]), "past": (f32, ["P", 2])},
                    {"y": (f32, [1, 2]), "total_out": (f32, [1, 2]), "present": (f32, None)},
                    check=False)


@pytest.fixture
def states(artifact) -> Path:
    return artifact("states", recurrent(), states=(("total_out", "total"), ("present", "past")))


# --- tensors -------------------------------------------------------------------------------------


def test_digits_are_recognised_as_natively(artifact, tmp_path: Path):
    test = np.load(DIGITS / "digits_test.npz")
    images, labels = test["images"], test["labels"]
    images.astype("<f4").tofile(tmp_path / "images")
    folder = artifact("digits", DIGITS / "digits.onnx")
    found = javascript(folder, f"""
        import {{ readFileSync }} from "node:fs";
        const session = await load();
        const bytes = readFileSync({json.dumps(str(tmp_path / "images"))});
        const image = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
        show([session.name, session.inputs, session.outputs, session.run({{ image }})]);
    """)
    name, inputs, outputs, results = found
    native = smelt.load(smelt.compile(DIGITS / "digits.onnx").save(tmp_path / "native.smelt"))
    assert name == native.name
    for mine, specs in ((inputs, native.inputs), (outputs, native.outputs)):
        assert mine == [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in specs]
    scores = np.array(results["probability"]["data"], np.float32)
    assert results["probability"]["shape"] == [len(images), 10]
    wanted = native(images)
    scores = scores.reshape(wanted.shape)
    # WebAssembly has no fused multiply-add, so sums round differently; probabilities are up to 1.
    np.testing.assert_allclose(scores, wanted, 0, 1e-5)
    right = (scores.argmax(1) == labels).mean()
    assert right == (wanted.argmax(1) == labels).mean() > 0.95


def test_open_sizes_follow_the_arrays(dense: Path, rng):
    for n in (1, 7):
        x = rng.standard_normal((n, 12), np.float32)
        short, long = javascript(dense, f"""
            const session = await load();
            const x = Float32Array.from({x.reshape(-1).tolist()});
            session.run({{ x: new Float32Array(36) }}); // another size before
            show([session.run({{ x }}), session.run({{ x: {{ data: x, shape: [{n}, 12n] }} }})]);
        """)
        assert short == long
        assert (short["y"]["shape"], short["y"]["dtype"]) == ([n, 5], "f32")
        np.testing.assert_allclose(np.reshape(short["y"]["data"], (n, 5)),
                                   mlp_reference(mlp(), x), 1e-5, 1e-6)


def test_no_rows(dense: Path):
    assert javascript(dense, "show((await load()).run({ x: new Float32Array(0) }));") == {
        "y": {"data": [], "shape": [0, 5], "dtype": "f32"}}


def test_every_kind_of_array(artifact):
    found = javascript(artifact("kinds", kinds()), """
        const session = await load();
        const results = session.run({
          i64: BigInt64Array.of(-(2n ** 61n), 5n, 2n ** 53n + 1n),
          u64: BigUint64Array.of(2n ** 62n, 7n, 0n),
          u8: Uint8ClampedArray.of(1, 100, 200), i8: Int8Array.of(-1, 60, -64),
          f64: Float64Array.of(1e300, -0.1, 3), f16: smelt.narrow([1.5, -2, 1000]),
          bf16: smelt.narrow([1.5, -2, 2 ** 100], "bf16"),
          flag: Uint8Array.of(0, 1, 7), // any byte but 0 is true
        });
        const classes = Object.values(results).map(({ data }) => data.constructor.name);
        show([results, classes, [...smelt.widen(results.f16_twice.data)],
              [...smelt.widen(results.bf16_twice.data, "bf16")]]);
    """)
    results, classes, halves, brains = found
    data = {name: value["data"] for name, value in results.items()}
    assert data["i64_twice"] == [str(-(2**62)), "10", str(2**54 + 2)]
    assert data["u64_twice"] == [str(2**63), "14", "0"]
    assert data["u8_twice"] == [2, 200, 144]
    assert data["i8_twice"] == [-2, 120, -128]
    assert data["f64_twice"] == [2e300, -0.2, 6]
    assert data["flag_not"] == [1, 0, 0]
    assert (halves, brains) == ([3, -4, 2000], [3, -4, 2.0**101])
    assert classes == ["BigInt64Array", "BigUint64Array", "Uint8Array", "Int8Array",
                       "Float64Array", "Uint16Array", "Uint16Array", "Uint8Array"]


def test_halves_are_numpys(dense: Path, tmp_path: Path, rng):
    bits = np.arange(65536, dtype=np.uint16)
    bits.tofile(tmp_path / "bits")
    near = np.repeat(bits.view(np.float16).astype(np.float32), 3)  # and the middles between two
    with np.errstate(invalid="ignore", over="ignore"):
        near[1::3] = (near[::3] + np.roll(near[::3], 1)) / 2
        near[2::3] = np.nextafter(near[1::3], np.float32(rng.choice([-9e9, 9e9])))
        wanted = near.astype(np.float16)
    near.tofile(tmp_path / "near")
    javascript(dense, f"""
        import {{ readFileSync, writeFileSync }} from "node:fs";
        const folder = {json.dumps(f"{tmp_path}/")};
        const array = (file, Type) => new Type(Uint8Array.from(readFileSync(folder + file)).buffer);
        writeFileSync(folder + "wide", smelt.widen(array("bits", Uint16Array)));
        writeFileSync(folder + "half", smelt.narrow(array("near", Float32Array)));
        writeFileSync(folder + "brain", smelt.narrow(array("near", Float32Array), "bf16"));
        show(null);
    """)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "wide", np.float32),
                                  bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(np.fromfile(tmp_path / "half", np.float16), wanted)
    import ml_dtypes

    with np.errstate(invalid="ignore"):
        wanted = near.astype(ml_dtypes.bfloat16).astype(np.float32)
    brain = np.fromfile(tmp_path / "brain", np.uint16).view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(brain.astype(np.float32), wanted)


def test_the_readme_example(artifact):
    root = DIGITS.parents[1]
    (example,) = re.findall(r"^```js\n(.*?)^```", (root / "README.md").read_text(), re.S | re.M)
    example = example.replace("./digits-wasm.smelt/", "./")
    script = artifact("digits", DIGITS / "digits.onnx") / "readme.mjs"
    script.write_text(example)
    done = subprocess.run([str(NODE), str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "shape: [ 'n', 1, 8, 8 ]" in done.stdout and "[ 2, 10 ] Float32Array" in done.stdout


# --- sessions and states -------------------------------------------------------------------------


def test_states_stay_with_their_session(states: Path):
    shown = javascript(states, """
        const one = await load();
        const two = one.session();
        const run = (session, ...x) => session.run({ x: Float32Array.from(x) });
        const first = [one.inputs.map((s) => s.name), one.outputs.map((s) => s.name),
                       one.state("past"), one.state("total")];
        const runs = [run(one, 1, 2), run(one, 10, 20), run(two, 5, 5), run(one, 100, 200)];
        const past = [one.state("past"), two.state("past")];
        one.resetStates();
        runs.push(run(one, 1, 1));
        one.close(); // the other keeps what it needs of the model
        runs.push(run(two, 1, 1));
        two.unlinkState("total");
        two.linkState("total_out", "total", { data: Float32Array.of(7, 8), shape: [1, 2] });
        runs.push(run(two, 1, 1));
        runs.push(two.run({ x: Float32Array.of(1, 1), total: Float32Array.of(0, 0) }));
        show([first, runs.map((r) => [Object.keys(r), [...r.y.data]]), past]);
    """)
    first, runs, past = shown
    assert first == [["x"], ["y"], None, None]
    assert all(names == ["y"] for names, _ in runs)
    assert [y for _, y in runs] == [[2, 4], [22, 44], [10, 10], [222, 444], [2, 2], [12, 12],
                                    [16, 18], [2, 2]]
    assert [p["shape"] for p in past] == [[3, 2], [1, 2]]
    assert past[0]["data"] == [1, 2, 10, 20, 100, 200]


def test_memory_does_not_grow(dense: Path):
    """Neither over runs of changing sizes nor over sessions that are closed."""
    before, after, sessions = javascript(dense, """
        let memory;
        const { instantiate } = WebAssembly;
        WebAssembly.instantiate = async (...given) => {
          const made = await instantiate(...given);
          memory = made.instance.exports.memory;
          return made;
        };
        const session = await load();
        const run = (used, n) => used.run({ x: new Float32Array(12 * n) });
        run(session, 512);
        const sizes = [memory.buffer.byteLength];
        for (let i = 0; i < 1000; i++) run(session, i % 512);
        sizes.push(memory.buffer.byteLength);
        for (let i = 0; i < 300; i++) {
          const other = session.session();
          run(other, 512);
          other.close();
        }
        session.close();
        sizes.push(memory.buffer.byteLength);
        show(sizes);
    """)
    assert before == after
    assert sessions <= before + (1 << 20)  # one more at a time; 300 would take 15 MB


# --- refusals ------------------------------------------------------------------------------------

X = "x: f32[n, 12]"


@pytest.mark.parametrize(("given", "sentence"), [
    ("{ x: new Float64Array(12) }", 'Input "x" must be f32[n, 12], but is f64[1, 12].'),
    ("{ x: new BigInt64Array(12) }", 'Input "x" must be f32[n, 12], but is i64[1, 12].'),
    ("{ x: new Float32Array(13) }", 'Input "x" must be f32[n, 12], but has 13 elements.'),
    ("{ x: { data: new Float32Array(12), shape: [12] } }",
     'Input "x" must be f32[n, 12], but is f32[12].'),
    ("{ x: { data: new Float32Array(12), shape: [1, 2, 3, 2] } }",
     'Input "x" must be f32[n, 12], but is f32[1, 2, 3, 2].'),
    ("{ x: { data: new Float32Array(12), shape: [2, 12] } }",
     'Input "x" has 12 elements, but its shape [2, 12] has 24.'),
    ("{ x: { data: new Float32Array(12), shape: [-1, -12] } }",
     'Input "x" has the shape [-1, -12]: sizes are whole numbers.'),
    ("{ x: [1, 2] }", 'Input "x" must be a typed array or { data, shape }, but is an Array: '
     "it is f32[n, 12], of Float32Array."),
    ("{}", f'Input "x" is missing: the model takes {X}.'),
    ("undefined", f'Input "x" is missing: the model takes {X}.'),
    ("{ x: new Float32Array(12), z: 1 }", f'The model has no input "z": it takes {X}.'),
    ("new Float32Array(12)", f"Inputs are given by name: {X}."),
])
def test_wrong_inputs(dense: Path, given: str, sentence: str):
    found, then = javascript(dense, f"""
        const session = await load();
        const found = await refusal(() => session.run({given}));
        show([found, session.run({{ x: new Float32Array(12) }}).y.shape]);
    """)
    assert found == ["SMELT_BAD_ARGUMENT", sentence]
    assert then == [1, 5]


def test_a_closed_session(dense: Path):
    found = javascript(dense, """
        const session = await load();
        session.close();
        session.close();
        show(await refusal(() => session.run({ x: new Float32Array(12) })));
    """)
    assert found == ["SMELT_BAD_ARGUMENT", "The session is closed: load the model again."]


def test_a_model_that_stopped_half_way(dense: Path):
    """Memory is in no state to go on with; the trap is the error's cause."""
    found = javascript(dense, """
        const { instantiate } = WebAssembly;
        WebAssembly.instantiate = async (...given) => {
          const exports = { ...(await instantiate(...given)).instance.exports };
          exports.smelt_run = () => { throw new WebAssembly.RuntimeError("unreachable"); };
          return { instance: { exports } };
        };
        const session = await load();
        const run = () => session.run({ x: new Float32Array(12) });
        const found = [await refusal(run), await refusal(run)];
        session.close();
        show(found);
    """)
    assert found == [["SMELT_DATA_ERROR", "The model stopped (unreachable): load it again."]] * 2


def test_states_that_are_none(states: Path):
    found = javascript(states, """
        const session = await load();
        show([await refusal(() => session.linkState("y", "nothing")),
              await refusal(() => session.linkState("nothing", "x")),
              await refusal(() => session.unlinkState("x")),
              await refusal(() => session.state("x")),
              session.inputs.length]);
    """)
    *refused, inputs = found
    assert all(code == "SMELT_BAD_ARGUMENT" for code, _ in refused)
    assert all("nothing" in text for _, text in refused[:2])
    assert refused[2][1] == refused[3][1] == 'No state is linked to the input "x".'
    assert inputs == 1


# --- where a model comes from --------------------------------------------------------------------


@pytest.fixture
def address(dense: Path):
    """The folder of `dense` by http."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(dense)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_sources(dense: Path, tmp_path: Path, address: str):
    packed = open_artifact(dense).save(tmp_path / "dense.zip")
    found, missing = javascript(dense, f"""
        import {{ readFileSync }} from "node:fs";
        const folder = {json.dumps(str(dense))};
        const zip = {json.dumps(str(packed))};
        const file = (name) => readFileSync(`${{folder}}/${{name}}`);
        const [wasm, weights] = [file("model.wasm"), file("weights.bin")];
        const manifest = JSON.parse(file("manifest.json"));
        const sources = [undefined, folder, `${{folder}}/`, new URL(`file://${{folder}}`), zip,
          readFileSync(zip), "{address}", new URL("{address}/"), {{ wasm, weights }},
          {{ wasm, weights, manifest }},
          {{ wasm: await WebAssembly.compile(wasm), weights, manifest }}];
        const shapes = [];
        for (const source of sources) {{
          const session = await load(source, {{ verify: true }});
          shapes.push(session.run({{ x: new Float32Array(24) }}).y.shape);
        }}
        show([shapes, await refusal(() => load("{address}/nowhere"))]);
    """)
    assert found == [[2, 5]] * 11
    assert missing[0] == "SMELT_BAD_ARTIFACT"
    assert missing[1].endswith("json cannot be read: the server answers 404 File not found.")


def test_as_in_a_browser(dense: Path, address: str):
    """Nothing of node is used, addresses are relative to the page's, and without a secure context
    (no crypto.subtle) checksums are left out unless asked for."""
    shape, text = javascript(dense, f"""
        globalThis.process = undefined;
        globalThis.document = {{ baseURI: "{address}/some/page.html" }};
        Object.defineProperty(globalThis, "crypto", {{ value: undefined }});
        const page = await import("./model.mjs?page");
        const session = await page.load("..");
        let text;
        await page.load("..", {{ verify: true }}).catch((error) => (text = error.message));
        show([session.run({{ x: new Float32Array(24) }}).y.shape, text]);
    """)
    assert shape == [2, 5]
    assert text == "Checksums need a secure context: load the page by https."


def changed(folder: Path, copy: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    return copy


@pytest.mark.parametrize(("name", "change", "sentence"), [
    ("weights.bin", lambda b: b[:-64], "weights.bin has another size"),
    ("weights.bin", lambda b: b[:70] + bytes([b[70] ^ 1]) + b[71:], "checksum of manifest.json"),
    ("model.wasm", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "checksum of manifest.json"),
    ("manifest.json", lambda b: b[:-9], "manifest.json is no JSON"),
    ("manifest.json", lambda b: b.replace(b'"schema_version": 1', b'"schema_version": 99'),
     "was made by a newer smelt"),
    ("manifest.json", lambda b: b.replace(b'"model.wasm"', b'"model.so"'),
     "was made for cpu:wasm32"),
])
def test_damage(dense: Path, tmp_path: Path, name: str, change, sentence: str):
    copy = changed(dense, tmp_path / "copy", name, change)
    code, text = javascript(copy, "show(await refusal(() => load()));")
    assert code == "SMELT_BAD_ARTIFACT"
    assert sentence in text and str(copy) in text


def test_weights_are_measured_without_a_manifest(dense: Path):
    code, text = javascript(dense, """
        import { readFileSync } from "node:fs";
        const wasm = readFileSync(new URL("model.wasm", import.meta.url));
        show(await refusal(() => load({ wasm, weights: new Uint8Array(64) })));
    """)
    assert code == "SMELT_BAD_ARTIFACT"
    assert "bytes of weights, not 64" in text


def test_bytes_that_are_no_artifact(dense: Path):
    found = javascript(dense, """
        const texts = [];
        for (const source of [new Uint8Array(100).fill(80), new Uint8Array(4), 3, {}]) {
          texts.push((await refusal(() => load(source)))[1]);
        }
        show(texts);
    """)
    parts = ["no complete zip", "cannot be loaded", "loaded by its URL", "files are"]
    assert all(part in text for part, text in zip(parts, found, strict=True)), found


def test_artifacts_are_the_same_bytes_and_list_their_files(tmp_path: Path):
    folders = []
    for name in ("one", "two"):
        build = Request(mlp(), "cpu:wasm32", optimize=1).build()
        folders.append(write_artifact(tmp_path / name, build.manifest, build.files))
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert one == two
    assert set(one) == {*open_artifact(folders[0], verify=True).manifest["files"], "manifest.json"}
    assert {"model.mjs", "model.d.mts", "model.wasm", "weights.bin"} <= set(one)
