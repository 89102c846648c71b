// Carries out a plan (see codegen/wgsl_program.py) on WebGPU: the graph runs on the device, with
// one read-back. Launches are encoded in order; what the host has to know on the way (a condition,
// a size that data tells) ends the encoding so far and reads it. The same as runtime/webgpu.py.

import { place, sizeOf } from "./sizes.mjs";
import { SmeltError, arrayTypes, asBytes, asTensor, checkNames, copyElements, product, tensorSpec,
  typeText } from "./tensors.mjs";

export const PLAN = "plan.json";
const WEIGHTS = "weights.bin";
const VERSION = 1;
const UNIFORM_BYTES = 256; // between uniforms of launches: what every adapter takes as an offset
const LLVMPIPE_ROUNDS = 65535; // after which Mesa's processor emulation ends an invocation's loops

const BAD_ARTIFACT = "SMELT_BAD_ARTIFACT";
const DATA_ERROR = "SMELT_DATA_ERROR";
const OUT_OF_MEMORY = "SMELT_OUT_OF_MEMORY";
export const NO_WEBGPU = "SMELT_NO_WEBGPU";
const DEVICE_LOST = "SMELT_DEVICE_LOST";

// The constants of the WebGPU specification, which node has no global names for.
const [MAP_READ, COPY_SRC, COPY_DST, UNIFORM, STORAGE] = [1, 4, 8, 64, 128];
const [COMPUTE_STAGE, MODE_READ] = [4, 1];

const mebibytes = (bytes) => `${Math.ceil(bytes / 2 ** 20)} MiB`;
const sentence = (text) => `${text.slice(0, 1).toUpperCase()}${text.slice(1)}.`;

