// Runs a model that smelt compiled for cpu:wasm32, in browsers and in node 18 or later:
//
//     import { load } from "./digits.smelt/model.mjs";
//     const session = await load();
//     const { scores } = session.run({ images: new Float32Array(64) });
//     console.log(scores.shape, scores.data);
//     session.close();
//
// A thin layer over the C interface of smelt.h, which model.wasm exports. Pointers are numbers, i64
// are BigInts, a smelt_tensor is four words. Memory that grows gets a new buffer, so views of it are
// made where they are used. Types: model.d.mts.

const SCHEMA_VERSION = 1;
const WASM = "model.wasm";
const WEIGHTS = "weights.bin";
const MANIFEST = "manifest.json";
const VERIFIED_BYTES = 64 * 2 ** 20; // checksums are computed up to here unless asked for
const ALIGNMENT = 64; // bytes, of weights and whatever else is put into memory
const TENSOR = 16; // bytes of a smelt_tensor: data, shape, dtype, rank

// The codes of program.h.
const CODES = ["SMELT_OK", "SMELT_BAD_ARGUMENT", "SMELT_OUT_OF_MEMORY", "SMELT_BAD_ARTIFACT",
  "SMELT_UNSUPPORTED_CPU", "SMELT_DATA_ERROR"];
const [, BAD_ARGUMENT, OUT_OF_MEMORY, BAD_ARTIFACT] = CODES;

/** The typed array of every element type, in the order of smelt.h, where bool is 1. 16-bit floats
 * are their bits (see `widen`), and so are narrower ones. */
export const arrayTypes = Object.freeze({
  bool: Uint8Array, i8: Int8Array, i16: Int16Array, i32: Int32Array, i64: BigInt64Array,
  u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, u64: BigUint64Array,
  f16: Uint16Array, bf16: Uint16Array, f32: Float32Array, f64: Float64Array,
  f8e4m3fn: Uint8Array, f8e4m3fnuz: Uint8Array, f8e5m2: Uint8Array, f8e5m2fnuz: Uint8Array,
  f8e8m0: Uint8Array, f4e2m1: Uint8Array, i4: Int8Array, u4: Uint8Array, i2: Int8Array,
  u2: Uint8Array,
});
const DTYPES = Object.keys(arrayTypes);

// What else an input may come in, and what an array is called that does not fit.
const ALSO = { u8: "Uint8ClampedArray", f16: "Float16Array" };
const NAMES = {
  Int8Array: "i8", Int16Array: "i16", Int32Array: "i32", BigInt64Array: "i64", Uint8Array: "u8",
  Uint16Array: "u16", Uint32Array: "u32", BigUint64Array: "u64", Float32Array: "f32",
  Float64Array: "f64", ...Object.fromEntries(Object.entries(ALSO).map(([k, v]) => [v, k])),
};

/** What went wrong, as a sentence; `code` is the name of an error code of program.h. */
export class SmeltError extends Error {
  constructor(message, code = BAD_ARGUMENT, options = undefined) {
    super(message, options);
    this.name = "SmeltError";
    this.code = code;
  }
}

/**
 * Opens a compiled model and a session to run it.
 *
 * `source` is the folder or .zip file of an artifact, as a URL or, in node, a path; by default the
 * folder that this module is in. Or the bytes of a .zip, or of a model.wasm that has no weights; or
 * the files themselves: `{ wasm, weights, manifest }`. Sizes are always compared with the manifest, checksums if the
 * files have at most 64 MiB; `verify` true or false asks for them or does without. States that the
 * manifest declares are linked.
 */
export async function load(source = new URL(".", import.meta.url), { verify } = {}) {
  const files = await read(source);
  if (files.manifest) await checkFiles(files, verify);
  const library = await Library.open(files);
  return new Session(library);
}

// ---- reading an artifact ------------------------------------------------------------------------

const inNode = Boolean(globalThis.process?.versions?.node);
// Bundlers for browsers leave these imports alone.
const nodeModule = (name) => import(/* webpackIgnore: true */ /* @vite-ignore */ `node:${name}`);
const isBytes = (value) => ArrayBuffer.isView(value) || value instanceof ArrayBuffer;

