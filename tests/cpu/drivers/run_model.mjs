// Runs a model of target cpu:wasm32 in node: run_model.mjs FOLDER INPUTS OUTPUTS
// The files of tensors are those of run_model.c.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, inputsFile, outputsFile] = process.argv.slice(2);
const { arrayTypes, load } = await import(pathToFileURL(`${folder}/model.mjs`));
const dtypes = Object.keys(arrayTypes); // bool, which smelt.h numbers 1, is the first

const session = await load({
  wasm: readFileSync(`${folder}/model.wasm`),
  weights: readFileSync(`${folder}/weights.bin`),
});

const file = readFileSync(inputsFile);
let at = 0;
const int32 = () => file.readInt32LE((at += 4) - 4);
const int64 = () => Number(file.readBigInt64LE((at += 8) - 8));
const count = int32();
const inputs = {};
for (let i = 0; i < count; i++) {
  const Type = arrayTypes[dtypes[int32() - 1]];
  const shape = Array.from({ length: int32() }, int64);
  const size = int64();
  const data = new Uint8Array(file.subarray(at, at + size)); // aligned by the copy
  at += size;
  inputs[session.inputs[i].name] = { data: new Type(data.buffer), shape };
}

const number = (value, size) => {
  const buffer = Buffer.alloc(size);
  if (size === 4) buffer.writeInt32LE(value);
  else buffer.writeBigInt64LE(BigInt(value));
  return buffer;
};
const results = session.run(inputs);
const parts = [number(session.outputs.length, 4)];
for (const { name } of session.outputs) {
  const { data, shape, dtype } = results[name];
  parts.push(number(dtypes.indexOf(dtype) + 1, 4), number(shape.length, 4),
    ...shape.map((size) => number(size, 8)), number(data.byteLength, 8),
    Buffer.from(data.buffer));
}
writeFileSync(outputsFile, Buffer.concat(parts));
session.close();