// A device whose buffers hold what the plan needs. Rejects with SmeltError of code SMELT_NO_WEBGPU,
// which says what is missing.
async function openDevice(gpu, plan, powerPreference) {
  const refuse = (text) => {
    throw new SmeltError(text, NO_WEBGPU);
  };
  if (!gpu) {
    refuse(globalThis.isSecureContext === false
      ? "WebGPU needs a secure context: load the page by https."
      : "There is no WebGPU here: use a browser that has it, such as a current Chrome, Edge, " +
        "Firefox or Safari.");
  }
  const adapter = await Promise.resolve(gpu.requestAdapter({ powerPreference })).catch(() => null);
  if (!adapter) {
    refuse("WebGPU finds no adapter here: switch hardware acceleration on in the browser's " +
      "settings, or update the graphics driver.");
  }
  const largest = Math.max(plan.arena ?? 0, ...plan.weights.map(([, count]) => count));
  const needed = {
    maxStorageBufferBindingSize: largest, maxBufferSize: largest,
    maxStorageBuffersPerShaderStage: 1 + plan.weights.length,
    maxComputeInvocationsPerWorkgroup: 256, maxComputeWorkgroupStorageSize: 16384,
  };
  for (const [limit, amount] of Object.entries(needed)) {
    if (adapter.limits[limit] < amount) {
      refuse(`The model needs ${limit} of ${amount}, but this adapter has ` +
        `${adapter.limits[limit]}: run it on another one.`);
    }
  }
  // As much as there is for the arena, which open sizes make larger.
  const { maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
  try {
    const device = await adapter.requestDevice({
      requiredLimits: { maxStorageBufferBindingSize, maxBufferSize },
    });
    return { adapter, device };
  } catch (error) {
    return refuse(`WebGPU gives no device here (${error.message}): close other pages that use ` +
      "the graphics processor, or restart the browser.");
  }
}

/** A compiled model on a device of its own. */
export class WebGpuModel {
  backend = "webgpu";
  #plan;
  #ranges;
  #lost; // why the device is, once it is
  #closed = false;
  #fault; // the first error that no call reported
  #layout;
  #pipelines;
  #weights = [];
  #arena;
  #uniforms;
  #staging;
  #prepared; // places in the arena, by the shapes of the inputs
  #emulated;
  #last = Promise.resolve(); // the run before

  /** Loads an artifact's plan, shaders and weights onto a device. `gpu` is navigator.gpu. Rejects
   * with SmeltError. */
  static async open(artifact, { gpu, powerPreference, verify, onProgress }) {
    const plan = readPlan(artifact, await artifact.checkedBytes([PLAN], { verify }));
    const { adapter, device } = await openDevice(gpu, plan, powerPreference);
    const model = new WebGpuModel(artifact.manifest, plan, adapter, device);
    try {
      const names = plan.shaders.map((name) => `shaders/${name}.wgsl`);
      const files = await artifact.checkedBytes([...names, WEIGHTS], { verify, onProgress });
      const text = new TextDecoder();
      await Promise.all([
        model.#compile(names.map((name) => text.decode(files.get(name)))),
        model.#upload(files.get(WEIGHTS)),
      ]);
      return model;
    } catch (error) {
      const known = await model.#explain(error);
      model.close();
      throw known;
    }
  }

  constructor({ signature }, plan, adapter, device) {
    this.#plan = plan;
    this.inputs = signature.inputs.map((t) => tensorSpec(t.name, t.dtype, t.shape));
    this.outputs = signature.outputs.map((t) => tensorSpec(t.name, t.dtype, t.shape));
    this.#ranges = new Map(Object.entries(signature.sizes ?? {}));
    this.device = device;
    const { vendor, architecture, device: name, description } = adapter.info ?? {};
    const words = [description || name, vendor, architecture].filter(Boolean);
    this.adapter = words.join(" ") || "WebGPU";
    this.#emulated = this.adapter.includes("llvmpipe");
    device.lost.then((info) => (this.#lost = info));
    device.addEventListener?.("uncapturederror", ({ error }) => (this.#fault ??= error.message));
  }

  // Preparing ------------------------------------------------------------------------------------

  // Shaders are compiled side by side; the plan lists equal ones once.
  async #compile(codes) {
    const { device } = this;
    const types = ["uniform", "storage", ...this.#plan.weights.map(() => "read-only-storage")];
    this.#layout = device.createBindGroupLayout({
      entries: types.map((type, binding) => ({
        binding, visibility: COMPUTE_STAGE, buffer: { type, hasDynamicOffset: type === "uniform" },
      })),
    });
    const layout = device.createPipelineLayout({ bindGroupLayouts: [this.#layout] });
    this.#pipelines = await Promise.all(codes.map(async (code, k) => {
      const label = this.#plan.shaders[k];
      try {
        const module = device.createShaderModule({ label, code });
        return await device.createComputePipelineAsync({
          label, layout, compute: { module, entryPoint: "main" },
        });
      } catch (error) {
        throw new SmeltError(`The browser refuses the shader ${label} ` +
          `(${error.message.split("\n")[0].replace(/\.$/, "")}): update the browser.`,
          BAD_ARTIFACT, { cause: error });
      }
    }));
  }

  async #upload(weights) {
    for (const [start, count] of this.#plan.weights) {
      const buffer = await this.#allocate(count, STORAGE | COPY_DST);
      this.#weights.push(buffer);
      if (count) this.device.queue.writeBuffer(buffer, 0, weights, start, count);
    }
  }

  async #allocate(count, usage) {
    const most = Math.min(this.device.limits.maxBufferSize,
      usage & STORAGE ? this.device.limits.maxStorageBufferBindingSize : Infinity);
    if (count > most) {
      throw new SmeltError(`The model needs ${mebibytes(count)} in one buffer, but this adapter ` +
        `binds ${mebibytes(most)}: run it on another one, or with smaller inputs.`, OUT_OF_MEMORY);
    }
    this.device.pushErrorScope("out-of-memory");
    const buffer = this.device.createBuffer({ size: Math.max(count, 64), usage });
    if (await this.device.popErrorScope()) {
      throw new SmeltError(`No memory on the device for ${mebibytes(count)}.`, OUT_OF_MEMORY);
    }
    return buffer;
  }

  // Where everything lies in the arena, for inputs of these shapes.
  async #prepare(key, sizes) {
    if (this.#prepared?.key === key) return this.#prepared.offsets;
    const plan = this.#plan;
    let [offsets, total] = [plan.offsets, plan.arena];
    if (offsets === null) {
      ({ offsets, total } = place(plan.memory.map(({ bytes }) => sizeOf(bytes, sizes)),
        plan.memory.map(({ first, last }) => [first, last])));
    }
    if (!this.#arena || this.#arena.size < total) {
      this.#arena?.destroy();
      this.#arena = undefined;
      this.#arena = await this.#allocate(total, STORAGE | COPY_SRC | COPY_DST);
    }
    this.#prepared = { key, offsets };
    return offsets;
  }

  // Running --------------------------------------------------------------------------------------

  /** Runs the model on tensors by name; resolves to new arrays by name. Runs take turns. */
  run(inputs = {}) {
    this.#check();
    checkNames(inputs, this.inputs, this.inputs);
    const tensors = this.inputs.map((spec) => checked(asTensor(inputs[spec.name], spec), spec));
    const sizes = this.#bind(tensors);
    // The caller may change its arrays while the run waits.
    const copies = tensors.map(({ data, dtype }) => {
      const bytes = asBytes(data);
      const copy = new Uint8Array(Math.ceil(bytes.length / 4) * 4); // whole words
      copyElements(bytes, dtype, copy);
      return copy;
    });
    const key = JSON.stringify(tensors.map(({ shape }) => shape));
    const turn = this.#last.then(async () => {
      try {
        this.#check();
        const offsets = await this.#prepare(key, sizes);
        const results = await new Run(this.#parts(offsets), sizes).outputs(copies, this.outputs);
        this.#check();
        return results;
      } catch (error) {
        throw await this.#explain(error);
      }
    });
    this.#last = turn.catch(() => {});
    return turn;
  }

  // What a run uses of the model.
  #parts(offsets) {
    return {
      plan: this.#plan, device: this.device, pipelines: this.#pipelines, arena: this.#arena,
      offsets, emulator: this.#emulated ? this.adapter : undefined,
      uniforms: (bytes) => this.#uniformsOf(bytes), staging: (count) => this.#stagingOf(count),
    };
  }

  // The bindings with room for that many bytes of uniforms.
  #uniformsOf(count) {
    let held = this.#uniforms;
    if (held?.arena !== this.#arena || held.buffer.size < count) {
      held?.buffer.destroy();
      const buffer = this.device.createBuffer({ size: count, usage: UNIFORM | COPY_DST });
      const bound = [{ buffer, size: UNIFORM_BYTES }, { buffer: this.#arena },
        ...this.#weights.map((weights) => ({ buffer: weights }))];
      const group = this.device.createBindGroup({
        layout: this.#layout, entries: bound.map((resource, binding) => ({ binding, resource })),
      });
      held = this.#uniforms = { arena: this.#arena, buffer, group };
    }
    return held;
  }

  // A buffer for results on their way to the host.
  async #stagingOf(count) {
    if (!this.#staging || this.#staging.size < count) {
      this.#staging?.destroy();
      this.#staging = undefined;
      this.#staging = await this.#allocate(count, MAP_READ | COPY_DST);
    }
    return this.#staging;
  }

  // The named sizes of these inputs.
  #bind(tensors) {
    const sizes = new Map();
    const later = [];
    const refuse = (spec, axis, n, wanted) => {
      throw new SmeltError(`Input "${spec.name}": axis ${axis} is ${n} but must be ${wanted}.`);
    };
    this.inputs.forEach((spec, k) => tensors[k].shape.forEach((n, axis) => {
      const d = this.#plan.inputs[k].shape[axis];
      if (typeof d !== "string" || sizes.has(d)) {
        later.push([spec, axis, d, n]);
        return;
      }
      sizes.set(d, n);
      const [low, high] = this.#ranges.get(d) ?? [0, null];
      if (n < (low ?? 0) || (high !== null && n > high)) {
        refuse(spec, axis, n, high === null ? `at least ${low}` : `in ${low}..${high}`);
      }
    }));
    for (const [spec, axis, d, n] of later) {
      const wanted = sizeOf(d, sizes);
      if (n !== wanted) refuse(spec, axis, n, wanted);
    }
    for (const [condition, message] of this.#plan.conditions) {
      if (!sizeOf(condition, sizes)) throw new SmeltError(sentence(message));
    }
    return sizes;
  }

  // Failing --------------------------------------------------------------------------------------

  #check() {
    if (this.#closed) throw new SmeltError("The session is closed: load the model again.");
    if (this.#lost) {
      const why = this.#lost.message || this.#lost.reason || "unknown";
      throw new SmeltError(`The graphics device was lost (${why.trim().replace(/\.$/, "")}): ` +
        "call restart() on the session.", DEVICE_LOST);
    }
    if (this.#fault) {
      throw new SmeltError("The graphics device refused a command " +
        `(${this.#fault.split("\n")[0]}): call restart() on the session.`, DATA_ERROR);
    }
  }

  // The error to show for one: of a lost device all commands fail in ways of their own.
  async #explain(error) {
    if (error instanceof SmeltError && error.code !== OUT_OF_MEMORY
      && error.code !== BAD_ARTIFACT) return error;
    await Promise.race([this.device.lost, new Promise((go) => setTimeout(go, 100))]);
    try {
      this.#check();
    } catch (known) {
      return known;
    }
    return error;
  }

  /** Gives everything on the device back. */
  close() {
    this.#closed = true;
    this.device.destroy();
  }
}

