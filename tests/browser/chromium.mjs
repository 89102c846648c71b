// Headless Chromium, one process with WebGPU on SwiftShader and one without, started when they are
// asked for. A question { webgpu, url, script } opens a page of its own at the URL and gives what
// `script`, the body of an async function of (page), returns.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { answerLines, fromPackages } from "./lines.mjs";

const { chromium } = await fromPackages("playwright-core/index.mjs");
const AsyncFunction = (async () => {}).constructor;
const QUIET = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-component-update",
  "--disable-background-networking", "--disable-sync", "--disable-dev-shm-usage"];
const WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const NO_WEBGPU = ["--disable-features=WebGPU,WebGPUService", "--disable-gpu"];

const home = mkdtempSync(join(tmpdir(), "smelt-browser-")); // a user may have none to write in
const browsers = new Map();

function browser(webgpu) {
  if (!browsers.has(webgpu)) {
    browsers.set(webgpu, chromium.launch({
      executablePath: process.env.CHROMIUM, headless: true,
      args: [...QUIET, ...(webgpu ? WEBGPU : NO_WEBGPU)],
      env: { ...process.env, HOME: home, XDG_CONFIG_HOME: home, XDG_CACHE_HOME: home },
    }));
  }
  return browsers.get(webgpu);
}

await answerLines(async ({ webgpu, url, script, width = 1100, height = 800 }) => {
  const context = await (await browser(webgpu)).newContext({ viewport: { width, height } });
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(20_000);
    const problems = [];
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(url);
    const result = await new AsyncFunction("page", script)(page);
    if (problems.length) throw new Error(`the page threw: ${problems.join("; ")}`);
    return result;
  } finally {
    await context.close();
  }
});
await Promise.all([...browsers.values()].map(async (started) => (await started).close()));
rmSync(home, { recursive: true, force: true });