function asBytes(value) {
  return ArrayBuffer.isView(value) ? new Uint8Array(value.buffer, value.byteOffset,
    value.byteLength) : new Uint8Array(value);
}

async function read(source) {
  if (isBytes(source)) {
    const bytes = asBytes(source);
    if (bytes[0] !== 0) return unpack("The artifact", bytes);
    source = { wasm: bytes }; // a .wasm begins with 0
  }
  if (source && typeof source === "object" && !(source instanceof URL)) {
    if (!source.wasm) throw new SmeltError(`An artifact's files are { wasm, weights, manifest }.`);
    const { wasm, weights, manifest } = source;
    return {
      name: "The artifact", manifest,
      wasm: isBytes(wasm) ? asBytes(wasm) : wasm, // or a WebAssembly.Module
      weights: asBytes(weights ?? new Uint8Array()),
    };
  }
  const url = await asUrl(source);
  const name = `The artifact ${url.protocol === "file:" ? decodeURI(url.pathname) : url.href}`;
  if (/\.zip$/i.test(url.pathname)) return unpack(name, await fetchBytes(url));
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  const manifest = parseManifest(name, await fetchBytes(new URL(MANIFEST, url)));
  const [wasm, weights] = await Promise.all([WASM, WEIGHTS].map((file) =>
    fetchBytes(new URL(file, url))));
  return { name, manifest, wasm, weights };
}

async function asUrl(source) {
  if (source instanceof URL) return new URL(source);
  if (typeof source !== "string") {
    throw new SmeltError("An artifact is loaded by its URL or path, from bytes or from " +
      "{ wasm, weights, manifest }.");
  }
  if (/^[a-z][a-z0-9+.-]+:/i.test(source)) return new URL(source); // one letter: a Windows drive
  if (inNode) return (await nodeModule("url")).pathToFileURL(source);
  return new URL(source, globalThis.document?.baseURI ?? globalThis.location?.href);
}

async function fetchBytes(url) {
  let reason;
  try {
    if (url.protocol === "file:" && inNode) {
      return asBytes(await (await nodeModule("fs/promises")).readFile(url));
    }
    const response = await fetch(url);
    if (response.ok) return new Uint8Array(await response.arrayBuffer());
    reason = `the server answers ${response.status} ${response.statusText}`.trim();
  } catch (error) {
    reason = error.message;
  }
  throw new SmeltError(`${url.href} cannot be read: ${reason}.`, BAD_ARTIFACT);
}

function damaged(name, what) {
  return new SmeltError(`${name} is damaged: ${what}; compile or copy it again.`, BAD_ARTIFACT);
}

function parseManifest(name, bytes) {
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw damaged(name, `${MANIFEST} is no JSON`);
  }
  const version = manifest?.schema_version;
  if (!Number.isInteger(version) || version < 1) {
    throw damaged(name, `${MANIFEST} has no schema version`);
  }
  if (version > SCHEMA_VERSION) {
    throw new SmeltError(`${name} was made by a newer smelt (${manifest.smelt}, schema ` +
      `${version}): use its own model.mjs.`, BAD_ARTIFACT);
  }
  if (!manifest.files?.[WASM]) {
    throw new SmeltError(`${name} was made for ${manifest.target}: compile the model with ` +
      "--target cpu:wasm32.", BAD_ARTIFACT);
  }
  return manifest;
}

// The files of an artifact in one zip file, which smelt stores uncompressed.
function unpack(name, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (at) => view.getUint32(at, true);
  const half = (at) => view.getUint16(at, true);
  const files = new Map();
  try {
    let end = bytes.length - 22;
    while (word(end) !== 0x06054b50) end--; // the end of the central directory
    for (let at = word(end + 16), left = half(end + 10); left; left--) {
      const [size, nameSize, start] = [word(at + 20), half(at + 28), word(at + 42)];
      const file = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameSize));
      const data = start + 30 + half(start + 26) + half(start + 28);
      if (data + size > bytes.length) throw new RangeError();
      files.set(file, half(at + 10) ? null : bytes.subarray(data, data + size));
      at += 46 + nameSize + half(at + 30) + half(at + 32);
    }
  } catch (error) {
    if (error instanceof RangeError) throw damaged(name, "it is no complete zip file");
    throw error;
  }
  const found = (file) => {
    if (files.get(file)) return files.get(file);
    throw new SmeltError(files.has(file) ? `${name} was compressed by another program: unpack it.`
      : `${name} has no ${file}.`, BAD_ARTIFACT);
  };
  const manifest = parseManifest(name, found(MANIFEST));
  return { name, manifest, wasm: found(WASM), weights: found(WEIGHTS) };
}

