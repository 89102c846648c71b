/** Types of model.mjs, which runs a model that smelt compiled for cpu:wasm32. */

/** Element types. Those without an array of their own come as their bits. */
export type DType =
  | "bool" | "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64"
  | "f16" | "bf16" | "f32" | "f64"
  | "f8e4m3fn" | "f8e4m3fnuz" | "f8e5m2" | "f8e5m2fnuz" | "f8e8m0" | "f4e2m1"
  | "i4" | "u4" | "i2" | "u2";

export type TypedArray =
  | Int8Array | Int16Array | Int32Array | BigInt64Array
  | Uint8Array | Uint8ClampedArray | Uint16Array | Uint32Array | BigUint64Array
  | Float32Array | Float64Array;

/** The typed array of every element type: BigInt64Array for i64, Uint16Array for the bits of f16 and
 * bf16, Uint8Array for bool (0 or 1), Int8Array for i4. */
export const arrayTypes: Readonly<Record<DType, { new (length: number): TypedArray;
  new (buffer: ArrayBufferLike, byteOffset?: number, length?: number): TypedArray;
  readonly BYTES_PER_ELEMENT: number; readonly name: string }>>;

/** An input or output: sizes are numbers or expressions of named sizes, such as "N". */
export interface TensorSpec {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly (number | string)[];
}

/** What `run` returns: elements in row-major order. */
export interface Tensor {
  data: TypedArray;
  shape: number[];
  dtype: DType;
}

/** What `run` takes. Without a shape at most one size of the input may be open. */
export type Input = TypedArray | { data: TypedArray; shape?: ArrayLike<number | bigint> };

type Bytes = ArrayBuffer | ArrayBufferView;

/** The files of an artifact; with `manifest` (the object in manifest.json) sizes and checksums are
 * compared and declared states linked. */
export interface Files {
  wasm: Bytes | WebAssembly.Module;
  weights?: Bytes;
  manifest?: object;
}

/** What went wrong, as a sentence; `code` is the name of an error code of program.h, or says that
 * WebGPU is missing or took the device away. */
export class SmeltError extends Error {
  readonly code: "SMELT_BAD_ARGUMENT" | "SMELT_OUT_OF_MEMORY" | "SMELT_BAD_ARTIFACT"
    | "SMELT_UNSUPPORTED_CPU" | "SMELT_DATA_ERROR" | "SMELT_NO_WEBGPU" | "SMELT_DEVICE_LOST";
}

/** What runs a model: memory for its tensors, and its states. */
export class Session {
  private constructor();
  /** The model's name. */
  readonly name: string;
  /** The artifact's manifest.json, if it was loaded with one. */
  readonly manifest: Record<string, unknown> | undefined;
  /** What `run` takes: the model's inputs without linked states. */
  readonly inputs: TensorSpec[];
  /** What `run` returns: the model's outputs without those that feed states. */
  readonly outputs: TensorSpec[];

  /** Runs the model on tensors by name; returns new arrays by name. */
  run(inputs?: Record<string, Input>): Record<string, Tensor>;
  /** Another session, with states of its own; shares the code, the weights and their memory. */
  session(): Session;
  /** Feeds an output of each run to an input of the next; `run` no longer shows either. `initial` is
   * the value before the first run, else zeros. A value given to the input counts for that run
   * instead of the state. */
  linkState(output: string, input: string, initial?: Input): void;
  /** Ends the link of an input. */
  unlinkState(input: string): void;
  /** Puts every state back to its initial value. */
  resetStates(): void;
  /** A copy of the state of an input; null if it is zeros of a shape not yet known. */
  state(input: string): Tensor | null;
  /** Frees the session's memory, and with the last session of a model the model's. */
  close(): void;
}

/**
 * Opens a compiled model and a session to run it.
 *
 * `source` is the folder or .zip file of an artifact, as a URL or, in node, a path; by default the
 * folder that model.mjs is in. Or the bytes of a .zip, or of a model.wasm that has no weights; or the
 * files themselves. Sizes are always compared with the manifest, checksums if the files have at most
 * 64 MiB; `verify` true or false asks for them or does without. Rejects with SmeltError.
 */
export function load(source?: string | URL | Bytes | Files, options?: { verify?: boolean }):
  Promise<Session>;

/** The numbers of an array of f16 or bf16 bits. */
export function widen(bits: ArrayLike<number>, dtype?: "f16" | "bf16"): Float32Array;

/** The f16 or bf16 bits of 32-bit floats, rounded to nearest, ties to even. */
export function narrow(numbers: ArrayLike<number>, dtype?: "f16" | "bf16"): Uint16Array;
