// Draws a picture for a classifier of small pictures in one channel and shows its scores.

import { clearProblem, duration, make, median, showProblem } from "./elements.mjs";

const SIDE = 320; // pixels of the canvas
const PEN = 30;
const SAMPLES = 6; // along each side of a pixel that the model sees
const MOST_BARS = 10;
const SMALLEST = 6; // sides of pictures
const LARGEST = 64;
const RANGES = [1, 16, 255];
// A seven, so that there is something to see at once; places as shares of the side.
const EXAMPLE = [[[.27, .24], [.72, .24], [.6, .5], [.47, .8]]];

/** { input, shape, height, width, output } if the model takes one small picture in one channel and
 * gives scores of classes, else null. */
export function pictureClassifier({ inputs, outputs }) {
  const [input] = inputs;
  if (inputs.length !== 1 || input.dtype !== "f32") return null;
  const [batch, ...rest] = input.shape;
  if (rest.length === 3 && rest[0] !== 1 && rest[2] !== 1) return null;
  const sides = rest.length === 3 ? (rest[0] === 1 ? rest.slice(1) : rest.slice(0, 2)) : rest;
  const small = (side) => Number.isInteger(side) && side >= SMALLEST && side <= LARGEST;
  if (sides.length !== 2 || !sides.every(small) || (batch !== 1 && typeof batch !== "string")) {
    return null;
  }
  const output = outputs.find(({ dtype, shape }) => dtype === "f32" && shape.at(-1) > 1
    && shape.slice(0, -1).every((size) => size === 1 || size === batch));
  return output ? { input, shape: [1, ...rest], height: sides[0], width: sides[1], output } : null;
}

/** What the model sees of ink, { alpha, width, height }: the part with ink, in the middle and as
 * large as those of the data set. MNIST (LeCun et al. 1998) leaves 4 of 28 pixels at each side and
 * puts the centre of mass in the middle; smaller pictures, such as those of 8x8 in the UCI set, are
 * filled. */
export function shrink({ alpha, width, height }, rows, columns) {
  let [left, right, top, bottom, mass, x, y] = [width, -1, height, -1, 0, 0, 0];
  alpha.forEach((value, i) => {
    if (!value) return;
    const [row, column] = [Math.floor(i / width), i % width];
    [left, right] = [Math.min(left, column), Math.max(right, column)];
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
    mass += value;
    x += value * (column + .5);
    y += value * (row + .5);
  });
  const pixels = new Float32Array(rows * columns);
  if (!mass) return pixels;
  const margin = rows >= 20 ? 20 / 28 : 1;
  const [inkWidth, inkHeight] = [right + 1 - left, bottom + 1 - top];
  const scale = Math.max(inkWidth / columns, inkHeight / rows) / margin;
  // No ink falls over the edge.
  const within = (low, high, middle, sides) => Math.max(high + 1 - sides * scale / 2,
    Math.min(low + sides * scale / 2, middle));
  const centre = margin < 1
    ? [within(left, right, x / mass, columns), within(top, bottom, y / mass, rows)]
    : [(left + right + 1) / 2, (top + bottom + 1) / 2];
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      let sum = 0;
      for (let k = 0; k < SAMPLES ** 2; k++) {
        const v = row + (Math.floor(k / SAMPLES) + .5) / SAMPLES - rows / 2;
        const u = column + ((k % SAMPLES) + .5) / SAMPLES - columns / 2;
        const [from, at] = [Math.floor(centre[1] + v * scale), Math.floor(centre[0] + u * scale)];
        if (from >= 0 && from < height && at >= 0 && at < width) sum += alpha[from * width + at];
      }
      pixels[row * columns + column] = sum / (255 * SAMPLES ** 2);
    }
  }
  return pixels;
}

/** Scores as shares of one: they are already, or become so by softmax. */
export function shares(scores) {
  const sum = scores.reduce((all, score) => all + score, 0);
  if (scores.every((score) => score >= 0) && Math.abs(sum - 1) < 1e-2) return [...scores];
  const most = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - most));
  const total = powers.reduce((all, power) => all + power, 0);
  return powers.map((power) => power / total);
}

