// Tensors of JavaScript, and what the other modules share: errors, types, checks of inputs.

const BAD_ARGUMENT = "SMELT_BAD_ARGUMENT";

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

// What else an input may come in, and what an array is called that does not fit.
const ALSO = { u8: "Uint8ClampedArray", f16: "Float16Array" };
const NAMES = {
  Int8Array: "i8", Int16Array: "i16", Int32Array: "i32", BigInt64Array: "i64", Uint8Array: "u8",
  Uint16Array: "u16", Uint32Array: "u32", BigUint64Array: "u64", Float32Array: "f32",
  Float64Array: "f64", ...Object.fromEntries(Object.entries(ALSO).map(([k, v]) => [v, k])),
};

/** What went wrong, as a sentence; `code` is the name of an error code of program.h, or
 * SMELT_NO_WEBGPU or SMELT_DEVICE_LOST. */
export class SmeltError extends Error {
  constructor(message, code = BAD_ARGUMENT, options = undefined) {
    super(message, options);
    this.name = "SmeltError";
    this.code = code;
  }
}

export const isBytes = (value) => ArrayBuffer.isView(value) || value instanceof ArrayBuffer;

export function asBytes(value) {
  return ArrayBuffer.isView(value) ? new Uint8Array(value.buffer, value.byteOffset,
    value.byteLength) : new Uint8Array(value);
}

// Puts a tensor's elements into bytes of a program's memory, where bool is 0 or 1.
export function copyElements(bytes, dtype, copy) {
  if (dtype === "bool") bytes.forEach((byte, i) => (copy[i] = byte ? 1 : 0));
  else copy.set(bytes);
}

// One tensor of a signature, with sizes that are numbers as numbers.
export function tensorSpec(name, dtype, shape) {
  return Object.freeze({
    name, dtype,
    shape: Object.freeze(shape.map((size) => (/^\d+$/.test(size) ? Number(size) : size))),
  });
}

export const product = (sizes) => sizes.reduce((all, size) => all * size, 1);

export function signature(specs) {
  return specs.map((spec) => `${spec.name}: ${typeText(spec)}`).join(", ") || "no inputs";
}

export function typeText({ dtype, shape }) {
  return `${dtype}[${shape.join(", ")}]`;
}

// Refuses inputs that are not given by name, have names that are none of `all`, or leave out one of
// `needed`.
export function checkNames(inputs, all, needed) {
  if (inputs === null || typeof inputs !== "object" || isBytes(inputs)) {
    throw new SmeltError(`Inputs are given by name: ${signature(needed)}.`);
  }
  for (const name of Object.keys(inputs)) {
    if (all.some((spec) => spec.name === name)) continue;
    throw new SmeltError(`The model has no input "${name}": it takes ${signature(needed)}.`);
  }
  for (const { name } of needed) {
    if (inputs[name] !== undefined) continue;
    throw new SmeltError(`Input "${name}" is missing: the model takes ${signature(needed)}.`);
  }
}

// A caller's value as { data, shape, dtype }. Whoever runs the model judges type and shape; what it
// cannot see is judged here.
export function asTensor(value, spec) {
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
  if (whole.shape !== undefined && typeof whole.shape?.[Symbol.iterator] !== "function") {
    throw new SmeltError(`Input "${spec.name}" has a shape that is no array of sizes.`);
  }
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
