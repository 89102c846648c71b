/** Types of session.mjs, which runs a model that smelt compiled for webgpu or cpu:wasm32. */

import type { Input, Tensor, TensorSpec } from "./model.mjs";

export { SmeltError, arrayTypes, narrow, widen } from "./model.mjs";
export type { DType, Input, Tensor, TensorSpec, TypedArray } from "./model.mjs";

export interface SessionOptions {
  /** By default WebGPU, and WebAssembly where the artifact has it and there is no WebGPU. */
  backend?: "webgpu" | "wasm";
  /** A GPU object other than navigator.gpu, such as that of the npm package webgpu in node. */
  gpu?: object;
  powerPreference?: "high-performance" | "low-power";
  /** Whether files that come by http stay in the browser's cache by their checksums; true unless
   * said otherwise. */
  cache?: boolean;
  /** Checksums are compared if the files have at most 64 MiB; true asks for them, false does
   * without. */
  verify?: boolean;
  /** Called while files arrive, with bytes. */
  onProgress?: (loaded: number, total: number) => void;
}

/** What runs a model, on either backend. */
export interface Session {
  /** The model's name. */
  readonly name: string;
  /** The artifact's manifest.json. */
  readonly manifest: Record<string, unknown>;
  readonly backend: "webgpu" | "wasm";
  /** Why the model runs on WebAssembly though it was compiled for WebGPU: a sentence. */
  readonly fallbackReason: string | undefined;
  /** What the model runs on, in words. */
  readonly adapter: string;
  /** The GPUDevice of the backend webgpu; its promise `lost` tells when it is gone. */
  readonly device: { destroy(): void; readonly lost: Promise<unknown> } | undefined;
  /** What `run` takes, with names of open sizes. */
  readonly inputs: readonly TensorSpec[];
  /** What `run` returns. */
  readonly outputs: readonly TensorSpec[];

  /** Runs the model on tensors by name; resolves to new arrays by name. Calls may overlap: they
   * take turns. Rejects with SmeltError; its code is SMELT_DEVICE_LOST when the browser took the
   * device away, and each later run says so too until `restart()`. */
  run(inputs?: Record<string, Input>): Promise<Record<string, Tensor>>;
  /** Loads the model anew onto a new device, from the browser's cache where it can. The choice of a
   * backend is made again. */
  restart(): Promise<void>;
  /** Frees the model's memory; running it afterwards is an error. */
  close(): void;
}

/**
 * Opens a compiled model for running.
 *
 * `source` is the folder or .zip file of an artifact, as a URL or, in node, a path, by default the
 * folder that session.mjs is in; or the bytes of a .zip. Rejects with SmeltError; its code is
 * SMELT_NO_WEBGPU where WebGPU is missing or too small for the model, and there is no fallback.
 */
export function createSession(source?: string | URL | ArrayBuffer | ArrayBufferView,
  options?: SessionOptions): Promise<Session>;