// One run: encodes the steps of the plan and submits them.
class Run {
  #m;
  #sizes;
  #launches = [];
  #late = [];

  constructor(model, sizes) {
    this.#m = model;
    this.#sizes = new Map(sizes);
  }

  async outputs(inputs, specs) {
    const { plan } = this.#m;
    inputs.forEach((bytes, k) => this.#write(plan.inputs[k].place, bytes));
    await this.#steps(plan.steps);
    const tensors = specs.map(({ dtype }, k) => {
      const shape = plan.outputs[k].shape.map((d) => sizeOf(d, this.#sizes));
      return { dtype, shape, place: plan.outputs[k].place };
    });
    // What the last checks need is read together with the outputs.
    const binds = this.#late.filter((step) => step.do === "bind");
    const read = await this.#read([
      ...binds.map((step) => ({ place: step.from, dtype: step.dtype, shape: [step.names.length] })),
      ...tensors]);
    for (const step of this.#late) {
      if (step.do === "bind") this.#name(step, read[binds.indexOf(step)]);
      else await this.#step(step);
    }
    return Object.fromEntries(tensors.map(({ dtype, shape }, k) =>
      [specs[k].name, { data: read[binds.length + k], shape, dtype }]));
  }

  // Memory ---------------------------------------------------------------------------------------

  #write(place, bytes) {
    const { device, arena, offsets } = this.#m;
    if (bytes.length) device.queue.writeBuffer(arena, offsets[place], bytes);
  }

