// Sizes of a plan: expressions over named sizes, and where they put what is in the arena. The same
// as webgpu_sizes.py.

import { SmeltError } from "./tensors.mjs";

const ALIGNMENT = 64; // bytes

const OPERATIONS = new Map(Object.entries({
  add: (a, b) => a + b, sub: (a, b) => a - b, mul: (a, b) => a * b,
  floordiv: (a, b) => (b ? Math.floor(a / b) : 0),
  mod: (a, b) => (b ? a - b * Math.floor(a / b) : 0),
  min: Math.min, max: Math.max, neg: (a) => -a, abs: Math.abs,
  eq: (a, b) => a === b, ne: (a, b) => a !== b, lt: (a, b) => a < b,
  le: (a, b) => a <= b, gt: (a, b) => a > b, ge: (a, b) => a >= b,
  and: (a, b) => a & b, or: (a, b) => a | b, not: (a) => !a,
  select: (c, a, b) => (c ? a : b),
}));

/** The value of a size: a number, a name in the map `sizes`, or [operation, size, ...]. Throws
 * SmeltError for what is none of these. */
export function sizeOf(e, sizes) {
  if (typeof e === "number" || typeof e === "boolean") return Number(e);
  if (typeof e === "string" && sizes.has(e)) return sizes.get(e);
  const operation = Array.isArray(e) && OPERATIONS.get(e[0]);
  if (!operation) {
    throw new SmeltError("The plan computes a size in a way that this version of smelt does not " +
      "know: compile the model again.", "SMELT_BAD_ARTIFACT");
  }
  return Number(operation(...e.slice(1).map((a) => sizeOf(a, sizes))));
}

/** { offsets, total }: the first byte of each of `amounts`, and bytes of the arena. Blocks go by
 * descending size, each into the tightest gap between those that hold data at the same time (after
 * Pisarchyk & Lee 2020); `spans` are the [first, last] steps that they hold it. */
export function place(amounts, spans) {
  const padded = amounts.map((n) => Math.ceil(n / ALIGNMENT) * ALIGNMENT);
  const offsets = amounts.map(() => 0);
  const placed = [];
  let total = 0;
  const order = [...padded.keys()].filter((i) => padded[i]);
  for (const i of order.sort((a, b) => padded[b] - padded[a] || a - b)) {
    const [first, last] = spans[i];
    const busy = placed.filter((j) => spans[j][0] <= last && first <= spans[j][1])
      .map((j) => [offsets[j], offsets[j] + padded[j]])
      .sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    let end = 0;
    let best;
    for (const [low, high] of busy) {
      const gap = low - end;
      if (gap >= padded[i] && (!best || gap < best.gap)) best = { gap, at: end };
      end = Math.max(end, high);
    }
    offsets[i] = best ? best.at : end;
    total = Math.max(total, offsets[i] + padded[i]);
    placed.push(i);
  }
  return { offsets, total };
}