async function checkFiles({ name, manifest, wasm, weights }, verify) {
  const files = [[WASM, wasm], [WEIGHTS, weights]].filter(([, data]) => data instanceof Uint8Array);
  const total = files.reduce((sum, [, data]) => sum + data.length, 0);
  const crypto = globalThis.crypto ?? (inNode ? (await nodeModule("crypto")).webcrypto : undefined);
  if (verify && !crypto?.subtle) {
    throw new SmeltError("Checksums need a secure context: load the page by https.");
  }
  for (const [file, data] of files) {
    const entry = manifest.files?.[file];
    if (entry?.size !== data.length) throw damaged(name, `${file} has another size`);
    if (!(verify ?? total <= VERIFIED_BYTES) || !crypto?.subtle) continue;
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== entry.sha256) {
      throw damaged(name, `${file} does not have the checksum of ${MANIFEST}`);
    }
  }
}

// ---- the library --------------------------------------------------------------------------------

// An instance of model.wasm with an open model; goes with its last session.
class Library {
  static async open({ name, manifest, wasm, weights }) {
    let made;
    try {
      made = await WebAssembly.instantiate(wasm);
    } catch (error) {
      throw new SmeltError(`${name} cannot be loaded (${error.message}): it needs WebAssembly ` +
        "with SIMD.", BAD_ARTIFACT, { cause: error });
    }
    return new Library((made.instance ?? made).exports, weights, manifest);
  }

  constructor(c, weights, manifest) {
    this.c = c;
    this.manifest = manifest;
    this.users = 0;
    this.broken = undefined;
    c._initialize();
    const bytes = BigInt(weights.length);
    this.model = this.handle((out) =>
      c.smelt_open_memory(c.smelt_linked_programs(), this.place(weights), bytes, out));
    this.name = this.text(c.smelt_model_name(this.model));
    this.inputs = this.#specs(c.smelt_input_count(this.model), c.smelt_input_info);
    this.outputs = this.#specs(c.smelt_output_count(this.model), c.smelt_output_info);
  }

  #specs(count, info) {
    const word = (at) => this.view().getUint32(at, true);
    return Array.from({ length: count }, (_, index) => {
      const at = info(this.model, index) >>> 0; // name, dtype, rank, dims
      const [name, dtype, rank, dims] = [0, 4, 8, 12].map((offset) => word(at + offset));
      const shape = Array.from({ length: rank }, (_, axis) => this.text(word(dims + 4 * axis)));
      return Object.freeze({
        name: this.text(name), dtype: DTYPES[dtype - 1],
        shape: Object.freeze(shape.map((size) => (/^\d+$/.test(size) ? Number(size) : size))),
      });
    });
  }

  view() {
    return new DataView(this.c.memory.buffer);
  }

  allocate(size) {
    const rounded = Math.max(1, Math.ceil(size / ALIGNMENT)) * ALIGNMENT;
    const at = rounded < 2 ** 32 ? this.c.aligned_alloc(ALIGNMENT, rounded) >>> 0 : 0;
    if (!at) throw new SmeltError(`No memory for ${size} bytes.`, OUT_OF_MEMORY);
    return at;
  }

  place(bytes) {
    const at = this.allocate(bytes.length);
    new Uint8Array(this.c.memory.buffer).set(bytes, at);
    return at;
  }

  text(at) {
    const all = new Uint8Array(this.c.memory.buffer);
    return new TextDecoder().decode(all.subarray(at >>> 0, all.indexOf(0, at >>> 0)));
  }

  // Calls `use` with the text in memory.
  withText(text, use) {
    const at = this.place(new TextEncoder().encode(`${text}\0`));
    try {
      return use(at);
    } finally {
      this.c.free(at);
    }
  }

  // What `open` writes to the address that it is called with.
  handle(open) {
    const at = this.allocate(4);
    try {
      this.check(open(at));
      return this.view().getUint32(at, true);
    } finally {
      this.c.free(at);
    }
  }

  check(code) {
    if (code) throw new SmeltError(this.text(this.c.smelt_error()), CODES[code]);
  }

  shape(at, rank) {
    const view = this.view();
    return Array.from({ length: rank }, (_, k) => Number(view.getBigInt64(at + 8 * k, true)));
  }

  // A copy of the smelt_tensor at an address; zeros where it has no data.
  tensor(at, dtype) {
    const [data, shape, , rank] = [0, 4, 8, 12].map((k) => this.view().getUint32(at + k, true));
    const sizes = this.shape(shape, rank);
    const Type = arrayTypes[dtype];
    const size = product(sizes) * Type.BYTES_PER_ELEMENT;
    const bytes = data ? this.c.memory.buffer.slice(data, data + size) : new ArrayBuffer(size);
    return { data: new Type(bytes), shape: sizes, dtype };
  }

  // With the last session everything goes: nothing else refers to the instance and its memory.
  release() {
    if (--this.users === 0 && !this.broken) this.c.smelt_close(this.model);
  }
}

