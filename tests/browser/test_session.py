"""session.mjs in headless Chromium, whose WebGPU is SwiftShader's: results next to the cpu
target's, open sizes, control flow, errors, lost devices, the cache, WebAssembly without WebGPU.

Tolerance of floats: 1e-3 of the largest |value| for trained models (in practice about 1e-6), and
1e-5 of each value with 1e-6 for small ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from small_models import mlp, model_of
from trained_models import models_folder

import smelt
from smelt.compilation import Request
from smelt.runtime.artifact import open_artifact, write_artifact

pytestmark = pytest.mark.slow
DIGITS = Path(__file__).resolve().parents[2] / "examples/digits/digits.onnx"
F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


@pytest.fixture(scope="module")
def compiled(server) -> Callable[..., str]:
    """compiled(name, model, **extra options): the folder below the server of a webgpu artifact."""

    def compile(name: str, source: Any, **extra: str) -> str:
        folder = server.folder / name
        if not folder.exists():
            build = Request(source, "webgpu", extra=extra).build()
            write_artifact(folder, build.manifest, build.files)
        return name

    return compile


@pytest.fixture
def dense(compiled) -> str:
    """x f32[N, 12] -> y f32[N, 5]."""
    return compiled("dense", mlp())


@pytest.fixture
def both(compiled) -> str:
    """The same with a program for WebAssembly."""
    pytest.importorskip("ziglang")
    return compiled("both", mlp(), fallback="wasm")


def given(server, folder: str, inputs: dict[str, np.ndarray]) -> str:
    """JavaScript for inputs by name, whose bytes the page fetches."""
    names = {"float32": "Float32Array", "int64": "BigInt64Array", "bool": "Uint8Array",
             "uint8": "Uint8Array", "int32": "Int32Array"}
    entries = []
    for k, (name, array) in enumerate(inputs.items()):
        (server.folder / folder / f"input{k}").write_bytes(np.ascontiguousarray(array).tobytes())
        entries.append(f"{json.dumps(name)}: {{ shape: {list(array.shape)}, data: "
                       f"new {names[array.dtype.name]}(await (await fetch(base + "
                       f'"input{k}", {{ cache: "no-store" }})).arrayBuffer()) }}')
    return "{ " + ", ".join(entries) + " }"


def arrays(results: dict[str, Any]) -> dict[str, np.ndarray]:
    kinds = {"f32": np.float32, "i64": np.int64, "bool": np.bool_, "u8": np.uint8, "i32": np.int32}
    return {name: np.array([int(x) if t["dtype"] == "i64" else x for x in t["data"]],
                           kinds[t["dtype"]]).reshape(t["shape"]) for name, t in results.items()}


def assert_near(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, want in wanted.items():
        assert got[name].shape == want.shape and got[name].dtype == want.dtype
        if want.size:
            error = np.abs(got[name].astype(np.float64) - want).max()
            assert error <= 1e-3 * max(1e-30, np.abs(want).max())


# --- results -------------------------------------------------------------------------------------


def test_digits_are_those_of_the_cpu(server, compiled, in_page, rng):
    folder = compiled("digits", DIGITS)
    image = rng.random((10, 1, 8, 8), np.float32)
    backend, adapter, results = in_page(folder, f"""
        const session = await createSession(base);
        const {{ image }} = {given(server, folder, {"image": image})};
        const results = [];
        for (const [from, to] of [[0, 1], [1, 8], [8, 8], [8, 10]]) {{
            results.push(await session.run({{ image: image.data.slice(64 * from, 64 * to) }}));
        }}
        return [session.backend, session.adapter, results];""")
    assert backend == "webgpu" and "swiftshader" in adapter.lower()
    with smelt.compile(DIGITS) as module:
        for part, result in zip(np.split(image, [1, 8, 8]), results, strict=True):
            assert_near(arrays(result), module.run({"image": part}))


@pytest.mark.parametrize("name", ["mnist8", "resnet8", "silero_vad_16k_op15"])
def test_trained_models_are_those_of_the_cpu(name: str, server, compiled, in_page):
    path = models_folder() / f"{name}.onnx"
    folder = compiled(name, path)
    with np.load(models_folder() / "data" / f"{name}.npz") as data:
        inputs = {k[3:]: data[k] for k in data.files if k.startswith("in_")}
    adapter, twice, once = in_page(folder, f"""
        const session = await createSession(base);
        const inputs = {given(server, folder, inputs)};
        const first = session.run(inputs); // the second waits for it
        const second = await session.run(inputs);
        return [session.adapter, second, await first];""")
    assert "swiftshader" in adapter.lower() and twice == once
    with smelt.compile(path) as module:
        assert_near(arrays(once), module.run(inputs))


def looping() -> onnx.ModelProto:
    """y = (x + x if c else x * x) + 0 + 1 + ... + m - 1."""
    x, d, q, h, r = (helper.make_tensor_value_info(n, F32, [5]) for n in "xdqhr")
    double = helper.make_graph([helper.make_node("Add", ["x", "x"], ["d"])], "then", [], [d])
    square = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["q"])], "else", [], [q])
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]),
         helper.make_node("Cast", ["i"], ["f"], to=F32),
         helper.make_node("Add", ["h", "f"], ["r"])],
        "body", [helper.make_tensor_value_info("i", I64, []),
                 helper.make_tensor_value_info("going", BOOL, []), h],
        [helper.make_tensor_value_info("on", BOOL, []), r])
    return model_of(
        [helper.make_node("If", ["c"], ["z"], then_branch=double, else_branch=square),
         helper.make_node("Loop", ["m", "", "z"], ["y"], body=body)],
        {"c": (BOOL, []), "m": (I64, []), "x": (F32, [5])}, {"y": (F32, [5])})


def test_branches_and_loops(server, compiled, in_page, rng):
    folder = compiled("looping", looping())
    cases = [{"c": np.array(c), "m": np.array(m), "x": rng.standard_normal(5).astype(np.float32)}
             for c, m in ((True, 3), (False, 0), (False, 5))]
    for inputs in cases:
        results = in_page(folder, f"""
            return (await createSession(base)).run({given(server, folder, inputs)});""")
        x = inputs["x"]
        want = (x + x if inputs["c"] else x * x) + sum(range(int(inputs["m"])))
        np.testing.assert_allclose(arrays(results)["y"], want, 1e-5, 1e-6)


def test_what_data_is_found_to_be_during_the_run(compiled, in_page):
    """Indices are checked by the device; numbers of more than 32 bits by the host."""
    gather = model_of([helper.make_node("Gather", ["x", "i"], ["y"], axis=0)],
                      {"x": (F32, [7, 3]), "i": (I64, [4])}, {"y": (F32, [4, 3])})
    right, *wrong = in_page(compiled("gather", gather), """
        const session = await createSession(base);
        const x = Float32Array.from({ length: 21 }, (_, k) => k);
        const run = (...i) => session.run({ x, i: BigInt64Array.from(i) });
        return [(await run(0n, -1n, 6n, 2n)).y.data, await refusal(run(0n, 7n, 1n, 1n)),
                await refusal(run(0n, 2n ** 40n, 1n, 1n))];""")
    assert right == [0, 1, 2, 18, 19, 20, 18, 19, 20, 6, 7, 8]
    assert wrong[0][0] == "SMELT_DATA_ERROR"
    assert "more than 32 bits" in wrong[1][1]


def test_open_sizes_and_an_input_that_changes_while_a_run_waits(dense, in_page, rng):
    x = rng.standard_normal((300, 12)).astype(np.float32)
    want = ReferenceEvaluator(mlp()).run(None, {"x": x})[0]
    results = in_page(dense, f"""
        const session = await createSession(base);
        const x = new Float32Array({json.dumps(x.ravel().tolist())});
        const runs = [1, 7, 0, 300, 2].map((n) => session.run({{ x: x.slice(0, 12 * n) }}));
        const changing = x.slice(0, 24);
        runs.push(session.run({{ x: changing }}));
        changing.fill(0);
        return Promise.all(runs);""")
    for n, result in zip((1, 7, 0, 300, 2, 2), results, strict=True):
        assert result["y"]["shape"] == [n, 5]
        np.testing.assert_allclose(arrays(result)["y"], want[:n], 1e-5, 1e-6)


# --- WebGPU or not -------------------------------------------------------------------------------


def test_without_webgpu_the_wasm_program_runs(both, in_page, rng):
    x = rng.standard_normal((3, 12)).astype(np.float32)
    backend, reason, inputs, results, forced = in_page(both, f"""
        const session = await createSession(base);
        const x = new Float32Array({json.dumps(x.ravel().tolist())});
        return [session.backend, session.fallbackReason, session.inputs, await session.run({{ x }}),
                await refusal(createSession(base, {{ backend: "webgpu" }}))];""", webgpu=False)
    assert backend == "wasm" and "WebGPU" in reason
    assert inputs == [{"name": "x", "dtype": "f32", "shape": ["n", 12]}]
    want = ReferenceEvaluator(mlp()).run(None, {"x": x})[0]
    np.testing.assert_allclose(arrays(results)["y"], want, 1e-5, 1e-6)
    assert forced == ["SMELT_NO_WEBGPU", reason]


def test_both_backends_show_the_same(both, in_page):
    one, two = in_page(both, """
        const facts = async (backend) => {
            const session = await createSession(base, { backend });
            const { y } = await session.run({ x: new Float32Array(24) });
            return [session.name, session.inputs, session.outputs, y.shape, y.dtype,
                    y.data.constructor.name, await refusal(session.run({})),
                    await refusal(session.run({ x: new Float32Array(13) })),
                    await refusal(session.run({ x: new Float64Array(12) })),
                    await refusal(session.run({ x: { data: new Float32Array(12), shape: [12] } })),
                    await refusal(session.run({ x: new Float32Array(12), z: 1 }))];
        };
        return [await facts("webgpu"), await facts("wasm")];""")
    assert one == two
    assert one[6] == ["SMELT_BAD_ARGUMENT", 'Input "x" is missing: the model takes x: f32[n, 12].']


def test_without_webgpu_and_fallback_one_sentence_says_so(dense, in_page):
    code, text = in_page(dense, "return refusal(createSession(base));", webgpu=False)
    assert code == "SMELT_NO_WEBGPU" and "WebGPU" in text and text.endswith(".")


def test_an_adapter_that_is_too_small_is_named(both, in_page):
    text, backend = in_page(both, """
        const gpu = { requestAdapter: async () => {
            const adapter = await navigator.gpu.requestAdapter();
            return { info: adapter.info, limits: { ...Object.fromEntries([
                "maxStorageBufferBindingSize", "maxBufferSize", "maxStorageBuffersPerShaderStage",
                "maxComputeWorkgroupStorageSize"].map((name) => [name, adapter.limits[name]])),
                maxComputeInvocationsPerWorkgroup: 128 } };
        } };
        const [, text] = await refusal(createSession(base, { gpu, backend: "webgpu" }));
        return [text, (await createSession(base, { gpu })).backend];""")
    assert text == ("The model needs maxComputeInvocationsPerWorkgroup of 256, but this adapter "
                    "has 128: run it on another one.")
    assert backend == "wasm"


def test_a_lost_device_is_said_and_a_restart_brings_another(dense, in_page):
    running, later, same, closed = in_page(dense, """
        const session = await createSession(base);
        const x = Float32Array.from({ length: 24 }, (_, k) => k / 24);
        const before = (await session.run({ x })).y.data;
        const running = refusal(session.run({ x }));
        session.device.destroy();
        const found = [await running, await refusal(session.run({ x }))];
        await session.restart();
        const after = (await session.run({ x })).y.data;
        found.push(before.every((value, k) => value === after[k]));
        session.close();
        session.close();
        found.push(await refusal(session.run({ x })));
        return found;""")
    for code, text in (running, later):
        assert code == "SMELT_DEVICE_LOST"
        assert text.startswith("The graphics device was lost") and "restart()" in text
    assert same
    assert closed == ["SMELT_BAD_ARGUMENT", "The session is closed: load the model again."]


# --- files ---------------------------------------------------------------------------------------


def test_progress_and_the_cache(server, dense, in_page):
    folder = "cached"
    shutil.copytree(server.folder / dense, server.folder / folder)
    weights = f"/{folder}/weights.bin"
    (progress, size), names = in_page(folder, """
        const open = async (onProgress) => (await createSession(base, { onProgress })).run(
            { x: new Float32Array(12) });
        const progress = [];
        await open((...counts) => progress.push(counts));
        const cache = await caches.open(`smelt ${base}`);
        await cache.put(`${base}?sha256=old`, new Response("of an older model"));
        const weights = (await createSession(base, { cache: false })).manifest.files["weights.bin"];
        let names = []; // files get there behind the session's back
        while (!names.includes(`?sha256=${weights.sha256}`)) {
            names = (await cache.keys()).map(({ url }) => new URL(url).search);
        }
        await open(); // from the cache
        names = (await cache.keys()).map(({ url }) => new URL(url).search);
        await cache.put(`${base}?sha256=${weights.sha256}`, new Response("damaged"));
        await open();
        return [[progress, weights.size], names];""")
    assert server.requests[weights] == 3  # first, without the cache, and in place of damaged data
    totals = {total for _, total in progress}
    loaded = [count for count, _ in progress]
    assert loaded == sorted(loaded) and totals == {loaded[-1]} and loaded[-1] > size
    assert "?sha256=old" not in names
    files = open_artifact(server.folder / folder).manifest["files"]
    assert f"?sha256={files['weights.bin']['sha256']}" in names


@pytest.mark.parametrize(("name", "change", "sentence"), [
    ("weights.bin", lambda b: b[:-4], "weights.bin has another size"),
    ("weights.bin", lambda b: b[:70] + bytes([b[70] ^ 1]) + b[71:], "checksum of manifest.json"),
    ("plan.json", lambda b: b.replace(b'"version": 1', b'"version": 9'), "checksum"),
    ("manifest.json", lambda b: b[:-9], "manifest.json is no JSON"),
    ("manifest.json", lambda b: b.replace(b'"schema_version": 1', b'"schema_version": 99'),
     "made by a newer smelt"),
])
def test_damage(server, dense, in_page, name: str, change, sentence: str):
    folder = f"damaged-{abs(hash(sentence))}"
    shutil.copytree(server.folder / dense, server.folder / folder, dirs_exist_ok=True)
    path = server.folder / folder / name
    path.write_bytes(change(path.read_bytes()))
    code, text = in_page(folder, "return refusal(createSession(base));")
    assert code == "SMELT_BAD_ARTIFACT" and sentence in text


def test_what_the_plan_says_is_not_trusted(server, dense, in_page):
    """Names of shaders lead nowhere else, and unknown plans are refused."""
    folder = "strange"
    shutil.copytree(server.folder / dense, server.folder / folder)
    plan = json.loads((server.folder / dense / "plan.json").read_text())
    manifest = json.loads((server.folder / dense / "manifest.json").read_text())
    found = []
    for changed in ({**plan, "version": 9}, {**plan, "shaders": ["../../blank.html#"]},
                    {**plan, "conditions": [[["constructor", 1], "never"]]}):
        text = json.dumps(changed).encode()
        (server.folder / folder / "plan.json").write_bytes(text)
        files = {**manifest["files"], "plan.json": {"sha256": "", "size": len(text)},
                 "shaders/../../blank.html#.wgsl": {"sha256": "", "size": 1}}
        (server.folder / folder / "manifest.json").write_text(
            json.dumps({**manifest, "files": files}))
        found.append(in_page(folder, """
            return refusal(createSession(base, { verify: false }).then((session) =>
                session.run({ x: new Float32Array(12) })));"""))
    assert [code for code, _ in found] == ["SMELT_BAD_ARTIFACT"] * 3
    for (_, text), part in zip(found, ("no plan of version 1", "refused", "computes a size"),
                               strict=True):
        assert part in text


def test_a_zip_file(server, dense, in_page):
    open_artifact(server.folder / dense).save(server.folder / "dense.zip")
    shape = in_page(dense, """
        const session = await createSession(new URL("../dense.zip", base));
        return (await session.run({ x: new Float32Array(24) })).y.shape;""")
    assert shape == [2, 5]