/** Fills the page. Resolves when the example was run. */
export async function showDrawing(main, session, { input, shape, height, width, output }) {
  const canvas = make("canvas", { id: "drawing", width: SIDE, height: SIDE });
  canvas.setAttribute("aria-label", "Draw a digit here");
  const seen = make("canvas", { id: "seen", width, height });
  seen.setAttribute("aria-label", `What the model sees: ${width}x${height} pixels`);
  const clear = make("button", { textContent: "Clear" });
  const range = make("select", { id: "range" }, ...RANGES.map((high) =>
    make("option", { value: high, textContent: `0 to ${high}` })));
  range.value = RANGES.includes(session.manifest.options?.pixels)
    ? session.manifest.options.pixels : RANGES[0];
  const [answer, certainty] = [make("span", { id: "class" }), make("span", { id: "certainty" })];
  const bars = make("ol", { className: "bars", id: "bars" });
  const time = make("strong", { id: "time", className: "number" });
  main.replaceChildren(
    make("section", { className: "card" },
      canvas,
      make("div", { className: "row apart" },
        make("div", { className: "row" }, seen,
          make("p", { className: "quiet", textContent: `seen as ${width}×${height}` })), clear)),
    make("section", { className: "card" },
      make("h2", { textContent: "Prediction" }),
      make("p", { className: "answer" }, answer, certainty),
      bars,
      make("div", { className: "row apart quiet" },
        make("p", {}, "Time of a run ", time),
        make("label", {}, "Pixels", range))));

  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let strokes = EXAMPLE.map((stroke) => stroke.map(([x, y]) => [x * SIDE, y * SIDE]));
  let example = true;
  const draw = () => {
    pen.clearRect(0, 0, SIDE, SIDE);
    pen.lineWidth = PEN;
    pen.lineCap = pen.lineJoin = "round";
    pen.strokeStyle = getComputedStyle(document.documentElement).color;
    if (example) pen.strokeStyle = getComputedStyle(clear).borderTopColor;
    for (const stroke of strokes) {
      pen.beginPath();
      pen.moveTo(...stroke[0]);
      for (const point of stroke) pen.lineTo(...point);
      pen.stroke();
    }
  };

  const times = [];
  const show = (pixels, scores) => {
    const picture = new ImageData(width, height);
    pixels.forEach((value, i) => picture.data.fill(Math.round(255 * value), 4 * i, 4 * i + 3));
    picture.data.forEach((_, i) => i % 4 === 3 && (picture.data[i] = 255));
    seen.getContext("2d").putImageData(picture, 0, 0);
    const parts = shares(scores);
    const best = parts.indexOf(Math.max(...parts));
    const order = parts.map((_, k) => k);
    if (parts.length > MOST_BARS) order.sort((a, b) => parts[b] - parts[a]);
    answer.textContent = best;
    certainty.textContent = `${(100 * parts[best]).toFixed(1)} %`;
    order.slice(0, MOST_BARS).forEach((k, at) => {
      const item = bars.children[at] ?? bars.appendChild(make("li", {},
        make("span", { className: "name number" }),
        make("span", { className: "track" }, make("div", { className: "bar" })),
        make("span", { className: "share number" })));
      item.className = k === best ? "best" : "";
      item.children[0].textContent = k;
      item.querySelector(".bar").style.transform = `scaleX(${parts[k]})`;
      item.children[2].textContent = `${(100 * parts[k]).toFixed(1)} %`;
    });
    time.textContent = duration(median(times));
  };

  // One run at a time; of drawings that come meanwhile the last one counts.
  let running = false;
  let waiting = false;
  const predict = async () => {
    if (running) {
      waiting = true;
      return;
    }
    running = true;
    do {
      waiting = false;
      const { data } = pen.getImageData(0, 0, SIDE, SIDE);
      const alpha = data.filter((_, i) => i % 4 === 3);
      const pixels = shrink({ alpha, width: SIDE, height: SIDE }, height, width);
      try {
        const values = pixels.map((value) => value * Number(range.value));
        const begin = performance.now();
        const results = await session.run({ [input.name]: { data: values, shape } });
        clearProblem();
        times.push(performance.now() - begin);
        if (times.length > 21) times.shift();
        show(pixels, results[output.name].data);
      } catch (error) {
        showProblem(error, session);
        waiting = false;
      }
    } while (waiting);
    running = false;
  };

  const change = () => {
    draw();
    return predict();
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE,
      ((event.clientY - box.top) / box.height) * SIDE];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (example) [strokes, example] = [[], false];
    strokes.push([place(event)]);
    change();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    strokes.at(-1).push(place(event));
    change();
  });
  clear.addEventListener("click", () => {
    [strokes, example] = [[], false];
    draw();
    answer.textContent = certainty.textContent = "";
    bars.replaceChildren();
    seen.getContext("2d").clearRect(0, 0, width, height);
  });
  range.addEventListener("change", change);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  await change();
}
