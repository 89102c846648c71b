// Validates WGSL by Tint, the compiler of Chromium, on Dawn's backend that needs no driver. A question
// { code } gives the messages of errors.

import { answerLines, fromPackages } from "./lines.mjs";

const { create } = await fromPackages("webgpu/index.js");
const gpu = create(["backend=null"]); // the device lives no longer than this
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice();

await answerLines(async ({ code }) => {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code });
  const { messages } = await module.getCompilationInfo();
  const found = messages.filter(({ type }) => type === "error")
    .map(({ lineNum, message }) => `line ${lineNum}: ${message}`);
  const error = await device.popErrorScope();
  if (error && !found.length) found.push(error.message);
  if (!found.length) {
    // Limits of workgroups are judged with the pipeline.
    device.pushErrorScope("validation");
    device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" } });
    const refused = await device.popErrorScope();
    if (refused) found.push(refused.message);
  }
  return found;
});
process.exit(0); // Dawn's threads stay
