// The files of an artifact: a folder by http or on node's disk, or one zip file. Checked against
// manifest.json, and kept by their checksums in the browser's cache where that is asked for.

import { SmeltError, asBytes, isBytes } from "./tensors.mjs";

const SCHEMA_VERSION = 1;
const MANIFEST = "manifest.json";
const VERIFIED_BYTES = 64 * 2 ** 20; // checksums are computed up to here unless asked for
const BAD_ARTIFACT = "SMELT_BAD_ARTIFACT";

// Asked each time, for a page may take the names of node away.
const inNode = () => Boolean(globalThis.process?.versions?.node);
// Bundlers for browsers leave these imports alone.
const nodeModule = (name) => import(/* webpackIgnore: true */ /* @vite-ignore */ `node:${name}`);

/** An artifact: its name in messages, its manifest, and its files' bytes. */
export class Artifact {
  #read;
  #store;

  // `read(file, onBytes)` gives a file's bytes, and calls `onBytes` with how many came each time.
  constructor(name, manifest, read, store = undefined) {
    this.name = name;
    this.manifest = manifest;
    this.#read = read;
    this.#store = store;
  }

  /** Whether the manifest lists a file so called. */
  has(file) {
    return Object.hasOwn(this.manifest.files ?? {}, file);
  }

  /** The bytes of a file, as they are. */
  bytes(file, onBytes = () => {}) {
    return this.#read(file, onBytes);
  }

  /** The bytes of files, by name, after `checkFiles`; `onProgress(loaded, total)` counts bytes. */
  async checkedBytes(files, { verify, onProgress = () => {} } = {}) {
    for (const file of files) {
      if (!this.has(file)) throw damaged(this.name, `${MANIFEST} lists no ${file}`);
    }
    const sizes = files.map((file) => this.manifest.files[file].size);
    const total = sizes.reduce((sum, size) => sum + size, 0);
    const wanted = verify ?? (total <= VERIFIED_BYTES ? undefined : false);
    let loaded = 0;
    const onBytes = (count) => onProgress(loaded = Math.min(loaded + count, total), total);
    const all = await Promise.all(files.map((file) => this.#checked(file, wanted, onBytes)));
    return new Map(files.map((file, k) => [file, all[k]]));
  }

  async #checked(file, verify, onBytes) {
    const { sha256, size } = this.manifest.files[file];
    const check = (data) => checkFiles(this.name, this.manifest, { [file]: data }, verify);
    const kept = await this.#store?.get(sha256);
    if (kept) {
      // What is damaged in the cache is read again.
      if (await check(kept).then(() => true, () => false)) return onBytes(size), kept;
      await this.#store.remove(sha256);
    }
    const data = await this.#read(file, onBytes);
    await check(data);
    this.#store?.put(sha256, data);
    return data;
  }
}

/**
 * Opens the artifact at a URL or, in node, a path: a folder or a .zip file; or the bytes of a .zip.
 * With `cache`, files that come by http stay in the browser's cache by their checksums.
 */
export async function openArtifact(source, { cache = false } = {}) {
  if (isBytes(source)) return unpack("The artifact", asBytes(source));
  const url = await asUrl(source);
  const name = `The artifact ${url.protocol === "file:" ? decodeURI(url.pathname) : url.href}`;
  if (/\.zip$/i.test(url.pathname)) return unpack(name, await fetchBytes(url));
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  const manifest = parseManifest(name, await fetchBytes(new URL(MANIFEST, url)));
  const store = cache ? await Store.open(url, manifest) : undefined;
  const read = (file, onBytes) => {
    if (!/^[\w-][\w.-]*(\/[\w-][\w.-]*)*$/.test(file)) {
      throw damaged(name, "one of its files has a name that is refused");
    }
    return fetchBytes(new URL(file, url), onBytes);
  };
  return new Artifact(name, manifest, read, store);
}

async function asUrl(source) {
  if (source instanceof URL) return new URL(source);
  if (typeof source !== "string") {
    throw new SmeltError("An artifact is loaded by its URL or path, from bytes or from " +
      "{ wasm, weights, manifest }.");
  }
  if (/^[a-z][a-z0-9+.-]+:/i.test(source)) return new URL(source); // one letter: a Windows drive
  if (inNode()) return (await nodeModule("url")).pathToFileURL(source);
  return new URL(source, globalThis.document?.baseURI ?? globalThis.location?.href);
}

async function fetchBytes(url, onBytes = () => {}) {
  let reason;
  try {
    if (url.protocol === "file:" && inNode()) {
      const data = asBytes(await (await nodeModule("fs/promises")).readFile(url));
      onBytes(data.length);
      return data;
    }
    // The browser's own cache asks the server: it might hold files of an older model.
    const response = await fetch(url, { cache: "no-cache" });
    if (response.ok) return await readBody(response, onBytes);
    reason = `the server answers ${response.status} ${response.statusText}`.trim();
  } catch (error) {
    reason = error.message;
  }
  throw new SmeltError(`${url.href} cannot be read: ${reason}.`, BAD_ARTIFACT);
}

async function readBody(response, onBytes) {
  const chunks = [];
  let size = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    size += value.length;
    onBytes(value.length);
  }
  const data = new Uint8Array(size);
  chunks.reduce((at, chunk) => (data.set(chunk, at), at + chunk.length), 0);
  return data;
}

export function damaged(name, what) {
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
      `${version}): use the modules in its own folder.`, BAD_ARTIFACT);
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
  return new Artifact(name, parseManifest(name, found(MANIFEST)), async (file, onBytes) => {
    const data = found(file);
    onBytes(data.length);
    return data;
  });
}

/** Compares files, bytes by name, with sizes and checksums of a manifest; the latter if they have
 * at most 64 MiB in all, or as `verify` says. Rejects with SmeltError. */
export async function checkFiles(name, manifest, files, verify = undefined) {
  const total = Object.values(files).reduce((sum, data) => sum + data.length, 0);
  const crypto = globalThis.crypto ?? (inNode() ? (await nodeModule("crypto")).webcrypto
    : undefined);
  if (verify && !crypto?.subtle) {
    throw new SmeltError("Checksums need a secure context: load the page by https.");
  }
  for (const [file, data] of Object.entries(files)) {
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

// Files of one artifact in the Cache API, by checksum; those of older models at the same address
// are removed. Where pages have no such cache, or it is full, files are read from the address.
class Store {
  #cache;
  #url;

  static async open(url, manifest) {
    if (!globalThis.caches || !url.protocol.startsWith("http")) return undefined;
    try {
      const store = new Store();
      store.#url = url;
      store.#cache = await globalThis.caches.open(`smelt ${url.href}`);
      const current = new Set(Object.values(manifest.files ?? {}).map(({ sha256 }) =>
        store.#key(sha256)));
      const old = (await store.#cache.keys()).filter(({ url: kept }) => !current.has(kept));
      await Promise.all(old.map((request) => store.#cache.delete(request)));
      return store;
    } catch {
      return undefined; // a browser that forbids it
    }
  }

  #key(sha256) {
    return new URL(`?sha256=${sha256}`, this.#url).href;
  }

  async get(sha256) {
    const kept = await this.#cache.match(this.#key(sha256)).catch(() => undefined);
    return kept && new Uint8Array(await kept.arrayBuffer());
  }

  put(sha256, data) {
    this.#cache.put(this.#key(sha256), new Response(data)).catch(() => {}); // no room: read again
  }

  remove(sha256) {
    return this.#cache.delete(this.#key(sha256));
  }
}
