// Runs any model on random inputs and shows what comes out and how long it takes.

import { clearProblem, duration, make, median, showProblem } from "./elements.mjs";
import { arrayTypes, narrow, widen } from "./session.mjs";

const RUNS = 20;
const SHOWN = 6; // values of an output
const MOST_POINTS = 160;
const OPEN = 1; // what a size is that the model leaves open
const HALVES = ["f16", "bf16"];

/** Random values of an element type: floats of a normal distribution, u8 of its whole range, and
 * other integers 0 or 1, which are fit for indices as well. */
export function randomValues(dtype, count) {
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) *
    Math.cos(2 * Math.PI * Math.random());
  const values = new arrayTypes[dtype](count);
  if (HALVES.includes(dtype)) return narrow(Float32Array.from(values, normal), dtype);
  if (dtype === "f32" || dtype === "f64") return values.map(normal);
  const range = dtype === "u8" ? 256 : 2;
  const integer = () => Math.floor(Math.random() * range);
  return values.map(dtype === "i64" || dtype === "u64" ? () => BigInt(integer()) : integer);
}

const product = (sizes) => sizes.reduce((all, size) => all * size, 1);
const type = ({ dtype, shape }) => `${dtype}[${shape.join(", ")}]`;
const number = (value) => (Number.isInteger(value) ? String(value) : value.toPrecision(4));

/** Fills the page. Resolves when the model has run once. */
export async function showTrial(main, session) {
  const names = new Set(session.inputs.flatMap(({ shape }) =>
    shape.filter((size) => typeof size === "string" && /^[A-Za-z_]\w*$/.test(size))));
  const fields = new Map([...names].map((name) => [name, make("input", {
    type: "number", min: 0, max: 1e6, value: session.manifest.signature.sizes?.[name]?.[0] || OPEN,
  })]));
  const once = make("button", { className: "main", textContent: "Run", id: "run" });
  const often = make("button", { textContent: `Time ${RUNS} runs`, id: "often" });
  const figures = make("div", { className: "figures" });
  const results = make("tbody", { id: "results" });
  const head = (...texts) => make("thead", {}, make("tr", {},
    ...texts.map((textContent) => make("th", { textContent, scope: "col" }))));
  main.replaceChildren(
    make("section", { className: "card wide" },
      make("h2", { textContent: "Inputs" }),
      make("div", { className: "scroll" }, make("table", {}, head("name", "type"), make("tbody", {},
        ...session.inputs.map((spec) => make("tr", {}, make("td", { textContent: spec.name }),
          make("td", { className: "number", textContent: type(spec) })))))),
      make("div", { className: "row" }, ...[...fields].map(([name, field]) =>
        make("label", {}, name, field)), once, often),
      make("p", { className: "quiet", textContent: "Values are random." })),
    make("section", { className: "card wide" },
      make("h2", { textContent: "Time of a run" }), figures),
    make("section", { className: "card wide" },
      make("h2", { textContent: "Outputs" }),
      make("div", { className: "scroll" }, make("table", {},
        head("name", "type", "lowest", "mean", "highest", "first values", "all"), results))));

  const inputs = () => Object.fromEntries(session.inputs.map(({ name, dtype, shape }) => {
    const sizes = shape.map((size) => (fields.has(size) ? fields.get(size).valueAsNumber : size));
    if (sizes.some((size) => !Number.isInteger(size))) {
      throw new Error(`The input "${name}" is ${type({ dtype, shape })}, whose sizes this page ` +
        "cannot choose: give whole numbers, or compile the model with --dim.");
    }
    return [name, { data: randomValues(dtype, product(sizes)), shape: sizes }];
  }));

  const run = async (count) => {
    const times = [];
    once.disabled = often.disabled = true;
    try {
      let found;
      const given = inputs();
      for (let k = 0; k < count; k++) {
        const begin = performance.now();
        found = await session.run(given);
        times.push(performance.now() - begin);
      }
      clearProblem();
      figures.replaceChildren(...[["median", median(times)], ["shortest", Math.min(...times)],
        ["longest", Math.max(...times)]].slice(0, count > 1 ? 3 : 1).map(([label, ms]) =>
        make("p", { className: "figure number" },
          make("strong", { textContent: duration(ms) }), count > 1 ? label : "one run")));
      results.replaceChildren(...Object.entries(found).map(([name, tensor]) => row(name, tensor)));
    } catch (error) {
      showProblem(error, session);
    }
    once.disabled = often.disabled = false;
  };
  once.addEventListener("click", () => run(1));
  often.addEventListener("click", () => run(RUNS));
  await run(1);
}

// A line of the table of outputs.
function row(name, { data, shape, dtype }) {
  const numbers = HALVES.includes(dtype) ? widen(data, dtype) : Float64Array.from(data, Number);
  const plot = make("canvas", { className: "plot", width: MOST_POINTS, height: 40 });
  let [low, high, sum] = [Infinity, -Infinity, 0];
  for (const value of numbers) {
    [low, high, sum] = [Math.min(low, value), Math.max(high, value), sum + value];
  }
  const facts = numbers.length ? [low, sum / numbers.length, high].map(number) : ["", "", ""];
  const first = [...numbers.slice(0, SHOWN)].map(number).join(", ") +
    (numbers.length > SHOWN ? ", …" : "");
  requestAnimationFrame(() => drawValues(plot, numbers, low, high));
  return make("tr", {}, ...[name, type({ dtype, shape }), ...facts, first].map((textContent, k) =>
    make("td", { textContent, className: k ? "number" : "" })), make("td", {}, plot));
}

function drawValues(plot, numbers, low, high) {
  const pen = plot.getContext("2d");
  const count = Math.min(numbers.length, MOST_POINTS);
  pen.fillStyle = getComputedStyle(document.getElementById("backend")).color;
  for (let k = 0; k < count; k++) {
    const value = numbers[Math.floor((k * numbers.length) / count)];
    const size = high > low ? ((value - low) / (high - low)) * (plot.height - 2) : 0;
    const step = plot.width / count;
    pen.fillRect(k * step, plot.height - 2 - size, Math.max(1, step - 1), size + 2);
  }
}
