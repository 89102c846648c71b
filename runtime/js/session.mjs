// Runs a model that smelt compiled for webgpu or cpu:wasm32, in browsers and in node 18 or later:
//
//     import { createSession } from "./digits.smelt/session.mjs";
//     const session = await createSession();
//     const { scores } = await session.run({ images: new Float32Array(64) });
//     console.log(session.backend, scores.shape, scores.data);
//     session.close();
//
// The two backends, webgpu.mjs and model.mjs, are loaded when they are used. Types: session.d.mts.

import { openArtifact } from "./files.mjs";
import { SmeltError } from "./tensors.mjs";
import { NO_WEBGPU, PLAN, WebGpuModel } from "./webgpu.mjs";

export { SmeltError, arrayTypes, narrow, widen } from "./tensors.mjs";

const BACKENDS = ["webgpu", "wasm"];
const BAD_ARTIFACT = "SMELT_BAD_ARTIFACT";

/**
 * Opens a compiled model for running.
 *
 * `source` is the folder or .zip file of an artifact, as a URL or, in node, a path, by default the
 * folder that this module is in; or the bytes of a .zip. Rejects with SmeltError.
 */
export async function createSession(source = new URL(".", import.meta.url), options = {}) {
  const { backend, cache = true } = options;
  if (backend !== undefined && !BACKENDS.includes(backend)) {
    throw new SmeltError(`The backend is one of ${BACKENDS.join(" and ")}, not ${backend}.`);
  }
  const session = new Session(await openArtifact(source, { cache }), options);
  await session.restart();
  return session;
}

// What runs a model, on either backend.
class Session {
  #artifact;
  #options;
  #model;
  #reason;
  #closed = false;

  constructor(artifact, options) {
    this.#artifact = artifact;
    this.#options = options;
  }

  /** The model's name. */
  get name() {
    return this.#artifact.manifest.name;
  }

  /** The artifact's manifest.json. */
  get manifest() {
    return this.#artifact.manifest;
  }

  /** "webgpu" or "wasm". */
  get backend() {
    return this.#open().backend;
  }

  /** Why the model runs on WebAssembly though it was compiled for WebGPU: a sentence. */
  get fallbackReason() {
    return this.#reason;
  }

  /** What the model runs on, in words. */
  get adapter() {
    return this.#open().adapter;
  }

  /** The GPUDevice of the backend webgpu. */
  get device() {
    return this.#open().device;
  }

  /** What `run` takes, with names of open sizes. */
  get inputs() {
    return this.#open().inputs;
  }

  /** What `run` returns. */
  get outputs() {
    return this.#open().outputs;
  }

  /** Runs the model on tensors by name; resolves to new arrays by name. */
  async run(inputs = {}) {
    return this.#open().run(inputs);
  }

  /** Loads the model anew onto a new device, after the old one was lost. */
  async restart() {
    if (this.#closed) this.#open();
    this.#model?.close();
    this.#model = undefined;
    const model = await this.#load();
    if (this.#closed) {
      model.close();
      return;
    }
    this.#model?.close(); // that of another restart, which was quicker
    this.#model = model;
  }

  /** Frees the model's memory; running it afterwards is an error. */
  close() {
    this.#closed = true;
    this.#model?.close();
    this.#model = undefined;
  }

  async #load() {
    const { gpu = globalThis.navigator?.gpu, backend, powerPreference = "high-performance", verify,
      onProgress } = this.#options;
    const artifact = this.#artifact;
    const wasm = ["wasm/", ""].find((folder) => artifact.has(`${folder}model.wasm`));
    const loading = { gpu, powerPreference, verify, onProgress };
    this.#reason = undefined;
    if (backend !== "wasm" && artifact.has(PLAN)) {
      try {
        return await WebGpuModel.open(artifact, loading);
      } catch (error) {
        if (error.code !== NO_WEBGPU || backend || wasm === undefined) throw error;
        this.#reason = error.message;
      }
    } else if (backend === "webgpu" || wasm === undefined) {
      throw new SmeltError(`${artifact.name} was made for ${this.manifest.target}: compile the ` +
        `model with --target ${backend === "webgpu" ? "webgpu" : "cpu:wasm32, or with --target " +
        "webgpu --option fallback=wasm"}.`, BAD_ARTIFACT);
    }
    return WasmModel.open(artifact, wasm, loading);
  }

  #open() {
    if (this.#closed) throw new SmeltError("The session is closed: load the model again.");
    if (!this.#model) throw new SmeltError("The session has no device: call restart() on it.");
    return this.#model;
  }
}

// The program for processors, with the methods of WebGpuModel.
class WasmModel {
  backend = "wasm";
  adapter = "WebAssembly";
  device = undefined;

  static async open(artifact, folder, { verify, onProgress }) {
    const names = ["model.wasm", "weights.bin"].map((name) => folder + name);
    const files = await artifact.checkedBytes(names, { verify, onProgress });
    const [wasm, weights] = names.map((name) => files.get(name));
    const { load } = await import("./model.mjs");
    const { states, files: listed } = artifact.manifest;
    const manifest = {
      states, files: { "model.wasm": listed[names[0]], "weights.bin": listed[names[1]] },
    };
    return new WasmModel(await load({ wasm, weights, manifest }, { verify: false }));
  }

  constructor(session) {
    this.session = session;
  }

  get inputs() {
    return this.session.inputs;
  }

  get outputs() {
    return this.session.outputs;
  }

  run(inputs) {
    return this.session.run(inputs);
  }

  close() {
    this.session.close();
  }
}