  // Runs the launches encoded so far and reads tensors, [{ place, dtype, shape }, ...], as arrays.
  async #read(tensors) {
    const { device, arena, offsets } = this.#m;
    const amounts = tensors.map(({ dtype, shape }) =>
      product(shape) * arrayTypes[dtype].BYTES_PER_ELEMENT);
    const starts = [];
    const total = amounts.reduce((at, count) =>
      (starts.push(at), at + Math.ceil(count / 8) * 8), 0);
    const staging = total ? await this.#m.staging(total) : undefined;
    const encoder = device.createCommandEncoder();
    this.#encode(encoder);
    tensors.forEach(({ place }, k) => {
      const count = Math.ceil(amounts[k] / 4) * 4;
      if (count) encoder.copyBufferToBuffer(arena, offsets[place], staging, starts[k], count);
    });
    device.queue.submit([encoder.finish()]);
    if (!staging) return tensors.map(({ dtype }) => new arrayTypes[dtype](0));
    await staging.mapAsync(MODE_READ, 0, total);
    const bytes = staging.getMappedRange(0, total);
    const arrays = tensors.map(({ dtype }, k) =>
      new arrayTypes[dtype](bytes.slice(starts[k], starts[k] + amounts[k])));
    staging.unmap();
    return arrays;
  }

  // A number that decides what is launched next.
  async #known(value) {
    if ("size" in value) return sizeOf(value.size, this.#sizes);
    const [array] = await this.#read([{ place: value.place, dtype: value.dtype, shape: [1] }]);
    return Number(array[0]);
  }

  // Steps ----------------------------------------------------------------------------------------

  async #steps(steps) {
    for (const [k, step] of steps.entries()) {
      if (step.late || steps[k + 1]?.late) this.#late.push(step);
      else if (step.do === "launch") this.#launch(step); // no turn of the event loop for each
      else await this.#step(step);
    }
  }

  #step(step) {
    switch (step.do) {
      case "launch": return this.#launch(step);
      case "assign": return this.#assign(step);
      case "bind": return this.#bind(step);
      case "require": return this.#require(step);
      case "branch": return this.#branch(step);
      case "repeat": return this.#repeat(step);
      default: throw new SmeltError("The plan has a step that this version of smelt does not " +
        "know: compile the model again.", BAD_ARTIFACT);
    }
  }

  #launch(step) {
    const groups = step.groups.map((size) => sizeOf(size, this.#sizes));
    if (Math.min(...groups) <= 0) return;
    if (this.#m.emulator && sizeOf(step.rounds, this.#sizes) > LLVMPIPE_ROUNDS) {
      throw new SmeltError(`A shader of this model loops more than ${LLVMPIPE_ROUNDS} times, ` +
        `where ${this.#m.emulator} stops: run it on a GPU.`, NO_WEBGPU);
    }
    const words = step.at.map((a) => ("arena" in a ? this.#m.offsets[a.arena] : a.weights) / 4);
    words.push(...step.sizes.map((size) => sizeOf(size, this.#sizes)));
    this.#launches.push({ shader: step.shader, groups, words });
  }

  #assign({ names, values }) {
    const found = values.map((e) => sizeOf(e, this.#sizes));
    names.forEach((name, k) => this.#sizes.set(name, found[k]));
  }

  async #bind(step) {
    const tensor = { place: step.from, dtype: step.dtype, shape: [step.names.length] };
    this.#name(step, (await this.#read([tensor]))[0]);
  }

  // Gives the names of a bind step the numbers that were read.
  #name({ names, origin }, numbers) {
    names.forEach((name, k) => this.#sizes.set(name, Number(numbers[k])));
    if (numbers.some((n) => n < 0)) {
      throw new SmeltError(`${origin || "the model"}: the data asks for a negative size.`,
        DATA_ERROR);
    }
  }

  #require({ condition, message }) {
    if (!sizeOf(condition, this.#sizes)) throw new SmeltError(sentence(message), DATA_ERROR);
  }

  async #branch(step) {
    await this.#steps((await this.#known(step.condition)) ? step.then : step.else);
  }

  async #repeat(step) {
    const limit = step.limit === null ? Infinity : await this.#known(step.limit);
    for (let count = 0; count < limit; count++) {
      if (step.condition !== null && !(await this.#known(step.condition))) break;
      if (step.counter !== null) {
        this.#submit(); // what is encoded reads the count before
        this.#write(step.counter, asBytes(BigInt64Array.of(BigInt(count))));
      }
      await this.#steps(step.body);
    }
  }

  #submit() {
    const encoder = this.#m.device.createCommandEncoder();
    this.#encode(encoder);
    this.#m.device.queue.submit([encoder.finish()]);
  }

  // Puts the launches so far into one compute pass.
  #encode(encoder) {
    if (!this.#launches.length) return;
    const words = new Int32Array((this.#launches.length * UNIFORM_BYTES) / 4);
    this.#launches.forEach((launch, k) => words.set(launch.words, (k * UNIFORM_BYTES) / 4));
    const { buffer, group } = this.#m.uniforms(words.byteLength);
    this.#m.device.queue.writeBuffer(buffer, 0, words);
    const pass = encoder.beginComputePass();
    this.#launches.forEach(({ shader, groups }, k) => {
      pass.setPipeline(this.#m.pipelines[shader]);
      pass.setBindGroup(0, group, [k * UNIFORM_BYTES]);
      pass.dispatchWorkgroups(...groups);
    });
    pass.end();
    this.#launches = [];
  }
}

function readPlan(artifact, files) {
  let plan;
  try {
    plan = JSON.parse(new TextDecoder().decode(files.get(PLAN)));
  } catch {
    plan = undefined;
  }
  if (plan?.version !== VERSION) {
    throw new SmeltError(`${artifact.name} has no plan of version ${VERSION}: compile the model ` +
      "again.", BAD_ARTIFACT);
  }
  return plan;
}

// The tensor, if it fits the signature but for its sizes.
function checked(tensor, spec) {
  if (tensor.dtype !== spec.dtype || tensor.shape.length !== spec.shape.length) {
    throw new SmeltError(`Input "${spec.name}" must be ${typeText(spec)}, but is ` +
      `${typeText(tensor)}.`);
  }
  if (spec.dtype === "i64" && tensor.data.some((n) => n !== BigInt.asIntN(32, n))) {
    throw new SmeltError(`Input "${spec.name}" holds numbers of more than 32 bits, which WebGPU ` +
      "does not compute with.");
  }
  return tensor;
}