const product = (sizes) => sizes.reduce((all, size) => all * size, 1);

function signature(specs) {
  return specs.map((spec) => `${spec.name}: ${typeText(spec)}`).join(", ") || "no inputs";
}

function typeText({ dtype, shape }) {
  return `${dtype}[${shape.join(", ")}]`;
}

// ---- sessions -----------------------------------------------------------------------------------

/** What runs a model: memory for its tensors, and its states. Made by `load` and by `session()`. */
export class Session {
  #library; // undefined when closed
  #handle;
  #inputs = 0; // smelt_tensor of every input, and of every output
  #outputs = 0;
  #blocks; // by input: where its data goes, and how many bytes fit
  #shapes; // by input: where its shape goes
  #scratch = 0; // one smelt_tensor
  #links = new Map(); // input -> output

  constructor(library) {
    if (!(library instanceof Library)) throw new SmeltError("A session comes from load().");
    const { c, inputs, outputs } = library;
    this.#handle = library.handle((out) => c.smelt_session_open(library.model, 1, out));
    this.#library = library;
    library.users++;
    this.#blocks = inputs.map(() => ({ at: 0, size: 0 }));
    this.#shapes = inputs.map(() => 0);
    try {
      this.#scratch = library.allocate(TENSOR);
      this.#inputs = library.allocate(TENSOR * inputs.length);
      this.#outputs = library.allocate(TENSOR * outputs.length);
      inputs.forEach((spec, i) => (this.#shapes[i] = library.allocate(8 * spec.shape.length)));
      for (const [output, input] of library.manifest?.states ?? []) this.linkState(output, input);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** The model's name. */
  get name() {
    return this.#open().name;
  }

  /** The artifact's manifest.json, if it was loaded with one. */
  get manifest() {
    return this.#open().manifest;
  }

  /** What `run` takes: the model's inputs without linked states, with names of open sizes. */
  get inputs() {
    return this.#open().inputs.filter((spec) => !this.#links.has(spec.name));
  }

  /** What `run` returns: the model's outputs without those that feed states. */
  get outputs() {
    const fed = new Set(this.#links.values());
    return this.#open().outputs.filter((spec) => !fed.has(spec.name));
  }

  /** Another session, with states of its own; shares the code, the weights and their memory. */
  session() {
    return new Session(this.#open());
  }

  /** Runs the model on tensors by name; returns new arrays by name. */
  run(inputs = {}) {
    const library = this.#open();
    const { c } = library;
    this.#checkNames(inputs);
    library.inputs.forEach((spec, i) => {
      const at = this.#inputs + TENSOR * i;
      if (inputs[spec.name] === undefined) library.view().setUint32(at, 0, true); // a state
      else this.#setTensor(at, i, inputs[spec.name]);
    });
    const bytes = TENSOR * library.outputs.length;
    new Uint8Array(c.memory.buffer, this.#outputs, bytes).fill(0);
    let code;
    try {
      code = c.smelt_run(this.#handle, this.#inputs, library.inputs.length, this.#outputs,
        library.outputs.length);
    } catch (error) {
      library.broken = error; // half-way: its memory is in no state to go on with
      return this.#open();
    }
    library.check(code);
    const fed = new Set(this.#links.values());
    const results = library.outputs.map(({ name, dtype }, i) => !fed.has(name) &&
      [name, library.tensor(this.#outputs + TENSOR * i, dtype)]);
    return Object.fromEntries(results.filter(Boolean));
  }

  #checkNames(inputs) {
    if (inputs === null || typeof inputs !== "object" || isBytes(inputs)) {
      throw new SmeltError(`Inputs are given by name: ${signature(this.inputs)}.`);
    }
    const all = this.#library.inputs;
    for (const name of Object.keys(inputs)) {
      if (all.some((spec) => spec.name === name)) continue;
      throw new SmeltError(`The model has no input "${name}": it takes ${signature(this.inputs)}.`);
    }
    for (const { name } of this.inputs) {
      if (inputs[name] !== undefined) continue;
      throw new SmeltError(`Input "${name}" is missing: the model takes ${signature(this.inputs)}.`);
    }
  }

  // Copies a caller's tensor into memory and describes it at `at`.
  #setTensor(at, index, value) {
    const library = this.#library;
    const { data, shape, dtype } = asTensor(value, library.inputs[index]);
    const bytes = asBytes(data);
    const block = this.#blocks[index];
    if (!block.at || block.size < bytes.length) {
      library.c.free(block.at);
      block.at = 0;
      block.at = library.allocate(bytes.length);
      block.size = bytes.length;
    }
    // A shape of another rank is refused, but has to be described for that.
    if (shape.length > library.inputs[index].shape.length) {
      library.c.free(this.#shapes[index]);
      this.#shapes[index] = 0;
      this.#shapes[index] = library.allocate(8 * shape.length);
    }
    const copy = new Uint8Array(library.c.memory.buffer, block.at, bytes.length);
    if (dtype === "bool") bytes.forEach((byte, i) => (copy[i] = byte ? 1 : 0));
    else copy.set(bytes);
    const view = library.view();
    shape.forEach((size, axis) =>
      view.setBigInt64(this.#shapes[index] + 8 * axis, BigInt(size), true));
    [block.at, this.#shapes[index], DTYPES.indexOf(dtype) + 1, shape.length].forEach((word, k) =>
      view.setUint32(at + 4 * k, word, true));
  }

  /** Feeds an output of each run to an input of the next; `run` no longer shows either. `initial`
   * is the value before the first run, else zeros. A value given to the input counts for that run
   * instead of the state. */
  linkState(output, input, initial = undefined) {
    const library = this.#open();
    const index = library.inputs.findIndex((spec) => spec.name === input);
    let start = 0;
    if (initial !== undefined && index >= 0) {
      start = this.#scratch;
      this.#setTensor(start, index, initial);
    }
    library.check(library.withText(output, (from) => library.withText(input, (to) =>
      library.c.smelt_link_state(this.#handle, from, to, start))));
    this.#links.set(input, output);
  }

  /** Ends the link of an input. */
  unlinkState(input) {
    const library = this.#open();
    library.check(library.withText(input, (to) =>
      library.c.smelt_unlink_state(this.#handle, to)));
    this.#links.delete(input);
  }

  /** Puts every state back to its initial value. */
  resetStates() {
    this.#open().c.smelt_reset_states(this.#handle);
  }

  /** A copy of the state of an input; null if it is zeros of a shape not yet known. */
  state(input) {
    const library = this.#open();
    library.check(library.withText(input, (to) =>
      library.c.smelt_state(this.#handle, to, this.#scratch)));
    const { dtype, shape } = library.inputs.find((spec) => spec.name === input);
    const known = library.view().getUint32(this.#scratch + 4, true);
    return known || !shape.length ? library.tensor(this.#scratch, dtype) : null;
  }

  /** Frees the session's memory, and with the last session of a model the model's. */
  close() {
    const library = this.#library;
    if (!library) return;
    this.#library = undefined;
    if (!library.broken) {
      library.c.smelt_session_close(this.#handle);
      for (const at of [this.#inputs, this.#outputs, this.#scratch, ...this.#shapes,
        ...this.#blocks.map((block) => block.at)]) library.c.free(at);
    }
    library.release();
  }

  #open() {
    const library = this.#library;
    if (!library) throw new SmeltError("The session is closed: load the model again.");
    if (library.broken) {
      throw new SmeltError(`The model stopped (${library.broken.message}): load it again.`,
        "SMELT_DATA_ERROR", { cause: library.broken });
    }
    return library;
  }
}

// A caller's value as { data, shape, dtype }. The library judges type and shape; what it cannot see
// is judged here.
function asTensor(value, spec) {
  const whole = ArrayBuffer.isView(value) ? { data: value } : value;
  const data = whole?.data;
  const kind = ArrayBuffer.isView(data) ? data[Symbol.toStringTag] : "";
  if (!NAMES[kind]) {
    const given = value === null ? "null" : Array.isArray(value) ? "an Array" : `a ${typeof value}`;
    throw new SmeltError(`Input "${spec.name}" must be a typed array or { data, shape }, but is ` +
      `${given}: it is ${typeText(spec)}, of ${arrayTypes[spec.dtype].name}.`);
  }
  const fits = kind === arrayTypes[spec.dtype].name || kind === ALSO[spec.dtype];
  const dtype = fits ? spec.dtype : NAMES[kind];
  const shape = whole.shape === undefined ? fittingShape(spec, data.length)
    : Array.from(whole.shape, Number);
  if (!shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    throw new SmeltError(`Input "${spec.name}" has the shape [${shape.join(", ")}]: sizes are ` +
      "whole numbers.");
  }
  if (product(shape) !== data.length) {
    throw new SmeltError(`Input "${spec.name}" has ${data.length} elements, but its shape ` +
      `[${shape.join(", ")}] has ${product(shape)}.`);
  }
  return { data, shape, dtype };
}

// The shape of an array that came without one: at most one size may be open.
function fittingShape(spec, length) {
  const open = spec.shape.filter((size) => typeof size === "string");
  const rest = product(spec.shape.filter((size) => typeof size === "number"));
  if (open.length > 1) {
    throw new SmeltError(`Input "${spec.name}" is ${typeText(spec)}, with several open sizes: ` +
      "give { data, shape }.");
  }
  const size = open.length ? length / rest : undefined;
  if (open.length ? !Number.isInteger(size) : rest !== length) {
    throw new SmeltError(`Input "${spec.name}" must be ${typeText(spec)}, but has ${length} ` +
      "elements.");
  }
  return spec.shape.map((entry) => (typeof entry === "string" ? size : entry));
}

// ---- 16-bit floats ------------------------------------------------------------------------------

const WORD = new Uint32Array(1);
const FLOAT = new Float32Array(WORD.buffer);

/** The numbers of an array of f16 or bf16 bits. */
export function widen(bits, dtype = "f16") {
  return Float32Array.from(bits, (half) => {
    if (dtype === "bf16") {
      WORD[0] = half << 16;
      return FLOAT[0];
    }
    const [sign, exponent, fraction] = [half >> 15 ? -1 : 1, (half >> 10) & 31, half & 1023];
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
  });
}

/** The f16 or bf16 bits of 32-bit floats, rounded to nearest, ties to even. */
export function narrow(numbers, dtype = "f16") {
  return Uint16Array.from(numbers, (number) => {
    FLOAT[0] = number;
    const sign = (WORD[0] >>> 16) & 0x8000;
    if (Number.isNaN(FLOAT[0])) return dtype === "bf16" ? sign | 0x7fc0 : sign | 0x7e00;
    if (dtype === "bf16") return (WORD[0] + 0x7fff + ((WORD[0] >>> 16) & 1)) >>> 16;
    const size = Math.abs(FLOAT[0]);
    if (size >= 65520) return sign | 0x7c00;
    const exponent = Math.max(-14, Math.floor(Math.log2(size)));
    const steps = size * 2 ** (10 - exponent); // 1024 to 2048 of a normal number
    const whole = Math.floor(steps);
    const up = steps - whole > 0.5 || (steps - whole === 0.5 && whole % 2);
    return sign | (whole + (up ? 1 : 0) + (exponent + 14) * 1024);
  });
}
