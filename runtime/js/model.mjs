// Runs a model that smelt compiled for cpu:wasm32, in browsers and in node 18 or later:
//
//     import { load } from "./digits.smelt/model.mjs";
//     const session = await load();
//     const { scores } = session.run({ images: new Float32Array(64) });
//     console.log(scores.shape, scores.data);
//     session.close();
//
// A thin layer over the C interface of smelt.h, which model.wasm exports. Pointers are numbers, i64
// are BigInts, a smelt_tensor is four words. Memory that grows gets a new buffer, so views of it
// are made where they are used. Types: model.d.mts.

import { checkFiles, openArtifact } from "./files.mjs";
import { SmeltError, arrayTypes, asBytes, asTensor, checkNames, copyElements, isBytes, product,
  tensorSpec } from "./tensors.mjs";

export { SmeltError, arrayTypes, narrow, widen } from "./tensors.mjs";

const WASM = "model.wasm";
const WEIGHTS = "weights.bin";
const ALIGNMENT = 64; // bytes, of weights and whatever else is put into memory
const TENSOR = 16; // bytes of a smelt_tensor: data, shape, dtype, rank

// The codes of program.h.
const CODES = ["SMELT_OK", "SMELT_BAD_ARGUMENT", "SMELT_OUT_OF_MEMORY", "SMELT_BAD_ARTIFACT",
  "SMELT_UNSUPPORTED_CPU", "SMELT_DATA_ERROR"];
const [, , OUT_OF_MEMORY, BAD_ARTIFACT] = CODES;
const DTYPES = Object.keys(arrayTypes); // in the order of smelt.h, where bool is 1

/**
 * Opens a compiled model and a session to run it.
 *
 * `source` is the folder or .zip file of an artifact, as a URL or, in node, a path; by default the
 * folder that this module is in. Or the bytes of a .zip, or of a model.wasm that has no weights; or
 * the files themselves: `{ wasm, weights, manifest }`. Sizes are always compared with the manifest,
 * checksums if the files have at most 64 MiB; `verify` true or false asks for them or does without.
 * States that the manifest declares are linked.
 */
export async function load(source = new URL(".", import.meta.url), { verify } = {}) {
  const files = await read(source);
  const { name, manifest, wasm, weights } = files;
  if (manifest) {
    const all = { [WASM]: wasm, [WEIGHTS]: weights };
    if (!isBytes(wasm)) delete all[WASM];
    await checkFiles(name, manifest, all, verify);
  }
  const library = await Library.open(files);
  return new Session(library);
}

async function read(source) {
  if (isBytes(source) && asBytes(source)[0] === 0) source = { wasm: source }; // as a .wasm begins
  if (source && typeof source === "object" && !(source instanceof URL) && !isBytes(source)) {
    if (!source.wasm) throw new SmeltError(`An artifact's files are { wasm, weights, manifest }.`);
    const { wasm, weights, manifest } = source;
    return {
      name: "The artifact", manifest,
      wasm: isBytes(wasm) ? asBytes(wasm) : wasm, // or a WebAssembly.Module
      weights: asBytes(weights ?? new Uint8Array()),
    };
  }
  const artifact = await openArtifact(source);
  const { name, manifest } = artifact;
  if (!manifest.files?.[WASM]) {
    throw new SmeltError(`${name} was made for ${manifest.target}: compile the model with ` +
      "--target cpu:wasm32.", BAD_ARTIFACT);
  }
  const [wasm, weights] = await Promise.all([WASM, WEIGHTS].map((file) => artifact.bytes(file)));
  return { name, manifest, wasm, weights };
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
      return tensorSpec(this.text(name), DTYPES[dtype - 1], shape);
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
    checkNames(inputs, library.inputs, this.inputs);
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
    copyElements(bytes, dtype, copy);
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
