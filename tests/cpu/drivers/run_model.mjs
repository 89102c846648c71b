// Runs a model of target cpu:wasm32 in node: run_model.mjs FOLDER INPUTS OUTPUTS
// The files of tensors are those of run_model.c.
import { readFileSync, writeFileSync } from "node:fs";

const [folder, inputsFile, outputsFile] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(readFileSync(`${folder}/model.wasm`));
const c = instance.exports;
c._initialize();

const bytes = () => new Uint8Array(c.memory.buffer);
const view = () => new DataView(c.memory.buffer);
const allocate = (size) => c.aligned_alloc(64, Math.max(64, Math.ceil(size / 64) * 64));
const place = (data) => {
  const at = allocate(data.length);
  bytes().set(data, at);
  return at;
};
const text = (at) => {
  const all = bytes();
  return new TextDecoder().decode(all.slice(at, all.indexOf(0, at)));
};
const check = (code) => {
  if (code) throw new Error(text(c.smelt_error()));
};

const TENSOR = 16; // data, shape, dtype, rank: 4 bytes each
const file = readFileSync(inputsFile);
let at = 0;
const int32 = () => file.readInt32LE((at += 4) - 4);
const int64 = () => Number(file.readBigInt64LE((at += 8) - 8));
const count = int32();
const inputs = allocate(TENSOR * count);
for (let i = 0; i < count; i++) {
  const dtype = int32();
  const rank = int32();
  const shape = place(file.subarray(at, at + 8 * rank));
  at += 8 * rank;
  const size = int64();
  const data = place(file.subarray(at, at + size));
  at += size;
  [data, shape, dtype, rank].forEach((word, k) =>
    view().setInt32(inputs + TENSOR * i + 4 * k, word, true));
}

const weights = readFileSync(`${folder}/weights.bin`);
const handle = allocate(4);
check(c.smelt_open_memory(c.smelt_linked_programs(), place(weights), BigInt(weights.length), handle));
const model = view().getUint32(handle, true);
check(c.smelt_session_open(model, 1, handle));
const session = view().getUint32(handle, true);
const results = c.smelt_output_count(model);
const outputs = allocate(TENSOR * results);
bytes().fill(0, outputs, outputs + TENSOR * results);
check(c.smelt_run(session, inputs, count, outputs, results));

const number = (value, size) => {
  const buffer = Buffer.alloc(size);
  if (size === 4) buffer.writeInt32LE(value);
  else buffer.writeBigInt64LE(BigInt(value));
  return buffer;
};
const parts = [number(results, 4)];
for (let i = 0; i < results; i++) {
  const [data, shape, dtype, rank] = [0, 4, 8, 12].map((k) =>
    view().getInt32(outputs + TENSOR * i + k, true));
  let size = Number(c.smelt_dtype_bytes(dtype));
  for (let axis = 0; axis < rank; axis++) size *= Number(view().getBigInt64(shape + 8 * axis, true));
  parts.push(number(dtype, 4), number(rank, 4), Buffer.from(bytes().slice(shape, shape + 8 * rank)),
    number(size, 8), Buffer.from(bytes().slice(data, data + size)));
}
writeFileSync(outputsFile, Buffer.concat(parts));
c.smelt_session_close(session);
c.smelt_close(model);
